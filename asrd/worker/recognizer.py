"""The worker: loads one model under one precision, proves itself, answers buffers, and dies with
its precision.

Started as `python -P -m asrd.worker`, imported by nobody; the only program that imports torch and
NeMo. One thread, no event loop: read a frame, answer a frame. The real stdout is kept for frames
before anything chatty is imported, and whatever else prints goes to stderr. Knows models and sound
buffers; holds no audio between two frames.

Load order is always: build on the CPU, read each tensor's numbers into the dtype it is to have,
move to the device, so that neither memory ever holds more than the final weights; int8 is quantised
of what was read, before the move.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from asrd import paths, protocol
from asrd.audio.format import SAMPLE_RATE
from asrd.errors import (
    AudioError,
)
from asrd.models import checkpoint as models_checkpoint
from asrd.models import names
from asrd.models.checkpoint import Header
from asrd.precision import gpus, kernel_facts, ledger, memory, readings
from asrd.precision.strategies import index_of, quantizes
from asrd.worker import device as worker_device
from asrd.worker.loading import restore
from asrd.worker.loading.libraries import import_torch

MINIMUM = SAMPLE_RATE
"""Samples; a shorter buffer is padded with silence on both sides, as NeMo's transcribe() does."""

FLOAT16_MAX = 65504.0

SMALL = 20_000_000
"""Parameters below which one thread is left alone: its matrices are done before a second one is
awake."""


class NonFiniteError(Exception):
    """The encoder put out NaN or infinity; `component` is where that began."""

    def __init__(self, detail: str, component: str) -> None:
        super().__init__(detail)
        self.component = component


class SelfTestError(Exception):
    """A shipped model did not hear the known clip as it must."""


