"""The torture: its instruments by hand, each blind one named, planted faults in a real run, and a
quick run of all."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import ROOT
from tools.torturing import __main__ as torture
from tools.torturing import delivery, findings, home, microphone, page, planted
from tools.torturing.findings import Round, Words
from tools.torturing.house import FAST, Followed, House
from tools.torturing.kills import Kills
from tools.torturing.suspend import Logind

WORDS = (
    "remind",
    "me",
    "to",
    "open",
    "a",
    "teacher",
    "before",
    "i",
    "start",
    "my",
    "meeting",
    "we",
    "went",
    "from",
)


def run(*words: str | Path, limit: float = 900.0) -> tuple[int, str, dict[str, Any]]:
    """Run the program; return its exit code, what it said, and its JSON."""
    file = Path(str(words[-1]))
    command = [sys.executable, "-m", "tools.torturing", *map(str, words)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=limit
    )
    return (
        done.returncode,
        done.stdout + done.stderr,
        json.loads(file.read_text()) if file.exists() else {},
    )


# -- instruments
# ------------------------------------------------------------------------------------------------------


def spoilt(draw: random.Random) -> tuple[str, str, Words]:
    """Return what was said, what a sink accepted of it, and how the two differ."""
    said = draw.choices(WORDS, k=draw.randint(4, 30))
    lost = draw.sample(range(len(said)), draw.randint(0, 3))
    doubled = draw.sample([n for n in range(len(said)) if n not in lost], draw.choice((0, 0, 1, 2)))
    had = [word for place, word in enumerate(said) if place not in lost]
    had += [said[place] for place in doubled if said[place] not in {said[gone] for gone in lost}]
    repeated = len(had) - (len(said) - len(lost))
    draw.shuffle(had)
    return " ".join(said), " ".join(had), Words(len(lost), repeated)


@pytest.mark.parametrize("seed", range(25))
def test_every_word_lost_or_doubled_is_counted(seed: int) -> None:
    said, had, wanted = spoilt(random.Random(seed))
    assert findings.compare(said, had) == wanted


AGAIN = (
    (
        "call helen at noon",
        "",
        "call helen at noon",
        True,
        Words(0, 0),
    ),  # it had not been delivered
    ("call helen at noon", "call helen at noon", "call helen at noon", True, Words(0, 0)),  # it had
    (
        "call helen at noon",
        "call helen at noon",
        "call helen at noon",
        False,
        Words(0, 4),
    ),  # nobody had said so
    ("call helen at noon", "call helen", "at noon", False, Words(0, 0)),  # what was missing
    (
        "call helen at noon",
        "call helen",
        "",
        True,
        Words(2, 0),
    ),  # sent again, and yet it did not come
    (
        "call helen at noon",
        "call helen at noon call",
        "",
        True,
        Words(0, 1),
    ),  # before anybody asked for it
)


@pytest.mark.parametrize(("said", "had", "more", "declared", "wanted"), AGAIN)
def test_what_is_sent_again_is_doubled_only_where_nobody_had_said_that_it_may_be(
    said: str, had: str, more: str, declared: bool, wanted: Words
) -> None:
    assert findings.compare(said, had, more, declared) == wanted


def test_percentiles_are_values_that_occurred() -> None:
    values = [n / 1000 for n in range(1, 201)]
    assert findings.percentile(values, 99) == 0.198
    assert findings.percentile([3.0], 99) == 3.0
    assert findings.spread(values) == (0.1005, 0.198, 0.2)
    assert findings.spread([]) is None


@pytest.mark.parametrize("seed", range(20))
def test_the_end_of_a_recording_is_found_in_what_the_microphone_gave(seed: int) -> None:
    dice, draw = np.random.default_rng(seed), random.Random(seed)
    given = dice.normal(0, 60 if seed % 2 else 3000, 16_000 * draw.randint(2, 9)).astype(np.int16)
    end = draw.randint(8_000, len(given))
    kept = given[draw.randint(0, end - 6_000) : end].astype(np.float32) / 32768 + dice.normal(
        0, 1e-4, 1
    )
    place, quality = microphone.place_of_the_end(given, kept.astype(np.float32))
    assert (place, quality > microphone.QUALITY) == (end, True)
    stranger = dice.normal(0, 60, 8_000).astype(np.float32)
    assert microphone.place_of_the_end(given, stranger)[1] < 0.5


def test_sound_that_a_busy_server_leaves_out_does_not_count_as_lost() -> None:
    reference, now = microphone.Reference(), 100.0
    for number in range(3000):
        now += 0.01 if number % 100 else 0.02  # a hundredth of the sound is left out
        reference.take(b"\0" * microphone.CHUNK_BYTES, now + (0.004 if number % 7 else 0.0))
    first, sound = reference.sound()
    given = (first + len(sound)) / 16_000
    assert given == pytest.approx(30.0)
    assert reference.given(now) - given == pytest.approx(0.0, abs=0.06)


# -- blind instruments
# ------------------------------------------------------------------------------------------------


def reported(fault: str, number: int = 1) -> Round:
    """Return a round in which a fault was planted, as instruments that see report it."""
    one = Round(
        number,
        "recording",
        "daemon",
        "20260101-120000-0000",
        1.0,
        2.0,
        1.98,
        True,
        "call helen at noon",
    )
    one.delivered = {"one": one.expected}
    if fault == "delete":
        one.delivered, one.kept = {"one": ""}, None
    elif fault == "double":
        one.delivered = {"one": f"{one.expected} {one.expected}"}
    elif fault == "leave":
        one.left = ["20260101-120000-0000.planted"]
    elif fault == "orphan":
        one.orphans = 1
    elif fault == "lock":
        one.locks = ["20260101-120000-0000.wav"]
    elif fault == "cut":
        one.kept = 0.97
    elif fault == "busy":
        one.busy = "LOADING, import"
    elif fault == "alter":
        one.remark = "the recording is not what was fed"
    return one


def all_reported() -> dict[str, Round]:
    return {fault: reported(fault) for fault in planted.FAULTS}


def test_instruments_that_report_what_was_planted_are_not_blind() -> None:
    assert planted.blind(all_reported(), [reported("none"), Round(9, "the end", "none")]) == []


BLIND = [(fault, seed) for fault in planted.FAULTS for seed in range(4)]


@pytest.mark.parametrize(("fault", "seed"), BLIND)
def test_an_instrument_that_does_not_see_is_named(fault: str, seed: int) -> None:
    """A fault whose round looks like one without, or like one with two, or that another instrument
    reports as well."""
    rounds, others = all_reported(), [reported("none")]
    name = planted.INSTRUMENTS[fault].name
    if seed == 0:
        rounds[fault] = reported("none")
    elif seed == 1:
        others.append(reported(fault))
    elif seed == 2:
        del rounds[fault]
        name = f"{fault} could not be planted"
    else:
        rounds["leave" if fault != "leave" else "lock"] = reported(fault)
    found = planted.blind(rounds, others)
    assert any(name in sentence for sentence in found), found


def test_a_blind_instrument_gives_no_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prove(folder: Path, seed: int) -> None:
        raise torture.BlindError("orphans: 0 instead of 1 with fault orphan")

    monkeypatch.setattr(torture, "prove", prove)
    assert torture.main(["kills", "--quick"]) == 2
    said = capsys.readouterr().out
    assert "instruments are blind: orphans: 0 instead of 1" in said
    assert "moment" not in said


def test_the_table_has_a_row_a_moment_and_one_for_all() -> None:
    rounds = [reported("delete", 1), reported("cut", 2), Round(3, "loading", "worker")]
    part = page.Part("kills", findings.rows(rounds), list(planted.FAULTS), 12.0, rounds)
    lines = page.table(part).splitlines()
    assert lines[3].split()[:4] == ["recording", "2", "8", "4"]
    assert lines[-1].split()[:4] == ["all", "3", "8", "4"]
    assert lines[-1].endswith("1.030 / 1.030 / 1.030 of 1")
    assert all(len(line) <= 120 for line in lines)


# -- the real thing
# ---------------------------------------------------------------------------------------------------


def test_each_fault_planted_in_a_run_ends_it_with_3(tmp_path: Path) -> None:
    plants = [word for fault in planted.FAULTS for word in ("--plant", fault)]
    code, said, found = run(
        *("kills", "--quick", "--moments", "recording", "--jobs", "1", "--seed", "3"),
        *plants,
        "--json",
        tmp_path / "x",
    )
    assert code == 3, said
    row = next(row for row in found["parts"][0]["rows"] if row["moment"] == "recording")
    assert min(row["lost"], row["doubled"]) > 0, said
    assert (row["left"], row["orphans"], row["locks"], row["remarks"]) == (1, 1, 1, 2), said
    assert max(row["sound_lost"]) >= planted.CUT_SECONDS, said


def test_a_quick_run_finds_nothing(tmp_path: Path) -> None:
    code, said, found = run("kills", "delivery", "--quick", "--json", tmp_path / "quick.json")
    assert code == 0, said
    kills, deliveries = found["parts"]
    assert (kills["planted"], deliveries["planted"]) == (
        list(planted.FAULTS),
        list(planted.DELIVERIES),
    )
    assert {row["moment"] for row in kills["rows"]} >= set(torture.QUICK), said
    assert {row["moment"] for row in deliveries["rows"]} >= set(delivery.MOMENTS), said
    assert all((found["commit"], found["machine"]["cpu"], found["versions"]["torch"]))


def test_a_run_that_is_ended_leaves_no_process_and_no_folder() -> None:
    folder = tempfile.mkdtemp(prefix="asrd-", dir="/tmp")
    command = [sys.executable, "-m", "tools.torturing", "kills", "--quick"]
    one = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"TMPDIR": folder}, stderr=subprocess.DEVNULL
    )
    try:
        limit = time.monotonic() + 120
        while len(home.marked(f"{one.pid}-")) < 2:
            assert time.monotonic() < limit
            time.sleep(0.05)
    finally:
        one.send_signal(signal.SIGTERM)
    assert one.wait(60) == 130
    assert home.marked(f"{one.pid}-") == []
    os.rmdir(folder)  # which it refuses where anything is in it


@pytest.mark.parametrize("seed", range(24))
def test_a_line_of_a_log_that_is_being_written_is_not_there_yet(seed: int, tmp_path: Path) -> None:
    """Its part before a page's end is seen earlier than the rest, wherever in the line that is."""
    draw = random.Random(f"torn {seed}")
    one = home.Home(tmp_path / "a home", "none")
    entries = [
        {
            "at": draw.uniform(1e9, 2e9),
            "event": "accepted",
            "text": " ".join(draw.choices(WORDS, k=5)),
        }
        for _ in range(draw.randint(1, 40))
    ]
    lines = [json.dumps(entry) + "\n" for entry in entries]
    cut = draw.randint(0, len(lines[-1]) - 1)
    (one.sinks / "one.log").write_text("".join([*lines[:-1], lines[-1][:cut]]))
    assert one.entries("one") == entries[:-1]
    (one.sinks / "one.log").write_text("".join(lines))
    assert one.entries("one", len(entries) - 1) == entries[-1:]


