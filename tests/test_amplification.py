"""Every way to draw a cohort, with everything that could make it another: amplified, claimed nothing for, or refused.

The table is the one of `docs/privacy.md`. Amplified means: the ledger is charged for the sampler that the coordinator
runs, its cap, its quorum and its dropouts included.
"""

import contextlib

import pytest

from quorate.assembly import _samplers, open_run
from quorate.errors import PlanError
from quorate.plan import Plan
from quorate.planfile import make_plan
from quorate.privacy import TruncatedPoissonSampledEvent
from quorate.rounds import Kind
from quorate.server.selection import FirstDone, FixedSize, Separated, TruncatedPoisson
from quorate.server.store import Store
from tests.federations import SOFTMAX_WINE

POPULATION, COHORT = 120, 12
AMPLIFIED, PLAIN = "amplified", "nothing is claimed for the draw"
CENTRAL = {"mechanism": "central-gaussian", "clip_norm": 1.0, "noise_multiplier": 2.0}
DISTRIBUTED = {**CENTRAL, "mechanism": "distributed-discrete-gaussian"}

SAMPLINGS = {
    "poisson": (TruncatedPoisson, {}),
    "fixed": (FixedSize, {}),
    "separated": (Separated, {"separation": 4}),
    "buffered": (FirstDone, {"buffering": {"concurrency": 24}}),
}
"""What draws, and what the way needs."""

CHANGES = {
    "as it is": {},
    "single updates": {"privacy": CENTRAL, "secure_aggregation": {"protocol": "none"}},
    "noise of each member's own": {"privacy": {**CENTRAL, "mechanism": "local-discrete-gaussian"}},
    "a quorum of nearly all": {"secure_aggregation": {"protocol": "ideal", "min_survivors": 11}},
    "many dropouts": {"secure_aggregation": {"protocol": "ideal", "dropout": 0.45}},
    "the sum as soon as enough reported": {"rounds": {"over_selection": 1.5}},
    "a cap above the cohort": {"rounds": {"largest_cohort": 14}},
    "a cap below the cohort": {"rounds": {"largest_cohort": 11}},
    "a pause after each round": {"rounds": {"separation": 3}},
    "those first who are done first": {"rounds": {"buffering": {"concurrency": 24}}},
    "counts of examples": {"rounds": {"weighting": "examples", "example_cap": 9}},
    "random buckets": {"secure_aggregation": {"protocol": "ideal", "buckets": 3, "corrupt": 0.0}},
    "an adaptive clip norm": {"privacy": {**DISTRIBUTED, "adaptive_clip": {"count_noise": 0.5}}},
    "single examples": {
        "training": {"dp_sgd": {"clip_norm": 1.0, "noise_multiplier": 1.0, "sampling_rate": 0.5}}
    },
    "an evaluation": {"evaluation": {"metrics": {"accuracy": [0, 1]}, "noise_multiplier": 2.0}},
    "noise over rounds": {"privacy": {**CENTRAL, "mechanism": "dp-ftrl", "span": 4}},
    "another library's engine": {"engine": {"name": "tff", "process": "job:build"}},
}
"""What could break a sampler's amplification."""

