"""Canary: attention encoder-decoder -> timed tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from asrd.worker.decoding import canary
from asrd.worker.decoding.decoder import DecoderState, one_by_one
from asrd.worker.decoding.word_times import Decoded, text_of, timed_tokens
from asrd.worker.encoder.cuda_graphs import GraphCapture


class Aed:
    """Canary, decoded by a `canary.Canary`, whose guard may be set or taken off."""

    family = "aed"

    def __init__(self, model: Any, source_lang: str, target_lang: str, pnc: bool | None) -> None:
        self._model = model
        self.canary = canary.Canary(model, source_lang, target_lang, pnc)

    def __call__(self, encoded: Tensor, length: Tensor) -> Decoded:
        """Return the text and its tokens."""
        count = int(length[0])
        if not count:
            return Decoded("", [], False)
        return self._read(self.canary(encoded, count), count)

    def state_after(self, text: str, frames: int) -> DecoderState | None:
        """Return None: its text of a buffer begins with the buffer."""
        return None

    def decode_batch(
        self, encoded: Tensor, lengths: Tensor, paths: Sequence[DecoderState | None] = ()
    ) -> list[Decoded]:
        """Return the text of each buffer."""
        counts = list(map(int, lengths))
        if not all(counts):
            return one_by_one(self, encoded, lengths)
        outputs = self.canary.decode_batch(encoded, counts)
        return list(map(self._read, outputs, counts))

    def _read(self, output: canary.CanaryOutput, count: int) -> Decoded:
        starts: list[int] = []
        stops: list[int] = []
        for start, stop in output.spans:
            starts.append(start)
            stops.append(stop)
        tokens = timed_tokens(output.ids, starts, stops, output.confidences, count)
        return Decoded(text_of(self._model, output.ids), tokens, output.truncated)

    def freeze_weights(self) -> None:
        """Join Canary's weights."""
        self.canary.freeze_weights()

    def replay(self, graphs: GraphCapture) -> None:
        """Replay Canary's steps."""
        self.canary.replay(graphs)

    def boost_phrases(self, phrases: Sequence[str], weight: float) -> None:
        """Boost these phrases from here on."""
        self.canary.boost_phrases(phrases, weight)
