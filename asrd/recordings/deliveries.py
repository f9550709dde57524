"""What each sink accepted of a recording's text, on disk before each attempt and after it.

Beside the recording lies `<id>.deliveries`: one JSON object a line, only appended to, for the user
alone. A line is with the kernel before the sink is asked, so a SIGKILL at any moment leaves a true
file. A power cut may take the last seconds of it, as of the sound; a retry may then send text
twice. A disk that refuses costs one warning, never the text. Knows no sound and no desktop. Runs on
the daemon's side.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from asrd.errors import SinkError, UncertainError
from asrd.protocol import Word
from asrd.text import filenames
from asrd.text.pieces import Piece
from asrd.text.wording import said_of

log = logging.getLogger("asrd")

SUFFIX = ".deliveries"
"""How the file's name ends."""

ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
"""How a word of the shell begins that sets a variable, whose value may be secret."""

Fate = Literal["attempted", "accepted", "refused", "uncertain"]
"""What is known of a piece of text and a sink. Of an attempt without an outcome nothing is."""


class Standing(msgspec.Struct):
    """Where the text of a recording stood when a part of it was sent: what is needed to go on
    behind it."""

    until: int
    """Sample up to which the text is final."""
    words: list[Word]
    """Every word up to there, as it was recognised."""
    sealed: int
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
    standing: Standing | None = None
    """Of words and pieces only those that are new since the part before; None where no text can
    follow."""
    whole: str | None = None
    """All the text of the recording, where this is its last part and does not hold it."""
    behind: int | None = None
    """Characters of `text` behind all the text of the recording, where this part holds it: an
    hour's text is long."""


class End(msgspec.Struct, tag="end"):
    """The recording is text to its end."""

    whole: str


class Targets(msgspec.Struct, tag="to"):
    """Who is to get a part."""

    part: int
    sinks: list[str]


class Attempt(msgspec.Struct, tag="attempt"):
    """A sink is about to be asked."""

    part: int
    sink: str


class Outcome(msgspec.Struct, tag="outcome"):
    """What it answered."""

    part: int
    sink: str
    fate: Fate
    reason: str = ""


Line = TextPart | End | Targets | Attempt | Outcome

_line = msgspec.json.Decoder(Line)

_unwritten: dict[Path, Deliveries] = {}
"""Those of which the disk refused a line, as long as this process lives: what they know is nowhere
else."""


class Deliveries:
    """What was sent of one recording, to whom, and what became of it.

    Args:
        path: the file; None where nothing of the recording is on disk, and then nothing of this is.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.parts: list[TextPart] = []
        self.standing: Standing | None = None
        """Where the text stood at the end of the last part; None before one, or where it is
        whole."""
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
                found._take_in(_line.decode(line))
        return found

    # -- what is known
    # ------------------------------------------------------------------------------------------------

    @property
    def delivered(self) -> bool:
        """Whether the recording is text to its end, and every part of it was accepted by everybody
        it was sent to."""
        if self.whole is None or not all(
            number in self._targets for number in range(len(self.parts))
        ):
            return False
        wanted = {(number, sink) for number, sinks in self._targets.items() for sink in sinks}
        return all(self._fates.get(one) == "accepted" for one in wanted | set(self._fates))

    @property
    def uncertain(self) -> list[str]:
        """Sinks that may have a part, or some of it, and did not say so."""
        return _each_once(
            sink for (_, sink), fate in self._fates.items() if fate in ("attempted", "uncertain")
        )

    @property
    def instead(self) -> str:
        """Where accepted text is, if not where it was sent; "" where it is there."""
        return "; ".join(_each_once(self._instead))

    @property
    def known(self) -> list[str]:
        """Every sink that a part was meant for, in the order of the settings of then."""
        return _each_once(sink for meant in self._targets.values() for sink in meant)

    def gone(self, sinks: Collection[str]) -> list[str]:
        """Return the sinks beside these that a part was meant for and that are not known to have
        it."""
        wanted = [(number, sink) for number, meant in self._targets.items() for sink in meant]
        lacking = (sink for number, sink in wanted if self._fates.get((number, sink)) != "accepted")
        return _each_once(sink for sink in lacking if sink not in sinks)

    def fate(self, number: int, sink: str) -> Fate | None:
        """Return what is known of a part and a sink; None where it was not asked."""
        return self._fates.get((number, sink))

    def lacks(self, number: int, sink: str, again: bool = False) -> bool:
        """Return whether a part is to be sent to a sink; `again`: also where it may have
        arrived."""
        fate = self._fates.get((number, sink))
        return fate in (None, "refused") or (again and fate != "accepted")

    # -- what happens
    # -------------------------------------------------------------------------------------------------

    def add(self, text: str, standing: Standing | None = None, whole: str | None = None) -> int:
        """Take in the next part; return its number.

        Args:
            text: as it is sent.
            standing: where the text stands behind it, with the words and pieces that are new since
                the part before; None where no text can follow.
            whole: all the text, where this is the last part.
        """
        holds = whole is not None and text.startswith(whole)
        behind = len(text) - len(whole) if whole is not None and holds else None
        self._append(TextPart(text, standing, None if holds else whole, behind))
        return len(self.parts) - 1

    def end(self, whole: str) -> None:
        """Note that the recording is text to its end."""
        self._append(End(whole))

    def aim(self, number: int, sinks: Sequence[str]) -> None:
        """Note who is to get a part, beside those that were noted before."""
        if new := [sink for sink in sinks if sink not in self._targets.get(number, ())]:
            self._append(Targets(number, new))
        elif number not in self._targets:
            self._append(Targets(number, []))

    def attempt(self, number: int, sink: str) -> None:
        """Note that a sink is about to be asked."""
        self._append(Attempt(number, sink))

    def outcome(self, number: int, sink: str, fate: Fate, reason: str = "") -> None:
        """Note what it answered."""
        self._append(Outcome(number, sink, fate, reason))

    def _append(self, line: Line) -> None:
        self._take_in(line)
        if self._path is not None:
            self._write(self._path, filenames.to_json(line) + b"\n")

    def _take_in(self, line: Line) -> None:
        if isinstance(line, TextPart):
            self.parts.append(line)
            self.standing = _after(self.standing, line.standing)
            if line.behind is not None:
                self.whole = line.text[: len(line.text) - line.behind]
            elif line.whole is not None:
                self.whole = line.whole
        elif isinstance(line, End):
            self.whole = line.whole
        elif line.part not in range(len(self.parts)):
            log.debug("a line of %s tells of a part that is not there", self._path)
        elif isinstance(line, Targets):
            self._targets.setdefault(line.part, []).extend(line.sinks)
        elif isinstance(line, Attempt):
            self._fates[line.part, line.sink] = "attempted"
        else:
            self._fates[line.part, line.sink] = line.fate
            if line.fate == "accepted" and line.reason:
                self._instead.append(line.reason)

    def _write(self, path: Path, data: bytes) -> None:
        """Append to the file, with what it did not take before; a disk that refuses is told
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
    """Drop what this process alone knows of a recording that is gone."""
    _unwritten.pop(sound.with_suffix(SUFFIX), None)


