"""Sound comes in: files of any kind -> blocks of float32, mono, 16 kHz, on one integer sample clock.

Knows formats, channels, rates and what can be wrong with a file; knows nothing of speech. Runs on the daemon's side.
What stops the reading raises AudioError (DiskError when a spool does not fit), "NAME: sentence". What does not (a file
cut short, samples that are not finite) is one warning on the logger "asrd", and the sound that is there is used.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from .channels import CANCELLING, Mixer
from .errors import AudioError, DiskError
from .wire import SAMPLE_RATE

log = logging.getLogger("asrd")

Samples = NDArray[np.float32]
"""1-D, contiguous, nominally -1..1."""

BLOCK_SECONDS = 0.25
"""Length of a block read from a file; a resampler may make single blocks a little longer or shorter."""

RATES = range(2_000, 1_000_001)
"""Hertz that a file may claim; a header outside is damaged, not fast."""

_CONVERT = "asrd reads WAV, FLAC, OGG, Opus, MP3, AIFF, CAF and more; for others: ffmpeg -i IN -ac 1 -ar 16000 OUT.wav"
_ENDLESS = 0x7FFF_0000
"""A length in a header from here on was written by a program that did not know the end: sox or ffmpeg into a pipe."""


@dataclass(frozen=True, slots=True, eq=False)
class AudioBlock:
    """A run of samples and where it lies on the clock."""

    start: int
    """Sample index of the first sample."""
    samples: Samples
    overflow: bool = False
    """True when the source lost sound just before this block."""

    @property
    def stop(self) -> int:
        """One past the last sample."""
        return self.start + len(self.samples)

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return len(self.samples) / SAMPLE_RATE


LOUDEST = 2.0**31
"""What a 32-bit sample is that was never scaled; anything beyond it is damage, and would overflow on its way."""

SOFTEST = float(np.finfo(np.float32).tiny)
"""Numbers below it are computed slowly, and nobody hears them."""


def clean(samples: Samples) -> tuple[Samples, int]:
    """Return samples without what is no sound, as silence in its place, and how many those were.

    That is NaN, infinity and what is louder than LOUDEST. What is softer than SOFTEST becomes silence and counts as
    sound.
    """
    size = np.abs(samples)
    sound = size <= LOUDEST  # false for a NaN too
    bad = samples.size - int(np.count_nonzero(sound))
    kept = sound & (size >= SOFTEST)
    return np.where(kept, samples, np.float32(0)), bad


class Source(Protocol):
    """Where sound comes from: yields blocks in order, the first one at `start` 0, without gaps unless `overflow`."""

    def __iter__(self) -> Iterator[AudioBlock]: ...


class SoundFile:
    """A sound file, a pipe or, as "-", standard input, read block by block in constant memory.

    Channels are averaged, unless that cancels what is in them (`channels.Mixer`). Other rates are resampled by soxr: a
    file of n frames at rate r gives exactly round(n * 16000 / r) samples. What cannot be sought (a pipe) is spooled
    to a temporary file first.

    Args:
        path: the file, or "-".

    Raises:
        AudioError: not there, not readable, not audio, or without one sample. DiskError: no room for the spool.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = "standard input" if os.fspath(path) == "-" else os.fspath(path)
        stream = _spooled(_stdin() if os.fspath(path) == "-" else _open(Path(path)), self.name)
        try:
            self._file: Any = soundfile.SoundFile(os.dup(stream.fileno()), closefd=True)
        except (soundfile.SoundFileError, TypeError) as error:
            raise _refusal(self.name, error) from error
        finally:
            stream.close()
        self.rate: int = self._file.samplerate
        self.channels: int = self._file.channels
        if self.rate not in RATES:
            self._file.close()
            raise AudioError(f"{self.name}: claims {self.rate} samples a second", "its header is damaged")
        if not self._file.frames:
            self._file.close()
            raise AudioError(f"{self.name}: holds no sound", "its header says 0 samples")
        log.debug("%s: %s, %d Hz, %d channels", self.name, self._file.subtype_info, self.rate, self.channels)

    @property
    def seconds(self) -> float:
        """Length as the header states it, in seconds; of some compressed files only an estimate."""
        return float(self._file.frames / self.rate)

    def __enter__(self) -> SoundFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def __iter__(self) -> Iterator[AudioBlock]:
        """Yield the blocks from the first sample on. Raises AudioError when not one sample was finite."""
        if self._file.tell():
            self._file.seek(0)
        resampler = None if self.rate == SAMPLE_RATE else soxr.ResampleStream(self.rate, SAMPLE_RATE, 1, "float32")
        frames = start = 0
        for mono in self._frames():
            frames += len(mono)
            block = mono if resampler is None else resampler.resample_chunk(mono)
            if len(block):
                yield AudioBlock(start, block)
                start += len(block)
        if resampler is not None:
            tail = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
            missing = round(frames * SAMPLE_RATE / self.rate) - start
            if missing > 0:
                yield AudioBlock(start, np.pad(tail, (0, max(0, missing - len(tail))))[:missing])

    def _frames(self) -> Iterator[Samples]:
        """Yield mono blocks at the file's own rate, with what is not finite silenced and told at the end."""
        size, seen, bad = max(1, round(self.rate * BLOCK_SECONDS)), 0, 0
        mixer = Mixer(self.channels, self.rate)
        broken = ""
        while True:
            try:
                block = self._file.read(size, dtype="float32", always_2d=True)
            except soundfile.SoundFileError as error:
                broken = f" ({getattr(error, 'error_string', error)})"
                break
            if not len(block):
                break
            seen += len(block)
            block, damaged = clean(block)
            bad += damaged
            yield mixer.mix(block)
        if mixer.cancelling:
            log.warning(CANCELLING, self.name, mixer.cancelling)
        self._tell(seen, bad, broken)

    def _tell(self, seen: int, bad: int, broken: str) -> None:
        """Warn about what was missing or not a number. Raises AudioError when nothing usable was seen."""
        if not seen or bad == seen * self.channels:
            why = "not one of its samples is a finite number" if seen else "nothing of it can be decoded"
            raise AudioError(f"{self.name}: holds no sound", why)
        if bad:
            share = 100 * bad / (seen * self.channels)
            log.warning("%s: %d samples (%.1f %%) are not finite and count as silence", self.name, bad, share)
        promised = max(self._file.frames, _promised(self._file.extra_info, seen))
        if broken or promised > seen:
            heard, whole = seen / self.rate, promised / self.rate
            log.warning("%s: is cut short, %.1f of %.1f s can be read%s", self.name, heard, whole, broken)


