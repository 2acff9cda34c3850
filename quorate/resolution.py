"""A plan and its fleet: what the fleet is made from, the plan filled in for its population, and whether the two fit.

Nothing here runs anything, or needs what running needs.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

from quorate.errors import PlanError
from quorate.fleets import Ability, Fleet
from quorate.parts import find_part, make_part
from quorate.plan import FleetSection, IdealSum, PlainSum, Plan, SecAggPlus
from quorate.privacy import DpQuery

__all__ = [
    "FleetSource",
    "bound",
    "check_abilities",
    "check_recorded",
    "open_fleet",
    "resolve",
    "terms_hash",
]


class FleetSource(Protocol):
    """What a fleet is made from: `[fleet]` of a plan, or an object bound in Python."""

    @property
    def size(self) -> int:
        """The population's size."""
        ...

    def section(self) -> FleetSection:
        """How it stands in a plan."""
        ...

    def open(self, plan: Plan, directory: Path | None) -> Fleet:
        """The fleet, ready for the rounds of a resolved plan."""
        ...


def resolve(plan: Plan) -> Plan:
    """The plan with everything filled in, its fleet included."""
    return bound(plan, None)[1]


def bound(plan: Plan, fleet: FleetSource | None) -> tuple[FleetSource, Plan]:
    """The fleet's source, and the plan resolved for its population."""
    source = open_fleet(plan.fleet) if fleet is None else fleet
    if fleet is not None:
        plan = plan.model_copy(update={"fleet": fleet.section()})
    return source, plan.resolved(source.size)


def open_fleet(section: FleetSection) -> FleetSource:
    """The fleet that a plan names.

    Raises:
        PlanError: there is no such fleet, or it does not take these settings.
    """
    factory = find_part("fleet.kind", "quorate.fleets", section.kind)
    source: FleetSource = make_part("fleet", factory, {**section.settings, "seed": section.seed})
    return source


def terms_hash(plan: Plan) -> str:
    """SHA-256 of the terms of a resolved plan, in hexadecimal."""
    return hashlib.sha256(plan.terms().encoded()).hexdigest()


def check_abilities(plan: Plan, fleet: Fleet) -> None:
    """Refuses a plan that needs what the fleet can't do.

    Raises:
        PlanError: with what is missing.
    """
    if plan.engine is not None:
        _check_needed(plan, fleet, set(plan.engine.resolve().needs))
        return
    summing, strategy = plan.secure_aggregation, plan.strategy.resolve()
    if isinstance(summing, IdealSum) and not fleet.simulated:
        raise PlanError(
            "secure_aggregation.protocol: 'ideal' protects nobody, so it is for simulations; accepted: 'secagg+'"
        )
    needed = {Ability.SECURE} if isinstance(summing, SecAggPlus) else set()
    if isinstance(summing, SecAggPlus) and summing.signed:
        needed.add(Ability.IDENTITIES)
    if isinstance(plan.privacy, DpQuery) and not fleet.simulated:
        raise PlanError(
            "privacy.mechanism: 'dp-query' adds another library's noise in floating point, whose lowest bits tell what "
            "it was added to, so it is for simulations; accepted: 'central-gaussian', or another mechanism of ours"
        )
    if plan.single_updates and isinstance(summing, PlainSum):
        needed.add(Ability.SINGLE_UPDATES)
    if strategy.local.initial(1):
        needed.add(Ability.CLIENT_STATE)
    if plan.rounds.sampling == "buffered":
        needed.add(Ability.BUFFERED)
    _check_needed(plan, fleet, needed)


def _check_needed(plan: Plan, fleet: Fleet, needed: set[Ability]) -> None:
    if plan.fleet.seed is not None and not fleet.simulated:
        raise PlanError(
            f"fleet.seed: a seed is for simulations, fleet.kind {plan.fleet.kind!r} has real members"
        )
    missing = needed - fleet.abilities
    if missing:
        raise PlanError(
            f"fleet.kind: {plan.fleet.kind!r} can't do what the plan needs: {', '.join(sorted(missing))}"
        )


def check_recorded(plan: Plan) -> None:
    """Refuses a plan whose run could not be told from others in a state directory.

    Raises:
        PlanError: with what is accepted.
    """
    if not plan.strategy.resolve().recorded:
        raise PlanError(
            f"strategy: {plan.strategy.name!r} has no settings that could be written down, so a state directory can't "
            "tell its runs apart; accepted: a factory decorated with @quorate.strategies.strategy(name), or no state"
        )
