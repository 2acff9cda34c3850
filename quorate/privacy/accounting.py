"""The two ε of a run: what was charged, composed and converted at one δ.

Bounds are proven by Rényi divergences (`quorate.privacy.curves`) and by privacy loss distributions
(`quorate.privacy.losses`); the smaller one is said. Rounds with Laplace noise have an ε at δ = 0, which may also be
added to that of all others (basic composition: Dwork, McSherry, Nissim, Smith 2006); that is a third bound.

`released` is against whoever sees only the models: sampling amplifies where the cohort was drawn in secret,
and it holds for every member of the population. `server` is against the server and the peers who see the
roster: no amplification, composed over the participations of the most frequent member. Both hold for rounds
of different kinds, chosen one after the other (adaptive composition: Mironov 2017, Proposition 1; Zhu, Dong,
Wang 2022, Theorem 10).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from quorate.privacy import losses
from quorate.privacy.curves import ORDERS, example_curve, released_curve, server_curve
from quorate.privacy.dp_sgd import EXAMPLE_RELATION, ExampleEvent
from quorate.privacy.events import CentralDiscreteLaplaceEvent, Event, TruncatedPoissonSampledEvent
from quorate.rounds import Member

__all__ = [
    "RELATION",
    "Epsilons",
    "ExampleEpsilon",
    "Spend",
    "default_delta",
    "example_epsilon",
    "released_epsilon",
    "server_epsilon",
    "to_epsilon",
]

RELATION = "zero-out of one user's whole contribution"
"""Neighbouring runs: in one of them, everything that one member contributes, in every round, is replaced by
zero."""


@dataclass(frozen=True)
class Epsilons:
    """What a run has spent.

    Args:
        released: ε against those who see only what is released.
        server: ε against the server, for the most frequent participant; infinite if it sees sums without noise.
        delta: of both.
        relation: which runs are neighbours.
        simulated: whether any of it was drawn from a seed, so that it protects nobody.
    """

    released: float
    server: float
    delta: float
    relation: str = RELATION
    simulated: bool = False


@dataclass(frozen=True)
class ExampleEpsilon:
    """What a run has spent of one example's privacy, where clients train by DP-SGD.

    It is another unit than that of `Epsilons`, and holds against everybody but the client itself.

    Args:
        epsilon: for any example of the client that took part most often.
        delta: of it.
        participations: how often that client took part.
        relation: which data are neighbours.
        simulated: whether it was drawn from a seed, so that it protects nobody.
    """

    epsilon: float
    delta: float
    participations: int
    relation: str = EXAMPLE_RELATION
    simulated: bool = False


def default_delta(population: int) -> float:
    """population^-1.1: less than one member in expectation."""
    delta: float = float(population) ** -1.1
    return delta


def to_epsilon(curve: np.ndarray, delta: float, orders: Iterable[float] = ORDERS) -> float:
    """The smallest ε at δ that a Rényi curve gives, one order by another; infinite where none of it is finite.

    Canonne, Kamath, Steinke 2020 (arXiv 2004.00010), Proposition 12: ε = D_α + log(1 - 1/α) - log(δα) / (α - 1). It is
    0 where δ is above √(1 - exp(-D_α)), which no total variation is above (Bretagnolle and Huber 1978), since D_α is at
    least the Kullback-Leibler divergence.
    """
    if not curve.any():
        return 0.0
    known = np.isfinite(curve)
    if delta == 0 or not known.any():
        return math.inf
    alpha, divergence = np.array(tuple(orders), np.float64)[known], curve[known]
    if (delta**2 + np.expm1(-divergence)).max() > 0:
        return 0.0
    epsilons = divergence + np.log1p(-1 / alpha) - np.log(delta * alpha) / (alpha - 1)
    return max(0.0, float(epsilons.min()))


def released_epsilon(rounds: Mapping[Event, int], delta: float) -> float:
    """ε at δ of rounds against those who see only what is released; of the unsampled ones, who took part in all.

    Raises:
        MissingExtra: SciPy is not installed, and there was sampling; or dp-accounting, and an event is one of its own.
    """
    return _released(frozenset(rounds.items()), delta)


def server_epsilon(participations: Mapping[Event, int], delta: float) -> float:
    """ε at δ of one member's participations, against the server."""
    return _server(frozenset(participations.items()), delta)


def example_epsilon(event: ExampleEvent, participations: int, delta: float) -> float:
    """ε at δ of a client's participations under DP-SGD, for one of its examples, against everybody else.

    Raises:
        MissingExtra: SciPy is not installed, and there was sampling.
    """
    if not participations:
        return 0.0
    by_moments = to_epsilon(participations * example_curve(event), delta)
    return min(by_moments, losses.example_epsilon([(event, participations)], delta))


@lru_cache(maxsize=4096)
def _released(rounds: frozenset[tuple[Event, int]], delta: float) -> float:
    by_moments = to_epsilon(_composed(rounds, released_curve), delta)
    if not by_moments:
        return 0.0
    found = min(by_moments, losses.released_epsilon(rounds, delta))
    pure = frozenset((event, count) for event, count in rounds if _pure(event) is not None)
    if not pure:
        return found
    added = math.fsum(count * (_pure(event) or 0.0) for event, count in pure)
    return min(found, added + (_released(rounds - pure, delta) if rounds - pure else 0.0))


