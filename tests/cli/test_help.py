"""Help: every command, argument and option has a sentence."""

import click
import pytest
import typer

from quorate.cli import app
from tests.cli.commands import quorate


def commands(
    command: click.Command, path: tuple[str, ...] = ()
) -> list[tuple[tuple[str, ...], click.Command]]:
    """A command and everything under it."""
    found = [(path, command)]
    for name, inner in getattr(command, "commands", {}).items():
        found += commands(inner, (*path, name))
    return found


COMMANDS = dict(commands(typer.main.get_command(app)))


def test_these_commands_are_there():
    assert {" ".join(path) for path in COMMANDS} >= {
        "", "demo", "run", "serve", "pull", "plan", "plan check", "plan show", "runs", "runs list", "runs show",
        "strategies", "strategies list", "models", "models list", "models verify",
    }  # fmt: skip


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_shows_its_help(path, tmp_path):
    done = quorate(*path, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    assert f"Usage: quorate {' '.join(path)}".strip() in done.stdout
    shown = " ".join(done.stdout.split())
    for parameter in COMMANDS[path].params:
        help = getattr(parameter, "help", None)
        if help and not getattr(parameter, "hidden", False):
            assert help.split()[0] in shown


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_argument_and_option_has_a_sentence(path):
    command = COMMANDS[path]
    assert command.help
    assert command.help.strip().endswith(".")
    for parameter in command.params:
        help = getattr(parameter, "help", None)
        assert help, f"{parameter.name} has no help"
        assert help.strip().endswith(".")


@pytest.mark.parametrize(
    "arguments", [["frobnicate"], ["run"], ["run", "--bogus"], ["plan", "frobnicate"], ["pull"]]
)
def test_a_command_line_that_is_wrong_is_refused_with_where_to_find_help(arguments, tmp_path):
    done = quorate(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "--help" in done.stderr
    assert "Traceback" not in done.stderr


def test_strategies_are_listed_with_what_they_are(tmp_path):
    done = quorate("strategies", "list", cwd=tmp_path)
    assert done.returncode == 0
    for name in ("fedadagrad", "fedadam", "fedavg", "fedprox", "fedyogi", "median", "scaffold"):
        (line,) = [line for line in done.stdout.splitlines() if line.strip().startswith(name)]
        assert len(line.split()) > 4
