"""Names of an older release on the control socket and on the command line: sent or accepted beside
today's."""

from __future__ import annotations

import random
from typing import Any

import pytest

from asrd.cli import main
from asrd.cli.status_page import line, waybar
from asrd.daemon import older_names
from asrd.daemon.control_server import VERBS, parse
from asrd.errors import UsageError
from tests.cli.test_control import STATUS

OLDER_KEYS = {
    "said": "message",
    "take": "recording",
    "trouble": "error",
    "below": "fallback",
    "otherwise": "precision_note",
}
"""What an older program reads -> today's name."""

DRAW = random.Random(16)
VALUES: list[Any] = ["", "some words", None, {"id": "a", "seconds": 1.0}, ["a"], 0.5]

STATES = ("LOADING", "IDLE", "LISTENING", "FLUSHING", "UNLOADED", "STOPPING")

REPLIES = [
    {key: DRAW.choice(VALUES) for key in DRAW.sample(sorted(OLDER_KEYS.values()), 3)}
    | {"state": state}
    for state in STATES
    for _ in range(6)
]
"""Replies of today: some keys that were renamed, in each state."""


@pytest.mark.parametrize("number", range(len(REPLIES)))
def test_an_older_program_finds_its_keys_and_todays_program_reads_an_older_daemon(
    number: int,
) -> None:
    reply = REPLIES[number]
    sent = older_names.with_older(reply)
    for older, today in OLDER_KEYS.items():
        assert (older in sent) == (today in reply), older
        assert sent.get(older) == reply.get(today)
    assert sent["older_state"] == {"UNLOADED": "PARKED"}.get(reply["state"], reply["state"])
    assert sent["state"] == reply["state"]
    before = {key: value for key, value in sent.items() if key not in reply} | {
        "state": sent["older_state"]
    }
    read = older_names.with_todays(before)
    assert {key: read[key] for key in reply} == reply


def test_no_reply_loses_a_value_that_has_both_meanings() -> None:
    last = {"take": "20260101-000000-aaaa", "recording": False, "state": "IDLE"}
    assert older_names.with_older(last)["take"] == last["take"]
    assert older_names.with_todays(last)["recording"] is False


LINES = [
    (verb.split()[0], older, today, value)
    for verb, older, today, value in [
        ("tune", "--takes", "recordings", None),
        ("tune", "--anew", "rerun", None),
        ("transcribe file.wav", "--alone", "no_daemon", None),
    ]
]


@pytest.mark.parametrize(("verb", "older", "name", "value"), LINES)
def test_an_older_flag_is_accepted_said_and_not_shown(
    verb: str, older: str, name: str, value: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = main.parser_for(verb)[0]
    words = ["file.wav"] if verb == "transcribe" else []
    assert getattr(parser.parse_args([*words, older]), name) is True
    today = f"--{name.replace('_', '-')}"
    assert capsys.readouterr().err == (
        f"asrd: {older} is called {today} now; the older name works for one release\n"
    )
    assert older not in parser.format_help()
    assert getattr(parser.parse_args([*words, today]), name) is True
    assert capsys.readouterr().err == ""
    with pytest.raises(UsageError, match="has no flag"):
        main.parser_for("config")[0].parse_args([older])


def test_the_older_verb_is_accepted_on_both_sides() -> None:
    assert {"takes", "recordings"} <= set(VERBS)
    for verb in ("takes", "recordings"):
        assert parse(b'{"verb": "%s"}' % verb.encode()).verb == verb
        assert main.parser_for(verb)[1] is main.parser_for("recordings")[1]
    assert "takes" not in main.overview()
    assert parse(b'{"verb": "retry", "take": "a"}').take == "a"


@pytest.mark.parametrize("state", STATES)
def test_a_reply_of_an_older_daemon_looks_as_todays(state: str) -> None:
    now = STATUS | {"state": state}
    older = {key: value for key, value in now.items() if key not in OLDER_KEYS.values()}
    older |= {old: now[key] for old, key in OLDER_KEYS.items() if key in now}
    older["state"] = {"UNLOADED": "PARKED"}.get(state, state)
    assert line(older_names.with_todays(older)) == line(now)
    assert waybar(older_names.with_todays(older)) == waybar(now)
