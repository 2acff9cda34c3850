"""Rows of values as a table for people, or as JSON for programs."""

from __future__ import annotations

import json
from typing import Any

import typer

__all__ = ["AsJson", "show_rows"]

AsJson = typer.Option(False, "--json", help="Print one JSON object.")


def show_rows(found: list[dict[str, Any]], as_json: bool) -> None:
    """A table, or JSON with the same names."""
    if as_json:
        typer.echo(json.dumps({"rows": found}))
        return
    from rich.console import Console
    from rich.table import Table

    names = list(found[0]) if found else []
    table = Table(
        *(name.replace("_", " ").replace("epsilon", "ε") for name in names), box=None, header_style="bold"
    )
    for row in found:
        table.add_row(*(_cell(row[name]) for name in names))
    Console().print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
