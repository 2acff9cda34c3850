"""Signals of an agent: heard in a thread of their own, and not waited for longer than anybody listens."""

import os
import signal
import socket
import threading

from quorate.clients.agent import signals


def test_signals_are_heard_while_somebody_listens():
    stopped = threading.Event()
    with signals.listening() as heard:
        heard.tell(stopped.set, lambda: None)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopped.wait(10)
        assert heard.stopping.is_set()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])


def test_whoever_holds_the_socket_too_keeps_nobody_listening(monkeypatch):
    """As a child does that was forked meanwhile: the end of the socket is not the end of all its copies."""
    held = []

    def pair():
        told, tells = made()
        held.append(tells.dup())
        return told, tells

    made = socket.socketpair
    monkeypatch.setattr(socket, "socketpair", pair)
    left = threading.Event()

    def watch():
        if not left.wait(20):
            held[0].close()  # what would have ended it before

    threading.Thread(target=watch, daemon=True).start()
    with signals.listening():
        pass
    left.set()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
    assert held[0].fileno() >= 0, "it ended only when the copy was closed"
    held[0].close()
