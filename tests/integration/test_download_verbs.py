"""The verbs that need a model, from nothing to text, on a machine that has only a hub."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from asrd.engine.process import WORKER_ENVIRONMENT
from asrd.paths import DATA_FOLDER
from tests.fakes.hub_server import Hub, wait_for
from tests.hub_user import FILE, NAME, ROOT, SIZE, User
from tests.models.test_download import MIB, children

EVAL = DATA_FOLDER / "eval"
CLIP = EVAL / "0001.flac"
TEXT = json.loads((EVAL / "manifest.jsonl").read_text().splitlines()[0])["text"]


@pytest.fixture
def user(hub: Hub, tmp_path: Path) -> User:
    home, runtime = tmp_path / "a home", tmp_path / "run"
    home.mkdir()
    runtime.mkdir(0o700)
    return User(hub, home, tmp_path / "hf home", {"XDG_RUNTIME_DIR": str(runtime)})


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Return a manifest of one clip."""
    line = json.loads((EVAL / "manifest.jsonl").read_text().splitlines()[0])
    file = tmp_path / "one clip.jsonl"
    file.write_text(
        json.dumps(line | {"audio_filepath": str(EVAL / line["audio_filepath"])}) + "\n"
    )
    return file


def test_transcribe_downloads_the_model_and_writes_the_text(user: User, hub: Hub) -> None:
    hub.faults.break_after = [2 * MIB]
    done = user.verb("transcribe", "--model", NAME, CLIP)
    assert (done.returncode, done.stdout.strip()) == (0, TEXT)
    assert re.search(rf"^asrd: downloading {NAME}: .* of 5\.5 MB", done.stderr, re.MULTILINE)
    assert f"asrd: downloaded {NAME}: 5.5 MB of 5.5 MB\n" in done.stderr
    assert len(done.stderr.splitlines()) == 3, "asking, arriving, here"
    hub.forget()
    program = "import sys; from asrd.models import downloader; print(downloader.fetch_now(sys.argv[1], print))"
    with user.start(("-c", program, NAME), HF_HUB_OFFLINE="1") as process:
        assert Path(process.communicate(timeout=60)[0].strip()).stat().st_size == SIZE
    assert not hub.asked


@pytest.mark.parametrize("verb", ["transcribe", "compare", "compare --components", "tune"])
@pytest.mark.parametrize("trouble", ["gone", "other kind"])
def test_each_verb_says_why_a_model_cannot_be_had(
    trouble: str, verb: str, user: User, hub: Hub
) -> None:
    hub.files = (
        {FILE: b"not a model" * 1000} if trouble == "other kind" else {"someone/else/x": b""}
    )
    done = user.verb(*verb.split(), "--model", NAME, *([CLIP] if verb == "transcribe" else []))
    assert (done.returncode, done.stdout) == (66, "")
    lines = done.stderr.splitlines()
    assert lines[-2].startswith(
        f"asrd: there is no model {NAME} on the hub" if trouble == "gone" else f"asrd: {NAME} on"
    )
    assert lines[-1].startswith("  hint: ")
    assert "Traceback" not in done.stderr


def test_compare_from_nothing_to_its_report(user: User, hub: Hub, manifest: Path) -> None:
    done = user.verb(
        "compare",
        "--model",
        NAME,
        "--manifest",
        manifest,
        "--strategies",
        "fp32",
        "--repeats",
        "1",
        "--json",
        "-",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["model"], found["family"]) == (NAME, "ctc")
    assert f"asrd: downloaded {NAME}" in done.stderr
    assert hub.sent < SIZE + MIB, "each worker of a comparison is given the same file"


