"""The whole plan: the terms, and what stands beside them."""

from __future__ import annotations

import dataclasses

import pydantic

from quorate.cohorts import largest_cohort
from quorate.errors import PlanError
from quorate.evaluation import Evaluation
from quorate.plan.sections import AnyMechanism, FleetSection, Population, Publish, Training
from quorate.plan.terms import Terms
from quorate.privacy import DpQuery, Event, NoPrivacy, calibrate, calibrate_examples, default_delta
from quorate.rounds import CohortBounds, Kind

__all__ = ["Plan"]


class Plan(Terms):
    """A whole run: the terms, the fleet, where the result goes, and whose budget it counts towards."""

    fleet: FleetSection = FleetSection()
    publish: Publish | None = None
    population: Population | None = None

    @pydantic.model_validator(mode="after")
    def _accounted(self) -> Plan:
        if self.population is not None and self.engine is None and not self.privacy.private:
            raise PlanError(
                f"population: found the budget of {self.population.name!r}, but with privacy.mechanism "
                f"{self.privacy.mechanism!r} no round has an ε that could be charged to it; accepted: another "
                "mechanism, or no [population]"
            )
        return self

    def terms(self) -> Terms:
        """The hashed part. Live objects stay bound."""
        return Terms(**{name: getattr(self, name) for name in self.terms_sections()})

    def resolved(self, population: int) -> Plan:
        """This plan with everything filled in that depends on the population's size.

        Raises:
            PlanError: the population is too small, or the target ε can't be had.
        """
        bounds = self.bounds(population)
        rounds = self.rounds.model_copy(update={"largest_cohort": largest_cohort(self.rounds, population)})
        if self.engine is not None:
            return self.model_copy(update={"rounds": rounds})
        delta = self.privacy.delta or default_delta(population)
        noted = self.privacy.model_copy(update={"delta": delta}) if self.privacy.private else self.privacy
        measured = self.model_copy(update={"privacy": noted})
        measured = measured.model_copy(update={"evaluation": measured._evaluated(population)})
        calibrated = measured.model_copy(update={"privacy": measured._calibrated(population, bounds)})
        bits = calibrated.shape(bounds).ring_bits
        return calibrated.model_copy(
            update={
                "rounds": rounds,
                "secure_aggregation": self.secure_aggregation.model_copy(
                    update={"min_survivors": bounds.min_survivors, "ring_bits": bits}
                ),
                "strategy": self.strategy.complete(),
                "training": self._trained(),
            }
        )

    def _trained(self) -> Training:
        """`[training]`, with the noise for the ε of an example: a client may be in every round that it can be in."""
        training = self.training
        if training.dp_sgd is None:
            return training
        found = calibrate_examples(training.dp_sgd, training.epochs, self.rounds.participations)
        return training.model_copy(update={"dp_sgd": found})

    def _evaluated(self, population: int) -> Evaluation | None:
        """`[evaluation]` with its cohort, and with the noise multiplier for its ε."""
        if self.evaluation is None:
            return None
        terms = self.at(Kind.EVALUATE)
        bounds, rounds, multiplier = terms.bounds(population), terms.rounds, self.evaluation.noise_multiplier
        if not isinstance(terms.privacy, NoPrivacy | DpQuery) and multiplier is None:
            try:
                found = calibrate(
                    terms.privacy,
                    terms.shape(bounds),
                    rounds=rounds.count,
                    delta=terms.privacy.delta or default_delta(population),
                    population=population,
                    probability=terms.amplified_by(population),
                    dropout=terms.secure_aggregation.dropout,
                )
            except PlanError as error:
                raise PlanError(terms.own_words(error.problems)) from None
            multiplier = found.noise_multiplier
        own = {
            "cohort": rounds.cohort,
            "largest_cohort": largest_cohort(rounds, population),
            "min_survivors": bounds.min_survivors,
            "noise_multiplier": multiplier,
            "epsilon": None,
        }
        return self.evaluation.model_copy(update=own)

    def beside(self, population: int) -> dict[Event, int]:
        """What is released beside training, how often; of a resolved plan."""
        if self.evaluation is None:
            return {}
        terms = self.at(Kind.EVALUATE)
        event = terms.event(terms.bounds(population), population)
        return {} if event is None else {event: terms.rounds.count}

    def _calibrated(self, population: int, bounds: CohortBounds) -> AnyMechanism:
        """The mechanism with a noise multiplier that keeps its ε in the ring that will be used."""
        if isinstance(self.privacy, NoPrivacy):
            return self.privacy
        if isinstance(self.privacy, DpQuery):
            return self.privacy
        privacy, beside = self.privacy, self.beside(population)

        def at(bits: int) -> AnyMechanism:
            return calibrate(
                privacy,
                dataclasses.replace(self.shape(bounds), ring_bits=bits),
                rounds=self.rounds.participations,
                delta=privacy.delta or default_delta(population),
                population=population,
                probability=self.amplified_by(population),
                dropout=self.secure_aggregation.dropout,
                beside=beside,
            )

        asked = self.secure_aggregation.ring_bits
        found = at(asked or 32)
        narrow = asked is None and found.ring_bits(self.shape(bounds).vectors, bounds) == 16
        return at(16) if narrow else found
