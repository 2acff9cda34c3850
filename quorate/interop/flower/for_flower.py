"""Our algorithms, accounting and secure aggregation for a Flower user, by one line of the ServerApp.

    strategy = FedAvg()                                                        # before
    strategy = Quorate(q.strategies.fedadam())                                 # our algorithm, in Flower's rounds
    strategy = Quorate(q.strategies.fedadam(), nodes=20,                       # and private, summed in secret
                       privacy=q.privacy.DistributedGaussian(clip_norm=1.0, epsilon=4.0),
                       secure_aggregation=q.SecAggPlus())
    result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=10)   # as before

Without privacy and secure aggregation the rounds are Flower's, and so are its ClientApps, as they are. With either, the
rounds are ours, over the same grid: the ledger is charged before each, and single updates reach nobody. A node then
has to answer our messages too, which is one line of the ClientApp:

    app = secured(app)

It trains with the app's own `train` function, on what `train_config` says. What a node draws in a round, and its share
of the sum's protocol, stay in its context.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from quorate import plugins
from quorate.errors import PlanError
from quorate.interop.flower.fleet import OverGrid
from quorate.interop.flower.models import FlowerModel
from quorate.interop.flower.nodes import Work, client_app
from quorate.interop.flower.transport import MESSAGE_TYPE
from quorate.parameters import Layout
from quorate.plan import PlainSum, Plan, Rounds, SecAggPlus
from quorate.privacy import Epsilons, NoPrivacy
from quorate.rounds import Assignment, Deadlines, State
from quorate.strategies import Strategy
from quorate.task import Task

__all__ = ["Quorate", "secured"]

_TASK = "flower-arrays"
_PHASE_S = 120.0
Evaluate = Callable[[int, ArrayRecord], MetricRecord | None]


class Quorate(FedAvg):
    """A strategy of ours as one of Flower's.

    Args:
        strategy: ours. A client that trains by itself implements `sgd`, and `proximal` if it heeds `proximal-mu`.
        nodes: with privacy or secure aggregation: how many nodes are counted on; all are in every round.
        privacy: a mechanism of `q.privacy`; None: none.
        secure_aggregation: None: the server sees single updates.
        fedavg: what Flower's `FedAvg` takes: how nodes are sampled and evaluated in Flower's rounds.

    Raises:
        PlanError: the strategy's local rule needs every step of the training, or `nodes` is missing.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        nodes: int | None = None,
        privacy: Any = None,
        secure_aggregation: SecAggPlus | None = None,
        **fedavg: Any,
    ):
        super().__init__(**fedavg)
        if strategy.local.name not in ("sgd", "proximal"):
            raise PlanError(
                f"strategy: {strategy.name!r} needs the local rule {strategy.local.name!r}, which a Flower client that "
                "trains by itself does not follow; accepted: strategies with 'sgd' or 'proximal'"
            )
        self.strategy, self.nodes = strategy, nodes
        self.privacy, self.secure_aggregation = privacy, secure_aggregation
        self.ours = privacy is not None or secure_aggregation is not None
        if self.ours and nodes is None:
            raise PlanError("nodes: missing; accepted: how many nodes privacy or a secure sum is to count on")
        self.epsilon: Epsilons | None = None
        self._arrays: dict[str, np.ndarray] = {}
        self._state: State | None = None

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Evaluate | None = None,
    ) -> Result:
        """As Flower's. With privacy or secure aggregation, `timeout` is for the training of a round, in seconds.

        Raises:
            QuorateError: as `q.run` does; in our rounds only.
        """
        if not self.ours:
            return super().start(
                grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn
            )
        result, model = Result(), _model(initial_arrays, train_config, evaluate_fn)
        plan = Plan.model_validate(
            {
                "task": Task(model),
                "rounds": Rounds(count=num_rounds, cohort=self.nodes or 0, sampling="fixed"),
                "strategy": self.strategy,
                "privacy": self.privacy or NoPrivacy(),
                "secure_aggregation": self.secure_aggregation or PlainSum(),
            }
        )
        held_out = None if evaluate_fn is None else result  # anything: the function has its own data
        fleet = OverGrid(grid, plan.rounds.cohort, held_out, Deadlines(timeout, _PHASE_S))

        def watch(report: Any) -> None:
            if report.metrics:
                result.evaluate_metrics_serverapp[report.version] = MetricRecord(dict(report.metrics))

        run = plugins.find("run", "quorate.assembly:run")(plan, fleet=fleet, watch=watch)  # it lies above
        self.epsilon = run.epsilon
        result.arrays = ArrayRecord({name: Array(a) for name, a in model.arrays(run.model).items()})
        return result

    # --- in Flower's rounds

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As FedAvg does, with `proximal-mu` where the strategy has one; the arrays are kept until the round ends."""
        self._arrays = {name: array.numpy() for name, array in arrays.items()}
        if "mu" in self.strategy.local.settings:
            config["proximal-mu"] = float(self.strategy.local.settings["mu"])
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Our aggregator and server rule, on what the nodes' arrays moved, weighted as Flower weights them."""
        valid, _ = self._check_and_log_replies(replies, is_train=True)
        if not valid:
            return None, None
        contents = [reply.content for reply in valid]
        layout = Layout.of(self._arrays)
        start = layout.flatten(self._arrays)
        deltas, weights = [], []
        for content in contents:
            (record,), (metrics,) = content.array_records.values(), content.metric_records.values()
            deltas.append(layout.flatten({name: array.numpy() for name, array in record.items()}) - start)
            weights.append(metrics[self.weighted_by_key])
        self._state = self.strategy.server.init(layout) if self._state is None else self._state
        mean = self.strategy.aggregator.reduce(np.stack(deltas), np.array(weights, np.float64))
        fraction = len(valid) / max(self.nodes or len(valid), len(valid))
        self._state, vector = self.strategy.server.update(self._state, start, {"delta": mean}, fraction)
        named = layout.unflatten(vector)
        arrays = {name: Array(named[name].astype(array.dtype)) for name, array in self._arrays.items()}
        return ArrayRecord(arrays), self.train_metrics_aggr_fn(contents, self.weighted_by_key)


