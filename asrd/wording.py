"""Words that many messages share: a count with its noun, a name that stands once before what is said of it (pure)."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return "1 recording", "2 recordings".

    Args:
        plural: where it is not the noun with an s.
    """
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def said_of(name: str, text: str) -> str:
    """Return "name: text"; the text alone where it begins with the name already."""
    if not name or text == name or text.startswith((f"{name}:", f"{name} ")):
        return text
    return f"{name}: {text}"


def with_hint(message: str, hint: str) -> str:
    """Return "message (hint)"; the message alone where there is no hint, or where it says the hint already."""
    return message if not hint or hint in message else f"{message} ({hint})"
