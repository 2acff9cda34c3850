"""Callbacks of a run: told of every round, with the parameters after it; any of them may end the run.

    q.run(plan, callbacks=[q.callbacks.CsvLog("log.csv"), q.callbacks.EarlyStopping("accuracy", patience=5)])

What they decide from is what a run shows anybody who watches it: nothing here sees a client's data. A metric whose name
begins with `federated/` is told by evaluations on members' data, every other one by rounds of training: a callback that
looks at a metric looks at the rounds that tell it.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import safetensors.numpy

from quorate.errors import DataError, MissingExtra, QuorateError
from quorate.evaluation import PREFIX
from quorate.files import replace_file
from quorate.parameters import Parameters
from quorate.rounds import Kind, Outcome
from quorate.server.coordinator import RoundReport
from quorate.server.records import Round, committed

__all__ = ["Callback", "CsvLog", "EarlyStopping", "Enough", "KeepBest", "TensorBoardLog"]


class Enough(Exception):
    """Raised by a callback: the run ends after this round."""


class Callback:
    """Takes note of a run."""

    def begin(self, history: Sequence[Round]) -> None:
        """Told once, before the first round, of the rounds of earlier processes."""

    def __call__(self, report: RoundReport, parameters: Parameters) -> None:
        """Takes note of a round.

        Args:
            report: how it went.
            parameters: the model after it; the one before it, if the round was aborted.

        Raises:
            Enough: the run is to end here.
        """
        raise NotImplementedError


class EarlyStopping(Callback):
    """Ends a run when a metric has not become better for some committed rounds.

    Args:
        metric: such as `accuracy`, or `federated/accuracy`.
        patience: after how many rounds that tell it, without a better value.
        larger: whether larger is better; None: not for a metric whose name says `loss` or `error`.
        least_change: what counts as better.
    """

    def __init__(self, metric: str, patience: int, larger: bool | None = None, least_change: float = 0.0):
        if patience < 1:
            raise DataError(f"patience: {patience} was found; at least 1 is accepted")
        self._metric, self._patience, self._least = metric, patience, least_change
        self._sign, self._best, self._since = _sign(metric, larger), -math.inf, 0

    def begin(self, history: Sequence[Round]) -> None:
        """Counts the rounds of earlier processes, too."""
        for past in committed(history, _kind(self._metric)):
            self._count(past.metrics)

    def __call__(self, report: RoundReport, parameters: Parameters) -> None:
        """Counts rounds since the best one."""
        if _tells(report, self._metric):
            self._count(report.metrics)
            if self._since >= self._patience:
                raise Enough(f"{self._metric} has not become better for {self._since} rounds")

    def _count(self, metrics: Mapping[str, float]) -> None:
        value = self._sign * _value(metrics, self._metric)
        if value > self._best + self._least or self._best == -math.inf:
            self._best, self._since = value, 0
        else:
            self._since += 1


class KeepBest(Callback):
    """Keeps the parameters with the best value of a metric in a safetensors file, which a resumed run goes on from.

    Args:
        path: the file.
        metric: such as `accuracy`, or `federated/accuracy`.
        larger: see `EarlyStopping`.
    """

    def __init__(self, path: str | os.PathLike[str], metric: str = "accuracy", larger: bool | None = None):
        self.path, self._metric, self._sign = Path(path), metric, _sign(metric, larger)
        self._best = -math.inf
        if self.path.exists():
            with safetensors.safe_open(self.path, "numpy") as held:
                self._best = self._sign * float((held.metadata() or {}).get(metric, "nan"))
            if math.isnan(self._best):
                raise DataError(f"{self.path} does not say which {metric} it has; name another file")

    def __call__(self, report: RoundReport, parameters: Parameters) -> None:
        """Replaces the file, durably, if this round is better."""
        if not _tells(report, self._metric):
            return
        value = self._sign * _value(report.metrics, self._metric)
        if value > self._best:
            self._best = value
            said = {"round": str(report.number), "version": str(report.version)}
            said |= {name: repr(number) for name, number in report.metrics.items()}
            arrays = {name: array.copy() for name, array in parameters.items()}
            replace_file(self.path, safetensors.numpy.save(arrays, said))


class CsvLog(Callback):
    """One line a round: number, kind, version, outcome, survivors, losses, seconds, both ε and the metrics.

    A file that is there is continued; a metric that it has no column for adds one, for which the file is written anew.

    Args:
        path: the file.
    """

    _FIXED = (
        "round",
        "kind",
        "version",
        "outcome",
        "cohort",
        "survivors",
        "lost",
        "seconds",
        "epsilon_released",
        "epsilon_server",
    )

    def __init__(self, path: str | os.PathLike[str]):
        self._path, self._began = Path(path), time.monotonic()
        self._columns: list[str] = []
        if self._path.exists():
            with self._path.open(newline="") as file:
                self._columns = next(csv.reader(file), [])
            if self._columns and self._columns[: len(self._FIXED)] != list(self._FIXED):
                raise DataError(f"{self._path} is not a log of rounds; name another file")

    def __call__(self, report: RoundReport, parameters: Parameters) -> None:
        """Appends the round."""
        row = _row(report) | {"seconds": f"{time.monotonic() - self._began:.3f}"}
        self._began = time.monotonic()
        more = sorted(set(report.metrics) - set(self._columns))
        if more or not self._columns:
            self._widen(more)
        with self._path.open("a", newline="") as file:
            self._writer(file).writerow(row | {name: repr(value) for name, value in report.metrics.items()})

    def _widen(self, more: Sequence[str]) -> None:
        rows: list[dict[str, str]] = []
        if self._columns:
            with self._path.open(newline="") as file:
                rows = list(csv.DictReader(file))
        self._columns = [*(self._columns or self._FIXED), *more]
        text = io.StringIO(newline="")
        writer = self._writer(text)
        writer.writeheader()
        writer.writerows(rows)
        replace_file(self._path, text.getvalue().encode())

    def _writer(self, file: IO[str]) -> csv.DictWriter[str]:
        return csv.DictWriter(file, self._columns, restval="")


class TensorBoardLog(Callback):
    """Metrics, survivors and both ε as TensorBoard's scalars, by committed round; a context manager.

    Args:
        directory: of the event file.

    Raises:
        MissingExtra: TensorBoard is not installed.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        try:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise MissingExtra("tracking", "logging for TensorBoard") from error
        self._writer: Any = EventFileWriter(os.fspath(directory))

    def __call__(self, report: RoundReport, parameters: Parameters) -> None:
        """Writes a committed round's scalars."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        if report.outcome is not Outcome.COMMITTED:
            return
        scalars = {f"metrics/{name}": value for name, value in report.metrics.items()}
        prefix = "round" if report.kind is Kind.FIT else "evaluation"
        scalars[f"{prefix}/survivors"] = report.survivors
        if report.epsilons is not None:
            scalars |= {"epsilon/released": report.epsilons.released}
            if math.isfinite(report.epsilons.server):
                scalars |= {"epsilon/server": report.epsilons.server}
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._writer.add_event(
            Event(wall_time=time.time(), step=report.version, summary=Summary(value=values))
        )
        self._writer.flush()

    def __enter__(self) -> TensorBoardLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


def _row(report: RoundReport) -> dict[str, Any]:
    spent = report.epsilons
    return {
        "round": report.number,
        "kind": report.kind.value,
        "version": report.version,
        "outcome": report.outcome.value,
        "cohort": report.cohort,
        "survivors": report.survivors,
        "lost": json.dumps(dict(report.lost)),
        "epsilon_released": "" if spent is None else repr(spent.released),
        "epsilon_server": "" if spent is None else repr(spent.server),
    }


def _sign(metric: str, larger: bool | None) -> int:
    smaller_is_better = "loss" in metric or "error" in metric
    return 1 if (not smaller_is_better if larger is None else larger) else -1


def _kind(metric: str) -> Kind:
    """Of the rounds that tell a metric."""
    return Kind.EVALUATE if metric.startswith(PREFIX) else Kind.FIT


def _tells(report: RoundReport, metric: str) -> bool:
    return report.outcome is Outcome.COMMITTED and report.kind is _kind(metric)


def _value(metrics: Mapping[str, float], name: str) -> float:
    if name not in metrics:
        raise QuorateError(f"there is no metric {name!r}; these are measured: {', '.join(metrics) or 'none'}")
    return metrics[name]
