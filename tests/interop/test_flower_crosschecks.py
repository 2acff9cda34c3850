"""Our strategies and aggregators against Flower's, on the same updates; our fleets against Flower's runtimes.

What differs is shown with the equation that one of the two leaves, and written up in `docs/interop.md`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedAvg

import quorate as q
from quorate.interop.flower import clients, internals
from quorate.interop.flower.fleet import OverGrid
from quorate.interop.flower.nodes import Work, client_app
from quorate.interop.flower.strategies import flower
from quorate.parameters import Layout, Parameters
from quorate.rounds import State
from quorate.strategies import Strategy, local_rules, server_rules
from tests.interop.flower.grids import DirectGrid

LAYOUT = Layout((("weight", (30, 4)), ("bias", (4,))))
ROUNDS, CLIENTS = 5, 6
APP = Path(__file__).parent / "flower" / "apps" / "numpy"
LEARNING_RATE = 0.5


def parameters_after(strategy: Strategy, equal_weights: bool = False) -> np.ndarray:
    """After some rounds of the same random updates; shape (rounds, n)."""
    rng = np.random.default_rng(1)
    x, state, after = rng.normal(size=LAYOUT.size).astype(np.float32), strategy.server.init(LAYOUT), []
    for _ in range(ROUNDS):
        deltas = rng.normal(size=(CLIENTS, LAYOUT.size)).astype(np.float32)
        weights = np.ones(CLIENTS) if equal_weights else rng.integers(1, 100, CLIENTS).astype(float)
        state, x = strategy.server.update(
            state, x, {"delta": strategy.aggregator.reduce(deltas, weights)}, 1.0
        )
        after.append(x)
    return np.stack(after)


def assert_same(ours: Strategy, name: str, **settings: float) -> None:
    """To float32 tolerance."""
    theirs = parameters_after(flower(name, settings))
    np.testing.assert_allclose(parameters_after(ours), theirs, rtol=2e-5, atol=2e-5)


def test_fedavg_is_flower_s() -> None:
    assert_same(q.strategies.fedavg(), "FedAvg")


def test_fedavg_with_server_momentum_is_flower_s_fedavgm() -> None:
    ours = q.strategies.fedavg(learning_rate=0.5, momentum=0.9)
    assert_same(ours, "FedAvgM", server_learning_rate=0.5, server_momentum=0.9)


def test_the_coordinate_median_is_flower_s_fedmedian() -> None:
    assert_same(q.strategies.median(), "FedMedian")


def test_fedprox_averages_as_flower_s_does() -> None:
    assert_same(q.strategies.fedprox(mu=0.1), "FedProx", proximal_mu=0.1)


def test_the_proximal_term_is_that_of_the_paper_whose_norm_is_squared() -> None:
    """Li et al. 2020, equation 2: μ/2·‖w - wᵗ‖². The sketch in Flower's docstring leaves the square out."""
    rng = np.random.default_rng(0)
    start, weights = rng.normal(size=50), rng.normal(size=50)
    rule, mu, h = local_rules.proximal(0.3), 0.3, 1e-6
    added = rule.gradient(np.zeros(50), weights, rule.begin(start, {}, {}))

    def slope(term: object) -> np.ndarray:
        at = term  # a function of the weights
        return np.array([(at(weights + h * e) - at(weights - h * e)) / (2 * h) for e in np.eye(50)])  # type: ignore[operator]

    squared = slope(lambda w: mu / 2 * np.sum((w - start) ** 2))
    unsquared = slope(lambda w: mu / 2 * np.linalg.norm(w - start))
    np.testing.assert_allclose(added, squared, rtol=1e-5, atol=1e-7)
    assert np.abs(added - unsquared).max() > 0.1


def from_zero(state: State) -> dict[str, np.ndarray]:
    """A state of moments whose second one is 0, as Flower's is at first."""
    return {**state, "square": np.zeros_like(state["square"])}


class _AsFlowers(server_rules.Adam):
    """Our Adam from Flower's start, v = 0."""

    def init(self, layout: Layout) -> dict[str, np.ndarray]:
        return from_zero(super().init(layout))


def test_fedadam_is_that_of_the_paper_and_flower_s_is_it_with_another_start_and_rate() -> None:
    """Reddi et al. 2021, algorithm 2: v₋₁ ≥ τ², and no bias correction.

    Flower starts at v = 0, and multiplies the rate by √(1 - β₂ᵗ⁺¹)/(1 - β₁ᵗ⁺¹), t = 1, 2, …; Kingma and Ba 2015,
    algorithm 1, has the exponent t.
    """
    eta, beta1, beta2 = 0.1, 0.9, 0.99
    theirs = parameters_after(flower("FedAdam", {"eta": eta}))

    def rate(done: int, ahead: int) -> float:
        t = done + ahead
        return eta * float(np.sqrt(1 - beta2**t) / (1 - beta1**t))

    def adam(ahead: int) -> Strategy:
        ours = q.strategies.fedadam(eta, beta1, beta2)
        rule = _AsFlowers(lambda done: rate(done, ahead), beta1, beta2, 1e-3)
        return Strategy("fedadam", ours.local, ours.aggregator, rule)

    np.testing.assert_allclose(parameters_after(adam(ahead=2)), theirs, rtol=1e-4, atol=1e-5)
    assert np.abs(parameters_after(adam(ahead=1)) - theirs).max() > 0.01  # Kingma and Ba's
    assert np.abs(parameters_after(q.strategies.fedadam(eta)) - theirs).max() > 0.01  # Reddi's, and ours


