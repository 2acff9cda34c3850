"""`quorate coordinator`: set up a coordinator for real devices."""

from __future__ import annotations

from pathlib import Path

import typer

from quorate.cli import authority, hosting

__all__ = ["app"]

app = typer.Typer(
    help="Set up a coordinator for real devices, and say who may take part.", no_args_is_help=True
)

Folder = typer.Argument(..., metavar="DIR", help="The coordinator's folder.", file_okay=False)

app.command()(hosting.run)
app.command()(authority.token)
app.command()(authority.revoke)
app.command()(authority.keys)


@app.command()
def init(
    folder: Path = typer.Argument(..., metavar="DIR", help="A folder to be made.", file_okay=False),
    host: list[str] = typer.Option(
        ..., "--host", help="A name or address at which devices reach it; more than once for several."
    ),
    name: str = typer.Option("Quorate enrolment", help="What the authority's certificate calls it."),
    root: Path | None = typer.Option(
        None,
        "--authority",
        metavar="FILE",
        help="The certificate of an independent authority.",
        dir_okay=False,
    ),
    authority_address: str | None = typer.Option(
        None, "--authority-at", metavar="HOST:PORT", help="Where the independent authority listens."
    ),
) -> None:
    """Make a coordinator's keys, an operator's, and an enrolment authority unless an independent one is named."""
    from quorate.identity import Root
    from quorate.server.site import Site

    pinned = None if root is None else Root.load(root)
    site = Site.create(folder, host, name=name, root=pinned, authority_address=authority_address)
    site.close()
    typer.echo(f"root      {site.root.fingerprint.hex()}")
    if site.authority is None:
        typer.echo(
            f"requests  {folder / 'coordinator.csr'} and {folder / 'operator.csr'}: carry them to the authority,"
        )
        typer.echo("          `quorate authority admit` there, `quorate coordinator install` here")
    else:
        typer.echo(
            f"operator  {folder / 'operator'}: move it to the machine from which the coordinator is operated"
        )
        typer.echo(f"devices   quorate coordinator token {folder}")


@app.command()
def install(
    folder: Path = Folder,
    certificates: list[Path] = typer.Argument(
        ..., help="What the independent authority made.", dir_okay=False
    ),
) -> None:
    """Take the certificates that an independent authority made from the coordinator's requests."""
    from quorate.errors import IdentityRefused
    from quorate.server.site import Site

    site = Site(folder)
    for path in certificates:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise IdentityRefused(f"the certificate can't be read: {error}") from error
        installed = site.install(data)
        typer.echo(f"{installed.role}  {installed.name}, valid until {installed.expires:%Y-%m-%d}")


@app.command()
def renew(folder: Path = Folder) -> None:
    """Renew the coordinator's and the operator's certificates now.

    A running coordinator does it itself when two thirds of their life are over.
    """
    from quorate.server.site import Site

    site = Site(folder)
    for role in site.renew():
        certificate = site.certificates()[role]
        assert certificate is not None
        typer.echo(f"{role}  {certificate.name}, valid until {certificate.expires:%Y-%m-%d}")
    site.close()
