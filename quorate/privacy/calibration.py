"""From a target ε to the noise multiplier, and from a plan to the ε that its rounds will cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self, TypeVar

from quorate.errors import PlanError
from quorate.privacy.accounting import example_epsilon, released_epsilon, server_epsilon
from quorate.privacy.dp_sgd import LARGEST_MULTIPLIER, SMALLEST_MULTIPLIER, DpSgd
from quorate.privacy.events import Event, NoisySum, TruncatedPoissonSampledEvent
from quorate.rounds import SumShape

__all__ = [
    "calibrate",
    "calibrate_examples",
    "forecast",
    "forecast_server",
    "least_epsilon",
    "most_participations",
]


class _Target(Protocol):
    """A section of the plan that says its noise by a multiplier or by the ε that it is to keep."""

    @property
    def epsilon(self) -> float | None: ...

    @property
    def limit(self) -> float | None: ...

    def event(self, shape: SumShape) -> NoisySum: ...

    def model_copy(self, *, update: Mapping[str, Any]) -> Self: ...


Calibrated = TypeVar("Calibrated", bound=_Target)

_NOTHING: Mapping[Event, int] = {}

_LARGEST_MULTIPLIER = 64.0
_SMALLEST_MULTIPLIER = 0.01
_PRECISION = 1e-4


def forecast(event: Event, rounds: int, delta: float, beside: Mapping[Event, int] = _NOTHING) -> float:
    """The `released` ε of `rounds` rounds of one event, and of others `beside`; a member may take part in all."""
    return released_epsilon({**beside, event: rounds + beside.get(event, 0)}, delta)


def forecast_server(
    event: Event, participations: int, delta: float, beside: Mapping[Event, int] = _NOTHING
) -> float:
    """The `server` ε of a member that takes part in so many rounds of one event, and of others `beside`."""
    counts = {**beside, event: participations + beside.get(event, 0)}
    taken = {each: count for each, count in counts.items() if count}
    return server_epsilon(taken, delta) if taken else 0.0


def most_participations(rounds: int, probability: float, population: int) -> int:
    """How often the most frequent member is drawn: less than one of the population is expected to be drawn oftener."""
    chances = [
        math.comb(rounds, k) * probability**k * (1 - probability) ** (rounds - k) for k in range(rounds + 1)
    ]
    above = 0.0
    for count in range(rounds, 0, -1):
        above += chances[count]
        if population * above >= 1:
            return count
    return 0


def calibrate(
    mechanism: Calibrated,
    shape: SumShape,
    *,
    rounds: int,
    delta: float,
    population: int,
    probability: float | None,
    dropout: float = 0.1,
    beside: Mapping[Event, int] = _NOTHING,
) -> Calibrated:
    """The mechanism with the smallest noise multiplier (to 1e-4) that keeps its `released` ε.

    That ε becomes its budget, unless it has a larger one.

    Args:
        mechanism: with `epsilon` set; with `noise_multiplier` set it is returned as it is.
        shape: of a round's sum; `bounds.largest` is the cap of the sampler.
        rounds: how many are to be run.
        delta: of the ε.
        population: how many members there are.
        probability: of each to be drawn, in secret; None: no amplification is claimed.
        dropout: see `TruncatedPoissonSampledEvent`.
        beside: what the run releases of other kinds, and how often: the ε is of all of it.

    Raises:
        PlanError: no noise multiplier up to 64 that the ring holds keeps the target; the message says what can be had.
    """
    if mechanism.epsilon is None:
        return mechanism

    at, epsilon = _accounted(mechanism, shape, rounds, delta, population, probability, dropout, beside)

    def or_infinite(multiplier: float) -> float:
        """Few coordinates in a narrow ring have coarse steps, which too little noise does not cover."""
        try:
            return epsilon(multiplier)
        except PlanError:
            return math.inf

    if or_infinite(_SMALLEST_MULTIPLIER) <= mechanism.epsilon:
        return at(_SMALLEST_MULTIPLIER)
    largest = _largest(lambda multiplier: at(multiplier).event(shape))
    if epsilon(largest) > mechanism.epsilon:
        also = f" and {sum(beside.values())} evaluations" if beside else ""
        raise PlanError(
            f"privacy.epsilon: found {mechanism.epsilon:g}, which {rounds} rounds{also} can't keep at delta "
            f"{delta:.3g}: noise multiplier {largest:.4g}, the largest here, gives {epsilon(largest):.4g}; "
            "accepted: a larger epsilon, fewer rounds, a larger population, or a smaller cohort drawn with "
            "sampling = 'poisson'"
        )
    return at(math.ceil(_smallest(or_infinite, mechanism.epsilon, largest) * 1e4) / 1e4)


def least_epsilon(
    mechanism: Calibrated,
    shape: SumShape,
    *,
    rounds: int,
    delta: float,
    population: int,
    probability: float | None,
    dropout: float = 0.1,
    beside: Mapping[Event, int] = _NOTHING,
) -> float:
    """The smallest `released` ε that `calibrate` can keep; arguments as there."""
    at, epsilon = _accounted(mechanism, shape, rounds, delta, population, probability, dropout, beside)
    return epsilon(_largest(lambda multiplier: at(multiplier).event(shape)))


def _accounted(
    mechanism: Calibrated,
    shape: SumShape,
    rounds: int,
    delta: float,
    population: int,
    probability: float | None,
    dropout: float,
    beside: Mapping[Event, int],
) -> tuple[Callable[[float], Calibrated], Callable[[float], float]]:
    """By noise multiplier: the mechanism, and the `released` ε of the whole run."""

    def at(multiplier: float) -> Calibrated:
        values = {"noise_multiplier": multiplier, "epsilon": None, "budget": mechanism.limit}
        return mechanism.model_copy(update=values)

    def epsilon(multiplier: float) -> float:
        event = at(multiplier).event(shape)
        if probability is None:
            return forecast(event, rounds, delta, beside)
        sampled = TruncatedPoissonSampledEvent(population, probability, shape.bounds.largest, event, dropout)
        return forecast(sampled, rounds, delta, beside)

    return at, epsilon


def calibrate_examples(training: DpSgd, epochs: int, participations: int) -> DpSgd:
    """DP-SGD with the smallest noise multiplier (to 1e-4) that keeps its ε for one example.

    That ε becomes its budget, unless it has a larger one.

    Args:
        training: with `epsilon` set; with `noise_multiplier` set it is returned as it is.
        epochs: passes over a client's data in a participation.
        participations: how many rounds a client can be in at most.

    Raises:
        PlanError: no noise multiplier keeps the target; the message says what can be had.
    """
    if training.epsilon is None:
        return training

    def at(multiplier: float) -> DpSgd:
        values = {"noise_multiplier": multiplier, "epsilon": None, "budget": training.limit}
        return training.model_copy(update=values)

    def epsilon(multiplier: float) -> float:
        return example_epsilon(at(multiplier).event(epochs), participations, training.delta)

    if epsilon(SMALLEST_MULTIPLIER) <= training.epsilon:
        return at(SMALLEST_MULTIPLIER)
    if (least := epsilon(LARGEST_MULTIPLIER)) > training.epsilon:
        raise PlanError(
            f"training.dp_sgd.epsilon: found {training.epsilon:g}, which a client in {participations} rounds can't "
            f"keep at delta {training.delta:.3g}: noise multiplier {LARGEST_MULTIPLIER:g}, the largest, gives "
            f"{least:.4g}; accepted: a larger epsilon, fewer rounds or epochs, or a smaller sampling_rate"
        )
    return at(math.ceil(_smallest(epsilon, training.epsilon, LARGEST_MULTIPLIER) * 1e4) / 1e4)


def _largest(event: Callable[[float], object]) -> float:
    """The largest multiplier up to 64 that can be had: more may not fit the ring, or be less than a count costs."""

    def can_be_had(multiplier: float) -> bool:
        try:
            event(multiplier)
        except PlanError:
            return False
        return True

    high = _LARGEST_MULTIPLIER
    if can_be_had(high):
        return high
    doubled = (_SMALLEST_MULTIPLIER * 2**k for k in range(13))
    low = next(filter(can_be_had, doubled), _SMALLEST_MULTIPLIER)
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if can_be_had(middle) else (low, middle)
    return low - _PRECISION  # what is found is rounded up


def _smallest(epsilon: Callable[[float], float], target: float, largest: float) -> float:
    """The smallest multiplier, to 1e-4, at which a falling ε is at most the target, as it is at the largest.

    ε is nearly a power of the multiplier over a short distance: after a bracket is found by doubling, false position
    on logarithms, a little to either side in turn, closes it from both ends in a few steps.
    """

    def excess(multiplier: float) -> float:
        return math.log(max(epsilon(multiplier), 1e-300) / target)

    low = high = min(1.0, largest)
    above = below = excess(low)
    while above <= 0:
        low /= 2
        above = excess(low)
    while below > 0:
        high = min(2 * high, largest)
        below = excess(high)
    turns = itertools.count()
    while high - low > _PRECISION:
        turn = next(turns)
        share = above / (above - below) if math.isfinite(above - below) and turn % 4 < 3 else 0.5
        nudge = 0.4 * _PRECISION * (-1) ** turn
        middle = low * (high / low) ** share + nudge
        if not low < middle < high:
            middle = (low + high) / 2
        found = excess(middle)
        if found > 0:
            low, above = middle, found
        else:
            high, below = middle, found
    return high
