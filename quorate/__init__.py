"""Quorate: federated learning that ends in a served model.

    import quorate as q

The public names are resolved when they are first used (PEP 562), so that importing the package is quick and a device
that never serves needs nothing of the server. Their types are in `__init__.pyi`.
"""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {
    "Buffering": "quorate.plan",
    "Devices": "quorate.server.devices.source",
    "Evaluation": "quorate.evaluation",
    "FinishedRun": "quorate.result",
    "IdealSum": "quorate.plan",
    "Layout": "quorate.parameters",
    "Parameters": "quorate.parameters",
    "PlainSum": "quorate.plan",
    "Plan": "quorate.plan",
    "Publish": "quorate.plan",
    "QuorateError": "quorate.errors",
    "Rounds": "quorate.plan",
    "SecAggPlus": "quorate.plan",
    "Simulation": "quorate.simulations.source",
    "Strategy": "quorate.strategies",
    "Task": "quorate.task",
    "Training": "quorate.plan",
    "pull": "quorate.artifacts.pulling",
    "read_plan": "quorate.planfile",
    "run": "quorate.assembly",
}
_MODULES = {
    "callbacks": "quorate.callbacks",
    "clients": "quorate.clients",
    "errors": "quorate.errors",
    "models": "quorate.clients.adapters.numpy_models",
    "privacy": "quorate.privacy",
    "simulations": "quorate.simulations",
    "statistics": "quorate.clients.adapters.statistics",
    "strategies": "quorate.strategies",
}

__all__ = sorted([*_NAMES, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        found: Any = importlib.import_module(_MODULES[name])
    elif name in _NAMES:
        found = getattr(importlib.import_module(_NAMES[name]), name)
    else:
        raise AttributeError(f"module 'quorate' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
