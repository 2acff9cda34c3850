"""A run's state between two rounds, as bytes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import safetensors.numpy

from quorate.engine import RunState
from quorate.parameters import Layout

__all__ = ["decode", "encode"]

_PARAMETERS = "parameters"
_OWN = "own."


def encode(state: RunState) -> bytes:
    """A state as safetensors, without its version; equal states have equal bytes."""
    arrays: dict[str, np.ndarray] = {_PARAMETERS: np.array(state.parameters.vector)}
    arrays.update((_OWN + name, np.array(array, order="C")) for name, array in sorted(state.own.items()))
    return bytes(safetensors.numpy.save(arrays))


def decode(version: int, encoded: bytes, layout: Layout) -> RunState:
    """The state that `encode` gave the bytes of, to the same bits."""
    arrays: Mapping[str, np.ndarray] = safetensors.numpy.load(encoded)
    own = {name.removeprefix(_OWN): array for name, array in arrays.items() if name.startswith(_OWN)}
    return RunState(version, layout.unflatten(arrays[_PARAMETERS]), own)
