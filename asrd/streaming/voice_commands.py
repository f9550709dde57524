"""What a speaker says to the text: words and a table of phrases -> text with marks, breaks and
corrections.

Takes words that are final, in the order they were spoken, however they come in pieces. With an
empty table the text is theirs, joined as the words are. Knows no sound and no model. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from asrd.audio.format import SAMPLE_RATE
from asrd.config.voice_commands import ACTIONS, MARKS, Phrase, bare
from asrd.protocol import Word
from asrd.text.pieces import Piece

PAUSE_SECONDS = 0.7
"""Seconds of rest that part two phrases, and that the words of one command do not have between
them."""

TEXTS_AT_ONCE = 128
"""Texts of pieces that are joined at once, about a minute's."""


class Pile:
    """Texts that follow each other. Every so many are joined at once, so that all of them are one
    string any time.

    An hour's single words lie all over the memory: to fetch them after the key takes longer than
    all else.
    """

    def __init__(self, texts: Sequence[str] = ()) -> None:
        self._texts: list[str] = []
        self._joined: list[str] = []
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Put a text behind the others."""
        self._texts.append(text)
        if len(self._texts) % TEXTS_AT_ONCE == 0:
            self._joined.append("".join(self._texts[-TEXTS_AT_ONCE:]))

    def drop(self) -> None:
        """Take the last one away."""
        if len(self._texts) % TEXTS_AT_ONCE == 0:
            self._joined.pop()
        self._texts.pop()

    def text(self, behind: Sequence[str] = ()) -> str:
        """Return all of them, and what comes behind."""
        rest = self._texts[len(self._joined) * TEXTS_AT_ONCE :]
        return "".join([*self._joined, *rest, *behind])


class CommandWriter:
    """One text as it is being spoken: `push` words as they become final, `finish` after the last.

    A command may begin in one push and end in a later one, so words that may become one wait.
    `send` gives the text away part by part; what it gave stays as it is.

    Args:
        phrases: what `table` returns; empty where words are only words.
        capitals: begin each sentence and each line with a capital.
    """

    def __init__(self, phrases: Mapping[Phrase, str], capitals: bool = False) -> None:
        self.joined = False
        """Whether what `send` gave last follows what it gave before without a space."""
        self.missed = 0
        """How often something was to be dropped and nothing was there that had not been sent."""
        self._phrases, self._capitals = phrases, capitals
        self._longest = max(map(len, phrases), default=0)
        self._beginnings: set[Phrase] = set()
        for phrase in phrases:
            self._beginnings.update(phrase[:size] for size in range(1, len(phrase)))
        self._pieces: list[Piece] = []
        self._texts = Pile()
        """Each piece as it stands in the text, with the space before it."""
        self._sent = 0
        self._waiting: list[Word] = []
        self._case = ""

    def sent_after(self, count: int) -> list[Piece]:
        """Return what `send` gave away, without the first pieces of it."""
        return self._pieces[count : self._sent]

    @property
    def waiting(self) -> list[Word]:
        """Words that may begin a command."""
        return list(self._waiting)

    @property
    def case(self) -> str:
        """How the next word is to be written, as the action that asks for it; "" as it is."""
        return self._case

    def resume(self, sent: Sequence[Piece], waiting: Sequence[Word], case: str) -> None:
        """Go on behind what an earlier writing gave away, as its `sent_after`, `waiting` and `case`
        have it."""
        self._pieces, self._sent, self._waiting, self._case = (
            list(sent),
            len(sent),
            list(waiting),
            case,
        )
        self._texts = Pile(_spaced(None, self._pieces))

    @property
    def text(self) -> str:
        """All of it, words that wait included."""
        last = self._pieces[-1] if self._pieces else None
        return self._texts.text(_spaced(last, list(map(_as_heard, self._waiting))))

    def push(self, words: Sequence[Word]) -> None:
        """Take in words that follow those before."""
        self._waiting += words
        self._read(ended=False)

    def finish(self) -> None:
        """Tell that no word follows: what waits as the beginning of a command was none."""
        self._read(ended=True)

    def send(self) -> str:
        """Return what is new since the last call, without the words that wait."""
        before, fresh = None, self._pieces[self._sent :]
        if self._sent:
            before = self._pieces[self._sent - 1]
        self.joined = bool(before and fresh and not _apart(before, fresh[0]))
        self._sent = len(self._pieces)
        return "".join(_spaced(None, fresh))

    # -- words -> pieces
    # ----------------------------------------------------------------------------------------------

    def _read(self, ended: bool) -> None:
        """Write down waiting words, as far as no word that may follow changes what they mean."""
        while self._waiting and (ended or not self._open(0)):
            size = self._match(0)
            text = self._phrases[_bared(self._waiting[:size])] if size else ""
            if text == "{literal}":
                if not ended and (size == len(self._waiting) or self._open(size)):
                    return
                meant = self._match(size)
                self._heard(self._waiting[size if meant else 0 : size + meant])
                size += meant
            elif text in ACTIONS:
                self._act(text)
            elif size:
                self._write(_as_said(text, self._waiting[:size]))
            else:
                size = 1
                self._heard(self._waiting[:size])
            del self._waiting[:size]

    def _match(self, at: int) -> int:
        """Return how many words the longest phrase has that begins at a waiting word; 0 for
        none."""
        run = self._run(at)
        for size in range(len(run), 0, -1):
            if run[:size] in self._phrases:
                return size
        return 0

    def _open(self, at: int) -> bool:
        """Return whether the words from `at` on are the beginning of a phrase that is not all
        there."""
        run = self._run(at)
        return at + len(run) == len(self._waiting) and run in self._beginnings

    def _run(self, at: int) -> Phrase:
        """Return the waiting words from `at` on up to the first rest, bare, and no more than a
        phrase can have."""
        words = self._waiting[at : at + self._longest]
        for size, (before, after) in enumerate(pairwise(words), 1):
            if _rest(before, after):
                return _bared(words[:size])
        return _bared(words)

    # -- pieces
    # -------------------------------------------------------------------------------------------------------

    def _heard(self, words: Sequence[Word]) -> None:
        for word in words:
            self._write(_as_heard(word))

    def _act(self, action: str) -> None:
        self._case = ""
        if action != "{delete}":
            self._case = action
        elif len(self._pieces) == self._sent:
            self.missed += 1
        else:
            last = self._drop()
            while len(self._pieces) > self._sent and not (
                self._pieces[-1].ends or _rest(self._pieces[-1], last)
            ):
                last = self._drop()

    def _write(self, piece: Piece) -> None:
        """Append a piece in its case; a mark that was said takes the place of those that the model
        put there."""
        if (
            piece.said
            and piece.left
            and len(self._pieces) > self._sent
            and not self._pieces[-1].said
        ):
            before = self._drop()
            before.text = before.text.rstrip(_replaced(piece.text))
            self._add(before)
        if any(map(str.isalnum, piece.text)):
            if self._case == "{caps}":
                piece.text = piece.text.upper()
            elif self._case or (self._capitals and self._begins()):
                piece.text = _capital(piece.text)
            self._case = ""
        self._add(piece)

    def _add(self, piece: Piece) -> None:
        for text in _spaced(self._pieces[-1] if self._pieces else None, [piece]):
            self._texts.add(text)
        self._pieces.append(piece)

    def _drop(self) -> Piece:
        self._texts.drop()
        return self._pieces.pop()

    def _begins(self) -> bool:
        """Return whether a sentence begins here: nothing but quotes and brackets lies behind the
        end of the last."""
        for piece in reversed(self._pieces):
            if piece.ends or any(map(str.isalnum, piece.text)):
                return piece.ends
        return True


def write(words: Sequence[Word], phrases: Mapping[Phrase, str], capitals: bool = False) -> str:
    """Return the text of words that are all there."""
    writing = CommandWriter(phrases, capitals)
    writing.push(words)
    writing.finish()
    return writing.text


def _as_heard(word: Word) -> Piece:
    return Piece(word.text, word.start, word.stop, left=word.joined)


def _as_said(text: str, words: Sequence[Word]) -> Piece:
    """Return what a table's text is, for the words it was said with: "^" at an end is no letter of
    it."""
    left, right = text.startswith("^"), text.endswith("^")
    shown, joined = text[left : len(text) - right], left or words[0].joined
    return Piece(shown, words[0].start, words[-1].stop, joined, right, said=True)


def _spaced(before: Piece | None, pieces: Sequence[Piece]) -> list[str]:
    """Return the text of each piece, behind the space that parts it from the one before it."""
    texts = []
    for piece in pieces:
        texts.append(" " * (before is not None and _apart(before, piece)) + piece.text)
        before = piece
    return texts


def _apart(before: Piece, piece: Piece) -> bool:
    """Return whether a space stands between two pieces."""
    return not (before.right or piece.left)


def _replaced(text: str) -> str:
    """Return the letters that go from the end of the word before a piece: marks for a mark, a comma
    for a break."""
    if text and text[0] in MARKS:
        return MARKS
    if text.startswith("\n"):
        return ","
    return ""


def _capital(text: str) -> str:
    first = next(i for i, c in enumerate(text) if c.isalnum())
    return text[:first] + text[first].upper() + text[first + 1 :]


def _rest(before: Word | Piece, after: Word | Piece) -> bool:
    return after.start - before.stop >= PAUSE_SECONDS * SAMPLE_RATE


def _bared(words: Sequence[Word]) -> Phrase:
    return tuple(bare(word.text) for word in words)
