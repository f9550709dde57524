"""What was said and is not yet text: each take on disk before anything else happens to it.

A take is a WAV file that grows block by block, and beside it a JSON file with what became of it.
Both belong to the user alone. A killed daemon loses at most its last block; a disk that is full
costs the copy, never the dictation. Knows nothing of speech. Runs on the daemon's side.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import msgspec

from asrd import paths
from asrd.audio.format import SAMPLE_RATE
from asrd.errors import ClaimedError, NothingError, UsageError, nearest
from asrd.recordings import deliveries
from asrd.recordings.deliveries import Deliveries
from asrd.recordings.files import HEADER, SANE, RecordingInfo, RecordingWriter
from asrd.text import filenames, text_files
from asrd.text.wording import counted

log = logging.getLogger("asrd")

ORPHAN = 60.0
"""Seconds after which a file that belongs to no recording is one that a killed process left."""

LOOKS, LOOK = 5, 0.002
"""Times that a locked take is tried, and seconds between two of them."""

NONE_WAITS = "no recording waits"

_claimed: set[Path] = set()
"""Takes that this process retries; for file systems without locks, and to say who has a take in
hand."""


def folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where takes are kept."""
    return paths.state(environment) / "takes"


class RecordingStore:
    """All takes of one user.

    Args:
        where: the folder; made when it is needed.
        keep: never, on-failure or always.
        days, megabytes: what is kept goes when it is older, or the oldest when all are larger.
    """

    def __init__(
        self, where: Path, keep: str = "on-failure", days: float = 14, megabytes: float = 500
    ) -> None:
        self.where = where
        self.keep = keep
        self.days, self.megabytes = days, megabytes

    def begin(self) -> RecordingWriter:
        """Return a new take. Never raises: without a folder it has a `problem`."""
        now = time.time()
        stamp = _stamp(now)
        with contextlib.suppress(OSError):
            paths.make_folder(self.where)
            while (self.where / f"{stamp}.wav").exists():  # the clock was put back
                now += 1 / 65_536
                stamp = _stamp(now)
        note = RecordingInfo(stamp, now)
        take = RecordingWriter(note, self.where / f"{stamp}.wav")
        if not take.problem:
            self._write(note)
        return take

    def delivered(self, take: RecordingWriter, text: str) -> None:
        """The text arrived everywhere, or there was none: the sound goes, unless all is kept."""
        take.finish()
        if self.keep == "always" and take.on_disk:
            take.note = msgspec.structs.replace(
                take.note, text=text, delivered=True, seconds=take.seconds
            )
            self._write(take.note)
            self._unlink(take.id, (deliveries.SUFFIX,))
        else:
            self.remove(take.id)
        take.release()

    def keeps(self, take: RecordingWriter) -> bool:
        """Return whether the sound of a take that failed stays for another try."""
        return self.keep != "never" and take.on_disk > 0

    def failed(self, take: RecordingWriter, reason: str, text: str = "") -> bool:
        """Something went wrong: the sound stays for another try. Returns whether it did."""
        take.finish()
        kept = self.keeps(take)
        if kept:
            reason = f"{reason}; {take.problem}" if take.problem else reason
            take.note = msgspec.structs.replace(
                take.note, reason=reason, text=text, seconds=take.seconds
            )
            self._write(take.note)
        else:
            self.remove(take.id)
        take.release()
        return kept

    def dropped(self, take: RecordingWriter) -> None:
        """The speaker cancelled it."""
        self.remove(take.id)
        take.release()

    def settle(self, note: RecordingInfo, text: str) -> None:
        """A kept take became text after all."""
        if self.keep == "always":
            self._write(
                msgspec.structs.replace(note, text=text, reason="", delivered=True, uncertain=[])
            )
            self._unlink(note.id, (deliveries.SUFFIX,))
        else:
            self.remove(note.id)

    def refused(self, note: RecordingInfo, reason: str, text: str) -> None:
        """A kept take is text by now, and waits for another reason than before."""
        self._write(msgspec.structs.replace(note, reason=reason, text=text))

    @contextlib.contextmanager
    def claim(self, note: RecordingInfo) -> Iterator[None]:
        """Have a kept take in hand, as nobody else may at that time; a process that dies lets go of
        it.

        Raises: ClaimedError where somebody has it in hand; UsageError where it is gone.
        """
        path = self.path(note)
        if path in _claimed:
            raise _claimed_already(note)
        try:
            file = path.open("rb")
        except OSError as error:
            raise UsageError(
                f"recording {note.id} is gone: {error.strerror}",
                "asrd recordings lists what is kept",
            ) from error
        with file:
            if not _locked(file):
                hint = "wait until it is text, or end the other asrd"
                raise ClaimedError(
                    f"recording {note.id} is being recorded, or retried by another asrd", hint
                )
            _claimed.add(path)
            try:
                yield
            finally:
                _claimed.discard(path)

    def known(self, note: RecordingInfo) -> RecordingInfo | None:
        """Return a take as it is by now; None where it is gone."""
        return self._read(self.path(note)) if self.path(note).exists() else None

    def remove(self, name: str) -> None:
        """Delete a take; one that is gone already is no error, one that stays is told."""
        # The sound first: a crash in between must not leave it there without what is known of it.
        self._unlink(name, (".wav", ".json", ".new", deliveries.SUFFIX))
        deliveries.forget(self.where / f"{name}.wav")

    def _unlink(self, name: str, endings: tuple[str, ...]) -> None:
        staying, why = [], ""
        for ending in endings:
            file = self.where / f"{name}{ending}"
            try:
                file.unlink()
            except OSError as error:
                if os.path.lexists(file):  # a disk that is read-only refuses also what never was
                    staying.append(file.name)
                    why = error.strerror or str(error)
        if staying:
            log.warning("recording %s stays on disk (%s): %s", name, ", ".join(staying), why)

    def all(self) -> list[RecordingInfo]:
        """Every take with sound, the oldest first, but none that a daemon has in hand."""
        return [self._read(path) for path in sorted(self.where.glob("*.wav")) if not _in_hand(path)]

    def look(self, name: str) -> RecordingInfo | None:
        """Return what is known of one take; None while a daemon has it in hand."""
        sound = self.where / f"{name}.wav"
        return None if _in_hand(sound) else self._read(sound)

    def waiting(self, claimed: bool = False) -> list[RecordingInfo]:
        """The takes that never became delivered text, the oldest first; `claimed`: also those that
        are retried now."""
        notes = self.all()
        if claimed:
            notes += [self._read(path) for path in _claimed if path.parent == self.where]
        return sorted((note for note in notes if not note.delivered), key=lambda note: note.id)

    def find(self, name: str) -> RecordingInfo:
        """Return a take by its name or how that begins; "" is the newest that waits.

        Raises: UsageError; NothingError where none waits; ClaimedError where all that wait are
            being retried.
        """
        notes = self.all()
        if not name:
            notes = self.waiting()[-1:]
            if not notes and (claimed := self.waiting(claimed=True)):
                raise _claimed_already(claimed[-1])
        found = [note for note in notes if note.id.startswith(name)]
        if name and not found:  # one that somebody has in hand is there all the same
            found = [
                self._read(path) for path in self.where.glob("*.wav") if path.stem.startswith(name)
            ]
        if len(found) != 1:
            known = [note.id for note in notes]
            if not name:
                raise NothingError(NONE_WAITS, "asrd recordings lists what is kept")
            many = (
                f"{len(found)} recordings begin with {name!r}"
                if found
                else f"there is no recording {name!r}"
            )
            raise UsageError(
                many, nearest(name, known) if known else "asrd recordings lists what is kept"
            )
        return found[0]

    def path(self, note: RecordingInfo) -> Path:
        """Return the sound of a take."""
        return self.where / f"{note.id}.wav"

    def prune(self) -> int:
        """Delete what is too old, and while all are too large the oldest, those that are text
        first; return how many.

        What a crash left of recordings that are delivered, or are no more, goes before and does not
        count.
        """
        notes = self._tidied()
        gone = [
            note
            for note in notes
            if note.began > SANE and time.time() - note.began > self.days * 86_400
        ]
        late = {note.id for note in gone}
        rest = [note for note in notes if note.id not in late]
        sizes = {note.id: self._size(note) for note in rest}
        total = sum(sizes.values())
        for note in sorted(rest, key=lambda note: not note.delivered):
            if total <= self.megabytes * 1e6:
                break
            gone.append(note)
            total -= sizes[note.id]
        for note in gone:
            self.remove(note.id)
        if gone:
            lost = sum(not note.delivered for note in gone)
            limits = f"older than {self.days:g} days, or more than {self.megabytes:g} MB in all"
            said = f"deleted {counted(len(gone), 'recording')}: {limits}"
            undelivered = f"; {lost} of them had not been delivered" if lost else ""
            log.log(logging.WARNING if lost else logging.INFO, "%s%s", said, undelivered)
        return len(gone)

    def _tidied(self) -> list[RecordingInfo]:
        """Do what a crash left undone: the end of what was delivered, and files without their
        sound.

        Returns as `all`.
        """
        notes = []
        for note in self.all():
            if not note.delivered and _empty(self.path(note)):
                self.remove(note.id)
                continue
            if note.delivered and self.path(note).with_suffix(deliveries.SUFFIX).exists():
                self.settle(note, note.text)
            if not note.delivered or self.path(note).exists():
                notes.append(note)
        for ending in (".json", ".new", deliveries.SUFFIX):
            for file in self.where.glob(f"*{ending}"):
                if not file.with_suffix(".wav").exists() and _age(file) > ORPHAN:
                    self._unlink(file.stem, (ending,))
        return notes

    def _size(self, note: RecordingInfo) -> int:
        with contextlib.suppress(OSError):
            return self.path(note).stat().st_size
        return 0

    def _read(self, sound: Path) -> RecordingInfo:
        """Return the note of a sound; what a crash left without one, or with half of one, gets it
        from the file."""
        try:
            note = msgspec.json.decode(
                text_files.plain(sound.with_suffix(".json").read_bytes()), type=RecordingInfo
            )
        except (OSError, ValueError, RecursionError):  # msgspec's errors are ValueErrors
            note = RecordingInfo(sound.stem, 0.0)
        note.id = sound.stem  # whatever a damaged note says: it names files that are deleted
        with contextlib.suppress(OSError):
            facts = sound.stat()
            note.seconds = max(0, facts.st_size - HEADER.size) // 4 / SAMPLE_RATE
            if not 0 < note.began < 1e11:
                note.began = facts.st_mtime
        record = Deliveries.of(sound)
        note.uncertain = [deliveries.shown([sink], record.known) for sink in record.uncertain]
        note.transcribed = record.whole is not None
        if record.delivered:
            note.delivered, note.text = True, record.whole or ""
        elif not note.delivered and not note.reason:
            end = "it became text" if record.whole is None else "its text was delivered"
            note.reason = f"the daemon ended before {end}"
        return note

    def _write(self, note: RecordingInfo) -> None:
        """Write a note whole or not at all; a disk that refuses is told and costs nothing else."""
        try:
            paths.write_whole(self.where / f"{note.id}.json", filenames.to_json(note))
        except OSError as error:
            log.warning("the note of recording %s cannot be written: %s", note.id, error.strerror)


