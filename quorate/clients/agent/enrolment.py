"""Enrolling a device, and leaving for good."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quorate.clients.agent.channels import authority, keys_in, log_in
from quorate.clients.agent.state import AgentState, held, holder
from quorate.errors import IdentityRefused, StateError, Unreachable
from quorate.identity import Holder
from quorate.identity.certificates import Role
from quorate.identity.logfile import KeptLog
from quorate.identity.membership import utc_now
from quorate.identity.remote import RemoteAuthority
from quorate.identity.tokens import Token
from quorate.rounds import Member

__all__ = ["Enrolment", "enrol", "forget"]

_END_S = 30.0


@dataclass(frozen=True)
class Enrolment:
    """What enrolling brought.

    Args:
        device: the device's name.
        until: when its certificate expires.
        service: where it checks in, `host:port`.
        signers: the identity keys of the coordinators in the log, hexadecimal: they sign plans.
    """

    device: Member
    until: datetime.datetime
    service: str
    signers: tuple[str, ...]


def enrol(
    directory: Path, address: str, token: str, clock: Callable[[], datetime.datetime] = utc_now
) -> Enrolment:
    """Enrols the device whose agent has its state in a directory.

    Args:
        directory: made if it is not there.
        address: `host:port` of the enrolment authority.
        token: unused, or used in this directory by an enrolment whose reply was lost.
        clock: gives the time, UTC.

    Raises:
        IdentityRefused: the token is none, or not of this authority; or the authority refuses it.
        Unreachable: nobody answers.
        StateError: the device is enrolled already.
    """
    parsed = Token.parse(token)
    state = AgentState(directory)
    with contextlib.closing(state):
        if state.fact("authority") is not None:
            raise StateError(f"{directory} is enrolled already; `quorate agent forget` first")
        remote = RemoteAuthority.of_token(address, parsed)
        keys = Holder.create(keys_in(directory), remote.root)
        service = remote.enrol(keys, parsed, clock())
        host, _, port = service.rpartition(":")
        service = f"{host or address.rpartition(':')[0]}:{port}"
        log = KeptLog(remote.root, log_in(directory))
        remote.follow(log)
        state.note(authority=address, service=service, device=keys.name)
    signers = (log.identity(name, Role.COORDINATOR) for name in log.names(Role.COORDINATOR))
    return Enrolment(
        keys.name,
        keys.valid(clock()).expires,
        service,
        tuple(key.hex() for key in signers if key is not None),
    )


def forget(directory: Path, *, anyway: bool = False) -> bool:
    """Ends the agent if it runs, tells the authority, and erases keys and memory.

    Args:
        directory: the agent's.
        anyway: whether to erase also if the authority does not answer.

    Returns:
        Whether the authority was told.

    Raises:
        StateError: there is nothing to forget, or the agent does not end.
        Unreachable: the authority does not answer; nothing was erased.
    """
    if not (directory / "agent.sqlite").exists() and not keys_in(directory).exists():
        raise StateError(f"{directory} holds no agent's state")
    _end(directory)
    with held(directory):
        told = False
        if Holder.exists(keys_in(directory)):
            told = _withdraw(directory, anyway)
            Holder(keys_in(directory)).erase()
        for path in directory.iterdir():
            if path.name != "agent.lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (directory / "agent.lock").unlink()
        directory.rmdir()
    return told


def _withdraw(directory: Path, anyway: bool) -> bool:
    with contextlib.closing(AgentState(directory)) as state:
        try:
            authority(state).withdraw(Holder(keys_in(directory)))
        except IdentityRefused:
            return False  # it never enrolled, or was revoked before
        except Unreachable as error:
            if not anyway:
                raise Unreachable(f"{error}; nothing was erased: try again, or give --anyway") from error
            return False
    return True


def _end(directory: Path) -> None:
    running = holder(directory)
    if running is None:
        return
    os.kill(running, signal.SIGTERM)
    deadline = time.monotonic() + _END_S
    while holder(directory) is not None:
        if time.monotonic() > deadline:
            raise StateError(f"the agent with process id {running} does not end; nothing was erased")
        time.sleep(0.1)
