"""What a device has spent, counted by the device itself: an upper bound that needs NumPy only.

The device knows that it took part, so nothing is amplified by sampling, and it trusts nobody's word for the noise: the
event is what the terms that it verified say, with the fewest honest shares of noise that it insisted on. It is the
`server` ε of `quorate.privacy.accounting` for this one device, without SciPy and dp-accounting.

Rényi curves (`quorate.privacy.curves`) are added up and converted. Where a mechanism's sum is proven to be close to a
Gaussian (`quorate.privacy.losses`), the exact Gaussian curve is used if it gives less. Both are proven, so is the
smaller one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from quorate.privacy import losses
from quorate.privacy.accounting import to_epsilon
from quorate.privacy.curves import ORDERS, example_curve, server_curve
from quorate.privacy.dp_sgd import ExampleEvent
from quorate.privacy.events import Event

__all__ = ["device_epsilon", "device_example_epsilon"]


def device_epsilon(participations: Mapping[Event, int], delta: float) -> float:
    """ε at δ of one device's participations, against the server; infinite where a sum had no noise.

    Args:
        participations: events, each with how often the device took part.
        delta: in (0, 1).
    """
    curve = np.zeros(len(ORDERS))
    for event, count in participations.items():
        curve += count * server_curve(event)
    return min(to_epsilon(curve, delta), losses.server_epsilon(participations.items(), delta))


def device_example_epsilon(trainings: Mapping[ExampleEvent | None, int], delta: float) -> float:
    """ε at δ of one device's trainings for one of its examples, against everybody else.

    Sampling amplifies, since it is the device itself that draws the examples, and nobody learns which.

    Args:
        trainings: events, each with how often the device took part; None is a training that protected no example, after
            which ε is infinite.
        delta: in (0, 1).
    """
    counted = {event: count for event, count in trainings.items() if count > 0}
    if None in counted:
        return math.inf
    known = [(event, count) for event, count in counted.items() if event is not None]
    if not known:
        return 0.0
    curve = np.zeros(len(ORDERS))
    for event, count in known:
        curve += count * example_curve(event)
    # Without sampling the exact Gaussian curve needs no SciPy.
    unsampled = all(event.sampling_rate == 1 for event, _ in known)
    return min(to_epsilon(curve, delta), losses.example_epsilon(known, delta) if unsampled else math.inf)
