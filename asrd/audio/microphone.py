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
import threading
import time
from collections.abc import Callable

import numpy as np

from asrd.audio import devices, sound_server
from asrd.audio.blocks import AudioBlock
from asrd.audio.channels import CANCELLING_WARNING, Mixer
from asrd.audio.hanging_calls import in_own_thread, post
from asrd.audio.input_stream import PERIOD_SECONDS, InputStream
from asrd.audio.resampling import BLOCK_SAMPLES, Resampler
from asrd.errors import AudioError
from asrd.text.wording import with_hint

log = logging.getLogger("asrd")

STALL_SECONDS = 0.75
"""Seconds without a callback after which a running stream counts as dead."""
FIRST_CALLBACK_SECONDS = 4.0
"""Seconds a stream may take to its first callback; a headset that changes its profile needs
some."""
LOOK_SECONDS = 0.25
"""Seconds between two looks at the stream."""
BACK_OFF_SECONDS = (0.5, 8.0)
"""Seconds before a device is opened again: at first, and at most; doubled each time."""
FOLLOW_AGAIN_SECONDS = 2.0
"""Seconds before a sound server that ended is followed again."""
CLOSE_SECONDS = 0.25
"""Seconds that closing a stream may take before it is left behind."""
MAX_BLOCK_SAMPLES = 10 * BLOCK_SAMPLES
"""Samples of a block at most: all whole 20 ms of what is taken at once."""
ARRIVAL_SECONDS = 0.03
"""Seconds before a callback up to which all sound has come with it: the server rounds PERIOD_SECONDS, and
holds back a rest."""
MAX_TAIL_SECONDS = 0.12
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
            async with asyncio.timeout(MAX_TAIL_SECONDS):
                while self._last < key + ARRIVAL_SECONDS:
                    self._more.clear()
                    await self._more.wait()


