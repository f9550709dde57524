"""What each sink accepted of a recording's text, on disk before each attempt and after it.

Beside the recording lies `<id>.deliveries`: one JSON object a line, only appended to, for the user
alone. A line is with the kernel before the sink is asked, so a SIGKILL at any moment leaves a true
file. A power cut may cost the last seconds of it, as of the audio; a retry may then send text
twice. A disk that refuses costs one warning, never the text. Runs on the daemon's side.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from asrd.errors import SinkError, UncertainError
from asrd.protocol import Word
from asrd.text import filenames
from asrd.text.pieces import Piece
from asrd.text.wording import about

log = logging.getLogger("asrd")

SUFFIX = ".deliveries"
"""How the file's name ends."""

Fate = Literal["attempted", "accepted", "refused", "uncertain"]
"""What is known of a piece of text and a sink. Of an attempt without an outcome nothing is."""


class TextState(msgspec.Struct):
    """The text of a recording when a part of it was sent: all that is needed to continue after that
    part."""

    until: int
    """Sample up to which the text is final."""
    words: list[Word]
    """Every word up to there, as it was recognised."""
    until_pause: int = msgspec.field(name="sealed")
    """Words up to the last pause."""
    pieces: list[Piece]
    """What the words were written as, and sent."""
    waiting: list[Word]
    """Words at the end that may begin a command, and are not sent."""
    case: str
    """How the next word is to be written, as `spoken.CommandWriter` has it."""


class TextPart(msgspec.Struct, tag="part"):
    """A text that is sent as a whole."""

    text: str
    """As the sinks get it."""
    state: TextState | None = msgspec.field(name="standing", default=None)
    """Of words and pieces only those that are new since the part before; None where no text can
    follow."""
    whole: str | None = None
    """All the text of the recording, where this is its last part and does not contain it."""
    behind: int | None = None
    """Characters of `text` after all the text of the recording, where this part contains it: the
    text of an hour is not written twice."""


class End(msgspec.Struct, tag="end"):
    """The recording is text to its end, without a further part."""

    whole: str


class Targets(msgspec.Struct, tag="to"):
    """The sinks that are to get a part."""

    part: int
    sinks: list[str]


class Attempt(msgspec.Struct, tag="attempt"):
    """A sink is about to be asked."""

    part: int
    sink: str


class Outcome(msgspec.Struct, tag="outcome"):
    """The answer of a sink."""

    part: int
    sink: str
    fate: Fate
    reason: str = ""


Line = TextPart | End | Targets | Attempt | Outcome

_line = msgspec.json.Decoder(Line)

_unwritten: dict[Path, Deliveries] = {}
"""Records of which the disk refused a line, for the life of this process: no file has that line."""


