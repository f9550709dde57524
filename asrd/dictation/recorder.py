"""The recording that is going on, and the microphone under it: begun, stopped, forgotten, cut off.

A microphone is open while a recording needs it, or always where sound before the key is wanted.
Knows neither keys nor sockets, and of the model only that somebody takes recordings. Runs in the
daemon.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Protocol

from asrd import journal
from asrd.audio.blocks import AudioBlock
from asrd.audio.format import SAMPLE_RATE
from asrd.audio.microphone import TailWait
from asrd.audio.sources import AudioSource
from asrd.config.settings import Settings
from asrd.dictation.recording import Dictation
from asrd.dictation.transcriber import Transcriber
from asrd.errors import UsageError

log = logging.getLogger("asrd")

LOOK = 0.1
"""Seconds between two looks at a recording that is to end by itself."""

UNSPOKEN_SECONDS = 30.0
"""How long a recording that silence is to end waits for the first speech, at least."""

GLANCE = 5.0
"""Seconds between two looks at one that only a person is to end."""

SOUND_LOOK_SECONDS = 0.01
"""Between two looks whether the first sound has come, while somebody waits for an answer."""

SOUND_POLL_SECONDS = 0.05
"""Between two such looks while nobody does."""

FIRST_AUDIO_SECONDS = 3.0
"""Time that the first audio on a pipe may take before the model is loaded without it."""

LONGEST = 3600.0
"""Seconds after which a recording counts as forgotten and is ended."""

AHEAD = 60.0
"""Seconds of speech that may wait for the worker before a source that can wait has to."""


class Watcher(Protocol):
    """Who is told what happens to a recording."""

    def cue(self, name: str) -> None:
        """Let a person hear it: start, stop or cancel."""

    def lost(self, device: str, problem: str) -> None:
        """Let a person see that sound stopped coming."""

    def ended(self) -> None:
        """The source came to its end."""

    def changed(self) -> None:
        """Something is new to show."""


class Recorder:
    """At most one recording at a time.

    Args:
        transcriber: takes recordings from their first block on; has the settings in force.
        listen: makes a capture of a source and a microphone's name.
        watcher: is told.
    """

    def __init__(
        self, transcriber: Transcriber, listen: Callable[[str, str], AudioSource], watcher: Watcher
    ) -> None:
        self.one: Dictation | None = None
        """The recording that is going on."""
        self.problem = ""
        """What was last told of the microphone."""
        self.code = 0
        """The exit code of what was wrong with a source that ended."""
        self._transcriber, self._listen, self._watcher = transcriber, listen, watcher
        self._capture: AudioSource | None = None
        self._opened = "", False
        """How that was: the microphone's name, and whether it stays open."""
        self._late: Dictation | None = None
        """The one whose last sound is still on its way, from a microphone that stays open."""
        self._endings: set[asyncio.Task[None]] = set()
        """Recordings whose last sound is on its way."""
        self._before: collections.deque[AudioBlock] = collections.deque()
        self._arrivals = TailWait()

    @property
    def _settings(self) -> Settings:
        return self._transcriber.settings

    @property
    def one_shot(self) -> bool:
        """True for a source that comes to an end: the daemon then ends with it."""
        return self._settings.source != "mic"

    @property
    def _always_open(self) -> bool:
        return self._settings.pre_roll > 0 and not self.one_shot

    def start(self, private: bool = False) -> Dictation:
        """Begin a recording, in whatever state the model is. Raises UsageError where one is going
        on."""
        if self.one is not None:
            raise UsageError(
                "a recording is going on already", "asrd stop ends it, asrd cancel drops it"
            )
        open_already = self._capture is not None
        device = (
            None if open_already else self._listen(self._settings.source, self._settings.microphone)
        )
        one = self.one = Dictation(self._transcriber.spool.begin(), self._settings, private)
        if one.take.problem:
            log.warning("%s", one.take.problem)
        self._transcriber.add(one)
        if device is not None:
            self._open(device, one.push, stays=False)
        self._before, heard = collections.deque(), self._before
        for block in heard:
            one.push(block)
        self._watcher.cue("start")
        self._watcher.changed()
        return one

    async def stop(self, cancelled: bool = False, by_key: bool = True) -> Dictation | None:
        """End the recording, with the sound that is still on its way; return it, or None where
        there was none.

        Args:
            by_key: somebody asked for it; False where it ends by itself.
        """
        one, self.one = self.one, None
        if one is None:
            return None
        one.by_key = by_key
        if self._capture is not None and not self.one_shot:
            one.device = self._capture.name
        one.stopped, one.cancelled = time.monotonic(), one.cancelled or cancelled
        self._watcher.cue("cancel" if cancelled else "stop")
        device = None
        if self._capture is not None and self._opened[1]:
            self._late = one
        else:
            device, self._capture = self._capture, None
        self._watcher.changed()
        # Whoever asked may be cancelled; a recording without an end would hold up all that follow.
        ending = asyncio.create_task(self._end(one, device))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)
        await asyncio.shield(ending)
        return one

    async def _end(self, one: Dictation, device: AudioSource | None) -> None:
        """End a recording when its last sound has come.

        Args:
            device: a microphone that is to be closed; None for one that stays open.
        """
        try:
            if device is not None:
                await device.close()
            elif self._late is one:
                await self._arrivals.until(one.stopped)
        finally:
            if self._late is one:
                self._late = None
            one.end()
        self._watcher.changed()
        await self.adopt()  # of settings that changed meanwhile

    async def heard(self, one: Dictation, seconds: float) -> None:
        """Wait until sound has come into a recording, the microphone said why none does, or
        `seconds` are over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.one is one and not one.take.samples and not self.problem:
                    await asyncio.sleep(SOUND_LOOK_SECONDS)

    async def gives_sound(self, one: Dictation) -> bool:
        """Wait for the first audio of a recording, FIRST_AUDIO_SECONDS at most.

        Returns False where the recording ended without any, as a file on a pipe does.
        """
        limit = time.monotonic() + FIRST_AUDIO_SECONDS
        while self.one is one and not one.take.samples and time.monotonic() < limit:
            await asyncio.sleep(SOUND_POLL_SECONDS)
        return self.one is one or one.take.samples > 0

    async def mind(self, one: Dictation, silence: float, seconds: float) -> None:
        """End a recording that was to end by itself, or was forgotten.

        Args:
            silence: seconds without speech that end it, counted from the last speech; 0 never.
                Before the first speech it has UNSPOKEN_SECONDS, or so long if that is more.
            seconds: its longest; 0 leaves it to LONGEST.
        """
        limit = min(seconds or LONGEST, LONGEST)
        voice, spoken = one.voice, one.began
        while self.one is one:
            now = time.monotonic()
            if one.voice != voice:
                voice, spoken = one.voice, now
            length = max(one.take.seconds, now - one.began)
            # By the clock as well: where no sound comes in, the recording does not grow.
            quiet = max(one.take.seconds - voice / SAMPLE_RATE, now - spoken)
            patience = silence if voice else max(silence, UNSPOKEN_SECONDS)
            if (length >= limit and not self.one_shot) or (silence and quiet >= patience):
                if not seconds and not silence:
                    log.warning(
                        "ended a recording of %.0f minutes, which was perhaps forgotten",
                        length / 60,
                    )
                await self.stop(by_key=False)
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK if silence or seconds else GLANCE):
                    await one.over.wait()

    async def adopt(self) -> None:
        """Act on settings that have changed: another microphone, or one that is to stay open from
        now on.

        One that a recording needs stays as it is; its end asks again.
        """
        if (
            self._capture is not None
            and self.one is None
            and self._late is None
            and self._opened != self._wanted
        ):
            await self.close()
        if self._always_open and self._capture is None:
            device = self._listen(self._settings.source, self._settings.microphone)
            self._open(device, lambda block: self._overhear(device, block), stays=True)

    @property
    def _wanted(self) -> tuple[str, bool]:
        return self._settings.microphone, self._always_open

    async def close(self) -> None:
        """Let go of the microphone, and of what was heard before a key that did not come."""
        device, self._capture = self._capture, None
        self._before.clear()
        if device is not None:
            await device.close()

    def _open(
        self, device: AudioSource, on_block: Callable[[AudioBlock], None], stays: bool
    ) -> None:
        self._capture, self._opened, self.problem = device, (self._settings.microphone, stays), ""
        device.open(on_block, lambda: self._device_changed(device), self._keeps_up, self._patient)

    def _patient(self) -> bool:
        """Whether nobody waits for sound, as far as is known: for no end of a recording, for no
        word, for no level."""
        one = self.one
        if one is None:
            return self._late is None
        return not (self._transcriber.watched or one.dictation.vad.open)

    def _keeps_up(self) -> bool:
        return self.one is None or self.one.dictation.behind < AHEAD

    def _overhear(self, device: AudioSource, block: AudioBlock) -> None:
        """Take in a block of a microphone that stays open: for a recording, or in case one
        begins."""
        if (
            device is not self._capture
        ):  # it is being closed, and its clock is not that of the one after it
            return
        targets = [one for one in (self._late, self.one) if one is not None]
        for one in targets:
            one.push(block)
        self._arrivals.came(time.monotonic())
        if not targets:
            self._before.append(block)
            kept = self._settings.pre_roll * SAMPLE_RATE
            while len(self._before) > 1 and self._before[-1].stop - self._before[1].start >= kept:
                self._before.popleft()

    def _device_changed(self, device: AudioSource) -> None:
        """Tell once that sound stopped coming, and once that it is back; a source that ended is
        told."""
        if device is not self._capture:
            return
        if device.ended:
            self.code = device.code
            self._watcher.ended()
        if device.problem == self.problem:
            return
        self.problem = device.problem
        if device.problem:
            journal.event("device-lost", device.problem, logging.WARNING, source=device.name)
            self._watcher.lost(device.name, device.problem)
        else:
            journal.event("device-back", f"{device.name} delivers sound again", source=device.name)
        self._watcher.changed()
