"""The worker: loads one model under one precision, proves itself, answers buffers, and dies with its precision.

Started as `python -P -m asrd.recognizer`, imported by nobody; the only program that imports torch and NeMo. One thread,
no event loop: read a frame, answer a frame. The real stdout is kept for frames before anything chatty is imported, and
whatever else prints goes to stderr. Knows models and sound buffers; holds no audio between two frames.

Load order is always: build on the CPU, read each tensor's numbers into the dtype it is to have, move to the device, so
that neither memory ever holds more than the final weights; int8 is quantised of what was read, before the move.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from . import card, failures, ledger, models, places, startup, vram, wire
from .errors import (
    AsrdError,
    AudioError,
    ConfigError,
    DiskError,
    ModelError,
    NetworkError,
    PrecisionError,
    UsageError,
)
from .precision import index_of, quantizes

MINIMUM = wire.SAMPLE_RATE
"""Samples; a shorter buffer is padded with silence on both sides, as NeMo's transcribe() does."""

FLOAT16_MAX = 65504.0

SMALL = 20_000_000
"""Parameters below which one thread is left alone: its matrices are done before a second one is awake."""

KINDS: tuple[tuple[type[AsrdError], str], ...] = (
    (ModelError, "model"),
    (NetworkError, "network"),
    (DiskError, "disk"),
    (UsageError, "usage"),
    (ConfigError, "config"),
    (AudioError, "audio"),
    (PrecisionError, "unsupported"),
)
"""Our errors as kinds of wire.Failed."""

"""Shipped clips; the first is the self-test."""


class NonFiniteError(Exception):
    """The encoder put out NaN or infinity; `component` is where that began."""

    def __init__(self, detail: str, component: str) -> None:
        super().__init__(detail)
        self.component = component


class SelfTestError(Exception):
    """A shipped model did not hear the known clip as it must."""


OWN: dict[type[BaseException], str] = {
    NonFiniteError: "non-finite",
    SelfTestError: "self-test",
    card.BudgetError: "budget",
    card.NoDeviceError: "no-device",
}
"""Errors of the worker alone as kinds of wire.Failed."""


