"""The daemon's work while nobody speaks: it tries a better candidate again, and compares recordings
with FP32.

Both wait until nobody has spoken for a while and the machine is idle. Both end at once when a key is
pressed. Runs in the daemon.
"""

from __future__ import annotations

import asyncio
import time

from asrd.config.amounts import idle_seconds
from asrd.dictation import shadow
from asrd.dictation.engine_slot import EngineSlot
from asrd.precision import gpu_power


class IdleTasks:
    """The jobs around one engine slot that can wait.

    Args:
        slot: has the engine that is restored and compared.
    """

    def __init__(self, slot: EngineSlot) -> None:
        self.slot = slot

    @property
    def due(self) -> float | None:
        """Seconds until there is something to do; None while there is nothing, or the engine is in
        use."""
        slot, now = self.slot, time.monotonic()
        if not slot.idle:
            return None
        quiet = max(0.0, slot.activity.quiet_since + shadow.QUIET_SECONDS - now)
        if slot.shadow.waiting:
            return quiet
        retry = slot.monitor.backoff.seconds_left(now)
        if retry is None:
            return None
        return max(quiet, retry)

    async def run(self) -> None:
        """Do what can wait, for ever."""
        activity = self.slot.activity
        while True:
            activity.forget_news()
            await activity.wait_for_news(self.due)
            if self.due != 0.0:
                continue
            if shadow.machine_is_idle():
                await activity.run_idle(self._jobs())
            if self.due == 0.0:  # no memory for it, or the machine is busy: not at once again
                await asyncio.sleep(shadow.BUSY_RETRY_SECONDS)

    async def _jobs(self) -> None:
        slot = self.slot
        if slot.monitor.backoff.seconds_left(time.monotonic()) == 0.0 and not self._would_wake():
            await slot.try_restore()
        if slot.shadow.waiting:
            await slot.shadow.compare_waiting(slot.settings, slot.bytes_in_use, slot.engine.on_card)
            if slot.engine.ready is not None:
                await slot.fall_back_if_due()

    def _would_wake(self) -> bool:
        """Return whether a better candidate can wait: its card sleeps, and the next recording after
        `idle` tries it anyway.

        Without `idle` the model is meant to stay on the card, and no such recording comes.
        """
        slot = self.slot
        on_cpu = slot.engine.ready is not None and not slot.engine.on_card
        return on_cpu and idle_seconds(slot.settings.idle) is not None and gpu_power.asleep()
