"""Why nothing can be recorded: every broken link from the microphone to PortAudio has its sentence
and its command."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from asrd import hints
from asrd.audio import sound_access
from asrd.audio.sound_access import Facts, explain, gather
from tests.helpers import ROOT
from tests.integration.sound_server import need_sound_server, sound_server

UP = Facts(pulse="listening", pipewire="listening", installed=("pipewire",))
SEEN = msgspec.structs.replace(UP, bridge=True, plugins=("pulse", "pipewire"))
ALONE = Facts(pipewire="listening", installed=("pipewire",))

STATES: dict[str, tuple[Facts, str, str]] = {
    "no server, no card": (Facts(), "neither a microphone nor a sound server", "plug a microphone in, then: sudo "),
    "server, no plugin": (UP, "PortAudio cannot reach it: ALSA's plugin for PulseAudio is missing", "sudo "),
    "server, plugin of PipeWire only": (
        msgspec.structs.replace(UP, plugins=("pipewire",)), "plugin for PulseAudio is missing", "sudo "),
    "server, plugin, no bridge": (
        msgspec.structs.replace(UP, plugins=("pulse",)), "although ALSA's plugin is installed", "arecord -D pulse"),
    "PulseAudio, no plugin": (
        Facts(pulse="listening", installed=("pulseaudio",), microphones=1), "PortAudio cannot reach it", "sudo "),
    "PipeWire alone, no plugin": (ALONE, "ALSA's plugin for PipeWire is missing", "pipewire-alsa"),
    "PipeWire alone, plugin": (
        msgspec.structs.replace(ALONE, plugins=("pipewire",)), "although ALSA's plugin", "arecord -D pipewire"),
    "server, microphones, no plugin": (
        msgspec.structs.replace(UP, microphones=2), "a sound server runs, but PortAudio cannot reach it", "sudo "),
    "server, nothing": (SEEN, "no sound card is connected", "cat /proc/asound/cards"),
    "server, dummy": (msgspec.structs.replace(SEEN, dummy=True), "no sound card is connected", "plug a microphone in"),
    "server, monitors only": (
        msgspec.structs.replace(SEEN, monitors=2), "only what loudspeakers play", "pactl list short sources"),
    "server, default is a monitor": (
        msgspec.structs.replace(SEEN, microphones=1), "default source", "pactl list short sources"),
    "server, card without a source": (
        msgspec.structs.replace(SEEN, cards=1, dummy=True), "the kernel has a device that records", "pactl list cards"),
    "server, card of nobody": (
        msgspec.structs.replace(SEEN, cards=1, locked=True), "permission to open the sound card", "usermod -aG audio"),
    "server, no pactl": (msgspec.structs.replace(SEEN, pactl=False), "pactl is missing", "sudo "),
    "server refuses": (msgspec.structs.replace(UP, refused=True), "refuses requests", "pactl info"),
    "no variable, server there": (
        Facts(runtime="", usual=True), "XDG_RUNTIME_DIR is not set", "export XDG_RUNTIME_DIR=/run/user/$(id -u)"),
    "no variable, no session": (Facts(runtime=""), "XDG_RUNTIME_DIR is not set", "loginctl enable-linger"),
    "variable of a folder that is gone": (
        Facts(runtime="/run/user/7", runtime_state="missing"), "/run/user/7 of XDG_RUNTIME_DIR does not", "export "),
    "sudo -E": (
        Facts(runtime_state="foreign", owner="anna"), "the sound server belongs to anna", "run asrd as anna"),
    "server of another user": (
        Facts(pulse="foreign", owner="anna"), "belongs to anna, not to this user", "without sudo"),
    "socket of another user, name unknown": (Facts(pipewire="foreign"), "belongs to another user", "without sudo"),
    "PipeWire has ended": (
        Facts(pulse="silent", pipewire="silent", installed=("pipewire",)), "has ended", "restart pipewire"),
    "PulseAudio has ended": (Facts(pulse="silent", installed=("pulseaudio",)), "has ended", "pulseaudio --start"),
    "server installed, not running": (Facts(installed=("pipewire",)), "no sound server runs", "restart pipewire"),
    "PulseAudio installed, not running": (
        Facts(installed=("pulseaudio",)), "no sound server runs", "pulseaudio --start"),
    "card of nobody, no server": (Facts(cards=1, locked=True), "no permission to open it", "usermod -aG audio"),
    "card that is taken": (
        Facts(cards=1, installed=("pipewire",)), "another program may hold the sound card", "restart pipewire"),
    "card, no server at all": (Facts(cards=1), "PortAudio cannot open", "fuser -v /dev/snd/*"),
    "bare devices without a default": (Facts(cards=2, bare=2), "a default microphone", "set microphone ="),
    "bare devices, no card of the kernel": (Facts(bare=1), "no microphone among", "set microphone ="),
}  # fmt: skip
"""State -> its facts, and what the sentence and the command say."""


@pytest.mark.parametrize("managed", [True, False])
@pytest.mark.parametrize("state", STATES)
def test_each_broken_link_has_its_sentence_and_its_command(
    state: str, managed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints, "managed", lambda: managed)
    facts, said, helps = STATES[state]
    message, hint = explain(facts)
    assert said in message
    if not managed:
        assert "systemctl" not in hint, "no user manager could be told"
        helps = "in a terminal: pkill -x " if helps == "restart pipewire" else helps
    assert helps in hint
    assert "asrd devices" not in hint, "which would say the same again"


def test_whatever_the_facts_a_server_that_runs_is_never_said_to_be_missing() -> None:
    draw = random.Random(15)
    for _ in range(400):
        server = draw.choice(
            [("listening", "absent"), ("absent", "listening"), ("listening", "listening")]
        )
        facts = Facts(
            pulse=server[0], pipewire=server[1], pactl=draw.random() < 0.5, microphones=draw.randrange(2),
            monitors=draw.randrange(2), dummy=draw.random() < 0.5, bridge=draw.random() < 0.5,
            plugins=tuple(draw.sample(("pulse", "pipewire"), draw.randrange(3))), bare=draw.randrange(2),
            cards=draw.randrange(2), locked=draw.random() < 0.5,
        )  # fmt: skip
        message, hint = explain(facts)
        assert "sound server" in message
        assert "neither" not in message
        assert hint
        assert "\n" not in hint


def listening(path: Path) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True)
    one = socket.socket(socket.AF_UNIX)
    one.bind(os.fspath(path))
    one.listen()
    return one


def test_the_facts_are_those_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {"XDG_RUNTIME_DIR": os.fspath(tmp_path)}
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    facts = gather((0, 0, False), False, 0, here)
    assert (facts.pulse, facts.pactl) == ("absent", False)
    with listening(tmp_path / "pulse" / "native"), listening(tmp_path / "pipewire-0"):
        facts = gather((0, 0, False), False, 0, here)
        assert (facts.pulse, facts.pipewire, facts.runtime_state) == (
            "listening",
            "listening",
            "usable",
        )
        elsewhere = {
            "XDG_RUNTIME_DIR": "/proc/none",
            "PULSE_SERVER": f"{{1f}}unix:{tmp_path}/pulse/native",
        }
        facts = gather((0, 0, False), False, 0, elsewhere)
        assert (facts.pulse, facts.pipewire, facts.runtime_state) == (
            "listening",
            "absent",
            "missing",
        )
    facts = gather((0, 0, False), False, 0, here)
    assert (facts.pulse, facts.pipewire) == ("silent", "silent"), "left by servers that have ended"
    if os.getuid() == 0:
        os.chown(tmp_path / "pulse" / "native", 65534, 65534)
        os.chown(tmp_path, 65534, 65534)
        facts = gather((0, 0, False), False, 0, here)
        assert (facts.runtime_state, facts.owner) == ("foreign", "nobody")


def devices(**environment: str) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "asrd", "devices"], cwd=ROOT, capture_output=True, text=True, check=False,
        env={"PATH": os.environ["PATH"], "HOME": "/proc/none", **environment},
    )  # fmt: skip
    return done.stdout, done.stderr


@pytest.mark.skipif(
    bool(shutil.which("arecord")) and os.path.exists("/dev/snd"), reason="this machine has a card"
)
def test_the_verb_says_what_to_do_where_there_is_nothing(tmp_path: Path) -> None:
    out, err = devices(XDG_RUNTIME_DIR="/proc/none")
    assert (out, err.splitlines()) == ("", [
        "asrd: no sound server can be found: the folder /proc/none of XDG_RUNTIME_DIR does not exist",
        "  hint: export XDG_RUNTIME_DIR=/run/user/$(id -u)",
    ])  # fmt: skip
    with listening(tmp_path / "pulse" / "native"):  # and never a word from it
        assert "the sound server does not answer" in devices(XDG_RUNTIME_DIR=os.fspath(tmp_path))[1]


def test_a_server_that_runs_and_that_portaudio_cannot_reach_is_told_from_none() -> None:
    need_sound_server()
    with sound_server() as server:
        server.add_microphone("desk", "Desk")
        server.set_default("desk")
        assert "Monitor of Desk" in devices(**server.environment)[0]
        unplugged = server.environment | {
            "ALSA_PLUGIN_DIR": "/proc/none"
        }  # as without libasound2-plugins
        out, err = devices(**unplugged)
        said = "asrd: a sound server runs, but PortAudio cannot reach it: ALSA's plugin for PulseAudio is missing"
        assert (out, err.splitlines()[0]) == ("", said)
        assert "hint: sudo " in err


@pytest.mark.parametrize(
    ("units", "named"),
    [
        (("pipewire", "wireplumber"), "pipewire wireplumber"),
        (("pipewire", "pipewire-pulse"), "pipewire pipewire-pulse"),
        (("pipewire",), "pipewire"),
        ((), "pipewire pipewire-pulse wireplumber"),
    ],
)
def test_only_units_that_are_installed_are_named(
    units: tuple[str, ...], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for unit in units:
        (tmp_path / f"{unit}.service").touch()
    monkeypatch.setattr(hints, "SYSTEM_UNITS", (os.fspath(tmp_path / "none"), os.fspath(tmp_path)))
    monkeypatch.setattr(hints, "managed", lambda: True)
    assert sound_access.restart() == f"systemctl --user restart {named}"
