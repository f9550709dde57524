"""Texts -> words to be counted: what is typography is taken out, what makes another word stays
(pure).

Whisper's normaliser takes case and punctuation. Before it, apostrophes and dashes of every kind
become one. Invisible signs go. Compatibility forms (full width, ligatures, no-break spaces) and
decimal digits become plain ones. Arabic tatweel and vowel signs and Hebrew points go, as most
writers leave them out. Indic vowel signs stay: they are letters.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable

from asrd.text.spacing import mostly_unspaced, parted

UNSPACED_LANGUAGES = (
    "zh",
    "ja",
    "th",
    "lo",
    "my",
    "km",
    "bo",
    "yue",
    "cmn",
    "wuu",
    "nan",
    "dz",
    "jv-java",
)
"""Languages written without spaces: it decides where no letter does."""

REPLACED = str.maketrans(
    dict.fromkeys(
        "\u2018\u2019\u201b\u02bb\u02bc\u02b9\u02bd\u055a\u05f3\u2032\uff07\ua78c`\u00b4", "'"
    )
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d", "-")
    | {"\u2026": " ", "\u22ef": " ", "\u05f4": '"', "\u0130": "i"}
    | {"\u0152": "OE", "\u0153": "oe"}  # the ligature of French, which few keyboards have
    | {
        "\u06a9": "\u0643",
        "\u06cc": "\u064a",
    }  # Persian kaf and yeh, which Arabic keyboards write as their own
)
"""Characters of one meaning -> the one that stands for all."""

TURKISH = str.maketrans({"I": "\u0131", "\u0130": "i"})
"""Capitals of Turkish and Azeri, whose small letters are their own."""

ROMANIAN = str.maketrans("\u015e\u015f\u0162\u0163", "\u0218\u0219\u021a\u021b")
"""Letters with a cedilla, which old fonts have in place of those with a comma."""

DROPPED = re.compile(
    # tatweel; what joins or selects a shape
    "[\u0640\u034f\u180b-\u180d\ufe00-\ufe0f\U000e0100-\U000e01ef"
    "\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u08d3-\u08e1\u08e3-\u08ff"
    "\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]"
)
"""Signs without which the word is the same: Arabic vowels, Hebrew points and accents."""

CHILLU = {
    "\u0d23\u0d4d\u200d": "\u0d7a", "\u0d28\u0d4d\u200d": "\u0d7b", "\u0d30\u0d4d\u200d": "\u0d7c",
    "\u0d32\u0d4d\u200d": "\u0d7d", "\u0d33\u0d4d\u200d": "\u0d7e", "\u0d15\u0d4d\u200d": "\u0d7f",
}  # fmt: skip
"""Malayalam's final letters as older texts write them -> their own characters."""

LATIN = re.compile("[A-Za-z\u00c0-\u024f\u1e00-\u1eff]")


def metric(texts: Iterable[str], language: str) -> str:
    """Return what error rate texts are counted in: CER where most letters are of scripts without
    spaces, else WER."""
    unspaced = mostly_unspaced(texts)
    if unspaced is None:
        unspaced = language.lower().startswith(UNSPACED_LANGUAGES)
    if unspaced:
        return "CER"
    return "WER"


def units(kind: str) -> str:
    """Return what an error rate counts, in the plural."""
    if kind == "CER":
        return "characters"
    return "words"


@functools.cache
def normaliser(language: str, kind: str = "") -> Callable[[str], str]:
    """Return the function that makes texts of a language comparable: words parted by spaces, by
    Whisper's normaliser.

    English has its own (numbers, contractions, spelling). Its results are cached: strategies return
    nearly the same texts, and each takes a fifth of a millisecond.

    Args:
        language: of the text.
        kind: as `metric` returns it; "" leaves it to the language. In CER each letter is a word. In
            WER each letter of a script without spaces is one.
    """
    from whisper_normalizer.basic import BasicTextNormalizer

    letters = (kind or metric([], language)) == "CER"
    basic: Callable[[str], str] = BasicTextNormalizer(split_letters=letters, preserve_marks=True)
    english: Callable[[str], str] | None = None
    if language.lower().startswith("en") and not letters:
        english = _english()

    def clean(text: str) -> str:
        if english is not None and text.isascii():
            return english(text)
        one = plain(text, language)
        if english is not None and _mostly_latin(one):
            one = english(one)
        else:
            one = basic(one.casefold())
        return " ".join(part.text for part in parted(one))

    return functools.lru_cache(maxsize=1 << 14)(clean)


def normalised(texts: Iterable[str | None], language: str, kind: str = "") -> list[str]:
    """Return texts as they are compared; "" for None. The arguments are those of `normaliser`."""
    clean = normaliser(language, kind)
    return [clean(text or "") for text in texts]


@functools.cache
def _english() -> Callable[[str], str]:
    from whisper_normalizer.english import EnglishTextNormalizer

    made: Callable[[str], str] = EnglishTextNormalizer()
    return made


def plain(text: str, language: str = "") -> str:
    """Return a text with one character for all of one meaning, and without those that show or
    change nothing."""
    if language.lower().startswith(("tr", "az")):
        text = text.translate(TURKISH)
    if language.lower().startswith(("ro", "mo")):
        text = unicodedata.normalize("NFC", text).translate(ROMANIAN)
    text = text.translate(REPLACED)
    for old, new in CHILLU.items():
        text = text.replace(old, new)
    text = unicodedata.normalize("NFKC", text).translate(REPLACED)
    return "".join(map(_character, DROPPED.sub("", text)))


@functools.lru_cache(1 << 12)
def _character(char: str) -> str:
    """Return a character without what is invisible, and a digit of any script as one of 0 to 9."""
    category = unicodedata.category(char)
    if category == "Cf":
        return ""
    if category == "Nd":
        return str(unicodedata.decimal(char))
    return char


def _mostly_latin(text: str) -> bool:
    letters = list(filter(str.isalpha, text))
    latin = list(filter(LATIN.match, letters))
    return 2 * len(latin) >= len(letters)
