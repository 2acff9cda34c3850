"""The simulated fleet: the same model for the same seed, the real protocol, dropouts, and clients' states."""

import dataclasses
from collections import Counter
from functools import cache

import numpy as np
import pytest

import quorate as q
from quorate import assembly, pipeline, resolution
from quorate.clients.adapters.examples import Examples
from quorate.errors import PlanError, PolicyRefused, QuorateError, QuorumNotReached
from quorate.parameters import Layout
from quorate.randomness import Randomness
from quorate.rounds import Assignment, Broadcast, Close, Instruction, Kind, Outcome, PublicValues, Update
from quorate.server import checkpoints
from quorate.simulations.engines.site import instruction_of
from quorate.simulations.source import Simulation, simulation
from tests.federations import CLIPPED, GAUSSIAN, IDEAL, SECAGG, SOFTMAX_DIGITS, digits, plan, wine

CLIENTS = 12
FIXED = {"count": 3, "cohort": 8, "sampling": "fixed"}


class Journal:
    def __init__(self):
        self.written = 0

    def revealing(self):
        self.written += 1


class Stopped(BaseException):
    """The process was stopped."""


def run(made, state=None, seed=7, watch=lambda report: None, clients=CLIENTS, **options):
    return assembly.run(made, fleet=Simulation(wine(clients), seed=seed, **options), state=state, watch=watch)


def bits(finished):
    return checkpoints.encode(finished.state)


class One:
    """One round of a fleet, without a coordinator."""

    def __init__(self, made, seed=7, data=None, **options):
        source = Simulation(data or wine(CLIENTS), seed=seed, **options)
        self.plan = made.model_copy(update={"fleet": source.section()}).resolved(source.size)
        self.terms = self.plan.terms()
        self.fleet = source.open(self.plan, None)
        self.bounds = self.plan.bounds(source.size)
        self.journal = Journal()

    def assignment(self, number=1, members=None, **instruction) -> Assignment:
        strategy, task = self.plan.strategy.resolve(), self.plan.task.resolve()
        extras = strategy.server.extras(strategy.server.init(task.layout))
        settings = {**self.plan.training.settings(), **strategy.local.settings}
        told = Instruction(
            **{"rule": strategy.local.name, "settings": settings, "extras": extras, "seed": 3, **instruction}
        )
        start = task.model.initial(np.random.default_rng(0))
        public = PublicValues(self.plan.privacy.clip_norm, bytes(32))
        names = members or [self.fleet.member(i) for i in range(8)]
        return Assignment(
            run="run",
            round=number,
            kind=Kind.FIT,
            base_version=0,
            terms=self.terms.encoded(),
            terms_hash=bytes(32),
            broadcast=Broadcast(start, told, public),
            bounds=self.bounds,
            members=tuple(names),
        )

    def collect(self, number=1, members=None, **instruction):
        """The sum, and how the collection was closed."""
        assignment = self.assignment(number, members, **instruction)
        encoding = pipeline.build(self.terms, self.bounds, assignment.broadcast.public)
        sink = encoding.sink()
        summing = pipeline.summation(self.terms, pipeline.session(assignment, encoding), self.journal)
        closed = self.fleet.collect(assignment, summing, sink, Close())
        return sink.result(), closed


# --- The same seed


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"privacy": GAUSSIAN, "secure_aggregation": IDEAL},
        {"privacy": GAUSSIAN, "secure_aggregation": SECAGG},
        {"privacy": {**GAUSSIAN, "adaptive_clip": {"count_noise": 0.2}}, "secure_aggregation": IDEAL},
        {"strategy": {"name": "scaffold"}},
        {"task": {"name": "mlp", "inputs": 13, "hidden": [8], "classes": 3}},
    ],
)
def test_a_seeded_run_gives_the_same_model_twice(sections):
    made = plan(**sections)
    options = {"drop_before_masking": 0.1, "drop_before_unmasking": 0.1}
    first, second = run(made, **options), run(made, **options)
    assert bits(first) == bits(second)
    assert [r.metrics for r in first.history] == [r.metrics for r in second.history]
    assert [(r.status, r.survivors, r.lost) for r in first.history] == [
        (r.status, r.survivors, r.lost) for r in second.history
    ]


def test_another_seed_gives_another_model():
    assert bits(run(plan())) != bits(run(plan(), seed=8))


def test_an_unseeded_run_gives_another_model_each_time():
    made = plan(privacy=GAUSSIAN, secure_aggregation=IDEAL)
    assert bits(run(made, seed=None)) != bits(run(made, seed=None))


