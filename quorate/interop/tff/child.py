"""The child process in which TensorFlow Federated runs: `python -m quorate.interop.tff.child DESCRIPTOR`.

Requests come on standard input and answers go to what was standard output, as frames; whatever prints to standard
output by accident is sent to standard error. The descriptor is a pipe's end that is readable once the parent is gone.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np

from quorate.errors import QuorateError
from quorate.interop.tff import frames

__all__ = ["main"]

Arrays = Mapping[str, np.ndarray]
Answer = tuple[dict[str, Any], dict[str, np.ndarray]]


def main() -> None:
    """Answers until the parent closes its end."""
    threading.Thread(target=_end_with_the_parent, args=(int(sys.argv[1]),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    operations: dict[str, Callable[[dict[str, Any], Arrays], Answer]] = {
        "versions": _versions,
        "attack": _attack,
    }
    while (request := frames.read(sys.stdin.buffer)) is not None:
        header, arrays = request
        called = header.pop("call")
        try:
            if called not in operations:
                from quorate.interop.tff import operations as all_of_them

                operations.update(all_of_them.named())
            answer = operations[called](header, arrays)
        except (
            Exception
        ) as error:  # whatever the user's code raises: the parent has to hear of it, and the child goes on
            known = isinstance(error, QuorateError)
            said = str(error) if known else f"{called!r} failed:\n{traceback.format_exc()}"
            answer = {"refused": said, "kind": type(error).__name__}, {}
        frames.write(answers, *answer)
    os.killpg(0, signal.SIGKILL)  # with what TFF has started


def _versions(header: dict[str, Any], arrays: Arrays) -> Answer:
    names = ("quorate", "tensorflow-federated", "tensorflow")
    return {name: version(name) for name in names}, {}


def _attack(header: dict[str, Any], arrays: Arrays) -> Answer:
    from quorate.interop.tensorflow_privacy.running import attack

    return attack(header, arrays)


def _end_with_the_parent(descriptor: int) -> None:
    os.read(descriptor, 1)  # nothing is ever written: this returns when the parent's end is closed
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
