"""Sound comes in: files of any kind -> blocks of float32, mono, 16 kHz, on one integer sample
clock.

Knows formats, channels, rates and what can be wrong with a file; knows nothing of speech. Runs on
the daemon's side. What stops the reading raises AudioError (DiskError when a spool does not fit),
"NAME: sentence". What does not (a file cut short, samples that are not finite) is one warning on
the logger "asrd", and the sound that is there is used.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from asrd.audio.blocks import AudioBlock, Samples, clean
from asrd.audio.channels import CANCELLING_WARNING, Mixer
from asrd.audio.format import SAMPLE_RATE
from asrd.audio.formats import containers, decoder_messages, media
from asrd.audio.formats.layout import View
from asrd.audio.formats.sndfile import AudioDecoder, Sndfile
from asrd.errors import AsrdError, AudioError, DiskError

log = logging.getLogger("asrd")

FILE_RATES = range(2_000, 1_000_001)
"""Hertz that a file may claim; a header outside is damaged, not fast."""

_CONVERT_HINT = (
    "asrd reads WAV, FLAC, OGG, Opus, MP3, AIFF, CAF and more; "
    "for others: ffmpeg -i IN -ac 1 -ar 16000 OUT.wav"
)


class SoundFile:
    """A sound file, a pipe or, as "-", standard input, read block by block in constant memory.

    Channels are averaged, unless that cancels what is in them (`channels.Mixer`). Other rates are
    resampled by soxr: n frames at rate r give exactly round(n * 16000 / r) samples. What cannot be
    sought (a pipe) is spooled to a temporary file first. Streams that follow each other in one file
    are read one after the other, each to its end, whatever its header says.

    Args:
        path: the file, or "-".

    Raises:
        AudioError: not there, not readable, not audio, or without one sample. DiskError: no room
            for the spool.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = "standard input" if os.fspath(path) == "-" else os.fspath(path)
        self.warnings: list[str] = []
        """What was wrong with it, a sentence each; complete once it was iterated over."""
        self.complete = True
        """False once sound turned out to be missing, or its end to be uncertain."""
        self._decoder: AudioDecoder | None = None
        self._descriptor = -1
        with _spooled(
            _stdin() if os.fspath(path) == "-" else _open(Path(path)), self.name
        ) as stream:
            self._descriptor = os.dup(stream.fileno())
        try:
            self._layout = containers.survey(self._descriptor)
            self._decoder = first = self._open(0)
        except OSError as error:
            self.close()
            raise AudioError(f"{self.name}: cannot be read, {error.strerror or error}") from error
        except AsrdError:
            self.close()
            raise
        self._fresh = True
        self.rate, self.channels, self._promised = first.rate, first.channels, first.frames

    @property
    def foreign(self) -> bool:
        """Whether another process decodes it, which may keep a reader waiting."""
        return isinstance(self._decoder, media.Media)

    @property
    def seconds(self) -> float:
        """Length as the header states it, in seconds; 0 where it states none, and often only an
        estimate."""
        return self._promised / self.rate * max(1, len(self._layout.parts))

    def __enter__(self) -> SoundFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            self.close()

    def __iter__(self) -> Iterator[AudioBlock]:
        """Yield the blocks from the first sample on. Raises AudioError when not one sample was
        finite."""
        self.warnings, self.complete = [], True
        tally = _Tally()
        start = 0
        for number in range(max(1, len(self._layout.parts))):
            decoder = self._next(number, tally)
            if decoder is None:
                continue
            for block in _resampled(self._frames(decoder, tally), decoder.rate):
                yield AudioBlock(start, block)
                start += len(block)
        self._tell(tally)

    def _open(self, number: int) -> AudioDecoder:
        """Return a decoder at the beginning of a stream. Raises AudioError."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        if self._layout.decoder == "media":
            return self._open_media(number)
        try:
            found = Sndfile(
                self.name,
                self._descriptor,
                self._layout.parts[number] if self._layout.parts else None,
            )
        except (soundfile.SoundFileError, TypeError) as error:
            return self._open_foreign(number, error)
        if found.rate not in FILE_RATES:
            found.close()
            raise AudioError(
                f"{self.name}: its header claims {found.rate} samples per second",
                "its header is damaged",
            )
        if found.empty and len(self._layout.parts) < 2:
            found.close()
            raise AudioError(f"{self.name}: holds no audio", "its header says 0 samples")
        log.debug("%s: %s, %d Hz, %d channels", self.name, found.about, found.rate, found.channels)
        return found

    def _open_foreign(self, number: int, refused: Exception) -> AudioDecoder:
        """Return a decoder of what libsndfile refused. Raises AudioError."""
        refusal = _refusal(self.name, refused)
        if not os.fstat(self._descriptor).st_size:
            raise refusal from refused
        try:
            return self._open_media(number)
        except AudioError as error:
            # Of a kind that it knows libsndfile tells more.
            if getattr(refused, "code", 1) != 1:
                raise refusal from refused
            raise error from refused

    def _open_media(self, number: int) -> AudioDecoder:
        """Return a decoder of a media file, or of one of those that were joined. Raises AudioError;
        DiskError."""
        if not self._layout.parts:
            return media.open_media(self.name, self._descriptor)
        part = io.BufferedReader(View(self._descriptor, self._layout.parts[number]))
        with _spooled_copy(part, self.name) as spool:
            return media.open_media(self.name, spool.fileno())

    def _next(self, number: int, tally: _Tally) -> AudioDecoder | None:
        """Return the decoder of a stream; None where it is not the first, and cannot be decoded."""
        if number == 0 and self._fresh and self._decoder is not None:
            self._fresh = False
            return self._decoder
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None
        try:
            self._decoder = self._open(number)
        except AudioError as error:
            if number == 0:
                raise
            tally.problem = tally.problem or error.message.removeprefix(f"{self.name}: ")
        return self._decoder

    def _frames(self, decoder: AudioDecoder, tally: _Tally) -> Iterator[Samples]:
        """Yield mono blocks at the stream's own rate, with what is not finite silenced and
        counted."""
        mixer, before = Mixer(decoder.channels, decoder.rate), tally.frames
        if isinstance(decoder, media.Media) and decoder.note:
            self._warn(decoder.note)
        for block in decoder.blocks():
            tally.add(block.shape, decoder.rate)
            block, damaged = clean(block)
            tally.bad += damaged
            yield mixer.mix(block)
        if mixer.cancelling:
            self._warn(CANCELLING_WARNING % mixer.cancelling)
        tally.problem = tally.problem or decoder.problem
        tally.missing += max(0, decoder.frames - (tally.frames - before)) / decoder.rate

    def _tell(self, tally: _Tally) -> None:
        """Warn about what was missing or not a number. Raises AudioError when nothing usable was
        seen."""
        if not tally.frames or tally.bad == tally.samples:
            why = (
                "not one of its samples is a finite number"
                if tally.frames
                else "nothing of it can be decoded"
            )
            raise AudioError(f"{self.name}: holds no audio", why)
        if tally.bad:
            share = 100 * tally.bad / tally.samples
            self._warn(f"{tally.bad} samples ({share:.1f} %) are not finite and count as silence")
        whole = max(tally.seconds + tally.missing, tally.seconds * self._layout.promised)
        flaw = self._layout.flaw or ("is cut short" if tally.problem or tally.missing else "")
        if not flaw:
            return
        self.complete = False
        of = f" of {whole:.1f}" if round(whole, 1) > round(tally.seconds, 1) else ""
        self._warn(
            f"{flaw}, {tally.seconds:.1f}{of} s can be read"
            + f" ({tally.problem})" * bool(tally.problem)
        )

    def _warn(self, predicate: str) -> None:
        self.warnings.append(f"{self.name}: {predicate}")
        log.warning(
            "%s: %s", self.name, predicate
        )  # apart, so that a line break in the name breaks no line


@dataclass
class _Tally:
    """What was seen of a file."""

    frames: int = 0
    samples: int = 0
    seconds: float = 0.0
    bad: int = 0
    """Samples that are not finite."""
    missing: float = 0.0
    """Seconds that headers promised, and that were not there."""
    problem: str = ""

    def add(self, shape: tuple[int, ...], rate: int) -> None:
        """Count a block of so many frames and channels."""
        self.frames += shape[0]
        self.samples += shape[0] * shape[1]
        self.seconds += shape[0] / rate


def _resampled(sound: Iterable[Samples], rate: int) -> Iterator[Samples]:
    """Yield mono samples of any rate at SAMPLE_RATE: n of them give round(n * SAMPLE_RATE /
    rate)."""
    if rate == SAMPLE_RATE:
        yield from (block for block in sound if len(block))
        return
    resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, "float32")
    frames = made = 0
    for mono in sound:
        frames += len(mono)
        block = resampler.resample_chunk(mono)
        if len(block):
            made += len(block)
            yield block
    tail = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
    missing = round(frames * SAMPLE_RATE / rate) - made
    if missing > 0:
        yield np.pad(tail, (0, max(0, missing - len(tail))))[:missing]


async def blocks(sound: Iterable[AudioBlock]) -> AsyncGenerator[AudioBlock]:
    """Yield the blocks of a source, without holding up the loop where another process decodes it.

    Raises: what the source raises.
    """
    if not (isinstance(sound, SoundFile) and sound.foreign):
        for block in sound:
            yield block
        return
    iterator = iter(sound)
    while (found := await asyncio.to_thread(next, iterator, None)) is not None:
        yield found


def read(path: str | os.PathLike[str]) -> Samples:
    """Return a whole file as one array, float32 mono 16 kHz; for short clips. Raises as SoundFile
    does."""
    with SoundFile(path) as source:
        return np.concatenate([np.zeros(0, np.float32), *(block.samples for block in source)])


def _open(path: Path) -> BinaryIO:
    """Open a file or a named pipe. Raises AudioError."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode) or stat.S_ISFIFO(mode):
            return path.open("rb")
    except FileNotFoundError as error:
        raise AudioError(f"no such file: {path}", _similar(path)) from error
    except PermissionError as error:
        raise AudioError(
            f"permission denied: {path}", f"check its permissions: ls -l {path}"
        ) from error
    except (OSError, ValueError) as error:
        raise AudioError(
            f"{path}: cannot be opened, {getattr(error, 'strerror', None) or error}"
        ) from error
    if stat.S_ISDIR(mode):
        raise AudioError(f"{path}: is a directory", f"name the files in it: {path}/*.wav")
    raise AudioError(f"{path}: is a device, not an audio file")


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
        raise AudioError(
            "standard input: is closed", "give it an audio file: asrd transcribe - < clip.wav"
        ) from error
    if stream.isatty():
        stream.close()
        raise AudioError(
            "standard input: is a terminal", "give it an audio file: asrd transcribe - < clip.wav"
        )
    return stream


