"""How long to wait after a failure: exponential back-off with full jitter.

The wait is uniform in [0, min(cap, base · 2^failures)), so that devices that failed together do not come back together
(Brooker, *Exponential Backoff and Jitter*, AWS Architecture Blog, 2015).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

__all__ = ["Backoff"]


@dataclass
class Backoff:
    """Counts failures in a row.

    Args:
        base_s: the most that is waited after the first failure.
        cap_s: the most that is ever waited.
        failures: in a row.
    """

    base_s: float = 2.0
    cap_s: float = 900.0
    failures: int = 0
    _draws: random.Random = field(default_factory=random.SystemRandom, repr=False)

    def failed(self) -> float:
        """Takes note of a failure; returns how long to wait, in seconds."""
        most = min(self.cap_s, self.base_s * 2.0 ** min(self.failures, 60))
        self.failures += 1
        return self._draws.uniform(0.0, most)

    def worked(self) -> None:
        """The next failure is the first again."""
        self.failures = 0

    def around(self, seconds: float) -> float:
        """Between half of a time and all of it, for waits that many devices share."""
        return self._draws.uniform(seconds / 2, seconds)
