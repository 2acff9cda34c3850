"""A user's PyTorch and JAX models in the simulation, against bare loops over clients in the same framework, in one run.

    python -m benchmarks.adapters [--quick] [--json FILE]

The workload is that of `benchmarks.simulation`: a cohort of 100 clients of 100 examples, one local epoch of SGD in
shuffled batches of 20. A bare loop does what one writes by hand: in PyTorch a copy of the module and an optimiser a
client; in JAX one compiled `lax.scan` over a client's batches. Ours is the coordinator's whole round, in blocks of
clients on all cores. Both have their turns as in `benchmarks.simulation`, with rounds that don't count before one that
does; ratios are medians of the ratios within a turn.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import torch

import quorate as q
from benchmarks._rows import Row
from benchmarks._w1 import BATCH, CLIENTS, COHORT, EXAMPLES, FEATURES, RATE, SEED, WIDTHS
from benchmarks.simulation import (
    PAUSE_S,
    ROUNDS,
    Case,
    bounded,
    machine,
    plan,
    ratio,
    show,
    turns,
    workload,
)


def arrays(data: Any) -> tuple[np.ndarray, np.ndarray]:
    examples = data.clients.examples
    return examples.x.reshape(CLIENTS, EXAMPLES, FEATURES), examples.y.reshape(CLIENTS, EXAMPLES)


def module(widths: tuple[int, ...]) -> Any:
    layers: list[Any] = []
    for inputs, outputs in pairwise(widths):
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def bare_torch(network: Any, data: Any, rng: np.random.Generator) -> Callable[[], float]:
    x_all, y_all = (torch.from_numpy(part) for part in arrays(data))

    def run() -> float:
        began = time.perf_counter()
        total = [torch.zeros_like(p) for p in network.parameters()]
        for client in rng.choice(CLIENTS, COHORT, replace=False):
            own = copy.deepcopy(network)
            optimiser = torch.optim.SGD(own.parameters(), lr=RATE)
            order = torch.from_numpy(rng.permutation(EXAMPLES))
            for i in range(0, EXAMPLES, BATCH):
                rows = order[i : i + BATCH]
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(own(x_all[client][rows]), y_all[client][rows]).backward()
                optimiser.step()
            with torch.no_grad():
                for sum_of, new, old in zip(total, own.parameters(), network.parameters(), strict=True):
                    sum_of += new - old
        return time.perf_counter() - began

    return run


def outputs(parameters: Any, x: Any) -> Any:
    for i, layer in enumerate(parameters):
        x = (jax.nn.relu(x) if i else x) @ layer["weight"] + layer["bias"]
    return x


def loss(parameters: Any, x: Any, y: Any) -> Any:
    chosen = jnp.take_along_axis(jax.nn.log_softmax(outputs(parameters, x)), y[:, None], axis=1)
    return -chosen.mean()


def pytree(widths: tuple[int, ...], rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
    return [
        {"weight": 0.05 * rng.standard_normal((a, b), np.float32), "bias": np.zeros(b, np.float32)}
        for a, b in pairwise(widths)
    ]


def bare_jax(start: Any, data: Any, rng: np.random.Generator) -> Callable[[], float]:
    x_all, y_all = arrays(data)

    @jax.jit
    def one(parameters: Any, x: Any, y: Any) -> Any:
        def step(own: Any, batch: Any) -> tuple[Any, None]:
            return jax.tree.map(lambda w, g: w - RATE * g, own, jax.grad(loss)(own, *batch)), None

        trained, _ = jax.lax.scan(step, parameters, (x, y))
        return jax.tree.map(jnp.subtract, trained, parameters)

    def run() -> float:
        began = time.perf_counter()
        total = jax.tree.map(jnp.zeros_like, start)
        for client in rng.choice(CLIENTS, COHORT, replace=False):
            order = rng.permutation(EXAMPLES)
            x = x_all[client][order].reshape(-1, BATCH, FEATURES)
            y = y_all[client][order].reshape(-1, BATCH)
            total = jax.tree.map(jnp.add, total, one(start, x, y))
        jax.block_until_ready(total)
        return time.perf_counter() - began

    return run


def rows_of(name: str, data: Any, count: int) -> list[Row]:
    rng = np.random.default_rng(SEED)
    network, start = module(WIDTHS[name]), pytree(WIDTHS[name], rng)
    models = {
        "PyTorch": q.clients.torch(network, torch.nn.functional.cross_entropy),
        "JAX": q.clients.jax(start, loss),
    }
    bare = {"PyTorch": bare_torch(network, data, rng), "JAX": bare_jax(start, data, rng)}
    limits = {"PyTorch": 0.65, "JAX": 0.8}
    rows = []
    for framework, model in models.items():
        case = Case(data, plan(model, ROUNDS))
        times = turns(count, {"ours": case.round, "bare": bare[framework]}, warm_up_s=PAUSE_S)
        rows.append(Row(name, f"a round, {framework}", "s", statistics.median(times["ours"])))
        rows.append(
            bounded(name, f"a round, {framework}, over its bare loop", ratio(times["ours"], times["bare"]),
                    limits[framework], f"bare {framework}, s", statistics.median(times["bare"]))
        )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds: under 60 s")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    options = parser.parse_args()
    data, rows = workload(), []
    for name in WIDTHS:
        found = rows_of(name, data, 5 if options.quick else 15)
        rows += found
        for row in found:
            show(row)
    if options.json:
        content = {"benchmark": "adapters", "machine": machine(), "rows": [asdict(row) for row in rows]}
        Path(options.json).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
