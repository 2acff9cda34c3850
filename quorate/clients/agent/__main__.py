"""The agent's process: `quorate agent run` becomes it, so that the command line's packages do not stay in memory.

python -m quorate.clients.agent '{"tasks": ["app:task"], …}'
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quorate.clients.agent.description import Description
from quorate.clients.agent.signals import Heard, hold, listening
from quorate.clients.agent.state import AgentState, held
from quorate.errors import PlanError, QuorateError, TrainingFailed
from quorate.logs import configure

if TYPE_CHECKING:
    from quorate.clients.agent.channels import Connection
    from quorate.clients.agent.policy import Policy

__all__ = ["Launch", "main"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Launch:
    """What `quorate agent run` was told.

    Args:
        tasks: `module:attribute` each.
        directory: of the agent's state.
        coordinator: `host:port`; None: where the device enrolled.
        insecure: without TLS, on this machine.
        device: with `insecure`, the device's name.
        policy: its file.
        log_level: debug, info, warning or error.
        json_logs: one JSON object a line.
        described: what the tasks said of themselves to the process before this one.
    """

    tasks: list[str]
    directory: str
    coordinator: str | None = None
    insecure: bool = False
    device: str | None = None
    policy: str | None = None
    log_level: str = "info"
    json_logs: bool = False
    described: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def become(self) -> None:
        """Replaces this process by the agent's, which hears the signals that come meanwhile.

        Fewer of malloc's arenas keep it small.
        """
        hold()
        os.environ.setdefault("MALLOC_ARENA_MAX", "2")
        text = json.dumps(dataclasses.asdict(self))
        os.execv(sys.executable, [sys.executable, "-m", "quorate.clients.agent", text])


def main(text: str) -> int:
    """Runs the agent until it is stopped; returns the exit code."""
    launch = Launch(**json.loads(text))
    if launch.json_logs:
        configure(launch.log_level)
    else:
        logging.basicConfig(
            level=launch.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
        )
    try:
        again = _run(launch)
        if again is not None:
            again.become()
    except QuorateError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _run(launch: Launch) -> Launch | None:
    """Runs the agent; returns how to begin anew, if it is to. Each step loads only what it needs."""
    directory = Path(launch.directory)
    with held(directory), contextlib.closing(AgentState(directory)) as state, listening() as heard:
        if not launch.described:
            _reached(launch, state)  # what can't be used is said before anything takes time
            described = _described(launch, heard)
            return None if heard.stopping.is_set() else dataclasses.replace(launch, described=described)
        heard.wait(state.away_s())
        if heard.stopping.is_set():
            return None
        return launch if _take_part(launch, state, heard) else None


def _take_part(launch: Launch, state: AgentState, heard: Heard) -> bool:
    from quorate.clients.agent.agent import Agent

    reached = _reached(launch, state)
    state.note(
        coordinator=reached.address,
        device=reached.device,
        tasks=" ".join(launch.tasks),
        policy=launch.policy,
    )
    tasks = {path: Description.read(said) for path, said in launch.described.items()}
    if launch.insecure:
        log.warning("insecure: no certificates, everybody is who they say they are; for this machine only")
    agent = Agent(tasks, reached, _policy(launch), state)
    heard.tell(agent.stop, agent.wake)
    return agent.run()


def _reached(launch: Launch, state: AgentState) -> Connection:
    from quorate.clients.agent.channels import connection

    return connection(state, launch.coordinator, launch.device, insecure=launch.insecure)


def _described(launch: Launch, heard: Heard) -> Mapping[str, Mapping[str, Any]]:
    """What the tasks say of themselves."""
    from quorate.clients.agent.training import Trainer

    def check() -> None:
        if heard.stopping.is_set():
            raise TrainingFailed("the agent is stopping", "stopping")

    said = {}
    for path in launch.tasks:
        with contextlib.closing(Trainer(path, _policy(launch).limits, check)) as trainer:
            try:
                said[path] = trainer.describe().said
            except PlanError:
                if not heard.stopping.is_set():
                    raise
    return said


def _policy(launch: Launch) -> Policy:
    from quorate.clients.agent.policy import Policy, read_policy

    return Policy() if launch.policy is None else read_policy(launch.policy)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
