"""Speech with its text: NeMo manifests, one JSON object a line, and the clips they name.

Knows lines and files; knows nothing of words or models. A bad line is told and left out, the rest
goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from asrd.audio import files
from asrd.audio.blocks import Samples
from asrd.audio.format import SAMPLE_RATE
from asrd.errors import AsrdError, ManifestError
from asrd.evaluation.results import Skipped
from asrd.text import filenames, text_files
from asrd.text.characters import readable


@dataclass(frozen=True, eq=False)
class Clip:
    """One utterance of the manifest."""

    line: int
    """Line of the manifest, from 1."""
    text: str
    """What was said."""
    samples: Samples


class ManifestLine(msgspec.Struct):
    """One line of a manifest; other keys are passed over."""

    audio_filepath: str
    text: str
    offset: float | None = None
    duration: float | None = None


def read(path: Path, limit: int | None = None) -> tuple[list[Clip], list[Skipped]]:
    """Return the clips of a NeMo manifest, and the lines that cannot be used, each with its reason.

    Args:
        path: JSON lines with `audio_filepath` (relative to the manifest), `text`, and where there
            are, `offset` and `duration` in seconds.
        limit: take so many lines, evenly spread.

    Raises:
        ManifestError: the file itself cannot be read.
    """
    try:
        lines = text_files.plain(path.read_bytes()).split(b"\n")
    except OSError as error:
        raise ManifestError(f"cannot read the manifest {path}: {error.strerror}") from error
    except text_files.NotTextError as error:
        raise ManifestError(f"the manifest {path} {error}", error.hint) from error
    entries: list[tuple[int, ManifestLine]] = []
    skipped: list[Skipped] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                entries.append((number, _entry(line)))
            except (ValueError, RecursionError) as error:
                skipped.append(Skipped(number, readable(f"{error}")))
    if limit is not None and limit < len(entries):
        entries = [entries[i * len(entries) // limit] for i in range(limit)]
    clips: list[Clip] = []
    folder = path.absolute().parent  # a name of "-" must not become standard input
    for number, entry in entries:
        try:
            sound = files.read(folder / filenames.named(entry.audio_filepath))
            clips.append(Clip(number, entry.text, _cut(sound, entry)))
        except AsrdError as error:
            skipped.append(Skipped(number, readable(error.message)))
    return clips, sorted(skipped, key=lambda one: one.line)


def _entry(line: bytes) -> ManifestLine:
    r"""Return what a line says; its file's name may be any bytes, as they are or as Python's JSON has them (\udcNN).

    Raises ValueError: msgspec's for JSON that is none or has other types.
    """
    try:
        return msgspec.json.decode(line, type=ManifestLine)
    except (msgspec.DecodeError, UnicodeDecodeError):
        if line.isascii() and b"\\ud" not in line:  # no name is to blame
            raise
        entry = msgspec.convert(filenames.from_json(line), ManifestLine)
    try:
        entry.text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("its text is not UTF-8; save the manifest as UTF-8") from error
    filenames.named(entry.audio_filepath)
    return entry


def _cut(samples: Samples, entry: ManifestLine) -> Samples:
    """Return the part of a file that its line names. Raises ManifestError when there is none."""
    first = round((entry.offset or 0.0) * SAMPLE_RATE)
    last = len(samples)
    if entry.duration is not None:
        last = first + round(entry.duration * SAMPLE_RATE)
    if not 0 <= first < min(last, len(samples)):
        where = f"offset {entry.offset} s, duration {entry.duration} s"
        raise ManifestError(
            f"{where} lies outside the {len(samples) / SAMPLE_RATE:.2f} s of {entry.audio_filepath}"
        )
    return samples[first:last]


def joined(clips: Sequence[Clip], length: int) -> Samples:
    """Return `length` samples: the clips one after the other, from the first again where they
    end."""
    import numpy as np

    pieces, size = [], 0
    for clip in clips:
        pieces.append(clip.samples)
        size += len(clip.samples)
        if size >= length:
            break
    return np.resize(np.concatenate(pieces)[:length], length)
