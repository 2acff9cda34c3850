"""The enrolment authority: who may take part, decided by one-use tokens, and written to the public log first.

It is a folder: the root's key and certificate, and `authority.sqlite` with the tokens' hashes, the parties and the log.
An enrolment or a revocation is one transaction, and what it comes to (a certificate, an answer) is given out after it.
The coordinator has the authority in its own folder, or none: then the authority is somebody else's, on another machine,
as the `malicious` threat model needs it.

It does no networking: `enrol`, `renew`, `withdraw`, `head` and `entries` are what a service offers to everybody,
`token`, `admit` and `revoke` what its operator does.
"""

from __future__ import annotations

import datetime
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quorate.errors import IdentityRefused
from quorate.files import write_file
from quorate.identity import Certificate, Entry, Head, Request, Role, Root, Token, Withdrawal, read_request
from quorate.identity.holder import private_folder
from quorate.identity.log import beginning, enrolled, entry_hash, revoked
from quorate.identity.membership import utc_now
from quorate.identity.requests import alternative_names
from quorate.server.database import connect, reading, writing
from quorate.server.faults import Point, passing
from quorate.server.issuing import Issuer, Validity
from quorate.server.migrating import RECORDS, upgrade
from quorate.server.roll import Roll
from quorate.server.schema import LOG, PARTIES, TOKENS, sa

__all__ = ["Authority", "IssuedToken", "Party"]

LONGEST_REASON = 200
LONGEST_VALIDITY = datetime.timedelta(days=30)

_KEY, _ROOT, _RECORDS = "root-key.pem", "root.pem", "authority.sqlite"


@dataclass(frozen=True)
class IssuedToken:
    """A token, as it is shown once.

    Args:
        text: what the device's owner is given.
        expires: UTC.
    """

    text: str
    expires: datetime.datetime


@dataclass(frozen=True)
class Party:
    """What the authority knows of somebody it enrolled.

    Args:
        name: see `quorate.identity.name_of`.
        role: what its certificates are for.
        note: the operator's own, from the token; it is not in the log.
        enrolled: UTC, ISO 8601.
        expires: of its newest certificate; UTC, ISO 8601.
        revoked: the reason; None if it is not.
    """

    name: str
    role: Role
    note: str
    enrolled: str
    expires: str
    revoked: str | None


