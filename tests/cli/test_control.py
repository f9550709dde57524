"""The control socket from outside: made and found in good and bad places, and asked of daemons good
and bad."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asrd.cli import control, main
from asrd.cli.status_page import line, page, waybar
from asrd.config.settings import Settings
from asrd.daemon import client as daemon_client
from asrd.daemon import control_socket
from asrd.daemon.client import ask
from asrd.daemon.control_socket import forget, listen, path
from asrd.errors import AsrdError, BusyError, ControlError, SocketError
from asrd.precision.memory import Memory
from asrd.recordings.store import RecordingStore
from asrd.text.characters import without_controls
from tests.helpers import ROOT

STATUS: dict[str, Any] = {
    "ok": True, "state": "LISTENING", "model": "demo", "requested": "auto", "strategy": "bfloat16",
    "effective": {"encoder": "bfloat16", "decoder": "float32"}, "device": "cuda:0",
    "streaming": "cache-aware",
    "memory": {"weights": 3 << 20, "allocated": None, "reserved": 0, "process": 900 << 20, "device": None,
               "source": "nvml", "kind": "gpu", "resident": None},
    "loading": "", "error": "", "capture": "", "rejected": [],
    "recording": {"id": "20260101-000000-aaaa", "seconds": 3.21, "level": -18.0, "text": "so far", "partial": "and",
             "behind": 0.4},
    "pending": 0, "waiting": None, "sinks": ["type"], "version": "0.1.0", "pid": 7, "uptime": 12.4,
}  # fmt: skip

UNLOADED: dict[str, Any] = STATUS | {
    "state": "UNLOADED", "strategy": "", "effective": {}, "device": "", "streaming": "", "memory": None,
    "recording": None,
    "waiting": 2, "error": "no such checkpoint", "rejected": ["half: the encoder put out nan"],
}  # fmt: skip


def at(folder: Path, name: str = "c.sock") -> Settings:
    return Settings(socket=os.fspath(folder / name))


def mode(where: Path) -> int:
    return stat.S_IMODE(where.stat().st_mode)


@contextlib.contextmanager
def daemon(
    settings: Settings, *answers: bytes, then: Callable[[], None] = lambda: None
) -> Iterator[list[Any]]:
    """Answer one client with these lines, do `then`, and hang up; yields the requests that came."""
    asked: list[Any] = []
    one = listen(settings)
    one.setblocking(True)

    def serve() -> None:
        with contextlib.suppress(OSError):
            client, _ = one.accept()
            with client, client.makefile("rb") as lines:
                asked.append(json.loads(lines.readline()))
                for answer in answers:
                    client.sendall(answer)
                then()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield asked
    finally:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
        thread.join(10)
        forget(settings)


def say(**reply: Any) -> bytes:
    return json.dumps({"ok": True, **reply}).encode() + b"\n"


# -- where it is
# ------------------------------------------------------------------------------------------------------


def test_it_is_where_it_was_set_or_in_the_runtime_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert path(Settings(socket="/s/x"), {"XDG_RUNTIME_DIR": "/r"}) == Path("/s/x")
    assert path(Settings(), {"XDG_RUNTIME_DIR": "/r"}) == Path("/r/asrd.sock")
    assert path(Settings(), {"XDG_RUNTIME_DIR": ".run/one"}) == Path(".run/one/asrd.sock")
    monkeypatch.setenv("HOME", "/h")
    assert path(Settings(socket="~/x"), {}) == Path("/h/x")


def test_without_a_runtime_directory_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_socket, "_runtime", lambda: "")
    for environment in ({}, {"XDG_RUNTIME_DIR": ""}):
        with pytest.raises(SocketError, match="XDG_RUNTIME_DIR is not set") as caught:
            path(Settings(), environment)
        assert "ASRD_SOCKET" in caught.value.hint


def test_a_path_that_linux_does_not_take_is_refused_before_it_is_tried(tmp_path: Path) -> None:
    base = os.fspath(tmp_path)
    longest = Settings(socket=f"{base}/{'x' * (106 - len(base))}")
    assert len(longest.socket) == 107
    with daemon(longest, say(said="hello")):
        assert next(ask(longest, verb="toggle"))["message"] == "hello"
    for name in (f"{base}/{'x' * (107 - len(base))}", f"{base}/{'ü' * 60}"):
        with pytest.raises(SocketError, match="longer than 107 bytes"):
            listen(Settings(socket=name))
        with pytest.raises(SocketError, match="longer than 107 bytes"):
            next(ask(Settings(socket=name), verb="toggle"))


# -- made
# -------------------------------------------------------------------------------------------------------------


def test_it_belongs_to_the_user_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        one = listen(at(tmp_path))
    finally:
        os.umask(before)
    assert mode(tmp_path / "c.sock") == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.sock"]
    one.close()
    forget(at(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_socket_that_a_killed_daemon_left_is_replaced(tmp_path: Path) -> None:
    program = (
        "import sys, time; from asrd.config.settings import Settings; from asrd.daemon.control_socket import listen\n"
        "one = listen(Settings(socket=sys.argv[1])); print('up', flush=True); time.sleep(1000)"
    )
    words = [sys.executable, "-c", program, os.fspath(tmp_path / "c.sock")]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "up\n"
        with pytest.raises(SocketError, match="another asrd is running") as caught:
            listen(at(tmp_path))
        assert (caught.value.exit_code, "asrd status" in caught.value.hint) == (73, True)
        first.kill()
    assert (tmp_path / "c.sock").is_socket()
    with daemon(at(tmp_path), say(said="mine")):
        assert next(ask(at(tmp_path), verb="toggle"))["message"] == "mine"


def test_of_daemons_that_start_at_once_on_a_stale_socket_one_wins(tmp_path: Path) -> None:
    where = tmp_path / "asrd.sock"
    starter = (
        "import sys, time; from asrd.daemon import control_socket; from asrd import errors\n"
        "sys.stdin.readline()\n"
        "try: one = control_socket.listen(control_socket.Place(sys.argv[1]))\n"
        "except errors.SocketError as error: print('refused', flush=True)\n"
        "else: print('listens', flush=True)\n"
        "sys.stdin.readline()"
    )
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as stale:
            where.unlink(missing_ok=True)
            stale.bind(os.fspath(where))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, "-c", starter, os.fspath(where)]
        several = [subprocess.Popen(command, **pipes) for _ in range(8)]
        for one in several:
            one.stdin.write("go\n")
            one.stdin.flush()
        said = sorted(one.stdout.readline().strip() for one in several)
        assert said == ["listens", *["refused"] * 7]
        assert _reaches(where)
        for one in several:
            one.communicate("end\n")


def _reaches(where: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(os.fspath(where)) == 0


def test_a_daemon_that_is_too_busy_to_accept_is_still_there(tmp_path: Path) -> None:
    where = tmp_path / "c.sock"
    with socket.socket(socket.AF_UNIX) as full, contextlib.ExitStack() as crowd:
        full.bind(os.fspath(where))
        full.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = crowd.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(os.fspath(where))
        with pytest.raises(SocketError, match="another asrd is running"):
            listen(at(tmp_path))
    assert where.is_socket()


@pytest.mark.parametrize("kind", ["file", "folder", "fifo", "dangling"])
def test_what_is_no_socket_is_left_alone(tmp_path: Path, kind: str) -> None:
    where = tmp_path / "c.sock"
    make = {
        "file": lambda: where.write_text("precious"),
        "folder": where.mkdir,
        "fifo": lambda: os.mkfifo(where),
        "dangling": lambda: where.symlink_to(tmp_path / "nowhere"),
    }
    make[kind]()
    with pytest.raises(SocketError, match="is not a socket"):
        listen(at(tmp_path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.sock"]


@pytest.mark.parametrize("place", ["missing", "file"])
def test_a_place_that_cannot_be_is_one_clear_error(tmp_path: Path, place: str) -> None:
    if place == "file":
        (tmp_path / "file").write_text("")
    with pytest.raises(SocketError, match=r"cannot be made: (No such|Not a)") as caught:
        listen(at(tmp_path / place))
    assert caught.value.hint.startswith("have --socket, or the setting socket, name a path")


def as_nobody(program: str, *words: str) -> str:
    """Run Python as an unprivileged user; skip where that cannot be done."""
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    # With what a hint imports late: nobody may not read the home that Python itself may lie in.
    code = f"import os, shlex, sys; sys.path.insert(0, {os.fspath(ROOT)!r})\n"
    code += "from asrd.config.settings import Settings\n"
    code += "from asrd.daemon.client import ask\nfrom asrd.daemon.control_socket import listen\n"
    code += "from asrd.errors import AsrdError\nos.setuid(65534)\n" + program
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def reachable(folder: Path, rights: int) -> Path:
    """Let everybody in as far as this folder of pytest's; it gets the rights given."""
    for parent in folder.parents:
        if parent.name.startswith(("pytest-", "popen-")):  # of a run, and of each of its processes
            parent.chmod(0o755)
    folder.chmod(rights)
    return folder


