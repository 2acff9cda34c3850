"""The plan: a run's description as pure data, and its terms, the part that devices verify.

A TOML file, a Python object and `--set a.b=c` are the same thing (`quorate.planfile` reads the first and the last). A
plan is validated when it is made: an unknown key, a bad value or an impossible combination is a `PlanError`. Live
objects can be bound in Python, for simulations; whatever is bound still has a name and settings, which is what the
terms hold.

`Plan.resolved` fills in what depends on the population (δ, the noise multiplier for a target ε, the cohort's bounds);
`Terms.at` gives the terms as they are for rounds of a kind, training or evaluation; `Terms.encoded` gives the canonical
bytes that are hashed and that travel.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field, PrivateAttr

from quorate.cohorts import (
    Buffering,
    IdealSum,
    PlainSum,
    RingSum,
    Rounds,
    SecAggPlus,
    cohort_bounds,
    impossible_buffering,
    largest_cohort,
    spread,
)
from quorate.errors import PlanError
from quorate.evaluation import EXAMPLES, Evaluation
from quorate.parts import find_part, make_part, written
from quorate.privacy import (
    CentralGaussian,
    CentralLaplace,
    DistributedGaussian,
    DistributedSkellam,
    DpFtrl,
    DpQuery,
    DpSgd,
    Event,
    ExampleEvent,
    ExternalEvent,
    LocalGaussian,
    NoPrivacy,
    TruncatedPoissonSampledEvent,
    calibrate,
    default_delta,
)
from quorate.privacy.secagg.parameters import LARGEST_COHORT, SMALLEST_COHORT
from quorate.rounds import CohortBounds, Kind, SumShape, VectorSpec
from quorate.sections import Section
from quorate.strategies import Strategy
from quorate.task import Task

__all__ = [
    "Buffering",
    "EngineSection",
    "Evaluation",
    "FleetSection",
    "IdealSum",
    "PlainSum",
    "Plan",
    "Population",
    "Publish",
    "RingSum",
    "Rounds",
    "SecAggPlus",
    "StrategySection",
    "TaskSection",
    "Terms",
    "Training",
]

FORMAT = 1
_FEWEST_FOR_ROBUSTNESS = 3
_NO_TASKS: Mapping[str, Task] = {}


class NamedSection(Section):
    """A section that names a part and gives its settings: every key but the name goes to the part's factory."""

    model_config = ConfigDict(extra="allow")

    @property
    def settings(self) -> dict[str, Any]:
        """The factory's arguments."""
        return dict(self.model_extra or {})


class TaskSection(NamedSection):
    """`[task]`: what is learned.

    Args:
        name: an installed task, or `module:attribute` of a task or of a function that makes one.
    """

    name: str
    _live: Task | None = PrivateAttr(None)

    def resolve(self) -> Task:
        """The task itself."""
        if self._live is None:
            found = find_part("task.name", "quorate.tasks", self.name)
            if not isinstance(found, Task):
                found = make_part("task", found, self.settings)
            elif self.settings:
                raise PlanError(
                    f"task.{next(iter(self.settings))}: unknown key; {self.name!r} is a task that is made already; "
                    "accepted: its name only"
                )
            self._live = found if isinstance(found, Task) else Task(found)
        return self._live


class StrategySection(NamedSection):
    """`[strategy]`: the local rule, the aggregator and the server's rule.

    Args:
        name: an installed strategy, or `module:attribute`.
    """

    name: str = "fedavg"
    _live: Strategy | None = PrivateAttr(None)

    def complete(self) -> StrategySection:
        """This section with every setting of the strategy written out."""
        strategy = self.resolve()
        section = StrategySection(name=strategy.name, **written("strategy", strategy.settings))
        section._live = strategy
        return section

    def resolve(self) -> Strategy:
        """The strategy itself."""
        if self._live is None:
            factory = find_part("strategy.name", "quorate.strategies", self.name)
            self._live = make_part("strategy", factory, self.settings)
        return self._live


class EngineSection(NamedSection):
    """`[engine]`: what makes the steps of the run, in the place of our own engine.

    It does its own aggregation, so that there is no `[strategy]`, `[privacy]` or `[secure_aggregation]` beside it.

    Args:
        name: an installed engine, such as `tff`.
    """

    name: str
    _live: Any = PrivateAttr(None)

    def resolve(self) -> Any:
        """What the engine is made from: a `quorate.engine.EngineSource`."""
        if self._live is None:
            factory = find_part("engine.name", "quorate.engines", self.name)
            self._live = make_part("engine", factory, self.settings)
        return self._live


class FleetSection(NamedSection):
    """`[fleet]`: who runs the client side. Outside the terms.

    Args:
        kind: an installed fleet, such as `simulation`.
        seed: makes a simulation repeatable, and its ε a simulated one; None draws from the operating system.
    """

    kind: str = "simulation"
    seed: int | None = None


class Training(Section):
    """`[training]`: what each client does with its data in a round.

    Args:
        learning_rate: of the client's SGD.
        epochs: passes over the client's data.
        batch_size: examples a step; with `dp_sgd`, whose batches are drawn, how many examples' gradients are computed
            at once.
        dp_sgd: clips the gradient of every example, and adds noise to their sums, so that single examples are
            protected; None: gradients are as they are.
    """

    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    epochs: Annotated[int, Field(ge=1)] = 1
    batch_size: Annotated[int, Field(ge=1)] = 20
    dp_sgd: DpSgd | None = None

    @property
    def example_event(self) -> ExampleEvent | None:
        """What one participation costs an example; None where single examples are not protected."""
        return None if self.dp_sgd is None else self.dp_sgd.event(self.epochs)

    def settings(self) -> dict[str, float]:
        """The numbers that an instruction has of this section."""
        numbers: dict[str, float] = self.model_dump(exclude={"dp_sgd"})
        return numbers if self.dp_sgd is None else numbers | self.dp_sgd.settings(self.epochs)


