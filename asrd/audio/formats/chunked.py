"""The headers of WAV, RF64, Wave64, AIFF, CAF, 8SVX and AU files: files of chunks, and one without
(pure)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from asrd.audio.formats import mpeg
from asrd.audio.formats.ends import AudioEnd, begins
from asrd.audio.formats.layout import FileBytes, Layout, Piece, after_tags

MAX_CHUNKS = 10_000

MP3_CODING = 0x55
"""The number of MPEG layer III in a WAV file."""

WAVE_MAGICS = (b"RIFF", b"RF64", b"BW64", b"RIFX")
AIFF_MAGIC, AIFF_KINDS = b"FORM", (b"AIFF", b"AIFC")
CAF_MAGIC = b"caff"
AU_MAGICS = (b".snd", b"dns.")
"""How files of each kind begin; of the first two the kind stands at byte 8."""

W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")
W64_RIFF = b"riff" + bytes.fromhex("2e91cf11a5d628db04c10000")

METADATA_CHUNKS = (
    b"LIST",
    b"id3 ",
    b"ID3 ",
    b"bext",
    b"iXML",
    b"cue ",
    b"smpl",
    b"JUNK",
    b"PAD ",
    b"_PMX",
    b"axml",
)
"""Chunks that may themselves be cut short: they hold no audio."""

AU_BYTES = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8, 27: 1}
"""Of a sample, by the number of an AU file's coding; the others have no sample of whole bytes."""

AIFC_BYTES = {
    b"alaw": 1,
    b"ALAW": 1,
    b"ulaw": 1,
    b"ULAW": 1,
    b"fl32": 4,
    b"FL32": 4,
    b"fl64": 8,
    b"FL64": 8,
}
"""Of a sample, by an AIFC file's coding, whatever its bits say."""

AIFC_PCM = (b"NONE", b"sowt", b"twos", b"raw ", b"in24", b"in32", b"42ni", b"23ni")
"""AIFC codings whose bits say how long a sample is; those that are neither are packed."""


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


RIFF_SHAPE = Shape("little", 4, 4, 2)
RIFX_SHAPE = Shape("big", 4, 4, 2)
IFF_SHAPE = Shape("big", 4, 4, 2)
CAF_SHAPE = Shape("big", 4, 8, 1)
W64_SHAPE = Shape("little", 16, 8, 8, counted=True)


@dataclass(frozen=True)
class Chunk:
    """One chunk: its name, where its length stands, where its content lies."""

    name: bytes
    at: int
    start: int
    length: int
    written: int
    """The length as the file has it."""


def chunks(file: FileBytes, shape: Shape, start: int) -> Iterator[Chunk]:
    """Yield the chunks from `start` on; the last may be longer than the file."""
    for _ in range(MAX_CHUNKS):
        if start + shape.head > file.size:
            return
        name = file.at(start, shape.name)
        written = file.number(start + shape.name, shape.size, shape.order)
        # A length that counts its own head is less than it where it was never written.
        length = max(0, written - shape.head * shape.counted)
        body = start + shape.head
        yield Chunk(name, start + shape.name, body, length, written)
        start = shape.after(body, length)


