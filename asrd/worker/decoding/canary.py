"""Canary: what to ask it, how to search its decoder, and when to stop believing it.

Greedy with a key/value cache where the checkpoint asks for a beam of one, as NVIDIA's do; the
tokens are NeMo's. A checkpoint with a wider beam or a language model gets NeMo's own search, and
the cached decoder reads its result once more, for times. One difference is meant: NeMo's beam does
not look at its first token, so where that is the end of the text NeMo writes "<|endoftext|>" and
goes on; here it is the end.

Knows the model, its prompt and token ids; knows no text. Runs in the worker, on any device and in
any dtype that casting leaves, in and out of autocast.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asrd.errors import ConfigError, ModelError, nearest
from asrd.worker.decoding.alignment import spans, spans_of_several
from asrd.worker.decoding.kv_cache import CachedDecoder, KVCache
from asrd.worker.decoding.phrase_boosting import Boost
from asrd.worker.decoding.static_decoder import ROWS, DecoderReplay, StaticCacheDecoder
from asrd.worker.encoder.cuda_graphs import GraphCapture

PROMPTS = ("canary", "canary2")
"""Prompt formats that are known here."""

LANGUAGE = re.compile(r"<\|([a-z]{2}(?:-[A-Z]{2})?)\|>")


class CanaryOutput(NamedTuple):
    """Tokens of one buffer: ids, probabilities, encoder frames (first, one past the last), and
    whether it was cut."""

    ids: list[int]
    likely: list[float]
    spans: list[tuple[int, int]]
    truncated: bool


class RepetitionGuard(NamedTuple):
    """When Canary's decoder has left the sound: it runs on, or repeats itself without moving on.

    Who says "one one one" moves through the sound while saying it, whoever loops does not: on the
    demo model repeated digits advanced by 2.1 frames a time or more, loops by 0.3 or less.
    """

    per_second: float = 12.0
    """Tokens that a second of sound may have."""
    at_least: int = 24
    """Tokens that any sound may have on top."""
    repeats: int = 5
    """Times in a row that a phrase of one to `phrase` tokens is let pass unchecked."""
    phrase: int = 6
    advance: float = 1.0
    """Frames that each time must move the attention on."""

    def limit(self, seconds: float) -> int:
        """Return how many tokens a sound may have."""
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
        """Return whether a phrase that was repeated stood still, from where each token was heard
        most, in frames."""
        return centres[-1] - centres[-1 - size * (self.repeats - 1)] < self.advance * (
            self.repeats - 1
        )


class Canary:
    """A Canary model's decoder: encoder output -> tokens and where they are, from the attention to
    the sound.

    `guard` ends a decoder that runs on or loops; None leaves only NeMo's own limit. What was cut
    for looping keeps its phrase once.
    """

    def __init__(self, model: Any, source_lang: str, target_lang: str, pnc: bool | None) -> None:
        self.guard: RepetitionGuard | None = RepetitionGuard()
        self._boost: Boost | None = None
        self._replay: DecoderReplay | None = None
        self._language = target_lang
        self._model, self._prompt = model, prompt(model, source_lang, target_lang, pnc)
        self._decoder = CachedDecoder(model.transf_decoder, model.log_softmax)
        self._ends = {int(model.tokenizer.eos), int(model.tokenizer.pad)}
        self._known = int(model.tokenizer.vocab_size)  # the head is padded to a multiple of eight
        infer = model.decoding.decoding
        beam = getattr(infer, "beam_search", None)
        self._searches = getattr(infer, "beam_size", 1) > 1 or hasattr(beam, "fusion_models")
        # NeMo's beam search counts from its first token on, so it yields one more than its limit
        # says.
        self._extra = int(beam is not None)
        self._delta = int((beam or infer.greedy_search).max_delta_len)
        self._frame = float(model.cfg.preprocessor.window_stride) * int(
            model.encoder.subsampling_factor
        )

    @torch.inference_mode()
    def __call__(self, encoded: Tensor, count: int) -> CanaryOutput:
        """Return what was heard in an encoder output [1, D, T] of which `count` frames, one at
        least, hold sound."""
        sound = self._project(encoded[:, :, :count])
        limit = self._limit(encoded.shape[2], count)
        if not self._searches and (steps := self._steps([sound], [limit])) is not None:
            return self._replayed(steps, [sound], [limit])[0]
        ids, likely, memory, cut = (
            self._search(sound) if self._searches else self._greedy(sound, limit)
        )
        return CanaryOutput(ids, likely, spans(memory.paid(), self._prompt.shape[1], len(ids)), cut)

    @torch.inference_mode()
    def several(self, encoded: Tensor, counts: Sequence[int]) -> list[CanaryOutput]:
        """Return the same for each of encoder outputs [B, D, T]: in step where that is replayed, or
        one by one."""
        found: list[CanaryOutput] = []
        while len(found) < len(counts):
            rows = range(len(found), min(len(found) + ROWS, len(counts)))
            each = [encoded[row : row + 1, :, : counts[row]] for row in rows]
            limits = [self._limit(count, count) for count in counts[rows.start : rows.stop]]
            sounds = [self._project(one) for one in each] if self._replay is not None else []
            steps = self._steps(sounds, limits) if sounds else None
            if steps is not None:
                found += self._replayed(steps, sounds, limits)
            else:
                found += [self(one, one.shape[2]) for one in each]
        return found

    def prefer(self, phrases: Sequence[str], weight: float) -> None:
        """Prefer these phrases from here on, by a weight in nats. Raises ConfigError, also where a
        beam searches."""
        if self._searches:
            raise ConfigError(
                "this checkpoint asks for a beam, which prefers no vocabulary",
                "set vocabulary = []",
            )
        self._boost = Boost(self._model, phrases, weight, "aed", self._language)

    def settle(self) -> None:
        """Read a token in fewer steps from here on, which no change of a weight may follow; no text
        changes by it."""
        self._decoder.join()

    def replay(self, recorder: GraphCapture) -> None:
        """From here on replay what reads a token, where nothing but the sound decides which it
        is."""
        if self._searches:
            recorder.tell("decoder", "not replayed: this checkpoint asks for a beam")
            return
        size = self._prompt.shape[1]
        self._replay = DecoderReplay(
            self._decoder,
            self._prompt,
            self._known,
            recorder,
            lambda frames: size + self._limit(frames, frames),
        )

    def _project(self, encoded: Tensor) -> Tensor:
        """Return what the decoder listens to [1, T, D]."""
        model = self._model
        same = isinstance(model.encoder_decoder_proj, torch.nn.Identity)
        dtype = weight_dtype(model.transf_decoder if same else model.encoder_decoder_proj)
        sound: Tensor = model.encoder_decoder_proj(encoded.to(dtype).transpose(1, 2))
        if model.use_transf_encoder:
            sound = model.transf_encoder(
                encoder_states=sound, encoder_mask=sound.new_ones(sound.shape[:2])
            )
        return sound

    def _limit(self, frames: int, count: int) -> int:
        """Return how many tokens there may be for an encoder output of `frames`, of which `count`
        hold sound."""
        longest = self._decoder.longest
        room = (
            min(longest, frames + self._delta) if self._delta >= 0 else longest
        ) - self._prompt.shape[1]
        room = max(0, room) + self._extra
        return min(room, self.guard.limit(count * self._frame)) if self.guard else room

    def _steps(self, sounds: list[Tensor], limits: list[int]) -> StaticCacheDecoder | None:
        """Return what replays these sounds' texts; None where nothing does, or a text is to have no
        token."""
        if self._replay is None or self._boost is not None or not all(limits):
            return None
        return self._replay(sounds, self._prompt.shape[1] + max(limits))

    def _greedy(self, sound: Tensor, limit: int) -> tuple[list[int], list[float], KVCache, bool]:
        """Return token ids, their probabilities, what was attended to and whether the guard or the
        limit cut it."""
        ids: list[int] = []
        likely: list[Tensor] = []
        memory = self._decoder.listen(sound, self._prompt.shape[1] + limit)
        logits = self._decoder.step(memory, self._prompt.to(sound.device))[-1]
        cut, state = limit == 0, 0
        while not cut:
            token = logits[: self._known].argmax()
            number = int(
                token
            )  # the one wait for the device per token; the kernels before it take far longer
            if number in self._ends:
                break
            if self._boost:
                number, state = self._boost.choose(logits[: self._known], state, self._ends)
                token.fill_(number)
            ids.append(number)
            likely.append(torch.log_softmax(logits, -1)[number])
            if kept := self._loop(ids, memory):
                del ids[kept:], likely[kept:]
                cut = True
            elif len(ids) == limit:
                cut = True
            else:
                logits = self._decoder.step(memory, token.view(1, 1))[-1]
        return ids, torch.stack(likely).exp().tolist() if likely else [], memory, cut

    def _replayed(
        self, steps: StaticCacheDecoder, sounds: list[Tensor], limits: list[int]
    ) -> list[CanaryOutput]:
        """Return what was heard, by steps that the device takes without waiting to hear where each
        text ends."""
        texts = [_Text(steps, row, limit) for row, limit in enumerate(limits)]
        for found in steps.said(sounds, max(limits)):
            for text, (number, sure) in zip(texts, found, strict=True):
                if not text.over:
                    self._take(text, number, sure)
            if all(text.over for text in texts):
                break
        paid, counts = [text.paid() for text in texts], [len(text.ids) for text in texts]
        reached = spans_of_several(paid, self._prompt.shape[1], counts)
        return [
            CanaryOutput(text.ids, text.likely, each, text.cut)
            for text, each in zip(texts, reached, strict=True)
        ]

    def _take(self, text: _Text, number: int, sure: float) -> None:
        """Let a text go on by one token, or end."""
        if number in self._ends:
            text.over = True
            return
        text.ids.append(number)
        text.likely.append(math.exp(sure))
        if kept := self._loop(text.ids, text):
            del text.ids[kept:], text.likely[kept:]
        text.over = text.cut = bool(kept) or len(text.ids) == text.limit

    def _search(self, sound: Tensor) -> tuple[list[int], list[float], KVCache, bool]:
        """Return the same as `_greedy`, by NeMo's search with a beam and one pass over its
        result."""
        start = self._prompt.to(sound.device)
        found = self._model.decoding.decode_predictions_tensor(
            encoder_hidden_states=sound,
            encoder_input_mask=sound.new_ones(sound.shape[:2]),
            decoder_input_ids=start,
            return_hypotheses=True,
        )[0]
        for part in (self._model.transf_decoder, self._model.log_softmax):
            part.eval()  # NeMo's search leaves them in training mode, with dropout
        ids = [number for number in found.y_sequence.tolist() if number not in self._ends]
        text = start.new_tensor(ids)
        memory = self._decoder.listen(sound, start.shape[1] + len(ids))
        logits = self._decoder.step(memory, torch.cat([start, text[None]], 1))[
            start.shape[1] - 1 : -1
        ]
        likely = torch.log_softmax(logits, -1).gather(1, text[:, None])[:, 0].exp().tolist()
        kept = (
            min(len(ids), self.guard.limit(sound.shape[1] * self._frame))
            if self.guard
            else len(ids)
        )
        loops = (self._loop(ids[:stop], memory) for stop in range(1, kept + 1))
        kept = next(filter(None, loops), kept)
        return ids[:kept], likely[:kept], memory, kept < len(ids)

    def _loop(self, ids: list[int], memory: KVCache | _Text) -> int:
        """Return how many tokens to keep when they end in a loop; 0 when they do not."""
        size = self.guard.repeated(ids) if self.guard else 0
        if not size or self.guard is None:
            return 0
        rows = memory.paid()[self._prompt.shape[1] - 1 :][: len(ids)]
        centres = (rows @ np.arange(rows.shape[1]) / rows.sum(1)).tolist()
        return len(ids) - size * (self.guard.repeats - 1) if self.guard.stuck(centres, size) else 0


class _Text:
    """One of the texts that steps read: what it says so far, `limit` tokens at most."""

    def __init__(self, steps: StaticCacheDecoder, row: int, limit: int) -> None:
        self.ids: list[int] = []
        self.likely: list[float] = []
        self.limit, self.over, self.cut = limit, False, False
        self._steps, self._row = steps, row

    def paid(self) -> NDArray[np.float32]:
        """Return the attention of every token read so far [tokens, frames], the mean over layers
        and heads."""
        return self._steps.paid(self._row, self.limit)


def weight_dtype(module: torch.nn.Module) -> torch.dtype:
    """Return the dtype of a module's first weight: what its input is to be cast to."""
    return next(
        parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()
    )


