"""Each trigger on its way from a worker that does wrong to another candidate, the journal, the
status, and back again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from asrd import protocol
from asrd.audio.blocks import AudioBlock
from asrd.cli.status_page import page, waybar
from asrd.config.settings import Settings
from asrd.dictation import engine_slot, fallback_monitor, fallback_triggers, shadow
from asrd.dictation.fallback_monitor import FallbackMonitor
from asrd.dictation.idle_tasks import IdleTasks
from asrd.engine import baseline, capacity
from asrd.engine.baseline import Baseline, BaselineFigures
from asrd.precision import gpus, memory
from asrd.precision.plan import Gpu, Need
from asrd.recordings.deliveries import Deliveries
from asrd.streaming.session import StreamingSession
from tests import sound
from tests.cli.test_control import STATUS
from tests.dictation.test_engine_slot import other
from tests.dictation.test_transcriber import (
    SAID,
    TWICE,
    Room,
    at_work,
    case,
    push,
    rested,
    until,
)
from tests.helpers import ROOT
from tests.precision.plans import plan_on

MIB = 1 << 20


@pytest.fixture(autouse=True)
def at_root(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(gpus, "gpus", list)
    monkeypatch.setattr(shadow, "QUIET_SECONDS", 0.05)
    monkeypatch.setattr(shadow, "BUSY_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(shadow, "machine_is_idle", lambda: True)
    logging.getLogger("asrd").propagate = True
    caplog.set_level(logging.INFO, "asrd")


def events(caplog: pytest.LogCaptureFixture, name: str) -> list[dict[str, str]]:
    """Return the fields of the journal's entries of one kind, without their prefix."""
    records = [
        vars(record) for record in caplog.records if getattr(record, "ASRD_EVENT", "") == name
    ]
    return [
        {k.removeprefix("ASRD_"): v for k, v in one.items() if k.startswith("ASRD_")}
        for one in records
    ]


def no_text(caplog: pytest.LogCaptureFixture) -> None:
    """What was said stands nowhere in the journal."""
    assert not [record for record in caplog.records if "samples sum" in str(vars(record))]


def measured(script: str, **fp32: Any) -> None:
    """Have `asrd compare` measured FP32 of a model on the CPU."""
    figures = {
        "process": None,
        "source": "rss",
        "p50_ms": None,
        "wer": 2.0,
        "wer_delta": None,
    } | fp32
    baseline.keep(script, "cpu", Baseline("now", {"fp32": BaselineFigures(**figures)}))


@contextlib.asynccontextmanager
async def resting(one: Room) -> AsyncIterator[IdleTasks]:
    """Have what can wait done."""
    idle = IdleTasks(one.slot)
    task = asyncio.create_task(idle.run())
    try:
        yield idle
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def left(one: Room) -> tuple[str, list[tuple[str, str]]]:
    """Return the candidate in service, and what was left for what."""
    engine = one.slot.engine
    return engine.candidate.name, [(each.candidate, each.kind) for each in engine.rejected]


# -- the triggers
# -----------------------------------------------------------------------------------------------------


@case
async def test_clear_speech_without_a_word_is_heard_by_the_next_candidate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with at_work(tmp_path, "half=deaf", demote_empty=0.3) as one:
        result = await one.say().result
        assert (result.outcome, result.strategy) == ("delivered", "fp32")
        assert one.arrived == [result.text]
        assert left(one) == ("fp32 on cpu", [("half on cpu", "empty")])
        [step] = events(caplog, "demoted")
        wanted = {
            "STRATEGY": "fp32 on cpu",
            "BEFORE": "half on cpu",
            "WANTED": "half on cpu",
            "KIND": "empty",
        }
        assert wanted.items() <= step.items()
        assert float(step["CLEAR_SECONDS"]) >= 0.3
        no_text(caplog)


