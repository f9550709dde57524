"""Work of fixed shapes, captured once as a CUDA graph and then replayed whole; the encoder replayed
so.

At a batch of one a card waits for its host, which launches about a thousand kernels for a buffer. A
graph is one launch, but of one shape. So a buffer is padded to the next of few lengths, and several
to the next of few numbers. The price is the arithmetic of the padding, at most `STEP_FRAMES`
feature frames, and memory that stays taken. Work that cannot be captured (waiting for the device,
copies from pageable memory), or whose capture fails, runs as it would without graphs.
`GraphCapture.results` holds the reason.

On a CPU the same work is done at each call instead of being replayed: tests see all but the capture
itself. The graphs of a worker share a pool, so the output of a replay must be copied before the
next one. This file knows tensors and shapes; it knows no audio and no text.
"""

from __future__ import annotations

import contextlib
import logging
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from asrd.worker.encoder.conformer import frames_of

log = logging.getLogger(__name__)

STEP_FRAMES = 128
"""Feature frames from one captured length to the next: 1.28 s, 16 encoder frames, 0.2 ms of an H200
at FP32 (0.6B)."""

MAX_FRAMES = 3072
"""Feature frames that are captured at most: the longest window a user can set. A longer buffer runs
without a graph."""

ROWS = (1, 4, 8)
"""Buffers that are captured together. Each number costs captures and memory for every length; 8 are
all that sessions are asked for at once."""

MIN_FILLED_SHARE = 0.75
"""Share of a replay's rows that hold buffers, at least: where arithmetic takes the time, an empty
row takes as much."""

CAPTURE_SECONDS = 1.5
"""Seconds that loading may spend on capturing; lengths that are left wait until they are asked for
a second time."""

WARM_UP_RUNS = 2
"""Runs of the work before it is captured: libraries choose their kernels and fill their caches
then."""

MAX_DIFFERENCE = 0.05
"""How far a replay may be from the same work done plainly, as a part of the largest value: sums are
reordered."""

Work = Callable[[], Tensor]
"""Reads and writes the same tensors at each call, and waits for nothing."""

Shape = tuple[int, int, Any]
"""Buffers, feature frames, and what autocast is on in."""


