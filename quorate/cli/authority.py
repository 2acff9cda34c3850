"""`quorate authority`, and its commands for a coordinator's own: who may take part."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import click
import typer

__all__ = ["app", "keys", "revoke", "token"]

app = typer.Typer(
    help="Run an enrolment authority that is independent of the coordinator.", no_args_is_help=True
)

Folder = typer.Argument(
    ..., metavar="DIR", help="The coordinator's or the authority's folder.", file_okay=False
)

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _duration(text: str) -> datetime.timedelta:
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if match is None:
        raise typer.BadParameter(
            f"found {text!r}; accepted: a whole number with s, m, h or d, such as 90m or 12h"
        )
    return datetime.timedelta(seconds=int(match[1]) * _UNITS[match[2]])


Valid = typer.Option("1h", parser=_duration, metavar="TIME", help="How long: 90m, 12h, 2d.")


@app.command()
def init(
    folder: Path = typer.Argument(..., metavar="DIR", help="A folder to be made.", file_okay=False),
    host: list[str] = typer.Option(
        ..., "--host", help="A name or address at which devices reach it; more than once for several."
    ),
    name: str = typer.Option("Quorate enrolment", help="What its certificate calls it."),
) -> None:
    """Make an enrolment authority on a machine that the coordinator's operators do not control."""
    from quorate.identity.membership import utc_now
    from quorate.server.authority import Authority
    from quorate.server.devices.authority_server import AuthorityServer

    authority = Authority.create(folder, name)
    AuthorityServer.admit(authority, host, utc_now())
    authority.close()
    typer.echo(
        f"{folder / 'root.pem'} is what coordinators and devices pin: {authority.root.fingerprint.hex()}"
    )


@app.command()
def run(
    folder: Path = Folder,
    listen: str = typer.Option(
        ":9444", metavar="HOST:PORT", help="Where it listens; every interface without a host."
    ),
    coordinator: str = typer.Option(
        ..., metavar="HOST:PORT", help="Where the devices that it enrols check in."
    ),
) -> None:
    """Enrol devices, renew certificates and show the log, until it is stopped."""
    import signal
    import threading

    from quorate.identity.membership import utc_now
    from quorate.logs import configure
    from quorate.server.devices.authority_server import AuthorityServer
    from quorate.server.site import authority_of

    configure("info")
    authority = authority_of(folder)
    server = AuthorityServer(authority, listen, coordinator)
    server.renew_if_due(utc_now())
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stopped.set())
    with server.servers:
        while not stopped.wait(3600):
            server.renew_if_due(utc_now())
    authority.close()


@app.command()
def admit(
    folder: Path = Folder,
    request: Path = typer.Argument(
        ..., help="A request that `quorate coordinator init` wrote.", dir_okay=False
    ),
    role: str = typer.Option(
        ..., click_type=click.Choice(["coordinator", "operator", "authority"]), help="What it is admitted as."
    ),
    host: list[str] = typer.Option(
        [], "--host", help="A name or address of the server, confirmed; once for each that the request has."
    ),
    note: str = typer.Option("", help="For yourself; it is not published."),
) -> None:
    """Certify a coordinator, an operator or a server of the authority, whose request was carried here."""
    from quorate.errors import IdentityRefused
    from quorate.identity import Role, read_request
    from quorate.server.site import authority_of, read_request_file

    der = read_request_file(request)
    asked = read_request(der)
    if set(asked.hosts if Role(role).serves else ()) != set(host):
        raise IdentityRefused(
            f"{request} asks for the names {', '.join(asked.hosts) or 'none'}; confirm each with --host, or refuse it"
        )
    authority = authority_of(folder)
    certificate = authority.admit(der, Role(role), host, note)
    authority.close()
    written = request.with_suffix(".crt")
    written.write_bytes(certificate.pem)
    typer.echo(f"{certificate.name} is admitted as {role}; {written} goes back to it")


@app.command()
def token(
    folder: Path = Folder,
    valid: datetime.timedelta = Valid,
    note: str = typer.Option("", help="For yourself, such as whose device it is; it is not published."),
) -> None:
    """Make a token that enrols one device, once."""
    from quorate.server.site import authority_of

    authority = authority_of(folder)
    made = authority.token(valid, note)
    authority.close()
    typer.echo(made.text)
    typer.echo(
        f"good for one device until {made.expires:%Y-%m-%d %H:%M} UTC; it is not shown again", err=True
    )


@app.command()
def revoke(
    folder: Path = Folder,
    name: str = typer.Argument(..., help="The name of a device, an operator or a coordinator."),
    reason: str = typer.Option(..., help="It is published in the log."),
) -> None:
    """Revoke somebody, for good; a running coordinator ends that party's streams within seconds."""
    from quorate.server.site import authority_of

    authority = authority_of(folder)
    authority.revoke(name, reason)
    authority.close()
    typer.echo(f"{name} is revoked")


@app.command()
def keys(folder: Path = Folder) -> None:
    """Show the authority's root, and everybody whom it has enrolled."""
    from rich.console import Console
    from rich.table import Table

    from quorate.server.site import authority_of

    authority = authority_of(folder)
    parties, tokens, head = authority.parties(), authority.open_tokens(), authority.head()
    authority.close()
    table = Table(box=None, header_style="bold")
    for title in ("name", "role", "enrolled", "until", "note"):
        table.add_column(title, no_wrap=title != "note", overflow="fold")
    for party in parties:
        table.add_row(
            party.name,
            party.role.value,
            party.enrolled[:10],
            party.expires[:10],
            party.note if party.revoked is None else f"revoked: {party.revoked}",
        )
    Console().print(table)
    typer.echo(f"root    {authority.root.fingerprint.hex()} until {authority.root.expires:%Y-%m-%d}")
    typer.echo(f"log     {head.size} entries, {head.hash.hex()}")
    typer.echo(f"tokens  {tokens} can be used now")
