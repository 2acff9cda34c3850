"""The policy: the least that a device's owner accepts, in a TOML file.

    [accept]
    min_survivors = 20               # the fewest members whose sum may be opened
    secure_aggregation = true        # single updates are never shown
    threat_model = "semi-malicious"  # or stronger
    tasks = ["digits"]               # of those that are installed; all of them if left out
    signers = ["3f6c…"]              # whose plans: Ed25519 public keys in hexadecimal; anybody's if left out
    evaluation = false               # models are trained here, and not measured on the device's data

    [budget]                         # what all tasks together may spend
    epsilon = 4.0
    delta = 1e-6
    period_days = 30.0

    [example_budget]                 # the same for one example of the device's: what training by DP-SGD may cost it
    epsilon = 8.0
    delta = 1e-5

`[conditions]` and `[limits]` (`quorate.clients.agent.conditions`, `limits`) say when and how training may run.

How terms are judged by it is in `quorate.clients.agent.judgement`.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from quorate.clients.agent.conditions import Conditions
from quorate.clients.agent.limits import Limits
from quorate.errors import PlanError
from quorate.sections import Section

__all__ = ["Accept", "Budget", "Policy", "read_policy"]


class Accept(Section):
    """`[accept]`: what terms must say.

    Args:
        min_survivors: the fewest members whose sum may be opened.
        secure_aggregation: whether single updates must be hidden from the coordinator.
        threat_model: the weakest that secure aggregation may have.
        tasks: the names of the tasks that may be trained; None: all that are installed.
        signers: whose terms: Ed25519 public keys, 64 hexadecimal digits each; None: anybody's.
        evaluation: whether models may be measured on the device's data.
    """

    min_survivors: Annotated[int, Field(ge=1)] = 3
    secure_aggregation: bool = True
    threat_model: Literal["semi-honest", "semi-malicious", "malicious"] = "semi-honest"
    tasks: list[str] | None = None
    signers: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] | None = None
    evaluation: bool = True


class Budget(Section):
    """`[budget]` and `[example_budget]`: what the device spends at most, over all tasks and runs.

    Args:
        epsilon: of any period, against the coordinator: for the device's whole contribution, or for one example.
        delta: of that ε.
        period_days: how long a participation counts.
    """

    epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    period_days: Annotated[float, Field(gt=0)] = 30.0

    @property
    def period_s(self) -> float:
        """The period in seconds."""
        return self.period_days * 86_400


class Policy(Section):
    """A device's policy file."""

    accept: Accept = Accept()
    budget: Budget | None = None
    example_budget: Budget | None = None
    conditions: Conditions = Conditions()
    limits: Limits = Limits()


def read_policy(path: str | os.PathLike[str]) -> Policy:
    """A policy from its file.

    Raises:
        PlanError: the file can't be read, is not TOML, or is no policy; one line for each problem.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"the policy can't be read: {error}", source=str(path)) from error
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"the policy is not TOML: {error}", source=str(path)) from error
    try:
        return Policy(**content)
    except PlanError as error:
        raise PlanError(error.problems, source=str(path)) from None
