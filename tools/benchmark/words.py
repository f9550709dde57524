"""What streaming costs in words: long dictations block by block against the best offline decode of the same sound.

R9 is measured here, on `asrd.dictation.Dictation` fed as the daemon feeds it, only not in real time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from asrd.audio import AudioBlock
from asrd.config import Settings
from asrd.dictation import Dictation
from asrd.engine import Engine
from asrd.recording import FILM
from asrd.verdict import Edits, edits, normaliser
from asrd.wire import SAMPLE_RATE

from . import sounds
from .figures import by_clip
from .player import BLOCK
from .ratios import Case
from .sounds import Joined, Samples
from .speed import Ours

WHOLE = 125 * SAMPLE_RATE
"""Samples that are decoded in one piece; the memory of attention over more of them has no end."""

SHIFT = SAMPLE_RATE // 25
"""Samples, half a frame of the encoder: begun so much earlier, an offline decode says what the model is sure of."""


class Plan(NamedTuple):
    """Sounds of one kind."""

    seconds: float
    pauses: bool
    joins: int
    """So many, each joined anew; their words are counted together."""


def cases(ours: Ours, plan: Sequence[Plan], tell: Callable[[str], None]) -> list[Case]:
    """Return what became of the words of each kind of sound."""
    clips, found = sounds.clips(), []
    for kind in plan:
        joins = [sounds.joined(clips, kind.seconds, kind.pauses, seed) for seed in range(kind.joins)]
        name = f"{kind.seconds:g} s, {'with' if kind.pauses else 'without'} pauses"
        found.append(ours.wait(_case(ours.engine, joins, name, kind.pauses)))
        tell(name)
    return found


async def _case(engine: Engine, joins: Sequence[Joined], name: str, pauses: bool) -> Case:
    clean = normaliser("en")
    streamed = [clean(await dictated(engine, join.samples)) for join in joins]
    offline = {"whole": [clean(await _offline(engine, _stretches(join))) for join in joins]}
    if pauses:
        offline["cut at the pauses"] = [clean(await _offline(engine, join.pieces())) for join in joins]
    score = {how: _score(joins, texts) for how, texts in offline.items()}
    best = min(score, key=lambda how: sum(score[how].errors))
    pieces = [piece for join in joins for piece in (_stretches(join) if best == "whole" else join.pieces())]
    again = clean(await _offline(engine, [np.pad(piece, (SHIFT, 0)) for piece in pieces]))
    return Case(
        name,
        _score(joins, streamed),
        score[best],
        best,
        sum(edits(offline[best], streamed).errors),
        sum(edits([" ".join(offline[best])], [again]).errors),
        sum(len(text.split()) for text in offline[best]),
    )


def _score(joins: Sequence[Joined], texts: Sequence[str]) -> Edits:
    """Return the edits of each clip of each sound."""
    found = [by_clip(join.texts, text, normaliser("en")) for join, text in zip(joins, texts, strict=True)]
    return Edits(tuple(e for one in found for e in one.errors), tuple(w for one in found for w in one.words))


def _stretches(join: Joined) -> list[Samples]:
    """Return a sound in one piece, or, where it is too long for that, cut at joins into pieces as long as can be."""
    cuts, last = [], 0
    for cut, after in zip(join.cuts, [*join.cuts[1:], len(join.samples)], strict=True):
        if after - last > WHOLE:
            cuts.append(cut)
            last = cut
    return np.split(join.samples, cuts)


async def dictated(engine: Engine, samples: Samples) -> str:
    """Return the text of a sound that comes in blocks, asked for as `scribe` asks."""
    dictation = Dictation(Settings(model="demo-ctc"))
    for number, first in enumerate(range(0, len(samples), BLOCK), 1):
        events = dictation.push(AudioBlock(first, samples[first : first + BLOCK]))
        if events or number % FILM == 0:
            await dictation.decode(engine)
            await dictation.look_ahead(engine)
    dictation.finish()
    await dictation.decode(engine)
    return dictation.transcript.text


async def _offline(engine: Engine, pieces: Any) -> str:
    texts = [(await engine.transcribe(np.ascontiguousarray(piece))).hypothesis.text for piece in pieces]
    return " ".join(filter(None, texts))
