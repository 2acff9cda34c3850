"""How many neighbours a client has, and how many of them open a secret: k and t.

SecAgg+ (Bell, Bonawitz, Gascón, Lepoint, Raykova, "Secure Single-Server Aggregation with (Poly)Logarithmic
Overhead", CCS 2020) masks along a random k-regular graph and shares each client's secrets among its k
neighbours, any t of whom can restore one. The rule is the one that Google published with its implementation
(google/federated-compute, `fcp/secagg`, Harary graph parameter finder): the smallest even k, with the
smallest t, such that, over the random places of ⌊γn⌋ corrupt clients and of the dropouts,

- the honest survivors stay connected except with probability 2^-(σ+1) (a Harary graph falls apart only if
  k/2 successive clients are missing in two places; union bound over the pairs of places), however many
  drop out of those that may: n - min_survivors;
- no client has t corrupt neighbours except with probability 2^-(σ+1) over all clients;
- every client has t neighbours that stay except with probability 2^-η over all clients, when ⌊δn⌋ drop out;
- against a lying server, t > (k + c)/2 with c the bound on corrupt neighbours, so that the two secrets of
  one client can't both gather t shares when every honest neighbour gives only one.

It is evaluated in exact integers: both sides compute the same numbers, whatever their floating-point
library. A client computes them from the signed terms and the size of the roster; no message carries them.
"""

from __future__ import annotations

import bisect
import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

__all__ = [
    "LARGEST_COHORT",
    "SMALLEST_COHORT",
    "Neighbourhood",
    "SecAggParameters",
    "ThreatModel",
    "most_corrupt_in_a_bucket",
]

LARGEST_COHORT = 65_520
"""The most members of one session: a holder's place must be a non-zero element of the field."""

SMALLEST_COHORT = 3
"""The fewest: with two members, each would learn the other's vector from the sum."""

_COMPLETE_BELOW = 50
_GROUND_PROOF_BITS = 128


class ThreatModel(enum.StrEnum):
    """Against what server the single vectors are kept secret; a share of the clients may help it."""

    SEMI_HONEST = "semi-honest"
    """Everybody follows the protocol, and tries to learn from what it sees."""

    SEMI_MALICIOUS = "semi-malicious"
    """The server may lie in any message; enrolment, and who is in the roster, are not chosen against the
    clients.
    """

    MALICIOUS = "malicious"
    """The server may lie in any message and choose the roster; only enrolment is independent of it."""

    @property
    def signed(self) -> bool:
        """Whether advertisements and survivor sets are signed by the members' identities."""
        return self is not ThreatModel.SEMI_HONEST


@dataclass(frozen=True)
class Neighbourhood:
    """The numbers of one session.

    Args:
        members: the size of the roster, n.
        neighbours: with how many others each member shares masks and secrets, k; `members - 1` is the
            complete graph.
        threshold: how many neighbours restore a secret, t.
        quorum: the fewest members whose masked vectors make a sum that is released.
    """

    members: int
    neighbours: int
    threshold: int
    quorum: int

    @property
    def complete(self) -> bool:
        """Whether everybody is everybody's neighbour (the protocol of Bonawitz et al., CCS 2017)."""
        return self.neighbours == self.members - 1


@dataclass(frozen=True)
class SecAggParameters:
    """What a plan says about secure aggregation; all sizes follow from it and from the roster's size.

    `min_survivors` (of the cohort's bounds) and t are different floors: the first is the fewest members in a
    released sum, the second the fewest neighbours that must answer for each single secret. The quorum does not
    depend on how many were drawn: accounts of sampled cohorts rely on that. The graph is made for it: the fewer
    survivors are accepted, the more neighbours a client has.

    Args:
        threat_model: see `ThreatModel`.
        corrupt: γ, the largest share of members that may help the server; in [0, 1).
        dropout: δ, the share of members that may drop out of a round that is to succeed; in [0, 1).
        security_bits: σ; against a server that picks the roster (malicious, not complete) at least 128,
            since it can try many rosters.
        failure_bits: η; a round in which δn members drop fails with probability 2^-η.
        complete: whether to use the complete graph for every size; below 50 members it is used in any case.
        corrupt_members: how many members may help the server, where that is known otherwise than as a share of the
            roster (`most_corrupt_in_a_bucket`); γ is then left aside.

    Raises:
        ValueError: a value is out of range, or the combination can't be met.
    """

    threat_model: ThreatModel = ThreatModel.SEMI_HONEST
    corrupt: float = 0.05
    dropout: float = 0.2
    security_bits: int = 40
    failure_bits: int = 20
    complete: bool = False
    corrupt_members: int | None = None

    def __post_init__(self) -> None:
        for name, rate in (("corrupt", self.corrupt), ("dropout", self.dropout)):
            if not 0 <= rate < 1:
                raise ValueError(f"{name} must be a share in [0, 1), got {rate}")
        if self.corrupt_members is not None and self.corrupt_members < 0:
            raise ValueError(f"corrupt_members must be at least 0, got {self.corrupt_members}")
        for name, bits in (("security_bits", self.security_bits), ("failure_bits", self.failure_bits)):
            if not 1 <= bits <= 256:
                raise ValueError(f"{name} must be from 1 to 256, got {bits}")
        if (
            self.threat_model is ThreatModel.MALICIOUS
            and not self.complete
            and self.security_bits < _GROUND_PROOF_BITS
        ):
            raise ValueError(
                "a malicious server can try many rosters: use the complete graph, or security_bits of at "
                f"least {_GROUND_PROOF_BITS} (got {self.security_bits})"
            )

    def neighbourhood(self, members: int, min_survivors: int) -> Neighbourhood:
        """k, t and the quorum for a roster of `members`, of whom at least `min_survivors` must be in a sum.

        Raises:
            ValueError: no k and t meet the parameters at this size.
        """
        if not SMALLEST_COHORT <= members <= LARGEST_COHORT:
            raise ValueError(
                f"a session has from {SMALLEST_COHORT} to {LARGEST_COHORT} members, {members} were asked for"
            )
        found = None
        if not self.complete and members >= _COMPLETE_BELOW:
            found = harary(
                members,
                self._corrupt_of(members, _floor),
                _floor(self.dropout, members),
                max(members - min_survivors, 0),
                self.threat_model.signed,
                self.security_bits,
                self.failure_bits,
            )
        if found is None:
            neighbours = members - 1
            threshold = complete_threshold(
                members, self._corrupt_of(members, _ceil), self.threat_model.signed
            )
        else:
            neighbours, threshold = found
        quorum = max(min_survivors, threshold + 1)
        if quorum > members:
            raise ValueError(
                f"{members} members are too few: at least {quorum} must stay in a sum "
                f"(min_survivors {min_survivors}, threshold {threshold} of {neighbours} neighbours, "
                f"{self.threat_model})"
            )
        return Neighbourhood(members, neighbours, threshold, quorum)

    def _corrupt_of(self, members: int, rounded: Callable[[float, int], int]) -> int:
        known = self.corrupt_members
        return rounded(self.corrupt, members) if known is None else min(known, members)


