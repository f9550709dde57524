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
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from asrd import hints, journal
from asrd.config.settings import SINKS, Settings
from asrd.desktop import clipboard, notifications, session
from asrd.desktop.keyboard import (
    CHORDS,
    UTF8,
    Check,
    PartlyError,
    UnprovedError,
    ask,
    by_pasting,
    by_wtype,
    by_xdotool,
    probe,
)
from asrd.desktop.notifications import Desktop
from asrd.desktop.programs import run
from asrd.desktop.selections import SELECTIONS, Environment, why
from asrd.desktop.session import kind
from asrd.errors import ConfigError, SinkError, UncertainError, nearest
from asrd.hints import install
from asrd.recordings.sink_names import sink_name, sink_names

log = logging.getLogger("asrd.sinks")


LOOK_SECONDS = 0.02
"""Between two looks at an output that is full, where the system does not tell sooner that it is
not."""

SIGNALLED = 128
"""From this exit code on a shell tells that a signal ended its command."""


class Sink(Protocol):
    """Somewhere a text can go."""

    name: str
    key: str
    """Its setting, which is known again in another run; a command's may hold what is secret."""

    async def deliver(self, text: str) -> str | None:
        """Deliver a text within a time limit of its own; may be cancelled.

        Return where the text is instead, if it is not where it was sent, as a sentence.

        Raises:
            SinkError: the text did not arrive.
            UncertainError: it may have arrived, or some of it.
        """


def sinks(settings: Settings, on_desktop: Desktop | None = None) -> list[Sink]:
    """Return the sinks that the settings name; the journal is the daemon's own.

    Raises:
        ConfigError: a name that is none.
    """
    shown = on_desktop or Desktop(settings.notify, settings.cues)
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
            made.append(WindowSink(name, shown, settings.type_delay))
        elif name not in ("journal", "none"):
            raise ConfigError(f"sinks names {name!r}, which is no sink", nearest(name, SINKS))
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
                    kind = SinkError if len(rest) == whole else UncertainError
                    raise kind(f"standard output cannot be written: {error.strerror}") from error
            elif waited >= self.limit:
                kind = SinkError if len(rest) == whole else UncertainError
                raise kind(f"nobody has read standard output for {self.limit:.0f} s")
            else:
                began = time.monotonic()
                await _room(descriptor)
                waited += time.monotonic() - began


async def _room(descriptor: int) -> None:
    """Wait until somebody may have read what was written, and no longer than until the next
    look."""
    loop, room = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_writer(descriptor, room.set)
    except OSError:  # of what the system tells nothing, such as a file
        await asyncio.sleep(LOOK_SECONDS)
        return
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
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
                    "put what takes longer into the background: 'command:... &'",
                ) from error
            raise
        if ended.code:
            ending = f"exit code {ended.code}" if ended.code > 0 else f"signal {-ended.code}"
            refused = (
                0 < ended.code < SIGNALLED
            )  # a code says so; whatever was killed may have had the text before
            kind = SinkError if refused else UncertainError
            raise kind(
                f"{self.name} ended with {ending}",
                "run it in a terminal with a text on its standard input",
            )


class ClipboardSink:
    """The clipboard; what was in it is replaced."""

    name = key = "clipboard"

    async def deliver(self, text: str) -> None:
        """Put the text into the clipboard."""
        await clipboard.put(text, await _session())


IN_CLIPBOARD = "The text is in the clipboard"
"""The summary of the notification; a later one takes its place."""

Way = tuple[str, Callable[[], Awaitable[None]]]
"""A way into the focused window: what to call it, and the try."""


class WindowSink:
    """The focused window, by typing or by pasting.

    Args:
        name: "type" prefers keys, "paste" prefers the clipboard and a key chord.
        shown: tells a person that the text is in the clipboard because nothing could type.
        delay: milliseconds between typed characters.
    """

    def __init__(self, name: str, shown: Desktop, delay: int = 12) -> None:
        self.name = self.key = name
        self.way = ""
        self._shown = shown
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
                return await self._tell_unproved(error)
            except SinkError as error:
                log.debug("%s: %s", way, error)
                failures.append(error.message)
            else:
                self._went(way)
                return None
        return await self._leave(text, environment, failures)

    def _ways(self, text: str, environment: Environment) -> list[Way]:
        system = kind(environment)
        typing: dict[str, list[Way]] = {
            "wayland": [("wtype", lambda: by_wtype(text, environment, self._delay))],
            "x11": [("xdotool", lambda: by_xdotool(text, environment, self._delay))],
        }
        pasting: list[Way] = [
            (f"paste by {chord}", functools.partial(by_pasting, text, chord, environment))
            for chord in CHORDS[system]
            if shutil.which(chord, path=environment.get("PATH"))
        ]
        typed = typing.get(system, [])
        return typed + pasting if self.name == "type" else pasting + typed

    async def _leave(self, text: str, environment: Environment, failures: list[str]) -> str:
        reasons = "; ".join(dict.fromkeys(failures)) or "no program for it is installed"
        hint = "asrd doctor says what this session needs"
        if not kind(environment):
            raise SinkError("there is no graphical session to type into", hint)
        try:
            await clipboard.put(text, environment)
        except SinkError as error:
            raise SinkError(
                f"nothing can type here ({reasons}), and {error.message}", hint
            ) from error
        self._went(f"clipboard, as nothing can type here ({reasons})")
        await self._shown.notify(IN_CLIPBOARD, "Nothing could type it here: paste it with Ctrl+V.")
        return IN_CLIPBOARD.lower()

    async def _tell_unproved(self, error: UnprovedError) -> str:
        """Say that a text was pasted and may be missing; it is in the clipboard already."""
        way = f"clipboard, as {error.message}"
        journal.event(
            "in-clipboard",
            f"{self.name}: {error.message}; {error.hint}",
            logging.WARNING,
            sink=self.name,
        )
        known = (
            way == self.way and "Wayland" in way
        )  # it cannot tell the next time either: once is enough
        self._went(way)
        if not known:
            body = "It was pasted, but the window was not seen to take it. If it is missing, press Ctrl+V."
            await self._shown.notify(IN_CLIPBOARD, body)
        return f"{IN_CLIPBOARD.lower()}, as {error.message}"

    def _went(self, way: str) -> None:
        if way != self.way:
            log.info("%s goes through %s", self.name, way)
        self.way = way


