"""Server rules: how the mean of the updates becomes new parameters.

The mean delta takes the place of a negative gradient (Reddi et al. 2021, section 2). States are named arrays:
float32 vectors, and an int64 `round`, the number of updates made so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from quorate.parameters import Layout
from quorate.rounds import State
from quorate.strategies.contract import ServerRule, number

__all__ = [
    "Adagrad",
    "Adam",
    "ControlVariate",
    "LearningRate",
    "ServerRule",
    "Sgd",
    "Yogi",
    "adagrad",
    "adam",
    "control_variate",
    "sgd",
    "yogi",
]

LearningRate = float | Callable[[int], float]
"""A number, or a function of the number of updates made so far (0 in the first round)."""


def sgd(learning_rate: LearningRate = 1.0, momentum: float = 0.0) -> Sgd:
    """A step along the mean delta, with momentum if wished (FedAvgM: Hsu et al. 2019, section 4.2)."""
    return Sgd(learning_rate, momentum)


def adam(
    learning_rate: LearningRate = 0.1, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3
) -> Adam:
    """A step scaled by running moments of the mean delta (Reddi et al. 2021, algorithm 2, FedAdam)."""
    return Adam(learning_rate, beta1, beta2, tau)


def yogi(
    learning_rate: LearningRate = 0.1, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3
) -> Yogi:
    """As `adam`, with a second moment that moves by the squared delta's size (ibid., FedYogi)."""
    return Yogi(learning_rate, beta1, beta2, tau)


def adagrad(learning_rate: LearningRate = 0.1, beta1: float = 0.0, tau: float = 1e-3) -> Adagrad:
    """As `adam`, with the sum of all squared deltas for the second moment (ibid., FedAdagrad)."""
    return Adagrad(learning_rate, beta1, tau)


def control_variate(inner: ServerRule) -> ControlVariate:
    """Keeps SCAFFOLD's c beside another rule (Karimireddy et al. 2020, algorithm 1, line 17)."""
    return ControlVariate(inner)


@dataclass(frozen=True)
class Sgd:
    """v ← β·v + Δ;  x ← x + η·v.

    Args:
        learning_rate: η, positive; or a function of the round.
        momentum: β in [0, 1); 0 keeps no velocity.
    """

    learning_rate: LearningRate = 1.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        _check_rate(self.learning_rate)
        number("momentum", self.momentum, "a number in [0, 1)", lambda beta: 0 <= beta < 1)

    def init(self, layout: Layout) -> State:
        """The round, and a velocity of zeros if there is momentum."""
        state = {"round": np.array(0, np.int64)}
        return state | {"velocity": np.zeros(layout.size, np.float32)} if self.momentum else state

    def extras(self, state: State) -> dict[str, np.ndarray]:
        """None."""
        return {}

    def update(
        self,
        state: State,
        parameters: np.ndarray,
        mean: Mapping[str, np.ndarray],
        fraction_of_population: float,
    ) -> tuple[State, np.ndarray]:
        """One step along the velocity."""
        step = mean["delta"]
        new: dict[str, np.ndarray] = {"round": state["round"] + np.int64(1)}
        if self.momentum:
            step = new["velocity"] = (self.momentum * state["velocity"] + step).astype(np.float32)
        return _arrays(new), (parameters + _rate(self.learning_rate, state) * step).astype(np.float32)


@dataclass(frozen=True)
class Adam:
    """m ← β₁·m + (1-β₁)·Δ;  v ← β₂·v + (1-β₂)·Δ²;  x ← x + η·m / (√v + τ), with m = 0 and v = τ² at first.

    There is no bias correction: the paper has none.

    Args:
        learning_rate: η, positive; or a function of the round.
        beta1: β₁ in [0, 1).
        beta2: β₂ in [0, 1).
        tau: τ, the degree of adaptivity, positive: smaller adapts more.
    """

    learning_rate: LearningRate = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check_adaptive(self.learning_rate, self.beta1, self.tau)
        number("beta2", self.beta2, "a number in [0, 1)", lambda beta: 0 <= beta < 1)

    def init(self, layout: Layout) -> State:
        """The round and the moments."""
        return _moments(layout, self.tau)

    def extras(self, state: State) -> dict[str, np.ndarray]:
        """None."""
        return {}

    def update(
        self,
        state: State,
        parameters: np.ndarray,
        mean: Mapping[str, np.ndarray],
        fraction_of_population: float,
    ) -> tuple[State, np.ndarray]:
        """One step of the moments and of the parameters."""
        v = self._second_moment(state["square"], mean["delta"] ** 2)
        return _scaled_step(self, state, parameters, mean["delta"], v)

    def _second_moment(self, v: np.ndarray, squared: np.ndarray) -> np.ndarray:
        return self.beta2 * v + (1 - self.beta2) * squared


