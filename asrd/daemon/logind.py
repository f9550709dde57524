"""Suspend and resume: logind's two signals, and the delay inhibitor that buys a few seconds before
the first.

Knows logind's interface on the system bus; does not know what there is to do before sleep. Runs in
the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dbus_fast import Message
    from dbus_fast.aio import MessageBus

logger = logging.getLogger("asrd")

BUS = "org.freedesktop.DBus"
LOGIND = "org.freedesktop.login1"
MANAGER = "org.freedesktop.login1.Manager"
PATH = "/org/freedesktop/login1"

MARGIN = 0.5
"""Seconds before logind's limit at which the inhibitor is let go, whatever `on_sleep` still
does."""

ANSWER = 10.0
"""Seconds that the bus and logind get to answer."""

RETRY = (1.0, 60.0)
"""Seconds between attempts to find a bus again that was there before: first and longest."""

Act = Callable[[], Awaitable[None]]


class SleepInhibitor:
    """Calls `on_sleep` before the machine sleeps and `on_wake` after it woke, while `start` ..
    `stop`.

    `on_sleep` may take as long as logind grants (five seconds unless set otherwise) and is
    cancelled then; `on_wake` is cancelled when the machine is about to sleep again. Without a bus
    or a logind it does nothing.
    """

    def __init__(self, on_sleep: Act, on_wake: Act) -> None:
        self._on_sleep, self._on_wake = on_sleep, on_wake
        self._inhibitor: int | None = None
        self._owner = ""
        self._asleep = False
        """Whether sleep was announced, and waking was not."""
        self._limit = 0.0
        self._signals: asyncio.Queue[bool | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._waking: asyncio.Task[None] | None = None

    @property
    def held(self) -> bool:
        """Whether logind waits for us before it lets the machine sleep."""
        return self._inhibitor is not None

    async def start(self) -> bool:
        """Take the inhibitor and listen from now on; return whether there is a logind."""
        try:
            bus = await self._connect()
        except (
            Exception
        ) as error:  # whatever a half-configured bus answers: dictation goes on without
            logger.debug(
                "no logind, so suspend comes unannounced: %s", error or type(error).__name__
            )
            return False
        self._task = asyncio.create_task(self._run(bus), name="logind")
        return True

    async def stop(self) -> None:
        """Listen no more and let the inhibitor go."""
        for task in (self._task, self._waking):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self._task = self._waking = None
        self._release()

    async def _run(self, bus: MessageBus) -> None:
        while True:
            try:
                await self._follow(bus)
            finally:
                bus.disconnect()
            logger.warning("the system bus is gone, and suspend comes unannounced until it is back")
            self._release()
            bus = await self._reconnect()
            self._awake()  # whoever finds a bus again is awake, and what said so went with the old one

    async def _follow(self, bus: MessageBus) -> None:
        """Act on signals, one after another, until the bus is gone."""
        watch = asyncio.create_task(self._until_gone(bus))
        try:
            while (sleeping := await self._signals.get()) is not None:
                if sleeping:
                    await self._before_sleep()
                else:
                    await self._after_sleep(bus)
        finally:
            watch.cancel()

    async def _until_gone(self, bus: MessageBus) -> None:
        wait: Callable[[], Awaitable[None]] = bus.wait_for_disconnect
        try:
            await wait()
        except (OSError, EOFError) as error:
            logger.debug("the system bus: %s", error)
        self._signals.put_nowait(None)

    async def _reconnect(self) -> MessageBus:
        delay, longest = RETRY
        while True:
            await asyncio.sleep(delay)
            try:
                return await self._connect()
            except Exception as error:
                logger.debug("no logind yet: %s", error or type(error).__name__)
                delay = min(2 * delay, longest)

    async def _connect(self) -> MessageBus:
        from dbus_fast import BusType
        from dbus_fast.aio import MessageBus

        bus = await MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=True).connect()
        try:
            self._signals = asyncio.Queue()
            bus.add_message_handler(self._received)
            for rule in (
                f"type='signal',sender='{LOGIND}',path='{PATH}',interface='{MANAGER}',member='PrepareForSleep'",
                f"type='signal',sender='{BUS}',member='NameOwnerChanged',arg0='{LOGIND}'",
            ):
                await _call(bus, BUS, "/org/freedesktop/DBus", "AddMatch", "s", rule)
            await self._inhibit(bus)
        except BaseException:
            bus.disconnect()
            raise
        return bus

    def _received(self, message: Message) -> None:
        # Any user may send us a signal of this name; only that of logind itself counts.
        if (
            message.member == "PrepareForSleep"
            and message.interface == MANAGER
            and message.sender == self._owner
        ):
            self._signals.put_nowait(bool(message.body[0]))
        elif (
            message.member == "NameOwnerChanged"
            and message.sender == BUS
            and message.body[0] == LOGIND
        ):
            self._owner = message.body[2]
            if self._owner:  # a new logind knows nothing of our inhibitor
                self._signals.put_nowait(False)

    async def _before_sleep(self) -> None:
        if self._waking is not None:
            self._waking.cancel()
        self._asleep = True
        try:
            async with asyncio.timeout(self._limit):
                await self._on_sleep()
        except TimeoutError:
            logger.warning(
                "not ready to sleep within %.1f s, the time that logind allows", self._limit
            )
        except Exception:
            logger.exception("getting ready to sleep failed")
        finally:
            self._release()

    async def _after_sleep(self, bus: MessageBus) -> None:
        self._release()
        try:
            await self._inhibit(bus)
        except Exception as error:
            logger.warning(
                "logind grants no inhibitor, and the next suspend comes unannounced: %s", error
            )
        self._awake()

    def _awake(self) -> None:
        """Get ready after sleep, where there was one."""
        if self._asleep:
            self._asleep = False
            self._waking = asyncio.create_task(self._wake(), name="wake")

    async def _wake(self) -> None:
        try:
            await self._on_wake()
        except Exception:
            logger.exception("getting ready after sleep failed")

    async def _inhibit(self, bus: MessageBus) -> None:
        reply = await _call(bus, BUS, "/org/freedesktop/DBus", "GetNameOwner", "s", LOGIND)
        self._owner = reply.body[0]
        properties = f"{BUS}.Properties"
        reply = await _call(
            bus, LOGIND, PATH, "Get", "ss", MANAGER, "InhibitDelayMaxUSec", interface=properties
        )
        seconds = reply.body[0].value / 1e6
        self._limit = max(seconds - MARGIN, seconds / 2)
        words = ("sleep", "asrd", "finishes the text and frees the GPU", "delay")
        reply = await _call(bus, LOGIND, PATH, "Inhibit", "ssss", *words, interface=MANAGER)
        self._inhibitor = reply.unix_fds[reply.body[0]]

    def _release(self) -> None:
        if self._inhibitor is not None:
            os.close(self._inhibitor)
            self._inhibitor = None


async def _call(
    bus: MessageBus,
    name: str,
    path: str,
    member: str,
    signature: str,
    *body: Any,
    interface: str = "",
) -> Message:
    from dbus_fast import Message, MessageType

    call = Message(
        destination=name,
        path=path,
        interface=interface or name,
        member=member,
        signature=signature,
        body=list(body),
    )
    async with asyncio.timeout(ANSWER):
        reply = await bus.call(call)
    if reply is None or reply.message_type is MessageType.ERROR:
        raise ConnectionError(
            f"{member}: {reply.error_name} {reply.body}" if reply else f"{member}: the bus closed"
        )
    return reply
