"""What a sound file holds by its own bytes, whatever its header says: its streams, and whether its end is missing."""

from __future__ import annotations

from . import chunked_files, mpeg_files, streams
from .layout import FileBytes, Layout, Piece

MAX_BOXES = 100_000


def boxes(file: FileBytes) -> Layout | None:
    """Return the MP4 files, m4a and mov too, that were joined in one; None where it is one or none.

    libav reads the first one only, and does not say so.
    """
    start, starts = 0, [0]
    if file.at(4, 4) != b"ftyp":
        return None
    for _ in range(MAX_BOXES):
        length = file.number(start, 4, "big")
        length = file.number(start + 8, 8, "big") if length == 1 else length
        if length < 8 or start + length >= file.size:
            break
        start += length
        if file.at(start + 4, 4) == b"ftyp":
            starts.append(start)
    if len(starts) == 1:
        return None
    parts: list[list[Piece]] = [[range(*ends)] for ends in zip(starts, [*starts[1:], file.size], strict=True)]
    return Layout(parts, decoder="media")


SURVEYS = (chunked_files.survey, streams.flac, streams.ogg, boxes, mpeg_files.survey)


def survey(descriptor: int) -> Layout:
    """Return where the sound of an open file lies; of a kind that is not known here, the file as it is.

    Raises OSError: it cannot be read.
    """
    file = FileBytes(descriptor)
    if not file.size:
        return Layout()
    for kind in SURVEYS:
        found = kind(file)
        if found is not None:
            return found
    return Layout()
