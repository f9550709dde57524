"""The control socket from inside: many clients, one JSON object a line, and nothing a client does harms the daemon.

Garbage and long lines get an error; slow, silent and surplus clients are dropped. Knows lines, not what verbs do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec

from .control import MAX_LINE
from .errors import AsrdError, UsageError, nearest

log = logging.getLogger("asrd")

CLIENTS = 100
"""Lines open at once. One more costs the one that has been silent longest; where none is, it is told so and closed."""

BACKLOG = 1000
"""Clients that may be on their way in; the kernel caps it (net.core.somaxconn)."""

GRACE = 0.5
"""Seconds that answers on their way get at the end."""

SILENCE = 30.0
"""Seconds that a client may say nothing before it is dropped."""

SLOW = 5.0
"""Seconds that a client may take to read what it asked for."""

VERBS = (
    *("toggle", "start", "stop", "cancel", "status", "last"),
    *("retry", "takes", "use", "reload", "tuned", "transcribe"),
)


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client asks for; the fields beside `verb` belong to single verbs."""

    verb: str
    wait: bool = False
    """start: keep the line open, answer with the text and send it nowhere else."""
    silence: float = 0.0
    """start: stop after so many seconds without speech; 0 never."""
    seconds: float = 0.0
    """start: stop after so many seconds; 0 never."""
    follow: bool = False
    """status: go on telling."""
    take: str = ""
    """retry: which; "" the newest."""
    all: bool = False
    """retry: all that wait."""
    deliver: bool = False
    """retry: send to the sinks."""
    strategy: str = ""
    """use: which."""
    path: str = ""
    """transcribe: a sound file, by its whole path."""


Answers = AsyncGenerator[dict[str, Any], None]

_request = msgspec.json.Decoder(Request)
_encode = msgspec.json.Encoder().encode


class Server:
    """Reads requests and writes what `answer` yields for each; a last reply has no `more`."""

    def __init__(self, answer: Callable[[Request], Answers]) -> None:
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._silent: dict[asyncio.Task[None], None] = {}
        """Those that have asked for nothing, the longest first."""

    async def open(self, line: socket.socket) -> None:
        """Begin to answer on a listening socket."""
        line.setblocking(False)
        # Not start_unix_server: from Python 3.13 on that removes the socket's path, which may be systemd's.
        self._server = await asyncio.start_server(self._client, sock=line, limit=MAX_LINE, backlog=BACKLOG)

    async def close(self) -> None:
        """Answer nobody any more; what is being answered gets a moment."""
        if self._server is not None:
            self._server.close()
        for client in list(self._silent):
            client.cancel()
        if self._clients:
            await asyncio.wait(self._clients, timeout=GRACE)
        for client in list(self._clients):
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            if len(self._clients) > CLIENTS and not self._make_room():
                await _send(writer, _error(UsageError(f"{CLIENTS} clients are being served", "try again")))
            else:
                await self._talk(reader, writer)
        except (ConnectionError, TimeoutError):
            writer.transport.abort()  # the client's loss: what it does not read must not keep the line open
        except asyncio.CancelledError:
            writer.transport.abort()  # from `close` or `_make_room` only
        finally:
            self._clients.discard(task)
            self._silent.pop(task, None)
            writer.close()

    def _make_room(self) -> bool:
        """End the line that has been silent longest, if there is one."""
        for client in self._silent:
            client.cancel()
            del self._silent[client]
            return True
        return False

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request after the other until the client ends."""
        task = asyncio.current_task()
        assert task is not None
        while True:
            self._silent[task] = None
            try:
                async with asyncio.timeout(SILENCE):
                    line = await reader.readline()
            except ValueError:
                await _send(writer, _error(UsageError(f"a line longer than {MAX_LINE} bytes")))
                return
            finally:
                self._silent.pop(task, None)
            if not line.strip():
                return
            try:
                request = parse(line)
            except UsageError as error:
                await _send(writer, _error(error))
                continue
            await self._reply(request, reader, writer)

    async def _reply(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Write all answers to one request; a client that hangs up ends their making."""
        answers = self._answer(request)
        gone = asyncio.create_task(_hang_up(reader, writer)) if request.wait or request.follow else None
        step: asyncio.Future[dict[str, Any] | None] | None = None
        try:
            while True:
                step = asyncio.ensure_future(anext(answers, None))
                await asyncio.wait({step, gone} if gone else {step}, return_when=asyncio.FIRST_COMPLETED)
                if not step.done():
                    raise ConnectionResetError
                reply = step.result()
                if reply is None:
                    return
                await _send(writer, {"ok": True, **reply})
        except AsrdError as error:
            await _send(writer, _error(error))
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:
            log.exception("%s failed", request.verb)
            await _send(writer, _error(AsrdError(f"internal error: {type(error).__name__}: {error}")))
        finally:
            await _ended(step, gone)  # the generator runs until its step has ended, and so does reading
            await answers.aclose()


def parse(line: bytes) -> Request:
    """Return a request. Raises UsageError: no JSON, no such verb, a field of the wrong kind."""
    try:
        request = _request.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"not a request: {error}", 'for example {"verb": "status"}') from error
    if request.verb not in VERBS:
        raise UsageError(f"unknown verb {request.verb[:40]!r}", nearest(request.verb[:40], VERBS))
    if not (0 <= request.silence < 1e6 and 0 <= request.seconds < 1e6):
        raise UsageError("silence and seconds are spans in seconds")
    return request


async def _send(writer: asyncio.StreamWriter, reply: dict[str, Any]) -> None:
    """Write one reply. Raises TimeoutError when the client does not read, ConnectionError when it is gone."""
    writer.write(_encode(reply) + b"\n")
    async with asyncio.timeout(SLOW):
        await writer.drain()


async def _hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Return when the client has closed its end in both directions; a client may rightly close only its own."""
    with contextlib.suppress(ConnectionError):
        while await reader.read(1 << 12):
            pass
    poll = select.poll()
    while (handle := writer.get_extra_info("socket").fileno()) >= 0:
        poll.register(handle, 0)
        if any(event & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0)):
            return
        poll.unregister(handle)
        await asyncio.sleep(0.25)


async def _ended(*jobs: asyncio.Future[Any] | None) -> None:
    """Cancel what still runs and wait until it has ended; how it ended is told elsewhere."""
    running = [job for job in jobs if job is not None and not job.done()]
    for job in running:
        job.cancel()
    await asyncio.gather(*running, return_exceptions=True)


def _error(error: AsrdError) -> dict[str, Any]:
    return {"ok": False, "error": error.message, "hint": error.hint, "code": error.exit_code}
