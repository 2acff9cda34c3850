"""What clients keep: staged first, kept only when the round is committed."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quorate.clients.states import ClientStates
from quorate.rounds import Outcome

COMMITTED, ABORTED = Outcome.COMMITTED, Outcome.ABORTED


@pytest.fixture
def states(tmp_path):
    made = ClientStates(tmp_path / "clients.sqlite")
    yield made
    made.close()


def state(value):
    return {"control": np.full(3, value, np.float32)}


def kept(states, member="ann", run="run"):
    found = states.get(run, member)
    return float(found["control"][0]) if found else None


def test_a_client_that_never_took_part_has_no_state(states):
    assert states.get("run", "ann") == {}


def test_a_staged_state_is_not_kept_yet(states):
    states.stage("run", 1, {"ann": state(1)})
    assert kept(states) is None


def test_a_committed_round_keeps_what_was_staged(states):
    states.stage("run", 1, {"ann": state(1), "bob": state(2)})
    states.conclude("run", 1, COMMITTED)
    assert (kept(states, "ann"), kept(states, "bob")) == (1, 2)


def test_an_aborted_round_drops_what_was_staged_and_leaves_what_was_kept(states):
    states.stage("run", 1, {"ann": state(1)})
    states.conclude("run", 1, COMMITTED)
    states.stage("run", 2, {"ann": state(2)})
    states.conclude("run", 2, ABORTED)
    states.conclude("run", 2, COMMITTED)  # too late: there is nothing to keep any more
    assert kept(states) == 1


def test_who_was_not_in_the_round_keeps_what_it_had(states):
    states.stage("run", 1, {"ann": state(1), "bob": state(1)})
    states.conclude("run", 1, COMMITTED)
    states.stage("run", 2, {"bob": state(2)})
    states.conclude("run", 2, COMMITTED)
    assert (kept(states, "ann"), kept(states, "bob")) == (1, 2)


@pytest.mark.parametrize("outcome", [COMMITTED, ABORTED])
def test_an_outcome_may_be_told_again(states, outcome):
    states.stage("run", 1, {"ann": state(1)})
    states.conclude("run", 1, outcome)
    before = kept(states)
    states.conclude("run", 1, outcome)
    assert kept(states) == before


def test_an_abort_that_is_told_after_a_commit_takes_nothing_back(states):
    states.stage("run", 1, {"ann": state(1)})
    states.conclude("run", 1, COMMITTED)
    states.conclude("run", 1, ABORTED)
    assert kept(states) == 1


def test_an_outcome_of_an_unknown_round_changes_nothing(states):
    states.stage("run", 1, {"ann": state(1)})
    states.conclude("run", 9, COMMITTED)
    assert kept(states) is None


def test_a_round_s_state_can_be_staged_again(states):
    states.stage("run", 1, {"ann": state(1)})
    states.stage("run", 1, {"ann": state(2)})
    states.conclude("run", 1, COMMITTED)
    assert kept(states) == 2


def test_runs_are_apart(states):
    states.stage("run", 1, {"ann": state(1)})
    states.stage("other", 1, {"ann": state(2)})
    states.conclude("other", 1, COMMITTED)
    assert (kept(states), kept(states, run="other")) == (None, 2)


def test_among_many_those_are_told_who_kept_something(states):
    states.stage("run", 1, {"ann": state(1), "cem": state(3)})
    assert states.among("run", ["ann", "bob"]) == {}
    states.conclude("run", 1, COMMITTED)
    found = states.among("run", ["bob", "ann"])
    assert list(found) == ["ann"]
    np.testing.assert_array_equal(found["ann"]["control"], state(1)["control"])
    assert states.among("other", ["ann"]) == {}


def test_a_client_that_keeps_nothing_costs_nothing(states):
    states.stage("run", 1, {"ann": {}})
    states.conclude("run", 1, COMMITTED)
    assert states.get("run", "ann") == {}


@pytest.mark.parametrize("ended", [False, True])
def test_states_outlive_the_process(tmp_path, ended):
    path = tmp_path / "clients.sqlite"
    first = ClientStates(path)
    first.stage("run", 1, {"ann": state(1)})
    if ended:
        first.conclude("run", 1, COMMITTED)
    first.close()
    second = ClientStates(path)
    assert kept(second) == (1 if ended else None)
    second.conclude("run", 1, COMMITTED)
    assert kept(second) == 1
    second.close()


def test_arrays_come_back_to_the_same_bits(states):
    rng = np.random.default_rng(0)
    wanted = {
        "control": rng.standard_normal(7).astype(np.float32),
        "matrix": np.asfortranarray(rng.standard_normal((3, 2))),
        "strided": np.arange(10, dtype=np.int64)[::2],
        "count": np.array(5, np.int64),
        "nan": np.array([np.nan, -0.0], np.float32),
    }
    states.stage("run", 1, {"ann": wanted})
    states.conclude("run", 1, COMMITTED)
    found = states.get("run", "ann")
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def test_what_was_dumped_is_loaded_with_what_is_staged_in_it():
    first = ClientStates()
    first.stage("run", 1, {"a": {"control": np.arange(3, dtype=np.float32)}})
    first.conclude("run", 1, Outcome.COMMITTED)
    first.stage("run", 2, {"a": {"control": np.zeros(3, np.float32)}})
    second = ClientStates.loaded(first.dumped())
    assert second.get("run", "a")["control"].tolist() == [0, 1, 2]
    second.conclude("run", 2, Outcome.COMMITTED)
    assert second.get("run", "a")["control"].tolist() == [0, 0, 0]
    assert first.get("run", "a")["control"].tolist() == [0, 1, 2]


class Model(RuleBasedStateMachine):
    """Rounds one after the other, some members in each, ends told once or more often."""

    def __init__(self):
        super().__init__()
        self.states, self.round, self.open = ClientStates(), 0, False
        self.staged: dict[str, float] = {}
        self.expected: dict[str, float] = {}

    @precondition(lambda self: not self.open)
    @rule(members=st.sets(st.sampled_from(["ann", "bob", "cleo"])))
    def stage(self, members):
        self.round, self.open = self.round + 1, True
        self.staged = {member: float(self.round) for member in members}
        self.states.stage("run", self.round, {member: state(self.round) for member in members})

    @precondition(lambda self: self.open)
    @rule(outcome=st.sampled_from([COMMITTED, ABORTED]), times=st.integers(1, 3))
    def conclude(self, outcome, times):
        for _ in range(times):
            self.states.conclude("run", self.round, outcome)
        self.open = False
        if outcome is COMMITTED:
            self.expected |= self.staged

    @invariant()
    def every_member_has_the_state_of_its_last_committed_round(self):
        for member in ("ann", "bob", "cleo"):
            assert kept(self.states, member) == self.expected.get(member)

    def teardown(self):
        self.states.close()


Model.TestCase.settings = settings(max_examples=40, deadline=None)
TestModel = Model.TestCase
