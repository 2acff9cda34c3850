"""What a mechanism is: codecs of an update, an event for the ledger, and the noise that the server adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from quorate.codecs import Codec
from quorate.privacy.events import Event
from quorate.randomness import Randomness
from quorate.rounds import CohortBounds, PublicValues, State, SumShape, Vector, VectorSpec

__all__ = ["Mechanism", "Stateless"]


class Mechanism(Protocol):
    """A section `[privacy]` of a plan, validated and frozen. Both sides make the same codecs from it."""

    @property
    def mechanism(self) -> str:
        """Its name in the plan."""
        ...

    @property
    def private(self) -> bool:
        """Whether an ε is claimed."""
        ...

    @property
    def needs_hidden_updates(self) -> bool:
        """Whether its claim falls where the server sees single updates."""
        ...

    @property
    def clip_norm(self) -> float | None:
        """The L2 bound of a vector with `bound` 1; None when nothing is clipped."""
        ...

    @property
    def delta(self) -> float | None:
        """The δ of every ε; None: `default_delta` of the population."""
        ...

    @property
    def limit(self) -> float | None:
        """The `released` ε that the ledger must not pass; None: no limit."""
        ...

    def riding(self, vectors: VectorSpec) -> VectorSpec:
        """Everything that rides in the sum with noise: a strategy's vectors, and the mechanism's own."""
        ...

    def measured(
        self, values: Mapping[str, np.ndarray], vectors: VectorSpec, public: PublicValues
    ) -> Mapping[str, np.ndarray]:
        """The mechanism's own vectors, made on the client from those of its update.

        Args:
            values: of the update, by name.
            vectors: everything that rides in the sum.
            public: the round's clip norm.
        """
        ...

    def init(self, vectors: VectorSpec) -> State:
        """What the mechanism keeps from round to round, before the first one; it is checkpointed with the model."""
        ...

    def clip(self, state: State) -> float | None:
        """The round's clip norm, which is public."""
        ...

    def update(self, state: State, means: Mapping[str, np.ndarray]) -> tuple[State, Mapping[str, np.ndarray]]:
        """The state after a round, and the round's means as the strategy may use them.

        Args:
            state: before the round.
            means: of each vector, float64, with the noise in them; those of the mechanism's own are left out of what
                is returned.
        """
        ...

    def impossible(self, expected_cohort: float) -> list[str]:
        """What of the section can't be with so many members expected in a sum, a sentence each."""
        ...

    def ring_bits(self, vectors: VectorSpec, bounds: CohortBounds) -> int | None:
        """The ring to sum in where the plan doesn't say: 16 bits where that costs next to nothing, else 32.

        None: it takes float32 values.
        """
        ...

    def clipping_codec(self, vector: Vector, public: PublicValues) -> Codec | None:
        """What the chain for a vector begins with; None where nothing is clipped.

        What it gives stays as it is, at any smaller length, if it is clipped again.

        Args:
            vector: of the update, or the mechanism's own.
            public: the round's clip norm.

        Raises:
            PlanError: the round's clip norm can't be the plan's.
        """
        ...

    def codec(self, vector: Vector, shape: SumShape, public: PublicValues) -> Codec:
        """The chain for one vector of the update.

        Args:
            vector: one of `shape.vectors`.
            shape: of the round's sum.
            public: the round's clip norm and rotation seed.

        Raises:
            PlanError: the combination can't be had.
        """
        ...

    def release(
        self,
        total: np.ndarray,
        vector: Vector,
        shape: SumShape,
        survivors: int,
        randomness: Randomness,
        state: State,
    ) -> tuple[np.ndarray, State]:
        """A vector's encoded sum as it may be decoded and released: with the noise that the server adds.

        Args:
            total: the sum of the encoded vectors, shape (encoded length,); it is not changed.
            vector: one of `shape.vectors`.
            shape: of the round's sum.
            survivors: how many members' vectors are in the sum.
            randomness: the server's own, never shown.
            state: the mechanism's, before the sum.

        Returns:
            What the codec decodes, and the state after it.
        """
        ...

    def event(self, shape: SumShape) -> Event | None:
        """What a round releases of its cohort, before sampling; None when no privacy is claimed."""
        ...

    def for_cells(self, questions: int, noise_multiplier: float | None, epsilon: float | None) -> Mechanism:
        """The same mechanism for sums of cells (`quorate.cells`), which has noise of its own and keeps no state.

        Args:
            questions: how many a member answers: what it adds to each has at most 1 for its L1 and its L2 norm.
            noise_multiplier: joint over all of them; or, instead, as for the mechanism itself:
            epsilon: that all such sums may cost together.
        """
        ...


class Stateless:
    """For mechanisms whose rounds are all alike: nothing is kept or measured, and the plan's clip norm stays."""

    clip_norm: float | None

    def impossible(self, expected_cohort: float) -> list[str]:
        """Nothing."""
        return []

    def riding(self, vectors: VectorSpec) -> VectorSpec:
        """The strategy's."""
        return vectors

    def measured(
        self, values: Mapping[str, np.ndarray], vectors: VectorSpec, public: PublicValues
    ) -> Mapping[str, np.ndarray]:
        """Nothing."""
        return {}

    def init(self, vectors: VectorSpec) -> State:
        """Nothing."""
        return {}

    def clip(self, state: State) -> float | None:
        """The plan's."""
        return self.clip_norm

    def update(self, state: State, means: Mapping[str, np.ndarray]) -> tuple[State, Mapping[str, np.ndarray]]:
        """Both as they are."""
        return state, means
