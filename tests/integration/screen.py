"""Real screens without a monitor: sway with foot, Xvfb with xterm, weston, a private bus with
dunst.

Each lives in a runtime directory of its own, puts its variables into this process's environment for
the test, and is gone afterwards, also when the test fails or the test run is killed. Wayland
compositors refuse to be root: run by root they become nobody. A missing program is a skip on a
developer's machine and a failure in CI.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from asrd.desktop.seat import has_keyboard

T = TypeVar("T")

PACKAGES = {
    "sway": "sway",
    "swaymsg": "sway",
    "foot": "foot",
    "wtype": "wtype",
    "wl-copy": "wl-clipboard",
    "weston": "weston",
    "Xvfb": "xvfb",
    "xterm": "xterm",
    "xdotool": "xdotool",
    "xclip": "xclip",
    "setxkbmap": "x11-xkb-utils",
    "xkbcomp": "x11-xkb-utils",
    "xmodmap": "x11-xserver-utils",
    "dbus-daemon": "dbus",
    "dunst": "dunst",
}
"""Program -> the Debian package that brings it; fonts-dejavu-core is needed besides."""

SESSION = (
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "XDG_SESSION_TYPE",
    "XDG_CURRENT_DESKTOP",
    "XDG_RUNTIME_DIR",
    "SWAYSOCK",
    "DBUS_SESSION_BUS_ADDRESS",
)

NOBODY = 65534

READER = 'stty raw -echo; : >"$1.ready"; exec cat >"$1"'
"""Puts its terminal into raw mode and keeps every byte that is typed; argument: the file."""


def need(*programs: str) -> None:
    """Skip, loudly, where a program is missing; in CI fail."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        packages = " ".join(sorted({PACKAGES[program] for program in missing}))
        report = pytest.fail if os.environ.get("CI") else pytest.skip
        report(f"{', '.join(missing)} not installed: apt-get install {packages}")


def until(condition: Callable[[], T], what: str, seconds: float = 20.0) -> T:
    """Return the condition's first true value; fail when there was none in time."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.01)
    return value


def listening(path: Path) -> bool:
    """Whether somebody accepts connections on a Unix socket: its file is there a moment earlier."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


