"""The coordinator's memory: runs, rounds, checkpoints, the ledger's rows and what was published, in one database.

Every transition of a round is one transaction, synced to the disk before the call returns. What leaves the coordinator
is written here first, so a coordinator that was killed at any point finds, at its next start, every charge it made and
every round it had open. A committed round's checkpoint replaces the one before it; history stays.
"""

from __future__ import annotations

import datetime
import json
import os
import secrets
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quorate.errors import StateError
from quorate.privacy import PopulationAccount
from quorate.rounds import Kind, Member, Outcome
from quorate.server import statements
from quorate.server.faults import Point
from quorate.server.journal import LedgerTable, RoundJournal, append_entry
from quorate.server.records import PopulationBudget, Round, Run, RunStatus
from quorate.server.schema import (
    CHECKPOINTS,
    COUNTED,
    HOSTED,
    PARTICIPATIONS,
    POPULATIONS,
    ROUNDS,
    RUNS,
    VERSIONS,
    sa,
)
from quorate.server.state_database import StateDatabase

__all__ = ["Store", "opened"]

_NAMED = 500  # members that one statement names


class Store:
    """The state of a coordinator: one process writes at a time; any number may read.

    Args:
        directory: made if it is not there; None keeps no files.
        database: `postgresql://…`; None for `quorate.sqlite` in the directory, or in memory without one.
        exclusive: to write; False only reads.

    Raises:
        StateError: another process writes there, or the directory or the database can't be used.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None,
        *,
        database: str | None = None,
        exclusive: bool = True,
    ):
        self.directory = None if directory is None else Path(directory)
        self._database = StateDatabase(self.directory, database, exclusive=exclusive)
        self._accounts: dict[str, PopulationAccount] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Closes the database; another process may write there then."""
        self._database.close()

    # --- runs

    def open_run(
        self, terms: bytes, terms_hash: str, *, simulated: bool, budget: PopulationBudget | None = None
    ) -> Run:
        """The run with these terms: the one that exists, or a new one.

        Args:
            terms: the exact bytes.
            terms_hash: by which it is found again.
            simulated: whether a seed makes its randomness.
            budget: of the population, towards which all of its rounds count from now on, those of before included.

        Raises:
            StateError: the population has another budget, or the run counts towards another one's.
        """
        with self._database.writing(Point.OPEN_RUN) as connection:
            row = connection.execute(sa.select(RUNS.c.id).where(RUNS.c.terms_hash == terms_hash)).first()
            if row is None:
                connection.execute(
                    RUNS.insert().values(
                        id=secrets.token_hex(8),
                        terms_hash=terms_hash,
                        terms=terms,
                        simulated=simulated,
                        status=RunStatus.OPEN,
                        created=_now(),
                    )
                )
            _count_towards(connection, terms_hash, budget)
        return self._find(RUNS.c.terms_hash == terms_hash)[0]

    def run(self, id_prefix: str) -> Run:
        """The run whose id begins with the given characters.

        Raises:
            StateError: there is none, or more than one.
        """
        found = self._find(RUNS.c.id.startswith(id_prefix, autoescape=True))
        if len(found) != 1:
            known = ", ".join(run.id for run in self.runs()) or "none"
            problem = "no run" if not found else f"{len(found)} runs"
            raise StateError(f"{problem} with an id that begins with {id_prefix!r}; these exist: {known}")
        return found[0]

    def runs(self) -> list[Run]:
        """All runs, oldest first."""
        return self._find(sa.true())

    def finish(self, run: str) -> None:
        """Marks the run as finished."""
        self._write(Point.FINISH_RUN, RUNS.update().where(RUNS.c.id == run).values(status=RunStatus.FINISHED))

    def _find(self, where: Any) -> list[Run]:
        committed = (
            sa.select(sa.func.count())
            .where(
                ROUNDS.c.run == RUNS.c.id,
                ROUNDS.c.status == Outcome.COMMITTED,
                ROUNDS.c.kind == Kind.FIT.value,
            )
            .scalar_subquery()
        )
        query = (
            sa.select(RUNS, COUNTED.c.population, committed.label("committed"))
            .join_from(RUNS, COUNTED, isouter=True)
            .where(where)
            .order_by(RUNS.c.created, RUNS.c.id)
        )
        with self._database.reading() as connection:
            return [
                Run(
                    id=row.id,
                    terms_hash=row.terms_hash,
                    terms=row.terms,
                    simulated=row.simulated,
                    status=row.status,
                    created=row.created,
                    committed=row.committed,
                    population=row.population,
                )
                for row in connection.execute(query)
            ]

    def host(self, run: str, plan: str, wanted: str) -> None:
        """Notes that a coordinator is to run this run, by the plan's text, whenever it is up.

        Args:
            run: its id.
            plan: TOML; it replaces an earlier one of the same terms.
            wanted: `running`, `paused` or `stopped`.
        """
        with self._database.writing(Point.HOST_RUN) as connection:
            connection.execute(HOSTED.delete().where(HOSTED.c.run == run))
            connection.execute(HOSTED.insert().values(run=run, plan=plan, wanted=wanted))

    def want(self, run: str, wanted: str) -> None:
        """Notes what is wanted of a hosted run from now on."""
        self._write(Point.WANT_RUN, HOSTED.update().where(HOSTED.c.run == run).values(wanted=wanted))

    def hosted(self) -> dict[str, tuple[str, str]]:
        """By run: the plan's text, and what is wanted of it."""
        query = sa.select(HOSTED).join_from(HOSTED, RUNS).order_by(RUNS.c.created, RUNS.c.id)
        with self._database.reading() as connection:
            return {row.run: (row.plan, row.wanted) for row in connection.execute(query)}

    # --- rounds

    def open_round(self, run: str, base_version: int, kind: Kind = Kind.FIT) -> int:
        """Opens a round under a number that was never used before in the run, and returns the number (from 1)."""
        with self._database.writing(Point.OPEN_ROUND) as connection:
            number: int = (connection.scalar(statements.LAST_ROUND, {"of_run": run}) or 0) + 1
            values = {
                "run": run,
                "number": number,
                "kind": kind.value,
                "base_version": base_version,
                "status": "open",
                "revealing": False,
                "opened": _now(),
            }
            connection.execute(statements.ADD_ROUND, values)
        return number

    def assign(self, run: str, number: int, members: Collection[Member]) -> None:
        """Notes a round's cohort, before anything is sent to it: none of them is in a sum yet."""
        rows = [{"run": run, "round": number, "member": member, "in_sum": False} for member in members]
        if rows:
            with self._database.writing(Point.ASSIGN) as connection:
                connection.execute(statements.ADD_PARTICIPATION, rows)

    def commit(
        self,
        run: str,
        number: int,
        *,
        version: int,
        state: bytes | None,
        cohort: int,
        survivors: Collection[Member],
        lost: Mapping[str, int],
        metrics: Mapping[str, float],
        epsilons: Mapping[str, float],
    ) -> None:
        """Closes the round as committed, notes who is in the sum, and replaces the checkpoint, in one transaction.

        A round that leaves the state as it was, an evaluation, has none to replace the checkpoint with.
        """
        with self._database.writing(Point.COMMIT) as connection:
            of_round: dict[str, Any] = {"of_run": run, "of_round": number}
            values = {
                "status": Outcome.COMMITTED.value,
                "closed": _now(),
                "cohort": cohort,
                "survivors": len(survivors),
                "lost": json.dumps(dict(lost)),
                "metrics": json.dumps(dict(metrics)),
                "epsilons": json.dumps(dict(epsilons)),
            }
            if connection.execute(statements.CHANGE_ROUND, of_round | values).rowcount != 1:
                raise StateError(f"round {number} of run {run} is not open")
            summed = list(survivors)
            if len(summed) == cohort:
                connection.execute(statements.PUT_ALL_IN_SUM, of_round)
            else:
                for start in range(0, len(summed), _NAMED):
                    chosen = {"of_members": summed[start : start + _NAMED]}
                    connection.execute(statements.PUT_IN_SUM, of_round | chosen)
            if state is not None:
                connection.execute(statements.DROP_CHECKPOINT, of_round)
                kept = {"run": run, "version": version, "state": state}
                connection.execute(statements.ADD_CHECKPOINT, kept)

    def abort(self, run: str, number: int, reason: str, refund: bytes | None = None) -> None:
        """Closes the round as aborted, and adds the ledger's row that takes its charge back, in one transaction.

        Args:
            run: its id.
            number: of the round.
            reason: why it is aborted.
            refund: the row; None if the charge stays, or there is none.
        """
        with self._database.writing(Point.ABORT) as connection:
            values = {"status": Outcome.ABORTED.value, "closed": _now(), "reason": reason}
            connection.execute(statements.CHANGE_ROUND, {"of_run": run, "of_round": number} | values)
            if refund is not None:
                append_entry(connection, run, refund)

    def rounds(self, run: str) -> list[Round]:
        """All rounds of a run, in order."""
        query = sa.select(ROUNDS).where(ROUNDS.c.run == run).order_by(ROUNDS.c.number)
        with self._database.reading() as connection:
            return [
                Round(
                    number=row.number,
                    kind=Kind(row.kind),
                    base_version=row.base_version,
                    status=row.status,
                    revealing=row.revealing,
                    opened=row.opened,
                    closed=row.closed,
                    cohort=row.cohort,
                    survivors=row.survivors,
                    lost=json.loads(row.lost or "{}"),
                    metrics=json.loads(row.metrics or "{}"),
                    epsilons=json.loads(row.epsilons or "{}"),
                    reason=row.reason,
                )
                for row in connection.execute(query)
            ]

    def members_in_sums(self, run: str, last: int) -> set[Member]:
        """Who is in the sum of any of the last committed rounds of training, `last` in number."""
        recent = (
            sa.select(ROUNDS.c.number)
            .where(
                ROUNDS.c.run == run,
                ROUNDS.c.status == Outcome.COMMITTED.value,
                ROUNDS.c.kind == Kind.FIT.value,
            )
            .order_by(ROUNDS.c.number.desc())
            .limit(last)
        )
        query = sa.select(PARTICIPATIONS.c.member).where(
            PARTICIPATIONS.c.run == run, PARTICIPATIONS.c.in_sum, PARTICIPATIONS.c.round.in_(recent)
        )
        with self._database.reading() as connection:
            return set(connection.execute(query).scalars())

    def most_participations(self, run: str, until: int) -> int:
        """In how many rounds up to the given one the member was drawn that was drawn most often.

        Counted are the rounds of which something computed from clients' data can have been released.
        """
        counts = _participations(run, ROUNDS.c.number <= until).subquery()
        with self._database.reading() as connection:
            return int(connection.scalar(sa.select(sa.func.max(counts.c.times))) or 0)

    def drawn_often(self, run: str, at_least: int) -> dict[Member, int]:
        """The members that were drawn in so many rounds, counted as in `most_participations`; each with how many."""
        counts = _participations(run, sa.true()).having(sa.func.count() >= at_least)
        with self._database.reading() as connection:
            return {row.member: row.times for row in connection.execute(counts)}

    def outcomes(self, run: str, number: int) -> dict[Member, Outcome]:
        """How a round ended for each member of its cohort; empty while it is open, or if nobody was asked.

        Committed for those whose updates are in the sum of a committed round; for everybody else the round was as
        good as aborted.
        """
        return self._ended(run, number, statements.ENDED)

    def outcome(self, run: str, number: int, member: Member) -> Outcome | None:
        """How a round ended for one member; None while it is open, or if the member was not in its cohort."""
        return self._ended(run, number, statements.ENDED.where(PARTICIPATIONS.c.member == member)).get(member)

    def is_open(self, run: str, number: int) -> bool:
        """Whether a round is under way."""
        query = sa.select(ROUNDS.c.status).where(ROUNDS.c.run == run, ROUNDS.c.number == number)
        with self._database.reading() as connection:
            return bool(connection.scalar(query) == "open")

    def _ended(self, run: str, number: int, query: sa.Select[Any]) -> dict[Member, Outcome]:
        with self._database.reading() as connection:
            return {
                member: Outcome.COMMITTED if in_sum and committed else Outcome.ABORTED
                for member, in_sum, committed in connection.execute(
                    query, {"of_run": run, "of_round": number}
                )
            }

    def checkpoint(self, run: str) -> tuple[int, bytes] | None:
        """The number of committed rounds and the state after the last of them; None before the first."""
        with self._database.reading() as connection:
            row = connection.execute(sa.select(CHECKPOINTS).where(CHECKPOINTS.c.run == run)).first()
        return None if row is None else (row.version, row.state)

    def journal(self, run: str, number: int) -> RoundJournal:
        """The write-ahead journal of a round."""
        return RoundJournal(self._database, run, number)

    def ledger(self, run: str) -> LedgerTable:
        """The rows of a run's ledger."""
        return LedgerTable(self._database, run)

    # --- populations

    def populations(self) -> list[PopulationBudget]:
        """Those that have a budget, by name."""
        with self._database.reading() as connection:
            rows = connection.execute(sa.select(POPULATIONS).order_by(POPULATIONS.c.name))
            return [PopulationBudget(row.name, row.epsilon, row.delta) for row in rows]

    def account(self, population: str) -> PopulationAccount:
        """What a population's runs spend together: one for all who ask, so that they charge one after the other."""
        with self._lock:
            if population not in self._accounts:
                budget = next(found for found in self.populations() if found.name == population)
                self._accounts[population] = PopulationAccount(
                    population, budget.epsilon, budget.delta, lambda: self._ledgers(population)
                )
            return self._accounts[population]

    def _ledgers(self, population: str) -> list[LedgerTable]:
        return [self.ledger(run.id) for run in self._find(COUNTED.c.population == population)]

    # --- versions

    def record_version(self, run: str, round: int, registry: str, model: str, version: int) -> None:
        """Notes that the state after a round was published; the registry is what counts, this only refers to it."""
        values = {"run": run, "round": round, "registry": registry, "model": model, "version": version}
        with self._database.writing(Point.VERSION) as connection:
            connection.execute(
                VERSIONS.delete().where(
                    VERSIONS.c.run == run, VERSIONS.c.round == round, VERSIONS.c.registry == registry
                )
            )
            connection.execute(VERSIONS.insert().values(**values))

    def versions(self, run: str) -> list[Mapping[str, Any]]:
        """What was published: round, registry, model and version, in order."""
        query = sa.select(VERSIONS).where(VERSIONS.c.run == run).order_by(VERSIONS.c.round)
        with self._database.reading() as connection:
            return [dict(row._mapping) for row in connection.execute(query)]

    def _write(self, point: Point, statement: sa.Executable) -> None:
        with self._database.writing(point) as connection:
            connection.execute(statement)


