"""What the tests of all adapters need: instructions, data, and the NumPy reference to compare with."""

from __future__ import annotations

import numpy as np
import pytest

from quorate.clients.adapters import dp_sgd
from quorate.clients.adapters.examples import Examples
from quorate.privacy import DpSgd
from quorate.rounds import Instruction
from quorate.strategies import local_rules

RULES = [local_rules.sgd(), local_rules.proximal(0.5), local_rules.control_variate()]


def instruction(rule=None, seed=0, extras=None, **training):
    rule = rule or local_rules.sgd()
    numbers = {"learning_rate": 0.1, "epochs": 2, "batch_size": 4, **training, **rule.settings}
    return Instruction(rule.name, numbers, extras or {}, seed)


def blobs(examples=14, features=5, classes=3, seed=0):
    """Classes around points of their own."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, examples)
    x = rng.standard_normal((classes, features))[y] + 0.5 * rng.standard_normal((examples, features))
    return Examples(x, y)


def some(layout, seed=0):
    """Parameters, and what a rule may need: the server's control variate, and a client's own state."""
    rng = np.random.default_rng(seed)
    start, control, own = (0.3 * rng.standard_normal((3, layout.size))).astype(np.float32)
    return layout.unflatten(start), {"control": control}, {"control": own}


def told(rule, layout, seed=0, **training):
    """An instruction for a rule, and a state that fits it."""
    _, extras, own = some(layout)
    needs = bool(rule.initial(1))
    return instruction(rule, seed, extras if needs else {}, **training), own if needs else {}


def assert_many_train_as_each_alone(made, rule, sizes, rtol):
    """Clients with so many examples each, half of which took part before, at once and one at a time."""
    start, _, _ = some(made.layout)
    data = [blobs(size, seed=i) for i, size in enumerate(sizes)]
    told_each = [told(rule, made.layout, i) for i in range(len(sizes))]
    ins = [one for one, _ in told_each]
    states = [state if i % 2 else {} for i, (_, state) in enumerate(told_each)]
    together, new = made.fit_many(start, data, ins, states)
    assert together.examples.tolist() == sizes
    for i, one in enumerate(data):
        alone, state = made.client(one).fit(start, ins[i], states[i])
        for name, vector in alone.vectors.items():
            np.testing.assert_allclose(together.vectors[name][i], vector, rtol=rtol, atol=rtol / 100)
        for name, value in state.items():
            np.testing.assert_allclose(new[i][name], value, rtol=rtol, atol=rtol / 100)
        for name, metric in alone.metrics.items():
            assert together.metrics[name][i] == pytest.approx(metric, rel=1e-3, abs=1e-5)


def assert_each_is_trained_once(made):
    """Eleven clients, in more than one block."""
    start = some(made.layout)[0]
    data, ins = [blobs(5 + i % 3, seed=i) for i in range(11)], [instruction(seed=i) for i in range(11)]
    together, _ = made.fit_many(start, data, ins, [{}] * 11)
    for i in (0, 5, 10):
        alone, _ = made.client(data[i]).fit(start, ins[i], {})
        np.testing.assert_allclose(together.vectors["delta"][i], alone.vectors["delta"], rtol=1e-3, atol=1e-5)


class _Naive:
    """DP-SGD's sum by a loop over examples: each gradient is made, clipped and added."""

    def __init__(self, start, gradient_of):
        self.weights, self._gradient_of = start.copy(), gradient_of

    def clipped_sum(self, rows, clip_norm):
        total = np.zeros(len(self.weights))
        for row in rows:
            gradient = np.asarray(self._gradient_of(self.weights, row), np.float64)
            total += gradient * min(1.0, clip_norm / np.linalg.norm(gradient))
        return total


def by_example(start, examples, ins, rule, state, gradient_of):
    """A client's training by DP-SGD with the draws and the noise of the instruction's seed: vectors and state.

    Args:
        start: flat.
        examples: how many.
        ins: the instruction.
        rule: its local rule.
        state: the rule's.
        gradient_of: the gradient of the loss of one example, of flat weights and its row.
    """
    numbers = dp_sgd.ExampleNumbers.of(ins)
    naive, rate = _Naive(start, gradient_of), np.float32(ins.settings["learning_rate"])
    context = rule.begin(start, ins.extras, state or rule.initial(len(start)))
    for gradient in dp_sgd.noisy_gradients(naive, examples, len(start), numbers, 5, ins.seed):
        naive.weights -= rate * rule.gradient(gradient, naive.weights, context)
    return rule.finish(start, naive.weights, numbers.steps, float(ins.settings["learning_rate"]), context)


PRIVATE = DpSgd(clip_norm=0.3, noise_multiplier=0.5, sampling_rate=0.4)
"""Of the gradients of `blobs`, some are longer and some shorter."""
