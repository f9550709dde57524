"""The engine in service over real workers: replaced, unloaded, suspended; within its memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from asrd import protocol
from asrd.config.settings import Settings
from asrd.dictation import engine_slot
from asrd.dictation.activity import ReadWriteLock
from asrd.engine import planner
from asrd.engine.capacity import fits_beside
from asrd.engine.planner import plan_for as planned
from asrd.errors import AsrdError, EngineError, NetworkError, PrecisionError
from asrd.precision import gpus
from asrd.precision.plan import Candidate, Gpu
from asrd.precision.strategies import STRATEGY_TABLE
from tests.dictation.test_transcriber import (
    IN_TIME,
    SAID,
    TWICE,
    Room,
    at_root,  # noqa: F401 - a fixture
    at_work,
    case,
    push,
    until,
)


@case
async def test_many_use_the_engine_at_once_and_whoever_exchanges_it_is_alone() -> None:
    turns, inside, most = ReadWriteLock(), [], 0

    async def use(name: str, kind: str) -> None:
        nonlocal most
        async with getattr(turns, kind)():
            assert not [other for other in inside if "alone" in (kind, other[1])]
            inside.append((name, kind))
            most = max(most, len(inside))
            await asyncio.sleep(0.02)
            inside.remove((name, kind))

    async with asyncio.timeout(IN_TIME):
        await asyncio.gather(*(use(str(n), "alone" if n % 4 == 3 else "shared") for n in range(16)))
    assert most == 3
    given_up = asyncio.create_task(use("late", "shared"))
    async with turns.alone():
        await asyncio.sleep(0)
        given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    await use("last", "alone")


def other(one: Room, strategy: str) -> Settings:
    return Settings(model=one.settings.model, strategy=strategy, suffix="")


@pytest.mark.parametrize("beside", [True, False])
@case
async def test_another_strategy_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    monkeypatch.setattr(engine_slot, "fits_beside", lambda *_: beside)
    async with at_work(tmp_path) as one:
        await one.slot.load()
        recording = one.begin()
        push(recording, SAID)
        await until(lambda: bool(recording.text))
        await one.slot.replace(other(one, "bfloat16"), strict=True)
        old, new = one.engines
        assert old.pid is None
        push(recording, TWICE[len(SAID) :])
        recording.end()
        result = await recording.result
        assert (result.outcome, result.strategy) == ("delivered", "bfloat16")
        assert result.text.count("samples") == 2
        assert one.slot.engine is new


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("act", ["refuse", "model", "die-loading"])
@case
async def test_a_strategy_that_does_not_hold_leaves_the_old_one_in_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool, act: str
) -> None:
    monkeypatch.setattr(engine_slot, "fits_beside", lambda *_: beside)
    async with at_work(tmp_path, f"bfloat16={act}") as one:
        await one.slot.load()
        pid = one.engines[0].pid
        with pytest.raises(AsrdError):
            await one.slot.replace(other(one, "bfloat16"), strict=True)
        assert one.slot.settings.strategy == "half"
        assert one.slot.engine.ready is not None
        assert (one.slot.engine.pid == pid) is beside
        assert one.engines[1].pid is None
        assert (one.slot.loading, one.slot.error) == ("", "")
        assert (await one.say().result).strategy == "half"


@pytest.mark.parametrize("beside", [True, False])
@case
async def test_whoever_asked_for_another_strategy_and_goes_leaves_no_worker_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    monkeypatch.setattr(engine_slot, "fits_beside", lambda *_: beside)
    async with at_work(tmp_path) as one:
        await one.slot.load()
        async with one.slot.lock.shared():  # somebody is being heard
            asking = asyncio.create_task(one.slot.replace(other(one, "bfloat16"), strict=True))
            await until(
                lambda: len(one.engines) == 2 and (one.engines[1].ready is not None) is beside
            )
            await asyncio.sleep(0.05)
            assert not one.slot.idle, "nothing may start beside the two"
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        assert one.engines[1].pid is None
        assert one.slot.engine is one.engines[0]
        assert one.slot.idle
        assert (await one.say().result).strategy == "half"


@pytest.mark.parametrize("beside", [True, False])
@case
async def test_another_strategy_that_starts_as_the_machine_falls_asleep_starts_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    monkeypatch.setattr(engine_slot, "fits_beside", lambda *_: beside)
    monkeypatch.setenv("FAKE_WORKER_GATE", str(tmp_path / "gate"))
    async with at_work(tmp_path, "half=ok *=gate") as one:
        await one.slot.load()
        asking = asyncio.create_task(one.slot.replace(other(one, "bfloat16"), strict=True))
        await until(lambda: len(one.engines) == 2 and one.engines[1].pid is not None)
        await one.slot.suspend()
        (tmp_path / "gate").touch()
        await asyncio.sleep(0.3)
        assert [engine.pid for engine in one.engines] == [None, None]
        recording = one.say()
        await one.slot.resume()
        await asking
        assert (await recording.result).outcome == "delivered"
        assert one.slot.engine is one.engines[1]
        assert one.engines[0].pid is None


@pytest.mark.parametrize("arrives", [True, False])
@case
async def test_while_another_model_is_downloaded_dictation_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrives: bool
) -> None:
    monkeypatch.setattr(engine_slot, "fits_beside", lambda *_: False)
    gate, state = asyncio.Event(), protocol.Download("someone/large", 1, 2)

    async def slow(model: str, tell: Callable[[protocol.Progress], None]) -> Path:
        tell(protocol.Progress("download", state.text, 0.5, state))
        await gate.wait()
        if not arrives:
            raise NetworkError("it broke off")
        return Path(model)

    async with at_work(tmp_path) as one:
        await one.slot.load()
        one.fetch = slow
        asking = asyncio.create_task(one.slot.replace(other(one, "bfloat16"), strict=True))
        await until(lambda: one.slot.download == state)
        assert (await one.say().result).strategy == "half"
        assert one.slot.download == state
        assert one.slot.loading == "download someone/large: 0.0 MB of 0.0 MB"
        gate.set()
        await asyncio.gather(asking, return_exceptions=True)
        assert (one.slot.download, one.slot.loading) == (None, "")
        assert (await one.say().result).strategy == ("bfloat16" if arrives else "half")


@case
async def test_without_strictness_the_next_candidate_will_do(tmp_path: Path) -> None:
    async with at_work(tmp_path, "bfloat16=refuse") as one:
        await one.slot.replace(other(one, "bfloat16"))
        assert one.slot.engine.candidate.precision.name == "fp32"
        assert (await one.say().result).strategy == "fp32"


@case
async def test_an_old_worker_that_was_parked_is_not_started_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_slot, "fits_beside", lambda *_: False)
    async with at_work(tmp_path, "bfloat16=refuse") as one:
        with pytest.raises(EngineError):
            await one.slot.replace(other(one, "bfloat16"), strict=True)
        assert one.slot.engine is one.engines[0]
        assert one.slot.engine.pid is None


@case
async def test_a_parked_model_is_gone_and_comes_back_with_the_next_recording(
    tmp_path: Path,
) -> None:
    async with at_work(tmp_path) as one:
        await one.slot.load()
        first = one.engines[0].pid
        await one.slot.unload()
        assert one.engines[0].pid is None
        assert one.slot.memory is None
        recording = one.begin()
        await one.slot.unload()
        push(recording, SAID)
        recording.end()
        assert (await recording.result).outcome == "delivered"
        assert one.engines[0].pid not in (None, first)


@case
async def test_what_is_going_on_is_not_parked(tmp_path: Path) -> None:
    async with at_work(tmp_path) as one:
        await one.slot.load()
        pid = one.engines[0].pid
        recording = one.begin()
        await one.slot.unload()
        assert one.engines[0].pid == pid
        recording.end()
        await recording.result


# -- memory
# -----------------------------------------------------------------------------------------------------------

MIB = 1 << 20


def card(monkeypatch: pytest.MonkeyPatch, total: int, free: int) -> None:
    monkeypatch.setattr(gpus, "gpus", lambda: [Gpu(0, "A card", (8, 6), total * MIB, free * MIB)])


def test_a_budget_drops_the_candidates_above_it_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card(monkeypatch, 8192, 8000)
    whole = planned(Settings(model="demo", strategy="bfloat16"))
    assert [candidate.name for candidate in whole.candidates] == [
        "bfloat16",
        "tf32",
        "fp32",
        "fp32 on cpu",
    ]
    found = planner.plan_report(Settings(model="demo"), gpus.gpus())
    lines = {line.strategy: line.process // MIB for line in found.strategies}
    assert lines["bfloat16"] < lines["fp32"]
    between = f"{(lines['bfloat16'] + lines['fp32']) // 2}MiB"
    plan = planned(Settings(model="demo", strategy="bfloat16", vram_budget=between))
    assert [candidate.name for candidate in plan.candidates] == ["bfloat16", "fp32 on cpu"]
    assert [(candidate.candidate, candidate.kind) for candidate in plan.rejected] == [
        ("tf32", "budget"),
        ("fp32", "budget"),
    ]
    assert "would need" in plan.rejected[0].detail
    small = planned(Settings(model="demo", strategy="bfloat16", vram_budget="1MiB"))
    assert [candidate.name for candidate in small.candidates] == ["fp32 on cpu"]


def test_a_strategy_above_the_budget_is_refused_where_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def go() -> None:
        async with at_work(tmp_path, "demo", strategy="bfloat16") as one:
            card(monkeypatch, 8192, 8000)
            wanted = Settings(model="demo", strategy="fp32", vram_budget="1MiB", suffix="")
            with pytest.raises(PrecisionError, match="would need"):
                await one.slot.replace(wanted, strict=True)
            assert len(one.engines) == 1

    asyncio.run(go())


@case
async def test_a_card_that_is_full_costs_the_candidate_and_not_the_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("asrd").propagate = True
    card(monkeypatch, 8192, 8000)
    async with at_work(tmp_path, "bfloat16=oom *=ok", strategy="bfloat16") as one:
        assert one.slot.engine.candidate.device == "cuda:0"
        recording = one.say()
        result = await recording.result
        assert (result.outcome, result.strategy) == ("delivered", "fp32")
        assert (
            one.slot.engine.candidate.name == "fp32 on cpu"
        )  # tf32 and fp32 on the card need more than what failed
    (event,) = [
        record for record in caplog.records if getattr(record, "ASRD_EVENT", "") == "rejected"
    ]
    assert (event.ASRD_STRATEGY, event.ASRD_KIND) == ("bfloat16", "out-of-memory")


def test_a_card_that_takes_one_process_has_no_room_for_a_second_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    only = Gpu(0, "A card", (8, 6), 8192 * MIB, 8000 * MIB, mode="exclusive")
    monkeypatch.setattr(gpus, "gpus", lambda: [only])
    assert not fits_beside(Settings(model="demo", strategy="fp32"), None)
    assert fits_beside(Settings(model="demo", strategy="fp32", device="cpu"), None)


def test_a_model_of_unknown_size_keeps_its_whole_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, 8192, 8000)
    plan = planned(Settings(model="someone/unheard-of", strategy="bfloat16", vram_budget="1MiB"))
    assert len(plan.candidates) == 4


def test_a_second_worker_goes_beside_the_first_only_where_it_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert fits_beside(Settings(model="demo"), None)
    card(monkeypatch, 8192, 8000)
    assert fits_beside(Settings(model="demo", strategy="fp32"), None)
    assert fits_beside(Settings(model="demo", strategy="fp32", device="cpu"), None)
    found = planner.plan_report(Settings(model="demo"), gpus.gpus())
    need = next(each.need for each in found.strategies if each.strategy == "fp32")
    bound = Settings(model="demo", strategy="fp32", vram_budget=f"{need // MIB + 101}MiB")
    assert fits_beside(bound, 100 * MIB)
    assert not fits_beside(bound, 2000 * MIB), "both are within the budget"
    assert not fits_beside(bound, None)
    card(monkeypatch, 8192, 1)
    assert not fits_beside(Settings(model="demo", strategy="fp32"), None)
    assert not fits_beside(Settings(model="someone/unheard-of", strategy="fp32"), None)


def test_candidates_of_the_fake_are_those_of_the_plan() -> None:
    assert planned(Settings(model="demo", strategy="half", device="cpu")).candidates == (
        Candidate(STRATEGY_TABLE["half"], "cpu"),
        Candidate(STRATEGY_TABLE["fp32"], "cpu"),
    )
