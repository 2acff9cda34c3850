"""Robust aggregation: the coordinate-wise median in the place of FedAvg's mean.

Yin, Chen, Ramchandran, Bartlett: "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
ICML 2018, algorithm 1, option I. It needs single updates, or, under secure aggregation, the sums of random buckets of
a cohort (`secure_aggregation.buckets`), of which it takes the median.
"""

from __future__ import annotations

from quorate.strategies import aggregators, local_rules, server_rules
from quorate.strategies.contract import Strategy, strategy

__all__ = ["median"]


@strategy("median")
def median(learning_rate: float = 1.0, momentum: float = 0.0) -> Strategy:
    """Federated learning with the median of each coordinate.

    Two clients are drawn to (1, 2); a third wants to be far away, and does not get the others there:

    >>> import numpy as np
    >>> from quorate.parameters import Layout
    >>> targets = np.array([[1, 2], [1, 2], [1e6, -1e6]], np.float32)
    >>> fed = median()
    >>> x, state = np.zeros(2, np.float32), fed.server.init(Layout((("x", (2,)),)))
    >>> for _ in range(100):
    ...     context = fed.local.begin(x, fed.server.extras(state), {})
    ...     weights = np.tile(x, (3, 1))
    ...     weights -= 0.1 * fed.local.gradient(weights - targets, weights, context)
    ...     vectors, _ = fed.local.finish(x, weights, 1, 0.1, context)
    ...     mean = {name: fed.aggregator.reduce(v, np.ones(3)) for name, v in vectors.items()}
    ...     state, x = fed.server.update(state, x, mean, fraction_of_population=1.0)
    >>> print(x.round(2))
    [1. 2.]

    Args:
        learning_rate: the server's.
        momentum: the server's, in [0, 1).

    Raises:
        PlanError: a number is out of its range.
    """
    return Strategy(
        name="median",
        local=local_rules.sgd(),
        aggregator=aggregators.coordinate_median(),
        server=server_rules.sgd(learning_rate, momentum),
    )
