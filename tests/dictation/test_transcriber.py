"""Recordings -> text over real workers that do each wrong: nothing spoken is lost, nothing
cancelled is told."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import pytest

from asrd import protocol
from asrd.audio import microphone
from asrd.audio.blocks import AudioBlock
from asrd.config.settings import Settings
from asrd.dictation import recorder
from asrd.dictation.engine_loader import Listeners
from asrd.dictation.engine_slot import EngineSlot
from asrd.dictation.recording import Dictation
from asrd.dictation.transcriber import Transcriber
from asrd.engine.engine import Deadlines, Engine
from asrd.errors import AsrdError, AudioError, EngineError
from asrd.precision import gpus, memory
from asrd.precision.plan import Plan
from asrd.recordings.deliveries import Deliveries
from asrd.recordings.store import RecordingStore
from tests import sound
from tests.fakes.worker import as_it_is
from tests.helpers import ROOT

FAKE = (sys.executable, "-m", "tests.fakes.worker")
SHORT = Deadlines(load=20.0, answer=20.0, per_second=0.0, stop=5.0)
IN_TIME = 30.0

SAID = np.concatenate([sound.silence(0.4), sound.speech(0.8), sound.silence(0.7)])
TWICE = np.concatenate([SAID, sound.speech(0.8), sound.silence(0.3)])


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(gpus, "gpus", list)


class Room:
    """A transcriber with its spool, and one place where text arrives."""

    def __init__(self, folder: Path, script: str, **given: Any) -> None:
        self.settings = Settings(
            model=script, strategy=given.pop("strategy", "half"), suffix="", **given
        )
        self.spool = RecordingStore(folder / "takes", self.settings.keep_audio)
        self.arrived: list[str] = []
        self.refusals: list[str] = []
        """Why the place does not take the next texts."""
        self.engines: list[Engine] = []
        self.states: list[tuple[str, str]] = []
        self.fetch: Callable[..., Awaitable[Path]] = as_it_is
        self.slot = EngineSlot(self.settings, Listeners(self.changed), self.hold)
        self.transcriber = Transcriber(self.slot, self.spool, self.deliver)

    def hold(self, plan: Plan, start: protocol.Start, **more: Any) -> Engine:
        self.engines.append(
            Engine(plan, start, deadlines=SHORT, command=FAKE, download=self.fetch, **more)
        )
        return self.engines[-1]

    async def deliver(self, record: Deliveries, number: int) -> list[str]:
        if self.refusals:
            return [self.refusals.pop(0)]
        self.arrived.append(record.parts[number].text)
        return []

    def changed(self) -> None:
        if hasattr(self, "slot"):
            self.states.append((self.slot.loading, self.slot.error))

    def begin(self, private: bool = False) -> Dictation:
        one = Dictation(self.spool.begin(), self.settings, private)
        self.transcriber.add(one)
        return one

    def say(self, samples: Any = SAID, private: bool = False) -> Dictation:
        """Record all of it and end."""
        one = self.begin(private)
        push(one, samples)
        one.end()
        return one


def push(one: Dictation, samples: Any) -> None:
    start = one.recording.samples
    for at in range(0, len(samples), 320):
        one.push(
            AudioBlock(7777 + start + at, samples[at : at + 320])
        )  # a microphone's clock began long ago


@contextlib.asynccontextmanager
async def at_work(folder: Path, script: str = "*=ok", **given: Any) -> AsyncIterator[Room]:
    one = Room(folder, script, **given)
    task = asyncio.create_task(one.transcriber.run())
    try:
        async with asyncio.timeout(IN_TIME):
            yield one
        assert not task.done(), "the transcriber must never end by itself"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await one.transcriber.finish()
        await one.slot.stop()
        for engine in one.engines:
            await engine.stop()


def case(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on a loop of its own."""

    @functools.wraps(test)
    def go(*args: Any, **given: Any) -> None:
        asyncio.run(test(*args, **given))

    return go


async def until(true: Callable[[], bool]) -> None:
    while not true():  # the caller's limit ends it
        await asyncio.sleep(0.01)


async def rested(one: Room) -> None:
    await until(lambda: not one.transcriber.busy)


