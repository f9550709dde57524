"""Faults planted from outside, each of which one instrument has to report, and nothing else.

Before a part says anything, its instruments are proved: daemons are killed as in the part, and then
the harness itself deletes a recording, cuts one short, delivers a text twice, leaves a process, a
lock and files. An instrument that reports another number than was planted is blind, and its part
gives no figures.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from .daemon import BrokenError, Daemon
from .findings import Round, judge
from .home import HEADER_BYTES, SAMPLE_RATE
from .house import FAST, Followed, House

CUT_SECONDS = 1.0
"""By which a recording is cut short."""

TOLERANCE_SECONDS = 0.5
"""Within which the sound lost has to be what was cut: a kill itself costs some."""

SEEN_SECONDS = 5.0
"""Within which a process that was started can be seen."""

QUICK_BUSY_SECONDS = 5.0
"""After which a daemon that was made to stay busy counts as such."""

QUICK_ORPHAN_SECONDS = 5.0
"""After which a process is an orphan while faults are planted."""


class Instrument(NamedTuple):
    """What one instrument read in the round of a fault, and what was planted."""

    name: str
    read: Callable[[Round], float]
    planted: Callable[[Round], float]
    tolerance: float = 0.0


def _words(one: Round) -> float:
    return len(one.expected.split())


INSTRUMENTS = {
    "delete": Instrument("words lost", lambda one: judge(one).lost, _words),
    "double": Instrument("words doubled", lambda one: judge(one).doubled, _words),
    "leave": Instrument("recordings left", lambda one: len(one.left), lambda one: 1),
    "orphan": Instrument("orphans", lambda one: one.orphans, lambda one: 1),
    "lock": Instrument("locks", lambda one: len(one.locks), lambda one: 1),
    "cut": Instrument(
        "sound lost", lambda one: one.sound_lost or 0.0, lambda one: CUT_SECONDS, TOLERANCE_SECONDS
    ),
    "busy": Instrument("daemons that stay busy", lambda one: bool(one.busy), lambda one: 1),
    "alter": Instrument("sound altered", lambda one: bool(one.remark), lambda one: 1),
}
"""Fault -> the instrument that has to notice it."""

FAULTS = tuple(INSTRUMENTS)


class Planter:
    """Plants faults in the rounds of a house, the next one after each kill, while the block
    runs."""

    def __init__(self, house: House, faults: tuple[str, ...]) -> None:
        self.house = house
        self.rounds: dict[str, Followed] = {}
        """Fault -> the round in which it was planted."""
        self._coming = list(faults)
        self._held: list[int] = []
        self._acts = {
            "delete": self._delete,
            "leave": self._leave,
            "orphan": self._orphan,
            "lock": self._lock,
        }
        self._acts |= {"cut": self._cut, "alter": self._alter, "double": lambda one, daemon: None}
        self._acts |= {"busy": self._busy}

    @contextlib.contextmanager
    def planting(self) -> Iterator[None]:
        """Plant after each kill in the block; let go of what was held for it."""
        self.house.before_looking = self._plant
        try:
            yield
        finally:
            self.house.before_looking = lambda one, daemon: None
            self._let_go()

    def _let_go(self) -> None:
        for handle in self._held:
            os.close(handle)
        self._held = []
        self.house.after_looking = lambda: None

    def _plant(self, one: Followed, daemon: Daemon) -> None:
        if self._coming and one.round.recording:
            fault = self._coming.pop(0)
            self.rounds[fault] = one
            self._acts[fault](one, daemon)

    def finish(self) -> None:
        """Plant what can only be planted when a recording has become text."""
        one = self.rounds.get("double")
        if one is not None:
            name = self.house.sinks[0]
            entry = {
                "at": time.time(),
                "pid": 0,
                "event": "accepted",
                "text": one.round.delivered[name],
            }
            one.log_lengths = self.house.lengths()
            with (self.house.home.sinks / f"{name}.log").open("a") as log:
                log.write(json.dumps(entry) + "\n")
            self.house.collect(one)

    # -- what is planted
    # ----------------------------------------------------------------------------------------------

    def _file(self, one: Followed, ending: str = "wav") -> Path:
        return self.house.home.recordings / f"{one.round.recording}.{ending}"

    def _delete(self, one: Followed, daemon: Daemon) -> None:
        """Delete a recording; what it was heard as is known from what was fed."""
        for path in self.house.home.recordings.glob(f"{one.round.recording}.*"):
            path.unlink()
        one.round.recording = ""

    def _leave(self, one: Followed, daemon: Daemon) -> None:
        """Leave a file beside the recording which outlives it: one that no daemon knows."""
        self._file(one, "planted").write_bytes(b"left")

    def _orphan(self, one: Followed, daemon: Daemon) -> None:
        """Leave a process that belongs to the daemon that was killed."""
        environment = self.house.home.environment(daemon.life)
        process = subprocess.Popen(["sleep", "600"], env=environment, start_new_session=True)
        limit = time.monotonic() + SEEN_SECONDS
        # A program that is being loaded shows no environment yet, and on a busy machine that takes
        # a while.
        while (
            process.pid not in self.house.home.processes(daemon.life) and time.monotonic() < limit
        ):
            time.sleep(0.01)

    def _lock(self, one: Followed, daemon: Daemon) -> None:
        """Hold the lock of a recording, as a daemon that lives does, while its round is looked
        at."""
        self.house.home.locked()  # until nobody else has it
        handle = os.open(self._file(one), os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._held.append(handle)
        self.house.after_looking = self._let_go

    def _busy(self, one: Followed, daemon: Daemon) -> None:
        """Have another daemon stay busy: its worker is stopped while it owes a text, to no sink."""
        assert daemon.feeder is not None
        sinks, self.house.sinks = self.house.sinks, ()
        try:
            busy = self.house.daemon()
        finally:
            self.house.sinks = sinks
        busy.ready()
        workers = busy.workers()
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        feeder = busy.feed(daemon.feeder.sound, FAST)
        feeder.wait()
        busy.until_recorded(len(feeder.sound) / SAMPLE_RATE)
        busy.ask(verb="stop")
        with contextlib.suppress(BrokenError):
            self.house.settle(one, busy, "end of the recording", QUICK_BUSY_SECONDS)
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        busy.stop()

    def _cut(self, one: Followed, daemon: Daemon) -> None:
        """Cut a recording short."""
        size = self._file(one).stat().st_size
        os.truncate(self._file(one), max(HEADER_BYTES, size - round(CUT_SECONDS * SAMPLE_RATE) * 4))

    def _alter(self, one: Followed, daemon: Daemon) -> None:
        """Alter a few samples in the middle of a recording."""
        with self._file(one).open("r+b") as file:
            file.seek(HEADER_BYTES + 4 * (len(self.house.home.sound(one.round.recording)) // 2))
            file.write(b"\0\0\0\x3f" * 8)


def blind(rounds: dict[str, Round], others: list[Round]) -> list[str]:
    """Return a sentence for each instrument that did not report exactly what was planted.

    Args:
        rounds: fault -> the round in which it was planted.
        others: rounds in which nothing was planted, the end among them.
    """
    found = [f"{fault} could not be planted" for fault in FAULTS if fault not in rounds]
    for fault, one in rounds.items():
        for other, instrument in INSTRUMENTS.items():
            wanted = instrument.planted(one) if other == fault else 0.0
            tolerance = max(instrument.tolerance, _slack(fault, other))
            if abs(instrument.read(one) - wanted) > tolerance:
                found.append(
                    f"{instrument.name}: {instrument.read(one):g} instead of {wanted:g} with fault {fault}"
                )
    for one in others:
        wrong = [i.name for i in INSTRUMENTS.values() if i.read(one) > i.tolerance]
        found += [f"{name} where nothing was planted" for name in wrong]
    return found


def _slack(fault: str, other: str) -> float:
    """Return how far an instrument may be off for another's fault: altered samples may change
    words."""
    return float("inf") if (fault, other) in {("alter", "delete"), ("alter", "double")} else 0.0


# -- deliveries
# -------------------------------------------------------------------------------------------------------

DELIVERIES = ("drop", "double", "double again")
"""Faults of part delivery: a text that no sink has, one that a sink has twice, one sent again
though nobody asked."""


class DeliveryPlanter:
    """Alters the log of the first sink: in the first round it loses a text, in the second it has
    one twice.

    In the third the text comes once more as if `retry --again` had sent it, without a word that it
    may be there.
    """

    def __init__(self, house: House) -> None:
        self.house = house
        self._struck: dict[str, Round] = {}

    def plant(self, one: Followed) -> None:
        """Alter what the first sink has logged since the round was last asked, where it accepted
        something."""
        name = self.house.sinks[0]
        log = self.house.home.sinks / f"{name}.log"
        new = self.house.home.entries(name, one.log_lengths[name])
        texts = [entry for entry in new if entry["event"] == "accepted"]
        coming = [fault for fault in DELIVERIES if fault not in self._struck]
        if not (texts and coming) or one.round in self._struck.values():
            return
        self._struck[coming[0]] = one.round
        lines = log.read_text().splitlines(keepends=True)
        if coming[0] == "drop":
            log.write_text("".join(line for line in lines if json.loads(line) != texts[0]))
        elif coming[0] == "double":
            log.write_text("".join([*lines, json.dumps(texts[0]) + "\n"]))
        else:
            one.round.again[name] = texts[0]["text"].strip()

    def blind(self) -> list[str]:
        """Return a sentence for each fault that was not reported exactly."""
        found = [
            f"{fault} could not be planted" for fault in DELIVERIES if fault not in self._struck
        ]
        for fault, one in self._struck.items():
            words = len(one.expected.split())
            wanted = (words, 0) if fault == "drop" else (0, words)
            if (judged := judge(one)) != wanted or not words:
                found.append(
                    f"{judged.lost} words lost, {judged.doubled} doubled with fault {fault} of {words} words"
                )
        others = [one for one in self.house.rounds if one not in self._struck.values()]
        return found + ["words lost or doubled where nothing was planted"] * any(
            any(judge(one)) for one in others
        )
