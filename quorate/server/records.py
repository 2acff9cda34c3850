"""What the store knows of runs and rounds, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quorate.rounds import Kind, Outcome

__all__ = ["PopulationBudget", "Round", "Run", "RunStatus", "committed", "evaluated", "measured"]


class RunStatus:
    """The states of a run."""

    OPEN = "open"
    FINISHED = "finished"


@dataclass(frozen=True)
class Run:
    """A run as the store knows it.

    Args:
        id: a random name.
        terms_hash: SHA-256 of the terms, hex: the key by which a run is found again.
        terms: the exact bytes.
        simulated: whether a seed made its randomness, so that its ε protects nobody.
        status: see `RunStatus`.
        created: UTC, ISO 8601.
        committed: the number of committed rounds.
        population: towards whose budget it counts; None: it has its own only.
    """

    id: str
    terms_hash: str
    terms: bytes
    simulated: bool
    status: str
    created: str
    committed: int
    population: str | None = None


@dataclass(frozen=True)
class PopulationBudget:
    """What all runs over one population may spend together, from the first that counts towards it on.

    Args:
        name: of the population.
        epsilon: the `released` ε.
        delta: of that ε.
    """

    name: str
    epsilon: float
    delta: float


@dataclass(frozen=True)
class Round:
    """A round as the store knows it.

    Args:
        number: counts from 1, aborted rounds included.
        kind: of training, or an evaluation, which leaves the version as it was.
        base_version: how many rounds had been committed when it was opened.
        status: `open`, `committed` or `aborted`.
        revealing: whether something of a client's data can have been released.
        opened: UTC, ISO 8601.
        closed: likewise; None while it is open.
        cohort: how many members were selected.
        survivors: how many are in the sum; for the coordinator's operator, it is never published.
        lost: how many members were lost, by phase.
        metrics: of the model that the round left, or has evaluated.
        epsilons: `released` and `server` as they stood after the round; empty when no privacy is claimed.
        reason: why it was aborted.
    """

    number: int
    kind: Kind
    base_version: int
    status: str
    revealing: bool
    opened: str
    closed: str | None
    cohort: int | None
    survivors: int | None
    lost: Mapping[str, int]
    metrics: Mapping[str, float]
    epsilons: Mapping[str, float]
    reason: str | None


def committed(rounds: Sequence[Round], kind: Kind = Kind.FIT) -> list[Round]:
    """The committed rounds of a kind, in order."""
    return [past for past in rounds if past.status == Outcome.COMMITTED and past.kind is kind]


def evaluated(rounds: Sequence[Round]) -> int:
    """The version that was evaluated last; 0 if none was."""
    return max((past.base_version for past in committed(rounds, Kind.EVALUATE)), default=0)


def measured(rounds: Sequence[Round]) -> dict[str, float]:
    """What is known of the newest model: the metrics of its own round, and of its evaluation if there was one."""
    training = committed(rounds)
    found = dict(training[-1].metrics) if training else {}
    for past in committed(rounds, Kind.EVALUATE):
        if past.base_version == len(training):
            found |= past.metrics
    return found
