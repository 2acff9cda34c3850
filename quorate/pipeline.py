"""The pipeline: how an update's vectors become one encoded vector, and how the aggregate becomes vectors again.

It is built in this one place, identically on both sides, from the terms, the cohort's bounds and the round's public
values. Ring, scale and noise shares follow from these. The way to sum is made here too, since both halves need it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from quorate.buckets import BucketedSummation
from quorate.codecs import Chain, Clip, Codec, norms
from quorate.errors import DataError
from quorate.evaluation import CELLS, Questions
from quorate.fleets import Identities
from quorate.plan import SecAggPlus, Terms
from quorate.privacy import DpQuery, Mechanism, NoPrivacy
from quorate.privacy.mechanisms.none import Float32, numbers
from quorate.privacy.secagg import EnrolledKeys, SecAggSummation, Unmask, add_masks
from quorate.randomness import Randomness
from quorate.rounds import (
    Aggregate,
    Assignment,
    Broadcast,
    CohortBounds,
    Instruction,
    Kind,
    PublicValues,
    Rows,
    State,
    SumShape,
    Update,
    Updates,
    Vector,
)
from quorate.strategies import Aggregator, aggregators
from quorate.summation import Journal, Sink, Summation, SumSession
from quorate.sums import BucketSums, DirectSummation, RunningSum, Spool

__all__ = ["Pipeline", "Segment", "binding", "build", "encoded", "instructed", "session", "summation"]

_WEIGHT, _METRICS = "quorate.weight", "quorate.metrics"  # no strategy's vector has a name with a dot
_METRIC_BOUND = 1024.0
_DTYPES = {None: np.float32, 16: np.uint16, 32: np.uint32}
_Block = TypeVar("_Block", np.ndarray, np.ndarray | Rows)


@dataclass(frozen=True)
class Segment:
    """Where one named vector stands in the encoded vector, and how it is encoded.

    Args:
        vector: its name, length and bound.
        codec: encodes it, after the client's weight and discount were applied.
        place: in the encoded vector.
        clip: applied before those, which would otherwise decide how much is clipped.
    """

    vector: Vector
    codec: Codec
    place: slice
    clip: Codec | None = None

    def of(self, vectors: Mapping[str, _Block], clients: int) -> _Block:
        """The clients' vectors of this name.

        Raises:
            DataError: there are none, or they do not have the length that the strategy says.
        """
        block = vectors.get(self.vector.name)
        if block is None or block.shape != (clients, self.vector.length):
            found = "none" if block is None else f"shape {block.shape[1:]}"
            raise DataError(
                f"an update needs a vector {self.vector.name!r} of shape ({self.vector.length},), got {found}"
            )
        return block

    def encode(
        self,
        block: np.ndarray,
        counts: np.ndarray | None,
        discount: float,
        randomness: Randomness,
        out: np.ndarray,
    ) -> None:
        """Encodes vectors, shape (clients, length).

        Args:
            block: the vectors.
            counts: for how much each counts, shape (clients, 1); None: for one.
            discount: for how much all of them count.
            randomness: for rounding and noise.
            out: takes the encoded vectors, shape (clients, m).
        """
        if self.clip is not None:
            block = self.clip.encode(block, randomness)  # which draws nothing
        if counts is not None:
            into = out if out.dtype == block.dtype and out.shape == block.shape else None
            block = np.multiply(block, counts.astype(block.dtype), out=into)
        if discount != 1.0:
            block = block * discount
        made = self.codec.encode(block, randomness)
        if made is not out:  # where it is already
            out[:] = made

    def scales(self, block: np.ndarray | Rows, counts: np.ndarray) -> np.ndarray | None:
        """What each vector is multiplied by when it is encoded, float64, shape (clients,); None if that is not all.

        Args:
            block: the vectors.
            counts: for how much each counts, shape (clients,).
        """
        first = [] if self.clip is None else [self.clip]
        chain = self.codec.codecs if isinstance(self.codec, Chain) else (self.codec,)
        then = [codec for codec in chain if not isinstance(codec, Float32)]
        if not (first or then):
            return counts
        lengths = norms(block) if isinstance(block, np.ndarray) else block.norms()
        scales = np.ones(len(counts))
        for codec in (*first, counts, *then):
            if isinstance(codec, Clip):
                scales = scales * codec.factors(lengths * scales)
            elif codec is counts:
                scales = scales * counts
            else:
                return None
        return None if np.isnan(scales).any() else scales


@dataclass(frozen=True)
class Pipeline:
    """Encodes updates and decodes their aggregate.

    Args:
        mechanism: of privacy.
        shape: of the sum: the vectors that the strategy's updates carry (weights and metrics ride beside them), the
            cohort's bounds, the ring.
        public: the round's public values.
        segments: one a vector, in order.
        length: the number of encoded values.
        dtype: uint16 or uint32 in a ring, float32 otherwise.
        aggregator: of the strategy.
        metrics: the names of the metrics that ride in the sum; empty when they are off.
        weighted: whether survivors count by their number of examples.
        example_cap: the most examples that count of one client; None: all.
        denominator: what a sum is divided by; None: by what the survivors' weights come to.
        buckets: how many sums there are of a cohort.
        questions: of an evaluation, whose vector is made of what a member measured, and read as metrics; None in
            training.
    """

    mechanism: Mechanism
    shape: SumShape
    public: PublicValues
    segments: tuple[Segment, ...]
    length: int
    dtype: np.dtype[np.generic]
    aggregator: Aggregator
    metrics: tuple[str, ...]
    weighted: bool
    example_cap: int | None
    denominator: float | None
    buckets: int = 1
    questions: Questions | None = None

    def encode(self, update: Update, randomness: Randomness, discount: float = 1.0) -> np.ndarray:
        """One client's update as an encoded vector, shape (length,).

        Args:
            update: of the client.
            randomness: for rounding and noise.
            discount: as in `encode_many`.

        Raises:
            DataError: a vector or a metric is missing, or a vector does not have the length that the strategy says.
        """
        encoded: np.ndarray = self.encode_many(Updates.of(update), [randomness], discount)[0]
        return encoded

    def encode_many(
        self, updates: Updates, randomness: Sequence[Randomness], discount: float = 1.0
    ) -> np.ndarray:
        """Several clients' updates as encoded vectors, shape (clients, length); each draws from a stream of its own.

        Args:
            updates: of the clients.
            randomness: for rounding and noise, one for each.
            discount: for how much the updates' vectors count, from 0 to 1; weights and metrics stay whole, so that a
                discount makes the step shorter.

        Raises:
            DataError: a vector or a metric is missing, or a vector does not have the length that the strategy says.
        """
        clients = len(updates.examples)
        encoded = np.empty((clients, self.length), self.dtype)
        weights = self._weights(updates.examples)
        counts = None if weights is None else weights[:, None]
        vectors = self._vectors(updates)
        for segment in self.segments:
            name, block = segment.vector.name, segment.of(vectors, clients)
            place, own = encoded[:, segment.place], discount if name in updates.vectors else 1.0
            if not self.draws:
                block = block if isinstance(block, np.ndarray) else updates.vectors[name]
                segment.encode(block, counts, own, randomness[0], place)
                continue
            for i, stream in enumerate(randomness):  # one by one, while each is in the cache
                vector = block[i] if isinstance(block, np.ndarray) else block.one(i)
                count = None if counts is None else counts[i : i + 1]
                segment.encode(vector[None], count, own, stream, place[i : i + 1])
        return encoded

    def combined(self, updates: Updates, discount: float = 1.0) -> np.ndarray | None:
        """The sum of the clients' encoded vectors, where none of them has to be made for it; float64, shape (length,).

        That is so where encoding only scales; None elsewhere. Vectors are scaled and added in float32, as which they
        come, so that this is the sum of what `encode_many` gives up to rounding; of a single one it is that one.

        Args:
            updates: of the clients.
            discount: as in `encode_many`.

        Raises:
            DataError: as in `encode_many`.
        """
        if self.draws:
            return None
        clients, total = len(updates.examples), np.empty(self.length)
        weights = self._weights(updates.examples)
        counts = np.ones(clients) if weights is None else weights
        vectors = self._vectors(updates)
        for segment in self.segments:
            block = segment.of(vectors, clients)
            own = segment.vector.name in updates.vectors
            scales = segment.scales(block, counts * discount if own else counts)
            if scales is None:
                return None
            if isinstance(block, np.ndarray):
                total[segment.place] = scales.astype(block.dtype, copy=False) @ block
            else:
                total[segment.place] = block.weighed(scales)
        return total

    def _vectors(self, updates: Updates) -> dict[str, np.ndarray | Rows]:
        """What is encoded, by name: the updates' vectors, made or not, and what rides beside them."""
        held = {name: updates.vectors[name] for name in updates.vectors if name not in updates.rows}
        return {**held, **updates.rows, **self._beside(updates)}

    def _beside(self, updates: Updates) -> dict[str, np.ndarray]:
        """What rides beside the vectors of the updates, (clients, length) each."""
        clients = len(updates.examples)
        none = np.zeros(clients)
        metrics = [updates.metrics.get(name, none) for name in self.metrics]
        found: dict[str, list[np.ndarray]] = {}
        measures = not set(self.shape.vectors.names) <= set(updates.vectors)
        for i in range(clients if measures else 0):
            own = updates.one(i).vectors
            for name, vector in self.mechanism.measured(own, self.shape.vectors, self.public).items():
                found.setdefault(name, []).append(vector)
        if self.questions is not None:
            found[CELLS] = [self.questions.contribution(updates.one(i)) for i in range(clients)]
        return {
            _WEIGHT: np.ones((clients, 1)),
            _METRICS: np.array(metrics, np.float64).reshape(-1, clients).T,
            **{name: np.stack(rows) for name, rows in found.items()},
        }

    @property
    def draws(self) -> bool:
        """Whether encoding draws from its randomness: outside a ring nothing is rounded or noised."""
        return self.dtype.kind != "f"

    def _weights(self, examples: np.ndarray) -> np.ndarray | None:
        """At most 1 where there is a cap, so that a weighted vector keeps its norm bound; None: 1 for everybody."""
        if not self.weighted:
            return None
        if self.example_cap is None:
            return examples.astype(np.float64)
        counted: np.ndarray = np.minimum(examples, self.example_cap) / self.example_cap
        return counted

    def sink(self) -> Sink:
        """What the sum ends in: one running sum, one sum a bucket, or single updates where those are needed."""
        single = isinstance(self.mechanism, DpQuery) or not self.aggregator.linear
        make = BucketSums if self.buckets > 1 else Spool if single else RunningSum
        return make(self.length, self.dtype)

    def decode(
        self, aggregate: Aggregate, randomness: Randomness, state: State
    ) -> tuple[dict[str, np.ndarray], dict[str, float], State]:
        """The aggregate of each vector, float64, shape (its length,); the metrics; the mechanism's state.

        A mean divides by the fixed denominator where the plan has privacy, and by the survivors' weights elsewhere.

        Args:
            aggregate: what the sink held at the end.
            randomness: the server's own: for noise that the mechanism adds to the sum before anybody sees it.
            state: the mechanism's, before the round.
        """
        sums: dict[str, np.ndarray] = {}
        if isinstance(self.mechanism, DpQuery):  # takes all vectors of all members at once
            updates = {segment.vector.name: aggregate.sums[:, segment.place] for segment in self.segments}
            totals, state = self.mechanism.release_all(updates, self.shape, randomness, state)
            sums = {name: total[None, :] for name, total in totals.items()}
        else:
            for segment in self.segments:
                sums[segment.vector.name], state = self._sums(segment, aggregate, randomness, state)
        counts = self._counts(aggregate, sums.pop(_WEIGHT, None))
        reduce = self._mean if self.aggregator.linear else self._reduced
        values = {name: reduce(block, counts) for name, block in sums.items()}
        if self.questions is not None:
            return {}, self.questions.answers(values[CELLS]), state
        metrics = values.pop(_METRICS, np.zeros(0))
        return values, {name: float(value) for name, value in zip(self.metrics, metrics, strict=False)}, state

    def _sums(
        self, segment: Segment, aggregate: Aggregate, randomness: Randomness, state: State
    ) -> tuple[np.ndarray, State]:
        """One vector's sums, each with the noise that the mechanism adds, decoded: shape (sums, its length)."""
        vector, noisy = segment.vector, segment.vector.name in self.shape.vectors.names
        rows = []
        for number, (total, size) in enumerate(zip(aggregate.sums, aggregate.sizes, strict=True)):
            part = total[segment.place]
            if noisy:
                stream = randomness.spawn(vector.name, number)
                part, state = self.mechanism.release(part, vector, self.shape, size, stream, state)
            rows.append(segment.codec.decode(part, vector.length))
        if len(rows) == 1:
            return rows[0][None, :], state  # a long vector is not copied
        return np.stack(rows) if rows else np.zeros((0, vector.length)), state

    def _counts(self, aggregate: Aggregate, weights: np.ndarray | None) -> np.ndarray:
        """What each sum is divided by to be a mean, float64, shape (sums,)."""
        if self.denominator is not None:
            return np.full(len(aggregate.sizes), self.denominator)
        return np.array(aggregate.sizes, np.float64) if weights is None else weights[:, 0]

    def _mean(self, block: np.ndarray, counts: np.ndarray) -> np.ndarray:
        total = block[0] if len(block) == 1 else block.sum(axis=0)
        fixed = (
            None if self.denominator is None else self.denominator * self.buckets
        )  # those left out as well
        mean: np.ndarray = total / (fixed or max(float(counts.sum()), 1e-12))
        return mean

    def _reduced(self, block: np.ndarray, counts: np.ndarray) -> np.ndarray:
        counted = counts > 0  # a client without examples has no update
        if not counted.any():
            return np.zeros(block.shape[1])
        return self.aggregator.reduce(block[counted] / counts[counted, None], counts[counted])


