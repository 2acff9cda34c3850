"""The *ray* engine: actors of a Ray cluster as workers, which train, encode and add up their share of a cohort.

Data and plan are put into the object store once, the broadcast once a round. Partial sums stay there too, and are added
in a tree on the nodes where they lie; one vector comes back. Members are dealt out longest first by their number of
examples. There is one actor a processor, and a cluster that has grown gets more of them before the next round.

An actor that dies takes no round along: its share is cut in two, and both halves are done again by new actors; a member
whose actor dies when it is alone is lost, since it may be why. Partial sums that were lost with their node are made
again. A cluster that is not there yet is started on this machine, and ended with the engine. Ray's usage reports are
off.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from quorate.errors import MissingExtra, QuorateError
from quorate.plan import Plan
from quorate.rounds import Assignment, Member, State
from quorate.simulations.datasets import FederatedDataset
from quorate.simulations.engines.contract import Done, Order
from quorate.simulations.engines.processes import deal
from quorate.simulations.engines.sequential import one_by_one
from quorate.simulations.engines.site import InThisProcess, Site
from quorate.simulations.engines.vectorised import in_blocks

__all__ = ["RayActors"]

log = logging.getLogger(__name__)

_FAN_IN = 8  # partial sums that are added by one task
_ATTEMPTS = 3  # at a round whose partial sums are lost with their nodes

Share = tuple[Member, ...]


class RayActors:
    """Workers on a Ray cluster.

    Args:
        data: the clients'.
        plan: resolved.
        together: whether actors train their clients in blocks.
        workers: how many actors; None: one a processor of the cluster.
        address: of a cluster, as `ray.init` takes it; None: the one that this process is connected to, or a new one on
            this machine.

    Raises:
        MissingExtra: Ray is not installed.
        QuorateError: there is no cluster at the address.
    """

    def __init__(
        self, data: FederatedDataset, plan: Plan, together: bool, workers: int | None, address: str | None
    ):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray as imported
        except ImportError as error:
            raise MissingExtra("ray", "simulation on a Ray cluster") from error
        ray: Any = imported
        self._ray = ray
        self._owner = not ray.is_initialized()
        if self._owner:
            local: dict[str, Any] = (
                {"num_cpus": workers, "include_dashboard": False} if address is None else {}
            )
            try:
                ray.init(address=address or "local", log_to_driver=False, **local)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise QuorateError(f"fleet.address: no Ray cluster at {address!r}: {error}") from error
        self._data, self._workers = data, workers
        self._made_of = [ray.put(data), ray.put(plan)]
        self._together = together
        self._actor = ray.remote(num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD")(_Actor)
        self._add = ray.remote(num_cpus=0)(_add)
        self._actors: list[Any] = []
        self._enlist()

    def run(self, order: Order) -> Done:
        """Has the actors do an order; see the module for what happens when one dies."""
        self._enlist()
        assignment = self._ray.put(dataclasses.replace(order.assignment, members=(), terms=b""))
        for _ in range(_ATTEMPTS):
            try:
                return self._run(order, assignment)
            except (self._ray.exceptions.ObjectLostError, self._ray.exceptions.OwnerDiedError):
                log.warning("partial sums were lost with their node; the round's training is done again")
        raise QuorateError(f"a round's partial sums were lost {_ATTEMPTS} times")

    def close(self) -> None:
        """Ends the actors, and the cluster if it was started here."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []
        if self._owner and self._ray.is_initialized():
            self._ray.shutdown()

    @property
    def pids(self) -> tuple[int, ...]:
        """The actors' process ids, each on its node."""
        return tuple(self._ray.get([actor.pid.remote() for actor in self._actors]))

    def _enlist(self) -> None:
        """Starts the actors that there is room for now."""
        wanted = self._workers or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        while len(self._actors) < wanted:
            self._actors.append(self._new())

    def _new(self) -> Any:
        return self._actor.remote(*self._made_of, self._together)

    def _run(self, order: Order, assignment: Any) -> Done:
        sizes = [self._data.examples_of(member) for member in order.members]
        shares = [tuple(order.members[j] for j in share) for share in deal(sizes, len(self._actors)) if share]
        free, waiting = (
            list(range(len(self._actors)))[::-1],
            [(i, share) for i, share in enumerate(shares)][::-1],
        )
        busy: dict[Any, tuple[int, int, Share, Any]] = {}
        sums: list[list[Any]] = [[] for _ in shares]
        vectors: list[tuple[Share, np.ndarray]] = []
        states: dict[Member, State] = {}
        while waiting or busy:
            while waiting and free:
                place, share = waiting.pop()
                worker = free.pop()
                kept = {member: order.states[member] for member in share if order.states.get(member)}
                asked = assignment, share, kept, order.summed, order.discount
                told, total = self._actors[worker].work.remote(*asked)
                busy[told] = (worker, place, share, total)
            (told,), _ = self._ray.wait(list(busy), num_returns=1)
            worker, place, share, total = busy.pop(told)
            free.append(worker)
            try:
                members, own, single = self._ray.get(told)
            except self._ray.exceptions.RayActorError:
                self._actors[worker] = self._new()
                waiting += [(place, half) for half in _halves(share)]
                continue
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, QuorateError) else error from None
            states.update(own)
            vectors += [((member,), vector) for member, vector in zip(members, single, strict=False)]
            if members and order.summed:
                sums[place].append((members, total))
        if not order.summed:
            return Done(vectors, states)
        parts = [part for parts in sums for part in sorted(parts, key=lambda part: part[0])]
        members = tuple(member for chosen, _ in parts for member in chosen)
        return Done([(members, self._tree([total for _, total in parts]))] if parts else [], states)

    def _tree(self, parts: Sequence[Any]) -> np.ndarray:
        """The sum of partial sums, added where they lie."""
        while len(parts) > 1:
            groups = [parts[i : i + _FAN_IN] for i in range(0, len(parts), _FAN_IN)]
            parts = [self._add.remote(*group) if len(group) > 1 else group[0] for group in groups]
        try:
            total: np.ndarray = self._ray.get(parts[0])
        except self._ray.exceptions.RayTaskError as error:
            lost = self._ray.exceptions.ObjectLostError
            raise error.cause if isinstance(error.cause, lost) else error from None
        return total


