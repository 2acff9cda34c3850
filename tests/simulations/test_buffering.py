"""Buffered rounds: FedBuff's arithmetic, the same bits again, the account, and what can't be buffered."""

import dataclasses
import itertools
from functools import cache

import numpy as np
import pytest

import quorate as q
from quorate import assembly, pipeline
from quorate.errors import PlanError
from quorate.privacy.gaussian_rounds import gaussian_epsilon
from quorate.randomness import Randomness, generator
from quorate.rounds import Instruction, PublicValues, Update
from quorate.server import checkpoints
from quorate.server.store import opened
from quorate.simulations import datasets
from quorate.simulations.engines.site import member_seed
from quorate.simulations.source import Simulation
from quorate.simulations.traces import Diurnal
from tests.federations import CLIPPED, GAUSSIAN, IDEAL, SECAGG, plan

SEED = 3
TASK = {"name": "softmax", "inputs": 6, "classes": 3}
CENTRAL = {"mechanism": "central-gaussian", "clip_norm": 1.0, "noise_multiplier": 2.0, "delta": 1e-4}
FTRL = {"mechanism": "dp-ftrl", "clip_norm": 1.0, "noise_multiplier": 2.0, "delta": 1e-4, "span": 3}


def made(count=6, cohort=5, concurrency=15, **sections):
    """Buffers of five of fifteen who work."""
    rounds = {"sampling": "buffered", "buffering": {"concurrency": concurrency}} | sections.pop("rounds", {})
    return plan(**{"rounds": {"count": count, "cohort": cohort, **rounds}, "task": TASK, **sections})


@cache
def data(clients=60):
    return datasets.population(clients=clients, examples=8, features=6, classes=3)


def fleet(traces=None, seed=SEED, **more):
    slow = traces or Diurnal(hours=20, examples_per_s=0.01, bytes_per_s=1e4)
    return Simulation(data(), traces=slow, seed=seed, **{"present": 60, **more})


def quiet(report):
    """Nobody looks."""


def run(wanted, fleet=None, **more):
    return assembly.run(wanted, fleet=fleet or globals()["fleet"](), watch=quiet, **more)


def bits(finished):
    return checkpoints.encode(finished.state)


class Recorded(q.callbacks.Callback):
    """What every committed round left, and who was in its buffer, with which staleness."""

    def __init__(self):
        recorded = self

        class Opened(Simulation):
            def open(self, plan, directory):
                recorded.live = super().open(plan, directory)
                return recorded.live

        self.fleet = Opened(**{f.name: getattr(fleet(), f.name) for f in dataclasses.fields(Simulation)})
        self.rounds = []

    def __call__(self, report, parameters):
        jobs = self.live._buffered._buffer
        ages = {member: job.staleness(report.version - 1) for member, job in jobs.items()}
        self.rounds.append((report.number, ages, parameters.vector.copy()))


# --- The arithmetic


def test_a_round_is_the_mean_of_updates_from_the_models_that_were_pulled_each_discounted():
    recorded = Recorded()
    wanted = made(count=10, rounds={"buffering": {"concurrency": 15, "staleness_exponent": 0.5}})
    finished = run(wanted, recorded.fleet, callbacks=[recorded])
    model, layout = wanted.task.resolve().model, wanted.task.resolve().layout
    versions = [model.initial(generator(SEED, "initial parameters")).vector]
    settings = {"learning_rate": 0.1, "epochs": 1, "batch_size": 20}
    oldest = 0
    for number, ages, after in recorded.rounds:
        total = np.zeros(layout.size)
        key = int(generator(SEED, "training", number).integers(2**62))
        for member, age in ages.items():
            told = q.strategies.fedavg().local.name
            own = Instruction(told, settings, seed=member_seed(key, member))
            client = model.client(data().clients[data().index(member)])
            pulled = layout.unflatten(versions[len(versions) - 1 - age])
            total += client.fit(pulled, own, {})[0].vectors["delta"] / np.sqrt(1 + age)
            oldest = max(oldest, age)
        np.testing.assert_allclose(after, versions[-1] + total / 5, atol=1e-6)
        versions.append(after)
    assert oldest >= 3
    assert finished.committed[-1].metrics["staleness"] == np.mean(list(recorded.rounds[-1][1].values()))


