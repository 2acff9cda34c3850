"""`quorate privacy`: what was spent and what is left, and whether the ledger is whole."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from quorate.cli.rows import AsJson, show_rows
from quorate.cli.runs import Database, StateDirectory

if TYPE_CHECKING:
    from quorate.artifacts import Manifest
    from quorate.plan import Training
    from quorate.privacy import ExampleEpsilon, Ledger
    from quorate.privacy.ledger import LedgerRows
    from quorate.server.records import Run
    from quorate.server.store import Store

__all__ = ["app"]

app = typer.Typer(
    help="Account for privacy: spent, left, verified, calibrated, explained.", no_args_is_help=True
)

RunId = typer.Argument(
    None, metavar="[RUN]", help="A run's id, or how it begins; all runs if it is left out."
)


@app.command()
def spent(
    run_id: str | None = RunId,
    state: Path = StateDirectory,
    database: str | None = Database,
    as_json: bool = AsJson,
) -> None:
    """Say what runs have spent, by their ledgers, and of single examples, where clients train by DP-SGD."""
    from quorate.server.examples import example_spend

    found: list[dict[str, Any]] = []
    examples: list[ExampleEpsilon | None] = []
    for run, book, store in _ledgers(state, database, run_id):
        example = example_spend(store, run, _training(run))
        spend = None if book is None else book.spent()
        found.append(
            {
                "run": run.id,
                "rounds_charged": 0 if book is None else len(book.charged_rounds),
                "epsilon_released": None if spend is None else spend.released,
                "epsilon_server": spend.server if spend is not None and math.isfinite(spend.server) else None,
                "delta": None if spend is None else spend.delta,
                "neighbours": None if spend is None else spend.relation,
                "simulated": run.simulated if spend is None else spend.simulated,
            }
        )
        examples.append(example)
    if any(examples):
        for row, example in zip(found, examples, strict=True):
            row["epsilon_example"] = None if example is None else example.epsilon
            row["delta_example"] = None if example is None else example.delta
            row["neighbouring_examples"] = None if example is None else example.relation
    show_rows(found, as_json)


@app.command()
def budget(
    run_id: str | None = RunId,
    state: Path = StateDirectory,
    database: str | None = Database,
    as_json: bool = AsJson,
) -> None:
    """Say what runs may still spend: the released ε, and how many rounds of training like the last one that is.

    They are counted as if no evaluation came between them. Where a plan has a budget for single examples, what is left
    of it for the member that was drawn most often. Then what each population may: all runs that count towards its
    budget spend from it together.
    """
    from quorate.server.store import opened

    found: list[dict[str, Any]] = []
    examples: list[dict[str, Any] | None] = []
    with opened(state, database) as store:
        for run, book in _books(store, run_id):
            row: dict[str, Any] = {"run": run.id, "population": run.population}
            row |= {"budget": None, "spent": None, "left": None, "rounds_left": None}
            limit = None if book is None else book.budget
            if book is not None and limit is not None:
                used = book.spent().released
                row |= {"budget": limit, "spent": used, "left": limit - used}
                like = _last_training(store, run, book)
                row["rounds_left"] = None if like is None else book.rounds_left(like, 10_000)
            found.append(row)
            examples.append(_examples_left(store, run))
        named = {row["population"] for row in found}
        shared = [
            {
                "population": kept.name,
                "runs": sum(run.population == kept.name for run in store.runs()),
                "budget": kept.epsilon,
                "spent": (used := store.account(kept.name).spent().released),
                "left": kept.epsilon - used,
                "delta": kept.delta,
            }
            for kept in store.populations()
            if kept.name in named
        ]
    if any(examples):
        nothing = dict.fromkeys(("budget_example", "spent_example", "left_example"))
        found = [row | (own or nothing) for row, own in zip(found, examples, strict=True)]
    if as_json:
        typer.echo(json.dumps({"rows": found, "populations": shared}))
        return
    show_rows(found, as_json=False)
    if shared:
        typer.echo()
        show_rows(shared, as_json=False)


@app.command()
def verify(
    run_id: str | None = RunId,
    state: Path = StateDirectory,
    database: str | None = Database,
    manifests: list[Path] = typer.Option(
        [],
        "--manifest",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="A published version's manifest.json, as it was pulled: its run's ledger must have the row that it names.",
    ),
) -> None:
    """Check ledgers: every row follows the one before it, and every round that could release something is charged.

    And that they are the ledgers of what was published: a version's manifest names the ledger's last row of its time.
    The versions that the state directory knows of are checked, where their registry is here, and all --manifest files.
    """
    from quorate.artifacts import Manifest
    from quorate.errors import PlanError, VerificationFailed
    from quorate.server.store import opened

    shown = [Manifest.from_bytes(path.read_bytes()) for path in manifests]
    with opened(state, database) as store:
        asked = [run_id] if run_id is not None or not shown else list(dict.fromkeys(m.run for m in shown))
        books = [found for each in asked for found in _books(store, each)]
        strangers = {manifest.run for manifest in shown} - {run.id for run, _ in books}
        if strangers:
            raise PlanError(
                f"--manifest: found a version of run {strangers.pop()}; accepted: of run {run_id}"
            )
        for run, book in books:
            versions = [manifest for manifest in shown if manifest.run == run.id]
            versions += [manifest for manifest in _published(store, run) if manifest not in versions]
            if book is None:
                _check_unclaimed(run, versions)
                typer.echo(f"run {run.id}: no privacy is claimed, so there is no ledger")
                continue
            book.verify()
            charged = set(book.charged_rounds)
            missing = [
                past.number
                for past in store.rounds(run.id)
                if (past.revealing or past.status == "committed") and past.number not in charged
            ]
            if missing:
                raise VerificationFailed(
                    f"run {run.id}: rounds {', '.join(map(str, missing))} could release something and are not charged"
                )
            rows = [_checked(manifest, run, book) for manifest in versions]
            typer.echo(f"run {run.id}: good; {len(charged)} rounds charged, head {book.head.hex()[:16]}")
            for row in rows:
                typer.echo(f"  {row}")


def _ledgers(
    state: Path, database: str | None, run_id: str | None
) -> Iterator[tuple[Run, Ledger | None, Store]]:
    from quorate.server.store import opened

    with opened(state, database) as store:
        for run, book in _books(store, run_id):
            yield run, book, store


def _books(store: Store, run_id: str | None) -> Iterator[tuple[Run, Ledger | None]]:
    """Runs with their ledgers; None where no privacy is claimed."""
    from quorate.privacy import Ledger

    for run in store.runs() if run_id is None else [store.run(run_id)]:
        claimed = _claimed(run, store.ledger(run.id))
        yield (
            run,
            None
            if claimed is None
            else Ledger(store.ledger(run.id), delta=claimed.delta, budget=claimed.budget),
        )


@dataclass(frozen=True)
class _Claimed:
    """The δ of a run's ε, and the most `released` ε that it may come to."""

    delta: float
    budget: float | None


