"""Drafts of a cache-aware model at the price of what is new.

Such a model (FastConformer with chunked attention and causal convolutions) hears sound in chunks of
fixed length, and what it made of earlier chunks does not change when more follows. While somebody
speaks, each draft is the same sound as the last one and some more; so the caches of the encoder and
the path of the decoder are kept between drafts, and only chunks that are complete since then go
through the model's own streaming step. The rest, less than a chunk, is heard too, on top of the
caches, and forgotten again: the next draft hears it with more behind it. What comes out is what one
streaming pass over the whole buffer would say.

Holds no sound: whether a draft goes on from the last one is told by a digest of the samples that
went into the caches. Runs in the worker, in whatever dtype casting left the encoder.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from asrd.worker.decoding.decoder import Decoder, DecoderState, Resumable
from asrd.worker.decoding.word_times import Decoded

PLAIN = (None, "", "NA", "None")
"""Values of a front end's `normalize` that leave each frame's features to that frame's sound
alone."""


class State(NamedTuple):
    """What the chunks so far have left behind. Its size does not grow with them, but for the path's
    small numbers."""

    frames: int
    """Feature frames in them."""
    consumed: int
    """Samples from the buffer's start that they depend on."""
    digest: bytes
    """Of those samples."""
    features: Tensor | None
    """[1, F, P]: the last of their frames, which the next chunk's downsampling reaches back to;
    None at the start."""
    caches: tuple[Tensor, ...]
    """The encoder's: of attention [L, 1, C, D], of convolutions [L, 1, D, K], and how much of the
    first is filled."""
    path: DecoderState


class PartialHypothesis(NamedTuple):
    """A buffer whose new sound went through the encoder."""

    start: int
    state: State
    """After the complete chunks; its path is still that of the draft before."""
    settled: Tensor
    """[1, D, T]: the encoder's output for the chunks that are new."""
    tail: Tensor
    """[1, D, T']: that for what is left; it may have changed in the next draft."""

    @property
    def encoded(self) -> Tensor:
        """Both, [1, D, T + T']."""
        return torch.cat([self.settled, self.tail], dim=2)


