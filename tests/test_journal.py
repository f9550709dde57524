"""The protocols of the service manager and the journal, against real sockets and real processes."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asrd import journal
from asrd.daemon import sd_notify
from asrd.text.characters import printable
from tests.helpers import ROOT


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listening


def test_what_the_manager_hears(manager: socket.socket) -> None:
    assert sd_notify.ready("idle:\n demo")
    assert sd_notify.status("listening")
    assert sd_notify.watchdog()
    assert sd_notify.extend(2.5)
    assert sd_notify.stopping()
    assert sd_notify.ready()
    expected = [
        "READY=1\nSTATUS=idle: demo",
        "STATUS=listening",
        "WATCHDOG=1",
        "EXTEND_TIMEOUT_USEC=2500000",
    ]
    assert [manager.recv(999).decode() for _ in range(6)] == [*expected, "STOPPING=1", "READY=1"]


def test_reloading_carries_the_clock_that_the_manager_compares(manager: socket.socket) -> None:
    assert sd_notify.reloading()
    text = manager.recv(999).decode()
    assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d{6,}", text)


def test_an_abstract_socket_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"asrd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        assert sd_notify.watchdog()
        assert listening.recv(99) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    "address", ["", "/nonexistent/notify", "vsock:2:1234", "@asrd-nobody-listens"]
)
def test_without_a_manager_nothing_happens(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not sd_notify.ready("idle")


def test_a_manager_that_does_not_read_is_not_waited_for(manager: socket.socket) -> None:
    sent = 0
    while sd_notify.watchdog():
        sent += 1
        assert sent < 100_000
    assert manager.recv(99) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    ("microseconds", "process", "seconds"),
    [
        ("20000000", None, 20.0),
        ("1500000", "ours", 1.5),
        ("1500000", "1", None),
        ("", None, None),
        ("0", None, None),
        ("x", None, None),
    ],
)
def test_how_often_the_watchdog_wants_to_be_fed(
    microseconds: str, process: str | None, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if process:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if process == "ours" else process)
    assert sd_notify.watchdog_seconds() == seconds


def test_sockets_meant_for_another_process_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", "1")
    assert sd_notify.inherited() == {}
    assert os.environ["LISTEN_FDS"] == "1"


def test_inherited_sockets_come_by_name_and_are_not_passed_on() -> None:
    program = (
        "import os\nfrom asrd.daemon import sd_notify\n"
        "os.environ |= {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '2', 'LISTEN_FDNAMES': 'control:other'}\n"
        "found = sd_notify.inherited()\n"
        "print(sorted(found), found['control'].getsockname(), 'LISTEN_FDS' in os.environ,"
        " found['control'].get_inheritable())"
    )
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other:
        one.bind(f"\0asrd-control-{os.getpid()}")
        # what the manager does between fork and exec, done by a shell: descriptors from 3 on
        command = f'exec "$0" -c "$1" 3<&{one.fileno()} 4<&{other.fileno()}'
        done = subprocess.run(
            ["bash", "-c", command, sys.executable, program],
            pass_fds=(one.fileno(), other.fileno()), cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    name = f"\0asrd-control-{os.getpid()}".encode()
    assert done.stdout == f"['control', 'other'] {name!r} False False\n"


# -- events and where they go
# ------------------------------------------------------------------------------------------


def test_every_event_has_an_id_of_its_own_and_stands_in_the_table() -> None:
    assert all(re.fullmatch(r"[0-9a-f]{32}", each) for each in journal.MESSAGE_IDS.values())
    text = (ROOT / "asrd" / "docs" / "journal.md").read_text()
    table = re.findall(r"^\| `([a-z-]+)` \| `([0-9a-f]{32})` \|", text, re.MULTILINE)
    assert table == list(journal.MESSAGE_IDS.items())


def test_an_event_is_a_record_with_upper_case_fields(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "asrd"):
        journal.event(
            "take",
            "3.2 s",
            rtf=1 / 3,
            sinks=["a", "b"],
            device_bytes=None,
            process_bytes=1 << 40,
            ok=True,
        )
    (record,) = caplog.records
    fields = {key: value for key, value in vars(record).items() if key.isupper()}
    assert fields == {
        "MESSAGE_ID": journal.MESSAGE_IDS["take"],
        "ASRD_EVENT": "take",
        "ASRD_RTF": "0.333333",
        "ASRD_SINKS": "a,b",
        "ASRD_PROCESS_BYTES": "1099511627776",
        "ASRD_OK": "yes",
    }


def test_an_event_that_is_not_in_the_list_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        journal.event("tkae", "?")


def logged(prelude: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Return what a process leaves on stderr that logs through log_to_journal."""
    program = (
        "import logging, os, sys\nfrom asrd import journal\n"
        f"{prelude}\n"
        "print(journal.log_to_journal())\n"
        "journal.event('ready', 'two\\nlines', level=logging.WARNING, figure=1)\n"
        "logging.getLogger('asrd').debug('hidden')\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ, **environment},
    )  # fmt: skip


