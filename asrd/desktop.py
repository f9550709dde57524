"""The graphical session around the daemon: its variables, its small programs, notifications and sound cues.

A user service starts before the compositor and outlives it, so nothing here is remembered: variables, programs and the
bus are looked up each time. Knows nothing of what is said; no text of a take passes through notifications or cues.
Runs in the daemon.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import html
import io
import logging
import math
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import wave
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .characters import printable
from .errors import SinkError

log = logging.getLogger("asrd.desktop")

URGENCY = {"low": 0, "normal": 1, "critical": 2}

CUES = {"start": (660, 880), "stop": (880, 660), "cancel": (880, 440), "error": (330, 220)}
"""Cue -> the two tones of it, in hertz."""

ICON = "audio-input-microphone"

PLAYERS = ("pw-play", "paplay", "aplay")


def session(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables with which a program reaches the graphical session.

    The process's own, and where they name no display that lives, the user manager's over them: that is where a
    compositor announces itself after the service was started. Takes milliseconds, at most 2 s.
    """
    own = dict(os.environ if environment is None else environment)
    return own if kind(own) else own | _managers(own)


def kind(environment: Mapping[str, str]) -> str:
    """Return "wayland", "x11" or, where no display is named or the named one is gone, ""."""
    wayland, x11 = _wayland_lives(environment), bool(environment.get("DISPLAY"))
    if wayland and not (x11 and environment.get("XDG_SESSION_TYPE") == "x11"):
        return "wayland"
    return "x11" if x11 and environment.get("XDG_SESSION_TYPE") != "wayland" else ""  # else it is XWayland's


def _wayland_lives(environment: Mapping[str, str]) -> bool:
    name = environment.get("WAYLAND_DISPLAY", "")
    return bool(name) and os.path.exists(os.path.join(environment.get("XDG_RUNTIME_DIR", "/"), name))


def _managers(own: Mapping[str, str]) -> dict[str, str]:
    """Return the display's variables as the user manager knows them; {} without one."""
    try:
        shown = subprocess.run(
            ["systemctl", "--user", "show-environment"],
            env=own, capture_output=True, encoding="utf-8", errors="surrogateescape", timeout=2, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        log.debug("no variables from the user manager: %s", error)
        return {}
    wanted = ("DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "XDG_SESSION_TYPE", "XDG_CURRENT_DESKTOP", "SWAYSOCK")
    return {name: value for name, value in _assignments(shown) if name in wanted}


def _assignments(lines: str) -> Iterator[tuple[str, str]]:
    """Yield what `NAME=value` lines say, quoted as systemd quotes: bare, or $'...' with backslashes."""
    for line in lines.splitlines():
        name, _, value = line.partition("=")
        if value.startswith("$'"):
            value = value[2:-1].encode("latin-1", "backslashreplace").decode("unicode_escape")
        elif value[:1] in ("'", '"'):
            value = "".join(shlex.split(value))
        yield name, value


class Ended(NamedTuple):
    """How a program ended: its exit code and what it wrote."""

    code: int
    output: bytes
    complaint: str


async def run(
    *words: str, environment: Mapping[str, str], text: bytes = b"", limit: float = 5.0, grace: float = 0.0
) -> Ended:
    """Run a small program to its end, `text` on its standard input.

    Input and output are memory files: the text is in no argument list and on no disk, a program that reads nothing
    blocks nobody, and one that leaves a child behind (wl-copy does, to hold the clipboard) keeps nobody waiting.
    Cancelled or past `limit` seconds, the program is ended with its whole process group; the latter after SIGTERM and
    `grace` seconds.

    Raises:
        SinkError: not installed, not startable, or past its limit; the last as TimeoutError's cause.
    """
    with memory_file(text) as given, memory_file() as output, memory_file() as complaint:
        try:
            process = await asyncio.create_subprocess_exec(
                *words, stdin=given, stdout=output, stderr=complaint, env=dict(environment), start_new_session=True
            )
        except FileNotFoundError as error:
            raise SinkError(f"{words[0]} is not installed") from error
        except OSError as error:
            raise SinkError(f"{words[0]} cannot be started: {error.strerror}") from error
        try:
            async with asyncio.timeout(limit):  # wait_for loses a cancellation in 3.11
                await process.wait()
        except TimeoutError as error:
            await end(process, grace)
            raise SinkError(f"{words[0]} did not end within {limit:.0f} s and was stopped") from error
        except asyncio.CancelledError:
            await end(process)
            raise
        return Ended(process.returncode or 0, _content(output), _content(complaint).decode(errors="replace"))


async def end(process: asyncio.subprocess.Process, grace: float = 0.0) -> None:
    """End a program with its whole process group: SIGTERM and `grace` seconds where there is grace, then SIGKILL."""
    with contextlib.suppress(ProcessLookupError):
        if grace:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await process.wait()
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


@contextlib.contextmanager
def memory_file(content: bytes = b"") -> Iterator[int]:
    """A file that is only in memory, at its beginning, as a descriptor."""
    descriptor = os.memfd_create("asrd")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as stream:
            stream.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _content(descriptor: int) -> bytes:
    with os.fdopen(os.dup(descriptor), "rb") as stream:
        stream.seek(0)
        return stream.read()


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
        """Show a notification, in place of the last one with this summary; return whether a service took it."""
        if not self.notifications:
            return False
        try:
            async with asyncio.timeout(2.0):
                shown = html.escape(printable(body), quote=False)
                identity = await _notify(printable(summary, breaks=False), shown, urgency, self._shown.get(summary, 0))
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
    return environment.get("DBUS_SESSION_BUS_ADDRESS") or (f"unix:path={runtime}/bus" if runtime else "")


def bus_answers(environment: Mapping[str, str]) -> bool:
    """Return whether something listens where the session bus is named; True where that is no file of this machine."""
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
    reply = await _call("Notify", "susssasa{sv}i", ["asrd", replaces, ICON, summary, body, [], hints, -1])
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
    """Call the session bus's notification service (Desktop Notifications Specification 1.2); return its answer."""
    from dbus_fast import Message, MessageType
    from dbus_fast.aio import MessageBus

    if not (address := bus_address(os.environ)):
        raise ConnectionError("no session bus is named in the environment")
    name, path = "org.freedesktop.Notifications", "/org/freedesktop/Notifications"
    bus = await MessageBus(bus_address=address).connect()
    try:
        reply = await bus.call(
            Message(destination=name, path=path, interface=name, member=member, signature=signature, body=body)
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
