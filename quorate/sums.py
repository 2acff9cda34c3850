"""Plain and ideal summation, and the sinks that sums end in.

*Plain*: the server sees every encoded vector and adds them. *Ideal*: what secure aggregation would give,
without its protocol: for simulations, where nobody is there to be protected; a run that used it is marked so.
Both add in the same arithmetic as the secure sum: modulo 2^16 or 2^32 for ring vectors, in float64 for plain values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quorate.errors import ProtocolViolation, QuorumNotReached
from quorate.randomness import Randomness
from quorate.rounds import Aggregate, Member
from quorate.summation import Exposure, Journal, Outgoing, Sink, SumSession

__all__ = ["BucketSums", "DirectSummation", "RunningSum", "Spool", "held_in"]


def held_in(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """What a sum of such vectors is held in: uint16 and uint32, which wrap, in themselves, floats in float64."""
    return dtype if dtype.kind == "u" else np.dtype(np.float64)


class RunningSum:
    """One sum over all members: O(d) memory. Rings wrap; floats are added in float64.

    Args:
        length: the number of values of an encoded vector.
        dtype: of the encoded vectors.
    """

    def __init__(self, length: int, dtype: np.dtype[np.generic]):
        self._total: np.ndarray = np.zeros(length, held_in(dtype))
        self._members: list[Member] = []

    def add(self, encoded: np.ndarray, members: Sequence[Member]) -> None:
        """Adds a block of vectors, one for each of `members`, or the sum over them.

        Raises:
            ValueError: the vectors' length or number is not the expected one.
        """
        block = _block(encoded, len(self._total))
        if encoded.ndim == 2 and len(block) != len(members):
            raise ValueError(
                f"a block holds one vector a member, got {len(block)} vectors for {len(members)} members"
            )
        if len(block) == 1:
            np.add(self._total, block[0], out=self._total)
        else:
            self._total += block.sum(axis=0, dtype=self._total.dtype)
        self._members.extend(members)

    @property
    def survivors(self) -> tuple[Member, ...]:
        """Who is in the sum."""
        return tuple(self._members)

    def result(self) -> Aggregate:
        """The sum, and who is in it; what is added later does not change it."""
        return Aggregate(self._total[None, :].copy(), (len(self._members),), self.survivors)


class _Rows:
    """Keeps every vector it is given, copied, so that the caller can use its array again."""

    def __init__(self, length: int, dtype: np.dtype[np.generic]):
        self._length, self._dtype = length, dtype
        self._blocks: list[np.ndarray] = []
        self._sizes: list[int] = []
        self._members: list[Member] = []

    def _keep(self, block: np.ndarray, sizes: Sequence[int], members: Sequence[Member]) -> None:
        self._blocks.append(block.astype(self._dtype))
        self._sizes.extend(sizes)
        self._members.extend(members)

    @property
    def survivors(self) -> tuple[Member, ...]:
        """Whose vectors are kept."""
        return tuple(self._members)

    def result(self) -> Aggregate:
        """Every vector, in the order of the survivors."""
        empty = np.zeros((0, self._length), self._dtype)
        return Aggregate(np.concatenate([empty, *self._blocks]), tuple(self._sizes), self.survivors)


class Spool(_Rows):
    """Keeps every single update, for aggregators that need them: O(n·d) memory.

    Args:
        length: the number of values of an encoded vector.
        dtype: of the encoded vectors.
    """

    def add(self, encoded: np.ndarray, members: Sequence[Member]) -> None:
        """Adds a block of single vectors, shape (len(members), m); a sum over several members can't be taken.

        Raises:
            ValueError: the vectors' length or number is not the expected one.
        """
        block = _block(encoded, self._length)
        if len(block) != len(members):
            raise ValueError(
                f"a spool takes single updates, got {len(block)} vectors for {len(members)} members"
            )
        self._keep(block, [1] * len(members), members)


class BucketSums(_Rows):
    """Keeps the sum of every bucket, for robust aggregation across them: O(buckets·d) memory.

    Args:
        length: the number of values of an encoded vector.
        dtype: of the encoded vectors.
    """

    def __init__(self, length: int, dtype: np.dtype[np.generic]):
        super().__init__(length, held_in(dtype))

    def add(self, encoded: np.ndarray, members: Sequence[Member]) -> None:
        """Adds a bucket's sum, shape (m,), over its members.

        Raises:
            ValueError: it is not one vector of the expected length, or is over nobody.
        """
        block = _block(encoded, self._length)
        if encoded.ndim != 1 or not members:
            raise ValueError(f"a bucket's sum is one vector, over members; got shape {encoded.shape}")
        self._keep(block, [len(members)], members)


def _block(encoded: np.ndarray, length: int) -> np.ndarray:
    block = encoded if encoded.ndim == 2 else encoded[None]
    if block.ndim != 2 or block.shape[1] != length:  # NumPy would stretch a vector of one value
        raise ValueError(f"encoded vectors of {length} values are expected, got shape {encoded.shape}")
    return block


@dataclass(frozen=True)
class DirectSummation:
    """Summation without a protocol: a client's one message is its encoded vector.

    Args:
        session: length, dtype and bounds.
        journal: written before the first vector is taken, since the server sees it.
    """

    session: SumSession
    journal: Journal
    direct: bool = True

    def server(self, sink: Sink) -> DirectServerSum:
        """The server's half."""
        return DirectServerSum(self.session, sink)

    def client(self, encoded: np.ndarray, randomness: Randomness) -> DirectClientSum:
        """A client's half.

        Raises:
            ValueError: the vector does not have the session's length.
        """
        if encoded.shape != (self.session.length,):
            raise ValueError(
                f"an encoded vector of shape ({self.session.length},) is expected, got {encoded.shape}"
            )
        return DirectClientSum(encoded.astype(self.session.dtype, copy=False))


