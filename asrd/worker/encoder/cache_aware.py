"""Partial results of a cache-aware model, each at the price of its new audio.

Such a model (FastConformer with chunked attention and causal convolutions) reads audio in chunks of
fixed length. Its output for earlier chunks does not change when more audio follows. While the user
speaks, each partial buffer is the last one and some more audio. So the caches of the encoder and
the path of the decoder are kept between partial results. Only chunks that are complete since then
go through the model's own streaming step. The rest, less than a chunk, is decoded too, on top of
the caches, and dropped again: the next buffer has it with more behind it. The result is that of one
streaming pass over the whole buffer.

This file keeps no audio. A digest of the samples that went into the caches decides whether a buffer
goes on from the last one. It runs in the dtype in which casting left the encoder.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from asrd.worker.decoding.decoder import Decoder, DecoderState, Resumable
from asrd.worker.decoding.word_times import Decoded

LOCAL_NORMALIZATIONS = (None, "", "NA", "None")
"""Values of a front end's `normalize` under which a frame's features depend on its own audio
alone."""


class State(NamedTuple):
    """The state after the chunks so far. Its size does not grow with them, but for the path's small
    numbers."""

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
    """A buffer whose new audio went through the encoder."""

    start: int
    state: State
    """After the complete chunks; its path is still that of the partial result before."""
    complete: Tensor
    """[1, D, T]: the encoder's output for the chunks that are new."""
    tail: Tensor
    """[1, D, T']: that for the rest; it may change in the next partial result."""

    @property
    def encoded(self) -> Tensor:
        """Both, [1, D, T + T']."""
        return torch.cat([self.complete, self.tail], dim=2)


class CacheAwareEncoder:
    """The partial buffer that is growing, of one model.

    `encode` a buffer, then `decode` its output. A buffer that does not go on from the last one
    begins anew; so does every buffer after an error between the two.

    Args:
        model: one that `streams`.
        decoder: its decoder.
        dtype: dtype that casting stores the encoder in, and so the caches.
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

    def encode(self, audio: bytes, start: int) -> PartialHypothesis:
        """Return the encoder's output for the new part of float32 samples that begin at `start` on
        the clock."""
        state = self._resumed(audio, start)
        offset, total = self._before(state.frames), len(audio) // 4
        samples = torch.frombuffer(bytearray(audio[4 * offset :]), dtype=torch.float32)
        samples = samples.to(self._model.device)
        chunks: list[Tensor] = []
        while (stop := self._needs(size := self._size(state), state.frames)) <= total:
            features = self._features(samples, offset, state.frames, size)
            encoded, state = self._step(state, features)
            chunks.append(encoded)
            state = state._replace(consumed=stop)
        if chunks:
            state = state._replace(digest=_digest(audio, state.consumed))
        # A chunk whose last frame lacks samples is not complete; the frame behind it is less than one
        # of the encoder, which NeMo's own loop leaves out, too.
        rest = min(total // self._hop - state.frames, self._size(state))
        nothing = samples.new_zeros((1, self._model.encoder._feat_out, 0))
        tail = nothing
        if rest >= self._least[state.frames > 0]:
            tail, _ = self._step(state, self._features(samples, offset, state.frames, rest))
        complete = nothing.to(tail)
        if chunks:
            complete = torch.cat(chunks, dim=2)
        return PartialHypothesis(start, state, complete, tail)

    def _resumed(self, audio: bytes, start: int) -> State:
        """Return the state that a buffer goes on from; it is kept no longer."""
        kept, self._kept = self._kept, None
        if kept is not None and kept[0] == start and _goes_on(kept[1], audio):
            return kept[1]
        return self._beginning()

    def decode(self, partial: PartialHypothesis) -> Decoded:
        """Return the text from the buffer's start to its end, and keep the state that the next
        buffer can go on from."""
        path = self._decoder.resume(partial.state.path, partial.complete)
        decoded = self._decoder.read(self._decoder.resume(path, partial.tail))
        self._kept = (partial.start, partial.state._replace(path=path))
        return decoded

    def _beginning(self) -> State:
        caches = self._model.encoder.get_initial_cache_state(1, self._dtype, self._model.device)
        return State(0, 0, b"", None, tuple(caches), DecoderState())

    def _size(self, state: State) -> int:
        """Return how many feature frames the next chunk has."""
        if state.frames:
            return int(self._chunk)
        return int(self._first)

    def _before(self, frame: int) -> int:
        """Return the first sample that the front end needs for the features from `frame` on,
        without padding."""
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

    def _step(self, state: State, features: Tensor) -> tuple[Tensor, State]:
        """Return the encoder's output [1, D, T] for the frames that follow a state, and the state
        after them."""
        count = features.shape[2]
        drop = 0
        if state.features is not None:
            features, drop = torch.cat([state.features, features], dim=2), self._drop
        channel, time, channel_length = state.caches
        encoded, length, *caches = self._model.encoder.cache_aware_stream_step(
            processed_signal=features,
            processed_signal_length=torch.tensor([features.shape[2]], device=features.device),
            cache_last_channel=channel,
            cache_last_time=time,
            cache_last_channel_len=channel_length,
            keep_all_outputs=True,
            drop_extra_pre_encoded=drop,
        )
        # NeMo, too, fills up with zeros where the first chunk is shorter than the reach of the
        # second.
        last = torch.nn.functional.pad(features, (self._reach, 0))[:, :, -self._reach :].clone()
        kept = tuple(map(self._stored, caches))
        after = state._replace(frames=state.frames + count, features=last, caches=kept)
        return encoded[:, :, : int(length[0])], after

    def _stored(self, cache: Tensor) -> Tensor:
        """Return a cache in the encoder's dtype; one of lengths as it is."""
        if cache.is_floating_point():
            return cache.to(self._dtype)
        return cache


def stream_for(model: Any, decoder: Decoder, dtype: torch.dtype) -> CacheAwareEncoder | None:
    """Return the encoder that partial results of a model stream through; None for a model that
    needs the whole buffer each time."""
    if not streams(model, decoder):
        return None
    return CacheAwareEncoder(model, cast(Resumable, decoder), dtype)


def streams(model: Any, decoder: Decoder) -> bool:
    """Return whether every part of a model leaves its output for earlier chunks as it was when more
    audio follows.

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
        and featurizer.normalize in LOCAL_NORMALIZATIONS
        and not featurizer.exact_pad
        and featurizer.frame_splicing == 1
        and hasattr(decoder, "resume")
        and getattr(model.decoder, "blank_as_pad", True)
    )


def _goes_on(state: State, audio: bytes) -> bool:
    """Return whether samples begin with those that a state was made of."""
    return len(audio) >= 4 * state.consumed and _digest(audio, state.consumed) == state.digest


def _digest(audio: bytes, samples: int) -> bytes:
    return hashlib.blake2b(memoryview(audio)[: 4 * samples], digest_size=16).digest()