def test_a_discount_is_taken_after_the_clip_and_from_the_vectors_only():
    wanted = made(privacy=CLIPPED, rounds={"weighting": "examples"}).resolved(60)
    encoding = pipeline.build(wanted.terms(), wanted.bounds(60), PublicValues(10.0, bytes(32)))
    length = wanted.task.resolve().layout.size
    long = Update({"delta": np.full(length, 100.0, np.float32)}, 8, {"loss": 0.5})

    def encoded(discount):
        return encoding.encode(long, Randomness.from_seed(0), discount)

    whole, half = encoded(1.0), encoded(0.5)
    assert np.linalg.norm(whole[:length]) == pytest.approx(8 * 10.0, rel=1e-6)
    np.testing.assert_allclose(half[:length], whole[:length] / 2, rtol=1e-6)
    np.testing.assert_array_equal(half[length:], whole[length:])


@pytest.mark.parametrize("clipping", ["flat", "per-layer"])
def test_a_discounted_update_is_within_what_the_noise_is_for(clipping):
    adaptive = {} if clipping == "per-layer" else {"adaptive_clip": {"count_noise": 0.3}}
    wanted = made(privacy={**CENTRAL, "clipping": clipping, **adaptive}, secure_aggregation=IDEAL).resolved(
        60
    )
    encoding = pipeline.build(wanted.terms(), wanted.bounds(60), PublicValues(1.0, bytes(32)))
    length = wanted.task.resolve().layout.size
    rng = np.random.default_rng(0)
    delta, *own = encoding.segments
    for discount in (1.0, 0.7, 0.1):
        long = Update({"delta": 100 * rng.standard_normal(length).astype(np.float32)}, 8)
        values = encoding.encode(long, Randomness.from_seed(0), discount)
        signed = values.view(f"i{values.itemsize}").astype(float)
        step = np.linalg.norm(delta.codec.decode(values[delta.place], length))
        assert step == pytest.approx(discount, rel=0.05)
        bounds = {vector.name: vector.norm_bound for vector in wanted.privacy.event(encoding.shape).vectors}
        assert np.linalg.norm(signed[delta.place]) <= bounds["delta"]
        for segment in own:  # whether it was within the clip norm counts in full
            assert abs(signed[segment.place][0]) == pytest.approx(bounds[segment.vector.name])


def test_buffers_take_less_simulated_time_than_cohorts_for_as_many_updates():
    traces = Diurnal(hours=23, examples_per_s=0.1)
    whole = plan(task=TASK, rounds={"count": 4, "cohort": 15, "sampling": "fixed"})
    hours = [
        run(wanted, fleet(traces, present=20)).metrics["simulated_hours"]
        for wanted in (whole, made(count=12))
    ]
    assert hours[1] < 0.5 * hours[0]


# --- The same again


PROTOCOLS = [
    {},
    {"privacy": GAUSSIAN, "secure_aggregation": IDEAL},
    {"privacy": CENTRAL, "rounds": {"separation": 3}},
    {"strategy": {"name": "fedadam"}, "rounds": {"buffering": {"concurrency": 15, "largest_staleness": 2}}},
]


@pytest.mark.parametrize("sections", PROTOCOLS)
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(sections, tmp_path):
    class Stopped(Exception):
        pass

    def stop(report):
        if report.version == 3:
            raise Stopped

    wanted = made(**sections)
    straight, twice = run(wanted), run(wanted)
    assert bits(straight) == bits(twice)
    with pytest.raises(Stopped):
        assembly.run(wanted, fleet=fleet(), state=tmp_path, watch=stop)
    resumed = run(wanted, state=tmp_path)
    assert bits(resumed) == bits(straight)
    assert [r.metrics for r in resumed.history] == [r.metrics for r in straight.history]
    assert {r.metrics["staleness"] for r in straight.history} != {0.0}


def test_an_exact_run_and_an_ideal_one_learn_the_same_model_at_the_same_time():
    lossy = {"drop_before_masking": 0.1, "drop_before_unmasking": 0.1}
    lenient = {"min_survivors": 3}
    exact = run(made(privacy=GAUSSIAN, secure_aggregation={**SECAGG, **lenient}), fleet(**lossy))
    ideal = run(made(privacy=GAUSSIAN, secure_aggregation={**IDEAL, **lenient}), fleet(**lossy))
    assert bits(exact) == bits(ideal)
    assert [r.metrics for r in exact.history] == [r.metrics for r in ideal.history]