class _Sound:
    """A buffer of float32 samples; one that is shorter than `MINIMUM` is padded to it."""

    def __init__(self, torch: Any, raw: bytes, start: int, said: wire.Said | None) -> None:
        samples = torch.frombuffer(bytearray(raw), dtype=torch.float32) if raw else torch.zeros(0)
        lack = max(0, MINIMUM - samples.numel())
        self.raw, self.said = raw, said
        self.start, self.stop, self.first = start, start + samples.numel(), start - lack // 2
        self.padded = torch.nn.functional.pad(samples, (lack // 2, lack - lack // 2))


class Recognizer:
    """A model under one precision, on one device.

    Args:
        start: the daemon's first message.
        say: sends a message to the daemon.
    """

    def __init__(self, start: wire.Start, say: Callable[[wire.Reply], None]) -> None:
        self.start, self._say = start, say
        self.ledger: dict[str, wire.Memory] = {}
        self._device_at_start = vram.device_bytes(self._index) if start.device != "cpu" else None
        path = Path(start.path) if start.path else models.resolve(start.model)
        self.header = models.header(path)
        with startup.Checkpoint(path, start.timestamps_model) as checkpoint:
            self._say(wire.Progress("import"))
            checkpoint.prepare()
            self._torch = _import_torch(start, _threads(start, self.header))
            self._hold_to_limit()
            self.ledger["import"] = self.measure()
            self._load(checkpoint)
        self._say(wire.Progress("warm-up"))
        self.self_test = self._prove() if start.self_test else None
        self._hasten()
        if start.vocabulary and start.boost:  # after the proof, which is of the precision and of nobody's words
            self._decode.prefer(start.vocabulary, start.boost)
        self._hold_to_limit()  # once more: what the warm-up loaded of kernels is beside the allocator too
        self.ledger["ready"] = self.measure()
        self.load_seconds = time.perf_counter() - self._began

    def _load(self, checkpoint: startup.Checkpoint) -> None:
        """Restore the model on the CPU, ready for inference, in the precision's dtypes, and move it to its device."""
        from . import cacheaware, casting, decoding, encoder, modules, timestamps

        start, self._began, device = self.start, time.perf_counter(), self._torch.device(self.start.device)
        with vram.Peak() as peak:
            self._say(wire.Progress("restore", str(checkpoint.path)))
            self.model = checkpoint.build()
            self.model.eval().requires_grad_(False)
            featurizer = getattr(self.model.preprocessor, "featurizer", None)
            if featurizer is not None:
                featurizer.dither, featurizer.pad_to = 0.0, 0
            # Numbers are read into tensors as they will be, so that no second copy is made; int8 is made of numbers.
            empty = not quantizes(start.precision)
            self._whole = encoder.whole(self.model, device, empty=True)
            prepared = casting.prepare(self.model, start.precision, device, empty=True) if empty else None
            checkpoint.load(self.model)
            self._remarks = checkpoint.remarks
            self.ledger["load"] = self.measure()
            self._say(wire.Progress("cast", start.precision.name))
            prepared = prepared or casting.prepare(self.model, start.precision, device)
            self._applied = prepared.finish(lambda: self._say(wire.Progress("move")))
            self._decode = decoding.decoder_for(
                self.model, source_lang=start.source_lang, target_lang=start.target_lang, pnc=start.pnc
            )
            _give_back()
        self._stream = cacheaware.stream_for(self.model, self._decode, self._applied.encoder)
        self.weights_bytes = modules.weights_bytes(self.model)
        self.ledger["cast"] = self.measure()
        self.load_peak = self._peak(peak.bytes)
        self._words, self._frames_of = timestamps.words, encoder.frames_of
        self._recorder: Any = None
        self._replay: Any = None
        self._frame = _samples_per_frame(self.model)

    @property
    def _index(self) -> int:
        return index_of(self.start.device)

    def recognize(
        self, sound: bytes, start: int = 0, phase: str = "final", said: wire.Said | None = None
    ) -> wire.Answer:
        """Return the hypothesis for a buffer of float32 samples and what it cost.

        A draft that begins where the last one did and goes on from it costs a cache-aware model only what is new.

        Args:
            said: what is final of its speech; a transducer decodes what is behind that, from the state that it leaves.

        Raises:
            NonFiniteError: NaN or infinity in the encoder's output.
        """
        return self.recognize_together([sound], [start], phase, [said])[0]

    def recognize_together(
        self,
        sounds: Sequence[bytes],
        starts: Sequence[int],
        phase: str,
        said: Sequence[wire.Said | None] = (),
    ) -> list[wire.Answer]:
        """Return the same for several buffers that are computed at once; each is padded to the longest of them.

        Raises: as `recognize`, for all of them.
        """
        began, cpu_began = time.perf_counter(), time.process_time()
        asked = [
            _Sound(self._torch, *each) for each in zip(sounds, starts, said or [None] * len(sounds), strict=True)
        ]
        with self._torch.inference_mode(), self._applied.context(phase):
            encoded, decode = self._listen(asked, phase)
            # The one point where the host waits for the encoder; a draft may bring it nothing that is new.
            largest = float(encoded.abs().amax()) if encoded.numel() else 0.0
            if not largest < float("inf"):
                began_in = self._first_non_finite([one.padded for one in asked])
                name = self.start.precision.name
                raise NonFiniteError(f"the encoder put out {largest} under {name}, beginning in {began_in}", began_in)
            encoder_seconds = time.perf_counter() - began
            decoded = decode()
        heard = list(map(self._heard, decoded, asked))
        spent = (time.perf_counter() - began, encoder_seconds, time.process_time() - cpu_began)
        wall, encoding, cpu = (seconds / len(heard) for seconds in spent)
        headroom = largest / FLOAT16_MAX
        return [
            wire.Answer(0, each, wall, encoding, cpu, headroom, len(one.tokens))
            for each, one in zip(heard, decoded, strict=True)
        ]

    def _listen(self, asked: Sequence[_Sound], phase: str) -> tuple[Any, Callable[[], list[Any]]]:
        """Return what the encoder makes of buffers, and what then decodes that."""
        stream = self._stream
        if stream is not None and phase == "draft" and len(asked) == 1 and len(asked[0].raw) >= 4 * MINIMUM:
            draft = stream.encode(asked[0].raw, asked[0].start)
            return draft.encoded, lambda: [stream.decode(draft)]
        if stream is not None:
            stream.forget()
        encoded, lengths = self._encode([one.padded for one in asked])
        return encoded, lambda: self._decode.several(encoded, lengths, list(map(self._path, asked)))

    def _path(self, one: _Sound) -> Any:
        """Return the decoder's path behind what was said before; None where it hears the whole buffer."""
        said = one.said
        return self._decode.after(said.text, (said.until - one.first) // self._frame) if said is not None else None

    def _heard(self, decoded: Any, one: _Sound) -> wire.Hypothesis:
        words = self._words(decoded, self.model, self._frame, one.first, one.first + one.padded.numel())
        inside = [_clip(word, one.start, one.stop) for word in words]
        name, text = self.start.precision.name, decoded.text.strip()
        return wire.Hypothesis(text, inside, one.start, one.stop, name, decoded.truncated, decoded.resumed)

    def _first_non_finite(self, padded: Sequence[Any]) -> str:
        """Return the first module that puts out NaN or infinity for sounds that the encoder put it out for."""
        from . import modules

        self._replay = None  # inside a replay, or a straight program, nobody can look
        return modules.first_non_finite(self.model, lambda: self._encode(padded))

    def _encode(self, sounds: Sequence[Any]) -> tuple[Any, Any]:
        """Return (encoded [B, D, T], lengths [B]) for samples [N] each."""
        torch, device = self._torch, self.start.device
        counts = [samples.numel() for samples in sounds]
        signals = torch.nn.utils.rnn.pad_sequence(sounds, batch_first=True)
        if device != "cpu":  # from pinned memory the host need not wait for the copy
            signals = signals.pin_memory().to(device, non_blocking=True)
        lengths = None if self._whole and len(set(counts)) == 1 else torch.tensor(counts, device=device)
        features, frames = self.model.preprocessor(input_signal=signals, length=lengths)
        if self._replay is not None:
            sound = self.model.preprocessor.featurizer.get_seq_len(torch.tensor(counts)).tolist()
            encoded = self._replay(features[:, :, : max(sound)], sound)
            if encoded is not None:
                return encoded, torch.tensor([self._frames_of(self.model.encoder, count) for count in sound])
        encoded, frames = self.model.encoder(audio_signal=features, length=frames)[:2]
        # Known here where nothing is padded: to ask the device for it would be to wait for it.
        return encoded, frames if lengths is not None else torch.full((len(sounds),), encoded.shape[2])

    def _hasten(self, sound: bytes = b"") -> None:
        """From here on run the encoder as a straight program on a CPU; on a card replay graphs, if that is wanted."""
        from . import graphs, straight

        self._decode.settle()
        on_cpu = self.start.device == "cpu"
        if on_cpu and self._replay is None and self._whole and not straight.refusal(self.model.encoder):
            self._replay = straight.Straight(self.model.encoder)
        if not on_cpu and self.start.graphs and self._recorder is None:
            self.replay(graphs.Recorder(self._torch.device(self.start.device)), sound)

    def replay(self, recorder: Any, sound: bytes = b"") -> None:
        """Replay what a graphs.Recorder records from here on; some at once, for a buffer like `sound` and shorter ones.

        What that is, and why it is not more, is in the recorder's `told`. No text changes by it.
        """
        from . import graphs

        torch, self._recorder = self._torch, recorder
        with torch.inference_mode(), self._applied.context("final"):
            self._decode.replay(recorder)
            if not self._whole:
                recorder.tell("encoder", "not replayed: an encoder of another kind")
                return
            self._replay = graphs.EncoderReplay(self.model.encoder, recorder)
            if sound:
                samples = torch.frombuffer(bytearray(sound), dtype=torch.float32)[None].to(self.start.device)
                self._replay.prepare(self.model.preprocessor(input_signal=samples, length=None)[0])
        if sound:
            self.recognize(sound)  # what decodes is captured at its first use

    def encode(self, sound: bytes) -> bytes:
        """Return what the encoder puts out for a buffer of float32 samples, as wire.Encoded holds it."""
        samples = self._torch.frombuffer(bytearray(sound), dtype=self._torch.float32)
        with self._torch.inference_mode(), self._applied.context("final"):
            encoded, _ = self._encode([samples])
        frames = encoded[0].T.float().cpu().contiguous()
        values: bytes = frames[: wire.ENCODED // frames[0].nbytes].numpy().tobytes()
        return values

    def measure(self) -> wire.Memory:
        """Return a reading of the ledger now."""
        cuda = self.start.device != "cpu"
        cuda_memory = self._torch.cuda if cuda else None
        return vram.read(
            os.getpid(),
            self.start.device,
            weights=getattr(self, "weights_bytes", None),
            allocated=cuda_memory.memory_allocated(self._index) if cuda_memory else None,
            reserved=cuda_memory.memory_reserved(self._index) if cuda_memory else None,
            device_at_start=self._device_at_start,
        )

    def _hold_to_limit(self) -> None:
        if self.start.vram_limit and self.start.device != "cpu":
            card.hold_to_limit(self._torch, self._index, self.start.vram_limit, self.measure())

    def _peak(self, resident: int) -> wire.Memory:
        if self.start.device == "cpu":
            return wire.Memory(self.weights_bytes, process=resident, kind=ledger.key("rss"))
        cuda = self._torch.cuda
        now = self.measure()
        return wire.Memory(
            self.weights_bytes,
            cuda.max_memory_allocated(self._index),
            cuda.max_memory_reserved(self._index),
            now.process,
            now.device,
            now.source,
            now.kind,
        )

    def _prove(self) -> wire.SelfTest:
        """Warm up, then recognise the known clip. Raises NonFiniteError, SelfTestError."""
        from . import audio

        sound, expected = _known_clip(audio)
        tiled = (sound * (1 + 10 * 4 * wire.SAMPLE_RATE // len(sound)))[: 10 * 4 * wire.SAMPLE_RATE]
        with self._applied.observing():
            for phase in self._rehearsed():
                self.recognize(sound, phase=phase)
            self.recognize(tiled, phase="final")
        self._hasten(tiled)
        self._say(wire.Progress("self-test"))
        answer = self.recognize(sound, phase="final")
        text = answer.hypothesis.text
        shipped = self.start.model in models.SHIPPED
        passed = text == expected if shipped else bool(text)
        if shipped and not passed:
            raise SelfTestError(f"the known clip was heard as {text!r} under {self.start.precision.name}")
        return wire.SelfTest(expected, text, answer.seconds, passed)

    def _rehearsed(self) -> Sequence[str]:
        """Return the phases that are gone through before a final: a card's kernels are loaded by them.

        On a CPU, where a first time costs little more than a second, only those that compute otherwise.
        """
        if self.start.device != "cpu" or self.start.precision.phases:
            return ("warmup", "draft")
        return ("draft",) if self._stream is not None else ()

    def introduce(self) -> wire.Ready:
        """Return what this worker is, read back from the model."""
        torch = self._torch
        cuda = self.start.device != "cpu"
        return wire.Ready(
            requested=self.start.precision.name,
            effective=self._applied.effective(),
            fallbacks=list(self._applied.fallbacks),
            device=self.start.device,
            device_name=torch.cuda.get_device_name(self._index) if cuda else vram.processor(),
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


def _threads(start: wire.Start, header: models.Header) -> int:
    """Return how many CPU threads torch is to use; 0 leaves its choice, which is every core."""
    small = start.device == "cpu" and sum(t.elements for t in header.unique.values()) < SMALL
    return start.threads or int(small)


def _import_nemo(threads: int = 0) -> Any:
    """Import torch and NeMo, quietly, with so many CPU threads; return torch. Touches no other device."""
    warnings.filterwarnings("ignore")
    lightning, torches = ("lightning.pytorch", "pytorch_lightning"), ("torchao", "torch.utils._pytree")
    for noisy in ("nv_one_logger", "hydra.utils", "nemo_logger", *lightning, *torches):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    import torch

    if threads:
        torch.set_num_threads(threads)
    startup.import_nemo()
    return torch


def _import_torch(start: wire.Start, threads: int) -> Any:
    """Import torch and NeMo and set what is process-wide; return torch. Here, so that it is not counted as loading."""
    import torch

    if start.device != "cpu":
        card.open_device(torch, index_of(start.device))  # before NeMo: what cannot be fails early
    _import_nemo(threads)
    from nemo.core.classes.common import typecheck
    from nemo.utils import logging as nemo_logging

    nemo_logging.setLevel(logging.ERROR)
    typecheck.set_typecheck_enabled(enabled=False)  # of shapes that no user's input can change
    if start.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    return torch


def _samples_per_frame(model: Any) -> int:
    """Return how many samples one encoder frame stands for."""
    stride = float(model.cfg.preprocessor.window_stride)
    return round(stride * int(model.cfg.preprocessor.sample_rate)) * int(model.encoder.subsampling_factor)


def _clip(word: wire.Word, start: int, stop: int) -> wire.Word:
    """Return the word inside the samples that were really given: padding is nobody's speech."""
    left = min(max(word.start, start), stop)
    return msgspec.structs.replace(word, start=left, stop=min(max(word.stop, left), stop))


def _known_clip(audio: Any) -> tuple[bytes, str]:
    """Return the self-test's samples and words. Raises AudioError when the shipped data is not there."""
    try:
        with places.EVALUATION.open("rb") as lines:
            entry = msgspec.json.decode(lines.readline())
    except OSError as error:
        raise AudioError(f"the shipped clips are missing: {error}", "install asrd again") from error
    samples = audio.read(places.EVALUATION.parent / entry["audio_filepath"])
    return samples.tobytes(), str(entry["text"])


def _versions(torch: Any, on_card: bool) -> dict[str, str]:
    import nemo

    from . import __version__

    found = {"asrd": __version__, "torch": str(torch.__version__), "nemo": str(nemo.__version__)}
    found["python"] = ".".join(map(str, sys.version_info[:3]))
    if torch.version.cuda:
        found["cuda"] = str(torch.version.cuda)
        seen = vram.gpus() if on_card else []  # a worker on the CPU wakes no card
        found["driver"] = next((gpu.driver for gpu in seen), "") or vram.driver_version() or "unknown"
    return found


def _failure(error: BaseException, number: int | None) -> wire.Failed:
    """Return the message for an exception: our own by its type, torch's by what it says."""
    trace = "".join(traceback.format_exception(error))
    for kind, ours in KINDS:
        if isinstance(error, kind):
            return wire.Failed(ours, error.message, error.hint, number, trace)
    name = OWN.get(type(error)) or failures.kind(error) or "internal"
    said, hint, component = failures.first_line(error), getattr(error, "hint", ""), getattr(error, "component", "")
    return wire.Failed(name, said, hint, number, trace, component)


def _reserve_stdout() -> BinaryIO:
    """Return the real stdout for frames; descriptor 1 leads to stderr from here on, for C libraries too."""
    frames = os.fdopen(os.dup(1), "wb", buffering=1 << 20)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return frames


def _give_back() -> None:
    """Give the system back what was freed: a cast leaves the float32 weights behind it, as holes in the heap."""
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _requests(stream: BinaryIO) -> Iterator[tuple[wire.Request, bytes]]:
    while (frame := wire.read_request(stream)) is not None and not isinstance(frame[0], wire.Stop):
        yield frame


def _serve(requests: Iterator[tuple[wire.Request, bytes]], say: Callable[[wire.Reply], None]) -> int:
    """Answer frames until the daemon ends them; return the exit code."""
    first = next(requests, None)
    if first is None:
        return 0
    start, _ = first
    if not isinstance(start, wire.Start) or start.protocol != wire.PROTOCOL:
        say(wire.Failed("internal", f"a {type(start).__name__} of another protocol where Start was due"))
        return 70
    on_card = start.device != "cpu"  # CUDA keeps it awake for this worker's whole life: NVML is opened once beside it
    with vram.opened if on_card else contextlib.nullcontext():
        return _answer(start, requests, say)


def _answer(
    start: wire.Start, requests: Iterator[tuple[wire.Request, bytes]], say: Callable[[wire.Reply], None]
) -> int:
    """Load what `start` names, then answer frames until the daemon ends them; return the exit code."""
    try:
        recognizer = Recognizer(start, say)
        if start.faults:
            from . import faults

            faults.rehearse(recognizer, start)
        say(recognizer.introduce())
    except Exception as error:
        say(_failure(error, None))
        return 70
    for message, payload in requests:
        try:
            if isinstance(message, wire.Recognize):
                edges = list(itertools.accumulate((buffer.size for buffer in message.buffers), initial=0))
                sounds = [payload[first:stop] for first, stop in itertools.pairwise(edges)]
                starts = [buffer.start for buffer in message.buffers]
                said = [buffer.said for buffer in message.buffers]
                for answer in recognizer.recognize_together(sounds, starts, message.phase, said):
                    say(_numbered(answer, message.id))
            elif isinstance(message, wire.Encode):
                say(wire.Encoded(message.id, recognizer.encode(payload)))
            elif isinstance(message, wire.Measure):
                say(wire.Reading(message.id, message.phase, recognizer.measure()))
        except Exception as error:
            failure = _failure(error, getattr(message, "id", None))
            say(failure)
            if failure.kind == "device-lost":  # a poisoned context never recovers; only a new process does
                return 70
    return 0


def _numbered(answer: wire.Answer, number: int) -> wire.Answer:
    return msgspec.structs.replace(answer, id=number)


def main() -> int:
    """Run a worker on stdin and stdout; return the exit code."""
    frames = _reserve_stdout()
    wire.die_with_parent()
    if "--early" in sys.argv[1:]:  # a spare, whose import is over when it is given a model
        _import_nemo()
    try:
        return _serve(_requests(sys.stdin.buffer), lambda message: wire.write(frames, message))
    except wire.GarbageError as error:
        print(f"asrd.recognizer: {error}", file=sys.stderr)  # noqa: T201
        return 76
    except BrokenPipeError:
        return 0


if __name__ == "__main__":
    code = main()
    # Interpreter teardown under CUDA and threads can hang or crash; everything said is already flushed.
    os._exit(code)
