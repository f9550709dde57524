"""A home in which daemons are killed: what was killed is followed until it is text, and what is
left over is found.

A daemon is started, brought to a moment and killed, again and again in one home. A daemon whose
model is loaded first does what a user would: `retry` for each recording that waits. The text of a
sound by which deliveries are judged comes from that daemon too, by `transcribe`, which nobody
disturbs.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from .daemon import PATIENCE_SECONDS, BrokenError, Daemon, Feeder
from .findings import Round
from .home import SAMPLE_RATE, Home

ORPHAN_SECONDS = 60.0
"""After which a process whose daemon was killed counts as an orphan; a worker that imports NeMo
notices late."""

RETRIES = 12
"""That a recording gets until every sink has it: more than any sink is told to refuse."""

REFUSED = "the daemon refused"
"""How the remark of a retry begins that did not do it."""

SINK_SECONDS = 15.0
"""That a sink of a killed daemon gets for its end."""

FAST = 1000.0
"""Times as fast as speech: all of it at once, so that much of it waits in the pipe."""

AT_REST = ("IDLE", "UNLOADED")
"""States of a daemon that has nothing to do."""

ABSENT_MODEL = "absent.nemo"
"""Of a daemon that only has to record: its worker ends at once."""


class Followed:
    """A round, and what is needed to judge it later."""

    def __init__(self, round_: Round, sound: np.ndarray, log_lengths: dict[str, int]) -> None:
        self.round, self.sound, self.log_lengths = round_, sound, log_lengths
        self.judged = False


class House:
    """A home, the rounds that were played in it, and the daemons before.

    Args:
        home: the folders.
        draw: decides everything that is left to chance.
        sinks: their names.
    """

    def __init__(self, home: Home, draw: random.Random, sinks: tuple[str, ...] = ("one",)) -> None:
        self.home, self.draw, self.sinks = home, draw, sinks
        self.rounds: list[Round] = []
        self.open: list[Followed] = []
        """Rounds whose recording is not text yet."""
        self.usual: dict[str, Any] = {}
        """Settings of every daemon, unless it is given others."""
        self.before_looking: Callable[[Followed, Daemon], None] = lambda one, daemon: None
        """Called after a kill, before anything is looked at: there faults are planted."""
        self.after_looking: Callable[[], object] = lambda: None
        """Called when a round was looked at: there a planted lock is let go."""
        self.before_collecting: Callable[[Followed], None] = lambda one: None
        """Called before the sinks' logs are read: there deliveries are planted."""
        self.orphan_seconds = ORPHAN_SECONDS
        self.alone = True
        """Whether no daemon lives beside one that is killed; else scratch folders may be locked by
        it."""
        self._current: Followed | None = None
        self._before: set[str] = set()
        """Recordings that were there when the round began."""
        self._newest: Daemon | None = None
        """The daemon that was started last in the round."""
        self._lives = 0
        self._gone: list[tuple[str, float, Round]] = []
        """Lives that were killed, when, and in which round."""

    # -- daemons
    # ------------------------------------------------------------------------------------------------------

    def daemon(
        self, loaded: bool = True, source: str = "pipe", flags: tuple[str, ...] = (), **more: Any
    ) -> Daemon:
        """Start a daemon and wait until it records; arguments as of `daemon_unready`."""
        daemon = self.daemon_unready(loaded, source, flags, **more)
        daemon.up()
        return daemon

    def daemon_unready(
        self, loaded: bool = True, source: str = "pipe", flags: tuple[str, ...] = (), **more: Any
    ) -> Daemon:
        """Start a daemon.

        Args:
            loaded: whether its model is there; without, it only records.
            source: pipe or mic.
            flags: of `asrd run`.
            more: settings, and environment variables in capitals.
        """
        environment = {key: str(value) for key, value in more.items() if key.isupper()}
        settings = self.usual | {key: value for key, value in more.items() if not key.isupper()}
        if not loaded:
            settings["model"] = str(self.home.folder / ABSENT_MODEL)
        self.home.configure(self.sinks, **settings)
        self._lives += 1
        self._newest = Daemon(self.home, f"{self._lives}", source, flags, environment)
        return self._newest

    def begin(self, moment: str, target: str) -> Followed:
        """Return a new round, with the lengths of the sinks' logs as they are now."""
        one = Round(len(self.rounds) + 1, moment, target)
        self.rounds.append(one)
        self._before, self._newest = set(self.home.kept()), None
        self._current = Followed(one, np.zeros(0, np.int16), self.lengths())
        return self._current

    def lengths(self) -> dict[str, int]:
        """Return how many entries each sink's log has."""
        return {name: len(self.home.entries(name)) for name in self.sinks}

    # -- after a kill
    # -------------------------------------------------------------------------------------------------

    def look(self, one: Followed, daemon: Daemon, feeder: Feeder) -> None:
        """Look at what a kill left: the recording, its sound, locks; what it was heard as is asked
        later."""
        self._gone.append((daemon.life, time.monotonic(), one.round))
        self._wait_for_sinks(daemon.life)
        one.round.recording = daemon.recording()
        self.before_looking(one, daemon)
        one.round.locks = self.home.locked(alone=self.alone)
        one.round.fed = feeder.at_the_kill / SAMPLE_RATE
        one.round.in_real_time = feeder.pace < FAST
        one.sound = feeder.sound[: feeder.at_the_kill]
        if one.round.recording:
            self._hold_against(one, feeder.sound)
        self.after_looking()
        self.collect(one)
        self.open.append(one)
        self.find_orphans()

    def _hold_against(self, one: Followed, sound: np.ndarray) -> None:
        """Compare a recording with the sound that was fed, sample by sample."""
        kept = self.home.sound(one.round.recording)
        one.sound = sound[: len(kept)]
        one.round.kept = len(kept) / SAMPLE_RATE
        one.round.fed = max(
            one.round.fed or 0.0, one.round.kept
        )  # a piece may have come in beside the kill
        if not np.array_equal(kept, one.sound * np.float32(1 / 32768)):
            one.round.remark = "the recording is not what was fed"

    def look_at_microphone(self, one: Followed, daemon: Daemon) -> None:
        """Look at a recording whose sound came from a microphone, so that no sample of it is known
        before."""
        self._gone.append((daemon.life, time.monotonic(), one.round))
        one.round.recording = daemon.recording()
        one.round.locks = self.home.locked()
        one.sound = self.home.sound(one.round.recording)
        self.collect(one)
        self.open.append(one)
        self.find_orphans()

    def look_again(self, one: Followed, daemon: Daemon) -> None:
        """Look once more at a round whose recording was there before the daemon that was killed."""
        self._gone.append((daemon.life, time.monotonic(), one.round))
        self._wait_for_sinks(daemon.life)
        one.round.locks += self.home.locked()
        self.collect(one)
        self.open.append(one)
        self.find_orphans()

    def lived_on(self, one: Followed, daemon: Daemon, sound: np.ndarray) -> None:
        """Note a round whose daemon went on and came to its end."""
        one.round.recording, one.sound = daemon.recording(), sound
        self.collect(one)
        self.open.append(one)

    def _wait_for_sinks(self, life: str) -> None:
        """Wait until sinks of a daemon that was killed have ended, as what they still accept
        counts."""
        limit = time.monotonic() + SINK_SECONDS
        while self._sinks_of(life) and time.monotonic() < limit:
            time.sleep(0.01)

    def _sinks_of(self, life: str) -> list[int]:
        found = []
        for pid in self.home.processes(life):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if b"sink.py" in words:
                found.append(pid)
        return found

    def collect(self, one: Followed, again: bool = False) -> None:
        """Add what the sinks accepted since the round began, or since it was last asked.

        Args:
            one: the round.
            again: it was sent again on request, although it may have been delivered.
        """
        self.before_collecting(one)
        found = one.round.again if again else one.round.delivered
        for name in self.sinks:
            entries = self.home.entries(name, one.log_lengths[name])
            one.log_lengths[name] += len(entries)
            texts = [entry["text"] for entry in entries if entry["event"] == "accepted"]
            found[name] = " ".join(filter(None, (found.get(name, ""), *map(str.strip, texts))))

    def settle(
        self, one: Followed, daemon: Daemon, what: str, seconds: float = PATIENCE_SECONDS
    ) -> None:
        """Wait until a daemon has nothing to do; one that stays busy is noted. Raises BrokenError."""
        try:
            daemon.until(lambda status: status["state"] in AT_REST, what, seconds)
        except BrokenError:
            if daemon.process.poll() is None:
                one.round.busy = daemon.doing()
            raise

    # -- after a round that broke
    # -------------------------------------------------------------------------------------------------

    def start_afresh(self, error: str) -> None:
        """End every process of a round that broke, and judge what it recorded before the next begins.

        What another daemon makes no text of is set aside and counts as left.
        """
        assert self._current is not None
        one = self._current
        self.home.clear()
        one.round.remark = ""
        try:
            if self._newest is not None:
                self._newest.wait()
            self._take_in(one)
            daemon = self.daemon(source="mic")
            daemon.ready()
            self.heal(daemon)
            daemon.stop()
        except (BrokenError, OSError, ValueError) as second:
            self.home.clear()
            one.round.remark += f"; another daemon could not tell what became of it: {second}"
        one.round.remark = (error + "; " + one.round.remark).rstrip("; ")
        if self.home.kept():
            self._set_aside(one)

    def _take_in(self, one: Followed) -> None:
        """Find the recording of a round that broke, and what the sinks have of it."""
        for name in self.sinks:
            self.home.mode(name, "accept")
        owned = {each.recording for each in self.rounds}
        own = sorted(set(self.home.kept()) - self._before - owned)
        feeder = self._newest.feeder if self._newest is not None else None
        if own and not one.round.recording:
            one.round.recording = own[-1]
        if one.round.recording in self.home.kept():
            one.sound = self.home.sound(one.round.recording)
        elif feeder is not None and not len(one.sound):  # its text is out, and the recording gone
            one.sound = feeder.sound[: feeder.samples]
        self.collect(one)
        if one not in self.open:
            self.open.append(one)

    def _set_aside(self, one: Followed) -> None:
        """Move recordings that no daemon made text of to where no other finds them."""
        names = self.home.set_aside(self.home.folder / f"set aside {one.round.number}")
        for name in names:
            (self._owner(name) or one.round).left.append(f"{name}.wav")
        self.open = []

    def find_orphans(self, wait: bool = False) -> None:
        """Count processes of daemons that were killed long ago, and end them.

        Args:
            wait: until each has had its time.
        """
        kept = []
        for life, killed, one in self._gone:
            while (
                wait
                and self.home.processes(life)
                and time.monotonic() - killed < self.orphan_seconds
            ):
                time.sleep(0.05)
            if time.monotonic() - killed >= self.orphan_seconds:
                one.orphans += self.home.end_all(life)
            elif self.home.processes(life):
                kept.append((life, killed, one))
        self._gone = kept

    # -- back to text
    # -------------------------------------------------------------------------------------------------

    def heal(self, daemon: Daemon, but: Followed | None = None) -> None:
        """Have a daemon that is ready turn every recording that waits into text, and learn what was
        said.

        Args:
            daemon: one that nobody disturbs.
            but: a round whose recording is left as it is.
        """
        waiting = self._waiting(daemon) - {but.round.recording if but else ""}
        for one in self.open:
            if one.round.recording in waiting:
                waiting.remove(one.round.recording)
                self.retry(daemon, one)
            one.round.expected = self.heard(daemon, one.sound)
        for name in sorted(waiting):  # of daemons that were killed before they heard anything
            if daemon.ask(verb="retry", take=name, deliver=True)["text"]:
                self.rounds[-1].remark = f"{name} came from nowhere"
        self.open = []
        if self._current is not None:
            self._current.log_lengths = self.lengths()

    def _waiting(self, daemon: Daemon) -> set[str]:
        """Return the recordings that wait, but for the one that this daemon is recording."""
        takes = daemon.ask(verb="takes")["takes"]
        return {take["id"] for take in takes if not take["delivered"]} - {daemon.recording()}

    def retry(self, daemon: Daemon, one: Followed) -> None:
        """Have a recording written down and delivered, again where asrd says that it may have been
        delivered.

        What a sink refuses is tried anew; where that does not end, it is the round's remark.
        """
        one.log_lengths = self.lengths()
        for _ in range(RETRIES):
            try:
                reply = daemon.ask(verb="retry", take=one.round.recording, deliver=True)
            except BrokenError as error:
                one.round.remark = str(error)
                self.collect(one)
                continue
            one.round.remark = "" if one.round.remark.startswith(REFUSED) else one.round.remark
            self.collect(one)
            self._again(daemon, one, reply.get("uncertain", []))
            return

    def _again(self, daemon: Daemon, one: Followed, uncertain: list[str]) -> None:
        """Send again what asrd says may have been delivered, until every sink has it."""
        one.round.uncertain += [name for name in self.sinks if self.home.command(name) in uncertain]
        for _ in range(RETRIES if uncertain else 0):
            try:
                daemon.ask(verb="retry", take=one.round.recording, again=True)
            except BrokenError as error:
                one.round.remark = str(error)
                self.collect(one, again=True)
            else:
                one.round.remark = "" if one.round.remark.startswith(REFUSED) else one.round.remark
                self.collect(one, again=True)
                return

    def heard(self, daemon: Daemon, sound: np.ndarray) -> str:
        """Return the text of a sound, int16 or float32."""
        if not len(sound):
            return ""
        path = self.home.folder / "sound.wav"
        samples = sound if sound.dtype == np.float32 else sound * np.float32(1 / 32768)
        soundfile.write(path, samples, SAMPLE_RATE, subtype="FLOAT")
        words: list[str] = []
        with daemon.asked(verb="transcribe", path=str(path)) as replies:
            for reply in replies:
                words += [word["text"] for word in reply["words"]]
        return " ".join(words)

    def last(self) -> None:
        """Heal what waits, end the last daemon in order, and look for all that must not be left."""
        end = Round(len(self.rounds) + 1, "the end", "none")
        self.home.age()
        try:
            daemon = self.daemon(source="mic")
            daemon.ready()
            self.heal(daemon)
            if code := daemon.stop():
                end.remark = f"the last daemon ended with {code}"
            self._replace_sockets()
        except (BrokenError, OSError, ValueError) as error:  # what was found before is told even so
            end.remark = str(error)
            self.home.clear()
        self.find_orphans(wait=True)
        end.locks, end.left = self.home.locked(), self._owned(self.home.strays())
        end.left += self._owned([f"{name}.wav" for name in self.home.kept()]) + self.home.litter()
        self.rounds.append(end)

    def _replace_sockets(self) -> None:
        """Start and end a daemon on each socket that is left: a killed one's goes with the next on
        its place."""
        for path in sorted(self.home.runtime.glob("*.sock")):
            self.daemon(loaded=False, source="mic", ASRD_SOCKET=str(path)).stop()

    def _owned(self, names: list[str]) -> list[str]:
        """Give files to the rounds whose recordings they belonged to; return the others."""
        others = []
        for name in names:
            owner = self._owner(name.split(".")[0])
            if owner is None:
                others.append(name)
            else:
                owner.left.append(name)
        return others

    def _owner(self, recording: str) -> Round | None:
        return next((one for one in self.rounds if one.recording == recording), None)


def finish(daemon: Daemon) -> None:
    """Wait for the end of a daemon whose source ended. Raises BrokenError."""
    code = daemon.wait()
    if code not in (0, 75):
        raise BrokenError(
            f"the daemon ended with {code} within {PATIENCE_SECONDS:.0f} s: {daemon.last_words()}"
        )