@pytest.mark.parametrize("engine", ["sequential", "processes"])
def test_every_engine_trains_each_member_from_its_own_version(engine):
    expected = run(made()).state.parameters.vector
    found = run(made(), fleet(engine=engine, workers=2)).state.parameters.vector
    np.testing.assert_allclose(found, expected, atol=1e-6)


# --- The account


def in_buffers(state):
    """The members of every round's buffer."""
    with opened(state) as store:
        run = store.runs()[0].id
        return [set(store.outcomes(run, r.number)) for r in store.rounds(run)]


def test_a_member_is_charged_for_every_buffer_that_it_is_in_and_nothing_is_amplified(tmp_path):
    finished = run(made(count=12, privacy=CENTRAL), state=tmp_path)
    buffers = in_buffers(tmp_path)
    assert all(len(buffer) == 5 for buffer in buffers)
    most = max(sum(member in buffer for buffer in buffers) for member in set().union(*buffers))
    assert most > 1
    assert finished.epsilon.released == pytest.approx(gaussian_epsilon(np.sqrt(most) / 2.0, 1e-4), rel=2e-3)
    assert finished.epsilon.server == np.inf


@pytest.mark.parametrize("privacy", [CENTRAL, FTRL])
def test_a_separation_keeps_quick_members_from_coming_again_too_soon(privacy, tmp_path):
    wanted = made(count=12, privacy=privacy, rounds={"separation": 3})
    assert wanted.rounds.participations == 4
    finished = run(wanted, state=tmp_path)
    for (i, early), (j, late) in itertools.combinations(enumerate(in_buffers(tmp_path)), 2):
        assert j - i >= 3 or not early & late
    assert finished.epsilon.released <= gaussian_epsilon(np.sqrt(4) / 2.0, 1e-4) * 1.002


def test_noise_is_calibrated_for_a_member_that_is_in_every_buffer():
    wanted = made(count=9, privacy={**CENTRAL, "noise_multiplier": None, "epsilon": 3.0}).resolved(60)
    assert gaussian_epsilon(3.0 / wanted.privacy.noise_multiplier, 1e-4) == pytest.approx(3.0, rel=2e-3)


# --- What can't be buffered


IMPOSSIBLE = [
    (
        {"rounds": {"buffering": None}},
        ["rounds.buffering: missing", "'buffered'", "a section with concurrency"],
    ),
    ({"rounds": {"sampling": "fixed"}}, ["rounds.buffering: found with rounds.sampling 'fixed'"]),
    (
        {"rounds": {"over_selection": 1.3}},
        ["rounds.over_selection: found 1.3", "rounds.buffering.concurrency"],
    ),
    ({"rounds": {"buffering": {}}}, ["rounds.buffering.concurrency: missing"]),
    ({"strategy": {"name": "median"}}, ["strategy.name: 'median'", "different models", "fedavg"]),
    (
        {"strategy": {"name": "scaffold"}},
        ["strategy.name: 'scaffold'", "broadcasts vectors beside the model"],
    ),
    (
        {"privacy": CLIPPED, "secure_aggregation": {**SECAGG, "threat_model": "semi-malicious"}},
        ["threat_model: found 'semi-malicious'", "Pasquini", "'semi-honest'"],
    ),
    (
        {"privacy": CLIPPED, "secure_aggregation": {**IDEAL, "buckets": 2}, "cohort": 8},
        ["secure_aggregation.buckets: found 2", "one sum"],
    ),
    ({"privacy": FTRL, "rounds": {"separation": 2}}, ["rounds.separation: found 2", "privacy.span (3)"]),
]


@pytest.mark.parametrize(("sections", "words"), IMPOSSIBLE)
def test_what_cannot_be_buffered_is_refused_with_the_reason(sections, words):
    with pytest.raises(PlanError) as refused:
        made(**sections)
    for word in words:
        assert word in str(refused.value)


def test_a_fleet_must_know_how_long_members_take_and_have_as_many_as_work():
    with pytest.raises(PlanError, match=r"fleet\.traces: missing; with rounds\.sampling 'buffered'"):
        run(made(), Simulation(data(), seed=SEED))
    with pytest.raises(PlanError, match=r"concurrency: found 61, but the population has 60 members"):
        run(made(concurrency=61), fleet())
