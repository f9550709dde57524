"""CTC: frame-wise probabilities -> timed tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from asrd.worker.decoding.canary import weight_dtype
from asrd.worker.decoding.decoder import LINGER_FRAMES, DecoderState, one_by_one, recurrent
from asrd.worker.decoding.phrase_boosting import Boost
from asrd.worker.decoding.word_times import Decoded, text_of, timed_tokens
from asrd.worker.encoder.cuda_graphs import GraphCapture


class Ctc:
    """Greedy CTC: the best token of each frame, runs and blanks collapsed."""

    family = "ctc"

    def __init__(self, model: Any, language: str) -> None:
        self._model, self._blank = model, int(model.decoding.blank_id)
        self._language = language
        self._boost: Boost | None = None
        layers = getattr(model.decoder, "decoder_layers", None)
        if layers is not None:
            # The log-softmax above then runs in float32, whatever the layers are stored in.
            layers.register_forward_hook(lambda _, args, logits: logits.float())

    def __call__(self, encoded: Tensor, length: Tensor) -> Decoded:
        """Return the text and its tokens."""
        return self.read(self.resume(DecoderState(), encoded[:, :, : int(length[0])]))

    @torch.inference_mode()
    def resume(self, path: DecoderState, encoded: Tensor) -> DecoderState:
        """Return the path over `encoded` too."""
        count = encoded.shape[2]
        if not count:
            return path
        scores, state = self._scores(encoded)[0], path.state
        best, ids = scores.max(-1)
        if self._boost is not None:
            chosen, state = self._boosted(scores.cpu(), ids.tolist(), self._boost, path)
            ids = chosen.to(ids.device)
            best = scores.gather(1, ids[:, None])[:, 0]
        confidences = path.confidences + tuple(best.exp().tolist())
        return DecoderState(
            path.frames + count,
            path.ids + tuple(ids.tolist()),
            confidences=confidences,
            state=state,
        )

    def _scores(self, encoded: Tensor) -> Tensor:
        """Return the log probability of every token [B, T, V]."""
        encoded = encoded.to(weight_dtype(self._model.decoder))
        with recurrent(encoded):
            return torch.log_softmax(self._model.decoder(encoder_output=encoded).float(), -1)

    def read(self, path: DecoderState) -> Decoded:
        """Return the text up to a path's end: runs and blanks collapsed."""
        ids: list[int] = []
        starts: list[int] = []
        stops: list[int] = []
        confidences: list[float] = []
        start = 0
        for number, run in groupby(path.ids):
            stop = start + len(list(run))
            if number != self._blank:
                ids.append(number)
                starts.append(start)
                stops.append(stop + LINGER_FRAMES)
                confidences.append(max(path.confidences[start:stop]))
            start = stop
        tokens = timed_tokens(ids, starts, stops, confidences, path.frames)
        return Decoded(text_of(self._model, ids), tokens, False)

    def state_after(self, text: str, frames: int) -> DecoderState | None:
        """Return None: no frame depends on another."""
        return None

    @torch.inference_mode()
    def decode_batch(
        self, encoded: Tensor, lengths: Tensor, paths: Sequence[DecoderState | None] = ()
    ) -> list[Decoded]:
        """Return the text of each buffer, all in one pass where no phrase is boosted."""
        if len(lengths) == 1 or self._boost is not None or not encoded.shape[2]:
            return one_by_one(self, encoded, lengths)
        best, ids = self._scores(encoded).max(-1)
        decoded = []
        rows = zip(ids.tolist(), best.exp().tolist(), lengths.tolist(), strict=True)
        for row, confidences, count in rows:
            path = DecoderState(count, tuple(row[:count]), confidences=tuple(confidences[:count]))
            decoded.append(self.read(path))
        return decoded

    def freeze_weights(self) -> None:
        """Keep nothing."""

    def replay(self, graphs: GraphCapture) -> None:
        """Replay nothing: it is one layer, and all frames at once."""
        graphs.note("decoder", "not replayed: one layer needs no graph")

    def boost_phrases(self, phrases: Sequence[str], weight: float) -> None:
        """Boost these phrases from here on."""
        self._boost = Boost(self._model, phrases, weight, self.family, self._language)

    def _boosted(
        self, scores: Tensor, path: list[int], boost: Boost, before: DecoderState
    ) -> tuple[Tensor, int]:
        """Return the best path [T] over log scores [T, V], each token chosen anew where it begins,
        as NeMo does it, and the state of the phrases at its end.
        """
        last, state = (before.ids or (self._blank,))[-1], before.state or 0
        for frame, token in enumerate(path):
            if token not in (self._blank, last):
                barred = {last} - {self._blank}
                path[frame], state = boost.choose(scores[frame, : self._blank], state, barred)
            last = path[frame]
        return torch.tensor(path), state