# -- a microphone that stays open
# -------------------------------------------------------------------------------------


class OpenMicrophone:
    """Delivers a block whenever it is told to."""

    name, problem, ended, code = "open", "", False, 0

    def __init__(self, called: str = "") -> None:
        self.called, self.closed = called, False
        self._at = 0

    def open(self, on_block: Callable[[AudioBlock], None], *rest: Callable[..., Any]) -> None:
        self._on_block, self.patient = on_block, rest[-1]

    async def close(self) -> None:
        await asyncio.sleep(0.05)
        self.closed = True

    def give(self, samples: Any = None) -> None:
        samples = sound.silence(0.02) if samples is None else samples
        self._on_block(AudioBlock(self._at, samples))
        self._at += len(samples)


@case
async def test_a_microphone_that_stays_open_is_heard_to_the_key_and_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(microphone, "MAX_TAIL_SECONDS", 60.0)
    source = OpenMicrophone()
    async with at_work(tmp_path, pre_roll=1.0) as one:
        own = recorder.Recorder(one.transcriber, lambda *_: source, mock.Mock())
        await own.apply_settings()
        source.give()
        recording = own.start()
        ending = asyncio.create_task(own.stop())
        await asyncio.sleep(0)
        source.give()  # of before the key
        await asyncio.sleep(2 * microphone.ARRIVAL_SECONDS)
        assert not ending.done()
        source.give()
        await ending
        source.give()
        assert recording.recording.samples == 3 * 320
        await recording.result


@case
async def test_only_while_nobody_waits_for_sound_may_it_be_late(tmp_path: Path) -> None:
    source = OpenMicrophone()
    async with at_work(tmp_path, pre_roll=1.0) as one:
        own = recorder.Recorder(one.transcriber, lambda *_: source, mock.Mock())
        await own.apply_settings()
        one.transcriber.watchers = 1
        assert source.patient(), "it is open in case somebody speaks, and shows nothing"
        one.transcriber.watchers = 0
        recording = own.start()
        source.give(sound.silence(1.0))
        assert source.patient(), "nobody speaks"
        one.transcriber.watchers = 1
        assert not source.patient(), "somebody looks at the level"
        one.transcriber.watchers = 0
        source.give(sound.speech(2.0))
        assert not source.patient(), "somebody speaks"
        source.give(sound.silence(2.0))
        assert source.patient()
        ending = asyncio.create_task(own.stop())
        await asyncio.sleep(0)
        assert not source.patient(), "somebody waits for the end"
        source.give()
        await ending
        assert source.patient()
        await recording.result


@case
async def test_a_microphone_that_stays_open_and_fell_silent_keeps_nobody_waiting(
    tmp_path: Path,
) -> None:
    async with at_work(tmp_path, pre_roll=1.0) as one:
        own = recorder.Recorder(one.transcriber, lambda *_: OpenMicrophone(), mock.Mock())
        await own.apply_settings()
        recording = own.start()
        assert await own.stop() is recording
        assert (await recording.result).outcome == "empty"


class Desk:
    """A recorder whose microphones are kept as they are opened."""

    def __init__(self, one: Room) -> None:
        self.one, self.made = one, list[OpenMicrophone]()
        self.recorder = recorder.Recorder(one.transcriber, self.listen, mock.Mock())

    def listen(self, source: str, name: str) -> OpenMicrophone:
        self.made.append(OpenMicrophone(name))
        return self.made[-1]

    def change(self, **given: Any) -> None:
        self.one.slot.settings = msgspec.structs.replace(self.one.slot.settings, **given)

    async def say(self) -> Dictation:
        recording = self.recorder.start()
        self.made[-1].give(SAID)
        await self.recorder.stop()
        assert (await recording.result).outcome == "delivered"
        return recording


@case
async def test_another_microphone_that_stays_open_has_a_clock_and_a_past_of_its_own(
    tmp_path: Path,
) -> None:
    async with at_work(tmp_path, pre_roll=1.0) as one:
        desk = Desk(one)
        await desk.recorder.apply_settings()
        desk.made[0].give(sound.silence(9.6))
        desk.made[0].give(sound.speech(0.4))
        await desk.recorder.apply_settings()
        assert len(desk.made) == 1, "nothing has changed"
        desk.change(microphone="another")
        await desk.recorder.apply_settings()
        assert [each.called for each in desk.made] == ["", "another"]
        assert desk.made[0].closed
        desk.made[0].give(sound.speech(1.0))  # the last that it hears
        desk.made[1].give(sound.silence(0.2))
        recording = await desk.say()
        assert recording.recording.samples == len(SAID) + 3200