@contextmanager
def opened(directory: str | os.PathLike[str], database: str | None = None) -> Iterator[Store]:
    """A store to read from; see `Store`.

    Raises:
        StateError: there is none.
    """
    store = Store(directory, database=database, exclusive=False)
    try:
        yield store
    finally:
        store.close()


def _count_towards(connection: sa.Connection, terms_hash: str, budget: PopulationBudget | None) -> None:
    """Notes towards which population's budget a run counts. A run never leaves one, and none ever grows."""
    run = connection.scalar(sa.select(RUNS.c.id).where(RUNS.c.terms_hash == terms_hash))
    counted = connection.scalar(sa.select(COUNTED.c.population).where(COUNTED.c.run == run))
    if counted is not None and (budget is None or budget.name != counted):
        found = "no population" if budget is None else f"the population {budget.name!r}"
        raise StateError(
            f"population.name: found {found}, but run {run} of these terms counts towards the budget of {counted!r}; "
            f"accepted: {counted!r}"
        )
    if budget is None:
        return
    known = connection.execute(sa.select(POPULATIONS).where(POPULATIONS.c.name == budget.name)).first()
    if known is None:
        values = {"name": budget.name, "epsilon": budget.epsilon, "delta": budget.delta}
        connection.execute(POPULATIONS.insert().values(**values))
    elif (known.epsilon, known.delta) != (budget.epsilon, budget.delta):
        raise StateError(
            f"population.epsilon: found {budget.epsilon:g} at delta {budget.delta:g}, but the runs over "
            f"{budget.name!r} share a budget of {known.epsilon:g} at delta {known.delta:g} here; accepted: that one, "
            "since a budget that could be raised would be none"
        )
    if counted is None:
        connection.execute(COUNTED.insert().values(run=run, population=budget.name))


def _participations(run: str, where: Any) -> Any:
    """Members, and how many `times` each was drawn for a round of which something can have been released."""
    return (
        sa.select(PARTICIPATIONS.c.member, sa.func.count().label("times"))
        .select_from(sa.join(PARTICIPATIONS, ROUNDS))
        .where(
            PARTICIPATIONS.c.run == run,
            where,
            sa.or_(ROUNDS.c.revealing, ROUNDS.c.status == Outcome.COMMITTED.value),
        )
        .group_by(PARTICIPATIONS.c.member)
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
