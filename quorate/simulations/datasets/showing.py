"""A federated dataset as people look at it: a table of its facts and its labels, and a plot of label against client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from quorate.errors import MissingExtra
from quorate.simulations.datasets.federated import FederatedDataset

__all__ = ["draw", "facts", "label_table"]

_DRAWN = 200


def facts(data: FederatedDataset) -> list[tuple[str, str]]:
    """What it holds and how unequal its clients are, as rows of two words."""
    found = data.describe()
    rows = [
        ("dataset", str(found["name"])),
        ("clients", f"{found['clients']:,}"),
        ("examples", f"{found['train_examples']:,} to train, {found['test_examples']:,} to test"),
        ("features", f"{found['features']:,}"),
        ("examples each", _spread(found["examples_each"])),
    ]
    if "labels" in found:
        rows += [("labels", str(found["labels"])), ("labels each", _spread(found["labels_each"]))]
    return rows


def label_table(data: FederatedDataset) -> list[tuple[int, int, int, float]]:
    """For each label: the label, its examples, the clients that have any, and the largest share that one client has.

    Raises:
        DataError: the targets are no labels.
    """
    counts = data.label_counts()
    totals = counts.sum(axis=0)
    return [
        (label, int(total), int((column > 0).sum()), float(column.max() / max(total, 1)))
        for label, (total, column) in enumerate(zip(totals, counts.T, strict=True))
    ]


def draw(data: FederatedDataset, path: Path) -> Any:
    """Draws how many examples of each label each client has, of 200 clients at most, and saves the figure.

    Raises:
        DataError: the targets are no labels.
        MissingExtra: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("simulation", "plotting a dataset") from error
    counts = data.label_counts(most=_DRAWN)
    figure = Figure(figsize=(8, 0.25 * counts.shape[1] + 2), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(
        np.ma.masked_equal(counts.T, 0),
        aspect="auto",
        interpolation="nearest",
        cmap="viridis",
        origin="lower",
    )
    axes.set_xlabel(
        f"client (the first {len(counts)} of {len(data):,})" if len(data) > len(counts) else "client"
    )
    axes.set_ylabel("label")
    axes.set_yticks(range(counts.shape[1]) if counts.shape[1] <= 40 else [])
    axes.set_title(data.name, fontsize="medium")
    figure.colorbar(image, label="examples")
    figure.savefig(path, dpi=144)
    return figure


def _spread(values: tuple[int, float, int]) -> str:
    smallest, median, largest = values
    return f"{smallest:,} to {largest:,}, median {median:g}"
