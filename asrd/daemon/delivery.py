"""Delivery of texts: to each sink in force, with a warning on the desktop where one refuses."""

from __future__ import annotations

import logging
from collections.abc import Callable

from asrd import journal
from asrd.config.settings import Settings
from asrd.desktop.sinks import Sink, sinks
from asrd.errors import SinkError, UncertainError
from asrd.recordings import deliveries
from asrd.recordings.deliveries import Deliveries, TextSink
from asrd.text.wording import about


class Delivery:
    """Send texts to the sinks that the settings name.

    Args:
        settings: those in force; they name the sinks.
        show: shows a notification: summary, body and urgency.
    """

    def __init__(self, settings: Settings, show: Callable[[str, str, str], None]) -> None:
        self.sinks: list[Sink] = sinks(settings)
        self._show = show

    def apply_settings(self, settings: Settings) -> None:
        """Send to the sinks of other settings from now on."""
        self.sinks = sinks(settings)

    async def send(self, record: Deliveries, number: int, again: bool = False) -> list[str]:
        """Send a part of a text to every sink that lacks it; return why single sinks refused it.

        Args:
            record: the text of one recording, and what each sink has of it.
            number: which part, from 0.
            again: send also where an earlier try may have been delivered.
        """
        return await deliveries.send(record, number, self.sinks, self._report_failure, again)

    def _report_failure(self, sink: TextSink, error: SinkError) -> None:
        """Log that a sink did not take a text, and notify a person."""
        uncertain = isinstance(error, UncertainError)
        journal.event(
            "sink-failed",
            about(sink.name, error.message),
            logging.WARNING,
            sink=sink.name,
            hint=error.hint or None,
            uncertain=uncertain or None,
        )
        reached = "did not reach"
        if uncertain:
            reached = "may not have reached"
        body = f"{error.message}. The text is safe: asrd last"
        self._show(f"The text {reached} {sink.name}", body, "critical")
