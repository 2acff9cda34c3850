"""A member's side of a participation: frames in, frames out, no I/O."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from quorate import pipeline
from quorate.clients.participation import Participation
from quorate.clients.states import ClientStates
from quorate.errors import PolicyRefused, ProtocolViolation, TrainingFailed
from quorate.parameters import Layout, Parameters
from quorate.plan import Plan, Terms
from quorate.randomness import Randomness
from quorate.rounds import (
    Assignment,
    Broadcast,
    CohortBounds,
    Instruction,
    Kind,
    Outcome,
    PublicValues,
    State,
    Update,
)
from quorate.summation import Exposure
from quorate.wire import frames
from tests.federations import CLIPPED, GAUSSIAN, SECAGG, plan

RUN, ROUND = "0123456789abcdef", 3
PLAIN = {"protocol": "none"}


class Learner:
    """An application's client: its update is a constant, its state counts how often it trained."""

    rules = frozenset({"sgd"})

    def __init__(self, layout: Layout):
        self.layout = layout
        self.instructions: list[Instruction] = []

    def fit(
        self, parameters: Parameters, instruction: Instruction, state: State
    ) -> tuple[Update, dict[str, np.ndarray]]:
        self.instructions.append(instruction)
        count = state.get("count", np.zeros(1, np.float32)) + 1
        return Update({"delta": np.full(self.layout.size, 0.25, np.float32)}, 10), {"count": count}

    def evaluate(self, parameters: Parameters, instruction: Instruction, state: State) -> Update:
        return Update({}, 10)


def resolved(**sections: object) -> Plan:
    secure = {"privacy": GAUSSIAN, "secure_aggregation": SECAGG}
    return plan(**{**secure, **sections}).resolved(40)


def assignment_of(made: Plan, **changes: object) -> Assignment:
    """What a coordinator sends for a round of a plan."""
    terms, strategy = made.terms(), made.strategy.resolve()
    layout = strategy.shared(made.task.resolve().layout)
    complete = Assignment(
        run=RUN,
        round=ROUND,
        kind=Kind.FIT,
        base_version=2,
        terms=terms.encoded(),
        terms_hash=b"",
        broadcast=Broadcast(
            layout.zeros(),
            Instruction(strategy.local.name, {"learning_rate": 0.1}, seed=12345),
            PublicValues(made.privacy.clip_norm, bytes(range(32))),
        ),
        bounds=made.bounds(40),
        members=(),
    )
    return dataclasses.replace(complete, **changes)


@pytest.fixture
def states() -> Iterator[ClientStates]:
    opened = ClientStates()
    yield opened
    opened.close()


def member(states: ClientStates, made: Plan, **how: object) -> Participation:
    client = how.pop("client", None) or Learner(made.task.resolve().layout)
    return Participation("me", client, states, Randomness.system(), **how)  # type: ignore[arg-type]


def answer(participation: Participation, assignment: Assignment) -> frames.Frame:
    (only,) = participation.receive(frames.encode(assignment))
    return frames.decode(only)


def conclusion(outcome: Outcome, run: str = RUN, round: int = ROUND) -> bytes:
    return frames.encode(frames.Conclusion(run, round, outcome))


def test_a_member_of_a_secure_sum_answers_an_assignment_with_its_keys(states):
    made = resolved()
    said = answer(member(states, made), assignment_of(made))
    assert isinstance(said, frames.SumMessage)
    assert (said.run, said.round) == (RUN, ROUND)
    assert len(said.data) < 200  # keys, and nothing of the update


def test_a_member_of_a_plain_sum_answers_an_assignment_with_its_encoded_update(states):
    made = resolved(privacy={"mechanism": "none"}, secure_aggregation=PLAIN)
    assignment = assignment_of(made)
    said = answer(member(states, made), assignment)
    assert isinstance(said, frames.SumMessage)
    encoding = pipeline.build(made.terms(), assignment.bounds, assignment.broadcast.public)
    sent = np.frombuffer(said.data, "<f4")
    assert len(sent) == encoding.length
    size = made.task.resolve().layout.size
    np.testing.assert_array_equal(sent[:size], np.full(size, 0.25, np.float32))


