"""The headers of files that are one header and then samples: SPH, VOC, AVR, HTK, MAT, MPC, SDS,
WVE, XI ... (pure).

libsndfile reads them and goes by the length of the file: it notices no cut. PAF, PVF and IRCAM
state no length, so only half a frame shows there that the end is missing.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

from asrd.audio.formats.ends import AudioEnd, begins
from asrd.audio.formats.layout import FileBytes, Layout, Piece, after_tags

MAX_SPH_HEAD_BYTES = 1 << 16
MAX_BLOCKS = 100_000

HTK_PERIODS = range(5, 5001)
"""Units of 100 ns a sample that are taken for a rate: 2 kHz to 2 MHz."""

SDS_BLOCK, SDS_BLOCK_BYTES = b"\xf0\x7e", 127
MAT4_SAMPLE_BYTES = (8, 4, 4, 2)
"""Of a sample, by the third digit of a matrix's type."""
MAT5_SAMPLE_BYTES = {2: 1, 3: 2, 5: 4, 7: 4, 9: 8}
MAT5_MATRIX, MAT5_COMPRESSED = 14, 15
PAF_BLOCK_BYTES = (2, 32, 1)
"""Of a sample of 16 or 8 bits, or of ten of 24 bits, by the number of a PAF file's coding."""
IRCAM_SAMPLE_BYTES = {1: 1, 2: 2, 4: 4, 0x4_0004: 4, 0x1_0001: 1, 0x2_0001: 1}


