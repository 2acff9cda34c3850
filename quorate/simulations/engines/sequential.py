"""The *sequential* engine: any `Client`, one after the other, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quorate.rounds import Assignment, Instruction, State, Updates
from quorate.task import Model

__all__ = ["one_by_one"]


def one_by_one(
    model: Model,
    assignment: Assignment,
    data: Sequence[Any],
    instructions: Sequence[Instruction],
    states: Sequence[State],
) -> tuple[Updates, Sequence[State]]:
    """Makes the only client of a block, and has it fit."""
    ((own, instruction, state),) = zip(data, instructions, states, strict=True)
    update, kept = model.client(own).fit(assignment.broadcast.parameters, instruction, state)
    return Updates.of(update), [kept]