class Authority:
    """An authority's folder. Any number of processes may have it open. Thread-safe.

    Args:
        folder: made by `create`.
        clock: gives the time, UTC.
        validity: of what is issued from here on.

    Raises:
        IdentityRefused: there is none in the folder, or it can't be used.
        StateError: its records can't be used, or a newer version of Quorate wrote them.
    """

    def __init__(
        self,
        folder: Path,
        *,
        clock: Callable[[], datetime.datetime] = utc_now,
        validity: Validity | None = None,
    ):
        self.folder, self._clock = folder, clock
        self.root = Root.load(folder / _ROOT)
        try:
            key_pem = (folder / _KEY).read_bytes()
        except OSError as error:
            raise IdentityRefused(f"the authority's key can't be read: {error}") from error
        self._issuer = Issuer.load(key_pem, self.root, validity or Validity())
        self._engine = connect(folder / _RECORDS)
        with passing(Point.MIGRATE):
            upgrade(self._engine, RECORDS)
        self.roll = Roll(self.root, clock)
        self._refreshing = threading.Lock()
        self.refresh()

    @classmethod
    def create(
        cls,
        folder: Path,
        name: str,
        *,
        clock: Callable[[], datetime.datetime] = utc_now,
        validity: Validity | None = None,
    ) -> Authority:
        """A new authority in a folder that has none.

        Raises:
            IdentityRefused: there is one already.
        """
        if (folder / _KEY).exists() or (folder / _ROOT).exists():
            raise IdentityRefused(f"{folder} holds an authority already; it is not overwritten")
        private_folder(folder)
        issuer = Issuer.create(name, clock(), validity or Validity())
        write_file(folder / _KEY, issuer.key_pem, mode=0o600)
        write_file(folder / _ROOT, issuer.root.pem)
        os.close(os.open(folder / _RECORDS, os.O_CREAT | os.O_WRONLY, 0o600))
        return cls(folder, clock=clock, validity=validity)

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a folder holds an authority."""
        return (folder / _KEY).exists()

    def close(self) -> None:
        """Closes the records."""
        self._engine.dispose()

    # --- what everybody may ask for

    def enrol(self, token: str, request: bytes) -> Certificate:
        """A device's first certificate, for a token that nobody else has used.

        Enrolling is done once, however often it is asked for: who used the token and asks again with the same identity
        key, because the reply was lost, gets a certificate as by a renewal.

        Args:
            token: as `IssuedToken.text`.
            request: see `quorate.identity.requests`.

        Raises:
            IdentityRefused: with the reason; the token is as good as before unless it was used.
        """
        wanted, asked, now = Token.parse(token), read_request(request), self._clock()
        if wanted.fingerprint != self.root.fingerprint:
            raise IdentityRefused("the token is another authority's")
        with reading(self._engine) as connection:  # what is refused costs the others no turn to write
            self._usable(connection, wanted, asked.name, now)
        with passing(Point.ENROL), writing(self._engine) as connection:
            token_row = self._usable(connection, wanted, asked.name, now)
            if token_row.used is not None:
                return self._renewed(connection, asked, now)
            connection.execute(
                TOKENS.update()
                .where(TOKENS.c.digest == wanted.digest)
                .values(used=_text(now), party=asked.name)
            )
            certificate = self._add(connection, asked, Role.DEVICE, (), str(token_row.note), now)
        self.refresh()
        return certificate

    def renew(self, request: bytes) -> Certificate:
        """A fresh certificate for somebody who is enrolled, in the same role and with the same names.

        The request proves the identity, so neither a token nor a valid certificate is asked for. A reply that was lost
        is got by asking again.

        Raises:
            IdentityRefused: the identity is not enrolled, or revoked.
        """
        asked, now = read_request(request), self._clock()
        with reading(self._engine) as connection:
            self._enrolled(connection, asked.name)
        with passing(Point.RENEW), writing(self._engine) as connection:
            return self._renewed(connection, asked, now)

    def withdraw(self, withdrawal: Withdrawal) -> None:
        """Somebody leaves for good: the same as being revoked.

        Raises:
            IdentityRefused: it is not that party's own word, or the party is not enrolled.
        """
        self.revoke(withdrawal.verify(self.root.fingerprint), "withdrawn")

    def head(self) -> Head:
        """How far the log has come, signed now."""
        with reading(self._engine) as connection:
            size, hash = self._end(connection)
        return self._issuer.head(size, hash, self._clock())

    def entries(self, start: int, most: int = 1000) -> list[Entry]:
        """Entries of the log from an index on, at most so many."""
        query = sa.select(LOG).where(LOG.c.place >= start).order_by(LOG.c.place).limit(most)
        with reading(self._engine) as connection:
            return [Entry(row.place, row.content, row.hash) for row in connection.execute(query)]

    # --- what its operator does

    def token(self, valid: datetime.timedelta, note: str = "") -> IssuedToken:
        """A token for one device. Only its hash is kept.

        Raises:
            IdentityRefused: it would be valid for no time, or for more than 30 days.
        """
        if not datetime.timedelta() < valid <= LONGEST_VALIDITY:
            raise IdentityRefused(f"a token is valid for up to {LONGEST_VALIDITY.days} days, not for {valid}")
        drawn, now = Token.draw(self.root.fingerprint), self._clock()
        expires = now + valid
        with passing(Point.MAKE_TOKEN), writing(self._engine) as connection:
            connection.execute(
                TOKENS.insert().values(
                    digest=drawn.digest, note=note, created=_text(now), expires=_text(expires)
                )
            )
        return IssuedToken(str(drawn), expires)

    def admit(self, request: bytes, role: Role, hosts: Sequence[str] = (), note: str = "") -> Certificate:
        """A first certificate in any role, by the operator's own decision.

        Args:
            request: of the party.
            role: that it gets.
            hosts: a server's names and addresses.
            note: for the operator.

        Raises:
            IdentityRefused: the request does not prove itself, or its identity was enrolled or revoked before.
        """
        asked, now = read_request(request), self._clock()
        if role.serves != bool(hosts):
            raise IdentityRefused(f"a certificate as {role} has {'a' if role.serves else 'no'} host's name")
        alternative_names(hosts)
        with passing(Point.ENROL), writing(self._engine) as connection:
            certificate = self._add(connection, asked, role, hosts, note, now)
        self.refresh()
        return certificate

    def revoke(self, name: str, reason: str) -> None:
        """Revokes a party for good. To revoke it again changes nothing.

        Args:
            name: of the party.
            reason: it is in the public log.

        Raises:
            IdentityRefused: nobody of that name is enrolled, or the reason is too long.
        """
        if not reason or len(reason) > LONGEST_REASON:
            raise IdentityRefused(f"a reason has 1 to {LONGEST_REASON} characters, this one {len(reason)}")
        now = self._clock()
        with reading(self._engine) as connection:
            if self._party(connection, name) is None:
                raise IdentityRefused(
                    f"nobody with the name {name!r} is enrolled; `quorate coordinator keys` lists all"
                )
        with passing(Point.REVOKE), writing(self._engine) as connection:
            row = self._party(connection, name)
            if row is not None and row.revoked is None:
                connection.execute(PARTIES.update().where(PARTIES.c.name == name).values(revoked=reason))
                self._append(connection, revoked(name, reason, now))
        self.refresh()

    def parties(self) -> list[Party]:
        """Everybody it has enrolled, in order."""
        with reading(self._engine) as connection:
            return [
                Party(row.name, Role(row.role), row.note, row.enrolled, row.expires, row.revoked)
                for row in connection.execute(sa.select(PARTIES).order_by(PARTIES.c.place))
            ]

    def open_tokens(self) -> int:
        """How many tokens could be used now."""
        query = sa.select(sa.func.count()).where(
            TOKENS.c.used.is_(None), TOKENS.c.expires > _text(self._clock())
        )
        with reading(self._engine) as connection:
            return connection.scalar(query) or 0

    def refresh(self) -> None:
        """Brings the roll up to date with what other processes have written.

        A running service calls it every second, so that a revocation made elsewhere ends open streams.
        """
        with self._refreshing:
            while entries := self.entries(self.roll.size):
                self.roll.take(entries)

    # --- inside a transaction

    def _usable(self, connection: sa.Connection, token: Token, by: str, now: datetime.datetime) -> Any:
        """The row of a token that a party can use now, or has used."""
        row = connection.execute(sa.select(TOKENS).where(TOKENS.c.digest == token.digest)).first()
        if row is None:
            raise IdentityRefused("the token is not one that this authority has made")
        if row.used is not None and row.party != by:
            raise IdentityRefused("the token was used already: each is good for one device")
        if row.used is None and now >= datetime.datetime.fromisoformat(row.expires):
            raise IdentityRefused(f"the token expired at {row.expires}")
        return row

    def _renewed(self, connection: sa.Connection, asked: Request, now: datetime.datetime) -> Certificate:
        row = self._enrolled(connection, asked.name)
        certificate = self._issuer.issue(asked, Role(row.role), now, tuple(row.hosts.split()))
        connection.execute(
            PARTIES.update().where(PARTIES.c.name == asked.name).values(expires=_text(certificate.expires))
        )
        return certificate

    def _enrolled(self, connection: sa.Connection, name: str) -> Any:
        row = self._party(connection, name)
        if row is None:
            raise IdentityRefused(f"{name} is not enrolled")
        if row.revoked is not None:
            raise IdentityRefused(f"{name} is revoked: {row.revoked}")
        return row

    def _party(self, connection: sa.Connection, name: str) -> Any:
        return connection.execute(sa.select(PARTIES).where(PARTIES.c.name == name)).first()

    def _add(
        self,
        connection: sa.Connection,
        asked: Request,
        role: Role,
        hosts: Sequence[str],
        note: str,
        now: datetime.datetime,
    ) -> Certificate:
        row = self._party(connection, asked.name)
        if row is not None:
            state = (
                "revoked, which is for good"
                if row.revoked is not None
                else "enrolled already: ask for a renewal"
            )
            raise IdentityRefused(f"{asked.name} is {state}")
        certificate = self._issuer.issue(asked, role, now, hosts)
        index = self._append(connection, enrolled(asked.identity, role, now))
        connection.execute(
            PARTIES.insert().values(
                name=asked.name,
                place=index,
                role=role.value,
                hosts=" ".join(hosts),
                note=note,
                enrolled=_text(now),
                expires=_text(certificate.expires),
            )
        )
        return certificate

    def _append(self, connection: sa.Connection, content: bytes) -> int:
        size, hash = self._end(connection)
        connection.execute(LOG.insert().values(place=size, content=content, hash=entry_hash(hash, content)))
        return size

    def _end(self, connection: sa.Connection) -> tuple[int, bytes]:
        row = connection.execute(sa.select(LOG).order_by(LOG.c.place.desc()).limit(1)).first()
        return (0, beginning(self.root)) if row is None else (row.place + 1, row.hash)


def _text(at: datetime.datetime) -> str:
    return at.astimezone(datetime.UTC).isoformat(timespec="milliseconds")
