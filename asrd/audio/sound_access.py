"""Why nothing can be recorded here: the facts of this machine -> one sentence, and the command that
mends it.

PortAudio reaches a sound server only through a plugin of ALSA, so a server that runs, and that asrd
can ask for its microphones, may still be out of reach for recording. Each link of that chain is
looked at by itself. Daemon side.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from asrd import hints
from asrd.hints import install

Answer = Literal["absent", "silent", "foreign", "listening"]
"""How a server's socket is: not there, there without a listener, another user's, or with a
listener."""

PLUGIN_FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/local/lib")
"""Below which ALSA's plugins lie, in a folder alsa-lib, on some systems one further down."""

ANSWER_SECONDS = 1.0
"""How long a server may take to let a client in."""

SERVER_UNITS = ("pipewire", "pipewire-pulse", "wireplumber")
"""Units of PipeWire; some systems have not all."""

SERVER_PROGRAMS = ("pipewire", "wireplumber", "pipewire-pulse")
"""The same as programs, in the order in which they are started where no user manager runs."""

PIPEWIRE_PACKAGES = "pipewire pipewire-pulse wireplumber"


class Facts(msgspec.Struct, frozen=True):
    """What the links between a microphone and PortAudio are like."""

    runtime: str = "/run/user/1000"
    """XDG_RUNTIME_DIR; "" where it is not set."""
    runtime_state: Literal["usable", "missing", "foreign"] = "usable"
    usual: bool = False
    """XDG_RUNTIME_DIR is not set, and a sound server's socket lies in the usual place."""
    owner: str = ""
    """The user whose runtime directory or server it is, where that is another one."""
    pulse: Answer = "absent"
    """The PulseAudio protocol's socket: of PulseAudio, or of pipewire-pulse."""
    pipewire: Answer = "absent"
    """PipeWire's own socket."""
    pactl: bool = True
    """Whether the program is installed that asks a server for its sources."""
    microphones: int = 0
    """Sources of the server that are none of the next two."""
    monitors: int = 0
    """Sources that are what a loudspeaker plays."""
    dummy: bool = False
    """The server offers its stand-in for no sound card."""
    refused: bool = False
    """A server listens, and lets pactl ask nothing."""
    bridge: bool = False
    """PortAudio sees the server."""
    plugins: tuple[str, ...] = ()
    """Plugins of ALSA that are installed: pulse, pipewire."""
    bare: int = 0
    """Devices that PortAudio sees beside the server."""
    cards: int = 0
    """Devices of the kernel that record."""
    locked: bool = False
    """This user may not open them."""
    installed: tuple[str, ...] = ()
    """Sound servers that are installed: pipewire, pulseaudio."""


def explain(facts: Facts) -> tuple[str, str]:
    """Return why no microphone can be recorded from, and the command that mends it."""
    running = facts.pulse == "listening" or facts.pipewire == "listening"
    if running:
        return _of_server(facts)
    return _of_runtime(facts) or _of_silence(facts) or _of_cards(facts) or _of_nothing(facts)


def _of_server(facts: Facts) -> tuple[str, str]:
    """Return what is wrong where a server runs."""
    if facts.refused:
        return "a sound server runs, but it refuses requests from asrd", "pactl info"
    if not facts.bridge:
        return _of_bridge(facts)
    if facts.microphones:
        return (
            "the default source of the sound server is not a microphone",
            "pactl list short sources",
        )
    if facts.cards and facts.locked:
        return (
            "a sound server runs, but this user has no permission to open the sound card",
            _join_audio(),
        )
    if facts.cards:
        return (
            "the sound server offers no microphone, though the kernel has a device that records",
            f"{restart()}; then choose a profile with input: pactl list cards",
        )
    if facts.monitors:
        return (
            "there is no microphone: the sound server offers only what loudspeakers play",
            "plug a microphone in; then: pactl list short sources",
        )
    if not facts.pactl and not facts.dummy:
        return "a sound server runs, but pactl is missing, which lists its microphones", install(
            "pulseaudio-utils"
        )
    return (
        "there is no microphone: a sound server runs, but no sound card is connected",
        "plug a microphone in; then: cat /proc/asound/cards",
    )


