"""Stock nodes: ClientApps that hold nothing but their context between two messages."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, RecordDict

from quorate import assembly
from quorate.errors import DataError, PlanError
from quorate.fleets import Client
from quorate.interop.flower import nodes
from quorate.interop.flower.fleet import OverGrid
from quorate.interop.flower.nodes import Notes, Work
from quorate.interop.flower.transport import GridTransport
from quorate.result import FinishedRun
from quorate.rounds import Assignment, Deadlines
from quorate.server.coordinator import RoundReport
from quorate.summation import Lost
from tests import federations
from tests.interop.flower.federations import NODES, examples, plan
from tests.interop.flower.grids import DirectGrid

IDS = range(11, 11 + NODES)
CONFIGS = {node: {"part": part} for part, node in enumerate(IDS)}
UNHURRIED = Deadlines()
HURRIED = Deadlines(training_s=1.0, phase_s=0.5)
SHARES, MASKED_INPUT = 2, 3  # messages of a participation


def grid() -> DirectGrid:
    return DirectGrid(dict.fromkeys(IDS, nodes.client_app(nodes.on(examples))), CONFIGS)


def run(
    grid: DirectGrid, deadlines: Deadlines = UNHURRIED, watch: Any = lambda report: None, **sections: Any
) -> FinishedRun:
    test = federations.wine(NODES).test
    return assembly.run(
        plan(**sections), fleet=OverGrid(grid, NODES, held_out=test, deadlines=deadlines), watch=watch
    )


def test_nodes_that_forget_everything_but_their_context_sum_in_secret() -> None:
    found = run(grid(), rounds=3)
    assert [round.survivors for round in found.history] == [NODES] * 3
    assert found.metrics["accuracy"] > 0.8
    assert found.epsilon is not None
    assert not found.record.simulated


def test_a_participation_trains_once_however_often_it_is_resumed() -> None:
    trained: list[str] = []

    @dataclasses.dataclass
    class Counted:
        inner: Client

        @property
        def rules(self) -> frozenset[str]:
            return self.inner.rules

        def fit(self, *args: Any) -> Any:
            trained.append("once")
            return self.inner.fit(*args)

    class Counting(Work):
        def client(self, assignment: Assignment) -> Client:
            return Counted(super().client(assignment))  # type: ignore[return-value]

    app = nodes.client_app(lambda context: Counting(examples(context)))
    found = run(DirectGrid(dict.fromkeys(IDS, app), CONFIGS), rounds=2)
    assert len(trained) == 2 * NODES
    assert found.metrics["accuracy"] > 0.7


def test_control_variates_are_kept_in_the_context_between_rounds() -> None:
    over = grid()
    run(over, rounds=2, strategy={"name": "scaffold"})
    for context in over.contexts.values():
        notes = Notes.read(context.state)
        assert notes.heard == []
        assert notes.key == b""
        assert b"control" in notes.states


def test_a_node_that_dies_after_its_shares_is_left_out() -> None:
    over = grid()

    def die(node: int, count: int) -> None:
        if node == IDS[2] and count == MASKED_INPUT:
            over.dead.add(node)

    over.before = die
    found = run(over, HURRIED, rounds=2)
    assert [round.survivors for round in found.history] == [NODES - 1] * 2
    assert found.history[0].lost == {"mask": 1}


def test_a_node_whose_context_was_lost_is_left_out_and_takes_part_in_the_next_round() -> None:
    over = grid()

    def forget(node: int, count: int) -> None:
        if node == IDS[0] and count == SHARES:
            over.contexts[node].state = RecordDict()

    over.before = forget
    found = run(over, rounds=2)
    assert [round.survivors for round in found.history] == [NODES - 1, NODES]


def test_a_node_that_would_not_say_the_same_again_says_nothing() -> None:
    over = grid()

    def another_key(node: int, count: int) -> None:
        if node == IDS[0] and count == SHARES:
            record = over.contexts[node].state["quorate"]
            assert isinstance(record, ConfigRecord)
            record["key"] = bytes(32)

    over.before = another_key
    found = run(over, rounds=1)
    assert [round.survivors for round in found.history] == [NODES - 1]
    assert found.history[0].lost == {"share": 1}


def test_a_new_node_takes_the_seat_of_one_that_is_not_listed_any_more() -> None:
    over, late = grid(), 99

    def replace(report: RoundReport) -> None:
        if report.number == 1:
            over.listed = {*IDS[1:], late}
            over.apps[late], over.contexts[late] = over.apps[IDS[0]], over.contexts[IDS[0]]
            over.asked[late] = 0

    found = run(over, rounds=3, watch=replace)
    assert found.history[-1].survivors == NODES
    assert over.asked[late] > 0


def test_a_message_that_is_not_ours_is_answered_with_an_error() -> None:
    over = grid()
    transport = GridTransport(over)
    transport.send(str(IDS[0]), b"no frame")
    event = transport.receive(1.0)
    assert isinstance(event, Lost)
    assert "malformed" in event.reason


def test_a_node_whose_owner_names_nothing_declines_and_the_others_go_on() -> None:
    over = grid()
    over.apps[IDS[0]] = nodes.client_app(nodes.owned)
    found = run(over, rounds=1)
    assert [round.survivors for round in found.history] == [NODES - 1]


def test_the_owner_of_a_node_names_its_data() -> None:
    named = "tests.interop.flower.federations:examples"
    context = Context(1, 2, {"quorate-data": named, "part": 1}, RecordDict(), {})
    assert np.array_equal(nodes.owned(context).data.x, federations.wine(NODES).clients[1].x)
    with pytest.raises(DataError, match=r"names neither quorate-data, .* nor quorate-task"):
        nodes.owned(Context(1, 2, {}, RecordDict(), {}))


def test_the_owner_of_a_node_names_a_task_that_has_its_data() -> None:
    named = "tests.interop.flower.federations:flower_task"
    context = Context(1, 2, {"quorate-task": named}, RecordDict(), {})
    assert list(nodes.owned(context).tasks) == ["flower-app"]
    with pytest.raises(PlanError, match="is a function; accepted: a Task"):
        nodes.owned(
            Context(1, 2, {"quorate-task": "tests.interop.flower.federations:plan"}, RecordDict(), {})
        )


def test_a_node_that_let_a_message_expire_is_lost_at_once_until_it_answers() -> None:
    over, node = grid(), str(IDS[0])
    transport = GridTransport(over, roll_call_s=0.0, probe_s=0.1)
    over.dead.add(IDS[0])
    transport.send(node, b"to a dead node")
    assert transport.receive(0.1) is None
    assert transport.receive(0.1) is None  # it has expired, and the node is asked whether it is there
    transport.send(node, b"")
    assert isinstance(transport.receive(0.0), Lost)
    over.dead.clear()
    assert transport.receive(0.3) is None  # it answers
    transport.send(node, b"no frame")
    event = transport.receive(1.0)
    assert isinstance(event, Lost)
    assert "malformed" in event.reason


def test_a_node_that_is_not_listed_is_lost_at_once() -> None:
    over, node = grid(), str(IDS[0])
    over.listed.remove(IDS[0])
    transport = GridTransport(over)
    transport.send(node, b"")
    assert transport.receive(0.0) == Lost(node, "it is not listed")
    assert over.asked[IDS[0]] == 0
