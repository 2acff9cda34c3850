"""A PostgreSQL server of the tests' own: started when the first test needs it, in a folder that is removed at the end.

It listens on a socket in that folder only. It refuses to run as root, so it runs as `nobody` where the tests are root.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PROGRAMS = ("initdb", "postgres")
_SETTINGS = ("-c", "listen_addresses=", "-c", "max_connections=50", "-c", "fsync=off")
"""The machine does not fail in a test; processes of ours do."""


def _program(name: str) -> str | None:
    """From the path, or where Debian has it."""
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(debian[-1]) if debian else None)


class Server:
    """A running server.

    Args:
        folder: of its socket.
    """

    def __init__(self, folder: Path):
        self._folder, self._made = folder, 0

    def url(self, database: str) -> str:
        """Of a database."""
        return f"postgresql://quorate@/{database}?host={self._folder}"

    def fresh(self) -> str:
        """The URL of a new, empty database."""
        self._made += 1
        name = f"fresh_{self._made}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, statement: str) -> None:
        """As the owner of everything."""
        import psycopg  # not every environment that tests run in has it

        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)


@contextmanager
def server() -> Iterator[Server]:
    """Starts one, and stops it."""
    import psycopg

    programs = {name: _program(name) for name in PROGRAMS}
    if missing := [name for name, path in programs.items() if path is None]:
        pytest.skip(f"PostgreSQL is not installed here: there is no {', '.join(missing)}")
    user = "nobody" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    folder = Path(tempfile.mkdtemp(prefix="quorate-pg-", dir="/tmp"))  # a socket's path is short
    as_user = {"user": user} if os.getuid() == 0 else {}
    try:
        if os.getuid() == 0:
            os.chown(folder, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
        data, log = folder / "data", folder / "log"
        subprocess.run(
            [programs["initdb"], "-D", data, "-U", "quorate", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
            cwd=folder, check=True, capture_output=True, timeout=120, **as_user,
        )  # fmt: skip
        with log.open("wb") as written:
            process = subprocess.Popen(
                [programs["postgres"], "-D", data, "-k", folder, *_SETTINGS],
                cwd=folder, stdout=written, stderr=written, **as_user,
            )  # fmt: skip
        try:
            started = Server(folder)
            deadline = time.monotonic() + 60
            while True:
                try:
                    started.execute("SELECT 1")
                    break
                except psycopg.OperationalError:
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < deadline, log.read_text()
                    time.sleep(0.05)
            yield started
        finally:
            process.send_signal(signal.SIGQUIT)  # at once: SIGTERM would wait for connections that are left
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
