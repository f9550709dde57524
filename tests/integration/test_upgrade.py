"""What an existing user has, made by the code of an older commit, is used by today's code as it is.

The old code records, fails to deliver, tunes and writes its journal once for this file. Settings,
verbs, flags and events are asked of it, not remembered here. What is renamed goes into RENAMED_*.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jiwer
import pytest

from asrd import journal
from asrd.cli import main, status_page
from asrd.config.settings import Settings
from asrd.daemon import older_names
from asrd.engine import baseline, tuned
from asrd.errors import AsrdError
from asrd.precision import gpus
from tests.integration.old_release import unit_words
from tests.integration.old_settings import SWITCHES, cases, meaning, written
from tests.integration.old_world import SPOKEN, SPOKEN_SECONDS, World, running

RENAMED_SETTINGS: dict[str, str] = {}
"""Setting of the old release -> its name today."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("an old world"))
    yield made
    made.journal.close()


@pytest.fixture
def state(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Have this process read the old state folder, on a machine without a card."""
    monkeypatch.setenv("XDG_STATE_HOME", world.release.environment["XDG_STATE_HOME"])
    monkeypatch.setattr(gpus, "gpus", list)
    return world


# -- state ----------------------------------------------------------------------------------


def test_kept_recordings_are_listed_with_why_they_wait(world: World) -> None:
    listed = [json.loads(line) for line in world.release.asrd("takes", "--json").splitlines()]
    assert [note["delivered"] for note in listed] == [True, False, False]
    assert [note["id"] for note in listed[1:]] == world.kept
    assert [note["reason"] for note in listed[1:]] == [
        "command:false: command:false ended with exit code 1",
        "the daemon ended before it became text",
    ]  # fmt: skip
    assert "samples sum" in listed[1]["text"], "what the old worker heard"
    assert all(note["seconds"] >= SPOKEN_SECONDS for note in listed[1:])


def test_a_verdict_and_its_baseline_hold(state: World) -> None:
    for model in (os.fspath(state.bench.model), "demo-ctc"):
        record, stale = tuned.find(Settings(model=model), None)
        assert record is not None
        assert (record.chosen, stale) == ("bfloat16", "")
        measured = baseline.find(model, "cpu")
        assert measured is not None
        assert {name: one.process for name, one in measured.strategies.items()} == {
            "fp32": 900 << 20, "bfloat16": 450 << 20,
        }  # fmt: skip


def test_a_daemon_goes_by_them_and_is_unloaded_as_before(world: World) -> None:
    speech = os.fspath(world.bench.folder / "texts.json")
    model = os.fspath(world.bench.model)
    more = {
        "ASRD_MODEL": model,
        "FAKE_WORKER_TEXTS": speech,
        "ASRD_IDLE": "immediately",
        "ASRD_KEEP_AUDIO": "never",
    }
    one = world.daemon(old=False, **more)
    known = len(world.journal.read("take"))
    with running(one):
        one.speak()
        one.ask(verb="stop")
        one.until(lambda: one.state == "UNLOADED")
        world.look(one)
        one.until(lambda: len(world.journal.read("take")) > known)
    entry = world.journal.read("take")[-1]
    assert (entry["ASRD_STRATEGY"], entry["ASRD_MODEL"]) == ("bfloat16", model)
    assert entry["ASRD_BASELINE_PROCESS_DELTA_BYTES"] == str(-450 << 20)
    now, then = world.status.pop(), world.status[-1]
    assert set(then) <= set(now), "an older key is sent beside today's"
    assert now["schema"] == 1
    assert (now["state"], now["older_state"], then["state"]) == ("UNLOADED", "PARKED", "PARKED")
    same_bar(world.bars.pop(), world.bars[-1])


def classes(bar: dict[str, Any]) -> set[str]:
    """Return the CSS classes of a waybar module: one word, or a list."""
    return {bar["class"]} if isinstance(bar["class"], str) else set(bar["class"])


def same_bar(now: dict[str, Any], before: dict[str, Any]) -> None:
    """Hold a bar of today to the mark and the icon of the old one, and to its classes."""
    assert (now["text"], now["alt"]) == (before["text"], before["alt"])
    assert classes(before) <= classes(now)


# -- the unit ----------------------------------------------------------------------------------


ACTIVATED = 'exec 3<&0 0</dev/null; export LISTEN_PID=$$; exec "$@"'
"""Starts a program with a socket that is bound, as systemd does: it comes as standard input."""


def configure(world: World) -> None:
    """Write the configuration of a user who has chosen a model and lets auto decide."""
    lines = [
        f"model = '{world.bench.model}'",
        'sinks = ["stdout"]',
        "demote_slower = 0",
        "demote_memory = 0",
    ]
    file = world.release.folder / ".config/asrd/config.toml"
    file.parent.mkdir(parents=True)
    file.write_text("\n".join(lines))


def start(world: World, line: socket.socket, manager: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start what the old service unit starts, on the socket that the old socket unit names."""
    own = dict(word.split("=", 1) for word in unit_words(world.unit, "Environment"))
    own["NUMBA_CACHE_DIR"] = own["NUMBA_CACHE_DIR"].replace(
        "%C", os.fspath(world.release.folder / "cache")
    )
    [name] = unit_words(world.socket_unit, "FileDescriptorName")
    own |= {"NOTIFY_SOCKET": os.fspath(manager), "LISTEN_FDS": "1", "LISTEN_FDNAMES": name}
    with log.open("wb") as out:
        return subprocess.Popen(
            ["sh", "-c", ACTIVATED, "sh", *unit_words(world.unit, "ExecStart")],
            cwd="/", env=world.release.environment | own, stdin=line, stdout=out, stderr=out,
        )  # fmt: skip


@pytest.fixture(scope="module")
def service(world: World) -> Iterator[World]:
    """Today's daemon, started by the old units, with a real model."""
    configure(world)
    folder = world.release.folder
    [address] = unit_words(world.socket_unit, "ListenStream")
    path, log = Path(address.replace("%t", os.fspath(folder))), folder / "service.log"
    path.unlink(missing_ok=True)
    with (
        socket.socket(socket.AF_UNIX) as line,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        line.bind(os.fspath(path))
        line.listen()
        manager.bind(os.fspath(folder / "notify"))
        manager.settimeout(60)
        daemon = start(world, line, folder / "notify", log)
        try:
            assert manager.recv(4096).startswith(b"READY=1"), log.read_text()
            yield world
        finally:
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(60) == 0, log.read_text()


def test_the_old_unit_starts_todays_program_on_what_was_tuned(service: World) -> None:
    limit = time.monotonic() + 240
    while not (told := json.loads(service.release.asrd("status", "--json")))["strategy"]:
        assert time.monotonic() < limit, (service.release.folder / "service.log").read_text()
        time.sleep(0.5)
    assert (told["state"], told["schema"], told["requested"]) == ("IDLE", 1, "auto")
    assert told["strategy"] == "bfloat16"
    assert "bfloat16" in told["effective"].values()
    assert told["model"] == os.fspath(service.bench.model)


def test_what_was_kept_becomes_its_words(service: World) -> None:
    told = service.release.asrd("retry", "--all", "--json").splitlines()
    texts = {reply["take"]: reply["text"] for reply in map(json.loads, told) if "text" in reply}
    assert list(texts) == service.kept
    for text in texts.values():
        assert jiwer.wer(SPOKEN, text) <= 0.25, text
    left = [json.loads(line) for line in service.release.asrd("takes", "--json").splitlines()]
    assert [note["delivered"] for note in left] == [True]


# -- settings ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def settings(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[dict[str, Any], ...]]:
    """Configurations with what they mean to the old code and to today's."""
    old = world.release.ask("fields")
    assert set(written(old)) == {*old["fields"], *old["legacy"]}, (
        "every setting of the old release is asked for"
    )
    asked = cases(old, tmp_path_factory.mktemp("configurations"))
    before = world.release.ask("meaning", asked)
    return list(zip(asked, before, map(meaning, asked), strict=True))


def shown(case: dict[str, Any]) -> str:
    return f"{Path(case['file']).read_text()} {case['environment']}"


def test_every_spelling_of_a_setting_that_was_accepted_means_the_same(
    settings: list[tuple[dict[str, Any], ...]],
) -> None:
    accepted = [one for one in settings if "refused" not in one[1]]
    assert len(accepted) > 500
    for case, before, now in accepted:
        assert "refused" not in now, f"{shown(case)}: {now['refused']}"
        expected = {
            RENAMED_SETTINGS.get(key, key): value for key, value in before["settings"].items()
        }
        del expected[RENAMED_SETTINGS.get("idle", "idle")]  # a text; what it means is compared
        assert {key: now["settings"].get(key) for key in expected} == expected, shown(case)
        for derived in ("idle_seconds", "wer_bound", "budget", "alert", "phrases", "faults"):
            assert now[derived] == before[derived], shown(case)


def test_an_older_spelling_is_told_in_the_log(settings: list[tuple[dict[str, Any], ...]]) -> None:
    older = [
        one for one in settings if "refused" not in one[1] and "from " in "".join(one[1]["notes"])
    ]
    assert len(older) > 20
    for case, _, now in older:
        assert any("older spelling" in note for note in now["notes"]), shown(case)


def test_the_verb_config_shows_a_file_with_every_setting_as_before(world: World) -> None:
    old = world.release.ask("fields")
    once = {key: ways[0][-1] for key, ways in written(old).items() if key in old["fields"]}
    once |= dict.fromkeys(SWITCHES, "true") | {"strategy": '"selective"', "faults": '"oom:1"'}
    once |= {
        "spoken": '{"shout" = "{caps}"}',
        "sinks": '["stdout", "none"]',
        "vocabulary": '["NeMo"]',
    }
    file = world.release.folder / "every.toml"
    file.write_text("\n".join(f"{key} = {value}" for key, value in once.items()))
    before = json.loads(world.release.run("-P", "-m", "asrd", "config", "--json", "--config", file))
    now = json.loads(world.release.asrd("config", "--json", "--config", file))
    assert {key: now[RENAMED_SETTINGS.get(key, key)] for key in before} == before
    assert all(
        one["from"] == os.fspath(file)
        for key, one in before.items()
        if key not in ("device", "notify")
    )


# -- verbs ----------------------------------------------------------------------------------


VALUES = {"int": "3", "float": "2.5", "Path": "own.file"}
"""Type of a flag -> a value."""

WORDS = {
    "S": "stdout",
    "NAME": "usb",
    "TIME": "yesterday",
    "a,b": "fp32,bfloat16",
    "KIND:BUFFER,...": "oom:3",
}
"""How help calls a value -> a value."""


def value_of(one: dict[str, Any]) -> list[str]:
    """Return what may follow a flag, or stand for a word."""
    if not one["takes"]:
        return []
    return [
        (one["choices"] or [VALUES.get(one["kind"]) or WORDS.get(one["metavar"] or "", "word")])[0]
    ]


def lines_of(verb: str, shape: list[dict[str, Any]]) -> Iterator[list[str]]:
    """Yield command lines that say each flag once, with the words that the verb must have."""
    needed = [
        word for one in shape if not one["flags"] and one["count"] != "?" for word in value_of(one)
    ]
    yield [verb, *needed]
    yield [verb, *(word for one in shape if not one["flags"] for word in value_of(one))]
    for one in shape:
        for flag in one["flags"]:
            values = one["choices"] or value_of(one)
            for value in values or [None]:
                yield [verb, *needed, flag, *([] if value is None else [value])]
                if value is not None:
                    yield [verb, *needed, f"{flag}={value}"]


def test_every_verb_and_flag_is_still_accepted(world: World) -> None:
    verbs = world.release.ask("verbs")
    lines = [line for verb, shape in verbs.items() for line in lines_of(verb, shape)]
    assert len(lines) > 150
    refused = {}
    for verb, *words in lines:
        try:
            main.parser_for(verb)[0].parse_args(words)
        except (AsrdError, SystemExit) as error:
            refused[" ".join([verb, *words])] = str(error)
    assert refused == {}


# -- what programs read ---------------------------------------------------------------------


def test_a_bar_is_told_the_same_of_every_state(world: World) -> None:
    draw = random.Random(16)
    below = {"wanted": "int8", "kind": "slow", "detail": "slow", "again_in": 600.0}
    replies = [
        world.status[0]
        | {"state": state, "trouble": draw.choice(("", "no worker"))}
        | {"capture": draw.choice(("", "no sound")), "below": draw.choice((None, below))}
        for state in ("LOADING", "IDLE", "LISTENING", "FLUSHING", "PARKED", "STOPPING")
        for _ in range(8)
    ]
    for reply, before in zip(replies, world.release.ask("bars", replies), strict=True):
        same_bar(status_page.waybar(older_names.with_todays(reply)), before)


def test_events_keep_their_names_and_numbers(world: World) -> None:
    before = world.release.ask("events")
    assert len(before) > 20
    assert {name: journal.MESSAGE_IDS.get(name) for name in before} == before
    assert len(set(journal.MESSAGE_IDS.values())) == len(journal.MESSAGE_IDS)


def lacking(now: Any, before: Any, where: str = "") -> list[str]:
    """Return where JSON of today lacks what the old one has, or has another value there."""
    if isinstance(before, dict):
        return [
            path
            for key, value in before.items()
            for path in lacking(
                now.get(key) if isinstance(now, dict) else None, value, f"{where}.{key}"
            )
        ]
    same = now == pytest.approx(before) if isinstance(before, float) else now == before
    return [] if same else [f"{where}: {before} became {now}"]


def test_the_report_counts_old_entries_as_before(world: World) -> None:
    assert world.report["all"]["takes"] >= 5
    assert set(world.report["events"]) > {"starting", "loaded", "kept", "sink-failed"}
    now = json.loads(world.release.asrd("report", "--json", ENTRIES=os.fspath(world.old_entries)))
    assert lacking(now, world.report) == []
