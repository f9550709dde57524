"""Where the control socket is, how it is bound, and whether a daemon listens on it. Imports
little."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from asrd import hints, paths
from asrd.errors import (
    SocketError,
)
from asrd.text import filenames, text_files

if TYPE_CHECKING:
    from asrd.config.settings import Settings

MAX_LINE = 1 << 16
"""Bytes of one line; longer is answered with an error."""

BACKLOG = 1024
"""Clients that may wait to be let in; the kernel caps it (net.core.somaxconn)."""

MAX_PATH = 107
"""Bytes of a Unix socket's path that Linux takes."""


class Place:
    """The one setting that a verb which only asks needs; reading all of them would take longer than
    the asking."""

    def __init__(self, socket: str = "", origin: str = "") -> None:
        self.socket = socket
        self.origin = origin
        """What named it: --socket, ASRD_SOCKET or the configuration; "" where nothing did."""


def place(
    flag: str | None, file: Path | None, environment: Mapping[str, str] = os.environ
) -> Place:
    """Return where to ask: the flag, ASRD_SOCKET or the file's `socket`. Raises ConfigError for a
    broken file."""
    if flag:
        return Place(flag, "--socket")
    if given := environment.get("ASRD_SOCKET"):
        return Place(given, "ASRD_SOCKET")
    where = file or paths.config_file(environment)
    try:
        text = text_files.read(where)
    except (OSError, text_files.NotTextError):
        return Place()  # the verbs that need the other settings complain of it
    if "socket" not in text:
        return Place()
    import tomllib

    try:
        named = filenames.named(str(tomllib.loads(text).get("socket", "")))
        return Place(named, f"the setting socket in {where}")
    except tomllib.TOMLDecodeError as error:
        from asrd.config import misnomers
        from asrd.config import settings as config_settings
        from asrd.config.settings import KNOWN

        raise misnomers.not_toml(where, text, error, KNOWN, config_settings.propose) from error


def path(settings: Settings | Place, environment: Mapping[str, str] = os.environ) -> Path:
    """Return where the control socket is. Raises SocketError when that cannot be: no folder, or too
    long a name."""
    if settings.socket:
        where = Path(settings.socket).expanduser()
    elif runtime := environment.get("XDG_RUNTIME_DIR") or _runtime():
        # A relative folder counts here: daemon and client are given the same one, and the daemon
        # has no other.
        where = Path(runtime) / "asrd.sock"
    else:
        raise SocketError(
            "there is no runtime directory for the control socket: XDG_RUNTIME_DIR is not set",
            "log in through a session manager, or set ASRD_SOCKET to a path in a folder of your own",
        )
    if len(os.fsencode(where)) > MAX_PATH:
        raise SocketError(
            f"the control socket's path is longer than {MAX_PATH} bytes: {where}",
            f"have {origin_of(settings, environment)} name a shorter one",
        )
    return where


def origin_of(settings: Settings | Place, environment: Mapping[str, str] = os.environ) -> str:
    """Return what named the socket, or what can name another."""
    if not settings.socket:
        return "--socket or ASRD_SOCKET"
    if isinstance(settings, Place):
        return settings.origin or "--socket"
    return (
        "ASRD_SOCKET"
        if environment.get("ASRD_SOCKET") == settings.socket
        else "--socket, or the setting socket,"
    )


def _runtime() -> str:
    """Return the user's runtime directory where only the variable is missing, as under sudo or
    cron."""
    usual = f"/run/user/{os.getuid()}"
    return usual if os.access(usual, os.W_OK) else ""


def listen(settings: Settings | Place) -> socket.socket:
    """Bind the control socket, for the user alone. Raises SocketError: another daemon, no right, no
    folder.

    A socket that nobody answers on is left over from a daemon that was killed, and is replaced.
    """
    where = path(settings)
    with _alone(where.parent):
        return _bind(where, origin_of(settings))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Look at a socket and replace it as one act: of two daemons that start at once, one meets the
    other's socket."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # binding says what is wrong with it
        yield
        return
    try:
        deadline = time.monotonic() + 2.0  # whoever holds it longer is no asrd
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.01)
        yield
    finally:
        os.close(handle)


def _bind(where: Path, origin: str) -> socket.socket:
    if answers(where, origin):
        raise SocketError(
            f"another asrd is running and listens on {where}",
            f"asrd toggle, asrd status and the other verbs reach it; to end it: {hints.stop(where)}",
        )
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    # Under another name first: a client never meets a socket that is bound and not yet its owner's
    # alone.
    new = where.with_name(f".{os.getpid()}")
    try:
        if where.is_socket():
            where.unlink()
        new.unlink(missing_ok=True)
        one.bind(os.fspath(new))
        new.chmod(0o600)
        one.listen(BACKLOG)
        os.link(new, where)
    except FileExistsError as error:
        one.close()
        raise SocketError(
            f"{where} exists and is not a socket", f"remove it, or have {origin} name another path"
        ) from error
    except OSError as error:
        one.close()
        raise SocketError(
            f"the control socket {where} cannot be made: {error.strerror or error}",
            f"have {origin} name a path that you may write",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink()
    return one


def forget(settings: Settings | Place) -> None:
    """Remove the control socket of this process, once it is closed; not that of a daemon started
    meanwhile."""
    with contextlib.suppress(OSError, SocketError):
        where = path(settings)
        if not answers(where):
            where.unlink()


def answers(where: Path, origin: str = "--socket or ASRD_SOCKET") -> bool:
    """Whether a daemon listens there. Raises SocketError where that may not even be asked."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(os.fspath(where))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except PermissionError as error:
            hint = f"have {origin} name a path of your own"
            raise SocketError(f"{where} belongs to another user", hint) from error
        except OSError:
            return where.is_socket()
    return True