class DirectServerSum:
    """One phase: every member's vector, little-endian, as it is."""

    phase = "update"
    reveals = True

    def __init__(self, session: SumSession, sink: Sink):
        self._session, self._sink = session, sink
        self._wire = session.dtype.newbyteorder("<")
        self._awaited: dict[Member, None] = {}
        self._taken = 0
        self.done = False

    @property
    def awaited(self) -> Sequence[Member]:
        """Who has not sent a vector yet."""
        return list(self._awaited)

    def begin(self, members: Sequence[Member]) -> list[Outgoing]:
        """The clients speak first."""
        self._awaited = dict.fromkeys(members)
        return []

    def receive(self, member: Member, data: bytes) -> None:
        """Takes a vector."""
        if member not in self._awaited:
            raise ProtocolViolation(
                f"{member} is not awaited: it sent a second vector, was given up, or is not in the cohort"
            )
        expected = self._session.length * self._wire.itemsize
        if len(data) != expected:
            raise ProtocolViolation(f"{member} sent {len(data)} bytes, {expected} are expected")
        vector = np.frombuffer(data, self._wire).astype(self._session.dtype, copy=False)
        if vector.dtype.kind == "f" and not np.isfinite(vector).all():
            raise ProtocolViolation(f"{member} sent values that are not finite")
        del self._awaited[member]
        self._taken += 1
        self._sink.add(vector[None, :], [member])

    def lose(self, member: Member) -> None:
        """The member is out, unless its vector is here already."""
        self._awaited.pop(member, None)

    def advance(self) -> list[Outgoing]:
        """Closes the only phase: nothing is taken afterwards."""
        self._awaited = {}
        needed = self._session.bounds.min_survivors
        if self._taken < needed:
            raise QuorumNotReached(self.phase, self._taken, needed)
        self.done = True
        return []


class DirectClientSum:
    """Sends the encoded vector, and is done."""

    exposure = Exposure.REVEALED

    def __init__(self, encoded: np.ndarray):
        self._data = encoded.astype(encoded.dtype.newbyteorder("<"), copy=False).tobytes()

    def begin(self) -> bytes:
        """The encoded vector."""
        return self._data

    def receive(self, data: bytes) -> None:
        """The server has nothing to say."""
        raise ProtocolViolation("a plain sum has one message, from the client; the server sent another")
