"""What can be recorded from: the sound server's sources and the bare devices that PortAudio sees;
which one is meant.

Both lists are kept, as each takes a tenth of a second and more to make, in which a word can be
spoken. Whoever fails to open a device has them made anew. Everything here may block: call it in a
thread. Daemon side.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from asrd.audio import alsa_config, library_noise, sound_access, sound_server
from asrd.errors import AudioError, nearest
from asrd.hints import install

hanging: list[object] = []
"""Streams whose closing has not returned; while there are any, PortAudio cannot be asked for new
devices."""
_cache: list[Device] = []
_listing = threading.Lock()

BRIDGE_NAMES = ("pulse", "pipewire", "default")
"""PortAudio's names for the sound server, best first."""


class Device(msgspec.Struct, frozen=True):
    """Something that asrd can record from."""

    name: str
    """What a person calls it; any part of it chooses the device."""
    id: str
    """The sound server's name of it, or PortAudio's."""
    through: str
    """server, or alsa: the bare device."""
    rate: int
    """Its own rate in hertz."""
    channels: int
    default: bool
    monitor: bool = False
    """True: what a loudspeaker plays; offered, but never taken for a microphone by part of its name
    first."""
    muted: bool = False
    volume_percent: int | None = None
    """As the sound server's settings show it; None for a bare device."""
    index: int = -1
    """PortAudio's index of what is opened."""


def survey() -> list[Device]:
    """Return what can be recorded from: the server's sources first, then what ALSA shows. May block
    for seconds.

    Raises AudioError without the PortAudio library, or when the sound server does not answer.
    """
    try:
        sources = sorted(
            sound_server.sources(), key=lambda source: source.monitor
        )  # first: PortAudio would hang
    except TimeoutError as error:
        raise AudioError(str(error), sound_access.restart()) from error
    sounddevice = portaudio()
    found = [entry for entry in sounddevice.query_devices() if entry["max_input_channels"] > 0]
    bridge = _bridge(found)
    served = bool(sources) and bridge >= 0
    devices: list[Device] = []
    if served:
        microphones = [one for one in sources if one.name != sound_server.DUMMY_SOURCE]
        devices += [_served(one, bridge) for one in microphones]
    default: int = sounddevice.default.device[0]
    for entry in found:
        through = "alsa"
        if entry["name"] in BRIDGE_NAMES:
            through = "server"
        if served and through == "server":
            continue
        devices.append(
            Device(
                entry["name"],
                entry["name"],
                through,
                round(entry["default_samplerate"]),
                entry["max_input_channels"],
                entry["index"] == default and not served,
                index=entry["index"],
            )
        )
    return devices


def _bridge(found: Sequence[Mapping[str, Any]]) -> int:
    """Return PortAudio's index of the device that leads to the sound server; -1 where there is
    none."""
    for name in BRIDGE_NAMES:
        for entry in found:
            if entry["name"] == name:
                return int(entry["index"])
    return -1


def _served(source: sound_server.SoundServerSource, bridge: int) -> Device:
    """Return a source of the server, which is opened through PortAudio's device number `bridge`."""
    s = source
    return Device(
        s.description,
        s.name,
        "server",
        s.rate,
        s.channels,
        s.default,
        s.monitor,
        s.muted,
        s.volume_percent,
        bridge,
    )


NO_MATCH = 3
"""Rank of a device whose name and identifier do not contain the text."""


def _rank(device: Device, part: str) -> int:
    """Return how well a device fits a part of a name, in lower case; 0 fits best."""
    name, key = device.name.casefold(), device.id.casefold()
    if part in (name, key):
        return 0
    if part in name and not device.monitor:
        return 1
    if part in name or part in key:
        return 2
    return NO_MATCH


def choose(
    found: list[Device],
    microphone: str,
    absence: Callable[[list[Device]], AudioError] | None = None,
) -> Device:
    """Return the device that a part of a name means, "" being the default one. Raises AudioError.

    Args:
        absence: says why there is none, for tests.
    """
    absence = absence or explained
    if not microphone:
        # PulseAudio makes a loudspeaker the default source where there is no microphone.
        outputs = ("alsa_output.", "bluez_output.")
        likely = [device for device in found if not device.id.startswith(outputs)]
        for device in likely:
            if device.default:
                return device
        for device in likely:
            if device.through == "server" and not device.monitor:
                return device
        raise absence(found)
    part = microphone.casefold()
    best = min(found, key=lambda device: _rank(device, part), default=None)
    if best is not None and _rank(best, part) < NO_MATCH:
        return best
    if not found:
        why = absence(found)
        raise AudioError(f"there is no microphone {microphone!r}: {why.message}", why.hint)
    raise AudioError(
        f"there is no microphone {microphone!r}",
        nearest(microphone, [device.name for device in found]),
    )


