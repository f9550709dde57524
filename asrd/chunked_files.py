"""Where the sound of a WAV, RF64, Wave64, AIFF, CAF or AU file ends: not always where its header says (pure).

A recorder that is killed leaves a length of nothing, or of what it had at its last look; one that writes into a pipe
leaves a mark; 32 bits wrap at 4 GiB. The bytes decide: behind the sound are known chunks, padding, tags, another
file, or the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from . import mpeg_files
from .layout import FileBytes, Layout, Piece, after_tags

OPEN_ENDS = (0x7F00_0000, 0x8000_0000, 0xFFFF_FFFF, 0x7FFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF)
"""Lengths that a program writes which does not know the end yet: sox, arecord and espeak, ffmpeg into a pipe."""

OPEN_BYTES = 0x1_0000
"""How far from such a mark a length may be, as it was rounded or had the header's size taken off."""

MAX_CHUNKS = 10_000

MP3 = 0x55
"""The number of MPEG layer III in a WAV file."""

WAVE_MAGICS = (b"RIFF", b"RF64", b"BW64", b"RIFX")
AIFF_MAGIC, AIFF_KINDS = b"FORM", (b"AIFF", b"AIFC")
CAF_MAGIC = b"caff"
AU_MAGICS = (b".snd", b"dns.")
"""How files of each kind begin; of the first two the kind stands at byte 8."""

W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")
W64_RIFF = b"riff" + bytes.fromhex("2e91cf11a5d628db04c10000")

NAMED = (b"LIST", b"id3 ", b"ID3 ", b"bext", b"iXML", b"cue ", b"smpl", b"JUNK", b"PAD ", b"_PMX", b"axml")
"""Chunks that may themselves be cut short: they hold no sound."""


@dataclass(frozen=True)
class Shape:
    """How a format writes its chunks."""

    order: str
    name: int
    """Bytes of a chunk's name."""
    size: int
    """Bytes of a chunk's length."""
    align: int
    """Chunks begin at multiples of it."""
    counted: bool = False
    """Whether a length counts its own head."""

    @property
    def head(self) -> int:
        """Bytes before a chunk's content."""
        return self.name + self.size

    def after(self, start: int, length: int) -> int:
        """Return where the next chunk begins, behind content of `length` bytes at `start`."""
        return start + length + -length % self.align


RIFF = Shape("little", 4, 4, 2)
RIFX = Shape("big", 4, 4, 2)
AIFF = Shape("big", 4, 4, 2)
CAF = Shape("big", 4, 8, 1)
W64 = Shape("little", 16, 8, 8, counted=True)


@dataclass(frozen=True)
class Chunk:
    """One chunk: its name, where its length stands, where its content lies."""

    name: bytes
    at: int
    start: int
    length: int


def chunks(file: FileBytes, shape: Shape, start: int) -> Iterator[Chunk]:
    """Yield the chunks from `start` on; the last may be longer than the file."""
    for _ in range(MAX_CHUNKS):
        if start + shape.head > file.size:
            return
        name = file.at(start, shape.name)
        # A length that counts its own head is less than it where it was never written.
        length = max(0, file.number(start + shape.name, shape.size, shape.order) - shape.head * shape.counted)
        body = start + shape.head
        yield Chunk(name, start + shape.name, body, length)
        start = shape.after(body, length)


def survey(file: FileBytes) -> Layout | None:
    """Return where the sound lies; None where the file is of no such kind, or its header has no place for sound."""
    magic, kind = file.at(0, 4), file.at(8, 4)
    if magic in WAVE_MAGICS and kind == b"WAVE":
        return _joined(file)
    if magic == AIFF_MAGIC and kind in AIFF_KINDS:
        return _one(file, 12, AIFF, b"SSND", 8)
    if magic == CAF_MAGIC:
        return _one(file, 8, CAF, b"data", 4)
    if file.at(0, 16) == W64_RIFF:
        return _one(file, 40, W64, b"data" + W64_TAIL, 0)
    if magic in AU_MAGICS:
        return _au(file)
    return None


