"""A `tensorflow_privacy.DPQuery` as the mechanism `dp-query` of our own engine (`quorate.privacy.mechanisms.dp_query`).

A record is a member's update: a tensor, or a list of tensors where an update has several vectors. The query's global
state (an adaptive clip norm) is kept as arrays in the checkpoint. Its event is asked for before the first round, of an
empty sample, and every round must release that same event.

Runs where tensorflow-privacy is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from quorate import plugins
from quorate.errors import PlanError, QuorateError
from quorate.interop.tff.environment import MissingEnvironment, remedy
from quorate.privacy import ExternalEvent
from quorate.privacy.curves import released_curve
from quorate.privacy.external import is_accounted, write
from quorate.rounds import State

try:
    import tensorflow as tf
    import tensorflow_privacy as tfp
except ImportError as missing:
    raise MissingEnvironment(
        "privacy.mechanism: 'dp-query' runs where tensorflow-privacy is installed, and it is not installed here. This "
        f"makes an environment that has it, .venv-interop, whose `quorate` runs the plan: {remedy()}"
    ) from missing

__all__ = ["RunningQuery"]

_STATE = "query."


class RunningQuery:
    """A query, ready for records of certain vectors.

    Args:
        path: `module:attribute` of a function that returns a `DPQuery`.
        settings: what it takes.
        lengths: of the vectors of an update, by name, in order.

    Raises:
        PlanError: the path gives no query, the query does not take float32 records, or what it releases has no bound.
    """

    def __init__(self, path: str, settings: Mapping[str, Any], lengths: Mapping[str, int]):
        self._path, self._lengths = path, lengths
        found = plugins.find("privacy.query", path)
        try:
            self._query: Any = found(**settings) if callable(found) else found
        except TypeError as error:
            raise PlanError(f"privacy.settings: {path} does not take {dict(settings)}: {error}") from error
        if not isinstance(self._query, tfp.DPQuery):
            raise PlanError(
                f"privacy.query: {path} gave a {type(self._query).__name__}; accepted: a function that returns a "
                "tensorflow_privacy.DPQuery"
            )
        self._template = self._query.initial_global_state()
        zeros = {name: np.zeros((1, length), np.float32) for name, length in lengths.items()}
        try:
            _, _, event = self._noised(zeros, self._template)
        except (TypeError, ValueError, tf.errors.OpError) as error:
            raise PlanError(f"privacy.query: {path} does not take float32 records: {error}") from error
        self.event = ExternalEvent(write(event))
        if not is_accounted(event) or not np.isfinite(released_curve(self.event)).any():
            raise PlanError(
                f"privacy.query: {path} releases {type(event).__name__}, of which dp-accounting has no finite Rényi "
                "curve, so that no ε can be said; accepted: queries whose event it knows, such as GaussianSumQuery and "
                "QuantileAdaptiveClipSumQuery"
            )

    def initial(self) -> State:
        """The query's global state, one array a leaf."""
        return self._arrays(self._template)

    def release(
        self, updates: Mapping[str, np.ndarray], denominator: float, seed: int, state: State
    ) -> tuple[dict[str, np.ndarray], State]:
        """See `quorate.privacy.mechanisms.dp_query.QueryRunner`."""
        tf.random.set_seed(seed)
        result, after, event = self._noised(updates, self._packed(state))
        released = ExternalEvent(write(event))
        if released != self.event:
            raise QuorateError(
                f"the query {self._path} was charged as {self.event.content}, and says that it released "
                f"{released.content}: its spend can't be told beforehand, so the run stops; the charge stays"
            )
        # A normalised query gives a mean where others give a sum.
        times = denominator if isinstance(self._query, tfp.NormalizedQuery) else 1.0
        vectors = [np.asarray(vector, np.float64) * times for vector in tf.nest.flatten(result)]
        return dict(zip(self._lengths, vectors, strict=True)), self._arrays(after)

    def _noised(self, updates: Mapping[str, np.ndarray], state: Any) -> tuple[Any, Any, Any]:
        query = self._query
        params = query.derive_sample_params(state)
        sample = query.initial_sample_state(self._record(updates, 0))
        for member in range(len(next(iter(updates.values())))):
            sample = query.accumulate_record(params, sample, self._record(updates, member))
        noised: tuple[Any, Any, Any] = query.get_noised_result(sample, state)
        return noised

    def _record(self, updates: Mapping[str, np.ndarray], member: int) -> Any:
        vectors = [tf.constant(updates[name][member], tf.float32) for name in self._lengths]
        return vectors[0] if len(vectors) == 1 else vectors

    def _arrays(self, state: Any) -> dict[str, np.ndarray]:
        leaves = [np.asarray(leaf) for leaf in tf.nest.flatten(state)]
        if any(leaf.dtype.kind not in "fiub" for leaf in leaves):
            raise PlanError(f"privacy.query: {self._path} keeps a state that is not of numbers")
        return {f"{_STATE}{i}": leaf for i, leaf in enumerate(leaves)}

    def _packed(self, state: State) -> Any:
        """The state as the query has it."""
        flat = [
            tf.constant(state[f"{_STATE}{i}"], tf.convert_to_tensor(leaf).dtype, np.shape(leaf))
            for i, leaf in enumerate(tf.nest.flatten(self._template))
        ]
        return tf.nest.pack_sequence_as(self._template, flat)