def build(terms: Terms, bounds: CohortBounds, public: PublicValues) -> Pipeline:
    """The pipeline of a round: the same on both sides.

    Args:
        terms: resolved (`Plan.resolved`), of the round's kind (`Terms.at`).
        bounds: of the cohort.
        public: of the round.
    """
    task, mechanism = terms.task.resolve(), terms.privacy
    asked = None if terms.kind is Kind.FIT or terms.evaluation is None else terms.evaluation.questions
    aggregator = terms.strategy.resolve().aggregator if asked is None else aggregators.mean()
    shape = terms.shape(bounds)
    weighted = terms.rounds.weighting == "examples"
    private = mechanism.private or terms.training.dp_sgd is not None
    metrics = () if private or asked is not None else task.model.metrics
    # Outside a ring a weight has no bound, and the clip comes before it only.
    coder = NoPrivacy() if weighted and shape.ring_bits is None else mechanism
    scaled = weighted or terms.rounds.buffering is not None
    clips = {
        vector.name: mechanism.clipping_codec(vector, public) for vector in shape.vectors.vectors if scaled
    }
    codecs = [(vector, coder.codec(vector, shape, public)) for vector in shape.vectors.vectors]
    if weighted:
        codecs.append((Vector(_WEIGHT, 1), numbers(1.0, shape)))
    if metrics:
        codecs.append((Vector(_METRICS, len(metrics)), numbers(_METRIC_BOUND, shape)))
    segments, start = [], 0
    for vector, codec in codecs:
        stop = start + codec.length(vector.length)
        segments.append(Segment(vector, codec, slice(start, stop), clips.get(vector.name)))
        start = stop
    return Pipeline(
        mechanism=mechanism,
        shape=shape,
        public=public,
        segments=tuple(segments),
        length=start,
        dtype=np.dtype(_DTYPES[shape.ring_bits]),
        aggregator=aggregator,
        metrics=metrics,
        weighted=weighted,
        example_cap=terms.rounds.example_cap,
        denominator=bounds.denominator if mechanism.private else None,
        buckets=terms.secure_aggregation.buckets,
        questions=asked,
    )


