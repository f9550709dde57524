"""Canary: attention encoder-decoder -> timed tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from asrd.worker.decoding import canary
from asrd.worker.decoding.decoder import DecoderState, one_by_one
from asrd.worker.decoding.word_times import Decoded, say, timed
from asrd.worker.encoder.cuda_graphs import GraphCapture


class Aed:
    """Canary, with `canary.Canary` to listen; its guard may be set, or taken off, there."""

    family = "aed"

    def __init__(self, model: Any, source_lang: str, target_lang: str, pnc: bool | None) -> None:
        self._model = model
        self.canary = canary.Canary(model, source_lang, target_lang, pnc)

    def __call__(self, encoded: Tensor, length: Tensor) -> Decoded:
        """Return what was said."""
        count = int(length[0])
        return self._read(self.canary(encoded, count), count) if count else Decoded("", [], False)

    def after(self, text: str, frames: int) -> DecoderState | None:
        """Return None: its text of a buffer begins with the buffer."""
        return None

    def several(
        self, encoded: Tensor, lengths: Tensor, paths: Sequence[DecoderState | None] = ()
    ) -> list[Decoded]:
        """Return what was said in each buffer."""
        counts = [int(count) for count in lengths]
        if not all(counts):
            return one_by_one(self, encoded, lengths)
        return [
            self._read(*each)
            for each in zip(self.canary.several(encoded, counts), counts, strict=True)
        ]

    def _read(self, heard: canary.CanaryOutput, count: int) -> Decoded:
        starts, stops = [first for first, _ in heard.spans], [last for _, last in heard.spans]
        tokens = timed(heard.ids, starts, stops, heard.likely, count)
        return Decoded(say(self._model, heard.ids), tokens, heard.truncated)

    def settle(self) -> None:
        """Join Canary's weights."""
        self.canary.settle()

    def replay(self, recorder: GraphCapture) -> None:
        """Replay Canary's steps."""
        self.canary.replay(recorder)

    def prefer(self, phrases: Sequence[str], weight: float) -> None:
        """Prefer these phrases from here on."""
        self.canary.prefer(phrases, weight)
