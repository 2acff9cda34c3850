"""`quorate demo`: the whole main job on one machine, from simulated clients to a served and pulled model.

The run is a plan, `examples/digits.toml`; what is here brings its result into use and shows it. Every step really
happens, or the command fails.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from quorate.errors import QuorateError, StateError

if TYPE_CHECKING:
    import numpy as np

    from quorate.result import FinishedRun
    from quorate.server.registry import Version

__all__ = ["demo", "demo_plan"]

_MARK = ".quorate-demo"


@dataclass
class _Stopwatch:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 3)


@dataclass(frozen=True)
class _Served:
    """What the served and the pulled model said."""

    url: str
    pulled: Path
    agree: bool
    asked: int


def demo(
    directory: Path = typer.Option(
        Path("quorate-demo"),
        metavar="DIRECTORY",
        help="Where the artefacts go; made afresh.",
        file_okay=False,
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object, and no progress."),
) -> None:
    """Train on handwritten digits over simulated clients, in private; publish, serve, pull, and compare."""
    watch = _Stopwatch()
    with watch.stage("setup"):
        from quorate import assembly
        from quorate.planfile import read_plan

        _fresh(directory)
        plan = read_plan(demo_plan())
        target = plan.publish
        assert target is not None, "the demo's plan publishes"
        plan = plan.model_copy(update={"publish": None})
    with watch.stage("rounds"):
        silent = (lambda report: None) if as_json else None
        run = assembly.run(plan, state=directory / "state", watch=silent)
    with watch.stage("publish"):
        version = run.publish(directory / "registry", target.model, target.alias, target.data_card)
    served = _serve_and_pull(directory, run, version, watch)
    watch.seconds["total"] = round(sum(watch.seconds.values()), 3)
    if as_json:
        typer.echo(json.dumps(_as_json(run, version, served, watch.seconds)))
    else:
        _show(directory, run, version, served, watch.seconds)
    if not served.agree:
        raise QuorateError("the pulled model and the endpoint gave different predictions")


def demo_plan() -> Path:
    """The demo's plan file: beside the sources in a checkout, inside the package when it is installed."""
    installed = Path(__file__).with_name("digits.toml")
    return installed if installed.exists() else Path(__file__).parents[2] / "examples" / "digits.toml"


def _fresh(directory: Path) -> None:
    """An empty directory; what an earlier demo left is removed, anything else is not."""
    from quorate.server.store import Store

    try:
        if directory.exists() and any(directory.iterdir()):
            if not (directory / _MARK).exists():
                raise StateError(
                    f"{directory} is not empty and no demo made it; name another with --directory"
                )
            if (directory / "state").exists():
                Store(directory / "state").close()  # refuses if a demo is running there
            shutil.rmtree(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / _MARK).touch()
    except OSError as error:
        raise StateError(f"{directory} can't be made afresh: {error}") from error


def _serve_and_pull(directory: Path, run: FinishedRun, version: Version, watch: _Stopwatch) -> _Served:
    """Serves the registry, pulls the version over HTTP, and asks both for the same predictions."""
    import urllib.request

    import numpy as np

    from quorate.artifacts import pull
    from quorate.server.serving import Endpoint

    registry = directory / "registry"
    with watch.stage("serve"):
        endpoint = Endpoint(registry).start()
    try:
        with watch.stage("pull"):
            pulled = pull(
                f"{endpoint.url}/models",
                version.model,
                alias="stable",
                trust=registry / "root.json",
                directory=directory / "pulled",
            )
        with watch.stage("predict"):
            images = _held_out(run)
            request = urllib.request.Request(
                f"{endpoint.url}/v1/models/{version.model}:predict",
                json.dumps({"instances": images.tolist()}).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=30) as answer:
                theirs = np.asarray(json.load(answer)["predictions"], np.float32)
            ours = np.asarray(pulled.predict(images))
            agree = pulled.version == version.number and np.array_equal(ours, theirs)
        return _Served(endpoint.url, pulled.directory, agree, len(images))
    finally:
        endpoint.stop()


def _held_out(run: FinishedRun) -> np.ndarray:
    """The images that no client had."""
    from quorate import resolution
    from quorate.simulations.source import Simulation

    source = resolution.open_fleet(run.plan.fleet)
    assert isinstance(source, Simulation)
    assert source.data.test is not None
    return source.data.test.x


def _as_json(
    run: FinishedRun, version: Version, served: _Served, seconds: dict[str, float]
) -> dict[str, Any]:
    from quorate.cli import tables

    found = tables.as_json(run)
    return {
        "accuracy": found["metrics"]["accuracy"],
        **{
            name: found[name]
            for name in ("epsilon_released", "epsilon_server", "delta", "rounds", "dropouts")
        },
        "version": version.number,
        "url": served.url,
        "predictions_agree": served.agree,
        "seconds": seconds,
    }


def _show(
    directory: Path, run: FinishedRun, version: Version, served: _Served, seconds: dict[str, float]
) -> None:
    from rich.console import Console
    from rich.table import Table

    from quorate.cli import tables

    bounds = run.plan.bounds(run.population)
    survivors = [round.survivors or 0 for round in run.committed]
    table = Table(
        title="What happened", title_justify="left", title_style="bold", show_header=False, box=None
    )
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in tables.rows(run):
        table.add_row(name, value)
    agreed = "the same" if served.agree else "DIFFERENT"
    for name, value in (
        ("published", f"{version.model} version {version.number}, signed, {directory / 'registry'}"),
        ("served", f"{served.url}/v1/models/{version.model}:predict (stopped again)"),
        ("pulled", f"verified against {directory / 'registry' / 'root.json'}, {served.pulled}"),
        ("compared", f"{served.asked} held-out images: {agreed} predictions from the endpoint and the pulled model"),
        ("time", ", ".join(f"{stage} {s:.1f} s" for stage, s in seconds.items())),
        ("", ""),
        ("the server saw", f"who was drawn, who survived ({min(survivors)} to {max(survivors)} of up to "
                           f"{bounds.largest} a round), when each dropped out, and one noisy sum a round"),
        ("it did not see", "any single update, clipped or not; any client's data, labels, metrics or example count"),
        ("nobody outside sees", "the cohorts: they were drawn in secret and are not published"),
        ("", ""),
        ("next", f"quorate serve {directory / 'registry'}"),
        ("", f"quorate models list {directory / 'registry'}"),
        ("", f"quorate runs show {run.record.id} --state {directory / 'state'}"),
        ("", f"quorate plan show {_short(demo_plan())}"),
    ):  # fmt: skip
        table.add_row(name, value)
    Console().print(table)


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
