"""A transport over TCP on this machine: length-prefixed messages, one connection a member; and free ports."""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType

from quorate.rounds import Member
from quorate.summation import Lost, Message

LARGEST_MESSAGE = 1 << 24


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def write(connection: socket.socket, data: bytes) -> None:
    """Sends one message."""
    connection.sendall(struct.pack(">I", len(data)) + data)


def read(connection: socket.socket) -> bytes | None:
    """Takes one message; None when the other side is gone, or sends more than is allowed."""
    header = _exactly(connection, 4)
    if header is None:
        return None
    (length,) = struct.unpack(">I", header)
    return None if length > LARGEST_MESSAGE else _exactly(connection, length)


def _exactly(connection: socket.socket, length: int) -> bytes | None:
    received = bytearray()
    while len(received) < length:
        try:
            piece = connection.recv(length - len(received))
        except OSError:
            return None
        if not piece:
            return None
        received += piece
    return bytes(received)


@dataclass(eq=False)
class _Connection:
    """One member's connection: what is sent is queued, so that a slow member holds up nobody."""

    member: Member
    socket: socket.socket
    outbox: queue.SimpleQueue[bytes | None] = field(default_factory=queue.SimpleQueue)

    def close(self) -> None:
        self.outbox.put(None)
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


class SocketTransport:
    """The coordinator's side. A member connects, says its name, and is there until its connection breaks.

    A context manager: leaving it closes every socket and ends every thread.
    """

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._events: queue.SimpleQueue[tuple[_Connection | None, Message | Lost]] = queue.SimpleQueue()
        self._connections: dict[Member, _Connection] = {}
        self._last_used: dict[Member, _Connection | None] = {}
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._run(self._accept)

    @property
    def port(self) -> int:
        """Where members connect."""
        return int(self._listening.getsockname()[1])

    def wait_for(self, members: Iterable[Member], timeout_s: float = 30.0) -> None:
        """Returns once all of these members are connected."""
        wanted = set(members)
        with self._changed:
            if not self._changed.wait_for(lambda: wanted <= set(self._connections), timeout_s):
                raise TimeoutError(f"not connected: {sorted(wanted - set(self._connections))}")

    def wait_without(self, members: Iterable[Member], timeout_s: float = 30.0) -> None:
        """Returns once none of these members is connected."""
        with self._changed:
            if not self._changed.wait_for(lambda: not set(members) & set(self._connections), timeout_s):
                raise TimeoutError("still connected")

    def send(self, member: Member, data: bytes) -> None:
        """Queues a message; a member that is not connected is `Lost`."""
        with self._changed:
            connection = self._connections.get(member)
            self._last_used[member] = connection
        if connection is None:
            self._events.put((None, Lost(member, "not connected")))
        else:
            connection.outbox.put(data)

    def receive(self, timeout_s: float) -> Message | Lost | None:
        """The next event; the loss of a connection is not one if the last message went over another."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                connection, event = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return None
            with self._changed:
                lost_nothing = self._last_used.get(event.member) is not connection
            if not (isinstance(event, Lost) and lost_nothing):
                return event

    def __enter__(self) -> SocketTransport:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        with self._changed:
            connections = list(self._connections.values())
        for connection in connections:
            connection.close()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), f"{thread.name} does not end"

    def _run(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listening.accept()
            except OSError:
                return
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            name = read(accepted)
            if name is None:
                accepted.close()
                continue
            connection = _Connection(name.decode(), accepted)
            with self._changed:
                self._connections[connection.member] = connection
                self._changed.notify_all()
            self._run(self._read, connection)
            self._run(self._write, connection)

    def _read(self, connection: _Connection) -> None:
        while (data := read(connection.socket)) is not None:
            self._events.put((connection, Message(connection.member, data)))
        with self._changed:
            if self._connections.get(connection.member) is connection:
                del self._connections[connection.member]
            self._changed.notify_all()
        connection.close()
        self._events.put((connection, Lost(connection.member)))

    def _write(self, connection: _Connection) -> None:
        while (data := connection.outbox.get()) is not None:
            try:
                write(connection.socket, data)
            except OSError:
                return