@case
async def test_where_fp32_hears_nothing_either_the_candidate_is_pardoned_and_the_silence_believed(
    tmp_path: Path,
) -> None:
    async with at_work(tmp_path, "*=deaf", demote_empty=0.3) as one:
        result = await one.say().result
        assert (result.outcome, result.text) == ("empty", "")
        assert left(one) == ("fp32 on cpu", [("half on cpu", "silent")])
        assert one.slot.monitor.backoff.seconds_left(0.0) is not None, "it may return"
        pid = one.slot.engine.pid
        await rested(one)
        assert (await one.say().result).outcome == "empty"
        assert one.slot.engine.pid == pid, "FP32's silence costs no worker"


@pytest.mark.parametrize(("limit", "outcome"), [(0.0, "empty"), (30.0, "kept")])
@case
async def test_little_speech_without_a_word_is_no_reason_and_its_sound_is_kept(
    tmp_path: Path, limit: float, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with at_work(tmp_path, "half=deaf", demote_empty=limit) as one:
        result = await one.say().result
        assert result.outcome == outcome
        assert left(one) == ("half on cpu", [])
        assert len(one.spool.waiting()) == len(events(caplog, "kept")) == (outcome == "kept")
        await rested(one)
        assert (await one.say(sound.silence(1.0)).result).outcome == "empty"
        if outcome == "kept":
            assert result.detail.startswith("half found no word in 0.")
            assert await one.transcriber.retry(one.spool.waiting()[0]), "by the next candidate"
            assert left(one) == ("fp32 on cpu", [("half on cpu", "empty")])


@case
async def test_speech_without_a_word_adds_up_from_take_to_take(tmp_path: Path) -> None:
    async with at_work(tmp_path, "half=deaf", demote_empty=1.0) as one:
        result = [await one.say().result for _ in range(3)]
        assert [each.outcome for each in result] == ["kept", "delivered", "delivered"]
        assert left(one) == ("fp32 on cpu", [("half on cpu", "empty")])
        [note] = one.spool.waiting()
        assert await one.transcriber.retry(note)


@case
async def test_a_candidate_that_is_slower_than_fp32_was_is_left_after_the_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fallback_triggers, "MIN_LONG_SECONDS", 0.1)
    monkeypatch.setattr(fallback_triggers, "MIN_LONG_BUFFERS", 2)
    for limit, expected in ((10.0, "fp32 on cpu"), (0.0, "half on cpu")):
        async with at_work(tmp_path, "half=slow-answers", demote_slower=limit) as one:
            measured(one.settings.model, p50_ms=100.0)
            for _ in range(2):
                assert (await one.say().result).strategy == "half", "while it speaks it stays"
                await rested(one)
            assert one.slot.engine.candidate.name == expected
            assert one.slot.engine.ready is not None, "the next one is ready"
            assert (await one.say().result).outcome == "delivered"
    [step] = events(caplog, "demoted")
    assert (step["KIND"], step["P50_MS"], step["BASELINE_P50_MS"]) == ("slow", "90000", "100")
    no_text(caplog)


@case
async def test_without_a_comparison_nothing_is_slow_or_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallback_triggers, "MIN_LONG_SECONDS", 0.1)
    monkeypatch.setattr(fallback_triggers, "MIN_LONG_BUFFERS", 1)
    async with at_work(tmp_path, "half=slow-answers") as one:
        await one.say().result
        await rested(one)
        assert left(one) == ("half on cpu", [])
    async with at_work(tmp_path, "half=heavy") as one:
        await one.say().result
        await rested(one)
        assert left(one) == ("half on cpu", [])


@case
async def test_a_candidate_that_holds_more_than_fp32_did_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with at_work(tmp_path, "half=heavy") as one:
        measured(one.settings.model, process=500 * MIB)
        await one.say().result
        await rested(one)
        assert left(one) == ("fp32 on cpu", [("half on cpu", "memory")])
        [step] = events(caplog, "demoted")
        assert (step["PROCESS_BYTES"], step["BASELINE_PROCESS_BYTES"]) == (
            str(1 << 40),
            str(500 * MIB),
        )


