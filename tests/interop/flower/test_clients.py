"""Unmodified Flower clients as ours: three small apps, written as Flower's users write them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.client import Client as FlowerClient
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import message_size_mod
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays

import quorate as q
from quorate.errors import DataError, PlanError, PolicyRefused, TrainingFailed
from quorate.interop.flower import clients, nodes
from quorate.interop.flower.clients import partitions
from quorate.interop.flower.fleet import OverGrid
from quorate.interop.flower.models import FlowerModel, Partition
from quorate.parameters import Parameters
from quorate.result import FinishedRun
from quorate.rounds import Instruction
from quorate.task import DenseLayer
from tests.interop.flower.federations import NODES, plan
from tests.interop.flower.grids import DirectGrid

APPS = Path(__file__).with_name("apps")
CLIENTS = 6
PLAIN = {"learning_rate": 0.5, "epochs": 2.0, "batch_size": 16.0}


def run(model: FlowerModel, rounds: int = 3, **sections: Any) -> FinishedRun:
    plan = q.Plan(
        task=q.Task(model),
        rounds=q.Rounds(count=rounds, cohort=CLIENTS, sampling="fixed"),
        **{"training": q.Training(learning_rate=0.5, epochs=5), **sections},
    )
    return q.run(plan, fleet=q.Simulation(partitions(CLIENTS)), watch=lambda report: None)


def accuracy(model: FlowerModel, parameters: Parameters) -> float:
    """As the app's clients measure it, on average over their examples."""
    told = [
        model.client(Partition(i, CLIENTS)).evaluate(parameters, Instruction("sgd", PLAIN), {})
        for i in range(CLIENTS)
    ]
    return sum(one.examples * one.metrics["accuracy"] for one in told) / sum(one.examples for one in told)


@pytest.mark.parametrize(("name", "least"), [("numpy", 0.9), ("sklearn", 0.9), ("pytorch", 0.8)])
def test_a_flower_app_learns_in_a_simulation_of_ours(name: str, least: float) -> None:
    model = clients.app(str(APPS / name))
    found = run(model, rounds=5, training=q.Training(learning_rate=0.1, epochs=5))
    assert [round.status for round in found.history] == ["committed"] * 5
    assert (
        accuracy(model, found.model) > least > accuracy(model, found.plan.task.resolve().model.initial(None))
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["numpy", "sklearn"])
def test_a_flower_app_s_updates_are_summed_in_secret_with_noise(name: str) -> None:
    model = clients.app(str(APPS / name))
    found = run(
        model,
        rounds=4,
        privacy=q.privacy.DistributedGaussian(clip_norm=2.0, noise_multiplier=0.3),
        secure_aggregation=q.SecAggPlus(min_survivors=4),
    )
    assert [round.survivors for round in found.history] == [CLIENTS] * 4
    assert found.epsilon is not None
    assert accuracy(model, found.model) > 0.8


def test_what_a_client_gives_is_what_flower_s_client_moved() -> None:
    model = clients.app(str(APPS / "numpy"))
    start = model.initial(np.random.default_rng(0))
    update, _ = model.client(Partition(2, CLIENTS)).fit(start, Instruction("sgd", PLAIN), {})
    import numpy_app.task as theirs  # type: ignore[import-not-found]

    x, y = theirs.load_data(2, CLIENTS)
    moved = theirs.train(theirs.zeros(), x, y, epochs=2, lr=0.5)
    expected = np.concatenate([moved["weight"].ravel(), moved["bias"]])
    np.testing.assert_allclose(update.vectors["delta"], expected, rtol=1e-6)
    assert update.examples == len(y)
    assert update.metrics["mods"] == 1


def test_the_plan_s_training_comes_before_the_app_s_own_config() -> None:
    model = clients.app(str(APPS / "numpy"), run_config={"local-epochs": 7})
    start = model.initial(np.random.default_rng(0))
    update, _ = model.client(Partition(0, CLIENTS)).fit(start, Instruction("sgd", PLAIN), {})
    assert update.metrics["epochs"] == 2
    update, _ = model.client(Partition(0, CLIENTS)).fit(start, Instruction("sgd", {"learning_rate": 0.1}), {})
    assert update.metrics["epochs"] == 7


def test_what_a_client_keeps_in_its_context_comes_back_to_it() -> None:
    model = clients.app(str(APPS / "numpy"), metrics=["rounds"])
    found = run(model, rounds=3)
    assert [round.metrics["rounds"] for round in found.history] == [1, 2, 3]


