"""DP-FTRL: correlated noise that the server adds, without any sampling that would have to be secret.

Kairouz et al. 2021 (ICML) for trees, Choquette-Choo et al. 2023 (NeurIPS) for banded matrices; see
`quorate.privacy.factorization`. The noise is discrete Gaussian noise on whole numbers, as in the central mechanism.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from quorate.codecs import Chain, Codec, Discretise, rounded_norm_bound
from quorate.errors import PlanError
from quorate.privacy.events import CentralDiscreteGaussianEvent
from quorate.privacy.factorization import Banded, Factorization, Tree
from quorate.privacy.mechanisms.central_gaussian import CentralGaussian
from quorate.privacy.mechanisms.rounded_noise import Encoding, RoundedNoise, useful_steps
from quorate.privacy.noise import discrete_gaussian
from quorate.randomness import Randomness
from quorate.rounds import CohortBounds, PublicValues, State, SumShape, Vector, VectorSpec

__all__ = ["DpFtrl"]

_RING_BITS = 32


class DpFtrl(RoundedNoise):
    """Correlated noise for training without amplification: a member may come when it likes, but not too often.

    Threat model: as for the central mechanism, the coordinator is trusted to add the noise, and nothing is claimed
    against it. Nothing is claimed for the choice of cohorts either: whoever sees the models may know who took part.
    What is claimed rests on the separation: between two rounds of which a member is in the sum there are at least
    `span` - 1 committed others, which the coordinator enforces by its own records (`rounds.sampling = "separated"`).
    Then a member that takes part k times spends what k Gaussian mechanisms with the noise multiplier do, whatever the
    data and models of the other rounds are. Unit of privacy: one member's whole contribution, replaced by zero.

    Args:
        factorization: `banded` or `tree`, see `quorate.privacy.factorization`.
        span: how many rounds a contribution shows in: the number of bands, or the rounds of one tree.
    """

    needs_hidden_updates: ClassVar[bool] = False

    mechanism: Literal["dp-ftrl"] = "dp-ftrl"
    factorization: Literal["banded", "tree"] = "banded"
    span: Annotated[int, Field(ge=1, le=4096)] = 8

    @model_validator(mode="after")
    def _one_unit(self) -> DpFtrl:
        if self.adaptive_clip is not None:
            raise ValueError("rounds with different clip norms can't be added up; accepted: no adaptive_clip")
        return self

    @property
    def matrix(self) -> Factorization:
        """What is applied to the rounds."""
        return Banded(self.span) if self.factorization == "banded" else Tree(self.span)

    def noise_shares(self, bounds: CohortBounds) -> tuple[int, int]:
        """One, the server's."""
        return 1, 1

    def client_noise(self, encoding: Encoding) -> tuple[Codec, ...]:
        """None."""
        return ()

    def ring_bits(self, vectors: VectorSpec, bounds: CohortBounds) -> int:
        """32: what is added to the sum is outside the ring, so that it costs nothing to be fine."""
        return _RING_BITS

    def encoding(self, vector: Vector, shape: SumShape) -> Encoding:
        """Scale, sensitivity and noise, which is that of a factorisation whose columns have norm 1.

        Raises:
            PlanError: the noise is not calibrated yet, or the ring can't hold the sum of such a cohort.
        """
        if self.noise_multiplier is None:
            raise PlanError("privacy.epsilon: the noise for this target is not calibrated yet")
        if shape.ring_bits != _RING_BITS:
            raise PlanError(
                f"secure_aggregation.ring_bits: found {shape.ring_bits}; accepted with 'dp-ftrl': 32"
            )
        found = _encoding(
            self.noise_multiplier * math.sqrt(len(shape.vectors.vectors)), vector.length, shape.bounds.largest
        )
        if found is None:
            raise PlanError(
                f"privacy: the sum of up to {shape.bounds.largest} members in {vector.length} coordinates does not "
                f"fit the {_RING_BITS}-bit ring; accepted: a smaller cohort"
            )
        return found

    def codec(self, vector: Vector, shape: SumShape, public: PublicValues) -> Codec:
        """Clip → discretise with a norm bound → wrap; nothing is rotated, so that rounds can be added up.

        Raises:
            PlanError: the round's clip norm is not the plan's.
        """
        clip, encoding = self.clipping_codec(vector, public), self.encoding(vector, shape)
        return Chain.of(
            clip,
            Discretise(encoding.steps / (self.clip_norm * vector.bound), encoding.norm_bound),
            _IntoRing(),
        )

    def init(self, vectors: VectorSpec) -> State:
        """That of the factorisation, for each vector."""
        state: dict[str, np.ndarray] = {}
        for vector in vectors.vectors:
            own = self.matrix.init(vector.length)
            state |= {f"{vector.name}.{name}": array for name, array in own.items()}
        return state

    def clip(self, state: State) -> float:
        """The plan's."""
        return self.clip_norm

    def update(self, state: State, means: Mapping[str, np.ndarray]) -> tuple[State, Mapping[str, np.ndarray]]:
        """Both as they are: the state moved on when the sums were released."""
        return state, means

    def release(
        self,
        total: np.ndarray,
        vector: Vector,
        shape: SumShape,
        survivors: int,
        randomness: Randomness,
        state: State,
    ) -> tuple[np.ndarray, State]:
        """The estimate of the sum, in steps, float64, shape (length,)."""
        prefix, matrix = f"{vector.name}.", self.matrix
        own = {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
        variance = self.encoding(vector, shape).local_variance * matrix.column_norm_squared
        exact = np.ascontiguousarray(total, np.uint32).view(np.int32).astype(np.int64)
        estimate, following = matrix.release(
            own, exact, lambda count: discrete_gaussian(variance, count, randomness)
        )
        return estimate, {**state, **{prefix + name: array for name, array in following.items()}}

    def top_up(
        self, total: np.ndarray, vector: Vector, shape: SumShape, survivors: int, randomness: Randomness
    ) -> np.ndarray:
        """Not without the state, see `release`."""
        raise NotImplementedError("the noise of a round depends on the rounds before it")

    def event(self, shape: SumShape) -> CentralDiscreteGaussianEvent:
        """One participation: its share of everything that is ever released, over unit columns."""
        return CentralDiscreteGaussianEvent(self.noisy_vectors(shape), shape.bounds.min_survivors)

    def for_cells(
        self, questions: int, noise_multiplier: float | None, epsilon: float | None
    ) -> CentralGaussian:
        """The central mechanism: such sums are not added up over rounds, so that their noise is independent."""
        return CentralGaussian(
            clip_norm=math.sqrt(questions),
            noise_multiplier=noise_multiplier,
            epsilon=epsilon,
            delta=self.delta,
        )

    def impossible(self, expected_cohort: float) -> list[str]:
        """Nothing."""
        return []


class _IntoRing:
    """Integers modulo 2^32 on the wire; what comes back is an estimate that has left the ring."""

    def length(self, n: int) -> int:
        """Unchanged."""
        return n

    def encode(self, values: np.ndarray, randomness: Randomness) -> np.ndarray:
        """Residues, uint32, shape (clients, n)."""
        return values.astype(np.uint32)

    def decode(self, total: np.ndarray, n: int) -> np.ndarray:
        """Unchanged: float64, shape (n,)."""
        return total


@lru_cache(maxsize=256)
def _encoding(multiplier: float, length: int, largest: int) -> Encoding | None:
    """The finest useful scale, or the finest that a sum of `largest` fits the ring with."""
    limit = (2**31 - 1) / largest
    steps = useful_steps(length)
    if rounded_norm_bound(steps, length) > limit:
        steps = limit - math.sqrt(length)  # the certain bound
        if steps < 1:
            return None
    bound = rounded_norm_bound(steps, length)
    variance = Fraction(math.ceil((multiplier * bound) ** 2 * 2**20), 2**20)
    return Encoding(steps, length, bound, max(variance, Fraction(1, 4)), 0.0)
