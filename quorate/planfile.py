"""Plans as text: reading TOML and `--set` values, writing TOML, and errors in the plan's own words.

Paths in a plan file are relative to where the command runs, as on any command line.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from quorate.errors import PlanError
from quorate.plan import Plan
from quorate.sections import Section

__all__ = ["format_plan", "format_sections", "make_plan", "read_plan"]


def read_plan(path: str | os.PathLike[str], settings: Iterable[str] = ()) -> Plan:
    """A plan from a TOML file, with some values set from elsewhere.

    Args:
        path: the file.
        settings: `a.b=c` each; `c` is read as a TOML value, and as a string if it is none.

    Raises:
        PlanError: the file can't be read, is not TOML, or is not a plan; one line for each problem.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PlanError("there is no such file", source=str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"the file can't be read: {error}", source=str(path)) from error
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"the file is not TOML: {error}", source=str(path)) from error
    for setting in settings:
        _set(content, setting)
    return make_plan(content, source=str(path))


def make_plan(content: Mapping[str, Any], source: str | None = None) -> Plan:
    """A plan from nested mappings.

    Raises:
        PlanError: one line for each problem: the key's path, what was found, what is accepted.
    """
    try:
        return Plan(**content)
    except PlanError as error:
        raise PlanError(error.problems, source=source) from None


def format_plan(plan: Plan) -> str:
    """The plan as TOML, every default written out; reading it gives the same plan."""
    return format_sections(plan, plan.sections())


def format_sections(whole: Section, names: Collection[str] | None = None) -> str:
    """Sections as TOML, every default written out; what is None is left out.

    Args:
        whole: holds the sections.
        names: of those that are written; None: all.
    """
    lines = []
    chosen = None if names is None else set(names)
    for name, section in whole.model_dump(mode="json", exclude_none=True, include=chosen).items():
        lines.append(f"[{name}]")
        nested = []
        for key, value in section.items():
            if isinstance(value, dict):
                nested.append((key, value))
            else:
                lines.append(f"{key} = {_toml(value)}")
        for key, value in nested:
            lines.append(f"{key} = {_toml(value)}")
        lines.append("")
    return "\n".join(lines)


def _toml(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list() | tuple():
            return "[" + ", ".join(_toml(item) for item in value) + "]"
        case dict():
            return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    return repr(value)


def _set(content: dict[str, Any], setting: str) -> None:
    path, equals, text = setting.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        raise PlanError(f"--set {setting}: accepted: section.key=value, such as rounds.count=10")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    target: Any = content
    for key in keys[:-1]:
        target = target.setdefault(key, {})
        if not isinstance(target, dict):
            raise PlanError(f"--set {setting}: {key!r} is not a section")
    target[keys[-1]] = value
