import io
import math

import numpy as np
import pytest

from quorate.errors import PlanError
from quorate.parameters import Layout
from quorate.strategies import server_rules

LAYOUT = Layout((("weight", (2,)), ("bias", (1,))))
X = np.array([1.0, 2.0, 3.0], np.float32)
DELTAS = [np.array(delta, np.float32) for delta in ([1, 0, -1], [0.5, 0.25, 2], [-1, 3, 0.125])]
RULES = {
    "sgd": server_rules.sgd(),
    "momentum": server_rules.sgd(0.5, 0.9),
    "decay": server_rules.sgd(lambda t: 1 / math.sqrt(t + 1)),
    "adam": server_rules.adam(0.1),
    "yogi": server_rules.yogi(0.1),
    "adagrad": server_rules.adagrad(0.1, 0.5),
    "control": server_rules.control_variate(server_rules.adam(0.1)),
}


def run(rule, deltas, x=X, state=None):
    state = rule.init(LAYOUT) if state is None else state
    for delta in deltas:
        state, x = rule.update(state, x, {"delta": delta, "control": delta / 2}, 0.5)
    return state, x


def test_sgd_with_learning_rate_one_takes_the_mean_itself():
    _, x = run(server_rules.sgd(), DELTAS[:1])
    np.testing.assert_array_equal(x, X + DELTAS[0])


def test_momentum_adds_up_the_deltas_of_earlier_rounds():
    velocity, expected = np.zeros(3), X.astype(np.float64)
    for delta in DELTAS:
        velocity = 0.9 * velocity + delta
        expected = expected + 0.5 * velocity
    _, x = run(server_rules.sgd(0.5, 0.9), DELTAS)
    np.testing.assert_allclose(x, expected, rtol=1e-6)


def test_a_learning_rate_can_be_a_function_of_the_round():
    _, x = run(server_rules.sgd(lambda t: [1.0, 0.5, 0.25][t]), DELTAS)
    np.testing.assert_allclose(x, X + DELTAS[0] + 0.5 * DELTAS[1] + 0.25 * DELTAS[2])


def test_a_function_that_gives_no_learning_rate_is_refused():
    with pytest.raises(PlanError, match="learning_rate: -1"):
        run(server_rules.sgd(lambda t: -1.0), DELTAS)


def test_adam_follows_the_equations_of_the_paper_step_by_step():
    eta, beta1, beta2, tau = 0.1, 0.9, 0.99, 1e-2
    m, v, expected = np.zeros(3), np.full(3, tau**2), X.astype(np.float64)
    rule = server_rules.adam(eta, beta1, beta2, tau)
    state, x = rule.init(LAYOUT), X
    for delta in DELTAS:
        m = beta1 * m + (1 - beta1) * delta
        v = beta2 * v + (1 - beta2) * delta.astype(np.float64) ** 2
        expected = expected + eta * m / (np.sqrt(v) + tau)
        state, x = rule.update(state, x, {"delta": delta}, 1.0)
        np.testing.assert_allclose(state["mean"], m, rtol=1e-5)
        np.testing.assert_allclose(state["square"], v, rtol=1e-5)
        np.testing.assert_allclose(x, expected, rtol=1e-5)


SECOND_MOMENTS = {
    server_rules.Yogi(0.1, 0.8, 0.9, 1e-2): lambda v, s: v - (1 - 0.9) * s * np.sign(v - s),
    server_rules.Adagrad(0.1, 0.8, 1e-2): lambda v, s: v + s,
}


@pytest.mark.parametrize("rule", SECOND_MOMENTS, ids=lambda rule: type(rule).__name__)
def test_yogi_and_adagrad_differ_from_adam_in_the_second_moment_only(rule):
    m, v, expected = np.zeros(3), np.full(3, 1e-4), X.astype(np.float64)
    state, x = rule.init(LAYOUT), X
    for delta in DELTAS:
        m = 0.8 * m + 0.2 * delta
        v = SECOND_MOMENTS[rule](v, delta.astype(np.float64) ** 2)
        expected = expected + 0.1 * m / (np.sqrt(v) + 1e-2)
        state, x = rule.update(state, x, {"delta": delta}, 1.0)
        np.testing.assert_allclose(state["square"], v, rtol=1e-5)
        np.testing.assert_allclose(x, expected, rtol=1e-5)


def test_the_server_s_control_variate_moves_by_the_part_of_the_population_that_took_part():
    rule = server_rules.control_variate(server_rules.sgd())
    state = rule.init(LAYOUT)
    np.testing.assert_array_equal(rule.extras(state)["control"], np.zeros(3))
    state, x = rule.update(state, X, {"delta": DELTAS[0], "control": DELTAS[1]}, 0.25)
    np.testing.assert_array_equal(rule.extras(state)["control"], 0.25 * DELTAS[1])
    np.testing.assert_array_equal(x, X + DELTAS[0])


@pytest.mark.parametrize("name", RULES)
def test_an_update_changes_neither_the_state_nor_the_parameters_it_was_given(name):
    rule, x = RULES[name], X.copy()
    state, _ = run(rule, DELTAS[:1])
    before = {key: value.copy() for key, value in state.items()}
    rule.update(state, x, {"delta": DELTAS[1], "control": DELTAS[1]}, 0.5)
    np.testing.assert_array_equal(x, X)
    for key, value in before.items():
        np.testing.assert_array_equal(state[key], value)


@pytest.mark.parametrize("name", RULES)
def test_a_state_that_went_through_a_file_gives_the_same_bits(name):
    rule = RULES[name]
    _, straight = run(rule, DELTAS)
    state, x = run(rule, DELTAS[:1])
    file = io.BytesIO()
    np.savez(file, parameters=x, **state)
    file.seek(0)
    loaded = dict(np.load(file))
    _, resumed = run(rule, DELTAS[1:], loaded.pop("parameters"), loaded)
    assert resumed.tobytes() == straight.tobytes()


@pytest.mark.parametrize("name", RULES)
def test_states_are_arrays_of_fixed_dtypes_whatever_the_mean_s_dtype(name):
    rule = RULES[name]
    state, x = run(rule, [delta.astype(np.float64) for delta in DELTAS])
    initial = rule.init(LAYOUT)
    assert x.dtype == np.float32
    assert all(isinstance(value, np.ndarray) for value in state.values())
    assert {k: (v.shape, v.dtype) for k, v in state.items()} == {
        k: (v.shape, v.dtype) for k, v in initial.items()
    }
    assert int(state["round"]) == 3
    assert all(value.dtype == np.float32 for value in rule.extras(state).values())
