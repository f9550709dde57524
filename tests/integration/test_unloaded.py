"""While no model is on a card nothing holds one: by the device files that are open, and NVML's
openings."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from asrd.config.settings import Settings
from asrd.dictation import metrics
from asrd.dictation.engine_slot import EngineSlot
from asrd.dictation.fallback_monitor import _budget
from asrd.dictation.idle_tasks import IdleTasks
from asrd.engine import capacity, planner
from asrd.engine.process import NO_CARD_ENVIRONMENT
from asrd.precision import gpu_power, gpus
from asrd.precision.memory import Memory
from asrd.precision.plan import Gpu
from tests.daemon.test_daemon import ROOT, Running, Start, daemon
from tests.precision.test_gpus import driver

__all__ = ["daemon", "driver"]

CLIP = os.fspath(ROOT / "asrd/data/eval/0129.flac")
CARD = "RTX A1000:8.6:4096:3900"


class Laptop:
    """A daemon on a machine with a card, whose device file is a stand-in in a folder of the
    test."""

    def __init__(self, start: Start, driver: Path, tmp_path: Path, **more: str) -> None:
        self.device, self.calls = tmp_path / "dev" / "nvidia0", tmp_path / "calls"
        self.device.parent.mkdir()
        self.device.touch()
        self.calls.touch()
        self.config = tmp_path / "config.toml"
        self.config.write_text('idle = "immediately"\n')
        environment = {
            "LD_LIBRARY_PATH": os.fspath(driver), "FAKE_GPUS": CARD, "FAKE_CUDA": "12080", "FAKE_TORCH": "12.8",
            "FAKE_DEVICE": os.fspath(self.device), "FAKE_CALLS": os.fspath(self.calls),
            "ASRD_CONFIG": os.fspath(self.config), "ASRD_STRATEGY": "half", "ASRD_VRAM_BUDGET": "50%",
            "ASRD_VRAM_ALERT": "90%", "ASRD_SHADOW": "1", "ASRD_PROMOTE_AFTER": "0", **more,
        }  # fmt: skip
        self.daemon: Running = start(**environment)

    @property
    def pid(self) -> int:
        assert self.daemon.process is not None
        return self.daemon.process.pid

    def holds(self, pid: int) -> list[str]:
        """Return the device files that a process has open."""
        links = [
            os.readlink(one) for one in Path(f"/proc/{pid}/fd").iterdir() if os.path.islink(one)
        ]
        return [link for link in links if link.startswith(os.fspath(self.device.parent))]

    def openings(self) -> int:
        """Return how often NVML was opened so far, by anybody."""
        return self.calls.read_text().count("init")

    def parked(self) -> None:
        """Wait until no model is in memory."""
        one = self.daemon
        one.until(lambda: one.state == "UNLOADED" and not one.worker)

    def check(self) -> None:
        """Assert that the daemon holds nothing of a card."""
        maps = Path(f"/proc/{self.pid}/maps").read_text()
        assert not any(name in maps for name in ("libcuda", "libtorch", "libcublas"))
        assert self.holds(self.pid) == [], "a device file is open: nvidia0"
        calls = self.calls.read_text().splitlines()
        for pid in {line.split()[1] for line in calls}:
            assert calls.count(f"init {pid}") == calls.count(f"shutdown {pid}")

    def verb(self, *words: str) -> str:
        """Run a verb to its end, and return what it said."""
        with self.daemon.verb(*words) as process:
            return "".join(process.communicate(timeout=30))

    def follow(self, *words: str) -> None:
        """Follow the status for some lines, in whatever state."""
        with self.daemon.verb("status", "--follow", *words) as process:
            assert process.stdout is not None
            assert process.stdout.readline()
            time.sleep(0.3)
            process.terminate()

    def dictate(self, end: str = "stop", meanwhile: Callable[[], Any] = lambda: None) -> None:
        """Speak; while a worker is on the card it holds the card's file, and the daemon does
        not."""
        one = self.daemon
        one.speak()
        one.until(lambda: bool(one.worker and self.holds(one.worker[0])))
        assert one.ask(verb="status")["device"] in ("", "cuda:0")
        one.until(lambda: self.holds(self.pid) == [])
        meanwhile()
        one.ask(verb=end)
        one.until(lambda: one.state in ("UNLOADED", "IDLE"))

    def kill(self) -> None:
        """End the worker in the middle of a recording."""
        for pid in self.daemon.worker:
            os.kill(pid, 9)

    def reload(self, line: str) -> None:
        self.config.write_text(f'idle = "immediately"\n{line}\n')
        assert "error" not in self.daemon.ask(verb="reload")

    def ask(self, **request: Any) -> Callable[[], Any]:
        return lambda: self.daemon.ask(**request)

    def acts(self) -> dict[str, tuple[bool, Callable[[], Any]]]:
        """Return what a user may do while no model is loaded, and whether a card may be asked for
        it."""
        verb = self.verb
        return {
            "status": (False, self.ask(verb="status")),
            "status --json": (False, lambda: verb("status", "--json")),
            "status x20": (False, lambda: [self.daemon.state for _ in range(20)]),
            "status --follow": (False, self.follow),
            "status --follow --waybar": (False, lambda: self.follow("--waybar")),
            "status --waybar": (False, lambda: verb("status", "--waybar")),
            "report": (False, lambda: verb("report")),
            "devices": (False, lambda: verb("devices")),
            "config": (False, lambda: verb("config")),
            "models": (False, lambda: verb("models")),
            "recordings": (False, lambda: verb("recordings")),
            "last": (False, lambda: verb("last")),
            "stop of nothing": (False, self.ask(verb="stop")),
            "cancel of nothing": (False, self.ask(verb="cancel")),
            "reload of nothing new": (False, self.ask(verb="reload")),
            "reload of an alert": (False, lambda: self.reload('vram_alert = "80%"')),
            "reload of a sound": (False, lambda: self.reload("cues = false")),
            "rest": (False, lambda: time.sleep(0.5)),
            "dictation": (True, self.dictate),
            "cancelled dictation": (True, lambda: self.dictate("cancel")),
            "dictation by one key": (True, lambda: self.dictate("toggle")),
            "dictation with a follower": (True, lambda: self.dictate(meanwhile=self.follow)),
            "dictation without a worker": (True, lambda: self.dictate(meanwhile=self.kill)),
            "transcribe": (True, lambda: verb("transcribe", CLIP)),
            "use of no strategy": (False, lambda: verb("use", "nonsense")),
            "use fp32": (True, self.ask(verb="use", strategy="fp32")),
            "use half": (True, self.ask(verb="use", strategy="half")),
            "plan": (True, lambda: verb("plan", "--model", "demo")),
            "doctor": (True, lambda: verb("doctor", "--model", "demo")),
        }


ACTS = list(Laptop.acts(Laptop.__new__(Laptop)))


def act(laptop: Laptop, name: str) -> None:
    """Do one thing, wait until no model is loaded, and look."""
    asks, do = laptop.acts()[name]
    before = laptop.openings()
    do()
    laptop.parked()
    laptop.check()
    assert laptop.openings() == before or asks, f"{name} woke the card"


def test_at_every_moment_without_a_model_the_daemon_holds_nothing_of_a_card(
    daemon: Start, driver: Path, tmp_path: Path
) -> None:
    laptop = Laptop(daemon, driver, tmp_path)
    laptop.parked()
    assert laptop.openings() > 0
    laptop.check()
    names = [*ACTS, *(name for name in ACTS if "dictation" in name)]
    random.Random(15).shuffle(names)
    for name in names:
        act(laptop, name)
    assert laptop.daemon.end() == 0


@pytest.mark.parametrize(
    "model", ["half=oom *=ok", "half=die *=ok", "half=lost *=ok", "half=nan *=ok", "*=die"]
)
def test_a_worker_that_fails_leaves_nothing_open_behind_it(
    daemon: Start, driver: Path, tmp_path: Path, model: str
) -> None:
    laptop = Laptop(daemon, driver, tmp_path, ASRD_MODEL=model)
    laptop.parked()
    laptop.daemon.speak()
    laptop.daemon.ask(verb="stop")
    laptop.parked()
    before = laptop.openings()
    time.sleep(0.5)
    laptop.check()
    assert laptop.openings() == before


def test_a_forgotten_shutdown_is_seen(daemon: Start, driver: Path, tmp_path: Path) -> None:
    laptop = Laptop(daemon, driver, tmp_path, FORGET_SHUTDOWN="1")
    laptop.parked()
    with pytest.raises(AssertionError, match="nvidia0"):
        laptop.check()


@pytest.mark.parametrize(
    "more", [{"ASRD_MODEL": ""}, {"ASRD_DEVICE": "cpu"}], ids=["no model", "on the CPU"]
)
def test_where_no_card_is_meant_none_is_asked_and_its_library_is_not_mapped(
    daemon: Start, driver: Path, tmp_path: Path, more: dict[str, str]
) -> None:
    laptop = Laptop(daemon, driver, tmp_path, **more)
    laptop.parked()
    if "ASRD_DEVICE" in more:
        laptop.daemon.speak()
        laptop.daemon.ask(verb="stop")
        laptop.parked()
    laptop.check()
    assert laptop.openings() == 0
    assert "libnvidia-ml" not in Path(f"/proc/{laptop.pid}/maps").read_text()


def test_a_real_worker_on_the_cpu_asks_no_card(driver: Path, tmp_path: Path) -> None:
    calls, words = (
        tmp_path / "calls",
        ["transcribe", "--no-daemon", "--model", "demo", "--device", "cpu", CLIP],
    )
    more = {
        "LD_LIBRARY_PATH": os.fspath(driver),
        "FAKE_GPUS": CARD,
        "FAKE_CUDA": "12080",
        "FAKE_CALLS": str(calls),
    }
    command = [sys.executable, "-m", "asrd", *words]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **more}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip()
    assert not calls.exists()


LOOKING = """
import torch
torch._C._cuda_getDeviceCount = lambda: looked.append(1) or 1
torch.cuda._is_compiled, looked = lambda: True, []
print(torch.cuda.is_available(), torch.cuda.device_count(), looked)
"""
"""What NeMo's modules ask as they are imported, under a torch that takes itself for one that was
built for CUDA."""


@pytest.mark.parametrize(
    ("more", "said"),
    [(NO_CARD_ENVIRONMENT, "False 0 []"), ({}, "True 1 [1, 1]")],
    ids=["CPU", "card"],
)
def test_what_a_worker_on_the_cpu_imports_looks_for_no_card(
    driver: Path, tmp_path: Path, more: dict[str, str], said: str
) -> None:
    calls = tmp_path / "calls"
    clean = {key: value for key, value in os.environ.items() if key not in NO_CARD_ENVIRONMENT}
    clean |= {
        "LD_LIBRARY_PATH": os.fspath(driver),
        "FAKE_GPUS": CARD,
        "FAKE_CALLS": os.fspath(calls),
    }
    done = subprocess.run(
        [sys.executable, "-c", LOOKING],
        env=clean | more,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == said
    assert not (more and calls.exists())


# -- what waits for quiet
# ---------------------------------------------------------------------------------------------

ON_CARD = Gpu(0, "A card", (8, 6), 8192 << 20, 8000 << 20)


def never() -> list[Gpu]:
    raise AssertionError("the card was asked")


@pytest.mark.parametrize(
    ("on_card", "loaded", "idle", "sleeps", "waits"),
    [
        (False, True, "30", True, True),
        (False, True, "never", True, False),
        (False, True, "30", False, False),
        (True, True, "30", True, False),
        (False, False, "30", True, False),
    ],
)
def test_a_better_candidate_does_not_wake_a_card_that_sleeps(
    monkeypatch: pytest.MonkeyPatch,
    on_card: bool,
    loaded: bool,
    idle: str,
    sleeps: bool,
    waits: bool,
) -> None:
    class Engine:
        ready = object() if loaded else None

    Engine.on_card = on_card
    slot = EngineSlot.__new__(EngineSlot)
    slot.engine, slot.settings = Engine(), Settings(idle=idle)  # type: ignore[assignment]  # a stand-in with what is asked of an engine
    monkeypatch.setattr(gpu_power, "asleep", lambda: sleeps)
    assert IdleTasks(slot)._would_wake() is waits


def test_the_shadow_an_alert_and_a_budget_ask_no_card_that_no_worker_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpus, "gpus", never)
    demo = Settings(model="demo", vram_budget="50%", vram_alert="90%", device="cuda")
    assert capacity.place_beside(demo, 0, crowded=True) == "cpu"
    assert _budget(demo, "cpu") is None
    for memory in (None, Memory(process=1 << 40, source="rss")):
        metrics.MemoryAlert().watch(memory, demo)
    on_cpu = msgspec.structs.replace(demo, device="cpu")
    assert capacity.fits_beside(on_cpu, None)
    assert planner.start_for(on_cpu).vram_limit == 0
    assert {candidate.device for candidate in planner.plan_for(on_cpu).candidates} == {"cpu"}


def test_scopes_of_several_threads_open_the_library_once(driver: Path, tmp_path: Path) -> None:
    program = (
        "import threading\nfrom asrd.precision import gpus, nvml\n"
        "def ask():\n    for _ in range(50):\n        with nvml.opened:\n            assert len(gpus.gpus()) == 1\n"
        "many = [threading.Thread(target=ask) for _ in range(8)]\n"
        "with nvml.opened:\n    [one.start() for one in many]\n    [one.join() for one in many]\n"
    )
    calls = tmp_path / "calls"
    more = {"LD_LIBRARY_PATH": os.fspath(driver), "FAKE_GPUS": CARD, "FAKE_CALLS": os.fspath(calls)}
    command = [sys.executable, "-c", program]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **more}, check=True)
    assert [line.split()[0] for line in calls.read_text().splitlines()] == ["init", "shutdown"]