@case
async def test_what_changes_while_a_recording_goes_on_is_acted_upon_at_its_end(
    tmp_path: Path,
) -> None:
    async with at_work(tmp_path) as one:
        desk = Desk(one)
        for given in ({"pre_roll": 1.0}, {"microphone": "another"}, {"pre_roll": 0.0}, {}):
            recording = desk.recorder.start()
            desk.made[-1].give(SAID)
            desk.change(**given)
            await desk.recorder.apply_settings()
            desk.made[-1].give(sound.silence(0.2))
            await desk.recorder.stop()
            assert recording.recording.samples == len(SAID) + 3200
            assert (await recording.result).outcome == "delivered"
        assert [each.called for each in desk.made] == ["", "", "another", "another"]
        assert all(each.closed for each in desk.made)


@case
async def test_a_key_while_the_microphone_is_exchanged_opens_one_at_once(tmp_path: Path) -> None:
    async with at_work(tmp_path, pre_roll=1.0) as one:
        desk = Desk(one)
        await desk.recorder.apply_settings()
        desk.made[0].give(sound.silence(2.0))
        desk.change(microphone="another")
        exchange = asyncio.create_task(desk.recorder.apply_settings())
        await asyncio.sleep(0)
        recording = desk.recorder.start()
        desk.made[0].give(sound.silence(1.0))
        desk.made[1].give(SAID)
        await exchange
        await desk.recorder.stop()
        assert recording.recording.samples == len(SAID)
        assert (await recording.result).outcome == "delivered"
        assert [each.called for each in desk.made] == ["", "another", "another"]
        assert await desk.say()
        assert len(desk.made) == 3, "it stays open now"


# -- text arrives
# -----------------------------------------------------------------------------------------------------


@case
async def test_what_was_said_arrives_and_its_sound_goes(tmp_path: Path) -> None:
    async with at_work(tmp_path) as one:
        result = await one.say().result
        assert result.outcome == "delivered"
        assert one.arrived == [result.text]
        assert "samples sum" in result.text
        assert result.seconds == pytest.approx(len(SAID) / 16_000)
        assert result.strategy == "half"
        assert one.transcriber.last == result
        await rested(one)
        assert list(one.spool.where.iterdir()) == []
        assert one.slot.memory == memory.Memory(4, process=1000)


@case
async def test_silence_is_empty_and_asks_no_worker(tmp_path: Path) -> None:
    async with at_work(tmp_path) as one:
        result = await one.say(sound.silence(1.0)).result
        assert (result.outcome, result.text, one.arrived) == ("empty", "", [])
        assert one.engines[0].ready is None
        assert one.spool.all() == []


@case
async def test_a_recording_without_one_block_is_empty(tmp_path: Path) -> None:
    async with at_work(tmp_path) as one:
        result = await one.say(sound.silence(0)).result
        assert (result.outcome, result.seconds) == ("empty", 0.0)
        await rested(one)
        assert list(one.spool.where.iterdir()) == []


@case
async def test_several_recordings_are_delivered_in_the_order_they_were_made(tmp_path: Path) -> None:
    async with at_work(tmp_path) as one:
        recordings = [
            one.say(np.concatenate([SAID, sound.silence(0.2 * n), SAID])) for n in range(4)
        ]
        assert one.transcriber.waiting == 4
        result = [await recording.result for recording in recordings]
        assert one.arrived == [each.text for each in result]
        assert len(set(one.arrived)) > 1
        await rested(one)
        assert one.transcriber.waiting == 0