TRY = """
settings = Settings(socket=sys.argv[1])
for act in (lambda: listen(settings), lambda: next(ask(settings, verb="toggle"))):
    try:
        act()
    except AsrdError as error:
        print(error.exit_code, error.message)
"""


def test_a_folder_that_may_not_be_written_is_one_clear_error(tmp_path: Path) -> None:
    where = reachable(tmp_path, 0o755) / "c.sock"
    assert as_nobody(TRY, os.fspath(where)).splitlines() == [
        f"73 the control socket {where} cannot be made: Permission denied",
        f"69 no asrd listens on {where}",
    ]
    tmp_path.chmod(0o700)
    told = f"{where} belongs to another user"
    assert as_nobody(TRY, os.fspath(where)).splitlines() == [f"73 {told}", f"69 {told}"]


def test_a_socket_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    where = reachable(tmp_path, 0o777) / "c.sock"
    with daemon(at(tmp_path)):
        told = f"{where} belongs to another user"
        assert as_nobody(TRY, os.fspath(where)).splitlines() == [f"73 {told}", f"69 {told}"]
        assert where.stat().st_uid == os.getuid()


def test_only_an_unanswered_socket_is_forgotten(tmp_path: Path) -> None:
    first = listen(at(tmp_path))
    first.close()
    second = listen(at(tmp_path))  # started while the first was on its way out
    forget(at(tmp_path))
    assert (tmp_path / "c.sock").is_socket(), (
        "a daemon that is gone must not take away its successor's socket"
    )
    second.close()
    forget(at(tmp_path))
    assert list(tmp_path.iterdir()) == []
    forget(at(tmp_path))


