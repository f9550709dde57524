"""A shipped model in this process, asked as the engine is, for tools that feed `StreamingSession`
hours of sound."""

from __future__ import annotations

from asrd import protocol
from asrd.audio.blocks import AudioBlock, Samples
from asrd.audio.format import SAMPLE_RATE
from asrd.precision.plan import Candidate
from asrd.precision.strategies import STRATEGY_TABLE

BLOCK = 1600


class Ear:
    """What `StreamingSession` takes for an engine: one model in FP32 on the CPU, and no other
    candidate."""

    candidate = Candidate(STRATEGY_TABLE["fp32"], "cpu")

    def __init__(self, name: str) -> None:
        from asrd.worker.startup import ready_message, start_recognizer

        start = protocol.Start(name, STRATEGY_TABLE["fp32"], threads=1, self_test=False)
        self._recognizer = start_recognizer(start, lambda _: None)
        self.ready = ready_message(self._recognizer)
        self.seconds = 0.0
        """Of sound that was asked about."""

    async def transcribe(
        self,
        samples: Samples,
        start: int = 0,
        phase: str = "final",
        context: protocol.DecodingContext | None = None,
    ) -> protocol.Answer:
        """Return the answer for a buffer."""
        self.seconds += len(samples) / SAMPLE_RATE
        return self._recognizer.recognize(samples.tobytes(), start, phase, context)


def blocks(samples: Samples) -> list[AudioBlock]:
    """Return a sound in blocks of 0.1 s."""
    return [
        AudioBlock(start, samples[start : start + BLOCK]) for start in range(0, len(samples), BLOCK)
    ]
