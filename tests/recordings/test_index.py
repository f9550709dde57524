"""How many recordings wait: always as many as the folder holds, and at the same price for thousands
as for none."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from asrd.daemon.control_server import Request
from asrd.recordings import index as recordings_index
from asrd.recordings.files import RecordingInfo, RecordingWriter, pages
from asrd.recordings.index import RecordingIndex
from asrd.recordings.store import RecordingStore
from tests.daemon.test_daemon import Inside
from tests.dictation.test_transcriber import SAID, case, until

KEPT = 5000


def keep(spool: RecordingStore, count: int, **given: Any) -> None:
    """Have recordings kept as an earlier run left them."""
    spool.where.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        name = f"20260101-{number:06d}-0000"
        (spool.where / f"{name}.wav").write_bytes(b"\0" * 44)
        note = RecordingInfo(name, time.time(), **{"reason": "the disk was full"} | given)
        (spool.where / f"{name}.json").write_bytes(msgspec.json.encode(note))
    aged(spool)


def aged(spool: RecordingStore) -> None:
    """Let the folder's last change lie so far back that the next one shows."""
    os.utime(spool.where, ns=(time.time_ns() - 10**9,) * 2)


class Opened:
    """Counts what this process opens and lists below a folder, by whichever thread."""

    def __init__(self) -> None:
        self.folder = ""
        self.loop_thread, self.elsewhere = 0, 0
        sys.addaudithook(self.heard)

    def heard(self, event: str, args: tuple[Any, ...]) -> None:
        if (
            not self.folder
            or event not in ("open", "os.listdir", "os.scandir")
            or not isinstance(args[0], str | Path)
        ):
            return
        if os.fspath(args[0]).startswith(self.folder):
            if threading.current_thread() is threading.main_thread():
                self.loop_thread += 1
            else:
                self.elsewhere += 1

    @contextlib.contextmanager
    def below(self, folder: Path) -> Iterator[None]:
        self.folder, self.loop_thread, self.elsewhere = os.fspath(folder), 0, 0
        try:
            yield
        finally:
            self.folder = ""


@pytest.fixture(scope="module")
def opened() -> Opened:
    return Opened()


def test_what_is_opened_is_counted(opened: Opened, tmp_path: Path) -> None:
    spool = RecordingStore(tmp_path)
    keep(spool, 3)
    with opened.below(tmp_path):
        assert len(spool.waiting()) == 3
    assert opened.loop_thread >= 7, "a listing, and of each its lock and its note"


async def one_answer(one: Inside, verb: str) -> dict[str, Any]:
    return await anext(one.handlers.answer(Request(verb)))


async def price(
    one: Inside, opened: Opened, act: Callable[[], Any], times: int = 1
) -> tuple[int, int]:
    """Return what an act opens in the loop's thread, and elsewhere."""
    with opened.below(one.daemon.transcriber.spool.where):
        for _ in range(times):
            await act()
    return opened.loop_thread, opened.elsewhere


async def prices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Opened, count: int
) -> dict[str, Any]:
    """Return what acts open with so many recordings kept."""
    found: dict[str, Any] = {}
    async with Inside(tmp_path, monkeypatch) as one:
        spool = one.daemon.transcriber.spool
        keep(spool, count)
        await one.daemon.slot.load()
        assert (await one_answer(one, "status"))["waiting"] == count
        found["status"] = await price(one, opened, lambda: one_answer(one, "status"), 20)
        found["key"] = (await price(one, opened, lambda: one_answer(one, "toggle")))[0]
        one.microphones[-1].give(SAID)
        found["status while recording"] = await price(
            one, opened, lambda: one_answer(one, "status"), 20
        )
        found["stop"] = (await price(one, opened, lambda: one_answer(one, "stop")))[0]
        await until(lambda: not one.daemon.transcriber.busy)
        aged(spool)
        found["status after it"] = await price(one, opened, lambda: one_answer(one, "status"))
        found["takes"] = (await price(one, opened, lambda: one_answer(one, "takes")))[0]
        found["what waits at the start"] = (
            await price(one, opened, one.daemon.announcements.waiting)
        )[0]
        found["cancel"] = (await price(one, opened, lambda: one_answer(one, "cancel")))[0]
    return found


@case
async def test_nothing_costs_the_loop_more_with_thousands_of_recordings_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Opened
) -> None:
    none = await prices(tmp_path / "none", monkeypatch, opened, 0)
    many = await prices(tmp_path / "many", monkeypatch, opened, KEPT)
    assert many == none
    assert many["status"] == (0, 0)
    assert many["status while recording"] == (0, 0)
    assert many["takes"] == many["what waits at the start"] == 0
    assert many["key"] < 10


