"""Flower apps as tasks that are found as all tasks are, by `module:attribute`: their path is in the attribute's name.

The process that trains (`quorate.clients.agent.worker`) is told such a name and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quorate.interop.flower import internals
from quorate.interop.flower.clients import task_from_app
from quorate.task import Task

__all__ = ["names_of"]

_PREFIX = "app_"


def names_of(apps: Sequence[Path], node_config: str = "") -> list[str]:
    """The `module:attribute` of each app's task on this machine.

    Args:
        apps: their directories.
        node_config: what their contexts say of this node, as `flower-supernode --node-config` takes it.

    Raises:
        PlanError: that can't be read.
    """
    config = internals.node_config(node_config)
    return [f"{__name__}:{_PREFIX}{_encoded(path, config)}" for path in apps]


def _encoded(path: Path, config: Mapping[str, Any]) -> str:
    return json.dumps({"path": str(path.resolve()), "node_config": config}).encode().hex()


def __getattr__(name: str) -> Task:
    if not name.startswith(_PREFIX):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return task_from_app(**json.loads(bytes.fromhex(name.removeprefix(_PREFIX))))
