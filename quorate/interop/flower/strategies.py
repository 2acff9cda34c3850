"""A strategy of Flower's (`flwr.serverapp.strategy`) as one of ours: it sees the clients' arrays, and gives new ones.

    [strategy]
    name = "flower"
    strategy = "FedTrimmedAvg"
    settings = { beta = 0.2 }

Each round the strategy is shown the broadcast arrays (`configure_train`, whose messages are thrown away: the cohort and
what it is told are ours) and then the survivors' arrays, the broadcast ones plus their updates, each with its weight
under the strategy's `weighted_by_key` (`aggregate_train`). So it needs single updates, and does not work under secure
aggregation; nothing is assumed of what it computes. It is made anew each round, and what it keeps between rounds lies
in the server rule's state, by the names of its attributes: a run that was stopped goes on to the same bits.

A strategy that has a client do something by its config (`FedProx`'s `proximal-mu`) has a local rule in the place of
that; other values in the config reach nobody. Differential privacy wrappers are refused: privacy is a plan's section,
which is accounted.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp import strategy as theirs

from quorate.errors import PlanError
from quorate.interop.flower import internals
from quorate.parameters import Layout
from quorate.rounds import State
from quorate.strategies import local_rules
from quorate.strategies.contract import Strategy, strategy

__all__ = ["SingleUpdates", "StrategyRule", "flower", "from_flower"]

_ROUND, _LAYOUT, _KEPT = "round", "layout", "kept/"
_REFUSED = tuple(
    getattr(theirs, name)
    for name in theirs.__all__
    if name.startswith(("DifferentialPrivacy", "FedXgb")) and isinstance(getattr(theirs, name), type)
)


@strategy("flower")
def flower(strategy: str = "FedAvg", settings: Mapping[str, Any] | None = None) -> Strategy:
    """A strategy of `flwr.serverapp.strategy` by its name.

    Args:
        strategy: such as `FedAvgM` or `Krum`. Terms travel: no other module's is taken.
        settings: its arguments.

    Raises:
        PlanError: Flower has none of this name, or it does not take these arguments.
    """
    kinds = {
        name: kind
        for name in theirs.__all__
        if isinstance(kind := getattr(theirs, name), type)
        and issubclass(kind, theirs.Strategy)
        and kind is not theirs.Strategy
        and kind not in _REFUSED
    }
    if strategy not in kinds:
        raise PlanError(f"strategy: found {strategy!r}; accepted: {', '.join(sorted(kinds))}")
    try:
        made = kinds[strategy](**(settings or {}))
    except (TypeError, ValueError) as error:
        raise PlanError(f"settings: {strategy} does not take {dict(settings or {})}: {error}") from error
    return from_flower(made)


def from_flower(made: theirs.Strategy) -> Strategy:
    """A Flower strategy, one of your own too, as ours. It can't be written into a plan's terms.

    Args:
        made: it is copied, never used itself.

    Raises:
        PlanError: it is one that has no sense here, and why.
    """
    if isinstance(made, _REFUSED):
        raise PlanError(
            f"strategy: found {type(made).__name__}; accepted: strategies that aggregate arrays, and for privacy the "
            "section [privacy], which is accounted"
        )
    local = local_rules.proximal(made.proximal_mu) if isinstance(made, theirs.FedProx) else local_rules.sgd()
    return Strategy(
        name=f"flower's {type(made).__name__}",
        local=local,
        aggregator=SingleUpdates(type(made).__name__),
        server=StrategyRule(made),
    )


@dataclass(frozen=True)
class SingleUpdates:
    """Leaves single updates as they are, for a server rule that takes them.

    Args:
        of: the strategy that takes them.
    """

    of: str
    linear: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """As it is called in messages."""
        return f"Flower's {self.of}"

    def reduce(self, updates: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The weights, and behind them the updates one after the other, float64, shape (clients · (1 + n),)."""
        return np.concatenate([np.asarray(weights, np.float64), np.asarray(updates, np.float64).ravel()])


