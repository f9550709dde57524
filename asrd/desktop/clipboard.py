"""The clipboard: put a text there for good, or lend it for one paste and give back what was there
before.

A lent text lies in both selections, because the one chord that pastes everywhere, Shift+Insert,
reads the clipboard in most programs and the primary selection in terminals. The former content
comes back only when the focused window is known to have fetched the text: clipboard managers fetch,
too. X11 tells who fetches (`x11`). Wayland does not, so there a text that may have been pasted
stays in the clipboard. Runs in the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self

from asrd.desktop.programs import run
from asrd.desktop.selections import (
    ANSWER,
    SELECTIONS,
    TEXT,
    Environment,
    Holder,
    Selection,
    WaylandHolder,
    X11Holder,
    why,
)
from asrd.desktop.session import kind
from asrd.errors import SinkError

log = logging.getLogger("asrd.clipboard")

SAVED = ("x-special/gnome-copied-files", TEXT, "UTF8_STRING", "text/plain", "STRING", "image/png")
"""The types that are given back, best first; a clipboard has one text in several types, and one of
them is kept."""

SECRET = "x-kde-passwordManagerHint"
"""The type by which password managers mark a secret."""

PROOF_SECONDS = 3.0
"""Time for the focused window to fetch a pasted text; it may be busy."""

Former = tuple[str, bytes]
"""Former content of a selection: its type and bytes."""


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


async def _arrived(
    selection: Selection, type_: str, content: bytes, environment: Environment
) -> None:
    """Wait until the selection has our content: xclip ends before the child that it leaves behind
    has claimed it."""
    with contextlib.suppress(TimeoutError, SinkError):
        async with asyncio.timeout(ANSWER):
            while True:
                read = await run(*selection.read, type_, environment=environment, limit=ANSWER)
                if read.output == content:
                    return
                await asyncio.sleep(0.01)


class BorrowedClipboard:
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
        """Set by the caller before it presses the chord: from then on a window may fetch the text
        at any time."""
        self._text = text.encode()
        self._environment = environment
        self._stack = contextlib.AsyncExitStack()
        self._holders: list[Holder] = []

    async def __aenter__(self) -> Self:
        system = kind(self._environment)
        if not system:
            raise SinkError("there is no graphical session, so there is no clipboard")
        selections = SELECTIONS[system]
        try:
            if system == "x11":  # one program holds both
                await self._stack.enter_async_context(self._lend(selections))
            else:
                await self._lend_each(selections)
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
        self,
        kind_: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def _lend_each(self, selections: tuple[Selection, ...]) -> None:
        """Lend each selection by a program of its own. Raises SinkError where none was lent."""
        for selection in selections:
            try:
                await self._stack.enter_async_context(self._lend((selection,)))
            except SinkError:
                # A compositor may lack the primary selection; the clipboard comes first.
                if not self._holders:
                    raise

    @property
    def fetched(self) -> bool:
        """Whether a program fetched the text since it was lent: the window, or a clipboard
        manager."""
        return self._fetches > 0

    @property
    def proved(self) -> bool:
        """Whether the focused window fetched the text since it was lent."""
        return any(holder.by_window for holder in self._holders)

    async def taken(self, limit: float = PROOF_SECONDS) -> bool:
        """Return whether the focused window fetched the text, waiting for it, and until no program
        fetches it.

        Where that cannot be told, the answer is False, and comes as soon as any program fetched the
        text.
        """
        end = time.monotonic() + limit
        while not self._is_certain and time.monotonic() < end:
            await asyncio.sleep(0.02)
        if self._is_certain:
            await self._quiet(0.2)
        return self.proved

    @property
    def _is_certain(self) -> bool:
        """Whether waiting longer cannot tell more about who fetched the text."""
        if self.proved:
            return True
        return any(holder.count and not holder.tells_who for holder in self._holders)

    @property
    def _fetches(self) -> int:
        return sum(holder.count for holder in self._holders)

    async def _quiet(self, seconds: float) -> None:
        """Wait until no program has fetched for so long, at most ten times that."""
        for _ in range(10):
            count = self._fetches
            await asyncio.sleep(seconds)
            if count == self._fetches:
                return

    @contextlib.asynccontextmanager
    async def _lend(self, selections: tuple[Selection, ...]) -> AsyncIterator[None]:
        """Hold selections; afterwards leave the text in them, or give back what they had."""
        owed: dict[Selection, Former | None] = {}
        for selection in selections:
            owed[selection] = await _saved(selection, self._environment)
        made: type[X11Holder | WaylandHolder] = WaylandHolder
        if kind(self._environment) == "x11":
            made = X11Holder
        try:
            async with made(selections[0], self._text, self._environment) as holder:
                self._holders.append(holder)
                try:
                    yield
                finally:
                    # While it is held still: a clipboard manager fills a clipboard that is empty
                    # for a moment.
                    if self._stays and not holder.stays:
                        await self._leave(selections)
                    elif not self._stays:
                        for selection in selections:
                            if owed[selection]:
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
    """Return the type and content of a selection, None when it is empty, secret, or its owner does
    not answer."""
    try:
        listing = await run(*selection.types, environment=environment, limit=ANSWER)
        best = _best_type(listing.output.decode(errors="replace").split("\n"))
        if not best:
            return None
        ended = await run(*selection.read, best, environment=environment, limit=ANSWER)
    except SinkError as error:
        log.debug("the clipboard will not be given back: %s", error)
        return None
    if ended.code:
        return None
    return best, ended.output


def _best_type(offered: Sequence[str]) -> str:
    """Return the type to keep of a selection; "" where there is none, or the content is secret."""
    if SECRET in offered:
        return ""
    for type_ in SAVED:
        if type_ in offered:
            return type_
    return ""


async def _free(selection: Selection, content: bytes, environment: Environment) -> bool:
    """Whether a selection has no owner any more, or one that keeps our content alive: else it is to
    stay."""
    # An owner that is just ending does not answer, so there is a second try.
    for limit in (1.0, ANSWER):
        try:
            listing = await run(*selection.types, environment=environment, limit=limit)
            offered = listing.output.decode(errors="replace").split("\n")
            if listing.code or not any(offered):
                return True
            if selection.text not in offered:
                return False
            ended = await run(*selection.read, selection.text, environment=environment, limit=limit)
        except SinkError as error:
            log.debug("the owner of the clipboard is unknown: %s", error)
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
