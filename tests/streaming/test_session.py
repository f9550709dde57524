"""One recording on its way to text: what looking ahead saves, and that neither it nor a draft
changes a word."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asrd.audio.blocks import AudioBlock
from asrd.audio.format import SAMPLE_RATE
from asrd.config.settings import Settings
from asrd.precision.plan import Candidate
from asrd.precision.strategies import STRATEGY_TABLE
from asrd.protocol import Answer, DecodingContext, Hypothesis, Word
from asrd.streaming.segmenter import GRID_SAMPLES
from asrd.streaming.session import StreamingSession
from tests.sound import silence, speech

BLOCK = 320


class Listener:
    """An engine that hears a word in every half second of the clock that is loud, named by its
    place."""

    candidate = Candidate(STRATEGY_TABLE["fp32"], "cpu")
    ready: Any = None

    async def fall_back(self, *_: Any) -> bool:
        return False

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int]] = []
        self.told: list[DecodingContext | None] = []

    async def transcribe(
        self,
        samples: Any,
        start: int = 0,
        phase: str = "final",
        said: DecodingContext | None = None,
    ) -> Answer:
        self.asked.append((phase, start, start + len(samples)))
        self.told.append(said)
        half = SAMPLE_RATE // 2
        stop = start + len(samples)
        words = [
            Word(f"w{place // half}", place, place + half)
            for place in range(-(-start // half) * half, stop - half + 1, half)
            if np.abs(samples[place - start : place - start + half]).max() > 0.05
        ]
        text = " ".join(word.text for word in words)
        return Answer(0, Hypothesis(text, words, start, stop), 0.01, 0.01, 0.01)


def feed(dictation: StreamingSession, sound: Any, start: int = 0) -> Any:
    """Push sound block by block, giving control after each."""
    for at in range(0, len(sound), BLOCK):
        dictation.push(AudioBlock(start + at, sound[at : at + BLOCK]))
        yield at


def test_when_speech_rests_before_the_key_nothing_is_left_to_ask() -> None:
    async def go() -> None:
        engine, dictation = Listener(), StreamingSession(Settings())
        for _ in feed(dictation, np.concatenate([silence(0.5), speech(2.0), silence(0.3)])):
            assert await dictation.decode(engine) == []
            await dictation.look_ahead(engine)
        assert len(engine.asked) == 1, "once, however often it is looked at"
        assert dictation.transcript.text == "", "what rests may go on"
        assert dictation.transcript.partial_text != ""
        before = dictation.transcript.partial_text
        dictation.finish()
        await dictation.decode(engine)
        assert len(engine.asked) == 1
        assert dictation.transcript.text == before
        assert dictation.transcript.partial_text == ""

    asyncio.run(go())


def test_a_pause_that_lasts_is_sealed_by_what_was_foreseen() -> None:
    async def go() -> None:
        engine, dictation = Listener(), StreamingSession(Settings())
        for _ in feed(
            dictation,
            np.concatenate([speech(2.0), silence(1.0), speech(2.0, seed=5), silence(1.0)]),
        ):
            await dictation.decode(engine)
            await dictation.look_ahead(engine)
        assert [phase for phase, _, _ in engine.asked] == ["final", "final"]
        assert dictation.transcript.text.split() == ["w0", "w1", "w2", "w3", "w6", "w7", "w8", "w9"]

    asyncio.run(go())


def test_speech_that_goes_on_after_all_is_heard_as_one() -> None:
    async def go() -> None:
        engine, dictation = Listener(), StreamingSession(Settings())
        sound = np.concatenate([speech(2.0), silence(0.3), speech(2.0, seed=5), silence(1.0)])
        for _ in feed(dictation, sound):
            await dictation.decode(engine)
            await dictation.look_ahead(engine)
        assert [(start, stop > 4 * SAMPLE_RATE) for _, start, stop in engine.asked] == [
            (0, False),
            (0, True),
        ]

    asyncio.run(go())


def test_a_draft_is_what_was_said_so_far_and_is_no_text() -> None:
    async def go() -> None:
        engine, dictation = Listener(), StreamingSession(Settings())
        assert not await dictation.partial(engine), "nobody speaks"
        for at in feed(dictation, speech(3.0)):
            if at == 32_000:
                assert await dictation.partial(engine)
                assert dictation.transcript.partial_text == "w0 w1 w2 w3"
                assert dictation.transcript.text == ""
        assert [phase for phase, _, _ in engine.asked] == ["partial"]

    asyncio.run(go())


ONWARD = np.concatenate([speech(11.6), silence(1.5), speech(3.0, seed=5), silence(1.5)])
"""Speech that outruns one window, and some more behind a pause."""


def test_a_decoder_is_told_what_is_final_of_the_speech_that_goes_on() -> None:
    async def go() -> None:
        engine, dictation = Listener(), StreamingSession(Settings())
        for _ in feed(dictation, ONWARD):
            await dictation.decode(engine)
        first = " ".join(f"w{number}" for number in range(15))
        assert engine.told == [None, DecodingContext(first, 15 * SAMPLE_RATE // 2), None], (
            "a pause lies before the last"
        )
        assert engine.asked[1][1] < 15 * SAMPLE_RATE // 2 < engine.asked[1][2]
        assert [each.context for each in dictation.decoded] == engine.told, "a shadow asks the same"

    asyncio.run(go())


@pytest.mark.parametrize("resumed", [True, False])
def test_only_speech_that_a_decoder_was_to_hear_is_held_against_its_silence(resumed: bool) -> None:
    class Deaf(Listener):
        candidate = Candidate(STRATEGY_TABLE["half"], "cpu")
        left = 0

        async def transcribe(self, *asked: Any) -> Answer:
            answer = await super().transcribe(*asked)
            if self.told[-1] is None:
                return answer
            heard = msgspec.structs.replace(
                answer.hypothesis, text="", words=[], precision="half", resumed=resumed
            )
            return msgspec.structs.replace(answer, hypothesis=heard)

        async def fall_back(self, *_: Any) -> bool:
            self.left += 1
            return False

        def mark_inherent(self, kind: str, names: Any) -> None: ...

    async def go() -> None:
        engine, dictation = Deaf(), StreamingSession(Settings(demote_empty=0.8))
        for _ in feed(dictation, ONWARD):
            await dictation.decode(engine, fall_back=engine.fall_back)
        assert engine.left == (not resumed)

    asyncio.run(go())


class Hard(Listener):
    """Hears nothing under half until so many buffers were asked for, or until it is left for
    FP32."""

    def __init__(self, deaf: int) -> None:
        super().__init__()
        self.candidate, self._deaf = Candidate(STRATEGY_TABLE["half"], "cpu"), deaf

    async def transcribe(self, *asked: Any) -> Answer:
        answer = await super().transcribe(*asked)
        heard = msgspec.structs.replace(answer.hypothesis, precision=self.candidate.precision.name)
        if self.candidate.precision.name == "half" and len(self.asked) <= self._deaf:
            heard = msgspec.structs.replace(heard, text="", words=[])
        return msgspec.structs.replace(answer, hypothesis=heard)

    async def fall_back(self, candidate: Candidate, *_: Any) -> bool:
        assert candidate == self.candidate
        self.candidate = Candidate(STRATEGY_TABLE["fp32"], "cpu")
        return True

    def mark_inherent(self, kind: str, names: Any) -> None: ...


SENTENCES = np.concatenate(
    [part for seed in range(1, 6) for part in (speech(0.9, seed=seed), silence(1.1))]
)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.floats(0.7, 12.0), st.floats(0.5, 1.5)), min_size=2, max_size=5),
    st.floats(0.3, 6.0),
)
def test_what_a_deaf_candidate_missed_is_heard_again_from_its_first_buffer_on(
    parts: list[tuple[float, float]], limit: float
) -> None:
    """Whatever it takes until a candidate is left, and wherever buffers were cut."""
    spoken = [(speech(said, seed=seed), silence(rest)) for seed, (said, rest) in enumerate(parts)]
    sound = np.concatenate([silence(0.3), *(part for both in spoken for part in both)])

    async def said(engine: Listener) -> tuple[str, float]:
        dictation = StreamingSession(Settings(demote_empty=limit))
        for _ in feed(dictation, sound):
            await dictation.decode(engine, fall_back=engine.fall_back)
        dictation.finish()
        await dictation.decode(engine, fall_back=engine.fall_back)
        return dictation.transcript.text, dictation.empty_retry.seconds

    async def go() -> None:
        (expected, _), (text, unheard) = await said(Listener()), await said(hard := Hard(10**6))
        if hard.candidate.precision.name == "fp32":
            assert text == expected
        else:
            assert text == ""
            assert unheard < limit

    asyncio.run(go())


def test_fp32_that_came_for_another_reason_hears_what_was_missed_before_it() -> None:
    async def go() -> None:
        plain, engine = Listener(), Hard(10**6)
        texts = []
        for one in (plain, engine):
            dictation = StreamingSession(Settings(demote_empty=60.0))
            for at in feed(dictation, SENTENCES):
                await dictation.decode(one, fall_back=one.fall_back)
                if at >= 4 * SAMPLE_RATE:
                    one.candidate = Candidate(STRATEGY_TABLE["fp32"], "cpu")
            texts.append(dictation.transcript.text)
        assert texts[0] == texts[1] != ""

    asyncio.run(go())


def test_a_candidate_that_hears_a_word_after_all_is_believed() -> None:
    async def go() -> None:
        engine, dictation = Hard(2), StreamingSession(Settings(demote_empty=2.5))
        for _ in feed(dictation, SENTENCES):
            await dictation.decode(engine, fall_back=engine.fall_back)
        assert engine.candidate.precision.name == "half"
        assert dictation.empty_retry.seconds == 0.0
        assert dictation.transcript.text

    asyncio.run(go())


def test_how_far_the_machine_is_behind_is_told() -> None:
    async def go() -> None:
        engine, dictation = Listener(), StreamingSession(Settings())
        for _ in feed(dictation, np.concatenate([speech(3.0), silence(1.0)] * 3 + [speech(14.0)])):
            pass
        assert 20 < dictation.behind < 27
        assert not await dictation.partial(engine), "drafts are for machines that keep up"
        await dictation.decode(engine)
        assert dictation.behind == 0
        dictation.finish()
        await dictation.decode(engine)
        assert dictation.behind == 0

    asyncio.run(go())


@pytest.mark.parametrize("family", ["aed", "ctc", "rnnt"])
def test_canary_alone_is_asked_twice_at_an_edge_within_speech(family: str) -> None:
    async def go() -> None:
        engine, dictation = Listener(), StreamingSession(Settings())
        engine.ready = SimpleNamespace(family=family)
        for _ in feed(dictation, speech(25.0)):
            await dictation.decode(engine)
        dictation.finish()
        await dictation.decode(engine)
        (start, stop), second, *_ = [(start, stop) for _, start, stop in engine.asked]
        assert (second == (start, stop - 12_000)) == (family == "aed")
        starts = [start for _, start, _ in engine.asked]
        assert len(set(starts)) == len(starts) - (family == "aed"), (
            "what ends in a pause is asked once"
        )
        said = dictation.transcript.text.split()
        assert len(said) > 20
        assert said == [f"w{number}" for number in range(len(said))]

    asyncio.run(go())


@settings(max_examples=40, deadline=None)
@given(
    spans=st.lists(st.tuples(st.floats(0.3, 14.0), st.floats(0.05, 1.5)), min_size=1, max_size=4),
    looks=st.lists(
        st.tuples(st.integers(1, 60), st.sampled_from(["look_ahead", "partial"])),
        min_size=1,
        max_size=9,
    ),
    stop=st.floats(0.0, 1.0),
)
def test_neither_looking_ahead_nor_drafts_change_a_word(
    spans: list[tuple[float, float]], looks: list[tuple[int, str]], stop: float
) -> None:
    parts = [
        part
        for n, (said, rest) in enumerate(spans)
        for part in (speech(said, seed=n + 2), silence(rest))
    ]
    sound = np.concatenate(parts)[: max(BLOCK, round(stop * sum(map(len, parts))))]

    async def plain() -> str:
        engine, dictation = Listener(), StreamingSession(Settings())
        for _ in feed(dictation, sound):
            await dictation.decode(engine)
        dictation.finish()
        await dictation.decode(engine)
        return dictation.transcript.text

    async def watched() -> str:
        engine, dictation = Listener(), StreamingSession(Settings())
        told = ""
        for number, _ in enumerate(feed(dictation, sound)):
            await dictation.decode(engine)
            for every, look in looks:
                if number % every == 0:
                    await getattr(dictation, look)(engine)
            assert dictation.transcript.text.startswith(told), "committed text never changes"
            told = dictation.transcript.text
        dictation.finish()
        await dictation.decode(engine)
        assert dictation.transcript.text.startswith(told)
        return dictation.transcript.text

    assert asyncio.run(plain()) == asyncio.run(watched())


def test_everything_is_asked_on_one_grid_of_frames() -> None:
    async def go() -> None:
        engine, dictation = Listener(), StreamingSession(Settings())
        for at in feed(
            dictation, np.concatenate([silence(0.53), speech(23.0), silence(0.9), speech(1.2)])
        ):
            await dictation.decode(engine)
            await dictation.look_ahead(engine)
            if at % SAMPLE_RATE == 0:
                await dictation.partial(engine)
        dictation.finish()
        await dictation.decode(engine)
        assert {phase for phase, _, _ in engine.asked} == {"partial", "final"}
        assert len({start for _, start, _ in engine.asked}) > 4
        assert all(start % GRID_SAMPLES == 0 for _, start, _ in engine.asked)

    asyncio.run(go())
