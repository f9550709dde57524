"""The table of voice commands: phrases, and what each does (pure)."""

from __future__ import annotations

from collections.abc import Mapping

from asrd.text.spacing import extends, parted

MARKS = ",.;:?!…，。、；：？！"
"""What a model may have put behind a word, and a mark that is spoken there takes the place of."""

ACTIONS = ("{delete}", "{cap}", "{caps}", "{literal}")
"""What a phrase may do instead of being written: drop what was said since the last rest or
sentence, write the next word with a capital, all in capitals, or write the command that follows as
the words it is."""

TABLE = {
    "comma": "^,",
    "period": "^.",
    "full stop": "^.",
    "question mark": "^?",
    "exclamation mark": "^!",
    "exclamation point": "^!",
    "colon": "^:",
    "semicolon": "^;",
    "ellipsis": "^…",
    "hyphen": "^-^",
    "dash": "–",
    "open quote": '"^',
    "close quote": '^"',
    "open bracket": "(^",
    "close bracket": "^)",
    "no space": "^",
    "new line": "^\n^",
    "newline": "^\n^",
    "new paragraph": "^\n\n^",
    "delete that": "{delete}",
    "scratch that": "{delete}",
    "cap": "{cap}",
    "all caps": "{caps}",
    "literal": "{literal}",
}
"""Phrase -> what is written for it, "^" at an end where no space goes; or one of ACTIONS."""

Phrase = tuple[str, ...]


def table(own: Mapping[str, str]) -> dict[Phrase, str]:
    """Return the shipped table with a user's own phrases over it; one that is set to "" is taken
    out.

    Raises ValueError: a phrase without a word, an action that does not exist.
    """
    found: dict[Phrase, str] = {}
    for phrase, text in (TABLE | dict(own)).items():
        words = tuple(filter(None, (bare(part.text) for part in parted(phrase))))
        if not words:
            raise ValueError(f"{phrase!r} has no word in it")
        if text.startswith("{") and text.endswith("}") and text not in ACTIONS:
            raise ValueError(f"{phrase!r} asks for {text}, which is none of {', '.join(ACTIONS)}")
        found[words] = text
    return {words: text for words, text in found.items() if text}


def bare(word: str) -> str:
    """Return a word as phrases are compared: without case, and without the marks around it."""
    first, last = 0, len(word)
    while first < last and not word[first].isalnum():
        first += 1
    while last > first and not (word[last - 1].isalnum() or extends(word[last - 1])):
        last -= 1
    return word[first:last].casefold()
