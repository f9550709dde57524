"""A microphone through PortAudio: opened, listened to, given up when it dies, and opened again.

What the facts demand: a dying device raises nothing, so a timer watches; `stop()` can hang, so it
is never called; PortAudio's list of devices is a snapshot, so it is taken again before a reopening;
and every call into PortAudio can hang, so each is made in a thread that nobody has to wait for.
Knows nothing of speech. Daemon side.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from asrd.audio import devices, sound_server
from asrd.audio.blocks import AudioBlock
from asrd.audio.channels import CANCELLING, Mixer
from asrd.audio.devices import Device
from asrd.audio.resampling import BLOCK, Resampler
from asrd.errors import AudioError
from asrd.text.wording import with_hint

log = logging.getLogger("asrd")

T = TypeVar("T")

STALL = 0.75
"""Seconds without a callback after which a running stream counts as dead."""
FIRST = 4.0
"""Seconds a stream may take to its first callback; a headset that changes its profile needs
some."""
LOOK = 0.25
"""Seconds between two looks at the stream."""
BACK_OFF = (0.5, 8.0)
"""Seconds before a device is opened again: at first, and at most; doubled each time."""
FOLLOW = 2.0
"""Seconds before a sound server that ended is followed again."""
CLOSE = 0.25
"""Seconds that closing a stream may take before it is left behind."""
PERIOD = 0.064
"""Seconds of sound that a callback brings: three of PipeWire's periods. At a third of it the CPU
time is 2.5 times."""
LULL = 3 * PERIOD
"""Seconds of sound that are taken at once while all are patient: to wake the loop is most of what a
callback costs."""
TOGETHER = 10 * BLOCK
"""Samples of a block at most: all whole 20 ms of what is taken at once."""
ARRIVAL = 0.03
"""Seconds before a callback up to which all sound has come with it: the server rounds PERIOD, and
holds back a rest."""
LINGER = 0.12
"""Seconds that the microphone is heard after the key at most, if what was spoken until then has not
come before."""


class TailWait:
    """When sound came last, for whoever waits after a key for what was spoken until then. On the
    event loop only."""

    def __init__(self) -> None:
        self._last = 0.0
        self._more = asyncio.Event()

    def came(self, when: float) -> None:
        """Note that sound came at so many monotonic seconds; infinity: no more will."""
        self._last = when
        self._more.set()

    async def until(self, key: float) -> None:
        """Wait until what was spoken up to `key` (monotonic seconds) has come, or should have."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while self._last < key + ARRIVAL:
                    self._more.clear()
                    await self._more.wait()


