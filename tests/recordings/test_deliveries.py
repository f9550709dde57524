"""What was delivered is known whatever ends the daemon: a retry goes on behind it, without a word
lost or doubled.

Daemons are real processes that kill themselves around a line of the record, or are killed while a
sink has the text.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile

from asrd import protocol
from asrd.audio.format import SAMPLE_RATE
from asrd.cli import main
from asrd.config.settings import Settings
from asrd.desktop import sinks as desktop_sinks
from asrd.errors import ClaimedError, SinkError, UncertainError
from asrd.recordings import deliveries, sink_names
from asrd.recordings.deliveries import Deliveries, forget, send
from asrd.recordings.files import RecordingInfo, RecordingWriter
from asrd.recordings.store import RecordingStore
from tests import sound
from tests.daemon.test_daemon import Running
from tests.dictation.test_transcriber import TWICE, at_root, at_work, case  # noqa: F401 - a fixture

HALF = SAMPLE_RATE // 2

# -- text goes on behind what is on disk
# ------------------------------------------------------------------------------

SPOKEN = (
    "red",
    "green",
    "blue.",
    "comma",
    "new",
    "line",
    "scratch",
    "that",
    "cap",
    "all",
    "caps",
    "literal",
    "one?",
)


class Script:
    """A model that hears, in every half second that is loud, the word that a seed put there."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        self.words = [draw.choice(SPOKEN) for _ in range(200)]

    async def transcribe(
        self, samples: Any, start: int = 0, phase: str = "final", said: Any = None
    ) -> protocol.Answer:
        stop = start + len(samples)
        words = [
            protocol.Word(self.words[place // HALF], place, place + HALF - 1600)
            for place in range(-(-start // HALF) * HALF, stop - HALF + 1, HALF)
            if np.abs(samples[place - start : place - start + HALF]).max() > 0.05
        ]
        text = " ".join(word.text for word in words)
        return protocol.Answer(0, protocol.Hypothesis(text, words, start, stop), 0.01, 0.01, 0.01)


def talk(seed: int) -> Any:
    """Return speech with pauses, some of it longer than a window."""
    draw = random.Random(1000 + seed)
    parts = [sound.silence(0.4)]
    for number in range(draw.randint(2, 4)):
        parts += [
            sound.speech(draw.choice((1.0, 2.5, 6.0, 13.0)), seed=number),
            sound.silence(draw.choice((0.7, 1.5))),
        ]
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
            one.slot.settings = Settings(
                model="*=ok", strategy="half", deliver="segment", **TALKS[seed]
            )
            monkeypatch.setattr(one.slot.engine, "transcribe", Script(seed).transcribe)
            note = kept(one.spool, talk(seed))
            record = Deliveries(tmp_path / "whole.deliveries")
            whole = await one.transcriber.retry(note, record)
            wanted = [part.text for part in record.parts]
            lines = (tmp_path / "whole.deliveries").read_bytes().splitlines(keepends=True)
            assert len(lines) >= 2
            for count in range(len(lines) + 1):
                beside = tmp_path / f"{count}.deliveries"
                beside.write_bytes(b"".join(lines[:count]))
                again = Deliveries.of(beside)
                assert len(again.parts) <= count
                assert await one.transcriber.retry(note, again) == whole
                assert [part.text for part in again.parts] == wanted, (
                    f"killed after {count} of {len(lines)} parts"
                )
                assert [part.text for part in Deliveries.of(beside).parts] == wanted, (
                    "and so it is on disk"
                )

    go()


def kept(spool: RecordingStore, samples: Any, name: str = "20260101-000000-aaaa") -> RecordingInfo:
    """Put a recording there that was killed before it was text."""
    spool.where.mkdir(mode=0o700, parents=True, exist_ok=True)
    note = RecordingInfo(name, time.time())
    take = RecordingWriter(note, spool.where / f"{name}.wav")
    take.append(samples)
    take.finish()
    take.release()
    return note


# -- killed around every line of the record
# ---------------------------------------------------------------------------

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
"""A command that notes each text it gets; it can refuse, or go on with its Nth for as long as a
file is there."""


class Kill(NamedTuple):
    """A run that is killed, and what each sink then has."""

    deliver: str
    sinks: str
    """A letter each; a capital refuses until the daemon is started again."""
    moment: str
    """before, torn or after a line of the record; in a sink that has the text; or removing the
    recording."""
    at: int
    """Which line, or which delivery, from 1."""
    live: bool = False
    """While recording; else while retrying."""

    @property
    def name(self) -> str:
        return f"{self.deliver}-{self.sinks}-{self.moment}-{self.at}" + "-live" * self.live


def steps(one: Kill, parts: int) -> list[tuple[str, int, str]]:
    """Return what a run does in order: lines of the record, and (in a "sink" step) what a sink
    gets."""
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
        letters = "".join(
            draw.choice((letter, letter, letter.upper())) for letter in "abc"[: draw.randint(1, 3)]
        )
        moment = draw.choice(("before", "torn", "after", "after", "in"))
        live = draw.random() < 0.3
        made = [
            kind
            for kind, _, _ in steps(
                Kill(deliver, letters, moment, 1, live), 2 if deliver == "segment" else 1
            )
        ]
        at = draw.randint(
            1, made.count("sink") if moment == "in" else len(made) - made.count("sink")
        )
        one = Kill(deliver, letters, moment, at, live)
        hanging = (
            moment == "in" and (letters * 2)[at - 1].isupper()
        )  # one that refuses does not hang
        found += [] if hanging or one in found else [one]
    return found


KILLS = table(14, 22)


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
        self.retrying: subprocess.Popen[str] | None = None

    def up(self, *words: str, **environment: str) -> Running:
        self.daemons.append(Running(self.folder, **environment))
        return self.daemons[-1].up(*self.words, *words)

    def killed(self) -> None:
        """Run until the daemon is dead."""
        moment = (
            {} if self.kill.moment == "in" else {"DIE_AT": f"{self.kill.moment}:{self.kill.at}"}
        )
        for name in self.kill.sinks:
            if name.isupper():
                (self.folder / f"{name.lower()}.refuses").touch()
        hanging = self.hang() if self.kill.moment == "in" else None
        if self.kill.live:
            soundfile.write(self.folder / "clip.wav", TWICE, 16_000, subtype="FLOAT")
            waiting = ThreadPoolExecutor(1).submit(
                self.up, f"--source=file:{self.folder}/clip.wav", **moment
            )
        else:
            kept(RecordingStore(self.one.takes), TWICE)
            daemon = self.up(**moment)
            self.retrying = daemon.verb("retry", "--all", "--deliver")
            waiting = None
        self.one.until(lambda: bool(self.daemons) and self.daemons[-1].process is not None)
        process = self.daemons[-1].process
        assert process is not None
        if hanging is not None:
            # Many daemons start at once here, and a busy machine needs its time.
            self.one.until(hanging.with_suffix(".has-it").exists, seconds=60.0)
            process.kill()
        assert process.wait(30) == -signal.SIGKILL, self.one.log.read_text()
        if waiting is not None:
            waiting.result()
        if self.retrying is not None:
            self.retrying.communicate(timeout=30)
        for file in (
            *self.folder.glob("*.refuses"),
            *self.folder.glob("*.hangs"),
            *self.folder.glob("*.sock"),
        ):
            file.unlink()  # with the socket: only one that answers is there then

    def hang(self) -> Path:
        """Have the sink of the delivery that is meant go on with it; return its file."""
        parts = 2 if self.kill.deliver == "segment" else 1
        asked = [sink for kind, _, sink in steps(self.kill, parts) if kind == "sink"][
            : self.kill.at
        ]
        file = self.folder / f"{asked[-1]}.hangs"
        file.write_text(str(asked.count(asked[-1])))
        return file

    def got(self) -> dict[str, list[str]]:
        """Return every text that each sink has."""
        logs = {name: self.folder / f"{name}.log" for name in self.names}
        return {
            name: log.read_text().split("\x1f")[:-1] if log.exists() else []
            for name, log in logs.items()
        }

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
        again = (
            one.retry("--all", "--again")
            if expected(kill, 2 if kill.deliver == "segment" else 1)[1]
            else (0, "")
        )
        return Seen(
            wanted,
            first,
            waiting,
            retried,
            second,
            again,
            one.got(),
            sorted(os.listdir(one.one.takes)),
        )
    finally:
        one.end()


def undisturbed(takes: Path, copy: Path, deliver: str) -> list[str]:
    """Return the parts that a recording gives where nothing of it was delivered before."""
    (file,) = takes.glob("*.wav")
    texts: list[str] = []

    @case
    async def go() -> None:
        async with at_work(copy, deliver=deliver) as one:
            one.slot.settings = Settings(model="ok", deliver=deliver)
            samples, _ = soundfile.read(file, dtype="float32")
            record = Deliveries()
            await one.transcriber.retry(kept(one.spool, samples), record)
            texts.extend(part.text for part in record.parts)

    go()
    return texts


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """Every run of KILLS that is asked for, some at a time: they mostly wait."""
    folder = tmp_path_factory.mktemp("kills")
    asked = [
        item.callspec.params.get("kill")
        for item in request.session.items
        if hasattr(item, "callspec")
    ]
    with ThreadPoolExecutor(6) as pool:
        yield {
            kill.name: pool.submit(rehearse, folder / kill.name, kill)
            for kill in KILLS
            if kill in asked
        }


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
            assert Counter(seen.second[name]) == once - Counter([text]) + Counter(
                [text] * got[unknown]
            )
            assert Counter(seen.third[name]) == once - Counter([text]) + Counter(
                [text] * (1 + got[unknown])
            )
        else:
            assert Counter(seen.second[name]) == Counter(seen.third[name]) == once
            assert "".join(seen.third[name]) == "".join(seen.wanted) or sink.isupper(), "in order"
    if unknown is not None:
        (note,) = seen.waiting
        name = (
            f"command:sh#{kill.sinks.index(unknown[0]) + 1}"
            if len(kill.sinks) > 1
            else "command:sh"
        )
        assert note["uncertain"] == [name]
        assert seen.retried[0] == 75
        assert f"{note['id']} may have been delivered to {name};" in seen.retried[1]
        assert seen.again[0] == 0
    elif kill.moment == "removing":
        assert seen.waiting == [] or kill.sinks != kill.sinks.lower()
    else:
        assert len(seen.waiting) <= 1
        assert seen.retried[0] == (0 if seen.waiting else 2)
    assert seen.left == []


# -- two retries at once
# ----------------------------------------------------------------------------------------------


def test_two_retries_of_all_deliver_each_recording_once(tmp_path: Path) -> None:
    one = Rehearsal(tmp_path / "run", Kill("take", "a", "", 0))
    try:
        for number in range(8):
            kept(RecordingStore(one.one.takes), TWICE, f"20260101-000000-{number:04x}")
        up = one.up()
        both = [up.verb("retry", "--all", "--deliver") for _ in range(2)]
        said = [process.communicate(timeout=60) for process in both]
        assert {process.returncode for process in both} <= {0, 2}, said
        assert len(one.got()["a"]) == 8
        delivered = [line.split()[0] for out, _ in said for line in out.splitlines()]
        assert sorted(delivered) == [f"20260101-000000-{number:04x}" for number in range(8)]
        assert os.listdir(one.one.takes) == []
    finally:
        one.end()


def test_a_recording_that_is_retried_is_told_to_the_second_who_asks(tmp_path: Path) -> None:
    one = Rehearsal(tmp_path / "run", Kill("take", "a", "", 0))
    hangs = one.folder / "a.hangs"
    try:
        for number in range(3):
            kept(RecordingStore(one.one.takes), TWICE, f"20260101-000000-{number:04x}")
        hangs.write_text("1")
        up = one.up()
        first = up.verb("retry", "20260101-000000-0000", "--deliver")
        one.one.until((one.folder / "a.has-it").exists)
        code, errors = one.retry("20260101-000000-0000")
        assert code == 75
        assert "recording 20260101-000000-0000 is being retried already" in errors
        code, errors = one.retry("--all", "--deliver")
        assert code == 0
        assert "recording 20260101-000000-0000 is being retried already" in errors
        assert len(one.got()["a"]) == 3, "the others are delivered meanwhile"
        hangs.unlink()
        assert first.communicate(timeout=30)[0] == "20260101-000000-0000 was delivered\n"
        assert len(one.got()["a"]) == 3
        assert os.listdir(one.one.takes) == []
    finally:
        hangs.unlink(missing_ok=True)
        one.end()


CHOOSY = """
cat > "$1/now"; number=$(($(cat "$1/asked" 2>/dev/null || echo 0) + 1)); echo $number > "$1/asked"
case " $(cat "$1/refused" 2>/dev/null) " in *" $number "*) exit 1;; esac
{ cat "$1/now"; printf '\\037'; } >> "$1/choosy.log"
"""
"""A command that refuses its Nth text, for each N that a file names."""


def mixed(seed: int) -> dict[str, str]:
    """Return 24 recordings and what becomes of each: delivered, refused by the second sink, or
    holds no sound."""
    draw = random.Random(seed)
    names = [f"20260101-000000-{number:04x}" for number in range(24)]
    return {name: draw.choice(("delivered", "delivered", "refused", "no sound")) for name in names}


@pytest.mark.parametrize("last", ["delivered", "refused", "no sound"])
def test_of_all_recordings_one_that_fails_costs_the_others_nothing_and_is_told_at_the_end(
    tmp_path: Path, last: str
) -> None:
    one = Rehearsal(tmp_path / "run", Kill("take", "a", "", 0))
    fates = mixed(14) | {"20260101-000000-ffff": last}
    try:
        for name, fate in fates.items():
            kept(
                RecordingStore(one.one.takes),
                np.full(9000, np.nan, np.float32) if fate == "no sound" else TWICE,
                name,
            )
        heard = [fate for fate in fates.values() if fate != "no sound"]
        (one.folder / "choosy").write_text(CHOOSY)
        numbers = [str(number) for number, fate in enumerate(heard, 1) if fate == "refused"]
        (one.folder / "refused").write_text(" ".join(numbers))
        up = one.up(f"--sink=command:sh {one.folder}/choosy {one.folder}")
        process = up.verb("retry", "--all", "--deliver")
        out, errors = process.communicate(timeout=60)
        failed = [fate for fate in fates.values() if fate != "delivered"]
        assert process.returncode == (75 if failed[0] == "refused" else 65)
        assert out.splitlines() == [
            f"{name} was delivered" for name in fates if fates[name] == "delivered"
        ]
        assert f"{len(failed)} of {len(fates)} recordings could not be finished, and stay" in errors
        assert all(name in errors for name in fates if fates[name] != "delivered")
        assert len(one.got()["a"]) == len(heard), "the first sink has each text"
        (one.folder / "refused").unlink()
        one.retry("--all", "--deliver")
        assert len(one.got()["a"]) == len(heard), "and has none twice"
        assert (one.folder / "choosy.log").read_text().count("\x1f") == len(heard)
        assert sorted(file.stem for file in one.one.takes.glob("*.wav")) == [
            name for name in fates if fates[name] == "no sound"
        ]
    finally:
        one.end()


CLAIMER = """
import sys, time
from pathlib import Path
from asrd.recordings.store import RecordingStore
spool = RecordingStore(Path(sys.argv[1]))
with spool.claim(spool.find("")):
    print("claimed", flush=True)
    time.sleep(60)
"""


def test_a_claim_holds_against_other_processes_and_dies_with_its_own(tmp_path: Path) -> None:
    spool = RecordingStore(tmp_path / "takes")
    note = kept(spool, TWICE)
    command = [sys.executable, "-c", CLAIMER, os.fspath(spool.where)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "claimed\n"
        with pytest.raises(ClaimedError, match="another asrd"), spool.claim(note):
            pass
        assert spool.all() == []
        assert spool.prune() == 0
        process.kill()
    with (
        spool.claim(note),
        pytest.raises(ClaimedError, match="is being retried already"),
        spool.claim(note),
    ):
        pass
    with (
        spool.claim(note),
        pytest.raises(ClaimedError, match=f"{note.id} is being retried already"),
    ):
        spool.find("")
    assert [one.id for one in spool.waiting()] == [note.id]


# -- the record by itself
# ---------------------------------------------------------------------------------------------


class Place:
    """A sink of a test."""

    def __init__(self, name: str, *errors: SinkError | None) -> None:
        self.name = self.key = name
        self.errors = list(errors)
        self.got: list[str] = []

    async def deliver(self, text: str) -> None:
        error = self.errors.pop(0) if self.errors else None
        if error is None or isinstance(error, UncertainError):
            self.got.append(text)
        if error is not None:
            raise error


def history(path: Path, seed: int) -> list[tuple[int, dict[str, list[str]]]]:
    """Write a record of several parts and sinks; return its length and what each sink said it had,
    line by line."""
    draw = random.Random(seed)
    record, had = Deliveries(path), []
    names = ["stdout", "clipboard", "command:a b"][: draw.randint(1, 3)]
    accepted: dict[str, list[str]] = {name: [] for name in names}

    def noted() -> None:
        had.append((path.stat().st_size, {name: list(texts) for name, texts in accepted.items()}))

    parts = draw.randint(1, 3)
    for number in range(parts):
        record.add(f"part {number} \u00fc\n", whole="whole" if number == parts - 1 else None)
        noted()
        record.aim(number, names)
        noted()
        for name in names:
            record.attempt(number, name)
            noted()
            fate = draw.choice(("accepted", "accepted", "refused", "uncertain"))
            record.outcome(number, name, fate)
            accepted[name] += [f"part {number} \u00fc\n"] * (fate == "accepted")
            noted()
    return had


@pytest.mark.parametrize("seed", range(20))
def test_a_record_cut_at_any_byte_tells_what_its_whole_lines_told(
    tmp_path: Path, seed: int
) -> None:
    had = history(tmp_path / "whole.deliveries", seed)
    data = (tmp_path / "whole.deliveries").read_bytes()
    assert (tmp_path / "whole.deliveries").stat().st_mode & 0o777 == 0o600
    for length in range(0, len(data) + 1, 3):
        (tmp_path / "cut.deliveries").write_bytes(data[:length])
        record = Deliveries.of(tmp_path / "cut.wav")
        known = [accepted for size, accepted in had if size - 1 <= length]  # a line's end may lack
        for name, texts in (known[-1] if known else {}).items():
            taken = [
                part.text
                for number, part in enumerate(record.parts)
                if record.fate(number, name) == "accepted"
            ]
            assert taken == texts
        assert not record.delivered or record.whole == "whole"
        again = record.add("next", whole="whole")
        assert [part.text for part in Deliveries.of(tmp_path / "cut.wav").parts][again] == "next", (
            "after a torn line"
        )


GARBAGE = [b"", b"\n\n", b"{", b"null\n", b"[]\n", b"\xff\xfe\n", b"[" * 100_000, b'{"type":"attempt"}\n',
           b'{"type":"outcome","part":-1,"sink":"x","fate":"eaten"}\n', b'{"type":"part","text":7}\n',
           b'{"type":"attempt","part":99,"sink":""}\n', b'{"type":"to","part":1e99,"sinks":[]}\n']  # fmt: skip


@pytest.mark.parametrize("data", GARBAGE, ids=range(len(GARBAGE)))
def test_a_damaged_record_costs_nothing_else(tmp_path: Path, data: bytes) -> None:
    spool = RecordingStore(tmp_path / "takes")
    note = kept(spool, TWICE)
    spool.path(note).with_suffix(".deliveries").write_bytes(data)
    (found,) = spool.waiting()
    assert not found.delivered
    assert Deliveries.of(spool.path(note)).parts == []
    spool.finish_retried(found, "text")
    assert list(spool.where.iterdir()) == []


@case
async def test_a_disk_that_is_full_costs_one_warning_and_no_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "asrd")
    record = Deliveries(tmp_path / "no" / "folder.deliveries")
    places = [Place("a"), Place("b", SinkError("gone"))]
    for number in range(3):
        assert record.add(f"text {number}") == number
        await send(record, number, places, lambda sink, error: None)
    assert places[0].got == ["text 0", "text 1", "text 2"]
    assert places[1].got == ["text 1", "text 2"]
    assert [
        message for message in caplog.messages if "cannot be written down" in message
    ] == caplog.messages[:1]
    same = Deliveries.of(tmp_path / "no" / "folder.wav")
    assert await send(same, 0, places, lambda sink, error: None) == []
    assert places[0].got == ["text 0", "text 1", "text 2"], (
        "this process knows what the disk does not"
    )
    assert places[1].got == ["text 1", "text 2", "text 0"]
    (tmp_path / "no").mkdir()
    record.end("all")
    forget(tmp_path / "no" / "folder.wav")
    assert Deliveries.of(tmp_path / "no" / "folder.wav").whole == "all", (
        "with room, all of it is written after all"
    )
    assert len(Deliveries.of(tmp_path / "no" / "folder.wav").parts) == 3


@case
async def test_what_may_have_arrived_is_sent_again_only_where_that_is_asked_for(
    tmp_path: Path,
) -> None:
    record = Deliveries(tmp_path / "a.deliveries")
    record.add("text", whole="text")
    places = [
        Place("sure"),
        Place("slow", UncertainError("did not end")),
        Place("shut", SinkError("no")),
    ]
    told: list[str] = []
    failed = await send(record, 0, places, lambda sink, error: told.append(sink.name))
    assert failed == ["slow: did not end", "shut: no"]
    assert told == ["slow", "shut"]
    assert (record.uncertain, record.delivered) == (["slow"], False)
    assert await send(Deliveries.of(tmp_path / "a.wav"), 0, places, lambda sink, error: None) == []
    assert [place.got for place in places] == [["text"], ["text"], ["text"]]
    assert Deliveries.of(tmp_path / "a.wav").uncertain == ["slow"]
    assert (
        await send(
            Deliveries.of(tmp_path / "a.wav"), 0, places, lambda sink, error: None, again=True
        )
        == []
    )
    assert [place.got for place in places] == [["text"], ["text", "text"], ["text"]]
    assert Deliveries.of(tmp_path / "a.wav").delivered


def test_files_without_their_sound_go_once_nobody_can_be_writing_them(tmp_path: Path) -> None:
    spool = RecordingStore(tmp_path)
    old, young = (tmp_path / f"20260101-000000-{name}.deliveries" for name in ("aaaa", "bbbb"))
    for file in (old, young, old.with_suffix(".json"), old.with_suffix(".new")):
        file.write_bytes(b"x")
        if file.stem == old.stem:
            os.utime(file, (time.time() - 120,) * 2)
    spool.prune()
    assert list(tmp_path.iterdir()) == [young]


# -- other settings than before
# ---------------------------------------------------------------------------------------


def test_a_retry_goes_to_the_sinks_in_force_and_names_one_that_is_gone(tmp_path: Path) -> None:
    one = Rehearsal(tmp_path / "run", Kill("take", "aB", "", 0))
    (one.folder / "b.refuses").touch()
    try:
        kept(RecordingStore(one.one.takes), TWICE)
        one.up()
        code, errors = one.retry("--deliver")
        assert code == 75
        assert "command:sh#2 ended with exit code 1" in errors
        one.daemons[-1].end()
        one.words[1] = one.words[1][:-1] + "c"
        one.names = ["a", "b", "c"]
        one.up()
        code, errors = one.retry("--deliver")
        assert code == 0
        assert (
            "the settings do not name command:sh as it was then, so it may lack the text of recording 2026"
            in errors
        )
        assert {name: len(texts) for name, texts in one.got().items()} == {"a": 1, "b": 0, "c": 1}
        assert os.listdir(one.one.takes) == []
    finally:
        one.end()


def test_what_is_kept_and_was_delivered_is_sent_once_more_only_with_again(tmp_path: Path) -> None:
    one = Rehearsal(tmp_path / "run", Kill("take", "a", "", 0))
    try:
        kept(RecordingStore(one.one.takes), TWICE)
        one.up(ASRD_KEEP_AUDIO="always")
        assert one.retry("--all", "--deliver")[0] == 0
        assert sorted(os.listdir(one.one.takes)) == [
            "20260101-000000-aaaa.json",
            "20260101-000000-aaaa.wav",
        ]
        code, errors = one.retry("2026", "--deliver")
        assert (code, len(one.got()["a"])) == (2, 1)
        assert "recording 20260101-000000-aaaa was delivered" in errors
        assert (
            one.daemons[-1].verb("retry", "2026").communicate(timeout=30)[0].strip()
            == one.got()["a"][0].strip()
        )
        assert one.retry("2026", "--again")[0] == 0
        assert len(one.got()["a"]) == 2
    finally:
        one.end()


def test_the_list_of_recordings_names_who_may_have_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", os.fspath(tmp_path))
    note = kept(RecordingStore(tmp_path / "asrd" / "takes"), TWICE)
    record = Deliveries(tmp_path / "asrd" / "takes" / f"{note.id}.deliveries")
    record.aim(record.add("text", whole="text"), ["stdout", "command:notes --token secret"])
    record.outcome(0, "stdout", "accepted")
    record.attempt(0, "command:notes --token secret")
    assert main.main(["takes"]) == 0
    listed = capsys.readouterr().out
    assert listed.endswith("; may have been delivered to command:notes\n")


NAMES = {
    ("type",): ["type"],
    ("command:curl a", "command:curl b"): ["command:curl#1", "command:curl#2"],
    ("command:curl a", "type", "command:wl-copy", "command:curl b"):
        ["command:curl#1", "type", "command:wl-copy", "command:curl#2"],
    ("command:TOKEN=x curl a", "command:curl b"): ["command:curl#1", "command:curl#2"],
    ("command:curl a",): ["command:curl"],
    ("command:a", "command:b"): ["command:a", "command:b"],
    ("stdout", "clipboard"): ["stdout", "clipboard"],
    ("command:sh x", "command:sh y", "command:sh z"): ["command:sh#1", "command:sh#2", "command:sh#3"],
}  # fmt: skip
"""Sinks of the settings -> their names."""


def made_up_sinks(seed: int = 17) -> list[tuple[str, ...]]:
    """Return lists of sinks with commands of few programs; seeded."""
    draw = random.Random(seed)
    return [
        tuple(dict.fromkeys(
            draw.choice(["type", "stdout", f"command:{draw.choice(['curl', 'sh', 'tee'])} secret{draw.randrange(9)}"])
            for _ in range(draw.randint(1, 7))
        ))
        for _ in range(30)
    ]  # fmt: skip


@pytest.mark.parametrize("keys", [*NAMES, *made_up_sinks()], ids=str)
def test_no_two_sinks_have_one_name(keys: tuple[str, ...]) -> None:
    made = desktop_sinks.sinks(Settings(sinks=keys))
    names = [one.name for one in made]
    assert names == list(sink_names.sink_names(keys).values())
    assert len(set(names)) == len(keys)
    assert names == NAMES.get(keys, names)
    assert not any("secret" in name for name in names)
    for key, name in zip(keys, names, strict=True):
        assert sink_names.shown([key], keys) == name


def test_two_commands_of_one_program_are_told_apart_wherever_they_are_named(tmp_path: Path) -> None:
    first, second = "command:false one", "command:false two"
    spool = RecordingStore(tmp_path / "takes")
    take = spool.begin()
    take.append(bytes(4 * 16_000))
    record = Deliveries(take.path.with_suffix(deliveries.SUFFIX))
    both = desktop_sinks.sinks(Settings(sinks=(first, second)))
    told: list[str] = []
    asyncio.run(
        deliveries.send(
            record, record.add("x", whole="x"), both, lambda sink, error: told.append(sink.name)
        )
    )
    assert told == ["command:false#1", "command:false#2"]
    record.attempt(0, second)
    spool.keep_for_retry(take, "no")
    assert spool.all()[0].uncertain == ["command:false#2"]
    old = Deliveries.of(take.path)
    assert (old.fate(0, first), old.fate(0, second)) == ("refused", "attempted"), (
        "the file names whole settings"
    )
