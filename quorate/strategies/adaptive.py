"""FedAdam, FedYogi and FedAdagrad: FedAvg's clients, and steps on the server that each coordinate's moments scale.

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan: "Adaptive Federated Optimization", ICLR 2021,
algorithm 2.
"""

from __future__ import annotations

from quorate.strategies import aggregators, local_rules, server_rules
from quorate.strategies.contract import Strategy, strategy

__all__ = ["fedadagrad", "fedadam", "fedyogi"]


@strategy("fedadam")
def fedadam(
    learning_rate: float = 0.1, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3
) -> Strategy:
    """Adaptive federated optimisation with Adam.

    Two clients that are drawn to (0, 0) and (2, 400), by f(w) = ½‖w - target‖², meet half-way; both
    coordinates take equally large steps at first:

    >>> import numpy as np
    >>> from quorate.parameters import Layout
    >>> targets = np.array([[0, 0], [2, 400]], np.float32)
    >>> fed = fedadam(learning_rate=1.0, beta2=0.9)
    >>> x, state = np.zeros(2, np.float32), fed.server.init(Layout((("x", (2,)),)))
    >>> for _ in range(400):
    ...     context = fed.local.begin(x, fed.server.extras(state), {})
    ...     weights = np.tile(x, (2, 1))
    ...     weights -= 0.1 * fed.local.gradient(weights - targets, weights, context)
    ...     vectors, _ = fed.local.finish(x, weights, 1, 0.1, context)
    ...     mean = {name: fed.aggregator.reduce(v, np.ones(2)) for name, v in vectors.items()}
    ...     state, x = fed.server.update(state, x, mean, fraction_of_population=1.0)
    >>> print(x.round())
    [  1. 200.]

    Args:
        learning_rate: the server's, η.
        beta1: of the first moment, in [0, 1).
        beta2: of the second moment, in [0, 1).
        tau: the degree of adaptivity, above 0: what is added to the root of the second moment.

    Raises:
        PlanError: a number is out of its range.
    """
    return _adaptive("fedadam", server_rules.adam(learning_rate, beta1, beta2, tau))


@strategy("fedyogi")
def fedyogi(
    learning_rate: float = 0.1, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3
) -> Strategy:
    """Adaptive federated optimisation with Yogi: `fedadam`, but a second moment that large deltas move slowly.

    Args:
        learning_rate: the server's, η.
        beta1: of the first moment, in [0, 1).
        beta2: of the second moment, in [0, 1).
        tau: the degree of adaptivity, above 0: what is added to the root of the second moment.

    Raises:
        PlanError: a number is out of its range.
    """
    return _adaptive("fedyogi", server_rules.yogi(learning_rate, beta1, beta2, tau))


@strategy("fedadagrad")
def fedadagrad(learning_rate: float = 0.1, beta1: float = 0.0, tau: float = 1e-3) -> Strategy:
    """Adaptive federated optimisation with Adagrad: `fedadam`, but steps that only become shorter.

    Args:
        learning_rate: the server's, η.
        beta1: of the first moment, in [0, 1).
        tau: the degree of adaptivity, above 0: what is added to the root of the sum of squares.

    Raises:
        PlanError: a number is out of its range.
    """
    return _adaptive("fedadagrad", server_rules.adagrad(learning_rate, beta1, tau))


def _adaptive(name: str, server: server_rules.ServerRule) -> Strategy:
    return Strategy(name=name, local=local_rules.sgd(), aggregator=aggregators.mean(), server=server)
