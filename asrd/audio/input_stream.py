"""One stream from a device through PortAudio: opened, its samples kept until they are taken, ended.

A stream is never stopped, only aborted: `stop()` can hang. Each function that says it blocks may do
so for ever. Daemon side.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from asrd.audio import devices
from asrd.audio.channels import Mixer
from asrd.audio.devices import Device
from asrd.errors import AudioError

PERIOD_SECONDS = 0.064
"""Seconds of audio that a callback brings: three of PipeWire's periods. At a third of it the CPU
time is 2.5 times."""
PATIENT_SECONDS = 3 * PERIOD_SECONDS
"""Seconds of audio that are taken at once while all are patient: to wake the loop is most of what a
callback costs."""

BAD_CHANNEL_COUNT = -9998
"""What PortAudio answers where a device has not so many channels."""

ERROR_REASONS = {
    -9985: "is in use by another program or gone",
    -9993: "the sound server does not answer",
    -9996: "is gone",
    -9997: "does not work at its own rate",
    BAD_CHANNEL_COUNT: "works with no number of channels that was tried",
    -9999: "the sound system refuses it",
}
"""Code of PortAudio -> what is wrong, after the name of the device."""


class InputStream:
    """One stream from its opening to its end. `_on_samples` runs in PortAudio's thread, the rest where
    it is called.

    Args:
        device: what to open.
        aimed: whether it was chosen by name; the server is then asked for it, else for its default.
        wake: called from PortAudio's thread when there is sound to take, or when the stream has
            ended.
        patient: asked there, whether PATIENT_SECONDS of sound may come together first.
    """

    def __init__(
        self, device: Device, aimed: bool, wake: Callable[[], None], patient: Callable[[], bool]
    ) -> None:
        self.device = device
        self.mixer = Mixer(1)
        self.first = self.last = 0.0
        """When the first and the last callback came (monotonic seconds); 0 before the first."""
        self.finished = False
        self._aim = (
            device.id
            if aimed and device.id not in devices.BRIDGE_NAMES and device.through == "server"
            else ""
        )
        self._pieces: deque[tuple[bytes, float | None]] = deque()
        self._due = 0.0
        self._wake, self._patient = wake, patient
        self._kept = 0.0
        self._stream: Any = None

    def start(self) -> None:
        """Open and start the stream. Blocks. Raises AudioError."""
        sounddevice, device = devices.portaudio(), self.device
        counts = devices.channel_counts(device)
        for count in counts:
            try:
                with _aimed_at(self._aim):
                    self._stream = sounddevice.RawInputStream(
                        device=device.index, samplerate=device.rate, channels=count, dtype="float32", latency="low",
                        blocksize=round(device.rate * PERIOD_SECONDS), callback=self._on_samples,
                        finished_callback=self._end,
                    )  # fmt: skip
                    self._stream.start()
                self.mixer = Mixer(count, device.rate)
                return
            except sounddevice.PortAudioError as error:
                self.discard()
                code = error.args[1] if len(error.args) > 1 else 0
                if code != BAD_CHANNEL_COUNT or count == counts[-1]:
                    raise AudioError(
                        f"{device.name}: {ERROR_REASONS.get(code, error.args[0])}"
                    ) from error

    def recorded(self) -> Iterator[tuple[bytes, float | None]]:
        """Yield what was recorded since the last time, each piece with the seconds that are missing
        before it, if any."""
        while self._pieces:
            yield self._pieces.popleft()

    def discard(self) -> None:
        """End the stream at once; never `stop`, which waits for sound that may not come. Blocks,
        perhaps forever."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.abort(ignore_errors=True)
            stream.close(ignore_errors=True)

    def _on_samples(self, data: Any, frames: int, when: Any, status: Any) -> None:
        """Keep what PortAudio hands over. Nothing here may take long."""
        self.last = time.monotonic()
        lost = status.input_overflow if status and self.first else False
        self.first = self.first or self.last
        begins = when.inputBufferAdcTime if when else 0.0
        self._pieces.append((bytes(data), max(0.0, begins - self._due) if lost else None))
        seconds = frames / self.device.rate
        self._due, self._kept = begins + seconds, self._kept + seconds
        if (
            self.first == self.last
            or self._kept > PATIENT_SECONDS - PERIOD_SECONDS / 2
            or not self._patient()
        ):
            self._kept = 0.0
            self._wake()

    def _end(self) -> None:
        self.finished = True
        self._wake()


_environment_lock = threading.Lock()


@contextlib.contextmanager
def _aimed_at(source: str) -> Iterator[None]:
    """Let the sound server's libraries, which take it from the environment only, connect to a
    source."""
    variables = ("PULSE_SOURCE", "PIPEWIRE_NODE")
    if not source:
        yield
        return
    with _environment_lock:
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(dict.fromkeys(variables, source))
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
