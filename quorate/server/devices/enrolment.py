"""The enrolment authority over gRPC (`quorate/wire/device.proto`), and who a certificate says that a device is.

TLS on the server's side only: it listens at an address of its own. Everything that it is told is checked by the
authority (`quorate.server.authority`), whose database is not waited for in the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import grpc

from quorate.errors import IdentityRefused, StateError
from quorate.identity import Certificate, Role, Withdrawal, read_request
from quorate.rounds import Member
from quorate.server.authority import Authority
from quorate.server.devices.service import DeviceRefused
from quorate.server.roll import Roll
from quorate.wire import device_pb2 as pb

__all__ = ["ENROLMENT_SERVICE", "CertifiedDoor", "EnrolmentService"]

log = logging.getLogger(__name__)

Result = TypeVar("Result")

ENROLMENT_SERVICE = "quorate.v1.EnrolmentService"
_PAGE = 1000


class EnrolmentService:
    """Everything but `handlers` happens in the event loop that serves it.

    Args:
        authority: who decides.
        service: where devices check in, `host:port`; an empty host is the one they enrol at.
    """

    def __init__(self, authority: Authority, service: str):
        self._authority, self._service = authority, service

    @property
    def handlers(self) -> Mapping[str, Any]:
        """The gRPC handlers by method."""
        return {
            "Root": _unary(self.root, pb.RootRequest),
            "Enrol": _unary(self.enrol, pb.EnrolRequest),
            "Renew": _unary(self.renew, pb.RenewRequest),
            "Withdraw": _unary(self.withdraw, pb.WithdrawRequest),
            "Log": grpc.unary_stream_rpc_method_handler(
                self.log, pb.LogRequest.FromString, pb.LogReply.SerializeToString
            ),
        }

    async def root(self, _request: pb.RootRequest, _context: Any) -> pb.RootReply:
        """The authority's certificate."""
        return pb.RootReply(root=self._authority.root.der)

    async def enrol(self, request: pb.EnrolRequest, context: Any) -> pb.EnrolReply:
        """A device's first certificate."""
        who = partial(_asks, request.request)
        made = await self._answer(context, self._authority.enrol, request.token, request.request, who=who)
        log.info("a device is enrolled", extra={"device": made.name})
        return pb.EnrolReply(certificate=made.der, service=self._service)

    async def renew(self, request: pb.RenewRequest, context: Any) -> pb.EnrolReply:
        """A fresh certificate."""
        who = partial(_asks, request.request)
        made = await self._answer(context, self._authority.renew, request.request, who=who)
        log.info("a certificate is renewed", extra={"device": made.name})
        return pb.EnrolReply(certificate=made.der, service=self._service)

    async def withdraw(self, request: pb.WithdrawRequest, context: Any) -> pb.WithdrawReply:
        """A device leaves."""
        word = Withdrawal(request.identity, request.signature)
        who = partial(word.verify, self._authority.root.fingerprint)
        await self._answer(context, self._authority.withdraw, word, who=who)
        return pb.WithdrawReply()

    async def log(self, request: pb.LogRequest, context: Any) -> AsyncIterator[pb.LogReply]:
        """The log from an index on, a page in memory at a time, up to the head as it was at the beginning."""
        head = await self._answer(context, self._authority.head)
        start = request.start
        while start < head.size:
            page = await self._answer(context, self._authority.entries, start, min(_PAGE, head.size - start))
            for entry in page:
                yield pb.LogReply(
                    entry=pb.LogEntry(index=entry.index, content=entry.content, hash=entry.hash)
                )
            start += len(page)
        signed = pb.LogHead(size=head.size, hash=head.hash, at=head.at.isoformat(), signature=head.signature)
        yield pb.LogReply(head=signed)

    async def _answer(
        self, context: Any, ask: Callable[..., Result], *arguments: Any, who: Callable[[], Member] = str
    ) -> Result:
        try:
            return await asyncio.to_thread(ask, *arguments)
        except IdentityRefused as refused:
            extra = {"device": await asyncio.to_thread(_proven, who), "reason": str(refused)}
            log.info("an enrolment, a renewal or a withdrawal is refused", extra=extra)
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(refused))
            raise AssertionError("abort raises") from refused
        except StateError as error:  # the disk is full, say: nothing was written, and nothing is given out
            log.error("the authority's records can't be used", extra={"reason": str(error)})
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the authority can't answer now")
            raise AssertionError("abort raises") from error


class CertifiedDoor:
    """A device is who its certificate says it is, as long as the roll has it (a `Door` of the device service).

    Args:
        roll: who is enrolled.
    """

    def __init__(self, roll: Roll):
        self._roll = roll

    def device(self, context: Any, claimed: str) -> Member:
        """The device's name; what it calls itself does not matter."""
        return certified(context, self._roll, Role.DEVICE)

    def named(self, context: Any, claimed: str) -> Member:
        """Whose certificate was shown; TLS has seen that it is the authority's."""
        try:
            return Certificate.read(_shown(context)).name
        except IdentityRefused:
            return ""


def certified(context: Any, roll: Roll, role: Role) -> str:
    """The name of who is at the other end of a connection with mutual TLS.

    Raises:
        DeviceRefused: it showed no certificate, or one that is not acceptable in that role.
    """
    pem = _shown(context)
    if not pem:
        raise DeviceRefused("no certificate was shown")
    try:
        return roll.check(pem, role).name
    except IdentityRefused as refused:
        raise DeviceRefused(str(refused)) from refused


def _shown(context: Any) -> bytes:
    """The certificate of who is at the other end, PEM; empty if there is none."""
    (pem,) = context.auth_context().get("x509_pem_cert", [b""])
    return bytes(pem)


def _asks(request: bytes) -> Member:
    """Who asks for a certificate, if the request proves it."""
    return read_request(request).name


def _proven(who: Callable[[], Member]) -> Member:
    """Who asked, for the log; empty where that is not proven."""
    try:
        return who()
    except IdentityRefused:
        return ""


def _unary(method: Any, request: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(
        method, request.FromString, lambda reply: reply.SerializeToString()
    )
