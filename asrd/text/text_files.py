"""Text files that a user wrote, by whatever editor: settings, vocabularies, manifests. Pure but for
the reading.

They are UTF-8, with or without byte order marks, and lines may end in LF, CRLF or CR. Anything else
is refused in one sentence that names what it is. Imports little.
"""

from __future__ import annotations

import re
from pathlib import Path

MARK = b"\xef\xbb\xbf"
"""The byte order mark in UTF-8; an editor puts it first, and joining files puts it before any
line."""

FOREIGN = {
    b"\xff\xfe\x00\x00": "UTF-32LE",
    b"\x00\x00\xfe\xff": "UTF-32BE",
    b"\xff\xfe": "UTF-16LE",
    b"\xfe\xff": "UTF-16BE",
    b"\x84\x31\x95\x33": "GB18030",
}
"""Byte order marks of other encodings, as iconv calls them; one that begins with another comes
before that."""

SAMPLE_BYTES = 4096
"""Bytes of a file's beginning that tell UTF-16 and UTF-32 without a mark from UTF-8."""

ZERO_SHARE = 0.3
"""Of the bytes at every second or fourth place; so many are zero in no other text."""


class NotTextError(ValueError):
    """A file that is no text in UTF-8. `str()` is the end of a sentence that begins with its name.

    Args:
        fault: what it is instead.
        hint: what makes text of it.
    """

    def __init__(self, fault: str, hint: str) -> None:
        super().__init__(fault)
        self.hint = hint


def read(path: Path) -> str:
    """Return a file's text with LF at the ends of its lines. Raises OSError; NotTextError."""
    return text(path.read_bytes())


def text(data: bytes) -> str:
    """Return the text that bytes are, with LF at the ends of its lines. Raises NotTextError."""
    data = plain(data)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise NotTextError(
            f"is not UTF-8: line {line} has the byte 0x{data[error.start]:02x}",
            "save it as UTF-8; if it is of a Western Windows: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW",
        ) from error


def plain(data: bytes) -> bytes:
    """Return bytes without byte order marks and with LF at the ends of lines. Raises NotTextError
    for UTF-16 and such.

    Whether they are UTF-8 is not looked at.
    """
    encoding = _foreign(data)
    if encoding:
        raise NotTextError(
            f"is {encoding}, not UTF-8",
            f"save it as UTF-8, for example by: iconv -f {encoding} -t UTF-8 OLD > NEW",
        )
    data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return re.sub(rb"^(?:%b)+" % MARK, b"", data, flags=re.MULTILINE) if MARK in data else data


def _foreign(data: bytes) -> str:
    """Return the encoding that a mark, or zeros at every second or fourth place, give away; "" for
    none."""
    for mark, encoding in FOREIGN.items():
        if data.startswith(mark):
            return encoding
    sample = data[:SAMPLE_BYTES]
    if sample.count(0) < ZERO_SHARE * len(sample):
        return ""
    empty = tuple(place for place in range(4) if _zeros(sample[place::4]))
    return {
        (1, 2, 3): "UTF-32LE",
        (0, 1, 2): "UTF-32BE",
        (1, 3): "UTF-16LE",
        (0, 2): "UTF-16BE",
    }.get(empty, "")


def _zeros(data: bytes) -> bool:
    return bool(data) and data.count(0) >= ZERO_SHARE * len(data)