def _joined(file: FileBytes) -> Layout | None:
    """Return the layout of a WAV file, and of those that were hung behind it."""
    parts: list[list[Piece]] = []
    start, odd = 0, False
    while True:
        shape = RIFX if file.at(start, 4) == b"RIFX" else RIFF
        sound = _data(file, start + 12, shape, b"data", 0)
        if sound is None:
            return None if not parts else Layout(parts)
        end = _end(file, shape, sound)
        if not parts and _format(file, start + 12, shape) == MP3:
            return _mp3(file, sound, end)
        following = _next_file(file, sound.start + end.length)
        odd = odd or end.patched or bool(following)
        parts.append(_patched(file, start, shape, sound, end, b"\xff" * 4))
        if end.flaw or not following:
            return Layout(parts if odd else [], end.flaw, end.promised)
        start = following


def _format(file: FileBytes, first: int, shape: Shape) -> int:
    """Return the number of a WAV file's coding; 0 where none stands before its sound."""
    for chunk in chunks(file, shape, first):
        if chunk.name == b"fmt ":
            return file.number(chunk.start, 2, shape.order)
        if chunk.name == b"data":
            break
    return 0


def _mp3(file: FileBytes, sound: Chunk, end: End) -> Layout | None:
    """Return the layout of a WAV file around an MP3: libsndfile would guess how long that is."""
    inner = mpeg_files.survey(file, range(sound.start, sound.start + end.length))
    if inner is None:
        return Layout([], end.flaw, end.promised)
    return Layout(inner.parts, end.flaw or inner.flaw, max(end.promised, inner.promised))


def _next_file(file: FileBytes, start: int) -> int:
    """Return where another WAV file begins behind the chunks that follow a sound; 0 where there is none."""
    for place in (start, start + start % 2):
        if _is_wave(file, place):
            return place
    for chunk in chunks(file, RIFF, start + start % 2):
        follows = chunk.start + chunk.length + chunk.length % 2
        if not _printable(chunk.name) or follows > file.size:
            return 0
        if _is_wave(file, follows):
            return follows
    return 0


def _is_wave(file: FileBytes, start: int) -> bool:
    return file.at(start, 4) in (b"RIFF", b"RF64", b"BW64") and file.at(start + 8, 4) == b"WAVE"


def _one(file: FileBytes, first: int, shape: Shape, name: bytes, extra: int) -> Layout | None:
    """Return the layout of a file with one sound chunk of this name, whose content begins with `extra` bytes."""
    sound = _data(file, first, shape, name, extra)
    if sound is None:
        return None
    end = _end(file, shape, sound)
    if not end.patched:
        return Layout([], end.flaw, end.promised)
    length = end.length + extra + shape.head * shape.counted
    size = min(length, (1 << 8 * shape.size) - 1).to_bytes(shape.size, "big" if shape.order == "big" else "little")
    pieces = _patched(file, 0, shape, sound, end, size)
    if shape is AIFF:
        pieces = _with_frames(file, pieces, end.length)
    return Layout([pieces], end.flaw, end.promised)


def _au(file: FileBytes) -> Layout | None:
    """Return the layout of an AU file: a head, and sound to the end."""
    order = "big" if file.at(0, 4) == b".snd" else "little"
    start = file.number(4, 4, order)
    if not 24 <= start <= file.size:
        return None
    sound = Chunk(b"", 8, start, file.number(8, 4, order))
    end = _end(file, AIFF, sound)
    if not end.patched:
        return Layout([], end.flaw, end.promised)
    return Layout([_patched(file, 0, AIFF, sound, end, b"\xff" * 4)], end.flaw, end.promised)


def _data(file: FileBytes, first: int, shape: Shape, name: bytes, extra: int) -> Chunk | None:
    """Return the chunk that holds the sound, without its first `extra` bytes; with the length that RF64 gives it."""
    long = 0
    for chunk in chunks(file, shape, first):
        if chunk.name == b"ds64" and chunk.length >= 24:
            long = file.number(chunk.start + 8, 8, shape.order)
        if chunk.name == name:
            length = chunk.length
            if length == 0xFFFF_FFFF and file.at(first, 4) == b"ds64":
                length = long
            taken = min(extra, file.size - chunk.start)
            return Chunk(name, chunk.at, chunk.start + taken, length - extra if length >= extra else 0)
    return None


