"""What a coordinator counts, for Prometheus to scrape.

Labels are names of runs, phases and kinds: never a device, and of the codes that devices decline with only the
first few, so that nobody can grow the coordinator's memory by inventing new ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quorate.errors import MissingExtra
from quorate.server.coordinator import RoundReport
from quorate.server.remote import Watch
from quorate.summation import Loss

try:
    from prometheus_client import (
        CollectorRegistry,
        Counter,
        Gauge,
        Histogram,
        disable_created_metrics,
        start_http_server,
    )
except ImportError as error:
    raise MissingExtra("server", "running a coordinator for devices") from error

__all__ = ["Metrics"]

_MOST_CODES = 50
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics(Watch):
    """One coordinator's counters, in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._codes: set[str] = set()

        def of(kind: Any, name: str, text: str, *labels: str, **options: Any) -> Any:
            return kind(f"quorate_{name}", text, labels, registry=self.registry, **options)

        self.devices = of(Gauge, "devices", "Devices with a stream, by what they do", "state")
        self.sent_bytes = of(Counter, "sent_bytes", "Bytes of messages to devices")
        self.received_bytes = of(Counter, "received_bytes", "Bytes of messages from devices")
        self.check_in_seconds = of(
            Histogram, "check_in_seconds", "From a stream's beginning to its answer", buckets=_SECONDS
        )
        self.sent_away = of(Counter, "sent_away", "Devices that were told to come back")
        self.refusals = of(Counter, "refusals", "Streams that the coordinator refused", "reason")
        self.declines = of(Counter, "declines", "Assignments that devices declined", "run", "reason")
        self.rounds = of(Counter, "rounds", "Rounds, by outcome", "run", "outcome")
        self.drops = of(
            Counter, "drops", "Members lost in a round, by phase and why", "run", "phase", "reason"
        )
        self.phase_seconds = of(
            Histogram, "phase_seconds", "How long a phase of a sum took", "run", "phase", buckets=_SECONDS
        )
        self.committed = of(Gauge, "committed_rounds", "Rounds committed so far", "run")
        self.epsilon = of(
            Gauge,
            "epsilon",
            "Privacy spent: against who sees the models, and against the server",
            "run",
            "against",
        )

    def serve(self, host: str, port: int) -> tuple[int, Any]:
        """Answers scrapes over HTTP in a thread; returns the port and the server, which has `shutdown`."""
        server, _ = start_http_server(port, host, self.registry)
        return server.server_address[1], server

    # --- see `quorate.server.remote.Watch`

    def closed(self, run: str, phase: str, seconds: float, lost: Mapping[Loss, int]) -> None:
        """Counts a phase of a sum."""
        self.phase_seconds.labels(run, phase).observe(seconds)
        for loss, count in lost.items():
            self.drops.labels(run, phase, loss.value).inc(count)

    def declined(self, run: str, code: str) -> None:
        """Counts a refusal by its code; the codes are the devices' own words."""
        if len(self._codes) < _MOST_CODES:
            self._codes.add(code)
        self.declines.labels(run, code if code in self._codes else "other").inc()

    def reported(self, run: str, report: RoundReport) -> None:
        """Counts a round."""
        self.rounds.labels(run, report.outcome.value).inc()
        self.committed.labels(run).set(report.version)
        if report.epsilons is not None:
            self.epsilon.labels(run, "released").set(report.epsilons.released)
            self.epsilon.labels(run, "server").set(report.epsilons.server)
