"""MP3 frame by frame: how many there are, where joined files meet, and whether the last one is
whole (pure).

Without a count in its header libsndfile guesses the length of an MP3 from its first bytes, and
reads no further. So each stream is given a count that is true.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from asrd.audio.formats.layout import FileBytes, Layout, Piece, after_tags, before_tags

BITRATES_KBIT = {
    (3, 3): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (3, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (3, 1): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 3): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 1): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Kilobits a second by version (3: MPEG 1, 2: MPEG 2 and 2.5) and layer (3: I, 2: II, 1: III), for
the indexes 1-14."""

SAMPLE_RATES = {
    3: (44_100, 48_000, 32_000),
    2: (22_050, 24_000, 16_000),
    0: (11_025, 12_000, 8_000),
}
"""Hertz by version."""

LAYER_III = 1

MAX_FREE_FRAME_BYTES = 1 << 14
"""How far the second frame is looked for where headers name no bitrate."""


SIDE_BYTES = {(True, False): 32, (True, True): 17, (False, False): 17, (False, True): 9}
"""(whether a frame is of MPEG 1, whether it is mono) -> bytes of side information of layer III."""


@dataclass(frozen=True)
class FrameHeader:
    """What four bytes say of a frame."""

    length: int
    kind: tuple[int, int, int]
    """Version, layer, rate: what does not change within a stream."""
    side: int
    """Bytes of side information before the main data, the header's own four included."""


