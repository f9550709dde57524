"""A loaded model that answers buffers of samples.

It holds no audio between two calls. It computes one buffer or several at once, checks that the
encoder's output is finite, and puts the words on the sample clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from asrd import protocol
from asrd.audio.format import SAMPLE_RATE
from asrd.precision import memory
from asrd.worker.loading.model_loader import LoadedModel

MIN_BUFFER_SAMPLES = SAMPLE_RATE
"""A shorter buffer is padded with silence on both sides, as NeMo's transcribe() does."""

FLOAT16_MAX = 65504.0


class NonFiniteError(Exception):
    """The encoder put out NaN or infinity; `component` is the module where it began."""

    def __init__(self, detail: str, component: str) -> None:
        super().__init__(detail)
        self.component = component


class _PaddedBuffer:
    """A buffer of float32 samples, padded to `MIN_BUFFER_SAMPLES` where it is shorter.

    Attributes:
        audio: its bytes, without padding.
        start, stop: its first sample and one past its last, on the clock.
        first: the first sample of `padded`, on the clock.
        context: what is final of its speech; None without.
    """

    def __init__(
        self, torch: Any, audio: bytes, start: int, context: protocol.DecodingContext | None
    ) -> None:
        samples = (
            torch.frombuffer(bytearray(audio), dtype=torch.float32) if audio else torch.zeros(0)
        )
        lack = max(0, MIN_BUFFER_SAMPLES - samples.numel())
        self.audio, self.context = audio, context
        self.start, self.stop, self.first = start, start + samples.numel(), start - lack // 2
        self.padded = torch.nn.functional.pad(samples, (lack // 2, lack - lack // 2))


class Recognizer:
    """A model under one precision, on one device.

    Attributes:
        self_test: the result of its self-test; None before one, or without.
        load_seconds: seconds from the import's end until it was ready; 0 before.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        from asrd.worker.decoding import word_times
        from asrd.worker.encoder import conformer

        self.loaded, self.start, self.model = loaded, loaded.start, loaded.model
        self.self_test: protocol.SelfTest | None = None
        self.load_seconds = 0.0
        self._torch, self._applied, self._decoder = loaded.torch, loaded.applied, loaded.decoder
        self._stream, self._unmasked = loaded.stream, loaded.unmasked
        self._words, self._frames_of = word_times.words, conformer.frames_of
        self._graphs: Any = None
        self._fast_encoder: Any = None
        self._frame_samples = _samples_per_frame(self.model)

    @property
    def graphs(self) -> dict[str, str]:
        """Part of the model -> what of it is replayed as CUDA graphs, or why nothing is."""
        if self._graphs is None:
            return {}
        return dict(self._graphs.results)

    def recognize(
        self,
        audio: bytes,
        start: int = 0,
        phase: str = "final",
        context: protocol.DecodingContext | None = None,
    ) -> protocol.Answer:
        """Return the hypothesis for a buffer of float32 samples and what it cost.

        A partial result that begins where the last one did and goes on from it costs a cache-aware
        model only what is new.

        Args:
            context: what is final of its speech; a transducer decodes what is behind that, from the
                state that it leaves.

        Raises:
            NonFiniteError: NaN or infinity in the encoder's output.
        """
        return self.recognize_together([audio], [start], phase, [context])[0]

    def recognize_together(
        self,
        audios: Sequence[bytes],
        starts: Sequence[int],
        phase: str,
        contexts: Sequence[protocol.DecodingContext | None] = (),
    ) -> list[protocol.Answer]:
        """Return the same for several buffers that are computed at once; each is padded to the
        longest of them.

        Raises: as `recognize`, for all of them.
        """
        began, cpu_began = time.perf_counter(), time.process_time()
        buffers = []
        for each in zip(audios, starts, contexts or [None] * len(audios), strict=True):
            buffers.append(_PaddedBuffer(self._torch, *each))
        with self._torch.inference_mode(), self._applied.context(phase):
            encoded, decode = self._encode_buffers(buffers, phase)
            # The one point where the host waits for the encoder. A partial result may bring it
            # nothing new.
            largest = float(encoded.abs().amax()) if encoded.numel() else 0.0
            if not largest < float("inf"):
                raise self._non_finite(largest, buffers)
            encoder_seconds = time.perf_counter() - began
            decoded = decode()
        hypotheses = list(map(self._hypothesis, decoded, buffers))
        count = len(hypotheses)
        wall = (time.perf_counter() - began) / count
        cpu = (time.process_time() - cpu_began) / count
        encoding, headroom = encoder_seconds / count, largest / FLOAT16_MAX
        answers = []
        for hypothesis, one in zip(hypotheses, decoded, strict=True):
            tokens = len(one.tokens)
            answers.append(protocol.Answer(0, hypothesis, wall, encoding, cpu, headroom, tokens))
        return answers

    def _encode_buffers(
        self, buffers: Sequence[_PaddedBuffer], phase: str
    ) -> tuple[Any, Callable[[], list[Any]]]:
        """Return the encoder's output for buffers, and the function that decodes it."""
        stream = self._stream
        if stream is not None:
            if phase == "partial" and _streams_partial(buffers):
                partial = stream.encode(buffers[0].audio, buffers[0].start)
                return partial.encoded, lambda: [stream.decode(partial)]
            stream.forget()
        encoded, lengths = self._encode(_padded_samples(buffers))
        return encoded, lambda: self._decoder.decode_batch(
            encoded, lengths, list(map(self._path, buffers))
        )

    def _path(self, buffer: _PaddedBuffer) -> Any:
        """Return the decoder's state behind a buffer's context; None to decode the whole buffer."""
        context = buffer.context
        if context is None:
            return None
        frames = (context.until - buffer.first) // self._frame_samples
        return self._decoder.state_after(context.text, frames)

    def _hypothesis(self, decoded: Any, buffer: _PaddedBuffer) -> protocol.Hypothesis:
        stop = buffer.first + buffer.padded.numel()
        words = self._words(decoded, self.model, self._frame_samples, buffer.first, stop)
        inside = [_clip(word, buffer.start, buffer.stop) for word in words]
        name, text = self.start.precision.name, decoded.text.strip()
        return protocol.Hypothesis(
            text, inside, buffer.start, buffer.stop, name, decoded.truncated, decoded.resumed
        )

    def _non_finite(self, largest: float, buffers: Sequence[_PaddedBuffer]) -> NonFiniteError:
        """Return the error for an encoder's output that is not finite, with the module where that
        began."""
        from asrd.worker.casting import components

        padded = _padded_samples(buffers)
        # Inside a replay, or a functional encoder, there is no module to look at.
        self._fast_encoder = None
        component = components.first_non_finite(self.model, lambda: self._encode(padded))
        name = self.start.precision.name
        return NonFiniteError(
            f"the encoder put out {largest} under {name}, beginning in {component}", component
        )

    def _encode(self, buffers: Sequence[Any]) -> tuple[Any, Any]:
        """Return (encoded [B, D, T], lengths [B]) for samples [N] each."""
        torch, device = self._torch, self.start.device
        counts = [samples.numel() for samples in buffers]
        signals = torch.nn.utils.rnn.pad_sequence(buffers, batch_first=True)
        if device != "cpu":  # from pinned memory the host need not wait for the copy
            signals = signals.pin_memory().to(device, non_blocking=True)
        lengths = None
        if not self._unmasked or len(set(counts)) > 1:
            lengths = torch.tensor(counts, device=device)
        features, frames = self.model.preprocessor(input_signal=signals, length=lengths)
        if self._fast_encoder is not None:
            featurizer = self.model.preprocessor.featurizer
            real = featurizer.get_seq_len(torch.tensor(counts)).tolist()
            encoded = self._fast_encoder(features[:, :, : max(real)], real)
            if encoded is not None:
                encoder = self.model.encoder
                return encoded, torch.tensor([self._frames_of(encoder, count) for count in real])
        encoded, frames = self.model.encoder(audio_signal=features, length=frames)[:2]
        if lengths is None:
            # Nothing is padded, so the lengths are known. To ask the device would be to wait.
            frames = torch.full((len(buffers),), encoded.shape[2])
        return encoded, frames

    def enable_fast_paths(self, audio: bytes = b"") -> None:
        """Run the encoder as a function on a CPU from here on; replay CUDA graphs on a card, if
        they are wanted.

        Args:
            audio: a buffer of float32 samples whose length, and shorter ones, are captured at once.
        """
        from asrd.worker.encoder import cuda_graphs, functional

        self._decoder.freeze_weights()
        if self.start.device != "cpu":
            if self.start.graphs and self._graphs is None:
                device = self._torch.device(self.start.device)
                self.replay(cuda_graphs.GraphCapture(device), audio)
            return
        encoder = self.model.encoder
        if self._fast_encoder is None and self._unmasked and not functional.refusal(encoder):
            self._fast_encoder = functional.FunctionalEncoder(encoder)

    def replay(self, graphs: Any, audio: bytes = b"") -> None:
        """Replay what a `GraphCapture` captures from here on.

        Some is captured at once, for a buffer like `audio` and shorter ones. `graphs` then says
        what is replayed, and why it is not more. No text changes by it.
        """
        from asrd.worker.encoder import cuda_graphs

        torch, self._graphs = self._torch, graphs
        with torch.inference_mode(), self._applied.context("final"):
            self._decoder.replay(graphs)
            if not self._unmasked:
                graphs.note("encoder", "not replayed: an encoder of another kind")
                return
            self._fast_encoder = cuda_graphs.EncoderReplay(self.model.encoder, graphs)
            if audio:
                samples = torch.frombuffer(bytearray(audio), dtype=torch.float32)[None]
                features, _ = self.model.preprocessor(
                    input_signal=samples.to(self.start.device), length=None
                )
                self._fast_encoder.prepare(features)
        if audio:
            self.recognize(audio)  # what decodes is captured at its first use

    def encode(self, audio: bytes) -> bytes:
        """Return the encoder's output for a buffer of float32 samples, as `protocol.Encoded` holds
        it."""
        samples = self._torch.frombuffer(bytearray(audio), dtype=self._torch.float32)
        with self._torch.inference_mode(), self._applied.context("final"):
            encoded, _ = self._encode([samples])
        frames = encoded[0].T.float().cpu().contiguous()
        values: bytes = frames[: protocol.MAX_ENCODED_BYTES // frames[0].nbytes].numpy().tobytes()
        return values

    def measure(self) -> memory.Memory:
        """Return a reading of this worker's memory now."""
        return self.loaded.meter.measure()


def _padded_samples(buffers: Sequence[_PaddedBuffer]) -> list[Any]:
    return [buffer.padded for buffer in buffers]


def _streams_partial(buffers: Sequence[_PaddedBuffer]) -> bool:
    """Return whether buffers can go through a cache-aware encoder: one, and no padded one."""
    return len(buffers) == 1 and len(buffers[0].audio) >= 4 * MIN_BUFFER_SAMPLES


def _samples_per_frame(model: Any) -> int:
    """Return how many samples one encoder frame stands for."""
    stride = float(model.cfg.preprocessor.window_stride)
    return round(stride * int(model.cfg.preprocessor.sample_rate)) * int(
        model.encoder.subsampling_factor
    )


def _clip(word: protocol.Word, start: int, stop: int) -> protocol.Word:
    """Return the word inside the samples that were really given: padding holds no speech."""
    left = min(max(word.start, start), stop)
    return msgspec.structs.replace(word, start=left, stop=min(max(word.stop, left), stop))
