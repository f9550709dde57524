"""The clipboard: put a text there for good, or lend it for one paste and give back what was there before.

A lent text lies in both selections, because the one chord that pastes everywhere, Shift+Insert,
reads the clipboard in most programs and the primary selection in terminals. The former content comes
back only when the focused window is known to have fetched the text: clipboard managers fetch, too.
X11 tells who fetches (`x11`). Wayland does not, so there a text that may have been pasted stays in
the clipboard. Knows wl-copy and xclip; runs in the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from .desktop import end, kind, memory_file, run
from .errors import SinkError

log = logging.getLogger("asrd.clipboard")

TEXT = "text/plain;charset=utf-8"

SAVED = ("x-special/gnome-copied-files", TEXT, "UTF8_STRING", "text/plain", "STRING", "image/png")
"""The types that are given back, best first; a clipboard has one text in several types, one of them is kept."""

SECRET = "x-kde-passwordManagerHint"
"""The type by which password managers mark what nobody shall copy on."""

ANSWER = 4.0
"""Seconds that a display, or whoever owns a selection, gets to answer; a frozen owner costs them, then its content."""

PROOF_SECONDS = 3.0
"""What the focused window gets to fetch a pasted text; it may be busy."""

X11 = (sys.executable, "-P", os.path.join(os.path.dirname(__file__), "x11.py"))
"""The program that asks an X server what xclip cannot tell."""

Environment = Mapping[str, str]

Former = tuple[str, bytes]
"""What a selection had before: its type and content."""


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


SELECTIONS = {"wayland": (_wayland(), _wayland("--primary")), "x11": (_x11("clipboard"), _x11("primary")), "": ()}
"""Display system -> the clipboard, then the primary selection."""

FETCHED = re.compile(rb"source\w*[@#]\d+\.send\(")
"""A line of wl-copy's trace of its protocol, under WAYLAND_DEBUG: somebody fetches."""

TOOK_FOCUS = b"get_toplevel("
"""Where only the focused program may set the clipboard, wl-copy opens a window for it, and closes it."""


async def put(text: str, environment: Environment) -> None:
    """Put a text into the clipboard, where it stays when this process ends.

    Raises:
        SinkError: no session, no program for it, or it refused.
    """
    selection = next(iter(SELECTIONS[kind(environment)]), None)
    if selection is None:
        raise SinkError("there is no graphical session, so there is no clipboard")
    await _put(selection, selection.text, text.encode(), environment)


async def _put(selection: Selection, type_: str, content: bytes, environment: Environment) -> None:
    words = (*selection.put, selection.as_type, type_)
    ended = await run(*words, environment=environment, text=content, limit=ANSWER)
    if ended.code:
        raise SinkError(f"{words[0]} could not set the clipboard{why(ended.complaint)}")
    if words[0] == "xclip":
        await _arrived(selection, type_, content, environment)


async def _arrived(selection: Selection, type_: str, content: bytes, environment: Environment) -> None:
    """Wait until the selection has our content: xclip ends before the child that it leaves behind has claimed it."""
    with contextlib.suppress(TimeoutError, SinkError):
        async with asyncio.timeout(ANSWER):
            while (await run(*selection.read, type_, environment=environment, limit=ANSWER)).output != content:
                await asyncio.sleep(0.01)


def why(complaint: str) -> str:
    """Return what a program's complaint means, as the rest of a sentence; never its own words, which may quote."""
    known = {
        "virtual keyboard protocol": ": the compositor has no virtual keyboard",
        "a seat": ": the compositor has no seat",
        "open display": ": no X server answers",
        "connect to": ": no display answers",
        "uinput": ": /dev/uinput cannot be opened",
    }
    return next((meaning for part, meaning in known.items() if part in complaint), "")


