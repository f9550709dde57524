"""The service manager and the journal: readiness, watchdog, inherited sockets, structured events.

Knows the protocols of systemd and the names of asrd's events; does not know what they report. Runs
in the daemon. Nothing here waits for the journal or the manager longer than a moment: libsystemd's
own calls block, with the interpreter's lock held, for as long as a stopped journald does not read.
"""

from __future__ import annotations

import copy
import logging
import os
import re
import socket
import sys
from typing import Any

from asrd.text.characters import printable

MESSAGE_IDS = {
    "starting": "088ee354924549cb94b4a52c1b48e7be",
    "ready": "aec8d466c947473a8c2056fdd19c77b1",
    "state": "d61dd31b953e4ba69a9aad9f9a1f0dac",
    "take": "810cc4876ee143cdb5ba93c2a644ab6a",
    "kept": "5bdbd22e2bff477d81b23afea11e9ee3",
    "waiting": "2e2f8dae1ed14581b3bef7cdf9fab41e",
    "rejected": "c7ca528d20b74906bfe90587fc7833f9",
    "demoted": "33edc4c02432c841833a3f71fc427078",
    "promoted": "edd2694a74188c674e869ed799b4625d",
    "shadow": "c9349ad8cca7850727a13b8932a9826c",
    "no-model": "7ed48bc6af934a2f8e0b47715ccb849a",
    "auto": "98da70bf4dad4bddada630ea4c5f0b41",
    "download": "2477182b01a146c5b8c79d74dedc490c",
    "loaded": "560a698b4c464a0a8c42cdafc350253f",
    "unloaded": "6c7e61130af14035b840784d72fa876d",
    "device-lost": "ca09ce96dfb14fefbece304a1a2c8fa3",
    "device-back": "4cc255838587485184fd069e70ce227e",
    "level": "7c17014ec7024390b440a9b2a72b3563",
    "sink-failed": "bfce7e463bfe4a23adf0a3202a6cd850",
    "in-clipboard": "66eebd0187ff401f9e8885072846f177",
    "vram-alert": "3f51d54247b9466d86a824c1fece935f",
    "suspend": "469948f6310a447eb804a7289e473cd6",
    "resume": "b9b671a99db04cbca15188248f514308",
    "reloaded": "95daaa2cd9004af3923c3e3dfc52fb23",
    "log-text": "506e3d81ebe0475b94c62a5b1bf0c158",
    "faults": "e7ced6fc5ce4cd4d8a5b9e6cb0e88253",
    "stopping": "30475ed6389044e0b7647ed5067faa9b",
}
"""Event -> MESSAGE_ID, by which `journalctl MESSAGE_ID=` finds it in every version of asrd."""

JOURNAL_SOCKET = "/run/systemd/journal/socket"
"""Where journald receives entries with fields."""

MAX_FIELD_BYTES = 16384
"""Bytes of one field; a whole entry has to fit into one datagram of about 200 KB."""

logger = logging.getLogger("asrd")


# -- the journal
# ------------------------------------------------------------------------------------------------------


def event(name: str, message: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log one of MESSAGE_IDS.

    Args:
        name: a key of MESSAGE_IDS.
        message: one sentence for a person; counts and figures, never dictated text.
        level: of `logging`.
        fields: what a program may read: `audio_seconds=3.2` becomes ASRD_AUDIO_SECONDS=3.2. None is
            left out; lists are joined by commas; floats keep six digits.
    """
    extra = {"MESSAGE_ID": MESSAGE_IDS[name], "ASRD_EVENT": name}
    for key, value in fields.items():
        if value is not None:
            extra[f"ASRD_{key.upper()}"] = _value(value)
    logger.log(level, "%s", message, extra=extra)


def _value(value: Any) -> str:
    """Return a value as a field of the journal has it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)