def test_a_member_is_never_told_a_seed(states):
    made = resolved()
    client = Learner(made.task.resolve().layout)
    answer(member(states, made, client=client), assignment_of(made))
    (instruction,) = client.instructions
    assert instruction.seed is None


def test_a_member_declines_what_its_own_policy_refuses_and_says_why(states):
    def least(terms: Terms, assignment: Assignment) -> None:
        if assignment.bounds.min_survivors < 100:
            raise PolicyRefused("fewer than 100 survivors are not enough for this device", "survivors")

    made = resolved()
    said = answer(member(states, made, accepts=least), assignment_of(made))
    assert said == frames.Decline(
        RUN, ROUND, "survivors", "fewer than 100 survivors are not enough for this device"
    )


def test_a_policy_is_asked_before_anything_is_trained(states):
    def never(terms: Terms, assignment: Assignment) -> None:
        raise PolicyRefused("no")

    made = resolved()
    client = Learner(made.task.resolve().layout)
    answer(member(states, made, client=client, accepts=never), assignment_of(made))
    assert not client.instructions


def test_a_member_declines_a_rule_that_its_client_does_not_implement(states):
    made = resolved(strategy={"name": "fedprox"})
    said = answer(member(states, made), assignment_of(made))
    assert isinstance(said, frames.Decline)
    assert made.strategy.resolve().local.name in said.reason
    assert "sgd" in said.reason


def worse(bounds: CohortBounds) -> list[CohortBounds]:
    """Bounds with which a lying coordinator would get less noise, or a sum over fewer members."""
    return [
        dataclasses.replace(bounds, min_survivors=bounds.min_survivors - 1, honest=bounds.honest - 1),
        dataclasses.replace(bounds, honest=bounds.min_survivors),
        dataclasses.replace(bounds, largest=bounds.largest + 1),
        dataclasses.replace(bounds, denominator=1.0),
    ]


@pytest.mark.parametrize("lie", range(4))
def test_a_member_declines_bounds_that_are_not_those_of_the_terms(lie, states):
    made = resolved(secure_aggregation={**SECAGG, "corrupt": 0.2})
    assignment = assignment_of(made)
    wrong = worse(assignment.bounds)[lie]
    assert wrong != assignment.bounds
    client = Learner(made.task.resolve().layout)
    said = answer(member(states, made, client=client), dataclasses.replace(assignment, bounds=wrong))
    assert isinstance(said, frames.Decline)
    assert "bounds" in said.reason
    assert not client.instructions


@pytest.mark.parametrize(
    "drawn",
    [
        {"sampling": "fixed", "over_selection": 1.5},
        {"sampling": "separated", "separation": 4},
        {"sampling": "poisson", "largest_cohort": 20},
    ],
)
def test_a_member_finds_the_bounds_in_the_terms_however_its_cohort_was_drawn(drawn, states):
    made = resolved(rounds={"count": 3, "cohort": 8, **drawn})
    assert isinstance(answer(member(states, made), assignment_of(made)), frames.SumMessage)


def test_a_member_declines_terms_that_leave_the_bounds_open(states):
    open_ended = plan(privacy=GAUSSIAN, secure_aggregation=SECAGG)
    said = answer(member(states, open_ended), assignment_of(open_ended))
    assert isinstance(said, frames.Decline)


def test_a_member_declines_parameters_of_another_layout(states):
    made = resolved()
    assignment = assignment_of(made)
    other = Layout((("weights", (1, 1)),)).zeros()
    changed = dataclasses.replace(assignment.broadcast, parameters=other)
    said = answer(member(states, made), dataclasses.replace(assignment, broadcast=changed))
    assert isinstance(said, frames.Decline)
    assert "laid out" in said.reason


def test_a_member_declines_another_rule_than_the_terms_say(states):
    made = resolved()
    assignment = assignment_of(made)
    instruction = dataclasses.replace(assignment.broadcast.instruction, rule="proximal")
    changed = dataclasses.replace(assignment.broadcast, instruction=instruction)
    said = answer(member(states, made), dataclasses.replace(assignment, broadcast=changed))
    assert isinstance(said, frames.Decline)
    assert "local rule" in said.reason


