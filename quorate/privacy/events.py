"""Privacy events: what a round released of its cohort, as plain data; how that is accounted is not said here.

The separation is that of `dp_accounting.dp_event`: an event outlives every accountant. Rules that keep a
later change from making recorded spends wrong: an event is immutable, and its fields never change their
meaning; a new fact is a new event type; an event that this version does not know can't be read, rather than
being read as something weaker.

Events are written into the ledger as canonical JSON (`encoded`): sorted keys, no spaces, variances and scales as exact
fractions.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from quorate.errors import DataError

__all__ = [
    "CentralDiscreteGaussianEvent",
    "CentralDiscreteLaplaceEvent",
    "DistributedDiscreteGaussianEvent",
    "DistributedSkellamEvent",
    "Event",
    "ExternalEvent",
    "LaplaceVector",
    "LocalDiscreteGaussianEvent",
    "NoisySum",
    "NoisyVector",
    "TruncatedPoissonSampledEvent",
    "decode_event",
    "encode_event",
]


@dataclass(frozen=True)
class NoisyVector:
    """One vector of a sum, in integer steps.

    Args:
        name: of the vector.
        dimension: the number of coordinates that carry noise, after padding.
        norm_bound: the largest L2 norm of one client's integer vector, in steps.
        share_variance: of one client's noise share in each coordinate, in steps².
    """

    name: str
    dimension: int
    norm_bound: float
    share_variance: Fraction


@dataclass(frozen=True)
class LaplaceVector:
    """One vector of a sum with discrete Laplace noise, in integer steps.

    Args:
        name: of the vector.
        dimension: the number of coordinates.
        size_bound: the largest L1 norm of one client's integer vector, in steps.
        scale: b of the noise in each coordinate, P(x) ∝ exp(-|x| / b), in steps.
    """

    name: str
    dimension: int
    size_bound: int
    scale: Fraction

    @property
    def epsilon(self) -> float:
        """What it costs, at δ = 0."""
        return float(self.size_bound / self.scale)


@dataclass(frozen=True)
class _DistributedSum:
    """A sum of integer vectors, to which every survivor adds a share of noise.

    Args:
        vectors: the vectors of the sum, which share the cohort and have independent noise.
        shares: the fewest shares of honest survivors that are in the sum the server sees.
        released_shares: the fewest honest shares in what is released, after the server has added the shares
            of members that are missing from the largest cohort: the released noise then does not depend on
            who took part.
        quorum: the fewest survivors whose sum is released.
        largest: the most shares that can be in the released noise; 0: as many as `released_shares`.
    """

    vectors: tuple[NoisyVector, ...]
    shares: int
    released_shares: int
    quorum: int
    largest: int = 0

    def __post_init__(self) -> None:
        _check(self.vectors)
        _check_shares(self.shares, self.released_shares, self.largest)

    @property
    def most_shares(self) -> int:
        """The most shares that can be in the released noise."""
        return self.largest or self.released_shares


@dataclass(frozen=True)
class DistributedDiscreteGaussianEvent(_DistributedSum):
    """A sum to which every survivor adds a share of discrete Gaussian noise; arguments as in `_DistributedSum`."""


@dataclass(frozen=True)
class DistributedSkellamEvent(_DistributedSum):
    """A sum to which every survivor adds a share of Skellam noise; arguments as in `_DistributedSum`."""


@dataclass(frozen=True)
class LocalDiscreteGaussianEvent:
    """Integer vectors, each with discrete Gaussian noise of its own client's, that the server may see one by one.

    Args:
        vectors: the vectors of an update, with independent noise; their share variance is that of one client's noise.
        released_shares: the fewest honest shares in what is released, after the server has added the shares of members
            that are missing from the largest cohort.
        quorum: the fewest survivors whose sum is released.
        largest: the most shares that can be in the released noise.
    """

    vectors: tuple[NoisyVector, ...]
    released_shares: int
    quorum: int
    largest: int
    shares: ClassVar[int] = 1
    """In what the server sees of a client there is that client's noise."""

    def __post_init__(self) -> None:
        _check(self.vectors)
        _check_shares(1, self.released_shares, self.largest)

    @property
    def most_shares(self) -> int:
        """The most shares that can be in the released noise."""
        return self.largest


@dataclass(frozen=True)
class CentralDiscreteGaussianEvent:
    """A sum of integer vectors, to which the server adds discrete Gaussian noise before anybody sees it.

    Args:
        vectors: the vectors of the sum, which share the cohort and have independent noise; their share variance is
            that of all the noise.
        quorum: the fewest survivors whose sum is released.
    """

    vectors: tuple[NoisyVector, ...]
    quorum: int
    shares: ClassVar[int] = 0
    """In the sum that the server sees there is no noise."""
    released_shares: ClassVar[int] = 1
    most_shares: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check(self.vectors)


@dataclass(frozen=True)
class CentralDiscreteLaplaceEvent:
    """A sum of integer vectors, to which the server adds discrete Laplace noise before anybody sees it.

    Args:
        vectors: the vectors of the sum, which share the cohort and have independent noise.
        quorum: the fewest survivors whose sum is released.
    """

    vectors: tuple[LaplaceVector, ...]
    quorum: int
    shares: ClassVar[int] = 0
    """In the sum that the server sees there is no noise."""
    released_shares: ClassVar[int] = 1
    most_shares: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not self.vectors:
            raise DataError("an event without a vector released nothing")
        for vector in self.vectors:
            if vector.dimension < 1 or vector.size_bound < 1 or vector.scale <= 0:
                raise DataError(f"dimension ≥ 1, size bound ≥ 1 and scale > 0 are needed, got {vector}")

    @property
    def epsilon(self) -> float:
        """ε of one participation at δ = 0: Σ Δ/b."""
        return sum(vector.epsilon for vector in self.vectors)


