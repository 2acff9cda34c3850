"""`quorate agent` as people type it."""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path

import pytest

from quorate.clients.agent.state import AgentState, held
from quorate.privacy import DistributedDiscreteGaussianEvent, NoisyVector
from quorate.rounds import Outcome
from quorate.summation import Exposure
from tests.cli.commands import PLAN, quorate, quorate_process

EVENT = DistributedDiscreteGaussianEvent((NoisyVector("delta", 10, 100.0, 10_000),), 4, 4, 4, 6)  # type: ignore[arg-type]


def agent(*arguments: str, cwd: Path, code: int = 0, apart: bool = False) -> str:
    """What a command says, standard error included; `apart`: in a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(cwd / "home"))
        done = (quorate_process if apart else quorate)("agent", *arguments, cwd=cwd)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The memory of an agent that took part twice and declined once."""
    directory = tmp_path / "state"
    with contextlib.closing(AgentState(directory)) as opened:
        opened.note(device="me", coordinator="fl.example.org:9443", tasks="app:task", doing="no round began")
        for number in (1, 2):
            opened.begin("digits", "a1b2", number, EVENT)
            opened.expose("a1b2", number, Exposure.REVEALED)
        opened.conclude("a1b2", 1, Outcome.COMMITTED)
        opened.refused("a1b2", 3, "budget", "too much")
    return directory


def test_status_says_what_the_agent_took_part_in_and_declined(state, tmp_path):
    said = json.loads(agent("status", "--state", str(state), "--json", cwd=tmp_path))
    assert said["running"] is None
    assert said["participations"] == {"committed": 1, "undecided": 1}
    assert said["declined"] == {"budget": 1}
    assert [(past["round"], past["outcome"]) for past in said["rounds"]] == [(2, None), (1, "committed")]
    text = agent("status", "--state", str(state), cwd=tmp_path)
    for part in ("fl.example.org:9443", "committed 1, undecided 1", "budget 1", "a1b2", "revealed"):
        assert part in text


def test_status_says_what_was_spent_of_the_budget(state, tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text("[budget]\nepsilon = 4.0\n")
    with contextlib.closing(AgentState(state)) as opened:
        opened.note(policy=str(policy))
    said = json.loads(agent("status", "--state", str(state), "--json", cwd=tmp_path))
    assert said["epsilon_budget"] == 4.0
    assert 0 < said["epsilon_spent"] < 4.0


@pytest.mark.parametrize("command", ["status", "pause", "resume", "forget"])
def test_without_a_state_it_is_said_where_it_was_looked_for(command, tmp_path):
    assert str(tmp_path / "home" / "quorate" / "agent") in agent(command, cwd=tmp_path, code=1)


def test_pause_and_resume_are_kept_and_wake_the_agent(state, tmp_path):
    woken = []
    before = signal.signal(signal.SIGUSR1, lambda *_: woken.append(True))
    try:
        with held(state):
            agent("pause", "--state", str(state), cwd=tmp_path)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert woken
    assert json.loads(agent("status", "--state", str(state), "--json", cwd=tmp_path))["paused"] is True
    agent("resume", "--state", str(state), cwd=tmp_path)
    assert json.loads(agent("status", "--state", str(state), "--json", cwd=tmp_path))["paused"] is False


def test_forget_leaves_nothing(state, tmp_path):
    agent("forget", "--state", str(state), cwd=tmp_path)
    assert not state.exists()


def test_install_writes_a_unit_and_says_how_to_start_it(tmp_path):
    said = agent(
        "install",
        "--task",
        "app:task",
        "--coordinator",
        "fl.example.org:9443",
        "--folder",
        str(tmp_path),
        cwd=tmp_path,
    )
    unit = (tmp_path / "quorate-agent.service").read_text()
    assert "agent run --task app:task --state" in unit
    assert f"WorkingDirectory={tmp_path}" in unit
    assert "systemctl --user daemon-reload && systemctl --user enable --now quorate-agent.service" in said


def test_policy_check_says_for_each_rule_whether_a_plan_passes(tmp_path):
    plan, policy = tmp_path / "plan.toml", tmp_path / "policy.toml"
    plan.write_text(PLAN)
    policy.write_text("[accept]\nmin_survivors = 5\n[budget]\nepsilon = 100.0\ndelta = 1e-3\n")
    said = agent("policy", "check", str(plan), "--policy", str(policy), cwd=tmp_path)
    for rule in ("task", "secure-aggregation", "threat-model", "survivors", "budget"):
        assert rule in said
    assert "NO" not in said
    policy.write_text("[accept]\nmin_survivors = 500\n")
    said = agent("policy", "check", str(plan), "--policy", str(policy), cwd=tmp_path, code=1)
    (line,) = [line for line in said.splitlines() if "survivors" in line.split()[:1]]
    assert "NO" in line
    assert "at least 500" in line


def test_policy_show_fills_in_the_defaults(tmp_path):
    said = agent("policy", "show", cwd=tmp_path)
    assert "[accept]\nmin_survivors = 3\nsecure_aggregation = true" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--task: missing"),
        (("--task", "app:task"), "is not enrolled"),
        (("--task", "app:task", "--insecure"), "--coordinator: found None"),
        (
            ("--task", "app:task", "--insecure", "--coordinator", "fl.example.org:1"),
            "accepted with --insecure: localhost",
        ),
        (("--task", "app:task", "--insecure", "--coordinator", "localhost:1"), "--device: found None"),
        (("--task", "app:task", "--log-level", "loud"), "--log-level: found 'loud'"),
    ],
)
def test_what_run_cant_use_is_said_at_once(arguments, says, tmp_path):
    code = 2 if "--" in says and "enrolled" not in says else 1
    said = agent("run", *arguments, cwd=tmp_path, code=code, apart=True)  # the process becomes the agent's
    assert says in said


def test_a_token_that_is_none_is_refused_and_not_repeated(tmp_path):
    said = agent("enrol", "--coordinator", "localhost:1", "--token", "secret-secret", cwd=tmp_path, code=1)
    assert "not an enrolment token" in said
    assert "secret-secret" not in said