@lru_cache(maxsize=64)
def most_corrupt_in_a_bucket(
    cohort: int, buckets: int, size: int, corrupt: float, security_bits: int = 40
) -> int:
    """The number of corrupt members that no bucket of a random partition passes, except with probability 2^-σ.

    Chernoff's bound, which holds for draws without replacement as well (Hoeffding 1963, theorem 4), and, for buckets of
    up to `size`, is largest at `size`: B·(γ/x)^k·((1-γ)/(1-x))^(s-k) ≤ 2^-σ with x = k/s ≥ γ, in exact integers.

    Args:
        cohort: the most members that are divided.
        buckets: B, into how many.
        size: s, the most members of one.
        corrupt: γ, the largest share of the cohort that is corrupt.
        security_bits: σ.
    """
    rate = Fraction(repr(float(corrupt)))
    bad, whole = rate.numerator, rate.denominator

    def rare(k: int) -> bool:
        chance = (bad * size) ** k * ((whole - bad) * size) ** (size - k) * buckets << security_bits
        return bool(chance <= whole**size * k**k * (size - k) ** (size - k))

    least = math.ceil(rate * size)
    found = bisect.bisect_left(range(least, size + 1), True, key=rare) + least  # size + 1 if none is rare
    return min(found - 1, _floor(corrupt, cohort)) if bad else 0


def complete_threshold(members: int, corrupt: int, majority: bool) -> int:
    """The threshold in the complete graph, where at most so many of the n - 1 neighbours are corrupt."""
    bad = min(corrupt, members - 1)
    return max((members - 1 + bad) // 2 + 1 if majority else bad + 1, 2)


@lru_cache(maxsize=1024)
def harary(
    members: int,
    corrupt: int,
    dropped: int,
    absent: int,
    majority: bool,
    security_bits: int,
    failure_bits: int,
) -> tuple[int, int] | None:
    """The smallest (k, t) of the rule, or None when only the complete graph is left.

    Args:
        members: n.
        corrupt: how many members are corrupt.
        dropped: how many members drop out in a round that is to succeed.
        absent: the most members that can be missing from a sum that is released.
        majority: whether t > (k + corrupt neighbours)/2 is asked for.
        security_bits: σ.
        failure_bits: η.
    """
    for neighbours in range(2, members - 1, 2):
        if not _stays_connected(members, corrupt + absent, neighbours, security_bits):
            continue
        honest = _low_quantile(members, members - corrupt, neighbours, security_bits + 1)
        most_corrupt = neighbours - honest - 1
        most_threshold = _low_quantile(members, members - dropped, neighbours, failure_bits) + 1
        least = (most_corrupt + neighbours) // 2 if majority else most_corrupt
        if least < most_threshold:
            return neighbours, max(least + 1, 2)
    return None


def _stays_connected(members: int, missing: int, neighbours: int, bits: int) -> bool:
    """Whether n(n-k-1)/2 · C(missing, k)/C(n, k) < 2^-(bits+1)."""
    places = members * (members - neighbours - 1)
    return places * math.perm(missing, neighbours) << bits < math.perm(members, neighbours)


def _low_quantile(members: int, marked: int, drawn: int, bits: int) -> int:
    """The largest r with n · P(X ≤ r) < 2^-bits, X the number of marked among `drawn` of `members`."""
    low = max(0, marked + drawn - members)
    bound = math.comb(members, drawn)
    ways = math.comb(marked, low) * math.comb(members - marked, drawn - low)
    total, r = ways, low
    while total * members << bits < bound and r < drawn:
        ways = ways * (marked - r) * (drawn - r) // ((r + 1) * (members - marked - drawn + r + 1))
        r += 1
        total += ways
    return r - 1


def _floor(rate: float, members: int) -> int:
    """⌊rate · members⌋ of the decimal number that was written: 0.29 · 100 is 29."""
    return math.floor(Fraction(repr(float(rate))) * members)


def _ceil(rate: float, members: int) -> int:
    return math.ceil(Fraction(repr(float(rate))) * members)