@case
async def test_workers_that_are_lost_again_and_again_are_a_rate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with at_work(tmp_path) as one:
        for number in range(fallback_triggers.MIN_FAILURES):
            await one.slot.load()
            assert left(one) == ("half on cpu", []), f"forgiven {number} times"
            pid = one.slot.engine.pid
            assert pid
            os.kill(pid, signal.SIGKILL)
            assert (await one.say().result).outcome == "delivered"
            await rested(one)
        assert left(one) == ("fp32 on cpu", [("half on cpu", "failures")])
        [step] = events(caplog, "demoted")
        assert (step["FAILURES"], step["BUFFERS"]) == ("3", "3")


@case
async def test_out_of_memory_and_what_is_not_finite_cost_a_candidate_and_no_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with at_work(tmp_path, "half=nan-in-layer") as one:
        result = await one.say(TWICE).result
        assert (result.outcome, result.strategy) == ("delivered", "half(encoder.layers.3:float32)")
        assert result.text.count("samples") == 2
        [step] = events(caplog, "demoted")
        assert (step["KIND"], step["STRATEGY"]) == (
            "non-finite",
            "half(encoder.layers.3:float32) on cpu",
        )
        assert step["EFFECTIVE"] == "encoder=float16/float32"
    async with at_work(tmp_path, "half=oom") as one:
        assert (await one.say().result).strategy == "fp32"
    assert [step["KIND"] for step in events(caplog, "demoted")] == ["non-finite", "out-of-memory"]


@case
async def test_a_candidate_that_surely_changes_words_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with at_work(tmp_path, "half=garbled", shadow=1) as one, resting(one):
        bounds = iter([None, (0.9, 80.0), (1.1, 60.0)])
        monkeypatch.setattr(shadow, "disagreement", lambda counts: next(bounds))
        for number in range(3):
            assert left(one) == ("half on cpu", [])
            await one.say().result
            await until(lambda: len(events(caplog, "shadow")) == number + 1)  # noqa: B023
        await until(lambda: bool(events(caplog, "demoted")))
        assert left(one)[1] == [("half on cpu", "changed")]
        [step] = events(caplog, "demoted")
        assert (step["CHANGED"], step["WORDS"], step["LOW_PER_100"]) == ("3", "12", "1.1")
        assert one.slot.shadow.waiting is False
        no_text(caplog)


@case
async def test_where_no_candidate_would_help_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On a card the next candidate below FP32's comparison must not be the CPU."""
    async with at_work(tmp_path, "*=heavy", strategy="tf32") as one:
        engine = one.slot.engine
        engine._chain.candidates = [
            candidate
            for candidate in plan_on("tf32", "auto", [CARD]).candidates
            if candidate.name != "fp32"
        ]
        baseline.keep(
            one.settings.model,
            "cuda",
            Baseline("now", {"fp32": BaselineFigures(1, "nvml", None, None, None)}),
        )
        for _ in range(2):
            await one.say().result
            await rested(one)
        assert engine.candidate.name == "tf32"
        [said] = events(caplog, "rejected")
        assert (said["KIND"], said["STRATEGY"]) == ("memory", "tf32")


CARD = Gpu(0, "A card", (8, 6), 8000 * MIB, 8000 * MIB)


@case
async def test_a_candidate_above_the_budget_gives_way_to_one_that_needs_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gpus, "gpus", lambda: [CARD])
    async with at_work(tmp_path, "half=heavy bfloat16=heavy", vram_budget="50%") as one:
        for expected in ("half", "fp32"):
            assert (await one.say().result).strategy == expected
            await rested(one)
        in_service, why = left(one)
        assert in_service == "fp32 on cpu"
        assert why == [("half", "budget")], "bfloat16 would hold as much, tf32 and fp32 more"
        [step] = events(caplog, "demoted")
        assert (step["BEFORE"], step["STRATEGY"]) == ("half", "fp32 on cpu")
        assert step["BUDGET_BYTES"] == str(4000 * MIB)