async def _session() -> dict[str, str]:
    return await asyncio.to_thread(session.session)


def survey(environment: Mapping[str, str] | None = None) -> list[Check]:
    """Return what works in this session and what does not, by trying without typing; takes at most
    seconds.

    The first is the verdict on the sink `type`; the others are what it and the other sinks stand
    on.
    """
    here = {**session.session(environment), **UTF8}
    system = kind(here)
    tools: list[Check] = []
    for name in CHORDS[system]:
        tools.append(probe(name, here))
        if tools[-1].works:
            break
    board = _board(system, here)
    typing = next((tool.name for tool in tools if tool.works), "")
    by_pasting_only = typing in ("dotool", "ydotool")
    if typing and (board.works or not by_pasting_only):
        alone = typing == "xdotool" and not board.works
        verdict = Check(
            "type",
            True,
            f"by {typing}" + (", ASCII on the US layout only" * alone),
            board.fix * alone,
        )
    else:
        fix = (
            (board.fix if typing else "")
            or next((tool.fix for tool in tools if tool.fix), "")
            or board.fix
        )
        where = (
            "to the clipboard, with a notification"
            if board.works
            else "nowhere: asrd last shows it"
        )
        verdict = Check("type", False, f"nothing can type here; text goes {where}", fix)
    return [verdict, _display(system, here), *tools, board, _notifications(), _cues()]


def _display(system: str, here: Environment) -> Check:
    if not system:
        variables = "WAYLAND_DISPLAY DISPLAY XDG_SESSION_TYPE XDG_CURRENT_DESKTOP"
        fix = f"in a terminal of the desktop: systemctl --user import-environment {variables}"
        fix = fix if hints.managed() else "start asrd in a terminal of the desktop: asrd run"
        return Check("session", False, "no WAYLAND_DISPLAY and no DISPLAY", fix)
    name = here.get("XDG_CURRENT_DESKTOP") or "unknown desktop"
    return Check(
        "session",
        True,
        f"{system}, {name}, {here['WAYLAND_DISPLAY' if system == 'wayland' else 'DISPLAY']}",
    )


def _board(system: str, here: Environment) -> Check:
    if not system:
        return Check("clipboard", False, "no session")
    tool, package = ("wl-copy", "wl-clipboard") if system == "wayland" else ("xclip", "xclip")
    if not shutil.which(tool, path=here.get("PATH")):
        return Check("clipboard", False, f"{tool} is not installed", install(package))
    listing = SELECTIONS[system][0].types
    code, complaint = ask(list(listing), here)
    refused = code and why(complaint)
    return Check("clipboard", not refused, f"by {tool}" + (why(complaint) if refused else ""))


def _notifications() -> Check:
    with ThreadPoolExecutor(1) as thread:  # the caller's thread may have a loop of its own
        service = thread.submit(lambda: asyncio.run(notifications.notification_service())).result()
    if service:
        return Check("notifications", True, f"shown by {service}")
    if not notifications.bus_address(os.environ):
        return Check(
            "notifications",
            False,
            "there is no session bus",
            "export XDG_RUNTIME_DIR=/run/user/$(id -u)",
        )
    if not notifications.bus_answers(os.environ):
        alone = "dbus-run-session -- asrd run"
        hint = f"systemctl --user start dbus, or: {alone}" if hints.managed() else alone
        return Check("notifications", False, "the session bus does not answer", hint)
    return Check(
        "notifications", False, "no service on the session bus shows them", install("dunst")
    )


def _cues() -> Check:
    player = next(filter(shutil.which, notifications.PLAYERS), "")
    return Check(
        "cues",
        bool(player),
        f"by {player}" if player else "no player",
        "" if player else install("alsa-utils"),
    )