def _claimed(run: Run, rows: LedgerRows) -> _Claimed | None:
    """What a run's terms say of its ledger, as they were resolved; None where no privacy is claimed."""
    from quorate.errors import PlanError
    from quorate.plan import EngineSection

    terms = json.loads(run.terms)
    if "engine" not in terms:
        section = terms["privacy"]
        return None if section["mechanism"] == "none" else _Claimed(section["delta"], section.get("budget"))
    source = EngineSection(**terms["engine"]).resolve()
    if not rows.entries():  # an engine that names no event
        return None
    if source.delta is None:
        raise PlanError(
            f"engine.delta: run {run.id} left it to its population, which its terms do not say; accepted: a plan that "
            "gives engine.delta, or the ε that the run itself printed"
        )
    return _Claimed(source.delta, source.budget)


def _examples_left(store: Store, run: Run) -> dict[str, float] | None:
    """What a run may still cost an example of the member that was drawn most often; None without such a budget."""
    from quorate.server.examples import example_spend

    training = _training(run)
    spend, limit = (
        example_spend(store, run, training),
        None if training.dp_sgd is None else training.dp_sgd.limit,
    )
    if spend is None or limit is None:
        return None
    return {"budget_example": limit, "spent_example": spend.epsilon, "left_example": limit - spend.epsilon}


def _last_training(store: Store, run: Run, book: Ledger) -> int | None:
    """The last round of training that is charged."""
    from quorate.rounds import Kind

    charged = set(book.charged_rounds)
    training = [past.number for past in store.rounds(run.id) if past.kind is Kind.FIT]
    return max((number for number in training if number in charged), default=None)


def _published(store: Store, run: Run) -> Iterator[Manifest]:
    """The manifests of a run's versions, where their registry is on this machine."""
    from quorate.errors import RegistryError
    from quorate.server.registry import Registry

    for version in store.versions(run.id):
        try:
            yield Registry(version["registry"]).manifest(version["model"], version["version"])
        except RegistryError as error:
            typer.echo(f"run {run.id}: version {version['version']} can't be looked at: {error}", err=True)


def _checked(manifest: Manifest, run: Run, book: Ledger) -> str:
    """Says which row of the ledger a version names.

    Raises:
        VerificationFailed: it names none of them: rows were changed, or cut off, since it was published.
    """
    from quorate.errors import VerificationFailed

    version, head = f"version {manifest.version} of {manifest.model!r}", manifest.privacy.ledger
    if manifest.terms != run.terms_hash:
        raise VerificationFailed(f"run {run.id}: {version} is of other terms, {manifest.terms}")
    if head is None:
        return f"{version} does not say which row was the last"
    row = book.row_of(head)
    if row is None:
        raise VerificationFailed(
            f"run {run.id}: the ledger has no row {head}, which was its last one when {version} was published: rows "
            "were changed, or cut off, since then"
        )
    return f"{version}: row {row} was the last one when it was published, and is there"


def _check_unclaimed(run: Run, versions: list[Manifest]) -> None:
    """A version that names a row of a ledger is of a run that has one."""
    from quorate.errors import VerificationFailed

    for manifest in versions:
        if manifest.privacy.ledger is not None:
            raise VerificationFailed(
                f"run {run.id}: there is no ledger, and version {manifest.version} of {manifest.model!r} names a row "
                "of it"
            )


def _training(run: Run) -> Training:
    """`[training]` of a run's terms."""
    from quorate.plan import Training

    return Training(**json.loads(run.terms)["training"])
