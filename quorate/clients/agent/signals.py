"""Signals as events: SIGTERM and SIGINT end the agent, SIGUSR1 wakes it.

A thread of its own hears of them over a socket (signal.set_wakeup_fd), so that nothing is called in the middle of
anything.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator

__all__ = ["Heard", "hold", "listening"]

_NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_ENOUGH = bytes(1)  # no signal's number


class Heard:
    """What was heard so far, and whom to tell."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self._woken = threading.Event()
        self._stop: Callable[[], None] = lambda: None
        self._wake: Callable[[], None] = lambda: None

    def tell(self, stop: Callable[[], None], wake: Callable[[], None]) -> None:
        """From now on these are called, in another thread; `stop` at once if it is too late already."""
        self._stop, self._wake = stop, wake
        if self.stopping.is_set():
            stop()

    def wait(self, seconds: float) -> None:
        """Waits, or until a signal comes."""
        self._woken.wait(seconds)
        self._woken.clear()

    def hear(self, number: int) -> None:
        """Takes a signal."""
        if number == signal.SIGUSR1:
            self._wake()
        else:
            self.stopping.set()
            self._stop()
        self._woken.set()


def hold() -> None:
    """Keeps what comes from now on until somebody is `listening`, over an exec too: it would end the process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _NUMBERS)


@contextlib.contextmanager
def listening() -> Iterator[Heard]:
    """Hears signals within; those that come afterwards are kept. For the main thread."""
    heard = Heard()
    told, tells = socket.socketpair()
    tells.setblocking(False)

    def listen() -> None:
        while (said := told.recv(1)) not in (b"", _ENOUGH):
            heard.hear(said[0])

    thread = threading.Thread(target=listen, name="signals", daemon=True)
    before = {number: signal.signal(number, lambda *_: None) for number in _NUMBERS}
    descriptor = signal.set_wakeup_fd(tells.fileno(), warn_on_full_buffer=False)
    thread.start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _NUMBERS)
    try:
        yield heard
    finally:
        hold()
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        tells.setblocking(True)
        tells.send(_ENOUGH)  # a child that was forked meanwhile may hold the other end open
        thread.join()
        tells.close()
        told.close()
