"""One recording on its way to text: detector, segmenter, worker and transcript, in the order in which
audio passes them.

The source of the audio and the target of the text are not known here. Runs on the daemon's side.
"""

from __future__ import annotations

import functools
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
from asrd.streaming.empty_retry import (
    EmptyCheck,
    EmptyRetry,
    FallBack,
    WordlessBuffer,
    ask_next_candidates,
)
from asrd.streaming.segmenter import SegmentBuffer, Segmenter
from asrd.streaming.transcript import Transcript, credible

EARLIER_SECONDS = 0.75
"""Seconds before the edge of an open buffer at which Canary is asked as well: only words that it
returns twice are committed."""


class DecodedBuffer(NamedTuple):
    """A buffer and its text."""

    start: int
    stop: int
    strategy: str
    text: str
    context: DecodingContext | None
    """The words before it, which the decoder continued; None where there were none."""


class StreamingSession:
    """The words of one recording so far. `push` and `finish` never wait; the rest asks the worker.

    Args:
        settings: for the window's length.
        phase: what the worker is asked for by `decode`, partial or final.
    """

    def __init__(self, settings: Settings, phase: str = "final") -> None:
        self.phase = phase
        self.answer: Answer | None = None
        """The last answer of the worker; None before the first."""
        self.compute = 0.0
        """Seconds that the worker took for all answers."""
        self.doubted = 0
        """Words that were decoded where the detector was not sure of speech, and were not
        accepted."""
        self.strategy = ""
        """The strategy that answered last, which need not be the one that was asked for; "" before the
        first answer."""
        self.device = ""
        self.ready: Ready | None = None
        """The report of the worker that answered last."""
        self.decoded: list[DecodedBuffer] = []
        """Every buffer that `decode` asked for."""
        self.empty_retry = EmptyRetry(settings.demote_empty)
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

    def resume(self, words: Sequence[Word], until_pause: int, until: int) -> None:
        """Start with words that an earlier run had committed up to `until`; buffers before that are
        not decoded again.

        Args:
            until_pause: how many of them were followed by a pause.
        """
        self.transcript.restore(words, until_pause, until)
        self._known_until = until

    def push(self, block: AudioBlock) -> list[VadEvent]:
        """Add the next block; return the events of the detector so far."""
        events = self.vad.push(block)
        self.window.push(block, events)
        return events

    def finish(self) -> list[VadEvent]:
        """Note that no block follows: open speech closes, and `decode` returns the rest; return as
        `push`."""
        events = self.vad.finish()
        self.window.note(events)
        return events

    @property
    def behind(self) -> float:
        """Seconds of speech that could be text by now and are not, as the machine does not keep up."""
        return self.window.due / SAMPLE_RATE

    async def decode(
        self, engine: Engine, by_pause: bool = False, fall_back: FallBack | None = None
    ) -> list[Word]:
        """Ask for every buffer that is ready and return the words that became final. Raises as
        Engine.transcribe.

        Args:
            by_pause: return at the first pause that has words before it; `paused` then says that
                more is ready.
            fall_back: leaves a candidate that finds no word in clear speech; None: none is left.
        """
        fresh: list[Word] = []
        self.paused = False
        while (buffer := self.window.take()) is not None:
            if buffer.stop <= self._known_until:
                self.window.commit(self._known_until)
                continue
            answer = self._known(buffer) or await self._ask(engine, buffer, self.phase)
            for each, found in await self._retry_empty(engine, buffer, answer, fall_back):
                fresh += await self._take_in(engine, each, found.hypothesis)
            self.window.commit(self.transcript.committed_until)
            if by_pause and buffer.final and fresh:
                self.paused = True
                break
        return fresh

    async def _take_in(
        self, engine: Engine, buffer: SegmentBuffer, hypothesis: Hypothesis
    ) -> list[Word]:
        """Return the words that a buffer's hypothesis makes final."""
        context = self.transcript.context(buffer.start)
        self.decoded.append(
            DecodedBuffer(buffer.start, buffer.stop, hypothesis.precision, hypothesis.text, context)
        )
        if not buffer.sure and not credible(hypothesis, self._spoken(buffer)):
            self.doubted += len(hypothesis.words)
            hypothesis = msgspec.structs.replace(hypothesis, text="", words=[])
        return self.transcript.push(hypothesis, buffer.final, await self._earlier(engine, buffer))

    def _spoken(self, buffer: SegmentBuffer) -> float:
        """Return the seconds of a buffer that the detector took for speech, without the audio that it
        keeps around them."""
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
        self._foreseen = buffer, self.transcript.context(buffer.start), answer
        self.transcript.suppose(answer.hypothesis)
        return True

    async def partial(self, engine: Engine) -> bool:
        """While speech goes on, decode a partial result. Returns and raises as `look_ahead`."""
        buffer = self.window.partial()
        if buffer is None:
            return False
        self.transcript.suppose((await self._ask(engine, buffer, "partial")).hypothesis)
        return True

    async def _retry_empty(
        self, engine: Engine, buffer: SegmentBuffer, answer: Answer, fall_back: FallBack | None
    ) -> list[tuple[SegmentBuffer, Answer]]:
        """Return the answer that stands for a buffer; also those of wordless buffers before it that
        were asked for again."""
        resumed = answer.hypothesis.resumed  # then its decoder was to find what follows the context
        context = self.transcript.context(buffer.start) if resumed else None
        decoded_from = context.until if context else buffer.start
        clear_seconds = self.vad.clear(decoded_from, buffer.stop) / SAMPLE_RATE
        plain = fallback.is_full_fp32(engine.candidate.precision)
        retry, until = self.empty_retry, self.transcript.committed_until
        check = retry.check(buffer, answer, until, clear_seconds, plain)
        if check is EmptyCheck.KEEP or (check is EmptyCheck.FALL_BACK and fall_back is None):
            return [(buffer, answer)]
        if fall_back is None or check is EmptyCheck.ASK_AGAIN:
            answers = [*await self._ask_all(engine, retry.wordless[:-1]), answer]
        else:
            ask = functools.partial(self._ask_all, engine, retry.wordless)
            clear = retry.total_seconds
            answers = await ask_next_candidates(engine, answer, clear, fall_back, ask)
        settled = retry.settle(answer, answers)
        if settled.reopen_at is not None:
            self.transcript.reopen(settled.reopen_at)
        return settled.answers

    async def _ask_all(self, engine: Engine, buffers: Sequence[WordlessBuffer]) -> list[Answer]:
        """Return the answers of the candidate in service for buffers that gave no word."""
        return [await self._ask(engine, one.buffer, self.phase) for one in buffers]

    async def _earlier(self, engine: Engine, buffer: SegmentBuffer) -> Hypothesis | None:
        """Return the hypothesis of an open buffer without its last moments; None where that tells
        nothing.

        What an attention decoder says near an edge hangs on the edge, and it may run on. A frame's
        own decoder does
        not: measured, agreement changed nothing there.
        """
        if buffer.final or engine.ready is None or engine.ready.family != "aed":
            return None
        samples = buffer.samples[: -round(EARLIER_SECONDS * SAMPLE_RATE)]
        answer = await engine.transcribe(samples, buffer.start, self.phase)
        self.compute += answer.seconds
        return answer.hypothesis

    def _known(self, buffer: SegmentBuffer) -> Answer | None:
        """Return the answer for a buffer that was foreseen to the sample."""
        if self._foreseen is not None:
            seen, context, answer = self._foreseen
            same = (seen.start, seen.stop, seen.final) == (
                buffer.start,
                buffer.stop,
                buffer.final,
            )
            if same and context == self.transcript.context(buffer.start):
                return answer
        return None

    async def _ask(self, engine: Engine, buffer: SegmentBuffer, phase: str) -> Answer:
        context = self.transcript.context(buffer.start)
        answer = self.answer = await engine.transcribe(buffer.samples, buffer.start, phase, context)
        self.compute += answer.seconds
        self.strategy, self.device = engine.candidate.precision.name, engine.candidate.device
        self.ready = engine.ready or self.ready
        return answer
