"""A bar on a terminal: how far the present file has come."""

from __future__ import annotations

from typing import Any, TextIO

from asrd.protocol import Progress
from asrd.terminal.output import one_line


class FileProgress:
    """How far the present file has come, on a terminal; nothing anywhere else."""

    def __init__(self, stream: TextIO) -> None:
        self._bar: Any = None
        if stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=Console(file=stream), transient=True)
            self._task = self._bar.add_task("", total=None)
        self._name, self._seconds = "", 0.0

    def __enter__(self) -> FileProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.hide()

    def show(self, name: str, seconds: float) -> None:
        """Begin with a file of so many seconds."""
        self._name, self._seconds = name, seconds
        if self._bar:
            self._bar.reset(self._task, total=seconds, description=one_line(name))
            self._bar.start()

    def loading(self, progress: Progress) -> None:
        """Show what the worker does before it can answer."""
        if self._bar:
            self._bar.update(
                self._task, description=f"worker: {progress.stage} {progress.detail}".rstrip()
            )

    def at(self, seconds: float) -> None:
        """Show how many seconds of the file were transcribed."""
        if self._bar:
            about = f"{one_line(self._name)}: {seconds:.0f} of {self._seconds:.0f} s"
            self._bar.update(self._task, completed=seconds, description=about)

    def hide(self) -> None:
        """Clear the line, so that text can be printed."""
        if self._bar:
            self._bar.stop()
