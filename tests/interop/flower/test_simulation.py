"""Flower's simulation as a fleet."""

from __future__ import annotations

import pytest

from quorate import assembly, resolution
from quorate.errors import PlanError
from quorate.interop.flower.simulation import FlowerSimulation
from quorate.plan import FleetSection
from tests import federations
from tests.interop.flower.federations import NODES, plan


@pytest.mark.slow
def test_rounds_of_a_plan_run_in_flower_s_simulation_on_ray() -> None:
    fleet = FlowerSimulation(federations.wine(NODES), cpus=2)
    found = assembly.run(plan(rounds=3), fleet=fleet, watch=lambda report: None)
    assert [round.survivors for round in found.history] == [NODES] * 3
    assert found.metrics["accuracy"] > 0.8


def test_a_plan_names_flower_s_simulation_as_it_names_ours() -> None:
    section = FleetSection(kind="flower-simulation", dataset="wine", clients=NODES, partition="iid")
    source = resolution.open_fleet(section)
    assert isinstance(source, FlowerSimulation)
    assert source.size == NODES


def test_a_seed_is_refused_where_nothing_can_be_repeated() -> None:
    with pytest.raises(PlanError, match=r"fleet\.seed: found 1; Flower's simulation can't be repeated"):
        resolution.open_fleet(FleetSection(kind="flower-simulation", dataset="wine", clients=4, seed=1))
    with pytest.raises(PlanError, match=r"fleet\.seed: found 1; a seed is for simulations"):
        resolution.open_fleet(FleetSection(kind="flower", superlink="127.0.0.1:1", nodes=4, seed=1))