def explained(found: list[Device]) -> AudioError:
    """Return why none of these is a microphone, and what mends it."""
    try:
        sources = sound_server.sources()
    except TimeoutError as error:
        return AudioError(str(error), sound_access.restart())
    microphones = sum(not source.monitor for source in sources)
    dummy = any(source.name == sound_server.DUMMY_SOURCE for source in sources)
    bare = sum(device.through == "alsa" for device in found)
    seen = (microphones, len(sources) - microphones - dummy, dummy)
    return AudioError(*sound_access.explain(sound_access.gather(seen, len(found) > bare, bare)))


def volume_fix(name: str, decibels: int) -> str:
    """Return the command that makes a device by its name louder (or less loud), or what to look at
    where it is silent.

    Asks nobody: goes by the devices as they were last seen.
    """
    device = next((one for one in list(_cache) if one.name == name), None)
    if device is not None and device.through == "alsa":
        return "alsamixer -V capture"
    named = device is not None and device.id not in BRIDGE_NAMES
    source = shlex.quote(device.id) if device is not None and named else "@DEFAULT_SOURCE@"
    if not decibels:
        return f"asrd devices; pactl set-source-mute {source} 0"
    return f"pactl set-source-volume {source} {decibels:+d}dB"


def channel_counts(device: Device) -> list[int]:
    """Return the numbers of channels to try, best first; `channels.Mixer` makes one of them.

    A server that is asked for one channel of two adds them up to 1.4 times the level, or to nothing
    where they have opposite signs.
    """
    if device.id in BRIDGE_NAMES:
        return [2, 1]
    two = min(2, device.channels)
    return [two] if device.through == "server" else sorted({1, two, device.channels})


def _last_seen() -> list[Device]:
    """Return the devices as they were last seen: asking anew takes 0.1 s and more, in which a word
    can be spoken."""
    with _listing:
        if not _cache:
            _cache.extend(survey())
        return list(_cache)


def pick(wanted: str, rescan: bool) -> Device:
    """Return the device to open: as last seen, else as the server says now, else as PortAudio sees
    when asked anew.

    Raises AudioError.
    """
    for refresh in (_scan,) if rescan else (None, forget, _scan):
        if refresh is not None:
            refresh()
        try:
            return choose(_last_seen(), wanted)
        except AudioError as refused:
            error = refused
    raise error


def forget() -> None:
    """Have the server asked anew when a device is picked next."""
    _cache.clear()


def _scan() -> None:
    """Have PortAudio see which devices there are now. Raises AudioError as `survey` does."""
    with _listing:
        _cache.clear()
        # a frozen server shows here; what follows would hang, with standard error turned off
        survey()
        if not hanging:
            sounddevice = portaudio()
            with library_noise.descriptor_2:  # it turns standard error off meanwhile
                sounddevice._terminate()
                sounddevice._initialize()


def warm() -> None:
    """Import PortAudio and list devices ahead of time; what is wrong is told when a stream is
    opened."""
    with contextlib.suppress(AudioError):
        _last_seen()


def portaudio() -> Any:
    """Return the module sounddevice. Raises AudioError; asks ALSA before, as PortAudio may end the
    process."""
    os.environ.update(sound_server.homeless())
    if (broken := alsa_config.problem()) is not None:
        raise AudioError(*broken)
    try:
        with (
            contextlib.nullcontext() if "sounddevice" in sys.modules else library_noise.descriptor_2
        ):
            import sounddevice  # which turns standard error off for a moment
    except OSError as error:
        raise AudioError("PortAudio is not installed", install("libportaudio2")) from error
    except (
        Exception
    ) as error:  # sounddevice.PortAudioError, which cannot be named without the module
        raise AudioError(
            f"PortAudio cannot start: {error}", "arecord -l; then: asrd devices"
        ) from error
    return sounddevice
