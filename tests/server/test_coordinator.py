"""The round's order of writes, what is charged and refunded, and recovery from a death at every single step.

The coordinator, store, ledger and fleet are the real ones; `Watched` stands around them, notes every call, and can
kill the process (as far as Python can: with a `BaseException` that nobody catches) before or after any of them.
"""

import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from quorate.errors import BudgetExhausted, QuorateError, QuorumNotReached
from quorate.plan import Plan
from quorate.privacy import Ledger
from quorate.randomness import Randomness, generator
from quorate.resolution import terms_hash
from quorate.rounds import Closed, Kind, Outcome
from quorate.server import checkpoints
from quorate.server.coordinator import ATTEMPTS, Coordinator
from quorate.server.selection import FixedSize, TruncatedPoisson
from quorate.server.store import Store, opened
from quorate.server.summing import SummingEngine
from quorate.simulations.source import Simulation
from tests.federations import CLIPPED, GAUSSIAN, IDEAL, SECAGG, plan, wine

CLIENTS = 12
POISSON = {"count": 3, "cohort": 6}
FIXED = {"count": 3, "cohort": 8, "sampling": "fixed"}


class Killed(BaseException):
    """The process is gone."""


@dataclass
class Wire:
    """Notes every call, and kills at one of them.

    Args:
        kill_at: the index of the event; each call is two events, before and after.
    """

    kill_at: int | None = None
    events: list[str] = field(default_factory=list)

    def step(self, event: str) -> None:
        self.events.append(event)
        if len(self.events) - 1 == self.kill_at:
            raise Killed(event)


class Watched:
    """Something real, whose methods are noted; what some of them return is watched as well."""

    def __init__(self, inner, wire: Wire, name: str, methods: dict[str, Callable | None]):
        self._inner, self._wire, self._name, self._methods = inner, wire, name, methods

    def __getattr__(self, attribute):
        found = getattr(self._inner, attribute)
        if attribute not in self._methods:
            return found

        def call(*args, **kwargs):
            label = f"{self._name}.{attribute}"
            self._wire.step(label)
            returned = found(*args, **kwargs)
            watch = self._methods[attribute]
            if watch is not None:
                returned = watch(returned)
            self._wire.step(f"{label} returned")
            return returned

        return call


def watched_store(store, wire):
    return Watched(
        store,
        wire,
        "store",
        {
            "open_round": None,
            "assign": None,
            "commit": None,
            "abort": None,
            "rounds": None,
            "checkpoint": None,
            "journal": lambda journal: Watched(journal, wire, "journal", {"revealing": None}),
        },
    )


def watched_rows(rows, wire):
    return Watched(rows, wire, "ledger", {"append": None, "entries": None})


class WatchedFleet(Watched):
    """A fleet whose sums are watched, too, and that notes of which rounds something has left."""

    def __init__(self, inner, wire, left):
        super().__init__(inner, wire, "fleet", {"conclude": None, "held_out": None})
        self.left, self.assignments = left, []

    def collect(self, assignment, summation, sink, close):
        self._wire.step("fleet.collect")
        self.assignments.append(assignment)
        wire, left = self._wire, self.left

        class Sum(Watched):
            def __init__(self, inner):
                super().__init__(inner, wire, "sum", {"begin": None, "advance": None})

        class Summing:
            session, journal, direct = summation.session, summation.journal, summation.direct

            def server(self, sink):
                return Sum(summation.server(sink))

            def client(self, encoded, randomness):
                return summation.client(encoded, randomness)

        class Sink:
            @property
            def survivors(self):
                return sink.survivors

            def add(self, encoded, members):
                left.add((assignment.run, assignment.round))
                wire.step("sink.add")
                sink.add(encoded, members)

            def result(self):
                return sink.result()

        closed = self._inner.collect(assignment, Summing(), Sink(), close)
        self._wire.step("fleet.collect returned")
        return closed


