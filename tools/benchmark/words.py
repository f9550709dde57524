"""What streaming costs in words: long dictations block by block against the best offline decode of
the same sound.

R9 is measured here, on `asrd.dictation.Dictation` fed as the daemon feeds it, only not in real
time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from asrd.audio.blocks import AudioBlock
from asrd.audio.format import SAMPLE_RATE
from asrd.audio.vad import VadEvent
from asrd.config.settings import Settings
from asrd.dictation.recording import CHECK_SAMPLES
from asrd.engine.engine import Engine
from asrd.evaluation.normalising import normaliser
from asrd.scoring import Edits, edits, interval
from asrd.streaming.segmenter import GRID_SAMPLES
from asrd.streaming.session import StreamingSession

from . import sounds
from .figures import by_clip
from .player import PERIOD
from .ratios import Case
from .sounds import Joined, Samples
from .speed import Ours

WHOLE = 125 * SAMPLE_RATE
"""Samples that are decoded in one piece; the memory of attention over more of them has no end."""

SHIFT = SAMPLE_RATE // 25
"""Samples, half a frame of the encoder: begun so much earlier, an offline decode says what the
model is sure of."""


class Plan(NamedTuple):
    """Sounds of one kind: shipped clips with a pause after each, or one voice that speaks
    through."""

    seconds: float
    pauses: bool
    joins: int
    """So many, each joined anew; their words are counted together."""


def cases(ours: Ours, plan: Sequence[Plan], tell: Callable[[str], None]) -> list[Case]:
    """Return what became of the words of each kind of sound."""
    clips, found = sounds.clips(), []
    for kind in plan:
        seeds = range(kind.joins)
        joins = [
            sounds.joined(clips, kind.seconds, seed=seed)
            if kind.pauses
            else sounds.spoken(kind.seconds, seed)
            for seed in seeds
        ]
        name = f"{kind.seconds:g} s, {'with' if kind.pauses else 'without'} pauses"
        found.append(ours.wait(_case(ours.engine, joins, name)))
        tell(name)
    return found


async def _case(engine: Engine, joins: Sequence[Joined], name: str) -> Case:
    clean = normaliser("en")
    streamed, offline = [], dict[str, list[list[Samples]]]()
    for join in joins:
        text, events = await dictated(engine, join.samples)
        streamed.append(clean(text))
        for how, pieces in _cuts(join, events).items():
            offline.setdefault(how, []).append(pieces)
    texts = {
        how: [clean(await _offline(engine, one)) for one in pieces]
        for how, pieces in offline.items()
    }
    score = {how: _score(joins, heard) for how, heard in texts.items()}
    best = min(score, key=lambda how: sum(score[how].errors))
    changed = {
        how: sum(edits(texts[how], streamed).errors)
        for how in score
        if _as_good(score[how], score[best])
    }
    nearest = min(changed, key=lambda how: changed[how])
    earlier = [[np.pad(piece, (SHIFT, 0)) for piece in pieces] for pieces in offline[nearest]]
    again = [clean(await _offline(engine, one)) for one in earlier]
    return Case(
        name,
        _score(joins, streamed),
        score[best],
        best,
        nearest,
        changed[nearest],
        sum(edits(texts[nearest], again).errors),
        sum(len(text.split()) for text in texts[nearest]),
    )


def _as_good(decode: Edits, best: Edits) -> bool:
    """Return whether the WER of an offline decode cannot be told from that of the best."""
    between = interval(decode, best)
    return between is None or between[0] <= 0


def _cuts(join: Joined, events: list[VadEvent]) -> dict[str, list[Samples]]:
    """Return the pieces of each offline decode: of the whole sound, and of each stretch between two
    pauses."""
    ways = {"whole": _whole(join)}
    heard = sounds.stretches(join.samples, events)
    if len(heard) > 1:
        ways["cut at the pauses"] = heard
    return ways


def _score(joins: Sequence[Joined], texts: Sequence[str]) -> Edits:
    """Return the edits of each clip of each sound."""
    found = [
        by_clip(join.texts, text, normaliser("en")) for join, text in zip(joins, texts, strict=True)
    ]
    return Edits(
        tuple(e for one in found for e in one.errors), tuple(w for one in found for w in one.words)
    )


def _whole(join: Joined) -> list[Samples]:
    """Return a sound in one piece, or, where it is too long for that, cut at joins into pieces as
    long as can be.

    To the nearest frame, so that each piece has the frames that it would have in a decode of all of
    it.
    """
    cuts, last = [], 0
    for cut, after in zip(join.cuts, [*join.cuts[1:], len(join.samples)], strict=True):
        if after - last > WHOLE:
            last = GRID_SAMPLES * round(cut / GRID_SAMPLES)
            cuts.append(last)
    return np.split(join.samples, cuts)


async def dictated(engine: Engine, samples: Samples) -> tuple[str, list[VadEvent]]:
    """Return the text of a sound that comes in blocks, asked for as `transcriber` asks, and what
    the detector said of it."""
    dictation, told, looked = StreamingSession(Settings(model="demo-ctc")), list[VadEvent](), 0
    for first in range(0, len(samples), PERIOD):
        block = AudioBlock(first, samples[first : first + PERIOD])
        events = dictation.push(block)
        told += events
        if events or block.stop - looked >= CHECK_SAMPLES:
            looked = block.stop
            await dictation.decode(engine)
            await dictation.look_ahead(engine)
    told += dictation.finish()
    await dictation.decode(engine)
    return dictation.transcript.text, told


async def _offline(engine: Engine, pieces: Any) -> str:
    texts = [
        (await engine.transcribe(np.ascontiguousarray(piece))).hypothesis.text for piece in pieces
    ]
    return " ".join(filter(None, texts))
