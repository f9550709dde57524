"""A logind that is a real program on a real bus: grants inhibitors, sends its signals when told to
on stdin.

Lines in: "sleep", "wake", "forged" (a stranger's signal, to everybody by name), "quit".
Lines out: "ready", "inhibit WHAT WHO MODE", "released", "forged".
"""

from __future__ import annotations

import asyncio
import os
import sys

from dbus_fast import BusType, Message, PropertyAccess
from dbus_fast.aio import MessageBus
from dbus_fast.service import ServiceInterface, dbus_property, method, signal

MANAGER = "org.freedesktop.login1.Manager"


def say(line: str) -> None:
    print(line, flush=True)


class Manager(ServiceInterface):
    """The part of org.freedesktop.login1.Manager that matters for sleep."""

    def __init__(self, delay: float) -> None:
        super().__init__(MANAGER)
        self.delay = delay

    @method()
    def Inhibit(self, what: "s", who: "s", why: "s", mode: "s") -> "h":  # noqa: F821, N802, UP037
        ours, theirs = os.pipe()
        loop = asyncio.get_running_loop()
        loop.call_later(0.1, os.close, theirs)  # by then the answer that carries it is on its way
        loop.add_reader(ours, self.closed, ours)
        say(f"inhibit {what} {who} {mode}")
        return theirs

    def closed(self, descriptor: int) -> None:
        """The other side let the inhibitor go: its end of the pipe is closed everywhere."""
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        say("released")

    @dbus_property(access=PropertyAccess.READ)
    def InhibitDelayMaxUSec(self) -> "t":  # noqa: F821, N802, UP037
        return round(self.delay * 1e6)

    @signal()
    def PrepareForSleep(self, start: bool) -> "b":  # noqa: F821, N802, UP037
        return start


async def forge(stranger: MessageBus) -> None:
    """Send logind's signal in a stranger's name straight to every connection there is."""
    names = await stranger.call(
        Message(
            "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "ListNames"
        )
    )
    for name in names.body[0]:
        fake = Message.new_signal(
            "/org/freedesktop/login1", MANAGER, "PrepareForSleep", "b", [True]
        )
        fake.destination = name
        await stranger.send(fake)


async def main() -> None:
    bus = await MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=True).connect()
    manager = Manager(float(sys.argv[1]))
    bus.export("/org/freedesktop/login1", manager)
    await bus.request_name("org.freedesktop.login1")
    stranger = await MessageBus(bus_type=BusType.SYSTEM).connect()
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    say("ready")
    while (line := (await lines.readline()).decode().strip()) not in ("", "quit"):
        if line == "forged":
            await forge(stranger)
            say("forged")
        else:
            manager.PrepareForSleep(line == "sleep")
    bus.disconnect()


asyncio.run(main())
