"""Canary: the search of its decoder, and the guard that ends a search which loops.

The search is greedy, with a key/value cache, where the checkpoint asks for a beam of one, as
NVIDIA's do; the tokens are NeMo's. A checkpoint with a wider beam or a language model gets NeMo's
own search. The cached decoder then reads its result once more, for times. One difference is
intended. NeMo's beam ignores an end of text that comes first, writes "<|endoftext|>" and goes on;
here it is the end.

This file knows the model, its prompt and token ids; it knows no text. It runs on any device and in
any dtype that casting leaves, in and out of autocast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asrd.errors import ConfigError
from asrd.worker.decoding.alignment import spans, spans_of_batch
from asrd.worker.decoding.canary_prompt import prompt
from asrd.worker.decoding.kv_cache import CachedDecoder, KVCache
from asrd.worker.decoding.phrase_boosting import Boost
from asrd.worker.decoding.static_decoder import ROWS, DecoderReplay, StaticCacheDecoder
from asrd.worker.encoder.cuda_graphs import GraphCapture


class CanaryOutput(NamedTuple):
    """Tokens of one buffer: ids, probabilities, encoder frames (first, one past the last), and
    whether it was cut."""

    ids: list[int]
    confidences: list[float]
    spans: list[tuple[int, int]]
    truncated: bool


class RepetitionGuard(NamedTuple):
    """When Canary's decoder has left the audio: it runs on, or repeats itself without moving on.

    Attention to a spoken "one one one" moves through the audio; that of a loop stands still. On the
    demo model spoken repetitions advanced by 2.1 frames a time or more, loops by 0.3 or less.
    """

    per_second: float = 12.0
    """Tokens that a second of audio may have."""
    at_least: int = 24
    """Tokens that any audio may have on top."""
    repeats: int = 5
    """Times in a row that a phrase of one to `phrase` tokens is let pass unchecked."""
    phrase: int = 6
    advance: float = 1.0
    """Frames that each time must move the attention on."""

    def limit(self, seconds: float) -> int:
        """Return how many tokens so many seconds of audio may have."""
        return self.at_least + int(self.per_second * seconds)

    def repeated(self, ids: list[int]) -> int:
        """Return the length of the shortest phrase that `ids` end on `repeats` times or more; 0 if
        none."""
        for size in range(1, self.phrase + 1):
            tail = ids[-size * self.repeats :]
            if len(tail) == size * self.repeats and tail == tail[-size:] * self.repeats:
                return size
        return 0

    def stuck(self, centres: list[float], size: int) -> bool:
        """Return whether a phrase that was repeated stood still.

        Args:
            centres: the frame that each token attended to, on average.
            size: tokens of the phrase.
        """
        times = self.repeats - 1
        return centres[-1] - centres[-1 - size * times] < self.advance * times


class Canary:
    """A Canary model's decoder: encoder output -> tokens and where they are, from the attention to
    the audio.

    `guard` ends a decoder that runs on or loops; None leaves only NeMo's own limit. Tokens that
    were cut for looping keep their phrase once.
    """

    def __init__(self, model: Any, source_lang: str, target_lang: str, pnc: bool | None) -> None:
        self.guard: RepetitionGuard | None = RepetitionGuard()
        self._boost: Boost | None = None
        self._replay: DecoderReplay | None = None
        self._language = target_lang
        self._model, self._prompt = model, prompt(model, source_lang, target_lang, pnc)
        self._decoder = CachedDecoder(model.transf_decoder, model.log_softmax)
        self._ends = {int(model.tokenizer.eos), int(model.tokenizer.pad)}
        # The head is padded to a multiple of eight.
        self._vocabulary_size = int(model.tokenizer.vocab_size)
        infer = model.decoding.decoding
        beam = getattr(infer, "beam_search", None)
        self._uses_beam = getattr(infer, "beam_size", 1) > 1 or hasattr(beam, "fusion_models")
        # NeMo's beam search counts from its first token on, so it yields one more than its limit.
        self._extra = int(beam is not None)
        self._delta = int((beam or infer.greedy_search).max_delta_len)
        stride = float(model.cfg.preprocessor.window_stride)
        self._frame_seconds = stride * int(model.encoder.subsampling_factor)

    @torch.inference_mode()
    def __call__(self, encoded: Tensor, count: int) -> CanaryOutput:
        """Return the tokens of an encoder output [1, D, T], of which `count` frames, one at least,
        are audio."""
        audio = self._project(encoded[:, :, :count])
        limit = self._limit(encoded.shape[2], count)
        if self._uses_beam:
            ids, confidences, cache, cut = self._beam(audio)
        else:
            steps = self._steps([audio], [limit])
            if steps is not None:
                return self._replayed(steps, [audio], [limit])[0]
            ids, confidences, cache, cut = self._greedy(audio, limit)
        found = spans(cache.attention_rows(), self._prompt.shape[1], len(ids))
        return CanaryOutput(ids, confidences, found, cut)

    @torch.inference_mode()
    def decode_batch(self, encoded: Tensor, counts: Sequence[int]) -> list[CanaryOutput]:
        """Return the same for each of encoder outputs [B, D, T]: in step where that is replayed, or
        one by one."""
        found: list[CanaryOutput] = []
        while len(found) < len(counts):
            rows = range(len(found), min(len(found) + ROWS, len(counts)))
            found += self._decode_rows([encoded[row : row + 1, :, : counts[row]] for row in rows])
        return found

    def _decode_rows(self, rows: list[Tensor]) -> list[CanaryOutput]:
        """Return the tokens of at most `ROWS` encoder outputs [1, D, T] without padding."""
        if self._replay is not None:
            audios = list(map(self._project, rows))
            limits = [self._limit(row.shape[2], row.shape[2]) for row in rows]
            steps = self._steps(audios, limits)
            if steps is not None:
                return self._replayed(steps, audios, limits)
        return [self(row, row.shape[2]) for row in rows]

    def boost_phrases(self, phrases: Sequence[str], weight: float) -> None:
        """Boost these phrases from here on, by a weight in nats. Raises ConfigError, also where a
        beam searches."""
        if self._uses_beam:
            raise ConfigError(
                "this checkpoint asks for a beam, which prefers no vocabulary",
                "set vocabulary = []",
            )
        self._boost = Boost(self._model, phrases, weight, "aed", self._language)

    def freeze_weights(self) -> None:
        """Read a token in fewer steps from here on, which no change of a weight may follow; no text
        changes by it."""
        self._decoder.join()

    def replay(self, graphs: GraphCapture) -> None:
        """From here on replay the steps that read a token, where nothing but the audio decides
        which it is."""
        if self._uses_beam:
            graphs.note("decoder", "not replayed: this checkpoint asks for a beam")
            return
        size = self._prompt.shape[1]
        self._replay = DecoderReplay(
            self._decoder,
            self._prompt,
            self._vocabulary_size,
            graphs,
            lambda frames: size + self._limit(frames, frames),
        )

    def _project(self, encoded: Tensor) -> Tensor:
        """Return the states that the decoder attends to [1, T, D]."""
        model = self._model
        first = model.encoder_decoder_proj
        if isinstance(first, torch.nn.Identity):
            first = model.transf_decoder
        dtype = weight_dtype(first)
        audio: Tensor = model.encoder_decoder_proj(encoded.to(dtype).transpose(1, 2))
        if model.use_transf_encoder:
            mask = audio.new_ones(audio.shape[:2])
            audio = model.transf_encoder(encoder_states=audio, encoder_mask=mask)
        return audio

    def _limit(self, frames: int, count: int) -> int:
        """Return how many tokens there may be for an encoder output of `frames`, of which `count`
        are audio."""
        longest = self._decoder.max_tokens
        if self._delta >= 0:
            longest = min(longest, frames + self._delta)
        room = max(0, longest - self._prompt.shape[1]) + self._extra
        if self.guard is None:
            return room
        return min(room, self.guard.limit(count * self._frame_seconds))

    def _steps(self, audios: list[Tensor], limits: list[int]) -> StaticCacheDecoder | None:
        """Return the steps that read these buffers; None where none are replayed, or where a text
        is to have no token."""
        if self._replay is None or self._boost is not None or not all(limits):
            return None
        return self._replay(audios, self._prompt.shape[1] + max(limits))

    def _greedy(self, audio: Tensor, limit: int) -> tuple[list[int], list[float], KVCache, bool]:
        """Return token ids, their probabilities, the cache with the attention, and whether the
        guard or the limit cut it."""
        ids: list[int] = []
        scores: list[Tensor] = []
        cache = self._decoder.new_cache(audio, self._prompt.shape[1] + limit)
        logits = self._decoder.step(cache, self._prompt.to(audio.device))[-1]
        cut, state = limit == 0, 0
        while not cut:
            token = logits[: self._vocabulary_size].argmax()
            # The one wait for the device per token; the kernels before it take far longer.
            number = int(token)
            if number in self._ends:
                break
            if self._boost:
                choices = logits[: self._vocabulary_size]
                number, state = self._boost.choose(choices, state, self._ends)
                token.fill_(number)
            ids.append(number)
            scores.append(torch.log_softmax(logits, -1)[number])
            if kept := self._kept_of_loop(ids, cache):
                del ids[kept:], scores[kept:]
                cut = True
            elif len(ids) == limit:
                cut = True
            else:
                logits = self._decoder.step(cache, token.view(1, 1))[-1]
        confidences: list[float] = []
        if scores:
            confidences = torch.stack(scores).exp().tolist()
        return ids, confidences, cache, cut

    def _replayed(
        self, steps: StaticCacheDecoder, audios: list[Tensor], limits: list[int]
    ) -> list[CanaryOutput]:
        """Return the tokens of buffers, by steps that the device takes without waiting for the host
        to see where each text ends."""
        texts = [_Text(steps, row, limit) for row, limit in enumerate(limits)]
        for found in steps.decode(audios, max(limits)):
            running = False
            for text, (number, score) in zip(texts, found, strict=True):
                if not text.ended:
                    self._extend(text, number, score)
                    running = running or not text.ended
            if not running:
                break
        rows: list[NDArray[np.float32]] = []
        counts: list[int] = []
        for text in texts:
            rows.append(text.attention_rows())
            counts.append(len(text.ids))
        outputs = []
        for text, reached in zip(
            texts, spans_of_batch(rows, self._prompt.shape[1], counts), strict=True
        ):
            outputs.append(CanaryOutput(text.ids, text.confidences, reached, text.cut))
        return outputs

    def _extend(self, text: _Text, number: int, score: float) -> None:
        """Let a text go on by one token, or end."""
        if number in self._ends:
            text.ended = True
            return
        text.ids.append(number)
        text.confidences.append(math.exp(score))
        if kept := self._kept_of_loop(text.ids, text):
            del text.ids[kept:], text.confidences[kept:]
        text.ended = text.cut = bool(kept) or len(text.ids) == text.limit

    def _beam(self, audio: Tensor) -> tuple[list[int], list[float], KVCache, bool]:
        """Return the same as `_greedy`, by NeMo's search with a beam and one pass over its
        result."""
        start = self._prompt.to(audio.device)
        found = self._model.decoding.decode_predictions_tensor(
            encoder_hidden_states=audio,
            encoder_input_mask=audio.new_ones(audio.shape[:2]),
            decoder_input_ids=start,
            return_hypotheses=True,
        )[0]
        for part in (self._model.transf_decoder, self._model.log_softmax):
            part.eval()  # NeMo's search leaves them in training mode, with dropout
        ids = [number for number in found.y_sequence.tolist() if number not in self._ends]
        text = start.new_tensor(ids)
        cache = self._decoder.new_cache(audio, start.shape[1] + len(ids))
        logits = self._decoder.step(cache, torch.cat([start, text[None]], 1))
        scores = torch.log_softmax(logits[start.shape[1] - 1 : -1], -1)
        confidences = scores.gather(1, text[:, None])[:, 0].exp().tolist()
        kept = self._kept_of_beam(ids, audio.shape[1], cache)
        return ids[:kept], confidences[:kept], cache, kept < len(ids)

    def _kept_of_beam(self, ids: list[int], frames: int, cache: KVCache) -> int:
        """Return how many tokens of a finished text the guard lets pass."""
        if self.guard is None:
            return len(ids)
        limit = min(len(ids), self.guard.limit(frames * self._frame_seconds))
        for stop in range(1, limit + 1):
            if kept := self._kept_of_loop(ids[:stop], cache):
                return kept
        return limit

    def _kept_of_loop(self, ids: list[int], cache: KVCache | _Text) -> int:
        """Return how many tokens to keep when they end in a loop; 0 when they do not."""
        if self.guard is None:
            return 0
        size = self.guard.repeated(ids)
        if not size:
            return 0
        rows = cache.attention_rows()[self._prompt.shape[1] - 1 :][: len(ids)]
        centres = (rows @ np.arange(rows.shape[1]) / rows.sum(1)).tolist()
        if not self.guard.stuck(centres, size):
            return 0
        return len(ids) - size * (self.guard.repeats - 1)


class _Text:
    """One of the texts that steps read: its tokens so far, `limit` at most."""

    def __init__(self, steps: StaticCacheDecoder, row: int, limit: int) -> None:
        self.ids: list[int] = []
        self.confidences: list[float] = []
        self.limit, self.ended, self.cut = limit, False, False
        self._steps, self._row = steps, row

    def attention_rows(self) -> NDArray[np.float32]:
        """Return the attention of every token read so far [tokens, frames], the mean over layers
        and heads."""
        return self._steps.attention_rows(self._row, self.limit)


def weight_dtype(module: torch.nn.Module) -> torch.dtype:
    """Return the dtype of a module's first weight: what its input is to be cast to."""
    return next(
        parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()
    )
