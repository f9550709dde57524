"""Takes on real disks: killed while recording, full, read-only; what is found afterwards, and what
goes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrd.errors import NothingError, UsageError
from asrd.recordings.files import RecordingInfo, RecordingWriter, blocks
from asrd.recordings.store import RecordingStore, folder
from tests.helpers import ROOT

BLOCK = np.full(320, 0.25, np.float32)


def recorded(spool: RecordingStore, seconds: float = 1.0) -> RecordingWriter:
    """Return a take of so many seconds, still in hand."""
    take = spool.begin()
    for _ in range(round(seconds * 50)):
        take.append(BLOCK)
    return take


def kept(spool: RecordingStore, stamp: str, seconds: float = 1.0, age: float = 0.0) -> str:
    """Put a kept take of this name there, that began `age` days ago."""
    spool.where.mkdir(mode=0o700, parents=True, exist_ok=True)
    note = RecordingInfo(stamp, time.time() - 86_400 * age)
    take = RecordingWriter(note, spool.where / f"{stamp}.wav")
    take.append(np.zeros(round(seconds * 16_000), np.float32))
    assert spool.keep_for_retry(take, "because")
    return stamp


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextlib.contextmanager
def small_disk(where: Path, kilobytes: int) -> Iterator[Path]:
    """Mount a tmpfs of that size; skip where that is not allowed."""
    where.mkdir()
    words = [
        "mount",
        "-t",
        "tmpfs",
        "-o",
        f"size={kilobytes}k,mode=700",
        "asrd-test",
        os.fspath(where),
    ]
    program = shutil.which("mount")
    done = subprocess.run(words, capture_output=True, text=True, check=False) if program else None
    if done is None or done.returncode:
        pytest.skip(
            f"a small tmpfs cannot be mounted here: {done.stderr.strip() if done else 'no mount program'}"
        )
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", os.fspath(where)], check=True)


# -- the files
# --------------------------------------------------------------------------------------------------------


def test_the_folder_follows_the_state_directory() -> None:
    assert folder({"XDG_STATE_HOME": "/s", "HOME": "/h"}) == Path("/s/asrd/takes")
    assert folder({"HOME": "/h", "XDG_STATE_HOME": ""}) == Path("/h/.local/state/asrd/takes")


def test_sound_and_note_belong_to_the_user_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        spool = RecordingStore(tmp_path / "state" / "takes")
        take = recorded(spool)
        assert mode(spool.where) == 0o700
        assert mode(take.path) == 0o600
        assert mode(take.path.with_suffix(".json")) == 0o600
        assert spool.keep_for_retry(take, "because")
        assert mode(take.path.with_suffix(".json")) == 0o600
    finally:
        os.umask(before)
    assert sorted(path.suffix for path in spool.where.iterdir()) == [".json", ".wav"]


def test_a_finished_take_is_a_wav_file_of_exactly_its_samples(tmp_path: Path) -> None:
    spool = RecordingStore(tmp_path)
    take = spool.begin()
    sound = np.random.default_rng(1).uniform(-1, 1, 5000).astype(np.float32)
    for start in range(0, 5000, 320):
        take.append(sound[start : start + 320])
    assert take.seconds == take.on_disk == 5000 / 16_000
    assert spool.keep_for_retry(take, "because")
    heard, rate = soundfile.read(take.path, dtype="float32")
    assert rate == 16_000
    np.testing.assert_array_equal(heard, sound)


def test_no_samples_are_no_trouble(tmp_path: Path) -> None:
    take = RecordingStore(tmp_path).begin()
    take.append(np.zeros(0, np.float32))
    take.append(BLOCK)
    assert (take.problem, take.samples) == ("", 320)
    take.release()


@pytest.mark.parametrize("rest", [0, 1, 2, 3])
def test_blocks_give_every_whole_sample_of_a_take_that_was_cut_off(
    tmp_path: Path, rest: int
) -> None:
    spool = RecordingStore(tmp_path)
    take = recorded(spool, 0.5)
    take.release()
    with take.path.open("ab") as file:
        file.write(b"\x7f" * rest)
    pieces = list(blocks(take.path, 3000))
    assert [start for start, _ in pieces] == [0, 3000, 6000]
    assert b"".join(data for _, data in pieces) == np.full(8000, 0.25, np.float32).tobytes()
    assert spool.all()[0].seconds == 0.5


# -- kill -9
# ----------------------------------------------------------------------------------------------------------

RECORDER = """
import sys, time
import numpy as np
from pathlib import Path
from asrd.recordings.store import RecordingStore

