"""Ogg and FLAC: the streams that follow each other in one file, and whether the last one is whole
(pure).

libsndfile reads the first stream of a file only, and does not say that it ended early.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from asrd.audio.formats.layout import (
    BLOCK_BYTES,
    FileBytes,
    Layout,
    Piece,
    after_tags,
    before_tags,
)

FLAC_MAGIC, OGG_MAGIC = b"fLaC", b"OggS"
"""How a FLAC stream begins, and each page of Ogg."""

FLAC_START = FLAC_MAGIC + b"\x00\x00\x00\x22"
"""A FLAC stream, whose first block is always STREAMINFO of 34 bytes."""

MAX_FLAC_FRAMES = 32
"""Places that are tried as the beginning of the last frame; its two first bytes are rare."""

MAX_FLAC_FRAME_BYTES = 1 << 18
"""How far before its end the last frame of a FLAC file may begin."""

OGG_CODECS = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex   ")
"""How the first packet of a stream with sound begins."""

OGG_FLAC_HEAD_BYTES = 9
"""Before the FLAC stream in the first packet of one in Ogg."""

FIRST_PAGE, LAST_PAGE = 2, 4
"""Flags of an Ogg page."""


# -- FLAC
# -------------------------------------------------------------------------------------------------------------


def flac(file: FileBytes) -> Layout | None:
    """Return the streams of a FLAC file; None where it is none."""
    start = after_tags(file, 0, file.size)
    if file.at(start, 4) != FLAC_MAGIC:
        return None
    starts = [start]
    while (start := file.find(FLAC_START, starts[-1] + 42, file.size)) >= 0:
        starts.append(start)
    parts: list[list[Piece]] = []
    last_stop = file.size
    for start, follows in zip(starts, [*starts[1:], 0], strict=True):
        stop = before_tags(file, start, follows or file.size)
        last_stop = _before_leading_tag(file, stop, follows)
        parts.append([range(start, last_stop)])
    flaw = ""
    if not _flac_frames(file, starts[-1]) and not _flac_ends(file, starts[-1], last_stop):
        flaw = "is cut short"
    if len(starts) == 1 and starts[0] == 0 and last_stop == file.size:
        return Layout([], flaw)
    return Layout(parts, flaw)


def _before_leading_tag(file: FileBytes, stop: int, follows: int) -> int:
    """Return where an ID3v2 tag begins that leads the stream at `follows`; `stop` where there is
    none."""
    window = max(0, stop - BLOCK_BYTES)
    place = file.at(window, stop - window).rfind(b"ID3") if follows else -1
    return (
        window + place
        if place >= 0 and after_tags(file, window + place, follows) == follows
        else stop
    )


def _flac_frames(file: FileBytes, start: int) -> int:
    """Return the samples that STREAMINFO gives the stream at `start`; 0 where the encoder did not
    know."""
    return file.number(start + 8 + 13, 5, "big") & 0xF_FFFF_FFFF


def _flac_ends(file: FileBytes, start: int, stop: int) -> bool:
    """Return whether the stream ends with a whole frame: one whose checksum is right."""
    window = max(start, stop - MAX_FLAC_FRAME_BYTES)
    tail = file.at(window, stop - window)
    # The rate and the size in a frame's third byte are never 15 and 0, the channels in its fourth
    # below 11.
    starts = [
        found.start() for found in re.finditer(rb"\xff[\xf8\xf9][^\x00-\x0f][\x00-\xaf]", tail)
    ]
    for place in reversed(starts[-MAX_FLAC_FRAMES:]):
        if _checksum(tail[place:]) == 0:
            return True
    return False


def _table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 8
        for _ in range(8):
            value = (value << 1 ^ 0x8005 if value & 0x8000 else value << 1) & 0xFFFF
        table.append(value)
    return table


_CHECKSUM_TABLE: list[int] = []


def _checksum(data: bytes) -> int:
    """Return the CRC-16 of a FLAC frame, which is 0 with its checksum included."""
    if not _CHECKSUM_TABLE:
        _CHECKSUM_TABLE.extend(_table())
    value = 0
    for byte in data:
        value = (value << 8 & 0xFFFF) ^ _CHECKSUM_TABLE[value >> 8 ^ byte]
    return value


# -- Ogg
# --------------------------------------------------------------------------------------------------------------


@dataclass
class _Link:
    """Streams that run side by side, from their first pages on."""

    serial: int | None = None
    """Of the first stream with sound."""
    flac: bool = False
    """It is FLAC, whose packets are a FLAC file in pieces: libsndfile reads them so, and not always
    in their pages."""
    begun: bool = False
    """A page came that is no first page."""
    ended: bool = False
    number: int = -1
    """Of the stream's last page."""
    gap: bool = False
    opus: bool = False
    packets: list[int] = field(default_factory=list)
    """Of each page of an Opus stream behind its two headers."""
    last: range = range(0)
    """Its last page."""
    pieces: list[range] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether it came to its end, by its mark or by how an encoder of voice messages stops.

        Android's own writer and Telegram there set no mark. They write each packet as a page.
        Others that set none write out what they hold when they stop: a page with fewer packets than
        those before, which are alike.
        """
        if self.ended or not self.opus:
            return self.ended
        before = self.packets[:-1] or [0]
        if max(self.packets, default=0) == 1:
            return True
        return max(before) - min(before) <= 1 and self.packets[-1] < min(before)

    def add(self, start: int, stop: int) -> None:
        """Take in a page of the stream."""
        if self.pieces and self.pieces[-1].stop == start:
            self.pieces[-1] = range(self.pieces[-1].start, stop)
        else:
            self.pieces.append(range(start, stop))


def ogg(file: FileBytes) -> Layout | None:
    """Return the streams of an Ogg file, one after the other; None where it is none, or holds none
    with sound."""
    start = after_tags(file, 0, file.size)
    if file.at(start, 4) != OGG_MAGIC:
        return None
    stop = before_tags(file, start, file.size)
    links, cut = _links(file, start, stop)
    links = [link for link in links if link.serial is not None]
    if not links:
        return Layout(decoder="media")
    parts: list[list[Piece]] = [_marked(file, link) for link in links]
    flaw = ""
    if cut or not all(link.whole for link in links):
        flaw = "is cut short"
    elif any(link.gap for link in links):
        flaw = "has a gap"
    whole = len(parts) == 1 and parts[0] == [range(file.size)]
    return Layout([] if whole else parts, flaw)


def _marked(file: FileBytes, link: _Link) -> list[Piece]:
    """Return the pieces of a link, the last page with the mark of an end: libopusfile drops sound
    without it."""
    if link.ended or not link.opus or not link.pieces:
        return [*link.pieces]
    page = bytearray(file.at(link.last.start, len(link.last)))
    page[5] |= LAST_PAGE
    page[22:26] = bytes(4)
    page[22:26] = page_checksum(bytes(page)).to_bytes(4, "little")
    before = range(link.pieces[-1].start, link.last.start)
    return [*link.pieces[:-1], before, bytes(page)]


def page_checksum(page: bytes) -> int:
    """Return the CRC-32 of an Ogg page whose own field is 0."""
    value = 0
    for byte in page:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ 0x04C1_1DB7 if value >> 31 else value << 1) & 0xFFFF_FFFF
    return value


def _links(file: FileBytes, start: int, stop: int) -> tuple[list[_Link], bool]:
    """Return what follows each other in an Ogg file, and whether its last page is cut."""
    links = [_Link()]
    while start < stop:
        head = file.at(start, 27 + 255)
        if head[:4] != OGG_MAGIC:
            following = file.find(OGG_MAGIC, start + 1, stop)
            links[-1].gap = links[-1].gap or following >= 0
            if following < 0:
                return links, False
            start = following
            continue
        if len(head) < 27 or len(head) < 27 + head[26]:
            return links, True
        body = start + 27 + head[26]
        end = body + sum(head[27 : 27 + head[26]])
        inner = _inner_page(file, start, end, stop)
        if inner:  # this one is cut, and another file was hung behind it
            links[-1].gap, start = True, inner
            continue
        if end > stop:
            return links, True
        _take(file, links, head, start, body, end)
        start = end
    return links, False


def _inner_page(file: FileBytes, start: int, end: int, stop: int) -> int:
    """Return where another page begins within one that is followed by none; 0 where there is
    none."""
    if end == stop or (end < stop and file.at(end, 4) == OGG_MAGIC):
        return 0
    return max(0, file.find(OGG_MAGIC, start + 27, min(end, stop)))


def _take(
    file: FileBytes, links: list[_Link], head: bytes, start: int, body: int, end: int
) -> None:
    """Give a page to the link that it belongs to."""
    flags, serial = head[5], int.from_bytes(head[14:18], "little")
    if flags & FIRST_PAGE:
        if links[-1].begun:
            links.append(_Link())
        if links[-1].serial is None and file.at(body, 8).startswith(OGG_CODECS):
            links[-1].serial, links[-1].flac = serial, file.at(body, 5) == b"\x7fFLAC"
            links[-1].opus = file.at(body, 8) == b"OpusHead"
    else:
        links[-1].begun = True
    link = links[-1]
    if serial != link.serial:
        return
    number = int.from_bytes(head[18:22], "little")
    # A stream that was joined on its way begins with its headers and goes on with a later page.
    link.gap = link.gap or (link.number > 3 and number != link.number + 1)
    link.number = number
    link.ended = link.ended or bool(flags & LAST_PAGE)
    packets = sum(lace < 255 for lace in head[27 : 27 + head[26]])
    if link.opus and packets and not flags & FIRST_PAGE and file.at(body, 8) != b"OpusTags":
        link.packets.append(packets)
    link.last = range(start, end)
    if not link.flac:
        link.add(start, end)
    elif link.pieces or flags & FIRST_PAGE:
        link.add(body if link.pieces else body + OGG_FLAC_HEAD_BYTES, end)