class Publish(Section):
    """`[publish]`: where versions go. Outside the terms.

    Args:
        registry: the registry's directory.
        model: the model's name in it.
        alias: the alias that moves to each new version; None moves none.
        every: publish after every so many committed rounds; 0 only after the last.
        data_card: what the model was trained on and what it is for, free text.
    """

    registry: str
    model: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    alias: Annotated[str | None, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")] = "stable"
    every: Annotated[int, Field(ge=0)] = 0
    data_card: str = ""


class Population(Section):
    """`[population]`: whose budget this run's rounds count towards, beside its own. Outside the terms.

    All runs of one state directory or coordinator that name the same population share its budget, whatever they learn;
    the ledger refuses the round that would pass it. It stays as the first of them says.

    Args:
        name: of the people or devices that the runs are over.
        epsilon: the `released` ε that all of them together must not pass.
        delta: of that ε; it is said, because plans that expect different numbers of members share it.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]


def _task_section(value: Any) -> Any:
    if isinstance(value, Task):
        section = TaskSection(name=value.name, **written("task", value.model.settings))
        section._live = value
        return section
    return value


def _strategy_section(value: Any) -> Any:
    if isinstance(value, Strategy):
        section = StrategySection(name=value.name)
        section._live = value
        return section.complete()
    return value


AnyMechanism = (
    NoPrivacy
    | CentralGaussian
    | CentralLaplace
    | DpFtrl
    | DpQuery
    | LocalGaussian
    | DistributedGaussian
    | DistributedSkellam
)
Privacy = Annotated[AnyMechanism, Field(discriminator="mechanism")]
_SUMMED = ("strategy", "privacy", "secure_aggregation")
"""The sections of our own engine."""
SecureAggregation = Annotated[PlainSum | IdealSum | SecAggPlus, Field(discriminator="protocol")]


class Terms(Section):
    """What a round's members agree to: hashed, and sent with every assignment."""

    task: Annotated[TaskSection, BeforeValidator(_task_section)]
    rounds: Rounds
    training: Training = Training()
    strategy: Annotated[StrategySection, BeforeValidator(_strategy_section)] = StrategySection()
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
        problems += [] if problems else _impossible(self)
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
            raise PlanError(self._own_words(error.problems)) from None

    def _own_words(self, problems: Sequence[str]) -> list[str]:
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
        probability = self._amplified_by(population)
        if released is None or probability is None:
            return released
        return TruncatedPoissonSampledEvent(
            population=population,
            probability=probability,
            cap=bounds.largest,
            event=released,
            dropout=self.secure_aggregation.dropout,
        )

    def _amplified_by(self, population: int) -> float | None:
        """The probability to be drawn, where that is what amplifies."""
        amplified = self.rounds.sampling == "poisson" and self.secure_aggregation.buckets == 1
        return self.rounds.cohort / population if amplified else None

    def sections(self) -> list[str]:
        """The names of the sections that this plan has: with an engine of its own, none of our engine's."""
        absent = {"engine"} if self.engine is None else {*_SUMMED}
        absent |= {"evaluation"} if self.evaluation is None else set()
        return [name for name in type(self).model_fields if name not in absent]

    def encoded(self) -> bytes:
        """The canonical bytes: JSON with sorted keys and no spaces, of the terms' sections only.

        A number is written in one way, whole numbers without a fraction, so that `1` and `1.0` are the same terms.
        """
        content: dict[str, Any] = {
            name: getattr(self, name).model_dump(mode="json") for name in self._terms_sections()
        }
        if "strategy" in content:
            content["strategy"] = self.strategy.complete().model_dump(mode="json")
        content["task"] = self.task.resolve().description()
        content["format"] = FORMAT
        return json.dumps(_whole(content), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    def _terms_sections(self) -> list[str]:
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
        return Terms(**{name: getattr(self, name) for name in self._terms_sections()})

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
            }
        )

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
                    probability=terms._amplified_by(population),
                    dropout=terms.secure_aggregation.dropout,
                )
            except PlanError as error:
                raise PlanError(terms._own_words(error.problems)) from None
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
                probability=self._amplified_by(population),
                dropout=self.secure_aggregation.dropout,
                beside=beside,
            )

        asked = self.secure_aggregation.ring_bits
        found = at(asked or 32)
        narrow = asked is None and found.ring_bits(self.shape(bounds).vectors, bounds) == 16
        return at(16) if narrow else found


def _installed(task: Task, section: Mapping[str, Any]) -> Task:
    """The task, if it has the terms' settings."""
    settings = _whole({name: value for name, value in section.items() if name != "name"})
    own = json.loads(json.dumps(_whole(written("task", task.model.settings))))
    if own != settings:
        raise PlanError(f"task {task.name!r}: installed here with {own}, the terms say {settings}")
    return task


def _impossible(terms: Terms) -> list[str]:
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
    if rounds.sampling == "poisson" and rounds.over_selection > 1:
        problems.append(
            f"rounds.over_selection: found {rounds.over_selection:g}, but with rounds.sampling {rounds.sampling!r} a "
            "round that goes on with the quick members is not the random sample that privacy is amplified by; "
            "accepted: 1, or sampling = 'fixed'"
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
    return own._own_words(_impossible_cohort(own.rounds, own.secure_aggregation))


def _beside_an_engine(terms: Terms, engine: EngineSection) -> list[str]:
    problems = [
        f"{name}: found beside [engine]; the engine {engine.name!r} does its own aggregation; accepted: no [{name}]"
        for name in (*_SUMMED, "evaluation")
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