NoisySum = (
    DistributedDiscreteGaussianEvent
    | DistributedSkellamEvent
    | LocalDiscreteGaussianEvent
    | CentralDiscreteGaussianEvent
    | CentralDiscreteLaplaceEvent
)
"""Sums with integer noise; what is released of them holds `released_shares` shares of it."""


@dataclass(frozen=True)
class ExternalEvent:
    """What a mechanism of another library released, in dp-accounting's words, see `quorate.privacy.external`.

    Whoever runs that mechanism sees what its noise is added to.

    Args:
        content: the event as canonical JSON.
    """

    content: str
    shares: ClassVar[int] = 0
    """In what the one sees who runs it there is no noise."""


@dataclass(frozen=True)
class TruncatedPoissonSampledEvent:
    """An event on a cohort that was drawn in secret, every member independently, and cut at a largest size.

    A draw above the cap is cut to a uniform subset, or drawn again: the account holds for both. Poisson
    sampling without truncation is a cap that equals the population.

    Args:
        population: how many members there were to choose from.
        probability: of each member to be drawn.
        cap: the largest cohort.
        event: what was released of the cohort.
        dropout: drawn members drop out for reasons that don't depend on anybody's data, independently of one
            another, with at most this probability. It matters at the edge of the quorum only: there, whether
            a round is released tells something about who was drawn.
    """

    population: int
    probability: float
    cap: int
    event: NoisySum
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise DataError(f"a sampling probability is in (0, 1], got {self.probability}")
        if not 1 <= self.cap <= self.population:
            raise DataError(f"1 ≤ cap ≤ population is needed, got {self.cap} and {self.population}")
        if not 0 <= self.dropout < 1:
            raise DataError(f"a dropout rate is in [0, 1), got {self.dropout}")


Event = NoisySum | TruncatedPoissonSampledEvent | ExternalEvent
"""What a round can release. Without a sampling wrapper no amplification is claimed."""


def _check(vectors: tuple[NoisyVector, ...]) -> None:
    if not vectors:
        raise DataError("an event without a vector released nothing")
    for vector in vectors:
        if vector.dimension < 1 or not vector.norm_bound > 0 or vector.share_variance < Fraction(1, 4):
            raise DataError(
                f"dimension ≥ 1, norm bound > 0 and share variance ≥ 1/4 are needed, got {vector}"
            )


def _check_shares(shares: int, released: int, largest: int) -> None:
    if not 1 <= shares <= released:
        raise DataError(f"1 ≤ shares ≤ released_shares is needed, got {shares} and {released}")
    if largest and largest < released:
        raise DataError(f"released_shares ≤ largest is needed, got {released} and {largest}")


_TYPES: dict[str, Callable[..., NoisySum]] = {
    "central-discrete-gaussian": CentralDiscreteGaussianEvent,
    "central-discrete-laplace": CentralDiscreteLaplaceEvent,
    "distributed-discrete-gaussian": DistributedDiscreteGaussianEvent,
    "distributed-skellam": DistributedSkellamEvent,
    "local-discrete-gaussian": LocalDiscreteGaussianEvent,
}
"""Sums by the `type` that they are written with."""


def encode_event(event: Event) -> dict[str, Any]:
    """The event as JSON values, with a `type`; `decode_event` gives the same event back."""
    if isinstance(event, ExternalEvent):
        return {"type": "dp-accounting", "content": event.content}
    if isinstance(event, TruncatedPoissonSampledEvent):
        return {
            "type": "truncated-poisson-sampled",
            "population": event.population,
            "probability": event.probability,
            "cap": event.cap,
            "dropout": event.dropout,
            "event": encode_event(event.event),
        }
    fields = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
    fields["type"] = next(name for name, kind in _TYPES.items() if type(event) is kind)
    fields["vectors"] = [
        {
            name: str(value) if isinstance(value, Fraction) else value
            for name, value in dataclasses.asdict(vector).items()
        }
        for vector in event.vectors
    ]
    return fields


def decode_event(content: Any) -> Event:
    """The event that `encode_event` wrote.

    Raises:
        DataError: the type is unknown, or a field is missing, unknown or wrong.
    """
    try:
        fields = dict(content)
        kind = fields.pop("type")
        if kind == "truncated-poisson-sampled":
            inner = decode_event(fields.pop("event"))
            if isinstance(inner, TruncatedPoissonSampledEvent):
                raise DataError("a sampled event can't be sampled again")
            if isinstance(inner, ExternalEvent):
                raise DataError("an event of dp-accounting's says itself how it is sampled")
            return TruncatedPoissonSampledEvent(event=inner, **fields)
        if kind == "dp-accounting":
            return ExternalEvent(str(fields.pop("content")), **fields)
        if kind in _TYPES:
            made = _TYPES[kind]
            noisy, exact = (
                (LaplaceVector, "scale")
                if made is CentralDiscreteLaplaceEvent
                else (NoisyVector, "share_variance")
            )
            vectors = tuple(
                noisy(**{**vector, exact: Fraction(vector[exact])}) for vector in fields.pop("vectors")
            )
            return made(vectors=vectors, **fields)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"a privacy event can't be read: {error}; found {json.dumps(content, default=str)}"
        ) from error
    raise DataError(f"a privacy event of type {kind!r} is not known to this version")