@dataclass
class Process:
    """One process of a run: everything it has opened."""

    store: Store
    ledger: Ledger | None
    fleet: object
    plan: Plan
    coordinator: Coordinator | None = None

    @property
    def rounds(self):
        return self.store.rounds(self.store.runs()[0].id)

    def close(self):
        self.fleet.close()
        self.store.close()


@contextlib.contextmanager
def process(directory, made: Plan, wire=None, left=None, fleet=None, seed=5, start=True, **options):
    """The parts of a run on a state directory, opened as the assembly does; with a wire, watched."""
    simulation = Simulation(wine(CLIENTS), seed=seed)
    made = made.model_copy(update={"fleet": simulation.section()}).resolved(CLIENTS)
    store = Store(directory)
    run = store.open_run(made.terms().encoded(), terms_hash(made), simulated=seed is not None)
    rows, members = store.ledger(run.id), fleet or simulation.open(made, directory)
    parts = Process(store, None, members, made)
    try:
        watched = store
        if wire is not None:
            watched, rows = watched_store(store, wire), watched_rows(rows, wire)
            members = WatchedFleet(members, wire, set() if left is None else left)
            parts.fleet = members
        if made.privacy.private:
            budget = made.privacy.limit
            parts.ledger = Ledger(rows, delta=made.privacy.delta, budget=budget, simulated=seed is not None)
        sampler = TruncatedPoisson(made.rounds.cohort, made.rounds.largest_cohort)
        if start:
            randomness = Randomness.system() if seed is None else Randomness.from_seed(seed)
            initial = made.task.resolve().model.initial(generator(seed, "initial parameters"))
            parts.coordinator = Coordinator(
                run=run,
                rounds=made.rounds.count,
                engine=SummingEngine(made, run.id, members, CLIENTS, randomness, initial),
                store=watched,
                samplers={
                    Kind.FIT: FixedSize(made.rounds.cohort) if made.rounds.sampling == "fixed" else sampler
                },
                ledger=parts.ledger,
                randomness=randomness,
                **options,
            )
        yield parts
    finally:
        parts.close()


def private(rounds=POISSON, protocol=IDEAL, **more) -> Plan:
    return plan(
        rounds=rounds, privacy={**GAUSSIAN, **more}, secure_aggregation={**protocol, "min_survivors": 3}
    )


class Unreliable:
    """A fleet that loses the quorum in the rounds that `fails` names: before anything was revealed, or after."""

    def __init__(self, inner, fails):
        self._inner, self._fails, self.assignments = inner, fails, []

    def __getattr__(self, attribute):
        return getattr(self._inner, attribute)

    def collect(self, assignment, summation, sink, close) -> Closed:
        self.assignments.append(assignment)
        match self._fails(assignment.round):
            case "before":
                raise QuorumNotReached("mask", 2, 3)
            case "after":
                summation.journal.revealing()
                raise QuorumNotReached("unmask", 2, 3)
        return self._inner.collect(assignment, summation, sink, close)


def unreliable(directory, made, fails, seed=5) -> Unreliable:
    resolved = made.resolved(CLIENTS)
    return Unreliable(Simulation(wine(CLIENTS), seed=seed).open(resolved, directory), fails)


# --- The order of a round


def order(events: list[str], *wanted: str) -> list[str]:
    """The events that are asked for, in the order in which they began; what repeats itself stands there once."""
    return [event for event, _ in itertools.groupby(event for event in events if event in wanted)]


STEPS = (
    "store.open_round",
    "ledger.append",
    "store.assign",
    "fleet.collect",
    "journal.revealing",
    "sink.add",
    "store.commit",
    "fleet.conclude",
)


@pytest.mark.parametrize("protocol", [IDEAL, SECAGG])
def test_what_leaves_is_written_first(tmp_path, protocol):
    wire = Wire()
    with process(tmp_path, private(FIXED, protocol), wire) as parts:
        wire.events.clear()
        parts.coordinator.round()
    assert order(wire.events, *STEPS) == list(STEPS)
    for written, done in (
        ("ledger.append returned", "fleet.collect"),
        ("store.assign returned", "fleet.collect"),
        ("journal.revealing returned", "sink.add"),
    ):
        assert wire.events.index(written) < wire.events.index(done)
    assert wire.events.index("store.commit returned") < wire.events.index("fleet.conclude")


