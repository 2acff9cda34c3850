"""The plan: a run's description as pure data, and its terms, the part that devices verify.

A TOML file, a Python object and `--set a.b=c` are the same thing (`quorate.planfile` reads the first and the last). A
plan is validated when it is made: an unknown key, a bad value or an impossible combination is a `PlanError`. Live
objects can be bound in Python, for simulations; whatever is bound still has a name and settings, which is what the
terms hold.

`Plan.resolved` fills in what depends on the population (δ, the noise multiplier for a target ε, the cohort's bounds);
`Terms.at` gives the terms as they are for rounds of a kind, training or evaluation; `Terms.encoded` gives the canonical
bytes that are hashed and that travel.
"""

from quorate.cohorts import Buffering, IdealSum, PlainSum, RingSum, Rounds, SecAggPlus
from quorate.evaluation import Evaluation
from quorate.plan.plan import Plan
from quorate.plan.sections import (
    EngineSection,
    FleetSection,
    Population,
    Publish,
    StrategySection,
    TaskSection,
    Training,
)
from quorate.plan.terms import Terms

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
