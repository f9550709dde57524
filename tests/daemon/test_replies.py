"""What the running daemon says: through its verbs where a state can be made, and of every state by
the sentences."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from asrd import hints
from asrd.audio.formats.containers import file_kind
from asrd.config.loading import Loaded
from asrd.config.settings import Settings
from asrd.daemon import replies
from asrd.dictation.metrics import _end_of
from asrd.dictation.recording import DictationResult
from asrd.errors import AsrdError, ConfigError, ModelError, UsageError
from asrd.paths import DATA_FOLDER
from asrd.recordings.files import RecordingInfo
from asrd.recordings.sink_names import sink_name
from asrd.text.wording import about, counted, parted, with_hint
from tests.daemon.test_daemon import Start, daemon, samples
from tests.helpers import ROOT

__all__ = ["daemon"]


# -- sentences
# --------------------------------------------------------------------------------------------------------

NOUNS = ("recording", "word", "sample", "device", "restart", "buffer", "sink")


def test_a_count_agrees_with_its_noun() -> None:
    draw = random.Random(15)
    for noun in NOUNS:
        for number in (0, 1, 2, draw.randrange(3, 10_000)):
            assert counted(number, noun) == f"{number} {noun}{'s' * (number != 1)}"
    assert (counted(1, "entry", "entries"), counted(2, "entry", "entries")) == (
        "1 entry",
        "2 entries",
    )


def test_nothing_that_asrd_prints_counts_one_in_the_plural() -> None:
    """A number before a plural in a text goes through `counted`; what cannot be one is listed."""
    pattern = re.compile(r"\{[^{}]*\} (recordings|takes|restarts|devices)\b")
    found = [
        f"{path.name}: {line.strip()}"
        for path in (ROOT / "asrd").glob("*.py")
        for line in path.read_text().splitlines()
        if pattern.search(line) and path.name in LIVE
    ]
    assert found == MANY


LIVE = (
    "control.py",
    "daemon.py",
    "deliveries.py",
    "recorder.py",
    "replies.py",
    "retry.py",
    "transcriber.py",
    "service.py",
)
MANY: list[str] = []

SAID = {
    ("type", "nothing can type here"): "type: nothing can type here",
    (
        "command:false",
        "command:false ended with exit code 1",
    ): "command:false ended with exit code 1",
    ("command:false", "command:false: is not installed"): "command:false: is not installed",
    ("command:fals", "command:false is slow"): "command:fals: command:false is slow",
    ("Blue Yeti", "Blue Yeti: is gone"): "Blue Yeti: is gone",
    ("Blue", "Blue Yeti: is gone"): "Blue Yeti: is gone",
    ("stdout", "standard output cannot be written"): "stdout: standard output cannot be written",
    ("", "nothing"): "nothing",
    ("a", "a"): "a",
}


@pytest.mark.parametrize("name", SAID)
def test_a_name_is_said_once(name: tuple[str, str]) -> None:
    assert about(*name) == SAID[name]


@pytest.mark.parametrize(
    ("message", "hint", "whole"),
    [
        ("no room", "", "no room"),
        ("no room", "make some", "no room (make some)"),
        ("make it", "make it", "make it"),
    ],
)
def test_a_hint_is_said_once(message: str, hint: str, whole: str) -> None:
    assert with_hint(message, hint) == whole


COMMANDS = {
    "type": "type",
    "command:cat": "command:cat",
    "command:cat > /tmp/x": "command:cat",
    "command:TOKEN=abc post --key=def": "command:post",
    "command:A=1 B=2 /opt/my/program x": "command:/opt/my/program",
    "command:env X=1 y": "command:env",
    "command:  padded  words": "command:padded",
    "command:ONLY=secret": "command:",
    "command:sh -c 'X=1 y'": "command:sh",
    "command:a=b": "command:",
    "stdout": "stdout",
}


@pytest.mark.parametrize("key", COMMANDS)
def test_a_command_is_named_by_its_program_and_nothing_that_may_be_secret(key: str) -> None:
    assert sink_name(key) == COMMANDS[key]


def note(
    text: str = "", transcribed: bool = False, reason: str = "no worker", delivered: bool = False
) -> RecordingInfo:
    return RecordingInfo(
        "20260101-000000-aaaa", 1.0, reason, text, delivered, 2.0, transcribed=transcribed
    )


WAITING = {
    (0, 1): "1 recording became text that was not delivered",
    (1, 0): "1 recording is not text yet",
    (2, 0): "2 recordings are not text yet",
    (1, 1): "1 recording is not text yet, 1 recording became text that was not delivered",
    (3, 2): "3 recordings are not text yet, 2 recordings became text that was not delivered",
}


@pytest.mark.parametrize("counts", WAITING)
def test_what_waits_says_whether_it_is_text(counts: tuple[int, int]) -> None:
    notes = [note() for _ in range(counts[0])] + [note("words", True) for _ in range(counts[1])]
    rest = f"({2 * len(notes)} s in all); asrd retry --all --deliver finishes them"
    assert replies.waiting(notes) == f"{WAITING[counts]} {rest}"


def test_the_list_of_recordings_tells_text_from_sound() -> None:
    assert note("words", True, "command:false ended with exit code 1").fate == (
        "transcribed, not delivered: command:false ended with exit code 1"
    )
    assert note(reason="no worker").fate == "no worker"
    assert note(delivered=True).fate == "delivered"


EMPTY = DictationResult("", "", "empty", "")
LAST: dict[str, tuple[DictationResult, bool, int, str, str, str]] = {
    "a text": (DictationResult("a", "words", "delivered"), False, 0, "", "", ""),
    "a text, and a recording": (DictationResult("a", "words", "delivered"), True, 0, "", "", "a recording is going on"),
    "a text, and one to come": (
        DictationResult("a", "words", "delivered"), False, 1, "", "",
        "1 recording is still being transcribed; asrd last --wait"),
    "two to come": (EMPTY, False, 2, "", "there was no recording", "2 recordings are still being transcribed;"),
    "one to come, model loads": (
        EMPTY, False, 1, "import", "there was no recording",
        "transcribed (the worker imports the model's code); asrd last"),
    "a text that no sink took": (
        DictationResult("a", "words", "kept", "type: no"), False, 0, "", "",
        "the text was not delivered: type: no; asrd retry"),
    "no text, kept": (
        DictationResult("a", "", "kept", "no worker"), False, 0, "",
        "did not become text: no worker; asrd retry", ""),
    "no text, lost": (
        DictationResult("a", "", "lost", "no worker"), False, 0, "",
        "did not become text: no worker", ""),
    "no word": (
        DictationResult("a", "", "empty", seconds=3.21), False, 0, "",
        "recognized in the last recording, 3.2 s", ""),
    "no sound": (DictationResult("a", "", "empty"), False, 0, "", "no sound came in during the last recording", ""),
    "nothing at all": (EMPTY, False, 0, "", "there was no recording since the daemon started", ""),
}  # fmt: skip
"""State -> the last result, a recording going on, how many are transcribed, what loads; why no
text; the note."""


@pytest.mark.parametrize("state", LAST)
def test_last_says_what_is_missing(state: str) -> None:
    result, recording, busy, loading, detail, beside = LAST[state]
    result = replies.last(result, ())
    assert detail in replies.detail_of(result)
    assert bool(replies.detail_of(result)) is not bool(result.text)
    found = replies.note_of(result, recording, busy, loading)
    assert beside in found
    assert bool(found) is bool(beside)


def test_after_a_restart_the_newest_kept_text_is_the_last() -> None:
    notes = [note("older", True), note("newer", True, "type: no"), note()]
    found = replies.last(EMPTY, notes)
    assert (found.text, found.outcome, found.detail) == ("newer", "kept", "type: no")
    assert "1 recording kept: asrd recordings" in replies.last(EMPTY, [note()]).detail


STEPS = {
    "starting": "the worker starts", "import": "imports", "restore /m/demo.nemo": "reads the weights",
    "cast half": "converts the weights to half", "cast": "converts", "move": "moves", "warm-up": "warms up",
    "self-test": "tests itself", "download a/b: 1 of 2 MB": "downloading a/b: 1 of 2 MB", "": "", "else": "else",
}  # fmt: skip


@pytest.mark.parametrize("loading", STEPS)
def test_what_loads_is_a_sentence(loading: str) -> None:
    assert STEPS[loading] in replies.loading_words(loading)


REFUSED: list[tuple[AsrdError, type[AsrdError], int]] = [
    (UsageError("unknown model 'x'", "known: demo"), ConfigError, 78),
    (UsageError("unknown strategy 'x'"), ConfigError, 78),
    (ConfigError("sink is no setting"), ConfigError, 78),
    (ModelError("no such checkpoint"), ModelError, 66),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_a_reload_that_fails_names_the_setting_and_what_stays(number: int) -> None:
    error, kind, code = REFUSED[number]
    loaded = Loaded(Settings(), {"model": "/etc/mine.toml"})
    found = replies.unchanged(error, loaded, ["model"])
    assert (type(found), found.exit_code, found.hint) == (kind, code, error.hint)
    assert (
        found.message == f"model (/etc/mine.toml): {error.message}; the settings stay as they were"
    )
    assert (
        replies.unchanged(error, None, []).message
        == f"{error.message}; the settings stay as they were"
    )


@pytest.mark.parametrize(
    ("source", "by_key", "said"),
    [("mic", True, "the key"), ("mic", False, "the end of the recording"), ("pipe", False, "the end of the sound"),
     ("file:a.wav", False, "the end of the sound"), ("pipe", True, "the key")],
)  # fmt: skip
def test_only_a_key_is_called_a_key(source: str, by_key: bool, said: str) -> None:
    class One:
        settings = Settings(source=source)

    One.by_key = by_key  # type: ignore[attr-defined]  # a stand-in with what is asked of a recording
    assert _end_of(One()) == said  # type: ignore[arg-type]  # as above


# -- units
# ------------------------------------------------------------------------------------------------------------

SYSTEMCTL = """#!/bin/sh
case "$STATE" in none) exit 1;; hang) exec sleep 60;; esac
for unit in one two; do echo "$STATE"; done
"""

UNITS: dict[str, tuple[bool, str, bool, tuple[str, ...], tuple[str, ...]]] = {
    "nothing is installed": (
        False,
        "none",
        True,
        ("asrd run", "service install --now"),
        ("systemctl",),
    ),
    "nothing is installed, a manager": (
        False,
        "inactive",
        True,
        ("asrd run", "service install"),
        ("systemctl",),
    ),
    "installed, down": (
        True,
        "inactive",
        True,
        ("systemctl --user start asrd.socket asrd.service",),
        ("reset-",),
    ),
    "installed, failed": (
        True,
        "failed",
        True,
        ("reset-failed asrd.socket", "start asrd.socket"),
        ("install",),
    ),
    "installed, no manager": (True, "none", True, ("no user manager", "asrd run"), ("systemctl",)),
    "installed, manager hangs": (True, "hang", True, ("no user manager",), ("systemctl",)),
    "installed, other socket": (
        True,
        "inactive",
        False,
        ("another socket", "asrd run --socket"),
        ("systemctl",),
    ),
    "installed, activating": (
        True,
        "activating",
        True,
        ("systemctl --user start",),
        ("reset-failed",),
    ),
}
"""State -> unit installed, what systemctl says, the usual socket; what the hint names, and what it
must not."""


@pytest.mark.parametrize("state", UNITS)
@pytest.mark.parametrize("verb", ["toggle", "status", "last"])
def test_a_hint_names_only_units_that_are_there(state: str, verb: str, tmp_path: Path) -> None:
    installed, answer, usual, says, never = UNITS[state]
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "systemctl"
    program.write_text(SYSTEMCTL)
    program.chmod(0o755)
    if installed:
        units = tmp_path / "config" / "systemd" / "user"
        units.mkdir(parents=True)
        (units / "asrd.service").write_text("[Service]\nExecStart=asrd run\n")
        (units / "asrd.socket").write_text("[Socket]\nListenStream=%t/asrd.sock\n")
    where = [] if usual else ["--socket", os.fspath(tmp_path / "odd place.sock")]
    done = subprocess.run(
        [sys.executable, "-m", "asrd", verb, *where], cwd=ROOT, capture_output=True, text=True, check=False,
        env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "HOME": os.fspath(tmp_path), "STATE": answer,
             "XDG_CONFIG_HOME": f"{tmp_path}/config", "XDG_RUNTIME_DIR": os.fspath(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 69
    hint = done.stderr.splitlines()[1]
    for part in says:
        assert part in hint
    for part in never:
        assert part not in hint


def test_a_daemon_that_runs_is_named_with_what_ends_it(daemon: Start) -> None:
    one = daemon()
    assert one.process is not None
    done = one.verb("run")
    result = done.communicate(timeout=30)[1].splitlines()
    assert done.returncode == 73
    assert result[-1].endswith(f"to end it: kill {one.process.pid}")
    assert hints.listener(one.socket) == one.process.pid


# -- verbs
# ------------------------------------------------------------------------------------------------------------


def test_without_sound_every_verb_says_so_and_the_recording_goes_on(daemon: Start) -> None:
    one = daemon()
    one.until(lambda: one.state == "IDLE")
    (one.home / "lost").touch()
    begun = one.verb("toggle").communicate(timeout=20)[0]
    assert begun.splitlines() == [
        "recording, but no sound comes in: nothing comes", "asrd tries again until you stop the recording",
    ]  # fmt: skip
    assert one.state == "LISTENING"
    time.sleep(1.3)  # else it is the key, held
    assert (
        one.verb("toggle").communicate(timeout=20)[0]
        == "stopped; no sound came in: nothing comes\n"
    )
    waited = one.verb("start", "--wait", "--seconds", "1")
    out, err = waited.communicate(timeout=30)
    assert (waited.returncode, out) == (65, "")
    assert err.splitlines()[1] == "asrd: no sound came in: nothing comes"
    one.verb("start").communicate(timeout=20)
    (one.home / "lost").unlink()
    one.until(lambda: (one.ask(verb="status")["recording"] or {}).get("seconds", 0) > 0.6)
    one.ask(verb="stop")
    assert samples(one.settled()), "it appeared within the recording, and was heard"


def test_without_a_microphone_and_a_model_each_has_its_line_and_its_hint(daemon: Start) -> None:
    one = daemon(ASRD_MODEL="")
    one.until(lambda: one.state == "UNLOADED")
    (one.home / "lost").touch()
    result = one.verb("toggle").communicate(timeout=20)[0].splitlines()
    assert [line.partition(":")[0] for line in result] == [
        "recording, but no sound comes in", "asrd tries again until you stop the recording",
        "no model is chosen", "  hint",
    ]  # fmt: skip
    assert max(map(len, result)) < 160 + len(str(one.home))


PROBLEMS = {
    "is muted": ("is muted", ""),
    "there is no microphone (plug one in; then: cat /proc/asound/cards)":
        ("there is no microphone", "plug one in; then: cat /proc/asound/cards"),
    "no server (export XDG_RUNTIME_DIR=/run/user/$(id -u))": ("no server", "export XDG_RUNTIME_DIR=/run/user/$(id -u)"),
    "": ("", ""), "a)": ("a)", ""), "(b)": ("(b)", ""), "x(b)": ("x(b)", ""),
}  # fmt: skip


def test_a_hint_is_taken_off_as_it_was_put_on() -> None:
    draw = random.Random(17)
    for text, whole in PROBLEMS.items():
        assert parted(text) == whole
    for _ in range(200):
        message = " ".join(draw.choices(["no", "sound", "$(id -u)", "card", "x:"], k=3))
        hint = " ".join(
            draw.choices(["try", "$(id -u)", "(this)", "command"], k=draw.randint(1, 3))
        )
        if not message.endswith(")") and hint not in message:
            assert parted(with_hint(message, hint)) == (message, hint)


WRONG = {
    ("retry", "nope"): (2, "there is no recording 'nope'"),
    ("retry", "--all", "x"): (2, "takes no recording name"),
    ("use", "quickly"): (78, "quickly"),
    ("use", "fp17"): (78, "fp17"),
    ("use", "haalf"): (78, "haalf"),
    ("use",): (2, "STRATEGY"),
    ("retry", "2019"): (2, "'2019'"),
    ("retry", "--every"): (2, "--every"),
    ("retry",): (1, "no recording waits"),
    ("retry", "--deliver"): (1, "no recording waits"),
    ("retry", "--again"): (1, "no recording waits"),
    ("retry", "--all"): (0, "no recording waits"),
    ("retry", "--all", "--deliver"): (0, "no recording waits"),
    ("use", "half"): (66, "no model is chosen"),
    ("use", "auto"): (66, "no model is chosen"),
    ("retry", "nope", "--deliver"): (2, "'nope'"),
    ("retry", "zz", "--again"): (2, "'zz'"),
    ("retry", "--json", "nope"): (2, "'nope'"),
    ("use", "--json", "int9"): (78, "int9"),
    ("use", "bf17"): (78, "bf17"),
}
"""Words to a daemon without a model and without recordings -> exit code, and what is said."""


def test_a_wrong_word_is_told_before_the_missing_model(daemon: Start) -> None:
    one = daemon(ASRD_MODEL="")
    one.until(lambda: one.state == "UNLOADED")
    for words, (code, said) in WRONG.items():
        asked = one.verb(*words)
        out, err = asked.communicate(timeout=20)
        assert (asked.returncode, out) == (code, ""), (words, err)
        assert said in err, words
        assert len(err.splitlines()) == (1 if code == 0 else 2), err
    assert one.ask(verb="transcribe", path="no/whole/path")["code"] == 2
    one.speak()
    one.ask(verb="stop")
    one.until(lambda: one.ask(verb="takes")["takes"])
    asked = one.verb("retry")
    assert "no model is chosen" in asked.communicate(timeout=20)[1]
    assert asked.returncode == 66


def test_last_waits_for_what_is_still_transcribed(daemon: Start) -> None:
    one = daemon(ASRD_MODEL="*=gate")
    nothing = one.verb("last")
    out, err = nothing.communicate(timeout=20)
    assert (nothing.returncode, out) == (1, "")
    assert "there was no recording since the daemon started" in err
    one.speak()
    one.ask(verb="stop")
    early = one.verb("last")
    out, err = early.communicate(timeout=20)
    assert (early.returncode, out) == (1, "")
    assert err.startswith("asrd: 1 recording is still being transcribed")
    waiting = one.verb("last", "--wait")
    time.sleep(0.5)
    assert waiting.poll() is None
    (one.home / "gate").touch()
    out, err = waiting.communicate(timeout=20)
    assert (waiting.returncode, err) == (0, "")
    assert samples(out)


def test_silence_counts_from_the_first_speech_and_there_is_an_end_without_any(
    daemon: Start,
) -> None:
    one = daemon()
    one.until(lambda: one.state == "IDLE")
    (one.home / "lost").touch()
    patient = one.verb("start", "--wait", "--silence", "0.5")
    time.sleep(2.0)
    assert patient.poll() is None, "nobody has spoken yet"
    assert one.state == "LISTENING"
    (one.home / "lost").unlink()
    one.until(lambda: (one.ask(verb="status")["recording"] or {}).get("seconds", 0) > 1.0)
    (one.home / "lost").touch()  # nobody speaks any more, and no sound comes either
    out, _ = patient.communicate(timeout=20)
    assert patient.returncode == 0
    assert samples(out)


def test_use_and_reload_say_how_far_they_are_and_what_became_of_it(
    daemon: Start, tmp_path: Path
) -> None:
    file = tmp_path / "config.toml"
    file.write_text('model = "half=gate *=ok"\nsinks = ["none"]\n')
    one = daemon("--config", os.fspath(file), up=False)
    del one.environment["ASRD_MODEL"], one.environment["ASRD_SINKS"]
    one.up("--config", os.fspath(file))
    one.until(lambda: one.state == "IDLE")
    first, steps = one.verb("use", "half", "--json"), []
    one.until(lambda: len(one.worker) == 2)
    file.write_text('model = "half=gate *=ok"\nsinks = ["none"]\nstrategy = "bfloat16"\n')
    second = one.verb("reload")
    assert second.stderr is not None
    steps.append(second.stderr.readline())
    assert steps[0].startswith("asrd: waiting for another change of the settings: ")
    (one.home / "gate").touch()
    assert '"load_seconds":' in first.communicate(timeout=20)[0]
    out, _ = second.communicate(timeout=20)
    assert re.fullmatch(
        r"changed: strategy; now .* runs as bfloat16 on cpu, loaded in \d+\.\d s\n", out
    )
    file.write_text('model = "nobody/nothing-here"\nsinks = ["none"]\nstrategy = "nonsense"\n')
    third = one.verb("reload")
    _, err = third.communicate(timeout=20)
    assert third.returncode == 78
    assert "the settings stay as they were" in err
    assert os.fspath(file) in err
    assert one.ask(verb="status")["strategy"] == "bfloat16"


def test_a_load_counts_from_the_start_of_the_worker(daemon: Start) -> None:
    one = daemon(ASRD_MODEL="*=gate")
    time.sleep(1.5)
    (one.home / "gate").touch()
    one.until(lambda: one.state == "IDLE")
    seconds = one.ask(verb="status")["load_seconds"]
    assert seconds >= 1.0
    result = re.search(r"runs as fp32 on fake after ([\d.]+) s", one.log.read_text())
    assert result is not None
    assert float(result[1]) == pytest.approx(seconds, abs=0.1)


def test_a_terminal_is_told_the_next_step_and_a_service_is_not(daemon: Start) -> None:
    one = daemon()
    one.until(
        lambda: "press your hotkey, or run in another terminal: asrd toggle" in one.log.read_text()
    )
    one.end()
    one.log.write_text("")
    one.environment["NOTIFY_SOCKET"] = os.fspath(one.home / "notify")
    one.up()
    one.until(lambda: one.state == "IDLE")
    assert "hotkey" not in one.log.read_text()


def test_a_terminal_sees_the_steps_of_a_load(daemon: Start) -> None:
    one = daemon(up=False)
    leader, follower = os.openpty()
    command = [sys.executable, "-m", "tests.fakes.deaf_daemon", "run"]
    one.process = subprocess.Popen(
        command, cwd=ROOT, env=one.environment, stdin=follower, stderr=follower
    )
    os.close(follower)
    one.until(lambda: one.socket.exists() and one.state == "IDLE")
    shown = os.read(leader, 1 << 16).decode()
    os.close(leader)
    assert "asrd: the worker starts\r\n" in shown
    assert shown.count("the worker starts") == 1


# -- a file where raw sound is due
# ------------------------------------------------------------------------------------

PAD = b"\0" * 64
FILES: dict[str, tuple[bytes, str]] = {
    "WAV": (b"RIFF\x24\0\0\0WAVEfmt ", "a WAV file"),
    "WAV of unknown length": (b"RIFF\xff\xff\xff\xffWAVEfmt ", "a WAV file"),
    "RF64": (b"RF64\xff\xff\xff\xffWAVEds64", "a WAV file"),
    "BW64": (b"BW64\xff\xff\xff\xffWAVEds64", "a WAV file"),
    "big-endian WAV": (b"RIFX\0\0\0\x24WAVEfmt ", "a WAV file"),
    "FLAC": (b"fLaC\0\0\0\x22", "a FLAC file"),
    "Ogg": (b"OggS\0\x02", "an Ogg file"),
    "AIFF": (b"FORM\0\0\0\x24AIFFCOMM", "an AIFF file"),
    "AIFC": (b"FORM\0\0\0\x24AIFCFVER", "an AIFF file"),
    "AU": (b".snd\0\0\0\x18", "an AU file"),
    "CAF": (b"caff\0\x01\0\0desc", "a CAF file"),
    "MP3 with a tag": (b"ID3\x04\0\0\0\0\0\0", "an MP3 file"),
    "m4a": (b"\0\0\0\x20ftypM4A ", "an MP4 file"),
    "mp4": (b"\0\0\0\x18ftypisom", "an MP4 file"),
    "WebM": (b"\x1a\x45\xdf\xa3\x9fB\x86\x81", "a WebM or Matroska file"),
    "WMA": (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a WMA file"),
    "AMR": (b"#!AMR\n", "an AMR file"),
    "WavPack": (b"wvpk\0\0\0\0", "a WavPack file"),
    "Wave64": (b"riff\x2e\x91\xcf\x11", "a Wave64 file"),
    "Monkey's Audio": (b"MAC \x96\x0f\0\0", "a Monkey's Audio file"),
    "silence": (b"", ""),
    "RIFF that is no WAVE": (b"RIFF\x24\0\0\0AVI LIST", ""),
    "a tag's letters alone": (b"ID3 is not a tag", ""),
}
"""Name -> how it begins; what it is called, "" for raw sound."""


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_told_from_raw_sound(name: str) -> None:
    begins, kind = FILES[name]
    assert file_kind(begins + PAD) == kind
    assert file_kind((begins + PAD)[:11]) == "", "too little to judge by"


def test_raw_sound_of_any_length_is_never_taken_for_a_file() -> None:
    draw = random.Random(15)
    for _ in range(2000):
        assert file_kind(draw.randbytes(draw.randrange(64))) == ""


@pytest.mark.parametrize("name", ["WAV", "FLAC", "Ogg"])
@pytest.mark.parametrize("at_once", [3, 64])
def test_a_file_on_a_pipe_ends_with_its_sentence(daemon: Start, name: str, at_once: int) -> None:
    one = daemon(up=False)
    command = [sys.executable, "-m", "tests.fakes.deaf_daemon", "run", "--source", "pipe"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=one.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    time.sleep(1.0 if at_once == 3 else 0.0)  # a worker would be there by then
    data = FILES[name][0] + PAD
    for start in range(0, len(data), at_once):
        process.stdin.write(data[start : start + at_once])
        process.stdin.flush()
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (65, b"")
    assert f"standard input: is {FILES[name][1]}, and not raw audio".encode() in err
    assert b"asrd transcribe -" in err
    assert not (one.home / "started").exists(), "no worker was started for it"


def test_a_pipe_that_stays_silent_has_its_model_loaded(daemon: Start) -> None:
    one = daemon(up=False)
    command = [sys.executable, "-m", "tests.fakes.deaf_daemon", "run", "--source", "pipe"]
    with subprocess.Popen(command, cwd=ROOT, env=one.environment, stdin=subprocess.PIPE) as process:
        limit = time.monotonic() + 60
        while not (one.home / "started").exists():
            assert time.monotonic() < limit, "no worker was started"
            time.sleep(0.1)
        process.terminate()


def test_a_pipe_shorter_than_any_header_is_heard(daemon: Start) -> None:
    one = daemon(up=False)
    command = [sys.executable, "-m", "tests.fakes.deaf_daemon", "run", "--source", "pipe"]
    done = subprocess.run(
        command, cwd=ROOT, env=one.environment, input=b"\1\0\2\0\3", capture_output=True, timeout=30
    )
    assert done.returncode == 0
    assert b"in the middle of a sample" in done.stderr


# -- a model that is refused, and one that is not whole
# ---------------------------------------------------------------


def test_a_refused_model_costs_one_worker_and_a_file_that_changes_another(tmp_path: Path) -> None:
    clip = DATA_FOLDER / "eval" / "0001.flac"
    model = tmp_path / "bad.nemo"
    model.write_bytes(b"\0" * 5000)
    done = subprocess.run(
        [sys.executable, "-m", "asrd", "run", "--source", f"file:{clip}", "--sink", "stdout", "--model", model],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
        env=os.environ | {"XDG_RUNTIME_DIR": os.fspath(tmp_path), "XDG_STATE_HOME": os.fspath(tmp_path)},
    )  # fmt: skip
    assert done.stderr.count("starting a worker") == 1
    assert done.stderr.count("it holds no model_config.yaml") == 1, "said once"
    assert done.returncode == 75


def test_a_download_that_was_broken_off_is_shown(tmp_path: Path) -> None:
    blobs = tmp_path / "models--someone--large" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "abc.asrd.incomplete").write_bytes(b"\0" * 2_500_000)
    here = os.environ | {
        "HF_HUB_CACHE": os.fspath(tmp_path),
        "COLUMNS": "200",
        "XDG_RUNTIME_DIR": os.fspath(tmp_path),
    }
    said = "2.5 MB of someone/large are kept; the next download continues from there"
    for words in (["models"], ["doctor", "--model", "someone/large"]):
        done = subprocess.run(
            [sys.executable, "-m", "asrd", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            env=here,
        )
        assert said in done.stdout.replace("\n", " ")
