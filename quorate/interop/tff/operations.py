"""What the child can be asked for, by name: each takes a header and arrays, and gives a header and arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from quorate.interop.tff.job import Job
from quorate.interop.tff.learning import Learning, with_local_execution

__all__ = ["named"]

Arrays = Mapping[str, np.ndarray]
Answer = tuple[dict[str, Any], dict[str, np.ndarray]]
_STATE, _X, _Y, _ROWS = "state.", "x.", "y.", "rows."


def named() -> dict[str, Callable[[dict[str, Any], Arrays], Answer]]:
    """The operations of one child, which begins with none of them done."""
    with_local_execution()
    learning: dict[str, Learning] = {}

    def make(header: dict[str, Any], arrays: Arrays) -> Answer:
        """Makes the learning process of a job; all that follows is about it."""
        learning["made"] = Learning(Job.from_json(header["job"]))
        return {}, {}

    def initial(header: dict[str, Any], arrays: Arrays) -> Answer:
        """The first state, from given weights or the process's own."""
        state = learning["made"].initial(arrays.get("vector"))
        return {}, {**_prefixed(state), "vector": learning["made"].vector(state)}

    def event(header: dict[str, Any], arrays: Arrays) -> Answer:
        """What a round from a state releases."""
        return {"event": learning["made"].event(_state(arrays))}, {}

    def step(header: dict[str, Any], arrays: Arrays) -> Answer:
        """A round: the clients' data are `x.N`, `y.N` and the order `rows.N`."""
        process = learning["made"]
        datasets = [
            process.dataset(
                arrays[f"{_X}{i}"], arrays[f"{_Y}{i}"], arrays[f"{_ROWS}{i}"], header["batch_size"]
            )
            for i in range(header["clients"])
        ]
        state, metrics = process.step(_state(arrays), datasets)
        answer = {"metrics": metrics, "event": process.event(state)}
        return answer, {**_prefixed(state), "vector": process.vector(state)}

    return {"make": make, "initial": initial, "event": event, "step": step}


def _prefixed(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {_STATE + name: value for name, value in state.items()}


def _state(arrays: Arrays) -> dict[str, np.ndarray]:
    return {name.removeprefix(_STATE): value for name, value in arrays.items() if name.startswith(_STATE)}
