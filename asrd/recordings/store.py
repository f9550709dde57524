"""The folder of recordings: each recording on disk before anything else happens to it, and
retention.

A recording is a WAV file that grows block by block, and beside it a JSON file with its note. Both
belong to the user alone. A killed daemon loses at most its last block. A full disk costs the copy,
never the dictation. Runs on the daemon's side.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO

import msgspec

from asrd import paths
from asrd.audio.format import SAMPLE_RATE
from asrd.errors import ClaimedError, NothingError, UsageError, nearest
from asrd.recordings import deliveries
from asrd.recordings.deliveries import Deliveries
from asrd.recordings.files import HEADER, MIN_CLOCK, RecordingInfo, RecordingWriter
from asrd.recordings.sink_names import shown
from asrd.text import filenames, text_files
from asrd.text.wording import counted

log = logging.getLogger("asrd")

ORPHAN_SECONDS = 60.0
"""Age after which a file that belongs to no recording is one that a killed process left."""

LOCK_TRIES, LOCK_PAUSE_SECONDS = 5, 0.002
"""Times that a locked recording is tried, and the pause between two of them."""

NONE_WAITS = "no recording waits"

_claimed: set[Path] = set()
"""Recordings that this process retries; for file systems without locks, and to name the holder of a
recording in a message."""


def folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the recordings."""
    return paths.state(environment) / "takes"


