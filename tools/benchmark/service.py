"""The daemon over its socket: how fast it starts, how soon text comes, what it costs to leave it
running.

R2, R5, R6 and R8 are measured here, on the real daemon in a process of its own; only its microphone
is ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asrd.audio.format import SAMPLE_RATE
from asrd.engine.process import WORKER_ENVIRONMENT
from asrd.scoring import edits

from . import sounds
from .processes import (
    ROOT,
    Host,
    children,
    cpu_seconds,
    environment,
    holding,
    interruptions,
    switches,
)
from .ratios import Reading, StartUp, Stop
from .sounds import Samples

PATIENCE = 120.0
"""Seconds that anything may take before the bench gives up."""

TAIL = 10.0
"""Seconds before the key that are always in real time."""

GLANCE = 0.15
"""Seconds within which the daemon has let go of a recording that ended: it looks at one with a
limit each tenth."""

FASTER = 16.0
"""How much faster what lies before them is played, where not all is in real time."""

IMPORTS = "import torch, nemo.collections.asr.models, sys; open(sys.argv[1], 'rb').read(); print('read', flush=True)"


class Sent(NamedTuple):
    """A dictation for a sink."""

    sink: float
    """Seconds from the stop request until all of the text was there."""
    reply: float
    """Seconds until the request was answered."""
    journal: float
    """Seconds by the daemon's own clock, as the journal has them."""
    text: str


