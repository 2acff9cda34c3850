"""A model whose training is a ClientApp's: what is told to it, and what is made of its answer; see `clients`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from quorate.errors import DataError, PlanError, TrainingFailed
from quorate.fleets import Client
from quorate.interop.flower import internals
from quorate.parameters import Layout, Parameters
from quorate.rounds import Instruction, State, Update
from quorate.task import ProgramSpec

__all__ = ["AppClient", "Evaluate", "FlowerModel", "Partition"]

log = logging.getLogger(__name__)

Evaluate = Callable[[Mapping[str, np.ndarray], Any], Mapping[str, float]]
"""Metrics of arrays, by name, on the server's own data."""

_NAMES = {
    "learning_rate": ("lr", "learning-rate", "learning_rate"),
    "epochs": ("local-epochs", "local_epochs", "epochs"),
    "batch_size": ("batch-size", "batch_size"),
    "mu": ("proximal-mu", "proximal_mu"),
}
"""A setting of ours, and the names under which Flower's apps look for it."""

_WHOLE = ("epochs", "batch_size")
_EXAMPLES = "num-examples"
_STATE = "flower"


@dataclass(frozen=True)
class Partition:
    """What a `ClientApp` is told of its data.

    Args:
        index: its `partition-id`.
        of: `num-partitions`.
    """

    index: int
    of: int