def test_the_budget_is_of_the_card_that_the_candidate_is_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = msgspec.structs.replace(CARD, index=1, total=4000 * MIB)
    monkeypatch.setattr(gpus, "gpus", lambda: [CARD, other])
    half = Settings(vram_budget="50%")
    assert fallback_monitor._budget(half, "cuda:0") == 4000 * MIB
    assert fallback_monitor._budget(half, "cuda:1") == 2000 * MIB
    assert fallback_monitor._budget(half, "cpu") is None
    assert fallback_monitor._budget(Settings(), "cuda:0") is None
    monkeypatch.setattr(gpus, "gpus", list)
    assert fallback_monitor._budget(half, "cuda:0") is None, "nobody knows half of what"


# -- it is never silent
# -----------------------------------------------------------------------------------------------


@case
async def test_a_person_is_told_once_and_the_status_for_as_long_as_it_lasts(tmp_path: Path) -> None:
    result: list[tuple[str, str]] = []
    async with at_work(tmp_path, "half=nan") as one:
        one.slot.monitor._warn = lambda *said: result.append(said)
        assert one.slot.monitor.fallback(one.slot.engine) is None
        for _ in range(3):
            await one.say().result
        assert result == [
            (
                "Another precision",
                "fell back from half on cpu to fp32 on cpu: the encoder put out nan",
            )
        ]
        below = one.slot.monitor.fallback(one.slot.engine)
        assert below == {
            "wanted": "half on cpu", "kind": "non-finite", "detail": "the encoder put out nan", "again_in": None
        }  # fmt: skip
    status = STATUS | {"fallback": below}
    assert "fallback  half on cpu was asked for and is not used: the encoder put out nan" in page(
        status
    )
    assert waybar(status | {"state": "IDLE"})["class"] == ["idle", "fallback", "below"]
    assert "tried again after 30 min" in page(STATUS | {"fallback": {**below, "again_in": 1800}})


def test_what_the_hardware_refuses_is_below_what_was_asked_too() -> None:
    old = Gpu(0, "Tesla T4", (7, 5), 1 << 33, 1 << 33)
    assert fallback_monitor.wanted(plan_on("bfloat16", "auto", [old])) == "bfloat16"
    assert fallback_monitor.wanted(plan_on("bfloat16", "auto", [CARD])) == "bfloat16"
    assert fallback_monitor.wanted(plan_on("auto", "auto", [CARD])) == "bfloat16"
    assert fallback_monitor.wanted(plan_on("half", "cpu")) == "half on cpu"


@case
async def test_several_who_are_asked_at_once_hear_of_one_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with at_work(tmp_path, "half=nan") as one:

        async def listen() -> None:
            pieces = [AudioBlock(at, SAID[at : at + 320]) for at in range(0, len(SAID), 320)]
            async for _ in one.transcriber.transcribe(pieces, StreamingSession(one.settings)):
                pass

        await asyncio.gather(*(listen() for _ in range(3)), one.say().result)
        assert len(events(caplog, "demoted")) == len(events(caplog, "rejected")) == 1


# -- the way back
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [True, False])
@case
async def test_what_has_passed_is_tried_again_while_nobody_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, beside: bool
) -> None:
    monkeypatch.setattr(engine_slot, "fits_beside", lambda *_: beside)
    async with (
        at_work(tmp_path, f"half=oom@{tmp_path}/once", promote_after=0.002) as one,
        resting(one),
    ):
        assert (await one.say().result).strategy == "fp32"
        await until(
            lambda: (
                one.slot.engine.candidate.name == "half on cpu"
                and one.slot.engine.ready is not None
            )
        )
        assert one.engines[0].pid is None
        assert (await one.say().result).strategy == "half"
        assert one.slot.monitor.fallback(one.slot.engine) is None
        [back] = events(caplog, "promoted")
        assert (back["STRATEGY"], back["BEFORE"]) == ("half on cpu", "fp32 on cpu")


@case
async def test_what_failed_while_loading_is_tried_again_though_nobody_has_spoken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        at_work(tmp_path, f"half=no-room@{tmp_path}/once", promote_after=0.002) as one,
        resting(one),
    ):
        await one.slot.load()
        assert left(one) == ("fp32 on cpu", [("half on cpu", "out-of-memory")])
        assert [step["BEFORE"] for step in events(caplog, "demoted")] == ["half on cpu"]
        await until(lambda: bool(events(caplog, "promoted")))
        assert left(one) == ("half on cpu", [])