# -- asked
# ------------------------------------------------------------------------------------------------------------


def test_a_request_is_one_line_with_only_what_was_given(tmp_path: Path) -> None:
    with daemon(at(tmp_path), say(said="a", more=True), say(text="b")) as asked:
        replies = list(
            ask(at(tmp_path), verb="start", wait=True, silence=None, take="", seconds=2.5)
        )
    assert asked == [{"verb": "start", "wait": True, "seconds": 2.5}]
    assert [reply.get("message") or reply["text"] for reply in replies] == ["a", "b"]


def test_no_daemon_is_exit_69_with_the_way_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="no asrd listens") as caught:
        next(ask(at(tmp_path), verb="toggle"))
    assert caught.value.exit_code == 69
    for part in (f"asrd run --socket {tmp_path}", "asrd service install --now"):
        assert part in caught.value.hint


def test_what_the_daemon_refuses_comes_with_its_exit_code(tmp_path: Path) -> None:
    refusal = (
        json.dumps(
            {"ok": False, "error": "no such strategy", "hint": "try half", "code": 2}
        ).encode()
        + b"\n"
    )
    with daemon(at(tmp_path), refusal), pytest.raises(AsrdError) as caught:
        next(ask(at(tmp_path), verb="use"))
    assert (caught.value.message, caught.value.hint, caught.value.exit_code) == (
        "no such strategy",
        "try half",
        2,
    )


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"{",
        b'{"ok": true',
        b"null\n",
        b"[]\n",
        b"7\n",
        b"\xff\xfe\n",
        b"{}\n",
        b'{"ok": false, "code": "x"}\n',
    ],
)
def test_a_daemon_that_dies_or_babbles_is_one_clear_error(tmp_path: Path, answer: bytes) -> None:
    with daemon(at(tmp_path), answer), pytest.raises(ControlError) as caught:
        next(ask(at(tmp_path), verb="toggle"))
    assert caught.value.exit_code == 69
    assert caught.value.hint == "the terminal of asrd run tells why"


