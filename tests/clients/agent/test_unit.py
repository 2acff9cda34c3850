"""The systemd unit."""

import shutil
import subprocess
from pathlib import Path

import pytest

from quorate.clients.agent import unit
from quorate.errors import StateError


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("system", [False, True])
def test_systemd_finds_nothing_wrong_with_it(tmp_path, system):
    path = unit.install(["--task", "app:task"], tmp_path / "a state", system=system, folder=tmp_path)
    scope = [] if system else ["--user"]
    checked = subprocess.run(
        ["systemd-analyze", *scope, "--man=no", "--recursive-errors=no", "verify", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    ours = [line for line in checked.stderr.splitlines() if unit.NAME in line]
    assert not ours, ours


def test_words_that_systemd_would_read_otherwise_are_quoted():
    text = unit.text(["run", "a b", "50%", "$HOME"], Path("/state"), Path("/work"), system=False)
    assert 'ExecStart=run "a b" 50%% "$$HOME"' in text


def test_a_folder_that_cant_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="unit"):
        unit.install([], tmp_path, system=True, folder=tmp_path / "file" / "folder")
