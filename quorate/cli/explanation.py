"""`quorate privacy explain`: what a plan protects, in words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from quorate.cli.plans import PlanFile, Settings

if TYPE_CHECKING:
    from quorate.plan import Plan
    from quorate.privacy.explanation import Evaluations

__all__ = ["explain"]


def explain(plan: Path = PlanFile, settings: list[str] = Settings) -> None:
    """Say in plain words what a plan protects, against whom, and what is still learned."""
    from quorate import resolution
    from quorate.errors import PlanError
    from quorate.planfile import read_plan
    from quorate.privacy.explanation import Situation, explain

    read = read_plan(plan, settings)
    if read.engine is not None:
        raise PlanError(
            f"engine.name: what the process of a {read.engine.name!r} engine releases is known once it has been made; "
            "accepted: a plan without [engine], or `quorate privacy spent` after a run"
        )
    population = resolution.open_fleet(read.fleet).size
    resolved = read.resolved(population)
    bounds, summing = resolved.bounds(population), resolved.secure_aggregation
    situation = Situation(
        event=resolved.terms().event(bounds, population),
        bounds=bounds,
        buckets=summing.buckets,
        rounds=resolved.rounds.count,
        participations=resolved.rounds.participations,
        population=population,
        cohort=resolved.rounds.cohort,
        delta=resolved.privacy.delta,
        budget=resolved.privacy.limit,
        clip_norm=resolved.privacy.clip_norm,
        adaptive=getattr(resolved.privacy, "adaptive_clip", None) is not None,
        ring_bits=resolved.terms().shape(bounds).ring_bits,
        protocol=summing.protocol,
        threat_model=getattr(summing, "threat_model", "none"),
        seeded=resolved.fleet.seed is not None,
        buffered=resolved.rounds.buffering is not None,
        training=resolved.training.dp_sgd,
        example_event=resolved.training.example_event,
        evaluations=None if resolved.evaluation is None else _evaluations(resolved, population),
    )
    for heading, sentences in explain(situation):
        typer.secho(heading, bold=True)
        for sentence in sentences:
            typer.echo(f"  - {sentence}")


def _evaluations(plan: Plan, population: int) -> Evaluations:
    from quorate.privacy.explanation import Evaluations
    from quorate.rounds import Kind

    terms = plan.at(Kind.EVALUATE)
    event = terms.event(terms.bounds(population), population)
    measures = [] if plan.evaluation is None else plan.evaluation.in_words()
    return Evaluations(event, terms.rounds.count, terms.rounds.cohort, measures)