def _pure(event: Event) -> float | None:
    """ε of one round at δ = 0; None where there is none. Sampling takes nothing away from it."""
    inner = event.event if isinstance(event, TruncatedPoissonSampledEvent) else event
    return inner.epsilon if isinstance(inner, CentralDiscreteLaplaceEvent) else None


@lru_cache(maxsize=4096)
def _server(rounds: frozenset[tuple[Event, int]], delta: float) -> float:
    by_moments = to_epsilon(_composed(rounds, server_curve), delta)
    return min(by_moments, losses.server_epsilon(rounds, delta)) if by_moments else 0.0


def _composed(rounds: Iterable[tuple[Event, int]], curve_of: Callable[[Event], np.ndarray]) -> np.ndarray:
    total = np.zeros(len(ORDERS))
    for event, count in sorted(rounds, key=repr):  # so that the order of charges can't change the last digit
        total += count * curve_of(event)
    return total


class Spend:
    """A sum of charges that can also be taken back: of which events how many, and who took part in how many.

    Equal events are counted together, so that a charge costs microseconds, and an ε depends on the counts only.
    """

    def __init__(self) -> None:
        self._numbers: dict[Event, int] = {}
        self._events: list[Event] = []
        self._rounds: Counter[int] = Counter()
        self._participations: dict[Member, Counter[int]] = {}

    def add(self, event: Event, members: Iterable[Member]) -> None:
        """Charges one round."""
        number = self._numbers.setdefault(event, len(self._numbers))
        if number == len(self._events):
            self._events.append(event)
        self._count(number, members, 1)

    def remove(self, event: Event, members: Iterable[Member]) -> None:
        """Takes one round's charge back: the same arguments as it was charged with."""
        self._count(self._numbers[event], members, -1)

    def _count(self, number: int, members: Iterable[Member], by: int) -> None:
        self._rounds[number] += by
        for member in members:
            self._participations.setdefault(member, Counter())[number] += by

    def epsilons(self, delta: float, *, simulated: bool) -> Epsilons:
        """Both ε at δ."""
        profiles = self._profiles()
        return Epsilons(
            released=max(released_epsilon(rounds, delta) for rounds in self._released_profiles(profiles)),
            server=max(server_epsilon(self._named(dict(profile)), delta) for profile in _largest(profiles)),
            delta=delta,
            simulated=simulated,
        )

    def _profiles(self) -> set[frozenset[tuple[int, int]]]:
        """How often members took part in what; nobody's is empty."""
        return {
            frozenset((i, n) for i, n in counts.items() if n > 0) for counts in self._participations.values()
        } | {frozenset()}

    def _released_profiles(self, profiles: set[frozenset[tuple[int, int]]]) -> list[dict[Event, int]]:
        """What was released of members: all sampled rounds, which hold for everybody, and the others they were in."""
        sampled = {
            i for i, event in enumerate(self._events) if isinstance(event, TruncatedPoissonSampledEvent)
        }
        everybody = {i: self._rounds[i] for i in sampled if self._rounds[i] > 0}
        unsampled = {frozenset((i, n) for i, n in profile if i not in sampled) for profile in profiles}
        return [self._named({**everybody, **dict(profile)}) for profile in _largest(unsampled)]

    def within(self, budget: float, delta: float) -> bool:
        """Whether the `released` ε at δ is at most the budget.

        While all rounds are of one sampled kind, how many of them the budget allows is worked out once.
        """
        kinds = [i for i, n in self._rounds.items() if n > 0]
        if len(kinds) == 1 and isinstance(self._events[kinds[0]], TruncatedPoissonSampledEvent):
            return self._rounds[kinds[0]] <= _allowed(self._events[kinds[0]], budget, delta)
        return self.epsilons(delta, simulated=False).released <= budget

    def rounds_left(self, event: Event, budget: float, delta: float, most: int) -> int:
        """How many rounds of `event`, up to `most`, the budget still allows, whoever takes part; found by bisection."""
        spent = self._released_profiles(self._profiles())

        def kept(count: int) -> bool:
            return all(
                released_epsilon({**rounds, event: rounds.get(event, 0) + count}, delta) <= budget
                for rounds in spent
            )

        few, many = 0, 1
        while many <= most and kept(many):
            few, many = many, 2 * many
        while many - few > 1:
            middle = (few + many) // 2
            few, many = (middle, many) if kept(middle) else (few, middle)
        return min(few, most)

    def _named(self, counts: Mapping[int, int]) -> dict[Event, int]:
        return {self._events[i]: n for i, n in counts.items()}


@lru_cache(maxsize=64)
def _allowed(event: Event, budget: float, delta: float) -> int:
    """How many rounds of one event a budget allows, up to 2^20; their ε grows with their number."""
    few, many = 0, 1
    while many < 1 << 20 and released_epsilon({event: many}, delta) <= budget:
        few, many = many, 2 * many
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if released_epsilon({event: middle}, delta) <= budget else (few, middle)
    return few


def _largest(profiles: set[frozenset[tuple[int, int]]]) -> list[frozenset[tuple[int, int]]]:
    """The profiles that are not below another: with one kind of round, only that of the most frequent member.

    With training and evaluations, of the members with as many of the one only that with the most of the other counts.
    """
    kept: list[dict[int, int]] = []
    for profile in sorted(map(dict, profiles), key=lambda profile: -sum(profile.values())):
        if not any(all(other.get(i, 0) >= n for i, n in profile.items()) for other in kept):
            kept.append(profile)
    return [frozenset(profile.items()) for profile in kept]
