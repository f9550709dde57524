"""Crowds and strangers at the door of the real daemon, and what a hostile model's words become on
every way out."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asrd.text.characters import without_controls
from tests.daemon.test_daemon import ROOT, Running, Start
from tests.daemon.test_daemon import daemon as daemon  # the fixture
from tests.text.test_characters import TABLE, members

STATUS = b'{"verb": "status"}\n'
TOGGLE = b'{"verb": "toggle"}\n'
FOLLOW = b'{"verb": "status", "follow": true}\n'
SECONDS = 20.0
"""In which a crowd must be answered on a busy machine."""


@contextlib.contextmanager
def room(count: int) -> Iterator[None]:
    """Have descriptors for a crowd; skip where the machine gives none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count + 200:
        pytest.skip(f"{hard} descriptors are not enough for {count} clients")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 200), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def crowd(path: Path, count: int, data: bytes) -> Iterator[list[socket.socket]]:
    """Connect many clients, each of which has sent `data`."""
    with room(count), contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(os.fspath(path))
            client.sendall(data)
            clients.append(client)
        yield clients


def first_answers(clients: list[socket.socket]) -> list[dict[str, Any] | None]:
    """Return the first answer of each client; None where it was closed without one, or had none in
    time."""
    got = dict.fromkeys(clients, b"")
    deadline = time.monotonic() + SECONDS
    with selectors.DefaultSelector() as waiting:
        for client in clients:
            waiting.register(client, selectors.EVENT_READ)
        while waiting.get_map() and time.monotonic() < deadline:
            for key, _ in waiting.select(1.0):
                client = key.fileobj
                assert isinstance(client, socket.socket)
                part = client.recv(1 << 16)
                got[client] += part
                if not part or b"\n" in got[client]:
                    waiting.unregister(client)
    return [
        json.loads(data.partition(b"\n")[0]) if b"\n" in data else None for data in got.values()
    ]


def descriptors(one: Running) -> int:
    assert one.process is not None
    return len(os.listdir(f"/proc/{one.process.pid}/fd"))


def resident(one: Running) -> int:
    """Return the bytes of memory that a daemon holds."""
    assert one.process is not None
    return (
        int(Path(f"/proc/{one.process.pid}/statm").read_text().split()[1]) * resource.getpagesize()
    )


def test_a_thousand_clients_at_once_are_answered_and_nothing_is_left_of_them(daemon: Start) -> None:
    one = daemon()
    one.settled()
    before = descriptors(one)
    held = []
    for _ in range(3):
        with crowd(one.socket, 1000, STATUS) as clients:
            found = first_answers(clients)
            assert [answer for answer in found if answer is None or not answer["ok"]] == []
        one.until(lambda: descriptors(one) <= before)
        held.append(resident(one))
    assert held[2] - held[0] < 4 << 20
    assert one.end() == 0


def test_a_key_is_obeyed_beside_a_hundred_followers_and_a_thousand_silent_clients(
    daemon: Start,
) -> None:
    one = daemon()
    one.settled()
    with crowd(one.socket, 100, FOLLOW) as followers, crowd(one.socket, 900, b'{"verb'):
        assert all(
            answer is not None and answer["state"] == "IDLE" for answer in first_answers(followers)
        )
        busy = one.ask(verb="status", follow=True)
        assert (busy["ok"], busy["code"], busy["busy"]) == (False, 75, True)
        assert one.ask(verb="toggle")["message"] == "recording"
        one.until(lambda: one.ask(verb="status")["recording"]["seconds"] > 0.5)
        one.ask(verb="stop")
    assert one.settled()
    assert one.ask(verb="status", follow=True)["ok"]


def test_a_crowd_of_keys_gets_an_answer_each_and_begins_one_recording(daemon: Start) -> None:
    one = daemon()
    one.settled()
    with crowd(one.socket, 300, TOGGLE) as clients:
        said = [answer["message"] if answer else "" for answer in first_answers(clients)]
    assert len(list(filter(None, said))) == 300
    assert said.count("recording") == 1


HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": sys.argv[2]}
os.execv(sys.executable, [sys.executable, "-m", "tests.fakes.deaf_daemon", "run"])
"""


def handed_over(one: Running, line: socket.socket, name: str) -> None:
    """Start a daemon as systemd does for a socket that has clients already."""
    words = [sys.executable, "-c", HAND_OVER, str(line.fileno()), name]
    with one.out.open("ab") as out, one.log.open("ab") as log:
        one.process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=one.environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=log,
            pass_fds=[line.fileno()],
        )


@pytest.mark.parametrize(("backlog", "name"), [(128, "control"), (1024, "asrd.socket")])
def test_two_hundred_toggles_at_a_stopped_service_get_an_answer_each(
    daemon: Start, backlog: int, name: str
) -> None:
    """Where the unit is an older one, with the shorter queue, the rest of the clients waits in
    `connect`.

    A unit that a user wrote need not give the socket a name, and then it has the unit's.
    """
    one = daemon(up=False)
    count = min(200, backlog + 1)
    with socket.socket(socket.AF_UNIX) as line:
        line.bind(os.fspath(one.socket))
        line.listen(backlog)
        with crowd(one.socket, count, TOGGLE) as clients:
            handed_over(one, line, name)
            said = [answer["message"] if answer else "" for answer in first_answers(clients)]
        assert len(list(filter(None, said))) == count
        assert said.count("recording") == 1
        assert one.ask(verb="cancel")["ok"]
        assert one.end() == 0
        with socket.socket(socket.AF_UNIX) as next_key:  # the socket is systemd's and listens on
            next_key.connect(os.fspath(one.socket))


def test_who_asks_while_the_daemon_ends_is_told(daemon: Start) -> None:
    """Clients that come after the server closed and before the socket does are answered, too."""
    one = daemon()
    one.settled()
    one.speak()
    with crowd(one.socket, 50, b"") as clients:
        assert one.process is not None
        one.process.terminate()
        late = socket.socket(socket.AF_UNIX)
        with late:
            late.connect(os.fspath(one.socket))
            found = first_answers(clients)
    assert {answer["error"] if answer else None for answer in found} == {"asrd is ending"}
    assert one.process.wait(20) == 0


# -- a hostile model
# --------------------------------------------------------------------------------------------------


def hostile_words() -> list[tuple[str, str]]:
    """Return (what a model writes, what is left of it): the table and seeded members; JSON has no
    lone surrogates."""
    found = [*TABLE, *((text, expected) for _, text, expected in members(6))]
    pairs = [
        (text, expected)
        for text, expected in found
        if not any("\ud800" <= char <= "\udfff" for char in text)
    ]
    random.Random(14).shuffle(pairs)
    assert len(pairs) > 80
    return pairs


def test_a_models_words_are_clean_on_every_way_out(daemon: Start, tmp_path: Path) -> None:
    pairs = hostile_words()
    (tmp_path / "words").write_text(json.dumps([text for text, _ in pairs]))
    expected = " ".join(filter(None, (left for _, left in pairs)))
    one = daemon(
        ASRD_MODEL="*=hostile",
        FAKE_WORKER_WORDS=os.fspath(tmp_path / "words"),
        ASRD_SINKS=f"stdout,command:cat >> {tmp_path}/sunk",
        ASRD_LOG_TEXT="true",
    )
    one.until(lambda: one.state == "IDLE")
    follower = one.verb("status", "--follow")
    one.speak()
    one.ask(verb="stop")
    text = one.settled()
    assert text.strip() == expected
    assert (tmp_path / "sunk").read_text().strip() == expected
    last, errors = one.verb("last").communicate(timeout=20)
    assert (last, errors) == (expected + "\n", "")
    assert one.ask(verb="last")["text"] == expected
    clip = ROOT / "asrd/data/eval/0129.flac"
    out, errors = one.verb("transcribe", "--json", str(clip)).communicate(timeout=30)
    told = json.loads(out)
    assert told["text"].startswith(expected), errors
    for word in told["words"]:
        assert 0 <= word["start"] <= word["stop"] <= told["duration"] + 0.001
        assert word["confidence"] in (None, 1.0)
    spans = [(word["start"], word["stop"]) for word in told["words"]]
    assert spans == sorted(spans)
    follower.terminate()
    seen = follower.communicate(timeout=20)[0]
    for shown in (text, last, out, seen, one.log.read_text()):
        assert not [
            char
            for char in set(shown) - {"\n", "\t"}
            if without_controls(f"x{char}x") != f"x{char}x"
        ]