@pytest.mark.parametrize("seed", [7, None])
def test_epsilon_is_marked_as_simulated_when_a_seed_made_the_noise(seed):
    finished = run(plan(privacy=GAUSSIAN, secure_aggregation=IDEAL), seed=seed)
    assert finished.epsilon.simulated == (seed is not None)
    assert finished.record.simulated == (seed is not None)


# --- The protocol's sum is the plain ring sum


@pytest.mark.parametrize(
    ("privacy", "ring"),
    [
        (CLIPPED, np.uint32),
        (GAUSSIAN, np.uint16),
        ({**GAUSSIAN, "mechanism": "distributed-skellam"}, np.uint16),
    ],
)
@pytest.mark.parametrize("drop", [0.0, 0.15])
def test_the_exact_sum_is_the_ideal_one_bit_for_bit(privacy, ring, drop):
    sums = {}
    for name, summing in (("ideal", IDEAL), ("exact", SECAGG)):
        lenient = {**summing, "min_survivors": 3}
        one = One(plan(rounds=FIXED, privacy=privacy, secure_aggregation=lenient), drop_before_masking=drop)
        aggregate, closed = one.collect()
        sums[name] = aggregate.sums[0]
        assert set(closed.survivors) == set(aggregate.survivors)
        assert len(closed.survivors) == 8 - sum(closed.lost.values())
    assert sums["exact"].dtype == ring
    np.testing.assert_array_equal(sums["exact"], sums["ideal"])


@pytest.mark.parametrize("privacy", [CLIPPED, GAUSSIAN])
def test_an_exact_run_and_an_ideal_one_learn_the_same_model_to_the_bit(privacy):
    exact = run(plan(privacy=privacy, secure_aggregation=SECAGG))
    ideal = run(plan(privacy=privacy, secure_aggregation=IDEAL))
    assert bits(exact) == bits(ideal)
    assert [r.number for r in exact.history] == [r.number for r in ideal.history]


def test_the_sum_is_what_the_clients_alone_would_have_encoded():
    one = One(plan(rounds=FIXED, privacy=CLIPPED, secure_aggregation=SECAGG))
    aggregate, _ = one.collect()
    encoding = pipeline.build(one.terms, one.bounds, one.assignment().broadcast.public)
    decoded, _, _ = encoding.decode(aggregate, Randomness.from_seed(0), {})
    model, data = one.plan.task.resolve().model, wine(CLIENTS)
    deltas = []
    for i in range(8):
        client = model.client(data.clients[i])
        instruction = instruction_of(one.assignment().broadcast.instruction, data.member(i))
        update, _ = client.fit(one.assignment().broadcast.parameters, instruction, {})
        deltas.append(update.vectors["delta"])
    np.testing.assert_allclose(decoded["delta"], np.mean(deltas, axis=0), atol=1e-5)


def test_each_client_adds_noise_of_its_own():
    one = One(plan(rounds=FIXED, privacy=GAUSSIAN, secure_aggregation=IDEAL))
    names = [one.fleet.member(i) for i in range(8)]
    first, _ = one.collect(1, names)
    second, _ = one.collect(2, names)
    assert not np.array_equal(first.sums[0], second.sums[0])


# --- Dropouts


def test_members_drop_out_in_both_phases_as_often_as_they_are_told():
    made = plan(
        task=SOFTMAX_DIGITS,
        rounds={"count": 1, "cohort": 20, "sampling": "fixed"},
        privacy=CLIPPED,
        secure_aggregation={**IDEAL, "min_survivors": 3},
    )
    one = One(made, data=digits(20), drop_before_masking=0.2, drop_before_unmasking=0.3)
    counts = Counter()
    for number in range(1, 201):
        assignment = one.assignment(number, [one.fleet.member(i) for i in range(20)])
        counts.update(one.fleet._drops(assignment).values())
    total = 200 * 20
    assert abs(counts[2] / total - 0.2) < 0.03
    assert abs(counts[3] / total - 0.8 * 0.3) < 0.03


def test_who_drops_out_before_masking_is_not_in_the_sum_and_who_does_after_it_is():
    made = plan(
        rounds={"count": 1, "cohort": 12, "sampling": "fixed"},
        privacy=CLIPPED,
        secure_aggregation={**SECAGG, "min_survivors": 4},
    )
    one = One(made, seed=4, drop_before_masking=0.2, drop_before_unmasking=0.2)
    names = [one.fleet.member(i) for i in range(12)]
    drops = one.fleet._drops(one.assignment(members=names))
    early = {member for member, messages in drops.items() if messages == 2}
    late = {member for member, messages in drops.items() if messages == 3}
    assert early
    assert late
    _, closed = one.collect(members=names)
    assert set(closed.survivors) == set(names) - early
    assert closed.lost == {"mask": len(early), "unmask": len(late)}


