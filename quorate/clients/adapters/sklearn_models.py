"""scikit-learn: an estimator as a model whose clients train it on their data.

    model = quorate.clients.sklearn(SGDClassifier(loss="log_loss"), features=64, classes=10)

Estimators with `partial_fit` (`SGDClassifier`, `SGDRegressor`, `MLPClassifier`, `MLPRegressor`) run every local rule: a
batch is one call of `partial_fit`, whatever steps the estimator takes inside (the linear ones take one an example), and
what it did to the parameters, w → w', counts as a gradient (w - w')/η to which the rule is applied. The plan's learning
rate takes the place of the estimator's own and is constant; its penalty, its momentum and its solver stay.

`LogisticRegression` has no gradient to add to: a client continues its solver from the broadcast parameters (warm start)
for as many iterations as the plan has epochs. It knows the rule `sgd` only, and a plan that needs another is refused.

The layout is that of the reference models: `weight`, shape (features, outputs), and `bias`, with the layer's number in
front if there are several. A client need not have examples of every class.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from quorate.clients.adapters.batches import Batches, batches
from quorate.clients.adapters.local_training import TrainingNumbers, fit_one, with_rate
from quorate.errors import DataError, MissingExtra, PlanError
from quorate.fleets import Client
from quorate.parameters import Layout, Parameters
from quorate.rounds import Instruction, State, Update
from quorate.strategies import local_rules
from quorate.task import DenseLayer

try:
    from sklearn.base import clone, is_classifier
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, SGDClassifier, SGDRegressor
    from sklearn.neural_network import MLPClassifier, MLPRegressor
except ImportError as missing:
    raise MissingExtra("simulation", "training a scikit-learn estimator") from missing

__all__ = ["SklearnClient", "SklearnModel", "WarmStartClient", "sklearn"]

_TINY = float(np.finfo(np.float64).tiny)
_SOLVERS = ("lbfgs", "newton-cg", "newton-cholesky", "sag", "saga")
_ACTIVATIONS = {
    "identity": "identity",
    "logistic": "sigmoid",
    "relu": "relu",
    "tanh": "tanh",
    "softmax": "softmax",
}


def sklearn(
    estimator: Any,
    train_data: Any = None,
    *,
    features: int,
    classes: int | None = None,
    learning_rate: float | None = None,
    name: str = "sklearn",
    settings: Mapping[str, Any] | None = None,
) -> SklearnModel:
    """A scikit-learn estimator as a model.

    Args:
        estimator: see the module. It is copied; one that is fitted already is where learning starts.
        train_data: a client's own: `Examples` or a pair of arrays. In a simulation the fleet's data take its place.
        features: of an example.
        classes: of a classifier: labels are 0 … classes - 1.
        learning_rate: a client's own, in the place of the plan's.
        name: of the task.
        settings: what a plan has to say to get this model again from an installed task.

    Raises:
        PlanError: the estimator is of another kind, or is set so that it can't be continued from given parameters.
    """
    known = (SGDClassifier, SGDRegressor, MLPClassifier, MLPRegressor, LogisticRegression)
    if not isinstance(estimator, known):
        raise PlanError(
            f"estimator: {type(estimator).__name__} was found; accepted: {', '.join(kind.__name__ for kind in known)}"
        )
    _check(estimator, features, classes)
    return SklearnModel(
        fresh=clone(estimator),
        fitted=estimator if hasattr(estimator, "coef_") or hasattr(estimator, "coefs_") else None,
        features=features,
        classes=classes,
        data=None if train_data is None else batches(train_data),
        learning_rate=learning_rate,
        name=name,
        settings=dict(settings or {}),
    )


@dataclass(frozen=True, eq=False)
class SklearnModel:
    """An estimator: made by `sklearn`.

    Args:
        fresh: not fitted.
        fitted: where learning starts; None: at zero, or at a network's usual random weights.
        features: of an example.
        classes: of a classifier; None for a regressor.
        data: of this client; None: it is given to `client`.
        learning_rate: of this client; None: the plan's.
        name: of the task.
        settings: of the task.
    """

    fresh: Any
    fitted: Any
    features: int
    classes: int | None
    data: Batches | None
    learning_rate: float | None
    name: str
    settings: Mapping[str, Any]

    @property
    def metrics(self) -> tuple[str, ...]:
        """`accuracy`, and the `loss` if probabilities are told; of a regressor the squared and the absolute error."""
        if self.classes is None:
            return ("loss", "mean_absolute_error")
        return ("accuracy", "loss") if hasattr(self.fresh, "predict_proba") else ("accuracy",)

    @property
    def outputs(self) -> int:
        """Values that the last layer gives: one for two classes."""
        return 1 if self.classes in (None, 2) else int(self.classes)

    @cached_property
    def layout(self) -> Layout:
        """Names and shapes, as those of the reference models."""
        entries: list[tuple[str, tuple[int, ...]]] = []
        for layer in self.program_spec():
            entries += [(layer.weight, (layer.inputs, layer.outputs)), (layer.bias, (layer.outputs,))]
        return Layout(tuple(entries))

    def program_spec(self) -> tuple[DenseLayer, ...]:
        """The layers. A linear classifier by log-loss gives each class's own probability, which need not sum to 1."""
        if isinstance(self.fresh, MLPClassifier | MLPRegressor):
            hidden = [int(width) for width in np.atleast_1d(self.fresh.hidden_layer_sizes)]
            inner = self.fresh.activation
        else:
            hidden, inner = [], "identity"
        if self.classes is None:
            last = "identity"
        elif isinstance(self.fresh, SGDClassifier):
            last = "logistic" if self.fresh.loss == "log_loss" else "identity"
        else:
            last = "logistic" if self.classes == 2 else "softmax"
        shapes = list(pairwise([self.features, *hidden, self.outputs]))
        prefixes = [f"layer{i}." for i in range(1, len(shapes) + 1)] if hidden else [""]
        activations = [inner] * len(hidden) + [last]
        return tuple(
            DenseLayer(f"{prefix}weight", f"{prefix}bias", *shape, _ACTIVATIONS[activation])
            for prefix, shape, activation in zip(prefixes, shapes, activations, strict=True)
        )

    def initial(self, rng: np.random.Generator) -> Parameters:
        """The fitted estimator's; else zero, or for a network uniform numbers (Glorot and Bengio 2010), as there."""
        if self.fitted is not None:
            return self.layout.unflatten(_read(self, self.fitted))
        if not isinstance(self.fresh, MLPClassifier | MLPRegressor):
            return self.layout.zeros()
        scale = 2 if self.fresh.activation == "logistic" else 6
        drawn = []
        for layer in self.program_spec():
            bound = np.sqrt(scale / (layer.inputs + layer.outputs))
            drawn.append(rng.uniform(-bound, bound, (layer.inputs + 1) * layer.outputs))
        return self.layout.unflatten(np.concatenate(drawn))

    def client(self, data: Any = None) -> Client:
        """A client that trains this estimator on its data, or on those that the model was made with.

        Raises:
            DataError: there are no data, or they do not fit.
        """
        own = self.data if data is None else batches(data)
        if own is None or not len(own):
            raise DataError(f"a client of {self.name!r} needs data with at least one example")
        x, y = own.take(np.arange(len(own)))
        self._check_data(x, y)
        return (WarmStartClient if isinstance(self.fresh, LogisticRegression) else SklearnClient)(self, x, y)

    def evaluate(self, parameters: Mapping[str, np.ndarray], data: Any) -> dict[str, float]:
        """The metrics, averaged over the examples.

        Raises:
            DataError: there is no example, or the data do not fit.
        """
        held = batches(data)
        x, y = held.take(np.arange(len(held)))
        self._check_data(x, y)
        measured = _measure(self, self.estimator(parameters), x, y)
        return dict(zip(self.metrics, measured, strict=True))

    def estimator(self, parameters: Mapping[str, np.ndarray]) -> Any:
        """A fitted scikit-learn estimator with the given parameters."""
        made = self._allocated()
        _write(self, made, self.layout.flatten(parameters))
        return made

    def _allocated(self, **settings: Any) -> Any:
        """A fitted estimator, with any parameters."""
        made = clone(self.fresh).set_params(**settings)
        labels = np.arange(self.classes or 1)
        x, y = (
            np.zeros((len(labels), self.features), np.float32),
            labels.astype(float if self.classes is None else int),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            if isinstance(made, LogisticRegression):
                made.fit(x, y)
            else:
                made.partial_fit(x, y, **({} if self.classes is None else {"classes": labels}))
        return made

    def _check_data(self, x: np.ndarray, y: np.ndarray) -> None:
        if not len(x):
            raise DataError(f"the model {self.name!r} needs at least one example")
        if x.shape[1:] != (self.features,) or y.ndim != 1:
            raise DataError(
                f"the model {self.name!r} takes {self.features} features and a target, got shapes {x.shape}, {y.shape}"
            )
        if self.classes is not None and (y.dtype != np.int64 or y.min() < 0 or y.max() >= self.classes):
            raise DataError(
                f"labels are whole numbers from 0 to {self.classes - 1}, got {y.dtype} from {y.min()} to {y.max()}"
            )


class SklearnClient:
    """A client that trains by `partial_fit`.

    Args:
        model: what is trained.
        x: features, shape (examples, features).
        y: targets, shape (examples,).
    """

    def __init__(self, model: SklearnModel, x: np.ndarray, y: np.ndarray):
        self.rules = frozenset(local_rules.names())
        self._model, self._x, self._y = model, x, y

    def fit(self, parameters: Parameters, instruction: Instruction, state: State) -> tuple[Update, State]:
        """Trains, see the module."""
        model = self._model
        instruction = with_rate(instruction, model.learning_rate)
        rate = TrainingNumbers.of([instruction]).learning_rate
        start = model.layout.flatten(parameters)
        trainer = _PartialFit(model, self._x, self._y, start, rate)
        done = fit_one(trainer, start, len(self._x), instruction, state)
        metrics = dict(zip(model.metrics, done.metrics, strict=True))
        return Update(done.vectors, len(self._x), metrics), done.state

    def evaluate(self, parameters: Parameters, instruction: Instruction, state: State) -> Update:
        """The model's metrics on the client's data."""
        return Update({}, len(self._x), self._model.evaluate(parameters, (self._x, self._y)))


class WarmStartClient:
    """A client that continues a `LogisticRegression`'s solver from the broadcast parameters.

    Args:
        model: what is trained.
        x: features, shape (examples, features).
        y: labels, shape (examples,).
    """

    def __init__(self, model: SklearnModel, x: np.ndarray, y: np.ndarray):
        self.rules = frozenset({local_rules.Sgd.name})
        self._model, self._x, self._y = model, x, y

    def fit(self, parameters: Parameters, instruction: Instruction, state: State) -> tuple[Update, State]:
        """As many iterations as there are epochs. Examples of weight 0 tell the estimator which classes there are."""
        model = self._model
        training = TrainingNumbers.of([instruction])
        start = model.layout.flatten(parameters)
        estimator = model._allocated(
            warm_start=True, max_iter=training.epochs, random_state=_seed(instruction.seed)
        )
        _write(model, estimator, start)
        classes = model.classes or 0
        measured = _measure(model, estimator, self._x, self._y)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a round is not meant to end at the optimum
            estimator.fit(
                np.concatenate([self._x, np.zeros((classes, model.features), np.float32)]),
                np.concatenate([self._y, np.arange(classes)]),
                sample_weight=np.concatenate([np.ones(len(self._x)), np.zeros(classes)]),
            )
        metrics = dict(zip(model.metrics, measured, strict=True))
        return Update({"delta": _read(model, estimator) - start}, len(self._x), metrics), {}

    def evaluate(self, parameters: Parameters, instruction: Instruction, state: State) -> Update:
        """The model's metrics on the client's data."""
        return Update({}, len(self._x), self._model.evaluate(parameters, (self._x, self._y)))


class _PartialFit:
    """A `Trainer`: one call of `partial_fit` a batch, seen as a step of descent."""

    def __init__(self, model: SklearnModel, x: np.ndarray, y: np.ndarray, start: np.ndarray, rate: float):
        settings: dict[str, Any] = {"shuffle": False}  # rows come in the schedule's order
        if isinstance(model.fresh, SGDClassifier | SGDRegressor):
            settings |= {"learning_rate": "constant", "eta0": rate}
        else:
            settings |= {"learning_rate_init": rate}
        self.weights = start.copy()
        self._model, self._x, self._y, self._rate = model, x, y, rate
        self._estimator = model._allocated(**settings)
        if hasattr(self._estimator, "_optimizer"):
            del self._estimator._optimizer  # its momenta are those of the allocation

    def array(self, values: np.ndarray) -> np.ndarray:
        """As it is."""
        return values

    def numpy(self, array: Any) -> np.ndarray:
        """As float32."""
        return np.array(array, np.float32)

    def gradient(self, rows: np.ndarray) -> tuple[np.ndarray, Sequence[float]]:
        """(w - w')/η, and the metrics before the step."""
        estimator, x, y = self._estimator, self._x[rows], self._y[rows]
        _write(self._model, estimator, self.weights)
        measured = _measure(self._model, estimator, x, y)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            estimator.partial_fit(x, y)
        return (self.weights - _read(self._model, estimator)) / np.float32(self._rate), measured

    def values(self) -> np.ndarray:
        """The parameters."""
        return self.weights


def _write(model: SklearnModel, estimator: Any, vector: np.ndarray) -> None:
    """Sets an allocated estimator's parameters in place, so that its optimiser sees them too."""
    for (weight, bias), layer in zip(_places(estimator), model.program_spec(), strict=True):
        weight[...] = vector[model.layout.slice(layer.weight)].reshape(layer.inputs, layer.outputs)
        bias[...] = vector[model.layout.slice(layer.bias)]


def _read(model: SklearnModel, estimator: Any) -> np.ndarray:
    """A fitted estimator's parameters as a flat vector, float32."""
    vector = np.empty(model.layout.size, np.float32)
    for (weight, bias), layer in zip(_places(estimator), model.program_spec(), strict=True):
        vector[model.layout.slice(layer.weight)] = weight.ravel()
        vector[model.layout.slice(layer.bias)] = bias
    return vector


def _places(estimator: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Views of each layer's weights, shape (inputs, outputs), and biases."""
    if hasattr(estimator, "coefs_"):
        return list(zip(estimator.coefs_, estimator.intercepts_, strict=True))
    return [(np.atleast_2d(estimator.coef_).T, estimator.intercept_)]


def _measure(model: SklearnModel, estimator: Any, x: np.ndarray, y: np.ndarray) -> list[float]:
    if model.classes is None:
        error = estimator.predict(x) - y
        return [float(np.square(error).mean()), float(np.abs(error).mean())]
    if len(model.metrics) == 1:
        return [float((estimator.predict(x) == y).mean())]
    told = estimator.predict_proba(x)
    right = told[np.arange(len(y)), y]
    return [float((told.argmax(axis=1) == y).mean()), float(-np.log(np.maximum(right, _TINY)).mean())]


def _seed(seed: int | None) -> int | None:
    return None if seed is None else seed % 2**32


def _check(estimator: Any, features: Any, classes: Any) -> None:
    """Refuses what can't be continued from given parameters."""
    problems = []
    for key, value, least in (("features", features, 1), ("classes", classes, 2)):
        wanted = key == "features" or is_classifier(estimator)
        if wanted and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            problems.append(f"{key}: {value!r} was found; a whole number of at least {least} is accepted")
        if not wanted and value is not None:
            problems.append(
                f"{key}: {value!r} was found, but {type(estimator).__name__} is a regressor; None is accepted"
            )
    if getattr(estimator, "average", False):
        problems.append(f"estimator.average: {estimator.average!r} was found; False is accepted")
    if getattr(estimator, "early_stopping", False):
        problems.append("estimator.early_stopping: True was found; False is accepted")
    if isinstance(estimator, MLPClassifier | MLPRegressor) and estimator.solver == "lbfgs":
        problems.append("estimator.solver: 'lbfgs' was found; 'sgd' and 'adam' are accepted")
    if isinstance(estimator, MLPRegressor) and getattr(estimator, "loss", "squared_error") != "squared_error":
        problems.append(f"estimator.loss: {estimator.loss!r} was found; 'squared_error' is accepted")
    if isinstance(estimator, LogisticRegression):
        if estimator.solver not in _SOLVERS:
            problems.append(
                f"estimator.solver: {estimator.solver!r} was found; accepted: {', '.join(_SOLVERS)}"
            )
        if estimator.class_weight is not None:
            problems.append(
                "estimator.class_weight: it can't be balanced where classes are missing; None is accepted"
            )
    if problems:
        raise PlanError(problems)
