"""Flower's strategies as ours: what they compute, what they keep, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.serverapp import strategy as theirs

import quorate as q
from quorate.errors import PlanError
from quorate.interop.flower.strategies import flower, from_flower
from quorate.parameters import Layout
from quorate.planfile import format_plan, make_plan
from quorate.rounds import State
from quorate.server.coordinator import RoundReport
from quorate.strategies import Strategy
from tests import federations

LAYOUT = Layout((("weight", (3, 2)), ("bias", (2,))))
ROUNDS, CLIENTS = 4, 5

Updates = list[tuple[np.ndarray, np.ndarray]]


def updates(seed: int = 0) -> Updates:
    """Deltas and weights of some rounds."""
    rng = np.random.default_rng(seed)
    return [
        (
            rng.normal(size=(CLIENTS, LAYOUT.size)).astype(np.float32),
            rng.integers(1, 9, CLIENTS).astype(float),
        )
        for _ in range(ROUNDS)
    ]


def ours(made: Strategy, given: Updates) -> list[np.ndarray]:
    """The parameters after each round; each starts from what a checkpoint holds."""
    x, state = np.zeros(LAYOUT.size, np.float32), made.server.init(LAYOUT)
    after = []
    for deltas, weights in given:
        mean = {"delta": made.aggregator.reduce(deltas, weights)}
        state = {name: np.array(value) for name, value in state.items()}
        state, x = made.server.update(state, x, mean, 1.0)
        after.append(x)
    return after


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("FedAvg", {}),
        ("FedAvgM", {"server_learning_rate": 0.5, "server_momentum": 0.9}),
        ("FedAdam", {}),
        ("FedYogi", {}),
        ("FedAdagrad", {}),
        ("FedMedian", {}),
        ("FedTrimmedAvg", {"beta": 0.2}),
        ("Krum", {"num_malicious_nodes": 1}),
        ("MultiKrum", {"num_malicious_nodes": 1, "num_nodes_to_select": 2}),
        pytest.param("Bulyan", {"num_malicious_nodes": 0}, marks=pytest.mark.slow),
        ("FedProx", {"proximal_mu": 0.1}),
    ],
)
def test_a_strategy_of_flower_s_computes_here_what_it_computes_there(
    name: str, settings: dict[str, Any]
) -> None:
    from quorate.interop.flower import internals

    given, there = updates(), getattr(theirs, name)(**settings)
    x = np.zeros(LAYOUT.size, np.float32)
    made = flower(name, settings)
    with internals.identified():
        for number, ((deltas, weights), found) in enumerate(zip(given, ours(made, given), strict=True), 1):
            arrays = _record(x)
            list(there.configure_train(number, arrays, ConfigRecord(), internals.Crowd()))
            replies = [
                internals.reply(
                    RecordDict(
                        {"a": _record(x + delta), "m": theirs_metrics({"num-examples": float(weight)})}
                    ),
                    node,
                )
                for node, (delta, weight) in enumerate(zip(deltas, weights, strict=True), 1)
            ]
            new, _ = there.aggregate_train(number, replies)
            x = LAYOUT.flatten({key: array.numpy() for key, array in new.items()})
            np.testing.assert_array_equal(found, x)


def theirs_metrics(values: dict[str, float]) -> Any:
    from flwr.app import MetricRecord

    return MetricRecord(values)


def _record(vector: np.ndarray) -> ArrayRecord:
    return ArrayRecord({name: Array(array.copy()) for name, array in LAYOUT.unflatten(vector).items()})


def run(rounds: int, strategy: Any, state: Path | None = None, watch: Any = lambda report: None) -> Any:
    plan = make_plan(federations.content(rounds={"count": rounds, "cohort": 8, "sampling": "fixed"}))
    fleet = q.Simulation(federations.wine(), seed=3)
    return q.run(plan.model_copy(update={"strategy": strategy}), fleet=fleet, state=state, watch=watch)


def named(name: str, **settings: float) -> Any:
    content = {"name": "flower", "strategy": name, "settings": settings}
    return make_plan(federations.content(strategy=content)).strategy


def test_a_run_with_a_flower_strategy_goes_on_to_the_same_bits_when_it_was_stopped(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(report: RoundReport) -> None:
        if report.version == 2:
            raise Stop

    adam = named("FedAdam", eta=0.5)
    with pytest.raises(Stop):
        run(4, adam, tmp_path / "stopped", stop)
    resumed = run(4, adam, tmp_path / "stopped")
    np.testing.assert_array_equal(resumed.model.vector, run(4, adam).model.vector)
    assert resumed.metrics["accuracy"] > 0.8


def test_a_flower_strategy_is_written_into_a_plan_and_read_again() -> None:
    plan = make_plan(
        federations.content(
            strategy={"name": "flower", "strategy": "FedTrimmedAvg", "settings": {"beta": 0.25}}
        )
    )
    text = format_plan(plan)
    assert 'strategy = "FedTrimmedAvg"' in text
    import tomllib

    assert make_plan(tomllib.loads(text)).terms().encoded() == plan.terms().encoded()


def test_fedprox_comes_with_its_local_rule() -> None:
    local = flower("FedProx", {"proximal_mu": 0.25}).local
    assert (local.name, dict(local.settings)) == ("proximal", {"mu": 0.25})


@pytest.mark.parametrize("protocol", ["secagg+", "ideal"])
def test_a_flower_strategy_is_refused_under_secure_aggregation_with_the_reason(protocol: str) -> None:
    sections = federations.content(
        strategy={"name": "flower", "strategy": "FedAvg"},
        privacy=federations.CLIPPED,
        secure_aggregation={"protocol": protocol},
    )
    with pytest.raises(PlanError, match="Flower's FedAvg\", which must see every single update"):
        make_plan(sections)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"strategy": "FedAvgg"}, r"strategy\.strategy: found 'FedAvgg'; accepted: Bulyan, FedAdagrad"),
        ({"strategy": "os:system"}, r"strategy\.strategy: found 'os:system'; accepted: Bulyan"),
        ({"strategy": "FedAdam", "settings": {"etaa": 1}}, r"strategy\.settings: FedAdam does not take"),
        ({"strategy": "DifferentialPrivacyServerSideFixedClipping"}, "accepted: Bulyan"),
    ],
)
def test_what_flower_does_not_have_is_refused(content: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        make_plan(federations.content(strategy={"name": "flower", **content}))


def test_flower_s_own_privacy_is_refused_where_nothing_would_account_for_it() -> None:
    wrapped = theirs.DifferentialPrivacyServerSideFixedClipping(theirs.FedAvg(), 1.0, 1.0, 5)
    with pytest.raises(PlanError, match=r"for privacy the section \[privacy\], which is accounted"):
        from_flower(wrapped)


class Remembering(theirs.FedAvg):
    """One of a user's own: it keeps a list, a number, and, if told to, what can't be written down."""

    def __init__(self, strange: bool = False):
        super().__init__()
        self.seen: list[np.ndarray] = []
        self.count = 0
        self.strange: Any = strange

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.count += 1
        self.seen = [*self.seen, np.array([self.count])]
        assert len(self.seen) == self.count == server_round
        if self.strange:
            self.strange = {1, 2}
        return arrays, metrics


def test_a_strategy_of_one_s_own_finds_what_it_kept() -> None:
    made = from_flower(Remembering())
    assert not made.recorded
    ours(made, updates())
    state: State = made.server.init(LAYOUT)
    assert set(state) == {"round", "layout"}  # and the strategy itself was not touched


def test_what_a_checkpoint_can_t_hold_is_refused_with_its_name() -> None:
    with pytest.raises(
        PlanError, match="keeps a set in its attribute 'strange', which a checkpoint can't hold"
    ):
        ours(from_flower(Remembering(strange=True)), updates())