@case
async def test_a_file_that_was_heard_leaves_the_rest_to_go_on(tmp_path: Path) -> None:
    async with (
        at_work(tmp_path, f"half=oom@{tmp_path}/once", promote_after=0.002) as one,
        resting(one),
    ):
        dictation = StreamingSession(one.settings)
        pieces = [AudioBlock(at, SAID[at : at + 320]) for at in range(0, len(SAID), 320)]
        async for _ in one.transcriber.transcribe(pieces, dictation):
            pass
        assert dictation.strategy == "fp32"
        await until(lambda: one.slot.engine.candidate.name == "half on cpu")


@case
async def test_what_is_the_candidates_own_fault_is_not_tried_again(tmp_path: Path) -> None:
    async with at_work(tmp_path, "half=nan", promote_after=0.0001) as one, resting(one) as idle:
        await one.say().result
        await rested(one)
        assert idle.due is None
        assert not await one.slot.try_restore()
        assert len(one.engines) == 1


@pytest.mark.parametrize("beside", [True, False])
@case
async def test_a_try_in_vain_leaves_what_serves_and_waits_twice_as_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    monkeypatch.setattr(engine_slot, "fits_beside", lambda *_: beside)
    async with at_work(tmp_path, "half=oom", promote_after=1.0) as one:
        await one.say().result
        await rested(one)
        wait = one.slot.monitor.backoff.wait
        one.slot.settings = msgspec.structs.replace(one.settings, model="half=refuse")
        served = one.slot.engine
        assert not await one.slot.try_restore()
        assert one.slot.engine is served
        assert served.ready is not None, "it serves as before"
        assert one.slot.monitor.backoff.wait == 2 * wait
        assert one.engines[-1].pid is None
        assert (await one.say().result).strategy == "fp32"


@case
async def test_a_candidate_that_is_tried_again_is_judged_by_what_it_does_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallback_triggers, "MIN_LONG_SECONDS", 0.1)
    monkeypatch.setattr(fallback_triggers, "MIN_LONG_BUFFERS", 2)
    async with at_work(tmp_path, "half=slow-answers", promote_after=1.0) as one:
        measured(one.settings.model, p50_ms=100.0)
        for expected in ("half", "half", "fp32"):
            assert (await one.say().result).strategy == expected
            await rested(one)
        assert await one.slot.try_restore()
        for expected in ("half", "half", "fp32"):
            assert (await one.say().result).strategy == expected
            await rested(one)
        assert one.slot.monitor.backoff.wait == 120, "it was in vain"


@case
async def test_a_parked_engine_is_exchanged_without_a_worker(tmp_path: Path) -> None:
    async with at_work(tmp_path, f"half=oom@{tmp_path}/once", promote_after=1.0) as one:
        await one.say().result
        await rested(one)
        await one.slot.unload()
        assert await one.slot.try_restore()
        assert one.slot.engine.pid is None
        assert (await one.say().result).strategy == "half"


@case
async def test_a_key_ends_the_try_at_once_and_the_text_comes_from_what_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_WORKER_GATE", os.fspath(tmp_path / "gate"))
    async with (
        at_work(tmp_path, f"half=oom@{tmp_path}/once", promote_after=0.001) as one,
        resting(one),
    ):
        await one.say().result
        one.slot.settings = msgspec.structs.replace(one.settings, model="half=gate")
        await until(lambda: len(one.engines) == 2 and one.engines[1].pid is not None)
        pid, job = one.engines[1].pid, one.slot.activity.idle_job
        assert pid
        assert job
        assert (await one.say().result).strategy == "fp32"
        await asyncio.wait([job])
        assert job.cancelled()
        assert one.engines[1].pid is None
        assert one.slot.engine is one.engines[0]


