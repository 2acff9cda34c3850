"""The terms of a plan: what a round's members agree to, and the bytes that are hashed and travel."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

import pydantic
from pydantic import BeforeValidator, PrivateAttr

from quorate.cohorts import PlainSum, Rounds, cohort_bounds
from quorate.errors import PlanError
from quorate.evaluation import Evaluation
from quorate.parts import written
from quorate.plan.combinations import impossible
from quorate.plan.sections import (
    SUMMED,
    EngineSection,
    Privacy,
    SecureAggregation,
    StrategySection,
    TaskSection,
    Training,
    strategy_section,
    task_section,
)
from quorate.privacy import DpQuery, Event, ExternalEvent, NoPrivacy, TruncatedPoissonSampledEvent
from quorate.rounds import CohortBounds, Kind, SumShape, VectorSpec
from quorate.sections import Section
from quorate.task import Task

__all__ = ["Terms"]

FORMAT = 1
_NO_TASKS: Mapping[str, Task] = {}


class Terms(Section):
    """What a round's members agree to: hashed, and sent with every assignment."""

    task: Annotated[TaskSection, BeforeValidator(task_section)]
    rounds: Rounds
    training: Training = Training()
    strategy: Annotated[StrategySection, BeforeValidator(strategy_section)] = StrategySection()
    privacy: Privacy = NoPrivacy()
    secure_aggregation: SecureAggregation = PlainSum()
    evaluation: Evaluation | None = None
    engine: EngineSection | None = None
    _kind: Kind = PrivateAttr(Kind.FIT)

    @pydantic.model_validator(mode="after")
    def _possible(self) -> Terms:
        problems: list[str] = []
        for part in (self.task, self.strategy, self.engine):
            try:
                if part is not None:
                    part.resolve()
            except PlanError as error:
                problems += error.problems
        problems += [] if problems else impossible(self)
        if problems:
            raise PlanError(problems)
        return self

    @property
    def kind(self) -> Kind:
        """Of the rounds that these terms are for, see `at`."""
        return self._kind

    def at(self, kind: Kind) -> Self:
        """These terms as they are for rounds of a kind: an evaluation has its own cohort, and noise for its cells.

        Raises:
            PlanError: these terms have no evaluation.
        """
        if kind is self._kind:
            return self
        if self.evaluation is None:
            raise PlanError("evaluation: these terms have none")
        asked, summing, rounds = self.evaluation, self.secure_aggregation, self.rounds
        plain = isinstance(summing, PlainSum) and not self.privacy.private
        same = asked.cohort in (None, rounds.cohort)
        fewest = asked.min_survivors or (summing.min_survivors if same else None)
        own = {
            "count": asked.times(rounds.count),
            "cohort": asked.cohort or rounds.cohort,
            "largest_cohort": asked.largest_cohort or (rounds.largest_cohort if same else None),
            "sampling": "poisson" if rounds.sampling == "poisson" else "fixed",
            "separation": None,
            "buffering": None,
            "weighting": "uniform",
            "example_cap": None,
        }
        cells = self.privacy.for_cells(len(asked.questions), asked.noise_multiplier, asked.epsilon)
        made = self.model_copy(
            update={
                "rounds": rounds.model_copy(update=own),
                "privacy": NoPrivacy() if plain else cells,
                "secure_aggregation": summing.model_copy(
                    update={"min_survivors": fewest, "ring_bits": None if plain else 32}
                ),
            }
        )
        made._kind = kind
        return made

    def bounds(self, population: int) -> CohortBounds:
        """The bounds of each sum, over a cohort or a bucket, in a population of the given size.

        Raises:
            PlanError: the population is too small for the cohort.
        """
        try:
            return cohort_bounds(self.rounds, self.secure_aggregation, population)
        except PlanError as error:
            raise PlanError(self.own_words(error.problems)) from None

    def own_words(self, problems: Sequence[str]) -> list[str]:
        """What is wrong with a cohort, by the section that it is set in."""
        if self._kind is Kind.FIT:
            return list(problems)
        replaced = (
            ("secure_aggregation.min_survivors", "evaluation.min_survivors"),
            ("rounds.cohort", "evaluation.cohort"),
            ("rounds.largest_cohort", "evaluation.largest_cohort"),
            ("privacy.epsilon:", "evaluation.epsilon:"),
        )
        found = []
        for problem in problems:
            for ours, theirs in replaced:
                problem = problem.replace(ours, theirs)
            found.append(problem)
        return found

    @property
    def single_updates(self) -> bool:
        """Whether the aggregator or the mechanism takes single updates, in the place of their running sum."""
        if self._kind is Kind.EVALUATE:
            return False
        return isinstance(self.privacy, DpQuery) or not self.strategy.resolve().aggregator.linear

    def shape(self, bounds: CohortBounds) -> SumShape:
        """What a round's sum carries, and in which arithmetic: a ring wherever something is hidden, or noise added.

        Args:
            bounds: of the cohort.
        """
        strategy, summing = self.strategy.resolve(), self.secure_aggregation
        if self._kind is Kind.EVALUATE and self.evaluation is not None:
            return SumShape(self.evaluation.questions.vectors, bounds, summing.ring_bits)
        layout = strategy.shared(self.task.resolve().layout)
        parts = tuple(math.prod(shape) for _, shape in layout.entries)
        vectors = self.privacy.riding(
            VectorSpec(
                tuple(
                    dataclasses.replace(vector, parts=parts) if vector.length == layout.size else vector
                    for vector in strategy.vectors(layout).vectors
                )
            )
        )
        if isinstance(summing, PlainSum) and not self.privacy.private:
            return SumShape(vectors, bounds, None)
        return SumShape(vectors, bounds, summing.ring_bits or self.privacy.ring_bits(vectors, bounds))

    def event(self, bounds: CohortBounds, population: int) -> Event | None:
        """What a round releases, for the ledger; None when no privacy is claimed.

        Amplification by sampling is claimed only for the sampler that the coordinator runs in secret, and only for one
        sum of the whole cohort: with buckets, one member more would also change who else is summed together.

        Args:
            bounds: of the cohort.
            population: how many members the cohort is drawn from.
        """
        released = self.privacy.event(self.shape(bounds))
        if isinstance(released, ExternalEvent):  # says itself how it is sampled
            return released
        probability = self.amplified_by(population)
        if released is None or probability is None:
            return released
        return TruncatedPoissonSampledEvent(
            population=population,
            probability=probability,
            cap=bounds.largest,
            event=released,
            dropout=self.secure_aggregation.dropout,
        )

    def amplified_by(self, population: int) -> float | None:
        """The probability to be drawn, where that is what amplifies."""
        amplified = self.rounds.sampling == "poisson" and self.secure_aggregation.buckets == 1
        return self.rounds.cohort / population if amplified else None

    def sections(self) -> list[str]:
        """The names of the sections that this plan has: with an engine of its own, none of our engine's."""
        absent = {"engine"} if self.engine is None else {*SUMMED}
        absent |= {"evaluation"} if self.evaluation is None else set()
        return [name for name in type(self).model_fields if name not in absent]

    def encoded(self) -> bytes:
        """The canonical bytes: JSON with sorted keys and no spaces, of the terms' sections only.

        A number is written in one way, whole numbers without a fraction, so that `1` and `1.0` are the same terms.
        """
        content: dict[str, Any] = {
            name: getattr(self, name).model_dump(mode="json") for name in self.terms_sections()
        }
        if "strategy" in content:
            content["strategy"] = self.strategy.complete().model_dump(mode="json")
        content["task"] = self.task.resolve().description()
        content["format"] = FORMAT
        return json.dumps(_whole(content), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    def terms_sections(self) -> list[str]:
        """Those of `sections` that are hashed."""
        return [name for name in self.sections() if name in Terms.model_fields]

    @classmethod
    def parse(cls, encoded: bytes, tasks: Mapping[str, Task] = _NO_TASKS) -> Terms:
        """Terms from their bytes. The task must be installed here, and have the layout that the terms say.

        Args:
            encoded: what `encoded` gave.
            tasks: tasks that are installed otherwise than as entry points, by name.

        Raises:
            PlanError: the bytes are not terms that this version understands, or the task differs.
        """
        try:
            content = json.loads(encoded)
            if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
                raise PlanError(f"terms of an unknown format; this version reads format {FORMAT}")
            layout = content["task"].pop("layout")
            for part in ("task", "strategy"):
                if ":" in content[part]["name"]:
                    raise PlanError(
                        f"{part}.name: found {content[part]['name']!r}; terms name installed parts only"
                    )
            if ":" in content["privacy"].get("query", ""):
                raise PlanError(
                    "privacy.query: found a path to code; terms name installed parts only, and a query runs where the "
                    "plan was written, in a simulation"
                )
            if content["task"]["name"] in tasks:
                content["task"] = _installed(tasks[content["task"]["name"]], content["task"])
            terms = cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise PlanError(f"these terms can't be read: {error}") from error
        if terms.task.resolve().layout.digest.hex() != layout:
            raise PlanError(
                f"task {terms.task.name!r}: the layout that is installed here is not the terms' layout"
            )
        return terms


def _installed(task: Task, section: Mapping[str, Any]) -> Task:
    """The task, if it has the terms' settings."""
    settings = _whole({name: value for name, value in section.items() if name != "name"})
    own = json.loads(json.dumps(_whole(written("task", task.model.settings))))
    if own != settings:
        raise PlanError(f"task {task.name!r}: installed here with {own}, the terms say {settings}")
    return task


def _whole(value: Any) -> Any:
    """The same JSON value, whole numbers as integers (as RFC 8785 writes them)."""
    match value:
        case dict():
            return {key: _whole(item) for key, item in value.items()}
        case list() | tuple():
            return [_whole(item) for item in value]
        case float() if value.is_integer() and abs(value) < 2**53:
            return int(value)
    return value
