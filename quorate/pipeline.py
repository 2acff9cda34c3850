"""The pipeline: how an update's vectors become one encoded vector, and how the aggregate becomes vectors again.

It is built in this one place, identically on both sides, from the terms, the cohort's bounds and the round's public
values. Ring, scale and noise shares follow from these. The way to sum is made here too, since both halves need it.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import numpy as np

from quorate.codecs import Clip, Codec
from quorate.errors import DataError
from quorate.fleets import Identities
from quorate.plan import PlainSum, RingSum, SecAggPlus, Terms
from quorate.privacy import Event, Mechanism, NoPrivacy, TruncatedPoissonSampledEvent
from quorate.privacy.secagg import EnrolledKeys, SecAggSummation
from quorate.randomness import Randomness
from quorate.rounds import (
    Aggregate,
    Assignment,
    Broadcast,
    CohortBounds,
    PublicValues,
    Update,
    Vector,
    VectorSpec,
)
from quorate.strategies import Aggregator
from quorate.summation import Journal, Sink, Summation, SumSession
from quorate.sums import DirectSummation, RunningSum, Spool

__all__ = ["Pipeline", "Segment", "binding", "build", "event", "session", "summation"]

_WEIGHT, _METRICS = "quorate.weight", "quorate.metrics"  # no strategy's vector has a name with a dot
_METRIC_BOUND = 1024.0


@dataclass(frozen=True)
class Segment:
    """Where one named vector stands in the encoded vector, and how it is encoded.

    Args:
        vector: its name, length and bound.
        codec: encodes it, after the client's weight was applied.
        place: in the encoded vector.
        clip: applied before the weight, which would otherwise decide how much is clipped.
    """

    vector: Vector
    codec: Codec
    place: slice
    clip: Clip | None = None


@dataclass(frozen=True)
class Pipeline:
    """Encodes updates and decodes their aggregate.

    Args:
        mechanism: of privacy.
        spec: the vectors that the strategy's updates carry; weights and metrics ride beside them.
        bounds: of the cohort.
        segments: one a vector, in order.
        length: the number of encoded values.
        dtype: uint32 in a ring, float32 otherwise.
        aggregator: of the strategy.
        metrics: the names of the metrics that ride in the sum; empty when they are off.
        weighted: whether survivors count by their number of examples.
        example_cap: the most examples that count of one client; None: all.
        denominator: what sums are divided by; None: by what the survivors' weights come to.
    """

    mechanism: Mechanism
    spec: VectorSpec
    bounds: CohortBounds
    segments: tuple[Segment, ...]
    length: int
    dtype: np.dtype[np.generic]
    aggregator: Aggregator
    metrics: tuple[str, ...]
    weighted: bool
    example_cap: int | None
    denominator: float | None

    def encode(self, update: Update, randomness: Randomness) -> np.ndarray:
        """One client's update as an encoded vector, shape (length,).

        Raises:
            DataError: a vector is missing, or does not have the length that the strategy says.
        """
        weight = self._weight(update.examples)
        vectors: dict[str, np.ndarray] = {name: np.asarray(v) for name, v in update.vectors.items()}
        vectors[_WEIGHT] = np.ones(1)
        vectors[_METRICS] = np.array([update.metrics.get(name, 0.0) for name in self.metrics])
        encoded = np.empty(self.length, self.dtype)
        for segment in self.segments:
            vector = vectors.get(segment.vector.name)
            if vector is None or vector.shape != (segment.vector.length,):
                found = "none" if vector is None else f"shape {vector.shape}"
                raise DataError(
                    f"an update needs a vector {segment.vector.name!r} of shape ({segment.vector.length},), got {found}"
                )
            block = vector[None, :]
            if segment.clip is not None:
                block = segment.clip.encode(block, randomness)
            encoded[segment.place] = segment.codec.encode(block * weight, randomness)[0]
        return encoded

    def _weight(self, examples: int) -> float:
        """At most 1 where there is a cap, so that a weighted vector keeps its norm bound."""
        if not self.weighted:
            return 1.0
        return (
            float(examples)
            if self.example_cap is None
            else min(examples, self.example_cap) / self.example_cap
        )

    def sink(self) -> Sink:
        """What the sum ends in: one running sum, or a spool where the aggregator must see single updates."""
        make = RunningSum if self.aggregator.linear else Spool
        return make(self.length, self.dtype)

    def decode(
        self, aggregate: Aggregate, randomness: Randomness
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """The aggregate of each vector, float64, shape (its length,), and the mean of each metric.

        A mean divides by the fixed denominator where the plan has privacy, and by the survivors' weights elsewhere.

        Args:
            aggregate: what the sink held at the end.
            randomness: the server's own: for noise that the mechanism adds to the sum before anybody sees it.
        """
        values = self._reduced(aggregate) if aggregate.total is None else self._means(aggregate, randomness)
        values.pop(_WEIGHT, None)
        metrics = values.pop(_METRICS, np.zeros(0))
        return values, {name: float(value) for name, value in zip(self.metrics, metrics, strict=False)}

    def _means(self, aggregate: Aggregate, randomness: Randomness) -> dict[str, np.ndarray]:
        assert aggregate.total is not None
        sums = {}
        for segment in self.segments:
            vector, total = segment.vector, aggregate.total[segment.place]
            if vector.name in self.spec.names:
                survivors, stream = len(aggregate.survivors), randomness.spawn(vector.name)
                total = self.mechanism.top_up(total, vector, self.spec, self.bounds, survivors, stream)
            sums[vector.name] = segment.codec.decode(total, vector.length)
        if self.denominator is not None:
            divisor = self.denominator
        elif self.weighted:
            divisor = max(float(sums[_WEIGHT][0]), 1e-12)
        else:
            divisor = float(len(aggregate.survivors))
        return {name: total / divisor for name, total in sums.items()}

    def _reduced(self, aggregate: Aggregate) -> dict[str, np.ndarray]:
        assert aggregate.updates is not None
        updates = {
            segment.vector.name: np.stack(
                [segment.codec.decode(row[segment.place], segment.vector.length) for row in aggregate.updates]
            )
            for segment in self.segments
        }
        weights = updates.get(_WEIGHT, np.ones((len(aggregate.survivors), 1)))[:, 0]
        counted = weights > 0  # a client without examples has no update
        if not counted.any():
            return {name: np.zeros(block.shape[1]) for name, block in updates.items()}
        return {
            name: self.aggregator.reduce(block[counted] / weights[counted, None], weights[counted])
            for name, block in updates.items()
        }


def build(terms: Terms, bounds: CohortBounds, public: PublicValues) -> Pipeline:
    """The pipeline of a round: the same on both sides.

    Args:
        terms: resolved (`Plan.resolved`).
        bounds: of the cohort.
        public: of the round.
    """
    task, strategy, mechanism = terms.task.resolve(), terms.strategy.resolve(), terms.privacy
    ring = not isinstance(terms.secure_aggregation, PlainSum)
    weighted = terms.rounds.weighting == "examples"
    metrics = () if mechanism.private else task.model.metrics
    spec = strategy.vectors(strategy.shared(task.layout))
    # Outside a ring a weight has no bound, and the clip comes before it only.
    coder = NoPrivacy() if weighted and not ring else mechanism
    clips = {
        vector.name: Clip(mechanism.clip_norm * vector.bound)
        for vector in spec.vectors
        if weighted and mechanism.clip_norm is not None
    }
    codecs = [(vector, coder.codec(vector, spec, bounds, public, ring=ring)) for vector in spec.vectors]
    if weighted:
        codecs.append(_count(Vector(_WEIGHT, 1), 1.0, bounds, public, ring))
    if metrics:
        codecs.append(_count(Vector(_METRICS, len(metrics)), _METRIC_BOUND, bounds, public, ring))
    segments, start = [], 0
    for vector, codec in codecs:
        stop = start + codec.length(vector.length)
        segments.append(Segment(vector, codec, slice(start, stop), clips.get(vector.name)))
        start = stop
    return Pipeline(
        mechanism=mechanism,
        spec=spec,
        bounds=bounds,
        segments=tuple(segments),
        length=start,
        dtype=np.dtype(np.uint32 if ring else np.float32),
        aggregator=strategy.aggregator,
        metrics=metrics,
        weighted=weighted,
        example_cap=terms.rounds.example_cap,
        denominator=bounds.denominator if mechanism.private else None,
    )


def event(terms: Terms, bounds: CohortBounds, population: int) -> Event | None:
    """What a round releases, for the ledger; None when no privacy is claimed.

    Amplification by sampling is claimed only for the sampler that the coordinator runs in secret.

    Args:
        terms: resolved.
        bounds: of the cohort.
        population: how many members the cohort is drawn from.
    """
    strategy = terms.strategy.resolve()
    spec = strategy.vectors(strategy.shared(terms.task.resolve().layout))
    released, summing = terms.privacy.event(spec, bounds), terms.secure_aggregation
    if released is None or not isinstance(summing, RingSum) or terms.rounds.sampling != "poisson":
        return released
    return TruncatedPoissonSampledEvent(
        population=population,
        probability=terms.rounds.cohort / population,
        cap=bounds.largest,
        event=released,
        dropout=summing.dropout,
    )


def session(assignment: Assignment, pipeline: Pipeline) -> SumSession:
    """What both halves of the sum agree on."""
    return SumSession(
        binding=binding(assignment.terms_hash, assignment.run, assignment.round, assignment.broadcast),
        length=pipeline.length,
        dtype=pipeline.dtype,
        bounds=assignment.bounds,
    )


def binding(terms_hash: bytes, run: str, round: int, broadcast: Broadcast) -> bytes:
    """SHA-256 over the terms (which hold the task), run, round, and everything broadcast.

    Members that were told different things derive different masks, which then don't cancel: a server that gives one
    member another model learns nothing from the sum (Pasquini et al., CCS 2022).
    """
    name = run.encode()
    header = struct.pack(">I", len(name)) + name + struct.pack(">Q", round)
    return hashlib.sha256(b"quorate/session/1" + terms_hash + header + broadcast.digest()).digest()


def summation(
    terms: Terms, session: SumSession, journal: Journal, identities: Identities | None = None
) -> Summation:
    """The way to sum that the terms say.

    Args:
        terms: resolved.
        session: of the round.
        journal: of the round.
        identities: who the members are to one another; the signed threat models need it.
    """
    summing = terms.secure_aggregation
    if isinstance(summing, SecAggPlus):
        known = identities or Identities(EnrolledKeys(frozenset()))
        return SecAggSummation(
            session, journal, summing.parameters(), enrolment=known.enrolment, identities=known.own
        )
    return DirectSummation(session, journal)


def _count(
    vector: Vector, bound: float, bounds: CohortBounds, public: PublicValues, ring: bool
) -> tuple[Vector, Codec]:
    """Weights and metrics carry no noise: they are there only when the plan has no privacy."""
    plain = NoPrivacy(clip_norm=bound if ring else None)
    return vector, plain.codec(vector, VectorSpec((vector,)), bounds, public, ring=ring)
