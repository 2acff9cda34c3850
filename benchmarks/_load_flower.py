"""The load of `benchmarks.coordinator_load` on Flower's own runtime: a SuperLink, and stock SuperNodes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from benchmarks._peers_flower import superlink, supernode
from quorate.interop.flower import internals

APP = Path(__file__).with_name("flower_load")


def updates_per_s(nodes: int, parameters: int, rounds: int) -> float:
    """FedAvg over all nodes, whose training is trivial; the first round is not counted.

    Args:
        nodes: SuperNodes, all in every round.
        parameters: float32 values in one array.
        rounds: at least two.
    """
    app = internals.load(APP, {})
    assert app.server is not None
    import flower_load.server_app as theirs  # type: ignore[import-not-found]

    with superlink() as (address, start), internals.Run(address, internals.build(APP)) as run:
        for number in range(nodes):
            supernode(start, address, f"partition-id={number} num-partitions={nodes}")
        theirs.run(run.grid, nodes, parameters, rounds)
    ends = theirs.ends[-rounds:]
    seconds = [after - before for before, after in pairwise(ends)]
    return nodes * len(seconds) / sum(seconds)
