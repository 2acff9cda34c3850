"""How many processor cores there are to work with."""

from __future__ import annotations

import os

__all__ = ["cores"]


def cores() -> int:
    """On how many cores this process may run: fewer than the machine has where its affinity says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
