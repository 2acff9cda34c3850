"""Group-wise sums: the cohort in random buckets, each a session of its own.

One sum a bucket lets a robust rule run across buckets, and lets a cohort of any size be summed at the cost of small
sessions. Clients need not know: a client is in one session, with the roster of its bucket, and its bounds (largest
size, fewest survivors, and with them the noise that it adds) are those of a bucket. So a plan that uses buckets gives
the bucket's bounds as the session's (`quorate.cohorts`).

What the server learns is a sum for each bucket, of at least the bucket's fewest survivors: more than one sum of all.
Its memory is that of one sum a bucket.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from quorate.errors import ProtocolViolation, QuorumNotReached
from quorate.randomness import Randomness
from quorate.rounds import Member
from quorate.summation import ClientSum, Journal, Outgoing, ServerSum, Sink, Summation, SumSession
from quorate.sums import RunningSum

__all__ = ["BucketedServer", "BucketedSummation", "bucketed"]


def bucketed(members: Sequence[Member], count: int, randomness: Randomness) -> list[list[Member]]:
    """A random partition into `count` buckets, whose sizes differ by at most one."""
    order = [members[i] for i in randomness.permutation(len(members))]
    return [order[bucket::count] for bucket in range(count)]


@dataclass(frozen=True)
class BucketedSummation:
    """A summation in buckets.

    Args:
        inner: the summation of one bucket; its session's bounds are those of a bucket.
        count: how many buckets there are.
        fewest: how many of them must come to a sum.
        randomness: the server's, for the partition; None on a client.
        direct: never: who is in which bucket is said by the server's half.
    """

    inner: Summation
    count: int
    fewest: int
    randomness: Randomness | None = None
    direct: bool = False

    @property
    def session(self) -> SumSession:
        """The session of every bucket: the rosters tell them apart."""
        return self.inner.session

    @property
    def journal(self) -> Journal:
        """Written before a bucket can be opened."""
        return self.inner.journal

    def server(self, sink: Sink) -> BucketedServer:
        """The server's half; the sink is given one sum a bucket, with that bucket's survivors."""
        if self.randomness is None:
            raise ValueError("a server needs randomness for its buckets")
        return BucketedServer(self, sink, self.randomness)

    def client(self, encoded: np.ndarray, randomness: Randomness) -> ClientSum:
        """A client's half: that of an ordinary session."""
        return self.inner.client(encoded, randomness)


class _Union(Collection[Member]):
    """Disjoint collections as one, without a copy: a driver asks for its length after each message."""

    def __init__(self, parts: Sequence[Collection[Member]]):
        self._parts = parts

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def __iter__(self) -> Iterator[Member]:
        return chain.from_iterable(self._parts)

    def __contains__(self, member: object) -> bool:
        return any(member in part for part in self._parts)


class BucketedServer:
    """The servers of all buckets, phase by phase. A bucket that is not quorate is left out.

    Args:
        summation: inner summation, number of buckets, fewest of them.
        sink: gets the buckets' sums, all at the end.
        randomness: for the partition.
    """

    def __init__(self, summation: BucketedSummation, sink: Sink, randomness: Randomness):
        self._summation, self._sink, self._randomness = summation, sink, randomness
        self._open: list[tuple[ServerSum, RunningSum]] = []
        self._bucket: dict[Member, ServerSum] = {}
        self._phase, self.done = "new", False

    @property
    def phase(self) -> str:
        """The phase that all buckets are in."""
        return self._phase

    @property
    def awaited(self) -> Collection[Member]:
        """Who has not answered in this phase yet, in any bucket."""
        return _Union([server.awaited for server, _ in self._open])

    @property
    def reveals(self) -> bool:
        """Whether a bucket is being unmasked."""
        return any(server.reveals for server, _ in self._open)

    def begin(self, members: Sequence[Member]) -> list[Outgoing]:
        """Opens a session for each bucket.

        Raises:
            ValueError: the cohort is so large that a bucket would have more members than the session's largest.
        """
        session, outgoing = self._summation.session, []
        for bucket in bucketed(members, self._summation.count, self._randomness):
            if len(bucket) > session.bounds.largest:
                raise ValueError(
                    f"a bucket of {len(bucket)} members, a session has at most {session.bounds.largest}"
                )
            total = RunningSum(session.length, session.dtype)
            server = self._summation.inner.server(total)
            outgoing += server.begin(bucket)
            self._open.append((server, total))
            self._bucket.update(dict.fromkeys(bucket, server))
        self._phase = self._open[0][0].phase
        return outgoing

    def receive(self, member: Member, data: bytes) -> None:
        """Takes a member's message, in its bucket.

        Raises:
            ProtocolViolation: the member is in no bucket that is open, or its bucket refuses the message.
        """
        server = self._bucket.get(member)
        if server is None:
            raise ProtocolViolation(f"{member} is in no bucket that is open")
        server.receive(member, data)

    def lose(self, member: Member) -> None:
        """The member answers no more."""
        if server := self._bucket.get(member):
            server.lose(member)

    def advance(self) -> list[Outgoing]:
        """Closes the phase in every bucket.

        Raises:
            QuorumNotReached: fewer buckets than needed are left; the session is over, and the sink untouched.
        """
        if self._phase in ("new", "done", "aborted"):
            raise ValueError(f"a session that is {self._phase} can't advance")
        closing, outgoing, left = self._phase, [], []
        for server, total in self._open:
            try:
                outgoing += server.advance()
            except QuorumNotReached:
                self._bucket = {
                    member: other for member, other in self._bucket.items() if other is not server
                }
            else:
                left.append((server, total))
        self._open = left
        if len(left) < self._summation.fewest:
            self._phase = "aborted"
            raise QuorumNotReached(f"{closing} (buckets)", len(left), self._summation.fewest)
        self._phase, self.done = left[0][0].phase, left[0][0].done
        if self.done:
            for _, total in left:
                result = total.result()
                self._sink.add(result.sums[0], result.survivors)
        return outgoing