class Taker(Protocol):
    """A sink, as far as a delivery needs to know it."""

    @property
    def key(self) -> str:
        """What tells it from every other sink, from run to run: its setting."""

    @property
    def name(self) -> str:
        """What it is called before people."""

    async def deliver(self, text: str) -> str | None:
        """Deliver a text; return where it is instead, if a person has to know.

        Raises:
            SinkError: it did not arrive.
            UncertainError: it may have.
        """


async def send(
    record: Deliveries,
    number: int,
    sinks: Sequence[Taker],
    tell: Callable[[Taker, SinkError], None],
    again: bool = False,
) -> list[str]:
    """Send a part to every sink that lacks it, one after the other; return why single ones did not
    take it.

    Args:
        tell: called for each sink that did not take it.
        again: also where it may have arrived.
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
            fate: Fate = "uncertain" if isinstance(error, UncertainError) else "refused"
            record.outcome(number, sink.key, fate, error.message)
            failed.append(said_of(sink.name, error.message))
            tell(sink, error)
        else:
            record.outcome(number, sink.key, "accepted", instead or "")
    return failed


def shown(sinks: Iterable[str], among: Iterable[str] = ()) -> str:
    """Return sinks as people see them: of a command its program, as its arguments may be secret.

    Args:
        among: all the sinks that they may be taken for; commands of one program are numbered among
            these.
    """
    wanted = [sink for sink in sinks if sink.strip()]
    names = sink_names([*among, *wanted])
    return " and ".join(_each_once(names[sink] for sink in wanted))


def sink_names(keys: Iterable[str]) -> dict[str, str]:
    """Return the name of each sink by its setting; commands of one program are numbered:
    command:curl#1, #2.

    Args:
        keys: in the order of the settings; none is empty.
    """
    names = {key: sink_name(key) for key in keys if key.strip()}
    many = {name for name, count in Counter(names.values()).items() if count > 1}
    numbers: Counter[str] = Counter()
    for key, name in names.items():
        numbers[name] += 1
        if name in many:
            names[key] = f"{name}#{numbers[name]}"
    return names


def sink_name(key: str) -> str:
    """Return a sink's setting as people see it: of a command the program, without variables and
    arguments."""
    kind, colon, line = key.partition(":")
    if kind != "command" or not colon:
        return key.split(maxsplit=1)[0]
    words = line.split()
    program = next((word for word in words if not ASSIGNMENT.match(word)), "")
    return f"command:{program}"


def _after(before: Standing | None, new: Standing | None) -> Standing | None:
    """Return where the text stands once more of it was sent: `before`'s lists grow, as a copy would
    cost ever more."""
    if new is None:
        return None
    words, pieces = (before.words, before.pieces) if before else ([], [])
    words.extend(new.words)
    pieces.extend(new.pieces)
    return msgspec.structs.replace(new, words=words, pieces=pieces)


def _each_once(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
