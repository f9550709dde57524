"""Which characters a text may hold: in a model's words, and on a terminal (pure).

A model's words go into windows, commands and files, where a control character is an act: Enter,
Ctrl-C, an escape sequence. `without_controls` decides by Unicode's general category, so that a new
character needs no new rule:

- Cc (C0, DEL, C1): those that are white space (tab, line feed, NEL ...) part words and become a
    space; others vanish.
- Zl, Zp (line and paragraph separator): part words, become a space.
- Cf (invisible formatting: bidirectional controls, byte order mark, tags, annotations, soft
    hyphen): vanishes, for it
  reorders or hides what a person reads. Kept are the few that change how letters look or are read:
  the joiners (Indic, Persian, emoji), the Mongolian vowel separator, and the visible signs that
  enclose digits.
- Cs (lone surrogates) and noncharacters: vanish; no encoder takes them.
- Letters, marks (variation selectors too), digits, signs, spaces, private use and unassigned
    characters: stay. They
  command nothing, and what is unassigned here is a letter in the next Unicode.
"""

from __future__ import annotations

import functools
import re

JOINERS = "\u200c\u200d"
"""Zero width non-joiner and joiner: Persian and Indic spelling, joined emoji."""

KEPT_FORMATS = frozenset(
    JOINERS
    + "\u180e"
    + "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
)
"""Format characters that stay: joiners, the Mongolian vowel separator, signs that enclose the
digits behind them."""

INVISIBLE = re.compile("[\\s\u200c\u200d\u180b-\u180f\u034f\ufe00-\ufe0f\U000e0100-\U000e01ef]*")
"""What shows nothing by itself, though it may change a letter beside it."""

NONCHARACTERS = range(0xFDD0, 0xFDF0)
"""Beside the last two of each plane."""

IGNORABLE = (range(0x2065, 0x2066), range(0xFFF0, 0xFFF9), range(0xE0000, 0xE1000))
"""Unassigned code points that Unicode reserves for invisible formatting."""


def without_controls(text: str) -> str:
    """Return a text of a model as one line without control characters; "" where nothing visible is
    left."""
    if not text.isprintable():
        parts = "".join(map(_in_text, text))
        text = re.sub(" {2,}", " ", parts).strip(" ")
    if not text.isascii() and INVISIBLE.fullmatch(text):
        return ""
    return text


def printable(text: str, breaks: bool = True) -> str:
    r"""Return a text or a JSON document as a terminal may show it: what `without_controls` drops becomes \uXXXX.

    JSON stays the same document, as its strings know that escape. A name's bytes become \xNN, as `readable` has them.

    Args:
        breaks: leave line feeds and tabs as they are; False for what has to stay on its line, such as a file's name.
    """
    if text.isprintable():
        return text
    text = readable(text)
    shown = []
    for char in text:
        if _in_text(char) == char or (breaks and char in "\n\t"):
            shown.append(char)
        else:
            shown.append(_escape(char))
    return "".join(shown)


def readable(text: str) -> str:
    r"""Return a text that every encoder takes: bytes of file names that are no UTF-8 as \xNN.

    Python holds such a byte as a lone surrogate, U+DC80 to U+DCFF, and `repr` writes that as \udcNN; both become \xNN.
    Where the locale knows no UTF-8, bytes that are UTF-8 are held so too; they become their letters. Any other lone
    surrogate becomes \uXXXX.
    """
    if text.isascii() and "\\udc" not in text:
        return text
    return _SHOWN_BYTE.sub(r"\\x\1", _HELD_BYTES.sub(_spelt, text))


_HELD_BYTES = re.compile("[\udc80-\udcff]+|[\ud800-\udfff]")

_SHOWN_BYTE = re.compile(r"(?<!\\ud[89ab][0-9a-f]{2})\\udc([89a-f][0-9a-f])")
"""As `repr` has it; behind the first half of a character of UTF-16, as JSON in ASCII writes one, it
is the second."""


def _spelt(held: re.Match[str]) -> str:
    try:
        return held[0].encode("ascii", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a character of UTF-16, and no byte
        return _escape(held[0])


@functools.lru_cache(4096)
def _in_text(char: str) -> str:
    """Return what stays of a character in a model's text: itself, a space or nothing."""
    import unicodedata  # a key's verb seldom gets here

    category, point = unicodedata.category(char), ord(char)
    if category in ("Zl", "Zp") or (category == "Cc" and char.isspace()):
        return " "
    if category in ("Cc", "Cs") or (category == "Cf" and char not in KEPT_FORMATS):
        return ""
    if category == "Cn" and _reserved(point):
        return ""
    return char


def _reserved(point: int) -> bool:
    """Whether Unicode never gives a character to a code point, or only an invisible one."""
    if point & 0xFFFE == 0xFFFE or point in NONCHARACTERS:
        return True
    return any(point in span for span in IGNORABLE)


def _escape(char: str) -> str:
    r"""Return \uXXXX of a character, of one beyond 16 bits its two surrogates, as JSON writes it."""
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))
