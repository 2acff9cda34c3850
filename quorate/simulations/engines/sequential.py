"""The *sequential* engine: any `Client`, one after the other, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quorate.clients.slices import check_keys, client_of
from quorate.rounds import Assignment, Instruction, State, Updates
from quorate.task import Task

__all__ = ["evaluated", "one_by_one"]


def one_by_one(
    task: Task,
    assignment: Assignment,
    data: Sequence[Any],
    instructions: Sequence[Instruction],
    states: Sequence[State],
) -> tuple[Updates, Sequence[State]]:
    """Makes the only client of a block, and has it fit."""
    ((own, instruction, state),) = zip(data, instructions, states, strict=True)
    update, kept = task.model.client(own).fit(assignment.broadcast.parameters, instruction, state)
    return Updates.of(update), [kept]


def evaluated(
    task: Task,
    assignment: Assignment,
    data: Sequence[Any],
    instructions: Sequence[Instruction],
    states: Sequence[State],
) -> tuple[Updates, Sequence[State]]:
    """Makes the only client of a block, and has it evaluate; it keeps nothing.

    Every engine does so: without gradients there is little to gain by batching, and equal results for nothing.
    """
    ((own, instruction, state),) = zip(data, instructions, states, strict=True)
    client = client_of(task, own)
    check_keys(client, instruction)
    return Updates.of(client.evaluate(assignment.broadcast.parameters, instruction, state)), [{}]
