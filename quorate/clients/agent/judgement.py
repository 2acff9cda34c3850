"""Judging terms by a device's policy.

A device checks the terms that it was sent against its owner's file, and declines what falls short: it does not have to
trust the coordinator's word. What a budget allows the device counts itself, by `quorate.privacy.device_bound`: every
round in which its vector left it, without amplification by sampling. Without `[budget]` plans without privacy pass, and
without `[example_budget]` those that don't protect single examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quorate.clients.agent.policy import Accept, Budget, Policy
from quorate.cohorts import SecAggPlus
from quorate.endorsement import Endorsement
from quorate.errors import PolicyRefused
from quorate.plan import Terms
from quorate.privacy import Event, ExampleEvent
from quorate.privacy.device_bound import device_epsilon, device_example_epsilon
from quorate.rounds import CohortBounds, Kind

__all__ = ["Verdict", "event_of", "judge", "refuse"]

THREAT_MODELS = ("semi-honest", "semi-malicious", "malicious")
"""From the weakest to the strongest."""


@dataclass(frozen=True)
class Verdict:
    """What one rule of a policy says of a plan.

    Args:
        rule: the rule's code, which the coordinator hears if the device declines for it.
        passed: whether the plan passes.
        found: what the plan says.
        accepted: what the policy accepts.
    """

    rule: str
    passed: bool
    found: str
    accepted: str


def event_of(terms: Terms, bounds: CohortBounds) -> Event | None:
    """What one participation shows the coordinator; None where nothing protects it.

    Args:
        terms: of the round's kind.
        bounds: of its cohort.
    """
    return terms.privacy.event(terms.shape(bounds))


def judge(
    policy: Policy,
    terms: Terms,
    encoded: bytes,
    bounds: CohortBounds,
    endorsement: Endorsement | None,
    spent: Mapping[Event, int],
    trained: Mapping[ExampleEvent | None, int],
) -> list[Verdict]:
    """What every rule says of the terms.

    Args:
        policy: the device's.
        terms: resolved, as they were parsed, of the round's kind: an evaluation is judged by its own noise and cohort.
        encoded: their exact bytes, which an endorsement signs.
        bounds: of the cohort: those of the terms.
        endorsement: who stands behind the terms.
        spent: the participations of the budget's period, without the one that is asked for.
        trained: what those of the example budget's period cost an example; None where nothing protected it.
    """
    accept = policy.accept
    verdicts = [_task(accept, terms), _signer(accept, encoded, endorsement)]
    if terms.kind is Kind.EVALUATE:
        accepted = "any" if accept.evaluation else "none"
        verdicts.append(
            Verdict("evaluation", accept.evaluation, "an evaluation on the device's data", accepted)
        )
    if accept.secure_aggregation:
        verdicts += _secure(accept, terms)
    verdicts.append(
        Verdict(
            "survivors",
            bounds.min_survivors >= accept.min_survivors,
            f"a sum is opened from {bounds.min_survivors} survivors on",
            f"at least {accept.min_survivors}",
        )
    )
    if policy.budget is not None:
        verdicts.append(_budget(policy.budget, event_of(terms, bounds), spent))
    if policy.example_budget is not None:
        verdicts.append(_example_budget(policy.example_budget, terms.training.example_event, trained))
    return verdicts


def refuse(verdicts: list[Verdict]) -> None:
    """Declines if a rule was not kept.

    Raises:
        PolicyRefused: with the first such rule's code, and all of them in words.
    """
    failed = [verdict for verdict in verdicts if not verdict.passed]
    if failed:
        words = "; ".join(f"{v.rule}: found {v.found}; this device accepts {v.accepted}" for v in failed)
        raise PolicyRefused(words, failed[0].rule)


def _task(accept: Accept, terms: Terms) -> Verdict:
    name = terms.task.resolve().name
    passed = accept.tasks is None or name in accept.tasks
    return Verdict("task", passed, name, ", ".join(accept.tasks or ["every task that is installed"]))


def _signer(accept: Accept, encoded: bytes, endorsement: Endorsement | None) -> Verdict:
    if endorsement is None:
        known, found = False, "terms that nobody signed"
    elif not endorsement.covers(encoded):
        known, found = False, "a signature that is not of these terms"
    else:
        signer = endorsement.signer.hex()
        known, found = signer in (accept.signers or ()), f"terms signed by {signer}"
    if accept.signers is None:
        # A signature that is there must be right, even where none is asked for.
        return Verdict("signer", endorsement is None or endorsement.covers(encoded), found, "any signer")
    return Verdict("signer", known, found, "terms signed by " + (" or ".join(accept.signers) or "nobody"))


def _secure(accept: Accept, terms: Terms) -> list[Verdict]:
    summing = terms.secure_aggregation
    if not isinstance(summing, SecAggPlus):
        return [
            Verdict("secure-aggregation", False, f"protocol {summing.protocol!r}", "protocol 'secagg+'"),
        ]
    strength = THREAT_MODELS.index(summing.threat_model) >= THREAT_MODELS.index(accept.threat_model)
    least = f"{accept.threat_model!r} or stronger"
    return [
        Verdict("secure-aggregation", True, f"protocol {summing.protocol!r}", "protocol 'secagg+'"),
        Verdict("threat-model", strength, f"{summing.threat_model!r}", least),
    ]


def _example_budget(
    budget: Budget, event: ExampleEvent | None, trained: Mapping[ExampleEvent | None, int]
) -> Verdict:
    accepted = _accepted(budget)
    if event is None:
        return Verdict("example-budget", False, "a plan without [training.dp_sgd], an unbounded ε", accepted)
    after = device_example_epsilon({**trained, event: trained.get(event, 0) + 1}, budget.delta)
    found = f"ε {after:.3f} for one example with this participation"
    return Verdict("example-budget", after <= budget.epsilon, found, accepted)


def _accepted(budget: Budget) -> str:
    return f"at most {budget.epsilon:g} in {budget.period_days:g} days, at δ = {budget.delta:g}"


def _budget(budget: Budget, event: Event | None, spent: Mapping[Event, int]) -> Verdict:
    accepted = _accepted(budget)
    if event is None:
        return Verdict("budget", False, "a plan without privacy, an unbounded ε", accepted)
    after = device_epsilon({**spent, event: spent.get(event, 0) + 1}, budget.delta)
    passed = after <= budget.epsilon
    return Verdict("budget", passed, f"ε {after:.3f} with this participation", accepted)
