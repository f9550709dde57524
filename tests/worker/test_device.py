"""A card opened by the worker, or refused in one sentence; and its memory held within a limit."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from asrd import framing, protocol
from asrd.models import memory_estimate
from asrd.paths import DATA_FOLDER
from asrd.precision import gpus
from asrd.precision.memory import Memory
from asrd.precision.plan import Gpu
from asrd.precision.strategies import STRATEGY_TABLE
from asrd.worker import device as worker_device
from asrd.worker.device import BudgetError, NoDeviceError
from tests.helpers import ROOT
from tests.precision.test_gpus import driver

__all__ = ["driver"]

MIB = 1 << 20
A1000 = Gpu(0, "RTX A1000", (8, 6), 4096 * MIB, 3500 * MIB, "570.00")


class Cuda:
    """As much of torch.cuda as the worker's card needs: what it is told is kept, what it is to
    raise is raised."""

    def __init__(self, error: Exception | None = None, at: str = "init") -> None:
        self.error, self.at = error, at
        self.fraction: float | None = None
        self.emptied = False

    def init(self) -> None:
        if self.error and self.at == "init":
            raise self.error

    def set_device(self, index: int) -> None:
        assert index == 0

    def mem_get_info(self, index: int) -> tuple[int, int]:
        return 3500 * MIB, 4096 * MIB

    def set_per_process_memory_fraction(self, fraction: float, index: int) -> None:
        assert 0 <= fraction <= 1
        self.fraction = fraction

    def empty_cache(self) -> None:
        self.emptied = True


def torch_with(cuda: Cuda) -> types.SimpleNamespace:
    def zeros(count: int, device: str) -> types.SimpleNamespace:
        if cuda.error and cuda.at == "kernel":
            raise cuda.error
        one = types.SimpleNamespace(item=lambda: 1.0)
        return types.SimpleNamespace(add_=lambda more: one)

    version = types.SimpleNamespace(cuda="13.0")
    return types.SimpleNamespace(
        cuda=cuda, zeros=zeros, __version__="2.13.0+cu130", version=version
    )


@pytest.mark.parametrize(
    ("limit", "process", "reserved", "allocator", "emptied"),
    [
        (2000, 400, 2, 1602, False),
        (2000, 2100, 1700, 1600, True),  # after the warm-up: what is kept for later is given back
        (2000, None, 2, 2000 - memory_estimate.CONTEXT // MIB, False),
        (9000, 400, 2, 4096, False),
    ],
)
def test_the_allocator_is_bounded_so_that_the_process_is(
    limit: int, process: int | None, reserved: int, allocator: int, emptied: bool
) -> None:
    cuda = Cuda()
    now = Memory(process=process and process * MIB, reserved=reserved * MIB, source="nvml")
    worker_device.hold_to_limit(torch_with(cuda), 0, limit * MIB, now)
    assert cuda.fraction == pytest.approx(allocator / 4096)
    assert cuda.emptied is emptied


def test_a_limit_below_what_cuda_itself_takes_is_refused_with_the_figures() -> None:
    with pytest.raises(
        BudgetError, match="hold 510 MiB beside the model; vram_budget allows 500 MiB"
    ):
        worker_device.hold_to_limit(
            torch_with(Cuda()), 0, 500 * MIB, Memory(process=512 * MIB, reserved=2 * MIB)
        )


@pytest.mark.parametrize(
    ("text", "at", "said", "helps"),
    [
        (
            "The NVIDIA driver on your system is too old (found version 12080).",
            "init",
            "knows 12.8 at most",
            "cu126",
        ),
        (
            "CUDA error: no kernel image is available for execution on the device",
            "kernel",
            "2.13.0+cu130",
            "pip",
        ),
        (
            "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
            "kernel",
            "2.13.0+cu130",
            "pip",
        ),
    ],
)
def test_a_card_that_torch_cannot_use_is_refused_in_one_sentence(
    text: str, at: str, said: str, helps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "gpus", lambda: [A1000])
    monkeypatch.setattr(gpus, "driver_cuda", lambda: "12.8")
    with pytest.raises(NoDeviceError) as caught:
        worker_device.open_device(torch_with(Cuda(RuntimeError(text), at)), 0)
    assert said in str(caught.value)
    assert helps in caught.value.hint


@pytest.mark.parametrize(
    "text", ["CUDA out of memory. Tried to allocate 2.00 MiB.", "CUDA error: unknown error"]
)
def test_other_failures_keep_their_kind(text: str) -> None:
    with pytest.raises(RuntimeError, match=text[:10]):
        worker_device.open_device(torch_with(Cuda(RuntimeError(text), "kernel")), 0)


def test_a_good_card_is_opened() -> None:
    worker_device.open_device(torch_with(Cuda()), 0)


# -- the real worker
# --------------------------------------------------------------------------------------------------

CARDS = "RTX A1000:8.6:4096:3500"


def without_cuda() -> bool:
    import torch

    return torch.version.cuda is None


@pytest.mark.skipif(not without_cuda(), reason="this torch is built for CUDA")
def test_the_real_worker_beside_a_card_that_its_torch_cannot_use(driver: Path) -> None:
    start = b"".join(
        bytes(part)
        for part in framing.pack(protocol.Start("demo-ctc", STRATEGY_TABLE["bfloat16"], "cuda:0"))
    )
    more = {"LD_LIBRARY_PATH": str(driver), "FAKE_GPUS": CARDS, "FAKE_CUDA": "12080"}
    words = [sys.executable, "-m", "asrd.worker"]
    done = subprocess.run(
        words, input=start, cwd=ROOT, env={**os.environ, **more}, capture_output=True, timeout=300
    )
    last = framing.unpack_reply(done.stdout.splitlines()[-1])
    assert isinstance(last, protocol.Failed)
    assert last.kind == "no-device"
    assert "is built without CUDA and cannot use RTX A1000" in last.detail
    assert "whl/cu126" in last.hint


@pytest.mark.skipif(not without_cuda(), reason="this torch is built for CUDA")
def test_a_file_becomes_text_on_the_cpu_where_torch_cannot_use_the_card(
    driver: Path, tmp_path: Path
) -> None:
    clip = DATA_FOLDER / "eval" / "0001.flac"
    more = {"LD_LIBRARY_PATH": str(driver), "FAKE_GPUS": CARDS, "XDG_CONFIG_HOME": str(tmp_path)}
    words = [
        sys.executable,
        "-m",
        "asrd",
        "transcribe",
        "--model",
        "demo-ctc",
        "--strategy",
        "bfloat16",
        str(clip),
    ]
    done = subprocess.run(
        words,
        cwd=ROOT,
        env={**os.environ, **more},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()
    assert "is built without CUDA and cannot use RTX A1000" in done.stderr


def test_a_budget_in_percent_is_of_the_card_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    from asrd.config.settings import Settings
    from asrd.engine.planner import start_for

    other = Gpu(1, "Large", (9, 0), 80_000 * MIB, 1 * MIB)
    monkeypatch.setattr(gpus, "gpus", lambda: [A1000, other])
    assert start_for(Settings(vram_budget="50%", device="a1000")).vram_limit == 2048 * MIB
    assert start_for(Settings(vram_budget="50%", device="cuda:1")).vram_limit == 40_000 * MIB
    assert start_for(Settings(vram_budget="50%", device="cpu")).vram_limit == 0
    assert start_for(Settings(device="cuda:1")).vram_limit == 0
    assert (
        start_for(Settings(vram_budget="0", device="cuda:1")).vram_limit == 1
    )  # 0 would be no limit


def test_without_nvml_the_plan_is_for_the_cpu_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from asrd.config.settings import Settings
    from asrd.engine.planner import plan_for
    from asrd.errors import PrecisionError

    monkeypatch.setattr(gpus, "gpus", list)
    monkeypatch.setattr(gpus, "nvml_problem", lambda: ("its library is not found", "install it"))
    made = plan_for(Settings())
    assert [candidate.name for candidate in made.candidates] == ["fp32 on cpu"]
    assert made.reason.startswith("no usable GPU, so FP32 on the CPU")
    assert made.reason.endswith("; its library is not found (install it)")
    assert "not found" not in plan_for(Settings(device="cpu")).reason
    with pytest.raises(
        PrecisionError, match="no GPU matches device 'cuda': its library is not found"
    ) as caught:
        plan_for(Settings(device="cuda"))
    assert caught.value.hint == "install it"
    assert "its library is not found: the plan is for the CPU (install it)" in caplog.text
    monkeypatch.setattr(gpus, "nvml_problem", lambda: ("no NVIDIA driver", ""))
    assert "driver" not in plan_for(Settings()).reason


def test_a_card_that_torch_cannot_use_is_not_planned_with(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from asrd.config.settings import Settings
    from asrd.engine.planner import plan_for, start_for
    from asrd.errors import PrecisionError

    old = Gpu(1, "GTX 1080", (6, 1), 8192 * MIB, 8000 * MIB)
    monkeypatch.setattr(gpus, "gpus", lambda: [A1000, old])
    monkeypatch.setattr(
        gpus,
        "torch_problem",
        lambda card: ("it is too old", "another torch") if card == old else ("", ""),
    )
    assert {candidate.device for candidate in plan_for(Settings()).candidates} == {"cuda:0", "cpu"}
    assert start_for(Settings(vram_budget="50%")).vram_limit == 2048 * MIB
    for device in ("cuda:1", "1080"):
        with pytest.raises(PrecisionError, match=r"^it is too old$") as caught:
            plan_for(Settings(device=device))
        assert caught.value.hint == "another torch"
    assert caplog.text == ""
    monkeypatch.setattr(gpus, "gpus", lambda: [old])
    made = plan_for(Settings(strategy="bfloat16"))
    assert [candidate.name for candidate in made.candidates] == ["bfloat16 on cpu", "fp32 on cpu"]
    assert made.reason == "bfloat16 was asked for; it is too old (another torch)"
    assert "it is too old: the plan is for the CPU (another torch)" in caplog.text
    assert plan_for(Settings(strategy="bfloat16", device="cpu")).reason == "bfloat16 was asked for"


@pytest.mark.parametrize("verb", ["tune", "compare"])
def test_what_is_measured_is_never_a_card_that_torch_cannot_use(
    verb: str, driver: Path, tmp_path: Path
) -> None:
    more = {
        "LD_LIBRARY_PATH": str(driver),
        "FAKE_GPUS": CARDS,
        "XDG_CONFIG_HOME": str(tmp_path),
        "FAKE_CUDA": "9000",
    }
    words = [sys.executable, "-m", "asrd", verb, "--device", "cuda"]
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, **more}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 69, done.stderr
    assert "pip install" in done.stderr
    words = [sys.executable, "-m", "asrd", verb, "--manifest", "/nowhere/m.jsonl"]
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, **more}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 65
    assert "the CPU is measured" in done.stderr


@pytest.mark.parametrize(
    ("strategy", "budget", "said"),
    [
        ("tf32", "", "TF32 needs compute capability 8.0; Tesla T4 has 7.5; fp32 instead"),
        ("half", "300MiB", "half would need"),
        ("half", "", None),
        ("auto", "", None),
    ],
)
def test_another_strategy_than_was_asked_for_is_never_used_in_silence(
    strategy: str,
    budget: str,
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from asrd.config.settings import Settings
    from asrd.engine.planner import plan_for

    monkeypatch.setattr(gpus, "gpus", lambda: [Gpu(0, "Tesla T4", (7, 5), 16 << 30, 15 << 30)])
    plan_for(Settings(model="demo", strategy=strategy, vram_budget=budget))
    assert [record.message for record in caplog.records] == (
        [] if said is None else [caplog.records[0].message]
    )
    assert said is None or said in caplog.text


def test_tf32_without_a_card_is_reported_as_fp32(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from asrd.config.settings import Settings
    from asrd.engine.planner import plan_for

    monkeypatch.setattr(gpus, "gpus", list)
    monkeypatch.setattr(gpus, "gpu_problem", lambda: ("", ""))
    assert [candidate.name for candidate in plan_for(Settings(strategy="tf32")).candidates] == [
        "fp32 on cpu"
    ]
    assert "a CPU has none; fp32 on cpu instead" in caplog.text


# -- a real card
# ------------------------------------------------------------------------------------------------------


def has_card() -> bool:
    import torch

    return bool(torch.cuda.is_available())


@pytest.mark.gpu
@pytest.mark.skipif(not has_card(), reason="no CUDA device")
def test_on_a_real_card_the_whole_process_stays_within_its_budget() -> None:
    import asyncio

    from asrd.engine.engine import Engine
    from asrd.precision.plan import Candidate, Plan

    candidates = (
        Candidate(STRATEGY_TABLE["fp32"], "cuda:0"),
        Candidate(STRATEGY_TABLE["fp32"], "cpu"),
    )
    sound = memoryview(bytes(4 * 16_000 * 10)).cast("f")

    async def held(limit: int) -> tuple[str, int, list[str]]:
        start = protocol.Start("demo", STRATEGY_TABLE["fp32"], vram_limit=limit)
        async with Engine(Plan("fp32", candidates, "test"), start) as engine:
            for _ in range(20):
                await engine.transcribe(sound)
            memory = await engine.measure("steady")
            return (
                engine.candidate.device,
                memory.process or 0,
                [one.kind for one in engine.rejected],
            )

    device, free, rejected = asyncio.run(held(0))
    assert (device, rejected) == ("cuda:0", [])
    device, process, rejected = asyncio.run(held(free + 64 * MIB))
    assert (device, rejected) == ("cuda:0", [])
    assert process <= free + 64 * MIB
    device, _, rejected = asyncio.run(held(free // 4))
    assert device == "cpu"
    assert rejected[0] in ("budget", "out-of-memory")
