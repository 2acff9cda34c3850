"""Structured logs: one JSON object a line, with what is bound."""

from __future__ import annotations

import io
import json
import logging
import sys

from quorate.logs import JsonFormatter, bound


def written(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def logger() -> tuple[logging.Logger, io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    log = logging.Logger("quorate.example")
    log.addHandler(handler)
    return log, stream


def test_a_line_holds_what_is_bound_and_what_it_was_given() -> None:
    log, stream = logger()
    with bound(run="r1"), bound(round=3):
        log.warning("lost %s", "some", extra={"device": "d1", "reason": "frozen", "unknown": "x"})
    log.info("later")
    first, second = written(stream)
    assert (first["run"], first["round"], first["device"], first["reason"]) == ("r1", 3, "d1", "frozen")
    assert first["message"] == "lost some"
    assert first["level"] == "warning"
    assert "unknown" not in first
    assert "run" not in second


def test_a_traceback_stays_on_the_line() -> None:
    log, stream = logger()
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.error("failed", exc_info=sys.exc_info())
    (line,) = written(stream)
    assert "ValueError: two" in str(line["exception"])
