"""The *vectorised* engine: many clients as one batched computation, in this process.

For models that are `together` and have a `fit_many`: the NumPy reference models, JAX's losses and most PyTorch modules.
It cuts the clients into blocks that fit the cache. Products of this size do not keep several cores busy, whichever
framework takes them, so that where a round is worth it a thread a core trains its share of the cohort, with one thread
of BLAS (or PyTorch) each.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Any

from quorate.rounds import Assignment, Instruction, State, Updates
from quorate.simulations.engines.contract import Done, Order
from quorate.simulations.engines.processes import deal
from quorate.simulations.engines.site import InThisProcess, Site
from quorate.task import Model, Task

__all__ = ["InThreads", "can_vectorise", "in_blocks", "threads_for"]


def can_vectorise(model: Model) -> bool:
    """Whether the model trains many clients at once."""
    return bool(getattr(model, "together", False))


def in_blocks(
    task: Task,
    assignment: Assignment,
    data: Sequence[Any],
    instructions: Sequence[Instruction],
    states: Sequence[State],
) -> tuple[Updates, Sequence[State]]:
    """Trains all of them together."""
    many: Any = task.model
    trained: tuple[Updates, Sequence[State]] = many.fit_many(
        assignment.broadcast.parameters, data, instructions, states
    )
    return trained


def threads_for(model: Model, threads: int) -> ThreadPoolExecutor:
    """Threads to train a model in: its framework has none beside them."""
    begin = getattr(model, "begin_thread", None)
    return ThreadPoolExecutor(threads, thread_name_prefix="quorate simulation", initializer=begin)


class InThreads:
    """An engine of threads in this process, each with a share of every cohort.

    Args:
        site: with the data of all clients.
        threads: how many.
    """

    def __init__(self, site: Site, threads: int):
        self._site, self._alone, self._threads = site, InThisProcess(site), threads
        self._pool = threads_for(site.model, threads)

    def run(self, order: Order) -> Done:
        """Trains and encodes; each thread adds up its own share."""
        sizes = [self._site.data.examples_of(member) for member in order.members]
        shares = [tuple(order.members[i] for i in share) for share in deal(sizes, self._threads)]
        orders = [replace(order, members=share) for share in shares if share]
        with self._blas.limit(limits=1, user_api="blas"):
            done = list(self._pool.map(self._alone.run, orders))
        return Done(
            encoded=[part for one in done for part in one.encoded],
            states={member: state for one in done for member, state in one.states.items()},
        )

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()

    @cached_property
    def _blas(self) -> Any:
        import threadpoolctl  # type: ignore[import-untyped]

        return threadpoolctl.ThreadpoolController()  # which takes milliseconds to find the libraries