def test_a_daemon_that_dies_between_two_answers_is_an_error_too(tmp_path: Path) -> None:
    with daemon(at(tmp_path), say(said="recording", more=True)):
        replies = ask(at(tmp_path), verb="start", wait=True)
        assert next(replies)["message"] == "recording"
        with pytest.raises(ControlError, match="ended before its last answer"):
            next(replies)


@pytest.mark.parametrize("accepts", [True, False])
def test_a_daemon_that_hangs_does_not_hang_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accepts: bool
) -> None:
    monkeypatch.setattr(daemon_client, "PATIENCE", 0.1)
    monkeypatch.setattr(daemon_client, "BUSY_SECONDS", 0.1)
    with contextlib.ExitStack() as stack:
        if accepts:
            released = threading.Event()
            stack.enter_context(daemon(at(tmp_path), then=lambda: bool(released.wait(20)) and None))
            stack.callback(released.set)
        else:
            full = stack.enter_context(socket.socket(socket.AF_UNIX))
            full.bind(os.fspath(tmp_path / "c.sock"))
            full.listen(0)
            for _ in range(2):
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    waiting.connect(os.fspath(tmp_path / "c.sock"))
        said = "does not answer" if accepts else "too many clients wait"
        with pytest.raises(ControlError if accepts else BusyError, match=said):
            next(ask(at(tmp_path), verb="toggle"))


BUSY = (
    json.dumps(
        {"ok": False, "error": "no place", "hint": "try again", "code": 75, "busy": True}
    ).encode()
    + b"\n"
)


@pytest.mark.parametrize(
    "verb", ["toggle", "start", "stop", "cancel", "last", "status", "use", "reload", "transcribe"]
)
def test_a_busy_daemon_is_asked_again_until_it_has_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setattr(daemon_client, "FIRST_PAUSE", 0.001)
    asked = []
    one = listen(at(tmp_path))
    one.setblocking(True)

    def serve() -> None:
        for answer in (BUSY, BUSY, say(said="done")):
            line, _ = one.accept()
            with line, line.makefile("rb") as lines:
                asked.append(json.loads(lines.readline())["verb"])
                line.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with one:
        assert [reply["message"] for reply in ask(at(tmp_path), verb=verb)] == ["done"]
        thread.join(10)
    assert asked == 3 * [verb]


def test_a_daemon_that_stays_busy_is_told_with_its_own_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(daemon_client, "BUSY_SECONDS", 0.0)
    with daemon(at(tmp_path), BUSY):
        assert main.main(["toggle", "--socket", os.fspath(tmp_path / "c.sock")]) == 75
    assert capsys.readouterr().err == "asrd: no place\n  hint: try again\n"


def test_an_answer_is_read_also_from_a_daemon_that_hung_up_before_it_was_asked(
    tmp_path: Path,
) -> None:
    one = listen(at(tmp_path))
    with one, socket.socket(socket.AF_UNIX) as line:
        line.connect(os.fspath(tmp_path / "c.sock"))
        served, _ = one.accept()
        served.sendall(BUSY)
        served.close()
        line.settimeout(5)
        with pytest.raises(BrokenPipeError):
            line.sendall(b"x")
        assert line.recv(1000) == BUSY


ESC, RLO, CSI = "\x1b[2J", "\u202e", "\x9b2J"
NASTY = f"{ESC}{RLO}{CSI}\x07\x00\x7f\u2028\ufeff"

