import pytest

from quorate import assembly
from quorate.clients.adapters import numpy_models
from quorate.errors import PlanError
from quorate.plan import Plan, Rounds, SecAggPlus, Training
from quorate.privacy import NoPrivacy
from quorate.simulations import datasets
from quorate.simulations.source import Simulation
from quorate.task import Task


def plan(**secagg) -> Plan:
    return Plan(
        task=Task(numpy_models.softmax(64, 10)),
        rounds=Rounds(count=2, cohort=12, sampling="fixed"),
        training=Training(learning_rate=1.0),
        privacy=NoPrivacy(clip_norm=1.0),
        secure_aggregation=SecAggPlus(**secagg),
    )


def clients(seed: int | None = 5) -> Simulation:
    digits = datasets.digits().partition("iid", clients=20)
    return Simulation(digits, seed=seed)


@pytest.mark.parametrize("model", ["semi-honest", "semi-malicious", "malicious"])
def test_every_threat_model_sums_to_the_same_bits(model: str) -> None:
    honest = assembly.run(plan(min_survivors=10), clients(), watch=lambda report: None)
    complete = model == "malicious"
    run = assembly.run(
        plan(min_survivors=10, threat_model=model, complete=complete), clients(), watch=lambda report: None
    )
    assert run.model.vector.tobytes() == honest.model.vector.tobytes()


def test_a_plan_whose_survivors_could_not_outvote_corrupt_holders_is_refused() -> None:
    wanted = plan(min_survivors=4, threat_model="semi-malicious")
    with pytest.raises(
        PlanError, match=r"secure_aggregation\.min_survivors: found 4; accepted .* at least 8"
    ):
        assembly.run(wanted, clients(), watch=lambda report: None)
