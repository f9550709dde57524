"""Files that libsndfile has no decoder for (m4a, mp4, webm, mkv, wma ...): decoded in a process of
their own.

The decoder is PyAV, where the extra `media` is installed, or the ffmpeg program. A hostile file can
then cost no more than that process, which is bounded in time and memory, reads the one open file
only, and ends with its parent.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from asrd import paths
from asrd.audio.format import SAMPLE_RATE
from asrd.audio.formats import decoder_messages
from asrd.errors import AudioError

log = logging.getLogger("asrd")

DECODER_COMMAND = (sys.executable, "-P", "-m", "asrd.audio.formats.media_decoder")

STALL_SECONDS = 60.0
"""Without a byte, after which a decoder counts as hung."""

EXIT_SECONDS = 5.0
"""For a process to be over once it was killed or has said its last."""

BLOCK_BYTES = 1 << 17
MAX_HEAD_BYTES = 1 << 16
MAX_MESSAGE_BYTES = 1 << 20

SLACK_SECONDS = 0.5
"""By which a file may be shorter than its header says; encoders count the silence that they put
before and behind."""

READS_HINT = "asrd reads what libsndfile and ffmpeg read"

INSTALL_HINT = (
    "pip install 'asrd[media]', or install ffmpeg: both read m4a, mp4, webm, mkv, wma and more"
)

BROKEN_MESSAGE = re.compile(
    r"partial file|incomplete frame|ended prematurely|truncat|error while decoding|error decoding|error submitting"
    r"|invalid data found|packet corrupt|corrupt (?:input|decoded)|unexpected end|overread",
    re.IGNORECASE,
)
"""What libav says of a file whose end, or a part, is missing."""


def backend() -> str:
    """Return what decodes here: "pyav", "ffmpeg" or ""."""
    if importlib.util.find_spec("av") is not None:
        return "pyav"
    return "ffmpeg" if shutil.which("ffmpeg") and shutil.which("ffprobe") else ""


def open_media(name: str, descriptor: int) -> Media:
    """Return a decoder of an open file, which has read its header. Raises AudioError: it is none,
    or none is here."""
    chosen = backend()
    if not chosen:
        raise AudioError(f"{name}: is not an audio file that libsndfile can read", INSTALL_HINT)
    return Media(name, descriptor, chosen)


class Media:
    """The sound of a media file, at 16 kHz, through a process that decodes it.

    Args:
        name: what a person calls the file.
        descriptor: the open file.
        chosen: "pyav" or "ffmpeg".

    Raises: AudioError: it is no media file, or has no sound.
    """

    def __init__(self, name: str, descriptor: int, chosen: str) -> None:
        self.name, self.rate, self.problem, self.frames = name, SAMPLE_RATE, "", 0
        self._said: IO[bytes] = tempfile.TemporaryFile(prefix="asrd-")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            (*DECODER_COMMAND, chosen),
            stdin=descriptor,
            stdout=subprocess.PIPE,
            stderr=self._said,
            cwd="/",
            env=_environment(),
            start_new_session=True,  # Ctrl-C is for the parent, which then ends it in order
        )
        self._rest, self._closed = b"", False
        self._reading = threading.Lock()
        try:
            head = self._head()
        except AudioError:
            self.close()
            raise
        self.channels: int = head["channels"]
        self._seconds: float = head["seconds"]
        self.note: str = head["note"]
        """What a person should know of what was chosen; ""."""

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yield float32 samples, frames by channels. Raises AudioError."""
        size, seen = 4 * self.channels, 0
        data, self._rest = self._rest, b""  # came with the head
        more = True
        while more:
            whole = len(data) - len(data) % size
            seen += whole // size
            if whole:
                yield np.frombuffer(data, np.float32, whole // 4).reshape(-1, self.channels)
            block = self._read()
            data, more = data[whole:] + block, bool(block)
        self._judge(seen / self.rate)

    def close(self) -> None:
        """End the process; a second call does nothing."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(
                    self._process.pid, signal.SIGKILL
                )  # with the ffprobe that it may have started
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_SECONDS)
        # another thread may be at it; the number of a closed pipe may soon be that of another file
        with self._reading:
            self._closed = True
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._said.close()

    def _head(self) -> dict[str, Any]:
        """Return the line before the samples. Raises AudioError."""
        while (
            b"\n" not in self._rest and len(self._rest) < MAX_HEAD_BYTES and (block := self._read())
        ):
            self._rest += block
        line, newline, self._rest = self._rest.partition(b"\n")
        if not newline:
            self._wait()
            raise self._refusal()
        head: dict[str, Any] = json.loads(line)
        if head["error"] == "no sound":
            raise AudioError(
                f"{self.name}: has no audio in it", "it is a file of pictures or video only"
            )
        if head["error"]:
            self._wait()
            raise self._unreadable((self._lines() or [head["error"]])[-1])
        return head

    def _read(self) -> bytes:
        """Return what has come; b"" at the end, and where nothing comes any more."""
        with self._reading:
            if self._closed or self._process.stdout is None:
                return b""
            descriptor = self._process.stdout.fileno()
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if poll.poll(1000 * STALL_SECONDS):
                return os.read(descriptor, BLOCK_BYTES)
            self.problem = f"its decoder gave nothing for {STALL_SECONDS:.0f} s"
            self._process.kill()
            return b""

    def _wait(self) -> int:
        """Return how the process ended."""
        try:
            return self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _judge(self, seconds: float) -> None:
        """Note why the sound ended before its end."""
        code = self._wait()
        broken = next((line for line in self._lines() if BROKEN_MESSAGE.search(line)), "")
        if self.problem:
            return
        if code < 0:
            self.problem = f"its decoder was ended by signal {-code}"
        elif broken:
            self.problem = decoder_messages.plain(broken)
        elif code:
            self.problem = decoder_messages.plain(
                (self._lines() or [f"its decoder ended with {code}"])[-1]
            )
        missing = self._seconds - seconds
        if missing > SLACK_SECONDS:
            self.frames = round(self._seconds * self.rate)

    def _refusal(self) -> AudioError:
        """Return why there is not one sample."""
        if self.problem:
            return AudioError(f"{self.name}: cannot be decoded, {self.problem}")
        code = self._process.returncode
        return self._unreadable((self._lines() or [f"its decoder ended with {code}"])[-1])

    def _unreadable(self, said: str) -> AudioError:
        """Return that it is no file that can be read, and what the decoder's last line means beyond
        that."""
        why = decoder_messages.plain(said)
        hint = READS_HINT if why == decoder_messages.DAMAGED_REASON else f"{READS_HINT}; {why}"
        return AudioError(f"{self.name}: is not an audio file that can be read", hint)

    def _lines(self) -> list[str]:
        """Return what the library said, without its addresses."""
        with self._reading:
            if self._closed:
                return []
            self._said.seek(0)
            text = self._said.read(MAX_MESSAGE_BYTES).decode(errors="replace")
        lines = [
            re.sub(r"^\[([^]@]*) @ [^]]*\] *", r"\1: ", line).strip() for line in text.splitlines()
        ]
        for line in lines[-5:]:
            log.debug("%s: libav: %s", self.name, line)
        return [line for line in lines if line]


def _environment() -> dict[str, str]:
    """Return the variables of a decoder: nothing of the user's but where programs and this package
    lie."""
    kept = {
        key: os.environ[key]
        for key in ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
        if key in os.environ
    }
    return kept | {"LC_ALL": "C.UTF-8", "PYTHONPATH": paths.python_path()}