@dataclass(frozen=True)
class Yogi(Adam):
    """As `Adam`, but v ← v - (1-β₂)·Δ²·sign(v - Δ²): it falls and rises by what the delta's size allows, not v's.

    Args:
        learning_rate: η, positive; or a function of the round.
        beta1: β₁ in [0, 1).
        beta2: β₂ in [0, 1).
        tau: τ, the degree of adaptivity, positive: smaller adapts more.
    """

    def _second_moment(self, v: np.ndarray, squared: np.ndarray) -> np.ndarray:
        moved: np.ndarray = v - (1 - self.beta2) * squared * np.sign(v - squared)
        return moved


@dataclass(frozen=True)
class Adagrad:
    """As `Adam`, but v ← v + Δ²: steps only become shorter.

    Args:
        learning_rate: η, positive; or a function of the round.
        beta1: β₁ in [0, 1); the paper's experiments have 0.
        tau: τ, the degree of adaptivity, positive: smaller adapts more.
    """

    learning_rate: LearningRate = 0.1
    beta1: float = 0.0
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check_adaptive(self.learning_rate, self.beta1, self.tau)

    def init(self, layout: Layout) -> State:
        """The round and the moments."""
        return _moments(layout, self.tau)

    def extras(self, state: State) -> dict[str, np.ndarray]:
        """None."""
        return {}

    def update(
        self,
        state: State,
        parameters: np.ndarray,
        mean: Mapping[str, np.ndarray],
        fraction_of_population: float,
    ) -> tuple[State, np.ndarray]:
        """One step of the moments and of the parameters."""
        return _scaled_step(self, state, parameters, mean["delta"], state["square"] + mean["delta"] ** 2)


@dataclass(frozen=True)
class ControlVariate:
    """c ← c + |S|/N · mean(Δcᵢ), broadcast as `control`; the parameters are the inner rule's.

    Args:
        inner: the rule for the parameters; its state must not hold a `control` of its own.
    """

    inner: ServerRule

    def init(self, layout: Layout) -> State:
        """The inner rule's state, and c = 0."""
        return {**self.inner.init(layout), "control": np.zeros(layout.size, np.float32)}

    def extras(self, state: State) -> dict[str, np.ndarray]:
        """The inner rule's, and c."""
        return {**self.inner.extras(state), "control": state["control"]}

    def update(
        self,
        state: State,
        parameters: np.ndarray,
        mean: Mapping[str, np.ndarray],
        fraction_of_population: float,
    ) -> tuple[State, np.ndarray]:
        """The inner rule's update, and that of c."""
        new, x = self.inner.update(state, parameters, mean, fraction_of_population)
        control = (state["control"] + fraction_of_population * mean["control"]).astype(np.float32)
        return {**new, "control": control}, x


def _moments(layout: Layout, tau: float) -> State:
    """Those before the first round: m = 0, v = τ²."""
    return {
        "round": np.array(0, np.int64),
        "mean": np.zeros(layout.size, np.float32),
        "square": np.full(layout.size, tau**2, np.float32),
    }


def _scaled_step(
    rule: Adam | Adagrad, state: State, parameters: np.ndarray, delta: np.ndarray, v: np.ndarray
) -> tuple[State, np.ndarray]:
    """A step: m ← β₁·m + (1-β₁)·Δ;  x ← x + η·m / (√v + τ)."""
    m = rule.beta1 * state["mean"] + (1 - rule.beta1) * delta
    x = parameters + _rate(rule.learning_rate, state) * m / (np.sqrt(v) + rule.tau)
    new: dict[str, np.ndarray] = {
        "round": state["round"] + np.int64(1),
        "mean": m.astype(np.float32),
        "square": v.astype(np.float32),
    }
    return _arrays(new), x.astype(np.float32)


def _rate(learning_rate: LearningRate, state: State) -> float:
    if not callable(learning_rate):
        return learning_rate
    return number(
        "learning_rate",
        learning_rate(int(state["round"])),
        "a number above 0",
        lambda eta: 0 < eta < math.inf,
    )


def _check_rate(learning_rate: LearningRate) -> None:
    if not callable(learning_rate):
        number("learning_rate", learning_rate, "a number above 0", lambda eta: 0 < eta < math.inf)


def _check_adaptive(learning_rate: LearningRate, beta1: float, tau: float) -> None:
    _check_rate(learning_rate)
    number("beta1", beta1, "a number in [0, 1)", lambda beta: 0 <= beta < 1)
    number("tau", tau, "a number above 0", lambda tau: 0 < tau < math.inf)


def _arrays(state: Mapping[str, np.ndarray]) -> State:
    return {name: np.asarray(value) for name, value in state.items()}
