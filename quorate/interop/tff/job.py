"""What a learning process is made for: told to the child as JSON, and to a factory of processes as an object."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quorate.task import DenseLayer

__all__ = ["Job"]


@dataclass(frozen=True)
class Job:
    """A plan, as a factory of learning processes may want to know it.

    Args:
        process: `module:attribute` of the factory.
        settings: what the plan gives the factory.
        shapes: the names and shapes of the task's parameters, in order.
        layers: of a task that is a chain of dense layers; None: it is something else.
        learning_rate: of the plan's `[training]`.
    """

    process: str
    settings: Mapping[str, Any]
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    layers: tuple[DenseLayer, ...] | None
    learning_rate: float

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Job:
        """What `as_json` was given for."""
        layers = content["layers"]
        return cls(
            process=content["process"],
            settings=content["settings"],
            shapes=tuple((name, tuple(shape)) for name, shape in content["shapes"]),
            layers=None if layers is None else tuple(DenseLayer(**layer) for layer in layers),
            learning_rate=content["learning_rate"],
        )
