"""A plan for four nodes that sum in secret, and what they train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flwr.app import Context

from quorate.clients.adapters.examples import Examples
from quorate.interop.flower.clients import task_from_app
from quorate.plan import Plan
from quorate.task import Task
from tests import federations

NODES = 4
NUMPY_APP = Path(__file__).with_name("apps") / "numpy"


def plan(rounds: int = 2, **sections: Any) -> Plan:
    """Every node takes part in every round; three of them are enough."""
    return federations.plan(
        **{
            "rounds": {"count": rounds, "cohort": NODES, "sampling": "fixed"},
            "training": {"learning_rate": 0.5, "epochs": 2},
            "privacy": {
                "mechanism": "distributed-discrete-gaussian",
                "clip_norm": 1.0,
                "noise_multiplier": 0.3,
            },
            "secure_aggregation": {"protocol": "secagg+", "min_survivors": 3, "corrupt": 0.0},
            **sections,
        }
    )


def examples(context: Context) -> Examples:
    """The wines of the part that a node's config says; nodes name `tests.interop.flower.federations:examples`."""
    return federations.wine(NODES).clients[int(context.node_config["part"])]


def __getattr__(name: str) -> Task:
    """`flower_task`: a Flower app that has its data, as a node's owner names it; made when it is asked for."""
    if name != "flower_task":
        raise AttributeError(name)
    return task_from_app(str(NUMPY_APP), node_config={"partition-id": 1, "num-partitions": NODES})
