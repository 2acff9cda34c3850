"""The combinations of a plan's settings that can't be, and what is accepted instead: one sentence each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorate.cohorts import PlainSum, RingSum, Rounds, SecAggPlus, impossible_buffering, spread
from quorate.errors import PlanError
from quorate.evaluation import EXAMPLES, Evaluation
from quorate.plan.sections import SUMMED, EngineSection
from quorate.privacy import DpFtrl, DpQuery
from quorate.privacy.secagg.parameters import LARGEST_COHORT, SMALLEST_COHORT
from quorate.rounds import Kind

if TYPE_CHECKING:
    from quorate.plan.terms import Terms

__all__ = ["impossible"]

_FEWEST_FOR_ROBUSTNESS = 3
_AGAINST_OVER_SELECTION = {
    "poisson": "a round that goes on with the quick members is not the random sample that privacy is amplified by",
    "separated": "those who are drawn and not waited for are charged for a round that they are not kept apart from, so "
    "that the next ones may pass what their separation allows",
}


def impossible(terms: Terms) -> list[str]:
    """The combinations that can't be, one sentence each."""
    rounds, summing, privacy = terms.rounds, terms.secure_aggregation, terms.privacy
    problems = [] if terms.engine is None else _beside_an_engine(terms, terms.engine)
    problems += _impossible_cohort(rounds, summing)
    if (rounds.sampling == "separated") != (rounds.separation is not None) and rounds.sampling != "buffered":
        problems.append(
            f"rounds.separation: found {rounds.separation}; accepted: at least 1 with rounds.sampling 'separated' or "
            "'buffered', and no value with another"
        )
    if isinstance(privacy, DpFtrl) and (rounds.separation or 0) < privacy.span:
        problems.append(
            f"rounds.separation: found {rounds.separation}, but with privacy.mechanism 'dp-ftrl' what a member adds "
            f"shows in privacy.span ({privacy.span}) rounds; accepted: sampling = 'separated' and separation = "
            f"{privacy.span} or more, or a smaller span"
        )
    if isinstance(privacy, DpFtrl) and summing.buckets > 1:
        problems.append(
            f"secure_aggregation.buckets: found {summing.buckets}, but privacy.mechanism 'dp-ftrl' adds its noise to "
            "one sum a round; accepted: 1"
        )
    if rounds.over_selection > 1 and rounds.sampling in _AGAINST_OVER_SELECTION:
        problems.append(
            f"rounds.over_selection: found {rounds.over_selection:g}, but with rounds.sampling {rounds.sampling!r} "
            f"{_AGAINST_OVER_SELECTION[rounds.sampling]}; accepted: 1, or sampling = 'fixed'"
        )
    problems += _impossible_buckets(rounds, summing) if isinstance(summing, RingSum) else []
    strategy = terms.strategy.resolve()
    problems += impossible_buffering(rounds, summing, strategy)
    ring = not isinstance(summing, PlainSum)
    if ring and not strategy.aggregator.linear and summing.buckets < _FEWEST_FOR_ROBUSTNESS:
        problems.append(
            f"strategy.name: {strategy.name!r} aggregates by {strategy.aggregator.name!r}, which must see every single "
            f"update, and secure_aggregation.protocol {summing.protocol!r} shows the server only sums "
            f"({summing.buckets} of a cohort); accepted: secure_aggregation.buckets of at least "
            f"{_FEWEST_FOR_ROBUSTNESS}, across whose sums it runs then; a strategy with a linear aggregator (fedavg, "
            "fedadam, fedyogi, fedadagrad, fedprox, scaffold); or secure_aggregation.protocol = 'none'"
        )
    if privacy.needs_hidden_updates and not ring:
        problems.append(
            f"privacy.mechanism: {privacy.mechanism!r} adds noise that protects the sum and not a single update, and "
            "secure_aggregation.protocol 'none' shows single updates; accepted: protocol = 'secagg+' (or 'ideal' in a "
            "simulation), privacy.mechanism = 'central-gaussian' if the server is trusted with single updates, or "
            "'local-discrete-gaussian'"
        )
    if privacy.private and not ring and not strategy.aggregator.linear:
        problems.append(
            f"strategy.name: {strategy.name!r} aggregates by {strategy.aggregator.name!r}, and the noise of "
            f"privacy.mechanism {privacy.mechanism!r} is for a sum; accepted: a strategy with a linear aggregator "
            "(fedavg, fedadam, fedyogi, fedadagrad, fedprox, scaffold), or privacy.mechanism = 'none'"
        )
    if isinstance(privacy, DpQuery) and (ring or summing.ring_bits is not None):
        problems.append(
            f"privacy.mechanism: 'dp-query' takes single updates, in floating point, and secure_aggregation.protocol "
            f"{summing.protocol!r} sums them in a ring; accepted: secure_aggregation.protocol = 'none' without "
            "ring_bits, or privacy.mechanism = 'central-gaussian'"
        )
    problems += privacy.impossible(rounds.cohort / summing.buckets)
    if summing.ring_bits is not None and not ring and not privacy.private:
        problems.append(
            f"secure_aggregation.ring_bits: found {summing.ring_bits}, but without secure aggregation and noise sums "
            "are of float32 values; accepted: no value"
        )
    if ring and not privacy.private and privacy.clip_norm is None:
        problems.append(
            f"privacy.clip_norm: missing; secure_aggregation.protocol {summing.protocol!r} sums in a ring, which needs "
            "a bound on every update; accepted: a finite number above 0"
        )
    if ring and rounds.weighting == "examples" and rounds.example_cap is None:
        problems.append(
            f"rounds.example_cap: missing; secure_aggregation.protocol {summing.protocol!r} sums in a ring, which "
            "needs a bound on every weight; accepted with rounds.weighting 'examples': the most examples that count of "
            "one client, a whole number of at least 1"
        )
    if rounds.weighting == "uniform" and rounds.example_cap is not None:
        problems.append(
            f"rounds.example_cap: found {rounds.example_cap}, but with rounds.weighting 'uniform' examples are not "
            "counted; accepted: no value, or weighting = 'examples'"
        )
    if privacy.private and rounds.weighting != "uniform":
        problems.append(
            f"rounds.weighting: found {rounds.weighting!r}, but the noise of privacy.mechanism {privacy.mechanism!r} "
            "is for clients that all count the same; accepted: 'uniform', or privacy.mechanism = 'none'"
        )
    if not problems and terms.evaluation is not None:
        problems += _impossible_evaluation(terms, terms.evaluation)
    return problems


