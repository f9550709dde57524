"""The real daemon, with a microphone that plays what it is told to, and what is done to its worker
on purpose.

    python -m tools.benchmark.player run [WHAT...]     verbs and variables as for asrd
    python -m tools.benchmark.player worker WHAT...    the real worker, and: leak, slow, tidy

leak and slow are the faults that the bench has to notice; so is reread, of the daemon, which then
reads all of a recording between stop and text. tidy collects garbage and gives free memory back to
the system before each reading of the ledger, in the daemon after each recording: else the room that
loading left in the heap hides any leak that fits, and what the allocator keeps for later looks like
one.

Before each recording one JSON line on standard input says what is heard: {"sound": FILE.npy,
"lead": N, "pace": P}. The first N samples are played P times as fast as they were spoken, the rest
in real time; then it is still, as a microphone is in a quiet room. When the last sample of the
sound was delivered, one line is printed.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import gc
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from asrd import journal
from asrd.audio import input_stream, resampling
from asrd.audio.blocks import AudioBlock, Samples
from asrd.audio.format import SAMPLE_RATE
from asrd.audio.sources import AudioSource
from asrd.cli import main as cli_main
from asrd.cli import run
from asrd.dictation import recording
from asrd.engine import engine

PERIOD = (
    round(SAMPLE_RATE * input_stream.PERIOD_SECONDS)
    // resampling.BLOCK_SAMPLES
    * resampling.BLOCK_SAMPLES
)
"""Samples that the thread wakes up for, as PortAudio's does."""

LULL = round(input_stream.PATIENT_SECONDS / input_stream.PERIOD_SECONDS) * PERIOD
"""Samples for which it wakes the daemon while that is patient, as the real microphone does."""

LEAK = 10 << 10
"""Bytes that a leaking worker keeps of each utterance."""

SLOW = 0.10
"""Of its own time by which a slow worker takes longer."""


class Player:
    """A microphone that hears what standard input said last."""

    def __init__(self, tidy: bool) -> None:
        self.name, self.problem, self.ended, self.code = "the bench", "", False, 0
        self._tidy = tidy
        self._closed: threading.Event | None = None

    def open(
        self,
        on_block: Callable[[AudioBlock], None],
        on_change: Callable[[], None],
        wanted: Callable[[], bool] = lambda: True,
        patient: Callable[[], bool] = lambda: False,
    ) -> None:
        """Play; the line was written before the recording was asked for."""
        told = json.loads(sys.stdin.readline())
        self._loop, self._patient = asyncio.get_running_loop(), patient
        closed = self._closed = threading.Event()

        def deliver(start: int, sound: Samples, played: bool, taken: threading.Event) -> None:
            if not closed.is_set():
                on_block(AudioBlock(start, sound))
                if played:
                    print("played", flush=True)
            go_on(taken)

        def go_on(taken: threading.Event) -> None:
            if wanted() or closed.is_set():
                taken.set()
            else:
                self._loop.call_later(0.001, go_on, taken)

        what = closed, deliver, told["sound"], told["lead"], told["pace"]
        threading.Thread(target=self._play, args=what, daemon=True).start()

    async def close(self) -> None:
        """Stop where it is."""
        if self._closed is not None:
            self._closed.set()
            self._closed = None
        if self._tidy:
            give_back()

    def _play(
        self,
        closed: threading.Event,
        deliver: Callable[[int, Samples, bool, threading.Event], None],
        path: str,
        lead: int,
        pace: float,
    ) -> None:
        """Have the loop deliver sound as it comes; in a thread, so that what that costs is counted,
        too."""
        due, start, fast = time.monotonic(), 0, False
        kept: list[Samples] = []
        for sound in pieces(path):
            played = not len(sound)
            if (
                played
            ):  # the silence behind is never faster: how much comes before the key would be chance
                lead = 0
            if (
                fast and start >= lead
            ):  # a machine that could not play so fast is behind, and is not to catch up
                due = max(due, time.monotonic())
            fast = start < lead
            due += len(sound) / SAMPLE_RATE / (pace if fast else 1.0)
            time.sleep(
                max(0.0, due - time.monotonic())
            )  # no event's wait, which costs more than a callback
            if closed.is_set():
                return
            kept.append(sound)
            count = sum(map(len, kept))
            if fast or played or count >= LULL or not self._patient():
                taken = threading.Event()
                try:
                    self._loop.call_soon_threadsafe(
                        deliver, start, np.concatenate(kept), played, taken
                    )
                except RuntimeError:  # a loop that has ended
                    return
                if fast:  # what is faster than speech waits until it is wanted
                    taken.wait()
                kept, start = [], start + count