def test_a_member_declines_another_clip_norm_than_the_terms_say(states):
    made = resolved()
    assignment = assignment_of(made)
    public = dataclasses.replace(assignment.broadcast.public, clip_norm=1000.0)
    changed = dataclasses.replace(assignment.broadcast, public=public)
    said = answer(member(states, made), dataclasses.replace(assignment, broadcast=changed))
    assert isinstance(said, frames.Decline)
    assert "clip_norm" in said.reason


@pytest.mark.parametrize(
    "terms",
    [
        b"",
        b"{}",
        b"\xff\xfe",
        b'{"format": 1}',
        b'{"format": 99}',
        b'{"format": 1, "task": {"name": "os:system", "layout": ""}, "strategy": {"name": "fedavg"}}',
        b'{"format": 1, "task": {"name": "nowhere", "layout": ""}, "strategy": {"name": "fedavg"}}',
    ],
)
def test_a_member_declines_terms_that_it_does_not_understand(terms, states):
    made = resolved()
    said = answer(member(states, made), assignment_of(made, terms=terms))
    assert isinstance(said, frames.Decline)
    assert said.reason


class Broken(Learner):
    """Its training does not come to an end."""

    def fit(self, parameters: Parameters, instruction: Instruction, state: State) -> tuple[Update, State]:
        raise TrainingFailed("training was stopped: out of memory", "training-memory")


def test_training_that_fails_is_declined_with_its_code(states):
    made = resolved()
    said = answer(member(states, made, client=Broken(made.task.resolve().layout)), assignment_of(made))
    assert said == frames.Decline(RUN, ROUND, "training-memory", "training was stopped: out of memory")


def test_a_plain_update_is_said_to_be_exposed_before_it_is_handed_out(states):
    made = resolved(privacy={"mechanism": "none"}, secure_aggregation=PLAIN)
    told: list[Exposure] = []
    answer(member(states, made, exposing=told.append), assignment_of(made))
    assert told == [Exposure.REVEALED]


def test_keys_expose_nothing(states):
    made = resolved()
    told: list[Exposure] = []
    answer(member(states, made, exposing=told.append), assignment_of(made))
    assert not told


def test_an_answer_whose_exposure_cant_be_written_down_is_not_handed_out(states):
    def full(exposure: Exposure) -> None:
        raise OSError("no space left")

    made = resolved(privacy={"mechanism": "none"}, secure_aggregation=PLAIN)
    with pytest.raises(OSError, match="space"):
        answer(member(states, made, exposing=full), assignment_of(made))


def test_an_update_that_does_not_fit_the_terms_is_declined(states):
    made = resolved()
    small = Learner(Layout((("weights", (2,)),)))
    said = answer(member(states, made, client=small), assignment_of(made))
    assert isinstance(said, frames.Decline)
    assert "delta" in said.reason


def test_a_second_assignment_is_a_violation(states):
    made = resolved()
    participation = member(states, made)
    answer(participation, assignment_of(made))
    with pytest.raises(ProtocolViolation, match="Assignment"):
        participation.receive(frames.encode(assignment_of(made, round=ROUND + 1)))


@pytest.mark.parametrize(
    "frame",
    [
        frames.SumMessage(RUN, ROUND, b"roster"),
        frames.Conclusion(RUN, ROUND, Outcome.COMMITTED),
        frames.Decline(RUN, ROUND, "declined", "no"),
    ],
)
def test_nothing_but_an_assignment_comes_first(frame, states):
    made = resolved()
    with pytest.raises(ProtocolViolation):
        member(states, made).receive(frames.encode(frame))


@pytest.mark.parametrize(
    "frame",
    [
        frames.SumMessage(RUN, ROUND, b"noise"),
        frames.SumMessage(RUN, ROUND + 1, b""),
        frames.SumMessage("another run", ROUND, b""),
        frames.Conclusion(RUN, ROUND + 1, Outcome.COMMITTED),
        frames.Conclusion("another run", ROUND, Outcome.COMMITTED),
        frames.Decline(RUN, ROUND, "declined", "no"),
    ],
)
def test_what_is_not_of_this_round_or_not_for_members_is_a_violation(frame, states):
    made = resolved()
    participation = member(states, made)
    answer(participation, assignment_of(made))
    with pytest.raises(ProtocolViolation):
        participation.receive(frames.encode(frame))
    assert not states.get(RUN, "me")


def test_random_bytes_are_a_violation(states):
    with pytest.raises(ProtocolViolation):
        member(states, resolved()).receive(bytes(range(200)))


