"""Where TensorFlow Federated is: the Python that can import it, and what to do when there is none."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from quorate.errors import QuorateError

__all__ = ["VARIABLE", "MissingEnvironment", "interpreter", "remedy", "requirements"]

VARIABLE = "QUORATE_INTEROP_PYTHON"
"""The environment variable that names the interpreter."""

_FOLDER = ".venv-interop"


class MissingEnvironment(QuorateError):
    """There is no Python here that has TensorFlow Federated. The message holds the commands that make one."""

    exit_code = 2


def interpreter() -> Path:
    """The Python that TensorFlow Federated is imported with.

    It is the one that `QUORATE_INTEROP_PYTHON` names; this one, if TensorFlow Federated is installed here; or that of
    `.venv-interop` in the working directory or above this package.

    Raises:
        MissingEnvironment: there is none.
    """
    named = os.environ.get(VARIABLE)
    if named:
        if not Path(named).is_file():
            raise MissingEnvironment(f"{VARIABLE} names {named}, and there is no such file")
        return Path(named)
    if importlib.util.find_spec("tensorflow_federated") is not None:
        return Path(sys.executable)
    for folder in (Path.cwd(), Path(__file__).parents[3]):
        candidate = folder / _FOLDER / "bin" / "python"
        if candidate.is_file():
            return candidate
    raise MissingEnvironment(f"TensorFlow Federated needs an environment of its own: {remedy()}")


def requirements() -> Path:
    """The pinned list that the environment is installed from."""
    packaged = Path(__file__).parents[1] / "requirements.txt"
    return packaged if packaged.is_file() else Path(__file__).parents[3] / "requirements" / "interop.txt"


def remedy() -> str:
    """The command that makes the environment, on Linux with an x86-64 processor."""
    if not (Path(__file__).parents[1] / "requirements.txt").is_file():
        return "make interop"  # in a checkout
    python = f"{_FOLDER}/bin/python"
    return (
        f"python3.11 -m venv {_FOLDER} && {python} -m pip install --no-deps --require-hashes -r {requirements()} "
        f"&& {python} -m pip install --no-deps quorate"
    )
