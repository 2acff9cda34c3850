"""What a strategy is: a local rule, an aggregator and a server rule, each a few lines on flat vectors.

One round, with start parameters x and server state s:

    extras  = server.extras(s)                                   broadcast beside x
    context = local.begin(x, extras, own state)                  on each client
    repeat:   weights -= η · local.gradient(gradient, weights, context)
    vectors, own state = local.finish(x, weights, steps, η, context)
    mean    = aggregator: the mean of the vectors, by name       summed, or reduced from single updates
    s, x    = server.update(s, x, mean, fraction)                on the server

A strategy knows no framework, no network and no clock.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ParamSpec, Protocol

import numpy as np

from quorate.errors import PlanError
from quorate.parameters import Layout
from quorate.rounds import State, VectorSpec

__all__ = ["Aggregator", "LocalRule", "ServerRule", "Strategy", "strategy"]

P = ParamSpec("P")


class LocalRule(Protocol):
    """What the client adds to its gradient. Written once, for every framework, on flat vectors.

    Arrays have shape (n,), or (clients, n) where many clients are computed at once; rules use arithmetic
    operators only, so that they work on arrays of NumPy, PyTorch and JAX alike.
    """

    @property
    def name(self) -> str:
        """The name that stands in an `Instruction`."""
        ...

    @property
    def settings(self) -> Mapping[str, float]:
        """The numbers that go into the instruction, such as `mu`: a client makes the rule from them again."""
        ...

    def vectors(self, n: int) -> VectorSpec:
        """What `finish` gives for `n` parameters: always `delta`."""
        ...

    def initial(self, n: int) -> State:
        """The state of a client that never took part: named float32 arrays, none if nothing is kept."""
        ...

    def begin(self, start: Any, extras: Mapping[str, Any], state: Mapping[str, Any]) -> Mapping[str, Any]:
        """What `gradient` and `finish` need: arrays of shape (clients, n), or (n,) where clients share them.

        Args:
            start: the broadcast parameters, (n,).
            extras: the vectors that the server's rule broadcast.
            state: from `initial` or an earlier `finish`; with a leading clients axis if there are many.
        """
        ...

    def gradient(self, gradient: Any, weights: Any, context: Mapping[str, Any]) -> Any:
        """The gradient to step along. It may be the given array or a new one; the caller may overwrite it.

        It acts value by value: what becomes of a value depends on that place of the arrays only, so that a caller may
        give any part of the vectors, in any shape.
        """
        ...

    def finish(
        self, start: Any, weights: Any, steps: Any, learning_rate: float, context: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The update's vectors by name, and the new state.

        Args:
            start: as in `begin`.
            weights: after the last step.
            steps: how many were taken: a number, or an array of shape (clients,).
            learning_rate: of each of them.
            context: from `begin`.
        """
        ...


class Aggregator(Protocol):
    """Makes one vector of the clients'."""

    @property
    def name(self) -> str:
        """As it is called in messages."""
        ...

    @property
    def linear(self) -> bool:
        """Whether it is the mean, so that a (secure) sum is enough; if not, it needs single updates."""
        ...

    def reduce(self, updates: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """One vector, shape (n,), of single updates, shape (clients, n).

        One that is made for a server rule which takes something else of them may give that, in one dimension.

        Args:
            updates: at least one.
            weights: shape (clients,), not negative, not all zero.
        """
        ...


class ServerRule(Protocol):
    """Turns the mean of the updates into new parameters. Pure: state in, state out.

    A state is named NumPy arrays (numbers are 0-d), so that a checkpoint holds it and a resumed run gives
    equal bits.
    """

    def init(self, layout: Layout) -> State:
        """The state before the first round."""
        ...

    def extras(self, state: State) -> dict[str, np.ndarray]:
        """Vectors to broadcast beside the parameters, by name; float32."""
        ...

    def update(
        self,
        state: State,
        parameters: np.ndarray,
        mean: Mapping[str, np.ndarray],
        fraction_of_population: float,
    ) -> tuple[State, np.ndarray]:
        """The new state and the new parameters.

        Args:
            state: from `init` or the last `update`.
            parameters: float32, shape (n,); it is not changed.
            mean: what the aggregator made of each of the update's vectors, by name; any real dtype.
            fraction_of_population: the cohort that the mean was divided by, over the population.
        """
        ...


@dataclass(frozen=True)
class Strategy:
    """A federated algorithm.

    Args:
        name: as it stands in a plan.
        local: what the client adds to its gradient.
        aggregator: how many updates become one.
        server: how that one becomes new parameters.
        settings: the hyper-parameters it was made from, so that name and settings can be written into a plan.
        recorded: whether the settings are known, see `strategy`. If not, the strategy exists as a Python
            object only: it can be used in this process, but not be written down.
    """

    name: str
    local: LocalRule
    aggregator: Aggregator
    server: ServerRule
    settings: Mapping[str, Any] = field(default_factory=dict)
    recorded: bool = False

    def shared(self, layout: Layout) -> Layout:
        """The parameters that leave the client: everything, unless a subclass says otherwise."""
        return layout

    def vectors(self, layout: Layout) -> VectorSpec:
        """What an update carries, for shared parameters of this layout."""
        return self.local.vectors(layout.size)


def strategy(name: str) -> Callable[[Callable[P, Strategy]], Callable[P, Strategy]]:
    """Decorates a strategy's factory: what it makes has this name and, as settings, the arguments.

    A factory works without it too, and then its strategies are not `recorded`.

    Args:
        name: under which the factory is an entry point of `quorate.strategies`.
    """

    def decorate(factory: Callable[P, Strategy]) -> Callable[P, Strategy]:
        signature = inspect.signature(factory)

        @functools.wraps(factory)
        def made(*args: P.args, **kwargs: P.kwargs) -> Strategy:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return dataclasses.replace(
                factory(*args, **kwargs), name=name, settings=dict(bound.arguments), recorded=True
            )

        return made

    return decorate


def number(name: str, value: Any, accepted: str, holds: Callable[[float], bool]) -> float:
    """A hyper-parameter as a float, if it is one and `holds`.

    Raises:
        PlanError: with the name, what was found and what is accepted.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not holds(float(value)):
        raise PlanError(f"{name}: {value!r} was found; {accepted} is accepted")
    return float(value)
