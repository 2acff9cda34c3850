"""The signed metadata of a registry, after The Update Framework specification (sections 2.1 and 4).

Two keys are *offline*: `root` says which keys count, `targets` delegates every path to hash bins (TAP 15,
succinct roles). Neither is needed again until a key changes, so both may be moved to another place. Three are
*online*: `releases` signs the bins, `snapshot` says which bins belong together, `timestamp` says that this is
still the newest state. They expire, the sooner the more is at stake, and `refresh` signs anew what is past half
of its life.

A change is all or nothing: bins and snapshot are new files (consistent snapshots, section 6.2), and the
rename of `timestamp.json` over its predecessor is the one moment in which all of it becomes visible.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # type: ignore[attr-defined]
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)

from quorate.errors import RegistryError
from quorate.files import replace_file, write_file

_Role = TypeVar("_Role", Root, Timestamp, Snapshot, Targets)

__all__ = ["Expiry", "SignedState", "SignedTargets"]

OFFLINE, ONLINE = ("root", "targets"), ("releases", "snapshot", "timestamp")

_BIN_BITS = 8
"""256 bins. A change needs the offline key, so it is chosen for registries of thousands of versions."""


@dataclass(frozen=True)
class Expiry:
    """How long each role's metadata is good for once it is signed.

    Args:
        root: the keys. Only the offline key can sign them anew.
        targets: the delegation to the bins; offline too.
        bins: which files there are, and which version an alias names.
        snapshot: which bins belong together.
        timestamp: that this is the newest state: the longest that a client can be held back by a replay.
    """

    root: timedelta = timedelta(days=5 * 365)
    targets: timedelta = timedelta(days=5 * 365)
    bins: timedelta = timedelta(days=90)
    snapshot: timedelta = timedelta(days=30)
    timestamp: timedelta = timedelta(days=7)


@dataclass(frozen=True)
class SignedState:
    """One consistent state of the metadata.

    Args:
        timestamp: the newest state's name.
        snapshot: the versions of the bins in it.
        targets: the delegation.
        bins: by role name.
        files: every signed target of all bins, by path.
    """

    timestamp: Metadata[Timestamp]
    snapshot: Metadata[Snapshot]
    targets: Metadata[Targets]
    bins: Mapping[str, Metadata[Targets]]
    files: Mapping[str, TargetFile]


class SignedTargets:
    """The metadata folder of a registry, for its owner. Whoever writes must hold the registry's lock.

    Args:
        folder: the metadata, which everybody may read.
        keys: the folder of private keys.
        expiry: for what is signed from here on.

    Raises:
        RegistryError: the metadata can't be read.
    """

    def __init__(self, folder: Path, keys: Path, expiry: Expiry | None = None):
        self._folder, self._keys = folder, keys
        self._expiry = expiry or Expiry()
        self.root: Root = _read_root(folder)
        self._state = self._read(None)

    @classmethod
    def create(cls, folder: Path, keys: Path, expiry: Expiry) -> SignedTargets:
        """Make keys and the first, empty state. Both folders must exist and be empty. Nothing is flushed."""
        signers = {}
        for role in OFFLINE + ONLINE:
            signers[role] = CryptoSigner(Ed25519PrivateKey.generate())
            write_file(keys / f"{role}.pem", signers[role].private_bytes, mode=0o600, flush=False)
        root = Root(expires=_after(expiry.root), consistent_snapshot=True)
        for role in ("root", "timestamp", "snapshot", "targets"):
            root.add_key(signers[role].public_key, role)
        releases = signers["releases"].public_key
        bins = SuccinctRoles([releases.keyid], 1, _BIN_BITS, "releases")
        delegations = Delegations({releases.keyid: releases}, succinct_roles=bins)
        targets = Targets(expires=_after(expiry.targets), delegations=delegations)
        snapshot = Snapshot(expires=_after(expiry.snapshot))
        for name in bins.get_roles():
            snapshot.meta[f"{name}.json"] = MetaFile(1)
            _write(folder / f"1.{name}.json", Targets(expires=_after(expiry.bins)), signers["releases"])
        _write(folder / "1.root.json", root, signers["root"])
        _write(folder / "1.targets.json", targets, signers["targets"])
        written = _write(folder / "1.snapshot.json", snapshot, signers["snapshot"])
        timestamp = Timestamp(
            expires=_after(expiry.timestamp), snapshot_meta=MetaFile.from_data(1, written, ["sha256"])
        )
        _write(folder / "timestamp.json", timestamp, signers["timestamp"])
        return cls(folder, keys, expiry)

    @property
    def state(self) -> SignedState:
        """The newest state, read again when another process has changed it.

        Raises:
            RegistryError: the metadata can't be read.
        """
        self._state = self._read(self._state)
        return self._state

    def commit(self, changes: Mapping[str, TargetFile]) -> None:
        """Sign targets and make them visible, all in one state.

        Args:
            changes: new or changed targets by path.

        Raises:
            RegistryError: an online key is not here.
        """
        state = self.state
        changed: dict[str, dict[str, TargetFile]] = {}
        for path, target in changes.items():
            changed.setdefault(_bins_of(state.targets).get_role_for_target(path), {})[path] = target
        self._issue(state, changed, new_snapshot=True)

    def refresh(self) -> tuple[str, ...]:
        """Sign anew every online role that is past half of its life; the names of those that were.

        Raises:
            RegistryError: an online key is not here.
        """
        state, expiry = self.state, self._expiry
        due: dict[str, dict[str, TargetFile]] = {
            name: {} for name, md in state.bins.items() if _is_due(md, expiry.bins)
        }
        new_snapshot = bool(due) or _is_due(state.snapshot, expiry.snapshot)
        if not new_snapshot and not _is_due(state.timestamp, expiry.timestamp):
            return ()
        self._issue(state, due, new_snapshot=new_snapshot)
        return (*due, *(["snapshot"] if new_snapshot else []), "timestamp")

    def verify(self) -> list[str]:
        """Check every signature, digest and date of the newest state, as clients do; gives what is wrong."""
        problems = _verify_roots(self._folder)
        state = self._read(None)
        now, root, delegation = datetime.now(UTC), self.root, state.targets.signed
        roles: list[
            tuple[str, Metadata[Timestamp] | Metadata[Snapshot] | Metadata[Targets], Root | Targets]
        ] = [
            ("timestamp", state.timestamp, root),
            ("snapshot", state.snapshot, root),
            ("targets", state.targets, root),
            *((name, md, delegation) for name, md in state.bins.items()),
        ]
        for role, metadata, delegator in roles:
            try:
                delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
            except (RepositoryError, ValueError) as error:
                problems.append(f"{role}: {error}")
            if metadata.signed.is_expired(now):
                problems.append(
                    f"{role}: expired {metadata.signed.expires:%Y-%m-%d %H:%M} UTC, clients refuse it"
                )
        if root.is_expired(now):
            problems.append(f"root: expired {root.expires:%Y-%m-%d %H:%M} UTC, clients refuse it")
        try:
            snapshot = state.timestamp.signed.snapshot_meta
            data = (self._folder / f"{snapshot.version}.snapshot.json").read_bytes()
            snapshot.verify_length_and_hashes(data)
        except (RepositoryError, OSError) as error:
            problems.append(f"snapshot: {error}")
        return problems

    def _issue(
        self, state: SignedState, bins: Mapping[str, Mapping[str, TargetFile]], *, new_snapshot: bool
    ) -> None:
        """Write the next state: bins with changes, a snapshot of them, and last of all the timestamp."""
        snapshot, timestamp = _copy(state.snapshot), _copy(state.timestamp)
        if new_snapshot:
            releases = self._signer("releases", _bins_of(state.targets))
            signer = self._signer("snapshot", self.root.roles["snapshot"])
            for name, targets in bins.items():
                following = _copy(state.bins[name]).signed
                following.version += 1
                following.expires = _after(self._expiry.bins)
                following.targets.update(targets)
                snapshot.signed.meta[f"{name}.json"] = MetaFile(following.version)
                _replace(self._folder / f"{following.version}.{name}.json", following, releases)
            snapshot.signed.version += 1
            snapshot.signed.expires = _after(self._expiry.snapshot)
            version = snapshot.signed.version
            written = _replace(self._folder / f"{version}.snapshot.json", snapshot.signed, signer)
            timestamp.signed.snapshot_meta = MetaFile.from_data(version, written, ["sha256"])
        timestamp.signed.version += 1
        timestamp.signed.expires = _after(self._expiry.timestamp)
        signer = self._signer("timestamp", self.root.roles["timestamp"])
        _replace(self._folder / "timestamp.json", timestamp.signed, signer)

    def _signer(self, role: str, accepted: Role) -> CryptoSigner:
        path = self._keys / f"{role}.pem"
        try:
            key = load_pem_private_key(path.read_bytes(), None)
        except OSError as error:
            raise RegistryError(
                f"the key that signs {role} can't be read, so nothing can change: {error}"
            ) from error
        except ValueError as error:
            raise RegistryError(f"the key {path} is damaged: {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise RegistryError(f"the key {path} is no Ed25519 key")
        signer = CryptoSigner(key)
        if signer.public_key.keyid not in accepted.keyids:
            raise RegistryError(f"the key {path} is not one that may sign {role} in this registry")
        return signer

    def _read(self, before: SignedState | None) -> SignedState:
        """The newest state; what has not changed since the one before is taken from there."""
        timestamp: Metadata[Timestamp] = _parse(self._folder / "timestamp.json")
        if before is not None and timestamp == before.timestamp:
            return before
        version = timestamp.signed.snapshot_meta.version
        if before is not None and before.snapshot.signed.version == version:
            return SignedState(timestamp, before.snapshot, before.targets, before.bins, before.files)
        snapshot: Metadata[Snapshot] = _parse(self._folder / f"{version}.snapshot.json")
        targets: Metadata[Targets] = _parse(
            self._folder / f"{snapshot.signed.meta['targets.json'].version}.targets.json"
        )
        bins: dict[str, Metadata[Targets]] = {}
        for name in _bins_of(targets).get_roles():
            wanted = snapshot.signed.meta[f"{name}.json"].version
            held = before.bins[name] if before is not None else None
            same = held is not None and held.signed.version == wanted
            bins[name] = held if held is not None and same else _parse(self._folder / f"{wanted}.{name}.json")
        files = {path: target for md in bins.values() for path, target in md.signed.targets.items()}
        return SignedState(timestamp, snapshot, targets, bins, files)


def _read_root(folder: Path) -> Root:
    """The newest root: roots are numbered without gaps."""
    version = 1
    while (folder / f"{version + 1}.root.json").exists():
        version += 1
    metadata: Metadata[Root] = _parse(folder / f"{version}.root.json")
    return metadata.signed


def _verify_roots(folder: Path) -> list[str]:
    """Check that each root is signed by itself and by the one before it (specification, section 5.3.4)."""
    problems, version, before = [], 1, None
    while (path := folder / f"{version}.root.json").exists():
        metadata: Metadata[Root] = _parse(path)
        for delegator in (metadata.signed, before):
            try:
                if delegator is not None:
                    delegator.verify_delegate("root", metadata.signed_bytes, metadata.signatures)
            except (RepositoryError, ValueError) as error:
                problems.append(f"root {version}: {error}")
        version, before = version + 1, metadata.signed
    return problems


def _bins_of(targets: Metadata[Targets]) -> SuccinctRoles:
    delegations = targets.signed.delegations
    if delegations is None or delegations.succinct_roles is None:
        raise RegistryError("the registry's targets metadata delegates to no bins")
    return delegations.succinct_roles


def _parse(path: Path) -> Metadata[_Role]:
    try:
        return Metadata[_Role].from_bytes(path.read_bytes())
    except OSError as error:
        raise RegistryError(f"the registry's metadata can't be read: {error}") from error
    except (RepositoryError, ValueError) as error:
        raise RegistryError(f"the registry's metadata {path} is damaged: {error}") from error


def _signed(payload: _Role, signer: CryptoSigner) -> bytes:
    metadata = Metadata(payload)
    metadata.sign(signer)
    return metadata.to_bytes()


def _write(path: Path, payload: _Role, signer: CryptoSigner) -> bytes:
    data = _signed(payload, signer)
    write_file(path, data, flush=False)
    return data


def _replace(path: Path, payload: _Role, signer: CryptoSigner) -> bytes:
    """What a publication that was cut short has left under a new name is written over."""
    data = _signed(payload, signer)
    replace_file(path, data)
    return data


def _copy(metadata: Metadata[_Role]) -> Metadata[_Role]:
    return Metadata[_Role].from_bytes(metadata.to_bytes())


def _after(life: timedelta) -> datetime:
    return (datetime.now(UTC) + life).replace(microsecond=0)


def _is_due(metadata: Metadata[_Role], life: timedelta) -> bool:
    return metadata.signed.expires - datetime.now(UTC) < life / 2
