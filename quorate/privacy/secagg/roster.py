"""The roster of a session: who takes part, on which place of the ring, and the session's hash.

A member enters with the digest of its advertisement, its *leaf*; in the signed threat models the digest of its
identity comes first, so that everybody sees that no identity takes part twice: each neighbour of a member
checks both. A digest of the binding and the sorted leaves goes into the session's hash, and seeds
a permutation that puts the members on the ring. So the server can't choose neighbours: it can only choose
whom to let in, after which fresh keys of honest members decide (against a server that tries many rosters,
the parameters take 128 bits of security).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quorate.privacy.secagg.keys import digest
from quorate.privacy.secagg.messages import Advertisement, Roster, SignedRoster
from quorate.privacy.secagg.parameters import Neighbourhood, SecAggParameters
from quorate.randomness import Randomness
from quorate.summation import SumSession

__all__ = ["Ring", "leaf_of", "roster_type"]


def leaf_of(advertisement: Advertisement, binding: bytes, identity: bytes | None) -> bytes:
    """What stands in the roster for a member: 32 bytes, or 64 with an identity (its public key)."""
    leaf = digest(b"leaf", advertisement.encode())
    return leaf if identity is None else digest(b"identity", binding, identity) + leaf


def roster_type(parameters: SecAggParameters) -> type[Roster]:
    """The roster's message in a threat model."""
    return SignedRoster if parameters.threat_model.signed else Roster


@dataclass(frozen=True)
class Ring:
    """The members of a session on their places.

    Args:
        session: the session's hash: 32 bytes, in every key derivation from here on.
        hood: n, k, t and the quorum.
        leaves: by place: shape (n, 32), or (n, 64) in the signed threat models, uint8.
    """

    session: bytes
    hood: Neighbourhood
    leaves: np.ndarray

    @classmethod
    def build(cls, session: SumSession, parameters: SecAggParameters, sorted_leaves: bytes) -> Ring:
        """The ring of a roster: the same for everybody who knows the same terms, broadcast and roster.

        Args:
            session: for the binding, the bounds, the vector's length and width.
            parameters: of the plan.
            sorted_leaves: 32 bytes each, or 64 in the signed threat models.

        Raises:
            ValueError: the parameters can't be met with so many members.
        """
        each = roster_type(parameters).leaf_bytes
        members = len(sorted_leaves) // each
        hood = parameters.neighbourhood(members, session.bounds.min_survivors)
        committed = digest(b"ring", session.binding, sorted_leaves)
        words = np.frombuffer(sorted_leaves, np.uint64).reshape(members, each // 8)
        return cls(
            session=digest(b"session", session.binding, _sizes(session, parameters, hood), committed),
            hood=hood,
            leaves=np.take(words, _order(committed, members), axis=0).view(np.uint8),
        )

    def places(self, leaf: bytes) -> list[int]:
        """Where a leaf stands on the ring."""
        words = self.leaves.view(np.uint64)
        wanted = np.frombuffer(leaf, np.uint64)
        alike = np.flatnonzero(words[:, 0] == wanted[0])  # one word of a digest tells nearly all others apart
        return [int(place) for place in alike if (words[place] == wanted).all()]


def _order(seed: bytes, members: int) -> np.ndarray:
    """The rank of the member on each place: the ranks sorted by 64 bits of key stream (ties by rank)."""
    words = Randomness(seed).words(members, np.dtype("<u8"))
    order = np.argsort(words)
    sorted_words = words[order]
    if (sorted_words[1:] == sorted_words[:-1]).any():  # rare; a stable sort takes several times as long
        order = np.argsort(words, kind="stable")
    return order


def _sizes(session: SumSession, parameters: SecAggParameters, hood: Neighbourhood) -> bytes:
    numbers = (
        hood.members,
        hood.neighbours,
        hood.threshold,
        hood.quorum,
        session.length,
        8 * session.dtype.itemsize,
    )
    return b"".join(number.to_bytes(8, "big") for number in numbers) + parameters.threat_model.encode()
