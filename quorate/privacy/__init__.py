"""Differential privacy, from the clip on the client to the ε on the model's card.

A *mechanism* is a section of the plan: it makes the codecs of a round and the *event* that says what the
round released. The *ledger* charges events, and *accounting* turns what was charged into the two ε of
`Epsilons`. Importing this package needs nothing beyond the base install; accounting imports `dp_accounting`
when it is first used.
"""

from __future__ import annotations

from quorate.privacy.accounting import Epsilons, ExampleEpsilon, Spend, default_delta, example_epsilon
from quorate.privacy.calibration import (
    calibrate,
    calibrate_examples,
    forecast,
    forecast_server,
    least_epsilon,
    most_participations,
)
from quorate.privacy.dp_sgd import DpSgd, ExampleEvent
from quorate.privacy.events import (
    CentralDiscreteGaussianEvent,
    CentralDiscreteLaplaceEvent,
    DistributedDiscreteGaussianEvent,
    DistributedSkellamEvent,
    Event,
    ExternalEvent,
    LaplaceVector,
    LocalDiscreteGaussianEvent,
    NoisyVector,
    TruncatedPoissonSampledEvent,
)
from quorate.privacy.ledger import Charge, Ledger, LedgerRows
from quorate.privacy.mechanisms import (
    CentralGaussian,
    CentralLaplace,
    DistributedGaussian,
    DistributedSkellam,
    DpFtrl,
    DpQuery,
    LocalGaussian,
    Mechanism,
    NoPrivacy,
)
from quorate.privacy.populations import PopulationAccount, SharedLedger

__all__ = [
    "CentralDiscreteGaussianEvent",
    "CentralDiscreteLaplaceEvent",
    "CentralGaussian",
    "CentralLaplace",
    "Charge",
    "DistributedDiscreteGaussianEvent",
    "DistributedGaussian",
    "DistributedSkellam",
    "DistributedSkellamEvent",
    "DpFtrl",
    "DpQuery",
    "DpSgd",
    "Epsilons",
    "Event",
    "ExampleEpsilon",
    "ExampleEvent",
    "ExternalEvent",
    "LaplaceVector",
    "Ledger",
    "LedgerRows",
    "LocalDiscreteGaussianEvent",
    "LocalGaussian",
    "Mechanism",
    "NoPrivacy",
    "NoisyVector",
    "PopulationAccount",
    "SharedLedger",
    "Spend",
    "TruncatedPoissonSampledEvent",
    "calibrate",
    "calibrate_examples",
    "default_delta",
    "example_epsilon",
    "forecast",
    "forecast_server",
    "least_epsilon",
    "most_participations",
]
