"""Whether a card can sleep, from trees of real files as the kernel shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asrd.cli import doctor
from asrd.config.settings import Settings
from asrd.precision import gpu_power, nvml

GPU = "0000:01:00.0"
ACTIVE = {
    "vendor": "0x10de",
    "class": "0x030200",
    "driver": "nvidia",
    "control": "auto",
    "status": "active",
}
ASLEEP = {**ACTIVE, "status": "suspended", "time": "7200000"}
ON = {**ACTIVE, "control": "on"}
INTEL = {
    "vendor": "0x8086",
    "class": "0x030000",
    "driver": "i915",
    "control": "auto",
    "status": "active",
}
SOUND = {
    "vendor": "0x10de",
    "class": "0x040300",
    "driver": "snd_hda_intel",
    "control": "on",
    "status": "active",
}
USB, TYPE_C = {**SOUND, "class": "0x0c0330"}, {**SOUND, "class": "0x0c8000"}
QUIET = {**SOUND, "control": "auto", "status": "suspended"}
D3 = "Runtime D3 status:          {}\nVideo Memory:               Active\n"

Facts = dict[str, str]

TABLE: dict[str, tuple[dict[str, Facts], list[tuple[str, bool, str, str]], bool]] = {
    "no card": ({"0000:00:02.0": INTEL}, [], False),
    "no /sys": ({}, [], False),
    "an AMD card": ({GPU: {**ACTIVE, "vendor": "0x1002"}}, [], False),
    "only a sound function": ({"0000:01:00.1": SOUND}, [], False),
    "asleep": ({"0000:00:02.0": INTEL, GPU: ASLEEP}, [("suspended", True, "it sleeps, 120 min in all", "")], True),
    "falling asleep": ({GPU: {**ASLEEP, "status": "suspending"}}, [("suspended", True, "it sleeps", "")], True),
    "waking up": ({GPU: {**ACTIVE, "status": "resuming"}}, [("active", True, "may sleep", "")], False),
    "asleep, no time told": ({GPU: {**ASLEEP, "time": ""}}, [("suspended", True, "suspended: it sleeps", "")], True),
    "asleep, never D3cold": ({GPU: {**ASLEEP, "cold": "0"}}, [("suspended", True, "D3cold", "d3cold_allowed")], True),
    "asleep, D3cold allowed": ({GPU: {**ASLEEP, "cold": "1"}}, [("suspended", True, "it sleeps", "")], True),
    "awake, may sleep": ({GPU: ACTIVE}, [("active", True, "may sleep when nothing uses it", "")], False),
    "control is on": ({GPU: ON}, [("active", False, "power/control of the card is 'on'", "80-nvidia-pm.rules")], False),
    "sound keeps it awake": (
        {GPU: ACTIVE, "0000:01:00.1": SOUND}, [("active", False, "sound function (0000:01:00.1)", "00.1/power")], False
    ),
    "sound sleeps": ({GPU: ACTIVE, "0000:01:00.1": QUIET}, [("active", True, "may sleep", "")], False),
    "sound of another slot": ({GPU: ACTIVE, "0000:02:00.1": SOUND}, [("active", True, "may sleep", "")], False),
    "USB keeps it awake": ({GPU: ACTIVE, "0000:01:00.2": USB}, [("active", False, "its USB function", "tee")], False),
    "USB-C keeps it awake": (
        {GPU: ACTIVE, "0000:01:00.3": TYPE_C}, [("active", False, "its USB-C function", "echo auto")], False
    ),
    "runtime sleep unsupported": (
        {GPU: {**ACTIVE, "status": "unsupported"}}, [("unsupported", False, "cannot let it sleep", "")], False
    ),
    "the kernel failed": ({GPU: {**ACTIVE, "status": "error"}}, [("unsupported", False, "cannot", "")], False),
    "an old kernel": ({GPU: {"vendor": "0x10de", "class": "0x030000"}}, [("unsupported", False, "cannot", "")], False),
    "no driver": ({GPU: {**ACTIVE, "driver": ""}}, [("active", False, "no driver holds it", "install")], False),
    "lent to a machine": ({GPU: {**ACTIVE, "driver": "vfio-pci"}}, [("active", False, "vfio-pci", "")], False),
    "lent and asleep": ({GPU: {**ASLEEP, "driver": "vfio-pci"}}, [("suspended", True, "vfio-pci", "")], False),
    "nouveau, asleep": ({GPU: {**ASLEEP, "driver": "nouveau"}}, [("suspended", True, "it sleeps", "")], True),
    "a desktop's card": (
        {GPU: {**ON, "class": "0x030000", "outputs": "DP-1 HDMI-A-1"}},
        [("active", False, "it drives a display (DP-1, HDMI-A-1)", "")],
        False,
    ),
    "outputs without a display": ({GPU: {**ACTIVE, "empty": "DP-1"}}, [("active", True, "may sleep", "")], False),
    "driver says no": (
        {GPU: {**ACTIVE, "d3": "Disabled by default"}}, [("active", False, "Disabled by default", "0x02")], False
    ),
    "driver cannot": ({GPU: {**ACTIVE, "d3": "Not supported"}}, [("active", False, "Not supported", "")], False),
    "driver says yes": ({GPU: {**ACTIVE, "d3": "Enabled (fine-grained)"}}, [("active", True, "may", "")], False),
    "driver is silent": ({GPU: {**ACTIVE, "d3": "?"}}, [("active", True, "may sleep", "")], False),
    "two cards, one asleep": (
        {GPU: ON, "0000:41:00.0": ASLEEP},
        [("active", False, "'on'", f"{GPU}/power/control"), ("suspended", True, "it sleeps", "")],
        True,
    ),
    "two cards, both awake": (
        {"10000:e1:00.0": ACTIVE, "10000:e2:00.0": ON},
        [("active", True, "may", ""), ("active", False, "'on'", "10000:e2:00.0/power/control")],
        False,
    ),
}  # fmt: skip
"""What the machine has -> for each card: state, whether it can sleep, words of the clause, words of
the fix; and whether opening NVML would wake one."""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def build(root: Path, machine: dict[str, Facts]) -> None:
    """Write the files that the kernel shows of these functions."""
    for address, facts in machine.items():
        folder = root / "pci" / address
        names = {
            "vendor": "vendor",
            "class": "class",
            "control": "power/control",
            "status": "power/runtime_status",
        }
        names |= {"time": "power/runtime_suspended_time", "cold": "d3cold_allowed"}
        for key, name in names.items():
            if key in facts:
                write(folder / name, facts[key])
        if driver := facts.get("driver"):
            (root / "drivers" / driver).mkdir(parents=True, exist_ok=True)
            (folder / "driver").symlink_to(root / "drivers" / driver)
        for key, status in (("outputs", "connected"), ("empty", "disconnected")):
            for name in facts.get(key, "").split():
                write(folder / "drm" / "card1" / f"card1-{name}" / "status", status)
        if "d3" in facts:
            write(root / "nvidia" / address / "power", D3.format(facts["d3"]))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the root of a machine's files, which has nothing yet."""
    for name, folder in (
        ("PCI_DEVICES", "pci"),
        ("DRIVER_CARDS", "nvidia"),
        ("PROC_FOLDER", "proc"),
    ):
        monkeypatch.setattr(gpu_power, name, tmp_path / "a machine" / folder)
    return tmp_path / "a machine"


