"""What a client checks before it goes on: one function each, with its own refusal.

A `ProtocolViolation` says that the server (or a peer, through it) did what the protocol does not allow; a
`PolicyRefused` that the protocol was kept, but what it came to falls short of what this client accepts.
Either ends the client's session.

Some faults have no check because no message can express them: the encodings admit no member that is both
alive and dead, listed twice, or unknown (`messages`), and a state takes each message once (`states`), so
that a client answers one survivor set, with one kind of share for each neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quorate.errors import PolicyRefused, ProtocolViolation
from quorate.privacy.secagg.identity import Enrolment, verifies
from quorate.privacy.secagg.messages import Advertisement, signed_keys
from quorate.privacy.secagg.parameters import SMALLEST_COHORT
from quorate.privacy.secagg.roster import Ring
from quorate.rounds import CohortBounds

__all__ = [
    "check_acknowledged",
    "check_acknowledgements",
    "check_distinct_keys",
    "check_enough_holders",
    "check_neighbours_are_enrolled",
    "check_neighbours_are_listed",
    "check_neighbours_have_signed",
    "check_own_place",
    "check_roster_size",
    "check_self_survived",
    "check_survivor_count",
    "check_survivors_had_shared",
    "is_signed",
]


def check_roster_size(members: int, bounds: CohortBounds) -> None:
    """The roster is no smaller than a sum that the client accepts, no larger than the largest cohort."""
    lowest = max(bounds.min_survivors, SMALLEST_COHORT)
    if not lowest <= members <= bounds.largest:
        raise PolicyRefused(
            f"a roster of {members} members came, from {lowest} to {bounds.largest} are accepted"
        )


def check_own_place(ring: Ring, leaf: bytes) -> int:
    """The client's own keys are in the roster exactly once. Returns its place."""
    places = ring.places(leaf)
    if len(places) != 1:
        raise ProtocolViolation(
            f"the roster has this client's own keys {len(places)} times, once is accepted"
        )
    return places[0]


def check_neighbours_are_listed(ring: Ring, places: np.ndarray, leaves: Sequence[bytes]) -> None:
    """Each neighbour's keys, and identity, are those that the roster commits to, at that neighbour's place."""
    for place, leaf in zip(places.tolist(), leaves, strict=True):
        if ring.leaves[place].tobytes() != leaf:
            raise ProtocolViolation(
                f"the keys of the neighbour on place {place} are not those that the roster lists"
            )


def check_distinct_keys(own: Advertisement, advertisements: Sequence[Advertisement]) -> None:
    """No two of all keys of the client and its neighbours are the same."""
    keys = [key for each in (own, *advertisements) for key in (each.encryption_key, each.mask_key)]
    if len(set(keys)) != len(keys):
        raise ProtocolViolation(f"{len(keys) - len(set(keys))} keys of the neighbours came twice")


def check_neighbours_are_enrolled(
    enrolment: Enrolment, advertisements: Sequence[Advertisement]
) -> list[bytes]:
    """Each neighbour's identity is enrolled. Returns their public keys."""
    keys = []
    for number, advertisement in enumerate(advertisements):
        key = enrolment.public_key(advertisement.certificate)
        if key is None:
            raise ProtocolViolation(f"the identity of neighbour number {number} is not enrolled")
        keys.append(key)
    return keys


def check_neighbours_have_signed(
    binding: bytes, keys: Sequence[bytes], advertisements: Sequence[Advertisement]
) -> None:
    """Each neighbour's identity has signed its keys, for this round and broadcast."""
    for number, (key, advertisement) in enumerate(zip(keys, advertisements, strict=True)):
        if not is_signed(binding, key, advertisement):
            raise ProtocolViolation(f"the keys of neighbour number {number} are not signed by its identity")


def is_signed(binding: bytes, key: bytes, advertisement: Advertisement) -> bool:
    """Whether an advertisement is signed with the key."""
    each = advertisement
    signed = signed_keys(binding, each.encryption_key, each.mask_key, each.commitment, each.certificate)
    return verifies(key, each.signature, signed)


def check_enough_holders(present: np.ndarray, threshold: int) -> None:
    """At least t neighbours are still there to hold the client's secrets."""
    holders = int(present.sum())
    if holders < threshold:
        raise PolicyRefused(f"{holders} neighbours hold shares, at least {threshold} are accepted")


def check_survivor_count(alive: np.ndarray, quorum: int) -> None:
    """The sum has at least as many members as the client accepts."""
    count = int(alive.sum())
    if count < quorum:
        raise PolicyRefused(f"the sum would have {count} members, at least {quorum} are accepted")


def check_self_survived(alive: np.ndarray, place: int) -> None:
    """The client's own vector is in the sum that it helps to unmask."""
    if not alive[place]:
        raise ProtocolViolation(
            "the survivor set leaves this client out, which sent its vector and is asked for shares"
        )


def check_survivors_had_shared(alive: np.ndarray, places: np.ndarray, present: np.ndarray) -> None:
    """No neighbour is said to have survived that had not even sent shares."""
    late = places[alive[places] & ~present]
    if late.size:
        raise ProtocolViolation(
            f"the neighbours on places {late.tolist()} are said to have survived, but had sent no shares"
        )


def check_acknowledged(present: np.ndarray, alive: np.ndarray, threshold: int) -> None:
    """At least t neighbours have signed the survivor set, all of them survivors."""
    signed = int(present.sum())
    if signed < threshold:
        raise PolicyRefused(
            f"{signed} neighbours have signed the survivor set, at least {threshold} are accepted"
        )
    if (present & ~alive).any():
        raise ProtocolViolation("a neighbour signed the survivor set that is not in it")


def check_acknowledgements(survivors: bytes, keys: Sequence[bytes], signatures: Sequence[bytes]) -> None:
    """Each of these signatures is on the same survivor set that the client itself has signed."""
    for key, signature in zip(keys, signatures, strict=True):
        if not verifies(key, signature, survivors):
            raise ProtocolViolation("a neighbour's signature is not on the survivor set that came here")