take = RecordingStore(Path(sys.argv[1])).begin()
number = 0
while True:
    number += 1
    take.append(np.full(320, number, np.float32))
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""


@pytest.mark.parametrize("least", [1, 7, 40])
def test_a_process_killed_while_it_records_loses_nothing_it_had_taken_in(
    tmp_path: Path, least: int
) -> None:
    words = [sys.executable, "-c", RECORDER, os.fspath(tmp_path)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as recorder:
        assert recorder.stdout is not None
        while int(recorder.stdout.readline()) < least:
            pass
        spool = RecordingStore(tmp_path)
        assert spool.all() == [], "a take in the hand of a living process is nobody else's"
        assert spool.prune() == 0
        recorder.send_signal(signal.SIGKILL)
        said = [int(line) for line in recorder.stdout.read().split() if line]
    told = max(said, default=least)
    (note,) = spool.waiting()
    assert note.reason == "the daemon ended before it became text"
    heard, _ = soundfile.read(spool.path(note), dtype="float32")
    # At most the block that was being written is torn; the last number said may be cut, never one
    # block on disk.
    assert len(heard) // 320 >= told - 1
    assert note.seconds == len(heard) / 16_000
    spoken = np.repeat(np.arange(1, len(heard) // 320 + 2, dtype=np.float32), 320)
    np.testing.assert_array_equal(heard, spoken[: len(heard)])
    assert b"".join(data for _, data in blocks(spool.path(note))) == heard.tobytes()
    assert abs(note.began - time.time()) < 600


def test_a_take_whose_note_was_never_written_is_found_and_can_be_settled(tmp_path: Path) -> None:
    spool = RecordingStore(tmp_path)
    take = recorded(spool)
    take.release()
    take.path.with_suffix(".json").unlink()
    (note,) = spool.waiting()
    assert (note.id, note.seconds) == (take.id, 1.0)
    assert abs(note.began - time.time()) < 600
    spool.finish_retried(note, "text")
    assert list(tmp_path.iterdir()) == []


DAMAGED = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"x"',
    b"\xff\xfe\x00",
    b'{"id": "\xff", "began": 1}',
    b'{"id": "\\ud800", "began": 1}',
    b"[" * 100_000,
    b'{"id": 7, "began": "yesterday"}',
    b'{"id": "../precious", "began": 1.0}',
    b'{"id": "x", "began": 1e308}',
    b'{"id": "x", "began": -1e308}',
    b'{"id": "x", "began": 1e999}',
    b'{"id": "x", "began": 1.0, "seconds": 1e300}',
    b'{"id": "x", "began": 1.0, "delivered": "yes"}',
]


@pytest.mark.parametrize("note", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_note_costs_neither_the_take_nor_anything_else(
    tmp_path: Path, note: bytes
) -> None:
    precious = tmp_path / "precious.wav"
    precious.write_bytes(b"of another")
    spool = RecordingStore(tmp_path / "takes")
    take = recorded(spool)
    take.release()
    take.path.with_suffix(".json").write_bytes(note)
    (found,) = spool.waiting()
    assert (found.id, found.seconds, found.delivered) == (take.id, 1.0, False)
    time.localtime(found.began)
    assert spool.path(spool.find(take.id)) == take.path
    spool.finish_retried(found, "text")
    assert precious.exists()
    assert not take.path.exists()


# -- disks that refuse
# ------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_costs_one_problem_and_keeps_what_it_took(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 128) as disk:
        spool = RecordingStore(disk / "takes")
        take = spool.begin()
        assert take.problem == ""
        told = set()
        for _ in range(200):  # 256 kB
            take.append(BLOCK)
            told.add(take.problem)
        assert len(told - {""}) == 1
        assert os.strerror(errno.ENOSPC) in take.problem
        assert take.seconds == 4.0
        assert 0.5 < take.on_disk < 2.0
        assert spool.all() == [], "it is still in hand"
        assert spool.keep_for_retry(take, "no worker")
        (note,) = spool.waiting()
        heard, _ = soundfile.read(take.path, dtype="float32")
        assert len(heard) / 16_000 == note.seconds == take.on_disk
        assert (heard == 0.25).all()


def test_a_full_disk_takes_no_new_take_and_leaves_no_crumbs(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        (disk / "ballast").write_bytes(b"")
        spool = RecordingStore(disk / "takes")
        spool.where.mkdir()
        with contextlib.suppress(OSError), (disk / "ballast").open("ab", buffering=0) as ballast:
            while ballast.write(b"x" * 4096):
                pass
        take = recorded(spool)
        assert os.strerror(errno.ENOSPC) in take.problem
        assert (take.seconds, take.on_disk) == (1.0, 0.0)
        assert not spool.keep_for_retry(take, "no worker")
        assert list(spool.where.iterdir()) == []
        again = recorded(spool)
        spool.keep = "always"
        spool.finish_delivered(again, "text")
        assert spool.all() == []


def test_a_folder_that_may_not_be_written_costs_one_problem(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        subprocess.run(["mount", "-o", "remount,ro", os.fspath(disk)], check=True)
        for where in (disk, disk / "deeper"):
            spool = RecordingStore(where)
            take = recorded(spool)
            assert take.problem.startswith("this recording is not kept on disk: ")
            assert take.seconds == 1.0
            assert not spool.keep_for_retry(take, "no worker")
            spool.finish_delivered(recorded(spool), "text")
            spool.discard(recorded(spool))
            assert spool.all() == []
            assert spool.prune() == 0


def test_a_folder_that_became_read_only_says_that_the_sound_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "disk", 512) as disk:
        spool = RecordingStore(disk)
        name = kept(spool, "20260101-000000-aaaa")
        subprocess.run(["mount", "-o", "remount,ro", os.fspath(disk)], check=True)
        logging.getLogger("asrd").propagate = True
        spool.remove("20260101-000000-ffff")
        assert caplog.text == "", "a take that never was cannot stay"
        spool.remove(name)
        assert [note.id for note in spool.all()] == [name]
        assert caplog.text.count("stays on disk") == 1
        assert f"({name}.wav, {name}.json): Read-only file system" in caplog.text


def test_something_else_where_the_folder_should_be_costs_one_problem(tmp_path: Path) -> None:
    (tmp_path / "takes").write_text("a file")
    spool = RecordingStore(tmp_path / "takes")
    take = recorded(spool)
    assert take.problem
    spool.discard(take)
    assert spool.all() == []
    assert (tmp_path / "takes").read_text() == "a file"


def test_a_file_system_without_locks_still_keeps_the_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    spool = RecordingStore(tmp_path)
    take = recorded(spool)
    assert take.problem == ""
    assert spool.keep_for_retry(take, "because")
    assert spool.waiting()[0].seconds == 1.0


# -- what becomes of it
# -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "delivered", "failed"), [("never", 0, 0), ("on-failure", 0, 1), ("always", 1, 1)]
)
def test_what_is_kept_is_what_was_asked_for(
    tmp_path: Path, keep: str, delivered: int, failed: int
) -> None:
    for fate, count in (("delivered", delivered), ("failed", failed), ("dropped", 0)):
        spool = RecordingStore(tmp_path / fate, keep)
        take = recorded(spool)
        if fate == "delivered":
            spool.finish_delivered(take, "some words")
        elif fate == "failed":
            assert spool.keep_for_retry(take, "no worker", "some") is bool(failed)
        else:
            spool.discard(take)
        notes = spool.all()
        assert len(notes) == count
        assert len(list(spool.where.iterdir())) == 2 * count
        assert len(spool.waiting()) == (count if fate == "failed" else 0)
        if notes:
            want = ("some words", True, "") if fate == "delivered" else ("some", False, "no worker")
            assert (notes[0].text, notes[0].delivered, notes[0].reason) == want


@pytest.mark.parametrize(("keep", "left"), [("on-failure", 0), ("always", 1)])
def test_a_take_that_became_text_after_all_no_longer_waits(
    tmp_path: Path, keep: str, left: int
) -> None:
    spool = RecordingStore(tmp_path, keep)
    kept(spool, "20260101-000000-aaaa")
    spool.finish_retried(spool.find(""), "text")
    assert spool.waiting() == []
    assert [(note.text, note.delivered, note.reason) for note in spool.all()] == [
        ("text", True, "")
    ] * left


def test_a_take_without_sound_is_not_worth_keeping(tmp_path: Path) -> None:
    spool = RecordingStore(tmp_path)
    assert not spool.keep_for_retry(spool.begin(), "no sound came")
    assert list(tmp_path.iterdir()) == []


def test_takes_are_found_by_the_beginning_of_their_names(tmp_path: Path) -> None:
    spool = RecordingStore(tmp_path)
    with pytest.raises(NothingError, match="no recording waits"):
        spool.find("")
    first, second = kept(spool, "20260101-000000-aaaa"), kept(spool, "20260102-000000-bbbb")
    assert spool.find("").id == second
    assert spool.find(first).id == first
    assert spool.find("20260102").id == second
    with pytest.raises(UsageError, match="2 recordings begin with"):
        spool.find("2026")
    with pytest.raises(UsageError, match="there is no recording") as caught:
        spool.find("20260101-000000-aaab")
    assert first in caught.value.hint


def test_names_sort_by_time_and_never_meet(tmp_path: Path) -> None:
    spool = RecordingStore(tmp_path)
    takes = [spool.begin() for _ in range(20)]
    assert len({take.id for take in takes}) == 20
    assert all(re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}", take.id) for take in takes)
    assert [take.id for take in takes] == sorted(take.id for take in takes), "names sort by time"
    for take in takes:
        assert not take.problem
        spool.discard(take)


def test_what_is_too_old_goes_and_the_rest_stays(tmp_path: Path) -> None:
    spool = RecordingStore(tmp_path, days=10)
    kept(spool, "20260101-000000-aaaa", age=11)
    kept(spool, "20260102-000000-bbbb", age=10.5)
    young = kept(spool, "20260103-000000-cccc", age=9.5)
    assert spool.prune() == 2
    assert [note.id for note in spool.all()] == [young]
    assert len(list(tmp_path.iterdir())) == 2


def test_the_oldest_go_while_all_are_too_large(tmp_path: Path) -> None:
    spool = RecordingStore(tmp_path, megabytes=0.2)  # a second is 64 kB
    names = [kept(spool, f"2026010{day}-000000-aaaa") for day in range(1, 6)]
    held = recorded(spool, 5.0)
    assert spool.prune() == 2
    assert [note.id for note in spool.all()] == names[2:]
    assert held.path.exists(), "what is being recorded is never pruned"
    spool.discard(held)


def test_a_clock_that_jumps_overwrites_no_take_and_ages_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = RecordingStore(tmp_path, days=14)
    for now in (
        2e9,
        2e9,
        2e9,
        1000.0,
    ):  # put back twice, and a machine that does not know the date yet
        monkeypatch.setattr(time, "time", lambda now=now: now)
        take = spool.begin()
        take.append(np.ones(160, np.float32))
        assert spool.keep_for_retry(take, "no model")
    assert len({note.id for note in spool.all()}) == 4
    monkeypatch.setattr(time, "time", lambda: 2e9 + 60)
    assert spool.prune() == 0
    monkeypatch.setattr(time, "time", lambda: 2e9 + 15 * 86_400)
    assert spool.prune() == 3


def test_what_is_not_text_yet_goes_last_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "asrd")
    spool = RecordingStore(tmp_path, "always", megabytes=0.2)
    names = []
    for kept in (True, False, False, False):
        take = spool.begin()
        take.append(np.zeros(16_000, np.float32))
        spool.keep_for_retry(take, "no worker") if kept else spool.finish_delivered(take, "a word")
        names.append(take.id)
    assert spool.prune() == 1
    assert [note.id for note in spool.all()] == [names[0], *names[2:]]
    assert caplog.records[-1].levelno == logging.INFO
    spool.megabytes = 0.01
    assert spool.prune() == 3
    assert caplog.records[-1].levelno == logging.WARNING
    assert caplog.records[-1].message.endswith("; 1 of them had not been delivered")


@pytest.mark.parametrize("size", [0, 1, 12, 43, 44, 45, 46, 47, 48, 49, 52, 44 + 640, 44 + 64_000])
def test_what_a_killed_daemon_left_without_one_sample_goes(tmp_path: Path, size: int) -> None:
    spool = RecordingStore(tmp_path)
    take = spool.begin()
    take.append(np.ones(16_000, np.float32))
    take.release()
    os.truncate(take.path, size)
    held = spool.begin()
    spool.prune()
    left = {path.stem for path in tmp_path.iterdir()}
    assert left == ({take.id, held.id} if size >= 48 else {held.id})
    assert [note.id for note in spool.waiting()] == ([take.id] if size >= 48 else [])
    held.release()
