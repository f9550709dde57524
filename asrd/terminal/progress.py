"""How far long work has come: bars on a terminal, a plain line now and then anywhere else. Always
on standard error.

Knows steps and names, not what they mean. Runs in verbs that take minutes.
"""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any, TextIO

from asrd.protocol import Download
from asrd.protocol import Progress as Loading
from asrd.terminal.output import one_line, tell

CLEAR_LINE = "\r\x1b[K"
"""Takes a terminal back to an empty line."""

EVERY = 15.0
"""Seconds between two plain lines about the same run."""


class RunProgress:
    """The state of `runs` runs, one after the other; enter it while they go on.

    Args:
        runs: how many there will be.
        stream: where to; bars when it is a terminal.
    """

    def __init__(self, runs: int, stream: TextIO | None = None) -> None:
        self._runs = runs
        self._stream = stream or sys.stderr
        self._name, self._number = "", 0
        self._told = -EVERY
        self._bars = _Bars(runs, self._stream) if self._stream.isatty() else None

    def __enter__(self) -> RunProgress:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def begin(self, name: str, number: int) -> None:
        """Say that run `number` (from 1) starts."""
        self._name, self._number, self._told = name, number, -EVERY
        if self._bars:
            self._bars.renew()
        self._tell("starting", 0, 0)

    def loading(self, progress: Loading) -> None:
        """Show what a worker that is starting does; of a path the name, as bar and clock need the
        room."""
        detail = (
            progress.detail.rpartition("/")[2]
            if progress.detail.startswith("/")
            else progress.detail
        )
        self._tell(f"{progress.stage} {detail}".rstrip(), 0, 0)

    def step(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` are through."""
        self._tell(what, done, total)

    def done(self, failure: str = "") -> None:
        """Say that the present run is through, or why it is not."""
        if failure:
            self._say(f"{self._title}: {failure}")
        if self._bars:
            self._bars.advance()

    @property
    def _title(self) -> str:
        return f"{self._name} ({self._number}/{self._runs})"

    def _tell(self, what: str, done: int, total: int) -> None:
        if self._bars:
            self._bars.show(self._title, what, done, total)
        elif time.monotonic() - self._told >= EVERY:
            self._told = time.monotonic()
            self._say(f"{self._title} {what}" + (f" {done}/{total}" if total else ""))

    def _say(self, line: str) -> None:
        if self._bars:
            self._bars.say(line)
        else:
            tell(line, self._stream)


class DownloadBar:
    """How far a download has come; enter it while it goes on.

    Args:
        stream: where to; a bar when it is a terminal.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._rich: Any = None
        self._told = -EVERY
        self._last: Download | None = None

    def __enter__(self) -> DownloadBar:
        if self._stream.isatty():
            self._rich = _download_bar(self._stream)
            self._task = self._rich.add_task("", total=None)
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        if self._rich and self._last is not None:
            self._rich.stop()
        if self._last is None:
            return
        if not failed:
            tell(f"asrd: downloaded {self._last.text}", self._stream)
        elif self._last.bytes:
            tell(f"asrd: {self._last.kept}", self._stream)

    def show(self, progress: Loading) -> None:
        """Show a report of the download."""
        state = progress.download
        if state is None:
            return
        if self._rich and self._last is None:
            self._rich.start()  # a file that is here shows no bar
        sized = self._last is not None and self._last.total is None and state.total is not None
        self._last = state
        if self._rich:
            what = f"{state.model} ({state.note})" if state.note else state.model
            self._rich.update(
                self._task, description=one_line(what), completed=state.bytes, total=state.total
            )
        elif sized or time.monotonic() - self._told >= EVERY:
            self._told = time.monotonic()
            tell(f"asrd: downloading {state.text}", self._stream)


class ProgressLine:
    """What somebody waits for, as one line: replaced on a terminal, told now and then anywhere
    else. Enter it.

    Args:
        stream: where to.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._replaces = self._stream.isatty()
        self._last, self._told = "", time.monotonic()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._replaces and self._last:
            self._stream.write(CLEAR_LINE)
            self._stream.flush()

    def show(self, text: str, now: bool = False) -> None:
        """Show a text in place of the one before; `now`: also where lines are rare."""
        if text == self._last:
            return
        if self._replaces:
            width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be cleared
            self._stream.write(CLEAR_LINE + f"asrd: {one_line(text)}"[:width])
            self._stream.flush()
        elif now or time.monotonic() - self._told >= EVERY:
            tell(f"asrd: {one_line(text)}", self._stream)
            self._told = time.monotonic()
        self._last = text


def _download_bar(stream: TextIO) -> Any:
    """Return rich's bar with bytes, speed and the time that is left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Rich

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    return Rich(*columns, TimeRemainingColumn(), console=Console(file=stream), transient=True)


class _Bars:
    """Two bars of rich: all runs, and the present one."""

    def __init__(self, runs: int, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Rich

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._rich = Rich(*columns, console=Console(file=stream), transient=True)
        self._all = self._rich.add_task("runs", total=runs)
        self._one = self._rich.add_task("", total=None)
        self.start, self.stop = self._rich.start, self._rich.stop

    def show(self, title: str, what: str, done: int, total: int) -> None:
        self._rich.update(
            self._one, description=one_line(f"{title}: {what}"), completed=done, total=total or None
        )

    def renew(self) -> None:
        self._rich.remove_task(self._one)
        self._one = self._rich.add_task("", total=None)

    def advance(self) -> None:
        self._rich.advance(self._all)

    def say(self, line: str) -> None:
        self._rich.console.print(one_line(line), markup=False, highlight=False)
