"""Queries of tensorflow-privacy as the mechanism of our own engine: whole runs, their account, and what is refused."""

import dp_accounting
import numpy as np
import pytest

from quorate import assembly
from quorate.errors import PlanError
from quorate.interop.tensorflow_privacy.queries import RunningQuery
from quorate.plan import Plan, Terms
from quorate.privacy import ExternalEvent, forecast
from quorate.privacy.external import parse, write
from quorate.result import FinishedRun
from quorate.server import checkpoints
from quorate.simulations.source import Simulation
from tests.federations import IDEAL, plan, wine

pytestmark = pytest.mark.interop

HERE = "tests.interop.tensorflow_privacy.queries_of_a_user"
LENGTHS = {"delta": 2000, "control": 3}
UPDATES = {
    name: np.random.default_rng(7).normal(size=(6, length)).astype(np.float32)
    for name, length in LENGTHS.items()
}


def section(name: str, **settings: object) -> dict[str, object]:
    return {"mechanism": "dp-query", "query": f"{HERE}:{name}", "settings": settings}


def made(name: str, rounds: int = 3, **settings: object) -> Plan:
    return plan(rounds={"count": rounds, "cohort": 8}, privacy=section(name, **settings))


def run(of: Plan, seed: int | None = 3, **options: object) -> FinishedRun:
    return assembly.run(of, fleet=Simulation(wine(), seed=seed), watch=lambda report: None, **options)


def test_a_sum_is_clipped_as_one_record_and_has_the_querys_noise():
    query = RunningQuery(f"{HERE}:gaussian", {"clip_norm": 2.0, "noise_multiplier": 0.5}, LENGTHS)
    released, state = query.release(UPDATES, 6.0, 1, query.initial())
    assert set(state) == set(query.initial())
    norms = np.sqrt(sum(np.square(values).sum(axis=1, keepdims=True) for values in UPDATES.values()))
    noise = np.concatenate(
        [
            released[name] - (values * np.minimum(1, 2.0 / norms)).sum(axis=0)
            for name, values in UPDATES.items()
        ]
    )
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
    assert abs(noise.std() - 1.0) < 5 / np.sqrt(2 * noise.size)
    assert parse(query.event.content) == dp_accounting.GaussianDpEvent(0.5)
    again, _ = query.release(UPDATES, 6.0, 1, query.initial())
    other, _ = query.release(UPDATES, 6.0, 2, query.initial())
    assert np.array_equal(again["delta"], released["delta"])
    assert not np.array_equal(other["delta"], released["delta"])


def test_a_query_that_gives_a_mean_gives_what_its_sum_does():
    of_sum = RunningQuery(f"{HERE}:gaussian", {"clip_norm": 2.0, "noise_multiplier": 1e-6}, LENGTHS)
    settings = {"clip_norm": 2.0, "noise_multiplier": 1e-6, "denominator": 6.0}
    of_mean = RunningQuery(f"{HERE}:normalized", settings, LENGTHS)
    total, mean = (q.release(UPDATES, 6.0, 1, q.initial())[0]["delta"] for q in (of_sum, of_mean))
    np.testing.assert_allclose(mean, total, atol=1e-4)


def test_a_run_is_charged_with_the_querys_event_and_nothing_is_amplified():
    done = run(made("gaussian", clip_norm=2.0, noise_multiplier=1.5))
    event = ExternalEvent(write(dp_accounting.GaussianDpEvent(1.5)))
    assert done.epsilon is not None
    assert done.epsilon.released == pytest.approx(forecast(event, 3, done.epsilon.delta), rel=1e-6)
    assert np.isinf(done.epsilon.server)
    assert done.epsilon.simulated


def test_a_model_is_learned_and_the_run_can_be_repeated():
    of = made("gaussian", rounds=8, clip_norm=1.0, noise_multiplier=0.05)
    one, two = run(of), run(of)
    assert checkpoints.encode(one.state) == checkpoints.encode(two.state)
    assert one.metrics["accuracy"] > 0.7


def test_an_adaptive_querys_clip_norm_goes_on_from_round_to_round():
    first, third = run(made("adaptive", rounds=1)), run(made("adaptive", rounds=3))
    assert any(name.startswith("mechanism.query.") for name in third.state.own)
    clips = [
        sorted(float(v) for n, v in done.state.own.items() if n.startswith("mechanism.query."))
        for done in (first, third)
    ]
    assert clips[0] != clips[1]
    assert third.epsilon is not None
    assert first.epsilon is not None
    assert third.epsilon.released > first.epsilon.released


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path):
    whole = run(made("adaptive"))

    def stop(report):
        if report.version == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        assembly.run(made("adaptive"), fleet=Simulation(wine(), seed=3), watch=stop, state=tmp_path)
    resumed = run(made("adaptive"), state=tmp_path)
    assert checkpoints.encode(resumed.state) == checkpoints.encode(whole.state)


def test_a_budget_stops_the_run():
    from quorate.errors import BudgetExhausted

    of = plan(
        rounds={"count": 50, "cohort": 8},
        privacy={**section("gaussian", noise_multiplier=2.0), "budget": 3.0},
    )
    with pytest.raises(BudgetExhausted):
        run(of)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("without_noise", "no finite Rényi curve"),
        ("of_whole_numbers", "does not take float32 records"),
        ("no_query", "gave a int; accepted: a function that returns a tensorflow_privacy.DPQuery"),
    ],
)
def test_what_is_no_query_for_updates_or_can_not_be_accounted_is_refused(name, said):
    with pytest.raises(PlanError, match=said):
        run(made(name))


def test_settings_that_the_function_does_not_take_are_refused():
    with pytest.raises(PlanError, match=r"privacy\.settings"):
        run(made("gaussian", clip=1.0))


def test_a_sum_in_a_ring_is_refused():
    with pytest.raises(PlanError, match="takes single updates"):
        plan(privacy=section("gaussian"), secure_aggregation=IDEAL)


def test_terms_that_name_code_are_not_read_from_the_network():
    encoded = made("gaussian").resolved(12).terms().encoded()
    with pytest.raises(PlanError, match="path to code"):
        Terms.parse(encoded)