@case
async def test_what_is_said_before_the_model_is_ready_is_heard_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = tmp_path / "gate"
    monkeypatch.setenv("FAKE_WORKER_GATE", os.fspath(gate))
    async with at_work(tmp_path, "*=gate") as one:
        loading = asyncio.create_task(one.slot.load())
        first, second = one.say(), one.say(TWICE)
        await until(lambda: one.slot.loading == "import")
        assert not first.result.done()
        assert one.spool.all() == [], "both are in hand"
        gate.touch()
        assert [(await each.result).outcome for each in (first, second)] == [
            "delivered",
            "delivered",
        ]
        await loading
        assert (one.slot.loading, one.slot.error) == ("", "")


@case
async def test_text_goes_along_with_speech_where_segments_are_wanted(tmp_path: Path) -> None:
    async with at_work(tmp_path, deliver="segment") as one:
        recording = one.begin()
        push(recording, SAID)
        await until(lambda: len(one.arrived) == 1)
        assert not recording.ended
        push(recording, TWICE[len(SAID) :])
        recording.end()
        result = await recording.result
        assert result.outcome == "delivered"
        assert len(one.arrived) == 2
        assert " ".join(one.arrived) == result.text


@case
async def test_a_private_recording_tells_its_asker_and_nobody_else(tmp_path: Path) -> None:
    for deliver in ("take", "segment"):
        async with at_work(tmp_path, deliver=deliver) as one:
            result = await one.say(private=True).result
            assert result.outcome == "delivered"
            assert result.text
            assert one.arrived == []


@case
async def test_the_text_grows_while_recording(tmp_path: Path) -> None:
    async with at_work(tmp_path) as one:
        recording = one.begin()
        push(recording, SAID)
        await until(lambda: bool(recording.text))
        assert one.arrived == []
        assert recording.level < -60
        push(recording, sound.speech(0.3))
        assert recording.level > -20
        recording.end()
        assert (await recording.result).text.startswith(recording.text.split()[0])


@case
async def test_a_draft_is_made_only_where_somebody_looks_on(tmp_path: Path) -> None:
    async with at_work(tmp_path, draft_every=0.01) as one:
        await one.slot.load()
        recording = one.begin()
        push(recording, np.concatenate([sound.silence(0.4), sound.speech(1.0)]))
        await asyncio.sleep(0.3)
        assert recording.partial_text == ""
        one.transcriber.watchers += 1
        push(recording, sound.speech(0.4))
        await until(lambda: bool(recording.partial_text))
        assert recording.text == ""
        assert one.arrived == []
        recording.end()
        await recording.result
        assert recording.partial_text == ""


@case
async def test_text_that_rested_before_the_key_is_there_without_asking_again(
    tmp_path: Path,
) -> None:
    async with at_work(tmp_path) as one:
        await one.slot.load()
        recording = one.begin()
        push(recording, np.concatenate([sound.silence(0.4), sound.speech(0.8), sound.silence(0.3)]))
        await until(lambda: recording.session.answer is not None)
        asked = recording.session.answer
        recording.end()
        assert (await recording.result).outcome == "delivered"
        assert recording.session.answer is asked


@case
async def test_what_was_text_before_a_failure_is_told_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_work(tmp_path) as one:
        heard: list[str] = []
        real = one.engines[0].transcribe

        async def once(*asked: Any, **more: Any) -> protocol.Answer:
            if heard:
                raise EngineError("no candidate is left that could answer")
            answer = await real(*asked, **more)
            heard.append(answer.hypothesis.text)
            return answer

        monkeypatch.setattr(one.engines[0], "transcribe", once)
        result = await one.say(TWICE).result
        assert (result.outcome, result.text) == ("kept", heard[0])
        assert one.spool.waiting()[0].text == heard[0]


COMMANDS = {"commands": True, "spoken": {"samples": "^;", "sum": "^\n^"}}


@pytest.mark.parametrize("private", [False, True])
def test_everybody_is_told_the_text_that_commands_made(tmp_path: Path, private: bool) -> None:
    async def go() -> None:
        async with at_work(tmp_path, keep_audio="always", **COMMANDS) as one:
            result = await one.say(private=private).result
            await rested(one)
            count, total = result.text.partition(";\n")[::2]
            assert count.isdigit()
            assert total.lstrip("-").isdigit()
            assert one.arrived == [result.text] * (not private)
            assert one.transcriber.last.text == result.text
            (note,) = one.spool.all()
            assert note.text == result.text
            assert await one.transcriber.retry(note) == result.text

    asyncio.run(go())


