"""PyTorch: any `torch.nn.Module` and loss as a model whose clients run every local rule.

    model = quorate.clients.torch(net, torch.nn.functional.cross_entropy)                       # for a simulation
    model = quorate.clients.torch(net, torch.nn.functional.cross_entropy, (images, labels))     # on a device

The layout holds the parameters that are trained, by the names of `named_parameters`, and behind them the floating-point
buffers (the statistics of a BatchNorm), by their own. A parameter that asks for no gradient stays what it is in the
module. A client is trained on a bench of its own (`torch_bench`), many at once where the module can
(`torch_training`).

Buffers change in training, but follow no gradient: no local rule touches them. By default they are *shared*: their
change rides in the update's delta and is averaged like the rest. *Local* ones never leave the client, which keeps them
in its state; the server then evaluates and serves with those that the module came with (Andreux et al. 2020, "Siloed
Federated Learning for Multi-Centric Histopathology Datasets"). Under a privacy mechanism shared buffers share the clip
norm with everything else, so that `local`, or a normalisation without statistics (GroupNorm), is the better choice.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from quorate.clients.adapters.batches import Batches, batches
from quorate.clients.adapters.dp_sgd import ABILITY
from quorate.clients.adapters.local_training import fit_one, with_rate
from quorate.errors import DataError, MissingExtra, PlanError
from quorate.fleets import Client
from quorate.parameters import Layout, Parameters
from quorate.rounds import Instruction, State, Update, Updates
from quorate.strategies import local_rules
from quorate.task import DenseLayer, ProgramSpec

try:
    import torch as pytorch
except ImportError as missing:
    raise MissingExtra("torch", "training a PyTorch module") from missing

from quorate.clients.adapters import torch_programs, torch_training
from quorate.clients.adapters.torch_bench import Bench, seeded

__all__ = ["TorchClient", "TorchModel", "torch"]

_BUFFERS = "buffers"  # in a client's state

Module = pytorch.nn.Module
Loss = Callable[[Any, Any], Any]


def torch(
    model: Module | Callable[[], Module],
    loss: Loss,
    train_data: Any = None,
    *,
    learning_rate: float | None = None,
    metrics: Mapping[str, Loss] | None = None,
    buffers: Literal["shared", "local"] = "shared",
    name: str = "torch",
    settings: Mapping[str, Any] | None = None,
    example: Any = None,
    layers: Sequence[DenseLayer] | None = None,
) -> TorchModel:
    """A PyTorch module as a model.

    Args:
        model: a module, which is copied and never changed, and whose parameters are where learning starts; or a
            function that makes one, which is called with PyTorch's seed drawn from the plan's.
        loss: of a batch's outputs and targets; a 0-d tensor, the mean over the batch.
        train_data: a client's own: `Examples`, a pair of arrays or tensors, or a map-style dataset. In a simulation the
            fleet's data take its place.
        learning_rate: a client's own, in the place of the plan's.
        metrics: means over a batch of something that outputs and targets tell, by name, beside the loss; None: the
            accuracy, if the loss is a cross-entropy.
        buffers: what becomes of floating-point buffers, see the module.
        name: of the task.
        settings: what a plan has to say to get this model again from an installed task.
        example: one example's features, as an array: the servable program takes such; None: those of the training
            data, or what the first linear layer takes.
        layers: what the module is as a chain of dense layers, by the names of its parameters, whose matrices are of
            shape (inputs, outputs): then the program is made of them, and PyTorch writes none.

    Raises:
        PlanError: a parameter is not float32, the module has none, or its buffers are to be neither shared nor local.
    """
    if buffers not in ("shared", "local"):
        raise PlanError(f"buffers: {buffers!r} was found; 'shared' and 'local' are accepted")
    made = model if isinstance(model, Module) else _made(model, 0)
    if metrics is None:
        metrics = {"accuracy": _accuracy} if _is_cross_entropy(loss) else {}
    return TorchModel(
        module=copy.deepcopy(made),
        make=None if isinstance(model, Module) else model,
        loss=loss,
        measures=dict(metrics),
        data=None if train_data is None else batches(train_data),
        learning_rate=learning_rate,
        shares_buffers=buffers == "shared",
        name=name,
        settings=dict(settings or {}),
        example=None if example is None else np.asarray(example),
        layers=None if layers is None else tuple(layers),
    )


@dataclass(frozen=True, eq=False)
class TorchModel:
    """A module with its loss: made by `torch`.

    Args:
        module: never trained itself.
        make: makes a module with fresh parameters; None: learning starts from those of `module`.
        loss: of a batch.
        measures: what is measured beside the loss, by name.
        data: of this client; None: it is given to `client`.
        learning_rate: of this client; None: the plan's.
        shares_buffers: whether buffers are in the layout.
        name: of the task.
        settings: of the task.
        example: one example's features.
        layers: of the servable program; None: PyTorch writes it.
    """

    module: Module
    make: Callable[[], Module] | None
    loss: Loss
    measures: Mapping[str, Loss]
    data: Batches | None
    learning_rate: float | None
    shares_buffers: bool
    name: str
    settings: Mapping[str, Any]
    example: np.ndarray | None
    layers: tuple[DenseLayer, ...] | None
    survives_fork = False  # PyTorch's threads, and its engine's, do not

    @property
    def metrics(self) -> tuple[str, ...]:
        """The loss, and what is measured beside it."""
        return ("loss", *self.measures)

    @cached_property
    def trained(self) -> Layout:
        """Of the parameters that are trained."""
        named = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        if not named:
            raise PlanError(f"the model {self.name!r} has no parameter that asks for a gradient")
        others = {n: p.dtype for n, p in named.items() if p.dtype != pytorch.float32}
        if others:
            raise PlanError(
                f"the model {self.name!r} has parameters {others}; float32 is accepted (module.float() converts)"
            )
        return Layout(tuple((n, tuple(p.shape)) for n, p in named.items()))

    @cached_property
    def buffers(self) -> Layout:
        """Of the floating-point buffers."""
        return Layout(
            tuple((n, tuple(b.shape)) for n, b in self.module.named_buffers() if b.is_floating_point())
        )

    @cached_property
    def layout(self) -> Layout:
        """The parameters that are trained, and the buffers if they are shared."""
        return Layout(self.trained.entries + (self.buffers.entries if self.shares_buffers else ()))

    @property
    def activation(self) -> str:
        """What makes predictions of the module's outputs, by the loss; `identity` for losses that say nothing of it."""
        if _is_cross_entropy(self.loss):
            return "softmax"
        functional = pytorch.nn.functional
        two = self.loss is functional.binary_cross_entropy_with_logits
        return "sigmoid" if two or isinstance(self.loss, pytorch.nn.BCEWithLogitsLoss) else "identity"

    def initial(self, rng: np.random.Generator) -> Parameters:
        """The module's own values, or those of a module made anew, with a seed from `rng`."""
        source = self.module if self.make is None else _made(self.make, int(rng.integers(2**62)))
        values = {**dict(source.named_parameters()), **dict(source.named_buffers())}
        arrays = {name: values[name].detach().cpu().numpy() for name in self.layout.names}
        return self.layout.unflatten(self.layout.flatten(arrays).copy())

    def client(self, data: Any = None) -> Client:
        """A client that trains this model on its data, or on those that the model was made with.

        Raises:
            DataError: there are no data, or no example.
        """
        own = self.data if data is None else batches(data)
        if own is None or not len(own):
            raise DataError(f"a client of {self.name!r} needs data with at least one example")
        return TorchClient(self, own)

    @cached_property
    def together(self) -> bool:
        """Whether many clients can be trained at once, see `torch_training`."""
        return torch_training.can_train_together(self.module)

    def begin_thread(self) -> None:
        """In each thread of an engine's that trains, of which there is one a core: PyTorch's own would be too many."""
        pytorch.set_num_threads(1)

    def fit_many(
        self,
        parameters: Parameters,
        data: Sequence[Any],
        instructions: Sequence[Instruction],
        states: Sequence[State],
    ) -> tuple[Updates, list[State]]:
        """Trains many clients at once: gives what each one's `fit` gives, up to rounding.

        Args:
            parameters: where all of them start.
            data: of each client, at least one example each.
            instructions: for each client; they may differ in the seed only.
            states: of each client.

        Raises:
            DataError: there is no client, an instruction lacks a number, instructions differ, or a state does not fit.
            PlanError: PyTorch can't batch an operation of the module or the loss.
        """
        told = [with_rate(instruction, self.learning_rate) for instruction in instructions]
        start = self.layout.flatten(parameters)
        return torch_training.fit_many(self, start, [batches(one) for one in data], told, states)

    def evaluate(self, parameters: Mapping[str, np.ndarray], data: Any) -> dict[str, float]:
        """The metrics in evaluation mode, averaged over the examples.

        Raises:
            DataError: there is no example.
        """
        bench = self._bench
        bench.load(self.layout.flatten(parameters))
        return bench.evaluate(batches(data))

    def predict(self, parameters: Mapping[str, np.ndarray], x: Any) -> np.ndarray:
        """The module's outputs in evaluation mode, as an array."""
        bench = self._bench
        bench.load(self.layout.flatten(parameters))
        return bench.outputs(x)

    def program_spec(self) -> ProgramSpec:
        """The layers, if they are known; else the module in evaluation mode as ONNX, with the activation after it.

        Raises:
            PlanError: PyTorch can't write the module as ONNX, or one example's features are not known.
        """
        if self.layers is not None:
            return self.layers
        example = self.example
        if example is None and self.data is not None:
            example = self.data.take(np.zeros(1, np.int64))[0][0]
        return torch_programs.graph(self.module, self.layout, example, self.name, self.activation)

    @cached_property
    def _benches(self) -> threading.local:
        return threading.local()

    @property
    def _bench(self) -> Bench:
        """This thread's, which is used again from client to client."""
        bench: Bench | None = getattr(self._benches, "bench", None)
        if bench is None:
            bench = self._benches.bench = Bench(self)
        return bench

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_benches"}