def pieces(path: str) -> Iterator[Samples]:
    """Yield a sound piece by piece, so that what the bench holds is no part of what it measures.

    An empty one follows, and then silence for ever.
    """
    with open(path, "rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        while len(sound := np.fromfile(file, np.float32, 16 * PERIOD)):
            yield from np.split(sound, range(PERIOD, len(sound), PERIOD))
    yield np.zeros(0, np.float32)
    while True:
        yield np.zeros(PERIOD, np.float32)


def give_back() -> None:
    """Collect what is unreachable, and have glibc return every free page to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def worker(*what: str) -> int:
    """Be a worker that keeps some of each utterance, or takes longer than it has to, or is tidy."""
    from asrd.worker import __main__, recognizer, startup

    real, measure = recognizer.Recognizer.recognize_together, recognizer.Recognizer.measure
    introduced, kept = startup.ready_message, []

    def recognize(
        self: Any, audios: Sequence[bytes], starts: Sequence[int], phase: str, contexts: Any = ()
    ) -> Any:
        began = time.perf_counter()
        answers = real(self, audios, starts, phase, contexts)
        if "leak" in what:
            kept.append(bytearray(b"x" * LEAK * len(audios)))
        if "slow" in what:
            until = time.perf_counter() + SLOW * (time.perf_counter() - began)
            while time.perf_counter() < until:
                pass
        return answers

    def measured(self: Any) -> Any:
        if "tidy" in what:
            give_back()
        return measure(self)

    def ready_message(ready: Any) -> Any:
        # the million objects of NeMo stay; looking through them for each reading would take a
        # second
        gc.freeze()
        return introduced(ready)

    startup.ready_message = ready_message  # type: ignore[assignment]  # in this process alone
    recognizer.Recognizer.recognize_together = recognize  # type: ignore[method-assign]  # in this process alone
    recognizer.Recognizer.measure = measured  # type: ignore[method-assign]  # in this process alone
    return __main__.main()


def reread() -> None:
    """Have the daemon read all of a recording between stop and text."""
    real = recording.Dictation.write

    def write(self: recording.Dictation, whole: bool) -> None:
        if whole:
            self.recording.path.read_bytes()
        real(self, whole)

    recording.Dictation.write = write  # type: ignore[method-assign]  # in this process alone


def command(*what: str) -> tuple[str, ...]:
    """Return how a worker is started: as ever, or with what is done to it on purpose."""
    return (
        (sys.executable, "-P", "-m", "tools.benchmark.player", "worker", *what)
        if what
        else engine.WORKER_COMMAND
    )


def main(verb: str, *words: str) -> int:
    """Be the worker or the daemon; return the exit code."""
    if verb == "worker":
        return worker(*words)
    journal.JOURNAL_SOCKET = ""  # these takes are not the user's
    if "reread" in words:
        reread()
    hold = functools.partial(
        engine.Engine, command=command(*(word for word in words if word != "reread"))
    )

    def listen(spec: str, microphone: str) -> AudioSource:
        return Player("tidy" in words)

    run.run = functools.partial(run.run, hold=hold, listen=listen)
    return cli_main.main([verb])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
