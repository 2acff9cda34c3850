"""The store: one writer, transactions, numbers that are never used twice, and checkpoints to the bit."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quorate.engine import RunState
from quorate.errors import StateError
from quorate.parameters import Layout
from quorate.rounds import Kind, Outcome
from quorate.server import checkpoints, records
from quorate.server.faults import Point
from quorate.server.records import PopulationBudget, RunStatus
from quorate.server.store import Store, opened
from quorate.strategies import server_rules

CLOSED = {
    "cohort": 5,
    "survivors": ("a", "b", "c", "d"),
    "lost": {"mask": 1},
    "metrics": {"loss": 0.1},
    "epsilons": {"released": 0.5},
}


@dataclass(frozen=True)
class Place:
    """Where a state is kept."""

    directory: Path
    url: str | None = None

    def store(self) -> Store:
        return Store(self.directory, database=self.url)

    def opened(self) -> contextlib.AbstractContextManager[Store]:
        return opened(self.directory, self.url)

    @property
    def arguments(self) -> list[str]:
        return [str(self.directory), *([self.url] if self.url else [])]


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request, tmp_path):
    if request.param == "sqlite":
        return Place(tmp_path / "state")
    return Place(tmp_path / "state", request.getfixturevalue("postgresql").fresh())


@pytest.fixture
def store(place):
    made = place.store()
    yield made
    made.close()


@pytest.fixture
def run(store):
    return store.open_run(b"terms", "ab" * 32, simulated=False).id


def commit(store, run, number, version=1, state=b"state", **changes):
    store.commit(run, number, version=version, state=state, **{**CLOSED, **changes})


# --- One writer, many readers


HOLD = """
import sys
from quorate.server.store import Store
store = Store(sys.argv[1], database=(*sys.argv, None)[2])
print("held", flush=True)
sys.stdin.read()
"""
TAKE = """
import sys
from quorate.errors import StateError
from quorate.server.store import Store
try:
    Store(sys.argv[1], database=(*sys.argv, None)[2])
except StateError as refused:
    print(refused)
"""


def test_a_second_process_is_refused_and_told_why(store, place):
    other = subprocess.run(
        [sys.executable, "-c", TAKE, *place.arguments], capture_output=True, text=True, timeout=60
    )
    assert "is in use by another process" in other.stdout
    assert other.stderr == ""


def test_a_process_that_dies_gives_the_state_back(place):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, *place.arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StateError, match="in use"):
            place.store()
    finally:
        holder.kill()
        holder.communicate()
    opened_when_the_lock_is_free(place).close()


def opened_when_the_lock_is_free(place):
    """A server of databases notices a moment later that a process has died."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return place.store()
        except StateError:
            if place.url is None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_a_second_writer_in_this_process_is_refused_too(store, place):
    with pytest.raises(StateError, match="in use"):
        place.store()


def test_two_writers_in_two_directories_can_t_share_a_database(store, place, tmp_path):
    if place.url is None:
        pytest.skip("SQLite is in the directory")
    with pytest.raises(StateError, match="the database is in use by another process"):
        Store(tmp_path / "other", database=place.url)


def test_who_lost_the_lock_without_a_word_writes_nothing_more(store, run, place, postgresql, tmp_path):
    """Its connection was cut; another took the database, and has its own round open."""
    if place.url is None:
        pytest.skip("the lock of a file is not lost")
    number = store.open_round(run, 0)
    postgresql.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
    )
    with contextlib.closing(opened_when_the_lock_is_free(Place(tmp_path / "other", place.url))) as other:
        for write in (lambda: commit(store, run, number), lambda: store.journal(run, number).revealing()):
            with pytest.raises(
                StateError, match="was taken over by another process; nothing more is written"
            ):
                write()
        other.abort(run, number, "the coordinator was stopped in this round")
        assert [past.status for past in other.rounds(run)] == ["aborted"]


def test_a_database_that_went_away_is_said_so(store, run, place, postgresql):
    if place.url is None:
        pytest.skip("a file does not go away")
    with store._database.reading() as connection:
        postgresql.execute(f"ALTER DATABASE {place.url.split('/')[3].split('?')[0]} ALLOW_CONNECTIONS false")
        postgresql.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'fresh%'"
        )
        assert connection is not None
        with pytest.raises(StateError, match="the database can't be used"):
            store.runs()


