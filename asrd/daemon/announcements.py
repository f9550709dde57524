"""What the daemon logs and notifies by itself: the model, what auto chose, what waits, how a start
goes."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from asrd import journal
from asrd.config.loading import Loaded
from asrd.config.settings import Settings
from asrd.daemon import replies
from asrd.dictation.transcriber import Transcriber
from asrd.models import choice

log = logging.getLogger("asrd")

DOWNLOAD_LINE_SECONDS = 15.0
"""Seconds between two lines about a download, on the terminal in which the daemon runs."""


class Announcements:
    """Say in the log, and on the desktop, what nobody asked for and a person has to know.

    Args:
        transcriber: has the settings in force, the engine and the kept recordings.
        file: the configuration file that was named; None for the usual one.
        notify: shows a summary and a body on the desktop; returns whether it was shown.
    """

    def __init__(
        self,
        transcriber: Transcriber,
        file: Path | None,
        notify: Callable[[str, str], Awaitable[bool]],
    ) -> None:
        self._transcriber, self._file, self._notify = transcriber, file, notify
        self._notified = False
        """Whether a person was shown that no model is chosen."""
        self._shown_stage = ""
        self._shown_at = 0.0

    @property
    def _settings(self) -> Settings:
        return self._transcriber.slot.settings

    @property
    def in_terminal(self) -> bool:
        """Whether a person started this daemon, and reads its log."""
        return "NOTIFY_SOCKET" not in os.environ

    def next_step(self) -> None:
        """Log what a person does next who started the daemon in a terminal."""
        if self.in_terminal:
            log.info("%s", replies.next_step(self._settings.socket))

    def loading(self) -> None:
        """Log to a terminal what a start takes its time for: each step once, a download now and
        then."""
        loading = self._transcriber.slot.loading
        if not loading or not self.in_terminal or not sys.stderr.isatty():
            return
        stage, now = loading.partition(" ")[0], time.monotonic()
        # A download reports every second, the other steps once.
        recent = stage != "download" or now - self._shown_at < DOWNLOAD_LINE_SECONDS
        if stage == self._shown_stage and recent:
            return
        self._shown_stage, self._shown_at = stage, now
        log.info("%s", replies.loading_words(loading))

    async def waiting(self) -> None:
        """Tidy up, and log which recordings an earlier run left behind; beside the loop, as there
        may be thousands."""
        spool = self._transcriber.spool
        await asyncio.to_thread(spool.prune)
        waiting = await asyncio.to_thread(spool.waiting)
        if waiting:
            journal.event(
                "waiting",
                replies.waiting(waiting),
                logging.WARNING,
                takes=[note.id for note in waiting],
                audio_seconds=sum(note.seconds for note in waiting),
            )

    def model(self, quiet: bool = False) -> None:
        """Log that no model is chosen, or that a demo is to recognise a person.

        Args:
            quiet: say nothing of a demo, as a file is played and nobody speaks.
        """
        note = choice.note(self._settings, self._file)
        if not self._settings.model:
            journal.event("no-model", note, logging.WARNING)
        elif note and not quiet:
            log.warning("%s", note)

    def other_model(self) -> None:
        """Log the model of other settings, and notify a person anew where there is none."""
        self._notified = False
        self.model()

    async def no_model(self) -> None:
        """Notify a person once that no model is chosen."""
        if self._notified or self._settings.model:
            return
        self._notified = True
        body = f"{choice.CONSEQUENCE}; {choice.hint(self._file)}"
        self._notified = await self._notify("No model is chosen", body)

    def auto(self) -> None:
        """Log what `auto` chose and why; where nothing was measured, the reason names the verb that
        would."""
        if self._settings.strategy != "auto" or not self._settings.model:
            return
        plan = self._transcriber.slot.engine.plan
        first = plan.candidates[0]
        journal.event(
            "auto", f"auto takes {first.name}: {plan.reason}", strategy=first.precision.name
        )


def warn_of_text(settings: Settings) -> None:
    """Log that the journal gets the text of recordings, where the settings say so."""
    if settings.log_text:
        journal.event(
            "log-text", "log_text is on: what you say is written into the journal", logging.WARNING
        )


def log_notes(loaded: Loaded, idle: int = logging.DEBUG) -> None:
    """Log what older spellings mean, and at level `idle` which settings do nothing; a start has
    warned of those."""
    for note in loaded.notes:
        log.log(idle if note in loaded.idle else logging.INFO, "%s", note)
