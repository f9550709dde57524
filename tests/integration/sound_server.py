"""A private PipeWire: its own bus, runtime directory and virtual microphones; gone afterwards,
whatever happened."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

PACKAGES = {
    "dbus-daemon": "dbus",
    "pipewire": "pipewire",
    "wireplumber": "wireplumber",
    "pipewire-pulse": "pipewire-pulse",
    "pactl": "pulseaudio-utils",
    "pacat": "pulseaudio-utils",
    "setpriv": "util-linux",
}
"""Program -> the Debian package that brings it. `libportaudio2 libasound2-plugins` are needed to
record from it."""


def until(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    """Wait until a condition holds. Fails the test after `seconds`."""
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            pytest.fail(f"within {seconds:g} s there was no {what}")
        time.sleep(0.02)


def need_sound_server() -> None:
    """Skip where a program is missing and say which package brings it; fail where CI is set."""
    missing = sorted(
        {package for program, package in PACKAGES.items() if not shutil.which(program)}
    )
    if missing:
        reason = (
            f"no sound server to test with: apt-get install {' '.join(missing)} libasound2-plugins"
        )
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


class SoundServer:
    """PipeWire, WirePlumber and pipewire-pulse in a directory of their own. `environment` leads a
    program to them.

    A microphone is a null sink: what is played into it comes out of its monitor.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o700)
        self.environment = {
            "XDG_RUNTIME_DIR": os.fspath(folder),
            "PIPEWIRE_RUNTIME_DIR": os.fspath(folder),
            "PULSE_SERVER": f"unix:{folder}/pulse/native",
            "PULSE_RUNTIME_PATH": f"{folder}/pulse",
            "PULSE_COOKIE": f"{folder}/cookie",
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={folder}/bus",
            "XDG_CONFIG_HOME": f"{folder}/config",
            "XDG_STATE_HOME": f"{folder}/state",
        }
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> SoundServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start every part and wait until the server answers."""
        bus = self.folder / "bus"
        try:
            self._run(
                "dbus-daemon", "--session", "--nofork", "--nopidfile", f"--address=unix:path={bus}"
            )
            until(bus.exists, "session bus")
            self._run("pipewire")
            until((self.folder / "pipewire-0").exists, "pipewire socket")
            self._run("wireplumber")
            self._run("pipewire-pulse")
            until(lambda: self._pactl("info").returncode == 0, "answer of the sound server")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every part, the last one first, and leave nothing a restart could trip over."""
        while self._running:
            part = self._running.pop()
            part.terminate()
            try:
                part.wait(5)
            except subprocess.TimeoutExpired:
                part.kill()
                part.wait()
        for name in ("bus", "pipewire-0", "pipewire-0.lock", "pulse/native", "pulse/pid"):
            (self.folder / name).unlink(missing_ok=True)

    def kill(self) -> None:
        """End every part as a crash would."""
        for part in self._running:
            part.kill()
        self.stop()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop every part while the block runs, so that it neither answers nor delivers."""
        for part in self._running:
            part.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for part in self._running:
                part.send_signal(signal.SIGCONT)

    def add_microphone(
        self, name: str, description: str = "", rate: int = 48_000, channels: int = 1
    ) -> int:
        """Add a virtual microphone; return its module, for `remove_microphone`."""
        words = [f"sink_name={name}", f"rate={rate}", f"channels={channels}"]
        if description:
            words.append(f"sink_properties='device.description=\"{description}\"'")
        module = int(self.pactl("load-module", "module-null-sink", *words))
        until(
            lambda: f"{name}.monitor" in self.pactl("list", "short", "sources"),
            f"microphone {name}",
        )
        return module

    def remove_microphone(self, module: int) -> None:
        """Take a virtual microphone away."""
        self.pactl("unload-module", str(module))

    def set_default(self, name: str) -> None:
        """Make a virtual microphone the default and wait until the server says so."""
        source = f"{name}.monitor"
        # Refused until WirePlumber has come up.
        until(
            lambda: self._pactl("set-default-source", source).returncode == 0,
            f"right to make {name} the default",
        )
        until(lambda: self.pactl("get-default-source").strip() == source, f"default source {name}")

    @contextlib.contextmanager
    def playing(
        self, name: str, samples: np.ndarray, rate: int = 16_000
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Play samples into a virtual microphone while the block runs; wait on what it gives to
        hear the end."""
        path = self.folder / f"clip-{time.monotonic_ns()}.wav"
        soundfile.write(path, samples, rate)
        player = subprocess.Popen(
            ["paplay", f"--device={name}", os.fspath(path)],
            env=os.environ | self.environment,
            stderr=subprocess.PIPE,
        )
        try:
            yield player
        finally:
            player.kill()
            player.communicate()

    def pactl(self, *words: str) -> str:
        """Run pactl and return what it prints. Raises RuntimeError with what it says when it
        fails."""
        done = self._pactl(*words)
        if done.returncode:
            raise RuntimeError(f"pactl {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def _pactl(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | self.environment | {"LC_ALL": "C.UTF-8"}
        return subprocess.run(
            ["pactl", *words],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )

    def _run(self, *words: str) -> None:
        """Start one part, which also ends when this process does."""
        with (self.folder / f"{words[0]}.log").open("ab") as log:
            self._running.append(
                subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", *words],
                    env=os.environ | self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )


@contextlib.contextmanager
def sound_server() -> Iterator[SoundServer]:
    """Give a running server in a temporary directory of its own; skip where there is none to be
    had."""
    need_sound_server()
    # Not pytest's directory: the path of a socket may hold 107 characters.
    with (
        tempfile.TemporaryDirectory(prefix="asrd-sound-") as folder,
        SoundServer(Path(folder)) as server,
    ):
        yield server