@pytest.mark.parametrize("url", ["mysql://localhost/quorate", "quorate", "postgresql"])
def test_a_url_of_another_kind_is_refused(tmp_path, url):
    with pytest.raises(StateError, match="accepted: postgresql://USER@HOST/NAME"):
        Store(tmp_path, database=url)


def test_a_url_is_not_repeated_with_its_password(tmp_path):
    with pytest.raises(StateError) as refused:
        Store(tmp_path, database="mysql://quorate:secret@localhost/quorate")
    assert "secret" not in str(refused.value)


def test_what_is_opened_to_be_read_is_not_written_to(store, run, place):
    with place.opened() as reader, pytest.raises(StateError, match="to be read, not to be written to"):
        reader.open_round(run, 0)


def test_a_closed_store_can_be_opened_again(place):
    place.store().close()
    place.store().close()


def test_readers_see_what_is_committed_while_a_writer_is_open(store, run, place):
    with place.opened() as reader:
        assert reader.rounds(run) == []
        number = store.open_round(run, 0)
        assert reader.rounds(run)[0].status == "open"
        commit(store, run, number)
        assert reader.rounds(run)[0].status == "committed"
        assert reader.run(run).committed == 1


def test_a_reader_does_not_wait_for_a_transaction_of_the_writer(store, run, place):
    with store._database.writing(Point.COMMIT) as connection:
        connection.exec_driver_sql("UPDATE runs SET status = 'finished'")
        with place.opened() as reader:
            assert reader.run(run).status == RunStatus.OPEN


def test_a_directory_without_state_is_not_made_into_one_by_looking(tmp_path):
    with pytest.raises(StateError, match="there is no state in"), opened(tmp_path / "nowhere"):
        pass
    assert not (tmp_path / "nowhere").exists()


def test_a_state_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "quorate.sqlite").write_bytes(b"something else entirely" * 100)
    with pytest.raises(StateError, match=r"can't be used: file is not a database"):
        Store(tmp_path)
    (tmp_path / "quorate.sqlite").unlink()
    Store(tmp_path).close()  # the lock was given back


def test_a_path_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "state").write_text("")
    with pytest.raises(StateError, match="can't be used"):
        Store(tmp_path / "state")


def test_what_is_written_is_synced_to_the_disk(store, place):
    with store._database.engine.connect() as connection:
        if place.url is not None:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
            return
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


# --- Runs


def test_the_same_terms_are_the_same_run(store):
    first = store.open_run(b"terms", "ab" * 32, simulated=True)
    assert store.open_run(b"terms", "ab" * 32, simulated=True) == first
    assert store.open_run(b"other", "cd" * 32, simulated=True).id != first.id
    assert [run.terms for run in store.runs()] == [b"terms", b"other"]


def test_a_run_outlives_the_store(place):
    first = place.store()
    run = first.open_run(b"terms", "ab" * 32, simulated=True)
    first.finish(run.id)
    first.close()
    second = place.store()
    assert second.run(run.id[:4]).status == RunStatus.FINISHED
    second.close()


def test_a_run_that_is_not_there_is_refused_with_those_that_are(store, run):
    with pytest.raises(StateError, match=f"no run with an id that begins with 'zz'; these exist: {run}"):
        store.run("zz")


def test_a_prefix_of_two_runs_is_refused(store, run):
    store.open_run(b"other", "cd" * 32, simulated=True)
    with pytest.raises(StateError, match="2 runs with an id that begins with ''"):
        store.run("")


def test_a_prefix_is_not_a_pattern(store, run):
    with pytest.raises(StateError, match="no run"):
        store.run("%")


# --- Populations

PHONES = PopulationBudget("phones", 4.0, 1e-5)


