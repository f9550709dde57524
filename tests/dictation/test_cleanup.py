"""Between stop and text nothing is read, synced, deleted or closed whose size grows with the
dictation."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import random
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from asrd.audio.format import SAMPLE_RATE
from asrd.dictation import cleanup, transcriber
from asrd.recordings import files
from tests import sound
from tests.dictation.test_transcriber import TWICE, at_root, at_work, case, push, rested, until

__all__ = ["at_root"]

SHORT, LONG = 2, 32
"""Times that the words are said: 7 s, and 112 s, as the shadow reads no recording above two
minutes."""

KINDS = list(
    itertools.product(("take", "segment"), ("never", "on-failure", "always"), (False, True), (0, 1))
)
"""Every way of delivering, keeping, waiting for the text, and hearing a recording once more."""

OUTCOMES = {
    "delivered": "put away later",
    "lost": "deleted later",
    "kept": "stays",
    "cancelled": "deleted later",
}
"""What became of a recording, and what becomes of its sound."""

ROOM_BYTES = 64 << 10
"""Frames of the worker, notes, text, and what else the process reads and writes meanwhile."""

BUFFER_BYTES = 4 * 10 * SAMPLE_RATE
"""The last buffer, where it was not decoded before the stop."""


class Handled(NamedTuple):
    """What a process did between stop and text."""

    read: int
    written: int
    acts: list[str]
    calls: int
    """Of functions, of Python and C, up to a moment after the text."""


CALLS = 150
"""Of functions that a long dictation may make more than a short one: turns of the loop, and words
that wait."""

TRIES = 4
"""Pairs of dictations of which one has to be without noise: other work of the machine adds turns
of the loop to one of the two, never to all."""

PATIENT_SECONDS = 0.5
"""That what can wait waits for the reply here."""

TURNS = 50
"""Of the loop after the text, in which a reply is on its way."""


class Calls:
    """How often a function was called since it was made, in this thread."""

    def __init__(self) -> None:
        self.count = 0
        gc.disable()  # what it finds calls functions too, whenever it comes
        sys.setprofile(self._note)

    def _note(self, frame: object, event: str, argument: object) -> None:
        self.count += event in ("call", "c_call")

    def end(self) -> int:
        """Count no further; return the count."""
        sys.setprofile(None)
        gc.enable()
        return self.count


def io() -> tuple[int, int]:
    """Return the bytes that this process has read and written by system calls."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"]), int(fields["wchar"])


class Watch:
    """Every sync, deletion and close of a recording, as it happens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.acts: list[str] = []
        for owner, name in (
            (os, "fsync"),
            (os, "fdatasync"),
            (Path, "unlink"),
            (files.RecordingWriter, "release"),
        ):
            self._follow(monkeypatch, owner, name)

    def _follow(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def noted(*args: Any, **given: Any) -> Any:
            self.acts.append(name)
            return real(*args, **given)

        monkeypatch.setattr(owner, name, noted)


async def handled(
    folder: Path, watch: Watch, count: int, private: bool, **given: Any
) -> tuple[Handled, str]:
    """Say the words so many times; return what was done between stop and text, and the outcome."""
    refused, cancelled = given.pop("refused", False), given.pop("cancelled", False)
    async with at_work(folder, **given) as one:
        recording = one.begin(private)
        for _ in range(count):
            push(recording, TWICE)
        push(recording, sound.silence(0.6))
        # The transcriber waits for more once it has done all that it can before the end.
        waits = recording.has_work._waiters
        await until(
            lambda: (
                bool(waits)
                and not recording.has_work.is_set()
                and recording.session.window.due == 0
            )
        )
        assert recording._written == len(recording.session.transcript.words) >= count
        one.refusals += ["no window"] * 1000 * refused
        recording.cancelled = cancelled
        watch.acts.clear()
        (read, written), found = io(), list[tuple[int, int, list[str]]]()

        def note(_: Any) -> None:
            after = io()
            found.append((after[0] - read, after[1] - written, list(watch.acts)))

        recording.result.add_done_callback(note)
        calls = Calls()
        try:
            recording.end()
            result = await recording.result
            for _ in range(TURNS):
                await asyncio.sleep(0)
        finally:
            called = calls.end()
        await until(lambda: bool(found))
        await rested(one)
        assert (one.spool.where / f"{result.id}.wav").exists() == (
            result.outcome == "kept"
            or (given["keep_audio"] == "always" and result.outcome == "delivered")
        )
        return Handled(*found[0], called), result.outcome


def drawn() -> dict[str, dict[str, Any]]:
    """Return every kind by its name, and four outcomes of drawn kinds; the same in every run."""
    found = {}
    for deliver, keep, private, shadow in KINDS:
        name = f"{deliver}, keeps {keep}, {'waited for' if private else 'sent'}, shadow {shadow}"
        found[name] = {"deliver": deliver, "keep_audio": keep, "private": private, "shadow": shadow}
    dice = random.Random(15)
    for outcome in OUTCOMES:
        more = {"cancelled": outcome == "cancelled", "refused": outcome in ("kept", "lost")}
        keep = "never" if outcome == "lost" else "on-failure"
        kind = {"deliver": dice.choice(("take", "segment")), "private": False, "shadow": 0}
        found[f"{outcome}, {OUTCOMES[outcome]}"] = {
            **kind,
            **more,
            "keep_audio": keep,
            "outcome": outcome,
        }
    return found


@pytest.mark.parametrize("name", drawn())
@case
async def test_what_is_handled_between_stop_and_text_does_not_grow(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = drawn()[name]
    wanted = kind.pop("outcome", "delivered")
    for module in (cleanup, transcriber):  # a machine with much to do needs longer for the turns
        monkeypatch.setattr(module, "REPLY_SECONDS", PATIENT_SECONDS)
    watch = Watch(monkeypatch)
    more_calls = []
    for number in range(TRIES):
        pair = tmp_path / str(number)
        short, outcome = await handled(pair / "short", watch, SHORT, **kind)
        long, again = await handled(pair / "long", watch, LONG, **kind)
        assert outcome == again == wanted
        assert "fsync" not in long.acts
        assert "fdatasync" not in long.acts
        assert long.acts == short.acts == (["release"] if wanted == "kept" else [])
        assert long.read - short.read < ROOM_BYTES
        assert (
            long.written - short.written
            < BUFFER_BYTES + ROOM_BYTES
            < (LONG - SHORT) * TWICE.nbytes / 8
        )
        more_calls.append(long.calls - short.calls)
        if more_calls[-1] < CALLS:
            return
    pytest.fail(f"a long dictation makes more calls in each of {TRIES} pairs: {more_calls}")