def test_a_round_is_published_after_the_members_were_told(tmp_path):
    wire, said = Wire(), []

    def publish(state, report):
        said.append((state.version, report.number, wire.events[-1]))

    with process(tmp_path, plan(rounds=FIXED), wire, publish=publish) as parts:
        parts.coordinator.round()
    assert said == [(1, 1, "fleet.conclude returned")]


def test_without_privacy_nothing_is_charged(tmp_path):
    wire = Wire()
    with process(tmp_path, plan(rounds=FIXED), wire) as parts:
        report = parts.coordinator.round()
        assert parts.coordinator.spent() is None
    assert report.epsilons is None
    assert "ledger.append" not in wire.events


def test_a_report_says_how_the_round_went(tmp_path):
    with process(tmp_path, private(FIXED)) as parts:
        report = parts.coordinator.round()
        assert (report.number, report.version, report.outcome) == (1, 1, Outcome.COMMITTED)
        assert (report.cohort, report.survivors, report.lost) == (8, 8, {})
        assert set(report.metrics) == {"loss", "accuracy"}
        assert report.epsilons == parts.ledger.spent()
        (past,) = parts.rounds
    assert past.epsilons == {"released": report.epsilons.released, "server": report.epsilons.server}
    assert past.metrics == report.metrics


def test_a_run_commits_as_many_rounds_as_the_plan_says(tmp_path):
    reports = []
    with process(tmp_path, plan(rounds=FIXED), watch=reports.append) as parts:
        parts.coordinator.run_to_end()
        assert [past.status for past in parts.rounds] == ["committed"] * 3
    assert [report.version for report in reports] == [1, 2, 3]


def test_an_assignment_holds_the_exact_terms_and_their_hash(tmp_path):
    made = private(FIXED)
    with process(tmp_path, made, Wire()) as parts:
        parts.coordinator.round()
        (assignment,) = parts.fleet.assignments
        resolved = parts.plan
    assert assignment.terms == resolved.terms().encoded()
    assert assignment.terms_hash.hex() == terms_hash(resolved)
    assert assignment.bounds == resolved.bounds(CLIENTS)
    assert (assignment.round, assignment.base_version) == (1, 0)
    assert assignment.broadcast.instruction.settings["epochs"] == 1


def test_every_charge_names_the_whole_cohort(tmp_path):
    with process(tmp_path, private(), Wire()) as parts:
        parts.coordinator.run_to_end()
        rows = [json.loads(row) for row in parts.store.ledger(parts.store.runs()[0].id).entries()]
    charged = {row["round"]: row["members"] for row in rows if row["kind"] == "reserve"}
    for assignment in parts.fleet.assignments:
        assert charged[assignment.round] == sorted(assignment.members)


# --- Aborted rounds


def test_a_charge_comes_back_when_nothing_was_revealed(tmp_path):
    made = private(FIXED)
    fleet = unreliable(tmp_path, made, {1: "before"}.get)
    with process(tmp_path, made, fleet=fleet) as parts:
        report = parts.coordinator.round()
        assert report.outcome is Outcome.ABORTED
        assert report.reason == "the round is not quorate: 2 members were left after 'mask', 3 are needed"
        assert not parts.ledger.is_charged(1)
        assert parts.ledger.spent().released == 0
        assert [(past.status, past.revealing) for past in parts.rounds] == [("aborted", False)]


def test_a_charge_stays_when_something_may_have_been_revealed(tmp_path):
    made = private(FIXED)
    fleet = unreliable(tmp_path, made, {1: "after"}.get)
    with process(tmp_path, made, fleet=fleet) as parts:
        assert parts.coordinator.round().outcome is Outcome.ABORTED
        assert parts.ledger.is_charged(1)
        assert [(past.status, past.revealing) for past in parts.rounds] == [("aborted", True)]
        spent = parts.ledger.spent()
        parts.coordinator.round()
        assert parts.ledger.spent().released > spent.released > 0


