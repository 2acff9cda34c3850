"""Datasets that need no download: those that scikit-learn brings along.

They are read out of its folder as files, since importing it takes longer than all the rest of a small run. The
handwritten digits are the test set of Alpaydin and Kaynak 1998 (UCI). The server's test set is split off first,
stratified by target and the same for the same seed; clients get the rest.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from quorate.errors import MissingExtra
from quorate.simulations.datasets.central import Dataset, split

__all__ = ["breast_cancer", "diabetes", "digits", "wine"]


def digits(seed: int = 0) -> Dataset:
    """Handwritten digits: 1,797 images of 8 × 8 pixels in [0, 1]; 10 classes; 1,437 to train, 360 to test.

    Args:
        seed: of the split.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    table = np.loadtxt(_file("digits.csv.gz"), delimiter=",")
    return split("digits", table[:, :-1] / 16.0, table[:, -1].astype(int), seed)


def breast_cancer(seed: int = 0) -> Dataset:
    """Wisconsin breast cancer: 569 tumours, 30 features, standardised; 2 classes (0 is malignant).

    Args:
        seed: of the split.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    x, y = _classified("breast_cancer.csv")
    return split("breast-cancer", _standardised(x), y, seed)


def wine(seed: int = 0) -> Dataset:
    """Wines: 178 chemical analyses, 13 features, standardised; 3 classes.

    Args:
        seed: of the split.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    x, y = _classified("wine_data.csv")
    return split("wine", _standardised(x), y, seed)


def diabetes(seed: int = 0) -> Dataset:
    """Diabetes progression, a regression: 442 patients, 10 features; features and target standardised.

    Args:
        seed: of the split.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    x, y = np.loadtxt(_file("diabetes_data_raw.csv.gz")), np.loadtxt(_file("diabetes_target.csv.gz"))
    return split("diabetes", _standardised(x), _standardised(y), seed)


def _classified(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Features and classes: a first line that says how many there are, then an example a line, its class last."""
    table = np.loadtxt(_file(name), delimiter=",", skiprows=1)
    return table[:, :-1], table[:, -1].astype(int)


def _file(name: str) -> Path:
    """A file of the bundled data."""
    found = importlib.util.find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise MissingExtra("simulation", "the bundled data of scikit-learn")
    return Path(found.submodule_search_locations[0], "datasets", "data", name)


def _standardised(values: np.ndarray) -> np.ndarray:
    """To mean 0 and variance 1 in each column. The statistics are those of all examples, taken as public."""
    return np.asarray((values - values.mean(axis=0)) / values.std(axis=0))
