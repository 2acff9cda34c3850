"""Pull a published version: fetch what is new, verify all of it from a pinned root, activate it atomically.

    model = pull("https://fl.example.org/models", "digits", trust="root.json", follow=True)
    model.predict(images)

What fails to verify is never activated, and what was active stays so. Where the state is kept matters: it
holds what was seen of the signed metadata, without which an old state could be replayed to this client. It is
thus not in a cache folder.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike

from quorate.artifacts.fetching import Source
from quorate.artifacts.holding import HeldVersion, Holding
from quorate.artifacts.manifest import Manifest
from quorate.artifacts.names import check_name, check_version
from quorate.errors import QuorateError, RegistryError, StateError
from quorate.files import exclusive
from quorate.parameters import Parameters

__all__ = ["HeldVersion", "PulledModel", "held", "pull"]

_log = logging.getLogger(__name__)


class PulledModel:
    """A pulled model that predicts, and follows its alias when it was asked to.

    Every call of `predict` uses exactly one version. Whoever needs several attributes of one version takes
    `current` once. Close it when it follows (it is a context manager), or it polls until the process ends.
    """

    def __init__(self, puller: _Puller, current: HeldVersion, interval_s: float | None):
        self._puller = puller
        self._current = current
        self._closed = threading.Event()
        self._failed_polls = 0
        self._last_error: QuorateError | None = None
        self._follower: threading.Thread | None = None
        if interval_s is not None:
            self._follower = threading.Thread(
                target=self._follow, args=(interval_s,), name=f"quorate-follow-{current.model}", daemon=True
            )
            self._follower.start()

    @property
    def current(self) -> HeldVersion:
        """The version in use: frozen, and consistent in itself."""
        return self._current

    @property
    def version(self) -> int:
        """The number of the version in use."""
        return self._current.version

    @property
    def manifest(self) -> Manifest:
        """The manifest of the version in use."""
        return self._current.manifest

    @property
    def parameters(self) -> Parameters:
        """The parameters of the version in use, read-only."""
        return self._current.parameters

    @property
    def directory(self) -> Path:
        """The folder with the files of the version in use."""
        return self._current.directory

    @property
    def failed_polls(self) -> int:
        """How many looks for a new version failed; after each, the held version stayed."""
        return self._failed_polls

    @property
    def last_error(self) -> QuorateError | None:
        """Why the last look failed; None when it did not."""
        return self._last_error

    def predict(self, inputs: ArrayLike | Mapping[str, ArrayLike]) -> np.ndarray | dict[str, np.ndarray]:
        """The predictions for a batch, by the version in use; see `HeldVersion.predict`."""
        return self._current.predict(inputs)

    def poll(self) -> bool:
        """Look for a new version now, and use it from here on; whether there was one.

        Raises:
            VerificationFailed: what was found did not verify; the held version stays in use.
            RegistryError: the registry can't be reached, or no longer has the alias; the held version
                stays in use.
        """
        found = self._puller.newer_than(self._current)
        if found is None:
            return False
        if "runtime" in self._current.__dict__:
            _ = found.runtime  # so that no prediction waits for the new session
        self._current = found
        return True

    def close(self) -> None:
        """Stop following. Predictions go on with the version in use."""
        self._closed.set()
        if self._follower is not None:
            self._follower.join()

    def __enter__(self) -> PulledModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _follow(self, interval_s: float) -> None:
        while not self._closed.wait(interval_s):
            try:
                if self.poll():
                    _log.info("%s: version %d is in use", self._current.model, self.version)
                self._last_error = None
            except QuorateError as error:
                self._last_error, self._failed_polls = error, self._failed_polls + 1
                _log.warning("%s: version %d stays in use: %s", self._current.model, self.version, error)


def pull(
    location: str | Path,
    model: str,
    *,
    alias: str = "stable",
    version: int | None = None,
    trust: str | Path | bytes,
    directory: str | Path | None = None,
    follow: bool = False,
    interval_s: float = 30.0,
    timeout_s: float = 30.0,
) -> PulledModel:
    """Bring a published version here, verified, and make it the active one.

    A version that is held already is not downloaded again. The version that was active before is kept beside
    it.

    Args:
        location: where the registry is: an http or https URL (what an endpoint serves at `/models`), or its
            folder.
        model: the model's name.
        alias: the alias to resolve.
        version: a version to take instead of an alias.
        trust: the root metadata to trust, as a file or as its bytes. It must come another way than the
            registry.
        directory: where to keep versions and what was seen of the metadata; the default is one folder for
            each trust root, under `$XDG_DATA_HOME/quorate/pulled` (`~/.local/share`). One folder holds models
            of one registry.
        follow: whether to look for new versions in the background.
        interval_s: how long to wait between two looks.
        timeout_s: the longest wait for a connection, or between two pieces of an answer.

    Raises:
        VerificationFailed: a signature, a hash, a version or a date did not verify; what was active stays so.
        RegistryError: the registry can't be reached, or has no such model, alias or version.
        StateError: the trust root can't be read, or the folder can't be written.
    """
    check_name("model", model)
    check_name("alias", alias)
    if version is not None:
        check_version(version)
        if follow:
            raise RegistryError("a version does not change, only an alias can be followed")
    try:
        root = trust if isinstance(trust, bytes) else Path(trust).read_bytes()
    except OSError as error:
        raise StateError(f"the trust root can't be read: {error}") from error
    folder = Path(directory) if directory is not None else _default_folder(root)
    puller = _Puller(location, root, Holding(folder, model), alias, version, timeout_s)
    return PulledModel(puller, puller.pull(), interval_s if follow else None)


def held(model: str, *, directory: str | Path) -> HeldVersion | None:
    """The active version in a client's folder, without asking the registry; None when there is none.

    Args:
        model: the model's name.
        directory: the folder that was given to `pull`.

    Raises:
        VerificationFailed: its files are damaged.
    """
    return Holding(Path(directory), model).active()


class _Puller:
    """What a pull and its repetitions have in common."""

    def __init__(
        self,
        location: str | Path,
        root: bytes,
        holding: Holding,
        alias: str,
        version: int | None,
        timeout_s: float,
    ):
        self._location, self._root, self._holding = location, root, holding
        self._alias, self._version, self._timeout_s = alias, version, timeout_s

    def pull(self) -> HeldVersion:
        """Fetch what is not held, verify and activate."""
        found = self.newer_than(None)
        assert found is not None
        return found

    def newer_than(self, current: HeldVersion | None) -> HeldVersion | None:
        """The version to use, activated, unless it is the current one."""
        model = self._holding.model
        try:
            self._holding.prepare()
            with exclusive(self._holding.lock):
                source = Source(self._location, self._root, self._holding.metadata, self._timeout_s)
                version = self._version or source.version_of(model, self._alias)
                if current is not None and current.version == version:
                    return None
                found = self._hold(source, version)
                self._holding.activate(version)
                return found
        except OSError as error:
            raise StateError(f"the folder of pulled models can't be used: {error}") from error

    def _hold(self, source: Source, version: int) -> HeldVersion:
        """The version, downloaded unless each of its files is here as it is signed."""
        targets = source.targets(self._holding.model, version)
        here = self._holding.directory(version)
        if all(source.is_here(target, here / name) for name, target in targets.items()):
            return self._holding.read(version)

        def fill(folder: Path) -> None:
            for name, target in targets.items():
                source.download(target, folder / name)

        return self._holding.add(version, fill)


def _default_folder(root: bytes) -> Path:
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(data) / "quorate" / "pulled" / hashlib.sha256(root).hexdigest()[:16]