def test_a_member_keeps_its_state_when_the_round_is_committed(states):
    made = resolved()
    participation = member(states, made)
    answer(participation, assignment_of(made))
    assert not states.get(RUN, "me")
    assert participation.receive(conclusion(Outcome.COMMITTED)) == []
    assert participation.concluded
    np.testing.assert_array_equal(states.get(RUN, "me")["count"], [1])


def test_a_member_drops_its_state_when_the_round_is_aborted(states):
    made = resolved()
    participation = member(states, made)
    answer(participation, assignment_of(made))
    participation.receive(conclusion(Outcome.ABORTED))
    assert participation.concluded
    assert not states.get(RUN, "me")
    again = member(states, made)
    answer(again, assignment_of(made, round=ROUND + 1))
    again.receive(conclusion(Outcome.COMMITTED, round=ROUND + 1))
    np.testing.assert_array_equal(states.get(RUN, "me")["count"], [1])


def test_a_member_trains_on_from_the_state_that_it_kept(states):
    made = resolved()
    for number in (1, 2, 3):
        participation = member(states, made)
        answer(participation, assignment_of(made, round=number))
        participation.receive(conclusion(Outcome.COMMITTED, round=number))
    np.testing.assert_array_equal(states.get(RUN, "me")["count"], [3])


def test_a_conclusion_may_come_twice(states):
    made = resolved()
    participation = member(states, made)
    answer(participation, assignment_of(made))
    participation.receive(conclusion(Outcome.COMMITTED))
    participation.receive(conclusion(Outcome.COMMITTED))
    np.testing.assert_array_equal(states.get(RUN, "me")["count"], [1])


def test_a_participation_that_was_broken_off_still_hears_how_the_round_ended(states):
    made = resolved()
    participation = member(states, made)
    answer(participation, assignment_of(made))
    with pytest.raises(ProtocolViolation):
        participation.receive(frames.encode(frames.SumMessage(RUN, ROUND, b"noise")))
    participation.receive(conclusion(Outcome.COMMITTED))
    np.testing.assert_array_equal(states.get(RUN, "me")["count"], [1])


def test_after_a_violation_a_secure_sum_is_over(states):
    made = resolved()
    participation = member(states, made)
    answer(participation, assignment_of(made))
    for _ in range(2):
        with pytest.raises(ProtocolViolation):
            participation.receive(frames.encode(frames.SumMessage(RUN, ROUND, b"noise")))


def test_a_sum_in_a_ring_without_privacy_is_taken_part_in_as_well(states):
    made = resolved(privacy=CLIPPED)
    assert isinstance(answer(member(states, made), assignment_of(made)), frames.SumMessage)


def test_a_coordinator_that_leaves_out_or_weakens_what_the_terms_say_of_examples_is_declined(states):
    section = {"clip_norm": 1.0, "noise_multiplier": 1.0, "sampling_rate": 0.1}
    made = resolved(training={"dp_sgd": section})
    good = assignment_of(made)
    whole = dict(made.training.settings())
    able = Learner(made.task.resolve().layout)
    able.rules = frozenset({"sgd", "dp-sgd"})
    for settings in (
        {"learning_rate": 0.1},
        {**whole, "dp_sgd.noise_multiplier": 0.01},
        {**whole, "dp_sgd.steps": 11.0},
        {name: value for name, value in whole.items() if name != "dp_sgd.clip_norm"},
    ):
        instruction = dataclasses.replace(good.broadcast.instruction, settings=settings)
        told = dataclasses.replace(
            good, broadcast=dataclasses.replace(good.broadcast, instruction=instruction)
        )
        said = answer(member(states, made, client=able), told)
        assert isinstance(said, frames.Decline)
        assert said.code == "dp-sgd"
    assert able.instructions == []
    instruction = dataclasses.replace(good.broadcast.instruction, settings=whole)
    told = dataclasses.replace(good, broadcast=dataclasses.replace(good.broadcast, instruction=instruction))
    assert isinstance(answer(member(states, made, client=able), told), frames.SumMessage)
    said = answer(member(states, made), told)  # a client that knows the rule, and nothing of DP-SGD
    assert isinstance(said, frames.Decline)
    assert said.code == "dp-sgd"
