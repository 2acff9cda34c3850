"""Our aggregators in TFF's processes, as `tff.aggregators` factories.

    median = factory(quorate.strategies.aggregators.coordinate_median(), largest_cohort=100)
    process = tff.learning.algorithms.build_unweighted_fed_avg(model, client_optimizer, model_aggregator=median)

TFF's runtime computes in processes of its own and takes TensorFlow's operations only, so that an aggregator needs its
formula in them: those below have one. All of a round's values are collected first, by TFF's reservoir sample of as many
as the largest cohort. Weights are left out: TFF has another type for weighted aggregation, and the median takes none.
Our secure sums have no place in TFF's types. Runs where TensorFlow Federated is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from quorate.errors import PlanError
from quorate.strategies import Aggregator

__all__ = ["factory"]


def factory(aggregator: Aggregator, largest_cohort: int) -> Any:
    """A `tff.aggregators.UnweightedAggregationFactory`.

    Args:
        aggregator: `mean` or `coordinate_median` of `quorate.strategies.aggregators`.
        largest_cohort: the most clients that a round can have; of more, so many would be drawn at random.

    Raises:
        PlanError: the aggregator has no formula in TensorFlow, or no cohort fits.
    """
    if aggregator.name not in _FORMULAS:
        raise PlanError(f"aggregator: found {aggregator.name!r}; accepted: {', '.join(_FORMULAS)}")
    if largest_cohort < 1:
        raise PlanError(f"largest_cohort: found {largest_cohort}; accepted: at least 1")
    return _Collecting(_FORMULAS[aggregator.name], largest_cohort)


class _Collecting(tff.aggregators.UnweightedAggregationFactory):  # type: ignore[misc]
    """Collects the clients' values, and reduces them along the clients' axis."""

    def __init__(self, formula: Callable[[Any], Any], largest_cohort: int):
        self._formula = formula
        self._collect = tff.aggregators.UnweightedReservoirSamplingFactory(largest_cohort)

    def create(self, value_type: Any) -> Any:
        """The process for values of a type: a tensor, or a structure of tensors."""
        collect, formula = self._collect.create(value_type), self._formula
        collected = collect.next.type_signature.result.result.member

        def reduced(values: Any) -> Any:
            return tf.nest.map_structure(formula, values)

        reduce = tff.tensorflow.computation(reduced, collected)

        def next_fn(state: Any, value: Any) -> Any:
            output = collect.next(state, value)
            return tff.templates.MeasuredProcessOutput(
                output.state, tff.federated_map(reduce, output.result), output.measurements
            )

        step = tff.federated_computation(
            next_fn,
            collect.initialize.type_signature.result,
            tff.FederatedType(value_type, tff.CLIENTS),
        )
        return tff.templates.AggregationProcess(collect.initialize, step)


def _mean(values: Any) -> Any:
    return tf.reduce_mean(values, axis=0)


def _coordinate_median(values: Any) -> Any:
    """The mean of the middle two of each coordinate, which are one for an odd number."""
    ordered = tf.sort(values, axis=0)
    count = tf.shape(ordered)[0]
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2


_FORMULAS: dict[str, Callable[[Any], Any]] = {"mean": _mean, "coordinate-median": _coordinate_median}
