"""The product as a person has it: a user's systemd and journal, a sound server, a compositor, a
real model, a key.

A clip is played into a virtual microphone while the service listens; what was said has to be in the
focused window, its figures in the journal, and its words nowhere else.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

import jiwer
import pytest

from asrd.paths import DATA_FOLDER
from tests.integration.user_session import UserSession, until, user_session

EVAL = DATA_FOLDER / "eval"
CLIPS = [json.loads(line) for line in (EVAL / "manifest.jsonl").read_text().splitlines()][:3]
PROGRAMS = {"sway": "sway", "foot": "foot", "wtype": "wtype", "paplay": "pulseaudio-utils"}
CONFIG = 'model = "demo-ctc"\nmicrophone = "virtmic"\nsinks = ["type"]\nnotify = false\n'
SWAY = "output HEADLESS-1 resolution 1280x720\nxwayland disable\nbindsym --no-repeat Mod4+d exec {asrd} toggle\n"
READER = "stty raw -echo; touch $HOME/ready; exec cat >$HOME/typed"


@pytest.fixture(scope="module")
def session() -> Iterator[UserSession]:
    if missing := [
        package for program, package in PROGRAMS.items() if shutil.which(program) is None
    ]:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            f"apt-get install {' '.join(missing)}"
        )
    with user_session("--pipewire") as one:
        one.write(".config/asrd/config.toml", CONFIG)
        asrd(one, "service", "install", "--now")
        yield one


def asrd(session: UserSession, *words: str) -> str:
    return session.ok(sys.executable, "-m", "asrd", *words)


def status(session: UserSession) -> dict[str, Any]:
    return json.loads(asrd(session, "status", "--json"))


def play(session: UserSession, clip: dict[str, Any]) -> None:
    """Speak a clip into the microphone; returns when it was played."""
    session.ok("paplay", "--device=virtmic", EVAL / clip["audio_filepath"])


def takes(session: UserSession) -> list[dict[str, Any]]:
    return session.journal("ASRD_EVENT=take")


@pytest.fixture(scope="module")
def desktop(session: UserSession) -> UserSession:
    """A compositor that came after the daemon, with a terminal that has the focus."""
    session.write("sway", SWAY.format(asrd=f"{sys.executable} -m asrd"))
    headless = {
        "WLR_BACKENDS": "headless",
        "WLR_LIBINPUT_NO_DEVICES": "1",
        "WLR_RENDERER": "pixman",
    }
    unit(session, "sway", "sway", "-c", str(session.home / "sway"), **headless)
    found = until(
        lambda: session.run(
            "sh", "-c", "ls $XDG_RUNTIME_DIR/wayland-? $XDG_RUNTIME_DIR/sway-ipc.*"
        ),
        "sway",
    )
    until(
        lambda: session.run("sh", "-c", "ls $XDG_RUNTIME_DIR/sway-ipc.*").returncode == 0,
        f"sway: {found.stderr}",
    )
    session.ok(
        "systemctl",
        "--user",
        "set-environment",
        "WAYLAND_DISPLAY=wayland-1",
        "XDG_SESSION_TYPE=wayland",
    )
    unit(session, "foot", "foot", "sh", "-c", READER)
    until(session.inside(session.home / "ready").exists, "foot")
    return session


def unit(session: UserSession, name: str, *words: str, **environment: str) -> None:
    settings = [f"--setenv={key}={value}" for key, value in environment.items()]
    session.ok("systemd-run", "--user", "--quiet", f"--unit=test-{name}", *settings, *words)


def press(session: UserSession) -> None:
    """Press the key, as a keyboard would."""
    session.ok("wtype", "-M", "logo", "-k", "d", WAYLAND_DISPLAY="wayland-1")


def loaded(session: UserSession) -> None:
    """Wait until the model is in memory; a machine in use takes its time over importing NeMo."""
    limit = time.monotonic() + 240
    while not (text := session.show("asrd.service", "StatusText")["StatusText"]).startswith("idle"):
        assert time.monotonic() < limit, text + json.dumps(
            session.journal("-u", "asrd.service", "-o", "cat")
        )
        time.sleep(0.5)


def test_the_service_is_ready_before_the_model_and_says_what_it_is(session: UserSession) -> None:
    shown = session.show("asrd.service", "ActiveState", "SubState", "StatusText", "NRestarts")
    assert (shown["ActiveState"], shown["SubState"], shown["NRestarts"]) == (
        "active",
        "running",
        "0",
    )
    loaded(session)
    text = session.show("asrd.service", "StatusText")["StatusText"]
    assert text.startswith("idle, demo-ctc, fp32 on cpu, ")
    (entry,) = session.journal("ASRD_EVENT=loaded")
    assert (entry["_SYSTEMD_USER_UNIT"], entry["ASRD_STRATEGY"]) == ("asrd.service", "fp32")
    assert entry["MESSAGE_ID"] == "560a698b4c464a0a8c42cdafc350253f"


def test_press_speak_press_and_the_words_are_in_the_window(desktop: UserSession) -> None:
    loaded(desktop)
    typed = desktop.inside(desktop.home / "typed")
    for clip in CLIPS:
        before, known = typed.read_text(), len(takes(desktop))
        press(desktop)
        until(
            lambda: status(desktop)["recording"] and status(desktop)["recording"]["seconds"] > 0.1,
            "sound from the microphone",
        )
        play(desktop, clip)
        press(desktop)
        until(lambda known=known: len(takes(desktop)) > known, "the take in the journal")
        until(lambda before=before: typed.read_text() != before, "the text in the window")
        heard = typed.read_text().removeprefix(before)
        assert heard.endswith(" "), "so that the next dictation does not touch it"
        assert jiwer.wer(clip["text"], heard) <= 0.25, heard
    assert json.loads(asrd(desktop, "last", "--json"))["outcome"] == "delivered"
    assert asrd(desktop, "recordings") == "no recordings are kept\n"


def test_the_journal_has_the_figures_and_never_the_words(desktop: UserSession) -> None:
    found = takes(desktop)
    assert len(found) == len(CLIPS)
    for entry, clip in zip(found, CLIPS, strict=True):
        assert entry["ASRD_OUTCOME"] == "delivered"
        assert abs(int(entry["ASRD_WORDS"]) - len(clip["text"].split())) <= 2
        assert float(entry["ASRD_AUDIO_SECONDS"]) > clip["duration"] - 0.5
        assert int(entry["ASRD_WEIGHTS_BYTES"]) > 8_000_000
        assert int(entry["ASRD_PROCESS_BYTES"]) > 100_000_000
        assert float(entry["ASRD_RTF"]) > 0
        assert float(entry["ASRD_STOP_TO_TEXT_MS"]) > 0
    everything = json.dumps(desktop.journal())
    for clip in CLIPS:
        assert clip["text"] not in everything
        assert " ".join(clip["text"].split()[:3]) not in everything
    day = json.loads(asrd(desktop, "report", "--since", "today", "--json"))
    assert f'"takes":{len(CLIPS)}' in json.dumps(day).replace(" ", "")


def test_a_microphone_that_goes_while_it_listens_is_told_and_the_take_survives(
    desktop: UserSession,
) -> None:
    press(desktop)
    until(
        lambda: status(desktop)["recording"] and status(desktop)["recording"]["seconds"] > 0.3,
        "sound from the microphone",
    )
    play(desktop, CLIPS[1])
    desktop.ok(
        "systemctl",
        "--user",
        "stop",
        "pipewire.socket",
        "pipewire-pulse.socket",
        "wireplumber",
        "pipewire",
    )
    until(lambda: status(desktop)["capture"], "the loss to be noticed")
    (lost,) = desktop.journal("ASRD_EVENT=device-lost")
    assert lost["PRIORITY"] == "4"
    known = len(takes(desktop))
    asrd(desktop, "stop")
    until(lambda: len(takes(desktop)) > known, "the take in the journal")
    assert jiwer.wer(CLIPS[1]["text"], asrd(desktop, "last")) <= 0.25


def test_stopping_the_service_is_clean(session: UserSession) -> None:
    session.ok("systemctl", "--user", "stop", "asrd.socket", "asrd.service")
    shown = session.show("asrd.service", "Result", "ExecMainStatus", "NRestarts")
    assert shown == {"Result": "success", "ExecMainStatus": "0", "NRestarts": "0"}
    assert session.run("pgrep", "-f", "asrd.worker").returncode == 1