# -- headers
# ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChunkedHeader:
    """The header of one file of chunks, as `ends.AudioHeader` has it."""

    file: FileBytes
    begin: int
    start: int
    stated: int | None
    frame_bytes: int
    shape: Shape
    at: int
    """Where the length of its audio stands."""
    extra: int = 0
    """Bytes of the sound chunk's content before its audio."""
    first: int = 12
    """Where its first chunk begins, from `begin` on."""
    strict: bool = False

    @property
    def modulus(self) -> int:
        """A length of so many bytes is stated as 0; 0 where that cannot happen."""
        return 1 << 32 if self.shape.size == 4 else 0

    def is_over(self, place: int) -> bool:
        """Return whether no audio follows from `place` on: chunks, tags, padding, another file, or
        nothing."""
        return any(_no_audio(self.file, self.shape, each) for each in self._behind(place))

    def following(self, place: int) -> int:
        """Return where another file begins behind the chunks that follow the audio; 0 where there
        is none."""
        places = self._behind(place)
        for start in places:
            if begins(self.file, start):
                return start
        for chunk in chunks(self.file, self.shape, places[-1]):
            follows = self.shape.after(chunk.start, chunk.length)
            if not _printable(chunk.name) or follows > self.file.size:
                return 0
            if begins(self.file, follows):
                return follows
        return 0

    def _behind(self, place: int) -> tuple[int, int]:
        """Return where what follows audio that ends at `place` may begin: there, or behind its
        padding."""
        aligned = self.shape.after(self.start - self.extra, place - self.start + self.extra)
        # libsndfile pads ALAC in CAF, which has no padding.
        aligned += self.shape is CAF_SHAPE and self.file.at(place, 2) in (b"\0", b"\0c")
        return place, aligned

    def pieces(self, length: int) -> list[Piece]:
        """Return the file with audio of this length, whose header says so, and nothing behind
        it."""
        if self.stated == length and self.file.at(self.begin, 4) == CAF_MAGIC:
            # The table of packets stands behind the audio.
            return [range(self.begin, self.following(self.start + length) or self.file.size)]
        size = self._size(length)
        pieces: list[Piece] = [
            range(self.begin, self.at),
            size,
            range(self.at + len(size), self.start + length),
        ]
        if self.file.at(self.begin, 4) in (b"RF64", b"BW64"):
            # libsndfile goes by the length in ds64, and by the file in a WAV.
            pieces[0:1] = [
                b"RIFF",
                range(self.begin + 4, self.begin + 12),
                b"JUNK",
                range(self.begin + 16, self.at),
            ]
        return _with_frames(self, pieces, length)

    def _size(self, length: int) -> bytes:
        """Return the field that states this length; all ones where libsndfile then goes by the
        file."""
        if self.shape in (RIFF_SHAPE, RIFX_SHAPE) or (
            not self.extra and self.file.at(self.begin, 4) in AU_MAGICS
        ):
            return b"\xff" * 4
        length += self.extra + self.shape.head * self.shape.counted
        value = min(length, (1 << 8 * self.shape.size) - 1)
        return value.to_bytes(self.shape.size, "big" if self.shape.order == "big" else "little")

    def inner(self, end: AudioEnd) -> Layout | None:
        """Return the layout of an MP3 in a WAV file: libsndfile would guess how long that is."""
        if self.shape not in (RIFF_SHAPE, RIFX_SHAPE):
            return None
        form = _content(self.file, self.shape, self.begin + self.first, b"fmt ")
        if form is None or self.file.number(form.start, 2, self.shape.order) != MP3_CODING:
            return None
        found = mpeg.survey(self.file, range(self.start, self.start + end.length))
        promised = max(end.length, end.stated) / max(1, end.length)
        if found is None:
            return Layout([], end.flaw, promised)
        return Layout(found.parts, end.flaw or found.flaw, max(promised, found.promised))


def _content(file: FileBytes, shape: Shape, first: int, name: bytes) -> Chunk | None:
    """Return the first chunk of a name; None where there is none."""
    return next((chunk for chunk in chunks(file, shape, first) if chunk.name == name), None)


def wave(file: FileBytes, begin: int) -> ChunkedHeader | None:
    """Return the header of a WAV, RIFX or RF64 file that begins here; None where none does."""
    magic, kind = file.at(begin, 4), file.at(begin + 8, 4)
    if magic not in WAVE_MAGICS or kind != b"WAVE":
        return None
    shape = RIFX_SHAPE if magic == b"RIFX" else RIFF_SHAPE
    audio = _content(file, shape, begin + 12, b"data")
    if audio is None:
        return None
    stated: int | None = audio.length
    sizes = _content(file, shape, begin + 12, b"ds64")
    if sizes is not None and sizes.length >= 24 and audio.length == 0xFFFF_FFFF:
        # Even a file without audio has a size of its own: where that is 0, nobody ever knew one.
        known = file.number(sizes.start, 8, shape.order)
        stated = file.number(sizes.start + 8, 8, shape.order) if known else None
    form = _content(file, shape, begin + 12, b"fmt ")
    width = file.number(form.start + 12, 2, shape.order) if form is not None else 0
    return ChunkedHeader(file, begin, audio.start, stated, width, shape, audio.at)


def _chunked(
    file: FileBytes, begin: int, first: int, shape: Shape, name: bytes, extra: int
) -> ChunkedHeader | None:
    """Return the header of a file with one sound chunk of this name, whose content begins with
    `extra` bytes."""
    audio = _content(file, shape, begin + first, name)
    if audio is None:
        return None
    start = audio.start + min(extra, file.size - audio.start)
    # Even a chunk without audio has a length that counts what is always in it: a smaller one was
    # never known.
    stated = None if audio.written < extra + shape.head * shape.counted else audio.length - extra
    return ChunkedHeader(file, begin, start, stated, 0, shape, audio.at, extra, first)


def _framed(
    header: ChunkedHeader | None, width: Callable[[ChunkedHeader], int]
) -> ChunkedHeader | None:
    """Return the header with the bytes of its frames."""
    return None if header is None else replace(header, frame_bytes=width(header))


def aiff(file: FileBytes, begin: int) -> ChunkedHeader | None:
    """Return the header of an AIFF file that begins here; None where none does."""
    if file.at(begin, 4) != AIFF_MAGIC or file.at(begin + 8, 4) not in AIFF_KINDS:
        return None
    return _framed(_chunked(file, begin, 12, IFF_SHAPE, b"SSND", 8), _aiff_frame)