def _stamp(now: float) -> str:
    """Return a take's name, which sorts by time: in UTC, as local time goes back in autumn, and the
    part of the second in hexadecimal.
    """
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{int(now % 1 * 65_536):04x}"


def _in_hand(path: Path) -> bool:
    """Whether a living daemon still holds the take. Not by process number: in a container the next
    has the same."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return path in _claimed
    return False


def _empty(path: Path) -> bool:
    """Return whether a recording has not one sample and nobody has it in hand, where the file
    system can tell that."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.fstat(file.fileno()).st_size < HEADER.size + 4
    except OSError:
        return False


def _claimed_already(note: RecordingInfo) -> ClaimedError:
    """Return the error for a recording that this process retries."""
    return ClaimedError(
        f"recording {note.id} is being retried already", "asrd recordings says what became of it"
    )


def _locked(file: BinaryIO) -> bool:
    """Lock a take that nobody has in hand; return whether that went. Where there are no locks, it
    does."""
    for _ in range(LOOKS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # whoever only looks whether it is free holds it for a moment
            time.sleep(LOOK)
        except OSError:
            return True
        else:
            return True
    return False


def _age(file: Path) -> float:
    """Return the seconds since a file was written; 0 where it is gone."""
    with contextlib.suppress(OSError):
        return time.time() - file.stat().st_mtime
    return 0.0
