"""The nouns of a round: plain data.

The coordinator selects a cohort and writes an `Assignment`; a fleet (`quorate.fleets`) runs it on the members and moves
the messages of a summation (`quorate.summation`) into a sink; what comes out is an `Aggregate`, or the round is not
quorate.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from quorate.endorsement import Endorsement
from quorate.errors import PlanError
from quorate.parameters import Parameters

__all__ = [
    "Aggregate",
    "Assignment",
    "Broadcast",
    "Close",
    "Closed",
    "CohortBounds",
    "Deadlines",
    "Instruction",
    "Kind",
    "Member",
    "Outcome",
    "PublicValues",
    "Rows",
    "State",
    "SumShape",
    "Update",
    "Updates",
    "Vector",
    "VectorSpec",
]

Member = str
"""A member's name in its population: a device's pseudonym, or `client-17` of a simulation."""

State = Mapping[str, np.ndarray]
"""What a client keeps between rounds (a control variate, personal parameters): named arrays."""


class Kind(enum.StrEnum):
    """What an assignment asks for."""

    FIT = "fit"
    EVALUATE = "evaluate"


class Outcome(enum.StrEnum):
    """How a round ended. Members keep what they staged only when it is committed."""

    COMMITTED = "committed"
    ABORTED = "aborted"


# --- What an update carries ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Vector:
    """One named vector of an update.

    Args:
        name: such as `delta` or `control`.
        length: the number of values.
        bound: its largest L2 norm, as a multiple of the round's clip norm.
        parts: the lengths of the model's arrays, if it is made of those; empty otherwise.
    """

    name: str
    length: int
    bound: float = 1.0
    parts: tuple[int, ...] = ()


@dataclass(frozen=True)
class VectorSpec:
    """The vectors that ride in the sum, in order."""

    vectors: tuple[Vector, ...]

    def __post_init__(self) -> None:
        names = [vector.name for vector in self.vectors]
        if len(set(names)) != len(names):
            raise ValueError(f"an update's vectors need different names, got {names}")

    @property
    def names(self) -> tuple[str, ...]:
        """The vectors' names, in order."""
        return tuple(vector.name for vector in self.vectors)


@dataclass(frozen=True)
class Update:
    """What a client gives back.

    Args:
        vectors: by name, float32, of the lengths that the strategy's `VectorSpec` says.
        examples: the number of examples it was computed from.
        metrics: such as the loss after training; they leave the client only if the plan says so.
    """

    vectors: Mapping[str, np.ndarray]
    examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class Rows(Protocol):
    """Float32 vectors of several clients that need not be held to be summed: they are made when they are asked for."""

    @property
    def shape(self) -> tuple[int, int]:
        """(clients, length)."""
        ...

    def norms(self) -> np.ndarray:
        """Each vector's L2 norm up to rounding, float64, shape (clients,); NaN where its rounding may matter."""
        ...

    def weighed(self, weights: np.ndarray) -> np.ndarray:
        """Σ weight · vector over the clients, float32, shape (length,), from their weights, shape (clients,)."""
        ...

    def one(self, client: int, out: np.ndarray | None = None) -> np.ndarray:
        """A client's, shape (length,); in `out` if that is given."""
        ...


@dataclass(frozen=True)
class Updates:
    """The updates of several clients.

    Args:
        vectors: by name, float32, shape (clients, length).
        examples: how many each was computed from, int64, shape (clients,).
        metrics: by name, float64, shape (clients,).
        rows: those of the vectors, by name, that `vectors` makes only when it is asked for them.
    """

    vectors: Mapping[str, np.ndarray]
    examples: np.ndarray
    metrics: Mapping[str, np.ndarray] = field(default_factory=dict)
    rows: Mapping[str, Rows] = field(default_factory=dict)

    @classmethod
    def of(cls, update: Update) -> Updates:
        """One client's."""
        return cls(
            vectors={name: np.asarray(vector)[None] for name, vector in update.vectors.items()},
            examples=np.array([update.examples]),
            metrics={name: np.array([value]) for name, value in update.metrics.items()},
        )

    def one(self, index: int) -> Update:
        """A client's."""
        made = {name: rows.one(index) for name, rows in self.rows.items()}
        held = {name: self.vectors[name][index] for name in self.vectors if name not in made}
        return Update(
            vectors=held | made,
            examples=int(self.examples[index]),
            metrics={name: float(values[index]) for name, values in self.metrics.items()},
        )


# --- What a round is made of --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CohortBounds:
    """The sizes that noise, ring and thresholds of a sum are calibrated to: known to everybody before the round.

    A sum is over a cohort, or over one of its random buckets.

    Args:
        largest: the most members a sum can be over.
        min_survivors: the fewest survivors whose sum is released; clients insist on it.
        honest: the fewest of those that are assumed to follow the protocol: ⌈(1 - γ) · min_survivors⌉ in a cohort; in a
            bucket, min_survivors less the most corrupt members that chance puts into one.
        denominator: what a sum is divided by: its expected members, never the survivors.
    """

    largest: int
    min_survivors: int
    honest: int
    denominator: float