class Deliveries:
    """The record of one recording: what was sent, to which sinks, and what each answered.

    Args:
        path: the file; None where the recording is not on disk, and then this record is not either.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.parts: list[TextPart] = []
        self.state: TextState | None = None
        """The text at the end of the last part; None before a part, or where the text is whole."""
        self.whole: str | None = None
        """All the text; None while words may follow."""
        self._path = path
        self._targets: dict[int, list[str]] = {}
        self._fates: dict[tuple[int, str], Fate] = {}
        self._instead: list[str] = []
        self._pending = b""
        """What the disk did not take."""

    @classmethod
    def of(cls, sound: Path) -> Deliveries:
        """Return what is on disk beside a recording. A line that a crash tore, or anything unknown,
        is left out."""
        path = sound.with_suffix(SUFFIX)
        if path in _unwritten:
            return _unwritten[path]
        found = cls(path)
        try:
            data = path.read_bytes()
        except OSError:
            return found
        if data and not data.endswith(b"\n"):
            found._pending = b"\n"  # what follows begins a line of its own
        for line in data.splitlines():
            with contextlib.suppress(
                ValueError, RecursionError
            ):  # msgspec's errors are ValueErrors
                found._apply(_line.decode(line))
        return found

    # -- the outcomes

    @property
    def delivered(self) -> bool:
        """Whether the recording is text to its end, and every part of it was accepted by everybody
        it was sent to."""
        if self.whole is None:
            return False
        if not set(range(len(self.parts))) <= self._targets.keys():
            return False
        asked = {*self._wanted(), *self._fates}
        return all(self._fates.get(target) == "accepted" for target in asked)

    def _wanted(self) -> list[tuple[int, str]]:
        """Return (part, sink) for every part and sink that it was meant for."""
        wanted = []
        for number, sinks in self._targets.items():
            for sink in sinks:
                wanted.append((number, sink))
        return wanted

    @property
    def uncertain(self) -> list[str]:
        """Sinks that may have a part, or some of it, and did not say so."""
        found = {}
        for (_, sink), fate in self._fates.items():
            if fate in ("attempted", "uncertain"):
                found[sink] = True
        return list(found)

    @property
    def instead(self) -> str:
        """Where accepted text is, if not where it was sent; "" where it is there."""
        return "; ".join(_each_once(self._instead))

    @property
    def all_sinks(self) -> list[str]:
        """Every sink that a part was meant for, in the order of the settings of then."""
        return _each_once(itertools.chain.from_iterable(self._targets.values()))

    def gone(self, sinks: Collection[str]) -> list[str]:
        """Return the sinks beside these that a part was meant for and that did not accept it."""
        found = {}
        for target in self._wanted():
            if self._fates.get(target) != "accepted":
                found[target[1]] = True
        return [sink for sink in found if sink not in sinks]

    def fate(self, number: int, sink: str) -> Fate | None:
        """Return the outcome of a part at a sink; None where the sink was not asked."""
        return self._fates.get((number, sink))

    def lacks(self, number: int, sink: str, again: bool = False) -> bool:
        """Return whether a part is to be sent to a sink; `again`: also where it may have
        arrived."""
        fate = self._fates.get((number, sink))
        return fate in (None, "refused") or (again and fate != "accepted")

    # -- new entries

    def add(self, text: str, state: TextState | None = None, whole: str | None = None) -> int:
        """Add the next part; return its number.

        Args:
            text: as it is sent.
            state: the text after this part, with the words and pieces that are new since the part
                before; None where no text can follow.
            whole: all the text, where this is the last part.
        """
        behind = None
        if whole is not None and text.startswith(whole):
            behind = len(text) - len(whole)
            whole = None
        self._append(TextPart(text, state, whole, behind))
        return len(self.parts) - 1

    def end(self, whole: str) -> None:
        """Note that the recording is text to its end."""
        self._append(End(whole))

    def aim(self, number: int, sinks: Sequence[str]) -> None:
        """Note who is to get a part, beside those that were noted before."""
        known = self._targets.get(number)
        new = [sink for sink in sinks if sink not in (known or ())]
        if new or known is None:
            self._append(Targets(number, new))

    def attempt(self, number: int, sink: str) -> None:
        """Note that a sink is about to be asked."""
        self._append(Attempt(number, sink))

    def outcome(self, number: int, sink: str, fate: Fate, reason: str = "") -> None:
        """Note what it answered."""
        self._append(Outcome(number, sink, fate, reason))

    def _append(self, line: Line) -> None:
        self._apply(line)
        if self._path is not None:
            self._write(self._path, filenames.to_json(line) + b"\n")

    def _apply(self, line: Line) -> None:
        if isinstance(line, TextPart):
            self.parts.append(line)
            self.state = _after(self.state, line.state)
            if line.behind is not None:
                self.whole = line.text[: len(line.text) - line.behind]
            elif line.whole is not None:
                self.whole = line.whole
        elif isinstance(line, End):
            self.whole = line.whole
        elif line.part not in range(len(self.parts)):
            log.debug("a line of %s names a part that is not there", self._path)
        elif isinstance(line, Targets):
            self._targets.setdefault(line.part, []).extend(line.sinks)
        elif isinstance(line, Attempt):
            self._fates[line.part, line.sink] = "attempted"
        else:
            self._fates[line.part, line.sink] = line.fate
            if line.fate == "accepted" and line.reason:
                self._instead.append(line.reason)

    def _write(self, path: Path, data: bytes) -> None:
        """Append to the file, with what the disk refused before; a disk that refuses is logged
        once."""
        self._pending += data
        try:
            handle = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
            try:
                while self._pending:
                    self._pending = self._pending[os.write(handle, self._pending) :]
            finally:
                os.close(handle)
        except OSError as error:
            if path not in _unwritten:
                log.warning(
                    "what was delivered of recording %s cannot be written down (%s): after a crash it may come twice",
                    path.stem,
                    error.strerror or error,
                )
            _unwritten[path] = self
        else:
            _unwritten.pop(path, None)


def forget(sound: Path) -> None:
    """Drop the record of a recording that is gone, where this process alone has a part of it."""
    _unwritten.pop(sound.with_suffix(SUFFIX), None)


class TextSink(Protocol):
    """The part of a sink that a delivery uses."""

    @property
    def key(self) -> str:
        """The sink's setting, which identifies it from run to run."""

    @property
    def name(self) -> str:
        """The sink's name in messages."""

    async def deliver(self, text: str) -> str | None:
        """Deliver a text; return where it is instead, if a person has to know.

        Raises:
            SinkError: it did not arrive.
            UncertainError: it may have.
        """


async def send(
    record: Deliveries,
    number: int,
    sinks: Sequence[TextSink],
    on_failure: Callable[[TextSink, SinkError], None],
    again: bool = False,
) -> list[str]:
    """Send a part to every sink that lacks it, one after the other; return why single sinks refused
    it.

    Args:
        on_failure: called for each sink that refused.
        again: send also where it may have arrived.
    """
    text, failed = record.parts[number].text, []
    record.aim(number, [sink.key for sink in sinks])
    for sink in sinks:
        if not record.lacks(number, sink.key, again):
            continue
        record.attempt(number, sink.key)
        try:
            instead = await sink.deliver(text)
        except SinkError as error:
            fate: Fate = "refused"
            if isinstance(error, UncertainError):
                fate = "uncertain"
            record.outcome(number, sink.key, fate, error.message)
            failed.append(about(sink.name, error.message))
            on_failure(sink, error)
        else:
            record.outcome(number, sink.key, "accepted", instead or "")
    return failed


def _after(before: TextState | None, new: TextState | None) -> TextState | None:
    """Return the state once more of a text was sent; `before`'s lists grow, as a copy would cost
    ever more."""
    if new is None:
        return None
    if before is None:  # a copy, as its lists will grow
        return msgspec.structs.replace(new, words=[*new.words], pieces=[*new.pieces])
    before.words.extend(new.words)
    before.pieces.extend(new.pieces)
    return msgspec.structs.replace(new, words=before.words, pieces=before.pieces)


def _each_once(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
