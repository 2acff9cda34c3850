import numpy as np
import pytest

from quorate.errors import DataError
from quorate.simulations import datasets


def test_fedprox_clients_have_the_sizes_features_and_labels_of_the_paper():
    data = datasets.fedprox(1.0, 1.0, clients=30, seed=1)
    sizes = data.clients.sizes
    assert len(data) == 30
    assert sizes.min() >= 45  # 50 and more, of which a tenth is the server's
    assert sizes.max() > 4 * np.median(sizes)
    assert data.clients[0].x.shape[1] == 60
    assert data.label_counts().shape[1] <= 10
    assert data.test is not None
    assert 0.09 < len(data.test) / (len(data.test) + sizes.sum()) < 0.11


def test_fedprox_inputs_have_the_variances_that_the_paper_gives():
    data = datasets.fedprox(0.0, 0.0, clients=5, seed=3)
    largest = data.clients[int(data.clients.sizes.argmax())].x
    expected = np.arange(1, 61) ** -1.2
    assert np.allclose(largest.var(axis=0), expected, rtol=0.35)


def test_fedprox_clients_differ_more_with_a_larger_beta():
    def spread(beta):
        data = datasets.fedprox(0.0, beta, clients=40, seed=0)
        return np.std([client.x.mean() for client in data])

    assert spread(9.0) > 3 * spread(0.0)


def test_an_iid_model_is_the_same_for_all_clients():
    data = datasets.fedprox(iid=True, clients=20, seed=0)
    means = np.stack([client.x.mean(axis=0) for client in data])
    assert np.abs(means).max() < 1.0


@pytest.mark.parametrize("wrong", [{"alpha": -1.0}, {"beta": -0.5}, {"clients": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(DataError, match="are accepted"):
        datasets.fedprox(**wrong)


def test_images_of_a_class_are_like_each_other_and_within_zero_and_one():
    data = datasets.images(examples=600, classes=4, side=16, seed=0)
    assert data.train.x.shape[1] == 256
    assert 0 <= data.train.x.min() <= data.train.x.max() <= 1
    centers = np.stack([data.train.x[data.train.y == label].mean(axis=0) for label in range(4)])
    nearest = ((data.test.x[:, None, :] - centers) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == data.test.y).mean() > 0.9


def test_sequences_follow_their_chains():
    data = datasets.sequences(clients=8, examples=200, length=6, vocabulary=8, topics=1, seed=0)
    assert len(data) == 8
    x = np.concatenate([client.x for client in data]).astype(int)
    y = np.concatenate([client.y for client in data])
    assert 0 <= x.min() <= x.max() < 8
    followers = np.zeros((8, 8))
    np.add.at(followers, (x[:, -1], y), 1)
    guess = followers.argmax(axis=1)
    assert data.test is not None
    right = (guess[data.test.x[:, -1].astype(int)] == data.test.y).mean()
    assert right > 0.5  # chance is 1/8


def test_a_population_of_ten_million_costs_nothing_until_clients_are_drawn():
    data = datasets.population(clients=10_000_000, examples=20, features=64)
    assert len(data) == 10_000_000
    assert data.member(9_999_999) == "client-9999999"
    assert data.index("client-9999999") == 9_999_999
    assert data.mean_examples == 20
    one, same, other = data.clients[7], data.clients[7], data.clients[8]
    np.testing.assert_array_equal(one.x, same.x)
    assert not np.array_equal(one.x, other.x)
    assert one.x.shape == (20, 64)
    assert one.x.dtype == np.float32


def test_a_description_of_a_population_counts_the_labels_of_its_first_clients_only():
    described = datasets.population(clients=2_000_000, examples=2).describe()
    assert described["clients"] == 2_000_000
    assert described["train_examples"] == 4_000_000
    assert described["labels"] <= 10


def test_the_same_seed_gives_the_same_data():
    for make in (datasets.fedprox, datasets.sequences):
        one, two, other = make(clients=3, seed=0), make(clients=3, seed=0), make(clients=3, seed=1)
        np.testing.assert_array_equal(one.clients[2].x, two.clients[2].x)
        assert one.clients[2].x.tobytes() != other.clients[2].x.tobytes()
