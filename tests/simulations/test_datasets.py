import sys

import numpy as np
import pytest

from quorate.clients.adapters import numpy_models as models
from quorate.errors import DataError, MissingExtra, PlanError
from quorate.rounds import Instruction
from quorate.simulations import datasets
from quorate.strategies import fedavg

FACTS = {  # examples, features, labels
    "digits": (datasets.digits, 1797, 64, 10),
    "breast-cancer": (datasets.breast_cancer, 569, 30, 2),
    "wine": (datasets.wine, 178, 13, 3),
    "diabetes": (datasets.diabetes, 442, 10, None),
}


@pytest.mark.parametrize("name", FACTS)
def test_a_dataset_is_what_its_docstring_says(name):
    make, examples, features, labels = FACTS[name]
    data = make()
    assert data.name == name
    assert len(data.train) + len(data.test) == examples
    assert len(data.test) == -(-examples // 5)
    assert data.train.x.shape[1] == features
    assert data.train.x.dtype == np.float32
    if labels is None:
        assert data.train.y.dtype == np.float32
    else:
        assert np.unique(data.train.y).tolist() == np.unique(data.test.y).tolist() == list(range(labels))


def test_digits_are_between_zero_and_one_and_1437_are_for_training():
    data = datasets.digits()
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert data.train.x.min() == 0
    assert data.train.x.max() == 1


@pytest.mark.parametrize("name", FACTS)
def test_training_and_test_examples_are_those_of_scikit_learn_s_own_loader_each_once(name):
    from sklearn import datasets as theirs

    x, y = getattr(theirs, f"load_{name.replace('-', '_')}")(return_X_y=True)
    x = x / 16 if name == "digits" else (x - x.mean(axis=0)) / x.std(axis=0)
    if name == "diabetes":
        y = (y - y.mean()) / y.std()
    data = FACTS[name][0]()
    shown = [np.concatenate([data.train.x, data.test.x]), np.concatenate([data.train.y, data.test.y])]
    assert sorted(zip(map(bytes, shown[0]), shown[1].tolist(), strict=True)) == sorted(
        zip(map(bytes, x.astype(np.float32)), y.astype(shown[1].dtype).tolist(), strict=True)
    )


def test_the_split_is_fixed_and_changes_with_the_seed():
    assert datasets.digits().test.x.tobytes() == datasets.digits(seed=0).test.x.tobytes()
    assert datasets.digits(seed=1).test.x.tobytes() != datasets.digits().test.x.tobytes()


def test_a_partition_gives_each_client_its_examples_when_asked():
    data = datasets.digits()
    federated = data.partition("dirichlet", clients=300, alpha=1.0, seed=0)
    assert len(federated) == len(federated.clients) == 300
    assert federated.test is data.test
    assert sum(len(client) for client in federated) == len(data.train)
    first = federated.clients[0]
    part = federated.clients.parts[0]
    np.testing.assert_array_equal(first.x, data.train.x[part])
    np.testing.assert_array_equal(first.y, data.train.y[part])
    assert [len(client) for client in federated] == federated.clients.sizes.tolist()
    assert federated.clients.size_of(10) == len(federated.clients[10])
    with pytest.raises(IndexError):
        federated.clients[300]


def test_the_same_seed_gives_the_same_partition():
    one, two, other = (
        datasets.wine().partition("dirichlet", clients=20, alpha=0.5, seed=seed) for seed in (0, 0, 1)
    )
    assert [p.tolist() for p in one.clients.parts] == [p.tolist() for p in two.clients.parts]
    assert [p.tolist() for p in one.clients.parts] != [p.tolist() for p in other.clients.parts]


def test_members_have_names_that_lead_back_to_them():
    federated = datasets.wine().partition("iid", clients=20)
    assert federated.member(0) == "client-0"
    assert [federated.index(federated.member(i)) for i in range(20)] == list(range(20))
    with pytest.raises(IndexError):
        federated.member(20)


@pytest.mark.parametrize(
    "member", ["client-20", "client-007", "client--1", "client-", "device-1", "1", "client-1 "]
)
def test_a_name_that_nobody_has_is_refused(member):
    federated = datasets.wine().partition("iid", clients=20)
    with pytest.raises(DataError, match="client-0 to client-19"):
        federated.index(member)


def test_a_description_says_how_unequal_clients_are():
    federated = datasets.digits().partition("shards", clients=100, per_client=2, seed=3)
    described = federated.describe()
    assert described["name"] == "digits, shards over 100 clients, per_client 2, seed 3"
    assert (described["clients"], described["train_examples"], described["test_examples"]) == (100, 1437, 360)
    assert described["examples_each"] == (14, 14.0, 16)
    assert described["labels"] == 10
    assert described["labels_each"][2] <= 4
    assert federated.label_counts().shape == (100, 10)
    assert federated.label_counts().sum() == 1437


def test_a_regression_is_partitioned_iid_only():
    federated = datasets.diabetes().partition("iid", clients=10)
    assert "labels" not in federated.describe()
    with pytest.raises(DataError, match="no labels to count"):
        federated.label_counts()
    with pytest.raises(DataError, match="'iid' takes any"):
        datasets.diabetes().partition("dirichlet", clients=10)


def test_a_wrong_kind_or_too_many_clients_are_refused():
    with pytest.raises(PlanError, match="no partition 'dirichelt'"):
        datasets.wine().partition("dirichelt", clients=3)
    with pytest.raises(DataError, match="142 examples can't be given to 143 clients"):
        datasets.wine().partition("iid", clients=143)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtra, match=r"pip install 'quorate\[simulation\]'"):
        datasets.digits()


def test_softmax_regression_learns_digits_from_300_dirichlet_clients():
    """30 rounds of FedAvg, a cohort of 100: what the demonstration does, without privacy."""
    federated = datasets.digits().partition("dirichlet", clients=300, alpha=1.0, seed=0)
    model, strategy, rng = models.softmax(64, 10), fedavg(), np.random.default_rng(0)
    numbers = {"learning_rate": 3.0, "epochs": 1, "batch_size": 5}
    state, x = strategy.server.init(model.layout), model.initial(rng).vector
    for _ in range(30):
        cohort = rng.choice(300, 100, replace=False)
        instructions = [Instruction("sgd", numbers, seed=int(rng.integers(2**62))) for _ in cohort]
        data = [federated.clients[i] for i in cohort]
        updates, _ = model.fit_many(model.layout.unflatten(x), data, instructions, [{}] * 100)
        mean = {"delta": updates.vectors["delta"].mean(axis=0)}
        state, x = strategy.server.update(state, x, mean, 1 / 3)
    assert federated.test is not None
    assert model.evaluate(model.layout.unflatten(x), federated.test)["accuracy"] > 0.91