class GraphCapture:
    """Captures work on one device.

    Attributes:
        results: part of the model -> what of it is replayed, or why nothing or no more is.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.results = device, dict[str, str]()
        self._refused: dict[str, str] = {}
        if device.type == "cuda":
            self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)
            self._broken: list[torch.cuda.CUDAGraph] = []

    def record(self, part: str, work: Work) -> Work | None:
        """Return a function that does `work` again; None where it cannot be captured, now or
        earlier for this part."""
        if part in self._refused:
            return None
        if self.device.type != "cuda":
            return work
        with self.trying(part):
            return self._capture(work)
        return None

    @contextlib.contextmanager
    def trying(self, part: str) -> Iterator[None]:
        """Refuse a part for whatever is raised while entered: without a graph the same work can
        still be done."""
        try:
            yield
        except Exception as error:  # torch raises every kind here
            # The error of ending a broken capture does not say what broke it.
            first = error.__context__ or error
            self.refuse(part, str(first) or type(first).__name__)

    def refuses(self, part: str) -> bool:
        """Return whether nothing more is captured for a part."""
        return part in self._refused

    def note(self, part: str, what: str) -> None:
        """Enter what is replayed of a part, and the reason why there is no more."""
        self.results[part] = "; no more: ".join(filter(None, (what, self._refused.get(part, ""))))

    def refuse(self, part: str, reason: str) -> None:
        """Capture nothing more for a part; what was captured stays in use."""
        self._refused[part] = reason.strip().splitlines()[0]
        if self.device.type == "cuda":
            # A pool in which a capture broke off, or whose graphs are gone, takes no other graph.
            self._pool = torch.cuda.graph_pool_handle()
        self.note(part, self.results.get(part) or "not replayed")
        log.warning("%s: %s", part, self.results[part])

    def _capture(self, work: Work) -> Work:
        """Do the work a few times, then capture it, all on one stream: libraries keep their
        workspaces by stream."""
        around = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(around)
        graph = torch.cuda.CUDAGraph()
        # torch.cuda.graph() would stay on its own stream where a capture fails.
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP_RUNS):
                work()
            self._stream.synchronize()
            # Kept until it is whole: torch's allocators keep pointers into one that broke off.
            self._broken.append(graph)
            try:
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                output = work()
            finally:
                self._end(graph)
            self._broken.pop()
        around.wait_stream(self._stream)
        torch.cuda.empty_cache()  # memory of the warm-up on its stream would serve no other

        def replay() -> Tensor:
            graph.replay()
            return output

        return _holding(replay, work)

    def _end(self, graph: torch.cuda.CUDAGraph) -> None:
        try:
            graph.capture_end()
        except RuntimeError:
            # torch leaves the allocator in the pool where a capture was broken off; it says so if
            # it did not.
            with contextlib.suppress(RuntimeError, AttributeError, TypeError):
                torch._C._cuda_endAllocateToPool(self._index, self._pool)
            raise

    @property
    def _index(self) -> int:
        return self.device.index if self.device.index is not None else torch.cuda.current_device()


def _holding(replay: Work, work: Work) -> Work:
    """Return the replay with a reference to the work, whose tensors it reads."""
    replay.work = work  # type: ignore[attr-defined]
    return replay


def arithmetic(device: torch.device) -> torch.dtype | None:
    """Return autocast's dtype, which is captured with the work; None outside autocast."""
    if not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def near(found: Tensor, expected: Tensor) -> bool:
    """Return whether two results are the same but for rounding."""
    return bool((found - expected).abs().amax() <= MAX_DIFFERENCE * expected.abs().amax())


class EncoderReplay:
    """An encoder that takes `conformer.remove_masks`'s classes, over a few shapes, each captured once it is
    worth it.

    Args:
        encoder: model.encoder, called as a module, with the hooks that casting put on it.
        graphs: captures the work.
    """

    def __init__(self, encoder: Any, graphs: GraphCapture) -> None:
        self._encoder, self._graphs = encoder, graphs
        self._ready: dict[Shape, _Shaped] = {}
        self._asked: Counter[Shape] = Counter()

    def __call__(self, features: Tensor, counts: Sequence[int] | None = None) -> Tensor | None:
        """Return [B, D, T] for features [B, mels, frames] as the encoder alone would; None where
        the encoder must be called.

        Args:
            features: anything finite may stand behind a buffer that is shorter than the longest.
            counts: how many frames of each buffer are audio; None: all of them. The same of T are.
        """
        batch, _, frames = features.shape
        if frames > MAX_FRAMES:
            return None
        if counts is None:
            counts = [frames] * batch
        size, dtype = _size(frames), arithmetic(features.device)
        given: list[tuple[Shape, Tensor, Sequence[int]]] = []
        for part in parts(batch):
            own = counts[part]
            given.append(((_rows(len(own)), size, dtype), features[part], own))
        shapes = {shape for shape, _, _ in given}
        self._asked.update(shapes)
        for shape, own_features, own in given:
            # The first buffer of a shape would wait three times as long.
            if shape not in self._ready and self._asked[shape] > 1:
                self._try(own_features, own, shape)
        if not shapes <= self._ready.keys():
            return None
        stop = frames_of(self._encoder, frames)
        encoded = []
        for shape, own_features, own in given:
            encoded.append(self._ready[shape](own_features, own)[:, :, :stop].clone())
        if len(encoded) == 1:
            return encoded[0]
        return torch.cat(encoded)

    def prepare(self, features: Tensor) -> None:
        """Capture the length of these features [1, mels, frames] and the shorter ones, while
        `CAPTURE_SECONDS` lasts."""
        began = time.monotonic()
        # The largest first: its memory serves the others.
        for size in range(_size(features.shape[2]), 0, -STEP_FRAMES):
            if size <= MAX_FRAMES and time.monotonic() - began < CAPTURE_SECONDS:
                part = features[:, :, :size]
                self._try(part, [part.shape[2]], (1, size, arithmetic(features.device)))

    def _try(self, features: Tensor, counts: Sequence[int], shape: Shape) -> None:
        if not self._graphs.refuses("encoder"):
            with self._graphs.trying("encoder"):
                self._capture(features, counts, shape)

    def _capture(self, features: Tensor, counts: Sequence[int], shape: Shape) -> None:
        shaped = _Shaped(self._encoder, features, counts, shape)
        plain = shaped.replay
        replay = self._graphs.record("encoder", plain)
        if replay is None:
            return
        expected = plain().clone()
        if not near(replay(), expected):
            reason = f"a replay over {shape[1]} feature frames of {shape[0]} was not what had been captured"
            self._graphs.refuse("encoder", reason)
            return
        shaped.replay, shaped.held = replay, _positions(self._encoder)
        self._ready[shape] = shaped
        self._graphs.note("encoder", "; ".join(self._shapes()))

    def _shapes(self) -> Iterator[str]:
        """Yield what is ready, by the number of buffers that it is for."""
        for rows in sorted({rows for rows, _, _ in self._ready}):
            sizes = {size for each, size, _ in self._ready if each == rows}
            together = f" of {rows} buffers" if rows > 1 else ""
            yield f"{len(sizes)} lengths up to {max(sizes)} feature frames{together}"


