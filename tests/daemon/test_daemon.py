"""The daemon as a process of its own: real socket, real spool, real signals, over a worker that
holds no model.

And on a test's own loop for what happens between two of its steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from asrd import protocol
from asrd.config.loading import Loaded
from asrd.config.settings import ENGINE, FIELDS, Settings
from asrd.daemon.control_server import Request
from asrd.daemon.daemon import Daemon
from asrd.daemon.handlers import Handlers
from asrd.daemon.settings_changes import SettingsChanges
from asrd.dictation.recording import Dictation
from asrd.engine.engine import Engine
from asrd.errors import BusyError
from asrd.precision import gpus
from asrd.precision.plan import Plan
from asrd.recordings.deliveries import Deliveries
from tests.daemon.test_logind import BUS
from tests.dictation.test_transcriber import FAKE, SAID, SHORT, OpenMicrophone, case, until
from tests.engine.test_engine import alive
from tests.fakes.worker import as_it_is
from tests.helpers import ROOT


class Running:
    """A daemon and its folders; everything it prints is in `log`."""

    program: tuple[str, ...] = ("-m", "tests.fakes.deaf_daemon")
    where = ROOT
    """The folder in which its programs start."""

    def __init__(self, tmp_path: Path, **environment: str) -> None:
        self.home = tmp_path
        self.socket = tmp_path / "asrd.sock"
        self.takes = tmp_path / "state" / "asrd" / "takes"
        self.out, self.log = tmp_path / "out", tmp_path / "log"
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": os.fspath(tmp_path),
            "XDG_STATE_HOME": os.fspath(tmp_path / "state"),
            "XDG_RUNTIME_DIR": os.fspath(tmp_path),
            "TMPDIR": os.fspath(tmp_path),
            "ASRD_MODEL": "ok",
            "ASRD_SINKS": "stdout",
            "ASRD_NOTIFY": "false",
            "FAKE_MICROPHONE_LOST": os.fspath(tmp_path / "lost"),
            "FAKE_WORKER_GATE": os.fspath(tmp_path / "gate"),
            **environment,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def up(self, *words: str) -> Running:
        """Start it and wait until it answers."""
        with self.out.open("ab") as out, self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.program, "run", *words],
                cwd=self.where, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=log,
            )  # fmt: skip
        self.until(lambda: self.socket.exists() or self.process.poll() is not None)  # type: ignore[union-attr]
        return self

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request and return its first answer."""
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(20)
            line.connect(os.fspath(self.socket))
            line.sendall(json.dumps(request).encode() + b"\n")
            return json.loads(line.makefile().readline())

    def verb(self, *words: str, **more: Any) -> subprocess.Popen[str]:
        """Start one of the verbs as a program."""
        command = [sys.executable, "-m", "asrd", *words]
        return subprocess.Popen(
            command, cwd=self.where, env=self.environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
        )  # fmt: skip

    @property
    def state(self) -> str:
        return str(self.ask(verb="status")["state"])

    @property
    def worker(self) -> list[int]:
        """Process numbers of the workers."""
        assert self.process is not None
        found = subprocess.run(
            ["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in found.stdout.split()]

    def speak(self, seconds: float = 0.6) -> str:
        """Start a recording and wait until so much of it is on disk; return the take."""
        reply = self.ask(verb="start")
        take = str(reply.get("recording") or reply["take"])  # the older name, of an old release
        self.until(lambda: self.recorded(take) >= seconds)
        return take

    def recorded(self, take: str) -> float:
        with contextlib.suppress(OSError):
            return ((self.takes / f"{take}.wav").stat().st_size - 44) / 64_000
        return 0.0

    def settled(self) -> str:
        """Wait until nothing is on its way; return what the stdout sink got."""
        self.until(lambda: self.state in ("IDLE", "UNLOADED"))
        return self.out.read_text()

    def until(self, true: Callable[[], object], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(20)


Start = Callable[..., Running]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Start]:
    """Daemons in folders of their own; none outlives its test."""
    made: list[Running] = []

    def start(*words: str, up: bool = True, **environment: str) -> Running:
        one = Running(tmp_path, **environment)
        made.append(one)
        return one.up(*words) if up else one

    yield start
    for one in made:
        if one.process is not None and one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def samples(text: str) -> list[int]:
    """Return how many samples each buffer had that the fake worker was asked for."""
    return [int(count) for count in re.findall(r"(\d+) samples", text)]


def test_a_file_is_written_down_by_the_worker_that_is_loaded(daemon: Start) -> None:
    one = daemon()
    one.settled()
    [worker] = one.worker
    clip = (
        ROOT / "asrd/data/eval/0129.flac"
    )  # the model's name is a script of the fake worker's: no file, no other way
    out, errors = one.verb("transcribe", "--json", str(clip), "absent.wav").communicate(timeout=20)
    assert out, errors
    result = json.loads(out)
    assert (result["complete"], result["strategy"], result["device"]) == (True, "fp32", "cpu")
    assert result["duration"] == pytest.approx(9.0, abs=0.1)
    assert sum(samples(result["text"])) > 7 * 16_000
    assert re.search("no such file: .*absent.wav", errors)
    assert one.worker == [worker]
    for more in (["--no-daemon"], ["--strategy", "half"]):
        assert (
            "unknown model 'ok'"
            in one.verb("transcribe", *more, str(clip)).communicate(timeout=20)[1]
        )
    assert (
        one.ask(verb="transcribe", path="0129.flac")["error"]
        == "'0129.flac' is not the whole path of a file"
    )
    one.speak()
    several = [one.verb("transcribe", str(clip)) for _ in range(3)]
    assert [each.communicate(timeout=30)[0] for each in several] == [result["text"] + "\n"] * 3
    one.ask(verb="stop")
    assert len(samples(one.settled())) >= 1


# -- a day in its life
# ------------------------------------------------------------------------------------------------


def test_toggle_speak_toggle_and_the_text_is_there(daemon: Start) -> None:
    one = daemon()
    one.until(lambda: one.state == "IDLE")
    assert one.ask(verb="toggle")["message"] == "recording"
    one.until(
        lambda: one.state == "LISTENING" and one.ask(verb="status")["recording"]["seconds"] > 1
    )
    assert one.ask(verb="toggle")["message"].startswith("stopped; 1.")
    text = one.settled()
    assert len(samples(text)) == 1
    assert one.ask(verb="last")["text"] == text.strip()
    assert list(one.takes.iterdir()) == []
    assert (one.end(), one.socket.exists(), one.worker) == (0, False, [])


def test_what_is_said_while_the_model_loads_becomes_text_when_it_is_ready(daemon: Start) -> None:
    one = daemon(ASRD_MODEL="*=gate")
    assert one.state == "LOADING"
    one.speak()
    one.ask(verb="stop")
    one.speak()
    one.ask(verb="stop")
    assert one.state == "FLUSHING"
    assert one.ask(verb="status")["pending"] == 2
    (one.home / "gate").touch()
    assert len(samples(one.settled())) == 2


def test_a_second_toggle_within_a_moment_is_a_bouncing_key(daemon: Start) -> None:
    one = daemon()
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(os.fspath(one.socket))
        line.sendall(2 * b'{"verb": "toggle"}\n')
        answers = line.makefile()
        first, second = json.loads(answers.readline()), json.loads(answers.readline())
    assert (first["message"], second["message"]) == (
        "recording",
        "ignored: the key is held, or bounced",
    )
    assert one.state == "LISTENING"


def test_a_toggle_while_the_last_take_is_written_down_begins_the_next(daemon: Start) -> None:
    one = daemon(ASRD_MODEL="*=gate")
    one.speak()
    one.ask(verb="toggle")
    assert one.state == "FLUSHING"
    time.sleep(0.25)  # longer than a key bounces
    assert one.ask(verb="toggle")["message"] == "recording"
    assert one.state == "LISTENING"
    (one.home / "gate").touch()
    one.until(lambda: samples(one.out.read_text()))
    assert one.state == "LISTENING", "the first is text while the second is still spoken"


def test_stop_and_cancel_without_a_start_are_told_and_no_error(daemon: Start) -> None:
    one = daemon()
    assert one.ask(verb="stop")["message"] == "nothing was being recorded"
    assert one.ask(verb="cancel")["message"] == "there was nothing to cancel"
    one.ask(verb="start")
    again = one.ask(verb="start")
    assert (again["ok"], again["code"]) == (False, 2)


def test_cancel_delivers_nothing_and_keeps_nothing(daemon: Start) -> None:
    one = daemon(ASRD_MODEL="*=gate")
    one.speak()
    one.ask(verb="cancel")
    one.speak()
    one.ask(verb="stop")
    one.ask(verb="cancel")
    (one.home / "gate").touch()
    assert one.settled() == ""
    assert list(one.takes.iterdir()) == []


def test_text_comes_at_each_pause_where_that_is_asked_for(daemon: Start) -> None:
    one = daemon("--deliver", "segment")
    one.ask(verb="start")
    one.until(lambda: samples(one.out.read_text()), 30)
    assert one.state == "LISTENING"


def test_sound_before_the_key_belongs_to_the_take_where_the_microphone_stays_open(
    daemon: Start,
) -> None:
    one = daemon("--sink", "stdout", ASRD_PRE_ROLL="2.0")
    time.sleep(2.5)
    one.ask(verb="start")
    length = one.ask(verb="status")["recording"]["seconds"]
    assert 1.9 < length < 2.3
    one.ask(verb="stop")
    assert one.state in ("FLUSHING", "IDLE")


# -- waiting for text, and watching
# -----------------------------------------------------------------------------------


def test_start_wait_prints_the_text_and_types_nothing(daemon: Start) -> None:
    one = daemon()
    asker = one.verb("start", "--wait", "--seconds", "1")
    said, result = asker.communicate(timeout=30)
    assert (asker.returncode, result) == (0, "")
    assert 14_000 < samples(said)[0] < 22_000
    assert one.settled() == ""


def test_whoever_waits_and_is_killed_has_cancelled(daemon: Start) -> None:
    one = daemon()
    asker = one.verb("start", "--wait")
    one.until(lambda: one.state == "LISTENING")
    asker.kill()
    asker.communicate()
    one.until(lambda: one.state == "IDLE")
    assert list(one.takes.iterdir()) == []
    assert one.out.read_text() == ""


def test_status_follows_states_and_levels(daemon: Start) -> None:
    one = daemon()
    follower = one.verb("status", "--follow", "--json")
    assert follower.stdout is not None
    one.until(lambda: one.state == "IDLE")
    one.speak(1.0)
    one.ask(verb="stop")
    states, levels = [], []
    for line in follower.stdout:
        result = json.loads(line)
        states.append(result["state"])
        levels += [result["recording"]["level"]] if result["recording"] else []
        if states[-1] == "IDLE" and "LISTENING" in states:
            break
    follower.kill()
    follower.communicate()
    assert len(levels) > 5
    assert max(level for level in levels if level is not None) > -20


def test_the_verbs_are_pleasant_to_read(daemon: Start) -> None:
    one = daemon()
    one.until(lambda: one.state == "IDLE")
    said, _ = one.verb("status").communicate(timeout=20)
    assert re.search(r"^state +○ IDLE$", said, re.MULTILINE)
    assert re.search(
        r"^strategy +fp32 \(asked for auto\) on cpu, loaded in \d+\.\d s$", said, re.MULTILINE
    )
    bar, _ = one.verb("status", "--waybar").communicate(timeout=20)
    assert json.loads(bar)["class"] == "idle"
    assert one.end() == 0
    gone = one.verb("toggle")
    _, result = gone.communicate(timeout=20)
    assert gone.returncode == 69
    assert (
        result.splitlines()[1]
        == "  hint: in a terminal: asrd run; asrd service install --now makes a service of it"
    )


# -- what goes wrong
# --------------------------------------------------------------------------------------------------


def test_sigterm_writes_down_what_was_said(daemon: Start) -> None:
    one = daemon()
    one.speak(1.0)
    assert one.end() == 0
    assert len(samples(one.out.read_text())) == 1
    assert list(one.takes.iterdir()) == []


def test_a_second_sigterm_ends_at_once_and_keeps_the_take(daemon: Start) -> None:
    one = daemon(ASRD_MODEL="*=gate")
    take = one.speak()
    assert one.process is not None
    one.process.send_signal(signal.SIGTERM)
    one.until(lambda: one.state == "STOPPING")
    assert one.end() == 143
    kept, _ = one.verb("recordings", "--json").communicate(timeout=20)
    assert [(note["id"], note["reason"]) for note in map(json.loads, kept.splitlines())] == [
        (take, "asrd was asked twice to end")]  # fmt: skip


def test_a_second_sigterm_leaves_no_worker_of_a_strategy_that_is_tried(daemon: Start) -> None:
    one = daemon(ASRD_MODEL="bfloat16=gate *=ok")
    one.until(lambda: one.state == "IDLE")
    using = one.verb("use", "bfloat16")
    one.until(lambda: len(one.worker) == 2)
    take, workers = one.speak(), one.worker
    assert one.process is not None
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    one.process.send_signal(signal.SIGTERM)
    one.until(lambda: one.state == "STOPPING")
    assert one.end() == 143
    using.communicate(timeout=20)
    one.until(lambda: not any(alive(pid) for pid in workers))
    assert take in one.verb("recordings").communicate(timeout=20)[0]


def test_killed_at_any_moment_it_loses_at_most_the_last_block(daemon: Start) -> None:
    dice = random.Random(7)
    one = daemon(up=False)
    lengths = []
    for _ in range(4):
        one.socket.unlink(missing_ok=True)
        one.up()
        one.until(lambda: one.state != "LOADING")
        one.ask(verb="start")
        time.sleep(dice.uniform(0.1, 1.5))
        seen = one.ask(verb="status")["recording"]["seconds"]
        one.end(signal.SIGKILL)
        kept = [
            json.loads(line)
            for line in one.verb("recordings", "--json").communicate(timeout=20)[0].splitlines()
        ]
        assert kept[-1]["seconds"] >= seen
        lengths.append(kept[-1]["seconds"])
    one.socket.unlink()
    one.up()
    one.until(lambda: "4 recordings are not text yet" in one.log.read_text())
    said, result = one.verb("retry", "--all").communicate(timeout=60)
    assert result == ""
    assert len(said.splitlines()) == 4
    assert one.ask(verb="status")["waiting"] == 0
    assert one.out.read_text() == "", "retry prints; it does not type into whatever has the focus"


def test_a_worker_that_dies_costs_no_word(daemon: Start) -> None:
    one = daemon(ASRD_MODEL="*=ok")
    one.speak()
    (worker,) = one.worker
    os.kill(worker, signal.SIGKILL)
    one.ask(verb="stop")
    assert len(samples(one.settled())) == 1


def test_a_model_that_is_not_there_is_said_and_recording_goes_on(daemon: Start) -> None:
    one = daemon(ASRD_MODEL="*=model")
    one.until(lambda: one.ask(verb="status")["error"] == "no such checkpoint")
    one.speak()
    one.ask(verb="stop")
    one.until(lambda: one.ask(verb="status")["waiting"] == 1)
    one.until(lambda: one.state == "UNLOADED")
    assert one.ask(verb="last")["outcome"] == "kept"
    again = one.verb("retry")
    _, result = again.communicate(timeout=20)
    assert (again.returncode, result.splitlines()[0]) == (66, "asrd: no such checkpoint")
    assert one.ask(verb="status")["waiting"] == 1


def test_a_device_that_goes_and_comes_back_is_told_and_the_take_goes_on(daemon: Start) -> None:
    one = daemon()
    one.speak()
    (one.home / "lost").touch()
    one.until(lambda: one.ask(verb="status")["capture"] == "nothing comes")
    (one.home / "lost").unlink()
    one.until(lambda: one.ask(verb="status")["capture"] == "")
    before = one.ask(verb="status")["recording"]["seconds"]
    one.until(lambda: one.ask(verb="status")["recording"]["seconds"] > before)
    one.ask(verb="stop")
    assert samples(one.settled())
    assert "fake microphone delivers sound again" in one.log.read_text()


@pytest.mark.parametrize(
    ("decibels", "said"), [(-40, "is very quiet: speech is at -"), (40, "is too loud: "), (0, "")]
)
def test_a_microphone_at_a_bad_level_is_told_once(decibels: int, said: str, daemon: Start) -> None:
    one = daemon(FAKE_MICROPHONE_DB=str(decibels))
    one.until(lambda: one.state == "IDLE")
    for _ in range(2):
        one.speak(2.5)
        one.ask(verb="stop")
        one.settled()
    one.until(lambda: one.ask(verb="status")["level"])
    found = one.ask(verb="status")["level"]
    assert (said in found["problem"]) if said else not found["problem"]
    assert found["device"] == "fake microphone"
    result = [line for line in one.log.read_text().splitlines() if said and said in line]
    assert len(result) == bool(said)
    assert not said or "(pactl set-source-volume @DEFAULT_SOURCE@ " in result[0]
    page = one.verb("status").communicate(timeout=20)[0]
    assert re.search(
        rf"^level +fake microphone{f' {said}' if said else ': speech at -'}", page, re.MULTILINE
    ), page
    doctor = one.verb("doctor").communicate(timeout=60)[0]
    [line] = [line for line in doctor.splitlines() if " level " in line]
    assert line.startswith("-" if said else "ok")
    if said:
        assert "pactl set-source-volume @DEFAULT_SOURCE@ " in doctor


def test_a_folder_for_takes_that_cannot_be_written_costs_a_warning_and_no_word(
    daemon: Start, tmp_path: Path
) -> None:
    (tmp_path / "state").write_text("in the way")
    one = daemon()
    one.ask(verb="start")
    one.until(lambda: one.ask(verb="status")["recording"]["seconds"] > 0.6)
    one.ask(verb="stop")
    assert samples(one.settled())
    assert "this recording is not kept on disk" in one.log.read_text()


def test_a_second_daemon_does_not_take_the_socket(daemon: Start) -> None:
    one = daemon()
    command = [sys.executable, "-m", "tests.fakes.deaf_daemon", "run"]
    second = subprocess.run(
        command, cwd=ROOT, env=one.environment, capture_output=True, text=True, timeout=20
    )
    assert second.returncode == 73
    assert second.stderr.startswith(f"asrd: another asrd is running and listens on {one.socket}\n")
    assert one.state


# -- other precisions, other settings, no model in memory
# -------------------------------------------------------------


def test_use_exchanges_the_worker_and_keeps_the_old_one_on_failure(daemon: Start) -> None:
    one = daemon(ASRD_MODEL="bfloat16=ok half=refuse *=ok")
    one.until(lambda: one.state == "IDLE")
    (first,) = one.worker
    assert one.ask(verb="use", strategy="bfloat16")["message"] == "now on bfloat16 on cpu"
    (second,) = one.worker
    assert second != first
    refused = one.ask(verb="use", strategy="half")
    assert (refused["ok"], one.worker) == (False, [second])
    assert one.ask(verb="use", strategy="haf")["hint"] == "did you mean 'half'?"
    assert one.ask(verb="status")["strategy"] == "bfloat16"


def test_sighup_reads_the_configuration_again_and_a_broken_one_changes_nothing(
    daemon: Start, tmp_path: Path
) -> None:
    file = tmp_path / "config.toml"
    file.write_text('model = "ok"\nsinks = ["none"]\n')
    one = daemon("--config", os.fspath(file), up=False)
    del one.environment["ASRD_MODEL"], one.environment["ASRD_SINKS"]
    one.up("--config", os.fspath(file))
    one.until(lambda: one.state == "IDLE")
    file.write_text('model = "ok"\nsinks = ["stdout"]\nstrategy = "half"\n')
    assert one.process is not None
    one.process.send_signal(signal.SIGHUP)
    one.until(lambda: "configuration read again: sinks, strategy" in one.log.read_text())
    assert one.ask(verb="status")["strategy"] == "half"
    file.write_text("sink = 3\n")
    refused = one.ask(verb="reload")
    assert (refused["code"], refused["hint"]) == (78, 'write, for example, sinks = ["type"]')
    one.speak()
    one.ask(verb="stop")
    assert samples(one.settled())


def test_another_language_or_vocabulary_is_another_worker_and_another_table_is_not(
    daemon: Start, tmp_path: Path
) -> None:
    file, words = tmp_path / "config.toml", tmp_path / "words.txt"
    words.write_text("Kubernetes\n")
    settings = 'model = "ok"\nsinks = ["stdout"]\nvocabulary = ["@words.txt"]\n'
    file.write_text(settings)
    one = daemon("--config", os.fspath(file), up=False)
    del one.environment["ASRD_MODEL"], one.environment["ASRD_SINKS"]
    one.up("--config", os.fspath(file))
    one.until(lambda: one.state == "IDLE" and len(one.worker) == 1)
    seen = [one.worker]
    for change, said in [
        ('target_lang = "de"\n', "target_lang"),
        ('target_lang = "de"\npnc = false\n', "pnc"),
        ('target_lang = "de"\npnc = false\nboost = 0.5\n', "boost"),
    ]:
        file.write_text(settings + change)
        assert one.ask(verb="reload")["message"] == said
        seen.append(one.worker)
    words.write_text("Kubernetes\nHelsinki\n")
    assert one.ask(verb="reload")["message"] == "vocabulary", "the file has another word"
    seen.append(one.worker)
    assert len({tuple(each) for each in seen}) == len(seen) == 5
    file.write_text(f'{settings}{change}commands = true\n[spoken]\nsamples = "^,"\n')
    assert one.ask(verb="reload")["message"] == "commands, spoken"
    assert one.worker == seen[-1]
    one.speak()
    one.ask(verb="stop")
    assert re.match(r"\d+, sum", one.settled()), "the fake says: N samples sum S"
    assert one.ask(verb="last")["text"] == one.out.read_text().strip()


def test_whatever_a_worker_is_started_with_asks_for_another_worker() -> None:
    started = {field.name for field in msgspec.structs.fields(protocol.Start)} & set(FIELDS)
    assert (
        {"model", "source_lang", "target_lang", "pnc", "vocabulary", "boost"}
        <= started
        <= set(ENGINE)
    )


def test_an_idle_model_leaves_memory_and_the_next_toggle_records_at_once(daemon: Start) -> None:
    one = daemon(ASRD_IDLE="immediately")
    one.until(lambda: one.state == "UNLOADED" and not one.worker)
    one.speak()
    one.ask(verb="stop")
    assert samples(one.settled())
    one.until(lambda: one.state == "UNLOADED" and not one.worker)


@pytest.fixture
def logind(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A logind on a system bus of its own, which lets a machine sleep after two seconds; told on
    its standard input."""
    (tmp_path / "bus.conf").write_text(BUS.format(path=tmp_path / "bus"))
    words = ["dbus-daemon", f"--config-file={tmp_path / 'bus.conf'}", "--nofork", "--print-address"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as bus:
        assert bus.stdout
        assert bus.stdout.readline()
        one = subprocess.Popen(
            [sys.executable, os.fspath(ROOT / "tests" / "fakes" / "login1.py"), "2"],
            env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={tmp_path / 'bus'}"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        assert one.stdout
        assert one.stdout.readline() == "ready\n"
        yield one
        one.kill()
        one.communicate()
        bus.kill()


def test_a_machine_that_sleeps_in_the_middle_has_no_worker_and_the_words_come_afterwards(
    daemon: Start, tmp_path: Path, logind: subprocess.Popen[str]
) -> None:
    assert logind.stdin
    assert logind.stdout
    one = daemon(
        ASRD_MODEL=f"*=stall@{tmp_path}/once",
        DBUS_SYSTEM_BUS_ADDRESS=f"unix:path={tmp_path / 'bus'}",
    )
    assert logind.stdout.readline().startswith("inhibit sleep asrd")
    one.speak()
    one.ask(verb="stop")
    one.until((tmp_path / "once").exists)
    logind.stdin.write("sleep\n")
    assert logind.stdout.readline() == "released\n"
    assert one.worker == []
    second = one.speak()  # between the signal and the sleep
    one.ask(verb="stop")
    assert one.worker == []
    assert one.state == "FLUSHING"
    logind.stdin.write("wake\n")
    assert logind.stdout.readline().startswith("inhibit sleep asrd")
    assert len(samples(one.settled())) == 2
    assert one.ask(verb="last")["take"] == second
    assert list(one.takes.glob("*.wav")) == []
    assert one.ask(verb="status")["rejected"] == []
    assert one.end() == 0


def test_text_is_in_the_log_only_where_that_is_asked_for(daemon: Start) -> None:
    one = daemon()
    one.speak()
    one.ask(verb="stop")
    text = one.settled().strip()
    one.end()
    assert text not in one.log.read_text()
    one = daemon(ASRD_LOG_TEXT="true")
    one.speak()
    one.ask(verb="stop")
    one.settled()
    text = one.ask(verb="last")["text"]
    one.end()
    assert "log_text is on: what you say is written into the journal" in one.log.read_text()
    assert text in one.log.read_text()


def test_a_candidate_that_was_left_is_told_wherever_one_looks(daemon: Start) -> None:
    one = daemon(
        ASRD_MODEL="half=nan-in-layer *=ok",
        ASRD_STRATEGY="half",
        ASRD_SHADOW="3",
        ASRD_FAULTS="stall:99",
    )
    one.until(lambda: one.state == "IDLE")
    assert one.ask(verb="status")["fallback"] is None
    one.speak()
    one.ask(verb="stop")
    assert len(samples(one.settled())) == 1
    status = one.ask(verb="status")
    assert status["strategy"] == "half(encoder.layers.3:float32)"
    assert status["fallback"]["wanted"] == "half on cpu"
    assert (status["shadow"]["takes"], status["faults"]) == (0, "stall:99")
    page = one.verb("status").communicate(timeout=20)[0]
    assert "fallback  half on cpu was asked for and is not used: the encoder put out nan" in page
    assert "fell back from half on cpu (non-finite)" in page.splitlines()[0]
    assert "faults    rehearsed: stall:99" in page
    bar = json.loads(one.verb("status", "--waybar").communicate(timeout=20)[0])
    assert bar["class"] == ["idle", "fallback", "below"]
    log = one.log.read_text()
    assert "faults are rehearsed: stall:99" in log
    assert "fell back from half on cpu to half(encoder.layers.3:float32) on cpu" in log
    assert one.ask(verb="use", strategy="half")["message"] == "now on half on cpu"
    assert one.ask(verb="status")["fallback"] is None


# -- moments that a second process cannot hit
# -------------------------------------------------------------------------


class Inside:
    """A daemon on the loop of the test, with microphones and workers that the test holds."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **given: Any) -> None:
        monkeypatch.setattr(gpus, "gpus", list)
        for name in ("TMPDIR", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
            monkeypatch.setenv(name, os.fspath(folder))
        given = {
            "model": "*=ok",
            "strategy": "half",
            "suffix": "",
            "sinks": ("none",),
            "notify": False,
        } | given
        self.wanted = Settings(**given)
        """What is in the file."""
        self.engines: list[Engine] = []
        self.microphones: list[OpenMicrophone] = []
        self.arrived: list[str] = []
        self.daemon = Daemon(Loaded(self.wanted, {}, ()), self.hold, self.listen)
        self.changes = SettingsChanges(self.daemon, self.reread)
        self.handlers = Handlers(self.daemon, self.changes)
        self.daemon.transcriber._deliver = self.deliver

    def reread(self) -> Loaded:
        return Loaded(self.wanted, {}, ())

    def hold(self, plan: Plan, start: protocol.Start, **more: Any) -> Engine:
        self.engines.append(
            Engine(plan, start, deadlines=SHORT, command=FAKE, download=as_it_is, **more)
        )
        return self.engines[-1]

    def listen(self, source: str, name: str) -> OpenMicrophone:
        self.microphones.append(OpenMicrophone(name))
        return self.microphones[-1]

    async def deliver(self, record: Deliveries, number: int) -> list[str]:
        self.arrived.append(record.parts[number].text)
        return []

    async def ask(self, verb: str, **fields: Any) -> dict[str, Any]:
        """Send one request and return its last answer."""
        return [reply async for reply in self.handlers.answer(Request(verb, **fields))][-1]

    def begin(self) -> Dictation:
        one = self.daemon.start()
        self.microphones[-1].give(SAID)
        return one

    async def __aenter__(self) -> Inside:
        self._writing = self.daemon._transcribing = asyncio.create_task(
            self.daemon.transcriber.run()
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [self._writing, *self.daemon.jobs]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for engine in self.engines:
            await engine.stop()


@case
async def test_cancel_drops_what_there_was_at_the_key_and_nothing_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Inside(tmp_path, monkeypatch) as one:
        first = one.begin()
        cancelling = asyncio.create_task(one.ask("cancel"))
        await asyncio.sleep(0)
        assert not one.microphones[0].closed
        second = one.begin()
        assert (await cancelling)["message"] == f"dropped {first.recording.id}"
        await one.ask("stop")
        assert (await first.result).outcome == "cancelled"
        assert (await second.result).outcome == "delivered"
        assert len(one.arrived) == 1


@case
async def test_a_reload_begins_from_what_use_left_and_takes_its_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_WORKER_GATE", str(tmp_path / "gate"))
    async with Inside(tmp_path, monkeypatch, model="half=ok *=gate") as one:
        await one.daemon.slot.load()
        one.wanted = msgspec.structs.replace(one.wanted, demote_slower=77.0, keep_audio="always")
        using = asyncio.create_task(one.ask("use", strategy="bfloat16"))
        await until(lambda: len(one.engines) == 2 and one.engines[1].pid is not None)
        reloading = asyncio.create_task(one.ask("reload"))
        await asyncio.sleep(0.05)
        assert not reloading.done()
        assert len(one.engines) == 2, "one after the other"
        (tmp_path / "gate").touch()
        await asyncio.gather(using, reloading)
        assert one.daemon.settings == one.wanted
        assert one.daemon.transcriber.spool.keep == "always"
        assert one.daemon.slot.engine.candidate.name == "half on cpu", "as the file says"


@case
async def test_use_says_that_a_download_for_a_reload_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Inside(tmp_path, monkeypatch) as one:
        await one.daemon.slot.load()
        one.daemon.slot.loader.download = protocol.Download("someone/large", 1, 2)
        async with one.changes.one_at_a_time():
            with pytest.raises(BusyError, match="is downloading someone/large"):
                await one.ask("use", strategy="bfloat16")
        await one.ask("use", strategy="bfloat16")


@case
async def test_a_verdict_for_auto_exchanges_no_worker_of_a_daemon_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with Inside(tmp_path, monkeypatch) as one:
        await one.daemon.slot.load()
        recording = one.begin()
        moving = asyncio.create_task(one.changes.retune())
        await asyncio.sleep(0.05)
        one.daemon.end()
        await one.daemon.drain()
        await moving
        assert (await recording.result).outcome == "delivered"
        assert len(one.engines) == 1
        assert "asrd is ending" in caplog.text


@case
async def test_what_does_not_run_as_asked_is_said_wherever_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "asrd")
    async with Inside(tmp_path, monkeypatch, model="16-mixed=otherwise *=ok") as one:
        await one.daemon.slot.load()
        assert (await one.daemon.status()).precision_note == ""
        assert (await one.ask("use", strategy="bfloat16"))["said"] == "now on bfloat16 on cpu"
        said = (await one.ask("use", strategy="16-mixed"))["message"]
        why = "encoder: tf32 asked, float32 runs: TF32 is a unit of CUDA cards"
        assert said == f"now on 16-mixed on cpu; but {why}"
        assert (await one.daemon.status()).precision_note == why
        result = [
            record for record in caplog.records if getattr(record, "ASRD_EVENT", "") == "loaded"
        ]
        assert [record.levelno for record in result] == [
            logging.INFO,
            logging.INFO,
            logging.WARNING,
        ]
        assert result[-1].message.endswith(f"; but {why}")
        assert vars(result[-1])["ASRD_FALLBACK"] == why


@case
async def test_what_nobody_has_read_of_a_retry_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Inside(tmp_path, monkeypatch) as one:
        spool = one.daemon.transcriber.spool
        for _ in range(2):
            take = spool.begin()
            take.append(SAID)
            take.finish()
            spool.keep_for_retry(take, "no worker")
        first, second = (note.id for note in spool.waiting())
        answers = one.handlers.answer(Request("retry", take=first))
        assert [(await anext(answers)).get("recording") for _ in range(2)] == [None, first]
        await answers.aclose()  # as the server does where the line is broken
        assert [note.id for note in spool.waiting()] == [first, second]
        read = [reply async for reply in one.handlers.answer(Request("retry", all=True))]
        assert [reply["recording"] for reply in read if "recording" in reply] == [first, second]
        assert spool.waiting() == []
