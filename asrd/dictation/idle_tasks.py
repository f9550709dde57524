"""What the daemon does while nobody speaks: it tries a better candidate again, and hears takes once
more in FP32.

Both wait until nobody has spoken for a while and the machine rests, and end at once when a key is
pressed. Runs in the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

import msgspec

from asrd.config.settings import idle_seconds
from asrd.dictation import shadow
from asrd.dictation.transcriber import Transcriber
from asrd.engine.capacity import fits_beside
from asrd.engine.planner import start_for
from asrd.errors import AsrdError
from asrd.precision import fallback, gpu_power

log = logging.getLogger("asrd")


class IdleTasks:
    """The jobs of one transcriber that can wait.

    Args:
        transcriber: whose engine it is.
    """

    def __init__(self, transcriber: Transcriber) -> None:
        self.transcriber = transcriber
        self._job: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._quiet_since = time.monotonic()
        transcriber.disturb, transcriber.undisturbed, transcriber.settled = (
            self.disturb,
            self.undisturbed,
            self.settled,
        )

    def settled(self) -> None:
        """Quiet begins anew; there may be something else to do in it."""
        self._quiet_since = time.monotonic()
        self._news.set()

    def disturb(self) -> None:
        """Somebody needs the engine: what could wait ends at once."""
        self.settled()
        if self._job is not None:
            self._job.cancel()

    async def undisturbed(self) -> None:
        """Return when what was disturbed has ended, and its worker with it."""
        job = self._job
        if job is not None and job.cancelling() and job is not asyncio.current_task():
            await asyncio.wait([job])

    @property
    def due(self) -> float | None:
        """Seconds until there is something to do; None while there is nothing, or no rest."""
        transcriber, now = self.transcriber, time.monotonic()
        if not transcriber.still:
            return None
        quiet = max(0.0, self._quiet_since + shadow.QUIET - now)
        known = [transcriber.demotion.calm.left(now), quiet if transcriber.shadow.waiting else None]
        return min((max(quiet, each) for each in known if each is not None), default=None)

    async def run(self) -> None:
        """Do what can wait, for ever."""
        try:
            while True:
                self._news.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.due):
                        await self._news.wait()
                if self.due == 0.0:
                    if shadow.resting():
                        await self._do()
                    if self.due == 0.0:  # no room, or no rest: not at once again
                        await asyncio.sleep(shadow.AGAIN)
        finally:
            if self._job is not None:
                self._job.cancel()
                await asyncio.wait([self._job])

    async def _do(self) -> None:
        job = self._job = asyncio.create_task(self._jobs())
        await asyncio.wait([job])
        self._job = None
        if not job.cancelled() and (error := job.exception()):
            log.error("what could wait failed: %s", error, exc_info=error)

    async def _jobs(self) -> None:
        transcriber = self.transcriber
        if transcriber.demotion.calm.left(time.monotonic()) == 0.0 and not self._would_wake():
            await self.promote()
        if transcriber.shadow.waiting:
            await transcriber.shadow.work(
                transcriber.settings, transcriber.in_use, transcriber.engine.on_card
            )
            if transcriber.engine.ready is not None:
                await transcriber.judge()

    def _would_wake(self) -> bool:
        """Return whether a better candidate can wait: its card sleeps, and the next recording after
        `idle` tries it anyway.

        Without `idle` the model is meant to stay on the card, and no such recording comes.
        """
        transcriber = self.transcriber
        on_cpu = transcriber.engine.ready is not None and not transcriber.engine.on_card
        return on_cpu and idle_seconds(transcriber.settings.idle) is not None and gpu_power.asleep()

    async def promote(self) -> bool:
        """Try the candidates whose trouble may be over: beside the one in service where the memory
        allows, else instead.

        Returns whether another candidate is in service now.
        """
        transcriber, old = self.transcriber, self.transcriber.engine
        served, settings, memory = transcriber.demotion, transcriber.settings, transcriber.memory
        plan = fallback.again(old.plan, old.left, old.candidates, old.rejected)
        if plan is None or not old.candidates:
            served.calm.tried(time.monotonic(), held=True)
            return False
        start = start_for(
            msgspec.structs.replace(settings, vram_budget="")
        )  # the limit is known, and asking wakes
        new = transcriber.engine_for(
            plan, msgspec.structs.replace(start, vram_limit=old.template.vram_limit)
        )
        parked = (
            old.pid is None
        )  # it starts with the next recording, and until then no card is asked
        beside = parked or await asyncio.to_thread(fits_beside, settings, transcriber.in_use)
        taken = False
        try:
            if beside and not parked:
                await transcriber.prove(new, settings, strict=False)
            async with transcriber.turns.alone():
                if not beside:
                    await old.stop()
                    await transcriber.prove(new, settings, strict=False)
                taken = transcriber.engine is old and len(new.candidates) > len(old.candidates)
                if taken:
                    transcriber.engine = new
                    if not parked:  # else it is told when it has proved itself
                        served.promoted(new)
                    served.calm.tried(time.monotonic(), held=new.candidate == plan.candidates[0])
        except AsrdError as error:
            log.info("no better candidate holds: %s", error.message)
        finally:
            if not taken:
                transcriber.memory = memory
            await (old if taken else new).stop()
        if not taken:
            served.calm.tried(time.monotonic(), held=False)
        if not (taken or beside):
            await transcriber.load()
        return taken