def _aiff_frame(header: ChunkedHeader) -> int:
    """Return the bytes of a frame of an AIFF file; 0 where they vary."""
    file = header.file
    form = _content(file, IFF_SHAPE, header.begin + 12, b"COMM")
    if form is None:
        return 0
    channels, bits = file.number(form.start, 2, "big"), file.number(form.start + 6, 2, "big")
    coding = file.at(form.start + 18, 4) if file.at(header.begin + 8, 4) == b"AIFC" else b"NONE"
    return channels * AIFC_BYTES.get(coding, -(-bits // 8) if coding in AIFC_PCM else 0)


def svx(file: FileBytes, begin: int) -> ChunkedHeader | None:
    """Return the header of an 8SVX or 16SV file that begins here; None where none does."""
    kind = file.at(begin + 8, 4)
    if file.at(begin, 4) != AIFF_MAGIC or kind not in (b"8SVX", b"16SV"):
        return None
    return _framed(
        _chunked(file, begin, 12, IFF_SHAPE, b"BODY", 0), lambda _: 1 if kind == b"8SVX" else 2
    )


def caf(file: FileBytes, begin: int) -> ChunkedHeader | None:
    """Return the header of a CAF file that begins here; None where none does."""
    if file.at(begin, 4) != CAF_MAGIC:
        return None

    def frame(header: ChunkedHeader) -> int:
        form = _content(file, CAF_SHAPE, begin + 8, b"desc")
        return file.number(form.start + 16, 4, "big") if form is not None else 0

    return _framed(_chunked(file, begin, 8, CAF_SHAPE, b"data", 4), frame)


def w64(file: FileBytes, begin: int) -> ChunkedHeader | None:
    """Return the header of a Wave64 file that begins here; None where none does."""
    if file.at(begin, 16) != W64_RIFF:
        return None

    def frame(header: ChunkedHeader) -> int:
        form = _content(file, W64_SHAPE, begin + 40, b"fmt " + W64_TAIL)
        return file.number(form.start + 12, 2, "little") if form is not None else 0

    return _framed(_chunked(file, begin, 40, W64_SHAPE, b"data" + W64_TAIL, 0), frame)


def au(file: FileBytes, begin: int) -> ChunkedHeader | None:
    """Return the header of an AU file that begins here: a head, and audio to the end. None where
    none does."""
    magic = file.at(begin, 4)
    order = "big" if magic == b".snd" else "little"
    offset = file.number(begin + 4, 4, order)
    if magic not in AU_MAGICS or not 24 <= offset <= file.size - begin:
        return None
    width = AU_BYTES.get(file.number(begin + 12, 4, order), 0) * file.number(begin + 20, 4, order)
    return ChunkedHeader(
        file,
        begin,
        begin + offset,
        file.number(begin + 8, 4, order),
        width,
        IFF_SHAPE,
        begin + 8,
        first=0,
    )


CHUNKED_READERS = (wave, aiff, svx, caf, w64, au)


# -- what follows, and what a decoder is given
# ------------------------------------------------------------------------


def _no_audio(file: FileBytes, shape: Shape, start: int) -> bool:
    if start >= file.size - 1 or after_tags(file, start, file.size) >= file.size - 1:
        return True
    if file.zeros(start, file.size) or begins(file, start):
        return True
    for chunk in chunks(file, shape, start):
        if not _printable(chunk.name):
            return False
        follows = shape.after(chunk.start, chunk.length)
        if follows > file.size + 1:
            return chunk.name[:4] in METADATA_CHUNKS
        if follows >= file.size - 1 or after_tags(file, follows, file.size) >= file.size - 1:
            return True
        if file.zeros(follows, file.size) or begins(file, follows):
            return True
    return False


def _printable(name: bytes) -> bool:
    return all(0x20 <= byte < 0x7F for byte in name[:4]) and name[4:] in (b"", W64_TAIL)


def _with_frames(header: ChunkedHeader, pieces: list[Piece], length: int) -> list[Piece]:
    """Return an AIFF file with as many frames in its header as its audio has, where each has one
    size."""
    file, head = header.file, pieces[0]
    if (
        file.at(header.begin + 8, 3) != b"AIF"
        or not header.frame_bytes
        or not isinstance(head, range)
    ):
        return pieces
    form = _content(file, IFF_SHAPE, header.begin + 12, b"COMM")
    if form is None or form.start + 6 > head.stop:
        return pieces
    frames = min(length // header.frame_bytes, 0xFFFF_FFFF).to_bytes(4, "big")
    return [
        range(head.start, form.start + 2),
        frames,
        range(form.start + 6, head.stop),
        *pieces[1:],
    ]