class _Sound:
    """A buffer of float32 samples; one that is shorter than `MINIMUM` is padded to it."""

    def __init__(
        self, torch: Any, raw: bytes, start: int, context: protocol.DecodingContext | None
    ) -> None:
        samples = torch.frombuffer(bytearray(raw), dtype=torch.float32) if raw else torch.zeros(0)
        lack = max(0, MINIMUM - samples.numel())
        self.raw, self.context = raw, context
        self.start, self.stop, self.first = start, start + samples.numel(), start - lack // 2
        self.padded = torch.nn.functional.pad(samples, (lack // 2, lack - lack // 2))


class Recognizer:
    """A model under one precision, on one device.

    Args:
        start: the daemon's first message.
        say: sends a message to the daemon.
    """

    def __init__(self, start: protocol.Start, say: Callable[[protocol.Reply], None]) -> None:
        self.start, self._say = start, say
        self.ledger: dict[str, memory.Memory] = {}
        self._device_at_start = gpus.device_bytes(self._index) if start.device != "cpu" else None
        path = Path(start.path) if start.path else names.resolve(start.model)
        self.header = models_checkpoint.header(path)
        with restore.CheckpointReader(path, start.timestamps_model) as checkpoint:
            self._say(protocol.Progress("import"))
            checkpoint.prepare()
            self._torch = import_torch(start, _threads(start, self.header))
            self._hold_to_limit()
            self.ledger["import"] = self.measure()
            self._load(checkpoint)
        self._say(protocol.Progress("warm-up"))
        self.self_test = self._run_self_test() if start.self_test else None
        self._enable_fast_paths()
        if (
            start.vocabulary and start.boost
        ):  # after the proof, which is of the precision and of nobody's words
            self._decode.prefer(start.vocabulary, start.boost)
        # once more: what the warm-up loaded of kernels is beside the allocator too
        self._hold_to_limit()
        self.ledger["ready"] = self.measure()
        self.load_seconds = time.perf_counter() - self._began

    def _load(self, checkpoint: restore.CheckpointReader) -> None:
        """Restore the model on the CPU, ready for inference, in the precision's dtypes, and move it
        to its device."""
        from asrd.worker.casting import cast, components
        from asrd.worker.decoding import factory, word_times
        from asrd.worker.encoder import cache_aware, conformer

        start, self._began, device = (
            self.start,
            time.perf_counter(),
            self._torch.device(self.start.device),
        )
        with readings.Peak() as peak:
            self._say(protocol.Progress("restore", str(checkpoint.path)))
            self.model = checkpoint.build()
            self.model.eval().requires_grad_(False)
            featurizer = getattr(self.model.preprocessor, "featurizer", None)
            if featurizer is not None:
                featurizer.dither, featurizer.pad_to = 0.0, 0
            # Numbers are read into tensors as they will be, so that no second copy is made; int8 is
            # made of numbers.
            empty = not quantizes(start.precision)
            self._whole = conformer.whole(self.model, device, empty=True)
            prepared = (
                cast.prepare(self.model, start.precision, device, empty=True) if empty else None
            )
            checkpoint.load(self.model)
            self._remarks = checkpoint.remarks
            self.ledger["load"] = self.measure()
            self._say(protocol.Progress("cast", start.precision.name))
            prepared = prepared or cast.prepare(self.model, start.precision, device)
            self._applied = prepared.finish(lambda: self._say(protocol.Progress("move")))
            self._decode = factory.decoder_for(
                self.model,
                source_lang=start.source_lang,
                target_lang=start.target_lang,
                pnc=start.pnc,
            )
            _give_back()
        self._stream = cache_aware.stream_for(self.model, self._decode, self._applied.encoder)
        self.weights_bytes = components.weights_bytes(self.model)
        self.ledger["cast"] = self.measure()
        self.load_peak = self._peak(peak.bytes)
        self._words, self._frames_of = word_times.words, conformer.frames_of
        self._recorder: Any = None
        self._replay: Any = None
        self._frame = _samples_per_frame(self.model)

    @property
    def _index(self) -> int:
        return index_of(self.start.device)

    def recognize(
        self,
        sound: bytes,
        start: int = 0,
        phase: str = "final",
        context: protocol.DecodingContext | None = None,
    ) -> protocol.Answer:
        """Return the hypothesis for a buffer of float32 samples and what it cost.

        A draft that begins where the last one did and goes on from it costs a cache-aware model
        only what is new.

        Args:
            context: what is final of its speech; a transducer decodes what is behind that, from the
                state that it leaves.

        Raises:
            NonFiniteError: NaN or infinity in the encoder's output.
        """
        return self.recognize_together([sound], [start], phase, [context])[0]

    def recognize_together(
        self,
        sounds: Sequence[bytes],
        starts: Sequence[int],
        phase: str,
        contexts: Sequence[protocol.DecodingContext | None] = (),
    ) -> list[protocol.Answer]:
        """Return the same for several buffers that are computed at once; each is padded to the
        longest of them.

        Raises: as `recognize`, for all of them.
        """
        began, cpu_began = time.perf_counter(), time.process_time()
        asked = [
            _Sound(self._torch, *each)
            for each in zip(sounds, starts, contexts or [None] * len(sounds), strict=True)
        ]
        with self._torch.inference_mode(), self._applied.context(phase):
            encoded, decode = self._listen(asked, phase)
            # The one point where the host waits for the encoder; a draft may bring it nothing that
            # is new.
            largest = float(encoded.abs().amax()) if encoded.numel() else 0.0
            if not largest < float("inf"):
                began_in = self._first_non_finite([one.padded for one in asked])
                name = self.start.precision.name
                raise NonFiniteError(
                    f"the encoder put out {largest} under {name}, beginning in {began_in}", began_in
                )
            encoder_seconds = time.perf_counter() - began
            decoded = decode()
        heard = list(map(self._heard, decoded, asked))
        spent = (time.perf_counter() - began, encoder_seconds, time.process_time() - cpu_began)
        wall, encoding, cpu = (seconds / len(heard) for seconds in spent)
        headroom = largest / FLOAT16_MAX
        return [
            protocol.Answer(0, each, wall, encoding, cpu, headroom, len(one.tokens))
            for each, one in zip(heard, decoded, strict=True)
        ]

    def _listen(self, asked: Sequence[_Sound], phase: str) -> tuple[Any, Callable[[], list[Any]]]:
        """Return what the encoder makes of buffers, and what then decodes that."""
        stream = self._stream
        if (
            stream is not None
            and phase == "partial"
            and len(asked) == 1
            and len(asked[0].raw) >= 4 * MINIMUM
        ):
            draft = stream.encode(asked[0].raw, asked[0].start)
            return draft.encoded, lambda: [stream.decode(draft)]
        if stream is not None:
            stream.forget()
        encoded, lengths = self._encode([one.padded for one in asked])
        return encoded, lambda: self._decode.several(encoded, lengths, list(map(self._path, asked)))

    def _path(self, one: _Sound) -> Any:
        """Return the decoder's path behind what was said before; None where it hears the whole
        buffer."""
        context = one.context
        return (
            self._decode.after(context.text, (context.until - one.first) // self._frame)
            if context is not None
            else None
        )

    def _heard(self, decoded: Any, one: _Sound) -> protocol.Hypothesis:
        words = self._words(
            decoded, self.model, self._frame, one.first, one.first + one.padded.numel()
        )
        inside = [_clip(word, one.start, one.stop) for word in words]
        name, text = self.start.precision.name, decoded.text.strip()
        return protocol.Hypothesis(
            text, inside, one.start, one.stop, name, decoded.truncated, decoded.resumed
        )

    def _first_non_finite(self, padded: Sequence[Any]) -> str:
        """Return the first module that puts out NaN or infinity for sounds that the encoder put it
        out for."""
        from asrd.worker.casting import components

        self._replay = None  # inside a replay, or a straight program, nobody can look
        return components.first_non_finite(self.model, lambda: self._encode(padded))

    def _encode(self, sounds: Sequence[Any]) -> tuple[Any, Any]:
        """Return (encoded [B, D, T], lengths [B]) for samples [N] each."""
        torch, device = self._torch, self.start.device
        counts = [samples.numel() for samples in sounds]
        signals = torch.nn.utils.rnn.pad_sequence(sounds, batch_first=True)
        if device != "cpu":  # from pinned memory the host need not wait for the copy
            signals = signals.pin_memory().to(device, non_blocking=True)
        lengths = (
            None if self._whole and len(set(counts)) == 1 else torch.tensor(counts, device=device)
        )
        features, frames = self.model.preprocessor(input_signal=signals, length=lengths)
        if self._replay is not None:
            sound = self.model.preprocessor.featurizer.get_seq_len(torch.tensor(counts)).tolist()
            encoded = self._replay(features[:, :, : max(sound)], sound)
            if encoded is not None:
                return encoded, torch.tensor(
                    [self._frames_of(self.model.encoder, count) for count in sound]
                )
        encoded, frames = self.model.encoder(audio_signal=features, length=frames)[:2]
        # Known here where nothing is padded: to ask the device for it would be to wait for it.
        return encoded, frames if lengths is not None else torch.full(
            (len(sounds),), encoded.shape[2]
        )

    def _enable_fast_paths(self, sound: bytes = b"") -> None:
        """From here on run the encoder as a straight program on a CPU; on a card replay graphs, if
        that is wanted."""
        from asrd.worker.encoder import cuda_graphs, functional

        self._decode.settle()
        on_cpu = self.start.device == "cpu"
        if (
            on_cpu
            and self._replay is None
            and self._whole
            and not functional.refusal(self.model.encoder)
        ):
            self._replay = functional.FunctionalEncoder(self.model.encoder)
        if not on_cpu and self.start.graphs and self._recorder is None:
            self.replay(cuda_graphs.GraphCapture(self._torch.device(self.start.device)), sound)

    def replay(self, recorder: Any, sound: bytes = b"") -> None:
        """Replay what a graphs.Recorder records from here on; some at once, for a buffer like
        `sound` and shorter ones.

        What that is, and why it is not more, is in the recorder's `told`. No text changes by it.
        """
        from asrd.worker.encoder import cuda_graphs

        torch, self._recorder = self._torch, recorder
        with torch.inference_mode(), self._applied.context("final"):
            self._decode.replay(recorder)
            if not self._whole:
                recorder.tell("encoder", "not replayed: an encoder of another kind")
                return
            self._replay = cuda_graphs.EncoderReplay(self.model.encoder, recorder)
            if sound:
                samples = torch.frombuffer(bytearray(sound), dtype=torch.float32)[None].to(
                    self.start.device
                )
                self._replay.prepare(self.model.preprocessor(input_signal=samples, length=None)[0])
        if sound:
            self.recognize(sound)  # what decodes is captured at its first use

    def encode(self, sound: bytes) -> bytes:
        """Return what the encoder puts out for a buffer of float32 samples, as wire.Encoded holds
        it."""
        samples = self._torch.frombuffer(bytearray(sound), dtype=self._torch.float32)
        with self._torch.inference_mode(), self._applied.context("final"):
            encoded, _ = self._encode([samples])
        frames = encoded[0].T.float().cpu().contiguous()
        values: bytes = frames[: protocol.MAX_ENCODED_BYTES // frames[0].nbytes].numpy().tobytes()
        return values

    def measure(self) -> memory.Memory:
        """Return a reading of the ledger now."""
        cuda = self.start.device != "cpu"
        cuda_memory = self._torch.cuda if cuda else None
        return readings.read(
            os.getpid(),
            self.start.device,
            weights=getattr(self, "weights_bytes", None),
            allocated=cuda_memory.memory_allocated(self._index) if cuda_memory else None,
            reserved=cuda_memory.memory_reserved(self._index) if cuda_memory else None,
            device_at_start=self._device_at_start,
        )

    def _hold_to_limit(self) -> None:
        if self.start.vram_limit and self.start.device != "cpu":
            worker_device.hold_to_limit(
                self._torch, self._index, self.start.vram_limit, self.measure()
            )

    def _peak(self, resident: int) -> memory.Memory:
        if self.start.device == "cpu":
            return memory.Memory(
                self.weights_bytes, process=resident, kind=ledger.source_key("rss")
            )
        cuda = self._torch.cuda
        now = self.measure()
        return memory.Memory(
            self.weights_bytes,
            cuda.max_memory_allocated(self._index),
            cuda.max_memory_reserved(self._index),
            now.process,
            now.device,
            now.source,
            now.kind,
        )

    def _run_self_test(self) -> protocol.SelfTest:
        """Warm up, then recognise the known clip. Raises NonFiniteError, SelfTestError."""
        from asrd.audio import files

        sound, expected = _known_clip(files)
        tiled = (sound * (1 + 10 * 4 * SAMPLE_RATE // len(sound)))[: 10 * 4 * SAMPLE_RATE]
        with self._applied.observing():
            for phase in self._rehearsed():
                self.recognize(sound, phase=phase)
            self.recognize(tiled, phase="final")
        self._enable_fast_paths(tiled)
        self._say(protocol.Progress("self-test"))
        answer = self.recognize(sound, phase="final")
        text = answer.hypothesis.text
        shipped = self.start.model in names.SHIPPED
        passed = text == expected if shipped else bool(text)
        if shipped and not passed:
            raise SelfTestError(
                f"the known clip was heard as {text!r} under {self.start.precision.name}"
            )
        return protocol.SelfTest(expected, text, answer.seconds, passed)

    def _rehearsed(self) -> Sequence[str]:
        """Return the phases that are gone through before a final: a card's kernels are loaded by
        them.

        On a CPU, where a first time costs little more than a second, only those that compute
        otherwise.
        """
        if self.start.device != "cpu" or self.start.precision.phases:
            return ("warmup", "partial")
        return ("partial",) if self._stream is not None else ()

    def ready_message(self) -> protocol.Ready:
        """Return what this worker is, read back from the model."""
        torch = self._torch
        cuda = self.start.device != "cpu"
        return protocol.Ready(
            requested=self.start.precision.name,
            effective=self._applied.effective(),
            fallbacks=list(self._applied.fallbacks),
            device=self.start.device,
            device_name=torch.cuda.get_device_name(self._index)
            if cuda
            else kernel_facts.processor(),
            family=self._decode.family,
            streaming="cache-aware" if self._stream else "buffer",
            target=self.header.target,
            parameters=sum(p.numel() for p in self.model.parameters()),
            weights_bytes=self.weights_bytes,
            ledger=self.ledger,
            load_peak=self.load_peak,
            self_test=self.self_test,
            load_seconds=self.load_seconds,
            versions=_versions(torch, cuda),
            pid=os.getpid(),
            graphs=dict(self._recorder.told) if self._recorder else {},
            remarks=self._remarks,
        )


def _threads(start: protocol.Start, header: Header) -> int:
    """Return how many CPU threads torch is to use; 0 leaves its choice, which is every core."""
    small = start.device == "cpu" and sum(t.elements for t in header.unique.values()) < SMALL
    return start.threads or int(small)


def _samples_per_frame(model: Any) -> int:
    """Return how many samples one encoder frame stands for."""
    stride = float(model.cfg.preprocessor.window_stride)
    return round(stride * int(model.cfg.preprocessor.sample_rate)) * int(
        model.encoder.subsampling_factor
    )


def _clip(word: protocol.Word, start: int, stop: int) -> protocol.Word:
    """Return the word inside the samples that were really given: padding is nobody's speech."""
    left = min(max(word.start, start), stop)
    return msgspec.structs.replace(word, start=left, stop=min(max(word.stop, left), stop))


def _known_clip(audio: Any) -> tuple[bytes, str]:
    """Return the self-test's samples and words. Raises AudioError when the shipped data is not
    there."""
    try:
        with paths.EVALUATION_MANIFEST.open("rb") as lines:
            entry = msgspec.json.decode(lines.readline())
    except OSError as error:
        raise AudioError(f"the shipped clips are missing: {error}", "install asrd again") from error
    samples = audio.read(paths.EVALUATION_MANIFEST.parent / entry["audio_filepath"])
    return samples.tobytes(), str(entry["text"])


def _versions(torch: Any, on_card: bool) -> dict[str, str]:
    import nemo

    from asrd import __version__

    found = {"asrd": __version__, "torch": str(torch.__version__), "nemo": str(nemo.__version__)}
    found["python"] = ".".join(map(str, sys.version_info[:3]))
    if torch.version.cuda:
        found["cuda"] = str(torch.version.cuda)
        seen = gpus.gpus() if on_card else []  # a worker on the CPU wakes no card
        found["driver"] = (
            next((gpu.driver for gpu in seen), "") or kernel_facts.driver_version() or "unknown"
        )
    return found


def _give_back() -> None:
    """Give the system back what was freed: a cast leaves the float32 weights behind it, as holes in
    the heap."""
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