REFUSED_OVER, REFUSED_CAP = r"over_selection: found 1\.5", "largest_cohort: found"
REFUSED_COUNTS, REFUSED_FTRL = "weighting: found 'examples'", "separation: found None"
EXPECTED: dict[str, tuple[str, str, str, str]] = {
    # by sampling:                          poisson          fixed             separated         buffered
    "as it is": (AMPLIFIED, PLAIN, PLAIN, PLAIN),
    "single updates": (AMPLIFIED, PLAIN, PLAIN, PLAIN),
    "noise of each member's own": (AMPLIFIED, PLAIN, PLAIN, PLAIN),
    "a quorum of nearly all": (AMPLIFIED, PLAIN, PLAIN, PLAIN),
    "many dropouts": (AMPLIFIED, PLAIN, PLAIN, PLAIN),
    "the sum as soon as enough reported": (REFUSED_OVER, PLAIN, REFUSED_OVER, REFUSED_OVER),
    "a cap above the cohort": (AMPLIFIED, REFUSED_CAP, REFUSED_CAP, REFUSED_CAP),
    "a cap below the cohort": (REFUSED_CAP, REFUSED_CAP, REFUSED_CAP, REFUSED_CAP),
    "a pause after each round": ("separation: found 3", "separation: found 3", PLAIN, PLAIN),
    "those first who are done first": ("buffering: found", "buffering: found", "buffering: found", PLAIN),
    "counts of examples": (REFUSED_COUNTS, REFUSED_COUNTS, REFUSED_COUNTS, REFUSED_COUNTS),
    "random buckets": (PLAIN, PLAIN, PLAIN, "buckets: found 3"),
    "an adaptive clip norm": (AMPLIFIED, PLAIN, PLAIN, PLAIN),
    "single examples": (AMPLIFIED, PLAIN, PLAIN, PLAIN),
    "an evaluation": (AMPLIFIED, PLAIN, PLAIN, "evaluation: found with rounds.sampling 'buffered'"),
    "noise over rounds": (REFUSED_FTRL, REFUSED_FTRL, PLAIN, REFUSED_FTRL),
    "another library's engine": (PLAIN, PLAIN, PLAIN, "sampling: found 'buffered'"),
}
COMBINATIONS = [
    (sampling, change, verdict)
    for change in CHANGES
    for sampling, verdict in zip(SAMPLINGS, EXPECTED[change], strict=True)
]


def made(sampling: str, change: str) -> Plan:
    changed = CHANGES[change]
    content = {
        "task": dict(SOFTMAX_WINE),
        "privacy": DISTRIBUTED,
        "secure_aggregation": {"protocol": "ideal"},
        **changed,
        "rounds": {
            "count": 8,
            "cohort": COHORT,
            "sampling": sampling,
            **SAMPLINGS[sampling][1],
            **changed.get("rounds", {}),
        },
    }
    if "engine" in content:
        content = {name: content[name] for name in ("task", "rounds", "engine")}
    return make_plan(content)


def check_amplified(plan: Plan, kind: Kind) -> None:
    """The event is of the sampler that the coordinator runs."""
    terms = plan.at(kind)
    bounds, event = terms.bounds(POPULATION), terms.event(terms.bounds(POPULATION), POPULATION)
    assert isinstance(event, TruncatedPoissonSampledEvent)
    assert (event.population, event.probability) == (POPULATION, terms.rounds.cohort / POPULATION)
    assert (event.cap, event.event.quorum) == (bounds.largest, bounds.min_survivors)
    assert event.dropout == plan.secure_aggregation.dropout
    sampler = sampler_of(plan, kind)
    assert sampler == TruncatedPoisson(terms.rounds.cohort, bounds.largest)


def sampler_of(plan: Plan, kind: Kind) -> object:
    with contextlib.closing(Store(None)) as store:
        return _samplers(plan, open_run(store, plan), store)[kind]


@pytest.mark.parametrize(("sampling", "change", "verdict"), COMBINATIONS)
def test_a_way_to_draw_is_amplified_as_it_is_run_or_not_at_all_or_refused(sampling, change, verdict):
    if verdict not in (AMPLIFIED, PLAIN):
        with pytest.raises(PlanError, match=verdict) as refused:
            made(sampling, change).resolved(POPULATION)
        assert all("accepted" in problem for problem in refused.value.problems)
        return
    plan = made(sampling, change).resolved(POPULATION)
    kinds = [Kind.FIT] if plan.evaluation is None else list(Kind)
    for kind in kinds:
        if verdict == AMPLIFIED:
            check_amplified(plan, kind)
        elif plan.engine is None:
            terms = plan.at(kind)
            assert not isinstance(
                terms.event(terms.bounds(POPULATION), POPULATION), TruncatedPoissonSampledEvent
            )
    assert isinstance(sampler_of(plan, Kind.FIT), SAMPLINGS[sampling][0])


def test_every_combination_has_its_verdict():
    assert set(EXPECTED) == set(CHANGES)
    assert len(COMBINATIONS) == len(CHANGES) * len(SAMPLINGS)