@pytest.mark.parametrize("summing", [IDEAL, SECAGG])
def test_too_many_dropouts_abort_the_round_before_anything_is_revealed(summing):
    made = plan(rounds=FIXED, privacy=CLIPPED, secure_aggregation=summing)
    one = One(made, drop_before_masking=0.9)
    with pytest.raises(QuorumNotReached):
        one.collect()
    assert one.journal.written == 0


def test_a_run_with_dropouts_goes_on_with_those_who_stay():
    made = plan(privacy=GAUSSIAN, secure_aggregation={**SECAGG, "min_survivors": 4})
    finished = run(made, drop_before_masking=0.1, drop_before_unmasking=0.1)
    assert len(finished.committed) == 3
    assert sum(sum(r.lost.values()) for r in finished.committed) > 0


@pytest.mark.parametrize("name", ["drop_before_masking", "drop_before_unmasking"])
@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_a_dropout_that_is_no_probability_is_refused(name, value):
    with pytest.raises(PlanError, match=rf"{name}: found .*, accepted: at least 0 and below 1"):
        Simulation(wine(CLIENTS), **{name: value})


# --- What does not fit


def poisoned(*chosen, data=None):
    """Wines (or other data), of which some clients have examples that no training gets anywhere with."""
    data = data or wine(CLIENTS)
    examples, parts = data.clients.examples, data.clients.parts
    x = np.array(examples.x)
    for client in chosen:
        x[parts[client]] = 3e38
    return dataclasses.replace(data, clients=type(data.clients)(Examples(x, examples.y), parts))


def test_a_client_whose_training_diverges_is_lost_and_the_sum_stays_finite():
    one = One(plan(rounds=FIXED, training={"epochs": 3}), data=poisoned(2))
    aggregate, closed = one.collect()
    assert np.isfinite(aggregate.sums[0]).all()
    assert closed.lost == {"update": 1}
    assert "client-2" not in closed.survivors


def test_a_client_that_diverges_among_others_whose_updates_are_products_is_lost_alone():
    wide = {"name": "mlp", "inputs": 64, "hidden": [64], "classes": 10}
    data = poisoned(2, data=digits(60))
    one = One(plan(task=wide, rounds=FIXED), data=data, engine="vectorised")
    assignment = one.assignment()
    parameters, told = assignment.broadcast.parameters, assignment.broadcast.instruction
    model = one.plan.task.resolve().model
    assert model.fit_many(parameters, [data.clients[2]], [told], [{}])[0].rows
    aggregate, closed = one.collect()
    assert np.isfinite(aggregate.sums[0]).all()
    assert np.abs(aggregate.sums[0]).max() > 0
    assert closed.lost == {"update": 1}
    assert "client-2" not in closed.survivors


def test_a_round_in_which_too_many_diverge_is_aborted():
    one = One(plan(rounds=FIXED, training={"epochs": 3}), data=poisoned(0, 1, 2))
    with pytest.raises(QuorumNotReached, match="5 members were left after 'update', 6 are needed"):
        one.collect()
    assert one.journal.written == 0


def test_a_rule_that_the_client_does_not_have_is_refused():
    one = One(plan(rounds=FIXED))
    with pytest.raises(PolicyRefused, match="needs the local rule 'unheard-of'"):
        one.collect(rule="unheard-of")


@pytest.mark.parametrize(
    ("fleet", "said"),
    [
        ({"dataset": "wine", "clients": 12, "partition": "iid", "alpha": 1.0}, "alpha"),
        ({"dataset": "wine", "clients": 12, "partition": "dirichlet", "alpha": -1.0}, "alpha"),
        ({"dataset": "wine", "clients": 12, "partition": "dirichle"}, "dirichle"),
        ({"dataset": "wine", "clients": 0}, "clients"),
        ({"dataset": "wine", "client": 12}, r"fleet.client: unknown key \(did you mean"),
        ({"dataset": "wine"}, "fleet.clients: missing"),
        (
            {"dataset": "wine", "clients": 12, "drop_before_masking": 1.5},
            "fleet.drop_before_masking: found 1.5",
        ),
    ],
)
def test_a_fleet_that_can_not_be_made_is_refused_in_the_plan_s_words(fleet, said):
    with pytest.raises(PlanError, match=said) as refused:
        resolution.resolve(plan(fleet=fleet))
    assert all(problem.startswith("fleet") for problem in refused.value.problems)


