"""The units under a real user manager with a real journal, and the verb that installs them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asrd import journal
from asrd.cli import systemd_units
from asrd.cli.systemctl import EXIT_MEANINGS
from tests.helpers import ROOT
from tests.integration.user_session import TIMEOUT, UserSession, until, user_session

PROGRAM = f"""#!{sys.executable}
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.fakes import daemon
sys.exit(daemon.main(sys.argv[1:]))
"""

UNITS = ".config/systemd/user"


@pytest.fixture(scope="module")
def session() -> Iterator[UserSession]:
    with user_session() as opened:
        yield opened


class Service:
    """asrd as the session's user has it: installed in ~/.local/bin, with a stand-in for the
    daemon."""

    def __init__(self, session: UserSession) -> None:
        self.session = session
        self.program = session.write(".local/bin/asrd", PROGRAM, 0o755)

    def asrd(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.session.run(self.program, *words)

    def service(self, *words: str) -> str:
        return self.session.ok(self.program, "service", *words)

    def systemctl(self, *words: str) -> str:
        return self.session.ok("systemctl", "--user", *words)

    def drop_in(self, text: str) -> None:
        self.session.write(f"{UNITS}/asrd.service.d/test.conf", text)
        self.systemctl("daemon-reload")

    def ask(self, line: str, place: Path | None = None, wait: bool = True) -> str:
        """Say a line over the control socket; return the answer, or without `wait` nothing."""
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(TIMEOUT)
            control.connect(str(self.session.inside(place or self.session.runtime / "asrd.sock")))
            control.sendall(f"{line}\n".encode())
            return control.makefile().readline().strip() if wait else ""

    def show(self, *names: str) -> Any:
        """Return one property, or several."""
        found = self.session.show("asrd.service", *names)
        return found[names[0]] if len(names) == 1 else [found[name] for name in names]

    def entries(self, name: str) -> list[dict[str, Any]]:
        return self.session.journal(
            "-u", "asrd.service", f"ASRD_EVENT={name}", f"_SYSTEMD_INVOCATION_ID={self.life}"
        )

    @property
    def life(self) -> str:
        return str(self.show("InvocationID"))


@pytest.fixture
def installed(session: UserSession) -> Iterator[Service]:
    """A service that runs for the first time, and afterwards does not."""
    it = Service(session)
    if session.inside(session.home / UNITS / "asrd.service").exists():
        it.systemctl("reset-failed", *systemd_units.UNITS)
        it.systemctl("start", *systemd_units.UNITS)
    else:
        it.service("install", "--now")
    yield it
    shutil.rmtree(session.inside(session.home / UNITS / "asrd.service.d"), ignore_errors=True)
    if session.inside(session.home / UNITS / "asrd.service").exists():
        it.systemctl("daemon-reload")
        session.run(
            "systemctl", "--user", "kill", "--kill-whom=all", "--signal=KILL", "asrd.service"
        )
        it.systemctl("stop", *systemd_units.UNITS)


@pytest.fixture
def fresh(session: UserSession) -> Iterator[Service]:
    """Nothing installed, before and after."""
    it = Service(session)
    it.service("uninstall")
    yield it
    it.service("uninstall")


# -- life under the manager
# -------------------------------------------------------------------------------------------


def test_ready_status_and_the_inherited_socket(installed: Service) -> None:
    assert installed.show("ActiveState", "SubState", "StatusText", "Result", "NRestarts") == [
        *("active", "running", "idle, socket inherited", "success", "0"),
    ]
    assert installed.ask("ping") == f"ok {installed.show('MainPID')}"
    (ready,) = installed.entries("ready")
    assert ready["_SYSTEMD_USER_UNIT"] == "asrd.service"
    assert ready["MESSAGE_ID"] == journal.MESSAGE_IDS["ready"]


def test_a_connection_starts_a_daemon_that_is_down(installed: Service) -> None:
    installed.systemctl("stop", "asrd.service")
    assert installed.show("ActiveState", "Result") == ["inactive", "success"]
    assert installed.ask("ping") == f"ok {installed.show('MainPID')}"
    assert installed.show("StatusText") == "idle, socket inherited"


def test_a_hung_daemon_is_replaced_and_the_journal_shows_where_it_hung(installed: Service) -> None:
    installed.drop_in("[Service]\nWatchdogSec=1s\nRestartSec=100ms\n")
    installed.systemctl("restart", "asrd.service")
    before, life = installed.show("MainPID"), installed.life
    installed.ask("hang", wait=False)
    until(
        lambda: installed.show("NRestarts", "ActiveState") == ["1", "active"],
        "the watchdog's restart",
    )
    assert installed.ask("ping") == f"ok {installed.show('MainPID')}"
    assert installed.show("MainPID") != before
    stack = "\n".join(
        str(each["MESSAGE"]) for each in installed.session.journal(f"_SYSTEMD_INVOCATION_ID={life}")
    )
    assert "Fatal Python error: Aborted" in stack
    assert re.search(r'fakes/daemon.py", line \d+ in act', stack)


def test_a_stopped_process_is_replaced_too(installed: Service) -> None:
    installed.drop_in("[Service]\nWatchdogSec=1s\nRestartSec=100ms\n")
    installed.systemctl("restart", "asrd.service")
    installed.systemctl("kill", "--kill-whom=main", "--signal=STOP", "asrd.service")
    until(
        lambda: installed.show("NRestarts", "ActiveState") == ["1", "active"],
        "the watchdog's restart",
    )
    assert installed.ask("ping").startswith("ok")


def test_stopping_lets_the_daemon_drain_while_its_worker_lives(installed: Service) -> None:
    worker = installed.ask("child")
    life = installed.life
    installed.systemctl("stop", "asrd.service")
    assert installed.show("ActiveState", "Result", "ExecMainStatus") == ["inactive", "success", "0"]
    (last,) = installed.session.journal("ASRD_EVENT=stopping", f"_SYSTEMD_INVOCATION_ID={life}")
    assert last["ASRD_CHILDREN"] == "1"
    assert not installed.session.inside(f"/proc/{worker}").exists()


def test_what_no_restart_cures_is_not_restarted(installed: Service) -> None:
    installed.drop_in("[Service]\nRestartSec=10ms\n")
    for code in (2, 65, 66, 73, 78):
        installed.ask(f"exit {code}", wait=False)
        until(lambda: installed.show("ActiveState") == "failed", "the failure")
        assert installed.show("NRestarts", "ExecMainStatus") == ["0", str(code)]
        installed.systemctl("reset-failed", "asrd.service")
        if code != 78:
            installed.systemctl("start", "asrd.service")


def test_status_says_what_a_failed_daemon_ended_with(installed: Service) -> None:
    installed.ask("exit 78", wait=False)
    until(lambda: installed.show("ActiveState") == "failed", "the failure")
    done = installed.asrd("service", "status")
    assert done.returncode == 3
    assert "why: ended with a wrong setting; asrd config shows which" in done.stdout


def test_what_a_restart_may_cure_is_restarted(installed: Service) -> None:
    installed.drop_in("[Service]\nRestartSec=10ms\n")
    for count, code in enumerate((69, 70, 75), start=1):
        installed.ask(f"exit {code}", wait=False)
        until(
            lambda n=count: installed.show("NRestarts", "ActiveState") == [str(n), "active"],
            "the restart",
        )
    assert installed.ask("ping").startswith("ok")


def test_ends_that_were_asked_for_are_no_failures(installed: Service) -> None:
    for code in (130, 143):
        installed.ask(f"exit {code}", wait=False)
        until(lambda: installed.show("ActiveState") == "inactive", "the end")
        assert installed.show("Result", "NRestarts") == ["success", "0"]


def test_a_daemon_that_never_comes_up_is_given_up_and_install_tries_again(
    installed: Service,
) -> None:
    installed.drop_in("[Service]\nRestartSec=1ms\nExecStart=\nExecStart=sh -c 'exit 70'\n")
    installed.systemctl("stop", "asrd.service", "asrd.socket")
    done = installed.asrd("service", "install", "--now")
    assert done.returncode == 3
    assert "it does not start" in done.stdout
    until(
        lambda: installed.show("ActiveState", "SubState") == ["failed", "failed"],
        "the end of patience",
    )
    assert (
        "why: ended with an internal error, after 6 restarts"
        in installed.asrd("service", "status").stdout
    )
    installed.drop_in("")
    assert "it runs: idle, socket inherited" in installed.service("install", "--now")
    assert installed.ask("ping").startswith("ok")


def test_reload_is_a_signal_that_the_daemon_answers(installed: Service) -> None:
    installed.systemctl("reload", "asrd.service")
    until(lambda: installed.show("StatusText") == "idle, reloaded", "the daemon's answer")
    assert installed.show("ActiveState") == "active"


def test_it_ends_with_the_desktop_and_comes_back_with_the_next(installed: Service) -> None:
    target = "[Unit]\nBindsTo=graphical-session.target\nBefore=graphical-session.target\n"
    installed.session.write(f"{UNITS}/desktop.target", target)
    installed.systemctl("daemon-reload")
    installed.systemctl("start", "desktop.target")
    assert installed.show("ActiveState") == "active"
    installed.systemctl("stop", "desktop.target")
    until(
        lambda: installed.show("ActiveState", "SubState") == ["inactive", "dead"],
        "the end with the desktop",
    )
    assert installed.show("Result") == "success"
    installed.systemctl("start", "desktop.target")
    until(lambda: installed.show("ActiveState") == "active", "the start with the desktop")
    installed.systemctl("stop", "desktop.target")


# -- what the sandbox holds and lets through
# ---------------------------------------------------------------------------


def test_the_sandbox_is_in_force_and_lets_machine_code_be_made(installed: Service) -> None:
    status = dict(
        part.split(":\t", 1) for part in installed.ask("status").split(";") if ":\t" in part
    )
    assert (status["NoNewPrivs"], status["Seccomp"], status["Umask"]) == ("1", "2", "0077")
    assert installed.ask("jit") == "42"
    assert installed.ask("clock") == "PermissionError"
    assert installed.ask("namespace") == "PermissionError"


def test_numba_compiles_under_the_sandbox_and_keeps_what_it_compiled(installed: Service) -> None:
    pytest.importorskip("numba")
    assert installed.ask("numba") == "42"
    found = installed.session.ok(
        "find", installed.session.home / ".cache/asrd/numba", "-name", "*.nbi"
    )
    assert found.count(".nbi") == 1


# -- the journal
# ------------------------------------------------------------------------------------------------------


def test_a_take_in_the_journal_and_in_the_report(installed: Service) -> None:
    installed.ask("take")
    installed.ask("fields hello")
    (entry,) = until(lambda: installed.entries("take"), "the take in the journal")
    assert {key: value for key, value in entry.items() if key.startswith("ASRD_")} == {
        "ASRD_EVENT": "take",
        "ASRD_TAKE": "20261122-100000",
        "ASRD_AUDIO_SECONDS": "3.2",
        "ASRD_WORDS": "7",
        "ASRD_RTF": "0.05",
        "ASRD_STOP_TO_TEXT_MS": "120",
        "ASRD_STRATEGY": "bfloat16",
        "ASRD_EFFECTIVE": "bfloat16",
        "ASRD_DEVICE": "cuda:0",
        "ASRD_MODEL": "demo",
        "ASRD_WEIGHTS_BYTES": "2097152",
        "ASRD_PROCESS_BYTES": "5242880",
        "ASRD_BASELINE_PROCESS_DELTA_BYTES": "-3145728",
        "ASRD_OUTCOME": "delivered",
        "ASRD_SINKS": "type,clipboard",
    }
    assert entry["MESSAGE_ID"] == journal.MESSAGE_IDS["take"]
    assert (entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"], entry["MESSAGE"]) == (
        "6",
        "asrd",
        "a take of 3.2 s",
    )
    (warning,) = until(lambda: installed.session.journal("ASRD_TEXT=hello"), "the warning")
    assert (warning["PRIORITY"], warning["MESSAGE"]) == ("4", "said less")
    assert not {"CODE_ARGS", "lower"} & warning.keys()
    done = installed.asrd("report", "--since", "-10min", "--json")
    assert re.search(r'"stop_to_text_ms": {\s+"count": 1,\s+"p50": 120', done.stdout), done
    assert "audio         3.2 s, 7 words" in installed.asrd("report", "--since", "today").stdout
    assert "has no entries of asrd since yesterday until today" in (
        installed.asrd("report", "--since", "yesterday", "--until", "today").stdout
    )


def test_a_time_that_the_journal_does_not_understand(installed: Service) -> None:
    done = installed.asrd("report", "--since", "soon")
    assert (done.returncode, done.stderr) == (2, "asrd: 'soon' is not a time\n")


def test_a_journal_that_hangs_does_not_hang_the_daemon(installed: Service) -> None:
    journald = installed.session.journald()
    os.kill(journald, signal.SIGSTOP)
    try:
        assert installed.ask("flood 20000").startswith("ok")
        assert installed.ask("ping").startswith("ok")
    finally:
        os.kill(journald, signal.SIGCONT)

    def missed() -> list[str]:
        installed.ask("take")
        entries = installed.session.journal("-u", "asrd.service", "PRIORITY=4")
        return [str(each["MESSAGE"]) for each in entries if "did not take" in str(each["MESSAGE"])]

    (message,) = until(missed, "the count of what the journal missed")
    assert re.fullmatch(r"the journal did not take \d+ earlier messages", message)


# -- the verb
# ---------------------------------------------------------------------------------------------------------


def test_systemd_finds_nothing_wrong_with_what_is_printed(session: UserSession) -> None:
    it = Service(session)
    for name in systemd_units.UNITS:
        session.write(f"verify/{name}", it.service("print", name))
    files = [session.home / "verify" / name for name in systemd_units.UNITS]
    done = session.run("systemd-analyze", "--user", "verify", *files)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    both = it.service("print")
    assert all(f"# {session.home / UNITS / name}\n" in both for name in systemd_units.UNITS)


def test_installing_twice_changes_nothing_and_says_so(installed: Service) -> None:
    first = installed.show("MainPID")
    said = installed.service("install", "--now")
    assert said.count("is up to date") == 2
    assert "already enabled" in said
    assert installed.show("MainPID") == first
    assert [installed.systemctl("is-enabled", name).strip() for name in systemd_units.UNITS] == [
        "enabled",
        "enabled",
    ]


def test_a_unit_that_changed_is_replaced_and_started_anew(installed: Service) -> None:
    unit = installed.session.home / UNITS / "asrd.service"
    text = installed.session.inside(unit).read_text()
    installed.session.write(unit, text.replace(str(installed.program), "/bin/gone"))
    assert "the unit starts /bin/gone, which does not exist" in installed.service("status")
    said = installed.service("install")
    assert f"replaced {unit}" in said
    assert "still the old one" in said
    installed.session.write(unit, text.replace(str(installed.program), "/bin/gone"))
    first = installed.show("MainPID")
    assert "it runs: idle, socket inherited" in installed.service("install", "--now")
    assert installed.show("MainPID") != first
    assert installed.session.inside(unit).read_text() == text


def test_uninstalling_leaves_drop_ins_and_can_be_repeated(installed: Service) -> None:
    installed.drop_in("[Service]\nNice=1\n")
    assert "stopped and disabled" in installed.service("uninstall")
    assert "nothing is installed" in installed.service("uninstall")
    assert installed.session.show("asrd.socket", "LoadState", "ActiveState") == {
        "LoadState": "not-found",
        "ActiveState": "inactive",
    }
    left = installed.session.ok("find", installed.session.home / UNITS, "-name", "*asrd*")
    assert left.splitlines() == [str(installed.session.home / UNITS / "asrd.service.d")]
    done = installed.asrd("service", "status")
    assert (done.returncode, "asrd.service: not installed" in done.stdout) == (3, True)


def test_a_daemon_in_a_terminal_is_not_cut_off(fresh: Service) -> None:
    session, it = fresh.session, fresh
    session.ok("systemd-run", "--user", "--unit=stranger", "--quiet", it.program, "run")
    try:
        until(
            lambda: session.inside(session.runtime / "asrd.sock").exists(), "the stranger's socket"
        )
        done = it.asrd("service", "install", "--now")
        assert (done.returncode, "a daemon that is not the service answers" in done.stderr) == (
            2,
            True,
        )
        assert not session.inside(session.home / UNITS / "asrd.service").exists()
    finally:
        session.ok("systemctl", "--user", "stop", "stranger.service")


def test_a_socket_of_ones_own_choice_is_the_units_too(fresh: Service) -> None:
    session, it = fresh.session, fresh
    place = session.home / "run 100%" / "dictation.sock"
    settings = session.write(".config/asrd/config.toml", f'socket = "{place}"\n')
    try:
        assert "it runs" in it.service("install", "--now")
        assert session.inside(place).is_socket()
        assert it.ask("ping", place) == f"ok {it.show('MainPID')}"
    finally:
        it.service("uninstall")
        session.inside(Path(settings)).unlink()


@pytest.mark.parametrize("folder", ["with a space", 'quo"te, 5 % and a back\\slash'])
def test_programs_in_odd_folders_start(fresh: Service, folder: str) -> None:
    fresh.program = fresh.session.write(f"{folder}/bin/asrd", PROGRAM, 0o755)
    assert "it runs: idle" in fresh.service("install", "--now")
    assert "which does not exist" not in fresh.service("status")


def test_python_dash_m_from_a_checkout_starts_from_anywhere(fresh: Service) -> None:
    """The stand-in is a package of asrd's name in a folder that is on nobody's path."""
    checkout = fresh.session.home / "checkout"
    for path in sorted((ROOT / "asrd").rglob("*.py")):
        fresh.session.write(f"checkout/{path.relative_to(ROOT)}", path.read_text())
    for name in systemd_units.UNITS:
        fresh.session.write(f"checkout/systemd/{name}", (ROOT / "systemd" / name).read_text())
    fresh.session.write(
        "checkout/asrd/__main__.py", (ROOT / "tests" / "fakes" / "daemon.py").read_text()
    )
    script = f'cd "{checkout}" && "{sys.executable}" -m asrd service install --now'
    assert "it runs: idle" in fresh.session.ok("sh", "-c", script)
    text = fresh.session.inside(fresh.session.home / UNITS / "asrd.service").read_text()
    assert f"ExecStart=/usr/bin/env PYTHONPATH={checkout} {sys.executable} -P -m asrd run\n" in text


# -- without a manager
# ------------------------------------------------------------------------------------------------


def alone(home: Path, *words: str, code: int | None = None, **environment: str) -> str:
    """Run the verb as a user without a session; return what it said."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "DBUS_"))
    }
    program = home / "asrd"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    done = subprocess.run(
        [program, "service", *words],
        env={**kept, "HOME": str(home), "XDG_RUNTIME_DIR": str(home / "none"), **environment},
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert code in (None, done.returncode), done.stdout + done.stderr
    return done.stdout + done.stderr


def test_without_a_user_manager_the_files_are_written_and_the_rest_is_said(tmp_path: Path) -> None:
    said = alone(tmp_path, "install", "--now", code=3)
    assert "asrd run" in said
    assert "systemctl --user enable --now asrd.socket asrd.service" in said
    assert sorted(path.name for path in (tmp_path / UNITS).iterdir()) == sorted(systemd_units.UNITS)
    assert "no user manager answers here" in alone(tmp_path, "status")
    said = alone(tmp_path, "uninstall")
    assert said.count("removed ") == 2
    assert not list((tmp_path / UNITS).rglob("*asrd*"))


def test_without_systemd_at_all_too(tmp_path: Path) -> None:
    said = alone(
        tmp_path, "install", code=0, PATH=str(tmp_path), XDG_CONFIG_HOME=str(tmp_path / "conf")
    )
    assert "no user manager answers here" in said
    assert (tmp_path / "conf/systemd/user/asrd.service").exists()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / ".config").mkdir()
    (tmp_path / ".config" / "systemd").write_text("a file where the folder should be")
    assert alone(tmp_path, "install").startswith(
        f"asrd: cannot write {tmp_path / UNITS / 'asrd.service'}: Not a dir"
    )


