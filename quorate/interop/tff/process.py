"""The child process that runs TensorFlow Federated, as its parent sees it: a call sends a frame and takes one back.

TFF starts processes of its own (`worker_binary`), and they outlive it. So the child leads a session of its own, which
`close` kills as a whole; and should the parent die without closing, a thread of the child, which waits for the end of a
pipe that only the parent holds open, kills it likewise.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np

from quorate.errors import DataError, PlanError, QuorateError
from quorate.interop.tff import frames
from quorate.interop.tff.environment import interpreter

__all__ = ["Child", "ChildFailed"]

_NONE: Mapping[str, np.ndarray] = {}
_QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONUNBUFFERED": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
}
_SAID_AT_MOST = 4000


class ChildFailed(QuorateError):
    """The process that runs TensorFlow Federated ended, or failed at what it was asked to do."""


class Child:
    """A running child; a context manager. Several threads may call it: calls follow one another.

    Raises:
        MissingEnvironment: no Python here has TensorFlow Federated.
        ChildFailed: it did not start.
    """

    def __init__(self) -> None:
        python = interpreter()
        watched, held = os.pipe()
        self._held, self._lock = held, threading.Lock()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed in `close`)
        self._process = subprocess.Popen(
            [str(python), "-m", "quorate.interop.tff.child", str(watched)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            pass_fds=(watched,),
            start_new_session=True,
            env={**os.environ, **_QUIET},
        )
        os.close(watched)
        self.versions = self.call("versions")[0]

    def call(self, what: str, arrays: Mapping[str, np.ndarray] = _NONE, **header: Any) -> frames.Frame:
        """Asks the child for something.

        Args:
            what: an operation of `child.Operations`.
            arrays: its arrays.
            header: its other arguments, JSON values.

        Raises:
            PlanError: the child refused what it was asked for, or
            DataError: … what it was given.
            ChildFailed: it failed, or is gone.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            try:
                frames.write(self._process.stdin, {"call": what, **header}, arrays)  # type: ignore[arg-type]
                answer = frames.read(self._process.stdout)  # type: ignore[arg-type]
            except (OSError, ValueError) as error:
                raise ChildFailed(
                    f"the TensorFlow Federated process is gone: {error}{self._said()}"
                ) from error
        if answer is None:
            raise ChildFailed(
                f"the TensorFlow Federated process ended while asked for {what!r}{self._said()}"
            )
        refused = answer[0].get("refused")
        if refused is not None:
            kind = {"PlanError": PlanError, "DataError": DataError}.get(answer[0]["kind"], ChildFailed)
            raise kind(refused)
        return answer

    @property
    def group(self) -> int:
        """The process group that the child and all that it starts are in."""
        return self._process.pid

    def close(self) -> None:
        """Kills the child and all that it started; a second time does nothing."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._stderr.close()
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _said(self) -> str:
        """The end of what the child wrote to its standard error."""
        if self._stderr.closed:
            return ""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _SAID_AT_MOST))
        text = self._stderr.read().decode(errors="replace").strip()
        return f"; it said:\n{text}" if text else ""
