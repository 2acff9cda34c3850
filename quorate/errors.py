"""The errors of Quorate: one base class, and children that say what the reader can do about it.

Bad input is refused at the border with what was found and what is accepted; nothing is swallowed. The command line
prints the message of a `QuorateError` without a traceback and exits with its `exit_code`.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "BudgetExhausted",
    "DataError",
    "IdentityRefused",
    "MissingExtra",
    "PlanError",
    "PolicyRefused",
    "ProtocolViolation",
    "QuorateError",
    "QuorumNotReached",
    "RegistryError",
    "RoundsAborted",
    "StateError",
    "TrainingFailed",
    "Unreachable",
    "VerificationFailed",
]


class QuorateError(Exception):
    """The base class of every error that Quorate raises on purpose."""

    exit_code = 1


class PlanError(QuorateError):
    """A plan (or a value of it) can't be used: mend the plan. Holds one line for each problem.

    Args:
        problems: one sentence each: the key's path, what was found, what is accepted.
        source: the file the plan was read from, or a word for where it came from.
    """

    exit_code = 2

    def __init__(self, problems: str | Iterable[str], source: str | None = None):
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        self.source = source
        where = f"{source}: " if source else ""
        if len(self.problems) == 1:
            text = where + self.problems[0]
        else:
            text = f"{where}{len(self.problems)} problems\n" + "\n".join(f"  - {p}" for p in self.problems)
        super().__init__(text)


class DataError(QuorateError):
    """Data (a dataset, a vector, a file) does not have the shape, dtype or content that is needed."""

    exit_code = 2


class StateError(QuorateError):
    """A state directory can't be used as asked: it is held by another process, or belongs to something else."""


class Unreachable(QuorateError):
    """A server did not answer: what was asked may be tried again later."""


class QuorumNotReached(QuorateError):
    """Too few members stayed in a round: it was aborted, and nothing was released. The next round may succeed.

    Args:
        phase: the phase of the round in which the quorum was lost.
        present: how many members were left.
        needed: how many are needed.
        lost: where the others are, in words, as far as it is known.
    """

    def __init__(self, phase: str, present: int, needed: int, lost: str = ""):
        self.phase, self.present, self.needed = phase, present, needed
        text = f"the round is not quorate: {present} members were left after '{phase}', {needed} are needed"
        super().__init__(f"{text}; lost: {lost}" if lost else text)


class RoundsAborted(QuorateError):
    """Too many rounds in a row were aborted. The run can be started again, and goes on where it was."""


class BudgetExhausted(QuorateError):
    """The next round would pass the privacy budget: it was not started. Raise the budget, or stop here."""


class IdentityRefused(QuorateError):
    """A certificate, a token, a request or a log is not accepted: the message says why. Nothing was changed by it."""


class PolicyRefused(QuorateError):
    """A member declined, because the terms fall short of its own policy.

    Args:
        message: what was found, and what the member accepts.
        code: the rule that was not kept, in a word that does not change: coordinators count refusals by it.
    """

    def __init__(self, message: str, code: str = "declined"):
        self.code = code
        super().__init__(message)


class TrainingFailed(QuorateError):
    """A member's own training did not come to an end: it is a dropout of this round.

    Args:
        message: what happened, in our words: it goes to the coordinator, so it holds nothing of the application's.
        code: what happened, in a word that does not change.
    """

    def __init__(self, message: str, code: str):
        self.code = code
        super().__init__(message)


class ProtocolViolation(QuorateError):
    """A peer sent what the protocol does not allow: its session ends, the round goes on without it."""


class RegistryError(QuorateError):
    """A model registry does not hold what was asked for, or can't be written as asked."""


class VerificationFailed(QuorateError):
    """A signature, a hash or a version did not verify: nothing was activated, the held version stays."""


class MissingExtra(QuorateError):
    """A part needs packages that are not installed. The message holds the command that installs them.

    Args:
        extra: the extra of the `quorate` distribution that brings the packages.
        purpose: what they are needed for, as the subject of the sentence.
    """

    exit_code = 2

    def __init__(self, extra: str, purpose: str):
        self.extra = extra
        super().__init__(f"{purpose} needs packages that are not installed: pip install 'quorate[{extra}]'")