def test_a_cohort_below_the_quorum_is_not_even_asked(tmp_path):
    made = private({"count": 1, "cohort": 3})
    with process(tmp_path, made, Wire(), seed=11) as parts:
        reports = [parts.coordinator.round() for _ in range(12)]
        numbers = {r.number for r in reports if "selection" in (r.reason or "")}
        asked = {assignment.round for assignment in parts.fleet.assignments}
        assert numbers
        assert not numbers & asked
        assert not any(parts.ledger.is_charged(number) for number in numbers)


def test_a_retried_round_has_a_new_number_and_new_randomness(tmp_path):
    made = private({"count": 1, "cohort": 8})
    fleet = unreliable(tmp_path, made, {1: "before", 2: "after"}.get)
    with process(tmp_path, made, fleet=fleet) as parts:
        parts.coordinator.run_to_end()
        assert [past.status for past in parts.rounds] == ["aborted", "aborted", "committed"]
        assert [past.base_version for past in parts.rounds] == [0, 0, 0]
    assert [assignment.round for assignment in fleet.assignments] == [1, 2, 3]
    assert len({assignment.members for assignment in fleet.assignments}) == 3
    assert len({a.broadcast.public.rotation_seed for a in fleet.assignments}) == 3
    assert len({a.broadcast.instruction.seed for a in fleet.assignments}) == 3
    assert len({a.broadcast.digest() for a in fleet.assignments}) == 3


def test_a_run_gives_up_when_no_round_is_quorate(tmp_path):
    made = plan(rounds=FIXED)
    fleet = unreliable(tmp_path, made, lambda number: "before")
    with process(tmp_path, made, fleet=fleet) as parts:
        with pytest.raises(
            QuorateError, match=rf"{ATTEMPTS} rounds in a row were aborted, .* can be started again"
        ):
            parts.coordinator.run_to_end()
        assert len(parts.rounds) == ATTEMPTS


def test_only_aborted_rounds_in_a_row_make_a_run_give_up(tmp_path):
    made = plan(rounds={**FIXED, "count": 3})
    fleet = unreliable(tmp_path, made, lambda number: "before" if number % ATTEMPTS else None)
    with process(tmp_path, made, fleet=fleet) as parts:
        parts.coordinator.run_to_end()
        assert len(parts.rounds) == 3 * ATTEMPTS


def test_an_error_of_the_fleet_leaves_the_round_open_for_the_next_start(tmp_path):
    class Broken(Unreliable):
        def collect(self, assignment, summation, sink, close):
            raise ConnectionError("the network is down")

    made = private(FIXED)
    fleet = Broken(Simulation(wine(CLIENTS), seed=5).open(made.resolved(CLIENTS), tmp_path), None)
    with process(tmp_path, made, fleet=fleet) as parts, pytest.raises(ConnectionError):
        parts.coordinator.run_to_end()
    with process(tmp_path, made) as parts:
        assert [past.status for past in parts.rounds] == ["aborted"]
        assert parts.rounds[0].reason == "the coordinator was stopped in this round"
        assert parts.ledger.spent().released == 0


# --- The budget


def test_a_round_that_would_pass_the_budget_is_not_started(tmp_path):
    made = private(FIXED)
    with process(tmp_path / "free", made) as parts:
        first = parts.coordinator.round().epsilons.released
        second = parts.coordinator.round().epsilons.released
    limited = private(FIXED, budget=(first + second) / 2)
    wire = Wire()
    with process(tmp_path / "limited", limited, wire) as parts:
        parts.coordinator.round()
        wire.events.clear()
        written = list(parts.store.ledger(parts.store.runs()[0].id).entries())
        with pytest.raises(BudgetExhausted, match=r"above the budget of .*; spent so far"):
            parts.coordinator.run_to_end()
        assert parts.store.ledger(parts.store.runs()[0].id).entries() == written
        assert not order(wire.events, "ledger.append", "fleet.collect", "journal.revealing", "store.commit")
        assert [past.status for past in parts.rounds] == ["committed", "aborted"]
        assert "above the budget" in parts.rounds[-1].reason
        assert parts.ledger.spent().released == first


