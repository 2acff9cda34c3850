"""`quorate strategies`: what is installed."""

from __future__ import annotations

import typer

__all__ = ["app"]

app = typer.Typer(help="The installed strategies.", no_args_is_help=True)


@app.command("list")
def list_() -> None:
    """List the strategies that a plan can name."""
    import inspect

    from rich.console import Console
    from rich.table import Table

    from quorate import plugins
    from quorate.errors import MissingExtra

    table = Table("name", "aggregation", "settings", "what it is", box=None, header_style="bold")
    for name in plugins.names("quorate.strategies"):
        try:
            factory = plugins.find("quorate.strategies", name)
        except MissingExtra as missing:
            table.add_row(name, "", "", str(missing))
            continue
        made = factory()
        settings = ", ".join(f"{key}={value}" for key, value in (made.settings or {}).items())
        summary = (inspect.getdoc(factory) or "").split("\n")[0]
        kind = made.aggregator.name + ("" if made.aggregator.linear else " (sees single updates)")
        table.add_row(name, kind, settings, summary)
    Console().print(table)