class Service:
    """A daemon under `fp32`. Its folders lie in `folder`; nothing of the user's is touched.

    Args:
        folder: for its state, its socket and its log.
        model: a shipped name.
        threads: that its worker may take; how many it does is its own choice, as it is for a user.
        what: is done on purpose to its worker: leak, slow, tidy; or to the daemon: reread.
        sinks: where text goes for which no client waits.
    """

    def __init__(
        self, folder: Path, model: str, threads: int, *what: str, sinks: str = "none"
    ) -> None:
        self.folder = folder
        self.interrupted = 0
        """Times that others took the processor from the daemon between the last stop request and
        its text."""
        self.socket = folder / "asrd.sock"
        self._command = [sys.executable, "-P", "-m", "tools.benchmark.player", "run", *what]
        places = {
            name: str(folder) for name in ("XDG_STATE_HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME")
        }
        settings = {
            "MODEL": model,
            "STRATEGY": "fp32",
            "DEVICE": "cpu",
            "THREADS": "0",
            "IDLE": "never",
        }
        settings |= {"SINKS": sinks, "NOTIFY": "false", "SOCKET": str(self.socket)}
        self._environment = environment(
            threads,
            **places,
            **{f"ASRD_{key}": value for key, value in settings.items()},
            NOTIFY_SOCKET=str(folder / "notify"),
        )

    def up(self) -> tuple[float, float]:
        """Start it; return the seconds from exec until it is ready to record, and until it is ready
        for text."""
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
            (self.folder / "log").open("a") as log,
        ):
            manager.bind(self._environment["NOTIFY_SOCKET"])
            manager.settimeout(PATIENCE)
            began = time.perf_counter()
            self.process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=self._environment,
                stdin=-1,
                stdout=-1,
                stderr=log,
                text=True,
                bufsize=1,
            )
            while b"READY=1" not in manager.recv(1 << 16).split(b"\n"):
                pass
            record = time.perf_counter() - began
        (self.folder / "notify").unlink()
        with self._asked(verb="status", follow=True) as replies:
            while (told := next(replies))["state"] != "IDLE":
                if told["trouble"]:
                    raise SystemExit(f"asrd: the daemon cannot load its model: {told['trouble']}")
            return record, time.perf_counter() - began

    def down(self) -> None:
        """End it in order."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def pids(self) -> tuple[int, int]:
        """The daemon and its worker."""
        return self.process.pid, children(self.process.pid)[0]

    def dictate(
        self, sound: Path, lead: int = 0, pace: float = 1.0, **more: Any
    ) -> tuple[float, str]:
        """Speak a sound and press the key at its very end; return the seconds until the text is
        there, and the text.

        Args:
            sound: a .npy file.
            lead: samples that are played `pace` times as fast as they were spoken.
            more: of the request to start.
        """
        self._say(sound, lead, pace)
        with self._asked(verb="start", wait=True, **more) as replies:
            next(replies)
            self._wait_until_played()
            with self._line() as key:
                before, began = interruptions(self.process.pid), time.perf_counter()
                key.sendall(b'{"verb":"stop"}\n')
                told = next(replies)
                spent = time.perf_counter() - began
                self.interrupted = interruptions(self.process.pid) - before
                return spent, str(told["text"])

    def send(self, sound: Path, lead: int = 0, pace: float = 1.0) -> Sent:
        """Speak a sound for the sink `stdout` and press the key at its very end; as `dictate`
        does."""
        assert self.process.stdout is not None
        self._say(sound, lead, pace)
        self.ask(verb="start")
        self._wait_until_played()
        read = self.process.stdout.readline
        with ThreadPoolExecutor(1) as pool, self._line() as key, key.makefile("rb") as replies:
            line = pool.submit(lambda: (read(), time.perf_counter()))
            before, began = interruptions(self.process.pid), time.perf_counter()
            key.sendall(b'{"verb":"stop"}\n')
            self._told(replies.readline())
            replied = time.perf_counter()
            text, arrived = line.result(PATIENCE)
            self.interrupted = interruptions(self.process.pid) - before
        told = self.ask(verb="last", wait=True)
        return Sent(arrived - began, replied - began, told["stop_to_text_ms"] / 1000, text.strip())

    def settle(self) -> None:
        """Wait until the daemon has done with the last recording, its figures included."""
        deadline = time.monotonic() + PATIENCE
        while self.ask(verb="status")["state"] != "IDLE":
            if time.monotonic() > deadline:
                raise SystemExit("asrd: the daemon does not come to rest")
            time.sleep(0.002)

    def listen(self, sound: Path, act: Callable[[], Any]) -> Any:
        """Do something while a sound is recorded, which is dropped; return what it returned."""
        self._say(sound, 0, 1.0)
        self.ask(verb="start")
        found = act()
        self.ask(verb="cancel")
        return found

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request; return its first answer."""
        with self._asked(**request) as replies:
            return next(replies)

    def _say(self, sound: Path, lead: int, pace: float) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(
            json.dumps({"sound": str(sound), "lead": lead, "pace": pace}) + "\n"
        )

    def _wait_until_played(self) -> None:
        assert self.process.stdout is not None
        if (
            not select.select([self.process.stdout], [], [], 3 * PATIENCE)[0]
            or not self.process.stdout.readline()
        ):
            raise SystemExit(f"asrd: the daemon ended: {(self.folder / 'log').read_text()[-800:]}")

    def _line(self) -> socket.socket:
        line = socket.socket(socket.AF_UNIX)
        line.settimeout(PATIENCE)
        line.connect(os.fspath(self.socket))
        return line

    @contextlib.contextmanager
    def _asked(self, **request: Any) -> Iterator[Iterator[dict[str, Any]]]:
        with self._line() as line, line.makefile("rb") as replies:
            line.sendall(json.dumps(request).encode() + b"\n")
            yield (self._told(reply) for reply in replies)

    def _told(self, line: bytes) -> dict[str, Any]:
        reply = dict(json.loads(line))
        if not reply["ok"]:
            raise SystemExit(f"asrd: the daemon refused: {reply['error']}")
        return reply


# -- R6
# ---------------------------------------------------------------------------------------------------------------


def start_ups(
    make: Callable[[], Service], checkpoint: Path, count: int
) -> tuple[list[StartUp], Service]:
    """Start the daemon so many times, each after what no program on NeMo can do without; leave the
    last one running.

    With a count of 0 it is only started.
    """
    found: list[StartUp] = []
    while True:
        if not count:
            service = make()
            service.up()
            return found, service
        floor = _floor(checkpoint)
        service = make()
        found.append(StartUp(*service.up(), floor))
        if len(found) == count:
            return found, service
        service.down()