@lru_cache(1024)
def header(four: bytes) -> FrameHeader | None:
    """Return what a frame's header says; None where four bytes are none."""
    if len(four) < 4 or four[0] != 0xFF or four[1] & 0xE0 != 0xE0:
        return None
    version, layer = four[1] >> 3 & 3, four[1] >> 1 & 3
    bitrate, rate, padding = four[2] >> 4, four[2] >> 2 & 3, four[2] >> 1 & 1
    if version == 1 or layer == 0 or rate == 3 or bitrate in (0, 15):
        return None
    hertz = SAMPLE_RATES[version][rate]
    first_version = version == 3
    bits = 1000 * BITRATES_KBIT[2 + first_version, layer][bitrate - 1]
    if layer == 3:
        length = (12 * bits // hertz + padding) * 4
    elif first_version or layer == 2:
        length = 144 * bits // hertz + padding
    else:
        length = 72 * bits // hertz + padding
    mono = four[3] >> 6 == 3
    side = 4 + SIDE_BYTES[first_version, mono]
    return FrameHeader(length, (version, layer, hertz), side)


@dataclass
class MpegStream:
    """Frames that belong together."""

    kind: tuple[int, int, int]
    first: bytes
    """The header of its first frame."""
    told: int = 0
    """Frames that its own header names; 0 where it has none."""
    info: range | None = None
    """Where that header lies: a frame without sound."""
    frames: int = 0
    pieces: list[range] = field(default_factory=list)

    def add(self, start: int, stop: int) -> None:
        """Take in a frame."""
        self.frames += 1
        if self.pieces and self.pieces[-1].stop == start:
            self.pieces[-1] = range(self.pieces[-1].start, stop)
        else:
            self.pieces.append(range(start, stop))

    def layout(self, free: bool = False) -> list[Piece]:
        """Return what a decoder is given: the frames behind a header with their number, where such
        a frame can be."""
        if self.kind[1] != LAYER_III:
            return [*self.pieces]
        if self.info is not None and abs(self.told - self.frames) <= 1:
            return [
                self.info,
                *self.pieces,
            ]  # with what an encoder notes of the silence it put before and behind
        return [*self.pieces] if free else [_count_frame(self.first, self.frames), *self.pieces]


def survey(file: FileBytes, within: range | None = None) -> Layout | None:
    """Return the streams of an MP3 file, or of the part of a file that is one; None where it is
    none."""
    within = within or range(file.size)
    start = after_tags(file, within.start, within.stop)
    stop = before_tags(file, start, within.stop)
    four = file.at(start, 4)
    if len(four) == 4 and four[0] == 0xFF and four[1] & 0xF6 == 0xF0:
        return Layout(
            decoder="media"
        )  # AAC in ADTS, which mpg123 would search for frames of its own
    if (same := _free_length(file, start, stop)) is not None:
        return _free(file, start, stop, same)
    first = header(four)
    if first is None or not _follows(file, start, stop):
        return None
    streams, broken = _walk(file, start, stop)
    if not streams:
        return None
    stated = found = 0
    missing = False
    for stream in streams:
        stated += stream.told or stream.frames
        found += stream.frames
        missing = missing or stream.told > stream.frames + 1
    flaw, factor = "", 1.0
    if missing:
        factor = max(1.0, stated / max(1, found))
    if missing or broken == "end":
        flaw = "is cut short"
    elif broken:
        flaw = "has a damaged place"
    return Layout([stream.layout() for stream in streams], flaw, factor)


def _follows(file: FileBytes, start: int, stop: int) -> bool:
    """Return whether a frame begins here and another one, a tag or the end comes behind it."""
    one = header(file.at(start, 4))
    if one is None:
        return False
    follows = start + one.length
    if follows >= stop:
        return True
    other = header(file.at(follows, 4))
    return (other is not None and other.kind[:2] == one.kind[:2]) or after_tags(
        file, follows, stop
    ) > follows


def _walk(file: FileBytes, start: int, stop: int) -> tuple[list[MpegStream], str]:
    """Return the streams, and where something is missing: "end", "middle" or ""."""
    streams: list[MpegStream] = []
    broken = ""
    anew = True
    while start + 4 <= stop:
        one = header(file.at(start, 4))
        if one is None:
            behind = after_tags(file, start, stop)
            if behind == start:
                behind = _next_frame(file, start + 1, stop)
                broken = broken or ("middle" if behind < stop else "")
            start, anew = behind, True
            continue
        if start + one.length > stop and not _ends_in_zeros(file, start + one.length, stop):
            return streams, "end"
        if not _next_is_sane(file, start + one.length, stop):
            behind = _next_frame(file, start + 4, start + one.length)
            if behind < start + one.length:  # it was cut off, and another file was hung behind it
                broken, start, anew = "middle", behind, True
                continue
        told = _told(file, start, one)
        if anew or told is not None or streams[-1].kind != one.kind:
            streams.append(MpegStream(one.kind, file.at(start, 4)))
        if told is None:
            streams[-1].add(start, start + one.length)
        else:
            streams[-1].told, streams[-1].info = told, range(start, start + one.length)
        start, anew = start + one.length, False
    if 0 < stop - start < 4 and file.at(start, 1) == b"\xff":
        broken = "end"
    return [stream for stream in streams if stream.frames], broken


def _free_length(file: FileBytes, start: int, stop: int) -> int | None:
    """Return the length of frames whose header names no bitrate, without their padding; None where
    there are none.

    All of them have one length: that from the first to the next with the same header.
    """
    four = file.at(start, 4)
    if (
        len(four) < 4
        or header(bytes([four[0], four[1], four[2] | 0x10, four[3]])) is None
        or four[2] >> 4
    ):
        return None
    place, last = start + 24, min(stop, start + MAX_FREE_FRAME_BYTES)
    while (place := file.find(four[:2], place, last)) >= 0:
        length = place - start - _padding(four)
        follows = place + length + _padding(file.at(place, 4))
        if _is_free(file, place, four) and (follows >= stop or _is_free(file, follows, four)):
            return length
        place += 1
    return None


def _padding(four: bytes) -> int:
    """Return the bytes by which a frame of free format is longer than the others."""
    if len(four) != 4:
        return 0
    padded = four[2] >> 1 & 1
    if four[1] >> 1 & 3 == 3:
        return 4 * padded
    return padded


def _is_free(file: FileBytes, place: int, four: bytes) -> bool:
    """Return whether a frame of free format and of the kind of `four` begins here."""
    other = file.at(place, 4)
    return len(other) == 4 and other[:2] == four[:2] and other[2] & 0xFC == four[2] & 0xFC


def _free(file: FileBytes, start: int, stop: int, length: int) -> Layout:
    """Return the layout of frames of free format."""
    four, flaw = file.at(start, 4), ""
    alike = header(bytes([four[0], four[1], four[2] | 0x10, four[3]]))
    assert alike is not None
    streams: list[MpegStream] = []
    while start < stop and _is_free(file, start, four):
        end = start + length + _padding(file.at(start, 4))
        if end > stop and not _ends_in_zeros(file, end, stop):
            flaw = "is cut short"
            break
        told = _told(file, start, FrameHeader(end - start, alike.kind, alike.side))
        if told is not None or not streams:
            streams.append(
                MpegStream(alike.kind, four, told or 0, None if told is None else range(start, end))
            )
        if told is None:
            streams[-1].add(start, end)
        start = end
    behind = after_tags(file, start, stop)
    if not flaw and behind < stop:
        flaw = "is cut short" if stop - behind < 4 else "has a damaged place"
        streams[-1].pieces.append(range(start, stop))
    if any(stream.told > stream.frames + 1 for stream in streams):
        flaw = "is cut short"
    return Layout([stream.layout(free=True) for stream in streams if stream.frames], flaw)


def _ends_in_zeros(file: FileBytes, end: int, stop: int) -> bool:
    """Return whether a frame is whole whose last bytes are the zeros that were taken for
    padding."""
    return end <= file.size and file.zeros(stop, end)


def _next_is_sane(file: FileBytes, start: int, stop: int) -> bool:
    """Return whether a frame, a tag or the end is here."""
    return (
        start >= stop
        or header(file.at(start, 4)) is not None
        or after_tags(file, start, stop) > start
    )


def _next_frame(file: FileBytes, start: int, stop: int) -> int:
    """Return where the next frame begins that another one follows; `stop` where there is none."""
    while (found := file.find(b"\xff", start, stop)) >= 0:
        if _follows(file, found, file.size):
            return found
        start = found + 1
    return stop


def _told(file: FileBytes, start: int, one: FrameHeader) -> int | None:
    """Return the number of frames that a frame without sound gives for its stream; None where it is
    one with sound."""
    if one.kind[1] != LAYER_III:
        return None
    body = file.at(start, min(one.length, 64))
    mark = body[one.side : one.side + 4]
    if mark in (b"Xing", b"Info"):
        flags = int.from_bytes(body[one.side + 4 : one.side + 8], "big")
        return int.from_bytes(body[one.side + 8 : one.side + 12], "big") if flags & 1 else 0
    if body[36:40] == b"VBRI":
        return int.from_bytes(body[50:54], "big")
    return None


def _count_frame(first: bytes, frames: int) -> bytes:
    """Return a frame without sound that gives a number of frames, of the kind of a stream's first
    one."""
    head = bytes(
        [first[0], first[1] | 1, 14 << 4 | first[2] & 0x0C, first[3]]
    )  # no checksum, the highest rate
    one = header(head)
    assert one is not None
    body = head + bytes(one.side - 4) + b"Info" + (1).to_bytes(4, "big") + frames.to_bytes(4, "big")
    return body.ljust(one.length, b"\0")
