"""The *ray* engine on two local nodes against the *processes* engine on the same two cores, in one run.

    python -m benchmarks.ray_cluster [--quick] [--json FILE]

The data of `benchmarks.simulation` and the 2NN, with a cohort of 500 and ten local epochs, so that a round takes about
a second. The cluster has two nodes of one processor each (`ray.cluster_utils`); the other engine has two workers. Both
take one round in turn; the ratio is the median of the ratios within a turn. Rounds in which a worker is killed are
tested in `tests/simulations/engines/test_ray_actors.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import quorate as q
from benchmarks._rows import Row
from benchmarks._w1 import BATCH, CLASSES, FEATURES, HIDDEN, RATE
from benchmarks.simulation import Case, bounded, machine, ratio, show, turns, workload

COHORT, EPOCHS = 500, 10


def measured(rounds: int) -> list[Row]:
    plan = q.Plan(
        task=q.Task(q.models.mlp(FEATURES, (HIDDEN, HIDDEN), CLASSES)),
        rounds=q.Rounds(count=rounds + 2, cohort=COHORT, sampling="fixed"),
        training=q.Training(learning_rate=RATE, epochs=EPOCHS, batch_size=BATCH),
    )
    data = workload()
    processes = Case(data, plan, "processes", workers=2)  # forked while Ray has no threads here
    with two_nodes() as address:
        ray = Case(data, plan, "ray", workers=2, address=address)
        times = turns(rounds, {"ray": ray.round, "processes": processes.round})
    middle = {name: statistics.median(values) for name, values in times.items()}
    return [
        Row("2NN", "a round on Ray", "s", middle["ray"]),
        bounded("2NN", "a round on Ray over the processes engine", ratio(times["ray"], times["processes"]), 1.5,
                "processes, s", middle["processes"]),
    ]  # fmt: skip


@contextlib.contextmanager
def two_nodes() -> Iterator[str]:
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 1 << 30}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        ray.shutdown()  # a cluster doesn't take away the node that this process is connected to
        cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    options = parser.parse_args()
    if importlib.util.find_spec("ray") is None:
        print("left out: Ray is not installed")
        return
    rows = measured(3 if options.quick else 7)
    for row in rows:
        show(row)
    if options.json:
        content = {"benchmark": "ray_cluster", "machine": machine(), "rows": [asdict(row) for row in rows]}
        Path(options.json).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