def _spooled(stream: BinaryIO, name: str) -> BinaryIO:
    """Return the stream itself when it can be sought, else a temporary file with all of it. Raises
    DiskError."""
    if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        return stream
    with stream:
        return _spooled_copy(stream, name)


def _spooled_copy(stream: BinaryIO, name: str) -> BinaryIO:
    """Return a temporary file with all that a stream gives. Raises DiskError."""
    try:
        spool = tempfile.TemporaryFile(prefix="asrd-")  # noqa: SIM115 - the caller closes it
        shutil.copyfileobj(stream, spool, 1 << 20)
        spool.seek(0)
    except OSError as error:
        hint = f"it holds what comes through a pipe; TMPDIR names another folder ({tempfile.gettempdir()} now)"
        raise DiskError(f"{name}: cannot be spooled to disk, {error.strerror}", hint) from error
    return spool


def _refusal(name: str, error: Exception) -> AudioError:
    """Return why libsndfile does not open a file, in our words."""
    if getattr(error, "code", 1) == 1:
        return AudioError(f"{name}: is not an audio file that can be read", _CONVERT_HINT)
    log.debug("%s: %s", name, error)
    reason = decoder_messages.plain(str(getattr(error, "error_string", error)))
    return AudioError(f"{name}: is a damaged or unusual audio file, {reason}", _CONVERT_HINT)
