"""Who is at the other end of a connection without TLS: whoever it says, on one machine."""

from __future__ import annotations

import re
from typing import Any

from quorate.errors import PlanError
from quorate.rounds import Member
from quorate.server.devices.service import DeviceRefused

__all__ = ["LocalDoor", "check_local"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class LocalDoor:
    """Without TLS a device is who it says it is: for trying things out on one machine."""

    def device(self, context: Any, claimed: str) -> Member:
        """What the device calls itself."""
        if not _NAME.fullmatch(claimed):
            raise DeviceRefused(
                "without a certificate a device names itself: 1 to 64 letters, digits, dots, dashes and underscores"
            )
        return claimed

    def named(self, context: Any, claimed: str) -> Member:
        """What the device calls itself, if that is a name."""
        return claimed if _NAME.fullmatch(claimed) else ""


def check_local(address: str) -> None:
    """Refuses to listen without TLS where others could come.

    Raises:
        PlanError: the address is not this machine's own.
    """
    if address.rpartition(":")[0] not in _LOOPBACK:
        raise PlanError(
            f"listen: found {address!r}, but an insecure coordinator takes every device for who it says it is; "
            "accepted without TLS: localhost:PORT"
        )
