"""Tell a key that is held, or bounces, from a person who presses it again.

A desktop runs a binding again and again while its key is held: after the repeat delay, then many
times a second. Each run asks for a toggle. asrd cannot see the key; it sees only when each toggle
arrives. So it acts on a toggle that comes soon after another one in a way that it can take back. It
decides when the next repeat would have come. Runs in the daemon.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Literal

from asrd.dictation.recorder import Recorder
from asrd.dictation.recording import Dictation

REPEAT_SECONDS = 0.2
"""A toggle that follows another one sooner is no press: keys repeat at least five times a
second."""

REPEAT_DELAY_SECONDS = 1.2
"""A toggle that follows another one later is a press: no desktop waits so long before a held key
repeats."""

Meaning = Literal["press", "unsure", "repeat"]


class Presses:
    """Judge each toggle by the time since the one before it (pure: the caller gives the time)."""

    def __init__(self) -> None:
        self._last_seconds = float("-inf")
        self.unsure = False
        """Whether a toggle since the last certain press may have been its repeat."""

    def judge(self, now: float) -> Meaning:
        """Return what a toggle that arrives at `now` (monotonic seconds) means."""
        gap, self._last_seconds = now - self._last_seconds, now
        if gap < REPEAT_SECONDS:
            return "repeat"
        if gap >= REPEAT_DELAY_SECONDS:
            self.unsure = False
            return "press"
        self.unsure = True
        return "unsure"


class ToggleKey:
    """Start and stop recordings for a key; a held key counts once.

    Args:
        recorder: what is started and stopped.
        begin: starts a recording and returns the reply to the client.
        spawn: runs a coroutine in the background.
    """

    def __init__(
        self,
        recorder: Recorder,
        begin: Callable[[], dict[str, Any]],
        spawn: Callable[[Coroutine[Any, Any, Any]], None],
    ) -> None:
        self._recorder, self._begin, self._spawn = recorder, begin, spawn
        self._presses = Presses()
        self._records = False
        """Whether the last certain press asked for a recording."""
        self._stopping: asyncio.TimerHandle | None = None
        self._start_refused_seconds = float("-inf")

    async def toggle(self) -> dict[str, Any]:
        """Act on a toggle; return the reply to the client, without the state."""
        meaning, dictation = self._presses.judge(time.monotonic()), self._recorder.current
        if meaning == "repeat":
            if self._presses.unsure:
                await self._take_back()
            return {"message": "ignored: the key is held, or bounced", "ignored": True}
        if meaning == "press":
            self._records = dictation is None
        self._keep_recording()
        if dictation is None:
            return self._begin()  # at once, so that no word is missed; a repeat drops it again
        if meaning == "unsure":
            self._stop_soon(dictation)
        else:
            await self._recorder.stop()
        message = f"stopped; {dictation.recording.seconds:.1f} s become text"
        return {
            "message": message,
            "recording": dictation.recording.id,
            "seconds": dictation.recording.seconds,
        }

    def start_repeats(self) -> bool:
        """Return whether a `start` is the late repeat of a key that was released.

        Each run of a binding is a process of its own, so the last `start` may arrive after the
        `stop` of the release. The repeats before it were refused, because a recording was going on.
        """
        now = time.monotonic()
        late = self._recorder.current is None and now - self._start_refused_seconds < REPEAT_SECONDS
        if late or self._recorder.current is not None:
            self._start_refused_seconds = now
        return late

    def _stop_soon(self, dictation: Dictation) -> None:
        """Stop a recording when no repeat has come; until then it goes on, and nothing said is
        missed."""

        def stop() -> None:
            self._stopping = None
            if self._recorder.current is dictation:
                self._spawn(self._recorder.stop())

        self._stopping = asyncio.get_running_loop().call_later(REPEAT_SECONDS, stop)

    def _keep_recording(self) -> None:
        if self._stopping is not None:
            self._stopping.cancel()
            self._stopping = None

    async def _take_back(self) -> None:
        """Do what the last certain press asked for: what came since was its key, still held."""
        self._keep_recording()
        dictation = self._recorder.current
        if self._records and dictation is None:
            self._begin()
        elif dictation is not None and not self._records:
            young = time.monotonic() - dictation.began_at < 2 * REPEAT_SECONDS
            await self._recorder.stop(cancelled=young)  # an older one may hold words
