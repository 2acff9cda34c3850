"""Parts that a plan names: found by name, made from settings, and written down as settings again.

What is wrong with a name or a setting is said in the plan's words: the key's path, what was found, what is accepted.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import pydantic

from quorate import plugins
from quorate.errors import PlanError, QuorateError
from quorate.sections import close_match, wrong_value

__all__ = ["find_part", "make_part", "written"]

Made = TypeVar("Made")


def find_part(path: str, group: str, name: str) -> Any:
    """The factory that a name in a plan stands for.

    Raises:
        PlanError: see `plugins.find`, in the plan's words.
    """
    try:
        return plugins.find(group, name)
    except PlanError as error:
        problems = [problem.removeprefix(f"{group}: ") for problem in error.problems]
        raise PlanError([f"{path}: {problem}" for problem in problems]) from error


def make_part(path: str, factory: Callable[..., Made], settings: Mapping[str, Any]) -> Made:
    """Calls a part's factory with settings from a plan, and says in the plan's words what was wrong with them.

    A function's arguments are validated here; a class validates its own.
    """
    accepted = inspect.signature(factory).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        problems = [
            f"{path}.{name}: unknown key{close_match(name, list(accepted))}; accepted: {', '.join(accepted) or 'none'}"
            for name in settings
            if name not in accepted
        ]
        problems += [
            f"{path}.{name}: missing"
            for name, p in accepted.items()
            if p.default is p.empty and p.kind is not p.VAR_POSITIONAL and name not in settings
        ]
        if problems:
            raise PlanError(problems)
    try:
        checked = pydantic.validate_call if inspect.isfunction(factory) else _as_it_is
        return checked(factory)(**settings)
    except pydantic.ValidationError as error:
        raise PlanError(
            [f"{path}.{'.'.join(map(str, e['loc']))}: {wrong_value(e)}" for e in error.errors()]
        ) from error
    except PlanError as error:
        raise PlanError(
            [f"{path}.{p}" if p.partition(":")[0] in accepted else f"{path}: {p}" for p in error.problems]
        ) from error
    except (QuorateError, ValueError, TypeError) as error:
        raise PlanError(f"{path}: {error}") from error


def _as_it_is(factory: Callable[..., Made]) -> Callable[..., Made]:
    return factory


def written(path: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they can be written down: NumPy's numbers and arrays become Python's."""
    plain = {
        name: value.tolist() if isinstance(value, np.generic | np.ndarray) else value
        for name, value in settings.items()
    }
    for name, value in plain.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise PlanError(
                f"{path}.{name}: found {value!r}, which can't be written into the terms; "
                "accepted: numbers, strings, and lists of them"
            ) from None
    return plain
