"""The clipboard: put a text there for good, or lend it for one paste and give back what was there before.

A lent text is held by a program of ours whose diagnostics say when somebody fetched it, so a paste is known to have
been taken or not. It lies in both selections, because the one chord that pastes everywhere, Shift+Insert, reads the
clipboard in most programs and the primary selection in terminals. Knows wl-copy and xclip; runs in the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import NamedTuple, Self

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

Environment = Mapping[str, str]


class Selection(NamedTuple):
    """How one selection of one display system is read, set, held and cleared."""

    text: str
    types: tuple[str, ...]
    read: tuple[str, ...]
    put: tuple[str, ...]
    as_type: str
    hold: tuple[str, ...]
    ready: re.Pattern[str]
    fetched: re.Pattern[str]
    clear: tuple[str, ...]


def _wayland(*flags: str) -> Selection:
    """wl-copy traces its protocol under WAYLAND_DEBUG: its offer, and each `send` to someone who fetches."""
    return Selection(
        text=TEXT,
        types=("wl-paste", *flags, "--list-types"),
        read=("wl-paste", *flags, "--no-newline", "--type"),
        put=("wl-copy", *flags),
        as_type="--type",
        hold=("wl-copy", *flags, "--foreground", "--type", TEXT),
        ready=re.compile(r"set_(primary_)?selection\("),
        fetched=re.compile(r"source\w*[@#]\d+\.send\("),
        clear=("wl-copy", *flags, "--clear"),
    )


def _x11(name: str) -> Selection:
    """xclip announces under -verbose that it waits for request N: N - 1 have been answered."""
    words = ("xclip", "-selection", name)
    return Selection(
        text="UTF8_STRING",
        types=(*words, "-out", "-target", "TARGETS"),
        read=(*words, "-out", "-target"),
        put=(*words, "-in"),
        as_type="-target",
        hold=(*words, "-in", "-verbose"),
        ready=re.compile(r"selection request number 1\b"),
        fetched=re.compile(r"selection request number (?!1\b)"),
        clear=(),
    )


SELECTIONS = {"wayland": (_wayland(), _wayland("--primary")), "x11": (_x11("clipboard"), _x11("primary")), "": ()}
"""Display system -> the clipboard, then the primary selection."""


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
    """A text that lies in both selections inside `async with`; afterwards what was there before is back.

    Raises on entry:
        SinkError: no session, no program for it, or it refused.
    """

    def __init__(self, text: str, environment: Environment) -> None:
        self._text = text.encode()
        self._environment = environment
        self._stack = contextlib.AsyncExitStack()
        self._holders: list[_Holder] = []

    async def __aenter__(self) -> Self:
        selections = SELECTIONS[kind(self._environment)]
        if not selections:
            raise SinkError("there is no graphical session, so there is no clipboard")
        try:
            for selection in selections:
                try:
                    await self._stack.enter_async_context(self._lend(selection))
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
            holder.fetched.clear()
        return self

    async def __aexit__(
        self, kind_: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def taken(self, limit: float = 2.0) -> bool:
        """Return whether somebody fetched the text since it was lent, waiting for it, and until no more fetch it."""
        waiting = [asyncio.ensure_future(holder.fetched.wait()) for holder in self._holders]
        try:
            done, _ = await asyncio.wait(waiting, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        if done:
            await self._quiet(0.2)
        return bool(done)

    async def _quiet(self, seconds: float) -> None:
        """Wait until nobody has fetched for so long, at most ten times that."""
        for _ in range(10):
            count = sum(holder.count for holder in self._holders)
            await asyncio.sleep(seconds)
            if count == sum(holder.count for holder in self._holders):
                return

    @contextlib.asynccontextmanager
    async def _lend(self, selection: Selection) -> AsyncIterator[None]:
        before = await _saved(selection, self._environment)
        try:
            async with _Holder(selection, self._text, self._environment) as holder:
                self._holders.append(holder)
                yield
        finally:  # also where the holder was stopped half-way: it may have had the selection already
            if await _free(selection, self._text, self._environment):
                await _give_back(selection, before, self._environment)


async def _saved(selection: Selection, environment: Environment) -> tuple[str, bytes] | None:
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


async def _give_back(selection: Selection, before: tuple[str, bytes] | None, environment: Environment) -> None:
    try:
        if before:
            await _put(selection, *before, environment)
        elif selection.clear:
            await run(*selection.clear, environment=environment, limit=ANSWER)
    except SinkError as error:
        log.warning("the clipboard was not given back: %s", error)


class _Holder:
    """The program that owns a selection inside `async with`, and counts who fetches."""

    def __init__(self, selection: Selection, content: bytes, environment: Environment) -> None:
        self.count = 0
        self.took_focus = False
        self.fetched = asyncio.Event()
        self._ready = asyncio.Event()
        self._selection = selection
        self._content = content
        self._environment = {**environment, "WAYLAND_DEBUG": "client"}

    async def __aenter__(self) -> Self:
        name = self._selection.hold[0]
        with memory_file(self._content) as given:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self._selection.hold,
                    stdin=given,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.PIPE,
                    env=self._environment,
                    start_new_session=True,
                )
            except FileNotFoundError as error:
                raise SinkError(f"{name} is not installed") from error
            except OSError as error:
                raise SinkError(f"{name} cannot be started: {error.strerror}") from error
        self._watching = asyncio.create_task(self._watch())
        try:
            async with asyncio.timeout(ANSWER):  # wait_for loses a cancellation in 3.11
                await self._ready.wait()
        except BaseException as error:
            await self.__aexit__()
            if isinstance(error, TimeoutError):
                raise SinkError(f"{name} did not set the clipboard in time") from error
            raise
        if self._process.returncode is not None:
            await self.__aexit__()
            raise SinkError(f"{name} could not set the clipboard")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._process)
        await self._watching

    async def _watch(self) -> None:
        assert self._process.stderr
        async for line in self._process.stderr:
            trace = line.decode(errors="replace")
            if self._selection.fetched.search(trace):
                self.count += 1
                self.fetched.set()
            elif self._selection.ready.search(trace):
                self._ready.set()
            elif "get_toplevel(" in trace:
                # Where only the focused program may set the clipboard, wl-copy opens a window for it, and closes it.
                self.took_focus = True
        await self._process.wait()
        self._ready.set()