REPLIES: dict[str, list[dict[str, Any]]] = {
    "toggle": [{"message": f"recording{NASTY}"}],
    "stop": [{"message": NASTY}],
    "cancel": [{"message": NASTY}],
    "reload": [{"message": NASTY}],
    "start": [{"message": NASTY}],
    "start --wait": [{"message": NASTY, "more": True}, {"text": f"text{NASTY}"}],
    "use half": [{"message": NASTY}],
    "last": [{"text": f"text{NASTY}"}],
    "retry": [{"message": NASTY, "more": True}, {"recording": NASTY, "text": f"text{NASTY}"}],
    "retry --deliver": [{"recording": f"take{NASTY}", "text": NASTY}],
    "status": [
        STATUS | dict.fromkeys(("model", "requested", "strategy", "device", "error"), f"{NASTY}\n")
    ],
    "status --follow": [
        STATUS
        | {
            "state": f"x{NASTY}\n",
            "recording": STATUS["recording"] | {"text": NASTY, "partial": NASTY},
        }
    ],
    "status --waybar": [STATUS | {"state": NASTY, "model": NASTY, "effective": {NASTY: NASTY}}],
}
"""Verb -> what a stranger's socket answers to it."""


@pytest.mark.parametrize("words", REPLIES)
@pytest.mark.parametrize("shape", ["", "--json", "refused"])
def test_what_a_strangers_socket_sends_moves_no_cursor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, shape: str
) -> None:
    refusal = {"ok": False, "error": f"no{NASTY}\n", "hint": f"do{NASTY}\n", "code": 66}
    replies = (
        [{"ok": True, **reply} for reply in REPLIES[words]] if shape != "refused" else [refusal]
    )
    arguments = [
        *words.split(),
        *([shape] if shape == "--json" else []),
        "--socket",
        os.fspath(tmp_path / "c.sock"),
    ]
    with daemon(at(tmp_path), *(json.dumps(reply).encode() + b"\n" for reply in replies)):
        code = main.main(arguments)
    assert code == (66 if shape == "refused" else 0)
    out, err = capsys.readouterr()
    assert out or err
    for text in (out, err):
        assert not [
            char
            for char in text
            if char not in "\n\t" and without_controls(f"x{char}x") != f"x{char}x"
        ]
    if shape == "refused":
        assert len(err.splitlines()) == 2
    if shape == "--json" and "--waybar" not in words:
        shown = [reply for reply in replies if "text" in reply or "retry" not in words][-1]
        assert json.loads(out.splitlines()[-1]) == shown


def test_who_waits_for_text_is_patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_client, "PATIENCE", 0.1)
    late = threading.Event()
    settings = at(tmp_path)
    with daemon(settings, then=lambda: late.wait(0.5) and None):
        replies = ask(settings, verb="start", wait=True)
        with pytest.raises(ControlError, match="ended before"):
            next(replies)


# -- verbs
# ------------------------------------------------------------------------------------------------------------


def verb(name: str, settings: Settings, *words: str) -> int:
    parser = argparse.ArgumentParser()
    getattr(control, f"{name}_arguments")(parser)
    return int(getattr(control, name)(parser.parse_args(words), settings))


@pytest.mark.parametrize("name", ["toggle", "stop", "cancel", "reload", "start"])
def test_short_verbs_print_what_was_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for words, out in (((), "grüße\n"), (("--json",), '{"ok": true, "message": "grüße"}\n')):
        with daemon(at(tmp_path), say(message="grüße")) as asked:
            assert verb(name, at(tmp_path), *words) == 0
        assert asked == [{"verb": name, "follow": True} if name == "reload" else {"verb": name}]
        assert (
            capsys.readouterr().out == ("changed: " if name == "reload" and not words else "") + out
        )


