"""The mechanism that runs a query of tensorflow-privacy, where that is not installed, and on fleets that are real."""

import importlib.util
from types import SimpleNamespace

import pytest

from quorate import assembly, resolution
from quorate.errors import PlanError, QuorateError
from quorate.planfile import format_plan, make_plan
from quorate.simulations.source import Simulation
from tests.federations import IDEAL, SECAGG, content, plan, wine

SECTION = {"mechanism": "dp-query", "query": "somewhere:query", "settings": {"clip_norm": 1.0}}


@pytest.mark.skipif(importlib.util.find_spec("tensorflow_privacy") is not None, reason="it is installed here")
def test_without_tensorflow_privacy_the_command_that_mends_it_is_said_before_anything_is_done():
    made = plan(privacy=SECTION)
    with pytest.raises(QuorateError, match="make interop"):
        assembly.run(made, fleet=Simulation(wine(), seed=1), watch=lambda report: None)
    resolved = made.resolved(12)
    with pytest.raises(QuorateError, match="tensorflow-privacy is installed"):
        resolved.terms().event(resolved.bounds(12), 12)


def test_the_section_is_written_and_read_as_it_is():
    made = plan(privacy=SECTION)
    assert 'query = "somewhere:query"' in format_plan(made)
    assert (
        make_plan(content(privacy=SECTION)).resolved(12).terms().encoded()
        == made.resolved(12).terms().encoded()
    )


@pytest.mark.parametrize("summing", [IDEAL, SECAGG, {"protocol": "none", "ring_bits": 32}])
def test_a_sum_in_a_ring_is_refused_with_what_is_accepted(summing):
    with pytest.raises(
        PlanError, match=r"takes single updates.*accepted: secure_aggregation.protocol = 'none'"
    ):
        plan(privacy=SECTION, secure_aggregation=summing)


def test_floating_point_noise_is_refused_on_a_fleet_of_real_members():
    fleet = SimpleNamespace(simulated=False, abilities=frozenset())
    with pytest.raises(PlanError, match=r"floating point.*accepted: 'central-gaussian'"):
        resolution.check_abilities(plan(privacy=SECTION).resolved(12), fleet)


def test_a_query_that_is_no_path_is_refused():
    with pytest.raises(PlanError, match=r"privacy\.query"):
        plan(privacy={**SECTION, "query": "gaussian"})