@pytest.mark.parametrize("name", TABLE)
def test_how_a_card_stands_with_sleep(machine: Path, name: str) -> None:
    functions, expected, wakes = TABLE[name]
    build(machine, functions)
    found = gpu_power.survey()
    assert [(one.state, one.can_sleep) for one in found] == [
        (state, can) for state, can, _, _ in expected
    ]
    for one, (_, _, said, fix) in zip(found, expected, strict=True):
        assert said in one.detail
        assert fix in one.fix
        assert bool(one.fix) is bool(fix)
    assert gpu_power.asleep() is wakes


def test_processes_that_hold_a_card_are_named(machine: Path) -> None:
    assert gpu_power.holders() == []
    open_files = {
        "30": "/dev/nvidia0",
        "4": "/dev/nvidiactl",
        "5": "/tmp/nvidia0",
        "self": "/dev/nvidia0",
    }
    for number, file in open_files.items():
        write(machine / "proc" / number / "comm", f"program {number}")
        (machine / "proc" / number / "fd").mkdir()
        (machine / "proc" / number / "fd" / "7").symlink_to(file)
    assert gpu_power.holders() == ["program 4 (4)", "program 30 (30)"]


def of_gpu(settings: Settings, wake: bool = False) -> dict[str, doctor.Finding]:
    return {one.name: one for one in doctor.examine(settings, wake)}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return what grows whenever a card is asked."""
    calls: list[Any] = []
    monkeypatch.setattr(doctor, "survey", list)
    monkeypatch.setattr(
        nvml, "_open", lambda: (calls.append(1), (None, ("no NVIDIA driver", "")))[1]
    )
    return calls


def test_doctor_asks_no_card_that_sleeps_unless_it_is_told_to(
    machine: Path, asked: list[Any]
) -> None:
    build(machine, {GPU: ASLEEP})
    here = of_gpu(Settings(model="demo", device="cuda"))
    assert (here["gpu sleep"].works, here["gpu sleep"].detail) == (
        True,
        f"{GPU} is {gpu_power.survey()[0].detail}",
    )
    assert "does not query it" in here["gpu asked"].detail
    assert here["gpu asked"].fix == "asrd doctor --wake"
    assert "gpu" not in here
    assert here["model"].works
    assert asked == []
    woken = of_gpu(Settings(model="demo"), wake=True)
    assert "this check woke it" in woken["gpu asked"].detail
    assert "gpu" in woken
    assert asked


def test_doctor_asks_a_card_that_is_awake_and_says_what_holds_it(
    machine: Path, asked: list[Any]
) -> None:
    build(machine, {GPU: ON})
    write(machine / "proc" / "7" / "comm", "Xorg")
    (machine / "proc" / "7" / "fd").mkdir()
    (machine / "proc" / "7" / "fd" / "3").symlink_to("/dev/nvidiactl")
    here = of_gpu(Settings(model="demo"))
    assert here["gpu sleep"].detail.endswith("; open in Xorg (7)")
    assert "gpu asked" not in here
    assert asked