@case
async def test_use_overrides_and_forgets(tmp_path: Path) -> None:
    async with at_work(tmp_path, f"half=nan@{tmp_path}/once") as one:
        await one.say().result
        assert left(one) == ("fp32 on cpu", [("half on cpu", "non-finite")])
        await one.slot.replace(one.settings, strict=True)
        assert left(one) == ("half on cpu", [])
        assert one.slot.monitor.backoff.seconds_left(0.0) is None
        assert (await one.say().result).strategy == "half"


# -- the shadow
# -------------------------------------------------------------------------------------------------------


@case
async def test_one_take_in_n_is_heard_again_in_fp32_and_only_counts_remain(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with at_work(tmp_path, "half=garbled", shadow=2, keep_audio="never") as one, resting(one):
        for _ in range(4):
            await one.say(TWICE).result
            await rested(one)
        await until(lambda: len(events(caplog, "shadow")) == 2)
        assert one.spool.all() == []
        assert not list(one.spool.where.iterdir())
        result = events(caplog, "shadow")
        assert [
            (each["STRATEGY"], each["WORDS"], each["CHANGED"], each["DEVICE"]) for each in result
        ] == 2 * [("half", "8", "2", "cpu")]
        await until(lambda: len([each for each in one.engines if each.pid is not None]) == 1)
        assert one.slot.shadow.figures == {
            "strategy": "half", "recordings": 2, "changed": 4, "words": 16, "per_100": 25.0, "low": None, "high": None,
            "waiting": 0,
        }  # fmt: skip
        no_text(caplog)


@case
async def test_the_same_words_are_no_disagreement(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with at_work(tmp_path, shadow=1) as one, resting(one):
        await one.say(TWICE).result
        await until(lambda: bool(events(caplog, "shadow")))
        figures = one.slot.shadow.figures
        assert (figures["changed"], figures["words"], figures["low"], figures["high"]) == (
            0,
            8,
            0.0,
            0.0,
        )


@case
async def test_fp32_has_no_shadow_and_neither_has_silence(tmp_path: Path) -> None:
    for strategy, samples in (("fp32", SAID), ("half", sound.silence(1.0))):
        async with at_work(tmp_path, strategy=strategy, shadow=1) as one:
            await one.say(samples).result
            assert not one.slot.shadow.waiting


@case
async def test_a_key_ends_the_shadow_at_once_and_it_is_done_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        at_work(tmp_path, f"fp32=stall@{tmp_path}/once", shadow=2) as one,
        resting(one),
    ):
        for _ in range(2):
            await one.say().result
            await rested(one)
        await until((tmp_path / "once").exists)
        job, shadowing = one.slot.activity.idle_job, one.engines[1]
        assert job
        assert (await one.say().result).strategy == "half"
        await asyncio.wait([job])
        assert job.cancelled()
        assert shadowing.pid is None
        assert one.slot.shadow.waiting
        await until(lambda: len(events(caplog, "shadow")) == 1)


@case
async def test_what_waits_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = len(SAID) / 16_000
    monkeypatch.setattr(shadow, "MAX_WAITING_SECONDS", 2.5 * seconds)
    async with at_work(tmp_path, shadow=1) as one:
        for _ in range(5):
            await one.say().result
        await rested(one)
        held = one.slot.shadow._waiting
        assert len(held) == 2
        assert all(np.array_equal(each.audio, SAID) for each in held)
        monkeypatch.setattr(shadow, "MAX_RECORDING_SECONDS", 0.5 * seconds)
        await one.say().result
        await rested(one)
        assert len(held) == 2


def test_words_are_counted_without_case_and_punctuation() -> None:
    assert shadow.words("The cat,  sat - down.") == ["the", "cat", "sat", "down"]


def test_where_a_second_worker_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(model="demo")
    assert capacity.place_beside(settings, None, False) == "cpu"
    monkeypatch.setattr(gpus, "gpus", lambda: [CARD])
    assert capacity.place_beside(settings, 0, False) == "cuda:0"
    monkeypatch.setattr(gpus, "gpus", lambda: [msgspec.structs.replace(CARD, free=MIB)])
    assert capacity.place_beside(settings, 0, False) == "cpu"
    monkeypatch.setattr(gpus, "gpus", lambda: [CARD])
    assert capacity.place_beside(settings, 0, True) == "cpu", "the card refused one before"
    tight = Settings(model="demo", vram_budget="2000MiB")
    assert capacity.place_beside(tight, 0, False) == "cuda:0"
    assert capacity.place_beside(tight, 1900 * MIB, False) == "cpu"
    assert capacity.place_beside(tight, None, False) == "cpu", "nobody knows what is in use"
    monkeypatch.setattr(capacity, "available", lambda: 1.0)
    assert capacity.place_beside(tight, None, False) is None


# -- between two steps
# ------------------------------------------------------------------------------------------------


def crowd(one: Room, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[tuple[str, str]]]:
    """Let every candidate on the card need 1,000 MiB; return what is free there, to be set, and
    what a person is told."""
    free, result = [100 * MIB], list[tuple[str, str]]()
    monkeypatch.setattr(gpus, "free_bytes", lambda index: free[0])
    engine, needs = one.slot.engine, ("half", "bfloat16", "tf32", "fp32")
    engine.plan = msgspec.structs.replace(
        engine.plan, needs={name: Need(1000 * MIB) for name in needs}
    )
    one.slot.monitor._warn = lambda *said: result.append(said)
    return free, result


@case
async def test_what_comes_back_after_parking_and_is_left_again_is_told_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gpus, "gpus", lambda: [CARD])
    async with at_work(tmp_path, "*=ok") as one:
        free, result = crowd(one, monkeypatch)
        for room, candidate in (
            (100, "fp32 on cpu"),
            (5000, "half"),
            (100, "fp32 on cpu"),
            (100, "fp32 on cpu"),
        ):
            free[0] = room * MIB
            await one.slot.load()
            assert one.slot.engine.candidate.name == candidate
            await one.slot.unload()
        assert [(step["BEFORE"], step["STRATEGY"]) for step in events(caplog, "demoted")] == [
            ("half", "fp32 on cpu")] * 2  # fmt: skip
        assert [(step["BEFORE"], step["STRATEGY"]) for step in events(caplog, "promoted")] == [
            ("fp32 on cpu", "half")
        ]
        assert len(result) == 2


