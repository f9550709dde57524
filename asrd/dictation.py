"""One recording on its way to text: detector, window, worker and transcript, in the order sound flows.

Knows the order; knows neither where sound comes from nor where text goes. Runs on the daemon's side.
"""

from __future__ import annotations

from .audio import AudioBlock
from .config import Settings
from .engine import Engine
from .transcript import Transcript
from .vad import Event, Vad
from .window import Window
from .wire import Answer, Word


class Dictation:
    """What was said since the recording began. `push` and `finish` never wait; `decode` asks the worker.

    Args:
        settings: for the window's length.
        phase: what the worker is asked for, draft or final.
    """

    def __init__(self, settings: Settings, phase: str = "final") -> None:
        self.phase = phase
        self.answer: Answer | None = None
        """The last one; None while none was needed."""
        self.compute = 0.0
        """Seconds that the worker took for all answers."""
        self.strategy = ""
        """The one that answered last, which need not be the one that was asked for; "" while none was asked."""
        self.device = ""
        self.vad = Vad()
        # Measured at ten seconds on speech without a pause: a quarter before the first new word, 0.15 before the edge.
        self.window = Window(settings.window, left=0.25 * settings.window, lookback=self.vad.settings.lookback)
        self.transcript = Transcript(guard=0.15 * settings.window)

    def push(self, block: AudioBlock) -> list[Event]:
        """Take in the next block; return what the detector says of the sound so far."""
        events = self.vad.push(block)
        self.window.push(block, events)
        return events

    def finish(self) -> None:
        """Tell that no block follows: speech that is open closes, and `decode` gives the rest."""
        self.window.note(self.vad.finish())

    async def decode(self, engine: Engine) -> list[Word]:
        """Ask for every buffer that is ready and return the words that became final. Raises as Engine.transcribe."""
        fresh: list[Word] = []
        while (buffer := self.window.take()) is not None:
            self.answer = await engine.transcribe(buffer.samples, buffer.start, self.phase)
            self.compute += self.answer.seconds
            self.strategy, self.device = engine.rung.precision.name, engine.rung.device
            fresh += self.transcript.push(self.answer.hypothesis, buffer.sealed)
            self.window.commit(self.transcript.committed_until)
        return fresh
