"""The *processes* engine: workers beside this process, which train, encode and add up their share of a cohort.

The broadcast vectors and each worker's partial sum lie in memory that all of them share; through pipes go names and
numbers, clients' states where a rule keeps any, and encoded vectors where the sum's protocol needs single ones. Members
are dealt out longest first by their number of examples, each to the worker with the least to do (Graham 1969), which is
the same in every run. Workers are forked, so that data and model are there at once and are held in memory once; each
has one BLAS thread.

A worker that dies loses the members that it was training, which are dropouts: they may be why it died. Its partial sum
is thrown away, whatever state that is in, and a new worker does the rest of its share again.
"""

from __future__ import annotations

import heapq
import logging
import multiprocessing
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import numpy as np

from quorate import pipeline
from quorate.errors import PlanError, QuorateError
from quorate.plan import Plan
from quorate.rounds import Assignment, Kind, Member, State
from quorate.simulations.engines import worker
from quorate.simulations.engines.contract import Done, Order
from quorate.simulations.engines.site import Site
from quorate.sums import held_in

__all__ = ["Processes", "can_fork", "deal"]

log = logging.getLogger(__name__)

_IDLE_DEATHS = 3  # that many workers in a row, dead before they began, are nobody's crash


def can_fork() -> bool:
    """Whether workers can be forked here; elsewhere (macOS, Windows) what libraries hold does not survive it."""
    return sys.platform == "linux"


@dataclass
class _Worker:
    """A worker's process, this end of its pipe, and what it is doing."""

    process: BaseProcess
    pipe: Connection
    desk: worker.Desk
    share: tuple[Member, ...] = ()
    idle_deaths: int = 0