@case
async def test_what_failed_for_another_reason_after_parking_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gpus, "gpus", lambda: [CARD])
    async with at_work(tmp_path, "half=oom *=ok") as one:
        free, result = crowd(one, monkeypatch)
        await one.slot.load()
        await one.slot.unload()
        free[0] = 5000 * MIB
        await one.slot.load()
        assert (await one.say().result).outcome == "delivered"
        assert [step["KIND"] for step in events(caplog, "demoted")] == ["no-room", "out-of-memory"]
        assert len(result) == 2
        assert one.slot.monitor.backoff.seconds_left(0.0) is not None


def slow(monkeypatch: pytest.MonkeyPatch, one: Room) -> None:
    """Have one long answer be enough to call a candidate slow."""
    monkeypatch.setattr(fallback_triggers, "MIN_LONG_SECONDS", 0.1)
    monkeypatch.setattr(fallback_triggers, "MIN_LONG_BUFFERS", 1)
    measured(one.settings.model, p50_ms=100.0)


@case
async def test_a_verdict_is_of_the_worker_that_it_was_found_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with at_work(tmp_path, "half=slow-answers *=ok", demote_slower=10.0) as one:
        slow(monkeypatch, one)
        await one.slot.load()
        reading, measure = asyncio.Event(), one.engines[0].read_ledger

        async def slowly(phase: str) -> memory.Memory | None:
            reading.set()
            await asyncio.sleep(0.3)
            return await measure(phase)

        monkeypatch.setattr(one.engines[0], "read_ledger", slowly)
        recording = one.say()
        await reading.wait()
        await one.slot.replace(other(one, "bfloat16"), strict=True)
        await recording.result
        await rested(one)
        assert left(one) == ("bfloat16 on cpu", [])
        assert events(caplog, "demoted") == []
        assert [step["STRATEGY"] for step in events(caplog, "take")] == ["half"]
        assert [step["EFFECTIVE"] for step in events(caplog, "take")] == ["encoder=float16"]