def test_an_exhausted_budget_is_still_exhausted_after_a_restart(tmp_path):
    limited = private(FIXED, budget=1e-3)
    for _ in range(2):
        with process(tmp_path, limited, Wire()) as parts:
            with pytest.raises(BudgetExhausted):
                parts.coordinator.run_to_end()
            assert parts.fleet.assignments == []
            assert parts.ledger.spent().released == 0


# --- A death at every step


@dataclass
class Story:
    """What a run on a state directory came to, over all its processes."""

    left: set = field(default_factory=set)
    committed: dict = field(default_factory=dict)

    def look(self, directory, made):
        """What a restart would find: nothing that was committed may have changed."""
        with opened(directory) as store:
            (run,) = store.runs()
            rounds = store.rounds(run.id)
            now = {past.number: past for past in rounds if past.status == "committed"}
            assert {number: now[number] for number in self.committed} == self.committed
            self.committed = now
            found = store.checkpoint(run.id)
            assert (0 if found is None else found[0]) == len(now)
            delta = made.resolved(CLIENTS).privacy.delta
            ledger = Ledger(store.ledger(run.id), delta=delta, budget=made.privacy.limit, simulated=True)
            charged = {past.number for past in rounds if ledger.is_charged(past.number)}
            assert {number for _, number in self.left} <= charged


def uninterrupted(directory, made):
    wire = Wire()
    with process(directory, made, wire) as parts:
        parts.coordinator.run_to_end()
        return wire.events, parts.ledger.spent(), parts.coordinator.state


def killed_and_finished(directory, made, kills):
    """Runs with a death at each of `kills` (an event's index, in one process after the other), then to the end."""
    story = Story()
    for kill_at in [*kills, None]:
        wire = Wire(kill_at)
        try:
            with process(directory, made, wire, story.left) as parts:
                parts.coordinator.run_to_end()
                assert kill_at is None or kill_at >= len(wire.events)
                return story, parts.rounds, parts.ledger.spent(), parts.coordinator.state, wire
        except Killed:
            pass
        story.look(directory, made)
    raise AssertionError("the last process is not killed")


def check_a_death(directory, made, kills, whole):
    _, spent, state = whole
    story, rounds, now, end, _ = killed_and_finished(directory, made, kills)
    committed = [past for past in rounds if past.status == "committed"]
    assert len(committed) == made.rounds.count
    assert {past.number for past in rounds} == set(range(1, len(rounds) + 1))
    assert all(past.status in ("committed", "aborted") for past in rounds)
    assert now.released >= spent.released
    story.look(directory, made)
    if len(rounds) == made.rounds.count:  # no round was aborted: the same run, to the bit
        assert checkpoints.encode(end) == checkpoints.encode(state)


@pytest.mark.parametrize("protocol", [IDEAL, SECAGG], ids=["ideal", "secagg"])
def test_a_coordinator_that_is_killed_at_any_step_loses_nothing_and_charges_everything(tmp_path, protocol):
    made = private({"count": 2, "cohort": 6}, protocol)
    whole = uninterrupted(tmp_path / "whole", made)
    assert len(whole[0]) > 30
    for kill_at in range(len(whole[0])):
        check_a_death(tmp_path / str(kill_at), made, [kill_at], whole)


def test_a_coordinator_that_is_killed_while_it_recovers_recovers_all_the_same(tmp_path):
    made = private({"count": 2, "cohort": 6})
    whole = uninterrupted(tmp_path / "whole", made)
    first = whole[0].index(
        "journal.revealing returned"
    )  # killed with an open round that may have released something
    for early in (first, whole[0].index("fleet.collect")):
        for kill_at in range(24):
            check_a_death(tmp_path / f"{early}-{kill_at}", made, [early, kill_at], whole)


