"""What works here and what does not: each finding stands alone, and says what helps."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from asrd.audio.devices import Device
from asrd.cli import doctor
from asrd.config.settings import Settings
from asrd.daemon import control_socket
from asrd.paths import DATA_FOLDER
from asrd.precision import cuda_errors
from tests.helpers import ROOT
from tests.precision.test_gpus import driver

__all__ = ["driver"]

CLIP = DATA_FOLDER / "eval" / "0001.flac"


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a session, a sound server or a daemon."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "DBUS_SESSION_BUS_ADDRESS", "PULSE_SERVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(
        doctor, "survey", list
    )  # PortAudio remembers devices from earlier in a process


def found(**settings: object) -> dict[str, doctor.Finding]:
    return {one.name: one for one in doctor.examine(Settings(**settings))}  # type: ignore[arg-type]


def test_what_is_missing_is_named_with_what_helps() -> None:
    here = found(model="demo")
    assert here["model"].works
    assert "3 M parameters" in here["model"].detail
    assert (here["microphone"].works, here["microphone"].needed) == (False, True)
    assert "level" not in here, "where there is no microphone, that is said once"
    assert (here["type"].works, here["type"].needed) == (False, True)
    assert "asrd service install --now" in here["daemon"].fix
    assert here["recordings"].works
    assert here["scratch"].detail.startswith(("/var/tmp", os.environ.get("TMPDIR", "/var/tmp")))
    assert here["scratch"].works
    assert re.search(r"a start of demo\S* unpacks 0 MiB there$", here["scratch"].detail)
    for one in here.values():
        assert one.works or one.fix or one.detail, one


def with_driver(driver: Path, **environment: str) -> list[dict[str, object]]:
    """Return what doctor finds of a card under the stand-in driver."""
    command = [sys.executable, "-m", "asrd", "doctor", "--json", "--model", "demo"]
    more = {"LD_LIBRARY_PATH": str(driver), "FAKE_CUDA": "12080", **environment}
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **more}, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 3), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


TWO = "Tesla T4:7.5:16000:15000;RTX A1000:8.6:4096:3500"


def test_each_card_is_told_with_the_torch_that_is_to_use_it(driver: Path) -> None:
    here = with_driver(driver, FAKE_GPUS=TWO, FAKE_MODE="3")
    cards = [str(one["detail"]) for one in here if one["name"] == "gpu"]
    assert cards == [
        "cuda:0 Tesla T4, compute capability 7.5, 14.6 of 15.6 GiB free, compute mode exclusive",
        "cuda:1 RTX A1000, compute capability 8.6, 3.4 of 4.0 GiB free, compute mode exclusive",
    ]
    torch = cuda_errors.torch_build()
    assert torch is not None
    (told, _) = [one for one in here if one["name"] == "torch"]
    assert torch.version in str(told["detail"])
    assert told["works"] is bool(torch.cuda and torch.cuda < "13")
    assert told["works"] or "pip install" in str(told["fix"])
    assert [one["works"] for one in here if one["name"] == "bf16"] == [False, True]


@pytest.mark.parametrize(
    ("environment", "said", "helps"),
    [
        ({"FAKE_INIT": "18"}, "upgraded while the old one is still loaded", "restart"),
        ({"FAKE_INIT": "4"}, "no permission to use the NVIDIA driver", "ls -l"),
        ({"FAKE_LOST": "1"}, "card 1 does not answer", "nvidia-smi"),
        (
            {"FAKE_GPUS": "A100:8.0:40960:40000", "FAKE_MIG": "0:"},
            "divided (MIG) into no instance",
            "mig -cgi",
        ),
        (
            {"FAKE_MIG": "1:RTX MIG 1g:1000:900"},
            "cuda:0 RTX MIG 1g, compute capability 8.6, 0.9 of 1.0 GiB",
            "",
        ),
        ({"FAKE_MODE": "2"}, "compute mode prohibited", "nvidia-smi -c 0"),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, "hides every card", "unset"),
    ],
)
def test_a_card_that_is_not_as_it_should_be_is_named_with_what_helps(
    driver: Path, environment: dict[str, str], said: str, helps: str
) -> None:
    here = with_driver(driver, **{"FAKE_GPUS": TWO, **environment})
    found = [one for one in here if one["name"] == "gpu" and said in str(one["detail"])]
    assert found, here
    assert helps in str(found[0]["fix"])
    assert bool(found[0]["works"]) is not bool(helps)


def test_a_budget_that_rules_out_strategies_is_told(driver: Path) -> None:
    here = with_driver(driver, FAKE_GPUS=TWO, ASRD_DEVICE="a1000", ASRD_VRAM_BUDGET="300MiB")
    told = [str(one["detail"]) for one in here if one["name"] == "budget"]
    assert any("bfloat16 would need" in one and "vram_budget allows 300 MiB" in one for one in told)


def test_a_microphone_is_found_by_a_part_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device("USB Microphone", "alsa_input.usb", "server", 48_000, 1, default=True)
    monkeypatch.setattr(doctor, "survey", lambda: [device])
    assert found(microphone="usb")["microphone"].works
    missing = found(microphone="headset")["microphone"]
    assert (missing.works, missing.detail) == (False, "there is no microphone 'headset'")
    assert "USB Microphone" in missing.fix


def test_only_what_these_settings_need_is_needed() -> None:
    here = found(source=f"file:{CLIP}", sinks=("stdout",))
    assert [one.name for one in here.values() if one.needed and not one.works] == []


@pytest.mark.parametrize(("writable", "free", "said", "helps"), [
    (True, 400 << 20, "0.4 GiB free", "make room, or lower takes_mb (500)"),
    (False, 8 << 30, "takes cannot be written", "XDG_STATE_HOME"),
    (False, 400 << 20, "takes cannot be written", "XDG_STATE_HOME"),
])  # fmt: skip
def test_a_folder_without_room_is_distinguished_from_one_that_cannot_be_written(
    writable: bool, free: int, said: str, helps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage._replace(free=free))
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: writable)
    recordings = found()["recordings"]
    assert not recordings.works
    assert said in recordings.detail
    assert helps in recordings.fix
    assert ("make room" in recordings.fix) is writable


def test_a_model_that_is_not_there_hides_nothing_else() -> None:
    here = found(model="/nowhere/x.nemo")
    assert (here["model"].works, here["model"].needed) == (False, True)
    assert "/nowhere/x.nemo" in here["model"].detail
    assert {"recordings", "journal", "user manager"} <= here.keys()


def test_without_a_place_for_the_socket_the_rest_is_still_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(control_socket, "_runtime", lambda: "")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    here = found()
    assert "XDG_RUNTIME_DIR is not set" in here["daemon"].detail
    assert "portal" in here


@pytest.mark.parametrize(
    ("words", "code"), [(["--sink", "x"], 2), (["--model", "/nowhere/x.nemo"], 3)]
)
def test_the_verb_has_an_exit_code_for_scripts(words: list[str], code: int) -> None:
    command = [sys.executable, "-m", "asrd", "doctor", "--json", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    for line in done.stdout.splitlines():
        assert json.loads(line).keys() == {"name", "works", "needed", "detail", "fix", "warning"}


def test_the_daemon_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ask(settings: Settings, **request: str) -> Iterator[dict[str, object]]:
        asked.append(request["verb"])
        yield {"state": "IDLE", "pid": 7, "level": None}

    monkeypatch.setattr(doctor.client, "ask", ask)
    assert found(model="demo")["daemon"].works
    assert asked == ["status"]
