"""An authority that is reached over the network: what devices, and coordinators without one of their own, ask of it.

TLS with the pinned root from the first byte that matters: who has only a token asks an unknown server for the root
first, and goes on if it is the root whose fingerprint the token holds. Requests prove themselves, so that there is no
certificate on this side.
"""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from quorate.errors import IdentityRefused, Unreachable
from quorate.identity.certificates import Certificate, Role, Root
from quorate.identity.holder import Holder
from quorate.identity.log import Entry, Head, Log
from quorate.identity.tokens import Token
from quorate.wire import device_pb2 as pb
from quorate.wire.device_pb2_grpc import EnrolmentServiceStub

__all__ = ["RemoteAuthority"]

_TIMEOUT_S = 30.0


class RemoteAuthority:
    """Every call opens a connection of its own: they are days apart.

    Args:
        address: `host:port`.
        root: pinned.
        timeout_s: of a call.
    """

    def __init__(self, address: str, root: Root, timeout_s: float = _TIMEOUT_S):
        self.address, self.root, self._timeout_s = address, root, timeout_s

    @classmethod
    def of_token(cls, address: str, token: Token, timeout_s: float = _TIMEOUT_S) -> RemoteAuthority:
        """The authority that made a token. The token itself is not shown to it yet.

        Raises:
            IdentityRefused: who answers is another.
            Unreachable: nobody answers.
        """
        host, _, port = address.rpartition(":")
        try:
            leaf = ssl.get_server_certificate((host.strip("[]"), int(port)), timeout=timeout_s)
        except (OSError, ValueError) as error:
            raise Unreachable(f"{address} can't be reached: {error}") from error
        with _service(address, leaf.encode(), timeout_s) as call:
            root = Root(call("Root", pb.RootRequest()).root)
        if root.fingerprint != token.fingerprint:
            raise IdentityRefused(
                f"{address} belongs to another authority than the one that made the token; nothing was sent to it"
            )
        return cls(address, root, timeout_s)

    def enrol(self, holder: Holder, token: Token, at: datetime.datetime) -> str:
        """Enrols a device: it holds its certificate afterwards.

        Args:
            holder: with this authority pinned.
            token: unused, or used by this holder.
            at: now.

        Returns:
            Where the device checks in, `host:port`; an empty host is the authority's own.

        Raises:
            IdentityRefused: the authority refuses, or what it sends is not acceptable.
            Unreachable: it did not answer; asking again with the same token and keys is right, whether the enrolment
                came to pass or not.
        """
        with self._calls() as call:
            reply = call("Enrol", pb.EnrolRequest(token=str(token), request=holder.request()))
        holder.install(reply.certificate, at)
        return str(reply.service)

    def renew(
        self, holder: Holder, at: datetime.datetime, role: Role = Role.DEVICE, hosts: tuple[str, ...] = ()
    ) -> Certificate:
        """Brings a fresh certificate, for a fresh TLS key; the one that is held may have expired.

        Raises:
            IdentityRefused: the identity is not enrolled, or was revoked.
            Unreachable: the authority did not answer; what is held stays.
        """
        with self._calls() as call:
            reply = call("Renew", pb.RenewRequest(request=holder.request(hosts)))
        return holder.install(reply.certificate, at, role)

    def withdraw(self, holder: Holder) -> None:
        """Leaves for good.

        Raises:
            IdentityRefused: the identity is not enrolled.
            Unreachable: the authority did not answer.
        """
        word = holder.withdrawal()
        with self._calls() as call:
            call("Withdraw", pb.WithdrawRequest(identity=word.identity, signature=word.signature))

    def follow(self, log: Log) -> list[Entry]:
        """Brings a copy of the log up to date; gives what is new.

        Raises:
            IdentityRefused: the log does not continue what is held: it was rewritten or forked. Nothing is taken.
            Unreachable: the authority did not answer.
        """
        return log.follow(*self.news(log.size))

    def news(self, start: int) -> tuple[list[Entry], Head]:
        """The log from an index on, and its head, not verified yet.

        Raises:
            IdentityRefused: what came is not a log.
            Unreachable: the authority did not answer.
        """
        entries: list[Entry] = []
        with self._calls() as call:
            for reply in call("Log", pb.LogRequest(start=start)):
                if reply.WhichOneof("content") == "entry":
                    entries.append(Entry(reply.entry.index, reply.entry.content, reply.entry.hash))
                    continue
                try:
                    at = datetime.datetime.fromisoformat(reply.head.at)
                except ValueError as error:
                    raise IdentityRefused(f"the log's head has no time: {error}") from error
                return entries, Head(reply.head.size, reply.head.hash, at, reply.head.signature)
        raise IdentityRefused("the log came without its head")

    @contextmanager
    def _calls(self) -> Iterator[Any]:
        with _service(self.address, self.root.pem, self._timeout_s) as call:
            yield call


@contextmanager
def _service(address: str, root_pem: bytes, timeout_s: float) -> Iterator[Any]:
    """Gives `call(method, request)` over a connection to a server under a root."""
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(root_pem)) as channel:
        stub: Any = EnrolmentServiceStub(channel)

        def call(method: str, request: Any) -> Any:
            return getattr(stub, method)(request, timeout=timeout_s)

        try:
            yield call
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
            if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT):
                raise IdentityRefused(details) from error
            raise Unreachable(f"the authority at {address} did not answer: {details}") from error