class Lent:
    """A text that lies in both selections inside `async with`.

    Afterwards what was there before is back; but once the text may have been pasted, only if the
    focused window is known to have fetched it. Else the text stays: a window that is late pastes
    what it finds, and that must not be another text.

    Raises on entry:
        SinkError: no session, no program for it, or it refused.
    Raises on exit:
        SinkError: the text could not be left in the clipboard.
    """

    def __init__(self, text: str, environment: Environment) -> None:
        self.pasted = False
        """Set by the caller before it presses the chord: from then on a window may fetch the text at any time."""
        self._text = text.encode()
        self._environment = environment
        self._stack = contextlib.AsyncExitStack()
        self._holders: list[_Holder] = []

    async def __aenter__(self) -> Self:
        system = kind(self._environment)
        if not system:
            raise SinkError("there is no graphical session, so there is no clipboard")
        selections = SELECTIONS[system]
        together = [selections] if system == "x11" else [(selection,) for selection in selections]
        try:
            for each in together:
                try:
                    await self._stack.enter_async_context(self._lend(each))
                except SinkError:
                    if not self._holders:  # a compositor may lack the primary selection; the clipboard is what counts
                        raise
            await self._quiet(0.05)
            if any(holder.took_focus for holder in self._holders):
                await asyncio.sleep(0.3)
        except BaseException:
            await self._stack.aclose()
            raise
        for holder in self._holders:
            holder.forget()
        return self

    async def __aexit__(
        self, kind_: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def fetched(self) -> bool:
        """Whether a program fetched the text since it was lent: the window, or a clipboard manager."""
        return any(holder.count for holder in self._holders)

    @property
    def proved(self) -> bool:
        """Whether the focused window fetched the text since it was lent."""
        return any(holder.by_window for holder in self._holders)

    async def taken(self, limit: float = PROOF_SECONDS) -> bool:
        """Return whether the focused window fetched the text, waiting for it, and until no program fetches it.

        Where that cannot be told, the answer is False, and comes as soon as any program fetched the text.
        """
        end = time.monotonic() + limit
        while not self._known and time.monotonic() < end:
            await asyncio.sleep(0.02)
        if self._known:
            await self._quiet(0.2)
        return self.proved

    @property
    def _known(self) -> bool:
        """Whether nothing more is to be learnt about who fetched the text."""
        return self.proved or any(holder.count and not holder.tells_who for holder in self._holders)

    async def _quiet(self, seconds: float) -> None:
        """Wait until nobody has fetched for so long, at most ten times that."""
        for _ in range(10):
            count = sum(holder.count for holder in self._holders)
            await asyncio.sleep(seconds)
            if count == sum(holder.count for holder in self._holders):
                return

    @contextlib.asynccontextmanager
    async def _lend(self, selections: tuple[Selection, ...]) -> AsyncIterator[None]:
        """Hold selections; afterwards leave the text in them, or give back what they had."""
        owed = {selection: await _saved(selection, self._environment) for selection in selections}
        made: type[_X11Holder | _WaylandHolder] = _WaylandHolder
        if kind(self._environment) == "x11":
            made = _X11Holder
        try:
            async with made(selections[0], self._text, self._environment) as holder:
                self._holders.append(holder)
                try:
                    yield
                finally:
                    # While it is held still: a clipboard manager fills a clipboard that is empty for a moment.
                    if self._stays and not holder.stays:
                        await self._leave(selections)
                    elif not self._stays:
                        for selection in [each for each, former in owed.items() if former]:
                            await self._give_back(selection, owed.pop(selection))
        finally:  # also where the holder was stopped half-way: it may have had the selection already
            if not self._stays:
                for selection, former in owed.items():
                    await self._give_back(selection, former)

    @property
    def _stays(self) -> bool:
        return self.pasted and not self.proved

    async def _leave(self, selections: tuple[Selection, ...]) -> None:
        for selection in selections:
            if not await _free(selection, self._text, self._environment):
                raise SinkError("something else was copied before the window took the text")
            await _put(selection, selection.text, self._text, self._environment)

    async def _give_back(self, selection: Selection, former: Former | None) -> None:
        if await _free(selection, self._text, self._environment):
            await _give_back(selection, former, self._environment)


async def _saved(selection: Selection, environment: Environment) -> Former | None:
    """Return the type and content of a selection, None when it is empty, secret, or its owner does not answer."""
    try:
        offered = (
            (await run(*selection.types, environment=environment, limit=ANSWER))
            .output.decode(errors="replace")
            .split("\n")
        )
        best = next((type_ for type_ in SAVED if type_ in offered), "")
        if SECRET in offered or not best:
            return None
        ended = await run(*selection.read, best, environment=environment, limit=ANSWER)
    except SinkError as error:
        log.debug("the clipboard will not be given back: %s", error)
        return None
    return None if ended.code else (best, ended.output)


async def _free(selection: Selection, content: bytes, environment: Environment) -> bool:
    """Whether a selection is nobody's any more, or of somebody who kept our content alive: else it is to stay."""
    for limit in (1.0, ANSWER):  # who asks an owner that is just dying gets no answer, and must ask again
        try:
            listing = await run(*selection.types, environment=environment, limit=limit)
            offered = listing.output.decode(errors="replace").split("\n")
            if listing.code or not any(offered):
                return True
            if selection.text not in offered:
                return False
            ended = await run(*selection.read, selection.text, environment=environment, limit=limit)
        except SinkError as error:
            log.debug("whose the clipboard is cannot be told: %s", error)
        else:
            return ended.code != 0 or ended.output in (b"", content)
    return False


async def _give_back(selection: Selection, before: Former | None, environment: Environment) -> None:
    try:
        if before:
            await _put(selection, *before, environment)
        elif selection.clear:
            await run(*selection.clear, environment=environment, limit=ANSWER)
    except SinkError as error:
        log.warning("the clipboard was not given back: %s", error)


class _Holder(Protocol):
    """What has selections inside `async with`, and sees them being fetched."""

    @property
    def tells_who(self) -> bool:
        """Whether it sees that it is the focused window which fetches."""

    @property
    def stays(self) -> bool:
        """Whether it outlives its context. What it offered can still be fetched then by a late window."""

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


class _X11Holder:
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
                    env=dict(self._environment),
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


class _WaylandHolder:
    """wl-copy, which leaves a child with the selection; its trace tells of fetches, but not by whom.

    The child stays. A window that is late fetches what was offered when its key was pressed; from a program that has
    ended it gets nothing, though another one offers the same by then.
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
            raise SinkError(f"{name} could not set the clipboard{why(self._read().decode(errors='replace'))}")

    async def __aexit__(self, *_: object) -> None:
        self._last = self._read()
        fcntl.fcntl(self._trace, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)  # the child goes on writing its trace
        os.close(self._trace)
        self._trace = -1

    def _read(self) -> bytes:
        return os.pread(self._trace, os.fstat(self._trace).st_size, 0) if self._trace >= 0 else self._last
