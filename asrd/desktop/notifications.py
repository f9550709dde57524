"""Notifications over D-Bus, and audible cues."""

from __future__ import annotations

import array
import asyncio
import contextlib
import html
import io
import logging
import math
import os
import shutil
import socket
import tempfile
import wave
from collections.abc import Mapping
from typing import Any

from asrd.desktop.programs import run
from asrd.errors import SinkError
from asrd.text.characters import printable

log = logging.getLogger("asrd.desktop")

URGENCY = {"low": 0, "normal": 1, "critical": 2}

CUES = {"start": (660, 880), "stop": (880, 660), "cancel": (880, 440), "error": (330, 220)}
"""Cue -> the two tones of it, in hertz."""

ICON = "audio-input-microphone"

PLAYERS = ("pw-play", "paplay", "aplay")


class Desktop:
    """What a person sees and hears of the daemon; nothing here can fail it.

    Args:
        notify: show notifications.
        cues: play sound cues.
    """

    def __init__(self, notify: bool = True, cues: bool = False) -> None:
        self.notifications = notify
        self.cues = cues
        self._shown: dict[str, int] = {}
        self._playing: set[asyncio.Task[None]] = set()

    async def notify(self, summary: str, body: str = "", urgency: str = "normal") -> bool:
        """Show a notification, in place of the last one with this summary; return whether a service
        took it."""
        if not self.notifications:
            return False
        try:
            async with asyncio.timeout(2.0):
                shown = html.escape(printable(body), quote=False)
                identity = await _notify(
                    printable(summary, breaks=False), shown, urgency, self._shown.get(summary, 0)
                )
        except Exception as error:
            log.debug("no notification: %s", f"{type(error).__name__}: {error}")
            return False
        self._shown[summary] = identity
        return True

    def cue(self, name: str) -> None:
        """Start to play a cue of `CUES` and return at once."""
        if self.cues and name in CUES:
            with contextlib.suppress(RuntimeError):  # no loop runs any more
                task = asyncio.get_running_loop().create_task(_play(name))
                self._playing.add(task)
                task.add_done_callback(self._playing.discard)

    async def close(self) -> None:
        """Let the cue that is playing end."""
        await asyncio.gather(*self._playing, return_exceptions=True)


def bus_address(environment: Mapping[str, str]) -> str:
    """Return where the session bus listens, or "" where nothing says so."""
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    return environment.get("DBUS_SESSION_BUS_ADDRESS") or (
        f"unix:path={runtime}/bus" if runtime else ""
    )


def bus_answers(environment: Mapping[str, str]) -> bool:
    """Return whether something listens where the session bus is named; True where that is no file
    of this machine."""
    path = bus_address(environment).partition("unix:path=")[2].split(",")[0].split(";")[0]
    if not path:
        return True
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


async def _notify(summary: str, body: str, urgency: str, replaces: int) -> int:
    """Show a notification; return its id."""
    from dbus_fast import Variant

    hints = {"urgency": Variant("y", URGENCY[urgency]), "desktop-entry": Variant("s", "asrd")}
    reply = await _call(
        "Notify", "susssasa{sv}i", ["asrd", replaces, ICON, summary, body, [], hints, -1]
    )
    return int(reply[0])


async def notification_service() -> str:
    """Return the name of the service that shows notifications, "" without one."""
    try:
        async with asyncio.timeout(2.0):
            return str((await _call("GetServerInformation", "", []))[0])
    except Exception as error:
        log.debug("no notification service: %s", f"{type(error).__name__}: {error}")
        return ""


async def _call(member: str, signature: str, body: list[Any]) -> list[Any]:
    """Call the session bus's notification service (Desktop Notifications Specification 1.2); return
    its answer."""
    from dbus_fast import Message, MessageType
    from dbus_fast.aio import MessageBus

    if not (address := bus_address(os.environ)):
        raise ConnectionError("no session bus is named in the environment")
    name, path = "org.freedesktop.Notifications", "/org/freedesktop/Notifications"
    bus = await MessageBus(bus_address=address).connect()
    try:
        reply = await bus.call(
            Message(
                destination=name,
                path=path,
                interface=name,
                member=member,
                signature=signature,
                body=body,
            )
        )
    finally:
        bus.disconnect()
    if reply is None or reply.message_type is MessageType.ERROR:
        raise ConnectionError("no answer" if reply is None else str(reply.error_name))
    return list(reply.body)


async def _play(name: str) -> None:
    """Play a cue by the first player that can."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        file.write(tones(*CUES[name]))
        file.flush()
        for player in filter(shutil.which, PLAYERS):
            try:
                if (await run(player, file.name, environment=os.environ, limit=2.0)).code == 0:
                    return
            except SinkError as error:
                log.debug("no sound cue: %s", error)
    log.debug("no sound cue: none of %s played it", ", ".join(PLAYERS))


def tones(*hertz: float, seconds: float = 0.07, rate: int = 48_000) -> bytes:
    """Return soft tones, one after the other, as a mono 16-bit WAV file."""
    count = round(seconds * rate)
    samples = array.array("h")
    for pitch in hertz:
        for step in range(count):
            level = 6000 * math.sin(math.pi * step / count) ** 2
            samples.append(round(level * math.sin(2 * math.pi * pitch * step / rate)))
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setparams((1, 2, rate, len(samples), "NONE", ""))
        file.writeframes(samples.tobytes())
    return stream.getvalue()