class _YogiAsFlowers(server_rules.Yogi):
    """Our Yogi from Flower's start, v = 0."""

    def init(self, layout: Layout) -> dict[str, np.ndarray]:
        return from_zero(super().init(layout))


class _AdagradAsFlowers(server_rules.Adagrad):
    """Our Adagrad from Flower's start, v = 0."""

    def init(self, layout: Layout) -> dict[str, np.ndarray]:
        return from_zero(super().init(layout))


@pytest.mark.parametrize(
    ("name", "ours", "as_theirs"),
    [
        ("FedYogi", q.strategies.fedyogi(0.1), _YogiAsFlowers(0.1, 0.9, 0.99, 1e-3)),
        ("FedAdagrad", q.strategies.fedadagrad(0.1), _AdagradAsFlowers(0.1, 0.0, 1e-3)),
    ],
)
def test_fedyogi_and_fedadagrad_are_those_of_the_paper_and_flower_s_start_elsewhere(
    name: str, ours: Strategy, as_theirs: server_rules.ServerRule
) -> None:
    """Reddi et al. 2021, algorithm 2: v₋₁ ≥ τ². Flower starts at v = 0; the rest is the paper's in both."""
    theirs = parameters_after(flower(name, {"eta": 0.1}))
    made = Strategy("theirs", ours.local, ours.aggregator, as_theirs)
    np.testing.assert_allclose(parameters_after(made), theirs, rtol=1e-4, atol=1e-5)
    assert np.abs(parameters_after(ours) - theirs).max() > 1e-5


# --- FedAvg, the same app from the same start: on our fleets, and on Flower's runtimes


def flower_s_own(rounds: int, start: ArrayRecord) -> np.ndarray:
    """Flower's loop and strategy over Flower's ClientApps."""
    app = internals.load(APP, {})
    grid = DirectGrid(
        dict.fromkeys(range(1, CLIENTS + 1), app.client),
        {node: {"partition-id": node - 1, "num-partitions": CLIENTS} for node in range(1, CLIENTS + 1)},
        app.run_config,
    )
    result = FedAvg(fraction_evaluate=0.0).start(
        grid=grid,
        initial_arrays=start,
        num_rounds=rounds,
        train_config=ConfigRecord({"lr": LEARNING_RATE}),
    )
    return np.concatenate([array.numpy().ravel() for array in result.arrays.values()])


def plan_for(rounds: int) -> q.Plan:
    return q.Plan(
        task=q.Task(clients.app(str(APP))),
        rounds=q.Rounds(count=rounds, cohort=CLIENTS, sampling="fixed", weighting="examples"),
        training=q.Training(learning_rate=LEARNING_RATE, epochs=1),
    )


def start_of(plan: q.Plan) -> ArrayRecord:
    return ArrayRecord([np.asarray(array) for array in plan.task.resolve().model.start.values()])  # type: ignore[attr-defined]


def quiet(report: object) -> None: ...


def test_fedavg_on_our_simulation_gives_the_model_of_flower_s_loop() -> None:
    plan = plan_for(rounds=4)
    found: Parameters = q.run(plan, fleet=q.Simulation(clients.partitions(CLIENTS)), watch=quiet).model
    np.testing.assert_allclose(found.vector, flower_s_own(4, start_of(plan)), rtol=1e-5, atol=1e-6)


def test_fedavg_over_flower_s_messages_gives_the_model_of_flower_s_loop() -> None:
    plan = plan_for(rounds=4)

    def work(context: object) -> Work:
        place = {"partition-id": context.node_config["part"], "num-partitions": CLIENTS}  # type: ignore[attr-defined]
        task = clients.task_from_app(str(APP), node_config=place)
        return Work(tasks={task.name: task})

    ids = range(1, CLIENTS + 1)
    grid = DirectGrid(dict.fromkeys(ids, client_app(work)), {node: {"part": node - 1} for node in ids})
    found = q.run(plan, fleet=OverGrid(grid, CLIENTS), watch=quiet).model
    np.testing.assert_allclose(found.vector, flower_s_own(4, start_of(plan)), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_fedavg_on_flower_s_simulation_gives_the_model_of_ours() -> None:
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    plan, app, results = plan_for(rounds=3), internals.load(APP, {}), []
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        results.append(
            FedAvg(fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS).start(
                grid=grid,
                initial_arrays=start_of(plan),
                num_rounds=3,
                train_config=ConfigRecord({"lr": LEARNING_RATE}),
            )
        )

    with_config = ClientApp()

    @with_config.train()
    def train(message: Message, context: Context) -> Message:
        # Flower reads a run config from an app's directory only.
        told = Context(1, context.node_id, context.node_config, context.state, dict(app.run_config))
        return app.client(message, told)

    run_simulation(
        server_app,
        with_config,
        CLIENTS,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"address": "local", "num_cpus": 2, "include_dashboard": False},
        },
    )
    theirs = np.concatenate([array.numpy().ravel() for array in results[0].arrays.values()])
    ours = q.run(plan, fleet=q.Simulation(clients.partitions(CLIENTS)), watch=quiet).model
    np.testing.assert_allclose(ours.vector, theirs, rtol=1e-5, atol=1e-6)