def _floor(checkpoint: Path) -> float:
    """Return the seconds from exec of an interpreter until torch and NeMo are imported and a file
    is read."""
    command = [sys.executable, "-c", IMPORTS, str(checkpoint)]
    began = time.perf_counter()
    with subprocess.Popen(
        command, env={**os.environ, **WORKER_ENVIRONMENT}, stdout=-1, stderr=-3, text=True
    ) as process:
        assert process.stdout is not None
        if not any(line == "read\n" for line in process.stdout):
            raise SystemExit("asrd: torch and NeMo cannot be imported")
        return time.perf_counter() - began


# -- R2
# ---------------------------------------------------------------------------------------------------------------


def stops(
    service: Service,
    nemo: Host,
    folder: Path,
    plan: Sequence[tuple[float, bool, float]],
    tell: Callable[[int], None],
) -> list[Stop]:
    """Dictate as planned, each time other clips, and ask NeMo the same; a plan is a list of
    (seconds, real_time, rest).

    Not real time is faster up to the last ten seconds; a rest is silence between the last sound and
    the key.
    """
    clips, found = sounds.clips(), []
    for number, (length, real_time, rest) in enumerate(plan):
        sound = sounds.exactly(sounds.joined(clips, length, seed=number).samples, length)
        sound = sound[: len(sound) - round((sounds.PAUSE - rest) * SAMPLE_RATE)]
        file = save(folder, f"stop-{number}", sound)
        lead = 0 if real_time else max(0, len(sound) - round(TAIL * SAMPLE_RATE))
        seconds, text = service.dictate(file, lead, FASTER)
        nemo.run("B", file)
        whole = nemo.run("B", file)
        changed = sum(edits([whole.text or "-"], [text or "-"]).errors)
        found.append(
            Stop(length, seconds, whole.seconds, changed, len(whole.text.split()), real_time, rest)
        )
        tell(number + 1)
    return found


def save(folder: Path, name: str, sound: Samples) -> Path:
    """Write a sound where other processes read it; return the file."""
    file = folder / f"{name}.npy"
    np.save(file, sound)
    return file


# -- R5
# ---------------------------------------------------------------------------------------------------------------


def idleness(service: Service, folder: Path, span: float) -> dict[str, float]:
    """Watch the daemon for so many seconds of nothing and so many of silence recorded; as
    `figures.idleness` has it."""
    pids = service.pids

    def watch() -> tuple[float, float, float]:
        time.sleep(1.0)  # what a key press leads to is not idleness
        cpu, woken, began = cpu_seconds(pids), switches(pids), time.perf_counter()
        time.sleep(span)
        spent = time.perf_counter() - began
        return cpu_seconds(pids) - cpu, spent, (switches(pids) - woken) / spent

    idle_cpu, idle, wakeups = watch()
    room = save(folder, "room", sounds.room(span + 5))
    silence_cpu, silence, _ = service.listen(room, watch)
    return {
        "idle_cpu": idle_cpu,
        "idle": idle,
        "silence_cpu": silence_cpu,
        "silence": silence,
        "wakeups": wakeups,
    }


# -- R8
# ---------------------------------------------------------------------------------------------------------------


def endurance(
    service: Service, folder: Path, count: int, tell: Callable[[int], None]
) -> list[Reading]:
    """Dictate so many clips, one after the other and faster than they were spoken; return what was
    held on the way.

    Each begins somewhere in its first half second, so that nearly every utterance has a length of
    its own, as a user's
    have: what is kept for each length shows.
    """
    clips, draw = sounds.clips(), random.Random(0)
    draw.shuffle(clips)
    readings = []
    for number in range(count):
        clip = clips[number % len(clips)]
        file = save(folder, "utterance", clip.samples[draw.randrange(SAMPLE_RATE // 2) :])
        service.dictate(file, 1 << 30, 1000.0, seconds=3600.0)
        if number % 4 == 3 or number + 1 == count:
            service.settle()
            time.sleep(GLANCE)
            held = [holding(pid) for pid in service.pids]
            rss, fds, threads = zip(*held, strict=True)
            readings.append(Reading(number + 1, rss, fds, threads))
            tell(number + 1)
    return readings