def _model(arrays: ArrayRecord, config: ConfigRecord | None, evaluate_fn: Evaluate | None) -> FlowerModel:
    """Arrays and a config as a model: what identifies it stands in the terms, so that every node can make it."""
    start = {name: array.numpy() for name, array in arrays.items()}
    told = {} if config is None else dict(config)
    count = 0

    def measure(found: Any, data: Any) -> dict[str, float]:
        nonlocal count
        assert evaluate_fn is not None
        count += 1
        said = evaluate_fn(count, ArrayRecord({name: Array(array) for name, array in found.items()}))
        return {} if said is None else {k: float(v) for k, v in said.items() if isinstance(v, int | float)}

    return FlowerModel(
        apps=lambda data: ClientApp(),
        start=start,
        name=_TASK,
        settings={
            "arrays": [[name, list(a.shape), a.dtype.str] for name, a in start.items()],
            "config": told,
        },
        config=told,
        metrics=(),
        proximal=True,
        measure=None if evaluate_fn is None else measure,
        program=None,
        told=False,
    )


# --- a node


def secured(app: ClientApp) -> ClientApp:
    """A ClientApp that also answers rounds which are private, or summed in secret, by its own `train`.

    Args:
        app: as it is; it answers everything else as before.
    """
    return _Secured(app)


class _Secured(ClientApp):
    def __init__(self, app: ClientApp):
        super().__init__()
        self._app = app
        self._ours = client_app(lambda context: _AppWork(app=app, context=context))

    def __call__(self, message: Message, context: Context) -> Message:
        ours = message.metadata.message_type == MESSAGE_TYPE
        return (self._ours if ours else self._app)(message, context)


@dataclass(frozen=True)
class _AppWork(Work):
    """The task that the terms describe, trained by the app of this node."""

    app: ClientApp = dataclasses.field(default_factory=ClientApp)
    context: Context | None = None

    def installed(self, assignment: Assignment) -> dict[str, Task]:
        assert self.context is not None
        try:
            section = json.loads(assignment.terms)["task"]
            start = {name: np.zeros(shape, dtype) for name, shape, dtype in section["arrays"]}
            config = dict(section["config"])
        except (ValueError, KeyError, TypeError) as error:
            raise PlanError(f"these terms are of no Flower app: {error!r}") from error
        model = FlowerModel(
            apps=lambda data: self.app,
            start=start,
            name=_TASK,
            settings={"arrays": section["arrays"], "config": config},
            config=config,
            metrics=(),
            proximal=True,
            measure=None,
            program=None,
            run_config=dict(self.context.run_config),
            node_config=dict(self.context.node_config),
            told=False,
        )
        return {_TASK: Task(model, data=lambda: None)}
