"""The folder in which asrd is started holds data: no file of it is run, whatever it is called."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from asrd import paths
from asrd.cli import systemd_units
from asrd.desktop import selections
from asrd.engine import engine, process
from tests.helpers import ROOT
from tests.models.test_model_file import CLIP

NAMES = """
    yaml random numpy torch json msgspec sentencepiece soundfile nemo omegaconf hydra lightning typing types
    logging tempfile zipfile tarfile pickle struct socket asyncio subprocess shutil inspect dataclasses enum
    functools collections copy string statistics secrets hashlib calendar librosa scipy sklearn numba
"""
"""Modules that asrd, NeMo and torch import."""

TRAP = """
import os
os.close(os.open({marker!r} + {name!r}, os.O_CREAT | os.O_WRONLY))
raise ImportError("a file of the current folder was run")
"""


def trapped(folder: Path, marker: Path, seed: int) -> Path:
    """Fill a folder with files and packages that are called as modules are and that leave a mark
    when they run."""
    folder.mkdir()
    marker.mkdir()
    names = NAMES.split()
    random.Random(seed).shuffle(names)
    for index, name in enumerate(names):
        code = TRAP.format(marker=f"{marker}/", name=name)
        if index % 2:
            (folder / f"{name}.py").write_text(code)
        else:
            (folder / name).mkdir()
            (folder / name / "__init__.py").write_text(code)
    return folder


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """Return an environment with a home of its own."""
    (tmp_path / "home").mkdir()
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("ASRD_", "XDG_", "PYTHON"))
    }
    return clean | {"HOME": str(tmp_path / "home")}


@pytest.mark.parametrize("path", [None, ":here:."])
def test_no_file_of_the_current_folder_is_run(
    path: str | None, tmp_path: Path, home: dict[str, str]
) -> None:
    folder = trapped(tmp_path / "here", tmp_path / "marks", 14)
    environment = home if path is None else home | {"PYTHONPATH": path}
    program = (
        # this process is the user's own; what it starts is looked at
        "import sys; folder = sys.argv.pop(1)\n"
        "sys.path = [entry for entry in sys.path if not entry.startswith(folder)]\n"
        "from asrd.cli.main import main; raise SystemExit(main())"
    )
    words = ["transcribe", "--no-daemon", "--model", "demo-ctc", str(CLIP)]
    if path is None:
        command = [sys.executable, "-P", "-m", "asrd", *words]
    else:
        command = [sys.executable, "-P", "-c", program, str(folder), *words]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert sorted(mark.name for mark in (tmp_path / "marks").iterdir()) == []
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_a_download_runs_no_file_of_the_current_folder(
    tmp_path: Path, home: dict[str, str]
) -> None:
    folder = trapped(tmp_path / "here", tmp_path / "marks", 15)
    clean = {
        key: value for key, value in home.items() if not key.startswith(("HF_", "TRANSFORMERS_"))
    }
    environment = clean | {"PYTHONPATH": ":here:.", "HF_ENDPOINT": "http://127.0.0.1:9"}
    program = (
        "import sys; folder = sys.argv.pop(1)\n"
        "sys.path = [entry for entry in sys.path if not entry.startswith(folder)]\n"
        "from asrd.models import downloader; downloader.fetch_now('owner/name', print)"
    )
    command = [sys.executable, "-P", "-c", program, str(folder)]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert sorted(mark.name for mark in (tmp_path / "marks").iterdir()) == []
    assert "cannot reach the hub for owner/name" in done.stderr


@pytest.mark.parametrize("path", ["", ":here:.", "relative", "/absolute:."])
def test_what_asks_the_x_server_runs_no_file_of_the_current_folder(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = trapped(tmp_path / "here", tmp_path / "marks", 16)
    monkeypatch.setenv("PYTHONPATH", path)
    environment = selections.x11_environment({"PATH": os.environ["PATH"], "PYTHONPATH": path})
    for act in ("keys", "caps", "lend"):
        command = [*selections.X11, act]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, check=False, timeout=60
        )
        assert b"a file of the current folder was run" not in done.stderr
    assert sorted(mark.name for mark in (tmp_path / "marks").iterdir()) == []
    assert all(map(os.path.isabs, filter(None, environment["PYTHONPATH"].split(os.pathsep))))


def test_a_trap_works(tmp_path: Path) -> None:
    folder = trapped(tmp_path / "here", tmp_path / "marks", 14)
    subprocess.run(
        [sys.executable, "-m", "json.tool"],
        cwd=folder,
        input=b"1",
        capture_output=True,
        check=False,
    )
    assert list((tmp_path / "marks").iterdir())


@pytest.mark.parametrize("seed", range(20))
def test_only_absolute_entries_of_a_python_path_are_handed_on(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = random.Random(seed)
    entries = dice.choices(
        ["", ".", "relative", "..", "/absolute/one", "/absolute/two", "~/x", "./x"], k=6
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(entries))
    handed = [entry for entry in paths.python_path().split(os.pathsep) if entry]
    assert [entry for entry in handed if not os.path.isabs(entry)] == []
    assert [entry for entry in entries if entry.startswith("/")] == handed[
        : sum(e.startswith("/") for e in entries)
    ]


def test_a_checkout_that_nobody_installed_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    home = os.fspath(ROOT)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(sys, "path", ["", "/usr/lib/python3"])
    assert paths.python_path() == home
    monkeypatch.setattr(sys, "path", ["", "/usr/lib/python3", home])
    assert paths.python_path() == ""


def test_each_python_that_is_started_leaves_the_current_folder_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert engine.WORKER_COMMAND[1] == "-P"
    assert process.WORKER_ENVIRONMENT["PYTHONSAFEPATH"] == "1"
    monkeypatch.setattr(sys, "argv", [str(ROOT / "asrd" / "__main__.py")])
    assert "-P" in systemd_units.program()
    unit = (ROOT / "systemd" / "asrd.service").read_text()
    assert "\nWorkingDirectory=/\n" in unit