@case
async def test_commands_are_obeyed_in_segments_and_what_was_sent_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("asrd").propagate = True
    drop = {"samples": "{delete}", "sum": "{delete}"}
    async with at_work(tmp_path, deliver="segment", commands=True, spoken=drop) as one:
        recording = one.begin()
        push(recording, SAID)
        await until(lambda: len(one.arrived) == 1)
        assert one.arrived[0].lstrip("-").isdigit(), "the first count was dropped, the sum was not"
        push(recording, TWICE[len(SAID) :])
        recording.end()
        result = await recording.result
        assert " ".join(one.arrived) == result.text
        assert len(one.arrived) == 2
        assert recording.writer.missed == 2
    assert "had been delivered" in caplog.text


@case
async def test_no_space_follows_the_end_of_a_line(tmp_path: Path) -> None:
    for suffix, end in ((" ", "x\n"), ("#", "x\n#")):
        async with at_work(tmp_path) as one:
            recording = one.begin()
            recording.settings = Settings(suffix=suffix)
            await one.transcriber._send(recording, "x\n", False)
            await one.transcriber._send(recording, "", False)
            assert one.arrived == [end]
            recording.end()
            await recording.result


# -- cancel
# -----------------------------------------------------------------------------------------------------------


@case
async def test_cancelled_while_recording_nothing_is_delivered_or_kept(tmp_path: Path) -> None:
    async with at_work(tmp_path) as one:
        recording = one.begin()
        push(recording, SAID)
        await until(lambda: bool(recording.text))
        assert one.transcriber.cancel() == [recording.recording.id]
        recording.end()
        result = await recording.result
        assert (result.outcome, result.text) == ("cancelled", "")
        await rested(one)
        assert one.arrived == []
        assert list(one.spool.where.iterdir()) == []
        assert one.transcriber.last.outcome == "empty", "the last text is that of the take before"


@case
async def test_cancelled_while_flushing_nothing_is_delivered_or_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = tmp_path / "gate"
    monkeypatch.setenv("FAKE_WORKER_GATE", os.fspath(gate))
    async with at_work(tmp_path, "*=gate") as one:
        recordings = [one.say(), one.say()]
        await until(lambda: one.slot.loading == "import")
        assert one.transcriber.cancel() == [each.recording.id for each in recordings]
        gate.touch()
        assert [(await each.result).outcome for each in recordings] == ["cancelled", "cancelled"]
        await rested(one)
        assert one.arrived == []
        assert list(one.spool.where.iterdir()) == []
        after = await one.say().result
        assert one.arrived == [after.text]


@case
async def test_what_was_delivered_can_no_longer_be_cancelled(tmp_path: Path) -> None:
    async with at_work(tmp_path, "half=ok") as one:
        recording = one.say()
        result = await recording.result
        assert one.transcriber.cancel() == [], "it may still be in the queue for its figures"
        one.transcriber.abandon("the end")
        await rested(one)
        assert one.arrived == [result.text]
        assert list(one.spool.where.iterdir()) == []


@case
async def test_cancelled_after_a_failure_it_is_not_kept(tmp_path: Path) -> None:
    async with at_work(tmp_path, "*=model") as one:
        recording = one.begin()
        push(recording, SAID)
        await until(lambda: bool(one.slot.error))
        one.transcriber.cancel()
        recording.end()
        assert (await recording.result).outcome == "cancelled"
        await rested(one)
        assert list(one.spool.where.iterdir()) == []


# -- workers that fail
# ------------------------------------------------------------------------------------------------