def read(path: str | os.PathLike[str]) -> Samples:
    """Return a whole file as one array, float32 mono 16 kHz; for short clips. Raises as SoundFile does."""
    with SoundFile(path) as source:
        return np.concatenate([np.zeros(0, np.float32), *(block.samples for block in source)])


def _promised(extra_info: str, seen: int) -> int:
    """Return the frames a header promised, from libsndfile's log of a chunk longer than its file; 0 when it kept it."""
    frames = 0
    for told, real in re.findall(r": (\d+) \(should be (\d+)\)", extra_info):
        if int(real) < int(told) < _ENDLESS:
            frames = max(frames, round(seen * int(told) / max(1, int(real))))
    return frames


def _open(path: Path) -> BinaryIO:
    """Open a file or a named pipe. Raises AudioError."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode) or stat.S_ISFIFO(mode):
            return path.open("rb")
    except FileNotFoundError as error:
        raise AudioError(f"{path}: there is no such file", _similar(path)) from error
    except PermissionError as error:
        raise AudioError(f"{path}: may not be read", f"look at its rights: ls -l {path}") from error
    except (OSError, ValueError) as error:
        raise AudioError(f"{path}: cannot be opened, {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(mode):
        raise AudioError(f"{path}: is a directory", f"name the files in it: {path}/*.wav")
    raise AudioError(f"{path}: is a device, not a sound file")


def _similar(path: Path) -> str:
    """Return a hint with the file of the same folder whose name is nearest, or ""."""
    import difflib

    try:
        names = [entry.name for entry in os.scandir(path.parent)]
    except OSError:
        return f"there is no folder {path.parent} that can be read"
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.75)
    return f"did you mean {path.parent / close[0]}?" if close else ""


def _stdin() -> BinaryIO:
    """Return standard input as bytes. Raises AudioError when it is closed or a terminal."""
    try:
        stream = os.fdopen(os.dup(0), "rb")
    except OSError as error:
        raise AudioError("standard input: is closed", "give it a sound file: asrd transcribe - < clip.wav") from error
    if stream.isatty():
        stream.close()
        raise AudioError("standard input: is a terminal", "give it a sound file: asrd transcribe - < clip.wav")
    return stream


def _spooled(stream: BinaryIO, name: str) -> BinaryIO:
    """Return the stream itself when it can be sought, else a temporary file with all of it. Raises DiskError."""
    if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        return stream
    try:
        with stream:
            spool = tempfile.TemporaryFile(prefix="asrd-")  # noqa: SIM115 - the caller closes it
            shutil.copyfileobj(stream, spool, 1 << 20)
        spool.seek(0)
    except OSError as error:
        hint = f"it holds what comes through a pipe; TMPDIR names another folder ({tempfile.gettempdir()} now)"
        raise DiskError(f"{name}: cannot be spooled to disk, {error.strerror}", hint) from error
    return spool


def _refusal(name: str, error: Exception) -> AudioError:
    """Return why libsndfile does not open a file, in our words."""
    reason = getattr(error, "error_string", "")
    if getattr(error, "code", 1) == 1:
        return AudioError(f"{name}: is not a sound file that can be read", _CONVERT)
    return AudioError(f"{name}: is a damaged or unusual sound file, {reason.rstrip('.') or error}", _CONVERT)
