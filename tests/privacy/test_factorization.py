"""C is what it is said to be, its estimates are right, and its noise has the law that the account counts on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.privacy.accounting import to_epsilon
from quorate.privacy.curves import ORDERS
from quorate.privacy.factorization import Banded, Tree, square_root_coefficients


@pytest.mark.parametrize(("n", "norm_squared"), [(64, 2.388848), (1024, 3.272554), (2048, 3.493229)])
def test_the_square_root_has_the_published_column_norms(n, norm_squared):
    assert (square_root_coefficients(n) ** 2).sum() == pytest.approx(norm_squared, abs=1e-6)


def test_the_square_root_squared_is_the_prefix_sum():
    c = square_root_coefficients(40)
    matrix = np.array([[c[i - j] if i >= j else 0 for j in range(40)] for i in range(40)])
    np.testing.assert_allclose(matrix @ matrix, np.tril(np.ones((40, 40))), atol=1e-12)


def test_a_tree_has_the_published_epsilon_of_a_single_epoch():
    # Noise multiplier 7 at every node, 1,024 rounds, δ 1e-6: Rényi ε 2.2811.
    levels = Tree(1024).column_norm_squared
    assert levels == 11
    curve = np.array(ORDERS) * levels / (2 * 7.0**2)
    assert to_epsilon(curve, 1e-6) == pytest.approx(2.2811, abs=1e-3)


def released(matrix, sums, noise):
    """The estimates of all rounds, with given noise vectors."""
    state, estimates = matrix.init(sums.shape[1]), []
    draws = iter(noise)
    for total in sums:
        estimate, state = matrix.release(state, total, lambda count: next(draws))
        estimates.append(estimate)
    return np.array(estimates)


MATRICES = st.one_of(st.integers(1, 9).map(Banded), st.integers(1, 9).map(Tree))


@settings(deadline=None, max_examples=60)
@given(MATRICES, st.integers(1, 30), st.integers(0, 2**32))
def test_without_noise_every_round_comes_back(matrix, rounds, seed):
    sums = np.random.default_rng(seed).integers(-(2**30), 2**30, (rounds, 3))
    found = released(matrix, sums, np.zeros((rounds, 3), np.int64))
    np.testing.assert_allclose(found, sums, rtol=1e-9, atol=1e-3)


@settings(deadline=None, max_examples=60)
@given(MATRICES, st.integers(1, 20), st.integers(0, 2**32))
def test_noise_does_not_depend_on_the_sums(matrix, rounds, seed):
    rng = np.random.default_rng(seed)
    sums, noise = (rng.integers(-(2**20), 2**20, (rounds, 2)) for _ in range(2))
    np.testing.assert_allclose(
        released(matrix, sums, noise) - sums,
        released(matrix, np.zeros_like(sums), noise),
        rtol=1e-6,
        atol=1e-4,
    )


@pytest.mark.parametrize("bands", [1, 2, 5, 16])
def test_what_a_banded_matrix_releases_is_its_rounds_times_c_plus_fresh_noise(bands):
    rng, matrix = np.random.default_rng(1), Banded(bands)
    sums, noise = rng.integers(-1000, 1000, (40, 4)), rng.integers(-(10**6), 10**6, (40, 4))
    found = released(matrix, sums, noise)
    c = matrix.coefficients
    whole = np.array([[c[i - j] if 0 <= i - j < bands else 0 for j in range(40)] for i in range(40)])
    np.testing.assert_allclose(whole @ found, whole @ sums + noise, rtol=1e-9, atol=1e-2)
    assert (whole**2).sum(axis=0).max() == matrix.column_norm_squared


@pytest.mark.parametrize("rounds", [1, 3, 8, 13])
def test_a_round_of_a_tree_is_in_as_many_nodes_as_its_norm_counts_at_most(rounds):
    matrix = Tree(rounds)
    impulse_norms = []
    for place in range(rounds):
        sums = np.zeros((rounds, 1), np.int64)
        sums[place] = 1
        state, touched = matrix.init(1), 0
        for number, total in enumerate(sums, 1):
            before = state
            _, state = matrix.release(state, total, lambda count: np.zeros(count, np.int64))
            level = (number & -number).bit_length() - 1
            node = total + before["nodes"][:level].sum(axis=0)  # what this round's noise is added to
            touched += int(node[0])
        impulse_norms.append(touched)
    assert max(impulse_norms) <= matrix.column_norm_squared


@pytest.mark.parametrize("matrix", [Banded(16), Tree(16)])
def test_prefix_sums_have_less_noise_than_with_fresh_noise_of_the_same_cost(matrix):
    rng, rounds, length = np.random.default_rng(0), 16, 4000
    deviation = 1000.0 * np.sqrt(matrix.column_norm_squared)  # noise multiplier 1000 for unit sensitivity
    noise = np.round(deviation * rng.standard_normal((rounds, length))).astype(np.int64)
    found = released(matrix, np.zeros((rounds, length), np.int64), noise)
    mean_square = (np.cumsum(found, axis=0) ** 2).mean()
    fresh = 1000.0**2 * (rounds + 1) / 2
    assert mean_square < 0.75 * fresh if isinstance(matrix, Banded) else mean_square < 1.6 * fresh


def test_a_tree_begins_again_when_its_rounds_are_over():
    matrix, state = Tree(4), Tree(4).init(2)
    for _ in range(4):
        _, state = matrix.release(state, np.ones(2, np.int64), lambda count: np.zeros(count, np.int64))
    assert all(not array.any() for array in state.values())
