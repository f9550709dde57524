"""What works here and what does not: each finding stands alone, and says what helps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from asrd import doctor
from asrd.config import Settings
from asrd.devices import Device

ROOT = Path(__file__).parents[1]
CLIP = ROOT / "asrd" / "data" / "eval" / "0001.flac"


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a session, a sound server or a daemon."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "DBUS_SESSION_BUS_ADDRESS", "PULSE_SERVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(doctor, "survey", list)  # PortAudio remembers devices from earlier in a process


def found(**settings: object) -> dict[str, doctor.Finding]:
    return {one.name: one for one in doctor.examine(Settings(**settings))}  # type: ignore[arg-type]


def test_what_is_missing_is_named_with_what_helps() -> None:
    here = found()
    assert here["model"].works
    assert "3 M parameters" in here["model"].detail
    assert (here["microphone"].works, here["microphone"].needed) == (False, True)
    assert (here["type"].works, here["type"].needed) == (False, True)
    assert here["daemon"].fix.startswith("asrd service install --now")
    assert here["takes"].works
    assert here["scratch"].detail.startswith(("/var/tmp", os.environ.get("TMPDIR", "/var/tmp")))
    for one in here.values():
        assert one.works or one.fix or one.detail, one


def test_a_microphone_is_found_by_a_part_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device("USB Microphone", "alsa_input.usb", "server", 48_000, 1, default=True)
    monkeypatch.setattr(doctor, "survey", lambda: [device])
    assert found(microphone="usb")["microphone"].works
    missing = found(microphone="headset")["microphone"]
    assert (missing.works, missing.detail, missing.fix) == (False, "none of 1 devices fits", "asrd devices")


def test_only_what_these_settings_need_is_needed() -> None:
    here = found(source=f"file:{CLIP}", sinks=("stdout",))
    assert [one.name for one in here.values() if one.needed and not one.works] == []


def test_a_model_that_is_not_there_hides_nothing_else() -> None:
    here = found(model="/nowhere/x.nemo")
    assert (here["model"].works, here["model"].needed) == (False, True)
    assert "/nowhere/x.nemo" in here["model"].detail
    assert {"takes", "journal", "user manager"} <= here.keys()


def test_without_a_place_for_the_socket_the_rest_is_still_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.control, "_runtime", lambda: "")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    here = found()
    assert "XDG_RUNTIME_DIR is not set" in here["daemon"].detail
    assert "portal" in here


@pytest.mark.parametrize(("words", "code"), [(["--sink", "x"], 2), (["--model", "/nowhere/x.nemo"], 3)])
def test_the_verb_has_an_exit_code_for_scripts(words: list[str], code: int) -> None:
    command = [sys.executable, "-m", "asrd", "doctor", "--json", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    for line in done.stdout.splitlines():
        assert json.loads(line).keys() == {"name", "works", "needed", "detail", "fix"}
