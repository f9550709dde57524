"""Where the audio of one file ends: by the length that its header states, and by what follows it
(pure).

A recorder that is killed leaves a length of nothing, or of what it had at its last look; one that
writes into a pipe leaves a mark; 32 bits wrap at 4 GiB; another file may be hung behind. The bytes
decide. Knows no format: an `AudioHeader` gives the facts of one, and a reader finds headers of one
format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from asrd.audio.formats.layout import FileBytes, Layout, Piece, before_tags

OPEN_ENDS = (0x7F00_0000, 0x8000_0000, 0xFFFF_FFFF, 0x7FFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF)
"""Lengths that a program writes which does not know the end yet: sox, arecord and espeak, ffmpeg
into a pipe."""

OPEN_BYTES = 0x1_0000
"""How far from such a mark a length may be, as it was rounded or had the header's size taken
off."""

MAX_PARTS = 10_000

CUT_FLAW, UNFINISHED_FLAW, SURPLUS_FLAW = (
    "is cut short",
    "has an unfinished header",
    "has more audio than its header says",
)

FILE_START = re.compile(
    rb"(?:RIFF|RIFX|RF64|BW64)....WAVE|FORM....(?:AIF[FC]|8SVX|16SV)|caff\0\x01\0\0|riff\x2e\x91\xcf\x11"
    rb"|\.snd\0\0|dns\...\0\0|NIST_1A\n|Creative Voi|2BIT|ALawSoundFil|PVF1\n| paf\0\0\0\0|fap \0\0\0\0|Extended Ins"
    rb"|MATLAB 5.0 M"
    rb"|\x64\xa3[\x01-\x08]\0....(?:[\x01-\x10]\0\0\0[\x01-\x04]\0[\0-\x04]\0|\0\0\0[\x01-\x10]\0[\0-\x04]\0[\x01-\x04])",
    re.DOTALL,
)
"""How a file of a known format begins, where it cannot be anything else."""


class AudioHeader(Protocol):
    """What the header of one file says of its audio, and how the format goes on behind it."""

    @property
    def begin(self) -> int:
        """Where the file begins."""

    @property
    def start(self) -> int:
        """Where its audio begins."""

    @property
    def stated(self) -> int | None:
        """Bytes of audio that it states; None where it says that nobody knows, or has no place for
        a length."""

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame or block; 0 where they vary."""

    @property
    def modulus(self) -> int:
        """A length of so many bytes is stated as 0; 0 where that cannot happen."""

    @property
    def strict(self) -> bool:
        """Whether libsndfile refuses a stated length that is not there, or reads past it."""

    def is_over(self, place: int) -> bool:
        """Return whether no audio of this file follows from `place` on."""

    def following(self, place: int) -> int:
        """Return where another file begins behind audio that ends at `place`; 0 where there is
        none."""

    def pieces(self, length: int) -> list[Piece]:
        """Return the file with audio of this length, whose header says so, and nothing behind
        it."""

    def inner(self, end: AudioEnd) -> Layout | None:
        """Return the layout of audio that is itself a file of another format; None where it is
        none."""


Reader = Callable[[FileBytes, int], AudioHeader | None]


@dataclass(frozen=True)
class AudioEnd:
    """How long the audio of one file is."""

    length: int
    patched: bool = False
    """Whether a decoder has to be told."""
    flaw: str = ""
    stated: int = 0
    """Bytes that there should be, where some are missing."""
    following: int = 0
    """Where another file begins; 0 where there is none."""


def begins(file: FileBytes, place: int) -> bool:
    """Return whether a file of a known format begins here."""
    return FILE_START.match(file.at(place, 16)) is not None


def survey(file: FileBytes, readers: Sequence[Reader]) -> Layout | None:
    """Return the layout of a file, and of those that were hung behind it; None where no reader
    knows it."""
    parts: list[list[Piece]] = []
    begin, odd, flaw, there, stated = 0, False, "", 0, 0
    for _ in range(MAX_PARTS):
        header = _read(file, begin, readers)
        if header is None:
            break
        end = _end(file, header)
        inner = header.inner(end) if not parts else None
        if inner is not None and (inner.decoder == "media" or not end.following):
            return inner
        odd = odd or end.patched or bool(end.following)
        parts.append(header.pieces(end.length))
        flaw, begin = flaw or end.flaw, end.following
        there, stated = there + end.length, stated + max(end.length, end.stated)
        if not begin:
            break
    if not parts:
        return None
    return Layout(parts if odd else [], flaw, stated / max(1, there))


def _read(file: FileBytes, begin: int, readers: Sequence[Reader]) -> AudioHeader | None:
    """Return the header that begins here; None where no reader knows it."""
    for reader in readers:
        header = reader(file, begin)
        if header is not None and header.start <= file.size:
            return header
    return None


def _end(file: FileBytes, header: AudioHeader) -> AudioEnd:
    """Return where the audio of a file ends."""
    there = file.size - header.start
    stated = header.stated
    if stated is not None and _is_open(stated, there):
        stated = None
    if stated is not None and stated <= there:
        for wraps in range(1 + (there // header.modulus if header.modulus else 0)):
            length = stated + wraps * header.modulus
            if length <= there and header.is_over(header.start + length):
                return AudioEnd(
                    length, bool(wraps), following=header.following(header.start + length)
                )
    following = _hung_behind(file, header)
    stop = following or _before_tag(file, header.start)
    length = stop - header.start
    rest = length % header.frame_bytes if header.frame_bytes else 0
    if stated is None:
        flaw = CUT_FLAW if rest and not _is_pad(file, stop, length, rest) else ""
        return AudioEnd(length - rest, True, flaw, following=following)
    if stated > length:
        return AudioEnd(
            length - rest, header.strict or bool(following), CUT_FLAW, stated, following
        )
    return AudioEnd(
        length - rest, True, SURPLUS_FLAW if stated else UNFINISHED_FLAW, following=following
    )


def _is_open(length: int, there: int) -> bool:
    """Return whether a length says that nobody knew it."""
    return length > there and any(abs(length - mark) <= OPEN_BYTES for mark in OPEN_ENDS)


def _hung_behind(file: FileBytes, header: AudioHeader) -> int:
    """Return where a file of the same kind begins within what would be audio of this one; 0 where
    none does.

    Only looked for where the header's length does not end the audio: the whole file is gone
    through.
    """
    mark = file.at(header.begin, 4)
    if not begins(file, header.begin):
        return 0
    place = header.start
    while (place := file.find(mark, place, file.size)) >= 0:
        if begins(file, place):
            return place
        place += 1
    return 0


def _before_tag(file: FileBytes, start: int) -> int:
    """Return where the tags at the end of a file begin. Zeros may be silence, and are left."""
    stop = before_tags(file, start, file.size)
    return stop if stop < file.size and file.at(stop, 3) in (b"TAG", b"ID3", b"APE") else file.size


def _is_pad(file: FileBytes, stop: int, length: int, rest: int) -> bool:
    """Return whether the byte behind the last whole frame makes an odd length even, as chunks have
    it."""
    return rest == 1 and length % 2 == 0 and file.at(stop - 1, 1) == b"\0"
