"""The *vectorised* engine: many clients as one batched computation, in this process.

For models that are `together` and have a `fit_many`: the NumPy reference models, JAX's losses and most PyTorch modules.
It cuts the clients into blocks that fit the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from quorate.rounds import Assignment, Instruction, State, Update
from quorate.task import Model

__all__ = ["can_vectorise", "in_blocks"]


def can_vectorise(model: Model) -> bool:
    """Whether the model trains many clients at once."""
    return bool(getattr(model, "together", False))


def in_blocks(
    model: Model,
    assignment: Assignment,
    data: Sequence[Any],
    instructions: Sequence[Instruction],
    states: Sequence[State],
) -> Iterator[tuple[Update, State]]:
    """Trains all of them together."""
    many: Any = model
    updates, kept = many.fit_many(assignment.broadcast.parameters, data, instructions, states)
    for i, state in enumerate(kept):
        update = Update(
            vectors={name: block[i] for name, block in updates.vectors.items()},
            examples=int(updates.examples[i]),
            metrics={name: float(values[i]) for name, values in updates.metrics.items()},
        )
        yield update, state