class _Shaped:
    """The encoder over features [rows, mels, size], of which fewer may be audio."""

    def __init__(self, encoder: Any, features: Tensor, counts: Sequence[int], shape: Shape) -> None:
        rows, size, _ = shape
        self._encoder = encoder
        self._features = features.new_zeros(rows, features.shape[1], size)
        self._real = torch.zeros(rows, dtype=torch.long, device=features.device)
        self.replay: Work = self._work
        self.held: Any = None
        """Tensors that the captured work reads, and that the encoder may replace."""
        self._write(features, counts)

    def __call__(self, features: Tensor, counts: Sequence[int]) -> Tensor:
        """Return [B, D, T]; the frames past those of each buffer mean nothing."""
        self._write(features, counts)
        return self.replay()[: len(counts)]

    def _write(self, features: Tensor, counts: Sequence[int]) -> None:
        batch, _, frames = features.shape
        self._features[:batch, :, :frames].copy_(features)
        for row, real in enumerate([*counts, *[0] * (len(self._real) - batch)]):
            self._real[row].fill_(real)  # a copy from memory of the host would wait for the device

    def _work(self) -> Tensor:
        encoded: Tensor = self._encoder(audio_signal=self._features, length=None, real=self._real)[
            0
        ]
        return encoded


def parts(batch: int) -> list[slice]:
    """Return the parts of a batch that are replayed one after the other, so that few rows are
    computed in vain."""
    found, first = list[slice](), 0
    while first < batch:
        left = batch - first
        rows = _rows(min(left, ROWS[-1]))
        if left < MIN_FILLED_SHARE * rows:
            rows = ROWS[bisect_right(ROWS, left) - 1]
        found.append(slice(first, first + min(rows, left)))
        first = found[-1].stop
    return found


def _rows(batch: int) -> int:
    """Return the next number of rows that is captured."""
    return ROWS[bisect_left(ROWS, batch)]


def _size(frames: int) -> int:
    return -(-frames // STEP_FRAMES) * STEP_FRAMES


def _positions(encoder: Any) -> list[Any]:
    """Return the projected positions as they are now: a longer buffer has them projected anew."""
    return [dict(vars(layer.self_attn).get("_kept", {})) for layer in encoder.layers]