@contextlib.contextmanager
def playing(folder: Path) -> Iterator[tuple[House, Kills]]:
    """Give a house, and what plays rounds of `kills` in it."""
    with home.home(folder, "broken") as one:
        house = House(one, random.Random(5))
        with Logind(one.folder, one.environment_of_server("logind")) as logind:
            player = Kills(house, logind)
            yield house, player


def test_a_round_that_breaks_costs_only_itself(tmp_path: Path) -> None:
    """Its recording is judged; no later round meets it, and each finds logind and no process."""
    with playing(tmp_path) as (house, player):

        def breaking(one: Followed, target: str) -> None:
            daemon = house.daemon(loaded=False)
            feeder = daemon.feed(player._speech(), FAST)
            feeder.wait()
            daemon.until_recorded(len(feeder.sound) / 16_000)
            raise ValueError("Expecting ',' delimiter: line 1 column 15 (char 14)")

        player.moments["recording"] = breaking
        step = torture.Player.__new__(torture.Player)
        step.part = "kills"
        step._round(house, player, "recording", "daemon")
        assert house.home.processes() == []
        assert house.home.kept() == []
        step._round(house, player, "suspending", "both")
        house.last()
    broken, later, end = house.rounds
    assert broken.remark.startswith("Expecting ',' delimiter")
    assert broken.expected
    assert broken.delivered == {"one": broken.expected}
    assert [findings.judge(one) for one in house.rounds] == [Words(0, 0)] * 3
    assert (later.remark, end.remark, end.left) == ("", "", [])


# -- what it found
# ----------------------------------------------------------------------------------------------------


def test_pactl_does_not_outlive_a_daemon_that_is_killed(tmp_path: Path) -> None:
    """Until the server has something to say, pactl has no reason to notice that nobody reads it."""
    program = tmp_path / "pactl"
    program.write_text(
        f"#!/bin/sh\necho $$ > {tmp_path}/pid.new\nmv {tmp_path}/pid.new {tmp_path}/pid\nexec sleep 600\n"
    )
    program.chmod(0o755)
    code = "import asyncio; from asrd.audio import sound_server; asyncio.run(sound_server.follow(lambda: None))"
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    daemon = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=ROOT)
    limit = time.monotonic() + 30
    while not (tmp_path / "pid").exists():
        assert time.monotonic() < limit
        time.sleep(0.01)
    pactl = int((tmp_path / "pid").read_text())
    daemon.send_signal(signal.SIGKILL)
    daemon.wait()
    while (
        Path(f"/proc/{pactl}").exists()
        and Path(f"/proc/{pactl}/stat").read_text().split()[2] != "Z"
    ):
        assert time.monotonic() < limit, "pactl lives on"
        time.sleep(0.01)
