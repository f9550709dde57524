"""What the old release leaves behind: recordings, a tuning result, a baseline, units, a journal."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asrd.models.names import SHIPPED
from tests.cli.test_tune import Bench
from tests.daemon.test_daemon import Running
from tests.helpers import ROOT
from tests.integration.old_release import WITH_JOURNAL, Journal, OldRelease, program

SPOKEN = "remind me to open a teacher before i start my meeting"
"""What the fake microphone says, over and over."""

SPOKEN_SECONDS = 3.2
"""So long it takes to say it once."""


class World:
    """The old release, and what its programs left behind."""

    def __init__(self, folder: Path) -> None:
        self.release = OldRelease(folder)
        self.journal = Journal(folder / "journal", self.release.entries)
        (folder / "speech").mkdir()
        self.bench = Bench(folder / "speech", count=60)
        shutil.copyfile(SHIPPED["demo-ctc"], self.bench.model)
        self.kept: list[str] = []
        self.status: list[dict[str, Any]] = []
        self.bars: list[dict[str, Any]] = []
        self.unit = self.release.asrd("service", "print", "asrd.service")
        self.socket_unit = self.release.asrd("service", "print", "asrd.socket")
        self._tune()
        self._dictate()
        self.release.run("-P", "-c", program("log_events"), self.journal.path)
        self.old_entries = folder / "old entries"
        shutil.copyfile(self.release.entries, self.old_entries)
        self.report = json.loads(self.release.run("-P", "-m", "asrd", "report", "--json"))
        self.release.upgrade()

    def _tune(self) -> None:
        """Have auto choose for a model of the user's own and for one that is shipped."""
        speech = {"FAKE_WORKER_TEXTS": os.fspath(self.bench.folder / "texts.json")}
        words = ["--repeats", "2", "--manifest", self.bench.manifest]
        for model in (self.bench.model, "demo-ctc"):
            self.release.run("-c", program("tune"), model, *words, **speech)

    def daemon(self, old: bool, **environment: str) -> Running:
        """Return a daemon with the fake microphone and the journal; it is not started."""
        more = self.release.environment | (
            {"PYTHONPATH": os.fspath(self.release.old)} if old else {}
        )
        one = Running(self.release.folder, **(more | environment))
        one.program = (
            "-c",
            program("with_journal") if old else WITH_JOURNAL,
            os.fspath(self.journal.path),
        )
        one.where = self.release.old if old else ROOT
        return one

    def look(self, one: Running) -> None:
        """Keep what a bar and a program are told."""
        for flag, told in (("--json", self.status), ("--waybar", self.bars)):
            out, errors = one.verb("status", flag).communicate(timeout=20)
            assert out, errors
            told.append(json.loads(out))

    def _dictate(self) -> None:
        """Record three times: one is delivered, one has a sink that fails, a crash cuts one off."""
        with running(self.daemon(old=True, ASRD_KEEP_AUDIO="always")) as one:
            one.until(lambda: one.state == "IDLE")
            self.look(one)
            one.speak()
            self.look(one)
            one.ask(verb="stop")
            one.settled()
        with running(
            self.daemon(old=True, ASRD_SINKS="command:false", ASRD_IDLE="immediately")
        ) as one:
            self.kept.append(one.speak(SPOKEN_SECONDS))
            one.ask(verb="stop")
            one.until(lambda: one.state == "PARKED")
            self.look(one)
        one = self.daemon(old=True).up()
        self.kept.append(one.speak(SPOKEN_SECONDS))
        one.end(signal.SIGKILL)


@contextlib.contextmanager
def running(one: Running) -> Iterator[Running]:
    """Have a daemon run for as long as the block."""
    one.socket.unlink(missing_ok=True)
    one.up()
    try:
        yield one
    finally:
        assert one.end() == 0, one.log.read_text()