def test_names_of_a_state_dict_are_the_names_of_the_parameters() -> None:
    layout = clients.app(str(APPS / "pytorch")).layout
    assert layout.names[:2] == ("0.weight", "0.bias")
    assert layout.shape("1.num_batches_tracked") == ()


# --- NumPyClient and Client, made in Python


class Mean(NumPyClient):
    """Moves half of the way to the mean of its data."""

    def __init__(self, data: np.ndarray):
        self.data = data

    def fit(self, parameters: list[np.ndarray], config: dict[str, Any]) -> Any:
        (mean,) = parameters
        return [mean + 0.5 * (self.data.mean(axis=0) - mean)], len(self.data), {"seen": config["lr"]}


class Asked(FlowerClient):
    """Says which config it was told."""

    def __init__(self, told: list[dict[str, Any]]):
        super().__init__()
        self.told = told

    def fit(self, ins: Any) -> FitRes:
        self.told.append(dict(ins.config))
        moved = [array + 1 for array in parameters_to_ndarrays(ins.parameters)]
        return FitRes(Status(Code.OK, ""), ndarrays_to_parameters(moved), 3, {})


def fit(model: FlowerModel, data: Any = None, **settings: float) -> Any:
    start = model.initial(np.random.default_rng(0))
    return model.client(data).fit(start, Instruction("sgd", {**PLAIN, **settings}), {})[0]


def test_a_numpy_client_is_made_for_its_data() -> None:
    model = clients.numpy_client(Mean, initial=[np.zeros(2)])
    update = fit(model, np.array([[2.0, 4.0], [4.0, 8.0]]))
    np.testing.assert_array_equal(update.vectors["delta"], [1.5, 3.0])
    assert (update.examples, update.metrics) == (2, {"seen": 0.5})


def test_a_client_is_told_what_the_plan_says_under_the_names_that_flower_s_apps_use() -> None:
    told: list[dict[str, Any]] = []
    model = clients.numpy_client(lambda data: Asked(told), initial=[np.zeros(1)], config={"mine": "kept"})
    fit(model, mu=0.25)
    assert told[0] == {
        "mine": "kept", "lr": 0.5, "learning-rate": 0.5, "learning_rate": 0.5, "local-epochs": 2, "local_epochs": 2,
        "epochs": 2, "batch-size": 16, "batch_size": 16, "proximal-mu": 0.25, "proximal_mu": 0.25,
    }  # fmt: skip
    assert isinstance(told[0]["local-epochs"], int)


def test_flower_s_own_mods_run() -> None:
    def client_fn(context: Context) -> FlowerClient:
        return Mean(np.ones((1, 2))).to_client()

    model = clients.client_app(ClientApp(client_fn, mods=[message_size_mod]), initial=[np.zeros(2)])
    np.testing.assert_array_equal(fit(model).vectors["delta"], [0.5, 0.5])


def test_a_local_rule_that_flower_s_client_can_t_follow_is_refused() -> None:
    model = clients.numpy_client(Mean, initial=[np.zeros(2)])
    with pytest.raises(PolicyRefused, match="needs the local rule 'control-variate'; this client has sgd"):
        run(model, strategy=q.strategies.scaffold())
    with pytest.raises(PolicyRefused, match="needs the local rule 'proximal'"):
        run(model, strategy=q.strategies.fedprox(mu=0.1))
    assert clients.numpy_client(Mean, [np.zeros(2)], proximal=True).client(np.ones((1, 2))).rules == {
        "sgd",
        "proximal",
    }


def test_what_a_client_raises_stays_on_its_device() -> None:
    class Failing(Mean):
        def fit(self, parameters: list[np.ndarray], config: dict[str, Any]) -> Any:
            raise ValueError("patient 17")

    with pytest.raises(TrainingFailed, match=r"^the Flower client raised ValueError$"):
        fit(clients.numpy_client(Failing, initial=[np.zeros(2)]), np.ones((1, 2)))


def test_a_client_that_has_no_fit_says_so() -> None:
    with pytest.raises(TrainingFailed, match="answered FIT_NOT_IMPLEMENTED"):
        fit(clients.numpy_client(lambda data: NumPyClient(), initial=[np.zeros(2)]))


