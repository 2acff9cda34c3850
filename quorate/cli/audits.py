"""`quorate privacy audit`: attacks on a plan, beside what it claims."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from quorate.cli.plans import PlanFile, Settings

if TYPE_CHECKING:
    from quorate.privacy.audits.membership import Attack
    from quorate.result import FinishedRun
    from quorate.simulations.datasets import FederatedDataset

__all__ = ["audit"]


def audit(
    plan: Path = PlanFile,
    settings: list[str] = Settings,
    canaries: int = typer.Option(1000, min=20, help="Canaries; about half of them take part in the run."),
    confidence: float = typer.Option(0.95, min=0.5, max=0.9999, help="Of each bound of ε."),
    seed: int = typer.Option(0, help="Of the canaries and of the run."),
    shadows: int = typer.Option(
        0, min=0, help="Shadow models for a likelihood ratio attack, at least 4; 0: none."
    ),
    tensorflow_privacy: bool = typer.Option(
        False, "--tensorflow-privacy", help="Also run tensorflow-privacy's attacks, in their own environment."
    ),
    inversion: Path | None = typer.Option(
        None, metavar="FILE.png", help="Draw what a server could read of clients' examples."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Run a plan in a simulation and attack it: lower bounds of ε from canaries, and membership inference.

    A bound above the claim shows a fault; a bound below it shows nothing. The plan is run twice, once with canaries.
    """
    from rich.console import Console
    from rich.table import Table

    from quorate import assembly, resolution
    from quorate.errors import PlanError
    from quorate.planfile import read_plan
    from quorate.simulations.auditing.canaries import with_canaries
    from quorate.simulations.auditing.inversion import draw_leaks, leaks
    from quorate.simulations.auditing.membership import memberships
    from quorate.simulations.source import Simulation

    read = read_plan(plan, settings)
    source = resolution.open_fleet(read.fleet)
    if not isinstance(source, Simulation):
        raise PlanError(
            f"fleet.kind: found {read.fleet.kind!r}; an audit needs clients of its own making; accepted: 'simulation'"
        )
    planted = with_canaries(read, source, canaries, seed)
    finished = assembly.run(planted.plan, fleet=planted.fleet, watch=lambda report: None)
    spent = finished.epsilon
    if spent is None:
        raise PlanError(f"privacy.mechanism: {read.privacy.mechanism!r} claims no ε that could be audited")
    found = planted.found(finished.model, spent.delta, confidence)
    plain = assembly.run(read, fleet=source, watch=lambda report: None)
    all_epochs = {"epochs": read.training.epochs * read.rounds.count}
    training = plain.plan.training.model_copy(update=all_epochs).settings()
    attacks = memberships(plain.task.model, plain.model, source.data, training, shadows, seed)
    if tensorflow_privacy:
        attacks += _of_tensorflow_privacy(plain, source.data)
    seen = leaks(plain.plan, source, seed) if inversion is not None else []
    if inversion is not None:
        draw_leaks(seen, inversion)
    below = found.gaussian <= spent.released and found.one_run <= spent.released
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "epsilon_released": spent.released,
                    "epsilon_server": spent.server if math.isfinite(spent.server) else None,
                    "delta": spent.delta,
                    "neighbours": spent.relation,
                    "confidence": confidence,
                    "canaries": {"in": found.canaries[0], "out": found.canaries[1]},
                    "gaussian_bound": found.gaussian,
                    "one_run_bound": found.one_run,
                    "claim_stands": below,
                    "membership": [_plain(attack) for attack in attacks],
                    "inversion": {leak.seen: leak.cosine for leak in seen},
                }
            )
        )
    else:
        table = Table("what", "figure", "how", box=None, header_style="bold")
        table.add_row(
            "ε claimed, released", f"{spent.released:.3f}", f"δ {spent.delta:.2e}, {spent.relation}"
        )
        taking_part, others = found.canaries
        drawn = f"{taking_part} canaries took part, {others} did not; {confidence:.0%} confidence"
        table.add_row("ε at least", f"{found.gaussian:.3f}", f"Gaussian scores (Andrew et al. 2023); {drawn}")
        guesses, right = found.guesses
        said = f"{right} of {guesses} guesses right (Steinke et al. 2023)"
        table.add_row("ε at least", f"{found.one_run:.3f}", said)
        for attack in attacks:
            said = f"{attack.name}; advantage {attack.advantage:.3f}"
            if not math.isnan(attack.true_positives):
                said += f", true positives at 1 % false ones: {attack.true_positives:.1%}"
            table.add_row("membership, AUC", f"{attack.auc:.3f}", f"{said} (a guess: AUC 0.5)")
        for leak in seen:
            table.add_row("inversion, cosine", f"{leak.cosine:.3f}", leak.seen)
        Console().print(table)
        typer.echo(
            "No bound is above the claim: these attacks found no fault."
            if below
            else "A bound is above the claim: the mechanism does not do what it claims."
        )
        if inversion is not None:
            typer.echo(f"drawn: {inversion}")
    if not below:
        raise typer.Exit(1)


def _of_tensorflow_privacy(finished: FinishedRun, data: FederatedDataset) -> list[Attack]:
    """Its membership inference on the predictions of a finished run's model."""
    from quorate.errors import PlanError
    from quorate.interop.tensorflow_privacy.attacks import Predictions, membership
    from quorate.privacy.audits.membership import Attack
    from quorate.simulations.auditing.membership import members_and_others

    model: Any = finished.task.model
    trained_on, others = members_and_others(data)
    if not hasattr(model, "predict") or trained_on.y.dtype.kind != "i":
        raise PlanError(
            f"task.name: {model.name!r} predicts no classes, which tensorflow-privacy's attacks look at"
        )
    members, strangers = (
        Predictions(model.predict(finished.model, examples.x), examples.y)
        for examples in (trained_on, others)
    )
    return [
        Attack(f"tensorflow-privacy, {found.attack}", found.auc, found.advantage, math.nan)
        for found in membership(members, strangers)
    ]


def _plain(attack: Attack) -> dict[str, Any]:
    return {name: None if value != value else value for name, value in vars(attack).items()}
