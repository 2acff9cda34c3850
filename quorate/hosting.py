"""Several runs at once on one coordinator: each with its own plan, population and ledger, in a thread of its own.

What is wanted of a run (running, paused, stopped) is in the store beside its plan, so that a coordinator that comes up
again goes on with what it was told to. A run whose rounds were aborted too often waits and tries again, longer each
time; one that spent its budget or diverged has failed, and waits for its operator.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quorate import assembly, resolution
from quorate.endorsement import Endorsement
from quorate.errors import PlanError, QuorateError, RoundsAborted, StateError
from quorate.fleets import Enrolment
from quorate.logs import bound
from quorate.parts import make_part
from quorate.plan import FleetSection, Plan, Population
from quorate.planfile import format_plan, make_plan
from quorate.rounds import Deadlines, Outcome
from quorate.server.administration import RunEvent, RunState
from quorate.server.coordinator import RoundReport
from quorate.server.devices import Demand, DeviceFleet, DeviceService, Stopped
from quorate.server.records import Run, RunStatus
from quorate.server.store import Store

__all__ = ["Host"]

log = logging.getLogger(__name__)

RUNNING, PAUSED, STOPPED = "running", "paused", "stopped"
_LISTENING = ("listen", "folder", "enrolment", "insecure")
_BACK_OFF_S = (30.0, 3600.0)  # the first wait after too many aborted rounds, and the longest


class Host:
    """The runs of a coordinator; see `quorate.server.administration.HostedRuns`.

    Args:
        store: open, of all of them.
        service: where devices check in.
        enrolment: who is a member, where devices have certificates.
        endorse: signs the terms.
        population: whose budget every run counts towards; None: those of plans with a `[population]` only.
    """

    def __init__(
        self,
        store: Store,
        service: DeviceService,
        enrolment: Enrolment | None = None,
        endorse: Callable[[bytes], Endorsement] | None = None,
        population: Population | None = None,
    ):
        self.store, self.service, self.enrolment, self.endorse = store, service, enrolment, endorse
        self._population = population
        self._runs: dict[str, _HostedRun] = {}
        self._lock = threading.RLock()

    def recover(self) -> None:
        """Goes on with what an earlier process was told to run."""
        with self._lock:
            for run, (text, wanted) in self.store.hosted().items():
                try:
                    plan = self._read(text)[0]
                except PlanError as error:  # a task that is not installed any more, say
                    log.error("a run can't go on", extra={"run": run, "reason": str(error)})
                    continue
                self._runs[run] = _HostedRun(self, self.store.run(run), plan, wanted)
                if wanted != STOPPED and self.store.run(run).status != RunStatus.FINISHED:
                    self._runs[run].begin()

    def start(self, plan: str) -> RunState:
        """Starts a plan's run; a stopped or failed one goes on, a finished one stays finished.

        Raises:
            PlanError: it is not a plan for devices, or can't be run on them.
            StateError: it runs already.
        """
        read, wanted = self._read(plan)
        with self._lock:
            fleet = self._fleet(read, wanted)
            try:
                resolution.check_abilities(read, fleet)
                record = assembly.open_run(self.store, read)
            finally:
                fleet.close()
            held = self._runs.get(record.id)
            if held is not None and held.alive:
                raise StateError(f"run {record.id} of these terms is {held.state().status} already")
            self.store.host(record.id, format_plan(read), RUNNING)
            self._runs[record.id] = _HostedRun(self, record, read, RUNNING)
            if record.status != RunStatus.FINISHED:
                self._runs[record.id].begin()
            return self._runs[record.id].state()

    def states(self) -> list[RunState]:
        """Of every hosted run, oldest first."""
        with self._lock:
            return [held.state() for held in self._runs.values()]

    def state(self, run: str) -> RunState:
        """Of one."""
        return self._find(run).state()

    def pause(self, run: str) -> RunState:
        """Opens no more rounds; one that is open goes on."""
        return self._change(run, PAUSED)

    def resume(self, run: str) -> RunState:
        """Goes on."""
        return self._change(run, RUNNING)

    def stop(self, run: str) -> RunState:
        """Aborts the open round, and ends."""
        return self._change(run, STOPPED)

    def watch(self, run: str, told: Callable[[RunEvent], None]) -> Callable[[], None]:
        """Has a function told of what happens from now on."""
        held = self._find(run)
        held.watchers.append(told)
        return lambda: held.watchers.remove(told)

    def close(self, grace_s: float) -> None:
        """Opens no more rounds, gives those that are open a while to end, and aborts them then."""
        with self._lock:
            runs = [held for held in self._runs.values() if held.alive]
        for held in runs:
            held.leave()
        deadline = time.monotonic() + grace_s
        for held in runs:
            held.join(max(0.0, deadline - time.monotonic()))
        for held in runs:
            if held.alive:
                held.abort("the coordinator is going down")
        for held in runs:
            held.join(None)

    def _change(self, run: str, wanted: str) -> RunState:
        held = self._find(run)
        with self._lock:
            if held.record_status == RunStatus.FINISHED:
                raise StateError(f"run {held.run} is finished")
            self.store.want(held.run, wanted)
            if wanted == STOPPED:
                held.wanted = wanted
                held.abort("the run was stopped")
            elif held.alive:
                held.want(wanted)
            elif wanted == RUNNING:
                self._runs[held.run] = held = held.again()
                held.begin()
            else:
                raise StateError(f"run {held.run} is {held.state().status}: it can be resumed, not paused")
        if wanted == STOPPED:
            held.join(None)
        return held.state()

    def _find(self, prefix: str) -> _HostedRun:
        with self._lock:
            found = [held for run, held in self._runs.items() if run.startswith(prefix)]
        if len(found) != 1:
            known = ", ".join(self._runs) or "none"
            problem = "no run" if not found else f"{len(found)} runs"
            raise StateError(f"{problem} with an id that begins with {prefix!r} here; these exist: {known}")
        return found[0]

    def _read(self, text: str) -> tuple[Plan, _Wanted]:
        """The plan of a text, resolved, and what its `[fleet]` says."""
        try:
            content = tomllib.loads(text)
            if self._population is not None:
                content.setdefault("population", self._population.model_dump())
            plan = make_plan(content)
        except tomllib.TOMLDecodeError as error:
            raise PlanError(f"the plan is not TOML: {error}") from error
        if plan.fleet.kind != "devices" or plan.fleet.seed is not None:
            raise PlanError(
                f"fleet.kind: found {plan.fleet.kind!r}; a coordinator runs plans of real devices: accepted: "
                "'devices', with a population and without a seed"
            )
        wanted = _wanted(plan.fleet)
        if self._population not in (None, plan.population):
            raise PlanError(
                f"population: found {plan.population}, but every run of this coordinator counts towards the budget of "
                f"{self._population}; accepted: no [population]"
            )
        resolution.check_recorded(plan)
        return plan.resolved(wanted.population), wanted

    def _fleet(self, plan: Plan, wanted: _Wanted) -> DeviceFleet:
        demand = Demand(plan.task.resolve().name, wanted.population)
        return DeviceFleet(
            self.service,
            demand,
            enrolment=self.enrolment,
            endorse=self.endorse,
            deadlines=wanted.deadlines,
        )


@dataclass(frozen=True)
class _Wanted:
    """What `[fleet]` says of a hosted run.

    Args:
        population: how many devices wait when a round opens.
        deadlines: of every round.
    """

    population: int
    deadlines: Deadlines


def _wanted(fleet: FleetSection) -> _Wanted:
    """Where a coordinator listens is said when it is started, and not by a plan: that is passed over.

    Raises:
        PlanError: a value is out of its range.
    """

    def read(
        population: int,
        training_s: float = Deadlines.training_s,
        phase_s: float = Deadlines.phase_s,
    ) -> _Wanted:
        if population < 1:
            raise PlanError(
                f"population: found {population}; accepted: how many devices wait when a round opens, a whole number "
                "of at least 1"
            )
        return _Wanted(population, Deadlines(training_s, phase_s))

    said = {name: value for name, value in fleet.settings.items() if name not in _LISTENING}
    return make_part("fleet", read, said)


class _HostedRun:
    """One run: its thread, and what is known of it."""

    def __init__(self, host: Host, record: Run, plan: Plan, wanted: str):
        self._host, self._record, self._plan, self.wanted = host, record, plan, wanted
        self.run, self._fleet_wanted = record.id, _wanted(plan.fleet)
        self.watchers: list[Callable[[RunEvent], None]] = []
        self._fleet: DeviceFleet | None = None
        self._leaving = threading.Event()
        self._ended = STOPPED if wanted == STOPPED else ""
        self._reason = ""
        self._thread = threading.Thread(target=self._run, name=f"run {record.id}", daemon=True)

    # --- from other threads

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    @property
    def record_status(self) -> str:
        """As the store has it."""
        return self._host.store.run(self.run).status

    def begin(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def again(self) -> _HostedRun:
        """The same run, to be begun once more; who watched it goes on."""
        fresh = _HostedRun(self._host, self._record, self._plan, RUNNING)
        fresh.watchers = self.watchers
        return fresh

    def join(self, timeout_s: float | None) -> None:
        """Waits for the thread."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def want(self, wanted: str) -> None:
        """Paused, or running again."""
        self.wanted = wanted
        if self._fleet is not None:
            self._host.service.room.change(self._fleet.demand, paused=wanted == PAUSED)
        self._tell(RunEvent(self.state().status, reason=self._reason))

    def leave(self) -> None:
        """Opens no more rounds."""
        self._leaving.set()
        if self._fleet is not None:
            self._host.service.room.change(self._fleet.demand, stopped=True)

    def abort(self, reason: str) -> None:
        """Aborts the open round, and ends."""
        self.leave()
        if self._fleet is not None:
            self._fleet.stop(reason)

    def state(self) -> RunState:
        """Where it stands."""
        record, task = self._host.store.run(self.run), self._plan.task.resolve().name
        committed = [r for r in self._host.store.rounds(self.run) if r.status == Outcome.COMMITTED]
        return RunState(
            run=self.run,
            task=task,
            status=self._status(record),
            committed=record.committed,
            rounds=self._plan.rounds.count,
            waiting_devices=self._host.service.room.waiting(task),
            population=self.size,
            epsilons=committed[-1].epsilons if committed else {},
            created=record.created,
            reason=self._reason,
        )

    def _status(self, record: Run) -> str:
        if record.status == RunStatus.FINISHED:
            return "finished"
        if self._ended:
            return self._ended
        if self.wanted == PAUSED:
            return PAUSED
        asking = self._fleet is not None and self._fleet.demand.asking
        return "waiting" if asking or not self.alive else RUNNING

    # --- its own thread

    def _run(self) -> None:
        with bound(run=self.run):
            wait_s = _BACK_OFF_S[0]
            while True:
                try:
                    assembly.run_in(self._host.store, self, self._plan, self._report)
                    self._end("finished", "")
                except Stopped:
                    self._end(STOPPED, "")
                except RoundsAborted as aborted:
                    log.warning("the run waits before it goes on", extra={"reason": str(aborted)})
                    self._reason = str(aborted)
                    if not self._leaving.wait(wait_s):
                        wait_s = min(2 * wait_s, _BACK_OFF_S[1])
                        continue
                    self._end(STOPPED, "")
                except QuorateError as error:
                    self._end("failed", str(error))
                except Exception as error:  # a task's own, of whatever kind: the other runs go on
                    log.exception("the run failed")
                    self._end("failed", f"{type(error).__name__}: {error}")
                return

    def _end(self, status: str, reason: str) -> None:
        self._ended, self._reason = status, reason
        log.info("the run is %s", status, extra={"reason": reason})
        self._tell(RunEvent(status, reason=reason))

    def _report(self, report: RoundReport) -> None:
        self._host.service.metrics.reported(self.run, report)
        self._reason = report.reason or ""
        epsilons = report.epsilons
        event = RunEvent(
            status=RUNNING,
            round=report.number,
            version=report.version,
            outcome=report.outcome.value,
            cohort=report.cohort,
            survivors=report.survivors,
            lost=report.lost,
            metrics=report.metrics,
            epsilons={} if epsilons is None else {"released": epsilons.released, "server": epsilons.server},
            reason=self._reason,
        )
        with bound(round=report.number):
            log.info("the round is %s", report.outcome.value, extra={"fields": dataclasses.asdict(event)})
        self._tell(event)

    def _tell(self, event: RunEvent) -> None:
        for told in list(self.watchers):
            told(event)

    # --- the fleet's source, for `assembly.run_in`

    @property
    def size(self) -> int:
        """The population's size."""
        return self._fleet_wanted.population

    def section(self) -> FleetSection:
        """As it stands in the plan."""
        return self._plan.fleet

    def open(self, plan: Plan, directory: Path | None) -> DeviceFleet:
        """The fleet, as it is wanted now."""
        self._fleet = self._host._fleet(plan, self._fleet_wanted)
        room = self._host.service.room
        room.change(self._fleet.demand, paused=self.wanted == PAUSED, stopped=self._leaving.is_set())
        return self._fleet
