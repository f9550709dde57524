"""Part `kills`: SIGKILL of daemon, worker or both, in each moment of a recording's and a daemon's
life."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from . import microphone, sounds
from .daemon import BrokenError, Daemon, Feeder
from .home import SAMPLE_RATE
from .house import FAST, Followed, House, finish
from .microphone import SoundServer
from .suspend import Logind

TARGETS = ("daemon", "worker", "both")

DECODING_SECONDS = 0.3
"""In which the worker hears a dozen seconds, with some left over."""

BY_KEY_SHARE = 0.5
"""Of recordings whose worker was killed, that end by key: then the daemon has to come to rest."""

SETTLE_SECONDS = 0.3
"""In which the second recorder has all that the microphone gave before the kill."""

OLD_RECORDINGS = 120
"""That lie there too long when a daemon prunes."""

OLD_SECONDS = 40 * 86_400.0


class Kills:
    """The rounds of one house.

    Args:
        house: where they are played.
        logind: says when the machine sleeps.
        server: has the microphone, for the moments that need one.
    """

    def __init__(self, house: House, logind: Logind, server: SoundServer | None = None) -> None:
        self.house, self.draw, self._logind, self._server = house, house.draw, logind, server
        self._short = sounds.endless(self.draw, 1.3, 2.6)
        self.pace, self.earliest = 1.0, 0.02
        """Of recording: times as fast as speech, and the share of the sound from which on the kill
        may come."""
        self.load_seconds = 6.0
        """That a worker takes until it is ready; follows what is seen."""
        self.moments = {
            "recording": self.recording,
            "loading": self.loading,
            "decoding": self.decoding,
            "delivering": self.delivering,
            "falling back": self.falling_back,
            "switching": self.switching,
            "pruning": self.pruning,
            "reloading": self.reloading,
            "suspending": self.suspending,
            "retrying": self.retrying,
            "at random": self.at_random,
            "microphone, quiet": lambda one, target: self.microphone(one, speech=False),
            "microphone, speech": lambda one, target: self.microphone(one, speech=True),
        }

    def play(self, moment: str, target: str) -> None:
        """Play one round. Raises BrokenError, OSError."""
        one = self.house.begin(moment, target)
        for name in self.house.sinks:
            self.house.home.mode(name, "accept")
        self.house.usual["deliver"] = self.draw.choice(("take", "segment"))
        self.moments[moment](one, target)

    def close(self) -> None:
        """Nothing is held between two rounds."""

    # -- what several moments do
    # --------------------------------------------------------------------------------------

    def _speech(self, clips: int = 1) -> np.ndarray:
        return sounds.joined(self.draw, [next(self._short) for _ in range(clips)])

    def _loaded(self, heal: bool = True, but: Followed | None = None, **more: Any) -> Daemon:
        """Return a daemon whose model is loaded, and which has written down what waited, but for
        one round's."""
        daemon = self.house.daemon(**more)
        daemon.ready()
        self.load_seconds = 0.5 * self.load_seconds + 0.5 * (time.monotonic() - daemon.began)
        if heal:
            self.house.heal(daemon, but)
        return daemon

    def _kill(self, one: Followed, daemon: Daemon, feeder: Feeder, seconds: float) -> None:
        """Kill in so many seconds, and see what becomes of it."""
        time.sleep(seconds)
        one.round.killed_after = round(seconds, 4)
        daemon.kill(one.round.target, feeder)
        if one.round.target != "worker":
            self.house.look(one, daemon, feeder)
            return
        feeder.wait()
        assert daemon.process.stdin is not None
        goes_on = not daemon.process.stdin.closed
        if self.draw.random() < BY_KEY_SHARE and goes_on:
            daemon.until_recorded(len(feeder.sound) / SAMPLE_RATE)
            daemon.ask(verb="stop")
            self.house.settle(one, daemon, "end of the recording")
            daemon.stop()
        else:
            daemon.end_sound()
            finish(daemon)
        self.house.lived_on(one, daemon, feeder.sound)

    @contextlib.contextmanager
    def _asking(self, daemon: Daemon, **request: Any) -> Iterator[None]:
        """Have a request on its way while the block runs; nobody waits for its answer."""
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(os.fspath(daemon.socket))
            line.sendall(json.dumps(request).encode() + b"\n")
            yield

    def _until_begun(self, one: Followed, seconds: float = 60.0) -> None:
        """Wait until the first sink has begun. Raises BrokenError."""
        name, limit = self.house.sinks[0], time.monotonic() + seconds
        while len(self.house.home.entries(name)) <= one.log_lengths[name]:
            if time.monotonic() > limit:
                raise BrokenError("nothing was delivered")
            time.sleep(0.002)

    # -- moments
    # ------------------------------------------------------------------------------------------------------

    def recording(self, one: Followed, target: str) -> None:
        """While somebody speaks; the daemon alone needs no model for that."""
        daemon = self._loaded() if target != "daemon" else self.house.daemon(loaded=False)
        sound = self._speech()
        share = self.draw.uniform(self.earliest, 0.9)
        self._kill(
            one, daemon, daemon.feed(sound, self.pace), share * len(sound) / SAMPLE_RATE / self.pace
        )

    def loading(self, one: Followed, target: str) -> None:
        """While the worker imports, reads and casts."""
        daemon = self.house.daemon()
        self._kill(
            one, daemon, daemon.feed(self._speech()), self.draw.uniform(0.0, self.load_seconds)
        )

    def decoding(self, one: Followed, target: str) -> None:
        """While the worker hears some dozen seconds that came at once."""
        daemon = self._loaded()
        feeder = daemon.feed(self._speech(6), FAST)
        self._kill(one, daemon, feeder, self.draw.uniform(0.0, DECODING_SECONDS))

    def delivering(self, one: Followed, target: str) -> None:
        """While a sink has the text: before it has accepted, or right after."""
        daemon = self._loaded()
        self.house.home.mode(self.house.sinks[0], self.draw.choice(("slow", "late")))
        feeder = daemon.feed(self._speech(), FAST)
        feeder.wait()
        daemon.end_sound()
        self._until_begun(one)
        self._kill(one, daemon, feeder, self.draw.uniform(0.0, 0.7))

    def falling_back(self, one: Followed, target: str) -> None:
        """While the next precision comes up, after the first buffer was NaN."""
        daemon = self._loaded(heal=False, strategy="bfloat16", faults="non-finite:1")
        feeder = daemon.feed(self._speech(), FAST)
        feeder.wait()
        daemon.until(
            lambda status: bool(status["rejected"] or status["below"] or status["loading"]),
            "fall back",
        )
        self._kill(one, daemon, feeder, self.draw.uniform(0.0, self.load_seconds))

    def switching(self, one: Followed, target: str) -> None:
        """While `asrd use` brings up another precision beside the one in service."""
        daemon = self._loaded()
        with self._asking(daemon, verb="use", strategy="bfloat16"):
            self._kill(
                one, daemon, daemon.feed(self._speech()), self.draw.uniform(0.0, self.load_seconds)
            )

    def pruning(self, one: Followed, target: str) -> None:
        """While a daemon that starts deletes what is too old; what is not must stay. There is no
        worker yet."""
        one.round.target = "daemon"
        recorded = self.house.daemon(loaded=False)
        feeder = recorded.feed(self._speech(), FAST)
        feeder.wait()
        recorded.until_recorded(len(feeder.sound) / SAMPLE_RATE)
        recorded.kill("daemon", feeder)
        self.house.look(one, recorded, feeder)
        old = plant_old(self.house, one.round.recording)
        daemon = self.house.daemon_unready(loaded=False)
        limit = time.monotonic() + 10
        while sum(map(os.path.exists, old)) == len(old) and time.monotonic() < limit:
            pass
        time.sleep(self.draw.uniform(0.0, 0.004))
        daemon.kill("daemon")
        one.round.killed_after = round(time.monotonic() - daemon.began, 4)
        one.round.remark = (
            "" if one.round.recording in self.house.home.kept() else "a fresh recording was pruned"
        )

    def reloading(self, one: Followed, target: str) -> None:
        """While the daemon reads its configuration again: other settings, another precision, or a
        broken file."""
        daemon = self._loaded()
        feeder = daemon.feed(self._speech())
        change = self.draw.choice(("setting", "precision", "broken"))
        if change == "broken":
            (self.house.home.folder / ".config" / "asrd" / "config.toml").write_text("suffix = \n")
        else:
            settings = {"takes_days": 7} if change == "setting" else {"strategy": "bfloat16"}
            self.house.home.configure(self.house.sinks, **self.house.usual, **settings)
        daemon.process.send_signal(signal.SIGHUP)
        span = self.load_seconds if change == "precision" else 0.2
        self._kill(one, daemon, feeder, self.draw.uniform(0.0, span))

    def suspending(self, one: Followed, target: str) -> None:
        """While the daemon gets ready for the machine's sleep, which ends the recording."""
        self._logind.ensure()
        daemon = self._loaded(DBUS_SYSTEM_BUS_ADDRESS=self._logind.address)
        feeder = daemon.feed(self._speech(2), FAST)
        feeder.wait()
        daemon.until_recorded(len(feeder.sound) / SAMPLE_RATE)
        self._logind.say("sleep")
        time.sleep(self.draw.uniform(0.0, 0.5))
        daemon.kill(target, feeder)
        self._logind.say("wake")
        if target != "worker":
            self.house.look(one, daemon, feeder)
            return
        self.house.settle(one, daemon, "end of the recording")
        daemon.stop()
        self.house.lived_on(one, daemon, feeder.sound)

    def retrying(self, one: Followed, target: str) -> None:
        """While `retry` writes down and delivers a recording that an earlier kill left."""
        recorded = self.house.daemon(loaded=False)
        feeder = recorded.feed(self._speech(2), FAST)
        feeder.wait()
        recorded.until_recorded(len(feeder.sound) / SAMPLE_RATE)
        recorded.kill("daemon", feeder)
        self.house.look(one, recorded, feeder)
        self.house.open.remove(one)
        daemon = self._loaded(source="mic", but=one)
        one.log_lengths = self.house.lengths()
        self.house.home.mode(self.house.sinks[0], self.draw.choice(("accept", "slow", "late")))
        with self._asking(daemon, verb="retry", take=one.round.recording, deliver=True):
            time.sleep(self.draw.uniform(0.0, 0.8))
            daemon.kill(target)
        if target == "worker":
            self.house.settle(one, daemon, "end of the retry")
            daemon.stop()
        self.house.look_again(one, daemon)

    def at_random(self, one: Followed, target: str) -> None:
        """Anywhere between the start of a daemon and the end of its work."""
        daemon = self.house.daemon()
        sound = self._speech(2)
        span = max(self.load_seconds, len(sound) / SAMPLE_RATE) + 1.0
        self._kill(one, daemon, daemon.feed(sound), self.draw.uniform(0.0, span))

    def microphone(self, one: Followed, speech: bool) -> None:
        """While the daemon records from a real PipeWire; only the daemon, as no model is needed."""
        server = self._server
        assert server is not None
        one.round.target = "daemon"
        server.speech = self._speech(4) if speech else np.zeros(0, np.int16)
        more: dict[str, Any] = {"microphone": microphone.NAME, **server.environment}
        daemon = self.house.daemon(loaded=False, source="mic", **more)
        daemon.ask(verb="start")
        daemon.until(
            lambda status: (status["take"] or {}).get("seconds", 0.0) > 0.5,
            "sound from the microphone",
        )
        time.sleep(self.draw.uniform(0.5, 2.5))
        killed = time.monotonic()
        daemon.kill("daemon")
        one.round.killed_after = round(killed - daemon.began, 4)
        time.sleep(SETTLE_SECONDS)
        self.house.look_at_microphone(one, daemon)
        first, sound = server.reference.sound()
        end, quality = microphone.place_of_the_end(sound, one.sound)
        if quality < microphone.QUALITY:
            one.round.remark = (
                f"the recording is not what the microphone gave (correlation {quality:.2f})"
            )
            return
        lost = server.reference.given(killed) - (first + end) / SAMPLE_RATE
        one.round.kept = len(one.sound) / SAMPLE_RATE
        one.round.fed = one.round.kept + lost


def plant_old(house: House, recording: str) -> list[str]:
    """Put copies of a recording beside it that are older than any that stays; return their sound
    files."""
    folder, made = house.home.recordings, []
    then = time.time() - OLD_SECONDS
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(then))
    note = json.loads((folder / f"{recording}.json").read_bytes())
    for number in range(OLD_RECORDINGS):
        name = f"{stamp}-{number:04x}"
        shutil.copy(folder / f"{recording}.wav", folder / f"{name}.wav")
        (folder / f"{name}.json").write_text(json.dumps(note | {"id": name, "began": then}))
        os.utime(folder / f"{name}.wav", (then, then))
        made.append(str(folder / f"{name}.wav"))
    return made


def schedule(draw: random.Random, moments: list[str], rounds: int) -> list[tuple[str, str]]:
    """Return moments and targets, so many rounds of each moment, mixed; the targets take turns."""
    plan = [
        (moment, TARGETS[number % len(TARGETS)]) for moment in moments for number in range(rounds)
    ]
    draw.shuffle(plan)
    return plan
