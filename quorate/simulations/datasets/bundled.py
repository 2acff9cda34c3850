"""Datasets that need no download: those that scikit-learn brings along.

The handwritten digits are the test set of Alpaydin and Kaynak 1998 (UCI). The server's test set is split off first,
stratified by target and the same for the same seed; clients get the rest.
"""

from __future__ import annotations

from collections.abc import Callable

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
    x, y = _bundled("load_digits")
    return split("digits", x / 16.0, y, seed)


def breast_cancer(seed: int = 0) -> Dataset:
    """Wisconsin breast cancer: 569 tumours, 30 features, standardised; 2 classes (0 is malignant).

    Args:
        seed: of the split.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    x, y = _bundled("load_breast_cancer")
    return split("breast-cancer", _standardised(x), y, seed)


def wine(seed: int = 0) -> Dataset:
    """Wines: 178 chemical analyses, 13 features, standardised; 3 classes.

    Args:
        seed: of the split.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    x, y = _bundled("load_wine")
    return split("wine", _standardised(x), y, seed)


def diabetes(seed: int = 0) -> Dataset:
    """Diabetes progression, a regression: 442 patients, 10 features; features and target standardised.

    Args:
        seed: of the split.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    x, y = _bundled("load_diabetes")
    return split("diabetes", _standardised(x), _standardised(y), seed)


def _bundled(loader: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn import datasets as bundled
    except ImportError as error:
        raise MissingExtra("simulation", "the bundled data of scikit-learn") from error
    load: Callable[..., tuple[np.ndarray, np.ndarray]] = getattr(bundled, loader)
    return load(return_X_y=True)


def _standardised(values: np.ndarray) -> np.ndarray:
    """To mean 0 and variance 1 in each column. The statistics are those of all examples, taken as public."""
    return np.asarray((values - values.mean(axis=0)) / values.std(axis=0))