@case
async def test_a_worker_killed_in_the_middle_costs_nothing(tmp_path: Path) -> None:
    async with at_work(tmp_path) as one:
        recording = one.begin()
        push(recording, SAID)
        await until(lambda: bool(recording.text))
        pid = one.engines[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        push(recording, TWICE[len(SAID) :])
        recording.end()
        result = await recording.result
        assert (result.outcome, result.strategy) == ("delivered", "half")
        assert result.text.count("samples") == 2
        await rested(one)
        assert (one.slot.loading, one.slot.error) == ("", ""), "the new worker is up"


@case
async def test_a_candidate_that_does_not_hold_is_told_and_the_next_one_answers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("asrd").propagate = True
    async with at_work(tmp_path, "half=nan *=ok") as one:
        result = await one.say().result
        assert (result.outcome, result.strategy) == ("delivered", "fp32")
        assert "half on cpu is not used: the encoder put out nan" in caplog.text


@case
async def test_when_every_candidate_fails_the_sound_stays_with_the_reason(tmp_path: Path) -> None:
    async with at_work(tmp_path, "half=nan fp32=oom") as one:
        result = await one.say().result
        assert (result.outcome, result.text) == ("kept", "")
        for part in ("the encoder put out nan", "CUDA out of memory"):
            assert part in result.detail
        (note,) = one.spool.waiting()
        assert (note.id, note.reason) == (result.id, result.detail)
        assert one.slot.error == result.detail
        assert one.transcriber.last == result
        await until(lambda: one.slot.error == "")
        assert one.slot.engine.ready is not None, (
            "the worker of the first candidate is there for the next sound"
        )
        assert one.slot.engine.candidates == one.slot.engine.plan.candidates


@case
async def test_what_ailed_every_candidate_may_be_over_at_the_next_recording(tmp_path: Path) -> None:
    script = f"half=nan@{tmp_path}/one fp32=oom@{tmp_path}/two"
    async with at_work(tmp_path, script) as one:
        lost = await one.say().result
        assert lost.outcome == "kept"
        await rested(one)
        result = await one.say().result
        assert (result.outcome, result.strategy) == ("delivered", "half")
        assert one.slot.error == ""
        (note,) = one.spool.waiting()
        assert await one.transcriber.retry(note) == result.text


@case
async def test_a_model_that_does_not_exist_costs_no_sound(tmp_path: Path) -> None:
    async with at_work(tmp_path, "*=model") as one:
        await one.slot.load()
        assert one.slot.error == "no such checkpoint"
        assert [(await one.say().result).outcome for _ in range(2)] == ["kept", "kept"]
        assert [note.reason for note in one.spool.waiting()] == 2 * ["no such checkpoint"]
        with pytest.raises(AsrdError, match="no such checkpoint"):
            await one.transcriber.retry(one.spool.waiting()[0])
        assert len(one.spool.waiting()) == 2


@case
async def test_a_failure_in_the_middle_waits_for_the_speaker_to_end(tmp_path: Path) -> None:
    async with at_work(tmp_path, "half=nan fp32=nan") as one:
        recording = one.begin()
        push(recording, SAID)
        await until(lambda: bool(one.slot.error))
        assert not recording.result.done()
        push(recording, SAID)
        recording.end()
        result = await recording.result
        assert result.outcome == "kept"
        assert one.spool.waiting()[0].seconds == pytest.approx(2 * len(SAID) / 16_000)


@case
async def test_where_nothing_is_kept_a_failure_says_so(tmp_path: Path) -> None:
    async with at_work(tmp_path, "*=model", keep_audio="never") as one:
        assert (await one.say().result).outcome == "lost"
        assert one.spool.all() == []


@case
async def test_a_fault_of_the_program_costs_one_take_and_not_the_transcriber(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_work(tmp_path) as one:
        for where in ("_send", "_log_figures"):
            with monkeypatch.context() as patch:

                async def fail(*_: object) -> None:
                    raise OSError("no more processes")

                patch.setattr(one.transcriber, where, fail)
                assert (await one.say().result).outcome == (
                    "kept" if where == "_send" else "delivered"
                )
                await rested(one)
        assert (await one.say().result).outcome == "delivered"
        assert [note.reason for note in one.spool.waiting()] == [
            "internal error: OSError: no more processes"
        ]


@case
async def test_at_the_very_end_everything_that_is_not_text_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_WORKER_GATE", os.fspath(tmp_path / "gate"))
    async with at_work(tmp_path, "*=gate") as one:
        one.say()
        going_on = one.begin()
        push(going_on, SAID)
        one.transcriber.abandon("asked twice to end")
        assert [(note.reason, note.seconds) for note in one.spool.waiting()] == 2 * [
            ("asked twice to end", pytest.approx(len(SAID) / 16_000))
        ]


# -- places that refuse
# -----------------------------------------------------------------------------------------------


@case
async def test_text_that_did_not_arrive_is_kept_with_its_sound(tmp_path: Path) -> None:
    async with at_work(tmp_path) as one:
        one.refusals = ["type: no window takes keys"]
        result = await one.say().result
        assert (result.outcome, result.detail) == ("kept", "type: no window takes keys")
        assert result.text
        assert one.transcriber.last.text == result.text
        (note,) = one.spool.waiting()
        assert (note.text, note.reason) == (result.text, "type: no window takes keys")
        assert one.slot.error == "", "the model is well"


@case
async def test_one_segment_that_did_not_arrive_keeps_the_take(tmp_path: Path) -> None:
    async with at_work(tmp_path, deliver="segment") as one:
        one.refusals = ["clipboard: gone"]
        result = await one.say(TWICE).result
        assert result.outcome == "kept"
        assert len(one.arrived) <= 1
        assert one.spool.waiting()[0].text == result.text


# -- kept takes
# -------------------------------------------------------------------------------------------------------


@case
async def test_a_kept_take_gives_the_same_text_later(tmp_path: Path) -> None:
    async with at_work(tmp_path) as one:
        one.refusals = ["type: no window"]
        result = await one.say(TWICE).result
        await rested(one)
        (note,) = one.spool.waiting()
        rewriting = asyncio.create_task(one.transcriber.retry(note))
        await asyncio.sleep(0)
        assert one.transcriber.busy, "the model must not leave memory meanwhile"
        assert await rewriting == result.text
        assert not one.transcriber.busy


@case
async def test_a_kept_take_that_is_gone_is_one_clear_error(tmp_path: Path) -> None:
    async with at_work(tmp_path, "*=model") as one:
        await one.say().result
        await rested(one)
        (note,) = one.spool.waiting()
        one.spool.remove(note.id)
        with pytest.raises(AudioError, match=note.id):
            await one.transcriber.retry(note)
        assert not one.transcriber.busy


@case
async def test_kept_takes_are_pruned_as_they_come(tmp_path: Path) -> None:
    async with at_work(tmp_path, "*=model") as one:
        one.spool.megabytes = 0.3
        for _ in range(4):  # each has 120 kB
            await one.say().result
            await rested(one)
        assert len(one.spool.waiting()) == 2


# -- figures

MIB = 1 << 20


@case
async def test_the_alert_is_given_once_until_it_was_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("asrd").propagate = True
    async with at_work(tmp_path, "*=ok", vram_alert="10MiB") as one:
        for process in (5, 11, 12, 11, 9, 30):
            one.transcriber._memory_alert.watch(memory.Memory(process=process * MIB), one.settings)
        one.transcriber._memory_alert.watch(None, one.settings)
    result = [
        record for record in caplog.records if getattr(record, "ASRD_EVENT", "") == "vram-alert"
    ]
    assert [record.ASRD_PROCESS_BYTES for record in result] == [str(11 * MIB), str(30 * MIB)]
    assert all(record.levelno == logging.WARNING for record in result)


@case
async def test_the_journal_gets_figures_and_never_the_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("asrd").propagate = True
    caplog.set_level(logging.INFO, "asrd")
    for log_text in (False, True):
        caplog.clear()
        async with at_work(tmp_path, "half=nan", log_text=log_text) as one:
            recording = one.say()
            recording.stopped_at = recording.began_at
            result = await recording.result
            await rested(one)
        (take,) = [
            record for record in caplog.records if getattr(record, "ASRD_EVENT", "") == "take"
        ]
        fields = vars(take)
        wanted = {
            "OUTCOME": "delivered",
            "STRATEGY": "fp32",
            "TAKE": result.id,
            "WORDS": f"{len(result.text.split())}",
        }
        assert {name: fields[f"ASRD_{name}"] for name in wanted} == wanted
        assert fields["ASRD_PROCESS_BYTES"] == "1000"
        assert float(fields["ASRD_STOP_TO_TEXT_MS"]) >= 0
        spoken = any(
            result.text in str(value)
            for record in caplog.records
            for value in vars(record).values()
        )
        assert spoken is log_text
