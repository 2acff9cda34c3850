"""The registry: a folder of immutable, numbered, signed versions, and of aliases that move between them.

    <registry>/root.json                                the trust root to hand out, by another way than this
    folder <registry>/metadata/                                signed metadata, public
    <registry>/targets/models/<model>/<version>/        parameters.safetensors, program.onnx, manifest.json,
    public <registry>/keys/                                    private keys, never served

The signed metadata are authoritative: a folder that they do not name is not a version, it was left by a
publication that was cut short. A publication writes the files, then the metadata, and becomes visible with
its alias in one rename (`server/signing.py`); publications exclude each other with a lock.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import TargetFile  # type: ignore[attr-defined]

from quorate.artifacts.holding import HeldVersion
from quorate.artifacts.manifest import Manifest
from quorate.artifacts.names import (
    MANIFEST,
    PARAMETERS,
    PROGRAM,
    alias_path,
    alias_statement,
    check_name,
    version_path,
    version_paths,
)
from quorate.artifacts.programs import Program
from quorate.artifacts.provenance import Provenance, try_program, version_files
from quorate.artifacts.verification import check_version_files, parameters_to_bytes
from quorate.errors import DataError, QuorateError, RegistryError, VerificationFailed
from quorate.files import exclusive, flush_folder, flush_tree, write_file
from quorate.parameters import Parameters
from quorate.server.signing import Expiry, SignedTargets

__all__ = ["Finding", "Provenance", "Registry", "Version"]


@dataclass(frozen=True)
class Version:
    """A published version.

    Args:
        model: the model's name.
        number: the version's number, from 1.
        manifest: what it says of itself.
        directory: the folder with its files.
    """

    model: str
    number: int
    manifest: Manifest
    directory: Path


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be in a registry.

    Args:
        serious: whether clients are affected: they refuse it, or their protection is weakened.
        where: the file, role, version or alias.
        what: what is wrong, in words.
    """

    serious: bool
    where: str
    what: str


