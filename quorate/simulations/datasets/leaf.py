"""LEAF's JSON files (Caldas et al. 2018, "LEAF: A Benchmark for Federated Settings").

A file is an object with `users`, `num_samples` and `user_data`; a dataset is a folder `train` of such files, and a
folder `test` beside it. `user_data[user]` has `x` and `y`, one entry an example. Features are lists of numbers; text
tasks need their tokens as numbers first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from quorate.clients.adapters.examples import Examples
from quorate.errors import DataError
from quorate.simulations.datasets.federated import ClientData, FederatedDataset

__all__ = ["leaf"]


def leaf(path: str) -> FederatedDataset:
    """A LEAF dataset: its users are the clients; all users' test examples together are the server's test set.

    Args:
        path: the folder with `train` and perhaps `test`, or one folder (or file) of users.

    Raises:
        DataError: there are no such files, or they are not LEAF's.
    """
    root = Path(path)
    train = root / "train" if (root / "train").is_dir() else root
    users = _users(train)
    tested = _users(root / "test") if (root / "test").is_dir() else {}
    xs, ys = [np.concatenate([one[i] for one in users.values()]) for i in (0, 1)]
    ends = np.cumsum([len(y) for _, y in users.values()])
    parts = [np.arange(end - len(y), end) for end, (_, y) in zip(ends, users.values(), strict=True)]
    test = None
    if tested:
        test = Examples(*(np.concatenate([one[i] for one in tested.values()]) for i in (0, 1)))
    return FederatedDataset(f"LEAF's {root.name}", ClientData(Examples(xs, ys), parts), test, tuple(users))


def _users(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    files = [path] if path.is_file() else sorted(path.glob("*.json"))
    if not files:
        raise DataError(f"there are no .json files in {path}")
    users: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for file in files:
        try:
            content = json.loads(file.read_text())
            for user in content["users"]:
                users[str(user)] = _examples(content["user_data"][user])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{file} is not a file of LEAF's: {type(error).__name__}: {error}") from error
    return {user: examples for user, examples in users.items() if len(examples[1])}


def _examples(data: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(data["x"]), np.asarray(data["y"])
    if x.dtype.kind not in "fiub" or y.dtype.kind not in "fiub":
        raise ValueError("features and targets are numbers; words have to be made numbers first")
    return x.reshape(len(y), -1), y
