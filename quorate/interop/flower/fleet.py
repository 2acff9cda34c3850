"""`fleet.kind = "flower"`: the nodes of a Flower SuperLink as members.

The rounds are ours, secure aggregation included: their frames ride in Flower's messages. The coordinator either starts
a run of the SuperLink itself (`Flower`), or is called by a ServerApp with a grid (`OverGrid`), and then runs wherever
Flower runs: on a SuperLink's own executor, or in Flower's simulation.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from flwr.serverapp import Grid

from quorate.errors import PlanError, QuorateError
from quorate.interop.flower.apps import write_app
from quorate.interop.flower.internals import Run, build
from quorate.interop.flower.transport import GridTransport
from quorate.parts import find_part
from quorate.plan import FleetSection, Plan
from quorate.rounds import Deadlines, Member
from quorate.server.remote import RemoteFleet

__all__ = ["Flower", "FlowerFleet", "OverGrid", "flower"]

log = logging.getLogger(__name__)

_PATIENCE_S = 120.0  # until as many nodes are there as the plan counts on


@dataclass(frozen=True)
class Flower:
    """The nodes of a SuperLink, driven from this process.

    Args:
        superlink: its address, `host:port`; it runs with `--isolation process`, so that it starts no server app itself.
        nodes: how many nodes are counted on; the run begins when they are there.
        app: the directory of the app whose ClientApp stock SuperNodes run; None: one made from the plan.
        root_certificates: a PEM file to verify the SuperLink with; None connects without TLS.
        held_out: an installed dataset whose test examples the server evaluates on.
        training_s: see `Deadlines`.
        phase_s: see `Deadlines`.
    """

    superlink: str
    nodes: int
    app: str | None = None
    root_certificates: str | None = None
    held_out: str | None = None
    training_s: float = Deadlines.training_s
    phase_s: float = Deadlines.phase_s

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise PlanError(f"nodes: found {self.nodes}, accepted: at least 1")
        Deadlines(self.training_s, self.phase_s)

    @property
    def size(self) -> int:
        """How many nodes are counted on."""
        return self.nodes

    def section(self) -> FleetSection:
        """How the fleet stands in a plan."""
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return FleetSection(kind="flower", **given)

    def open(self, plan: Plan, directory: Path | None) -> FlowerFleet:
        """Starts a run of the SuperLink and waits for its nodes.

        Raises:
            QuorateError: the SuperLink can't be reached, or too few nodes came in time.
        """
        with tempfile.TemporaryDirectory(prefix="quorate-app-") as made:
            app = Path(self.app) if self.app is not None else write_app(plan, Path(made) / "quorate-app")
            bundle = build(app)
        certificates = None if self.root_certificates is None else Path(self.root_certificates).read_bytes()
        run = Run(self.superlink, bundle, certificates)
        try:
            return FlowerFleet(run.grid, self.nodes, _held_out(self.held_out), self._deadlines, run)
        except BaseException as failure:
            run.close(failure)
            raise

    @property
    def _deadlines(self) -> Deadlines:
        return Deadlines(self.training_s, self.phase_s)


def flower(
    superlink: str,
    nodes: int,
    app: str | None = None,
    root_certificates: str | None = None,
    held_out: str | None = None,
    training_s: float = Deadlines.training_s,
    phase_s: float = Deadlines.phase_s,
    seed: int | None = None,
) -> Flower:
    """`[fleet] kind = "flower"`; see `Flower`.

    Raises:
        PlanError: a value is out of its range, or there is a seed: real members are not repeatable.
    """
    if seed is not None:
        raise PlanError(f"seed: found {seed}; a seed is for simulations, accepted: none")
    return Flower(superlink, nodes, app, root_certificates, held_out, training_s, phase_s)


@dataclass(frozen=True, eq=False)
class OverGrid:
    """The nodes of a grid that a ServerApp was given.

    Args:
        grid: as Flower gave it.
        nodes: how many nodes are counted on.
        held_out: the server's own examples to evaluate on, or None.
        deadlines: of each round.
    """

    grid: Grid
    nodes: int
    held_out: Any = None
    deadlines: Deadlines = dataclasses.field(default_factory=Deadlines)

    @property
    def size(self) -> int:
        """How many nodes are counted on."""
        return self.nodes

    def section(self) -> FleetSection:
        """How the fleet stands in a plan; a grid can't be written down."""
        return FleetSection(kind="flower")

    def open(self, plan: Plan, directory: Path | None) -> FlowerFleet:
        """Waits for the nodes.

        Raises:
            QuorateError: too few nodes came in time.
        """
        return FlowerFleet(self.grid, self.nodes, self.held_out, self.deadlines)


class Closing(Protocol):
    """What a fleet ends when it is closed."""

    def close(self, failure: BaseException | None) -> None:
        """Ends it, as failed if something failed."""
        ...


class FlowerFleet(RemoteFleet):
    """Members that are Flower's nodes.

    Args:
        grid: of a run whose clients are ours.
        nodes: how many nodes are counted on.
        held_out: the server's own examples.
        deadlines: of each round.
        run: closed with the fleet.
        simulated: whether the nodes exist in a simulation only.
    """

    def __init__(
        self,
        grid: Grid,
        nodes: int,
        held_out: Any,
        deadlines: Deadlines,
        run: Closing | None = None,
        simulated: bool = False,
    ):
        self.simulated = simulated
        self._grid_transport, self._run, self._phase_s = GridTransport(grid), run, deadlines.phase_s
        nodes_there = _Nodes(self._grid_transport, nodes)
        super().__init__(self._grid_transport, nodes_there, held_out, deadlines=deadlines)

    def close(self, failure: BaseException | None = None) -> None:
        """Tells the nodes how the last round ended, and ends the run; a failed one as failed."""
        try:
            self._grid_transport.close(min(self._phase_s, 30.0))
        finally:
            if self._run is not None:
                self._run.close(failure)


class _Nodes:
    """A seat for each node that is counted on; one that was given up leaves its seat to one that came.

    Seats are drawn, not nodes: a node that is gone drops out of the round, as members do.
    """

    def __init__(self, transport: GridTransport, size: int):
        self._transport = transport
        self._seats = _gathered(transport, size)

    @property
    def size(self) -> int:
        return len(self._seats)

    @property
    def present(self) -> int:
        return len(self._seats)

    def those_present(self, indices: Sequence[int]) -> Sequence[int]:
        return indices

    def member(self, index: int) -> Member:
        listed = self._transport.listed(self._transport.roll_call_s)
        if self._seats[index] not in listed:
            new = listed.difference(self._seats)
            if new:
                gone, self._seats[index] = self._seats[index], min(new, key=int)
                log.info("node %s takes the seat of %s", self._seats[index], gone)
        return self._seats[index]


def _gathered(transport: GridTransport, size: int) -> list[Member]:
    deadline = time.monotonic() + _PATIENCE_S
    while len(listed := transport.listed()) < size:
        if time.monotonic() > deadline:
            raise QuorateError(
                f"fleet.nodes: {size} nodes are counted on, {len(listed)} came in {_PATIENCE_S:g} seconds"
            )
        time.sleep(0.2)
    return sorted(listed, key=int)[:size]


def _held_out(dataset: str | None) -> Any:
    return None if dataset is None else find_part("fleet.held_out", "quorate.datasets", dataset)().test