def test_a_dataset_that_does_not_exist_is_refused():
    with pytest.raises(PlanError, match=r"fleet.dataset: there is no 'wines', did you mean 'wine'"):
        resolution.resolve(plan(fleet={"dataset": "wines", "clients": 12}))


def test_a_plan_s_fleet_is_the_one_made_in_python():
    named = simulation("wine", 12, "iid", seed=7)
    assert named.size == CLIENTS
    from_plan = assembly.run(
        plan(fleet={"dataset": "wine", "clients": 12, "partition": "iid", "seed": 7}),
        watch=lambda report: None,
    )
    assert bits(from_plan) == bits(run(plan()))


# --- Stopped and started again


@pytest.mark.parametrize(
    "sections",
    [
        {"privacy": GAUSSIAN, "secure_aggregation": SECAGG},
        {"strategy": {"name": "scaffold"}},
        {"strategy": {"name": "fedadam"}, "task": {"name": "mlp", "inputs": 13, "hidden": [8], "classes": 3}},
        {"strategy": {"name": "fedavg", "momentum": 0.9}, "privacy": CLIPPED, "secure_aggregation": IDEAL},
    ],
)
@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_seeded_run_that_is_stopped_goes_on_to_the_same_bits(tmp_path, sections, stop_after):
    made = plan(rounds={"count": 4, "cohort": 8}, **sections)
    whole = run(made, state=tmp_path / "whole")

    def stop(report):
        if report.version == stop_after:
            raise Stopped

    with pytest.raises(Stopped):
        run(made, state=tmp_path / "stopped", watch=stop)
    seen = []
    again = run(made, state=tmp_path / "stopped", watch=lambda report: seen.append(report.number))
    assert seen == [r.number for r in whole.history if r.base_version >= stop_after]
    assert bits(again) == bits(whole)
    assert again.epsilon == whole.epsilon
    assert [r.metrics for r in again.history] == [r.metrics for r in whole.history]


# --- What clients keep


class Counting:
    """A model whose clients count the rounds they were in, and kept."""

    name, settings, metrics = "counting", {}, ("kept",)
    layout = Layout((("w", (2,)),))

    def initial(self, rng):
        return self.layout.zeros()

    def client(self, data):
        return self

    rules = frozenset({"sgd"})

    def fit(self, parameters, instruction, state):
        seen = state.get("seen", np.zeros((), np.int64))
        update = Update({"delta": np.ones(2, np.float32)}, 1, {"kept": float(seen)})
        return update, {"seen": seen + 1}

    def evaluate(self, parameters, data):
        return {}

    def program_spec(self):
        return ()


def counting(rounds):
    return q.Plan(task=q.Task(Counting()), rounds=q.Rounds(**rounds))


def test_a_model_of_one_s_own_is_trained_client_by_client():
    finished = run(counting({"count": 3, "cohort": 12, "sampling": "fixed"}))
    np.testing.assert_array_equal(finished.model["w"], [3, 3])
    assert [r.metrics["kept"] for r in finished.committed] == [0, 1, 2]


def test_a_state_is_kept_when_the_round_is_committed_and_dropped_when_it_is_aborted():
    everybody = {"count": 1, "cohort": 12, "sampling": "fixed"}
    one = One(counting(everybody))
    names = [one.fleet.member(i) for i in range(12)]
    kept = []
    for number, outcome in enumerate(
        [Outcome.COMMITTED, Outcome.ABORTED, Outcome.COMMITTED, Outcome.COMMITTED], 1
    ):
        one.collect(number, names)
        one.fleet.conclude("run", number, dict.fromkeys(names, outcome))
        kept.append(int(one.fleet._states.get("run", "client-0")["seen"]))
    assert kept == [1, 1, 2, 3]


@pytest.mark.parametrize("sections", [{}, {"privacy": CLIPPED, "secure_aggregation": SECAGG}])
def test_of_an_over_selected_cohort_as_many_are_in_the_sum_as_are_wanted(sections):
    finished = run(plan(rounds={**FIXED, "over_selection": 1.5}, **sections))
    assert [(r.cohort, r.survivors) for r in finished.committed] == [(12, 8)] * 3