def _halves(share: Share) -> list[Share]:
    """What is done again of a share whose actor died."""
    if len(share) == 1:
        log.warning("a worker of the simulation died while it trained %s, which is lost", share[0])
        return []
    log.warning("a worker of the simulation died with %d members, which are trained again", len(share))
    middle = len(share) // 2
    return [share[:middle], share[middle:]]


class _Actor:
    """A worker: a site in a process of Ray's."""

    def __init__(self, data: FederatedDataset, plan: Plan, together: bool):
        self._engine = InThisProcess(Site(data, plan, in_blocks if together else one_by_one, together))

    def pid(self) -> int:
        """Of its process."""
        return os.getpid()

    def work(
        self,
        assignment: Assignment,
        share: Share,
        states: dict[Member, State],
        summed: bool,
        discount: float,
    ) -> tuple[tuple[Share, dict[Member, State], list[np.ndarray]], np.ndarray | None]:
        """Who was trained, what they keep, single vectors; and apart from that the partial sum, which stays here."""
        done = self._engine.run(Order(assignment, share, states, summed, discount))
        kept = {member: state for member, state in done.states.items() if state}
        total = done.encoded[0][1] if summed and done.encoded else None
        single = [] if summed else [vector for _, vector in done.encoded]
        return (done.members, kept, single), total

    work.__ray_num_returns__ = 2  # type: ignore[attr-defined]


def _add(*parts: np.ndarray) -> np.ndarray:
    total = parts[0].copy()
    for part in parts[1:]:
        total += part
    return total
