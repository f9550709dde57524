"""Media files of packets, walked to see whether the last one is whole: libav leaves a cut one out
in silence (pure).

What ends between two packets, in a format that states no length for the whole, cannot be told from
a whole file.
"""

from __future__ import annotations

from collections.abc import Callable

from asrd.audio.formats.layout import FileBytes, Layout

ASF_HEAD = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
ASF_FACTS = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
ASF_BROADCAST = 1
"""Of its flags: the writer did not know the end."""

REAL_CHUNKS = (b".RMF", b"PROP", b"MDPR", b"CONT", b"DATA", b"INDX")
REAL_SURPLUS_BYTES = 10
"""By which ffmpeg states the data of a RealMedia file as too long."""

HEAD_BYTES = 16
"""What is needed of a packet to know its length."""

MAX_RIFF_HEAD_BYTES = 1 << 31
"""A RIFF chunk that claims more was never given its length."""


def _program_stream(file: FileBytes, place: int) -> int:
    """Return the length of what begins here in an MPEG program stream (mpg, vob); 0 where nothing
    of it does."""
    head = file.at(place, 14).ljust(14, b"\0")
    if head[:3] != b"\0\0\1":
        return 0
    if head[3] == 0xBA:
        return 14 + (head[13] & 7) if head[4] >> 6 == 1 else 12
    if head[3] == 0xB9:
        return 4
    return 6 + int.from_bytes(head[4:6], "big") if head[3] > 0xB9 else 0


def _lossless(file: FileBytes, place: int) -> int:
    """Return the length of an access unit of MLP or TrueHD."""
    return 2 * (file.number(place, 2, "big") & 0xFFF)


def _dts(file: FileBytes, place: int) -> int:
    """Return the length of a DTS frame; 0 where none begins."""
    return (
        1 + (file.number(place + 5, 3, "big") >> 4 & 0x3FFF)
        if file.at(place, 4) == b"\x7f\xfe\x80\1"
        else 0
    )


def _real(file: FileBytes, place: int) -> int:
    """Return the length of a chunk of a RealMedia file; 0 where none begins, or its length was
    never written."""
    name, length = file.at(place, 4), file.number(place + 4, 4, "big")
    if name == b"DATA" and 0 < place + length - file.size <= REAL_SURPLUS_BYTES:
        return file.size - place
    return length if name in REAL_CHUNKS else 0


def _avi(file: FileBytes, place: int) -> int:
    """Return the length of an AVI file, or of a part that was added to one; 0 where it was never
    written."""
    length = file.number(place + 4, 4, "little")
    known = file.at(place, 4) == b"RIFF" and 0 < length < MAX_RIFF_HEAD_BYTES
    return 8 + length + length % 2 if known else 0


def _asf(file: FileBytes, place: int) -> int:
    """Return the length that an ASF file (wma) states for itself; 0 where its writer did not know
    it."""
    facts = file.find(ASF_FACTS, place, min(file.size, place + (1 << 20)))
    if facts < 0 or file.number(facts + 88, 1, "little") & ASF_BROADCAST:
        return 0
    return file.number(facts + 40, 8, "little")


Packet = Callable[[FileBytes, int], int]
"""Returns the length of the packet at a place; 0 where none begins, which ends the walk."""

PACKET_KINDS: tuple[tuple[int, tuple[bytes, ...], Packet], ...] = (
    (0, (b"\0\0\1\xba",), _program_stream),
    (4, (b"\xf8\x72\x6f\xba", b"\xf8\x72\x6f\xbb"), _lossless),
    (0, (b"\x7f\xfe\x80\1",), _dts),
    (0, (b".RMF",), _real),
    (8, (b"AVI ",), _avi),
    (0, (ASF_HEAD,), _asf),
)
"""Where a mark stands, the marks of a kind, and how long its packets are."""


def survey(file: FileBytes) -> Layout | None:
    """Return whether a media file's last packet is whole; None where it is of no kind that is known
    here."""
    head = file.at(0, 32)
    for place, marks, packet in PACKET_KINDS:
        if head[place:].startswith(marks):
            return Layout(flaw="is cut short" if _is_cut(file, packet) else "", decoder="media")
    return None


def _is_cut(file: FileBytes, packet: Packet) -> bool:
    """Return whether the last packet is longer than the file."""
    place = 0
    while place < file.size:
        length = packet(file, place)
        if not length:
            return file.size - place < HEAD_BYTES and not file.zeros(place, file.size)
        place += length
    return place > file.size
