"""Words that many messages share: a count with its noun, a name before a sentence, a hint (pure)."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return "1 recording", "2 recordings".

    Args:
        plural: where it is not the noun with an s.
    """
    if number == 1:
        return f"1 {noun}"
    return f"{number} {plural or f'{noun}s'}"


def be(number: int) -> str:
    """Return "is" for one, "are" for any other number."""
    if number == 1:
        return "is"
    return "are"


def about(name: str, text: str) -> str:
    """Return "name: text"; the text alone where it begins with the name already."""
    if not name or text == name or text.startswith((f"{name}:", f"{name} ")):
        return text
    return f"{name}: {text}"


def with_hint(message: str, hint: str) -> str:
    """Return "message (hint)"; the message alone where there is no hint, or where it contains the
    hint."""
    if not hint or hint in message:
        return message
    return f"{message} ({hint})"


def parted(text: str) -> tuple[str, str]:
    """Return message and hint of what `with_hint` made; the hint is "" where there is none."""
    if not text.endswith(")"):
        return text, ""
    depth = 0
    for place in range(len(text) - 1, 0, -1):
        depth += (text[place] == ")") - (text[place] == "(")
        if depth:
            continue
        if text[place - 1] != " ":
            break
        return text[: place - 1], text[place + 1 : -1]
    return text, ""


def hinted(message: str, hint: str) -> str:
    """Return a message and, on a line of its own, its hint."""
    if not hint:
        return message
    return f"{message}\n  hint: {hint}"