class _InputStream:
    """One stream from its opening to its end. `_heard` runs in PortAudio's thread, the rest where
    it is called.

    Args:
        device: what to open.
        aimed: whether it was chosen by name; the server is then asked for it, else for its default.
        wake: called from PortAudio's thread when there is sound to take, or when the stream has
            ended.
        patient: asked there, whether LULL of sound may come together first.
    """

    def __init__(
        self, device: Device, aimed: bool, wake: Callable[[], None], patient: Callable[[], bool]
    ) -> None:
        self.device = device
        self.mixer = Mixer(1)
        self.first = self.last = 0.0
        """When the first and the last callback came (monotonic seconds); 0 before the first."""
        self.finished = False
        self._aim = (
            device.id
            if aimed and device.id not in devices.BRIDGES and device.through == "server"
            else ""
        )
        self._sound: deque[tuple[bytes, float | None]] = deque()
        self._due = 0.0
        self._wake, self._patient = wake, patient
        self._kept = 0.0
        self._stream: Any = None

    def start(self) -> None:
        """Open and start the stream. Blocks. Raises AudioError."""
        sounddevice, device = devices.portaudio(), self.device
        counts = devices.channel_counts(device)
        for count in counts:
            try:
                with _aimed_at(self._aim):
                    self._stream = sounddevice.RawInputStream(
                        device=device.index, samplerate=device.rate, channels=count, dtype="float32", latency="low",
                        blocksize=round(device.rate * PERIOD), callback=self._heard, finished_callback=self._end,
                    )  # fmt: skip
                    self._stream.start()
                self.mixer = Mixer(count, device.rate)
                return
            except sounddevice.PortAudioError as error:
                self.discard()
                code = error.args[1] if len(error.args) > 1 else 0
                if code != _CHANNELS or count == counts[-1]:
                    raise AudioError(
                        f"{device.name}: {_REASONS.get(code, error.args[0])}"
                    ) from error

    def take(self) -> Iterator[tuple[bytes, float | None]]:
        """Yield what was heard since the last time, each piece with the seconds that are missing
        before it, if any."""
        while self._sound:
            yield self._sound.popleft()

    def discard(self) -> None:
        """End the stream at once; never `stop`, which waits for sound that may not come. Blocks,
        perhaps forever."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.abort(ignore_errors=True)
            stream.close(ignore_errors=True)

    def _heard(self, data: Any, frames: int, when: Any, status: Any) -> None:
        """Keep what PortAudio hands over. Nothing here may take long."""
        self.last = time.monotonic()
        lost = status.input_overflow if status and self.first else False
        self.first = self.first or self.last
        begins = when.inputBufferAdcTime if when else 0.0
        self._sound.append((bytes(data), max(0.0, begins - self._due) if lost else None))
        seconds = frames / self.device.rate
        self._due, self._kept = begins + seconds, self._kept + seconds
        if self.first == self.last or self._kept > LULL - PERIOD / 2 or not self._patient():
            self._kept = 0.0
            self._wake()

    def _end(self) -> None:
        self.finished = True
        self._wake()


class Microphone:
    """The microphone that a part of its name means, or the default one, for as long as it is open.

    `name`, `problem`, `ended`, `open`, `close`: as `capture.AudioSource` says.
    """

    def __init__(self, microphone: str = "") -> None:
        self.wanted = "" if microphone in devices.BRIDGES else microphone
        self.name = microphone or "default microphone"
        self.problem = ""
        self.ended = False
        self.code = 0
        self._task: asyncio.Task[None] | None = None
        threading.Thread(target=devices.warm, name="asrd-sound", daemon=True).start()

    def open(
        self,
        on_block: Callable[[AudioBlock], None],
        on_change: Callable[[], None],
        wanted: Callable[[], bool] = lambda: True,
        patient: Callable[[], bool] = lambda: False,
    ) -> None:
        """Start to record on the running loop; what goes wrong stands in `problem`."""
        self._loop, self._patient, self._closing = asyncio.get_running_loop(), patient, False
        self._tape, self._on_change = Resampler(on_block, TOGETHER), on_change
        self._line: _InputStream | None = None
        self._changed, self._arrivals = asyncio.Event(), TailWait()
        self._muted = self.problem = ""
        self._silent_since = 0.0
        self._rescan = False
        self._task = self._loop.create_task(self._live(), name="microphone")
        self._task.add_done_callback(self._stopped)

    async def close(self) -> None:
        """Hear what was spoken until now, then end. Takes at most 0.5 s whatever the device
        does."""
        task, self._task, self._closing = self._task, None, True
        if task is None:
            return
        if self._line is not None and self._line.last and not self.problem:
            await self._arrivals.until(time.monotonic())
        task.cancel()
        await asyncio.wait([task], timeout=0.1)
        line, self._line = self._line, None
        if line is not None:
            await self._give_up(line)
            self._take(line)
        self._tape.finish()

    async def _live(self) -> None:
        """Record until cancelled: open, listen until it dies, wait, look for devices again."""
        following = self._loop.create_task(self._follow())
        wait = BACK_OFF[0]
        try:
            while True:
                line = await self._connect()
                if line is not None:
                    self._say(await self._listen(line))
                    self._line = None
                    self._take(line)
                    self._tape.lose()
                    self._silent_since = line.last or self._silent_since
                    await self._give_up(line)
                    self._rescan = line.device.through == "alsa"
                    wait = BACK_OFF[0] if line.last else wait
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._changed.wait()
                    await asyncio.sleep(
                        LOOK
                    )  # a server that tells of a change is often in the middle of it
                devices.forget()
                wait = min(2 * wait, BACK_OFF[1])
        finally:
            following.cancel()
            await asyncio.wait([following])

    async def _connect(self) -> _InputStream | None:
        """Choose the device and open it in a thread; None, and `problem`, when that fails."""
        opening = _aside(self._opened)
        try:
            await asyncio.wait([opening], timeout=STALL)
            if not opening.done():
                self._say(self.problem or f"{self.name}: does not answer")
                await asyncio.wait([opening])
        except asyncio.CancelledError:
            opening.add_done_callback(_too_late)
            raise
        try:
            line = opening.result()
        except AudioError as error:
            self._say(with_hint(error.message, error.hint))
            self._rescan = True
            return None
        self._line, self._rescan, self._muted = line, False, ""
        self._call(line.device.name)
        self._tape.splice(line.device.rate)
        self._take(line)
        return line

    def _opened(self) -> _InputStream:
        """Return a stream that runs. In a thread. Raises AudioError."""
        line: _InputStream

        def wake() -> None:
            _post(self._loop, self._wake, line)

        def patient() -> bool:
            return not self._closing and self._patient()

        line = _InputStream(
            devices.pick(self.wanted, self._rescan), bool(self.wanted), wake, patient
        )
        line.start()
        return line

    async def _listen(self, line: _InputStream) -> str:
        """Watch a stream until it dies; return what is wrong in one sentence."""
        started = time.monotonic()
        self._changed.set()
        while not line.finished:
            await self._until_notable(line)
            silent = time.monotonic() - (line.last or started)
            if silent > STALL:
                trouble = f"{self.name}: delivers no sound"
                if line.last or silent > FIRST:
                    return trouble
                self._say(trouble)
            elif line.last:
                if self._changed.is_set():
                    self._changed.clear()
                    if await self._moved(line):
                        break
                self._say(self._muted)
        return f"{self.name}: is gone"

    async def _until_notable(self, line: _InputStream) -> None:
        """Wait as long as nothing can be wrong: until sound is overdue, the server tells of a
        change, or the end."""
        if line.last and not self._changed.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, line.last + STALL - time.monotonic()) + 0.01):
                    await self._changed.wait()
                    if line.finished:
                        return
        if not line.last or self._changed.is_set():
            await asyncio.sleep(LOOK)

    async def _moved(self, line: _InputStream) -> bool:
        """Ask the server where our stream ended up; return whether that is another source than was
        asked for."""
        if line.device.through != "server":
            return False
        try:
            source = await _aside(sound_server.recorded)
        except TimeoutError:
            return False  # the stream itself will tell
        if source is None:
            return False
        if source.name == sound_server.DUMMY or (self.wanted and source.name != line.device.id):
            return True
        self._muted = f"{source.description}: is muted in the sound server" if source.muted else ""
        self._call(source.description)
        return False

    def _wake(self, line: _InputStream) -> None:
        """Take sound as it comes; a stream that was closed or is not yet known is left alone."""
        if line is self._line:
            self._take(line)
            self._arrivals.came(math.inf if line.finished else line.last)
            if line.finished:
                self._changed.set()

    def _take(self, line: _InputStream) -> None:
        """Put what a stream has heard on the tape."""
        heard: list[bytes] = []
        for data, lost in line.take():
            if lost is not None:
                self._put(heard, line.mixer)
                self._tape.lose(lost)
                heard = []
            heard.append(data)
        if (
            heard and self._silent_since
        ):  # another device, or the same again: as long as it was away
            self._tape.lose(line.first - PERIOD - self._silent_since)
            self._silent_since = 0.0
        self._put(heard, line.mixer)

    def _put(self, heard: list[bytes], mixer: Mixer) -> None:
        if not heard:
            return
        before = mixer.cancelling
        self._tape.push(
            mixer.mix(np.frombuffer(b"".join(heard), np.float32).reshape(-1, mixer.channels))
        )
        if mixer.cancelling and not before:
            log.warning("%s: " + CANCELLING, self.name, mixer.cancelling)

    async def _follow(self) -> None:
        """Note that the sound server changed, as long as there is one."""
        while True:
            await sound_server.follow(self._changed.set)
            await asyncio.sleep(FOLLOW)

    async def _give_up(self, line: _InputStream) -> None:
        """Close a stream in a thread; leave it behind when that hangs."""
        devices.hanging.append(line)

        def end() -> None:
            line.discard()
            devices.hanging.remove(line)

        closing = _aside(end)
        await asyncio.wait([closing], timeout=CLOSE)
        if not closing.done():
            atexit.unregister(devices.portaudio()._exit_handler)  # it would hang in the same way
            log.debug("%s: closing it hangs; the stream is left behind", line.device.name)

    def _stopped(self, task: asyncio.Task[None]) -> None:
        """Tell when recording ended by a fault of ours."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the microphone stopped", exc_info=error)
            self._say(f"{self.name}: stopped by an internal error: {type(error).__name__}: {error}")

    def _call(self, name: str) -> None:
        """Take on the name of what is recorded from."""
        if name != self.name:
            self.name = name
            self._on_change()

    def _say(self, problem: str) -> None:
        """Tell of a change, once."""
        if problem != self.problem:
            self.problem = problem
            self._on_change()