# -- texts
# ------------------------------------------------------------------------------------------------------------


def test_lines_for_later_systemds_are_there_only_for_them() -> None:
    old, new = (
        systemd_units.units(["/bin/asrd"], version)["asrd.service"] for version in (252, 257)
    )
    assert "Type=notify\n" in old
    assert "notify-reload" not in old
    assert "RestartSteps" not in old
    assert old.count("ExecReload=") == 1
    assert "Type=notify\nType=notify-reload\n" in new
    assert "ExecReload=kill -HUP $MAINPID\nExecReload=\n" in new
    assert "RestartSteps=5\nRestartMaxDelaySec=40s\n" in new
    assert not re.search("@PROGRAM|#2", old + new)


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("/usr/bin/asrd", "/usr/bin/asrd"),
        ("/a b/asrd", '"/a b/asrd"'),
        ('/a"b', '"/a\\"b"'),
        ("/100%", "/100%%"),
        ("$HOME", "$$HOME"),
        ("a\\b", '"a\\\\b"'),
        ("/ö", "/ö"),
    ],
)
def test_words_as_a_unit_needs_them(word: str, written: str) -> None:
    assert systemd_units.quoted(word) == written


def test_the_program_is_named_as_it_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "tools" / "asrd"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    link = tmp_path / "bin" / "asrd"
    link.parent.mkdir()
    link.symlink_to(tool)
    monkeypatch.setattr(sys, "argv", [str(link)])
    assert systemd_units.program() == [str(link)]
    monkeypatch.setenv("PATH", str(link.parent))
    monkeypatch.setattr(sys, "argv", ["asrd"])
    assert systemd_units.program() == [str(link)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["./tools/asrd"])
    assert systemd_units.program() == [str(tool)]


