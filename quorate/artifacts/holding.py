"""What a client holds of a model: the active version, the one before it, and a pointer that moves atomically.

    <folder>/metadata/                    what was seen of the signed metadata (against rollback)
    <folder>/models/<model>/<version>/    parameters.safetensors, program.onnx, manifest.json
    <folder>/models/<model>/active.json   {"previous": 4, "version": 5}

A version's folder appears whole (it is renamed into place when it is complete, verified and on the disk), and
the pointer moves after it: a crash leaves the old version active or the new one, both complete.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from quorate.artifacts.manifest import Manifest
from quorate.artifacts.names import check_name
from quorate.artifacts.programs import OnnxRuntime, Program
from quorate.artifacts.verification import read_version
from quorate.errors import DataError, VerificationFailed
from quorate.files import flush_folder, flush_tree, replace_file
from quorate.parameters import Parameters

__all__ = ["HeldVersion", "Holding"]


@dataclass(frozen=True)
class HeldVersion:
    """A verified version on this machine.

    Args:
        model: the model's name.
        version: the version's number.
        manifest: what it says of itself.
        parameters: its parameters, read-only.
        program: its program.
        directory: the folder with its files.
    """

    model: str
    version: int
    manifest: Manifest
    parameters: Parameters
    program: Program
    directory: Path

    @cached_property
    def runtime(self) -> OnnxRuntime:
        """The program with its parameters, made when it is first needed.

        Raises:
            MissingExtra: onnxruntime is not installed.
        """
        return OnnxRuntime(self.program, self.parameters)

    def predict(self, inputs: ArrayLike | Mapping[str, ArrayLike]) -> np.ndarray | dict[str, np.ndarray]:
        """The predictions for a batch.

        Args:
            inputs: by name, or one array when the program has one input. Shapes are the program's, the batch
                first; other dtypes of the same kind are converted (float64 or integers to float32).

        Returns:
            by name, or the one array when the program has one output.

        Raises:
            MissingExtra: onnxruntime is not installed.
            DataError: the inputs are not what the program takes.
        """
        outputs = self.runtime.predict(self._inputs(inputs))
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def _inputs(self, inputs: ArrayLike | Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
        specs = {spec.name: spec for spec in self.program.inputs}
        if not isinstance(inputs, Mapping):
            if len(specs) > 1:
                raise DataError(f"the program has {len(specs)} inputs, name them: {', '.join(specs)}")
            inputs = {next(iter(specs)): inputs}
        converted = {}
        for name, value in inputs.items():
            array = np.asarray(value)
            if name in specs and np.can_cast(array.dtype, specs[name].dtype, "same_kind"):
                array = array.astype(specs[name].dtype, copy=False)
            converted[name] = array
        return converted


class Holding:
    """A client's folder, seen for one model.

    Args:
        folder: the client's folder; made when it is not there.
        model: the model's name.
    """

    def __init__(self, folder: Path, model: str):
        self.model = check_name("model", model)
        self.metadata = folder / "metadata"
        self.lock = folder / "lock"
        self._versions = folder / "models" / model
        self._pointer = self._versions / "active.json"

    def prepare(self) -> None:
        """Make the folders."""
        self.metadata.mkdir(parents=True, exist_ok=True)
        self._versions.mkdir(parents=True, exist_ok=True)

    def directory(self, version: int) -> Path:
        """Where a version's files are, or would be."""
        return self._versions / str(version)

    def active(self) -> HeldVersion | None:
        """The active version, checked anew against its own manifest; None when there is none.

        Raises:
            VerificationFailed: its files are damaged.
        """
        version = self._pointed()
        return None if version is None else self.read(version)

    def read(self, version: int) -> HeldVersion:
        """A held version, checked against its own manifest.

        Raises:
            VerificationFailed: its files are damaged, or not there.
        """
        directory = self.directory(version)
        manifest, parameters, program = read_version(self.model, version, directory)
        return HeldVersion(self.model, version, manifest, parameters, program, directory)

    def add(self, version: int, fill: Callable[[Path], None]) -> HeldVersion:
        """Take a version in, whole or not at all.

        Args:
            version: the version's number.
            fill: writes the three files into the empty folder that it is given; then they are checked.

        Raises:
            VerificationFailed: the files don't belong together; nothing is kept of them.
        """
        for abandoned in self._versions.glob(".incoming-*"):
            shutil.rmtree(abandoned)
        place = self.directory(version)
        with tempfile.TemporaryDirectory(prefix=".incoming-", dir=self._versions) as scratch:
            incoming = Path(scratch) / "version"
            incoming.mkdir()
            fill(incoming)
            read_version(self.model, version, incoming)
            flush_tree(incoming)
            if place.exists():
                place.rename(Path(scratch) / "damaged")
            incoming.rename(place)
            flush_folder(self._versions)
        return self.read(version)

    def activate(self, version: int) -> None:
        """Point at a version that is held, and drop all but it and the one that was active before."""
        before = self._pointed()
        if before == version:
            return
        pointer = {"previous": before, "version": version}
        replace_file(self._pointer, json.dumps(pointer, sort_keys=True).encode())
        for directory in self._versions.iterdir():
            if directory.name.isdecimal() and int(directory.name) not in (version, before):
                shutil.rmtree(directory)

    def _pointed(self) -> int | None:
        """The active version."""
        try:
            version: int = json.loads(self._pointer.read_bytes())["version"]
            return version
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise VerificationFailed(
                f"{self._pointer} is damaged: {error}; remove it and pull again"
            ) from error
