"""The simulated fleet: clients that do not exist, over partitioned data.

An engine trains them: one by one, many at once, or in worker processes. The sum is the real one: with secure
aggregation each client has its own keys and masks and the whole protocol runs (*exact*), with the plain and the ideal
sum encoded vectors are added where they are made and no message is made. Clients drop out as they are told to, in the
phases that matter.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quorate.clients.states import ClientStates
from quorate.errors import PlanError, QuorumNotReached
from quorate.fleets import Ability, Identities
from quorate.parts import find_part
from quorate.plan import FleetSection, Plan
from quorate.privacy.secagg import AnyKey, Ed25519Identity
from quorate.randomness import Randomness, generator
from quorate.rounds import Assignment, Close, Closed, Member, Outcome
from quorate.server.sessions import drive
from quorate.simulations.datasets import FederatedDataset
from quorate.simulations.engines.choice import ENGINES, make_engine
from quorate.simulations.engines.contract import Order
from quorate.simulations.transport import InProcess
from quorate.summation import Sink, Summation

__all__ = ["SimulatedFleet", "Simulation", "simulation"]

_MESSAGES_BEFORE_MASKING = 2  # advertise, share
_MESSAGES_BEFORE_UNMASKING = 3  # … and the masked input


@dataclass(frozen=True)
class Simulation:
    """What a simulated fleet is made of.

    Args:
        data: the clients' data, and the server's held-out data.
        drop_before_masking: the probability that a member of a cohort falls silent before its masked input.
        drop_before_unmasking: … and after it, before the unmasking.
        seed: makes a run repeatable, and its ε a simulated one; None draws from the operating system.
        engine: how the clients are trained: `sequential`, `vectorised`, `processes`, or `auto`, which picks one of
            them and says why in the log. It changes a seeded model by the order of floating-point sums only.
        workers: of `processes`; None: one a core.
    """

    data: FederatedDataset
    drop_before_masking: float = 0.0
    drop_before_unmasking: float = 0.0
    seed: int | None = None
    engine: str = "auto"
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise PlanError(f"engine: found {self.engine!r}, accepted: {', '.join(ENGINES)}")
        if self.workers is not None and self.workers < 1:
            raise PlanError(f"workers: found {self.workers}, accepted: at least 1")
        for name in ("drop_before_masking", "drop_before_unmasking"):
            if not 0 <= getattr(self, name) < 1:
                raise PlanError(f"{name}: found {getattr(self, name)}, accepted: at least 0 and below 1")

    @property
    def size(self) -> int:
        """How many clients there are."""
        return len(self.data)

    def section(self) -> FleetSection:
        """How the fleet stands in a plan."""
        return FleetSection(kind="simulation", seed=self.seed)

    def open(self, plan: Plan, directory: Path | None) -> SimulatedFleet:
        """The fleet, ready for the rounds of a plan.

        Args:
            plan: resolved.
            directory: where clients' states are kept; None keeps them in memory.
        """
        return SimulatedFleet(self, plan, directory)


def simulation(
    dataset: str,
    clients: int,
    partition: str = "dirichlet",
    alpha: float | None = None,
    per_client: int | None = None,
    partition_seed: int = 0,
    drop_before_masking: float = 0.0,
    drop_before_unmasking: float = 0.0,
    seed: int | None = None,
    engine: str = "auto",
    workers: int | None = None,
) -> Simulation:
    """`[fleet] kind = "simulation"`.

    Args:
        dataset: an installed dataset, such as `digits`.
        clients: how many clients the training data are split over.
        partition: `iid`, `dirichlet` or `shards`.
        alpha: of a Dirichlet partition.
        per_client: of a partition by shards: how many a client gets.
        partition_seed: the partition's own seed.
        drop_before_masking: see `Simulation`.
        drop_before_unmasking: see `Simulation`.
        seed: see `Simulation`.
        engine: see `Simulation`.
        workers: see `Simulation`.
    """
    options = {"alpha": alpha, "per_client": per_client}
    chosen = {name: value for name, value in options.items() if value is not None}
    data: FederatedDataset = find_part("dataset", "quorate.datasets", dataset)().partition(
        partition, clients=clients, seed=partition_seed, **chosen
    )
    return Simulation(data, drop_before_masking, drop_before_unmasking, seed, engine, workers)


class SimulatedFleet:
    """A fleet of the clients of a `Simulation`."""

    abilities = frozenset(Ability)
    simulated = True
    identities = Identities(AnyKey(), Ed25519Identity.draw)  # there is nobody to enrol

    def __init__(self, simulation: Simulation, plan: Plan, directory: Path | None):
        self._simulation, self._seed = simulation, plan.fleet.seed
        self._linear = plan.strategy.resolve().aggregator.linear
        self._states = ClientStates(None if directory is None else directory / "clients.sqlite")
        self._randomness = Randomness.system() if self._seed is None else Randomness.from_seed(self._seed)
        self._data = simulation.data
        self.engine = make_engine(simulation.engine, simulation.workers, simulation.data, plan)

    def population(self) -> SimulatedFleet:
        """Itself: the clients of the dataset."""
        return self

    @property
    def size(self) -> int:
        """How many clients there are."""
        return self._simulation.size

    def member(self, index: int) -> Member:
        """The name of a client."""
        return self._data.member(index)

    def held_out(self) -> Any:
        """The dataset's test split."""
        return self._data.test

    def collect(self, assignment: Assignment, summation: Summation, sink: Sink, close: Close) -> Closed:
        """Has the engine train and encode, and sums what it gives."""
        drops = self._drops(assignment)
        members = assignment.members
        if summation.direct:
            members = tuple(m for m in members if drops.get(m) != _MESSAGES_BEFORE_MASKING)
            _check_quorum(assignment, len(members))
        states = {member: self._states.get(assignment.run, member) for member in members}
        done = self.engine.run(Order(assignment, members, states, summation.direct and self._linear))
        if summation.direct:  # what is not finite, or was lost with a worker, is not there
            _check_quorum(assignment, len(done.members))
            lost = Counter({"update": len(assignment.members) - len(done.members)})
            summation.journal.revealing()
            for chosen, encoded in done.encoded:
                sink.add(encoded if self._linear else encoded[None, :], chosen)
        else:
            streams = self._randomness.spawn("sums", assignment.round)
            halves = {
                chosen[0]: summation.client(encoded, streams.spawn(chosen[0]))
                for chosen, encoded in done.encoded
            }
            transport = InProcess(halves, drops, absent=[m for m in members if m not in halves])
            lost = drive(summation.server(sink), transport, members, assignment.deadlines, summation.journal)
        survivors = set(sink.result().survivors)
        kept = {member: state for member, state in done.states.items() if member in survivors}
        self._states.stage(assignment.run, assignment.round, kept)
        return Closed(survivors=tuple(m for m in assignment.members if m in survivors), lost=+lost)

    def conclude(self, run: str, round: int, outcome: Outcome) -> None:
        """The clients keep or drop what they staged."""
        self._states.conclude(run, round, outcome)

    def close(self) -> None:
        """Ends the engine's workers, and closes the file with the clients' states."""
        self.engine.close()
        self._states.close()

    def _drops(self, assignment: Assignment) -> dict[Member, int]:
        """After how many messages each member that drops out falls silent."""
        draws = generator(self._seed, "dropouts", assignment.round).random(len(assignment.members))
        masking = self._simulation.drop_before_masking
        unmasking = masking + (1 - masking) * self._simulation.drop_before_unmasking
        drops = {}
        for member, draw in zip(assignment.members, draws, strict=True):
            if draw < masking:
                drops[member] = _MESSAGES_BEFORE_MASKING
            elif draw < unmasking:
                drops[member] = _MESSAGES_BEFORE_UNMASKING
        return drops


def _check_quorum(assignment: Assignment, present: int) -> None:
    needed = assignment.bounds.min_survivors
    if present < needed:
        raise QuorumNotReached("update", present, needed)