@dataclass(frozen=True)
class SumShape:
    """What a round's sum carries, over how many, in which arithmetic: scales and noise follow from these.

    Args:
        vectors: everything that rides in the sum with noise.
        bounds: of the cohort.
        ring_bits: 16 or 32: sums are taken modulo 2^ring_bits; None: of float32 values.
    """

    vectors: VectorSpec
    bounds: CohortBounds
    ring_bits: int | None


@dataclass(frozen=True)
class PublicValues:
    """What a round makes public before it starts, besides the model.

    Args:
        clip_norm: the L2 bound of a vector with `bound` 1; None when nothing is clipped.
        rotation_seed: 32 bytes, fresh each round.
    """

    clip_norm: float | None
    rotation_seed: bytes


@dataclass(frozen=True)
class Instruction:
    """What a client is told to do with the parameters.

    Args:
        rule: the name of the local rule, see `quorate.strategies.local_rules`.
        settings: the rule's and the training's numbers (`learning_rate`, `epochs`, `batch_size`, `mu`, …).
        extras: vectors that the server's rule adds to the broadcast (a control variate), by name.
        seed: for the order of the data in a seeded simulation; None draws a fresh one.
        slices: in an evaluation, the values by key that metrics are to be measured for as well. Not broadcast: whoever
            works takes them from the terms.
    """

    rule: str
    settings: Mapping[str, float]
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)
    seed: int | None = None
    slices: Mapping[str, Sequence[int | str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Broadcast:
    """Everything that all members of a round get, besides the terms.

    Args:
        parameters: the shared part of the model.
        instruction: what to do with it.
        public: the round's public values.
    """

    parameters: Parameters
    instruction: Instruction
    public: PublicValues

    def digest(self) -> bytes:
        """SHA-256 over an unambiguous encoding of all of it: two members agree on it only if they got the same."""
        h = hashlib.sha256(b"quorate/broadcast/1")
        _absorb(h, self.parameters.layout.digest, self.parameters.vector)
        _absorb(h, self.instruction.rule.encode())
        for name, number in sorted(self.instruction.settings.items()):
            _absorb(h, name.encode(), struct.pack(">d", number))
        h.update(struct.pack(">I", len(self.instruction.extras)))
        for name, vector in sorted(self.instruction.extras.items()):
            _absorb(h, name.encode(), np.ascontiguousarray(vector, np.float32))
        clip_norm = self.public.clip_norm
        _absorb(h, b"" if clip_norm is None else struct.pack(">d", clip_norm), self.public.rotation_seed)
        return h.digest()


def _absorb(h: Any, *parts: bytes | np.ndarray) -> None:
    for part in parts:
        raw = (
            part
            if isinstance(part, bytes)
            else part.astype(part.dtype.newbyteorder("<"), copy=False).tobytes()
        )
        h.update(struct.pack(">Q", len(raw)))
        h.update(raw)


@dataclass(frozen=True)
class Deadlines:
    """How long the members may take.

    Args:
        training_s: from the assignment to the first message of the sum.
        phase_s: for each phase of the sum.

    Raises:
        PlanError: one of them is no time.
    """

    training_s: float = 600.0
    phase_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("training_s", "phase_s"):
            if not getattr(self, name) > 0:
                raise PlanError(f"{name}: found {getattr(self, name)}; accepted: a number of seconds above 0")


@dataclass(frozen=True)
class Assignment:
    """A round's work for its cohort. `members` stays on the server: a member learns the roster by the sum's protocol.

    Args:
        run: the run's id.
        round: the round's number; never used twice in a run, committed or not.
        kind: fit or evaluate.
        base_version: the number of committed rounds that the parameters are the result of.
        terms: the exact bytes of the plan's terms; `terms_hash` is their SHA-256.
        terms_hash: 32 bytes.
        broadcast: what every member gets.
        bounds: the cohort's bounds.
        members: the cohort.
        deadlines: see `Deadlines`.
        endorsement: who stands behind the terms; None: nobody has signed them.
    """

    run: str
    round: int
    kind: Kind
    base_version: int
    terms: bytes
    terms_hash: bytes
    broadcast: Broadcast
    bounds: CohortBounds
    members: tuple[Member, ...]
    deadlines: Deadlines = field(default_factory=Deadlines)
    endorsement: Endorsement | None = None


@dataclass(frozen=True)
class Close:
    """When a collection ends: when every member has answered or is lost, or once enough have reported.

    Args:
        after: so many members are let into the sum, the first that have trained; None waits for all (within the
            deadlines).
    """

    after: int | None = None


@dataclass(frozen=True)
class Closed:
    """How a collection ended.

    Args:
        survivors: the members whose updates are in the sum.
        lost: how many members were lost, by the phase they were lost in.
        refused: how many declined, by reason.
        measured: what the fleet itself measured, such as the simulated hours until then.
    """

    survivors: tuple[Member, ...]
    lost: Mapping[str, int]
    refused: Mapping[str, int] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Aggregate:
    """What a sink holds at the end: one sum, one sum a bucket, or single updates.

    Args:
        sums: of encoded vectors, shape (sums, m): one row of a running sum, one a bucket, or one a member of a spool.
        sizes: over how many members each is.
        survivors: whose vectors are in them, in the order of the sums.
    """

    sums: np.ndarray
    sizes: tuple[int, ...]
    survivors: tuple[Member, ...]