def log_to_journal() -> bool:
    """Send what the logger "asrd" gets to the journal, and to stderr unless that is the journal
    too.

    Returns:
        Whether there is a journal that receives fields. Without it stderr gets everything, with the
        <N> priorities that journald reads where stderr leads to one.
    """
    handlers: list[logging.Handler] = []
    ours = _journal_handler()
    if ours is not None:
        handlers.append(ours)
    streamed = _stderr_is_journal()
    if ours is None or not streamed:
        # A copy: PortAudio's bindings point descriptor 2 elsewhere for a moment, again and again.
        terminal = logging.StreamHandler(os.fdopen(os.dup(2), "w", errors="backslashreplace"))
        if streamed:
            terminal.setFormatter(_Prefixed("%(message)s"))
        else:
            terminal.setFormatter(JournalFormatter("asrd: %(message)s"))
        handlers.append(terminal)
    logger.handlers[:] = handlers
    logger.propagate = False
    logger.setLevel(logging.INFO)
    if os.environ.get("ASRD_DEBUG"):
        logger.setLevel(logging.DEBUG)
    return ours is not None


def _stderr_is_journal() -> bool:
    try:
        file = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # closed, or replaced by what is no file
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{file.st_dev}:{file.st_ino}"


def _journal_handler() -> logging.Handler | None:
    if not os.access(JOURNAL_SOCKET, os.W_OK):
        return None
    try:
        from systemd.journal import JournalHandler
    except ImportError:
        return None
    handler: logging.Handler = JournalHandler(
        sender_function=Sender(JOURNAL_SOCKET), SYSLOG_IDENTIFIER="asrd"
    )
    return handler


class Sender:
    """Sends entries to journald and never waits: what it does not accept at once is counted and
    dropped."""

    _NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
    _PRIVATE = ("CODE_ARGS", "EXCEPTION_INFO")
    """Values of a program's variables, which may be dictated text."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.dropped = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    def __call__(self, message: str, /, **fields: Any) -> None:
        """Send one entry; fields whose names journald would refuse are left out."""
        if self.dropped and self._send(self._missed(fields)):
            self.dropped = 0
        if not self._send({"MESSAGE": message, **fields}):
            self.dropped += 1

    def _missed(self, fields: dict[str, Any]) -> dict[str, Any]:
        text = f"the journal did not take {self.dropped} earlier message{'s' * (self.dropped > 1)}"
        return {
            "MESSAGE": text,
            "PRIORITY": "4",
            "SYSLOG_IDENTIFIER": fields.get("SYSLOG_IDENTIFIER", ""),
        }

    def close(self) -> None:
        """Send no more."""
        self._socket.close()

    def _send(self, fields: dict[str, Any]) -> bool:
        entry = bytearray()
        for name, value in fields.items():
            if self._NAME.fullmatch(name) and name not in self._PRIVATE:
                entry += entry_line(name, str(value))
        try:
            self._socket.sendto(entry, self.path)
        except OSError:
            # Full, gone, or started anew and not yet there: counted, and reported with the next.
            return False
        return True


def entry_line(name: str, value: str) -> bytes:
    """Return a field as journald's native protocol has it (systemd.io/JOURNAL_NATIVE_PROTOCOL)."""
    data = (
        printable(value).encode(errors="replace")[:MAX_FIELD_BYTES].decode(errors="ignore").encode()
    )
    if b"\n" not in data:
        return name.encode() + b"=" + data + b"\n"
    return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"


class JournalFormatter(logging.Formatter):
    """Leaves out of a line, and of a traceback, what a terminal or a reader of the journal would
    obey."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the entry, with its lines but no other control character; what it quotes begins no
        line."""
        quoting = copy.copy(record)
        # Where the message is "%s", the argument is all of it and keeps its lines.
        if isinstance(record.args, tuple) and record.msg != "%s":
            quoting.args = tuple(map(_quoted, record.args))
        return printable(super().format(quoting))


def _quoted(value: object) -> object:
    """Return an argument of a log entry on one line where it may have a file's name in it."""
    if isinstance(value, str | os.PathLike | Exception):
        return printable(str(value), breaks=False)
    return value


def _priority(level: int) -> int:
    """Return the priority of syslog for a level of `logging`."""
    for lowest, priority in ((50, 2), (40, 3), (30, 4), (20, 6)):
        if level >= lowest:
            return priority
    return 7


class _Prefixed(JournalFormatter):
    """Puts the priority before each line, as journald reads it from a stream (sd-daemon(3))."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the entry's lines, each with its priority."""
        priority = _priority(record.levelno)
        lines = super().format(record).splitlines() or [""]
        return "\n".join(f"<{priority}>{line}" for line in lines)