def _of_bridge(facts: Facts) -> tuple[str, str]:
    """Return what is wrong where a server runs that PortAudio does not see."""
    said = "a sound server runs, but PortAudio cannot reach it"
    if facts.pulse == "listening":
        if "pulse" not in facts.plugins:
            return f"{said}: ALSA's plugin for PulseAudio is missing", install(_package("pulse"))
        return f"{said}, although ALSA's plugin is installed", "arecord -D pulse -d 1 /dev/null"
    if "pipewire" not in facts.plugins:
        return f"{said}: ALSA's plugin for PipeWire is missing", install("pipewire-alsa")
    return f"{said}, although ALSA's plugin is installed", "arecord -D pipewire -d 1 /dev/null"


def _package(plugin: str) -> str:
    """Return the package of ALSA's plugin for PulseAudio, as the installer that is here calls
    it."""
    names = {
        "apt-get": "libasound2-plugins",
        "dnf": "alsa-plugins-pulseaudio",
        "pacman": "alsa-plugins",
    }
    if plugin != "pulse":
        return "pipewire-alsa"
    for program, name in names.items():
        if shutil.which(program):
            return name
    return names["apt-get"]


def _of_runtime(facts: Facts) -> tuple[str, str] | None:
    """Return what is wrong with the folder in which a server would be found; None where nothing
    is."""
    if not facts.runtime:
        said = "no sound server can be found: XDG_RUNTIME_DIR is not set"
        if facts.usual:
            return said, "export XDG_RUNTIME_DIR=/run/user/$(id -u)"
        return (
            (said, "log in at the desktop, or: sudo loginctl enable-linger $USER")
            if not facts.bare
            else None
        )
    if facts.runtime_state == "missing":
        said = f"no sound server can be found: the folder {facts.runtime} of XDG_RUNTIME_DIR does not exist"
        return said, "export XDG_RUNTIME_DIR=/run/user/$(id -u)"
    if facts.runtime_state == "foreign" or "foreign" in (facts.pulse, facts.pipewire):
        owner = facts.owner or "another user"
        return (
            f"the sound server belongs to {owner}, not to this user",
            f"run asrd as {owner}, without sudo",
        )
    return None


def _of_silence(facts: Facts) -> tuple[str, str] | None:
    """Return what is wrong where a server has left its socket; None where none has."""
    if "silent" not in (facts.pulse, facts.pipewire):
        return None
    which = (
        "pulseaudio"
        if "pipewire" not in facts.installed and "pulseaudio" in facts.installed
        else "pipewire"
    )
    return "the sound server has ended: no program answers on its socket", _begin(which)


def restart() -> str:
    """Return what starts PipeWire anew: it names only units and programs that are installed."""
    if not hints.managed():
        programs = list(filter(shutil.which, SERVER_PROGRAMS)) or SERVER_PROGRAMS
        return f"in a terminal: pkill -x {programs[0]}; {' & '.join(programs)} &"
    found = list(filter(_unit_exists, SERVER_UNITS))
    return f"systemctl --user restart {' '.join(found or SERVER_UNITS)}"


def _unit_exists(unit: str) -> bool:
    return any(Path(folder, f"{unit}.service").exists() for folder in hints.SYSTEM_UNITS)


def _begin(server: str) -> str:
    """Return what starts a sound server that is installed."""
    return "pulseaudio --start" if server == "pulseaudio" else restart()


def _of_cards(facts: Facts) -> tuple[str, str] | None:
    """Return what is wrong with a sound card that records, without a server; None where there is
    none."""
    if not facts.cards:
        return None
    if facts.locked:
        return "there is a sound card, but this user has no permission to open it", _join_audio()
    if facts.bare:
        return (
            "none of the sound card's devices is a default microphone",
            'set microphone = "part of its name"',
        )
    if facts.installed:
        return "no sound server runs, and another program may hold the sound card", _begin(
            facts.installed[0]
        )
    return "there is a sound card that PortAudio cannot open", "fuser -v /dev/snd/*"


def _join_audio() -> str:
    return "sudo usermod -aG audio $USER, then log in again"


def _of_nothing(facts: Facts) -> tuple[str, str]:
    """Return what is missing where there is neither a server nor a card."""
    if facts.bare:
        return (
            "there is no microphone among the devices that PortAudio sees",
            'set microphone = "part of its name"',
        )
    if facts.installed:
        return "no sound server runs, and there is no sound card that records", _begin(
            facts.installed[0]
        )
    missing = "there is neither a microphone nor a sound server"
    packages = f"{PIPEWIRE_PACKAGES} {_package('pulse')}"
    return missing, f"plug a microphone in, then: {install(packages)}"


