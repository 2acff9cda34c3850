"""`quorate models`: look at a registry and check it."""

from __future__ import annotations

from pathlib import Path

import typer

__all__ = ["RegistryDirectory", "app"]

app = typer.Typer(help="Look at a registry of published models.", no_args_is_help=True)

RegistryDirectory = typer.Argument(..., metavar="REGISTRY", help="The registry's directory.", file_okay=False)


@app.command("list")
def list_(registry: Path = RegistryDirectory) -> None:
    """List models, versions and aliases."""
    from rich.console import Console
    from rich.table import Table

    from quorate.server.registry import Registry

    opened = Registry(registry)
    table = Table(
        "model", "version", "aliases", "round", "ε released", "ε server", "ε example", "metrics", "created", box=None,
        header_style="bold",
    )  # fmt: skip
    for model in opened.models():
        aliases = opened.aliases(model)
        for version in opened.versions(model):
            manifest = opened.manifest(model, version)
            marked = " (simulated)" if manifest.privacy.simulated else ""
            table.add_row(
                model,
                str(version),
                ", ".join(alias for alias, named in aliases.items() if named == version),
                str(manifest.round),
                (manifest.privacy.epsilon_released or "not claimed") + marked,
                manifest.privacy.epsilon_server or "not claimed",
                "not claimed"
                if manifest.privacy.examples is None
                else manifest.privacy.examples.epsilon + marked,
                ", ".join(f"{name} {float(value):.4g}" for name, value in manifest.evaluation.items()),
                manifest.created[:10],
            )
    Console().print(table)


@app.command()
def verify(registry: Path = RegistryDirectory) -> None:
    """Check every signature, date, hash and file of a registry."""
    from quorate.errors import VerificationFailed
    from quorate.server.registry import Registry

    opened = Registry(registry)
    findings = opened.verify()
    for finding in findings:
        typer.echo(f"{'BAD ' if finding.serious else 'note'}  {finding.where}: {finding.what}")
    serious = sum(finding.serious for finding in findings)
    if serious:
        raise VerificationFailed(f"{registry}: {serious} serious findings")
    count = sum(len(opened.versions(model)) for model in opened.models())
    typer.echo(f"{registry}: good, {count} versions of {len(opened.models())} models")