ACTS: dict[str, Callable[[RecordingStore, list[RecordingWriter], random.Random], None]] = {
    "begin": lambda spool, takes, draw: takes.append(spool.begin()),
    "begin and say": lambda spool, takes, draw: takes.append(spool.begin()) or takes[-1].append(b"\0" * 4000),
    "deliver": lambda spool, takes, draw: spool.finish_delivered(takes.pop(), "text") if takes else None,
    "fail": lambda spool, takes, draw: bool(spool.keep_for_retry(takes.pop(), "no room")) and None if takes else None,
    "cancel": lambda spool, takes, draw: spool.discard(takes.pop()) if takes else None,
    "let go": lambda spool, takes, draw: takes.pop().release() if takes else None,
    "settle": lambda spool, takes, draw: [spool.finish_retried(note, "text") for note in spool.waiting()[:1]] and None,
    "remove": lambda spool, takes, draw: [spool.remove(note.id) for note in spool.all()[:1]] and None,
    "damage a note": lambda spool, takes, draw: [
        (spool.where / f"{note.id}.new").write_bytes(b"{") and (spool.where / f"{note.id}.new").rename(
            spool.where / f"{note.id}.json"
        )
        for note in spool.all()[:1]
    ] and None,
    "lose a note": lambda spool, takes, draw: [
        (spool.where / f"{note.id}.json").unlink(missing_ok=True) for note in spool.all()[:1]
    ] and None,
    "a stranger's file": lambda spool, takes, draw: (spool.where / f"x{draw.random()}").touch(),
    "a stranger's sound": lambda spool, takes, draw: (spool.where / f"x{draw.random()}.wav").touch(),
    "hand over": lambda spool, takes, draw: (spool.where / f"{note.id}.deliveries").write_bytes(b"")
    if (note := next(iter(spool.waiting()), None))
    else None,
    "wait": lambda spool, takes, draw: aged(spool),
    "nothing": lambda spool, takes, draw: None,
}  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_it_says_what_the_folder_holds_after_any_act_of_anybody(tmp_path: Path, seed: int) -> None:
    """The acts are the spool's own, of another daemon, of a crash and of strangers."""
    draw = random.Random(seed)
    spool, takes = (
        RecordingStore(tmp_path, keep=draw.choice(["on-failure", "always", "never"])),
        list[RecordingWriter](),
    )
    index = RecordingIndex()

    async def go() -> None:
        for _ in range(40):
            ACTS[draw.choice([*ACTS])](spool, takes, draw)
            if draw.random() < 0.7:
                assert await index.waiting(spool) == len(spool.waiting())

    asyncio.run(go())
    for take in takes:
        take.release()


@case
async def test_a_folder_that_is_not_there_or_comes_later_is_no_trouble(tmp_path: Path) -> None:
    index, spool = RecordingIndex(), RecordingStore(tmp_path / "later")
    assert await index.waiting(spool) == 0
    keep(spool, 3)
    assert await index.waiting(spool) == 3
    keep(other := RecordingStore(tmp_path / "other"), 2)
    assert await index.waiting(other) == 2
    for file in spool.where.iterdir():
        file.unlink()
    spool.where.rmdir()
    assert await index.waiting(spool) == 0


@case
async def test_many_who_ask_at_once_have_it_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, read, count = RecordingStore(tmp_path), RecordingIndex._read, 0
    keep(spool, 50)

    def counted(index: RecordingIndex, spool: RecordingStore) -> None:
        nonlocal count
        count += 1
        read(index, spool)

    monkeypatch.setattr(RecordingIndex, "_read", counted)
    index = RecordingIndex()
    assert await asyncio.gather(*(index.waiting(spool) for _ in range(100))) == 100 * [50]
    assert count == 1


@case
async def test_thousands_of_recordings_are_listed_in_replies_of_a_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Inside(tmp_path, monkeypatch) as one:
        keep(one.daemon.transcriber.spool, 700, text="some words " * 10)
        replies = [reply async for reply in one.handlers.answer(Request("takes"))]
    assert [reply["more"] for reply in replies] == [*[True] * (len(replies) - 1), False]
    assert max(len(msgspec.json.encode(reply)) for reply in replies) < 1 << 16
    assert len({note["id"] for reply in replies for note in reply["takes"]}) == 700


@pytest.mark.parametrize("seed", range(20))
def test_pages_hold_every_note_once_and_no_more_than_they_may(seed: int) -> None:
    draw = random.Random(seed)
    notes = [
        RecordingInfo(str(at), 0.0, text="x" * draw.choice((0, 10, 300, 2000)))
        for at in range(draw.randint(0, 60))
    ]
    parts = pages(notes, 1000)
    assert [note for part in parts for note in part] == notes
    assert parts
    for part in parts:
        assert len(part) <= 1 or sum(len(msgspec.json.encode(note)) for note in part) <= 1000


@case
async def test_a_change_that_the_folders_time_is_too_coarse_to_show_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recordings_index, "RACY_SECONDS", 60.0)
    index, spool = RecordingIndex(), RecordingStore(tmp_path)
    keep(spool, 2)
    before = tmp_path.stat().st_mtime_ns
    assert await index.waiting(spool) == 2
    (tmp_path / "x.wav").touch()
    os.utime(tmp_path, ns=(before, before))
    assert await index.waiting(spool) == 3
