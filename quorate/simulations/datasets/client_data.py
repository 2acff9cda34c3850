"""TensorFlow Federated's client data in SQLite, read without TensorFlow.

The file has a table `client_metadata` (client_id, split_name, num_examples) and a table `examples` (split_name,
client_id, serialized_example_proto), as `tff.simulation.datasets.SqlClientData` has it; each example is a serialised
`tf.train.Example`, a map from names to lists of floats, integers or bytes (`tensorflow/core/example/feature.proto`). Of
its wire format (Protocol Buffers, "Encoding") only what those messages use is read here. Features of bytes (text) are
refused. Downloads that end in `.lzma` are to be unpacked first.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quorate.clients.adapters.examples import Examples
from quorate.errors import DataError
from quorate.simulations.datasets.federated import FederatedDataset

__all__ = ["features_of", "tff_sqlite"]

_NEEDED = {
    "client_metadata": {"client_id", "split_name", "num_examples"},
    "examples": {"client_id", "split_name", "serialized_example_proto"},
}
_FEATURES, _ENTRY, _KEY, _VALUE, _LIST_VALUE = 1, 1, 1, 2, 1
_BYTES, _FLOATS, _INTEGERS = 1, 2, 3
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5


def tff_sqlite(
    path: str,
    features: str | Sequence[str],
    target: str,
    train: str | None = "train",
    test: str | None = "test",
    shape: Sequence[int] | None = None,
) -> FederatedDataset:
    """A file of TFF's: its clients, and all clients' examples of the test split as the server's test set.

    Clients' examples are read when they are asked for.

    Args:
        path: the file.
        features: the name of a feature, or of several that are put one behind the other; numbers.
        target: the name of the target; one number an example.
        train: the split that clients train on; None: all examples.
        test: the split that the server evaluates on; None: it has nothing.
        shape: of one example's features, such as (28, 28); None: flat.

    Raises:
        DataError: there is no such file, it is not one of TFF's, or it has no such split or feature.
    """
    names = (features,) if isinstance(features, str) else tuple(features)
    file = _File(str(path), names, target, None if shape is None else tuple(shape))
    counts = file.counts(train)
    if not counts:
        raise DataError(f"{path} has no examples of the split {train!r}; it has {', '.join(file.splits())}")
    clients = _Clients(file, train, tuple(counts), np.array(list(counts.values()), np.int64))
    held_out = None if test is None or not file.counts(test) else file.examples(test, None)
    return FederatedDataset(f"TFF's {Path(path).stem}", clients, held_out, tuple(counts))


@dataclass(frozen=True)
class _File:
    path: str
    features: tuple[str, ...]
    target: str
    shape: tuple[int, ...] | None

    def counts(self, split: str | None) -> dict[str, int]:
        """The clients of a split and how many examples each has, in the order of their names."""
        where, values = ("", ()) if split is None else ("WHERE split_name = ?", (split,))
        query = f"SELECT client_id, SUM(num_examples) FROM client_metadata {where} GROUP BY client_id"
        return {client: count for client, count in sorted(self._rows(query, values)) if count}

    def splits(self) -> list[str]:
        return [str(name) for (name,) in self._rows("SELECT DISTINCT split_name FROM client_metadata", ())]

    def examples(self, split: str | None, client: str | None) -> Examples:
        """Of one client, or of all."""
        conditions = {"split_name": split, "client_id": client}
        given = {name: value for name, value in conditions.items() if value is not None}
        where = " AND ".join(f"{name} = ?" for name in given)
        query = "SELECT serialized_example_proto FROM examples" + (f" WHERE {where}" if where else "")
        xs, ys = [], []
        for (encoded,) in self._rows(f"{query} ORDER BY rowid", tuple(given.values())):
            found = features_of(encoded)
            xs.append(np.concatenate([self._numbers(found, name) for name in self.features]))
            target = self._numbers(found, self.target)
            if target.shape != (1,):
                raise DataError(f"{self.path}: the target {self.target!r} has {target.size} values, not one")
            ys.append(target[0])
        x = np.stack(xs)
        try:
            return Examples(x if self.shape is None else x.reshape(len(x), *self.shape), np.array(ys))
        except ValueError as error:
            raise DataError(f"{self.path}: shape {self.shape} does not fit {x.shape[1]} features") from error

    def _numbers(self, found: dict[str, np.ndarray], name: str) -> np.ndarray:
        if name not in found:
            raise DataError(
                f"{self.path}: there is no feature {name!r}; these exist: {', '.join(sorted(found))}"
            )
        if found[name].dtype == object:
            raise DataError(f"{self.path}: the feature {name!r} holds bytes; accepted: numbers")
        return found[name]

    def _rows(self, query: str, values: tuple[str, ...]) -> list[tuple[Any, ...]]:
        if not Path(self.path).is_file():
            raise DataError(f"there is no file {self.path}")
        try:
            with closing(
                sqlite3.connect(f"file:{Path(self.path).resolve()}?mode=ro", uri=True)
            ) as connection:
                self._check(connection)
                return connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise DataError(f"{self.path} can't be read as SQLite: {error}") from error

    def _check(self, connection: sqlite3.Connection) -> None:
        for table, needed in _NEEDED.items():
            columns = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
            if needed - columns:
                raise DataError(
                    f"{self.path} is not client data of TFF's: its table {table!r} lacks "
                    f"{', '.join(sorted(needed - columns))}"
                )


@dataclass(frozen=True)
class _Clients:
    file: _File
    split: str | None
    names: tuple[str, ...]
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int, /) -> Examples:
        return self.file.examples(self.split, self.names[index])

    def size_of(self, index: int) -> int:
        """As the file's metadata say."""
        return int(self.sizes[index])