def _app(answer: Any) -> FlowerModel:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(answer, reply_to=message)

    return clients.client_app(app, initial={"a": np.zeros(2), "b": np.zeros(())})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "0 records of arrays, one is expected"),
        ({"arrays": ArrayRecord([np.zeros(2)])}, "gave 1 arrays, 2 are expected"),
        ({"arrays": ArrayRecord([np.zeros(3), np.zeros(())])}, "parameter 'a' has shape"),
        (
            {"arrays": ArrayRecord([np.zeros(2), np.zeros(())]), "metrics": MetricRecord({"loss": 1.0})},
            "hold no 'num-examples': how many examples it trained on; found: loss",
        ),
    ],
)
def test_what_does_not_fit_is_refused(content: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        fit(_app(RecordDict(content)))


def test_an_error_in_the_place_of_an_answer_is_a_failure() -> None:
    with pytest.raises(TrainingFailed, match="Flower's error 17"):
        fit(_app(Error(17, "patient 17")))


def test_arrays_come_in_the_dtypes_that_the_client_knows() -> None:
    seen: list[Any] = []
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = message.content["arrays"]
        seen.extend((name, array.dtype, array.shape) for name, array in arrays.items())
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})
        return Message(content, reply_to=message)

    start = {"w": np.zeros((2, 3)), "steps": np.array(4, np.int64), "b": np.ones(2, np.float32)}
    update = fit(clients.client_app(app, start))
    assert seen == [("w", "float64", (2, 3)), ("steps", "int64", ()), ("b", "float32", (2,))]
    assert not update.vectors["delta"].any()


def test_a_model_that_nobody_can_serve_is_refused_where_it_is_to_be_published(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="so the model can't be served; accepted: program"):
        run(
            clients.app(str(APPS / "numpy")),
            publish=q.Publish(registry=str(tmp_path / "registry"), model="wine"),
        )


def test_a_model_whose_layers_are_told_is_served(tmp_path: Path) -> None:
    layers = (DenseLayer("weight", "bias", 13, 3, "softmax"),)
    found = clients.app(str(APPS / "numpy"))
    initial = dict(zip(("weight", "bias"), found.start.values(), strict=True))
    model = clients.client_app(
        found.apps(None),
        initial,
        config=found.config,
        run_config=found.run_config,
        program=layers,
        evaluate=lambda arrays, data: {"norm": float(np.linalg.norm(arrays["weight"]))},
    )
    run(model).publish(tmp_path / "registry", model="wine")
    pulled = q.pull(
        str(tmp_path / "registry"),
        "wine",
        trust=tmp_path / "registry" / "root.json",
        directory=tmp_path / "held",
    )
    import numpy_app.task as theirs

    x, y = theirs.load_data(0, 1)
    assert (pulled.predict(x.astype(np.float32)).argmax(axis=1) == y).mean() > 0.9


# --- apps by their directory


def test_a_directory_without_an_app_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no Flower app can be loaded from there: Cannot find pyproject"):
        clients.app(str(tmp_path))


def test_a_run_config_that_the_app_does_not_have_is_refused() -> None:
    with pytest.raises(PlanError, match="no Flower app can be loaded"):
        clients.app(str(APPS / "numpy"), run_config={"local-epoch": 1})


def test_a_plan_names_an_app_by_its_path_and_its_terms_by_its_version() -> None:
    plan = q.Plan(
        task={"name": "quorate.interop.flower.clients:app", "path": str(APPS / "numpy")},
        rounds=q.Rounds(count=1, cohort=2, sampling="fixed"),
    )
    said = plan.terms().encoded().decode()
    assert '"app":"quorate-tests/quickstart-numpy"' in said
    assert str(APPS) not in said


def test_nodes_take_part_with_apps_of_their_own_and_decline_another_version() -> None:
    def work(context: Context) -> nodes.Work:
        place = {"partition-id": context.node_config["part"], "num-partitions": NODES}
        task = clients.task_from_app(str(APPS / "numpy"), node_config=place)
        return nodes.Work(tasks={task.name: task})

    ids = range(1, NODES + 1)
    grid = DirectGrid(dict.fromkeys(ids, nodes.client_app(work)), {node: {"part": node - 1} for node in ids})
    model = clients.app(str(APPS / "numpy"))
    fleet = OverGrid(grid, NODES)
    found = q.run(plan(3, task=q.Task(model)), fleet=fleet, watch=lambda report: None)
    assert [round.survivors for round in found.history] == [NODES] * 3
    assert accuracy(model, found.model) > 0.8

    newer = dataclasses.replace(model, settings={**model.settings, "version": "2.0.0"})
    with pytest.raises(q.QuorateError, match="the round is not quorate: 0 members"):
        q.run(plan(1, task=q.Task(newer)), fleet=fleet, watch=lambda report: None)