def test_a_killed_round_that_revealed_nothing_is_refunded(tmp_path):
    made = private(FIXED)
    events, _, _ = uninterrupted(tmp_path / "whole", made)
    kill_at = events.index("fleet.collect")
    _, rounds, _, _, _ = killed_and_finished(tmp_path / "killed", made, [kill_at])
    with process(tmp_path / "killed", made, start=False) as parts:
        assert [past.number for past in rounds if not parts.ledger.is_charged(past.number)] == [1]


def test_a_killed_round_that_may_have_revealed_something_stays_charged(tmp_path):
    made = private({"count": 3, "cohort": 8})
    events, spent, _ = uninterrupted(tmp_path / "whole", made)
    kill_at = events.index("journal.revealing returned")
    _, rounds, now, _, _ = killed_and_finished(tmp_path / "killed", made, [kill_at])
    assert [past.status for past in rounds] == ["aborted", "committed", "committed", "committed"]
    assert now.released > spent.released


def test_members_are_told_again_how_the_last_rounds_ended(tmp_path):
    made = plan(rounds={"count": 3, "cohort": CLIENTS, "sampling": "fixed"})
    dropping = Simulation(wine(CLIENTS), seed=5, drop_before_masking=0.2)
    seeded = made.model_copy(update={"fleet": dropping.section()}).resolved(CLIENTS)
    with process(tmp_path, made, fleet=dropping.open(seeded, tmp_path)) as parts:
        report = parts.coordinator.round()
        cohort = set(parts.store.outcomes(parts.store.runs()[0].id, 1))
    told = []

    class Listening(Unreliable):
        def conclude(self, run, number, outcomes):
            told.append((number, outcomes))

    fleet = Listening(Simulation(wine(CLIENTS), seed=5).open(made.resolved(CLIENTS), tmp_path), None)
    with process(tmp_path, made, fleet=fleet, start=False) as parts:
        run = parts.store.runs()[0].id
        parts.store.assign(run, parts.store.open_round(run, 1), ["client-3", "client-4"])
    fleet = Listening(Simulation(wine(CLIENTS), seed=5).open(made.resolved(CLIENTS), tmp_path), None)
    with process(tmp_path, made, fleet=fleet):
        (second, aborted), (first, committed) = told
    assert (second, aborted) == (2, {"client-3": Outcome.ABORTED, "client-4": Outcome.ABORTED})
    assert first == 1
    assert set(committed) == cohort
    assert len(cohort) == CLIENTS
    assert Counter(committed.values())[Outcome.COMMITTED] == report.survivors < CLIENTS


def test_a_finished_run_starts_no_round_again(tmp_path):
    made = plan(rounds=FIXED)
    with process(tmp_path, made) as parts:
        parts.coordinator.run_to_end()
        state = parts.coordinator.state
    with process(tmp_path, made, Wire()) as parts:
        parts.coordinator.run_to_end()
        assert parts.fleet.assignments == []
        assert checkpoints.encode(parts.coordinator.state) == checkpoints.encode(state)


def test_an_unseeded_run_draws_anew_each_time(tmp_path):
    made, drawn = private(FIXED), []
    for name in ("one", "two"):
        with process(tmp_path / name, made, Wire(), seed=None) as parts:
            parts.coordinator.round()
            drawn += parts.fleet.assignments
            assert not parts.ledger.spent().simulated
    first, second = drawn
    assert first.broadcast.public.rotation_seed != second.broadcast.public.rotation_seed
    assert first.broadcast.instruction.seed is None


def test_a_committed_state_is_what_the_store_holds(tmp_path):
    made = plan(rounds=FIXED, privacy=CLIPPED)
    with process(tmp_path, made) as parts:
        before = np.array(parts.coordinator.state.parameters.vector)
        parts.coordinator.round()
        after = parts.coordinator.state.parameters.vector
        assert not np.array_equal(before, after)
        version, state = parts.store.checkpoint(parts.store.runs()[0].id)
        assert (version, state) == (1, checkpoints.encode(parts.coordinator.state))