NO_JOURNAL = "journal.JOURNAL_SOCKET = '/nonexistent'"


def test_without_a_journal_stderr_gets_it() -> None:
    done = logged(NO_JOURNAL)
    assert (done.stdout, done.stderr) == ("False\n", "asrd: two\nlines\n")


def test_a_stderr_that_leads_to_a_journal_gets_priorities() -> None:
    stream = "s = os.fstat(2); os.environ['JOURNAL_STREAM'] = f'{s.st_dev}:{s.st_ino}'"
    assert logged(f"{NO_JOURNAL}\n{stream}").stderr == "<4>two\n<4>lines\n"


def test_somebody_elses_journal_stream_is_not_ours() -> None:
    assert logged(NO_JOURNAL, JOURNAL_STREAM="1:1").stderr == "asrd: two\nlines\n"


def test_a_terminal_sees_what_the_journal_gets(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(tmp_path / "socket"))
        done = logged(f"journal.JOURNAL_SOCKET = {str(tmp_path / 'socket')!r}")
        entry = parsed(journald.recv(1 << 16))
    assert (done.stdout, done.stderr) == ("True\n", "asrd: two\nlines\n")
    assert entry["MESSAGE"] == "two\nlines"
    assert entry["PRIORITY"] == "4"
    assert entry["SYSLOG_IDENTIFIER"] == "asrd"
    assert entry["ASRD_FIGURE"] == "1"
    assert entry["MESSAGE_ID"] == journal.MESSAGE_IDS["ready"]


# -- journald's native protocol
# ---------------------------------------------------------------------------------------


def parsed(datagram: bytes) -> dict[str, str]:
    """Read an entry as journald does."""
    fields: dict[str, str] = {}
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + size], rest[8 + size + 1 :]
        fields[name.decode()] = value.decode()
        datagram = rest
    return fields


@given(st.dictionaries(st.from_regex(r"[A-Z][A-Z0-9_]{0,20}", fullmatch=True), st.text()))
def test_what_is_sent_is_what_journald_reads(fields: dict[str, str]) -> None:
    sent = b"".join(journal.entry_line(name, value) for name, value in fields.items())
    assert parsed(sent) == {name: printable(value) for name, value in fields.items()}


def test_a_long_field_is_cut_between_letters() -> None:
    value = parsed(journal.entry_line("A", "ö" * journal.MAX_FIELD_BYTES + "\n"))["A"]
    assert value == "ö" * (journal.MAX_FIELD_BYTES // 2)


def test_values_of_variables_and_odd_names_stay_out(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(tmp_path / "socket"))
        send = journal.Sender(str(tmp_path / "socket"))
        send(
            "text",
            CODE_ARGS="what was said",
            EXCEPTION_INFO="what was said",
            lower="x",
            _UID="0",
            ASRD_N=3,
        )
        send.close()
        assert parsed(journald.recv(1 << 16)) == {"MESSAGE": "text", "ASRD_N": "3"}


def test_a_journal_that_is_full_or_gone_is_not_waited_for_and_what_it_missed_is_counted(
    tmp_path: Path,
) -> None:
    path = tmp_path / "socket"
    journald = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    journald.bind(str(path))
    send = journal.Sender(str(path))
    while not send.dropped:
        send("full in the end")
    journald.close()
    send("gone")
    path.unlink()
    send("no more")
    assert send.dropped == 3
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(path))
        send("back", SYSLOG_IDENTIFIER="asrd")
        assert parsed(journald.recv(1 << 16)) == {
            "MESSAGE": "the journal did not take 3 earlier messages",
            "PRIORITY": "4",
            "SYSLOG_IDENTIFIER": "asrd",
        }
        assert parsed(journald.recv(1 << 16))["MESSAGE"] == "back"
    assert send.dropped == 0
    send.close()


def test_a_journal_with_room_for_one_entry_gets_the_count_of_what_it_missed(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(tmp_path / "socket"))
        send = journal.Sender(str(tmp_path / "socket"))
        taken = 0
        while not send.dropped:
            send("full in the end")
            taken += 1
        journald.recv(1 << 16)
        send("no room beside the count")
        assert send.dropped == 1
        seen = [parsed(journald.recv(1 << 16))["MESSAGE"] for _ in range(taken - 1)]
        assert seen[-1] == "the journal did not take 1 earlier message"
        send.close()
