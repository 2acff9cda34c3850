"""A plan as a Flower app: a directory that `flwr run` takes, and whose bundle goes to stock SuperNodes.

Its ServerApp runs the plan over the grid that Flower gives it; its ClientApp answers with the node's own data. Both are
a few lines that name what is installed: a node needs Quorate, and whatever the plan's task needs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quorate.errors import PlanError, StateError
from quorate.plan import Plan
from quorate.planfile import format_plan

__all__ = ["write_app"]

_LONGEST_NAME = 32  # Flower's

_PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "1.0.0"
description = "A plan of Quorate, as a Flower app"
dependencies = ["quorate[flower,server]"]

[tool.hatch.build.targets.wheel]
packages = ["quorate_app"]

[tool.flwr.app]
publisher = "quorate"

[tool.flwr.app.components]
serverapp = "quorate_app.server_app:app"
clientapp = "quorate_app.client_app:app"

[tool.flwr.app.config]
nodes = {nodes}
state = ""
"""

_SERVER = '''\
"""The coordinator: `plan.toml`, over the nodes that Flower knows.

Run config: `nodes` are counted on; `state` is a directory to go on from after a restart, or nothing.
"""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

import quorate as q
from quorate.interop.flower.fleet import OverGrid
{imports}
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    plan = q.read_plan(Path(__file__).with_name("plan.toml"))
    fleet = OverGrid(grid, nodes=int(context.run_config["nodes"]), held_out={held_out})
    run = q.run(plan, fleet=fleet, state=str(context.run_config["state"]) or None)
    print(f"{{len(run.committed)}} rounds are committed: {{run.metrics}}")
'''

_CLIENT = '''\
"""A node: the plan's task, on what its owner names in the node's config."""

from quorate.interop.flower import nodes

app = nodes.client_app(nodes.owned)
'''

_SIMULATED_CLIENT = '''\
"""A node: the plan's task, on its own examples."""

from flwr.app import Context
from quorate.interop.flower import nodes
from quorate_app.data import DATA


def examples(context: Context) -> object:
    """This node's examples. Put your own here."""
    return DATA.clients[int(context.node_config["partition-id"])]


app = nodes.client_app(nodes.on(examples))
'''

_DATA = '''\
"""The data that the plan simulates with: a part for each node, and a test set for the server."""

from quorate.simulations.source import simulation

DATA = simulation({settings}).data
'''


def write_app(plan: Plan, directory: Path, nodes: int | None = None) -> Path:
    """Writes the app and returns its directory.

    Where the plan simulates, a node trains on the part of the dataset that its `partition-id` says, as nodes of
    Flower's simulation do; elsewhere on what its node config names (`nodes.owned`).

    Args:
        plan: named in full: what is bound in Python only can't be written down.
        directory: it is made, and must be empty if it is there.
        nodes: how many nodes are counted on; None: what the plan's fleet says.

    Raises:
        PlanError: the plan can't be written down, or says nothing of nodes.
        StateError: the directory holds something.
    """
    if directory.exists() and any(directory.iterdir()):
        raise StateError(f"{directory} is not empty; a Flower app is written into a new directory")
    fleet = plan.fleet.settings
    simulated = plan.fleet.kind == "simulation" and "dataset" in fleet
    counted = nodes or fleet.get("nodes") or fleet.get("clients")
    if counted is None:
        raise PlanError("fleet.nodes: missing; accepted: how many nodes the app counts on")
    if plan.publish is not None:  # a server app does not run where this is written
        registry = str(Path(plan.publish.registry).absolute())
        plan = plan.model_copy(update={"publish": plan.publish.model_copy(update={"registry": registry})})
    package = directory / "quorate_app"
    package.mkdir(parents=True)
    name = re.sub(r"[^a-z0-9]+", "-", f"quorate-{plan.task.name}".lower())[:_LONGEST_NAME].strip("-")
    files = {
        directory / "pyproject.toml": _PROJECT.format(name=name, nodes=counted),
        package / "__init__.py": '"""A plan of Quorate."""\n',
        package / "plan.toml": format_plan(plan),
        package / "server_app.py": _SERVER.format(
            imports="from quorate_app.data import DATA\n" if simulated else "",
            held_out="DATA.test" if simulated else "None",
        ),
        package / "client_app.py": _SIMULATED_CLIENT if simulated else _CLIENT,
    }
    if simulated:
        files[package / "data.py"] = _DATA.format(settings=_arguments(fleet))
    for path, text in files.items():
        path.write_text(text)
    return directory


def _arguments(settings: Mapping[str, Any]) -> str:
    """What makes the data; how the simulation runs is left out."""
    made = ("dataset", "clients", "partition", "alpha", "per_client", "partition_seed", "options")
    return ", ".join(f"{name}={settings[name]!r}" for name in made if name in settings)
