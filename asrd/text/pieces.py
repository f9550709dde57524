"""A part of the text that is written or dropped as a whole, with its place on the sample clock."""

from __future__ import annotations

import msgspec


class Piece(msgspec.Struct, gc=False):
    """A part of the text that is written or dropped as a whole: a word, or what a phrase stands
    for."""

    text: str
    start: int
    """First sample of what was spoken."""
    stop: int
    """One past the last."""
    left: bool = False
    """No space before it."""
    right: bool = False
    """No space after it."""
    said: bool = False
    """It came from the table: no mark that follows changes it."""

    @property
    def ends(self) -> bool:
        """Whether a sentence, or a line, ends with it."""
        return self.text.rstrip("\"')]”’»」』）").endswith(
            (".", "?", "!", "…", "。", "？", "！", "\n")
        )
