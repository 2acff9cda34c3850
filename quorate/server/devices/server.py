"""The gRPC servers of a coordinator: an event loop in a thread of its own, and what listens in it.

Each address has its services, its credentials, and health checking (`grpc.health.v1`) and reflection beside them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from quorate.errors import MissingExtra, StateError

try:
    import grpc
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection
except ImportError as error:
    raise MissingExtra("server", "running a coordinator for devices") from error

from quorate.wire.streams import CHUNK_BYTES

__all__ = ["Listener", "Servers"]

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_START_S = 30.0
LARGEST_MESSAGE_BYTES = CHUNK_BYTES + 4096
_OPTIONS = (
    ("grpc.max_receive_message_length", LARGEST_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # a second coordinator on the same port is an error
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),  # devices may ping as often
    # What a device may have on its way to us unread: 320 kB/s at a round trip of 100 ms. A window that grows with the
    # connection's speed would be memory that devices decide on.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", CHUNK_BYTES),
)


@dataclass(frozen=True)
class Listener:
    """What listens at one address.

    Args:
        address: `host:port`; an empty host is every interface, port 0 a free one.
        services: handlers by method, by the service's full name.
        credentials: of TLS; None for an insecure connection.
    """

    address: str
    services: Mapping[str, Mapping[str, Any]]
    credentials: grpc.ServerCredentials | None = None


class Servers:
    """A context manager: leaving it stops everything.

    Args:
        listeners: in order; `ports` says where they listen.
    """

    def __init__(self, listeners: Sequence[Listener]):
        self._listeners = listeners
        self._started: list[grpc.aio.Server] = []
        self._health: list[health.aio.HealthServicer] = []
        self.ports: tuple[int, ...] = ()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> Servers:
        """Listens.

        Raises:
            StateError: an address can't be used.
        """
        running = threading.Event()

        def run() -> None:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
            self._loop.call_soon(running.set)
            self._loop.run_forever()
            self._loop.close()

        self._thread = threading.Thread(target=run, name="devices", daemon=True)
        self._thread.start()
        running.wait(_START_S)
        try:
            self.ports = tuple(self.call(self._listen(listener)) for listener in self._listeners)
        except BaseException:
            self.stop(0.0)
            raise
        return self

    def add(self, listener: Listener) -> int:
        """Listens at one more address; returns the port.

        Raises:
            StateError: it can't be used.
        """
        return self.call(self._listen(listener))

    def stop(self, grace_s: float = 0.5) -> None:
        """Takes no new streams, gives those that are open a while, and ends."""
        if self._loop is None or self._thread is None or not self._thread.is_alive():
            return
        self.call(self._stop(grace_s))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_START_S)

    def call(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Runs a coroutine in the servers' event loop, from another thread, and returns what it gives."""
        assert self._loop is not None, "the servers are started"
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def soon(self, call: Callable[..., object], *arguments: object) -> None:
        """Has something done in the servers' event loop, from any thread, while it runs."""
        if self._loop is not None and not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):  # closed in this moment
                self._loop.call_soon_threadsafe(call, *arguments)

    def __enter__(self) -> Servers:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def _listen(self, listener: Listener) -> int:
        server = grpc.aio.server(options=_OPTIONS)
        checks = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        for name, methods in listener.services.items():
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, dict(methods)),))
        names = (*listener.services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        host, _, port = listener.address.rpartition(":")
        address = f"{host or '[::]'}:{port}"
        try:
            if listener.credentials is None:
                bound = server.add_insecure_port(address)
            else:
                bound = server.add_secure_port(address, listener.credentials)
        except (RuntimeError, ValueError) as error:
            raise StateError(f"{address} can't be listened on: {error}") from error
        if bound == 0:
            raise StateError(f"{address} can't be listened on")
        await server.start()
        for name in ("", *names):
            await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._started.append(server)
        self._health.append(checks)
        log.info("listening", extra={"address": f"{host or '[::]'}:{bound}"})
        return bound

    async def _stop(self, grace_s: float) -> None:
        for checks in self._health:
            await checks.enter_graceful_shutdown()
        await asyncio.gather(*(server.stop(grace_s) for server in self._started))
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await asyncio.gather(*rest, return_exceptions=True)
