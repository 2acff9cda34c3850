"""What the tests of all adapters need: instructions, data, and the NumPy reference to compare with."""

from __future__ import annotations

import numpy as np

from quorate.clients.adapters.examples import Examples
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
