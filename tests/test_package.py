"""The package as a whole: what it imports, what it names, and what it says when something is not installed."""

import ast
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

import quorate
from tests.artifacts.examples import new_registry, parameters, publish
from tests.cli.commands import PLAN

HEAVY = ("scipy", "sklearn", "onnxruntime", "starlette", "sqlalchemy", "tuf", "pydantic", "numpy")
SERVER = ("sqlalchemy", "starlette", "uvicorn", "orjson", "dp_accounting", "scipy", "onnxruntime", "onnx")
GROUPS = ("quorate.strategies", "quorate.tasks", "quorate.fleets", "quorate.datasets")


def python(code: str, *, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter in which some packages can't be imported."""
    blocked = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in without)
    return subprocess.run(
        [sys.executable, "-c", blocked + code], capture_output=True, text=True, timeout=60, check=False
    )


def output(code: str, *, without: tuple[str, ...] = ()) -> str:
    done = python(code, without=without)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def quorate_command(*arguments: str, without: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    return python(
        f"sys.argv = ['quorate', *{list(arguments)!r}]\nfrom quorate.cli import main\nmain()", without=without
    )


def test_importing_quorate_takes_at_most_three_tenths_of_a_second():
    code = "import time; started = time.process_time(); import quorate; print(time.process_time() - started)"
    assert min(float(output(code)) for _ in range(5)) <= 0.3


def test_importing_quorate_imports_nothing_heavy():
    loaded = json.loads(output("import json, sys, quorate; print(json.dumps(sorted(sys.modules)))"))
    assert "quorate" in loaded
    assert not {name.partition(".")[0] for name in loaded} & set(HEAVY)


def test_a_device_needs_nothing_of_the_server():
    taken_part = """
import numpy as np
import quorate as q
from quorate.clients.adapters.examples import Examples
from quorate.clients.participation import Participation
from quorate.clients.states import ClientStates
from quorate.errors import ProtocolViolation
from quorate.plan import Terms
from quorate.randomness import Randomness
model = q.models.softmax(4, 3)
client = model.client(Examples(np.ones((6, 4)), np.arange(6) % 3))
participation = Participation("me", client, ClientStates(), Randomness.system())
try:
    participation.receive(b"noise")
except ProtocolViolation:
    print("took part")
"""
    assert output(taken_part, without=(*SERVER, "sklearn", "matplotlib")) == "took part"


def test_a_device_pulls_a_model_without_the_server_s_packages(tmp_path):
    registry = new_registry(tmp_path / "registry")
    publish(registry, 1)
    code = (
        f"import quorate as q\nmodel = q.pull({str(registry.directory)!r}, 'digits', "
        f"trust={str(registry.root_path)!r}, directory={str(tmp_path / 'device')!r})\n"
        "print(model.version, model.parameters.layout.size)"
    )
    assert output(code, without=(*SERVER, "sklearn")) == f"1 {parameters(1).layout.size}"


@pytest.mark.parametrize("name", quorate.__all__)
def test_every_public_name_is_there(name):
    assert getattr(quorate, name) is not None
    assert name in dir(quorate)


def test_the_types_list_the_same_names_as_the_package():
    source = Path(quorate.__file__).with_name("__init__.pyi").read_text(encoding="utf-8")
    tree = ast.parse(source)
    bound, listed = set(), []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            bound |= {alias.asname for alias in node.names}
        elif isinstance(node, ast.Assign):
            listed = ast.literal_eval(node.value)
    assert listed == sorted(listed)
    assert set(listed) == bound == set(quorate.__all__)


def test_the_types_say_that_names_come_from_where_they_come_from():
    source = Path(quorate.__file__).with_name("__init__.pyi").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert getattr(quorate, alias.asname) is getattr(module, alias.name)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'quorate' has no attribute 'nonsense'"):
        _ = quorate.nonsense


def entry_points():
    distribution = importlib.metadata.distribution("quorate")
    return [point for point in distribution.entry_points if point.group in (*GROUPS, "console_scripts")]


@pytest.mark.parametrize("point", entry_points(), ids=lambda point: f"{point.group}:{point.name}")
def test_every_entry_point_loads(point):
    assert callable(point.load())


def test_every_group_of_entry_points_has_members():
    assert {point.group for point in entry_points()} == {*GROUPS, "console_scripts"}


@pytest.mark.parametrize(
    ("code", "missing", "extra"),
    [
        ("import quorate as q; q.run", "sqlalchemy", "server"),
        ("from quorate.server.serving import Endpoint", "uvicorn", "server"),
        ("from quorate.simulations import datasets; datasets.digits()", "sklearn", "simulation"),
        ("from quorate.privacy import external; external.parse('{\"type\": \"NoOpDpEvent\"}')",
         "dp_accounting", "server"),
    ],
)  # fmt: skip
def test_a_part_whose_packages_are_missing_says_how_to_install_them(code, missing, extra):
    done = python(
        f"from quorate.errors import MissingExtra\ntry:\n    {code}\nexcept MissingExtra as e:\n    print(e)",
        without=(missing,),
    )
    assert done.returncode == 0, done.stderr
    assert f"pip install 'quorate[{extra}]'" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "missing", "extra"),
    [
        (["demo"], "sqlalchemy", "server"),
        (["run", "plan.toml"], "sqlalchemy", "server"),
        (["plan", "check", "plan.toml"], "sklearn", "simulation"),
        (["runs", "list"], "sqlalchemy", "server"),
        (["serve", "."], "uvicorn", "server"),
        (["demo"], "sklearn", "simulation"),
    ],
)
def test_a_command_whose_packages_are_missing_says_how_to_install_them(
    arguments, missing, extra, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("plan.toml").write_text(PLAN)
    done = quorate_command(*arguments, without=(missing,))
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"pip install 'quorate[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_plan_is_checked_without_the_server_s_packages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("plan.toml").write_text(PLAN)
    done = quorate_command("plan", "check", "plan.toml", without=SERVER)
    assert done.returncode == 0, done.stderr
    assert "good" in done.stdout


def test_the_version_is_the_distribution_s():
    done = quorate_command("--version", without=())
    assert done.stdout == f"quorate {importlib.metadata.version('quorate')}\n"
