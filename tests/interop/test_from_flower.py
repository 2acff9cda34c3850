"""`docs/from-flower.md`: every block runs, and the two sides of the same job give the same model."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, RecordDict

from quorate.interop.flower.for_flower import secured
from tests.interop.flower.grids import DirectGrid

PAGE = Path(__file__).parents[2] / "docs" / "from-flower.md"
CLIENTS = 6


@pytest.fixture
def blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The page's blocks as modules; their names."""
    names = []
    for name, body in re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE.read_text(), flags=re.S):
        (tmp_path / f"{name}.py").write_text(body)
        names.append(name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield names
    for name in names:
        sys.modules.pop(name, None)


def load(name: str) -> Any:
    return importlib.import_module(name)


def grid(app: Any) -> DirectGrid:
    ids = range(1, CLIENTS + 1)
    return DirectGrid(dict.fromkeys(ids, app), {node: {"partition-id": node - 1} for node in ids})


def of_flower() -> np.ndarray:
    """Flower's own ServerApp, strategy and ClientApps."""
    server = load("server_app")
    server.app(grid(load("client_app").app), Context(1, 1, {}, RecordDict(), {}))
    return np.concatenate([array.ravel() for array in server.result.arrays.to_numpy_ndarrays()])


def test_both_sides_of_the_same_job_give_the_same_model(blocks: list[str]) -> None:
    assert blocks == ["data", "client_app", "server_app", "job", "more", "keep_clients", "keep_server"]
    ours = load("job").run.model.vector
    np.testing.assert_allclose(ours, of_flower(), rtol=1e-4, atol=1e-6)


def test_what_one_line_each_adds_is_there(blocks: list[str]) -> None:
    run = load("more").run
    assert run.epsilon.released > 0
    assert Path("registry", "root.json").exists()


def test_the_clients_that_are_kept_give_the_same_model(blocks: list[str]) -> None:
    kept = load("keep_clients").run.model.vector
    np.testing.assert_allclose(kept, of_flower(), rtol=1e-4, atol=1e-6)


def test_the_server_that_is_kept_sums_in_secret(blocks: list[str]) -> None:
    strategy = load("keep_server").strategy
    result = strategy.start(
        grid=grid(secured(load("client_app").app)),
        initial_arrays=ArrayRecord([np.zeros((13, 3), np.float32), np.zeros(3, np.float32)]),
        num_rounds=3,
    )
    assert strategy.epsilon.released > 0
    assert np.linalg.norm(result.arrays.to_numpy_ndarrays()[0]) > 0.1
