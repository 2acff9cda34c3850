"""Structured logs: one JSON object a line, for coordinators and agents.

    configure("info")
    with bound(run="3f2a…", round=7):
        log.info("closed at its deadline", extra={"phase": "mask", "lost": 3})

What is bound in a thread (or a task) stands on every line that is written in it. Keys, shares and updates are never
given to a log: only names, numbers and reasons are.
"""

from __future__ import annotations

import contextlib
import contextvars
import datetime
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any, TextIO

__all__ = ["FIELDS", "JsonFormatter", "bound", "configure"]

FIELDS = ("run", "round", "device", "phase", "reason", "address", "fields")
"""What a line can hold besides `time`, `level`, `logger` and `message`; `fields` is a mapping of numbers and names."""

_bound: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar("bound", default=None)


@contextlib.contextmanager
def bound(**fields: Any) -> Iterator[None]:
    """Every line that is written within, in this thread or task, has these fields."""
    token = _bound.set({**(_bound.get() or {}), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON; an exception's traceback is the field `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **(_bound.get() or {}),
        }
        for name in FIELDS:
            if hasattr(record, name):
                line[name] = getattr(record, name)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(level: str = "info", stream: TextIO | None = None) -> None:
    """Sends this process's logs to a stream (standard error by default), as JSON lines."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
