"""Words that many messages share: a count with its noun, a name that stands once before what is
said of it (pure)."""

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
    """Return "message (hint)"; the message alone where there is no hint, or where it says the hint
    already."""
    return message if not hint or hint in message else f"{message} ({hint})"


def parted(text: str) -> tuple[str, str]:
    """Return message and hint of what `with_hint` made; the hint is "" where there is none."""
    depth = 0
    for place in range(len(text) - 1, 0, -1):
        if not text.endswith(")"):
            break
        depth += (text[place] == ")") - (text[place] == "(")
        if not depth:
            return (
                (text[: place - 1], text[place + 1 : -1]) if text[place - 1] == " " else (text, "")
            )
    return text, ""


def hinted(message: str, hint: str) -> str:
    """Return a message and, on a line of its own, its hint."""
    return f"{message}\n  hint: {hint}" if hint else message
