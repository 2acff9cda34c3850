"""The mechanisms: each is a frozen section of the plan that makes a round's codecs and its event."""

from __future__ import annotations

from quorate.privacy.mechanisms.base import Mechanism
from quorate.privacy.mechanisms.central_gaussian import CentralGaussian
from quorate.privacy.mechanisms.central_laplace import CentralLaplace
from quorate.privacy.mechanisms.distributed_gaussian import DistributedGaussian
from quorate.privacy.mechanisms.distributed_noise import NoiseShare
from quorate.privacy.mechanisms.distributed_skellam import DistributedSkellam
from quorate.privacy.mechanisms.dp_ftrl import DpFtrl
from quorate.privacy.mechanisms.dp_query import DpQuery
from quorate.privacy.mechanisms.local_gaussian import LocalGaussian
from quorate.privacy.mechanisms.none import NoPrivacy
from quorate.privacy.mechanisms.rounded_noise import Encoding, RoundedNoise

__all__ = [
    "CentralGaussian",
    "CentralLaplace",
    "DistributedGaussian",
    "DistributedSkellam",
    "DpFtrl",
    "DpQuery",
    "Encoding",
    "LocalGaussian",
    "Mechanism",
    "NoPrivacy",
    "NoiseShare",
    "RoundedNoise",
]