class Processes:
    """Workers that live as long as the engine.

    Args:
        site: with the data of all clients.
        workers: how many.

    Raises:
        PlanError: processes can't be forked here.
        MissingExtra: threadpoolctl is not installed.
    """

    def __init__(self, site: Site, workers: int):
        if not can_fork():
            raise PlanError(
                "fleet.engine: 'processes' needs a Linux; accepted here: 'vectorised', 'sequential'"
            )
        worker.check_threads()
        self._site, self._context = site, multiprocessing.get_context("fork")
        self._board = worker.Board.of(site.plan)
        self._encoded = _encoded(site.plan, len(site.data))
        self._desks = [
            worker.Desk(
                worker.shared(2, np.int64),
                {
                    kind: worker.shared(length, held_in(dtype))
                    for kind, (length, dtype) in self._encoded.items()
                },
            )
            for _ in range(workers)
        ]
        self._workers: list[_Worker] = []
        self._start()

    @property
    def pids(self) -> tuple[int, ...]:
        """The workers' process ids."""
        return tuple(one.process.pid or 0 for one in self._workers)

    def run(self, order: Order) -> Done:
        """Has the workers do an order; see the module for what happens when one dies."""
        if not self._workers:
            self._start()
        try:
            return self._run(order)
        except BaseException:
            self.close()  # what is under way is nobody's any more; the next order starts workers anew
            raise

    def close(self) -> None:
        """Ends the workers."""
        for one in self._workers:
            one.process.kill()
        for one in self._workers:
            one.process.join()
            one.process.close()
            one.pipe.close()
        self._workers = []

    def _run(self, order: Order) -> Done:
        slim = self._board.put(order.assignment)
        shares = deal(self._sizes(order.members), len(self._workers))
        for i, share in enumerate(shares):
            self._give(i, tuple(order.members[j] for j in share), slim, order)
        encoded: list[list[tuple[tuple[Member, ...], np.ndarray]]] = [[] for _ in shares]
        states: dict[Member, State] = {}
        busy = {i for i, one in enumerate(self._workers) if one.share}
        while busy:
            pipes = {self._workers[i].pipe: i for i in busy}
            for pipe in wait(list(pipes)):
                i = pipes[pipe]  # type: ignore[index]
                try:
                    done = self._take(self._workers[i], order)
                except (EOFError, OSError):
                    if not self._mourn(i, slim, order):
                        busy.discard(i)
                    continue
                encoded[i] = list(done.encoded)
                states.update(done.states)
                busy.discard(i)
        return Done([part for parts in encoded for part in parts], states)

    def _give(self, i: int, share: tuple[Member, ...], slim: Assignment, order: Order) -> None:
        """Sends a worker its share; that it is dead already shows when its answer is awaited."""
        one = self._workers[i]
        one.share = share
        one.desk.place[:] = 0
        if share:
            states = {member: order.states[member] for member in share if order.states.get(member)}
            try:
                one.pipe.send(Order(slim, share, states, order.summed, order.discount))
            except OSError:
                log.debug("the simulation's worker %d was dead before its order", i)

    def _take(self, one: _Worker, order: Order) -> Done:
        answer = one.pipe.recv()
        if isinstance(answer, BaseException):
            raise answer
        members, states = answer
        kind = order.assignment.kind
        if order.summed:
            return Done([(members, one.desk.totals[kind])] if members else [], states)
        dtype = self._encoded[kind][1]
        vectors = [((member,), np.frombuffer(one.pipe.recv_bytes(), dtype)) for member in members]
        return Done(vectors, states)

    def _mourn(self, i: int, slim: Assignment, order: Order) -> bool:
        """Puts a new worker in the place of a dead one; returns whether there is something left to do."""
        dead = self._workers[i]
        begin, end = dead.desk.place.tolist()
        rest = dead.share[:begin] + dead.share[end:]
        idle_deaths = 0 if end > begin else dead.idle_deaths + 1
        if idle_deaths == _IDLE_DEATHS:
            raise QuorateError(f"{_IDLE_DEATHS} workers in a row died before they began to train")
        dead.process.join()
        log.warning(
            "a worker of the simulation died (exit code %s) while it trained %d members, which are lost; %d others "
            "of its share are done again",
            dead.process.exitcode,
            end - begin,
            len(rest),
        )
        dead.process.close()
        dead.pipe.close()
        self._workers[i] = self._fork(i)
        self._workers[i].idle_deaths = idle_deaths
        self._give(i, rest, slim, order)
        return bool(rest)

    def _sizes(self, members: Sequence[Member]) -> list[int]:
        return [self._site.data.examples_of(member) for member in members]

    def _start(self) -> None:
        for i in range(len(self._desks)):
            self._workers.append(self._fork(i))

    def _fork(self, i: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        others = [one.pipe for one in self._workers if not one.pipe.closed] + [ours]
        process = self._context.Process(
            target=worker.serve,
            args=(self._site, self._board, self._desks[i], theirs, others, os.getpid()),
            name=f"quorate simulation {i}",
            daemon=True,
        )
        process.start()
        theirs.close()
        return _Worker(process, ours, self._desks[i])


def deal(sizes: Sequence[int], workers: int) -> list[list[int]]:
    """Deals jobs out, longest first, each to the worker with the least to do; the same for the same sizes.

    Args:
        sizes: of the jobs.
        workers: how many there are, at least one.

    Returns:
        The jobs' indices, by worker. No worker has more than 4/3 of what the best deal would give the busiest one
        (Graham 1969, "Bounds on multiprocessing timing anomalies").
    """
    shares: list[list[int]] = [[] for _ in range(workers)]
    loads = [(0, i) for i in range(workers)]
    for job in sorted(range(len(sizes)), key=lambda j: -sizes[j]):
        load, i = heapq.heappop(loads)
        shares[i].append(job)
        heapq.heappush(loads, (load + sizes[job], i))
    return shares


def _encoded(plan: Plan, population: int) -> dict[Kind, tuple[int, np.dtype[np.generic]]]:
    """The length of an encoded vector in each kind of round, and its dtype."""
    kinds = (Kind.FIT,) if plan.evaluation is None else tuple(Kind)
    return {kind: pipeline.encoded(plan.at(kind), plan.at(kind).bounds(population)) for kind in kinds}