def test_who_is_not_in_the_sum_keeps_its_old_state():
    one = One(counting({"count": 1, "cohort": 12, "sampling": "fixed"}), drop_before_masking=0.2)
    names = [one.fleet.member(i) for i in range(12)]
    _, closed = one.collect(1, names)
    one.fleet.conclude("run", 1, dict.fromkeys(closed.survivors, Outcome.COMMITTED))
    assert 0 < len(closed.survivors) < 12
    for name in names:
        assert ("seen" in one.fleet._states.get("run", name)) == (name in closed.survivors)


@pytest.mark.parametrize("summing", [{"protocol": "none"}, SECAGG])
def test_scaffold_s_control_variates_are_kept_on_commit_and_dropped_on_abort(summing):
    one = One(plan(rounds=FIXED, strategy={"name": "scaffold"}, privacy=CLIPPED, secure_aggregation=summing))
    one.collect(1)
    one.fleet.conclude("run", 1, {"client-0": Outcome.ABORTED})
    assert one.fleet._states.get("run", "client-0") == {}
    one.collect(2)
    assert one.fleet._states.get("run", "client-0") == {}
    one.fleet.conclude("run", 2, {"client-0": Outcome.COMMITTED})
    control = one.fleet._states.get("run", "client-0")["control"]
    assert control.shape == (one.plan.task.resolve().layout.size,)
    assert np.abs(control).max() > 0
    assert one.fleet._states.get("run", "client-11") == {}


# --- Every strategy


@cache
def first_loss():
    model = q.models.softmax(64, 10)
    return model.evaluate(model.initial(np.random.default_rng(0)), digits().test)["loss"]


STRATEGIES = {
    "fedavg": {"momentum": 0.5},
    "fedadam": {"learning_rate": 0.1},
    "fedprox": {"mu": 0.1},
    "scaffold": {},
    "median": {},
}
LINEAR = [name for name in STRATEGIES if name != "median"]


@pytest.mark.parametrize(
    ("name", "sections"),
    [(name, {}) for name in STRATEGIES]
    + [(name, {"rounds": {"count": 10, "cohort": 10, "weighting": "examples"}}) for name in STRATEGIES]
    + [(name, {"privacy": CLIPPED, "secure_aggregation": IDEAL}) for name in LINEAR],
)
def test_every_strategy_lowers_the_loss(name, sections):
    made = plan(
        task=SOFTMAX_DIGITS,
        training={"learning_rate": 0.3, "epochs": 2},
        strategy={"name": name, **STRATEGIES[name]},
        **{"rounds": {"count": 10, "cohort": 10}, **sections},
    )
    finished = assembly.run(made, fleet=Simulation(digits(), seed=1), watch=lambda report: None)
    losses = [first_loss(), *(r.metrics["loss"] for r in finished.committed)]
    assert losses[-1] < 0.7 * losses[0]
    assert finished.metrics["accuracy"] > 0.5


def test_learning_is_private_and_secure_at_once():
    made = plan(
        task=SOFTMAX_DIGITS,
        rounds={"count": 5, "cohort": 16},
        training={"learning_rate": 0.3, "epochs": 2},
        privacy={**GAUSSIAN, "clip_norm": 2.0, "noise_multiplier": 0.6},
        secure_aggregation=SECAGG,
    )
    source = Simulation(digits(), drop_before_masking=0.03, drop_before_unmasking=0.03, seed=2)
    finished = assembly.run(made, fleet=source, watch=lambda report: None)
    assert finished.metrics["loss"] < 0.8 * first_loss()
    assert finished.epsilon.released > 0
    assert finished.epsilon.server > 0


def test_a_run_that_is_never_quorate_gives_up_with_a_reason():
    made = plan(rounds=FIXED, privacy=CLIPPED, secure_aggregation=IDEAL)
    with pytest.raises(QuorateError, match=r"10 rounds in a row were aborted, .* left after 'update'"):
        run(made, drop_before_masking=0.95)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dataset": "digits"}, "clients: missing; 'digits' is in one place"),
        ({"dataset": "fedprox", "partition": "iid"}, "partition: 'fedprox' has 30 clients of its own"),
        ({"dataset": "fedprox", "options": {"gamma": 1}}, "options.gamma: unknown key"),
    ],
)
def test_data_that_do_not_fit_their_settings_are_refused(settings, said):
    with pytest.raises(PlanError, match=said):
        simulation(**settings)


def test_a_dataset_with_clients_of_its_own_is_told_how_many():
    made = simulation(dataset="fedprox", clients=7, options={"alpha": 0.5})
    assert len(made.data) == 7
    assert "0.5, 1" in made.data.name