def test_runs_over_a_population_count_towards_one_budget_for_good(place):
    first = place.store()
    one = first.open_run(b"terms", "ab" * 32, simulated=True, budget=PHONES)
    two = first.open_run(b"other", "cd" * 32, simulated=True, budget=PHONES)
    apart = first.open_run(b"apart", "ef" * 32, simulated=True)
    assert [run.population for run in (one, two, apart)] == ["phones", "phones", None]
    first.ledger(one.id).append(b"row")
    first.close()
    second = place.store()
    assert second.populations() == [PHONES]
    account = second.account("phones")
    assert (account.epsilon, account.delta) == (4.0, 1e-5)
    assert second.account("phones") is account
    assert [rows.entries() for rows in second._ledgers("phones")] == [[b"row"], []]
    second.close()


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        (None, "found no population, but run .* counts towards the budget of 'phones'"),
        (PopulationBudget("tablets", 9.0, 1e-5), "found the population 'tablets', but run"),
        (
            PopulationBudget("phones", 9.0, 1e-5),
            "found 9 at delta 1e-05, but .* share a budget of 4 at delta",
        ),
        (PopulationBudget("phones", 4.0, 1e-4), "found 4 at delta 0.0001"),
    ],
)
def test_no_run_leaves_its_population_and_no_budget_grows(store, budget, says):
    run = store.open_run(b"terms", "ab" * 32, simulated=True, budget=PHONES)
    with pytest.raises(StateError, match=says):
        store.open_run(b"terms", "ab" * 32, simulated=True, budget=budget)
    assert store.run(run.id).population == "phones"
    assert store.populations() == [PHONES]


def test_a_run_that_joins_a_population_brings_what_it_has_spent(store, run):
    store.ledger(run).append(b"row")
    assert store.open_run(b"terms", "ab" * 32, simulated=False, budget=PHONES).population == "phones"
    assert [rows.entries() for rows in store._ledgers("phones")] == [[b"row"]]


def test_a_run_that_is_refused_is_not_made(store):
    store.open_run(b"terms", "ab" * 32, simulated=True, budget=PHONES)
    with pytest.raises(StateError, match="share a budget of 4"):
        store.open_run(b"other", "cd" * 32, simulated=True, budget=PopulationBudget("phones", 8.0, 1e-5))
    assert len(store.runs()) == 1


# --- Rounds


def test_round_numbers_are_never_used_twice(place):
    numbers = []
    for end in ("commit", "abort", "leave open"):
        store = place.store()
        run = store.open_run(b"terms", "ab" * 32, simulated=True).id
        numbers.append(store.open_round(run, 0))
        if end == "commit":
            commit(store, run, numbers[-1])
        elif end == "abort":
            store.abort(run, numbers[-1], "because")
        store.close()
    store = place.store()
    assert [*numbers, store.open_round(run, 0)] == [1, 2, 3, 4]
    store.close()


def test_each_run_counts_its_own_rounds(store, run):
    other = store.open_run(b"other", "cd" * 32, simulated=True).id
    assert [store.open_round(run, 0), store.open_round(other, 0), store.open_round(run, 0)] == [1, 1, 2]


def test_a_committed_round_keeps_what_was_said_of_it(store, run):
    commit(store, run, store.open_round(run, 0))
    (past,) = store.rounds(run)
    assert (past.number, past.base_version, past.status, past.revealing) == (1, 0, "committed", False)
    assert {name: getattr(past, name) for name in CLOSED} == {**CLOSED, "survivors": 4}
    assert past.opened <= past.closed


def test_an_aborted_round_keeps_its_reason(store, run):
    store.abort(run, store.open_round(run, 0), "too few")
    (past,) = store.rounds(run)
    assert (past.status, past.reason, past.survivors) == ("aborted", "too few", None)


def test_a_committed_round_never_changes(store, run):
    number = store.open_round(run, 0)
    commit(store, run, number)
    before = store.rounds(run)
    store.abort(run, number, "too late")
    with pytest.raises(StateError, match=r"round 1 of run .* is not open"):
        commit(store, run, number, version=2, state=b"another")
    with pytest.raises(StateError, match="is not open"):
        store.journal(run, number).revealing()
    assert store.rounds(run) == before
    assert store.checkpoint(run) == (1, b"state")


def test_an_aborted_round_can_not_be_committed(store, run):
    number = store.open_round(run, 0)
    store.abort(run, number, "because")
    with pytest.raises(StateError, match="is not open"):
        commit(store, run, number)
    assert store.checkpoint(run) is None


