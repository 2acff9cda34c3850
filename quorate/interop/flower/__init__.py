"""Flower, in both directions: its clients here, its fleets under our rounds, its strategies beside ours.

Flower reports its use to its makers and looks for updates unless it is told not to; here, and in every process that is
started from here, it is told not to, before it is imported. Whoever wants either sets the variable.
"""

from __future__ import annotations

import os

from quorate.errors import MissingExtra

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

try:
    import flwr  # noqa: F401
except ImportError as error:
    raise MissingExtra("flower", "working with Flower") from error
