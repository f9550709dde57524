"""Where text goes: standard output, the focused window, the clipboard, a command.

A sink either delivers a text exactly or raises SinkError; no text is ever in a log line, an error
or an argument list. What can type is not guessed from the desktop's name: each way is tried, its
success checked as far as it can be, and the next one follows; the last is the clipboard with a
notification. Runs in the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import logging
import os
import select
import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from asrd import journal
from asrd.config.settings import SINKS, Settings
from asrd.desktop import clipboard, session
from asrd.desktop.keyboard import (
    CHORDS,
    UTF8,
    PartlyError,
    UnprovedError,
    by_pasting,
    by_wtype,
    by_xdotool,
)
from asrd.desktop.notifications import Desktop
from asrd.desktop.programs import run
from asrd.desktop.selections import Environment
from asrd.desktop.session import kind
from asrd.errors import ConfigError, SinkError, UncertainError, nearest
from asrd.recordings.sink_names import sink_name, sink_names

log = logging.getLogger("asrd.sinks")


OUTPUT_CHECK_SECONDS = 0.02
"""Interval of the checks of a full output, where the system does not report sooner that it has room."""

FIRST_SIGNAL_CODE = 128
"""First exit code by which a shell reports that a signal ended its command."""


class Sink(Protocol):
    """Somewhere a text can go."""

    name: str
    key: str
    """Its setting, which identifies it in another run; that of a command may contain a secret."""

    async def deliver(self, text: str) -> str | None:
        """Deliver a text within a time limit of its own; may be cancelled.

        Returns a sentence with the place of the text, if that is not where it was sent.

        Raises:
            SinkError: the text did not arrive.
            UncertainError: it may have arrived, or some of it.
        """


def sinks(settings: Settings, on_desktop: Desktop | None = None) -> list[Sink]:
    """Return the sinks that the settings name; the journal is the daemon's own.

    Raises:
        ConfigError: a name that is none.
    """
    desktop = on_desktop or Desktop(settings.notify, settings.cues)
    made: list[Sink] = []
    commands: list[CommandSink] = []
    for name in dict.fromkeys(settings.sinks):
        if name.startswith("command:") and name.removeprefix("command:").strip():
            commands.append(CommandSink(name.removeprefix("command:").strip()))
            made.append(commands[-1])
        elif name == "stdout":
            made.append(StdoutSink())
        elif name == "clipboard":
            made.append(ClipboardSink())
        elif name in ("type", "paste"):
            made.append(WindowSink(name, desktop, settings.type_delay))
        elif name not in ("journal", "none"):
            raise ConfigError(f"sinks names {name!r}, which is not a sink", nearest(name, SINKS))
    names = sink_names(command.key for command in commands)
    for command in commands:
        command.name = names[command.key]
    return made


class StdoutSink:
    """One line on standard output for each text; spaces around it are left out."""

    name = key = "stdout"

    def __init__(self, limit: float = 5.0) -> None:
        self.limit = limit

    async def deliver(self, text: str) -> None:
        """Write a line; a reader that stopped reading is given `limit` seconds."""
        rest = (text.lstrip(" ").rstrip(" \n") + "\n").encode()
        try:
            sys.stdout.flush()
            descriptor = sys.stdout.fileno()
        except io.UnsupportedOperation:  # replaced by something that is no file
            sys.stdout.write(rest.decode())
            return
        except OSError as error:
            raise SinkError(f"standard output cannot be written: {error.strerror}") from error
        waited, whole = 0.0, len(rest)
        while rest:
            if select.select([], [descriptor], [], 0)[1]:
                try:
                    rest = rest[os.write(descriptor, rest[: select.PIPE_BUF]) :]
                except OSError as error:
                    message = f"standard output cannot be written: {error.strerror}"
                    raise _failed(len(rest) < whole, message) from error
            elif waited >= self.limit:
                message = f"no program has read standard output for {self.limit:.0f} s"
                raise _failed(len(rest) < whole, message)
            else:
                began = time.monotonic()
                await _room(descriptor)
                waited += time.monotonic() - began


def _failed(partly: bool, message: str) -> SinkError:
    """Return the error of a text that a sink did not get; `partly`: it may have some of it."""
    if partly:
        return UncertainError(message)
    return SinkError(message)


async def _room(descriptor: int) -> None:
    """Wait until an output may have room, OUTPUT_CHECK_SECONDS at most."""
    loop, room = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_writer(descriptor, room.set)
    except OSError:  # an output that the system does not watch, such as a file
        await asyncio.sleep(OUTPUT_CHECK_SECONDS)
        return
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(OUTPUT_CHECK_SECONDS):
                await room.wait()
    finally:
        loop.remove_writer(descriptor)


class CommandSink:
    """A command line of the shell with the text on its standard input.

    Args:
        line: what /bin/sh runs, in a process group of its own; its output goes nowhere, as it might
            hold the text.
        limit: seconds after which the group is ended, with SIGTERM and half a second later SIGKILL.
    """

    def __init__(self, line: str, limit: float = 10.0) -> None:
        self.line = line
        self.limit = limit
        self.key = f"command:{line}"
        self.name = sink_name(self.key)  # arguments may be secret

    async def deliver(self, text: str) -> None:
        """Run the command; success is exit code 0."""
        environment = await _session()
        try:
            ended = await run(
                "/bin/sh",
                "-c",
                self.line,
                environment=environment,
                text=text.encode(),
                limit=self.limit,
                grace=0.5,
            )
        except SinkError as error:
            if isinstance(error.__cause__, TimeoutError):
                raise UncertainError(
                    f"{self.name} did not end within {self.limit:.0f} s and was stopped",
                    "run slow commands in the background: 'command:... &'",
                ) from error
            raise
        if ended.code:
            raise self._error(ended.code)

    def _error(self, code: int) -> SinkError:
        """Return the error for an exit code other than 0, or a signal as a negative one."""
        hint = "run it in a terminal with a text on its standard input"
        if 0 < code < FIRST_SIGNAL_CODE:
            return SinkError(f"{self.name} ended with exit code {code}", hint)
        # A command that was killed may have had the text before.
        ending = f"exit code {code}"
        if code < 0:
            ending = f"signal {-code}"
        return UncertainError(f"{self.name} ended with {ending}", hint)


class ClipboardSink:
    """The clipboard; what was in it is replaced."""

    name = key = "clipboard"

    async def deliver(self, text: str) -> None:
        """Put the text into the clipboard."""
        await clipboard.put(text, await _session())


IN_CLIPBOARD = "The text is in the clipboard"
"""Summary of the notification; a later one replaces it."""

Way = tuple[str, Callable[[], Awaitable[None]]]
"""A way into the focused window: what to call it, and the try."""


class WindowSink:
    """The focused window, by typing or by pasting.

    Args:
        name: "type" prefers keys, "paste" prefers the clipboard and a key chord.
        desktop: notifies a person that the text is in the clipboard because nothing could type.
        delay: milliseconds between typed characters.
    """

    def __init__(self, name: str, desktop: Desktop, delay: int = 12) -> None:
        self.name = self.key = name
        self.way = ""
        self._desktop = desktop
        self._delay = delay
        self._turn = asyncio.Lock()

    async def deliver(self, text: str) -> str | None:
        """Try each way that this session could have; the last is the clipboard and a
        notification."""
        async with self._turn:  # a retry may want the clipboard while it is lent for another text
            return await self._deliver(text)

    async def _deliver(self, text: str) -> str | None:
        environment = {**await _session(), **UTF8}
        failures = []
        for way, attempt in self._ways(text, environment):
            try:
                await attempt()
            except PartlyError:
                raise
            except UnprovedError as error:
                return await self._report_unproved(error)
            except SinkError as error:
                log.debug("%s: %s", way, error)
                failures.append(error.message)
            else:
                self._log_way(way)
                return None
        return await self._leave(text, environment, failures)

    def _ways(self, text: str, environment: Environment) -> list[Way]:
        system = kind(environment)
        typing: dict[str, list[Way]] = {
            "wayland": [("wtype", lambda: by_wtype(text, environment, self._delay))],
            "x11": [("xdotool", lambda: by_xdotool(text, environment, self._delay))],
        }
        pasting: list[Way] = []
        for chord in CHORDS[system]:
            if shutil.which(chord, path=environment.get("PATH")):
                attempt = functools.partial(by_pasting, text, chord, environment)
                pasting.append((f"paste by {chord}", attempt))
        if self.name == "type":
            return typing.get(system, []) + pasting
        return pasting + typing.get(system, [])

    async def _leave(self, text: str, environment: Environment, failures: list[str]) -> str:
        reasons = "; ".join(dict.fromkeys(failures)) or "no program for it is installed"
        hint = "asrd doctor shows what this session needs"
        if not kind(environment):
            raise SinkError("there is no graphical session to type into", hint)
        try:
            await clipboard.put(text, environment)
        except SinkError as error:
            raise SinkError(
                f"nothing can type here ({reasons}), and {error.message}", hint
            ) from error
        self._log_way(f"clipboard, as nothing can type here ({reasons})")
        await self._desktop.notify(
            IN_CLIPBOARD, "Nothing could type it here: paste it with Ctrl+V."
        )
        return IN_CLIPBOARD.lower()

    async def _report_unproved(self, error: UnprovedError) -> str:
        """Report that a text was pasted and may be missing; it is in the clipboard already."""
        way = f"clipboard, as {error.message}"
        journal.event(
            "in-clipboard",
            f"{self.name}: {error.message}; {error.hint}",
            logging.WARNING,
            sink=self.name,
        )
        # Wayland cannot prove it the next time either: one notification is enough.
        notified = way == self.way and "Wayland" in way
        self._log_way(way)
        if not notified:
            body = "It was pasted, but the window may not have accepted it. If it is missing, press Ctrl+V."
            await self._desktop.notify(IN_CLIPBOARD, body)
        return f"{IN_CLIPBOARD.lower()}, as {error.message}"

    def _log_way(self, way: str) -> None:
        if way != self.way:
            log.info("%s goes through %s", self.name, way)
        self.way = way


async def _session() -> dict[str, str]:
    return await asyncio.to_thread(session.session)
