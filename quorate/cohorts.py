"""The sections of a plan that say how a cohort is drawn and summed, and the cohort's bounds that follow from them."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from quorate.errors import PlanError
from quorate.parameters import Layout
from quorate.privacy.secagg.parameters import SecAggParameters, ThreatModel, most_corrupt_in_a_bucket
from quorate.rounds import CohortBounds
from quorate.sections import Section
from quorate.strategies import Strategy

__all__ = [
    "Buffering",
    "IdealSum",
    "PlainSum",
    "RingSum",
    "Rounds",
    "SecAggPlus",
    "Summing",
    "cohort_bounds",
    "impossible_buffering",
    "largest_cohort",
    "spread",
]


class Buffering(Section):
    """`[rounds.buffering]`: a cohort is who is done first, while others go on.

    Nguyen et al. 2022, "Federated Learning with Buffered Asynchronous Aggregation"; their K is `rounds.cohort`.

    Args:
        concurrency: how many members work at the same time, each on the model that was the newest when it began.
        largest_staleness: after how many committed rounds since then a member's work is given up.
        staleness_exponent: an update that is τ rounds old counts for (1 + τ)^-a of a new one, a; 0.5 in the paper.
    """

    concurrency: Annotated[int, Field(ge=1)]
    largest_staleness: Annotated[int, Field(ge=0)] = 20
    staleness_exponent: Annotated[float, Field(ge=0)] = 0.5

    def discount(self, staleness: int) -> float:
        """For how much an update counts: at most 1, so that a clipped one keeps its bound."""
        return float((1 + staleness) ** -self.staleness_exponent)


class Rounds(Section):
    """`[rounds]`: how many, and how a cohort is drawn.

    Args:
        count: rounds to commit.
        cohort: the expected size of a cohort; with `fixed` sampling, the exact size.
        largest_cohort: the most members a cohort can have; for `poisson` by default `cohort` + 4·√`cohort`.
        sampling: `poisson`: each member independently, in secret; `fixed`: exactly `cohort` members; `separated`:
            exactly `cohort` members, none of which was in the sum of the last `separation` - 1 committed rounds;
            `buffered`: the `cohort` members who are done first of those who work, which `buffering` describes.
        separation: for `separated`, and perhaps `buffered`: how many rounds there are from one in which a member takes
            part to its next.
        weighting: `uniform`: every survivor counts the same; `examples`: by its number of examples.
        example_cap: the most examples that count of one client; needed for `examples` under secure aggregation.
        over_selection: how many times `cohort` members are drawn; the first `cohort` that report are the round's. Only
            with `fixed` sampling: who is quick is no random sample, so there is nothing to amplify.
        buffering: for `buffered`: how many work, and how old their work may be.
    """

    count: Annotated[int, Field(ge=1)]
    cohort: Annotated[int, Field(ge=1)]
    largest_cohort: Annotated[int | None, Field(ge=1)] = None
    sampling: Literal["poisson", "fixed", "separated", "buffered"] = "poisson"
    separation: Annotated[int | None, Field(ge=1)] = None
    weighting: Literal["uniform", "examples"] = "uniform"
    example_cap: Annotated[int | None, Field(ge=1)] = None
    over_selection: Annotated[float, Field(ge=1, le=3)] = 1.0
    buffering: Buffering | None = None

    @property
    def participations(self) -> int:
        """In how many rounds a member can be in the sum, if all are committed."""
        return math.ceil(self.count / (self.separation or 1))

    @property
    def drawn(self) -> int:
        """How many members are drawn, expected."""
        return math.ceil(round(self.over_selection * self.cohort, 6))

    @property
    def smallest_population(self) -> int:
        """Of which such cohorts can be drawn, the largest too if it is said."""
        return max(self.largest_cohort or 1, self.drawn, (self.separation or 1) * self.cohort)


class Summing(Section):
    """What every way to sum has.

    Args:
        min_survivors: the fewest survivors whose sum is released; by default 70 % of the members that it is expected to
            be over.
        corrupt: the largest fraction of members assumed to collude with the server, or to leave their noise out, γ.
        dropout: the largest probability with which a member drops out, δ.
        ring_bits: 16 or 32: sums that hide or carry noise are taken modulo 2^ring_bits. By default 16, half the bytes,
            where the noise makes it cost next to nothing, and 32 elsewhere.
    """

    min_survivors: Annotated[int | None, Field(ge=1)] = None
    corrupt: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    dropout: Annotated[float, Field(ge=0, lt=0.5)] = 0.15
    ring_bits: Literal[16, 32] | None = None


class PlainSum(Summing):
    """`[secure_aggregation] protocol = "none"`: the server sees every update."""

    protocol: Literal["none"] = "none"
    buckets: ClassVar[int] = 1
    fewest_buckets: ClassVar[int] = 1


class RingSum(Summing):
    """What the secure sum and its ideal have in common: the server sees a sum in a ring, and nothing else.

    Args:
        buckets: into how many random parts a cohort is divided, each with a sum of its own; robust aggregators run
            across them, and a cohort may be as large as so many sessions. Every bucket's sum is private on its own, so
            the fewest survivors and the noise are those of a bucket, and sampling amplifies nothing.
        min_buckets: the fewest buckets that must come to a sum; by default 70 % of them.
    """

    buckets: Annotated[int, Field(ge=1)] = 1
    min_buckets: Annotated[int | None, Field(ge=1)] = None

    @property
    def fewest_buckets(self) -> int:
        """`min_buckets`, or what it is by default."""
        return self.min_buckets or math.ceil(0.7 * self.buckets)


class IdealSum(RingSum):
    """`[secure_aggregation] protocol = "ideal"`: the ring sum of secure aggregation without masks; simulations only."""

    protocol: Literal["ideal"] = "ideal"


class SecAggPlus(RingSum):
    """`[secure_aggregation] protocol = "secagg+"`: the server sees the sum only (Bell et al. 2020).

    Args:
        threat_model: against whom; see `docs/secagg.md`. `semi-malicious` and `malicious` need a fleet whose members
            have identities.
        complete: whether every member is every other's neighbour at any size; small cohorts are in any case.
    """

    protocol: Literal["secagg+"] = "secagg+"
    threat_model: Literal["semi-honest", "semi-malicious", "malicious"] = "semi-honest"
    complete: bool = False

    @property
    def signed(self) -> bool:
        """Whether members need identities."""
        return ThreatModel(self.threat_model).signed

    def parameters(self, bounds: CohortBounds) -> SecAggParameters:
        """The protocol's parameters; a server that picks the roster is met with 128 bits in a sparse graph.

        Args:
            bounds: of a sum: of a bucket, they say how many of its members may be corrupt.
        """
        grinding = self.threat_model == "malicious" and not self.complete
        return SecAggParameters(
            threat_model=ThreatModel(self.threat_model),
            corrupt=self.corrupt,
            dropout=self.dropout,
            security_bits=128 if grinding else 40,
            complete=self.complete,
            corrupt_members=bounds.min_survivors - bounds.honest if self.buckets > 1 else None,
        )

    def check(self, bounds: CohortBounds) -> None:
        """Refuses bounds that the protocol can't keep, or would only keep with another quorum.

        Raises:
            PlanError: with what is accepted.
        """
        try:
            quorum = self.parameters(bounds).neighbourhood(bounds.largest, bounds.min_survivors).quorum
        except ValueError as error:
            raise PlanError(f"secure_aggregation: {error}") from error
        if quorum > bounds.min_survivors:
            raise PlanError(
                f"secure_aggregation.min_survivors: found {bounds.min_survivors}; accepted with threat_model "
                f"{self.threat_model!r} and sums over up to {bounds.largest}: at least {quorum}, so that a secret "
                "needs more holders than it has corrupt ones"
            )


def spread(cohort: int) -> int:
    """A size that a cohort drawn by `poisson` sampling rarely passes: four standard deviations above the expected."""
    return cohort + math.ceil(4 * math.sqrt(cohort))


def largest_cohort(rounds: Rounds, population: int) -> int:
    """The most members that are drawn."""
    default = spread(rounds.cohort) if rounds.sampling == "poisson" else rounds.cohort
    return min(rounds.largest_cohort or default, population)


def cohort_bounds(rounds: Rounds, summing: PlainSum | RingSum, population: int) -> CohortBounds:
    """The bounds of each sum over cohorts that are drawn and summed in a given way: of a bucket, where there are any.

    Args:
        rounds: `[rounds]`.
        summing: `[secure_aggregation]`.
        population: how many members there are.

    Raises:
        PlanError: the population is too small for the cohort, or secure aggregation can't keep the bounds.
    """
    if rounds.cohort > population:
        raise PlanError(
            f"rounds.cohort: found {rounds.cohort}, but the population has {population} members; "
            f"accepted: 1 to {population}"
        )
    if rounds.drawn > population:
        raise PlanError(
            f"rounds.over_selection: found {rounds.over_selection:g}, which draws {rounds.drawn} members, but the "
            f"population has {population}; accepted: 1 to {population / rounds.cohort:g}"
        )
    if rounds.separation is not None and rounds.separation * rounds.cohort > population:
        raise PlanError(
            f"rounds.separation: found {rounds.separation}, but a population of {population} members has cohorts of "
            f"{rounds.cohort} for {population // rounds.cohort} rounds; accepted: 1 to {population // rounds.cohort}"
        )
    largest, buckets = largest_cohort(rounds, population), summing.buckets
    size = -(-largest // buckets)
    fewest = summing.min_survivors or math.ceil(0.7 * rounds.cohort / buckets)
    honest = max(1, math.ceil((1 - summing.corrupt) * fewest))
    if buckets > 1:
        corrupt = most_corrupt_in_a_bucket(largest, buckets, size, summing.corrupt)
        honest = fewest - corrupt
        if honest < 1:
            raise PlanError(
                f"secure_aggregation.corrupt: found {summing.corrupt:g}, but chance may put {corrupt} corrupt members "
                f"of a cohort of up to {largest} into one of {buckets} buckets, whose sum is opened with {fewest} "
                "survivors; accepted: a smaller share, fewer buckets, or a larger secure_aggregation.min_survivors"
            )
    bounds = CohortBounds(size, fewest, honest, denominator=rounds.cohort / buckets)
    if isinstance(summing, SecAggPlus):
        summing.check(bounds)
    return bounds


def impossible_buffering(rounds: Rounds, summing: PlainSum | RingSum, strategy: Strategy) -> list[str]:
    """What can't be where a cohort is who is done first, one sentence each.

    Args:
        rounds: `[rounds]`.
        summing: `[secure_aggregation]`.
        strategy: of the plan.
    """
    if (rounds.sampling == "buffered") != (rounds.buffering is not None):
        found = "missing" if rounds.buffering is None else "found"
        return [
            f"rounds.buffering: {found} with rounds.sampling {rounds.sampling!r}; accepted: a section with concurrency "
            "with 'buffered', and none with another"
        ]
    if rounds.buffering is None:
        return []
    problems = []
    if rounds.over_selection > 1:
        problems.append(
            f"rounds.over_selection: found {rounds.over_selection:g}, but with rounds.sampling 'buffered' those who "
            "are done first are taken in any case; accepted: 1, and rounds.buffering.concurrency for how many work"
        )
    if not strategy.aggregator.linear:
        problems.append(
            f"strategy.name: {strategy.name!r} aggregates by {strategy.aggregator.name!r}, which compares updates, and "
            "those of a buffer start from different models; accepted with rounds.sampling 'buffered': a strategy with "
            "a linear aggregator (fedavg, fedadam, fedprox)"
        )
    if strategy.server.extras(strategy.server.init(Layout(()))):
        problems.append(
            f"strategy.name: {strategy.name!r} broadcasts vectors beside the model, which are for the round that "
            "begins with them, and an update of a buffer may have begun earlier; accepted with rounds.sampling "
            "'buffered': a strategy that broadcasts the model only (fedavg, fedadam, fedprox)"
        )
    if summing.buckets > 1:
        problems.append(
            f"secure_aggregation.buckets: found {summing.buckets}, but a buffer is one sum; accepted with "
            "rounds.sampling 'buffered': 1, and a smaller rounds.cohort for smaller sums"
        )
    if isinstance(summing, SecAggPlus) and summing.signed:
        problems.append(
            f"secure_aggregation.threat_model: found {summing.threat_model!r}, which promises members that all of them "
            "were given the same model, and those of a buffer were not: a server that lies could give one member "
            "another model than the rest, and see its update alone in the sum (Pasquini et al. 2022); accepted with "
            "rounds.sampling 'buffered': 'semi-honest'"
        )
    return problems