def features_of(encoded: bytes) -> dict[str, np.ndarray]:
    """The features of a serialised `tf.train.Example`: float32, int64, or objects (bytes), one-dimensional.

    Raises:
        DataError: these bytes are no such message.
    """
    found: dict[str, np.ndarray] = {}
    try:
        for number, features in _fields(encoded):
            if number != _FEATURES:
                continue
            for entry_number, entry in _fields(_bytes(features)):
                if entry_number != _ENTRY:
                    continue
                pair = dict(_fields(_bytes(entry)))
                found[_bytes(pair[_KEY]).decode()] = _feature(_bytes(pair.get(_VALUE, b"")))
    except (IndexError, KeyError, TypeError, struct.error, UnicodeDecodeError) as error:
        raise DataError(f"an example is no tf.train.Example: {error}") from error
    return found


def _feature(encoded: bytes) -> np.ndarray:
    for kind, content in _fields(encoded):
        values = [value for number, value in _fields(_bytes(content)) if number == _LIST_VALUE]
        if kind == _BYTES:
            made = np.empty(len(values), object)
            made[:] = values
            return made
        if kind == _FLOATS:
            return np.concatenate([np.frombuffer(_bytes(v), "<f4") for v in values] or [np.zeros(0, "<f4")])
        if kind == _INTEGERS:
            integers = [i for v in values for i in ((v,) if isinstance(v, int) else _varints(v))]
            return np.array(integers, np.uint64).astype(np.int64)
    return np.zeros(0, np.float32)


def _fields(encoded: bytes) -> Iterator[tuple[int, bytes | int]]:
    """The fields of a message: their numbers, and their values as bytes or as the integer of a varint."""
    at = 0
    while at < len(encoded):
        key, at = _varint(encoded, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(encoded, at)
            yield key >> 3, value
            continue
        if kind == _DELIMITED:
            length, at = _varint(encoded, at)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise DataError(f"an example is no tf.train.Example: it has a field of wire type {kind}")
        if at + length > len(encoded):
            raise IndexError("it ends too early")
        yield key >> 3, encoded[at : at + length]
        at += length


def _varints(encoded: bytes) -> Iterator[int]:
    at = 0
    while at < len(encoded):
        value, at = _varint(encoded, at)
        yield value


def _varint(encoded: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = encoded[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value & (2**64 - 1), at
        shift += 7


def _bytes(value: bytes | int) -> bytes:
    if isinstance(value, int):
        raise TypeError("a number where a message is expected")
    return value
