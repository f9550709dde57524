"""A worker that is lost while nobody waits for text, a stop that is cancelled, a machine that sleeps in between.

Whatever happens then, the daemon comes to rest: it is neither busy nor said to load a model that is there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import subprocess
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest

from asrd.dictation import engine_slot as room
from asrd.dictation import recorder
from tests.daemon.test_daemon import Start, daemon, logind  # noqa: F401  (fixtures)
from tests.dictation.test_engine_slot import other
from tests.dictation.test_transcriber import (
    SAID,
    OpenMicrophone,
    at_work,
    case,
    rested,
    until,
)

REST_SECONDS = 10.0
"""In which everything comes to rest; a worker without a model starts in half a second."""


class Lost(NamedTuple):
    """How a worker is lost, and what is expected of it."""

    act: str
    """Of the fake worker, when it is asked for its memory; "outside": it is killed before."""
    failures: int
    """That the engine counts against its precision."""


LOST = {
    "dies": Lost("measuring:die", 1),
    "is killed as it is asked": Lost("measuring:kill", 1),
    "is killed before it is asked": Lost("outside", 1),
    "aborts": Lost("measuring:abort", 1),
    "says half a line": Lost("measuring:half", 1),
    "talks nonsense": Lost("measuring:garbage", 1),
    "answers to another question": Lost("measuring:wrong-id", 1),
    "has no memory": Lost("measuring:oom", 1),
    "loses its card": Lost("measuring:lost", 1),
    "closes its pipe": Lost("measuring:close", 1),
    "is stopped by the machine's sleep": Lost("measuring:stall", 0),
    "is frozen by the machine's sleep": Lost("measuring:freeze", 0),
}


def drawn(seed: int) -> tuple[str, dict[str, Any], bool]:
    """Return how the worker is lost, settings, and whether the machine sleeps before the worker is back."""
    draw = random.Random(f"lost {seed}")
    name = list(LOST)[seed % len(LOST)]
    given = {
        "strategy": draw.choice(("half", "fp32", "bfloat16")),
        "deliver": draw.choice(("take", "segment")),
    }
    return name, given, LOST[name].failures == 0 or draw.random() < 0.5


@pytest.mark.parametrize("seed", range(24))
@case
async def test_a_worker_lost_while_figures_are_read_leaves_a_daemon_at_rest(
    seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "asrd")
    name, given, sleeps = drawn(seed)
    act = LOST[name].act
    script = "*=ok" if act == "outside" else f"*={act}@{tmp_path}/once"
    async with at_work(tmp_path, script, **given) as one:
        await one.slot.load()
        result = await one.say().result
        if act == "outside":
            os.kill(one.slot.engine.pid or 0, signal.SIGKILL)
        if sleeps:
            await until(lambda: act == "outside" or (tmp_path / "once").exists())
            await asyncio.sleep(0.2 * (seed % 3))
            await one.slot.suspend()
            await asyncio.wait_for(rested(one), REST_SECONDS)
            await one.slot.resume()
        async with asyncio.timeout(REST_SECONDS):
            await rested(one)
            await until(lambda: one.slot.engine.ready is not None)
            await until(lambda: one.slot.idle)
        await asyncio.sleep(0.1)
        assert (one.slot.loading, one.slot.error, result.outcome) == (
            "",
            "",
            "delivered",
        )
        assert one.slot.engine.failures <= LOST[name].failures
        assert [record.getMessage()[:9] for record in caplog.records].count("delivered") == 1
        assert (await one.say().result).outcome == "delivered"
        assert len(one.arrived) == 2


@case
async def test_a_worker_that_comes_again_while_it_is_exchanged_leaves_nothing_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "fits_beside", lambda *_: True)
    gate = tmp_path / "gate"
    gate.touch()
    monkeypatch.setenv("FAKE_WORKER_GATE", str(gate))
    async with at_work(tmp_path, "half=gate *=ok") as one:
        await one.slot.load()
        gate.unlink()
        os.kill(one.slot.engine.pid or 0, signal.SIGKILL)
        recording = one.say()
        await until(lambda: one.slot.loading == "import")  # in the place of the one that was killed
        using = asyncio.create_task(one.slot.replace(other(one, "bfloat16"), strict=True))
        await until(lambda: len(one.engines) == 2 and one.engines[1].ready is not None)
        gate.touch()
        await using
        assert (await recording.result).outcome == "delivered"
        await rested(one)
        assert one.slot.loading == ""
        assert one.slot.engine is one.engines[1]


class SlowMicrophone(OpenMicrophone):
    """Is closed only when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.may_close = asyncio.Event()

    async def close(self) -> None:
        await self.may_close.wait()
        await super().close()


@pytest.mark.parametrize("moment", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("stays_open", [True, False])
@case
async def test_a_recording_ends_though_whoever_stopped_it_was_cancelled(
    tmp_path: Path, stays_open: bool, moment: float
) -> None:
    async with at_work(tmp_path, pre_roll=1.0 if stays_open else 0.0) as one:
        source = SlowMicrophone()
        own = recorder.Recorder(one.transcriber, lambda *_: source, mock.Mock())
        await own.apply_settings()
        recording = own.start()
        source.give(SAID)
        stopping = asyncio.create_task(own.stop())
        await asyncio.sleep(moment)
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
        source.may_close.set()
        assert (await recording.result).outcome == "delivered"
        await rested(one)


@pytest.mark.parametrize("act", ["kill", "stall", "freeze", "die"])
def test_a_machine_sleeps_at_once_though_a_worker_that_is_asked_for_figures_is_lost(
    act: str,
    daemon: Start,  # noqa: F811
    tmp_path: Path,
    logind: subprocess.Popen[str],  # noqa: F811
) -> None:
    assert logind.stdin
    assert logind.stdout
    bus = f"unix:path={tmp_path / 'bus'}"
    one = daemon(ASRD_MODEL=f"*=measuring:{act}@{tmp_path}/once", DBUS_SYSTEM_BUS_ADDRESS=bus)
    assert logind.stdout.readline().startswith("inhibit sleep asrd")
    one.speak()
    one.ask(verb="stop")
    one.until(lambda: bool(one.ask(verb="last").get("text")))
    one.until((tmp_path / "once").exists)
    logind.stdin.write("sleep\n")
    assert logind.stdout.readline() == "released\n"
    logind.stdin.write("wake\n")
    assert logind.stdout.readline().startswith("inhibit sleep asrd")
    one.until(lambda: one.state == "IDLE")
    assert one.ask(verb="status")["loading"] == ""
    assert "not ready to sleep" not in one.log.read_text()
    one.speak()
    one.ask(verb="stop")
    one.settled()
    assert one.end() == 0
