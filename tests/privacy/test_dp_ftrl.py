"""DP-FTRL in a run: the account per participation, the separation, the checkpoint."""

import itertools

import numpy as np
import pytest

from quorate import assembly
from quorate.errors import PlanError
from quorate.plan import Plan
from quorate.privacy.gaussian_rounds import gaussian_epsilon
from quorate.server import checkpoints
from quorate.server.store import opened
from quorate.simulations.source import Simulation
from tests.federations import IDEAL, plan, wine

DELTA = 1e-4


def quiet(report):
    """Nobody looks."""


def made(count=8, cohort=6, separation=5, protocol=IDEAL, **privacy) -> Plan:
    numbers = {"clip_norm": 1.0, "noise_multiplier": 2.0, "delta": DELTA, "span": separation} | privacy
    return plan(
        rounds={"count": count, "cohort": cohort, "sampling": "separated", "separation": separation},
        privacy={"mechanism": "dp-ftrl", **numbers},
        secure_aggregation={**protocol, "min_survivors": 2},
    )


def fleet(clients=30, **more):
    return Simulation(wine(clients), seed=4, **more)


@pytest.mark.parametrize("factorization", ["banded", "tree"])
@pytest.mark.parametrize("protocol", [IDEAL, {"protocol": "none"}])
def test_a_member_spends_what_its_participations_cost_as_gaussians(factorization, protocol):
    finished = assembly.run(made(factorization=factorization, protocol=protocol), fleet=fleet(), watch=quiet)
    # Eight rounds five apart: a member takes part twice at most.
    assert finished.epsilon.released == pytest.approx(gaussian_epsilon(np.sqrt(2) / 2.0, DELTA), rel=2e-3)
    assert finished.epsilon.server == np.inf


def test_nobody_is_in_the_sum_again_too_soon_and_dropouts_may_come_again(tmp_path):
    lossy = fleet(drop_before_masking=0.2)
    finished = assembly.run(made(count=12), fleet=lossy, state=tmp_path, watch=quiet)
    with opened(tmp_path) as store:
        run = store.runs()[0].id
        sums = [
            {m for m, outcome in store.outcomes(run, r.number).items() if outcome == "committed"}
            for r in store.rounds(run)
            if r.status == "committed"
        ]
    assert len(sums) == 12
    for early, late in itertools.combinations(range(12), 2):
        if late - early < 5:
            assert not sums[early] & sums[late]
    assert len(set().union(*sums)) == 30
    assert sum(sum(r.lost.values()) for r in finished.committed) > 0


def test_a_run_that_was_stopped_goes_on_with_the_same_noise(tmp_path):
    class Stopped(Exception):
        pass

    def stop(report):
        if report.version == 3:
            raise Stopped

    straight = assembly.run(made(), fleet=fleet(), watch=quiet)
    with pytest.raises(Stopped):
        assembly.run(made(), fleet=fleet(), state=tmp_path, watch=stop)
    resumed = assembly.run(made(), fleet=fleet(), state=tmp_path, watch=quiet)
    assert checkpoints.encode(resumed.state) == checkpoints.encode(straight.state)


def test_a_target_is_calibrated_for_the_participations_that_can_be():
    target = made(noise_multiplier=None, epsilon=3.0)
    finished = assembly.run(target, fleet=fleet(), watch=quiet)
    assert finished.epsilon.released <= 3.0
    assert finished.epsilon.released > 2.98
    twice_as_often = made(separation=3, noise_multiplier=None, epsilon=3.0).resolved(30)
    assert twice_as_often.privacy.noise_multiplier > target.resolved(30).privacy.noise_multiplier


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"rounds": {"count": 3, "cohort": 4}}, r"rounds\.separation: found None, but with .*'dp-ftrl'"),
        (
            {"rounds": {"count": 3, "cohort": 4, "sampling": "separated", "separation": 4}},
            r"shows in privacy\.span \(5\) rounds",
        ),
        (
            {"rounds": {"count": 3, "cohort": 4, "sampling": "separated"}},
            r"rounds\.separation: found None; accepted",
        ),
        ({"rounds": {"count": 3, "cohort": 4, "separation": 5}}, r"rounds\.separation: found 5; accepted"),
        ({"privacy": {"adaptive_clip": {}}}, "can't be added up"),
    ],
)
def test_what_would_break_the_claim_is_refused(sections, said):
    content = made().model_dump(exclude_none=True)
    for name, section in sections.items():
        content[name] = content[name] | section if name == "privacy" else section
    with pytest.raises(PlanError, match=said):
        Plan(**content)


def test_a_population_that_is_too_small_for_the_separation_is_refused():
    with pytest.raises(PlanError, match="cohorts of 6 for 4 rounds; accepted: 1 to 4"):
        made().resolved(24)
