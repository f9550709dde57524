"""A model is chosen or it is not, and every door says the same of it; no demo listens to a person
unasked."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile

from asrd.cli import service, systemctl, systemd_units
from asrd.config import loading
from asrd.config.settings import Settings
from asrd.models import choice, names
from tests.daemon.test_daemon import ROOT, Inside, Start, daemon
from tests.dictation.test_transcriber import SAID, case, until
from tools import demo_speech

__all__ = ["daemon"]  # a fixture

LINE = 'put the line model = "nvidia/parakeet-tdt-0.6b-v3" at the top of ~/.config/asrd/config.toml'
SENTENCE = "no model is chosen: asrd records and keeps the audio, but writes no text"


# -- where a choice comes from
# ----------------------------------------------------------------------------------------


class Given(NamedTuple):
    """What names a model, and to what a daemon listens. None: not there at all; "": there, and
    empty."""

    file: str | None
    variable: str | None
    flag: str | None
    source: str


EXPECTED = {
    # file, variable, flag, source -> the model that runs; "" is none; then what is said of it
    Given(None, None, None, "mic"): ("", SENTENCE),
    Given("", None, None, "mic"): ("", SENTENCE),
    Given(None, "", None, "mic"): ("", SENTENCE),
    Given(None, None, "", "mic"): ("", SENTENCE),
    Given("", "", "", "mic"): ("", SENTENCE),
    Given("demo", None, None, "mic"): ("demo", "synthetic voices"),
    Given("demo", "", None, "mic"): ("demo", "synthetic voices"),
    Given("demo", "", "", "mic"): ("demo", "synthetic voices"),
    Given(None, "demo-ctc", None, "mic"): ("demo-ctc", "synthetic voices"),
    Given(None, None, "demo-tdt", "mic"): ("demo-tdt", "synthetic voices"),
    Given(None, "demo-ctc", "", "mic"): ("demo-ctc", "synthetic voices"),
    Given("", "", "demo", "mic"): ("demo", "synthetic voices"),
    Given("own/model", None, None, "mic"): ("own/model", ""),
    Given("own/model", "demo", None, "mic"): ("demo", "synthetic voices"),
    Given("demo", "own/model", None, "mic"): ("own/model", ""),
    Given("demo", "demo", "own/model", "mic"): ("own/model", ""),
    Given("own/model", "", "", "mic"): ("own/model", ""),
    Given(str(names.SHIPPED["demo"]), None, None, "mic"): (
        str(names.SHIPPED["demo"]),
        "synthetic voices",
    ),
    Given(None, None, None, "pipe"): ("demo", "synthetic voices"),
    Given("", "", "", "pipe"): ("demo", "synthetic voices"),
    Given(None, None, None, "file:talk.flac"): ("demo", "synthetic voices"),
    Given(None, "", None, "file:talk.flac"): ("demo", "synthetic voices"),
    Given("own/model", None, None, "file:talk.flac"): ("own/model", ""),
    Given(None, None, "demo-ctc", "pipe"): ("demo-ctc", "synthetic voices"),
}


@pytest.mark.parametrize(
    "given", EXPECTED, ids=lambda given: "-".join(map(str, given)).replace("/", "_")[-60:]
)
def test_a_model_runs_on_a_microphone_only_where_it_was_named(given: Given, tmp_path: Path) -> None:
    lines = [
        f'source = "{given.source}"',
        *([] if given.file is None else [f'model = "{given.file}"']),
    ]
    random.Random(str(given)).shuffle(lines)
    (tmp_path / "config.toml").write_text("\n".join(lines))
    environment = {"HOME": str(tmp_path)} | (
        {} if given.variable is None else {"ASRD_MODEL": given.variable}
    )
    loaded = loading.load(tmp_path / "config.toml", {"model": given.flag}, environment)
    model, said = EXPECTED[given]
    settings = choice.for_source(loaded, given.source).settings
    assert settings.model == model
    note = choice.note(settings)
    assert said in note
    assert bool(said) == bool(note)


def test_the_demo_models_know_as_many_words_as_is_said() -> None:
    assert len(demo_speech.vocabulary()) == choice.DEMO_WORDS


def test_a_hint_names_the_very_file_that_is_read(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    assert choice.hint(None, home).startswith(LINE)
    assert "at the top of ~/own.toml, then" in choice.hint(tmp_path / "own.toml", home)
    assert "top of /etc/asrd.toml, then" in choice.hint(Path("/etc/asrd.toml"), home)
    assert f"top of {tmp_path}/x/asrd/config.toml" in choice.hint(
        None, {"XDG_CONFIG_HOME": f"{tmp_path}/x"}
    )
    assert choice.hint(None, {**home, "ASRD_CONFIG": "/c.toml"}).endswith(
        "/c.toml, then run: asrd reload"
    )


# -- the daemon
# -------------------------------------------------------------------------------------------------------


def test_without_a_model_the_daemon_records_keeps_the_audio_and_says_what_to_do(
    daemon: Start,
) -> None:
    one = daemon(ASRD_MODEL="")
    started = one.ask(verb="toggle")
    assert SENTENCE in started["message"]
    assert LINE in started["message"]
    assert one.worker == []
    take = started["recording"]
    one.until(lambda: one.recorded(take) > 1.0)
    status = one.ask(verb="status")
    assert (status["model"], status["error"], status["state"]) == (
        "",
        "no model is chosen",
        "LISTENING",
    )
    assert status["model_note"] == f"{SENTENCE}; {LINE}, then run: asrd reload"
    assert "are kept, as no model is chosen" in one.ask(verb="toggle")["message"]
    assert one.settled() == ""
    assert (one.takes / f"{take}.wav").stat().st_size > 64_000
    assert "no model is chosen" in one.verb("recordings").communicate(timeout=20)[0]
    page = one.verb("status").communicate(timeout=20)[0]
    assert "UNLOADED  no model is chosen" in page
    assert SENTENCE in page
    bar = json.loads(one.verb("status", "--waybar").communicate(timeout=20)[0])
    assert (bar["class"], bar["alt"]) == (["error", "trouble"], "parked")
    assert SENTENCE in bar["tooltip"]
    assert SENTENCE in one.log.read_text()
    assert one.log.read_text().count(LINE) == 1
    assert one.worker == []


@pytest.mark.parametrize("words", [["start", "--wait"], ["use", "half"], ["use", "auto"]])
def test_what_needs_a_model_at_once_is_refused_at_once(daemon: Start, words: list[str]) -> None:
    one = daemon(ASRD_MODEL="")
    began = time.monotonic()
    asked = one.verb(*words)
    said = asked.communicate(timeout=20)[1]
    assert (asked.returncode, time.monotonic() - began < 5) == (66, True)
    assert "no model is chosen" in said
    assert LINE in said
    assert one.state == "UNLOADED", "nothing is recorded in vain"
    assert one.worker == []
    assert list(one.takes.glob("*.wav")) == []


def test_sound_that_is_never_kept_is_not_recorded_in_vain(daemon: Start) -> None:
    one = daemon(ASRD_MODEL="", ASRD_KEEP_AUDIO="never")
    asked = one.verb("toggle")
    said = asked.communicate(timeout=20)[1]
    assert asked.returncode == 66
    assert 'keep_audio = "never"' in said
    assert LINE in said


def test_a_model_that_is_chosen_later_makes_text_of_what_was_kept(daemon: Start) -> None:
    one = daemon(ASRD_MODEL="")
    for _ in range(2):
        one.speak()
        one.ask(verb="stop")
    one.settled()
    place = one.home / ".config" / "asrd"
    place.mkdir(parents=True)
    (place / "config.toml").write_text('model = "ok"\n')
    assert (
        one.ask(verb="reload")["message"]
        == "model; 2 recordings wait: asrd retry --all makes text of them"
    )
    assert one.state == "IDLE"
    asked = one.verb("retry", "--all")
    assert len(asked.communicate(timeout=20)[0].splitlines()) == 2
    assert list(one.takes.glob("*.wav")) == []
    (place / "config.toml").write_text("")
    assert SENTENCE in one.ask(verb="reload")["message"]
    one.until(lambda: one.worker == [])
    one.speak()
    assert "are kept" in one.ask(verb="stop")["message"]
    one.settled()
    assert len(list(one.takes.glob("*.wav"))) == 1
    assert one.end(signal.SIGTERM) == 0


@case
async def test_a_model_that_is_chosen_while_somebody_speaks_writes_it_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Inside(tmp_path, monkeypatch, model="") as one:
        await one.daemon.slot.load()
        recording = one.begin()
        one.wanted = Settings(
            model="*=ok", strategy="half", suffix="", sinks=("none",), notify=False
        )
        await one.changes.reload()
        await one.daemon.recorder.stop()
        await until(lambda: bool(one.arrived))
        assert (await recording.result).outcome == "delivered"
        assert one.daemon.slot.error == ""


@case
async def test_one_notification_says_it_and_not_one_at_each_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    taken = [False, True, True, True]

    async def notify(summary: str, body: str = "", urgency: str = "normal") -> bool:
        shown.append(f"{summary}|{body}")
        return taken[len(shown) - 1]

    async with Inside(tmp_path, monkeypatch, model="") as one:
        monkeypatch.setattr(one.daemon.desktop, "notify", notify)
        for _ in range(4):
            recording = one.begin()
            await until(lambda: not one.daemon.jobs)
            await one.daemon.recorder.stop()
            assert (await recording.result).outcome == "kept"
        assert len(shown) == 2, "the first had no service to show it"
        assert shown[0].startswith(f"No model is chosen|{SENTENCE}; put the line")
        assert not any(engine.pid for engine in one.engines)


@case
async def test_silence_and_tones_are_kept_too_where_nobody_could_listen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Inside(tmp_path, monkeypatch, model="") as one:
        for sound in (SAID, 0 * SAID):
            recording = one.daemon.start()
            one.microphones[-1].give(sound)
            await one.daemon.recorder.stop()
            assert (await recording.result).outcome == "kept"


# -- the other doors
# --------------------------------------------------------------------------------------------------


def asrd(home: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home),
        **more,
    }
    return subprocess.run(
        [sys.executable, "-m", "asrd", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    "words",
    [
        ["plan"],
    ],
    ids=lambda words: words[0],
)
def test_the_demo_that_nobody_named_says_what_it_knows(tmp_path: Path, words: list[str]) -> None:
    said = [line for line in asrd(tmp_path, *words).stderr.splitlines() if "synthetic" in line]
    assert said == [
        "asrd: no model is named, so demo is used. It knows only synthetic voices and 179 words, not your microphone. "
        "Name a model: --model nvidia/parakeet-tdt-0.6b-v3"
    ]
    assert "synthetic" not in asrd(tmp_path, *words, "--model", "demo").stderr


def test_a_daemon_on_a_file_takes_the_demo_and_says_so(daemon: Start, tmp_path: Path) -> None:
    one = daemon("--source", f"file:{tmp_path / 'none.wav'}", up=False, ASRD_MODEL="")
    done = one.verb("run", "--source", f"file:{tmp_path / 'none.wav'}")
    assert done.communicate(timeout=30)[1].endswith("none.wav\n"), "said alone"
    done = one.verb("run", "--source", f"file:{tmp_path}")
    assert "is a directory\n  hint: name one file in it" in done.communicate(timeout=30)[1]
    soundfile.write(tmp_path / "some.wav", np.zeros(3_200), 16_000)
    done = one.verb("run", "--source", f"file:{tmp_path / 'some.wav'}")
    said = done.communicate(timeout=30)[1]
    assert said.count("It knows only synthetic voices and 179 words") == 1
    assert "demo under auto" in said


@pytest.mark.parametrize(
    ("model", "mark", "said"),
    [
        ("", "WARNING model", SENTENCE),
        (
            "demo",
            "WARNING demo ",
            "demo is a demo model: it knows only synthetic voices and 179 words",
        ),
        ("demo-ctc", "WARNING demo ", "demo-ctc is a demo model: it knows only synthetic voices"),
    ],
)
def test_doctor_warns_of_no_model_and_of_a_demo(
    tmp_path: Path, model: str, mark: str, said: str
) -> None:
    done = asrd(tmp_path, "doctor", ASRD_MODEL=model)
    lines = done.stdout.splitlines()
    [line] = [line for line in lines if line.startswith("WARNING")]
    assert line.startswith(mark)
    assert said in line
    ok = [line for line in lines if line.startswith("ok      model ")]
    assert len(ok) == (1 if model else 0)
    if not model:
        assert done.returncode == 3
        assert LINE in lines[lines.index(line) + 1]
    found = [
        json.loads(line)
        for line in asrd(tmp_path, "doctor", "--json", ASRD_MODEL=model).stdout.splitlines()
    ]
    assert [one["name"] for one in found if one["warning"]] == ["model" if not model else "demo"]


@pytest.mark.parametrize(
    ("file", "variable", "said", "unsaid"),
    [
        (None, None, SENTENCE, "does not see"),
        (None, "demo", "the service does not see --model", "synthetic"),
        ('model = "demo"', None, "synthetic voices", SENTENCE),
        ('model = "/m/own.nemo"', None, "wrote", "model"),
    ],
)
def test_install_says_what_the_service_will_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    file: str | None, variable: str | None, said: str, unsaid: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(systemctl, "has_user_manager", lambda: False)
    monkeypatch.setattr(systemd_units, "program", lambda: ["/usr/bin/asrd"])
    if file:
        (tmp_path / ".config" / "asrd").mkdir(parents=True)
        (tmp_path / ".config" / "asrd" / "config.toml").write_text(file)
    settings = loading.load(
        environment={"HOME": str(tmp_path)} | ({"ASRD_MODEL": variable} if variable else {})
    )
    args = type("Args", (), {"act": "install", "unit": None, "now": False})()
    assert service.service(args, settings.settings) == 0
    out = capsys.readouterr().out
    assert said in out
    assert unsaid not in out


def test_a_named_demo_is_told_in_the_log_of_a_microphone(
    daemon: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    one = daemon(ASRD_MODEL="demo")
    status = one.ask(verb="status")
    assert status["model_note"].startswith(
        "demo is a demo model: it knows only synthetic voices and 179 words"
    )
    assert "demo is a demo model" in one.log.read_text()
    assert "synthetic voices" in one.verb("status").communicate(timeout=20)[0]