@pytest.mark.parametrize(("text", "code"), [("some words", 0), ("", 1)])
def test_start_wait_prints_the_text_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, code: int
) -> None:
    with daemon(
        at(tmp_path), say(said="recording", more=True), say(text=text, seconds=2.0)
    ) as asked:
        assert verb("start", at(tmp_path), "--wait", "--silence", "1.5") == code
    assert asked == [{"verb": "start", "wait": True, "silence": 1.5}]
    out, err = capsys.readouterr()
    assert (out, err) == (
        (f"{text}\n", "") if text else ("", "asrd: no words were recognized in 2.0 s\n")
    )


def test_use_last_and_retry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with daemon(at(tmp_path), say(said="now on half")) as asked:
        assert verb("use", at(tmp_path), "half") == 0
    assert asked == [{"verb": "use", "strategy": "half", "follow": True}]
    with daemon(at(tmp_path), say(text="the last")):
        assert verb("last", at(tmp_path)) == 0
    answers = (
        say(said="take a", more=True),
        say(take="a", text="one", more=True),
        say(take="b", text="two"),
    )
    with daemon(at(tmp_path), *answers) as asked:
        assert verb("retry", at(tmp_path), "--all") == 0
    assert asked == [{"verb": "retry", "all": True}]
    assert capsys.readouterr().out == "now on half\nthe last\none\ntwo\n"