@dataclass(frozen=True, eq=False)
class FlowerModel:
    """A model whose training is a Flower client's: made by `numpy_client`, `client_app` or `app`.

    Args:
        apps: gives the ClientApp for a client's own data.
        start: the arrays to start from, by name, of their own dtypes.
        name: of the task.
        settings: of the task.
        config: goes into every message's config.
        metrics: that may ride in the sum.
        proximal: whether `proximal-mu` is heeded.
        measure: on the server's own data.
        program: what serves the model.
        run_config: the app's.
        node_config: the node's.
        keys: the names of the records of arrays and config in a message.
        told: whether the client is told the plan's training; if not, only what its local rule needs.
    """

    apps: Callable[[Any], ClientApp]
    start: Mapping[str, np.ndarray]
    name: str
    settings: Mapping[str, Any]
    config: Mapping[str, Any]
    metrics: tuple[str, ...]
    proximal: bool
    measure: Evaluate | None
    program: ProgramSpec | None
    run_config: Mapping[str, Any] = field(default_factory=dict)
    node_config: Mapping[str, Any] = field(default_factory=dict)
    keys: tuple[str, str] = ("arrays", "config")
    told: bool = True

    @property
    def layout(self) -> Layout:
        """The arrays' names and shapes."""
        return Layout.of(dict(self.start))

    def initial(self, rng: np.random.Generator) -> Parameters:
        """The arrays to start from."""
        return self.layout.unflatten(self.layout.flatten(self.start))

    def client(self, data: Any = None) -> Client:
        """A client that trains on the given data, or on what its context says."""
        node_config = dict(self.node_config)
        if isinstance(data, Partition):
            node_config |= {"partition-id": data.index, "num-partitions": data.of}
        return AppClient(self, self.apps(data), node_config)

    def arrays(self, parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Parameters in the dtypes that the application knows."""
        return {
            name: _cast(parameters[name].reshape(array.shape), array.dtype)
            for name, array in self.start.items()
        }

    def evaluate(self, parameters: Mapping[str, np.ndarray], data: Any) -> Mapping[str, float]:
        """What the application's own function says; nothing if it gave none."""
        return {} if self.measure is None else self.measure(self.arrays(parameters), data)

    def program_spec(self) -> ProgramSpec:
        """What serves it.

        Raises:
            PlanError: nobody said.
        """
        if self.program is None:
            raise PlanError(
                f"task {self.name!r}: a Flower client trains arrays and does not say what is predicted with them, so "
                "the model can't be served; accepted: program, the layers that the arrays are of"
            )
        return self.program


class AppClient:
    """A client that has a ClientApp do the work.

    Args:
        model: what is trained.
        app: called with a message each time.
        node_config: what the app's context says of this node.
    """

    def __init__(self, model: FlowerModel, app: ClientApp, node_config: Mapping[str, Any]):
        self._model, self._app, self._node_config = model, app, dict(node_config)
        self.rules = frozenset({"sgd", "proximal"} if model.proximal else {"sgd"})

    def fit(self, parameters: Parameters, instruction: Instruction, state: State) -> tuple[Update, State]:
        """Has it train. Rules and settings are as the module says.

        Raises:
            TrainingFailed: the application raised something, or answered with an error.
            DataError: what it gave back does not fit.
        """
        context = self._context(instruction, state)
        told = self._ask(MessageType.TRAIN, parameters, instruction, context)
        given = internals.arrays_of(told, self._app)
        delta = self._flat(given) - self._model.layout.flatten(parameters)
        examples, metrics = self._measured(told)
        return Update({"delta": delta}, examples, metrics), _kept(context)

    def evaluate(self, parameters: Parameters, instruction: Instruction, state: State) -> Update:
        """Has it evaluate.

        Raises:
            TrainingFailed: see `fit`.
            DataError: see `fit`.
        """
        context = self._context(instruction, state)
        examples, metrics = self._measured(self._ask(MessageType.EVALUATE, parameters, instruction, context))
        return Update({}, examples, metrics)

    def _ask(
        self, kind: str, parameters: Parameters, instruction: Instruction, context: Context
    ) -> RecordDict:
        model = self._model
        config = {**model.config, **self._told(instruction)}
        message = internals.message_to(
            self._app, kind, model.arrays(parameters), config, context.node_id, model.keys
        )
        started = time.monotonic()
        try:
            reply: Message = self._app(message, context)
        except Exception as error:  # an application's own, of whatever kind: only its name leaves this device
            log.exception("the Flower client failed")
            raise TrainingFailed(f"the Flower client raised {type(error).__name__}", "training") from error
        log.debug("the Flower client took %.3f s", time.monotonic() - started)
        if reply.has_error():
            log.error("the Flower client answered with an error: %s", reply.error.reason)
            raise TrainingFailed(
                f"the Flower client answered with Flower's error {reply.error.code}", "training"
            )
        return reply.content

    def _context(self, instruction: Instruction, state: State) -> Context:
        told = self._told(instruction)
        run_config = {**self._model.run_config}
        run_config |= {key: told[key] for key in run_config if key in told}
        kept = state.get(_STATE)
        return Context(
            run_id=1,
            node_id=1,
            node_config=self._node_config,
            state=RecordDict() if kept is None else internals.records(kept.tobytes()),
            run_config=run_config,
        )

    def _told(self, instruction: Instruction) -> dict[str, float]:
        settings = instruction.settings
        return _spelled(settings if self._model.told else {k: v for k, v in settings.items() if k == "mu"})

    def _flat(self, given: Mapping[str, np.ndarray] | Sequence[np.ndarray]) -> np.ndarray:
        """By name; by their order if the client, like many, gives them no names."""
        layout = self._model.layout
        if isinstance(given, Mapping) and set(given) != set(layout.names):
            given = list(given.values())
        if not isinstance(given, Mapping):
            if len(given) != len(layout.names):
                raise DataError(
                    f"the Flower client gave {len(given)} arrays, {len(layout.names)} are expected"
                )
            given = dict(zip(layout.names, given, strict=True))
        return layout.flatten(dict(given))

    def _measured(self, told: RecordDict) -> tuple[int, dict[str, float]]:
        """The number of examples, and the metrics that are numbers."""
        metrics = internals.metrics_of(told, self._app)
        if not isinstance(examples := metrics.pop(_EXAMPLES, None), int | float):
            raise DataError(
                f"the Flower client's metrics hold no {_EXAMPLES!r}: how many examples it trained on; found: "
                f"{', '.join(sorted(metrics)) or 'none'}"
            )
        return int(examples), {k: float(v) for k, v in metrics.items() if isinstance(v, int | float)}


def _cast(array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    return (np.rint(array) if dtype.kind in "iub" else array).astype(dtype)


def _spelled(settings: Mapping[str, float]) -> dict[str, float]:
    """An instruction's settings under Flower's names; what is counted is a whole number there."""
    return {
        name: int(value) if setting in _WHOLE else value
        for setting, value in settings.items()
        for name in _NAMES.get(setting, (setting,))
    }


def _kept(context: Context) -> State:
    return {_STATE: np.frombuffer(internals.bytes_of(context.state), np.uint8)} if context.state else {}