def _impossible_cohort(rounds: Rounds, summing: PlainSum | RingSum) -> list[str]:
    """What can't be of a cohort and its sum."""
    problems: list[str] = []
    buckets = summing.buckets
    if rounds.largest_cohort is not None and rounds.largest_cohort < rounds.cohort:
        problems.append(
            f"rounds.largest_cohort: found {rounds.largest_cohort}; accepted: at least rounds.cohort ({rounds.cohort})"
        )
    if rounds.sampling != "poisson" and rounds.largest_cohort not in (None, rounds.cohort):
        problems.append(
            f"rounds.largest_cohort: found {rounds.largest_cohort}, but with rounds.sampling {rounds.sampling!r} every "
            f"cohort has rounds.cohort ({rounds.cohort}) members; accepted: no value, or sampling = 'poisson'"
        )
    if summing.min_survivors is not None and buckets * summing.min_survivors > rounds.cohort:
        over = f"rounds.cohort ({rounds.cohort})" + (f" / {buckets} buckets" if buckets > 1 else "")
        problems.append(
            f"secure_aggregation.min_survivors: found {summing.min_survivors}, which is above the expected members of "
            f"a sum; accepted: 1 to {over}"
        )
    most = rounds.largest_cohort or (spread(rounds.cohort) if rounds.sampling == "poisson" else rounds.cohort)
    if isinstance(summing, SecAggPlus) and rounds.cohort < SMALLEST_COHORT * buckets:
        problems.append(
            f"rounds.cohort: found {rounds.cohort}, but from a sum of two members each would learn the other's update; "
            f"accepted with secure_aggregation.protocol 'secagg+': at least {SMALLEST_COHORT} for each sum"
        )
    if isinstance(summing, SecAggPlus) and most > LARGEST_COHORT * buckets:
        problems.append(
            f"rounds.largest_cohort: found {most}; accepted with secure_aggregation.protocol 'secagg+': at most "
            f"{LARGEST_COHORT} for each sum, so at least {-(-most // LARGEST_COHORT)} secure_aggregation.buckets here"
        )
    return problems


