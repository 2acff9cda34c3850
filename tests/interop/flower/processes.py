"""Flower's own processes for tests: a SuperLink and SuperNodes on this machine, each in a process group of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from tests.sockets import free_port

_BIN = Path(sys.prefix) / "bin"
_ROOT = Path(__file__).parents[3]


class Processes:
    """Started processes. A context manager: leaving it ends every process group, by its id.

    Args:
        directory: for logs, and for Flower's home.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        self._groups: list[subprocess.Popen[bytes]] = []

    def superlink(self, isolation: str = "process", tls: Path | None = None) -> str:
        """Starts a SuperLink and waits until it listens; returns its address.

        Args:
            isolation: `process` leaves its server apps to others.
            tls: where `ca.pem`, `server.pem` and `server.key` are; None: without.
        """
        port = free_port()
        secured = ["--insecure"]
        if tls is not None:
            secured = ["--ssl-ca-certfile", str(tls / "ca.pem"), "--ssl-certfile", str(tls / "server.pem")]
            secured += ["--ssl-keyfile", str(tls / "server.key")]
        process = self.start(
            "flower-superlink",
            *(*secured, "--host", "127.0.0.1", "--port", str(port), "--isolation", isolation),
            "--disable-runtime-dependency-installation",
        )
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return f"127.0.0.1:{port}"
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the SuperLink does not start: {self.log('flower-superlink')}")
            time.sleep(0.1)

    def supernode(self, superlink: str, config: str) -> subprocess.Popen[bytes]:
        """Starts a stock SuperNode.

        Args:
            superlink: its address.
            config: the node's config, as its command line takes it.
        """
        return self.start(
            "flower-supernode",
            *("--insecure", "--superlink", superlink, "--node-config", config),
            *("--host", "127.0.0.1", "--port", str(free_port())),
        )

    def python(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Starts a module."""
        return self.start("python", "-m", module, *arguments)

    def start(self, command: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Starts a command of this environment."""
        environment = {
            **os.environ,
            "FLWR_HOME": str(self._directory / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PATH": f"{_BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": str(_ROOT),
        }
        with (self._directory / f"{command}-{len(self._groups)}.log").open("wb") as log:
            process = subprocess.Popen(
                [_BIN / command, *arguments],
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self._directory,
                start_new_session=True,
            )
        self._groups.append(process)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kills a process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)

    def log(self, command: str) -> str:
        """The last of what a command's processes wrote."""
        return "\n".join(
            path.read_text()[-3000:] for path in sorted(self._directory.glob(f"{command}-*.log"))
        )

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._groups:
            self.kill(process)