class CacheAwareEncoder:
    """The draft that is being spoken, of one model.

    `encode` a buffer, then `decode` what it gave. A buffer that does not go on from the last one
    begins anew; so does everything after an error between the two.

    Args:
        model: one that `streams`.
        decoder: its decoder.
        dtype: what casting stores the encoder in, and so the caches.
    """

    def __init__(self, model: Any, decoder: Resumable, dtype: torch.dtype) -> None:
        encoder = model.encoder
        self._model, self._decoder, self._dtype = model, decoder, dtype
        encoder.setup_streaming_params()
        config = encoder.streaming_cfg
        self._first, self._chunk = config.chunk_size
        self._reach = config.pre_encode_cache_size[1]
        self._drop = config.drop_extra_pre_encoded
        self._least = encoder.pre_encode.get_sampling_frames()
        featurizer = model.preprocessor.featurizer
        self._hop, self._half = featurizer.hop_length, featurizer.n_fft // 2
        self._kept: tuple[int, State] | None = None

    def forget(self) -> None:
        """Begin anew with the next buffer; the caches are freed."""
        self._kept = None

    def encode(self, sound: bytes, start: int) -> PartialHypothesis:
        """Return what the encoder makes of the new part of float32 samples that begin at `start` on
        the clock."""
        kept, self._kept = self._kept, None
        state = (
            kept[1]
            if kept is not None and kept[0] == start and _goes_on(kept[1], sound)
            else self._beginning()
        )
        samples = torch.frombuffer(
            bytearray(sound[4 * self._before(state.frames) :]), dtype=torch.float32
        )
        offset, total = self._before(state.frames), len(sound) // 4
        samples = samples.to(self._model.device)
        settled = []
        while (stop := self._needs(size := self._size(state), state.frames)) <= total:
            heard, state = self._hear(state, self._features(samples, offset, state.frames, size))
            settled.append(heard)
            state = state._replace(consumed=stop)
        if settled:
            state = state._replace(digest=_digest(sound, state.consumed))
        rest = total // self._hop - state.frames
        nothing = samples.new_zeros((1, self._model.encoder._feat_out, 0))
        tail = nothing
        if (
            rest >= self._least[state.frames > 0]
        ):  # NeMo's own loop leaves out less than one frame of the encoder, too
            tail, _ = self._hear(state, self._features(samples, offset, state.frames, rest))
        return PartialHypothesis(
            start, state, torch.cat(settled, dim=2) if settled else nothing.to(tail), tail
        )

    def decode(self, draft: PartialHypothesis) -> Decoded:
        """Return what was said from the buffer's start to its end, and keep what the next draft can
        go on from."""
        path = self._decoder.resume(draft.state.path, draft.settled)
        said = self._decoder.read(self._decoder.resume(path, draft.tail))
        self._kept = (draft.start, draft.state._replace(path=path))
        return said

    def _beginning(self) -> State:
        caches = self._model.encoder.get_initial_cache_state(1, self._dtype, self._model.device)
        return State(0, 0, b"", None, tuple(caches), DecoderState())

    def _size(self, state: State) -> int:
        """Return how many feature frames the next chunk has."""
        return int(self._chunk if state.frames else self._first)

    def _before(self, frame: int) -> int:
        """Return the first sample to give to the front end for the features from `frame` on, and
        none of it padded."""
        return max(0, frame - -(-(self._half + 1) // self._hop)) * self._hop

    def _needs(self, size: int, frame: int) -> int:
        """Return how many samples `size` frames from `frame` on depend on, counted from the
        buffer's start."""
        return (frame + size) * self._hop + self._half

    def _features(self, samples: Tensor, offset: int, frame: int, count: int) -> Tensor:
        """Return features [1, F, count] from `frame` on; `samples` begin at `offset` of the
        buffer."""
        first = self._before(frame)
        part = samples[first - offset : self._needs(count, frame) - offset][None]
        length = torch.tensor([part.shape[1]], device=part.device)
        features = self._model.preprocessor(input_signal=part, length=length)[0]
        skipped = frame - first // self._hop
        return cast(Tensor, features[:, :, skipped : skipped + count])

    def _hear(self, state: State, features: Tensor) -> tuple[Tensor, State]:
        """Return the encoder's output [1, D, T] for the frames that follow a state, and the state
        after them."""
        count = features.shape[2]
        known = features if state.features is None else torch.cat([state.features, features], dim=2)
        encoded, length, *caches = self._model.encoder.cache_aware_stream_step(
            processed_signal=known,
            processed_signal_length=torch.tensor([known.shape[2]], device=known.device),
            **dict(
                zip(
                    ("cache_last_channel", "cache_last_time", "cache_last_channel_len"),
                    state.caches,
                    strict=True,
                )
            ),
            keep_all_outputs=True,
            drop_extra_pre_encoded=0 if state.features is None else self._drop,
        )
        kept = tuple(
            cache.to(self._dtype) if cache.is_floating_point() else cache for cache in caches
        )
        # NeMo, too, fills up with zeros where the first chunk is shorter than what the second
        # reaches back to.
        last = torch.nn.functional.pad(known, (self._reach, 0))[:, :, -self._reach :].clone()
        after = state._replace(frames=state.frames + count, features=last, caches=kept)
        return encoded[:, :, : int(length[0])], after


def stream_for(model: Any, decoder: Decoder, dtype: torch.dtype) -> CacheAwareEncoder | None:
    """Return what drafts of a model stream through; None for a model that has to hear the whole
    buffer each time."""
    return (
        CacheAwareEncoder(model, cast(Resumable, decoder), dtype)
        if streams(model, decoder)
        else None
    )


def streams(model: Any, decoder: Decoder) -> bool:
    """Tell whether every part of a model leaves earlier chunks as they were when more sound
    follows.

    Local features, causal downsampling and convolutions, attention in chunks with a bounded past,
    and a decoder that reads from left to right.
    """
    encoder, featurizer = model.encoder, getattr(model.preprocessor, "featurizer", None)
    context = list(getattr(encoder, "att_context_size", None) or ())
    return (
        getattr(encoder, "att_context_style", "") == "chunked_limited"
        and len(context) == 2
        and min(context) >= 0
        and encoder.self_attention_model == "rel_pos"
        and getattr(encoder.pre_encode, "is_causal", False)
        and encoder.conv_context_size[1] == 0
        and encoder.reduction_position is None
        and featurizer is not None
        and featurizer.normalize in PLAIN
        and not featurizer.exact_pad
        and featurizer.frame_splicing == 1
        and hasattr(decoder, "resume")
        and getattr(model.decoder, "blank_as_pad", True)
    )


def _goes_on(state: State, sound: bytes) -> bool:
    """Tell whether samples begin with those that a state was made of."""
    return len(sound) >= 4 * state.consumed and _digest(sound, state.consumed) == state.digest


def _digest(sound: bytes, samples: int) -> bytes:
    return hashlib.blake2b(memoryview(sound)[: 4 * samples], digest_size=16).digest()