def test_every_exit_code_of_an_error_is_explained_and_decided() -> None:
    from asrd import errors

    codes = {
        cls.exit_code
        for cls in vars(errors).values()
        if isinstance(cls, type) and issubclass(cls, Exception)
    }
    answers = {errors.NothingError.exit_code}  # to a verb: they end no daemon
    assert codes - answers <= EXIT_MEANINGS.keys()
    prevented = re.search(
        r"^RestartPreventExitStatus=(.*)$",
        (ROOT / "systemd/asrd.service").read_text(),
        re.MULTILINE,
    )
    assert prevented
    assert set(map(int, prevented[1].split())) == {2, 65, 66, 73, 78}


def test_the_session_says_why_it_cannot() -> None:
    if os.getuid() == 0:
        found = shutil.which("setpriv")
        assert found
        command = [
            found,
            "--reuid=4711",
            "--regid=4711",
            "--clear-groups",
            "bash",
            "-s",
            "--",
            "true",
        ]
        with (ROOT / "tests" / "integration" / "session").open() as script:
            done = subprocess.run(
                command, stdin=script, capture_output=True, text=True, check=False, cwd="/"
            )
    else:
        done = subprocess.run(
            [ROOT / "tests" / "integration" / "session", "true"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 77
    assert done.stderr.endswith("needs root, to make a user and a user manager of its own\n")