_CHANNELS = -9998
_REASONS = {
    -9985: "is in use by another program or gone",
    -9993: "the sound server does not answer",
    -9996: "is gone",
    -9997: "does not work at its own rate",
    _CHANNELS: "works with no number of channels that was tried",
    -9999: "the sound system refuses it",
}
_aim = threading.Lock()


@contextlib.contextmanager
def _aimed_at(source: str) -> Iterator[None]:
    """Let the sound server's libraries, which take it from the environment only, connect to a
    source."""
    variables = ("PULSE_SOURCE", "PIPEWIRE_NODE")
    if not source:
        yield
        return
    with _aim:
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(dict.fromkeys(variables, source))
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _aside(work: Callable[[], T]) -> asyncio.Future[T]:
    """Do something that may hang in a thread of its own, which neither the loop nor the program's
    end waits for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(act: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            act(value)

    def run() -> None:
        try:
            value = work()
        except Exception as error:
            _post(loop, settle, future.set_exception, error)
        else:
            _post(loop, settle, future.set_result, value)

    threading.Thread(target=run, name="asrd-sound", daemon=True).start()
    return future


def _post(loop: asyncio.AbstractEventLoop, act: Callable[..., None], *values: Any) -> None:
    """Have the loop do something; a loop that has ended needs nothing any more."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(act, *values)


def _too_late(opening: asyncio.Future[_InputStream]) -> None:
    """Close a stream that opened after nobody wanted it any more."""
    if not opening.cancelled() and opening.exception() is None:
        _aside(opening.result().discard)
