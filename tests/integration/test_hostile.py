"""No single sound takes the engine down: kept recordings of every damage, and sounds that no worker
survives."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asrd import protocol
from asrd.audio import blocks, files
from asrd.config.settings import Settings
from asrd.engine import batching
from asrd.engine.engine import WORKER_COMMAND, Deadlines, Engine
from asrd.engine.planner import plan_for
from asrd.errors import AudioError, UnansweredError
from asrd.paths import DATA_FOLDER
from asrd.recordings.deliveries import Deliveries
from asrd.recordings.files import HEADER, RecordingInfo
from asrd.recordings.store import RecordingStore
from tests.dictation.test_transcriber import FAKE, SAID, at_root, at_work, case, rested, until  # noqa: F401 - a fixture
from tests.fakes.worker import MARK, as_it_is
from tests.recordings.test_deliveries import kept

Make = Callable[[np.random.Generator], bytes]


def recording(samples: Any, header: bytes = b"") -> bytes:
    """Return the bytes of a kept recording."""
    data = np.asarray(samples, "<f4").tobytes()
    size = len(data)
    whole = HEADER.pack(
        b"RIFF", size + 36, b"WAVE", b"fmt ", 16, 3, 1, 16_000, 64_000, 4, 32, b"data", size
    )  # fmt: skip
    return (header or whole) + data


def some(value: float, share: float = 0.0) -> Make:
    """Have one sample, or a share of all, be this value."""

    def make(draw: np.random.Generator) -> bytes:
        samples = SAID.copy()
        count = max(1, round(share * len(samples)))
        samples[draw.choice(len(samples), count, replace=False)] = value
        return recording(samples)

    return make


def headed(*fields: Any) -> Make:
    return lambda draw: recording(SAID, HEADER.pack(*fields))


def cut(length: int) -> Make:
    return lambda draw: recording(SAID)[:length]


def sizes(riff: int, data: int) -> Make:
    return headed(b"RIFF", riff, b"WAVE", b"fmt ", 16, 3, 1, 16_000, 64_000, 4, 32, b"data", data)


NAN_WITH_A_MESSAGE = struct.unpack("<f", b"\x01\x00\xa0\x7f")[0]

HOSTILE: dict[str, tuple[str, Make]] = {
    "one NaN": ("text", some(np.nan)),
    "a signalling NaN": ("text", some(NAN_WITH_A_MESSAGE)),
    "one infinity": ("text", some(np.inf)),
    "minus infinity": ("text", some(-np.inf)),
    "a tenth NaN": ("text", some(np.nan, 0.1)),
    "a tenth infinity": ("text", some(np.inf, 0.1)),
    "only NaN": ("refused", some(np.nan, 1.0)),
    "only infinity": ("refused", some(-np.inf, 1.0)),
    "one of 1e30": ("text", some(1e30)),
    "one of -3e38": ("text", some(-3e38)),
    "only 1e38": ("refused", some(1e38, 1.0)),
    "denormals between": ("text", some(1e-40, 0.5)),
    "only denormals": ("no word", some(1e-42, 1.0)),
    "only zeros": ("no word", some(0.0, 1.0)),
    "as loud as 16 bit": ("text", lambda draw: recording(SAID * 32_767)),
    "as loud as 32 bit": ("text", lambda draw: recording(SAID * 2.0**31)),
    "random bits": ("any", lambda draw: recording(np.frombuffer(draw.bytes(len(SAID) * 4), "<f4"))),
    "sizes of nothing": ("text", sizes(0, 0)),
    "sizes without end": ("text", sizes(0xFFFF_FFFF, 0xFFFF_FFFF)),
    "sizes that lie": ("text", sizes(1 << 31, 7)),
    "another format": (
        "text",
        headed(b"RIFF", 1, b"WAVE", b"fmt ", 16, 1, 2, 8000, 9, 1, 8, b"data", 9),
    ),
    "a header of noise": ("text", lambda draw: recording(SAID, draw.bytes(HEADER.size))),
    "a header of zeros": ("text", lambda draw: recording(SAID, bytes(HEADER.size))),
    "cut within a sample": ("text", cut(-3)),
    "cut behind a byte of a sample": ("text", cut(-1)),
    "a header alone": ("no word", cut(HEADER.size)),
    "half a header": ("no word", cut(20)),
    "empty": ("no word", cut(0)),
}
"""Damage -> what a retry makes of it, and the file."""


def put(spool: RecordingStore, data: bytes, name: str) -> RecordingInfo:
    """Put a file there as a recording."""
    note = kept(spool, SAID, name)
    spool.path(note).write_bytes(data)
    return note


async def outcome(rewriting: Awaitable[str]) -> str:
    """Return what a retry made of a recording, in a word."""
    try:
        return "text" if await rewriting else "no word"
    except AudioError:
        return "refused"


@case
async def test_a_retry_of_any_kept_file_leaves_the_engine_as_it_was(tmp_path: Path) -> None:
    async with at_work(tmp_path, "*=allergic:nan") as one:
        good = kept(one.spool, SAID)
        usual = await one.transcriber.retry(good)
        pid, candidates = one.slot.engine.pid, one.slot.engine.candidates
        assert pid
        for number, (name, (wanted, make)) in enumerate(HOSTILE.items()):
            note = put(
                one.spool, make(np.random.default_rng(number)), f"20260102-000000-{number:04x}"
            )
            found = await outcome(one.transcriber.retry(note))
            assert found == wanted or wanted == "any", name
            assert (one.slot.engine.pid, one.slot.engine.candidates) == (
                pid,
                candidates,
            ), name
            assert one.slot.error == "", name
        assert await one.transcriber.retry(good) == usual


@pytest.mark.parametrize("size", [1, 320, 4001])
def test_what_is_no_sound_becomes_silence_wherever_sound_enters(size: int) -> None:
    draw = np.random.default_rng(size)
    for number in range(20):
        samples = np.frombuffer(draw.bytes(4 * size), np.float32)
        samples, bad = blocks.clean(samples)
        assert np.isfinite(samples).all(), number
        assert np.abs(samples).max() <= blocks.MAX_SAMPLE
        assert 0 <= bad <= size
        assert np.isfinite(np.square(samples.astype(np.float32) * 256).sum(dtype=np.float32)), (
            "a spectrum is finite"
        )
        again, none = blocks.clean(samples)
        assert (again == samples).all()
        assert none == 0


# -- sounds that no worker survives
# -----------------------------------------------------------------------------------


def marked(draw: np.random.Generator) -> Any:
    """Return speech with a sample that an allergic worker does not bear."""
    samples = SAID.copy()
    samples[draw.integers(8_000, 16_000)] = MARK
    return samples


ACTS = ("nan", "nan-in-layer", "oom", "die", "abort", "garbage", "half", "wrong-id", "lost")
FATAL = {
    f"{strategy} {act}": (strategy, act)
    for strategy in ("half", "fp32", "bfloat16")
    for act in ACTS
}


@pytest.mark.parametrize("name", FATAL)
@case
async def test_a_sound_that_no_candidate_answers_costs_no_candidate(name: str) -> None:
    strategy, act = FATAL[name]
    settings = Settings(model=f"*=allergic:{act}", strategy=strategy)
    start = protocol.Start(settings.model, plan_for(settings).candidates[0].precision)
    deadlines = Deadlines(load=20.0, answer=20.0, per_second=0.0, stop=5.0)
    draw = np.random.default_rng(sorted(FATAL).index(name))
    async with Engine(
        plan_for(settings), start, deadlines=deadlines, command=FAKE, download=as_it_is
    ) as engine:
        before = await engine.transcribe(SAID)
        candidates = engine.candidates
        with pytest.raises(
            AudioError if act.startswith("nan") else UnansweredError, match="this audio"
        ) as caught:
            await engine.transcribe(marked(draw))
        assert candidates[-1].name in caught.value.message
        assert (engine.candidates, engine.left, engine.rejected, engine.take_unreported()) == (
            candidates,
            [],
            [],
            [],
        )
        after = await engine.transcribe(SAID)
        assert (after.hypothesis.text, after.hypothesis.precision) == (
            before.hypothesis.text,
            strategy,
        )


@case
async def test_of_several_sounds_at_once_only_the_one_that_fails_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(batching.MAX_BUFFERS, "cpu", 8)
    settings = Settings(model="*=allergic:nan", strategy="half")
    start = protocol.Start(settings.model, plan_for(settings).candidates[0].precision)
    async with Engine(plan_for(settings), start, command=FAKE, download=as_it_is) as one:
        await one.transcribe(SAID)
        sounds = [SAID, SAID, marked(np.random.default_rng(1)), SAID]
        asked = [one.transcribe(samples) for samples in sounds]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [isinstance(each, AudioError) for each in found] == [False, False, True, False]
        assert one.candidate.precision.name == "half"


@case
async def test_after_such_a_sound_the_engine_comes_back_by_itself(tmp_path: Path) -> None:
    async with at_work(tmp_path, "*=allergic:nan") as one:
        result = await one.say(marked(np.random.default_rng(3))).result
        assert result.outcome == "kept"
        assert "no precision makes text of this audio" in result.detail
        await rested(one)
        await until(lambda: one.slot.engine.ready is not None)
        await until(lambda: one.slot.error == "")
        result = await one.say().result
        assert (result.outcome, result.strategy) == ("delivered", "half")
        assert one.slot.engine.rejected == []


@case
async def test_a_real_worker_answers_what_is_left_of_damaged_recordings(tmp_path: Path) -> None:
    clip = files.read(DATA_FOLDER / "eval" / "0129.flac")
    async with at_work(tmp_path, "demo-ctc") as one:

        def hold(plan: Any, start: protocol.Start, **more: Any) -> Engine:
            one.engines.append(Engine(plan, start, command=WORKER_COMMAND, **more))
            return one.engines[-1]

        one.slot.loader._engine_factory = hold
        await one.slot.replace(one.settings)
        usual = await one.transcriber.retry(kept(one.spool, clip))
        assert len(usual.split()) > 3
        for number, value in enumerate((np.nan, np.inf, 1e30)):
            samples = clip.copy()
            samples[number * 1000] = value
            note = put(one.spool, recording(samples), f"20260103-000000-{number:04x}")
            assert await one.transcriber.retry(note, Deliveries()) == usual
        loud = put(one.spool, recording(clip * 2.0**31), "20260104-000000-0000")
        assert await one.transcriber.retry(loud) == usual
        assert one.engines[-1].failures == 0