@dataclass(frozen=True)
class Count:
    """Where a header states how much there is."""

    at: int
    size: int
    order: str
    """Of its bytes: big, little, or midi for seven bits a byte."""
    unit_bytes: int = 1
    units: int = 1
    """What is counted for so many bytes."""

    def field(self, length: int) -> bytes:
        """Return what states a length in bytes."""
        bits = 7 if self.order == "midi" else 8
        value = min(length // self.unit_bytes * self.units, (1 << bits * self.size) - 1)
        if self.order == "midi":
            return bytes(value >> 7 * place & 0x7F for place in range(self.size))
        return value.to_bytes(self.size, "big" if self.order == "big" else "little")


@dataclass(frozen=True)
class FixedHeader:
    """The header of one file, as `ends.AudioHeader` has it."""

    file: FileBytes
    reader: Callable[[FileBytes, int], FixedHeader | None]
    begin: int
    start: int
    stated: int | None
    frame_bytes: int
    count: Count | None = None
    """What has to be rewritten where another length is meant; None where libsndfile goes by the
    file."""
    mark: bytes = b""
    """What a file ends with."""
    behind: Callable[[FileBytes, int], bool] | None = None
    """Whether data that are no audio begin at a place."""
    modulus: int = 0
    strict: bool = True

    def is_over(self, place: int) -> bool:
        """Return whether no audio follows from `place` on."""
        place = self._after_mark(place)
        if (
            place >= self.file.size
            or after_tags(self.file, place, self.file.size) == self.file.size
        ):
            return True
        return bool(self.following(place)) or (
            self.behind is not None and self.behind(self.file, place)
        )

    def following(self, place: int) -> int:
        """Return where another file begins behind audio that ends at `place`; 0 where there is
        none."""
        place = self._after_mark(place)
        return place if begins(self.file, place) or self.reader(self.file, place) is not None else 0

    def pieces(self, length: int) -> list[Piece]:
        """Return the file with audio of this length, whose header says so, and nothing behind
        it."""
        stop = self.start + length
        if self.count is None or length == self.stated:
            return [range(self.begin, stop), self.mark]
        at = self.count.at
        return [
            range(self.begin, at),
            self.count.field(length),
            range(at + self.count.size, stop),
            self.mark,
        ]

    def inner(self, end: AudioEnd) -> Layout | None:
        """Return a layout that keeps damaged blocks from libsndfile, which prints on standard
        output at them."""
        blocks = (
            range(self.start, self.start + end.length, SDS_BLOCK_BYTES)
            if self.reader is sds
            else ()
        )
        damaged = any(self.file.at(place, 2) != SDS_BLOCK for place in blocks)
        return Layout(flaw=end.flaw, decoder="media") if damaged else None

    def _after_mark(self, place: int) -> int:
        return place + len(self.mark) * (self.file.at(place, len(self.mark)) == self.mark)


def sph(file: FileBytes, begin: int) -> FixedHeader | None:
    """Return the header of a SPH (NIST) file that begins here; None where none does, or it is
    compressed."""
    if file.at(begin, 8) != b"NIST_1A\n":
        return None
    size = re.match(rb"\s*(\d{1,6})\s", file.at(begin + 8, 16))
    head = file.at(begin, min(int(size[1]), MAX_SPH_HEAD_BYTES)) if size else b""
    coding = re.search(rb"sample_coding -s\d+ (\S+)", head)
    if not size or (coding and coding[1] not in (b"pcm", b"alaw", b"ulaw", b"mu-law")):
        return None

    def value(name: bytes) -> int | None:
        found = re.search(rb"^" + name + rb" -i (\d+)", head, re.MULTILINE)
        return int(found[1]) if found else None

    width = (value(b"sample_n_bytes") or 1) * (value(b"channel_count") or 1)
    count = value(b"sample_count")
    stated = None if count is None else count * width
    return FixedHeader(file, sph, begin, begin + int(size[1]), stated, width)


def voc(file: FileBytes, begin: int) -> FixedHeader | None:
    """Return the header of a VOC file that begins here, with all of its blocks as its audio; None
    where none does."""
    if file.at(begin, 20) != b"Creative Voice File\x1a":
        return None
    place, start, size_at, width, channels = (
        begin + file.number(begin + 20, 2, "little"),
        0,
        0,
        0,
        1,
    )
    for _ in range(MAX_BLOCKS):
        kind, length = file.number(place, 1, "little"), file.number(place + 1, 3, "little")
        if not 0 < kind <= 9 or place >= file.size or begins(file, place):
            break
        if kind == 8:
            channels = file.number(place + 7, 1, "little") + 1
        if kind in (1, 2, 9):
            start, size_at = start or place + 4 + {1: 2, 2: 0, 9: 12}[kind], place + 1
        if kind == 1:
            width = channels * (file.number(place + 5, 1, "little") == 0)
        if kind == 9:
            width = file.number(place + 8, 1, "little") // 8 * file.number(place + 9, 1, "little")
        place += 4 + length
    if not start:
        return None
    # libsndfile counts one byte too few in a block of its first kind.
    place += file.size == place + 2 and file.at(place + 1, 1) == b"\0"
    count = _VocCount(size_at, 3, "little", start=start)
    return FixedHeader(file, voc, begin, start, place - start, width, count, b"\0", modulus=1 << 24)


@dataclass(frozen=True)
class _VocCount(Count):
    """The length of the last block with sound, which counts from behind its own field."""

    start: int = 0

    def field(self, length: int) -> bytes:
        """Return what states a length in bytes, from the first block on."""
        return super().field(self.start + length - self.at - self.size)


def avr(file: FileBytes, begin: int) -> FixedHeader | None:
    """Return the header of an AVR file that begins here; None where none does."""
    if file.at(begin, 4) != b"2BIT":
        return None
    samples = file.number(begin + 14, 2, "big") // 8
    width = samples * (1 + file.number(begin + 12, 2, "big") % 2)
    stated = file.number(begin + 26, 4, "big") * width
    there = file.size - begin - 128
    # Some programs count the samples of both channels.
    if stated > there == file.number(begin + 26, 4, "big") * samples:
        stated = there
    return FixedHeader(file, avr, begin, begin + 128, stated, width)


def htk(file: FileBytes, begin: int) -> FixedHeader | None:
    """Return the header of a HTK waveform that begins here; None where none does."""
    if file.at(begin + 8, 4) != b"\0\2\0\0" or file.number(begin + 4, 4, "big") not in HTK_PERIODS:
        return None
    stated = 2 * file.number(begin, 4, "big")
    return FixedHeader(file, htk, begin, begin + 12, stated, 2, Count(begin, 4, "big", 2))


def mat4(file: FileBytes, begin: int) -> FixedHeader | None:
    """Return the header of a MAT 4 file that begins here, of a rate and a matrix of sound; None
    where none does."""
    head = file.at(begin, 12)
    if head not in (bytes(4) + b"\1\0\0\0" * 2, b"\0\0\x03\xe8" + b"\0\0\0\1" * 2):
        return None
    order = "little" if head[4] else "big"
    place = begin + 20 + file.number(begin + 16, 4, order) + 8
    kind, rows, columns, _, name = (file.number(place + 4 * field, 4, order) for field in range(5))
    if kind // 10 % 10 >= len(MAT4_SAMPLE_BYTES) or name > 64:
        return None
    width = rows * MAT4_SAMPLE_BYTES[kind // 10 % 10]
    count = Count(place + 8, 4, order, width) if width else None
    return FixedHeader(
        file, mat4, begin, place + 20 + name, columns * width, width, count, behind=_is_mat4_matrix
    )


def _is_mat4_matrix(file: FileBytes, place: int) -> bool:
    """Return whether another matrix begins here."""
    for order in ("little", "big"):
        kind, rows, columns, imaginary, name = (
            file.number(place + 4 * field, 4, order) for field in range(5)
        )
        text = file.at(place + 20, name - 1) if 1 < name <= 64 else b""
        if kind < 5000 and rows and columns and imaginary < 2 and text.replace(b"_", b"").isalnum():
            return True
    return False


def mat5(file: FileBytes, begin: int) -> FixedHeader | None:
    """Return the header of a MAT 5 file that begins here, of a rate and a matrix of sound; None
    where none does."""
    order = {b"IM": "little", b"MI": "big"}.get(file.at(begin + 126, 2), "")
    if not order or file.at(begin, 10) != b"MATLAB 5.0":
        return None
    _, _, second = _mat5_tag(file, begin + 128, order)
    return _mat5_matrix(file, begin, begin + 128, order) or _mat5_matrix(file, begin, second, order)


def _mat5_tag(file: FileBytes, place: int, order: str) -> tuple[int, int, int]:
    """Return an element's type, where its content begins, and where the next one does."""
    kind = file.number(place, 4, order)
    if (
        kind >> 16
    ):  # a small element: its length in the upper half, its content in the same eight bytes
        return kind & 0xFFFF, place + 4, place + 8
    length = file.number(place + 4, 4, order)
    return kind, place + 8, place + 8 + length + -length % 8


def _mat5_matrix(file: FileBytes, begin: int, place: int, order: str) -> FixedHeader | None:
    """Return the header of a file whose matrix of sound is the element here; None where it is
    none."""
    kind, place, _ = _mat5_tag(file, place, order)
    if kind != MAT5_MATRIX:
        return None
    _, _, place = _mat5_tag(file, place, order)  # its flags
    _, sizes, place = _mat5_tag(file, place, order)
    rows, columns = file.number(sizes, 4, order), file.number(sizes + 4, 4, order)
    _, _, place = _mat5_tag(file, place, order)  # its name
    width = rows * MAT5_SAMPLE_BYTES.get(file.number(place, 4, order), 0)
    if not width or rows * columns == 1:  # the rate
        return None
    return FixedHeader(
        file, mat5, begin, place + 8, columns * width, width, behind=_is_mat5_element
    )


def _is_mat5_element(file: FileBytes, place: int) -> bool:
    """Return whether another matrix begins here, plain or compressed, up to the end of the file."""
    place += -place % 8
    for order in ("little", "big"):
        kind, _, follows = _mat5_tag(file, place, order)
        if kind in (MAT5_MATRIX, MAT5_COMPRESSED) and place + 8 < follows <= file.size:
            return True
    return False


def mpc(file: FileBytes, begin: int) -> FixedHeader | None:
    """Return the header of a sample of an Akai MPC that begins here; None where none does."""
    head = file.at(begin, 42)
    if len(head) < 42 or head[:2] != b"\1\4" or int.from_bytes(head[40:42], "little") < 2000:
        return None
    width = 4 if head[21] else 2
    return FixedHeader(
        file, mpc, begin, begin + 42, int.from_bytes(head[30:34], "little") * width, width
    )


def sds(file: FileBytes, begin: int) -> FixedHeader | None:
    """Return the header of a MIDI sample dump that begins here; None where none does."""
    head = file.at(begin, 21)
    if len(head) < 21 or head[:2] != SDS_BLOCK or head[3] != 1 or not 8 <= head[6] <= 28:
        return None
    sample_bytes = min(4, head[6] // 7 + 1)
    samples = 120 // sample_bytes
    frames = sum(byte << 7 * place for place, byte in enumerate(head[10:13]))
    stated = -(-frames // samples) * SDS_BLOCK_BYTES
    count = Count(begin + 10, 3, "midi", SDS_BLOCK_BYTES, samples)
    return FixedHeader(file, sds, begin, begin + 21, stated, SDS_BLOCK_BYTES, count)


def wve(file: FileBytes, begin: int) -> FixedHeader | None:
    """Return the header of a Psion file that begins here; None where none does."""
    if file.at(begin, 15) != b"ALawSoundFile**":
        return None
    return FixedHeader(file, wve, begin, begin + 32, file.number(begin + 18, 4, "big"), 1)


def xi(file: FileBytes, begin: int) -> FixedHeader | None:
    """Return the header of an instrument of FastTracker that begins here; None where none does."""
    if file.at(begin, 20) != b"Extended Instrument:":
        return None
    samples = file.number(begin + 296, 2, "little")
    if not 0 < samples <= 16:
        return None
    sizes = [file.number(begin + 298 + 40 * number, 4, "little") for number in range(samples)]
    width = 2 if file.number(begin + 312, 1, "little") & 16 else 1
    count = Count(begin + 298, 4, "little") if samples == 1 else None
    # libsndfile writes 0 into every file.
    return FixedHeader(
        file, xi, begin, begin + 298 + 40 * samples, sum(sizes) or None, width, count
    )


def paf(file: FileBytes, begin: int) -> FixedHeader | None:
    """Return the header of a PAF file that begins here; None where none does. It states no
    length."""
    magic = file.at(begin, 4)
    order = "big" if magic == b" paf" else "little"
    coding, channels = file.number(begin + 16, 4, order), file.number(begin + 20, 4, order)
    if (
        magic not in (b" paf", b"fap ")
        or coding >= len(PAF_BLOCK_BYTES)
        or file.size - begin < 2048
    ):
        return None
    return FixedHeader(file, paf, begin, begin + 2048, None, channels * PAF_BLOCK_BYTES[coding])


def pvf(file: FileBytes, begin: int) -> FixedHeader | None:
    """Return the header of a PVF file that begins here; None where none does. It states no
    length."""
    head = re.match(rb"PVF1\n(\d{1,4}) (\d{1,7}) (8|16|32)\n", file.at(begin, 40))
    if not head:
        return None
    return FixedHeader(file, pvf, begin, begin + head.end(), None, int(head[1]) * int(head[3]) // 8)


def ircam(file: FileBytes, begin: int) -> FixedHeader | None:
    """Return the header of an IRCAM file that begins here; None where none does. It states no
    length."""
    head = file.at(begin, 16)
    if (
        len(head) < 16
        or not (head[:2] == b"\x64\xa3" or head[2:4] == b"\xa3\x64")
        or file.size - begin < 1024
    ):
        return None
    for order in "<>":
        channels, coding = struct.unpack(f"{order}II", head[8:16])
        if 0 < channels <= 1024 and coding in IRCAM_SAMPLE_BYTES:
            return FixedHeader(
                file, ircam, begin, begin + 1024, None, channels * IRCAM_SAMPLE_BYTES[coding]
            )
    return None


FIXED_HEADER_READERS = (sph, voc, avr, htk, mat4, mat5, mpc, sds, wve, xi, paf, pvf, ircam)
