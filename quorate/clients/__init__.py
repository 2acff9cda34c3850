"""The client's side: adapters that turn models and data into clients, and the device agent.

`jax`, `keras`, `sklearn` and `torch` make a model of a framework's; each is imported, with its framework, when it is
first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_ADAPTERS = {
    "jax": "quorate.clients.adapters.jax_models",
    "keras": "quorate.clients.adapters.keras_models",
    "sklearn": "quorate.clients.adapters.sklearn_models",
    "torch": "quorate.clients.adapters.torch_models",
}

__all__ = sorted(_ADAPTERS)


def __getattr__(name: str) -> Any:
    if name not in _ADAPTERS:
        raise AttributeError(f"module 'quorate.clients' has no attribute {name!r}")
    found = getattr(importlib.import_module(_ADAPTERS[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