def test_a_round_that_was_never_opened_can_not_be_committed(store, run):
    with pytest.raises(StateError, match="round 7"):
        commit(store, run, 7)


def test_who_took_part_learns_how_a_round_ended_for_it(store, run):
    number = store.open_round(run, 0)
    store.assign(run, number, ["a", "b", "c"])
    assert store.outcomes(run, number) == {}
    assert store.outcome(run, number, "a") is None
    commit(store, run, number, survivors=["a", "c"])
    assert store.outcomes(run, number) == {
        "a": Outcome.COMMITTED,
        "b": Outcome.ABORTED,
        "c": Outcome.COMMITTED,
    }
    assert store.outcome(run, number, "b") is Outcome.ABORTED
    assert store.outcome(run, number, "somebody else") is None
    assert store.outcome("another run", number, "a") is None


def test_an_aborted_round_is_aborted_for_everybody(store, run):
    number = store.open_round(run, 0)
    store.assign(run, number, ["a", "b"])
    store.abort(run, number, "because")
    assert store.outcomes(run, number) == dict.fromkeys("ab", Outcome.ABORTED)


def test_a_commit_that_fails_puts_nobody_in_a_sum(store, run):
    number = store.open_round(run, 0)
    store.assign(run, number, ["a"])
    with pytest.raises((sa.exc.StatementError, TypeError)):
        commit(store, run, number, survivors=["a"], state=object())
    store.abort(run, number, "because")
    assert store.outcome(run, number, "a") is Outcome.ABORTED


def test_a_cohort_is_noted_for_rounds_that_exist_only(store, run):
    with pytest.raises(sa.exc.IntegrityError, match=r"(?i)foreign key"):
        store.assign(run, 7, ["a"])


def test_the_journal_is_there_when_it_was_written(store, run, place):
    number = store.open_round(run, 0)
    store.journal(run, number).revealing()
    with place.opened() as reader:
        assert [past.revealing for past in reader.rounds(run)] == [True]


def test_the_journal_of_a_round_that_is_not_open_is_refused(store, run):
    with pytest.raises(StateError, match=r"round 3 of run .* is not open"):
        store.journal(run, 3).revealing()


def test_commit_and_checkpoint_are_one_transaction(store, run):
    commit(store, run, store.open_round(run, 0))
    number = store.open_round(run, 1)
    with pytest.raises((sa.exc.StatementError, TypeError)):
        commit(store, run, number, version=2, state=object())
    assert [past.status for past in store.rounds(run)] == ["committed", "open"]
    assert store.checkpoint(run) == (1, b"state")


def test_a_checkpoint_replaces_the_one_before_it(store, run):
    for version in (1, 2, 3):
        commit(store, run, store.open_round(run, version - 1), version=version, state=b"%d" % version)
    assert store.checkpoint(run) == (3, b"3")
    with store._database.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM checkpoints").scalar() == 1


# --- The ledger's rows and versions


def test_ledger_rows_come_back_in_order_and_apart_by_run(store, run):
    other = store.open_run(b"other", "cd" * 32, simulated=True).id
    for row in (b"first", b"second"):
        store.ledger(run).append(row)
        store.ledger(other).append(row.upper())
    assert store.ledger(run).entries() == [b"first", b"second"]
    assert store.ledger(other).entries() == [b"FIRST", b"SECOND"]


def test_a_ledger_row_of_a_run_that_does_not_exist_is_refused(store):
    with pytest.raises(sa.exc.IntegrityError, match=r"(?i)foreign key"):
        store.ledger("nobody").append(b"row")


def test_a_version_is_noted_once_a_round_and_registry(store, run):
    for version in (1, 1):
        store.record_version(run, 3, "registry", "digits", version)
    store.record_version(run, 3, "elsewhere", "digits", 9)
    noted = {(v["round"], v["registry"], v["version"]) for v in store.versions(run)}
    assert noted == {(3, "registry", 1), (3, "elsewhere", 9)}
    assert len(store.versions(run)) == 2