def _impossible_evaluation(terms: Terms, asked: Evaluation) -> list[str]:
    """What can't be measured on members' data, of terms that are possible otherwise."""
    task, privacy = terms.task.resolve(), terms.privacy
    problems = []
    known = (*task.model.metrics, EXAMPLES)
    if not task.model.metrics:
        return [f"evaluation: the task {task.name!r} measures nothing; accepted: no [evaluation]"]
    problems += [
        f"evaluation.metrics.{name}: unknown metric; the task {task.name!r} measures {', '.join(known)}"
        for name in asked.metrics
        if name not in known
    ]
    problems += [
        f"evaluation.slices.{key}: unknown key; the task {task.name!r} declares {', '.join(task.keys) or 'none'}"
        for key in asked.slices
        if key not in task.keys
    ]
    bounded = privacy.private or not isinstance(terms.secure_aggregation, PlainSum)
    if bounded and asked.weighting == "examples" and asked.example_cap is None:
        problems.append(
            "evaluation.example_cap: missing; noise and sums in a ring need a bound on every weight; accepted with "
            "evaluation.weighting 'examples': the most examples that count of one client, a whole number of at least 1"
        )
    if asked.weighting == "uniform" and asked.example_cap is not None:
        problems.append(
            f"evaluation.example_cap: found {asked.example_cap}, but with evaluation.weighting 'uniform' examples are "
            "not counted; accepted: no value, or weighting = 'examples'"
        )
    if terms.training.dp_sgd is not None:
        problems.append(
            "evaluation: found beside [training.dp_sgd], which protects single examples, as an evaluation's metrics do "
            "not; accepted: no [evaluation], or no [training.dp_sgd]"
        )
    if terms.rounds.sampling == "buffered":
        problems.append(
            "evaluation: found with rounds.sampling 'buffered', where members train on models of different ages; "
            "accepted: 'poisson', 'fixed' or 'separated'"
        )
    given = (asked.noise_multiplier is not None) + (asked.epsilon is not None)
    if privacy.private and given != 1:
        problems.append(
            f"evaluation.noise_multiplier: found {'neither' if not given else 'both'} of noise_multiplier and epsilon; "
            f"what an evaluation releases has noise of its own with privacy.mechanism {privacy.mechanism!r}; accepted: "
            "exactly one of them"
        )
    elif not privacy.private and given:
        problems.append(
            "evaluation.noise_multiplier: found noise for evaluations, but with privacy.mechanism 'none' nothing is "
            "claimed; accepted: neither noise_multiplier nor epsilon, or another mechanism"
        )
    if privacy.limit is not None and asked.epsilon is not None and asked.epsilon >= privacy.limit:
        problems.append(
            f"evaluation.epsilon: found {asked.epsilon:g}; accepted: below that of the whole run ({privacy.limit:g}), "
            "of which it is a part"
        )
    if problems:
        return problems
    try:
        own = terms.at(Kind.EVALUATE)
    except PlanError as error:  # a mechanism that takes no ε, say
        return [f"evaluation: {problem}" for problem in error.problems]
    return own.own_words(_impossible_cohort(own.rounds, own.secure_aggregation))


def _beside_an_engine(terms: Terms, engine: EngineSection) -> list[str]:
    problems = [
        f"{name}: found beside [engine]; the engine {engine.name!r} does its own aggregation; accepted: no [{name}]"
        for name in (*SUMMED, "evaluation")
        if name in terms.model_fields_set and getattr(terms, name) is not None
    ]
    if terms.rounds.sampling == "buffered":
        problems.append(
            f"rounds.sampling: found 'buffered', but the engine {engine.name!r} gives one model to a whole cohort; "
            "accepted: 'poisson', 'fixed' or 'separated'"
        )
    if terms.training.dp_sgd is not None:
        problems.append(
            f"training.dp_sgd: found beside [engine]; the engine {engine.name!r} does its own training; accepted: no "
            "[training.dp_sgd]"
        )
    if terms.rounds.over_selection > 1:
        problems.append(
            f"rounds.over_selection: found {terms.rounds.over_selection:g}, but the engine {engine.name!r} takes every "
            "member that was drawn; accepted: 1"
        )
    return problems


def _impossible_buckets(rounds: Rounds, summing: RingSum) -> list[str]:
    """What can't be where a cohort is divided."""
    problems = []
    if summing.fewest_buckets > summing.buckets:
        problems.append(
            f"secure_aggregation.min_buckets: found {summing.min_buckets}; "
            f"accepted: 1 to secure_aggregation.buckets ({summing.buckets})"
        )
    if summing.buckets == 1:
        return problems
    if isinstance(summing, SecAggPlus) and summing.threat_model == "malicious":
        problems.append(
            f"secure_aggregation.buckets: found {summing.buckets}, but a server of threat_model 'malicious' could put "
            "corrupt members together in one bucket; accepted: 1, or threat_model = 'semi-malicious'"
        )
    if rounds.over_selection > 1:
        problems.append(
            f"rounds.over_selection: found {rounds.over_selection:g}, but who is in which of the "
            f"{summing.buckets} secure_aggregation.buckets is drawn before anybody reports; accepted: 1"
        )
    return problems