# -- the facts
# --------------------------------------------------------------------------------------------------------


def gather(
    sources: tuple[int, int, bool],
    bridge: bool,
    bare: int,
    environment: Mapping[str, str] = os.environ,
) -> Facts:
    """Return the facts of this machine. Takes milliseconds, a second where a server does not let a
    client in.

    Args:
        sources: microphones, monitors and whether there is the dummy, as the server lists them.
        bridge: PortAudio sees the server.
        bare: devices that it sees beside.
    """
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    folder = Path(runtime or f"/run/user/{os.getuid()}")
    pulse, pipewire = _pulse_socket(environment, folder), _pipewire_socket(environment, folder)
    found = [_answer(where) for where in (pulse, pipewire)]
    if any(sources) and found[0] == "foreign":
        found[0] = "listening"  # of a server for the whole system, which lets this user in
    pactl = shutil.which("pactl") is not None
    cards = sorted(Path("/dev/snd").glob("pcmC*D*c"))
    return Facts(
        runtime=runtime,
        runtime_state=_state(folder) if runtime else "usable",
        usual=not runtime and "absent" not in found[:1],
        owner=_owner(folder) or next(filter(None, map(_owner, (pulse, pipewire))), ""),
        pulse=found[0],
        pipewire=found[1],
        pactl=pactl,
        microphones=sources[0],
        monitors=sources[1],
        dummy=sources[2],
        refused=found[0] == "listening" and pactl and not any(sources) and not _lets_ask(),
        bridge=bridge,
        plugins=_plugins(environment),
        bare=bare,
        cards=len(cards),
        locked=bool(cards) and not any(os.access(card, os.R_OK) for card in cards),
        installed=tuple(filter(shutil.which, ("pipewire", "pulseaudio"))),
    )


def _pulse_socket(environment: Mapping[str, str], folder: Path) -> Path | None:
    """Return where the PulseAudio protocol is spoken; None where that is no file of this
    machine."""
    named = environment.get("PULSE_SERVER", "")
    if named:
        named = named.rpartition("}")[2].removeprefix("unix:")
        return Path(named) if named.startswith("/") else None
    if path := environment.get("PULSE_RUNTIME_PATH"):
        return Path(path) / "native"
    return folder / "pulse" / "native"


def _pipewire_socket(environment: Mapping[str, str], folder: Path) -> Path:
    where = environment.get("PIPEWIRE_RUNTIME_DIR", "")
    return (Path(where) if where else folder) / environment.get("PIPEWIRE_REMOTE", "pipewire-0")


def _answer(where: Path | None) -> Answer:
    """Return how a socket is, by connecting to it."""
    if where is None:
        return "absent"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(ANSWER_SECONDS)
        try:
            probe.connect(os.fspath(where))
        except PermissionError:
            return "foreign"
        except ConnectionRefusedError:
            return "silent"
        except TimeoutError:
            return "listening"
        except OSError:
            return "absent"
    return "foreign" if _owner(where) else "listening"


def _state(folder: Path) -> Literal["usable", "missing", "foreign"]:
    if not folder.is_dir():
        return "missing"
    return "foreign" if _owner(folder) else "usable"


def _owner(path: Path | None) -> str:
    """Return whose a file is, where it is neither this user's nor root's; "" else, and where that
    cannot be seen."""
    try:
        uid = os.stat(path).st_uid if path is not None else os.getuid()
    except OSError:
        return ""
    if uid in (os.getuid(), 0):
        return ""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _lets_ask() -> bool:
    """Return whether the server answers pactl at all."""
    try:
        done = subprocess.run(
            ["pactl", "info"], capture_output=True, timeout=ANSWER_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _plugins(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return which of ALSA's plugins for sound servers are installed."""
    folders = _plugin_folders(environment)
    found = []
    for name in ("pulse", "pipewire"):
        library = f"libasound_module_pcm_{name}.so"
        if any((folder / library).exists() for folder in folders):
            found.append(name)
    return tuple(found)


def _plugin_folders(environment: Mapping[str, str]) -> list[Path]:
    if named := environment.get("ALSA_PLUGIN_DIR"):
        return [Path(named)]
    found: list[Path] = []
    for above in map(Path, PLUGIN_FOLDERS):
        found += [above / "alsa-lib", *above.glob("*/alsa-lib")]
    return found
