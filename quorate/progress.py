"""The progress of a run on a terminal: one bar, and a line that says where accuracy, survivors and ε stand."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from quorate.evaluation import PREFIX
from quorate.rounds import Kind, Outcome
from quorate.server.coordinator import RoundReport

__all__ = ["ProgressBar", "describe"]


class ProgressBar:
    """Watches a run; a context manager, to be called with every `RoundReport`.

    Args:
        rounds: how many are to be committed.
        console: where it is drawn; standard error by default, so that output can be piped.
    """

    def __init__(self, rounds: int, console: Console | None = None):
        self._progress = Progress(
            BarColumn(bar_width=6),
            TextColumn("round {task.completed:.0f}/{task.total:.0f}"),
            Rate(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.description}"),
            console=console or Console(stderr=True),
        )
        self._task = self._progress.add_task("", total=rounds)

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, report: RoundReport) -> None:
        """Shows a round; an aborted one gets a line of its own."""
        if report.outcome is Outcome.ABORTED:
            self._progress.console.print(
                f"round {report.number} was aborted: {report.reason}", style="yellow"
            )
        self._progress.update(self._task, completed=report.version, description=f" · {describe(report)}")


class Rate(ProgressColumn):
    """Rounds a second, or seconds a round where they are slow."""

    def render(self, task: Task) -> Text:
        """Nothing before there is a rate."""
        speed = task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each")


def describe(report: RoundReport) -> str:
    """What a watcher wants to know of a round, in a line."""
    prefix = "" if report.kind is Kind.FIT else PREFIX
    shown = prefix + ("accuracy" if prefix + "accuracy" in report.metrics else "loss")
    parts = [f"{shown} {report.metrics[shown]:.3f}"] if shown in report.metrics else []
    parts.append(f"survivors {report.survivors}/{report.cohort}")
    if report.epsilons is not None:
        parts.append(f"ε {report.epsilons.released:.2f}, server {report.epsilons.server:.2f}")
    return " · ".join(parts)
