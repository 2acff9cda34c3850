"""The workload W1 without any framework: whoever simulates it imports this, in whatever environment.

1,000 clients of 100 examples with 784 float32 features, 10 classes (class means and noise from a fixed seed), a cohort
of 100, one local epoch of SGD in shuffled batches of 20, learning rate 0.1; the 2NN of McMahan et al. 2017 and softmax
regression.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np

CLIENTS, EXAMPLES, FEATURES, CLASSES = 1000, 100, 784, 10
COHORT, BATCH, RATE = 100, 20, 0.1
HIDDEN = 200
SEED = 5
TEST = 5000
WIDTHS = {"2NN": (FEATURES, HIDDEN, HIDDEN, CLASSES), "softmax": (FEATURES, CLASSES)}


def examples(count: int = CLIENTS * EXAMPLES, stream: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features, float32, shape (count, FEATURES), and labels, int64. Client i has rows i·EXAMPLES and following.

    Args:
        count: how many.
        stream: 0: the clients'; another one: of the same classes, for a test.
    """
    rng = np.random.default_rng(SEED)
    means = rng.standard_normal((CLASSES, FEATURES), np.float32) * 0.1
    if stream:
        rng = np.random.default_rng((SEED, stream))
    y = rng.integers(0, CLASSES, count)
    x = rng.standard_normal((count, FEATURES), np.float32)
    for start in range(0, count, 10_000):
        x[start : start + 10_000] += means[y[start : start + 10_000]]
    return x, y


def start(widths: tuple[int, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights, (inputs, outputs), and biases of each layer: zeros for one layer, He et al. 2015 for several."""
    rng = np.random.default_rng(SEED)
    spread = [(2 / a) ** 0.5 if len(widths) > 2 else 0.0 for a in widths[:-1]]
    return [
        (s * rng.standard_normal((a, b), np.float32), np.zeros(b, np.float32))
        for s, (a, b) in zip(np.float32(spread), pairwise(widths), strict=True)
    ]


def accuracy(layers: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Of a chain of dense layers with ReLU between them, on the test examples."""
    x, y = examples(TEST, stream=1)
    for i, (weights, biases) in enumerate(layers):
        x = (np.maximum(x, 0) if i else x) @ weights + biases
    return float((x.argmax(axis=1) == y).mean())


class Orders:
    """A child's end of the pipes: it is told to take a round, and says how long that took."""

    def __init__(self) -> None:
        self._said = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever a framework prints is no answer
        self._began = 0.0

    def next(self) -> bool:
        """Waits for an order; whether it is a round. Otherwise nothing more is wanted but the accuracy."""
        wanted = sys.stdin.readline().strip() == "round"
        self._began = time.perf_counter()
        return wanted

    def done(self) -> None:
        """The round is over."""
        self._say({"seconds": time.perf_counter() - self._began})

    def end(self, layers: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """The model that came of it."""
        self._say({"accuracy": accuracy(layers)})

    def serve(
        self, take: Callable[[], None], layers: Callable[[], list[tuple[np.ndarray, np.ndarray]]]
    ) -> None:
        """Takes rounds until there are no more."""
        while self.next():
            take()
            self.done()
        self.end(layers())

    def _say(self, answer: dict[str, float]) -> None:
        print(json.dumps(answer), file=self._said, flush=True)