def test_a_store_in_memory_keeps_the_same_things():
    store = Store(None)
    run = store.open_run(b"terms", "ab" * 32, simulated=True).id
    commit(store, run, store.open_round(run, 0))
    assert store.checkpoint(run) == (1, b"state")
    store.close()


# --- Checkpoints


arrays = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.int64]),
    hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4),
).flatmap(lambda array: st.sampled_from([array, np.asfortranarray(array), array.T]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(
    vector=hnp.arrays(np.uint32, 6),
    server=st.dictionaries(st.from_regex(r"[a-z.]{1,8}", fullmatch=True), arrays, max_size=3),
)
def test_a_state_comes_back_from_the_store_to_the_same_bits(store, run, vector, server):
    layout = Layout((("weight", (2, 2)), ("bias", (2,))))
    state = RunState(3, layout.unflatten(vector.view(np.float32)), server)
    commit(store, run, store.open_round(run, 2), version=3, state=checkpoints.encode(state))
    read = checkpoints.decode(*store.checkpoint(run), layout)
    assert read.version == 3
    assert read.parameters.vector.tobytes() == state.parameters.vector.tobytes()
    assert set(read.own) == set(server)
    for name, array in server.items():
        assert (read.own[name].dtype, read.own[name].shape) == (array.dtype, array.shape)
        assert read.own[name].tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "rule",
    [
        server_rules.sgd(0.5, 0.9),
        server_rules.adam(),
        server_rules.control_variate(server_rules.sgd()),
    ],
)
def test_a_server_rule_goes_on_from_a_checkpoint_to_the_same_bits(rule):
    layout = Layout((("w", (4,)),))
    rng = np.random.default_rng(0)
    means = [{name: rng.standard_normal(4) for name in ("delta", "control")} for _ in range(6)]
    straight = broken = RunState(0, layout.zeros(), rule.init(layout))

    def step(state, mean):
        server, x = rule.update(state.own, state.parameters.vector, mean, fraction_of_population=0.3)
        return RunState(state.version + 1, layout.unflatten(x), server)

    for mean in means:
        straight = step(straight, mean)
        broken = checkpoints.decode(broken.version + 1, checkpoints.encode(step(broken, mean)), layout)
    assert checkpoints.encode(broken) == checkpoints.encode(straight)


def test_equal_states_have_equal_bytes_whatever_the_order():
    layout = Layout((("w", (2,)),))
    one, two = np.ones(2, np.float32), np.zeros(3)
    first = RunState(1, layout.zeros(), {"a": one, "b": two})
    second = RunState(1, layout.zeros(), {"b": two, "a": one})
    assert checkpoints.encode(first) == checkpoints.encode(second)


def test_an_evaluation_is_a_round_that_leaves_version_checkpoint_and_separation_as_they_were(store, run):
    commit(store, run, store.open_round(run, 0))
    number = store.open_round(run, 1, Kind.EVALUATE)
    store.assign(run, number, ["e", "f"])
    commit(store, run, number, state=None, survivors=("e", "f"), metrics={"federated/loss": 0.2})
    assert [(past.kind, past.base_version) for past in store.rounds(run)] == [
        (Kind.FIT, 0),
        (Kind.EVALUATE, 1),
    ]
    assert store.run(run).committed == 1
    assert store.checkpoint(run) == (1, b"state")
    assert store.members_in_sums(run, 1) == set()
    assert store.outcomes(run, number) == {"e": Outcome.COMMITTED, "f": Outcome.COMMITTED}
    rounds = store.rounds(run)
    assert records.evaluated(rounds) == 1
    assert records.measured(rounds) == {"loss": 0.1, "federated/loss": 0.2}
    commit(store, run, store.open_round(run, 1), version=2)
    assert records.measured(store.rounds(run)) == {"loss": 0.1}


def test_the_database_can_be_read_with_plain_sqlite(tmp_path):
    with contextlib.closing(Store(tmp_path / "state")) as store:
        run = store.open_run(b"terms", "ab" * 32, simulated=False).id
        commit(store, run, store.open_round(run, 0))
    plain = sqlite3.connect(os.fspath(tmp_path / "state" / "quorate.sqlite"))
    assert plain.execute("SELECT number, status FROM rounds").fetchall() == [(1, "committed")]
    plain.close()