class Registry:
    """A registry on this machine, for its owner.

    Args:
        directory: the registry's folder.
        expiry: how long metadata that is signed from here on is good for.

    Raises:
        RegistryError: there is no registry in the folder, or its metadata can't be read.
    """

    def __init__(self, directory: str | Path, *, expiry: Expiry | None = None):
        self.directory = Path(directory)
        self._keys = self.directory / "keys"
        self._files = self.directory / "targets"
        self._lock = self.directory / "lock"
        if not self.root_path.is_file():
            raise RegistryError(f"{self.directory} holds no registry")
        self._signed = SignedTargets(self.directory / "metadata", self._keys, expiry)

    @classmethod
    def create(
        cls, directory: str | Path, *, expiry: Expiry | None = None, exist_ok: bool = False
    ) -> Registry:
        """Make a registry with new keys, whole or not at all.

        Args:
            directory: must not exist, or be empty.
            expiry: how long signed metadata is good for.
            exist_ok: whether a registry that is there already is opened instead.

        Raises:
            RegistryError: the folder is not empty, or can't be written.
        """
        place = Path(directory)
        if exist_ok and (place / "root.json").is_file():
            return cls(place, expiry=expiry)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{place.name}.", dir=place.parent) as scratch:
                new = Path(scratch) / "registry"
                for name, mode in (("", 0o755), ("metadata", 0o755), ("targets", 0o755), ("keys", 0o700)):
                    (new / name).mkdir(mode)
                SignedTargets.create(new / "metadata", new / "keys", expiry or Expiry())
                shutil.copyfile(new / "metadata" / "1.root.json", new / "root.json")
                flush_tree(new)
                new.rename(place)
                flush_folder(place.parent)
        except OSError as error:
            if exist_ok and (place / "root.json").is_file():
                return cls(place, expiry=expiry)
            raise RegistryError(f"no registry can be made in {place}: {error}") from error
        return cls(place, expiry=expiry)

    @property
    def root_path(self) -> Path:
        """The root metadata that clients are to trust: hand it to them by another way than this registry."""
        return self.directory / "root.json"

    def publish(
        self,
        model: str,
        parameters: Parameters,
        program: Program,
        provenance: Provenance,
        *,
        alias: str | None = None,
    ) -> Version:
        """Publish parameters as the next version of a model, and move an alias to it, all or nothing.

        A round of a run is published once: when it is there already, with these parameters, that version is
        returned and no alias is moved.

        Args:
            model: the model's name; its first version makes it.
            parameters: finite values.
            program: takes these parameters; it is tried before anything is written.
            provenance: where the parameters come from.
            alias: the alias that is to name the new version.

        Raises:
            DataError: a parameter is not finite, the program can't run with them, or the provenance is bad.
            RegistryError: a name is not accepted, the round is published with other parameters, or an online
                key is not here.
            MissingExtra: onnxruntime is not installed.
        """
        check_name("model", model)
        if alias is not None:
            check_name("alias", alias)
        try_program(program, parameters)
        with exclusive(self._lock):
            done = self._published(model, provenance)
            if done is not None:
                digest = hashlib.sha256(parameters_to_bytes(parameters)).hexdigest()
                if done.manifest.parameters.sha256 != digest:
                    raise RegistryError(
                        f"round {provenance.round} of run {provenance.run!r} is already published, as "
                        f"version {done.number} of {model!r}, with other parameters; a version never changes"
                    )
                return done
            number = max(self.versions(model), default=0) + 1
            parent = self._parent(model, provenance)
            manifest, data = version_files(model, number, parent, parameters, program, provenance)
            self._write_version(model, number, data)
            changes = {
                path: TargetFile.from_data(path, data[name])
                for name, path in version_paths(model, number).items()
            }
            lineage = {"model": model, "version": number, "run": manifest.run, "round": manifest.round}
            changes[version_paths(model, number)[MANIFEST]].unrecognized_fields["custom"] = lineage
            if alias is not None:
                changes.update(_statement(model, alias, number))
            self._signed.commit(changes)
        return Version(model, number, manifest, self._folder(model, number))

    def promote(self, model: str, alias: str, version: int) -> int | None:
        """Move an alias to a version, forward or back; the version that it named before.

        Raises:
            RegistryError: there is no such version, or an online key is not here.
        """
        check_name("alias", alias)
        with exclusive(self._lock):
            self._check_exists(model, version)
            before = self.aliases(model).get(alias)
            if before != version:
                self._signed.commit(_statement(model, alias, version))
        return before

    def models(self) -> tuple[str, ...]:
        """The models' names, sorted."""
        return tuple(sorted({model for model, _, _ in self._manifests()}))

    def versions(self, model: str) -> tuple[int, ...]:
        """The numbers of a model's versions, ascending; empty when there is no such model."""
        return tuple(sorted(version for name, version, _ in self._manifests() if name == model))

    def aliases(self, model: str) -> dict[str, int]:
        """The aliases of a model, sorted by name, with the versions that they name."""
        found = {}
        for path, target in self._signed.state.files.items():
            matched = re.fullmatch(r"models/([^/]+)/aliases/([^/]+)\.json", path)
            if matched and matched[1] == model and isinstance(target.custom, dict):
                found[matched[2]] = int(target.custom["version"])
        return dict(sorted(found.items()))

    def manifest(self, model: str, version: int) -> Manifest:
        """The manifest of a version.

        Raises:
            RegistryError: there is no such version.
            VerificationFailed: the file is not what was signed.
        """
        self._check_exists(model, version)
        try:
            return Manifest.from_bytes(self._read(version_paths(model, version)[MANIFEST]))
        except DataError as error:
            raise VerificationFailed(f"version {version} of {model!r}: {error}") from error

    def load(self, model: str, version: int) -> HeldVersion:
        """A version, read and checked against what was signed, ready to predict.

        Raises:
            RegistryError: there is no such version.
            VerificationFailed: a file is not what was signed.
        """
        self._check_exists(model, version)
        data = {name: self._read(path) for name, path in version_paths(model, version).items()}
        manifest, parameters, program = check_version_files(
            model, version, data[MANIFEST], data[PARAMETERS], data[PROGRAM]
        )
        return HeldVersion(model, version, manifest, parameters, program, self._folder(model, version))

    def refresh(self) -> tuple[str, ...]:
        """Sign anew every online role that is past half of its life; the names of those that were.

        Something must call this at least every few days, or clients refuse the registry: an endpoint does.

        Raises:
            RegistryError: an online key is not here.
        """
        with exclusive(self._lock):
            return self._signed.refresh()

    def verify(self) -> list[Finding]:
        """Check every signature, date, digest and file, as clients would, and what only the owner sees."""
        findings: list[Finding] = []
        try:
            findings += [Finding(True, "metadata", what) for what in self._signed.verify()]
            findings += self._verify_contents()
        except RegistryError as error:
            findings.append(Finding(True, "metadata", str(error)))
        if self._keys.is_dir():
            for path in (self._keys, *sorted(self._keys.iterdir())):
                if path.stat().st_mode & 0o077:
                    findings.append(Finding(True, str(path), "others than the owner may read it"))
        return findings

    def _verify_contents(self) -> Iterator[Finding]:
        for model in self.models():
            for version in self.versions(model):
                try:
                    self.load(model, version)
                except QuorateError as error:
                    yield Finding(True, version_path(model, version), str(error))
            for alias, version in self.aliases(model).items():
                if version not in self.versions(model):
                    yield Finding(
                        True, alias_path(model, alias), f"names version {version}, which does not exist"
                    )
        signed = {str(self._files / path) for path in self._signed.state.files}
        for folder, _, names in os.walk(self._files):
            for name in names:
                if os.path.join(folder, name) not in signed:
                    yield Finding(
                        False, os.path.join(folder, name), "is not signed, so that nobody can pull it"
                    )

    def _manifests(self) -> Iterator[tuple[str, int, TargetFile]]:
        """Every published version: model, number, and what is signed of its manifest."""
        for path, target in self._signed.state.files.items():
            matched = re.fullmatch(r"models/([^/]+)/([0-9]+)/manifest\.json", path)
            if matched:
                yield matched[1], int(matched[2]), target

    def _published(self, model: str, provenance: Provenance) -> Version | None:
        """The version that holds this round of this run."""
        for name, number, target in self._manifests():
            custom = target.custom or {}
            if name == model and (custom.get("run"), custom.get("round")) == (
                provenance.run,
                provenance.round,
            ):
                return Version(model, number, self.manifest(model, number), self._folder(model, number))
        return None

    def _parent(self, model: str, provenance: Provenance) -> int | None:
        if provenance.parent is not None:
            self._check_exists(model, provenance.parent)
            return provenance.parent
        same_run = [
            number
            for name, number, target in self._manifests()
            if name == model and (target.custom or {}).get("run") == provenance.run
        ]
        return max(same_run, default=None)

    def _check_exists(self, model: str, version: int) -> None:
        known = self.versions(model)
        if version not in known:
            has = f"has the versions {', '.join(map(str, known))}" if known else "is not there"
            raise RegistryError(f"{self.directory} has no version {version} of {model!r}: the model {has}")

    def _folder(self, model: str, version: int) -> Path:
        return self._files / version_path(model, version)

    def _read(self, path: str) -> bytes:
        """A target file, checked against what was signed."""
        try:
            data = (self._files / path).read_bytes()
            self._signed.state.files[path].verify_length_and_hashes(data)
        except OSError as error:
            raise VerificationFailed(f"a signed file can't be read: {error}") from error
        except RepositoryError as error:
            raise VerificationFailed(f"{self._files / path} is not what was signed: {error}") from error
        return data

    def _write_version(self, model: str, number: int, data: Mapping[str, bytes]) -> None:
        """Put a version's folder in place, whole and on the disk. It is not visible before it is signed."""
        place = self._folder(model, number)
        place.parent.mkdir(parents=True, exist_ok=True)
        for abandoned in place.parent.glob(".incoming-*"):
            shutil.rmtree(abandoned)
        with tempfile.TemporaryDirectory(prefix=".incoming-", dir=place.parent) as scratch:
            incoming = Path(scratch) / "version"
            incoming.mkdir()
            for name, content in data.items():
                write_file(incoming / name, content)
            flush_folder(incoming)
            if place.exists():  # written by a publication that was cut short before it was signed
                place.rename(Path(scratch) / "unsigned")
            incoming.rename(place)
        for folder in (place.parent, place.parent.parent, self._files):
            flush_folder(folder)


def _statement(model: str, alias: str, version: int) -> dict[str, TargetFile]:
    path = alias_path(model, alias)
    target = TargetFile.from_data(path, alias_statement(model, alias, version))
    target.unrecognized_fields["custom"] = {"version": version}
    return {path: target}
