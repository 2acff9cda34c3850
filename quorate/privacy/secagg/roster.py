"""The roster of a session: who takes part, on which place of the ring, and the session's hash.

A member enters with the digest of its advertisement, its *leaf*. The sorted leaves, with the binding, seed
a permutation that puts the members on the ring. So the server can't choose neighbours: it can only choose
whom to let in, after which fresh keys of honest members decide (against a server that tries many rosters,
the parameters take 128 bits of security).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quorate.privacy.secagg.keys import digest
from quorate.privacy.secagg.messages import LEAF_BYTES, Advertisement
from quorate.privacy.secagg.parameters import Neighbourhood, SecAggParameters
from quorate.randomness import Randomness
from quorate.summation import SumSession

__all__ = ["Ring", "leaf_of"]


def leaf_of(advertisement: Advertisement) -> bytes:
    """The digest under which an advertisement is listed: 32 bytes."""
    return digest(b"leaf", advertisement.encode())


@dataclass(frozen=True)
class Ring:
    """The members of a session on their places.

    Args:
        session: the session's hash: 32 bytes, in every key derivation from here on.
        hood: n, k, t and the quorum.
        leaves: by place: shape (n, 32), uint8.
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
            sorted_leaves: 32 bytes each.

        Raises:
            ValueError: the parameters can't be met with so many members.
        """
        members = len(sorted_leaves) // LEAF_BYTES
        hood = parameters.neighbourhood(members, session.bounds.min_survivors)
        order = _order(digest(b"ring", session.binding, sorted_leaves), members)
        return cls(
            session=digest(b"session", session.binding, _sizes(session, parameters, hood), sorted_leaves),
            hood=hood,
            leaves=np.frombuffer(sorted_leaves, np.uint8).reshape(members, LEAF_BYTES)[order],
        )

    def places(self, leaf: bytes) -> list[int]:
        """Where a leaf stands on the ring."""
        hits = np.flatnonzero((self.leaves == np.frombuffer(leaf, np.uint8)).all(axis=1))
        return [int(place) for place in hits]


def _order(seed: bytes, members: int) -> np.ndarray:
    """The rank of the member on each place: the ranks sorted by 64 bits of key stream (ties by rank)."""
    words = np.frombuffer(Randomness(seed).bytes(8 * members), "<u8")
    return np.argsort(words, kind="stable")


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
