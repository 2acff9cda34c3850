"""Pace steering: when a device that is sent away should come back.

After Bonawitz et al. 2019, *Towards federated learning at scale*, section 2.3: in a small population devices come
back together, so that enough of them wait at once (and secure aggregation gets its cohort); in a large one they are
spread, so that about as many come as rounds need, and never all at one time. Nothing is kept about a device: only how
many there are, how many a round wants, and how long a round takes.

A device that is not needed now may be needed soon, by a run that is not open yet. So nobody stays away for longer than
the coordinator can afford: all together check in some 20 times a second, and more often where runs of the device's task
want so many that they would wait for more than a minute.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable

from quorate.rounds import Member

__all__ = ["LATEST_IDLE_S", "DistinctDevices", "after_s", "idle_s"]

SOONEST_S, LATEST_S = 5.0, 6 * 3600.0
SOONEST_IDLE_S, LATEST_IDLE_S = 20.0, 3600.0
_CHECK_INS_PER_S, _MOST_CHECK_INS_PER_S = 20.0, 200.0  # of all devices together: 2 % of a core, and 20 %
_FILLED_S = 60.0  # in which as many should have come as a run that opens wants
_SMALL = 2.0  # times as many devices as a round wants: below, they come together
_SURPLUS = 1.5  # times as many come in a round's time as it wants
_TOGETHER = 0.1  # of a round's time, over which even those that come together are spread

_REGISTERS_BITS = 11
_REGISTERS = 1 << _REGISTERS_BITS


def after_s(
    known: float, wanted: int, round_s: float, uniform: Callable[[float, float], float] = random.uniform
) -> float:
    """In how many seconds a device should come back that would wait for a round.

    Args:
        known: how many devices there are, about.
        wanted: how many should wait when a round is drawn.
        round_s: how long a round takes.
        uniform: draws from an interval.
    """
    if known <= _SMALL * wanted:
        return uniform(0.0, _TOGETHER * round_s)
    mean = min(round_s * known / (_SURPLUS * wanted), _affordable_s(known, wanted))
    return min(max(uniform(0.5, 1.5) * mean, SOONEST_S), uniform(0.75, 1.0) * LATEST_S)


def idle_s(
    known: float, expected: int = 0, uniform: Callable[[float, float], float] = random.uniform
) -> float:
    """In how many seconds a device should come back that no run wants at the moment.

    A run that opens then has its devices in about a minute: few devices can afford to ask often, and of many it needs
    a part.

    Args:
        known: how many devices there are, about.
        expected: how many a run of the device's tasks would want, as far as that is known.
        uniform: draws from an interval.
    """
    return uniform(0.5, 1.5) * min(_affordable_s(known, expected), LATEST_IDLE_S)


def _affordable_s(known: float, wanted: int) -> float:
    """How long devices stay away on average that come as often as the coordinator can afford."""
    rate = min(max(wanted / _FILLED_S, _CHECK_INS_PER_S), _MOST_CHECK_INS_PER_S)
    return max(known / rate, SOONEST_IDLE_S)


class DistinctDevices:
    """About how many different devices checked in lately: HyperLogLog (Flajolet et al. 2007, figure 3), 3 % off.

    It takes 4 KiB for any number of devices. Two sketches take turns, so that devices that went away are forgotten
    between one and two periods later.

    Args:
        period_s: at least as long as a device may stay away.
        clock: in seconds.
    """

    def __init__(self, period_s: float = LATEST_S, clock: Callable[[], float] = time.monotonic):
        self._period_s, self._clock = period_s, clock
        self._now, self._before = bytearray(_REGISTERS), bytearray(_REGISTERS)
        self._turns = clock() + period_s

    def add(self, device: Member) -> None:
        """A device checked in."""
        if self._clock() >= self._turns:
            self._now, self._before = bytearray(_REGISTERS), self._now
            self._turns = self._clock() + self._period_s
        word = int.from_bytes(hashlib.blake2b(device.encode(), digest_size=8).digest(), "big")
        register, rest = word % _REGISTERS, word >> _REGISTERS_BITS
        rank = 64 - _REGISTERS_BITS - rest.bit_length() + 1
        self._now[register] = max(self._now[register], rank)

    def count(self) -> float:
        """The estimate."""
        registers = [max(pair) for pair in zip(self._now, self._before, strict=True)]
        empty = registers.count(0)
        if empty > 0.08 * _REGISTERS:  # up to 2.5 devices a register, linear counting is better
            return _REGISTERS * math.log(_REGISTERS / empty)
        alpha = 0.7213 / (1 + 1.079 / _REGISTERS)
        return alpha * _REGISTERS**2 / sum(2.0**-rank for rank in registers)