class Microphone:
    """The microphone that a part of its name means, or the default one, for as long as it is open.

    `name`, `problem`, `ended`, `open`, `close`: as `sources.AudioSource` says.
    """

    def __init__(self, microphone: str = "") -> None:
        self.wanted = "" if microphone in devices.BRIDGE_NAMES else microphone
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
        self._resampler, self._on_change = Resampler(on_block, MAX_BLOCK_SAMPLES), on_change
        self._stream: InputStream | None = None
        self._changed, self._arrivals = asyncio.Event(), TailWait()
        self._muted = self.problem = ""
        self._silent_since = 0.0
        self._rescan = False
        self._task = self._loop.create_task(self._live(), name="microphone")
        self._task.add_done_callback(self._stopped)

    async def close(self) -> None:
        """Record what was spoken until now, then end. Takes at most 0.5 s whatever the device
        does."""
        task, self._task, self._closing = self._task, None, True
        if task is None:
            return
        if self._stream is not None and self._stream.last and not self.problem:
            await self._arrivals.until(time.monotonic())
        task.cancel()
        await asyncio.wait([task], timeout=0.1)
        stream, self._stream = self._stream, None
        if stream is not None:
            await self._give_up(stream)
            self._take(stream)
        self._resampler.finish()

    async def _live(self) -> None:
        """Record until cancelled: open, listen until it dies, wait, look for devices again."""
        following = self._loop.create_task(self._follow())
        wait = BACK_OFF_SECONDS[0]
        try:
            while True:
                stream = await self._connect()
                if stream is not None:
                    self._set_problem(await self._listen(stream))
                    self._stream = None
                    self._take(stream)
                    self._resampler.lose()
                    self._silent_since = stream.last or self._silent_since
                    await self._give_up(stream)
                    self._rescan = stream.device.through == "alsa"
                    wait = BACK_OFF_SECONDS[0] if stream.last else wait
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._changed.wait()
                    # A server that reports a change is often in the middle of it.
                    await asyncio.sleep(LOOK_SECONDS)
                devices.forget()
                wait = min(2 * wait, BACK_OFF_SECONDS[1])
        finally:
            following.cancel()
            await asyncio.wait([following])

    async def _connect(self) -> InputStream | None:
        """Choose the device and open it in a thread; None, and `problem`, when that fails."""
        opening = in_own_thread(self._opened)
        try:
            await asyncio.wait([opening], timeout=STALL_SECONDS)
            if not opening.done():
                self._set_problem(self.problem or f"{self.name}: does not answer")
                await asyncio.wait([opening])
        except asyncio.CancelledError:
            opening.add_done_callback(_too_late)
            raise
        try:
            stream = opening.result()
        except AudioError as error:
            self._set_problem(with_hint(error.message, error.hint))
            self._rescan = True
            return None
        self._stream, self._rescan, self._muted = stream, False, ""
        self._set_name(stream.device.name)
        self._resampler.splice(stream.device.rate)
        self._take(stream)
        return stream

    def _opened(self) -> InputStream:
        """Return a stream that runs. In a thread. Raises AudioError."""
        stream: InputStream

        def wake() -> None:
            post(self._loop, self._wake, stream)

        def patient() -> bool:
            return not self._closing and self._patient()

        stream = InputStream(
            devices.pick(self.wanted, self._rescan), bool(self.wanted), wake, patient
        )
        stream.start()
        return stream

    async def _listen(self, stream: InputStream) -> str:
        """Watch a stream until it dies; return what is wrong in one sentence."""
        started = time.monotonic()
        self._changed.set()
        while not stream.finished:
            await self._until_notable(stream)
            silent = time.monotonic() - (stream.last or started)
            if silent > STALL_SECONDS:
                problem = f"{self.name}: delivers no sound"
                if stream.last or silent > FIRST_CALLBACK_SECONDS:
                    return problem
                self._set_problem(problem)
            elif stream.last:
                if self._changed.is_set():
                    self._changed.clear()
                    if await self._moved(stream):
                        break
                self._set_problem(self._muted)
        return f"{self.name}: is gone"

    async def _until_notable(self, stream: InputStream) -> None:
        """Wait as long as nothing can be wrong: until sound is overdue, the server tells of a
        change, or the end."""
        if stream.last and not self._changed.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(
                    max(0.0, stream.last + STALL_SECONDS - time.monotonic()) + 0.01
                ):
                    await self._changed.wait()
                    if stream.finished:
                        return
        if not stream.last or self._changed.is_set():
            await asyncio.sleep(LOOK_SECONDS)

    async def _moved(self, stream: InputStream) -> bool:
        """Ask the server where our stream ended up; return whether that is another source than was
        asked for."""
        if stream.device.through != "server":
            return False
        try:
            source = await in_own_thread(sound_server.recorded)
        except TimeoutError:
            return False  # the stream itself will tell
        if source is None:
            return False
        if source.name == sound_server.DUMMY_SOURCE or (
            self.wanted and source.name != stream.device.id
        ):
            return True
        self._muted = f"{source.description}: is muted in the sound server" if source.muted else ""
        self._set_name(source.description)
        return False

    def _wake(self, stream: InputStream) -> None:
        """Take sound as it comes; a stream that was closed or is not yet known is left alone."""
        if stream is self._stream:
            self._take(stream)
            self._arrivals.came(math.inf if stream.finished else stream.last)
            if stream.finished:
                self._changed.set()

    def _take(self, stream: InputStream) -> None:
        """Give what a stream has recorded to the resampler."""
        pieces: list[bytes] = []
        for data, lost in stream.recorded():
            if lost is not None:
                self._put(pieces, stream.mixer)
                self._resampler.lose(lost)
                pieces = []
            pieces.append(data)
        if (
            pieces and self._silent_since
        ):  # another device, or the same again: as long as it was away
            self._resampler.lose(stream.first - PERIOD_SECONDS - self._silent_since)
            self._silent_since = 0.0
        self._put(pieces, stream.mixer)

    def _put(self, pieces: list[bytes], mixer: Mixer) -> None:
        if not pieces:
            return
        before = mixer.cancelling
        self._resampler.push(
            mixer.mix(np.frombuffer(b"".join(pieces), np.float32).reshape(-1, mixer.channels))
        )
        if mixer.cancelling and not before:
            log.warning("%s: " + CANCELLING_WARNING, self.name, mixer.cancelling)

    async def _follow(self) -> None:
        """Note that the sound server changed, as long as there is one."""
        while True:
            await sound_server.follow(self._changed.set)
            await asyncio.sleep(FOLLOW_AGAIN_SECONDS)

    async def _give_up(self, stream: InputStream) -> None:
        """Close a stream in a thread; leave it behind when that hangs."""
        devices.hanging.append(stream)

        def end() -> None:
            stream.discard()
            devices.hanging.remove(stream)

        closing = in_own_thread(end)
        await asyncio.wait([closing], timeout=CLOSE_SECONDS)
        if not closing.done():
            atexit.unregister(devices.portaudio()._exit_handler)  # it would hang in the same way
            log.debug("%s: closing it hangs; the stream is left behind", stream.device.name)

    def _stopped(self, task: asyncio.Task[None]) -> None:
        """Report that recording ended by an internal error."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the microphone stopped", exc_info=error)
            self._set_problem(
                f"{self.name}: stopped by an internal error: {type(error).__name__}: {error}"
            )

    def _set_name(self, name: str) -> None:
        """Take on the name of what is recorded from."""
        if name != self.name:
            self.name = name
            self._on_change()

    def _set_problem(self, problem: str) -> None:
        """Report a change of the problem, once."""
        if problem != self.problem:
            self.problem = problem
            self._on_change()


def _too_late(opening: asyncio.Future[InputStream]) -> None:
    """Close a stream that opened after nobody wanted it any more."""
    if not opening.cancelled() and opening.exception() is None:
        in_own_thread(opening.result().discard)
