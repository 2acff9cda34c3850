"""Secure aggregation: SecAgg+ without I/O.

`summation` makes the two halves; `docs/secagg.md` describes every byte.
"""

from __future__ import annotations

from quorate.privacy.secagg.client import SecAggClient
from quorate.privacy.secagg.identity import AnyKey, Ed25519Identity, EnrolledKeys, Enrolment, Identity
from quorate.privacy.secagg.masks import Mask, add_masks
from quorate.privacy.secagg.parameters import Neighbourhood, SecAggParameters, ThreatModel
from quorate.privacy.secagg.server import SecAggServer
from quorate.privacy.secagg.summation import SecAggSummation
from quorate.privacy.secagg.unmasking import Unmask

__all__ = [
    "AnyKey",
    "Ed25519Identity",
    "EnrolledKeys",
    "Enrolment",
    "Identity",
    "Mask",
    "Neighbourhood",
    "SecAggClient",
    "SecAggParameters",
    "SecAggServer",
    "SecAggSummation",
    "ThreatModel",
    "Unmask",
    "add_masks",
]