def encoded(terms: Terms, bounds: CohortBounds) -> tuple[int, np.dtype[np.generic]]:
    """The length and the dtype of the encoded vectors of every round of a kind.

    Args:
        terms: resolved, of the kind (`Terms.at`).
        bounds: of the cohort.
    """
    made = build(terms, bounds, PublicValues(terms.privacy.clip_norm, bytes(32)))
    return made.length, made.dtype


def session(assignment: Assignment, pipeline: Pipeline) -> SumSession:
    """What both halves of the sum agree on."""
    return SumSession(
        binding=binding(
            assignment.terms_hash, assignment.run, assignment.round, assignment.kind, assignment.broadcast
        ),
        length=pipeline.length,
        dtype=pipeline.dtype,
        bounds=assignment.bounds,
    )


def binding(terms_hash: bytes, run: str, round: int, kind: Kind, broadcast: Broadcast) -> bytes:
    """SHA-256 over the terms (which hold the task), run, round, kind, and everything broadcast.

    Members that were told different things derive different masks, which then don't cancel: a server that gives one
    member another model learns nothing from the sum (Pasquini et al., CCS 2022).
    """
    name, asked = run.encode(), kind.value.encode()
    header = struct.pack(">I", len(name)) + name + struct.pack(">QI", round, len(asked)) + asked
    return hashlib.sha256(b"quorate/session/1" + terms_hash + header + broadcast.digest()).digest()


