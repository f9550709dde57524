"""What a sound file holds by its own bytes, whatever its header says: its streams, and whether its
end is missing."""

from __future__ import annotations

from asrd.audio.formats import chunked, fixed_headers, mpeg, packets, streams
from asrd.audio.formats import ends as formats_ends
from asrd.audio.formats.chunked import (
    AIFF_KINDS,
    AIFF_MAGIC,
    AU_MAGICS,
    CAF_MAGIC,
    W64_RIFF,
    WAVE_MAGICS,
)
from asrd.audio.formats.layout import FileBytes, Layout, Piece

MAX_BOXES = 100_000

MP4_MAGIC = b"ftyp"
"""At byte 4 of an MP4 file."""

MAGIC_BYTES = 12
"""Bytes by which a sound file is told from raw sound."""

FILE_KINDS = {
    streams.FLAC_MAGIC: "a FLAC file",
    streams.OGG_MAGIC: "an Ogg file",
    AU_MAGICS[0]: "an AU file",
    CAF_MAGIC: "a CAF file",
    W64_RIFF[:4]: "a Wave64 file",
    b"wvpk": "a WavPack file",
    b"\x1a\x45\xdf\xa3": "a WebM or Matroska file",
    b"\x30\x26\xb2\x75": "a WMA file",
    b"#!AM": "an AMR file",
    b"MAC ": "a Monkey's Audio file",
}
"""First four bytes -> the file. Raw sound has such four by chance once in four billion
recordings."""


def file_kind(data: bytes) -> str:
    """Return what sort of sound file begins so; "" for raw sound, and where MAGIC_BYTES are not
    there."""
    head, kind = data[:4], data[8:12]
    if len(data) < MAGIC_BYTES:
        return ""
    if head in WAVE_MAGICS and kind == b"WAVE":
        return "a WAV file"
    if head == AIFF_MAGIC and kind in AIFF_KINDS:
        return "an AIFF file"
    if data[4:8] == MP4_MAGIC:
        return "an MP4 file"
    if data.startswith(b"ID3") and data[3] in (2, 3, 4) and data[4] == 0:
        return "an MP3 file"
    return FILE_KINDS.get(head, "")


def boxes(file: FileBytes) -> Layout | None:
    """Return the MP4 files, m4a and mov too, that were joined in one; None where it is one or none.

    libav reads the first one only, and does not say so.
    """
    start, starts = 0, [0]
    if file.at(4, 4) != MP4_MAGIC:
        return None
    for _ in range(MAX_BOXES):
        length = file.number(start, 4, "big")
        length = file.number(start + 8, 8, "big") if length == 1 else length
        if length < 8 or start + length >= file.size:
            break
        start += length
        if file.at(start + 4, 4) == MP4_MAGIC:
            starts.append(start)
    if len(starts) == 1:
        return None
    parts: list[list[Piece]] = [
        [range(*ends)] for ends in zip(starts, [*starts[1:], file.size], strict=True)
    ]
    return Layout(parts, decoder="media")


def headed(file: FileBytes) -> Layout | None:
    """Return where the audio lies behind a header that states its length, or a mark; None where
    there is none."""
    return formats_ends.survey(file, chunked.CHUNKED_READERS + fixed_headers.FIXED_HEADER_READERS)


FORMAT_SURVEYS = (headed, streams.flac, streams.ogg, boxes, packets.survey, mpeg.survey)


def survey(descriptor: int) -> Layout:
    """Return where the sound of an open file lies; of a kind that is not known here, the file as it
    is.

    Raises OSError: it cannot be read.
    """
    file = FileBytes(descriptor)
    if not file.size:
        return Layout()
    for kind in FORMAT_SURVEYS:
        found = kind(file)
        if found is not None:
            return found
    return Layout()
