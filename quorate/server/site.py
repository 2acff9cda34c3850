"""A coordinator's folder: who it is, who may operate it, and the authority, if that is its own.

    DIR/coordinator.json   its names, and where an independent authority is
    DIR/coordinator/       its own keys and certificate (`quorate.identity.holder`)
    DIR/operator/          the first operator's: to be moved to the operator's machine
    DIR/authority/         the enrolment authority (`quorate.server.authority`), unless it is independent
    DIR/state/             what it remembers of runs (`quorate.server.store`)

With an independent authority the two certificates are asked for by files (`coordinator.csr`, `operator.csr`) that are
carried to the authority, and its answers are installed: the coordinator never holds a key that can enrol anybody.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from quorate.errors import IdentityRefused
from quorate.files import replace_file
from quorate.identity import Certificate, Holder, Role, Root
from quorate.identity.certificates import UNREADABLE
from quorate.identity.holder import private_folder
from quorate.identity.membership import utc_now
from quorate.identity.remote import RemoteAuthority
from quorate.identity.requests import alternative_names
from quorate.server.authority import Authority

__all__ = ["Site", "authority_of", "read_request_file"]

_SETTINGS, _AUTHORITY = "coordinator.json", "authority"
_HOLDERS = {Role.COORDINATOR: "coordinator", Role.OPERATOR: "operator"}


class Site:
    """A coordinator's folder.

    Args:
        folder: made by `create`.
        clock: gives the time, UTC.

    Raises:
        IdentityRefused: it is none, or can't be used.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], datetime.datetime] = utc_now):
        self.folder, self._clock = folder, clock
        try:
            settings = json.loads((folder / _SETTINGS).read_bytes())
            self.hosts = tuple(map(str, settings["hosts"]))
            self.authority_address: str | None = settings["authority"]
        except OSError as error:
            raise IdentityRefused(
                f"{folder} is no coordinator's folder, `quorate coordinator init` makes one: {error}"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise IdentityRefused(f"{folder / _SETTINGS} is damaged: {error}") from error
        self.holder = Holder(folder / _HOLDERS[Role.COORDINATOR])
        self.root = self.holder.root
        self.authority: Authority | None = None
        if Authority.exists(folder / _AUTHORITY):
            self.authority = Authority(folder / _AUTHORITY, clock=clock)

    @classmethod
    def create(
        cls,
        folder: Path,
        hosts: Sequence[str],
        *,
        name: str,
        root: Root | None = None,
        authority_address: str | None = None,
        clock: Callable[[], datetime.datetime] = utc_now,
    ) -> Site:
        """A new coordinator: with an authority of its own, or with requests for an independent one.

        Args:
            folder: where there is none yet.
            hosts: the names and addresses at which devices and operators reach it.
            name: of its own authority.
            root: of the independent authority; None for one of its own.
            authority_address: where the independent authority listens, `host:port`.
            clock: gives the time, UTC.

        Raises:
            IdentityRefused: there is one already, or a host's name is none.
        """
        if (folder / _SETTINGS).exists() or Authority.exists(folder / _AUTHORITY):
            raise IdentityRefused(f"{folder} holds a coordinator already; it is not overwritten")
        if not hosts:
            raise IdentityRefused("a coordinator has at least one name or address at which devices reach it")
        if (root is None) != (authority_address is None):
            raise IdentityRefused(
                "an independent authority has a certificate and an address, one of them is missing"
            )
        alternative_names(hosts)
        private_folder(folder)
        if root is None:
            authority = Authority.create(folder / _AUTHORITY, name, clock=clock)
            root = authority.root
            authority.close()
        for place in _HOLDERS.values():
            Holder.create(folder / place, root)
        settings = {"hosts": list(hosts), "authority": authority_address}
        replace_file(folder / _SETTINGS, json.dumps(settings, indent=2).encode() + b"\n")
        site = cls(folder, clock=clock)
        if site.authority is not None:
            site._admit(site.authority)
        else:
            site.write_requests()
        return site

    def close(self) -> None:
        """Closes the authority's records."""
        if self.authority is not None:
            self.authority.close()

    @property
    def state(self) -> Path:
        """Where the runs are kept."""
        return self.folder / "state"

    def now(self) -> datetime.datetime:
        """The time, UTC."""
        return self._clock()

    def certificates(self) -> dict[Role, Certificate | None]:
        """The coordinator's and the first operator's; an operator who has moved away is not listed."""
        return {role: holder.held for role, holder in self._holders().items()}

    def renew(self, *, only_due: bool = False) -> list[Role]:
        """Fresh certificates in the place of those that are held; an independent authority is asked over the network.

        Args:
            only_due: only those that are past two thirds of their life.

        Raises:
            IdentityRefused: the authority has revoked one of them.
            Unreachable: an independent authority did not answer.
        """
        renewed = []
        for role, holder in self._holders().items():
            if holder.held is None or (only_due and not holder.held.renewal_due(self._clock())):
                continue
            if self.authority is not None:
                certificate = self.authority.renew(holder.request(self._hosts(role)))
                holder.install(certificate.der, self._clock(), role)
            else:
                assert self.authority_address is not None, "a site has an authority, or says where it is"
                remote = RemoteAuthority(self.authority_address, self.root)
                remote.renew(holder, self._clock(), role, self._hosts(role))
            renewed.append(role)
        return renewed

    def write_requests(self) -> list[Path]:
        """Writes the requests that are to be carried to the independent authority."""
        written = []
        for role, holder in self._holders().items():
            path = self.folder / f"{_HOLDERS[role]}.csr"
            request = x509.load_der_x509_csr(holder.request(self._hosts(role)))
            replace_file(path, request.public_bytes(Encoding.PEM))
            written.append(path)
        return written

    def install(self, certificate: bytes) -> Certificate:
        """Takes a certificate that an independent authority made from one of the requests.

        Raises:
            IdentityRefused: it is for nobody here.
        """
        role = Certificate.read(certificate).role
        holder = self._holders().get(role)
        if holder is None:
            raise IdentityRefused(f"a certificate as {role} is for nobody here")
        return holder.install(certificate, self._clock(), role)

    def _admit(self, authority: Authority) -> None:
        for role, holder in self._holders().items():
            hosts = self._hosts(role)
            certificate = authority.admit(holder.request(hosts), role, hosts, note=_HOLDERS[role])
            holder.install(certificate.der, self._clock(), role)

    def _holders(self) -> dict[Role, Holder]:
        folders = {role: self.folder / place for role, place in _HOLDERS.items()}
        return {
            role: self.holder if role is Role.COORDINATOR else Holder(folder)
            for role, folder in folders.items()
            if Holder.exists(folder)
        }

    def _hosts(self, role: Role) -> tuple[str, ...]:
        return self.hosts if role.serves else ()


def authority_of(folder: Path) -> Authority:
    """The authority in a coordinator's folder, or in a folder of its own.

    Raises:
        IdentityRefused: there is none.
    """
    for found in (folder / _AUTHORITY, folder):
        if Authority.exists(found):
            return Authority(found)
    if (folder / _SETTINGS).exists():
        raise IdentityRefused(
            f"the authority of {folder} is independent: this is done where it is, with `quorate authority`"
        )
    raise IdentityRefused(f"{folder} holds no authority; `quorate coordinator init` makes one")


def read_request_file(path: Path) -> bytes:
    """A request from a file, PEM or DER, as DER.

    Raises:
        IdentityRefused: it can't be read.
    """
    try:
        data = path.read_bytes()
        parsed = x509.load_pem_x509_csr(data) if data.startswith(b"-----") else x509.load_der_x509_csr(data)
    except (OSError, *UNREADABLE) as error:
        raise IdentityRefused(f"the request {path} can't be read: {error}") from error
    return parsed.public_bytes(Encoding.DER)
