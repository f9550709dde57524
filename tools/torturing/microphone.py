"""A PipeWire of its own with a virtual microphone, and a second recorder beside the daemon's, on a
clock of its own.

What the microphone gives is noise, with speech over it or without, so that the place of any stretch
of it can be found again. The second recorder (parec) says what the microphone had given at any
time: how much of that is not in the recording of a daemon that was killed is the sound lost.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections import deque
from pathlib import Path

import numpy as np

from .daemon import BrokenError
from .home import SAMPLE_RATE

PROGRAMS = (
    "dbus-daemon",
    "pipewire",
    "wireplumber",
    "pipewire-pulse",
    "pactl",
    "pacat",
    "parec",
    "setpriv",
)
"""What has to be installed: packages dbus-daemon pipewire wireplumber pipewire-pulse
pulseaudio-utils util-linux."""

NAME = "torturemic"

CHUNK_BYTES = SAMPLE_RATE // 100 * 2
"""That the second recorder reads at once: 10 ms."""

MEMORY_SECONDS = 30
"""Of what the microphone gave, that are kept."""

CLOCK_SECONDS = 5
"""Of chunks by which it is known when each sample was given."""

MATCH_SECONDS = 0.3
"""Of the end of a recording by which its place is found."""

QUALITY = 0.8
"""Correlation from which on a place counts as found."""

NOISE_RMS = 60.0
"""Of the noise, in steps of 16 bit: about -55 dB, no speech to any detector."""

START_SECONDS = 20.0


def missing() -> list[str]:
    """Return the programs that are not installed."""
    return [name for name in PROGRAMS if not shutil.which(name)]


def place_of_the_end(reference: np.ndarray, kept: np.ndarray) -> tuple[int, float]:
    """Return where the end of `kept` lies in `reference` (samples) and the correlation there, at
    most 1."""
    wanted = kept[-round(MATCH_SECONDS * SAMPLE_RATE) :].astype(np.float64)
    sound = reference.astype(np.float64)
    if len(wanted) < SAMPLE_RATE // 20 or len(sound) < len(wanted):
        return 0, 0.0
    size = 1 << (len(sound) + len(wanted)).bit_length()
    product = np.fft.irfft(np.fft.rfft(sound, size) * np.conj(np.fft.rfft(wanted, size)), size)
    product = product[: len(sound) - len(wanted) + 1]
    squares = np.concatenate([[0.0], np.cumsum(sound**2)])
    energy = np.sqrt(
        np.maximum(squares[len(wanted) :] - squares[: -len(wanted)], 1e-12) * np.sum(wanted**2)
    )
    found = product / energy
    best = int(np.argmax(found))
    return best + len(wanted), float(found[best])


class Reference:
    """What a second recorder has of the microphone, and when it had it."""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque(maxlen=MEMORY_SECONDS * 100)
        self._count = 0
        self._origins: deque[float] = deque(maxlen=CLOCK_SECONDS * 100)
        """When the first sample was spoken, on the monotonic clock, as each of the last chunks
        says."""
        self._lock = threading.Lock()

    def take(self, chunk: bytes, now: float) -> None:
        """Add a chunk that has just come."""
        with self._lock:
            self._chunks.append(chunk)
            self._count += len(chunk) // 2
            self._origins.append(now - self._count / SAMPLE_RATE)

    def sound(self) -> tuple[int, np.ndarray]:
        """Return the number of the first sample that is kept, and the samples."""
        with self._lock:
            data = np.frombuffer(b"".join(self._chunks), np.int16)
            return self._count - len(data), data

    def given(self, now: float) -> float:
        """Return how many seconds the microphone had given by then.

        The chunk that came earliest says when that began. Older chunks say nothing: a busy server
        leaves sound out.
        """
        with self._lock:
            return now - min(self._origins)


class SoundServer:
    """PipeWire with its microphone, for as long as the block; `environment` leads a program to
    it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reference = Reference()
        self.speech = np.zeros(0, np.int16)
        """What is spoken over the noise, again and again; nothing where it is empty."""
        places = {"XDG_RUNTIME_DIR": "", "PIPEWIRE_RUNTIME_DIR": "", "PULSE_RUNTIME_PATH": "/pulse"}
        self.environment = {name: f"{folder}{below}" for name, below in places.items()}
        self.environment |= {
            "PULSE_SERVER": f"unix:{folder}/pulse/native",
            "PULSE_COOKIE": f"{folder}/cookie",
        }
        self.environment |= {"DBUS_SESSION_BUS_ADDRESS": f"unix:path={folder}/bus"}
        own = {
            "HOME": f"{folder}",
            "XDG_CONFIG_HOME": f"{folder}/config",
            "XDG_STATE_HOME": f"{folder}/state",
        }
        self._own = os.environ | self.environment | own | {"LC_ALL": "C.UTF-8"}
        self._running: list[subprocess.Popen[bytes]] = []
        self._over = threading.Event()

    def __enter__(self) -> SoundServer:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        try:
            self._run(
                "dbus-daemon",
                "--session",
                "--nofork",
                "--nopidfile",
                f"--address=unix:path={self.folder}/bus",
            )
            self._until(lambda: (self.folder / "bus").exists(), "session bus")
            self._run("pipewire")
            self._until(lambda: (self.folder / "pipewire-0").exists(), "pipewire")
            self._run("wireplumber")
            self._run("pipewire-pulse")
            self._until(lambda: self._pactl("info"), "sound server")
            self._pactl("load-module", "module-null-sink", f"sink_name={NAME}", "rate=48000", "channels=1",
                        f"sink_properties='device.description=\"{NAME}\"'")  # fmt: skip
            self._until(lambda: self._pactl("set-default-source", f"{NAME}.monitor"), "microphone")
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _begin(self) -> None:
        """Play and record, each in a thread. Raises BrokenError."""
        raw = (
            "--raw",
            "--format=s16le",
            f"--rate={SAMPLE_RATE}",
            "--channels=1",
            "--latency-msec=20",
        )
        player = self._run("pacat", "--playback", f"--device={NAME}", *raw, stdin=-1)
        recorder = self._run("parec", f"--device={NAME}.monitor", *raw, stdout=-1)
        for act in (lambda: self._play(player), lambda: self._record(recorder)):
            threading.Thread(target=act, daemon=True).start()
        self._until(lambda: len(self.reference.sound()[1]) > SAMPLE_RATE, "sound")

    def _play(self, player: subprocess.Popen[bytes]) -> None:
        """Write noise, and the speech over it; the server takes it as it needs it."""
        assert player.stdin is not None
        dice, position = np.random.default_rng(7), 0
        while not self._over.is_set():
            piece = dice.normal(0.0, NOISE_RMS, SAMPLE_RATE // 50)
            if len(self.speech):
                place = (position + np.arange(len(piece))) % len(self.speech)
                piece = piece + 0.8 * self.speech[place]
            position += len(piece)
            try:
                player.stdin.write(piece.astype(np.int16).tobytes())
                player.stdin.flush()
            except OSError:  # it is the end
                return

    def _record(self, recorder: subprocess.Popen[bytes]) -> None:
        assert recorder.stdout is not None
        while chunk := recorder.stdout.read(CHUNK_BYTES):
            self.reference.take(chunk, time.monotonic())

    def _run(self, *words: str, stdin: int = -3, stdout: int = -3) -> subprocess.Popen[bytes]:
        """Start a program that ends with this one."""
        command = ["setpriv", "--pdeathsig", "KILL", *words]
        with (self.folder / f"{words[0]}.log").open("ab") as log:
            one = subprocess.Popen(
                command, env=self._own, stdin=stdin, stdout=stdout, stderr=log, bufsize=0
            )
        self._running.append(one)
        return one

    def _pactl(self, *words: str) -> bool:
        done = subprocess.run(
            ["pactl", *words], env=self._own, capture_output=True, check=False, timeout=20
        )
        return done.returncode == 0

    def _until(self, holds: object, what: str) -> None:
        """Wait for a part of the server. Raises BrokenError."""
        assert callable(holds)
        limit = time.monotonic() + START_SECONDS
        while not holds():
            if time.monotonic() > limit:
                raise BrokenError(f"the sound server has no {what} after {START_SECONDS:.0f} s")
            time.sleep(0.02)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for one in reversed(self._running):
            one.kill()
            one.wait()
        self._running = []