@case
async def test_failures_of_candidates_before_are_not_the_fault_of_one_that_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_work(tmp_path, "half=nan bfloat16=nan *=ok") as one:
        await one.say().result
        await rested(one)
        engine = one.slot.engine
        assert engine.failures
        again = FallbackMonitor(one.settings, engine, lambda *_: None)
        again.note_answer(
            1.0,
            "final",
            protocol.Answer(0, protocol.Hypothesis("a", [], 0, 1, "fp32"), 0.1, 0.1, 0.1),
        )
        assert again.judge(engine, None, {}) is None
        again.report_restored(engine)
        again.note_answer(
            1.0,
            "final",
            protocol.Answer(0, protocol.Hypothesis("a", [], 0, 1, "fp32"), 0.1, 0.1, 0.1),
        )
        assert again.judge(engine, None, {}) is None


@case
async def test_only_the_candidates_that_the_same_silence_left_are_pardoned(tmp_path: Path) -> None:
    async with at_work(tmp_path, "half=deaf *=ok", demote_empty=0.3) as one:
        assert (await one.say().result).outcome == "delivered"
        one.slot.engine.mark_inherent("empty", ["bfloat16 on cpu"])
        assert left(one)[1] == [("half on cpu", "empty")], "FP32 heard a word"


@case
async def test_no_return_means_none(tmp_path: Path) -> None:
    async with at_work(tmp_path, "half=oom", promote_after=1.0) as one:
        assert (await one.say().result).outcome == "delivered"
        backoff, never = (
            one.slot.monitor.backoff,
            msgspec.structs.replace(one.settings, promote_after=0.0),
        )
        assert backoff.seconds_left(0.0)
        one.slot.monitor.apply_settings(never)
        assert backoff.seconds_left(0.0) is None
        backoff.note_retry(0.0, held=False)
        assert backoff.seconds_left(1e9) is None
        one.slot.monitor.apply_settings(one.settings)
        assert backoff.seconds_left(0.0), "what is below is waited for again"


@case
async def test_a_shadow_gives_its_memory_back_before_a_key_starts_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "gpus", lambda: [CARD])
    monkeypatch.setattr(shadow, "place_beside", lambda *_: "cuda:0")
    async with (
        at_work(tmp_path, "fp32=stall *=ok", shadow=1, promote_after=0.0) as one,
        resting(one),
    ):

        def free(index: int) -> int:
            held = any(engine.pid and engine.plan.requested == "fp32" for engine in one.engines)
            return (500 if held else 5000) * MIB

        crowd(one, monkeypatch)
        monkeypatch.setattr(gpus, "free_bytes", free)
        assert (await one.say().result).strategy == "half"
        await rested(one)
        await one.slot.unload()
        await until(lambda: len(one.engines) > 1 and one.engines[1].ready is not None)
        recording = one.begin()
        loading = asyncio.create_task(one.slot.load())  # as a key does
        push(recording, SAID)
        recording.end()
        assert (await recording.result).strategy == "half"
        await loading
        assert left(one) == ("half", [])


@case
async def test_a_shadow_of_another_engine_is_not_held_against_the_one_in_service(
    tmp_path: Path,
) -> None:
    async with at_work(tmp_path, shadow=1) as one:
        typing, done = asyncio.Event(), asyncio.Event()

        async def deliver(record: Deliveries, number: int) -> list[str]:
            typing.set()
            await done.wait()
            return []

        usual, one.transcriber._deliver = one.transcriber._deliver, deliver
        recording = one.say()
        await typing.wait()
        await one.slot.replace(one.settings)
        done.set()
        await recording.result
        await rested(one)
        assert not one.slot.shadow.waiting
        one.transcriber._deliver = usual
        await one.say().result
        await rested(one)
        assert one.slot.shadow.waiting