# -- the prompt


def languages(tokenizer: Any) -> list[str]:
    """Return the languages that a Canary tokenizer has a token for, in order."""
    pieces = getattr(tokenizer, "special_tokens", None) or tokenizer.vocab
    return sorted(match[1] for piece in pieces if (match := LANGUAGE.fullmatch(piece)))


def prompt(model: Any, source_lang: str, target_lang: str, pnc: bool | None) -> Tensor:
    """Return the token ids [1, P] that begin a Canary decoding.

    Slots that the user does not choose are the checkpoint's own defaults, or off; its timestamp
    tokens are always off.

    Raises:
        ModelError: another prompt format, or a tokenizer without one of its tokens.
        ConfigError: a language that the tokenizer has not.
    """
    style = model.prompt_format
    if style not in PROMPTS:
        raise ModelError(
            f"Canary's prompt format {style!r} is not supported", f"supported: {', '.join(PROMPTS)}"
        )
    known = languages(model.tokenizer)
    for language in (source_lang, target_lang):
        if language not in known:
            raise ConfigError(
                f"this model has no language {language!r}", nearest(language, known, "asrd models")
            )
    off = {
        "decodercontext": "",
        "emotion": "<|emo:undefined|>",
        "pnc": "yes",
        "itn": "no",
        "diarize": "no",
    }
    default = {
        key: value
        for key, value in model.prompt.get_default_dialog_slots()[0]["slots"].items()
        if value
    }
    ours = {"source_lang": source_lang, "target_lang": target_lang, "timestamp": "no"}
    ours |= {} if pnc is None else {"pnc": "yes" if pnc else "no"}
    ours["task"] = "asr" if source_lang == target_lang else "ast"
    wanted = model.prompt.get_slots("user")
    slots = {key: value for key, value in (off | default | ours).items() if key in wanted}
    turn = {"role": "user", "slots": {**slots, model.prompt.PROMPT_LANGUAGE_SLOT: "spl_tokens"}}
    try:
        ids: Tensor = model.prompt.encode_dialog(turns=[turn])["context_ids"]
    except KeyError as error:
        raise ModelError(
            f"the tokenizer lacks {error}, which prompt format {style} begins with"
        ) from error
    return ids[None]
