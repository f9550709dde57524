"""asrd in other people's environments: locale, time zone, terminal, folders, rights. Each verb ends
as it should."""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asrd.recordings import store
from tests.daemon.test_daemon import ROOT, Running

VERBS: dict[str, tuple[int, ...]] = {
    "--version": (0,),
    "--help": (0,),
    "transcribe --help": (0,),
    "config": (0,),
    "config --json": (0,),
    "models": (0,),
    "plan": (0,),
    "recordings": (0,),
    "recordings --json": (0,),
    "status": (69, 73),  # no daemon, or no folder for its socket
    "report --since today": (0, 69),  # no journal here
    "service print": (0,),
}
"""Verb -> exit codes that are right."""

HERE = "{home}"  # stands for a fresh folder

ENVIRONMENTS: dict[str, dict[str, str]] = {
    "plain": {"HOME": HERE},
    "C": {"HOME": HERE, "LC_ALL": "C"},
    "C without UTF-8 mode": {
        "HOME": HERE,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    },
    "ASCII": {"HOME": HERE, "PYTHONIOENCODING": "ascii"},
    "Latin-1": {"HOME": HERE, "PYTHONIOENCODING": "latin-1"},
    "German": {"HOME": HERE, "LC_ALL": "de_DE.UTF-8"},
    "Turkish": {"HOME": HERE, "LC_ALL": "tr_TR.UTF-8", "LANGUAGE": "tr"},
    "a locale that is not there": {"HOME": HERE, "LC_ALL": "xx_YY"},
    "Kathmandu": {"HOME": HERE, "TZ": "Asia/Kathmandu"},
    "St John's": {"HOME": HERE, "TZ": "America/St_Johns"},
    "no such time zone": {"HOME": HERE, "TZ": "Nowhere/Never"},
    "no HOME": {},
    "an empty HOME": {"HOME": ""},
    "a relative HOME": {"HOME": "here"},
    "HOME with spaces": {"HOME": HERE + "/a b"},
    "HOME beyond ASCII": {"HOME": HERE + "/Jörg ✗"},
    "HOME beyond ASCII, ASCII out": {"HOME": HERE + "/Jörg ✗", "PYTHONIOENCODING": "ascii"},
    "HOME that is read-only": {"HOME": "/proc/1"},
    "relative XDG folders": {
        "HOME": HERE,
        **{f"XDG_{name}": "rel" for name in ("CONFIG_HOME", "STATE_HOME")},
    },
    "a relative runtime folder": {"HOME": HERE, "XDG_RUNTIME_DIR": "rel"},
    "empty XDG folders": {
        "HOME": HERE,
        "XDG_CONFIG_HOME": "",
        "XDG_STATE_HOME": "",
        "XDG_RUNTIME_DIR": "",
    },
    "a dumb terminal": {"HOME": HERE, "TERM": "dumb", "COLUMNS": "40"},
    "no colour": {"HOME": HERE, "NO_COLOR": "1", "COLUMNS": "1"},
    "nonsense for a width": {"HOME": HERE, "COLUMNS": "wide", "LINES": "many"},
    "one thread": {"HOME": HERE, "OMP_NUM_THREADS": "1"},
    "no scratch folder": {"HOME": HERE, "TMPDIR": "/nowhere"},
    "a folder of models that is not there": {"HOME": HERE, "HF_HOME": "/nowhere/hf"},
}

PROGRAM = """
import os, sys
sys.path.insert(0, sys.argv[1])
import asrd
from asrd.cli.main import main
verbs, sys.argv[:] = sys.argv[2:], [os.path.join(os.path.dirname(asrd.__file__), "__main__.py")]
for verb in verbs:
    sys.stderr.write(f"{verb} -> ")
    try:
        code = main(verb.split())
    except SystemExit as ended:
        code = ended.code
    sys.stdout.flush()
    sys.stderr.write(f"code {code or 0}\\n")
"""


