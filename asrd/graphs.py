"""Worker: work of fixed shapes, captured once as a CUDA graph and then replayed whole; and the encoder replayed so.

At a batch of one a card waits for its host, which launches about a thousand kernels for a buffer. A graph is one
launch, but of one shape, so that a buffer is padded to the next of few lengths; what it costs is the arithmetic of the
padding, at most `STEP` feature frames, and memory that stays taken. What may not be captured (waiting for the device,
copies from pageable memory) or fails for whatever reason runs as it would without graphs, and `Recorder.told` says why.

On a CPU the same work is done at each call instead of being replayed: tests see all but the capture itself. All graphs
of a worker share one pool, so what a replay puts out is to be copied before the next one. Knows tensors and shapes; no
sound, no text.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .encoder import frames_of

STEP = 128
"""Feature frames from one captured length to the next: 1.28 s, 16 encoder frames, 0.2 ms of an H200 at FP32 (0.6B)."""

LONGEST = 3072
"""Feature frames that are captured at most: the longest window a user can set. What is longer runs as it is."""

LOADING = 1.5
"""Seconds that loading may spend on capturing; lengths that are left wait until they are asked for a second time."""

WARM_UPS = 2
"""Times that work is done before it is captured: libraries choose their kernels and fill their caches then."""

APART = 0.05
"""How far a replay may be from the same work undone of its capture, as a part of the largest value: reordered sums."""

log = logging.getLogger(__name__)

Work = Callable[[], Tensor]
"""Reads and writes the same tensors at each call, and waits for nothing."""


class Recorder:
    """Captures work on one device.

    Attributes:
        told: part of the model -> what of it is replayed, or why nothing or no more is.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.told = device, dict[str, str]()
        self._refused: dict[str, str] = {}
        if device.type == "cuda":
            self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def record(self, part: str, work: Work) -> Work | None:
        """Return what does `work` again, or None where it cannot be captured, now or earlier for this part."""
        if part in self._refused:
            return None
        if self.device.type != "cuda":
            return work
        with self.trying(part):
            return self._capture(work)
        return None

    @contextlib.contextmanager
    def trying(self, part: str) -> Iterator[None]:
        """Refuse a part for whatever is raised while entered: without a graph the same work can still be done."""
        try:
            yield
        except Exception as error:  # torch raises every kind here
            first = error.__context__ or error  # that a broken capture cannot end says nothing of what broke it
            self.refuse(part, str(first) or type(first).__name__)

    def refuses(self, part: str) -> bool:
        """Return whether nothing more is captured for a part."""
        return part in self._refused

    def tell(self, part: str, what: str) -> None:
        """Say what is replayed of a part, behind which stays why there is no more."""
        self.told[part] = "; no more: ".join(filter(None, (what, self._refused.get(part, ""))))

    def refuse(self, part: str, reason: str) -> None:
        """Capture nothing more for a part; what was captured stays in use."""
        self._refused[part] = reason.strip().splitlines()[0]
        self.tell(part, self.told.get(part) or "not replayed")
        log.warning("%s: %s", part, self.told[part])

    def _capture(self, work: Work) -> Work:
        """Do the work a few times, then capture it, all on one stream: libraries keep their workspaces by stream."""
        around = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(around)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):  # torch.cuda.graph() would stay on its own stream where a capture fails
            for _ in range(WARM_UPS):
                work()
            self._stream.synchronize()
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                output = work()
            finally:
                self._end(graph)
        around.wait_stream(self._stream)
        torch.cuda.empty_cache()  # what the warm-up took on its stream would serve nobody else

        def replay() -> Tensor:
            graph.replay()
            return output

        return _holding(replay, work)

    def _end(self, graph: torch.cuda.CUDAGraph) -> None:
        try:
            graph.capture_end()
        except RuntimeError:
            # torch leaves the allocator in the pool where a capture was broken off; it says so if it did not.
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
    """Return what autocast is on in, which is captured with the work; None outside."""
    on = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else None


def near(found: Tensor, expected: Tensor) -> bool:
    """Return whether two results are the same but for rounding."""
    return bool((found - expected).abs().amax() <= APART * expected.abs().amax())


class EncoderReplay:
    """An encoder that takes `encoder.whole`'s classes, over a few lengths, each captured once it is worth it.

    Args:
        encoder: model.encoder, called as a module, with whatever hooks casting put on it.
        recorder: what captures.
    """

    def __init__(self, encoder: Any, recorder: Recorder) -> None:
        self._encoder, self._recorder = encoder, recorder
        self._ready: dict[tuple[int, Any], _Length] = {}
        self._asked: Counter[tuple[int, Any]] = Counter()

    def __call__(self, features: Tensor) -> Tensor | None:
        """Return [1, D, T] for features [1, mels, frames] as the encoder alone would; None: that is to be asked."""
        frames = features.shape[2]
        key = _size(frames), arithmetic(features.device)
        if features.shape[0] != 1 or frames > LONGEST:
            return None
        self._asked[key] += 1
        if key not in self._ready and self._asked[key] > 1:  # the first one would wait thrice as long
            self._try(features, key)
        if key not in self._ready:
            return None
        return self._ready[key](features)[:, :, : frames_of(self._encoder, frames)].clone()

    def prepare(self, features: Tensor) -> None:
        """Capture the length of these features [1, mels, frames] and the shorter ones, while `LOADING` lasts."""
        began = time.monotonic()
        for size in range(_size(features.shape[2]), 0, -STEP):  # the largest first: its memory serves the others
            if size <= LONGEST and time.monotonic() - began < LOADING:
                self._try(features[:, :, :size], (size, arithmetic(features.device)))

    def _try(self, features: Tensor, key: tuple[int, Any]) -> None:
        if not self._recorder.refuses("encoder"):
            with self._recorder.trying("encoder"):
                self._capture(features, key)

    def _capture(self, features: Tensor, key: tuple[int, Any]) -> None:
        length = _Length(self._encoder, features, key[0])
        plain = length.replay
        replay = self._recorder.record("encoder", plain)
        if replay is None:
            return
        expected = plain().clone()
        if not near(replay(), expected):
            self._recorder.refuse("encoder", f"a replay over {key[0]} feature frames was not what had been captured")
            return
        length.replay, length.held = replay, _positions(self._encoder)
        self._ready[key] = length
        sizes = {size for size, _ in self._ready}
        self._recorder.tell("encoder", f"{len(sizes)} lengths up to {max(sizes)} feature frames")


class _Length:
    """The encoder over features [1, mels, size], of which fewer may be sound."""

    def __init__(self, encoder: Any, features: Tensor, size: int) -> None:
        self._encoder = encoder
        self._features = features.new_zeros(1, features.shape[1], size)
        self._real = torch.zeros(1, dtype=torch.long, device=features.device)
        self.replay: Work = self._work
        self.held: Any = None
        """What the captured work reads and others may replace."""
        self._write(features)

    def __call__(self, features: Tensor) -> Tensor:
        """Return [1, D, T]; the frames past those of the features mean nothing."""
        self._write(features)
        return self.replay()

    def _write(self, features: Tensor) -> None:
        self._features[:, :, : features.shape[2]].copy_(features)
        self._real.fill_(features.shape[2])

    def _work(self) -> Tensor:
        encoded: Tensor = self._encoder(audio_signal=self._features, length=None, real=self._real)[0]
        return encoded


def _size(frames: int) -> int:
    return -(-frames // STEP) * STEP


def _positions(encoder: Any) -> list[Any]:
    """Return the projected positions as they are now: a longer buffer has them projected anew."""
    return [dict(vars(layer.self_attn).get("_kept", {})) for layer in encoder.layers]