@dataclass(frozen=True, eq=False)
class StrategyRule:
    """The server's rule that a Flower strategy is.

    Args:
        strategy: as it is before the first round; it is copied for each.
    """

    strategy: theirs.Strategy

    def init(self, layout: Layout) -> State:
        """The round, and the arrays' names and shapes, which the strategy is shown."""
        entries = json.dumps([[name, list(shape)] for name, shape in layout.entries]).encode()
        return {_ROUND: np.array(0, np.int64), _LAYOUT: np.frombuffer(entries, np.uint8)}

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
        """The strategy's new arrays, and what it keeps.

        Raises:
            PlanError: it gave no arrays, or keeps what can't be written down.
        """
        layout = _layout(state)
        packed = mean["delta"]
        clients = len(packed) // (1 + layout.size)
        weights, deltas = packed[:clients], packed[clients:].reshape(clients, layout.size)
        number = int(state[_ROUND]) + 1
        working = copy.deepcopy(self.strategy)
        _restore(working, state)
        with internals.identified():
            broadcast = _record(layout, parameters)
            list(working.configure_train(number, broadcast, ConfigRecord(), internals.Crowd()))
            replies = [
                internals.reply(self._content(layout, parameters + delta, weight), node)
                for node, (delta, weight) in enumerate(zip(deltas, weights, strict=True), 1)
            ]
            arrays, _ = working.aggregate_train(number, replies)
        if arrays is None:
            raise PlanError(f"strategy: {type(working).__name__} made nothing of {clients} updates")
        new: dict[str, np.ndarray] = {_ROUND: np.array(number, np.int64), _LAYOUT: state[_LAYOUT]}
        new |= {_KEPT + name: array for name, array in _kept(working, self.strategy)}
        return new, layout.flatten({name: array.numpy() for name, array in arrays.items()})

    def _content(self, layout: Layout, vector: np.ndarray, weight: float) -> RecordDict:
        key = getattr(self.strategy, "weighted_by_key", "num-examples")
        return RecordDict({"arrays": _record(layout, vector), "metrics": MetricRecord({key: float(weight)})})


def _layout(state: State) -> Layout:
    entries = json.loads(state[_LAYOUT].tobytes())
    return Layout(tuple((name, tuple(shape)) for name, shape in entries))


def _record(layout: Layout, vector: np.ndarray) -> ArrayRecord:
    named = layout.unflatten(vector)
    return ArrayRecord({name: Array(array.copy()) for name, array in named.items()})


# --- what a strategy keeps: attributes that are numbers or arrays, alone, in lists, by name, or as a record


def _kept(working: theirs.Strategy, before: theirs.Strategy) -> Iterator[tuple[str, np.ndarray]]:
    """What differs from how it started, as arrays: each under attribute, kind, and its name in it."""
    for name, value in vars(working).items():
        if value is vars(before).get(name, _MISSING) or callable(value):
            continue
        match value:
            case bool() | int() | float() | np.generic():
                yield f"{name}/number/", np.asarray(value)
            case np.ndarray():
                yield f"{name}/array/", value
            case ArrayRecord():
                yield from ((f"{name}/record/{key}", array.numpy()) for key, array in value.items())
            case dict() if all(isinstance(item, np.ndarray) for item in value.values()):
                yield from ((f"{name}/dict/{key}", item) for key, item in value.items())
            case list() if all(isinstance(item, np.ndarray) for item in value):
                yield from ((f"{name}/list/{place}", item) for place, item in enumerate(value))
            case str() | None if value == vars(before).get(name, _MISSING):
                continue
            case _:
                raise PlanError(
                    f"strategy: {type(working).__name__} keeps a {type(value).__name__} in its attribute {name!r}, "
                    "which a checkpoint can't hold; accepted: numbers and arrays, alone, in a list, a dict or an "
                    "ArrayRecord"
                )


_MISSING = object()


def _restore(working: theirs.Strategy, state: State) -> None:
    found: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for key, array in state.items():
        if key.startswith(_KEPT):
            name, kind, place = key.removeprefix(_KEPT).split("/", 2)
            found.setdefault((name, kind), {})[place] = array
    for (name, kind), items in found.items():
        value: Any
        match kind:
            case "number":
                value = items[""].item()
            case "array":
                value = items[""]
            case "record":
                value = ArrayRecord({key: Array(item) for key, item in items.items()})
            case "dict":
                value = items
            case _:
                value = [items[str(place)] for place in range(len(items))]
        setattr(working, name, value)
