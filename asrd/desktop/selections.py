"""The selections of a display: how each is read and set, and what has a lent text and sees it being
fetched.

X11 tells which program fetches; Wayland does not. Knows wl-copy, xclip and `x11`; runs in the
daemon.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import sys
from collections.abc import Mapping
from typing import NamedTuple, Protocol, Self

from asrd import paths
from asrd.desktop.programs import end, memory_file
from asrd.errors import SinkError

TEXT = "text/plain;charset=utf-8"

ANSWER = 4.0
"""Seconds that a display, or whoever owns a selection, gets to answer; a frozen owner costs them,
then its content."""

X11 = (sys.executable, "-P", os.path.join(os.path.dirname(__file__), "x11.py"))
"""How `x11` is started, with `x11_environment`."""
"""The program that asks an X server what xclip cannot tell."""

Environment = Mapping[str, str]


class Selection(NamedTuple):
    """How one selection of one display system is read, set and cleared."""

    text: str
    types: tuple[str, ...]
    read: tuple[str, ...]
    put: tuple[str, ...]
    as_type: str
    clear: tuple[str, ...]


def _wayland(*flags: str) -> Selection:
    return Selection(
        text=TEXT,
        types=("wl-paste", *flags, "--list-types"),
        read=("wl-paste", *flags, "--no-newline", "--type"),
        put=("wl-copy", *flags),
        as_type="--type",
        clear=("wl-copy", *flags, "--clear"),
    )


def _x11(name: str) -> Selection:
    words = ("xclip", "-selection", name)
    return Selection(
        text="UTF8_STRING",
        types=(*words, "-out", "-target", "TARGETS"),
        read=(*words, "-out", "-target"),
        put=(*words, "-in"),
        as_type="-target",
        clear=(),
    )


SELECTIONS = {
    "wayland": (_wayland(), _wayland("--primary")),
    "x11": (_x11("clipboard"), _x11("primary")),
    "": (),
}
"""Display system -> the clipboard, then the primary selection."""

FETCHED = re.compile(rb"source\w*[@#]\d+\.send\(")
"""A line of wl-copy's trace of its protocol, under WAYLAND_DEBUG: somebody fetches."""

TOOK_FOCUS = b"get_toplevel("
"""Where only the focused program may set the clipboard, wl-copy opens a window for it, and closes
it."""


def x11_environment(environment: Environment) -> dict[str, str]:
    """Return what `x11` is started with: as given, and asrd and its libraries are found where they
    are here."""
    return {**environment, "PYTHONPATH": paths.python_path()}


def why(complaint: str) -> str:
    """Return what a program's complaint means, as the rest of a sentence; never its own words,
    which may quote."""
    known = {
        "virtual keyboard protocol": ": the compositor has no virtual keyboard",
        "a seat": ": the compositor has no seat",
        "open display": ": no X server answers",
        "connect to": ": no display answers",
        "uinput": ": /dev/uinput cannot be opened",
    }
    return next((meaning for part, meaning in known.items() if part in complaint), "")


class Holder(Protocol):
    """What has selections inside `async with`, and sees them being fetched."""

    @property
    def tells_who(self) -> bool:
        """Whether it sees that it is the focused window which fetches."""

    @property
    def stays(self) -> bool:
        """Whether it outlives its context. What it offered can still be fetched then by a late
        window."""

    @property
    def by_window(self) -> bool:
        """Whether the focused window fetched the text since `forget`."""

    @property
    def took_focus(self) -> bool:
        """Whether the focused window lost the focus for a moment."""

    @property
    def count(self) -> int:
        """Fetches since `forget`."""

    def forget(self) -> None:
        """Count what is fetched from now on."""


class X11Holder:
    """`x11 lend`, which has both selections."""

    tells_who, stays, took_focus = True, False, False

    def __init__(self, _: Selection, content: bytes, environment: Environment) -> None:
        self.count = 0
        self.by_window = False
        self._ready = asyncio.Event()
        self._content, self._environment = content, environment

    def forget(self) -> None:
        """Count what is fetched from now on."""
        self.count, self.by_window = 0, False

    async def __aenter__(self) -> Self:
        with memory_file(self._content) as given:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *X11,
                    "lend",
                    stdin=given,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.DEVNULL,
                    env=x11_environment(self._environment),
                    start_new_session=True,
                )
            except OSError as error:
                raise SinkError(f"python cannot be started: {error.strerror}") from error
        self._watching = asyncio.create_task(self._watch())
        try:
            async with asyncio.timeout(ANSWER):  # wait_for loses a cancellation in 3.11
                await self._ready.wait()
        except BaseException as error:
            await self.__aexit__()
            if isinstance(error, TimeoutError):
                raise SinkError("the X server did not give the clipboard away in time") from error
            raise
        if self._process.returncode is not None:
            await self.__aexit__()
            raise SinkError("the X server did not give the clipboard away")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._process)
        await self._watching

    async def _watch(self) -> None:
        assert self._process.stdout
        async for line in self._process.stdout:
            if line in (b"window\n", b"other\n"):
                self.count += 1
                self.by_window |= line == b"window\n"
            elif line == b"ready\n":
                self._ready.set()
        await self._process.wait()
        self._ready.set()


class WaylandHolder:
    """wl-copy, which leaves a child with the selection; its trace tells of fetches, but not by
    whom.

    The child stays. A window that is late fetches what was offered when its key was pressed; from a
    program that has ended it gets nothing, though another one offers the same by then.
    """

    tells_who, stays, by_window = False, True, False

    def __init__(self, selection: Selection, content: bytes, environment: Environment) -> None:
        self._words = (*selection.put, selection.as_type, selection.text)
        self._content = content
        self._environment = {**environment, "WAYLAND_DEBUG": "client"}
        self._trace, self._last = -1, b""
        self._forgotten = 0

    @property
    def took_focus(self) -> bool:
        """Whether the window lost the focus for a moment."""
        return TOOK_FOCUS in self._read()

    @property
    def count(self) -> int:
        """Fetches since `forget`."""
        return len(FETCHED.findall(self._read())) - self._forgotten

    def forget(self) -> None:
        """Count what is fetched from now on."""
        self._forgotten += self.count

    async def __aenter__(self) -> Self:
        self._trace = os.memfd_create("asrd", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            await self._put()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _put(self) -> None:
        name = self._words[0]
        with memory_file(self._content) as given:
            try:
                process = await asyncio.create_subprocess_exec(
                    *self._words,
                    stdin=given,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=self._trace,
                    env=self._environment,
                    start_new_session=True,
                )
            except FileNotFoundError as error:
                raise SinkError(f"{name} is not installed") from error
            except OSError as error:
                raise SinkError(f"{name} cannot be started: {error.strerror}") from error
        try:
            async with asyncio.timeout(ANSWER):  # wait_for loses a cancellation in 3.11
                code = await process.wait()
        except BaseException as error:
            await end(process)
            if isinstance(error, TimeoutError):
                raise SinkError(f"{name} did not set the clipboard in time") from error
            raise
        if code:
            raise SinkError(
                f"{name} could not set the clipboard{why(self._read().decode(errors='replace'))}"
            )

    async def __aexit__(self, *_: object) -> None:
        self._last = self._read()
        fcntl.fcntl(
            self._trace, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW
        )  # the child goes on writing its trace
        os.close(self._trace)
        self._trace = -1

    def _read(self) -> bytes:
        return (
            os.pread(self._trace, os.fstat(self._trace).st_size, 0)
            if self._trace >= 0
            else self._last
        )
