"""Live sound: a microphone, a file played in real time, or a pipe, all with one face.

Every source delivers blocks of 20 ms, a microphone of as many 20 ms as came at once, float32 mono
16 kHz, on a sample clock that starts at 0 at `open`, and says in one sentence what is wrong with it
right now. Knows nothing of speech. Runs on the daemon's side.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import threading
from collections.abc import Callable
from typing import Protocol

import numpy as np

from asrd.audio.blocks import AudioBlock
from asrd.audio.files import SoundFile, blocks
from asrd.audio.format import SAMPLE_RATE
from asrd.audio.formats.containers import MAGIC_BYTES, file_kind
from asrd.audio.levels import Loudness, judge
from asrd.audio.microphone import Microphone
from asrd.audio.resampling import Resampler
from asrd.audio.vad import Vad
from asrd.errors import AsrdError, AudioError, ConfigError

log = logging.getLogger("asrd")

PATIENCE_SECONDS = 4.0
"""Of whoever listens to a microphone for a moment; a headset that changes its profile needs
some."""

LISTEN_SECONDS = 1.0
"""For which `asrd devices` and `asrd doctor` listen."""


class AudioSource(Protocol):
    """Where live sound comes from. May be opened again after it was closed."""

    name: str
    """What a person calls it."""
    problem: str
    """What is wrong right now, in one sentence; "" when nothing is."""
    ended: bool
    """A file or pipe has come to its end."""
    code: int
    """The exit code of what is wrong with a file; 0 where nothing is."""

    def open(
        self,
        on_block: Callable[[AudioBlock], None],
        on_change: Callable[[], None],
        wanted: Callable[[], bool] = lambda: True,
        patient: Callable[[], bool] = lambda: False,
    ) -> None:
        """Start on the running loop; both are called there, `on_change` after each change of the
        three above.

        Returns at once and raises nothing for a device that is not there. Where sound was lost,
        zeros of its length stand for it (0.3 s at least, 30 s at most) and the first block after
        them has `overflow` set. A source that can wait does so while what it would deliver is not
        `wanted`; those in real time cannot. While all are `patient`, which may be asked in any
        thread, sound may be a fifth of a second late: to bring more at once wakes the processor
        less often.
        """

    async def close(self) -> None:
        """Deliver what was spoken until now, then nothing more. Takes at most 0.5 s."""


def open_source(spec: str, microphone: str = "") -> AudioSource:
    """Return a source: "mic" (chosen by a part of its name), "file:PATH" or "pipe".

    Raises ConfigError for another word, AudioError for a file or a standard input that cannot be
    read.
    """
    kind, _, path = spec.partition(":")
    if spec == "mic":
        return Microphone(microphone)
    if kind == "file" and path and path != "-":
        return PlayedFile(path)
    if spec == "pipe":
        return Pipe()
    if kind == "file":
        raise ConfigError(
            f"source {spec!r} names no file", "file:clip.wav; pipe reads standard input"
        )
    raise ConfigError(
        f"unknown source {spec!r}",
        "mic, file:PATH, or pipe (raw s16le, 16 kHz, mono on standard input)",
    )


class PlayedFile:
    """A sound file, delivered as slowly as it was spoken. Raises AudioError as `audio.SoundFile`
    does."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        self.problem = ""
        self.ended = False
        self.code = 0
        self._file: SoundFile | None = SoundFile(path)
        self._task: asyncio.Task[None] | None = None

    def open(
        self,
        on_block: Callable[[AudioBlock], None],
        on_change: Callable[[], None],
        wanted: Callable[[], bool] = lambda: True,
        patient: Callable[[], bool] = lambda: False,
    ) -> None:
        """Start from the first sample."""
        self.problem, self.ended, self.code = "", False, 0
        self._task = asyncio.get_running_loop().create_task(
            self._play(on_block, on_change), name="file"
        )

    async def close(self) -> None:
        """Stop where it is; what was not yet played is not delivered."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _play(
        self, on_block: Callable[[AudioBlock], None], on_change: Callable[[], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        ready: list[AudioBlock] = []
        tape = Resampler(ready.append)
        try:
            with self._file or SoundFile(self.name) as source:
                self._file = None
                async for piece in blocks(source):
                    tape.push(piece.samples)
                    await _pace(ready, on_block, began)
            tape.finish()
            await _pace(ready, on_block, began)
            self.code = 0 if source.complete else AudioError.exit_code
        except AsrdError as error:
            self.problem, self.code = error.message, error.exit_code
        except Exception as error:  # whatever it is, the recording is to end with its source
            log.exception("%s: cannot be played", self.name)
            self.problem, self.code = f"{self.name}: cannot be played, {error}", AsrdError.exit_code
        self.ended = True
        on_change()


async def _pace(
    ready: list[AudioBlock], on_block: Callable[[AudioBlock], None], began: float
) -> None:
    """Deliver blocks, each when its last sample would have been spoken; late ones at once."""
    loop = asyncio.get_running_loop()
    for block in ready:
        await asyncio.sleep(began + block.stop / SAMPLE_RATE - loop.time())
        on_block(block)
    ready.clear()


def listen(microphone: str, seconds: float) -> tuple[str, str, Loudness]:
    """Open a microphone, chosen by a part of its name, for a moment; return its name, what is
    wrong, and its levels.

    Blocks for `seconds` of sound, and up to PATIENCE_SECONDS more where none comes.
    """
    return asyncio.run(_listen(Microphone(microphone), seconds))


async def _listen(device: AudioSource, seconds: float) -> tuple[str, str, Loudness]:
    heard, changed = Loudness(), asyncio.Event()
    vad, wanted, got = Vad(), round(seconds * SAMPLE_RATE), 0

    def take(block: AudioBlock) -> None:
        nonlocal got
        got = block.stop
        before = vad.open
        vad.push(block)
        heard.push(block.samples, before or vad.open)
        if got >= wanted:
            changed.set()

    def look() -> None:
        if device.problem:
            changed.set()

    device.open(take, look)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds + PATIENCE_SECONDS):
            await changed.wait()
    problem = device.problem or ("" if got else "delivers no sound")
    await device.close()
    return device.name, problem, heard


_FILE_HINT = "asrd transcribe - transcribes such a file; asrd run --source file:PATH listens to it"


class Pipe:
    """Raw sound on standard input: signed 16 bit, little endian, 16 kHz, mono; delivered as it
    comes.

    What waits in the pipe when it is opened is heard first; what is not wanted yet stays in it.
    Raises AudioError when standard input is closed or a terminal.
    """

    CHUNK = SAMPLE_RATE // 2
    """Bytes (0.25 s) that are read at once; the next are read when these were delivered."""

    def __init__(self, descriptor: int = 0) -> None:
        self.name = "standard input"
        self.problem = ""
        self.ended = False
        self.code = 0
        self._odd = b""
        self._raw = False
        """Whether enough has come to tell that this is no file."""
        self._reader: threading.Thread | None = None
        try:
            self._descriptor = os.dup(descriptor)
        except OSError as error:
            raise AudioError("standard input: is closed", _PIPE_HINT) from error
        if os.isatty(self._descriptor):
            os.close(self._descriptor)
            raise AudioError("standard input: is a terminal", _PIPE_HINT)

    def open(
        self,
        on_block: Callable[[AudioBlock], None],
        on_change: Callable[[], None],
        wanted: Callable[[], bool] = lambda: True,
        patient: Callable[[], bool] = lambda: False,
    ) -> None:
        """Go on reading where the last `close` stopped."""
        self._tape, self._on_change, self._wanted = Resampler(on_block), on_change, wanted
        self._loop = asyncio.get_running_loop()
        self._closed = threading.Event()
        self._delivered = threading.Event()
        self._bell = os.pipe()
        self._reader = threading.Thread(
            target=self._read, args=(self._closed, self._bell), daemon=True
        )
        self._reader.start()

    async def close(self) -> None:
        """Deliver what was read; what is still in the pipe stays there."""
        if self._reader is None:
            return
        self._closed.set()
        self._delivered.set()
        os.write(self._bell[1], b"\0")
        while self._reader.is_alive():
            await asyncio.sleep(0.005)
        await asyncio.sleep(0)  # what the reader posted last
        self._reader = None
        for end in self._bell:
            os.close(end)
        self._tape.finish()

    def _read(self, closed: threading.Event, bell: tuple[int, int]) -> None:
        """Read until the end or `close`; runs in a thread, as a file on standard input cannot be
        polled by a loop."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        poll.register(bell[0], select.POLLIN)
        data, problem = b"-", ""
        while data and not closed.is_set():
            poll.poll()
            if closed.is_set():
                return
            try:
                data = os.read(self._descriptor, self.CHUNK)
            except OSError as error:
                data, problem = b"", f"{self.name}: cannot be read, {error.strerror}"
            self._delivered.clear()
            with contextlib.suppress(RuntimeError):  # a loop that has ended
                self._loop.call_soon_threadsafe(self._take, data, problem)
            if data and not closed.is_set():
                self._delivered.wait()

    def _take(self, data: bytes, problem: str) -> None:
        """Put bytes on the tape; none mean the end."""
        try:
            if self.ended:
                return
            if data:
                self._push(self._odd + data)
            else:
                self._end(problem)
        finally:
            self._go_on()

    def _push(self, data: bytes) -> None:
        """Put bytes on the tape, once they are known to be raw sound."""
        if not self._raw and len(data) < MAGIC_BYTES:
            self._odd = data
            return
        if not self._raw and (kind := file_kind(data)):
            self._odd = b""
            self._end(f"{self.name}: is {kind}, and not raw audio ({_FILE_HINT})")
            return
        self._raw = True
        self._odd = data[len(data) - len(data) % 2 :]
        self._tape.push(np.frombuffer(data, "<i2", len(data) // 2) * np.float32(1 / 32768))

    def _end(self, problem: str) -> None:
        if len(self._odd) > 1:  # all there was is shorter than the beginning of a file
            self._raw = True
            self._push(self._odd)
        if self._odd:
            log.warning("%s: ended in the middle of a sample", self.name)
            self._odd = b""
        self._tape.finish()
        self.problem, self.ended = problem, True
        self._on_change()

    def _go_on(self) -> None:
        """Have the reader read on as soon as that is wanted."""
        if self.ended or self._closed.is_set() or self._wanted():
            self._delivered.set()
        else:
            self._loop.call_later(0.1, self._go_on)


def level_sentence(name: str, problem: str, found: Loudness) -> str:
    """Return what a moment of listening to a microphone gave, as one sentence."""
    judged = judge(found)
    if problem or judged.problem:
        return (
            f"{name}: {problem.removeprefix(f'{name}: ')}"
            if problem
            else f"{name} {judged.problem} now"
        )
    if judged.speech_dbfs is not None:
        return f"{name}: speech at {judged.speech_dbfs:.0f} dBFS now"
    return f"{name}: {judged.noise_dbfs or 0:.0f} dBFS now, and nobody speaks"


_PIPE_HINT = "asrd run --source pipe < audio.raw, or arecord -t raw -f S16_LE -r 16000 | asrd run --source pipe"
