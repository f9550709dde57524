"""One recording on its way to text: detector, window, worker and transcript, in the order sound flows.

Knows the order; knows neither where sound comes from nor where text goes. Runs on the daemon's side.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from .audio import AudioBlock
from .config import Settings
from .engine import Engine
from .transcript import Transcript, credible
from .vad import Event, Vad
from .window import Buffer, Window
from .wire import SAMPLE_RATE, Answer, Hypothesis, Said, Word

EARLIER = 0.75
"""Seconds before the edge of an open buffer at which Canary is asked as well: only what it says twice is committed."""

STEPS = 8
"""Times that one buffer is asked for again at most; no ladder has more rungs."""


class Heard(NamedTuple):
    """A buffer and what it was heard as."""

    start: int
    stop: int
    strategy: str
    text: str
    said: Said | None
    """What it was to go on from."""


class Dictation:
    """What was said since the recording began. `push` and `finish` never wait; the rest asks the worker.

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
        """The one that answered last, which need not be the one that was asked for; "" while none was asked."""
        self.device = ""
        self.heard: list[Heard] = []
        """Every buffer that `decode` asked for."""
        self._deaf = settings.demote_empty
        self.vad = Vad()
        # Measured at ten seconds on speech without a pause (tools/bench-seams): words change little near these.
        self.window = Window(
            settings.window,
            left=0.25 * settings.window,
            lookback=self.vad.settings.lookback,
            post_roll=self.vad.settings.post_roll,
        )
        self.transcript = Transcript(guard=0.2 * settings.window)
        self._foreseen: tuple[Buffer, Said | None, Answer] | None = None

    def push(self, block: AudioBlock) -> list[Event]:
        """Take in the next block; return what the detector says of the sound so far."""
        events = self.vad.push(block)
        self.window.push(block, events)
        return events

    def finish(self) -> list[Event]:
        """Tell that no block follows: speech that is open closes, and `decode` gives the rest; return as `push`."""
        events = self.vad.finish()
        self.window.note(events)
        return events

    @property
    def behind(self) -> float:
        """Seconds of speech that could be text by now and are not: how far the machine does not keep up."""
        return self.window.due / SAMPLE_RATE

    async def decode(self, engine: Engine) -> list[Word]:
        """Ask for every buffer that is ready and return the words that became final. Raises as Engine.transcribe."""
        fresh: list[Word] = []
        while (buffer := self.window.take()) is not None:
            answer = self._known(buffer) or await self._ask(engine, buffer, self.phase)
            heard = (await self._insist(engine, buffer, answer)).hypothesis
            said = self.transcript.said(buffer.start)
            self.heard.append(Heard(buffer.start, buffer.stop, heard.precision, heard.text, said))
            if not buffer.sure and not credible(heard, self._spoken(buffer)):
                self.doubted += len(heard.words)
                heard = msgspec.structs.replace(heard, text="", words=[])
            fresh += self.transcript.push(heard, buffer.sealed, await self._earlier(engine, buffer))
            self.window.commit(self.transcript.committed_until)
        return fresh

    def _spoken(self, buffer: Buffer) -> float:
        """Return for how many seconds of a buffer the detector heard something, without what it keeps around that."""
        rolls = self.vad.settings.pre_roll + self.vad.settings.post_roll
        return (len(buffer.samples) - buffer.lead) / SAMPLE_RATE - rolls

    async def look_ahead(self, engine: Engine) -> bool:
        """While speech rests, decode it as if it were over: if it is, `decode` has nothing left to wait for.

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
        """While speech goes on, hear what it comes to so far. Returns and raises as `look_ahead`."""
        buffer = self.window.draft()
        if buffer is None:
            return False
        self.transcript.suppose((await self._ask(engine, buffer, "draft")).hypothesis)
        return True

    async def _insist(self, engine: Engine, buffer: Buffer, answer: Answer) -> Answer:
        """Have the next rung hear clear speech of which this one made no word at all; FP32's silence is believed."""
        said = self.transcript.said(buffer.start) if answer.hypothesis.resumed else None
        clear = self.vad.clear(said.until if said else buffer.start, buffer.stop) / SAMPLE_RATE
        if _said(answer) or not 0 < self._deaf <= clear:
            return answer
        why, figures = f"no word in {clear:.1f} s of clear speech", {"clear_seconds": clear}
        for _ in range(STEPS):
            rung = engine.rung
            same = rung.precision.name == answer.hypothesis.precision  # else another caller has left it already
            if same and not await engine.demote(rung, "empty", why, figures):
                break
            answer = await self._ask(engine, buffer, self.phase)
            if _said(answer):
                return answer
        engine.pardon("empty")
        return answer

    async def _earlier(self, engine: Engine, buffer: Buffer) -> Hypothesis | None:
        """Return what an open buffer is heard as without its last moments; None where that tells nothing.

        What an attention decoder says near an edge hangs on the edge, and it may run on. A frame's own decoder does
        not: measured, agreement changed nothing there.
        """
        if buffer.sealed or engine.ready is None or engine.ready.family != "aed":
            return None
        samples = buffer.samples[: -round(EARLIER * SAMPLE_RATE)]
        answer = await engine.transcribe(samples, buffer.start, self.phase)
        self.compute += answer.seconds
        return answer.hypothesis

    def _known(self, buffer: Buffer) -> Answer | None:
        """Return the answer for a buffer that was foreseen to the sample."""
        if self._foreseen is not None:
            seen, said, answer = self._foreseen
            same = (seen.start, seen.stop, seen.sealed) == (buffer.start, buffer.stop, buffer.sealed)
            if same and said == self.transcript.said(buffer.start):
                return answer
        return None

    async def _ask(self, engine: Engine, buffer: Buffer, phase: str) -> Answer:
        said = self.transcript.said(buffer.start)
        answer = self.answer = await engine.transcribe(buffer.samples, buffer.start, phase, said)
        self.compute += answer.seconds
        self.strategy, self.device = engine.rung.precision.name, engine.rung.device
        return answer


def _said(answer: Answer) -> bool:
    """Whether there is a word at all."""
    return bool(answer.hypothesis.text or answer.hypothesis.words)
