"""Real devices: the service that they check in at, and the fleet that a run has of them."""

from quorate.server.devices.fleet import DeviceFleet
from quorate.server.devices.local import LocalDoor, check_local
from quorate.server.devices.server import Listener, Servers
from quorate.server.devices.service import SERVICE, DeviceRefused, DeviceService, Door, Limits
from quorate.server.devices.source import Devices, Hosted, devices
from quorate.server.devices.waiting import Demand, Stopped, WaitingRoom

__all__ = [
    "SERVICE",
    "Demand",
    "DeviceFleet",
    "DeviceRefused",
    "DeviceService",
    "Devices",
    "Door",
    "Hosted",
    "Limits",
    "Listener",
    "LocalDoor",
    "Servers",
    "Stopped",
    "WaitingRoom",
    "check_local",
    "devices",
]
