"""Any query of tensorflow-privacy as the mechanism of our own engine, in simulations.

A `DPQuery` bounds every record, sums them, adds noise, and says what that releases as an event of dp-accounting's. Here
a record is a member's whole update, the query runs where the coordinator runs, and its event is charged
(`quorate.privacy.external`). Its noise is TensorFlow's, in floating point, which leaks more than the event says
(Mironov 2012): so the mechanism is for simulations only; a real run has `central-gaussian`. A query sees single
updates, which no secure sum shows, and no theorem says of any query what shares of it would be worth inside one.

The query runs where tensorflow-privacy is installed (`quorate.interop.tensorflow_privacy.queries`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import Field

from quorate import plugins
from quorate.codecs import Codec
from quorate.errors import PlanError
from quorate.privacy.events import ExternalEvent
from quorate.privacy.mechanisms.base import Stateless
from quorate.privacy.mechanisms.none import Float32
from quorate.randomness import Randomness
from quorate.rounds import CohortBounds, PublicValues, State, SumShape, Vector, VectorSpec
from quorate.sections import Section

__all__ = ["DpQuery", "QueryRunner"]

_RUNNER = "quorate.interop.tensorflow_privacy.queries:RunningQuery"
"""By name, since it lies above this package, and is imported only where the mechanism is used."""


class QueryRunner(Protocol):
    """A query, ready for records of vectors with certain lengths."""

    @property
    def event(self) -> ExternalEvent:
        """What a round releases: the same for every round."""
        ...

    def initial(self) -> State:
        """The query's state before the first round."""
        ...

    def release(
        self, updates: Mapping[str, np.ndarray], denominator: float, seed: int, state: State
    ) -> tuple[Mapping[str, np.ndarray], State]:
        """The noisy sum of updates, and the query's state after the round.

        Args:
            updates: by vector, float32, shape (members, length).
            denominator: what the sum is divided by later.
            seed: of TensorFlow's generators.
            state: the query's, before the round.

        Raises:
            QuorateError: the query released another event than it had said; its result is thrown away.
        """
        ...


class DpQuery(Stateless, Section):
    """The noisy sum that a query of tensorflow-privacy makes of single updates.

    Threat model: that of `CentralGaussian`, with a coordinator that sees single updates (the `server` ε is infinite).
    Unit of privacy: as the query's event has it, one member's whole contribution, in every round. No amplification by
    sampling is added to what the event says. Bounding an update is the query's work, too.

    Args:
        query: `module:attribute` of a function that returns a `tensorflow_privacy.DPQuery`.
        settings: what the function takes.
        delta: of every ε; None for population^-1.1.
        budget: the `released` ε that the ledger must not pass.
    """

    private: ClassVar[bool] = True
    needs_hidden_updates: ClassVar[bool] = False
    clip_norm: ClassVar[None] = None  # type: ignore[misc]
    epsilon: ClassVar[None] = None

    mechanism: Literal["dp-query"] = "dp-query"
    query: str = Field(pattern=r"^[\w.]+:[\w.]+$")
    settings: dict[str, Any] = Field(default_factory=dict)
    delta: float | None = Field(default=None, gt=0, lt=1)
    budget: float | None = Field(default=None, gt=0)

    @property
    def limit(self) -> float | None:
        """The `released` ε that the ledger must not pass."""
        return self.budget

    def ring_bits(self, vectors: VectorSpec, bounds: CohortBounds) -> None:
        """None: the query takes float32 values."""
        return None

    def clipping_codec(self, vector: Vector, public: PublicValues) -> None:
        """None: it is the query that bounds an update."""
        return None

    def codec(self, vector: Vector, shape: SumShape, public: PublicValues) -> Codec:
        """Values as they are."""
        return Float32()

    def init(self, vectors: VectorSpec) -> State:
        """The query's global state."""
        return self.runner(vectors).initial()

    def release(
        self,
        total: np.ndarray,
        vector: Vector,
        shape: SumShape,
        survivors: int,
        randomness: Randomness,
        state: State,
    ) -> tuple[np.ndarray, State]:
        """A query takes all vectors of all members at once; see `release_all`."""
        raise NotImplementedError("a query takes single updates")

    def release_all(
        self, updates: Mapping[str, np.ndarray], shape: SumShape, randomness: Randomness, state: State
    ) -> tuple[Mapping[str, np.ndarray], State]:
        """The query's noisy sum of the survivors' updates, float64 by vector, and the state after it.

        Args:
            updates: by vector, float32, shape (survivors, length).
            shape: of the round's sum.
            randomness: the server's own: seeds TensorFlow's generators.
            state: the mechanism's, before the sum.
        """
        seed = int.from_bytes(randomness.bytes(7))
        return self.runner(shape.vectors).release(updates, shape.bounds.denominator, seed, state)

    def for_cells(self, questions: int, noise_multiplier: float | None, epsilon: float | None) -> DpQuery:
        """Not of any query: how much noise it would need for them is not known.

        Raises:
            PlanError: always.
        """
        raise PlanError(
            "privacy.mechanism: 'dp-query' has a query's own noise, which is not that of an evaluation; accepted: "
            "'central-gaussian', or no [evaluation]"
        )

    def event(self, shape: SumShape) -> ExternalEvent:
        """What the query says.

        Raises:
            PlanError: there is no such query, or its event has no bound.
            QuorateError: tensorflow-privacy is not installed here; the message has the command.
        """
        return self.runner(shape.vectors).event

    def runner(self, vectors: VectorSpec) -> QueryRunner:
        """The query; made anew, since a section keeps nothing."""
        lengths = {vector.name: vector.length for vector in vectors.vectors}
        made: QueryRunner = plugins.find("quorate.queries", _RUNNER)(self.query, self.settings, lengths)
        return made
