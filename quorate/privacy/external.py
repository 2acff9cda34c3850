"""What mechanisms of other libraries release, as dp-accounting's events, in our ledger.

`dp_accounting.DpEvent` is what TensorFlow Federated's and tensorflow-privacy's queries say of themselves. The ledger
keeps it as canonical JSON, in an `ExternalEvent`; accounting asks `dp_accounting` for its Rényi curve, under the
relation that ours are under (one member's contribution replaced by zero: `REPLACE_SPECIAL`), and takes the exact
Gaussian bound where nothing but Gaussian noise is in it. No amplification by sampling is added to what the event says.

What is left out: events that dp-accounting's Rényi accountant does not support, and events that say themselves how
members were drawn, or how rarely they come: it is our coordinator that draws, and not as those say. What their own
noise generators and floating-point arithmetic leak (Mironov 2012) is not accounted: these events say what the mechanism
is on paper.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from quorate.errors import DataError, MissingExtra
from quorate.privacy.events import ExternalEvent

__all__ = ["external_curve", "gaussian_mean", "is_accounted", "parse", "write"]

_KIND = "type"
_DRAWN = {
    "PoissonSampledDpEvent",
    "SampledWithReplacementDpEvent",
    "SampledWithoutReplacementDpEvent",
    "SingleEpochTreeAggregationDpEvent",
    "TruncatedSubsampledGaussianDpEvent",
}
"""Events that rest on a way to draw members."""


def write(event: Any) -> str:
    """An event of dp-accounting's as canonical JSON; numbers of any library become Python's.

    Args:
        event: a `dp_accounting.DpEvent`.

    Raises:
        DataError: it holds something that is neither a number, text, an event, nor a list of such.
    """
    return json.dumps(_plain(event), sort_keys=True, separators=(",", ":"), allow_nan=False)


def parse(content: str) -> Any:
    """The event that `write` wrote.

    Raises:
        MissingExtra: dp-accounting is not installed.
        DataError: this version of dp-accounting has no such event.
    """
    return _event(json.loads(content))


def is_accounted(event: Any) -> bool:
    """Whether dp-accounting knows a Rényi curve of the event (a `DpEvent`) under our neighbouring relation.

    Not of one that rests on a way to draw members, which nothing here enforces.
    """
    return not _DRAWN & set(_kinds(_plain(event))) and bool(_accountant(np.array([2.0])).supports(event))


def external_curve(event: ExternalEvent, orders: tuple[float, ...]) -> np.ndarray:
    """D_α at the given orders; infinite for an event that dp-accounting has no curve of.

    Raises:
        MissingExtra: dp-accounting is not installed.
    """
    accountant, made = _accountant(np.array(orders)), parse(event.content)
    if not accountant.supports(made):
        return np.full(len(orders), np.inf)
    return np.asarray(accountant.compose(made).rdp, np.float64)


def gaussian_mean(event: ExternalEvent) -> float:
    """μ of N(μ, 1) against N(0, 1), if the event is Gaussian noise only (μ² adds up); infinite otherwise."""
    return math.sqrt(_square(json.loads(event.content)))


def _square(content: Any) -> float:
    match content:
        case {"type": "GaussianDpEvent", "noise_multiplier": multiplier}:
            return float(1 / multiplier**2) if multiplier > 0 else math.inf
        case {"type": "NoOpDpEvent"}:
            return 0.0
        case {"type": "ComposedDpEvent", "events": events}:
            return sum(_square(event) for event in events)
        case {"type": "SelfComposedDpEvent", "event": event, "count": count}:
            return float(_square(event) * count)
    return math.inf


def _accountant(orders: np.ndarray) -> Any:
    try:
        from dp_accounting import NeighboringRelation
        from dp_accounting.rdp import RdpAccountant
    except ImportError as error:
        raise MissingExtra("server", "privacy accounting") from error
    return RdpAccountant(orders, NeighboringRelation.REPLACE_SPECIAL)


def _plain(value: Any) -> Any:
    kind = getattr(type(value), "__attrs_attrs__", None)
    if kind is not None:
        fields = {field.name: _plain(getattr(value, field.name)) for field in kind}
        return {_KIND: type(value).__name__, **fields}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    array = np.asarray(value)
    if array.dtype.kind in "fiub":
        return array.item() if array.ndim == 0 else array.tolist()
    raise DataError(f"an event can't hold {value!r}")


def _kinds(content: Any) -> Iterator[str]:
    """The events in an event, and its own."""
    if isinstance(content, list):
        for item in content:
            yield from _kinds(item)
    elif isinstance(content, dict):
        yield str(content.get(_KIND))
        yield from _kinds(list(content.values()))


def _event(content: Any) -> Any:
    if isinstance(content, list):
        return [_event(item) for item in content]
    if not isinstance(content, dict):
        return content
    try:
        from dp_accounting import dp_event
    except ImportError as error:
        raise MissingExtra("server", "privacy accounting") from error
    fields = {name: _event(value) for name, value in content.items() if name != _KIND}
    name = str(content.get(_KIND))
    kind = getattr(dp_event, name, None)
    if not (isinstance(kind, type) and issubclass(kind, dp_event.DpEvent)):
        raise DataError(f"dp-accounting has no event {name!r}")
    try:
        return kind(**fields)
    except TypeError as error:
        raise DataError(f"dp-accounting's event {name!r} can't be read: {error}") from error
