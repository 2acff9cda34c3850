import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from quorate.errors import DataError, PlanError
from quorate.simulations import partitions

KINDS = st.one_of(
    st.just(("iid", {})),
    st.tuples(st.just("quantity"), st.fixed_dictionaries({"alpha": st.floats(1e-2, 1e3)})),
    st.tuples(st.just("dirichlet"), st.fixed_dictionaries({"alpha": st.floats(1e-3, 1e3)})),
    st.tuples(st.just("shards"), st.fixed_dictionaries({"per_client": st.integers(1, 3)})),
)


@st.composite
def problems(draw):
    kind, options = draw(KINDS)
    clients = draw(st.integers(1, 12))
    fewest = clients * options.get("per_client", 1)
    labels = draw(st.lists(st.integers(0, 4), min_size=fewest, max_size=80))
    return kind, np.array(labels), clients, options


@given(problems(), st.integers(0, 2**32))
def test_every_example_belongs_to_exactly_one_client_and_every_client_has_one(problem, seed):
    kind, labels, clients, options = problem
    parts = partitions.by_name(kind, labels, clients, np.random.default_rng(seed), **options)
    assert len(parts) == clients
    assert min(len(part) for part in parts) >= 1
    assert np.sort(np.concatenate(parts)).tolist() == list(range(len(labels)))


@given(problems(), st.integers(0, 2**32))
def test_sizes_are_as_equal_as_they_can_be(problem, seed):
    kind, labels, clients, options = problem
    assume(kind != "quantity")
    sizes = [
        len(part)
        for part in partitions.by_name(kind, labels, clients, np.random.default_rng(seed), **options)
    ]
    assert max(sizes) - min(sizes) <= options.get("per_client", 1)


@given(problems(), st.integers(0, 2**32))
def test_the_same_seed_gives_the_same_partition(problem, seed):
    kind, labels, clients, options = problem
    one, two = (
        partitions.by_name(kind, labels, clients, np.random.default_rng(seed), **options) for _ in range(2)
    )
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_seed_gives_another_partition_and_no_global_state_is_touched():
    labels, before = np.arange(100) % 10, np.random.get_state()[1].copy()
    for kind in partitions.PARTITIONS:
        one, two = (partitions.by_name(kind, labels, 10, np.random.default_rng(seed)) for seed in (1, 2))
        assert any(a.tolist() != b.tolist() for a, b in zip(one, two, strict=True))
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def different_labels(alpha, clients=100):
    labels = np.repeat(np.arange(10), 500)
    parts = partitions.dirichlet(labels, clients, np.random.default_rng(0), alpha)
    return np.mean([len(np.unique(labels[part])) for part in parts])


def test_a_small_alpha_gives_few_labels_and_a_large_one_all_of_them():
    assert different_labels(0.01) < 2.5
    assert different_labels(1.0) < different_labels(10.0) < different_labels(1000.0)
    assert different_labels(1000.0) > 9.5


def test_the_mix_of_labels_varies_as_alpha_times_the_prior_says():
    """Var(q) = p·(1-p) / (α+1) for Dirichlet(α·p)."""
    labels, alpha = np.repeat(np.arange(4), 100_000), 3.0
    parts = partitions.dirichlet(labels, 1000, np.random.default_rng(0), alpha)
    mixes = np.array([np.bincount(labels[part], minlength=4) / len(part) for part in parts])
    expected = 0.25 * 0.75 / (alpha + 1)
    assert mixes.var(axis=0).mean() == pytest.approx(expected, rel=0.1)


def test_labels_may_be_any_whole_numbers():
    labels = np.array([-7, 1_000_000] * 10)
    parts = partitions.dirichlet(labels, 5, np.random.default_rng(0), 0.1)
    assert sum(len(part) for part in parts) == 20


def test_two_shards_give_most_clients_two_labels():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 600))
    parts = partitions.shards(labels, 100, np.random.default_rng(0))
    assert all(len(part) == 60 for part in parts)
    assert max(len(np.unique(labels[part])) for part in parts) == 2


def test_iid_does_not_follow_the_order_of_the_data():
    labels = np.repeat(np.arange(10), 100)
    parts = partitions.iid(labels, 10, np.random.default_rng(0))
    assert all(len(np.unique(labels[part])) >= 9 for part in parts)


@pytest.mark.parametrize(
    ("kind", "labels", "clients", "options", "said"),
    [
        ("iid", np.zeros(3, int), 4, {}, "3 examples can't be given to 4 clients"),
        ("dirichlet", np.zeros(3, int), 0, {}, "clients: 0"),
        ("dirichlet", np.zeros(3, int), 2, {"alpha": 0}, "alpha: 0 was found; a number above 0"),
        ("dirichlet", np.zeros(3), 2, {}, "whole labels, got float64; 'iid' takes any"),
        ("shards", np.zeros(5, int), 2, {"per_client": 3}, "per_client: 3 was found; .* 1 to 2 is accepted"),
        ("shards", np.zeros(5, int), 2, {"per_client": 0}, "per_client: 0"),
    ],
)
def test_what_can_not_be_partitioned_is_refused(kind, labels, clients, options, said):
    with pytest.raises(DataError, match=said):
        partitions.by_name(kind, labels, clients, np.random.default_rng(0), **options)


def test_an_unknown_kind_or_option_says_what_exists():
    rng = np.random.default_rng(0)
    with pytest.raises(
        PlanError, match="no partition 'random'; these exist: dirichlet, iid, quantity, shards"
    ):
        partitions.by_name("random", np.zeros(3, int), 1, rng)
    with pytest.raises(PlanError, match="'dirichlet' has no option beta; it takes alpha"):
        partitions.by_name("dirichlet", np.zeros(3, int), 1, rng, beta=1)
    with pytest.raises(PlanError, match="'iid' has no option alpha; it takes none"):
        partitions.by_name("iid", np.zeros(3, int), 1, rng, alpha=1)


def test_a_small_alpha_gives_few_clients_nearly_everything():
    labels = np.zeros(10_000, np.int64)
    few, alike = (
        np.sort([len(p) for p in partitions.quantity(labels, 50, np.random.default_rng(0), alpha=alpha)])
        for alpha in (0.05, 1000.0)
    )
    assert few[-5:].sum() > 0.75 * len(labels)
    assert alike.max() < 2 * alike.min()