class TorchClient:
    """A client that trains a module on its own data.

    Args:
        model: what is trained.
        data: at least one example.
    """

    def __init__(self, model: TorchModel, data: Batches):
        self.rules = frozenset({*local_rules.names(), *({ABILITY} if not model.buffers.size else ())})
        self._model, self._data = model, data

    def fit(self, parameters: Parameters, instruction: Instruction, state: State) -> tuple[Update, State]:
        """Trains in training mode, see `local_training`; what the module draws follows the instruction's seed."""
        model, bench = self._model, self._model._bench
        start = model.layout.flatten(parameters)
        bench.load(start, state.get(_BUFFERS))
        bench.data = self._data
        own = {key: value for key, value in state.items() if key != _BUFFERS}
        with seeded(instruction.seed, bench.weights.device):
            done = fit_one(bench, start, len(self._data), with_rate(instruction, model.learning_rate), own)
        if not model.shares_buffers and model.buffers.size:
            done.state[_BUFFERS] = bench.buffers().cpu().numpy()
        metrics = done.named(model.metrics)
        return Update(done.vectors, len(self._data), metrics), done.state

    def evaluate(self, parameters: Parameters, instruction: Instruction, state: State) -> Update:
        """The model's metrics on the client's data, with the client's own buffers if they are local."""
        bench = self._model._bench
        bench.load(self._model.layout.flatten(parameters), state.get(_BUFFERS))
        return Update({}, len(self._data), bench.evaluate(self._data))


def _made(make: Callable[[], Module], seed: int) -> Module:
    with seeded(seed):
        made = make()
    if not isinstance(made, Module):
        raise PlanError(
            f"model: {type(made).__name__} was found; a torch.nn.Module, or a function that makes one, is accepted"
        )
    return made


def _is_cross_entropy(loss: Loss) -> bool:
    return loss is pytorch.nn.functional.cross_entropy or isinstance(loss, pytorch.nn.CrossEntropyLoss)


def _accuracy(outputs: Any, y: Any) -> Any:
    return (outputs.argmax(dim=1) == y).float().mean()
