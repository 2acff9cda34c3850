"""A copy of the log that outlives its process: what was seen once can't be taken back later.

One entry a line, in order; the hashes are made anew when it is read. A line that was cut off when the machine stopped
is dropped, and fetched again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from quorate.errors import IdentityRefused
from quorate.identity.certificates import Root
from quorate.identity.log import Entry, Head, Log, entry_hash

__all__ = ["KeptLog"]


class KeptLog(Log):
    """A log in a file.

    Args:
        root: of the authority.
        path: of the file; made with the first entry.

    Raises:
        IdentityRefused: the file can't be used, or holds something else.
    """

    def __init__(self, root: Root, path: Path):
        super().__init__(root)
        self._path = path
        try:
            data = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise IdentityRefused(f"the copy of the log can't be read: {error}") from error
        *lines, rest = data.split(b"\n")
        if rest:
            os.truncate(path, len(data) - len(rest))
        try:
            super().follow(self._hashed(lines))
        except IdentityRefused as error:
            raise IdentityRefused(f"{path} is damaged: {error}") from error

    def follow(self, entries: Iterable[Entry], head: Head | None = None) -> list[Entry]:
        """See `Log.follow`; what is taken is on the disk when this returns."""
        taken = super().follow(entries, head)
        if taken:
            with self._path.open("ab") as file:
                file.write(b"".join(entry.content + b"\n" for entry in taken))
                file.flush()
                os.fsync(file.fileno())
        return taken

    def _hashed(self, lines: list[bytes]) -> Iterable[Entry]:
        hash = self.hash
        for index, content in enumerate(lines):
            hash = entry_hash(hash, content)
            yield Entry(index, content, hash)
