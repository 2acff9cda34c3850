"""Other people's data: NumPy arrays, data frames, CSV and Parquet files, Hugging Face and PyTorch datasets.

With a key, an example belongs to the client that its key names (a user, a hospital, a device); without one, the data
are in one place, to be partitioned. Targets that are words become labels, in alphabetical order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quorate.clients.adapters.examples import Examples
from quorate.errors import DataError, MissingExtra
from quorate.randomness import generator
from quorate.simulations.datasets.central import Dataset, split
from quorate.simulations.datasets.federated import ClientData, FederatedDataset

__all__ = ["from_arrays", "from_hugging_face", "from_table", "from_torch", "read"]


def from_arrays(
    x: np.ndarray, y: np.ndarray, keys: Sequence[Any] | None = None, *, name: str = "arrays", seed: int = 0
) -> Dataset | FederatedDataset:
    """Arrays as a dataset.

    Args:
        x: features, shape (examples, …); what has more than two dimensions is flattened to one row an example.
        y: targets, shape (examples,): whole numbers are labels, words become labels, floats are values.
        keys: whose each example is, shape (examples,); None: the data are in one place.
        name: what it is, for people.
        seed: of the choice of the test set: a fifth of the examples, or a tenth of every client's.

    Raises:
        DataError: the shapes do not fit each other, or the values are not real numbers.
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim > 2:
        x = x.reshape(len(x), -1)
    if y.dtype.kind in "OUSb":
        y = np.unique(y.astype(str), return_inverse=True)[1]
    if keys is None:
        return split(name, x, y, seed)
    owners = np.asarray([str(key) for key in keys])
    if owners.shape != y.shape[:1]:
        raise DataError(f"{name}: {len(y)} examples need as many keys, got {len(owners)}")
    return _by_key(name, Examples(x, y), owners, seed)


def from_table(
    table: Any,
    target: str,
    key: str | None = None,
    features: Sequence[str] | None = None,
    *,
    seed: int = 0,
    **named: Any,
) -> Dataset | FederatedDataset:
    """A data frame, or any mapping from column names to columns.

    Args:
        table: such as a `pandas.DataFrame`.
        target: the target's column.
        key: the column that says whose a row is; None: the data are in one place.
        features: the columns with features; None: all others. They are numbers, or lists of numbers of one length.
        seed: see `from_arrays`.
        named: `name`, for people.

    Raises:
        DataError: there is no such column, or a feature is not a number.
    """
    columns = list(table.keys())
    taken = [column for column in (target, key) if column is not None]
    chosen = [c for c in columns if c not in taken] if features is None else list(features)
    for column in [*taken, *chosen]:
        if column not in columns:
            raise DataError(f"there is no column {column!r}; these exist: {', '.join(map(str, columns))}")
    try:
        blocks = [np.stack([np.ravel(value) for value in table[column]]) for column in chosen]
        x = np.concatenate(blocks, axis=1).astype(np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"features are numbers or lists of numbers of one length: {error}") from error
    keys = None if key is None else list(table[key])
    return from_arrays(x, np.asarray(table[target]), keys, seed=seed, **named)


def read(
    path: str, target: str, key: str | None = None, features: Sequence[str] | None = None, seed: int = 0
) -> Dataset | FederatedDataset:
    """A CSV or Parquet file, or an .npz with arrays `x`, `y` and perhaps `key`.

    Args:
        path: its suffix says what it is: `.csv`, `.parquet` or `.npz`.
        target: the target's column; in an .npz, the name of that array.
        key: see `from_table`.
        features: see `from_table`; in an .npz, the name of one array.
        seed: see `from_arrays`.

    Raises:
        DataError: there is no such file, or it can't be read.
        MissingExtra: pandas is not installed.
    """
    file, name = Path(path), Path(path).stem
    if not file.is_file():
        raise DataError(f"there is no file {path}")
    match file.suffix.lower():
        case ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                named = dict(arrays)
            return from_table(named, target, key, features, seed=seed, name=name)
        case ".csv" | ".parquet" as suffix:
            pandas = _pandas()
            table = pandas.read_csv(file) if suffix == ".csv" else pandas.read_parquet(file)
            return from_table(table, target, key, features, seed=seed, name=name)
    raise DataError(f"{path}: '.csv', '.parquet' and '.npz' can be read")


def from_hugging_face(
    dataset: Any,
    target: str,
    key: str | None = None,
    features: Sequence[str] | None = None,
    split: str = "train",
    seed: int = 0,
) -> Dataset | FederatedDataset:
    """A dataset of Hugging Face's `datasets`.

    Args:
        dataset: a `datasets.Dataset`, a folder that `save_to_disk` wrote, or a name on the hub (which needs a network).
        target: see `from_table`.
        key: see `from_table`.
        features: see `from_table`; images count as their pixels.
        split: which, where there are several.
        seed: see `from_arrays`.

    Raises:
        MissingExtra: `datasets` is not installed.
    """
    try:
        import datasets as hugging_face
    except ImportError as error:
        raise MissingExtra("data", "Hugging Face datasets") from error
    name = "a Hugging Face dataset"
    if isinstance(dataset, str):
        name = dataset
        on_disk = Path(dataset).is_dir()
        dataset = (
            hugging_face.load_from_disk(dataset)
            if on_disk
            else hugging_face.load_dataset(dataset, split=split)
        )
    if isinstance(dataset, hugging_face.DatasetDict):
        dataset = dataset[split]
    columns = {column: list(dataset[column]) for column in dataset.column_names}
    return from_table(columns, target, key, features, seed=seed, name=name)


def from_torch(
    dataset: Any, keys: Sequence[Any] | None = None, *, name: str = "a PyTorch dataset", seed: int = 0
) -> Dataset | FederatedDataset:
    """A PyTorch dataset whose items are (features, target), tensors or numbers.

    Args:
        dataset: anything with a length and items.
        keys: see `from_arrays`.
        name: what it is, for people.
        seed: see `from_arrays`.
    """
    items = [dataset[i] for i in range(len(dataset))]
    x = np.stack([np.asarray(features) for features, *_ in items])
    y = np.asarray([np.asarray(item[1]).item() for item in items])
    return from_arrays(x, y, keys, name=name, seed=seed)


def _by_key(name: str, examples: Examples, owners: np.ndarray, seed: int) -> FederatedDataset:
    """One client a key; a tenth of every client's examples is for the test, where it has more than one."""
    keys, codes = np.unique(owners, return_inverse=True)
    rng = generator(seed, "split", name)
    train, test = [], []
    for client in range(len(keys)):
        own = rng.permutation(np.flatnonzero(codes == client))
        cut = max(1, len(own) // 10) if len(own) > 1 else 0
        test.append(own[:cut])
        train.append(np.sort(own[cut:]))
    held_out = np.concatenate(test)
    return FederatedDataset(
        f"{name}, by key",
        ClientData(examples, train),
        examples.take(np.sort(held_out)) if len(held_out) else None,
        tuple(keys.tolist()),
    )


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise MissingExtra("data", "tables and Parquet files") from error
    return pandas