def test_takes_are_listed_without_a_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", os.fspath(tmp_path))
    assert verb("recordings", at(tmp_path)) == 0
    assert capsys.readouterr().out == "no recordings are kept\n"
    spool = RecordingStore(tmp_path / "asrd" / "takes")
    take = spool.begin()
    take.append(bytes(4 * 24_000))
    assert spool.keep_for_retry(take, "no such checkpoint", "grüße")
    assert verb("recordings", at(tmp_path)) == 0
    out = capsys.readouterr().out
    for part in (take.id, " 1.5 s", "no such checkpoint"):
        assert part in out
    assert verb("recordings", at(tmp_path), "--json") == 0
    (told,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (told["id"], told["seconds"], told["text"], told["delivered"]) == (
        take.id,
        1.5,
        "grüße",
        False,
    )


# -- status
# -----------------------------------------------------------------------------------------------------------


def test_a_status_as_one_line() -> None:
    assert line(STATUS) == "● LISTENING  3.2 s ▮▮▮▮▮▮▮▯▯▯  so far and ..."
    slow = STATUS["recording"] | {"text": "", "partial": "", "behind": 7.2}
    assert line(STATUS | {"recording": slow}) == "● LISTENING  3.2 s ▮▮▮▮▮▮▮▯▯▯  7 s behind"
    told = line(STATUS | {"recording": slow, "loading": "restore demo.nemo"})
    assert told == "● LISTENING  3.2 s ▮▮▮▮▮▮▮▯▯▯  the model loads: restore demo.nemo"
    assert line(UNLOADED) == "◦ UNLOADED  no such checkpoint"
    for level, full in ((None, 0), (-1000.0, 0), (-60.0, 0), (0.0, 10), (6.0, 10)):
        told = line(STATUS | {"recording": STATUS["recording"] | {"level": level}})
        assert (told.count("▮"), told.count("▯")) == (full, 10 - full)


def test_a_status_as_a_page_names_only_what_is_known() -> None:
    told = page(STATUS)
    for part in (
        "state     ● LISTENING",
        "strategy  bfloat16 (asked for auto) on cuda:0",
        "dtypes    encoder bfloat16, decoder float32",
        "partials  cost what is new\n",
        "memory    weights 3.0 MiB, reserved 0.0 MiB (GPU, by torch), process 900.0 MiB (GPU, by NVML)\n",
        "daemon    asrd 0.1.0, process 7, up 12 s",
    ):
        assert part in told
    assert "rejected" not in told
    assert "waiting" not in told
    assert "\nbut       encoder: tf32 asked\n" in page(
        STATUS | {"precision_note": "encoder: tf32 asked"}
    )
    hidden = page(STATUS | {"memory": STATUS["memory"] | {"source": "meminfo"}})
    assert "process 900.0 MiB (change of the whole GPU)" in hidden
    told = page(UNLOADED)
    strategy = "strategy  no model is loaded; auto is asked for"
    for part in (strategy, "rejected  half: the encoder put out nan", "waiting   2 recordings"):
        assert part in told
    assert "memory" not in told
    assert set(Memory.__struct_fields__) == set(STATUS["memory"])


@pytest.mark.parametrize(
    "state", ["LOADING", "IDLE", "LISTENING", "FLUSHING", "UNLOADED", "STOPPING"]
)
def test_a_bar_gets_a_mark_and_a_class_for_every_state(state: str) -> None:
    told = waybar(STATUS | {"state": state})
    older = {"UNLOADED": "parked"}.get(state)
    assert told["class"] == ([state.lower(), older] if older else state.lower())
    assert told["alt"] == (older or state.lower())
    assert told["text"] not in ("", "?")
    assert set(told) == {"text", "alt", "class", "tooltip"}
    for key in ("error", "capture"):
        assert waybar(STATUS | {key: "it is gone"})["class"] == ["error", "trouble"]


def test_what_was_said_is_no_markup_to_a_bar() -> None:
    told = waybar(STATUS | {"recording": STATUS["recording"] | {"partial": "<b>R&D"}})["tooltip"]
    assert "&lt;b&gt;R&amp;D" in told
    assert "<" not in told


def test_status_as_a_page_as_json_and_for_a_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = json.dumps(STATUS).encode() + b"\n"
    for words, want in (((), page(STATUS)), (("--json",), None), (("--waybar",), None)):
        with daemon(at(tmp_path), answer):
            assert verb("status", at(tmp_path), *words) == 0
        out = capsys.readouterr().out
        assert (
            out == f"{want}\n"
            if want
            else json.loads(out) == (STATUS if "--json" in words else waybar(STATUS))
        )


def test_a_bar_is_told_that_there_is_no_daemon_and_a_person_gets_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verb("status", at(tmp_path), "--waybar") == 0
    assert json.loads(capsys.readouterr().out)["class"] == "off"
    with pytest.raises(ControlError):
        verb("status", at(tmp_path))


def test_a_bar_that_follows_is_told_when_the_daemon_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with daemon(at(tmp_path), say(**{**STATUS, "more": True})) as asked:
        assert verb("status", at(tmp_path), "--follow", "--waybar") == 0
    assert asked == [{"verb": "status", "follow": True}]
    assert [json.loads(out)["class"] for out in capsys.readouterr().out.splitlines()] == [
        "listening",
        "off",
    ]


# -- as a process
# -----------------------------------------------------------------------------------------------------


def asrd(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ASRD_")}
    return subprocess.run(
        [sys.executable, "-m", "asrd", *words], cwd=ROOT, capture_output=True, text=True, check=False,
        env=kept | environment,
    )  # fmt: skip


def test_toggle_as_a_process(tmp_path: Path) -> None:
    where = os.fspath(tmp_path / "c.sock")
    with daemon(at(tmp_path), say(said="recording")) as asked:
        done = asrd("toggle", ASRD_SOCKET=where)
    assert (done.returncode, done.stdout, done.stderr) == (0, "recording\n", "")
    assert asked == [{"verb": "toggle"}]
    done = asrd("toggle", ASRD_SOCKET=where)
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr.splitlines() == [
        f"asrd: no asrd listens on {where}",
        "  hint: in a terminal: asrd run; asrd service install --now makes a service of it",
    ]


def test_toggle_imports_nothing_heavy(tmp_path: Path) -> None:
    """What a key press waits for; the daemon's own libraries would each cost more than all the
    rest."""
    program = "import sys; from asrd.cli.main import main; main(['toggle']); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ | {"ASRD_SOCKET": os.fspath(tmp_path / "c.sock")},
    )  # fmt: skip
    heavy = {
        "numpy",
        "asyncio",
        "torch",
        "nemo",
        "rich",
        "soundfile",
        "pynvml",
        "sounddevice",
        "dbus_fast",
        "yaml",
    }
    heavy |= {"msgspec", "logging", "tomllib", "asrd.config.settings"}
    assert not heavy & set(done.stdout.split())