def run(folder: Path, given: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run every verb, in a seeded order, in one process in an empty folder."""
    home = folder / "home"
    environment = {key: value.replace(HERE, str(home)) for key, value in given.items()}
    if given.get("HOME", "").startswith(HERE):
        kept(Path(environment["HOME"]) / ".local" / "state" / "asrd" / "takes")
    verbs = list(VERBS)
    random.Random(str(given)).shuffle(verbs)
    (folder / "here").mkdir()
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ROOT), *verbs], cwd=folder / "here", stdin=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True, errors="replace", timeout=120,
    )  # fmt: skip


def kept(folder: Path) -> None:
    """Put a recording there whose reason is beyond ASCII."""
    spool = store.RecordingStore(folder)
    take = spool.begin()
    take.append(bytes(64_000))
    assert spool.keep_for_retry(take, "das Gerät fehlt ✗")


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_verb_ends_as_it_should_in_every_environment(name: str, tmp_path: Path) -> None:
    given = ENVIRONMENTS[name]
    done = run(tmp_path, given)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "internal error" not in said
    assert "Traceback" not in said
    ended = [
        line.rpartition("code ")[2]
        for line in done.stderr.splitlines()
        if line.rpartition("code ")[1]
    ]
    begun = [line.partition(" -> ")[0] for line in done.stderr.splitlines() if " -> " in line]
    assert sorted(begun) == sorted(VERBS)
    assert all(int(code) in VERBS[verb] for verb, code in zip(begun, ended, strict=True)), (
        done.stderr
    )
    if given.get("HOME", "").startswith(HERE) and "XDG_STATE_HOME" not in given:
        assert "das Ger" in done.stdout, "a recording is found whatever the locale"
    assert list((tmp_path / "here").iterdir()) == [], (
        "nothing is written where a relative path points"
    )


def test_a_relative_configuration_folder_gives_no_settings_of_the_current_one(
    tmp_path: Path,
) -> None:
    (tmp_path / "rel" / "asrd").mkdir(parents=True)
    (tmp_path / "rel" / "asrd" / "config.toml").write_text('sinks = ["command:touch owned"]\n')
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_CONFIG_HOME": "rel"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ROOT), "config"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert "touch owned" not in done.stdout


def test_the_socket_of_a_configuration_beyond_ascii_is_found_in_an_ascii_locale(
    tmp_path: Path,
) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f'# für den Schreibtisch\nsocket = "{tmp_path}/own.sock"\n', "utf-8")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        **ENVIRONMENTS["C without UTF-8 mode"],
    }
    done = subprocess.run(
        [sys.executable, "-m", "asrd", "toggle", "--config", str(file)],
        cwd=ROOT, env={**environment, "HOME": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert f"{tmp_path}/own.sock" in done.stderr


# -- time
# -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def move(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield move
    monkeypatch.undo()
    time.tzset()


CHANGES = {  # the instant at which clocks go back, by zone
    "Europe/Berlin": 1792890000,
    "America/New_York": 1793512800,
    "America/St_Johns": 1793507400,
    "Australia/Lord_Howe": 1775314800,
}


@pytest.mark.parametrize("seed", range(20))
def test_recordings_keep_their_order_when_clocks_go_back(
    seed: int, tmp_path: Path, zone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    r = random.Random(seed)
    name, change = r.choice(list(CHANGES.items()))
    zone(name)
    assert time.localtime(change - 1).tm_isdst == 1
    assert time.localtime(change).tm_isdst == 0
    moments = sorted(change + r.uniform(-3000, 3000) for _ in range(6))
    spool, made = store.RecordingStore(tmp_path), []
    for moment in moments:
        monkeypatch.setattr(store.time, "time", lambda moment=moment: moment)
        take = spool.begin()
        take.append(bytes(6_400))
        assert spool.keep_for_retry(take, "no model is chosen")
        made.append(take.id)
    assert len(set(made)) == 6
    assert [note.id for note in spool.all()] == made
    assert spool.find("").id == made[-1], "the newest"


# -- rights
# -----------------------------------------------------------------------------------------------------------

WRITE = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from types import SimpleNamespace as Args
from asrd.engine import baseline
from asrd.engine import tuned
from asrd.cli import service, systemctl, systemd_units
from asrd.recordings import store
from asrd.cli import compare
from asrd.evaluation import tuning
from asrd.config.settings import Settings
baseline.keep("demo", "cpu", baseline.Baseline("now", {}))
tuned.check_room()
with tuning.only_run(): pass
compare._write(Path.home() / "report.html", b"<html>")
systemctl.has_user_manager, systemd_units.program = lambda: False, lambda: ["/usr/bin/asrd"]
service.service(Args(act="install", unit=None, now=False), Settings())
kept = store.RecordingStore(store.folder()); one = kept.begin()
one.append(bytes(64_000)); kept.keep_for_retry(one, "why")
"""


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077, 0o177, 0o277, 0o777])
def test_what_asrd_writes_is_the_users_alone_whatever_the_umask(umask: int, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-B", "-c", WRITE, str(ROOT)],
        cwd=ROOT, env=environment, umask=umask, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    modes = {
        path.relative_to(tmp_path): stat.S_IMODE(path.stat().st_mode)
        for path in tmp_path.rglob("*")
    }
    files = {path for path in modes if (tmp_path / path).is_file()}
    written = {"baselines.json", "tuning.lock", "report.html", "asrd.service", "asrd.socket"}
    assert {path.name for path in files} >= written
    assert {path.suffix for path in files} >= {".wav", ".json"}
    assert {
        str(path): oct(mode)
        for path, mode in modes.items()
        if mode != (0o600 if path in files else 0o700)
    } == {}


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_a_daemon_leaves_nothing_that_others_may_read(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        one = Running(tmp_path, ASRD_MODEL="").up()
    finally:
        os.umask(before)
    try:
        one.speak()
        one.ask(verb="stop")
        one.settled()
        assert stat.S_IMODE(one.socket.stat().st_mode) == 0o600
        for path in (tmp_path / "state").rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
        assert (
            json.loads(next(one.takes.glob("*.json")).read_text())["reason"] == "no model is chosen"
        )
    finally:
        one.end()
