"""The recording that goes on, and the microphone under it: begun, stopped, forgotten, cut off.

A microphone is open while a recording needs it, or always where audio before the key is wanted. Keys
and sockets are not known here, and of the model only the queue that takes recordings. Runs in the
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

CHECK_SECONDS = 0.1
"""Interval of the checks of a recording that is to end by itself."""

MIN_WAIT_FOR_SPEECH_SECONDS = 30.0
"""Time that a recording which silence is to end waits for the first speech, at least."""

FORGOTTEN_CHECK_SECONDS = 5.0
"""Interval of the checks of a recording that only a person is to end."""

AUDIO_CHECK_SECONDS = 0.01
"""Interval of the checks for the first audio, while a client waits for the answer."""

AUDIO_POLL_SECONDS = 0.05
"""Interval of the same checks while no client waits."""

FIRST_AUDIO_SECONDS = 3.0
"""Time that the first audio on a pipe may take before the model is loaded without it."""

MAX_RECORDING_SECONDS = 3600.0
"""Length after which a recording counts as forgotten and is ended."""

MAX_BEHIND_SECONDS = 60.0
"""Speech that may wait for the worker before a source that can wait has to."""


class Watcher(Protocol):
    """Is notified of the events of a recording."""

    def cue(self, name: str) -> None:
        """Play a sound for a person: start, stop or cancel."""

    def lost(self, device: str, problem: str) -> None:
        """Show a person that no audio comes in any more."""

    def ended(self) -> None:
        """Act on the end of the source."""

    def changed(self) -> None:
        """Show what is new."""


class Recorder:
    """At most one recording at a time.

    Args:
        transcriber: takes recordings from their first block on; has the settings in force.
        open_source: makes a capture of a source and a microphone's name.
        watcher: is told.
    """

    def __init__(
        self,
        transcriber: Transcriber,
        open_source: Callable[[str, str], AudioSource],
        watcher: Watcher,
    ) -> None:
        self.current: Dictation | None = None
        """The recording that is going on."""
        self.problem = ""
        """Why no audio comes in; "" while it does."""
        self.code = 0
        """The exit code of what was wrong with a source that ended."""
        self._transcriber, self._open_source, self._watcher = transcriber, open_source, watcher
        self._capture: AudioSource | None = None
        self._opened = "", False
        """The name of the microphone that is open, and whether it stays open."""
        self._ending: Dictation | None = None
        """The recording whose last audio is still on its way, from a microphone that stays open."""
        self._end_tasks: set[asyncio.Task[None]] = set()
        """Each ends one recording when its last audio has come."""
        self._pre_roll: collections.deque[AudioBlock] = collections.deque()
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
        if self.current is not None:
            raise UsageError(
                "a recording is already running", "asrd stop ends it, asrd cancel drops it"
            )
        device = None
        if self._capture is None:
            device = self._open_source(self._settings.source, self._settings.microphone)
        recording = self._transcriber.spool.begin()
        dictation = self.current = Dictation(recording, self._settings, private)
        if dictation.recording.problem:
            log.warning("%s", dictation.recording.problem)
        self._transcriber.add(dictation)
        if device is not None:
            self._open(device, dictation.push, stays=False)
        self._pre_roll, pre_roll = collections.deque(), self._pre_roll
        for block in pre_roll:
            dictation.push(block)
        self._watcher.cue("start")
        self._watcher.changed()
        return dictation

    async def stop(self, cancelled: bool = False, by_key: bool = True) -> Dictation | None:
        """End the recording, with the audio that is still on its way; return it, or None where
        there was none.

        Args:
            by_key: whether a client asked for it; False where it ends by itself.
        """
        dictation, self.current = self.current, None
        if dictation is None:
            return None
        dictation.by_key = by_key
        if self._capture is not None and not self.one_shot:
            dictation.device = self._capture.name
        dictation.stopped_at = time.monotonic()
        dictation.cancelled = dictation.cancelled or cancelled
        self._watcher.cue("cancel" if cancelled else "stop")
        device = None
        if self._capture is not None and self._opened[1]:
            self._ending = dictation
        else:
            device, self._capture = self._capture, None
        self._watcher.changed()
        # The caller may be cancelled; a recording without an end would hold up all that follow.
        ending = asyncio.create_task(self._end(dictation, device))
        self._end_tasks.add(ending)
        ending.add_done_callback(self._end_tasks.discard)
        await asyncio.shield(ending)
        return dictation

    async def _end(self, dictation: Dictation, device: AudioSource | None) -> None:
        """End a recording when its last audio has come.

        Args:
            device: a microphone that is to be closed; None for one that stays open.
        """
        try:
            if device is not None:
                await device.close()
            elif self._ending is dictation:
                await self._arrivals.until(dictation.stopped_at)
        finally:
            if self._ending is dictation:
                self._ending = None
            dictation.end()
        self._watcher.changed()
        await self.apply_settings()  # they may have changed meanwhile

    async def wait_for_audio(self, dictation: Dictation, seconds: float) -> None:
        """Wait until a recording has audio, the microphone has a problem, or `seconds` are over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._lacks_audio(dictation) and not self.problem:
                    await asyncio.sleep(AUDIO_CHECK_SECONDS)

    async def has_audio(self, dictation: Dictation) -> bool:
        """Wait for the first audio of a recording, FIRST_AUDIO_SECONDS at most.

        Returns False where the recording ended without any, as a file on a pipe does.
        """
        limit = time.monotonic() + FIRST_AUDIO_SECONDS
        while self._lacks_audio(dictation) and time.monotonic() < limit:
            await asyncio.sleep(AUDIO_POLL_SECONDS)
        return self.current is dictation or dictation.recording.samples > 0

    def _lacks_audio(self, dictation: Dictation) -> bool:
        """Whether a recording goes on and has no audio yet."""
        return self.current is dictation and not dictation.recording.samples

    async def stop_when_done(self, dictation: Dictation, silence: float, seconds: float) -> None:
        """End a recording that was to end by itself, or was forgotten.

        Args:
            silence: seconds without speech that end it, counted from the last speech; 0 never.
                Before the first speech they are MIN_WAIT_FOR_SPEECH_SECONDS at least.
            seconds: its maximum length; 0 means MAX_RECORDING_SECONDS.
        """
        limit = min(seconds or MAX_RECORDING_SECONDS, MAX_RECORDING_SECONDS)
        interval = FORGOTTEN_CHECK_SECONDS
        if silence or seconds:
            interval = CHECK_SECONDS
        voice, spoken = dictation.voice_until, dictation.began_at
        while self.current is dictation:
            now = time.monotonic()
            if dictation.voice_until != voice:
                voice, spoken = dictation.voice_until, now
            length = max(dictation.recording.seconds, now - dictation.began_at)
            # By the clock as well: where no audio comes in, the recording does not grow.
            quiet = max(dictation.recording.seconds - voice / SAMPLE_RATE, now - spoken)
            patience = silence
            if not voice:
                patience = max(silence, MIN_WAIT_FOR_SPEECH_SECONDS)
            if (length >= limit and not self.one_shot) or (silence and quiet >= patience):
                if not seconds and not silence:
                    log.warning(
                        "ended a recording of %.0f minutes, which was perhaps forgotten",
                        length / 60,
                    )
                await self.stop(by_key=False)
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await dictation.finished.wait()

    async def apply_settings(self) -> None:
        """Apply settings that have changed: another microphone, or one that is to stay open from
        now on.

        One that a recording needs stays as it is; the end of the recording calls this again.
        """
        unused = self.current is None and self._ending is None
        if self._capture is not None and unused and self._opened != self._wanted:
            await self.close()
        if self._always_open and self._capture is None:
            device = self._open_source(self._settings.source, self._settings.microphone)
            self._open(device, lambda block: self._on_standby_block(device, block), stays=True)

    @property
    def _wanted(self) -> tuple[str, bool]:
        return self._settings.microphone, self._always_open

    async def close(self) -> None:
        """Let go of the microphone, and of the audio before a key that did not come."""
        device, self._capture = self._capture, None
        self._pre_roll.clear()
        if device is not None:
            await device.close()

    def _open(
        self, device: AudioSource, on_block: Callable[[AudioBlock], None], stays: bool
    ) -> None:
        self._capture, self._opened, self.problem = device, (self._settings.microphone, stays), ""
        device.open(on_block, lambda: self._device_changed(device), self._keeps_up, self._patient)

    def _patient(self) -> bool:
        """Whether nothing waits for the next block: no end of a recording, no word, no level."""
        dictation = self.current
        if dictation is None:
            return self._ending is None
        return not (self._transcriber.watchers or dictation.session.vad.open)

    def _keeps_up(self) -> bool:
        return self.current is None or self.current.session.behind < MAX_BEHIND_SECONDS

    def _on_standby_block(self, device: AudioSource, block: AudioBlock) -> None:
        """Add a block of a microphone that stays open: to a recording, or to the pre-roll of the
        next one."""
        # A microphone that is being closed has another clock than the one after it.
        if device is not self._capture:
            return
        for dictation in (self._ending, self.current):
            if dictation is not None:
                dictation.push(block)
        self._arrivals.came(time.monotonic())
        if self._ending is None and self.current is None:
            self._extend_pre_roll(block)

    def _extend_pre_roll(self, block: AudioBlock) -> None:
        pre_roll, kept = self._pre_roll, self._settings.pre_roll * SAMPLE_RATE
        pre_roll.append(block)
        while len(pre_roll) > 1 and pre_roll[-1].stop - pre_roll[1].start >= kept:
            pre_roll.popleft()

    def _device_changed(self, device: AudioSource) -> None:
        """Report once that no audio comes in any more, and once that it is back; report the end of
        a source."""
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
