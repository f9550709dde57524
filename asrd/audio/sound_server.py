"""What the sound server (PipeWire or PulseAudio) says: its sources, which one we record from, and
that it changed.

PortAudio sees none of this: a server moves a stream to another source without a word when a device
is unplugged. Asked through `pactl`; where that is missing nothing is known and nothing fails.
Daemon side.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import msgspec

from asrd import paths

ANSWER_SECONDS = 1.0
"""How long a server may take to answer; a frozen one answers never."""

DUMMY_SOURCE = "auto_null.monitor"
"""The source that servers offer when there is no other: it delivers zeros."""

_CHANGE_EVENT = re.compile(rb"on (source|source-output|server)\b")


class SoundServerSource(msgspec.Struct, frozen=True):
    """Something that a server lets programs record from."""

    index: int
    name: str
    """The server's own name: alsa_input.usb-Blue_Yeti-00.analog-stereo."""
    description: str
    """What a desktop's settings call it."""
    rate: int
    """Hertz."""
    channels: int
    monitor: bool
    """True: it is what a loudspeaker plays, not a microphone."""
    muted: bool
    default: bool
    volume_percent: int | None = None
    """Of its loudest channel; None where the server does not say."""


def sources() -> list[SoundServerSource]:
    """Return what the server offers, its dummy included; [] where there is no server or no pactl.

    Raises TimeoutError for a server that does not answer within ANSWER_SECONDS.
    """
    listed = _ask("list", "sources")
    default = _run("get-default-source").strip() if listed else ""
    return [source for entry in listed if (source := _source(entry, default)) is not None]


def recorded() -> SoundServerSource | None:
    """Return the source that this process records from now, the dummy included; None when the
    server cannot tell.

    Raises TimeoutError as `sources` does.
    """
    ours = str(os.getpid())
    for output in _ask("list", "source-outputs"):
        if _of(output, "properties", "application.process.id") == ours:
            for entry in _ask("list", "sources"):
                if entry.get("index") == output.get("source"):
                    return _source(entry, "")
    return None


async def follow(on_change: Callable[[], None]) -> None:
    """Call `on_change` whenever sources, streams or defaults of the server change; returns when the
    server ends."""
    try:
        process = subprocess.Popen(
            [*_dying_with_us(), "pactl", "subscribe"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
        )
    except OSError:
        return
    assert process.stdout is not None
    loop, output = asyncio.get_running_loop(), process.stdout.fileno()
    ended: asyncio.Future[None] = loop.create_future()

    def told() -> None:
        lines = os.read(output, 4096)
        if _CHANGE_EVENT.search(lines):
            on_change()
        elif not lines and not ended.done():
            ended.set_result(None)

    loop.add_reader(output, told)
    try:
        await ended
    finally:
        loop.remove_reader(output)
        process.kill()
        process.stdout.close()
        process.wait()


def _dying_with_us() -> list[str]:
    """Return the words before a command that end it with this process, however that ends; none
    where they are not."""
    # Without them pactl outlives a daemon that is killed, until the server has something to say to
    # it.
    return ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []


def _source(entry: dict[str, Any], default: str) -> SoundServerSource | None:
    """Return one entry of pactl's list as a value; None when it is not as it should be."""
    specification = re.fullmatch(r"\S+ (\d+)ch (\d+)Hz", str(entry.get("sample_specification")))
    name, index = entry.get("name"), entry.get("index")
    if specification is None or not isinstance(name, str) or not isinstance(index, int):
        return None
    return SoundServerSource(
        index,
        name,
        str(entry.get("description") or name),
        int(specification[2]),
        int(specification[1]),
        name.endswith(".monitor"),
        bool(entry.get("mute")),
        name == default,
        _volume(entry),
    )


def _volume(entry: dict[str, Any]) -> int | None:
    """Return the volume of a source in percent of 0 dB, its loudest channel's."""
    channels = entry.get("volume")
    told = (
        [str(_of(channels, name, "value_percent")) for name in channels]
        if isinstance(channels, dict)
        else []
    )
    percents = [int(text.removesuffix("%")) for text in told if re.fullmatch(r"\d{1,4}%", text)]
    return max(percents, default=None)


def _of(entry: dict[str, Any], *path: str) -> Any:
    value: Any = entry
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _ask(*words: str) -> list[dict[str, Any]]:
    """Return pactl's answer; [] when there is none, or none that can be read."""
    try:
        answer = json.loads(_run("--format=json", *words) or "[]")
    except ValueError:
        return []
    return (
        [entry for entry in answer if isinstance(entry, dict)] if isinstance(answer, list) else []
    )


def _run(*words: str) -> str:
    """Return what pactl prints, "" when it is missing or fails. Raises TimeoutError."""
    try:
        done = subprocess.run(
            ["pactl", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=ANSWER_SECONDS, env=_environment(), check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise TimeoutError("the sound server does not answer") from error
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def _environment() -> dict[str, str]:
    """Return our environment with untranslated answers, and without the source that a stream of
    ours asked for."""
    own = {key: value for key, value in os.environ.items() if key != "PULSE_SOURCE"}
    return own | homeless() | {"LC_ALL": "C.UTF-8"}


def homeless() -> dict[str, str]:
    """Return the variable that keeps libpulse from making a folder in the home, where no server's
    is there.

    Without a runtime directory libpulse looks for its server by a link that it makes in
    ~/.config/pulse.
    """
    known = {"XDG_RUNTIME_DIR", "PULSE_RUNTIME_PATH", "PULSE_SERVER"} & set(os.environ)
    linked = bool(known) or (paths.config_home() / "pulse").exists()
    return {} if linked else {"PULSE_RUNTIME_PATH": "/dev/null/pulse"}
