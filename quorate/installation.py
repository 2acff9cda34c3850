"""What is installed here, whether it is what Quorate was made for, and the command that mends it.

What is needed stands in Quorate's own metadata (`pyproject.toml`), so that nothing is listed twice. Of versions and
specifiers (PEP 440) only what those metadata use is understood: numbers between dots, and `==`, `>=`, `<`, `==x.y.*`.
"""

from __future__ import annotations

import platform
import re
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

from quorate.processors import cores

__all__ = ["PORTS", "Extra", "Machine", "Requirement", "base", "extras", "free_port", "machine"]

PORTS = {
    8501: "quorate serve",
    9443: "devices",
    9444: "enrolment",
    9445: "quorate runs",
}
"""The ports that commands listen on if nothing else is said, and whose they are."""

_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*([^;]*)(?:;.*extra == ['\"]([^'\"]+)['\"])?")
_HIDDEN = {"all", "dev"}


@dataclass(frozen=True)
class Requirement:
    """A package that is needed.

    Args:
        name: of the distribution.
        accepted: versions, such as `>=1.26,<3`.
        found: the version that is installed; None: it is not.
    """

    name: str
    accepted: str
    found: str | None

    @property
    def good(self) -> bool:
        """Whether it is there, in a version that is accepted."""
        return self.found is not None and _satisfies(self.found, self.accepted)

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.name} (missing)"
        return f"{self.name} {self.found}" + ("" if self.good else f" (needed: {self.accepted})")


@dataclass(frozen=True)
class Extra:
    """An extra of the `quorate` distribution.

    Args:
        name: as in `pip install 'quorate[name]'`.
        requirements: what it brings.
    """

    name: str
    requirements: tuple[Requirement, ...]

    @property
    def good(self) -> bool:
        """Whether all of it is there."""
        return all(one.good for one in self.requirements)

    @property
    def partly(self) -> bool:
        """Whether some of it is there in a version that is not accepted: then other parts may break."""
        return any(one.found is not None and not one.good for one in self.requirements)

    @property
    def remedy(self) -> str:
        """The command that installs it."""
        return f"pip install 'quorate[{self.name}]'"


@dataclass(frozen=True)
class Machine:
    """What it runs on.

    Args:
        python: its version and where it is.
        system: such as `Linux x86_64`.
        cores: that this process may use.
        memory_gib: of the machine.
        aes: whether the processor has instructions for AES, which masks are made with; None: it can't be told.
    """

    python: str
    system: str
    cores: int
    memory_gib: float
    aes: bool | None


def base() -> tuple[Requirement, ...]:
    """What every installation needs."""
    return tuple(requirement for extra, requirement in _all() if extra is None)


def extras() -> tuple[Extra, ...]:
    """The extras that users install."""
    grouped: dict[str, list[Requirement]] = {}
    for extra, requirement in _all():
        if extra is not None and extra not in _HIDDEN:
            grouped.setdefault(extra, []).append(requirement)
    return tuple(Extra(name, tuple(found)) for name, found in sorted(grouped.items()))


def machine() -> Machine:
    """This one."""
    return Machine(
        python=f"{platform.python_version()} ({sys.executable})",
        system=f"{platform.system()} {platform.machine()}",
        cores=cores(),
        memory_gib=psutil.virtual_memory().total / 2**30,
        aes=_has_aes(),
    )


def free_port(port: int) -> bool:
    """Whether nobody on this machine listens on the port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _all() -> Iterator[tuple[str | None, Requirement]]:
    for line in metadata.requires("quorate") or ():
        matched = _REQUIREMENT.match(line)
        if matched is None:
            continue
        name, accepted, extra = matched.groups()
        try:
            found: str | None = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = None
        yield extra, Requirement(name, accepted.strip(), found)


def _satisfies(found: str, accepted: str) -> bool:
    numbers = _numbers(found)
    for one in filter(None, accepted.split(",")):
        if one.startswith("==") and one.endswith(".*"):
            wanted = _numbers(one[2:-2])
            good = _compared(numbers[: len(wanted)], wanted) == 0
        elif one.startswith("=="):
            good = _compared(numbers, _numbers(one[2:])) == 0
        elif one.startswith(">="):
            good = _compared(numbers, _numbers(one[2:])) >= 0
        else:
            good = _compared(numbers, _numbers(one.removeprefix("<"))) < 0
        if not good:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    """The release's numbers: 2.14.1 of 2.14.1+cpu."""
    matched = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in matched.group().split(".")) if matched else ()


def _compared(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    length = max(len(first), len(second))
    padded = [numbers + (0,) * (length - len(numbers)) for numbers in (first, second)]
    return (padded[0] > padded[1]) - (padded[0] < padded[1])


def _has_aes() -> bool | None:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return None if flags is None else "aes" in flags.group(1).split()
