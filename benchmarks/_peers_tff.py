"""The cases of `benchmarks.peers` that need TensorFlow Federated, which has its own environment (`make interop`)."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

from benchmarks._peers import PLAN, Outcome, between, lines, ours
from quorate.interop.tff.environment import interpreter

JOB = Path(__file__).with_name("_tff_job.py")
ENGINE = ["engine.name=tff", "engine.process=quorate.interop.tff.processes:weighted_fed_avg"]


def tff_runtime(rounds: int) -> Outcome:
    """TFF's own rounds, in its native runtime, whose workers outlive the script: they must not hold a pipe of ours."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"}
    with tempfile.TemporaryFile("w+") as said:
        subprocess.run([interpreter(), JOB, str(rounds)], env=environment, stdout=said, check=True)
        said.seek(0)
        told = json.loads(said.read().splitlines()[-1])
    return Outcome(between(told["ends"]), told["accuracy"], lines(JOB))


def tff_engine(rounds: int) -> Outcome:
    """Our rounds, whose steps TFF makes in a child process; two lines more in the plan."""
    return ours(rounds, None, lines(PLAN) + len(ENGINE) + 1, ENGINE)
