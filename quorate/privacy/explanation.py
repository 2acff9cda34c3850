"""What a run's privacy means, in plain words: what is protected, against whom, and what is still learned.

The sentences say what the code does and no more; numbers come from the same account as the ledger's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from quorate.privacy.accounting import RELATION, Epsilons, example_epsilon
from quorate.privacy.calibration import forecast, forecast_server, most_participations
from quorate.privacy.dp_sgd import EXAMPLE_RELATION, DpSgd, ExampleEvent
from quorate.privacy.events import (
    CentralDiscreteLaplaceEvent,
    Event,
    ExternalEvent,
    LocalDiscreteGaussianEvent,
    TruncatedPoissonSampledEvent,
)
from quorate.rounds import CohortBounds

__all__ = ["Evaluations", "Situation", "explain", "kept_after_withdrawal"]


@dataclass(frozen=True)
class Evaluations:
    """The model's evaluations on members' data.

    Args:
        event: of each; None when no privacy is claimed.
        count: how many are planned.
        cohort: the expected size of a cohort.
        measures: what is measured, in words.
    """

    event: Event | None
    count: int
    cohort: int
    measures: Sequence[str]


@dataclass(frozen=True)
class Situation:
    """What there is to explain.

    Args:
        event: of every round of training; None when no privacy is claimed.
        bounds: of a sum.
        buckets: how many sums there are of a cohort.
        rounds: how many are planned.
        participations: in how many of them one member can be in the sum.
        population: how many members there are.
        cohort: the expected size of a cohort.
        delta: of every ε; None when no privacy is claimed.
        budget: the `released` ε that is not passed, if there is one.
        clip_norm: the L2 bound of an update, if there is one.
        adaptive: whether that is the first round's only, and follows the updates' norms from then on.
        ring_bits: of the ring in which is summed; None for sums of floats.
        protocol: of the sum: `none`, `ideal` or `secagg+`.
        threat_model: of the sum.
        seeded: whether a seed makes the randomness.
        buffered: whether a cohort is who is done first, so that quick members come more often than others.
        training: how clients train by DP-SGD; None: single examples are not protected.
        example_event: what one participation costs an example.
        evaluations: on members' data, if there are any.
    """

    event: Event | None
    bounds: CohortBounds
    buckets: int
    rounds: int
    participations: int
    population: int
    cohort: int
    delta: float | None
    budget: float | None
    clip_norm: float | None
    adaptive: bool
    ring_bits: int | None
    protocol: str
    threat_model: str
    seeded: bool
    buffered: bool
    training: DpSgd | None = None
    example_event: ExampleEvent | None = None
    evaluations: Evaluations | None = None

    @property
    def beside(self) -> Mapping[Event, int]:
        """What is released beside training, and how often."""
        own = self.evaluations
        return {} if own is None or own.event is None else {own.event: own.count}


def explain(situation: Situation) -> list[tuple[str, list[str]]]:
    """Headings, each with its sentences."""
    own = situation.evaluations
    return [
        ("What is protected", list(_protected(situation))),
        ("What is protected of single examples", list(_examples(situation))),
        *([] if own is None else [("What evaluations tell", list(_measured(situation, own)))]),
        ("Against whom", list(_against(situation))),
        ("What the coordinator still learns", list(_learned(situation))),
        ("What is not protected", list(_open(situation))),
        ("If a member withdraws", list(_withdrawal(situation))),
    ]


def _protected(at: Situation) -> Iterator[str]:
    if at.event is None or at.delta is None:
        if at.training is not None:
            yield "Of a member as a whole nothing: the plan has no mechanism, but protects single examples, see below."
            return
        yield "No privacy is claimed: the plan has no mechanism, and models may tell what any member contributed."
        return
    yield (
        "One member's whole contribution, in every round: runs with it and runs in which it is replaced by zero can "
        f"hardly be told apart ({RELATION}). Everything that is summed is in the account; nothing else is sent."
    )
    inner = at.event.event if isinstance(at.event, TruncatedPoissonSampledEvent) else at.event
    norm = "sum of sizes (L1)" if isinstance(inner, CentralDiscreteLaplaceEvent) else "length (L2)"
    if at.clip_norm is not None:
        yield f"An update counts for a {norm} of {at.clip_norm:g} at most, whatever a member's data are."
    if at.adaptive:
        yield (
            "That is the first round's bound; the next ones follow the share of updates that were within it, which is "
            "counted in the same sum, with noise of its own, and is in the account."
        )
    if isinstance(inner, ExternalEvent):
        yield "Another library's mechanism adds the noise to the sum, in floating point, before anybody else sees it."
    elif not inner.shares:
        yield "The coordinator adds the noise to the sum, exact on the integers, before anybody else sees it."
    elif isinstance(inner, LocalDiscreteGaussianEvent):
        yield (
            "Each member adds the noise that protects it to its own update, exact on the integers, and needs nobody "
            f"else's; what is released has that of {inner.released_shares} members."
        )
    else:
        yield (
            f"The noise in a sum is that of {inner.shares} members at least, exact on the integers; what is released "
            f"has that of {inner.released_shares}."
        )
    if at.seeded:
        yield "A SEED MAKES ALL NOISE: whoever knows it can take the noise away. This protects nobody."


def _examples(at: Situation) -> Iterator[str]:
    if at.training is None or at.example_event is None:
        yield "Nothing is claimed for single examples of a member: the plan has no [training.dp_sgd]."
        return
    event, delta = at.example_event, at.training.delta
    yield (
        f"Each example of a member: training with it and training in which it counts as zero can hardly be told apart "
        f"({EXAMPLE_RELATION}). In each of {event.steps} steps every example is drawn with probability "
        f"{event.sampling_rate:g}, its gradient counts for a length (L2) of {at.training.clip_norm:g} at most, and the "
        "member adds noise to their sum, exact on the integers, before anything leaves it."
    )
    most = _most(at)
    yield (
        f"Against everybody but the member itself, the coordinator included: ε "
        f"{example_epsilon(event, 1, delta):.3g} for one participation, {example_epsilon(event, most, delta):.3g} for "
        f"{most}, {'' if at.buffered else 'about '}the most of any member in {at.rounds} rounds, at δ {delta:.3g}."
    )
    if at.training.limit is not None:
        yield (
            f"The coordinator stops the run before an example of any member has cost more than ε "
            f"{at.training.limit:g}, by its own record of whom it drew; a device that does not trust that keeps a "
            "budget of its own."
        )
    yield (
        "Not covered: how many examples a member has, what many of its examples have in common, and members whose "
        "software does something else."
    )
    if at.seeded:
        yield "A SEED MAKES THIS NOISE, TOO: it protects nobody."


def _measured(at: Situation, own: Evaluations) -> Iterator[str]:
    times = f"{own.count} times" if own.count > 1 else "once"
    yield f"The model is measured on the data of a cohort, {times}: " + "; ".join(own.measures) + "."
    if own.event is None or at.delta is None:
        yield "Nobody's values are protected: sums of them are released as they are."
        return
    alone = forecast(own.event, own.count, at.delta)
    yield (
        "What a member says is moved into those ranges and put into cells: of each question it adds at most 1, "
        "whatever it measured; the sums have noise of their own from the same mechanism."
    )
    yield (
        f"By themselves they are worth released ε {alone:.3g}; the ε below are of training and evaluations together."
    )


def _against(at: Situation) -> Iterator[str]:
    if at.event is None or at.delta is None:
        yield "Nobody. " + _sum_hides(at)
        return
    sampled = isinstance(at.event, TruncatedPoissonSampledEvent)
    also = f" and {at.evaluations.count} evaluations" if at.evaluations is not None else ""
    released = forecast(at.event, at.rounds if sampled else at.participations, at.delta, at.beside)
    how = (
        "amplified by the secret draw of the cohorts"
        if sampled
        else "without amplification: of a member in all rounds"
        if at.participations == at.rounds
        else f"without amplification: of a member in {at.participations} of them, which is the most that can be"
    )
    yield f"Those who see the models only: released ε {released:.3g} after {at.rounds} rounds{also} ({how})."
    inner = at.event.event if isinstance(at.event, TruncatedPoissonSampledEvent) else at.event
    if isinstance(inner, CentralDiscreteLaplaceEvent):
        yield f"One participation is worth {inner.epsilon:.3g} at δ 0 to them: with Laplace noise no δ is needed."
    most = _most(at)
    of = (
        "a member that is done as often as can be,"
        if at.buffered
        else "the member that is drawn most often, about"
    )
    server = forecast_server(at.event, most, at.delta, _most_evaluated(at))
    if math.isinf(server):
        seen = "single updates" if at.protocol == "none" else "sums"
        yield (
            f"The coordinator: nothing is claimed, it sees {seen} without noise. At δ {at.delta:.3g}. "
            + _sum_hides(at)
        )
    else:
        yield (
            f"The coordinator and the other members: server ε {server:.3g} for {of} {most} times in {at.rounds} "
            f"rounds{also}; {forecast_server(at.event, 1, at.delta):.3g} for one."
        )
        yield f"Both at δ {at.delta:.3g}. " + _sum_hides(at)
    if at.budget is not None:
        yield f"The ledger stops the run before its released ε passes {at.budget:g}."


def _most_evaluated(at: Situation) -> Mapping[Event, int]:
    """How often the member takes part in evaluations that does so most often."""
    own = at.evaluations
    if own is None or own.event is None:
        return {}
    return {own.event: most_participations(own.count, own.cohort / at.population, at.population)}


def _sum_hides(at: Situation) -> str:
    if at.protocol == "none":
        noisy = ", with that member's own noise" if _clients_add_noise(at.event) else ""
        return f"The coordinator sees every single update{noisy}."
    if at.protocol == "ideal":
        return "The sum is a simulation's: nothing hides single updates from whoever runs it."
    return (
        f"Secure aggregation hides single updates from a {at.threat_model} coordinator; a sum is opened with "
        f"{at.bounds.min_survivors} survivors at least, of whom {at.bounds.honest} are assumed to be honest."
    )


def _learned(at: Situation) -> Iterator[str]:
    if at.protocol == "none" and _clients_add_noise(at.event):
        yield "Every update, with the noise of the member that sent it."
    elif at.protocol == "none" and at.training is not None:
        yield "Every update; what it tells of a single example of a member's data is bounded by the ε for examples."
    elif at.protocol == "none":
        yield "Every update, and from it possibly single examples of a member's data."
    else:
        noisy = "the noisy sum" if _clients_add_noise(at.event) else "the exact sum"
        of = "each round" if at.buckets == 1 else f"each of {at.buckets} random buckets of each cohort"
        yield f"Of the updates: {noisy} of {of}, and nothing else if its promises hold."
    yield "Who was drawn, took part and survived; when each answered; in which phase each dropped out; refusals."


def _open(at: Situation) -> Iterator[str]:
    yield "What is true of many members is learned: that is what the model is for."
    if at.event is not None and at.ring_bits is not None:
        yield (
            f"Sums are taken modulo 2^{at.ring_bits}; one in 2^40 or fewer may wrap, which would spoil a round of the "
            "model and tell nothing."
        )
    if at.event is None and at.training is not None:
        yield (
            "A crafted model can isolate examples in a sum, and sums of overlapping cohorts can be differenced: of an "
            "example the ε above bounds what that gains; of a member as a whole nothing does."
        )
    elif at.event is None:
        yield "A crafted model can isolate examples in a sum, and sums of overlapping cohorts can be differenced."
    else:
        yield (
            "A crafted model can isolate examples in a sum, and sums of overlapping cohorts can be differenced: only "
            "the ε above bounds what that gains."
        )
        yield "Members that break the protocol are not bounded in what they add: honest members clip their own updates."
    if isinstance(at.event, TruncatedPoissonSampledEvent):
        yield (
            "The released ε trusts the coordinator to draw cohorts in secret, to publish neither them nor their sizes, "
            f"and to fill the noise up to that of {at.bounds.largest} members."
        )


def _withdrawal(at: Situation) -> Iterator[str]:
    yield "It is not drawn again. Published versions keep what they learned from it."
    if at.training is not None and at.example_event is not None:
        once = example_epsilon(at.example_event, 1, at.training.delta)
        yield (
            f"What they keep of each of its examples is bounded: by ε {once:.3g} if it took part once, and by what its "
            "own participations cost together if it took part oftener."
        )
    if at.event is None or at.delta is None:
        yield "Nothing bounds what they keep of it as a whole: only a model that is trained anew is free of it."
        return
    yield (
        "What they keep is bounded by the released ε above: whoever sees the models can hardly tell whether it ever "
        "took part. Each version's manifest says so with what was spent until then."
    )
    if _clients_add_noise(at.event):
        one = forecast_server(at.event, 1, at.delta)
        yield (
            f"Against the coordinator it is bounded by what its own participations cost: {one:.3g} for one."
        )
    else:
        yield "Against the coordinator nothing is bounded: it saw what the member contributed to without noise."


def kept_after_withdrawal(epsilons: Epsilons | None) -> str:
    """What a version keeps of a member that withdraws after it was published: a sentence for its manifest.

    Args:
        epsilons: spent until then; None when no privacy is claimed.
    """
    if epsilons is None:
        return (
            "A member that withdraws takes part in no later version. Nothing bounds what this one keeps of it as a "
            "whole: only a model that is trained anew is free of it."
        )
    against = (
        f"and ε {epsilons.server:.3g} for the coordinator"
        if math.isfinite(epsilons.server)
        else "and nothing for the coordinator"
    )
    hollow = " A seed made the noise, so that this protects nobody." if epsilons.simulated else ""
    return (
        "A member that withdraws takes part in no later version. What this one keeps of it is bounded by ε "
        f"{epsilons.released:.3g} for those who see versions, {against}, at δ {epsilons.delta:.3g}.{hollow}"
    )


def _most(at: Situation) -> int:
    """How often the most frequent member takes part; of quick members nothing is known but what can be at most."""
    return (
        at.participations
        if at.buffered
        else most_participations(at.rounds, at.cohort / at.population, at.population)
    )


def _clients_add_noise(event: Event | None) -> bool:
    inner = event.event if isinstance(event, TruncatedPoissonSampledEvent) else event
    return inner is not None and inner.shares > 0