def instructed(assignment: Assignment, terms: Terms) -> Instruction:
    """What a member is told to do: as it was broadcast, with what the terms say of it."""
    instruction = assignment.broadcast.instruction
    if assignment.kind is Kind.FIT or terms.evaluation is None:
        return instruction
    return dataclasses.replace(instruction, slices=terms.evaluation.slices)


def summation(
    terms: Terms,
    session: SumSession,
    journal: Journal,
    identities: Identities | None = None,
    unmask: Unmask = add_masks,
    partition: Randomness | None = None,
) -> Summation:
    """The way to sum that the terms say.

    Args:
        terms: resolved.
        session: of the round.
        journal: of the round.
        identities: who the members are to one another; the signed threat models need it.
        unmask: takes masks off a secure sum, on the server; another one may spread the work over processes.
        partition: the server's own, for the division into buckets; None on a client, who is not told.
    """
    summing = terms.secure_aggregation
    whole: Summation = DirectSummation(session, journal)
    if isinstance(summing, SecAggPlus):
        known = identities or Identities(EnrolledKeys(frozenset()))
        parameters = summing.parameters(session.bounds)
        whole = SecAggSummation(
            session, journal, parameters, unmask, enrolment=known.enrolment, identities=known.own
        )
    if summing.buckets == 1:
        return whole
    return BucketedSummation(whole, summing.buckets, summing.fewest_buckets, partition)
