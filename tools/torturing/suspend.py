"""A logind that says when the machine sleeps, on a private system bus."""

from __future__ import annotations

import subprocess
import sys
import urllib.parse
from pathlib import Path

from .daemon import BrokenError

PROGRAM = Path(__file__).parents[2] / "tests" / "fakes" / "login1.py"

DELAY_SECONDS = 5.0
"""That logind grants before it lets the machine sleep."""

BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><listen>unix:path={path}</listen><auth>EXTERNAL</auth><policy context="default">
<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/><allow user="*"/></policy>
</busconfig>"""


class Logind:
    """Runs while the block does. `address` is the bus for DBUS_SYSTEM_BUS_ADDRESS."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._path = folder / "system-bus"
        self.address = f"unix:path={urllib.parse.quote(str(self._path))}"
        self._config = folder / "bus.conf"
        self._environment = environment | {"DBUS_SYSTEM_BUS_ADDRESS": self.address}
        self._running: list[subprocess.Popen[str]] = []

    def ensure(self) -> None:
        """Start bus and logind anew where one of them has ended. Raises BrokenError."""
        if any(one.poll() is not None for one in self._running) or not self._running:
            self.__exit__()
            self._path.unlink(missing_ok=True)
            self.__enter__()

    def __enter__(self) -> Logind:
        self._config.write_text(BUS.format(path=urllib.parse.quote(str(self._path))))
        self._run("dbus-daemon", f"--config-file={self._config}", "--nofork", "--print-address")
        self._run(sys.executable, str(PROGRAM), str(DELAY_SECONDS))
        return self

    def _run(self, *words: str) -> None:
        """Start a program and wait for its first line. Raises BrokenError."""
        one = subprocess.Popen(
            words, stdin=-1, stdout=-1, stderr=-3, text=True, bufsize=1, env=self._environment
        )
        self._running.append(one)
        assert one.stdout is not None
        if not one.stdout.readline():
            self.__exit__()
            raise BrokenError(f"{words[0]} does not come up")

    def say(self, what: str) -> None:
        """Announce "sleep" or "wake"."""
        pipe = self._running[-1].stdin
        assert pipe is not None
        pipe.write(f"{what}\n")

    def __exit__(self, *_: object) -> None:
        for one in reversed(self._running):
            one.kill()
            one.communicate()
        self._running = []
