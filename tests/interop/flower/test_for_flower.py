"""A Flower user's ServerApp with one line changed: our strategies, privacy and secure sums over Flower's ClientApps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import FedAvg, FedAvgM, FedMedian, Result, Strategy

import quorate as q
from quorate.errors import PlanError
from quorate.interop.flower import internals
from quorate.interop.flower.for_flower import Quorate, secured
from tests.interop.flower.federations import NODES, NUMPY_APP
from tests.interop.flower.grids import DirectGrid


def start(strategy: Strategy, secure: bool = False, rounds: int = 4, **told: Any) -> Result:
    """As the app's ServerApp does."""
    app = internals.load(NUMPY_APP, {})
    client = secured(app.client) if secure else app.client
    ids = range(1, NODES + 1)
    grid = DirectGrid(
        dict.fromkeys(ids, client),
        {node: {"partition-id": node - 1, "num-partitions": NODES} for node in ids},
        app.run_config,
    )
    return strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord([np.zeros((13, 3)), np.zeros(3)]),
        num_rounds=rounds,
        train_config=ConfigRecord({"lr": 0.5, "server-round": 0}),
        **told,
    )


def accuracy(arrays: ArrayRecord) -> float:
    import numpy_app.task as app  # type: ignore[import-not-found]

    weight, bias = arrays.to_numpy_ndarrays()
    return float(app.test({"weight": weight, "bias": bias}, *app.load_data(0, 1))[1])


def vector(result: Result) -> np.ndarray:
    return np.concatenate([array.ravel() for array in result.arrays.to_numpy_ndarrays()])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (q.strategies.fedavg(), FedAvg()),
        (
            q.strategies.fedavg(learning_rate=0.5, momentum=0.9),
            FedAvgM(server_learning_rate=0.5, server_momentum=0.9),
        ),
        (q.strategies.median(), FedMedian()),
    ],
)
def test_our_strategy_in_flower_s_rounds_gives_the_model_of_flower_s(ours: Any, theirs: Strategy) -> None:
    found = start(Quorate(ours))
    np.testing.assert_allclose(vector(found), vector(start(theirs)), rtol=1e-5, atol=1e-6)
    assert set(found.train_metrics_clientapp) == set(found.evaluate_metrics_clientapp) == {1, 2, 3, 4}


def test_a_strategy_that_flower_does_not_have_runs_there_too() -> None:
    found = start(Quorate(q.strategies.fedadam(learning_rate=0.2)))
    assert accuracy(found.arrays) > 0.9


def test_a_private_secret_sum_is_one_line_on_either_side() -> None:
    strategy = Quorate(
        q.strategies.fedavg(),
        nodes=NODES,
        privacy=q.privacy.DistributedGaussian(clip_norm=1.0, noise_multiplier=0.3),
        secure_aggregation=q.SecAggPlus(min_survivors=3, corrupt=0.0),
    )
    found = start(strategy, secure=True)
    assert accuracy(found.arrays) > 0.8
    assert strategy.epsilon is not None
    assert strategy.epsilon.released > 0
    assert [array.dtype for array in found.arrays.to_numpy_ndarrays()] == [np.float64, np.float64]


def test_the_server_s_own_evaluation_is_asked_after_every_round() -> None:
    asked: list[int] = []

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        asked.append(number)
        return MetricRecord({"accuracy": accuracy(arrays)})

    strategy = Quorate(
        q.strategies.fedavg(),
        nodes=NODES,
        privacy=q.privacy.NoPrivacy(clip_norm=5.0),
        secure_aggregation=q.SecAggPlus(min_survivors=3, corrupt=0.0),
    )
    found = start(strategy, secure=True, evaluate_fn=evaluate)
    assert asked == [1, 2, 3, 4]
    assert found.evaluate_metrics_serverapp[4]["accuracy"] > 0.8  # type: ignore[operator]
    assert strategy.epsilon is None


def test_a_secured_app_answers_flower_s_rounds_as_before() -> None:
    np.testing.assert_allclose(vector(start(FedAvg(), secure=True)), vector(start(FedAvg())), rtol=1e-6)


def test_nodes_whose_app_is_not_secured_take_no_part() -> None:
    strategy = Quorate(
        q.strategies.fedavg(),
        nodes=NODES,
        privacy=q.privacy.NoPrivacy(clip_norm=5.0),
        secure_aggregation=q.SecAggPlus(min_survivors=3, corrupt=0.0),
    )
    with pytest.raises(ValueError, match="No query function registered with name 'quorate'"):
        start(strategy, secure=False)  # over a SuperLink, an error reply of each: the round is not quorate


def test_a_strategy_that_must_see_every_step_is_refused() -> None:
    with pytest.raises(PlanError, match="'scaffold' needs the local rule 'control-variate'"):
        Quorate(q.strategies.scaffold())


def test_how_many_nodes_are_counted_on_has_to_be_said() -> None:
    with pytest.raises(PlanError, match="nodes: missing"):
        Quorate(q.strategies.fedavg(), secure_aggregation=q.SecAggPlus())