# -- where it ends ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class End:
    """How long a sound is."""

    length: int
    patched: bool = False
    """Whether a decoder has to be told."""
    flaw: str = ""
    promised: float = 1.0


def _end(file: FileBytes, shape: Shape, sound: Chunk) -> End:
    """Return where a sound ends, by what follows it."""
    there = file.size - sound.start
    if _is_open(sound.length, there):
        return End(there, patched=True)
    if sound.length > there:
        return End(there, flaw="is cut short", promised=sound.length / max(1, there))
    for wraps in range(1 + (there >> 32 if shape.size == 4 else 0)):
        length = sound.length + (wraps << 32)
        if length <= there and _is_over(file, shape, sound.start + length):
            return End(length, patched=bool(wraps))
    if not sound.length:
        return End(there, patched=True, flaw="has an unfinished header")
    return End(there, patched=True, flaw="has more sound than its header says")


def _is_open(length: int, there: int) -> bool:
    """Return whether a length says that nobody knew it."""
    return length > there and any(abs(length - mark) <= OPEN_BYTES for mark in OPEN_ENDS)


def _is_over(file: FileBytes, shape: Shape, start: int) -> bool:
    """Return whether no sound follows from `start` on: chunks, tags, padding, another file, or nothing."""
    places = {start, start + -start % shape.align}
    return any(_no_sound(file, shape, place) for place in places)


def _no_sound(file: FileBytes, shape: Shape, start: int) -> bool:
    if start >= file.size - 1 or after_tags(file, start, file.size) >= file.size - 1:
        return True
    if file.zeros(start, file.size) or _is_wave(file, start):
        return True
    for chunk in chunks(file, shape, start):
        if not _printable(chunk.name) or chunk.name == b"FORM":  # no chunk, but another AIFF file
            return False
        follows = shape.after(chunk.start, chunk.length)
        if follows > file.size + 1:
            return chunk.name[:4] in NAMED
        if follows >= file.size - 1 or after_tags(file, follows, file.size) >= file.size - 1:
            return True
        if file.zeros(follows, file.size) or _is_wave(file, follows):
            return True
    return False


def _printable(name: bytes) -> bool:
    return all(0x20 <= byte < 0x7F for byte in name[:4]) and name[4:] in (b"", W64_TAIL)


# -- what a decoder is given ------------------------------------------------------------------------------------------


def _patched(file: FileBytes, start: int, shape: Shape, sound: Chunk, end: End, size: bytes) -> list[Piece]:
    """Return a file from `start` on whose header gives the sound this length, and that ends with the sound."""
    pieces: list[Piece] = [range(start, sound.at), size, range(sound.at + len(size), sound.start + end.length)]
    if file.at(start, 4) in (b"RF64", b"BW64"):  # libsndfile goes by the length in ds64, and by the file in a WAV
        pieces[0:1] = [b"RIFF", range(start + 4, start + 12), b"JUNK", range(start + 16, sound.at)]
    return pieces


def _with_frames(file: FileBytes, pieces: list[Piece], length: int) -> list[Piece]:
    """Return an AIFF file with as many frames in its header as its sound has, where each has one size."""
    for chunk in chunks(file, AIFF, 12):
        if chunk.name == b"COMM":
            channels, bits = file.number(chunk.start, 2, "big"), file.number(chunk.start + 6, 2, "big")
            packed = file.at(8, 4) == b"AIFC" and file.at(chunk.start + 18, 4) in (b"ima4", b"GSM ", b"MAC3", b"MAC6")
            width = channels * -(-bits // 8)
            head = pieces[0]
            if packed or not width or not isinstance(head, range) or chunk.start + 6 > head.stop:
                return pieces
            frames = min(length // width, 0xFFFF_FFFF).to_bytes(4, "big")
            return [range(chunk.start + 2), frames, range(chunk.start + 6, head.stop), *pieces[1:]]
    return pieces


