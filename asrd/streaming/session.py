"""One recording on its way to text: detector, window, worker and transcript, in the order sound
flows.

Knows the order; knows neither where sound comes from nor where text goes. Runs on the daemon's
side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from asrd.audio.blocks import AudioBlock
from asrd.audio.format import SAMPLE_RATE
from asrd.audio.vad import Vad, VadEvent
from asrd.config.settings import Settings
from asrd.engine.engine import Engine
from asrd.precision import fallback
from asrd.protocol import Answer, DecodingContext, Hypothesis, Ready, Word
from asrd.streaming.segmenter import SegmentBuffer, Segmenter
from asrd.streaming.transcript import Transcript, credible

EARLIER = 0.75
"""Seconds before the edge of an open buffer at which Canary is asked as well: only what it says
twice is committed."""

AGAIN = 12
"""Buffers without a word that are kept, to be heard again by another candidate, at most."""

STEPS = 8
"""Times that one buffer is asked for again at most; no fallback order has more candidates."""


class DecodedBuffer(NamedTuple):
    """A buffer and what it was heard as."""

    start: int
    stop: int
    strategy: str
    text: str
    said: DecodingContext | None
    """What it was to go on from."""


class Unheard(NamedTuple):
    """A buffer in which no word was heard."""

    buffer: SegmentBuffer
    until: int
    """Where the text was final before it."""
    clear: float
    """Seconds of clear speech."""


class StreamingSession:
    """What was said since the recording began. `push` and `finish` never wait; the rest asks the
    worker.

    Args:
        settings: for the window's length.
        phase: what the worker is asked for by `decode`, draft or final.
    """

    def __init__(self, settings: Settings, phase: str = "final") -> None:
        self.phase = phase
        self.answer: Answer | None = None
        """The last one; None while none was needed."""
        self.compute = 0.0
        """Seconds that the worker took for all answers."""
        self.doubted = 0
        """Words that were heard where hardly anybody spoke, and are not believed."""
        self.strategy = ""
        """The one that answered last, which need not be the one that was asked for; "" while none
        was asked."""
        self.device = ""
        self.ready: Ready | None = None
        """What the worker that answered last said of itself."""
        self.heard: list[DecodedBuffer] = []
        """Every buffer that `decode` asked for."""
        self.unheard_before = 0.0
        """As `unheard`, of takes before it; 0 once a word was heard."""
        self._unheard: list[Unheard] = []
        self._deaf = settings.demote_empty
        self.vad = Vad()
        # Measured at ten seconds on speech without a pause (tools/bench-seams): words change little
        # near these.
        self.window = Segmenter(
            settings.window,
            left=0.25 * settings.window,
            lookback=self.vad.settings.lookback,
            post_roll=self.vad.settings.post_roll,
        )
        self.transcript = Transcript(guard=0.2 * settings.window)
        self.paused = False
        """Whether `decode` returned at a pause, so that more may be ready."""
        self._foreseen: tuple[SegmentBuffer, DecodingContext | None, Answer] | None = None
        self._known_until = 0
        """Sample up to which the text is known from an earlier run."""

    def resume(self, words: Sequence[Word], sealed: int, until: int) -> None:
        """Take over words that an earlier run had committed up to `until`; buffers before that ask
        nothing.

        Args:
            sealed: how many of them were followed by a pause.
        """
        self.transcript.restore(words, sealed, until)
        self._known_until = until

    def push(self, block: AudioBlock) -> list[VadEvent]:
        """Take in the next block; return what the detector says of the sound so far."""
        events = self.vad.push(block)
        self.window.push(block, events)
        return events

    def finish(self) -> list[VadEvent]:
        """Tell that no block follows: speech that is open closes, and `decode` gives the rest;
        return as `push`."""
        events = self.vad.finish()
        self.window.note(events)
        return events

    @property
    def behind(self) -> float:
        """Seconds of speech that could be text by now and are not: how far the machine does not
        keep up."""
        return self.window.due / SAMPLE_RATE

    async def decode(self, engine: Engine, by_pause: bool = False) -> list[Word]:
        """Ask for every buffer that is ready and return the words that became final. Raises as
        Engine.transcribe.

        Args:
            by_pause: return at the first pause that has words before it; `paused` then says that
                more is ready.
        """
        fresh: list[Word] = []
        self.paused = False
        while (buffer := self.window.take()) is not None:
            if buffer.stop <= self._known_until:
                self.window.commit(self._known_until)
                continue
            answer = self._known(buffer) or await self._ask(engine, buffer, self.phase)
            for each, found in await self._insist(engine, buffer, answer):
                fresh += await self._take_in(engine, each, found.hypothesis)
            self.window.commit(self.transcript.committed_until)
            if by_pause and buffer.sealed and fresh:
                self.paused = True
                break
        return fresh

    async def _take_in(
        self, engine: Engine, buffer: SegmentBuffer, heard: Hypothesis
    ) -> list[Word]:
        """Return the words that a buffer's hypothesis makes final."""
        said = self.transcript.said(buffer.start)
        self.heard.append(
            DecodedBuffer(buffer.start, buffer.stop, heard.precision, heard.text, said)
        )
        if not buffer.sure and not credible(heard, self._spoken(buffer)):
            self.doubted += len(heard.words)
            heard = msgspec.structs.replace(heard, text="", words=[])
        return self.transcript.push(heard, buffer.sealed, await self._earlier(engine, buffer))

    @property
    def unheard(self) -> float:
        """Seconds of clear speech since the last word of which a precision below FP32 made none."""
        return sum(one.clear for one in self._unheard)

    def _spoken(self, buffer: SegmentBuffer) -> float:
        """Return for how many seconds of a buffer the detector heard something, without what it
        keeps around that."""
        rolls = self.vad.settings.pre_roll + self.vad.settings.post_roll
        return (len(buffer.samples) - buffer.lead) / SAMPLE_RATE - rolls

    async def look_ahead(self, engine: Engine) -> bool:
        """While speech rests, decode it as if it were over: if it is, `decode` has nothing left to
        wait for.

        Returns whether anything was asked. Raises as Engine.transcribe.
        """
        buffer = self.window.ahead()
        if buffer is None or self._known(buffer):
            return False
        answer = await self._ask(engine, buffer, self.phase)
        self._foreseen = buffer, self.transcript.said(buffer.start), answer
        self.transcript.suppose(answer.hypothesis)
        return True

    async def draft(self, engine: Engine) -> bool:
        """While speech goes on, hear what it comes to so far. Returns and raises as
        `look_ahead`."""
        buffer = self.window.draft()
        if buffer is None:
            return False
        self.transcript.suppose((await self._ask(engine, buffer, "draft")).hypothesis)
        return True

    async def _insist(
        self, engine: Engine, buffer: SegmentBuffer, answer: Answer
    ) -> list[tuple[SegmentBuffer, Answer]]:
        """Return what a buffer was heard as; buffers before it, too, where another candidate had to
        hear them again.

        That is done with clear speech of which a candidate made no word at all. FP32's silence is
        believed.
        """
        said = self.transcript.said(buffer.start) if answer.hypothesis.resumed else None
        clear = self.vad.clear(said.until if said else buffer.start, buffer.stop) / SAMPLE_RATE
        plain = fallback.plain(engine.candidate.precision)
        in_doubt = bool(self._unheard) if plain else not _said(answer)
        if not self._deaf or not in_doubt:
            self._believe()
            return [(buffer, answer)]
        self._unheard = [
            *self._unheard[1 - AGAIN :],
            Unheard(buffer, self.transcript.committed_until, clear),
        ]
        if plain:  # it came into service for another reason
            answers = [
                *[await self._ask(engine, one.buffer, self.phase) for one in self._unheard[:-1]],
                answer,
            ]
        elif clear and self.unheard_before + self.unheard >= self._deaf:
            answers = await self._by_the_next(engine, answer)
        else:
            return [(buffer, answer)]
        if any(map(_said, answers)):
            self.transcript.reopen(self._unheard[0].until)
            found = [(one.buffer, each) for one, each in zip(self._unheard, answers, strict=True)]
        else:  # what stood before this buffer is as it was
            found = [(buffer, answers[-1] if answers else answer)]
        self._believe()
        return found

    async def _by_the_next(self, engine: Engine, answer: Answer) -> list[Answer]:
        """Return what the first candidate that hears a word makes of the unheard buffers; else the
        last, or none at all."""
        clear = self.unheard_before + self.unheard
        why, figures = f"no word in {clear:.1f} s of clear speech", {"clear_seconds": clear}
        answers, left = list[Answer](), list[str]()
        for _ in range(STEPS):
            candidate = engine.candidate
            same = (
                candidate.precision.name == answer.hypothesis.precision
            )  # else another caller has left it already
            if same and not await engine.fall_back(candidate, "empty", why, figures):
                break
            left.append(candidate.name)
            answers = [await self._ask(engine, one.buffer, self.phase) for one in self._unheard]
            answer = answers[-1]
            if any(map(_said, answers)):
                return answers
        engine.mark_inherent("empty", left)
        return answers

    def _believe(self) -> None:
        """A word was heard, or FP32 was asked: what was silence before it was silence."""
        self._unheard, self.unheard_before = [], 0.0

    async def _earlier(self, engine: Engine, buffer: SegmentBuffer) -> Hypothesis | None:
        """Return what an open buffer is heard as without its last moments; None where that tells
        nothing.

        What an attention decoder says near an edge hangs on the edge, and it may run on. A frame's
        own decoder does
        not: measured, agreement changed nothing there.
        """
        if buffer.sealed or engine.ready is None or engine.ready.family != "aed":
            return None
        samples = buffer.samples[: -round(EARLIER * SAMPLE_RATE)]
        answer = await engine.transcribe(samples, buffer.start, self.phase)
        self.compute += answer.seconds
        return answer.hypothesis

    def _known(self, buffer: SegmentBuffer) -> Answer | None:
        """Return the answer for a buffer that was foreseen to the sample."""
        if self._foreseen is not None:
            seen, said, answer = self._foreseen
            same = (seen.start, seen.stop, seen.sealed) == (
                buffer.start,
                buffer.stop,
                buffer.sealed,
            )
            if same and said == self.transcript.said(buffer.start):
                return answer
        return None

    async def _ask(self, engine: Engine, buffer: SegmentBuffer, phase: str) -> Answer:
        said = self.transcript.said(buffer.start)
        answer = self.answer = await engine.transcribe(buffer.samples, buffer.start, phase, said)
        self.compute += answer.seconds
        self.strategy, self.device = engine.candidate.precision.name, engine.candidate.device
        self.ready = engine.ready or self.ready
        return answer


def _said(answer: Answer) -> bool:
    """Whether there is a word at all."""
    return bool(answer.hypothesis.text or answer.hypothesis.words)
