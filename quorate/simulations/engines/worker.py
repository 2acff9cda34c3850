"""A worker of the *processes* engine: what runs in the child, and the memory that it shares with its parent."""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import pickle
import signal
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from quorate.errors import MissingExtra, QuorateError
from quorate.parameters import Layout
from quorate.plan import Plan
from quorate.rounds import Assignment, Kind, Member, State

if TYPE_CHECKING:
    from quorate.simulations.engines.contract import Order
    from quorate.simulations.engines.site import Site

__all__ = ["Board", "Desk", "check_threads", "serve", "shared"]


def shared(length: int, dtype: npt.DTypeLike) -> np.ndarray:
    """Zeros, shape (length,), in anonymous memory that forked children share; it goes with the last of them."""
    nbytes = max(1, length) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, nbytes), dtype)[:length]


@dataclass(frozen=True)
class Desk:
    """One worker's own place: the parent reads it when the worker has answered, or has died.

    Args:
        place: which members of its share are being trained (from, to), int64, shape (2,).
        totals: the partial sum of each kind of round, of the ring's dtype or float64, shape (m,).
    """

    place: np.ndarray
    totals: Mapping[Kind, np.ndarray]


class Board:
    """The broadcast's vectors, written by the parent and read by all workers.

    Args:
        layout: of the parameters that are broadcast.
        extras: lengths of the other vectors, by name.
    """

    def __init__(self, layout: Layout, extras: dict[str, int]):
        self._layout = layout
        self._vector = shared(layout.size, np.float32)
        self._extras = {name: shared(length, np.float32) for name, length in extras.items()}

    @classmethod
    def of(cls, plan: Plan) -> Board:
        """For the rounds of a plan."""
        strategy = plan.strategy.resolve()
        layout = strategy.shared(plan.task.resolve().layout)
        extras = strategy.server.extras(strategy.server.init(layout))
        return cls(layout, {name: len(vector) for name, vector in extras.items()})

    def put(self, assignment: Assignment) -> Assignment:
        """Writes the vectors down; returns the assignment without them, which is a few hundred bytes to send."""
        broadcast = assignment.broadcast
        self._vector[:] = broadcast.parameters.vector
        for name, vector in broadcast.instruction.extras.items():
            self._extras[name][:] = vector
        return self._with(assignment, self._layout.subset(()).zeros(), {})

    def read(self, assignment: Assignment) -> Assignment:
        """The assignment with its vectors, which are not copied."""
        extras = self._extras if assignment.kind is Kind.FIT else {}
        return self._with(assignment, self._layout.unflatten(self._vector), extras)

    def _with(self, assignment: Assignment, parameters: Any, extras: dict[str, np.ndarray]) -> Assignment:
        instruction = dataclasses.replace(assignment.broadcast.instruction, extras=extras)
        broadcast = dataclasses.replace(assignment.broadcast, parameters=parameters, instruction=instruction)
        return dataclasses.replace(assignment, broadcast=broadcast, members=(), terms=b"")


def check_threads() -> None:
    """Sees that BLAS can be told how many threads to use.

    Raises:
        MissingExtra: threadpoolctl, which scikit-learn brings along, is not installed.
    """
    try:
        import threadpoolctl  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as error:
        raise MissingExtra("simulation", "simulation in worker processes") from error


def serve(
    site: Site, board: Board, desk: Desk, pipe: Connection, others: Sequence[Connection], parent: int
) -> None:
    """Does orders until the parent is gone.

    Args:
        site: as it was when the parent forked.
        board: the broadcast's vectors.
        desk: this worker's own.
        pipe: to the parent.
        others: the parent's ends of pipes, which came along: while they are open here, nobody would notice its end.
        parent: its process id.
    """
    import threadpoolctl

    for other in others:
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    # So that who is woken does not take the core of the parent, which has others to wake; a sandbox may forbid it.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    with threadpoolctl.threadpool_limits(1):
        while True:
            try:
                order: Order = pipe.recv()
            except EOFError:
                return
            try:
                members, states, vectors = _work(site, board, desk, order, parent)
            except Exception as error:
                pipe.send(_portable(error))
                continue
            pipe.send((tuple(members), states))
            for vector in vectors:
                pipe.send_bytes(vector)


def _work(
    site: Site, board: Board, desk: Desk, order: Order, parent: int
) -> tuple[list[Member], dict[Member, State], list[memoryview]]:
    """Trains and encodes; what is to be summed is added up on the desk."""

    def begin(start: int, stop: int) -> None:
        desk.place[:] = start, stop
        if os.getppid() != parent:  # a parent that was killed: what it holds, its locks too, must go with it
            os._exit(1)

    members: list[Member] = []
    states: dict[Member, State] = {}
    vectors: list[memoryview] = []
    total = desk.totals[order.assignment.kind]
    total[:] = 0
    whole = dataclasses.replace(order, assignment=board.read(order.assignment))
    for made in site.work(whole, begin):
        members += made.members
        states.update(
            {member: state for member, state in zip(made.members, made.states, strict=True) if state}
        )
        if order.summed:
            made.add_to(total)
        else:
            vectors += [vector.data.cast("B") for vector in made.encoded]
    return members, states, vectors


def _portable(error: Exception) -> Exception:
    """The error itself if it can be sent, its text otherwise."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return QuorateError("".join(traceback.format_exception(error)))
    return error
