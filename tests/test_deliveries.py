"""What was delivered is known whatever ends the daemon: a retry goes on behind it, without a word lost or doubled.

Daemons are real processes that kill themselves around a line of the record, or are killed while a sink has the text.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile

from asrd import wire
from asrd.config import Settings
from asrd.deliveries import Deliveries
from asrd.takes import Note, Spool, Take
from tests import sound
from tests.test_daemon import Running
from tests.test_scribe import TWICE, at_root, at_work, case  # noqa: F401 - a fixture

HALF = wire.SAMPLE_RATE // 2

# -- text goes on behind what is on disk ------------------------------------------------------------------------------

SPOKEN = ("red", "green", "blue.", "comma", "new", "line", "scratch", "that", "cap", "all", "caps", "literal", "one?")


class Script:
    """A model that hears, in every half second that is loud, the word that a seed put there."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        self.words = [draw.choice(SPOKEN) for _ in range(200)]

    async def transcribe(self, samples: Any, start: int = 0, phase: str = "final", said: Any = None) -> wire.Answer:
        stop = start + len(samples)
        words = [
            wire.Word(self.words[place // HALF], place, place + HALF - 1600)
            for place in range(-(-start // HALF) * HALF, stop - HALF + 1, HALF)
            if np.abs(samples[place - start : place - start + HALF]).max() > 0.05
        ]
        text = " ".join(word.text for word in words)
        return wire.Answer(0, wire.Hypothesis(text, words, start, stop), 0.01, 0.01, 0.01)


def talk(seed: int) -> Any:
    """Return speech with pauses, some of it longer than a window."""
    draw = random.Random(1000 + seed)
    parts = [sound.silence(0.4)]
    for number in range(draw.randint(2, 4)):
        parts += [sound.speech(draw.choice((1.0, 2.5, 6.0, 13.0)), seed=number), sound.silence(draw.choice((0.7, 1.5)))]
    return np.concatenate(parts)


def manner(seed: int) -> dict[str, Any]:
    """Return settings that change what words become."""
    draw = random.Random(seed)
    suffix = draw.choice((" ", "\n", "", " | "))
    return {"suffix": suffix, "commands": draw.random() < 0.8, "capitals": draw.random() < 0.5}


TALKS = {seed: manner(seed) for seed in range(24)}


@pytest.mark.parametrize("seed", TALKS)
def test_a_retry_gives_the_very_parts_that_an_undisturbed_run_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    @case
    async def go() -> None:
        async with at_work(tmp_path, deliver="segment") as one:
            one.scribe.settings = Settings(model="*=ok", strategy="half", deliver="segment", **TALKS[seed])
            monkeypatch.setattr(one.scribe.engine, "transcribe", Script(seed).transcribe)
            note = kept(one.spool, talk(seed))
            record = Deliveries(tmp_path / "whole.deliveries")
            whole = await one.scribe.rewrite(note, record)
            wanted = [part.text for part in record.parts]
            lines = (tmp_path / "whole.deliveries").read_bytes().splitlines(keepends=True)
            assert len(lines) >= 2
            for count in range(len(lines) + 1):
                beside = tmp_path / f"{count}.deliveries"
                beside.write_bytes(b"".join(lines[:count]))
                again = Deliveries.of(beside)
                assert len(again.parts) <= count
                assert await one.scribe.rewrite(note, again) == whole
                assert [part.text for part in again.parts] == wanted, f"killed after {count} of {len(lines)} parts"
                assert [part.text for part in Deliveries.of(beside).parts] == wanted, "and so it is on disk"

    go()


def kept(spool: Spool, samples: Any, name: str = "20260101-000000-aaaa") -> Note:
    """Put a recording there that was killed before it was text."""
    spool.where.mkdir(mode=0o700, parents=True, exist_ok=True)
    note = Note(name, time.time())
    take = Take(note, spool.where / f"{name}.wav")
    take.append(samples)
    take.finish()
    take.release()
    return note


# -- killed around every line of the record ---------------------------------------------------------------------------

SINK = """
folder="$1"; name="$2"
[ -e "$folder/$name.refuses" ] && exit 1
{ cat; printf '\\037'; } >> "$folder/$name.log"
if [ "$(cat "$folder/$name.hangs" 2>/dev/null)" = "$(tr -cd '\\037' < "$folder/$name.log" | wc -c)" ]; then
    : > "$folder/$name.has-it"
    while [ -e "$folder/$name.hangs" ]; do sleep 0.02; done
fi
exit 0
"""
"""A command that notes each text it gets; it can refuse, or go on with its Nth for as long as a file is there."""


class Kill(NamedTuple):
    """A run that is killed, and what each sink then has."""

    deliver: str
    sinks: str
    """A letter each; a capital refuses until the daemon is started again."""
    moment: str
    """before, torn or after a line of the record; in a sink that has the text; or removing the recording."""
    at: int
    """Which line, or which delivery, from 1."""
    live: bool = False
    """While recording; else while retrying."""

    @property
    def name(self) -> str:
        return f"{self.deliver}-{self.sinks}-{self.moment}-{self.at}" + "-live" * self.live


def steps(one: Kill, parts: int) -> list[tuple[str, int, str]]:
    """Return what a run does in order: lines of the record, and (in a "sink" step) what a sink gets."""
    found: list[tuple[str, int, str]] = []
    interleaved = one.live or one.deliver == "take"
    found += [] if interleaved else [*(("part", part, "") for part in range(parts)), ("end", 0, "")]
    for part in range(parts):
        found += [("part", part, "")] * interleaved + [("to", part, "")]
        for sink in one.sinks:
            found += [("attempt", part, sink), ("sink", part, sink), ("outcome", part, sink)]
    return found


def expected(one: Kill, parts: int) -> tuple[Counter[tuple[str, int]], tuple[str, int] | None]:
    """Return what each sink got before the kill, and which part and sink nobody knows of then."""
    got: Counter[tuple[str, int]] = Counter()
    lines = asked = 0
    unknown = None
    for kind, part, sink in steps(one, parts):
        if kind == "sink":
            asked += 1
            got[sink, part] += sink.islower()
            if one.moment == "in" and asked == one.at:
                break
            continue
        lines += 1
        here = lines == one.at and one.moment not in ("in", "removing")
        if here and one.moment in ("before", "torn"):
            break
        unknown = (sink, part) if kind == "attempt" else None
        if here:
            break
    return got, unknown


def table(seed: int, count: int) -> list[Kill]:
    """Return runs of every kind, drawn by a seed."""
    draw = random.Random(seed)
    found = [Kill("segment", "ab", "in", 1, live=True), Kill("take", "a", "after", 3, live=True)]
    found += [Kill("segment", "ab", "removing", 1), Kill("take", "ab", "removing", 1)]
    while len(found) < count:
        deliver = draw.choice(("segment", "take"))
        letters = "".join(draw.choice((letter, letter, letter.upper())) for letter in "abc"[: draw.randint(1, 3)])
        moment = draw.choice(("before", "torn", "after", "after", "in"))
        live = draw.random() < 0.3
        made = [kind for kind, _, _ in steps(Kill(deliver, letters, moment, 1, live), 2 if deliver == "segment" else 1)]
        at = draw.randint(1, made.count("sink") if moment == "in" else len(made) - made.count("sink"))
        one = Kill(deliver, letters, moment, at, live)
        hanging = moment == "in" and (letters * 2)[at - 1].isupper()  # one that refuses does not hang
        found += [] if hanging or one in found else [one]
    return found


KILLS = table(14, 28)


class Rehearsal:
    """One run that is killed, in a folder of its own, and the retries after it."""

    def __init__(self, folder: Path, kill: Kill) -> None:
        self.kill, self.folder = kill, folder
        folder.mkdir()
        (folder / "sink").write_text(SINK)
        self.names = [*kill.sinks.lower()]
        sinks = [f"--sink=command:sh {folder}/sink {folder} {name}" for name in self.names]
        self.words = [*sinks, f"--deliver={kill.deliver}"]
        self.one = Running(folder)
        self.daemons: list[Running] = []

    def up(self, *words: str, **environment: str) -> Running:
        self.daemons.append(Running(self.folder, **environment))
        return self.daemons[-1].up(*self.words, *words)

    def killed(self) -> None:
        """Run until the daemon is dead."""
        moment = {} if self.kill.moment == "in" else {"DIE_AT": f"{self.kill.moment}:{self.kill.at}"}
        for name in self.kill.sinks:
            if name.isupper():
                (self.folder / f"{name.lower()}.refuses").touch()
        hanging = self.hang() if self.kill.moment == "in" else None
        if self.kill.live:
            soundfile.write(self.folder / "clip.wav", TWICE, 16_000, subtype="FLOAT")
            waiting = ThreadPoolExecutor(1).submit(self.up, f"--source=file:{self.folder}/clip.wav", **moment)
        else:
            kept(Spool(self.one.takes), TWICE)
            daemon = self.up(**moment)
            daemon.verb("retry", "--all", "--deliver")
            waiting = None
        self.one.until(lambda: bool(self.daemons) and self.daemons[-1].process is not None)
        process = self.daemons[-1].process
        assert process is not None
        if hanging is not None:
            self.one.until(hanging.with_suffix(".has-it").exists)
            process.kill()
        assert process.wait(30) == -signal.SIGKILL, self.one.log.read_text()
        if waiting is not None:
            waiting.result()
        for file in (*self.folder.glob("*.refuses"), *self.folder.glob("*.hangs"), *self.folder.glob("*.sock")):
            file.unlink()  # with the socket: only one that answers is there then

    def hang(self) -> Path:
        """Have the sink of the delivery that is meant go on with it; return its file."""
        parts = 2 if self.kill.deliver == "segment" else 1
        asked = [sink for kind, _, sink in steps(self.kill, parts) if kind == "sink"][: self.kill.at]
        file = self.folder / f"{asked[-1]}.hangs"
        file.write_text(str(asked.count(asked[-1])))
        return file

    def got(self) -> dict[str, list[str]]:
        """Return every text that each sink has."""
        logs = {name: self.folder / f"{name}.log" for name in self.names}
        return {name: log.read_text().split("\x1f")[:-1] if log.exists() else [] for name, log in logs.items()}

    def retry(self, *words: str) -> tuple[int, str]:
        """Try again as a user does; return the exit code and what was said on the side."""
        process = self.daemons[-1].verb("retry", *words)
        _, errors = process.communicate(timeout=30)
        return process.returncode, errors

    def end(self) -> None:
        for one in self.daemons:
            if one.process is not None and one.process.poll() is None:
                one.process.kill()
                one.process.wait()


class Seen(NamedTuple):
    """What came of a run that was killed."""

    wanted: list[str]
    """The parts of the text, by a run that nobody disturbed."""
    first: dict[str, list[str]]
    waiting: list[dict[str, Any]]
    retried: tuple[int, str]
    second: dict[str, list[str]]
    again: tuple[int, str]
    third: dict[str, list[str]]
    left: list[str]
    """Files that are still there at the end."""


def rehearse(folder: Path, kill: Kill) -> Seen:
    """Kill a run, then retry: without --again, and with it."""
    one = Rehearsal(folder, kill)
    try:
        one.killed()
        wanted = undisturbed(one.one.takes, folder / "copy", kill.deliver)
        first = one.got()
        up = one.up()
        out = up.verb("takes", "--json").communicate(timeout=30)[0]
        waiting = [note for note in map(json.loads, out.splitlines()) if not note["delivered"]]
        retried = one.retry("--all", "--deliver")
        second = one.got()
        again = one.retry("--all", "--again")
        return Seen(wanted, first, waiting, retried, second, again, one.got(), sorted(os.listdir(one.one.takes)))
    finally:
        one.end()


def undisturbed(takes: Path, copy: Path, deliver: str) -> list[str]:
    """Return the parts that a recording gives where nothing of it was delivered before."""
    (file,) = takes.glob("*.wav")
    texts: list[str] = []

    @case
    async def go() -> None:
        async with at_work(copy, deliver=deliver) as one:
            one.scribe.settings = Settings(model="ok", deliver=deliver)
            samples, _ = soundfile.read(file, dtype="float32")
            record = Deliveries()
            await one.scribe.rewrite(kept(one.spool, samples), record)
            texts.extend(part.text for part in record.parts)

    go()
    return texts


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Every run of KILLS, some at a time: they mostly wait."""
    folder = tmp_path_factory.mktemp("kills")
    with ThreadPoolExecutor(4) as pool:
        yield {kill.name: pool.submit(rehearse, folder / kill.name, kill) for kill in KILLS}


@pytest.mark.parametrize("kill", KILLS, ids=[kill.name for kill in KILLS])
def test_after_a_kill_every_sink_has_each_word_once(runs: dict[str, Any], kill: Kill) -> None:
    seen: Seen = runs[kill.name].result()
    got, unknown = expected(kill, 2 if kill.deliver == "segment" else 1)
    for sink in kill.sinks:
        name = sink.lower()
        once = Counter(seen.wanted)
        assert Counter(seen.first[name]) == Counter(
            text for part, text in enumerate(seen.wanted) for _ in range(got[sink, part])
        ), "as it was when the daemon died"
        if unknown is not None and unknown[0] == sink:
            text = seen.wanted[unknown[1]]
            assert Counter(seen.second[name]) == once - Counter([text]) + Counter([text] * got[unknown])
            assert Counter(seen.third[name]) == once - Counter([text]) + Counter([text] * (1 + got[unknown]))
        else:
            assert Counter(seen.second[name]) == Counter(seen.third[name]) == once
            assert "".join(seen.third[name]) == "".join(seen.wanted) or sink.isupper(), "in order"
    if unknown is not None:
        (note,) = seen.waiting
        assert note["uncertain"] == ["command:sh"]
        assert seen.retried[0] == 75
        assert f"{note['id']} may have been delivered to command:sh" in seen.retried[1]
        assert seen.again[0] == 0
    elif kill.moment == "removing":
        assert seen.waiting == [] or kill.sinks != kill.sinks.lower()
    else:
        assert len(seen.waiting) <= 1
        assert seen.retried[0] == (0 if seen.waiting else 2)
    assert seen.left == []