class RecordingStore:
    """All recordings of one user.

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
        """Return a new recording. Never raises: without a folder it has a `problem`."""
        now = time.time()
        stamp = _stamp(now)
        with contextlib.suppress(OSError):
            paths.make_folder(self.where)
            while (self.where / f"{stamp}.wav").exists():  # the clock was put back
                now += 1 / 65_536
                stamp = _stamp(now)
        note = RecordingInfo(stamp, now)
        recording = RecordingWriter(note, self.where / f"{stamp}.wav")
        if not recording.problem:
            self._write(note)
        return recording

    def finish_delivered(self, recording: RecordingWriter, text: str) -> None:
        """Delete the audio of a text that was delivered, or was empty, unless all is kept."""
        recording.finish()
        if self.keep == "always" and recording.on_disk:
            recording.note = msgspec.structs.replace(
                recording.note, text=text, delivered=True, seconds=recording.seconds
            )
            self._write(recording.note)
            self._unlink(recording.id, (deliveries.SUFFIX,))
        else:
            self.remove(recording.id)
        recording.release()

    def keeps(self, recording: RecordingWriter) -> bool:
        """Return whether the audio of a recording that failed is kept for a retry."""
        return self.keep != "never" and recording.on_disk > 0

    def keep_for_retry(self, recording: RecordingWriter, reason: str, text: str = "") -> bool:
        """Keep the audio of a recording that failed, with the reason; return whether it is kept."""
        recording.finish()
        kept = self.keeps(recording)
        if kept:
            if recording.problem:
                reason = f"{reason}; {recording.problem}"
            recording.note = msgspec.structs.replace(
                recording.note, reason=reason, text=text, seconds=recording.seconds
            )
            self._write(recording.note)
        else:
            self.remove(recording.id)
        recording.release()
        return kept

    def discard(self, recording: RecordingWriter) -> None:
        """Delete a recording that was cancelled."""
        self.remove(recording.id)
        recording.release()

    def finish_retried(self, note: RecordingInfo, text: str) -> None:
        """Delete a kept recording that became text, unless all is kept."""
        if self.keep == "always":
            self._write(
                msgspec.structs.replace(note, text=text, reason="", delivered=True, uncertain=[])
            )
            self._unlink(note.id, (deliveries.SUFFIX,))
        else:
            self.remove(note.id)

    def note_reason(self, note: RecordingInfo, reason: str, text: str) -> None:
        """Note the text of a kept recording, and why it still waits."""
        self._write(msgspec.structs.replace(note, reason=reason, text=text))

    @contextlib.contextmanager
    def claim(self, note: RecordingInfo) -> Iterator[None]:
        """Hold a kept recording alone inside the block; a process that dies lets go of it.

        Raises: ClaimedError where another holds it; UsageError where it is gone.
        """
        path = self.path(note)
        if path in _claimed:
            raise _claimed_already(note)
        try:
            file = path.open("rb")
        except OSError as error:
            raise UsageError(
                f"recording {note.id} no longer exists: {error.strerror}",
                "asrd recordings lists what is kept",
            ) from error
        with file:
            if not _locked(file):
                hint = "wait until it is transcribed, or end the other asrd"
                raise ClaimedError(
                    f"recording {note.id} is being recorded, or retried by another asrd", hint
                )
            _claimed.add(path)
            try:
                yield
            finally:
                _claimed.discard(path)

    def reread(self, note: RecordingInfo) -> RecordingInfo | None:
        """Return a recording as it is by now; None where it is gone."""
        if not self.path(note).exists():
            return None
        return self._read(self.path(note))

    def remove(self, name: str) -> None:
        """Delete a recording; one that is gone already is no error, one that stays is logged."""
        # The audio first: a crash in between must not leave it there without its note.
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
        """Every recording with audio, the oldest first, but none that a process holds."""
        return [self._read(path) for path in sorted(self.where.glob("*.wav")) if not _in_hand(path)]

    def info(self, name: str) -> RecordingInfo | None:
        """Return the note of one recording; None while a process holds it."""
        path = self.where / f"{name}.wav"
        if _in_hand(path):
            return None
        return self._read(path)

    def waiting(self, claimed: bool = False) -> list[RecordingInfo]:
        """The recordings that never became delivered text, the oldest first; `claimed`: also those
        that are retried now."""
        notes = self.all()
        if claimed:
            notes += [self._read(path) for path in _claimed if path.parent == self.where]
        notes = [note for note in notes if not note.delivered]
        return sorted(notes, key=attrgetter("id"))

    def find(self, name: str) -> RecordingInfo:
        """Return a recording by its name or how that begins; "" is the newest that waits.

        Raises: UsageError; NothingError where none waits; ClaimedError where all that wait are
            being retried.
        """
        notes = self.all()
        if not name:
            notes = self.waiting()[-1:]
            if not notes and (claimed := self.waiting(claimed=True)):
                raise _claimed_already(claimed[-1])
        found = [note for note in notes if note.id.startswith(name)]
        if name and not found:  # a recording that another process holds is there all the same
            every = self.where.glob("*.wav")
            found = [self._read(path) for path in every if path.stem.startswith(name)]
        if len(found) == 1:
            return found[0]
        hint = "asrd recordings lists what is kept"
        if not name:
            raise NothingError(NONE_WAITS, hint)
        if notes:
            hint = nearest(name, [note.id for note in notes])
        if found:
            raise UsageError(f"{len(found)} recordings begin with {name!r}", hint)
        raise UsageError(f"there is no recording {name!r}", hint)

    def path(self, note: RecordingInfo) -> Path:
        """Return the audio file of a recording."""
        return self.where / f"{note.id}.wav"

    def prune(self) -> int:
        """Delete what is too old, and while all are too large the oldest, those that are text
        first; return how many.

        What a crash left of recordings that are delivered, or are no more, is deleted before and
        does not count.
        """
        gone: list[RecordingInfo] = []
        rest: list[RecordingInfo] = []
        for note in self._tidied():
            aged = note.began > MIN_CLOCK and time.time() - note.began > self.days * 86_400
            (gone if aged else rest).append(note)
        gone += self._too_large(rest)
        for note in gone:
            self.remove(note.id)
        if gone:
            self._log_deleted(gone)
        return len(gone)

    def _too_large(self, notes: list[RecordingInfo]) -> list[RecordingInfo]:
        """Return the recordings that go so that the others are within the limit of size."""
        sizes = {note.id: self._size(note) for note in notes}
        excess = sum(sizes.values()) - self.megabytes * 1e6
        gone = []
        for note in sorted(notes, key=attrgetter("delivered"), reverse=True):
            if excess <= 0:
                break
            gone.append(note)
            excess -= sizes[note.id]
        return gone

    def _log_deleted(self, gone: list[RecordingInfo]) -> None:
        limits = f"older than {self.days:g} days, or more than {self.megabytes:g} MB in all"
        message = f"deleted {counted(len(gone), 'recording')}: {limits}"
        undelivered = [note for note in gone if not note.delivered]
        if undelivered:
            log.warning("%s; %d of them had not been delivered", message, len(undelivered))
        else:
            log.info("%s", message)

    def _tidied(self) -> list[RecordingInfo]:
        """Finish what a crash left undone: the end of what was delivered, and files without their
        audio.

        Returns as `all`.
        """
        notes = []
        for note in self.all():
            if not note.delivered and _empty(self.path(note)):
                self.remove(note.id)
                continue
            if note.delivered and self.path(note).with_suffix(deliveries.SUFFIX).exists():
                self.finish_retried(note, note.text)
            if not note.delivered or self.path(note).exists():
                notes.append(note)
        for ending in (".json", ".new", deliveries.SUFFIX):
            for file in self.where.glob(f"*{ending}"):
                if not file.with_suffix(".wav").exists() and _age(file) > ORPHAN_SECONDS:
                    self._unlink(file.stem, (ending,))
        return notes

    def _size(self, note: RecordingInfo) -> int:
        with contextlib.suppress(OSError):
            return self.path(note).stat().st_size
        return 0

    def _read(self, path: Path) -> RecordingInfo:
        """Return the note of a recording; where a crash left none, or half of one, it is made from
        the file."""
        try:
            note = msgspec.json.decode(
                text_files.plain(path.with_suffix(".json").read_bytes()), type=RecordingInfo
            )
        except (OSError, ValueError, RecursionError):  # msgspec's errors are ValueErrors
            note = RecordingInfo(path.stem, 0.0)
        note.id = path.stem  # whatever a damaged note says: it names files that are deleted
        with contextlib.suppress(OSError):
            facts = path.stat()
            note.seconds = max(0, facts.st_size - HEADER.size) // 4 / SAMPLE_RATE
            if not 0 < note.began < 1e11:
                note.began = facts.st_mtime
        record = Deliveries.of(path)
        note.uncertain = [shown([sink], record.all_sinks) for sink in record.uncertain]
        note.transcribed = record.whole is not None
        if record.delivered:
            note.delivered, note.text = True, record.whole or ""
        elif not note.delivered and not note.reason:
            note.reason = "the daemon ended before it became text"
            if record.whole is not None:
                note.reason = "the daemon ended before its text was delivered"
        return note

    def _write(self, note: RecordingInfo) -> None:
        """Write a note whole or not at all; a disk that refuses is logged and costs nothing else."""
        try:
            paths.write_whole(self.where / f"{note.id}.json", filenames.to_json(note))
        except OSError as error:
            log.warning("the note of recording %s cannot be written: %s", note.id, error.strerror)


def _stamp(now: float) -> str:
    """Return a recording's name, which sorts by time: in UTC, as local time goes back in autumn, and the
    part of the second in hexadecimal.
    """
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{int(now % 1 * 65_536):04x}"


def _in_hand(path: Path) -> bool:
    """Whether a living process holds the recording. A lock tells it, as in a container the next
    process has the same number."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return path in _claimed
    return False


def _empty(path: Path) -> bool:
    """Return whether a recording has not one sample and no process holds it, where the file
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
        f"recording {note.id} is being retried already", "asrd recordings shows its state"
    )


def _locked(file: BinaryIO) -> bool:
    """Lock a recording that no process holds; return whether that worked. Where there are no locks,
    it does."""
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # whoever only looks whether it is free holds it for a moment
            time.sleep(LOCK_PAUSE_SECONDS)
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