def test_tune_from_nothing_to_its_verdict(user: User, hub: Hub, manifest: Path) -> None:
    done = user.verb(
        "tune",
        "--model",
        NAME,
        "--manifest",
        manifest,
        "--repeats",
        "1",
        "--device",
        "cpu",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["key"]["size"] == SIZE
    assert f"asrd: downloaded {NAME}" in done.stderr
    assert hub.sent < SIZE + MIB


class Daemon:
    """`asrd run` over a file as its microphone."""

    def __init__(self, user: User, folder: Path) -> None:
        self.user, self.socket = user, folder / "asrd.sock"
        words = [
            "-m",
            "asrd",
            "run",
            "--source",
            f"file:{CLIP}",
            "--sink",
            "stdout",
            "--model",
            NAME,
        ]
        self.process = user.start([*words, "--socket", self.socket])

    def status(self) -> dict[str, object]:
        done = self.user.verb("status", "--json", "--socket", self.socket)
        found: dict[str, object] = json.loads(done.stdout or "{}")
        return found

    def downloading(self, least: int) -> bool:
        state = self.status().get("download")
        return isinstance(state, dict) and state["bytes"] >= least

    def end(self) -> tuple[str, str]:
        out, err = self.process.communicate(timeout=240)
        assert "Traceback" not in err, err
        return out, err


def test_run_records_while_the_model_comes_is_killed_and_goes_on(
    user: User, hub: Hub, tmp_path: Path
) -> None:
    hub.faults.hold_at = 3 * MIB
    first = Daemon(user, tmp_path)
    try:
        wait_for(lambda: first.downloading(2 * MIB))
        state = first.status()
        assert state["download"] == {"model": NAME, "bytes": user.here, "total": SIZE}
        assert state["state"] in ("LISTENING", "FLUSHING")
        line = user.verb("status", "--socket", first.socket).stdout.splitlines()[0]
        assert re.search(rf"download {NAME}: [23]\.\d MB of 5\.5 MB", line), line
    finally:
        first.process.send_signal(signal.SIGKILL)
        first.end()
    wait_for(
        lambda: (
            not [
                pid
                for pid in children("asrd.models.download")
                if str(user.hf_home) in variables(pid)
            ]
        )
    )
    before = user.here
    assert before >= 2 * MIB
    hub.faults.gate.set()
    hub.forget()
    second = Daemon(user, tmp_path)
    out, err = second.end()
    assert (second.process.returncode, out.strip()) == (0, TEXT), err
    assert max(hub.ranges) >= before
    assert hub.sent <= SIZE - before + MIB


def variables(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return ""


def test_run_ends_in_a_moment_while_the_model_comes_and_keeps_what_was_said(
    user: User, hub: Hub, tmp_path: Path
) -> None:
    hub.faults.hold_at = 2 * MIB
    daemon = Daemon(user, tmp_path)
    wait_for(lambda: daemon.downloading(MIB))
    wait_for(lambda: daemon.status().get("state") == "FLUSHING")
    daemon.process.terminate()
    out, _ = daemon.end()
    assert out == ""
    kept = user.verb("recordings").stdout
    assert "asrd ended while its model was downloaded" in kept


def test_run_says_why_a_model_cannot_be_had_and_keeps_what_was_said(
    user: User, hub: Hub, tmp_path: Path
) -> None:
    hub.files = {"someone/else/x": b""}
    daemon = Daemon(user, tmp_path)
    out, err = daemon.end()
    assert (daemon.process.returncode, out) == (75, "")
    assert f"there is no model {NAME} on the hub" in err
    assert f"there is no model {NAME} on the hub" in user.verb("recordings").stdout


LOADS = """
import json, socket, sys
asked = []
def note(event, args):
    if event in ("socket.connect", "socket.getaddrinfo") and "AF_UNIX" not in repr(args[0]):
        asked.append(repr(args))
sys.addaudithook(note)
from asrd import protocol
from asrd.precision.strategies import STRATEGY_TABLE
from asrd.worker.startup import start_recognizer
fp32 = STRATEGY_TABLE["fp32"]
tests = [start_recognizer(protocol.Start(name, fp32, threads=1), lambda _: None).self_test for name in sys.argv[1:]]
print(json.dumps({"passed": [one.passed for one in tests], "asked": asked}))
"""


def test_a_worker_loads_the_shipped_models_without_any_network_and_asks_nobody(user: User) -> None:
    alone = [shutil.which("unshare") or "", "-n"]
    if (
        os.geteuid()
        or not alone[0]
        or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("taking the network away needs root")
    command = [*alone, sys.executable, "-c", LOADS, "demo", "demo-ctc", "demo-tdt"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=user.environment | WORKER_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"passed": [True] * 3, "asked": []}
