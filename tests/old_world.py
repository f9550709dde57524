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

from asrd.models import SHIPPED
from tests.helpers import ROOT
from tests.old_release import WITH_JOURNAL, Journal, OldRelease
from tests.test_daemon import Running
from tests.test_tune import Bench

SPOKEN = "remind me to open a teacher before i start my meeting"
"""What the fake microphone says, over and over."""

SPOKEN_SECONDS = 3.2
"""So long it takes to say it once."""

TUNE = """
import argparse, functools, sys
from asrd import cli, config, engine, tune, vram
vram.gpus = list
cli._log(False)
hold = functools.partial(engine.Engine, command=(sys.executable, "-m", "tests.fake_worker"))
parser = argparse.ArgumentParser()
tune.tune_arguments(parser)
settings = config.Settings(model=sys.argv[1], device="cpu")
raise SystemExit(tune.tune(parser.parse_args(sys.argv[2:]), settings, hold))
"""
"""The old verb, over the old fake workers, which hear without a model."""

LOG_EVENTS = """
import random, sys, time
from asrd import systemd
systemd.JOURNAL = sys.argv[1]
systemd.log_to_journal()
draw = random.Random(17)
for name in systemd.EVENTS:
    for _ in range(draw.randint(3, 9)):
        systemd.event(
            name, f"{name} of {draw.randint(1, 3)}",
            take=f"20261127-{draw.randint(0, 10 ** 6):06d}-0000",
            strategy=draw.choice(("fp32", "bfloat16", "int8")),
            before=draw.choice(("tf32", "bfloat16")),
            kind=draw.choice(("slow", "non-finite", "empty")),
            outcome=draw.choice(("delivered", "kept", "empty")),
            audio_seconds=draw.uniform(0.5, 90), words=draw.randint(0, 200),
            rtf=draw.uniform(0.01, 2), changed=draw.randint(0, 20),
            stop_to_text_ms=draw.choice((None, draw.uniform(20, 3000))),
            effective=draw.choice(("", "encoder=bfloat16")),
            weights_bytes=draw.randint(1, 1 << 33), memory_source="rss",
            process_bytes=draw.randint(1, 1 << 34),
            baseline_process_delta_bytes=draw.randint(-(1 << 30), 1 << 30),
        )
        time.sleep(0.002)
"""
"""Every event of the old code, by its own function, with the fields that its report reads."""


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
        self.release.run("-P", "-c", LOG_EVENTS, self.journal.path)
        self.old_entries = folder / "old entries"
        shutil.copyfile(self.release.entries, self.old_entries)
        self.report = json.loads(self.release.run("-P", "-m", "asrd", "report", "--json"))
        self.release.upgrade()

    def _tune(self) -> None:
        """Have auto choose for a model of the user's own and for one that is shipped."""
        speech = {"FAKE_WORKER_TEXTS": os.fspath(self.bench.folder / "texts.json")}
        words = ["--repeats", "2", "--manifest", self.bench.manifest]
        for model in (self.bench.model, "demo-ctc"):
            self.release.run("-c", TUNE, model, *words, **speech)

    def daemon(self, old: bool, **environment: str) -> Running:
        """Return a daemon with the fake microphone and the journal; it is not started."""
        more = self.release.environment | (
            {"PYTHONPATH": os.fspath(self.release.old)} if old else {}
        )
        one = Running(self.release.folder, **(more | environment))
        one.program = ("-c", WITH_JOURNAL, os.fspath(self.journal.path))
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