class Nest:
    """A private runtime directory with the processes that live in it.

    Args:
        unprivileged: run the processes as nobody when this process is root.
    """

    def __init__(self, unprivileged: bool = False) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="asrd-", dir="/tmp"))
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root),
            "LC_ALL": "C.UTF-8",
            "XDG_RUNTIME_DIR": str(self.root),
        }
        self.processes: list[subprocess.Popen[bytes]] = []
        self._become = ["setpriv", "--pdeathsig", "KILL"]
        if unprivileged and os.getuid() == 0:
            os.chown(self.root, NOBODY, NOBODY)
            self._become += [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]

    def start(self, *words: str, pass_fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
        """Start a program in this directory; its output goes to NAME.log there."""
        with (self.root / f"{Path(words[0]).name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*self._become, "--", *words],
                cwd=self.root,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=pass_fds,
            )
        self.processes.append(process)
        return process

    def say(self, *words: str, text: str = "") -> str:
        """Run a short program to its end, `text` on its standard input, and return what it
        printed."""
        done = subprocess.run(
            words,
            cwd=self.root,
            env=self.environment,
            input=text,
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert done.returncode == 0, f"{words[0]}: {done.stderr}"
        return done.stdout

    def log(self, name: str) -> str:
        """Return what a program wrote, for the message of a failed assertion."""
        path = self.root / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def close(self) -> None:
        """End every process, last first, with what it started, and remove the directory."""
        for process in reversed(self.processes):
            self._signal(process, signal.SIGTERM)  # an X server takes its lock and socket away
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                self._signal(process, signal.SIGKILL)
                process.wait()
        shutil.rmtree(self.root, ignore_errors=True)

    @staticmethod
    def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        if process.poll() is None:
            os.killpg(process.pid, number)


class Window:
    """A terminal that has the focus and keeps what is typed into it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    @property
    def text(self) -> str:
        """What arrived so far; Return is a newline."""
        return (
            self.file.read_bytes().decode(errors="replace").replace("\r", "\n")
            if self.file.exists()
            else ""
        )

    def expect(self, text: str, seconds: float = 20.0) -> None:
        """Wait until as much has arrived as `text` is long, then compare exactly."""
        end = time.monotonic() + seconds
        while len(self.text) < len(text) and time.monotonic() < end:
            time.sleep(0.02)
        assert self.text == text, f"typed {self.text!r} for {text!r}"


class Sway(Nest):
    """A headless sway, as an unprivileged user; the environment is that of its clients.

    Args:
        keyboard: have a keyboard on its seat all the time, as a desk has one.
    """

    name = "sway"

    def __init__(self, keyboard: bool = True) -> None:
        super().__init__(unprivileged=True)
        (self.root / "config").write_text(
            "output HEADLESS-1 resolution 1280x720\nxwayland disable\n"
        )
        self.environment |= {
            "WLR_BACKENDS": "headless",
            "WLR_LIBINPUT_NO_DEVICES": "1",
            "WLR_RENDERER": "pixman",
        }
        self.start("sway", "-c", str(self.root / "config"))
        sockets = ("wayland-?", "sway-ipc.*.sock")
        until(
            lambda: all(any(map(listening, self.root.glob(name))) for name in sockets),
            f"sway: {self.log('sway')}",
        )
        self.environment |= {
            "WAYLAND_DISPLAY": next(self.root.glob("wayland-?")).name,
            "SWAYSOCK": str(next(self.root.glob("sway-ipc.*.sock"))),
            "XDG_SESSION_TYPE": "wayland",
            "XDG_CURRENT_DESKTOP": "sway",
        }
        if keyboard:
            need("wtype")
            self.start("wtype", *["-s", "600000"] * 6)
            until(lambda: has_keyboard(self.environment), "the keyboard")

    def window(self, name: str = "typed") -> Window:
        """Open foot with a reader in it and wait until it has the focus."""
        file = self.root / name
        self.start("foot", "--app-id", name, "sh", "-c", READER, "reader", str(file))
        until(
            lambda: Path(f"{file}.ready").exists() and self.focused() == name,
            f"foot: {self.log('foot')}",
        )
        return Window(file)

    def focused(self) -> str:
        """Return the app id of the focused window, "" for none."""
        nodes = [json.loads(self.say("swaymsg", "-r", "-t", "get_tree"))]
        while nodes:
            node = nodes.pop()
            if node["focused"] and node.get("app_id"):
                return str(node["app_id"])
            nodes += node["nodes"] + node["floating_nodes"]
        return ""

    def bind(self, key: str, command: str) -> None:
        """Bind a key, as "Mod4+d", to a command line, as sway's config does; it runs as sway's
        user."""
        self.say("swaymsg", f"bindsym {key} exec {command}")

    def bind_here(self, key: str, *words: str) -> None:
        """Bind a key to a program that runs as this process does: its user, directory and
        environment of now.

        Sway's own user may reach neither this Python nor a daemon's socket; so the key writes a
        line, and a shell of this process's user that reads it starts the program.
        """
        fifo = self.root / f"{key}.fifo"
        os.mkfifo(fifo)
        os.chown(fifo, *((NOBODY, NOBODY) if os.getuid() == 0 else (-1, -1)))
        loop = 'exec 3<>"$0"; while read -r _ <&3; do "$@"; done'
        with (self.root / "bound.log").open("ab") as log:
            self.processes.append(
                subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", "--", "sh", "-c", loop, str(fifo), *words],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
        self.bind(key, f"sh -c 'echo >{fifo}'")

    def press(self, modifier: str, key: str) -> None:
        """Press a key with a modifier, as "logo" and "d", on a virtual keyboard."""
        self.say("wtype", "-s", "200", "-M", modifier, "-k", key, "-m", modifier, "-s", "50")

    def clipboard(self, *words: str) -> str:
        """Return what the clipboard holds; `--primary` for the other one."""
        return self.say("wl-paste", "--no-newline", *words)


class Xorg(Nest):
    """A virtual X server without a window manager."""

    name = "xorg"

    def __init__(self) -> None:
        super().__init__()
        number, write = os.pipe()
        screen = ["-screen", "0", "1280x720x24", "-nolisten", "tcp"]
        self.start("Xvfb", "-noreset", "-displayfd", str(write), *screen, pass_fds=[write])
        os.close(write)
        with os.fdopen(number) as stream:
            display = stream.readline().strip()
        assert display, f"Xvfb: {self.log('Xvfb')}"
        self.environment |= {"DISPLAY": f":{display}", "XDG_SESSION_TYPE": "x11"}

    def window(self, name: str = "typed", translations: str = "") -> Window:
        """Open xterm with a reader in it and give it the focus; `translations` changes what its
        keys do."""
        file = self.root / name
        resources = ["-xrm", f"*VT100.translations: {translations}"] if translations else []
        self.start(
            "xterm", "-u8", "-T", name, *resources, "-e", "sh", "-c", READER, "reader", str(file)
        )
        until(lambda: Path(f"{file}.ready").exists(), f"xterm: {self.log('xterm')}")
        identity = self.say(
            "xdotool", "search", "--sync", "--onlyvisible", "--name", f"^{name}$"
        ).split()[-1]
        self.say("xdotool", "windowfocus", "--sync", identity)
        return Window(file)

    def clipboard(self, selection: str = "clipboard") -> str:
        """Return what a selection holds: clipboard or primary."""
        return self.say("xclip", "-selection", selection, "-o")


class Weston(Nest):
    """A weston: like GNOME and KDE it knows no virtual keyboard.

    Args:
        xorg: the X server it is a window of, which gives it a keyboard, so that it has a clipboard;
            without one it is headless and has neither.
    """

    name = "weston"

    def __init__(self, xorg: Xorg | None = None) -> None:
        super().__init__(unprivileged=True)
        backend = ["--backend=headless-backend.so"]
        if xorg:
            self.environment["DISPLAY"] = xorg.environment["DISPLAY"]
            backend = ["--backend=x11-backend.so", "--use-pixman", "--width=1000", "--height=700"]
        # For as long as weston fades a closing window out, a second, the window below has no focus.
        (self.root / "weston.ini").write_text(
            "[shell]\nclose-animation=none\nstartup-animation=none\n"
        )
        config = f"--config={self.root}/weston.ini"
        self.start("weston", *backend, "--socket=wayland-9", "--idle-time=0", config)
        until(lambda: listening(self.root / "wayland-9"), f"weston: {self.log('weston')}")
        self.environment |= {"WAYLAND_DISPLAY": "wayland-9", "XDG_SESSION_TYPE": "wayland"}
        if xorg:
            identity = until(
                lambda: re.search(r"window id (\d+)", self.log("weston")), "weston's window"
            )[1]
            xorg.say("xdotool", "windowfocus", "--sync", identity)

    def window(self, name: str = "typed") -> Window:
        """Open foot with a reader in it; weston gives a new window the focus. Shift+Insert pastes
        the clipboard."""
        file = self.root / name
        keys = [
            "-o",
            "key-bindings.primary-paste=none",
            "-o",
            "key-bindings.clipboard-paste=Shift+Insert",
        ]
        self.start("foot", *keys, "sh", "-c", READER, "reader", str(file))
        until(Path(f"{file}.ready").exists, f"foot: {self.log('foot')}")
        return Window(file)

    def clipboard(self) -> str:
        """Return what the clipboard holds."""
        return self.say("wl-paste", "--no-newline")


class Bus(Nest):
    """A private session bus; with `dunst`, a notification service on it."""

    name = "bus"

    def __init__(self, environment: dict[str, str]) -> None:
        super().__init__()
        address = f"unix:path={self.root}/bus"
        self.start("dbus-daemon", "--session", "--nofork", f"--address={address}")
        until(lambda: listening(self.root / "bus"), "dbus-daemon")
        self.environment |= environment | {"DBUS_SESSION_BUS_ADDRESS": address}

    def dunst(self) -> None:
        """Start dunst on this bus; it needs a DISPLAY."""
        self.start("dunst", "-conf", "/dev/null")
        until(lambda: self._owned("org.freedesktop.Notifications"), f"dunst: {self.log('dunst')}")

    def _owned(self, name: str) -> bool:
        words = [
            "--print-reply",
            "--dest=org.freedesktop.DBus",
            "/",
            "org.freedesktop.DBus.NameHasOwner",
        ]
        return "boolean true" in self.say("dbus-send", "--session", *words, f"string:{name}")

    def notifications(self) -> list[tuple[str, str]]:
        """Return (summary, body) of every notification, the newest first; those still shown are
        closed."""
        self.say("dunstctl", "close-all")
        table = json.loads(self.say("dunstctl", "history"))
        return [(entry["summary"]["data"], entry["body"]["data"]) for entry in table["data"][0]]


@pytest.fixture
def no_session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take every variable of a graphical session away; XDG_RUNTIME_DIR is an empty directory.

    What presses keys through the kernel would press them on the developer's own screen: those
    programs fail here.
    """
    for name in SESSION:
        monkeypatch.delenv(name, raising=False)
    runtime, programs = tmp_path / "runtime", tmp_path / "programs"
    for directory in (runtime, programs):
        directory.mkdir()
    for name in ("dotool", "ydotool"):
        (programs / name).write_text("#!/bin/sh\necho uinput >&2\nexit 1\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")


N = TypeVar("N", bound=Nest)


def _enter(nest: N, monkeypatch: pytest.MonkeyPatch) -> Iterator[N]:
    for name in SESSION:
        if name in nest.environment:
            monkeypatch.setenv(name, nest.environment[name])
    try:
        yield nest
    finally:
        nest.close()


@pytest.fixture
def sway(no_session: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sway]:
    """A sway session around this test."""
    need("sway", "swaymsg", "foot", "wtype", "wl-copy")
    yield from _enter(Sway(), monkeypatch)


@pytest.fixture
def xorg(no_session: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Xorg]:
    """An X11 session around this test."""
    need("Xvfb", "xterm", "xdotool", "xclip")
    yield from _enter(Xorg(), monkeypatch)


@pytest.fixture
def weston(xorg: Xorg, monkeypatch: pytest.MonkeyPatch) -> Iterator[Weston]:
    """A Wayland session like GNOME's around this test: a clipboard, and no virtual keyboard."""
    need("weston", "wtype", "wl-copy", "foot")
    yield from _enter(Weston(xorg), monkeypatch)


@pytest.fixture
def seatless(no_session: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Weston]:
    """A Wayland session around this test that has neither keyboard nor clipboard."""
    need("weston", "wtype", "wl-copy")
    yield from _enter(Weston(), monkeypatch)


@pytest.fixture
def bus(xorg: Xorg, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    """A private session bus with a notification service, on the X server of this test."""
    need("dbus-daemon", "dunst")
    nest = Bus({"DISPLAY": xorg.environment["DISPLAY"]})
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", nest.environment["DBUS_SESSION_BUS_ADDRESS"])
    try:
        nest.dunst()
        yield nest
    finally:
        nest.close()
