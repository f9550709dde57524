"""Asking a daemon that may be busy: again, after pauses that grow, for a bounded time. Imports
little."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from asrd import hints
from asrd.errors import (
    AsrdError,
    BusyError,
    ControlError,
)
from asrd.text import filenames

if TYPE_CHECKING:
    from asrd.config.settings import Settings
from asrd.daemon import older_names
from asrd.daemon.control_socket import Place, origin_of, path

BUSY_SECONDS = 10.0
"""Seconds after which a daemon that stays busy is told to the user."""

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds between two attempts, about: each pause is twice the one before, and none is exact."""

T = TypeVar("T")


def persistent(ask: Callable[[], Iterator[T]]) -> Iterator[T]:
    """Yield what `ask` gives, and ask again while the daemon is busy.

    A busy daemon has done nothing of a request, so every verb is safe to repeat. Raises BusyError
    after BUSY_SECONDS, and what `ask` raises.
    """
    deadline, pause = time.monotonic() + BUSY_SECONDS, FIRST_PAUSE
    while True:
        try:
            yield from ask()
            return
        except BusyError:
            if time.monotonic() + pause > deadline:
                raise
        import random  # only a crowd needs it

        time.sleep(
            pause * random.uniform(0.5, 1.5)
        )  # clients that were refused together do not come back together
        pause = min(2 * pause, LONGEST_PAUSE)


PATIENCE = 30.0
"""Seconds that a daemon may take for an answer that needs no worker; as many as systemd gives one
to start."""

LENGTHY = ("use", "reload", "retry", "transcribe")
"""Verbs that wait for a worker."""


# -- asking
# -----------------------------------------------------------------------------------------------------------


def ask(settings: Settings | Place, **request: Any) -> Iterator[dict[str, Any]]:
    """Send one request and yield the replies to it; a daemon that is busy is asked again for some
    seconds.

    Raises:
        ControlError: no daemon, or one that hangs, or it went away before its last answer.
        BusyError: it had no place for so long.
        AsrdError: what the daemon answered, with its exit code.
    """
    return persistent(lambda: _ask(path(settings), request, origin_of(settings)))


def _ask(where: Path, request: dict[str, Any], origin: str) -> Iterator[dict[str, Any]]:
    """Ask once. Raises as `ask`, BusyError at once."""
    patient = request["verb"] in LENGTHY or request.get("wait") or request.get("follow")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(PATIENCE)
        _send(line, where, request, origin)
        if patient:
            line.settimeout(None)
        try:
            with line.makefile("rb") as replies:
                for reply in replies:
                    found = json.loads(reply)
                    if not found["ok"]:
                        raise _refused(found)
                    yield older_names.with_todays(found)
                    if not found.get("more"):
                        return
        except TimeoutError as error:
            raise _hangs(where) from error
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ControlError("the daemon's answer broke off", hints.explain(where)) from error
        raise ControlError("the daemon ended before its last answer", hints.explain(where))


def _send(line: socket.socket, where: Path, request: dict[str, Any], origin: str) -> None:
    """Connect and send the request. Raises BusyError, ControlError."""
    try:
        line.connect(os.fspath(where))
        given = {key: value for key, value in request.items() if value not in (None, False, "")}
        line.sendall(json.dumps(filenames.spelt(given)).encode() + b"\n")
    except BlockingIOError as error:  # nothing was sent
        hint = f"try again; where it hangs: {hints.restart(where)}"
        raise BusyError(f"too many clients wait for the asrd on {where}", hint) from error
    except (BrokenPipeError, ConnectionResetError):
        return  # a daemon that has no place says so and hangs up: its answer is there to be read
    except TimeoutError as error:
        raise _hangs(where) from error
    except PermissionError as error:
        hint = f"ask as that user, or have {origin} name your own daemon's"
        raise ControlError(f"{where} belongs to another user", hint) from error
    except OSError as error:
        raise ControlError(f"no asrd listens on {where}", hints.start(where)) from error


def _hangs(where: Path) -> ControlError:
    return ControlError(
        f"the asrd on {where} does not answer within {PATIENCE:.0f} s",
        f"restart it: {hints.restart(where)}",
    )


def _refused(reply: Mapping[str, Any]) -> AsrdError:
    kind = AsrdError
    if reply.get("busy"):
        kind = BusyError
    error = kind(str(reply.get("error", "the daemon refused")), str(reply.get("hint", "")))
    error.exit_code = int(reply.get("code", 70))
    return error
