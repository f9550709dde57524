"""Where words end and what stands between them: a space, or nothing in scripts that are written
without (pure).

Chinese, Japanese, Thai and others put no space between words, and their text alone does not tell
where one ends. There a word is one letter with its marks. Everything else is parted at white space.
A word that follows the one before it without a space is `joined`. Marks belong to the word before
them, opening brackets to the word behind.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple, Protocol

UNSPACED_SCRIPTS = (
    "CJK ", "IDEOGRAPHIC ", "HIRAGANA ", "KATAKANA", "HALFWIDTH KATAKANA", "BOPOMOFO ", "HENTAIGANA ",
    "YI ", "TANGUT ", "NUSHU ", "THAI ", "LAO ", "KHMER ", "MYANMAR ", "TIBETAN ", "TAI THAM ", "TAI LE ",
    "NEW TAI LUE ", "TAI VIET ", "JAVANESE ", "BALINESE ",
)  # fmt: skip
"""How Unicode's names of their letters begin."""

EXTENDING = "\u0e33\u0eb3\u200c\u200d"
"""Thai and Lao AM, which are half a mark, and the joiners: they stay with the letter before
them."""


class Spaced(Protocol):
    """What has a text and may follow the one before without a space."""

    @property
    def text(self) -> str:
        """Its letters and marks."""

    @property
    def joined(self) -> bool:
        """Whether no space stands before it."""


class Part(NamedTuple):
    """A word of a text."""

    text: str
    joined: bool


def parted(text: str) -> list[Part]:
    """Return the words of a text; `join` makes the text of them again, with single spaces."""
    found: list[Part] = []
    for chunk in text.split():
        if chunk.isascii():
            found.append(Part(chunk, False))
            continue
        first, *others = _words(chunk)
        found.append(Part(first, False))
        found += [Part(word, True) for word in others]
    return found


def word_count(text: str) -> int:
    """Return how many words `parted` finds, without the parts: the text of an hour is long."""
    count = 0
    for chunk in text.split():
        if chunk.isascii():
            count += 1
        else:
            count += len(_words(chunk))
    return count


def join(words: Iterable[Spaced]) -> str:
    """Return the text of words."""
    parts: list[str] = []
    for word in words:
        if parts and not word.joined:
            parts.append(" ")
        parts.append(word.text)
    return "".join(parts)


def glued(before: str, after: str) -> bool:
    """Tell whether one text follows another without a space.

    So it is where both are of scripts without spaces, or where a full-width mark, which holds its
    space, parts them.
    """
    letters_meet = _unspaced_edge(reversed(before)) and _unspaced_edge(after)
    return letters_meet or _wide_mark(before[-1:]) or _wide_mark(after[:1])


def unspaced_end(text: str) -> bool:
    """Tell whether no space is due behind a text until it is known what follows."""
    return _wide_mark(text[-1:]) or _unspaced_edge(reversed(text))


def joined_texts(texts: Iterable[str]) -> str:
    """Return texts that follow one another as one text, with a space where two meet that have
    spaces."""
    whole = ""
    for text in filter(None, texts):
        space = bool(whole) and not glued(whole, text)
        whole += " " * space + text
    return whole


def letters(text: str) -> list[str]:
    """Return the letters of one word, each with its marks."""
    found: list[str] = []
    for char in text:
        if found and extends(char):
            found[-1] += char
        else:
            found.append(char)
    return found


def mostly_unspaced(texts: Iterable[str]) -> bool | None:
    """Tell whether most letters of texts are of scripts without spaces; None where there are no
    letters."""
    spaced = unspaced_count = 0
    for char in filter(str.isalnum, "".join(texts)):
        if unspaced(char):
            unspaced_count += 1
        else:
            spaced += 1
    if not spaced and not unspaced_count:
        return None
    return unspaced_count > spaced


@functools.lru_cache(1 << 14)
def unspaced(char: str) -> bool:
    """Tell whether a character is a letter or a number of a script without spaces."""
    if char < "\u0e00" or not char.isalnum():
        return False
    import unicodedata  # a key's verb seldom gets here

    return unicodedata.name(char, "").startswith(UNSPACED_SCRIPTS)


@functools.lru_cache(1 << 12)
def extends(char: str) -> bool:
    """Tell whether a character is a part of the letter before it."""
    if char.isascii():
        return False
    import unicodedata

    return char in EXTENDING or unicodedata.category(char).startswith("M")


def width(text: str) -> int:
    """Return how much room a text takes on a line, in Latin letters: a Chinese or Japanese one
    takes two."""
    import unicodedata

    total = 0
    for char in text:
        total += not extends(char)
        total += unicodedata.east_asian_width(char) in ("W", "F")
    return total


def bare(text: str) -> str:
    """Return a word as words are compared: without case and punctuation, with the marks that make
    it another word."""
    return "".join(char for char in text.casefold() if char.isalnum() or extends(char))


def continues(before: Spaced, after: Spaced) -> bool:
    """Tell whether two words in a row are pieces of one, which was too long to come as a whole."""
    meets_unspaced = _unspaced_edge(reversed(before.text)) or _unspaced_edge(after.text)
    return after.joined and not meets_unspaced


def _words(chunk: str) -> list[str]:
    """Return the words of a text without white space."""
    found: list[str] = []
    held = ""  # opening brackets, which wait for their word
    whole = False  # whether the last of `found` takes no letter more
    for char in chunk:
        own = unspaced(char)
        if found and extends(char) and not held:
            found[-1] += char
        elif char.isalnum():
            if held or own or whole or not found:
                found.append(held + char)
            else:
                found[-1] += char
            held, whole = "", own
        elif _opens(char) and (whole or not found or held):
            held += char
        elif found and not held:
            found[-1] += char
        else:
            held += char
    if held:
        found.append(held)
    return found


@functools.lru_cache(1 << 12)
def _opens(char: str) -> bool:
    import unicodedata

    return unicodedata.category(char) in ("Ps", "Pi")


def _unspaced_edge(chars: Iterable[str]) -> bool:
    """Tell whether the first letter of these is of a script without spaces."""
    for char in chars:
        if char.isalnum():
            return unspaced(char)
    return False


def _wide_mark(char: str) -> bool:
    """Tell whether a character is a full-width mark, as in Chinese and Japanese."""
    if char < "\u3000" or char.isalnum():
        return False
    import unicodedata

    wide = unicodedata.east_asian_width(char) in ("W", "F")
    return wide and unicodedata.category(char).startswith("P")
