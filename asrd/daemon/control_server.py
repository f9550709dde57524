"""The control socket from inside: many clients, one JSON object a line, and nothing a client does
harms the daemon.

Garbage and long lines get an error. Whoever connects is answered, if only with "busy". Requests
that last have places of their own, so that a key always finds one. Knows lines, not what verbs do.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import select
import socket
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec

from asrd.daemon import descriptors
from asrd.daemon.control_socket import BACKLOG, MAX_LINE
from asrd.errors import AsrdError, BusyError, UsageError, nearest
from asrd.text import filenames

log = logging.getLogger("asrd")

FOLLOWERS, LENGTHY_REQUESTS = 100, 100
"""Requests at once that follow the status, and that wait for a worker. More are told "busy"; keys
are not counted."""

LENGTHY_VERBS = ("retry", "transcribe", "use", "reload")

ACCEPTED_TOGETHER = 64
"""Clients that are let in before others are answered."""

ACCEPT_PAUSE = 0.05
"""Seconds until the next look where no client could be let in."""

GRACE = 0.5
"""Seconds that answers on their way get at the end."""

SILENCE = 10.0
"""Seconds that a client may say nothing before it is dropped."""

PATIENT_SILENCE = 1.0
"""Seconds that every client may say nothing, even where half of the places are taken."""

SLOW = 5.0
"""Seconds that a client may take to read what it asked for."""

VERBS = (
    *("toggle", "start", "stop", "cancel", "status", "last"),
    *("retry", "takes", "recordings", "use", "reload", "tuned", "transcribe"),
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
    recording: str = ""
    """retry: which; "" the newest."""
    take: str = ""
    """Older name of `recording`."""
    all: bool = False
    """retry: all that wait."""
    deliver: bool = False
    """retry: send to the sinks what they lack."""
    again: bool = False
    """retry: send also what may have been delivered before."""
    strategy: str = ""
    """use: which."""
    path: str = ""
    """transcribe: a sound file, by its whole path."""
    path_bytes: bytes = b""
    """The same where it is not UTF-8, as base64; it goes before `path`, as `filenames.exact` has
    them."""


Answers = AsyncGenerator[dict[str, Any], None]

_request = msgspec.json.Decoder(Request)


class ControlServer:
    """Reads requests and writes what `answer` yields for each; a last reply has no `more`."""

    def __init__(self, answer: Callable[[Request], Answers]) -> None:
        self._answer = answer
        self._line: socket.socket | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._silent: dict[asyncio.Task[None], float] = {}
        """Those that wait for nothing -> since when they are silent, the longest first."""
        self._lasting: collections.Counter[str] = collections.Counter()
        """Kind of request that lasts -> how many are being answered."""
        self._places = 0
        self._closing = False
        self._pause: asyncio.TimerHandle | None = None
        self._crowded = False

    async def open(self, line: socket.socket) -> None:
        """Begin to answer on a listening socket."""
        line.setblocking(False)
        line.listen(BACKLOG)  # systemd's may have been opened with a shorter queue
        self._line = line
        self._places = descriptors.connections()
        asyncio.get_running_loop().add_reader(line.fileno(), self._let_in)

    async def close(self) -> None:
        """Answer nobody any more; what is being answered gets a moment. The socket stays open, its
        queue untouched."""
        self._closing = True
        if self._line is not None:
            asyncio.get_running_loop().remove_reader(self._line.fileno())
        if self._pause is not None:
            self._pause.cancel()
        for client in list(self._silent):
            client.cancel()
        if self._clients:
            await asyncio.wait(self._clients, timeout=GRACE)
        for client in list(self._clients):
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    def _let_in(self) -> None:
        """Take in clients that wait in the kernel's queue, as long as there are places and
        descriptors."""
        assert self._line is not None
        if len(self._clients) >= self._places // 2:
            self._end_silent()
        for _ in range(ACCEPTED_TOGETHER):
            if len(self._clients) >= self._places:
                self._wait_for_room("asrd serves as many clients as it can already")
                return
            try:
                connection, _address = self._line.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptors, no memory: the client stays in the queue
                self._wait_for_room(f"cannot accept a client: {error.strerror}")
                return
            client = asyncio.create_task(self._client(connection))
            self._clients.add(client)
            self._silent[client] = asyncio.get_running_loop().time()
        self._crowded = False

    def _end_silent(self) -> None:
        """End clients that have been silent for a while."""
        late = asyncio.get_running_loop().time() - PATIENT_SILENCE
        for client in [client for client, since in self._silent.items() if since < late]:
            client.cancel()

    def _wait_for_room(self, why: str) -> None:
        """Look again after a pause instead of spinning."""
        if not self._crowded:
            log.warning("%s; clients wait", why)
        self._crowded = True
        loop, line = asyncio.get_running_loop(), self._line
        assert line is not None
        self._end_silent()
        loop.remove_reader(line.fileno())
        self._pause = loop.call_later(
            ACCEPT_PAUSE, lambda: loop.add_reader(line.fileno(), self._let_in)
        )

    async def _client(self, connection: socket.socket) -> None:
        task = asyncio.current_task()
        assert task is not None
        writer: asyncio.StreamWriter | None = None
        try:
            connection.setblocking(False)
            reader, writer = await asyncio.open_unix_connection(sock=connection, limit=MAX_LINE)
            await self._talk(reader, writer)
        except (ConnectionError, TimeoutError):
            if (
                writer is not None
            ):  # the client's loss: what it does not read must not keep the line open
                writer.transport.abort()
        except asyncio.CancelledError:  # from `close` or `_wait_for_room` only
            if writer is not None:
                self._dismiss(task, writer)
        finally:
            self._clients.discard(task)
            self._silent.pop(task, None)
            if writer is None:
                connection.close()
            else:
                writer.close()

    def _dismiss(self, task: asyncio.Task[None], writer: asyncio.StreamWriter) -> None:
        """Tell a client that has no answer yet why it gets none; what is on its way to one that
        reads late is lost."""
        if task not in self._silent or writer.transport.get_write_buffer_size():
            writer.transport.abort()
            return
        why = "asrd is ending" if self._closing else "asrd has too many clients"
        writer.write(encoded(_error(BusyError(why, "try again"))) + b"\n")

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request after the other until the client ends."""
        task, asked = asyncio.current_task(), False
        assert task is not None
        while True:
            self._silent.pop(task, None)
            self._silent[task] = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(SILENCE):
                    line = await reader.readline()
            except ValueError:
                await _send(writer, _error(UsageError(f"a line longer than {MAX_LINE} bytes")))
                return
            except TimeoutError:
                if not asked:
                    hint = "send a request of one line"
                    await _send(
                        writer, _error(UsageError(f"no request came within {SILENCE:g} s", hint))
                    )
                return
            if not line.strip():
                return
            self._silent.pop(task, None)
            asked = True
            try:
                request = parse(line)
            except UsageError as error:
                await _send(writer, _error(error))
            else:
                await self._reply(request, reader, writer)
            await asyncio.sleep(0)  # lines that are here already must not keep others from theirs

    async def _reply(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer one request, or say that there is no place for its kind."""
        kind, limit = lasting(request)
        if kind and self._lasting[kind] >= limit:
            await _send(
                writer,
                _error(
                    BusyError(f"{limit} clients {kind} already", "try again when one has ended")
                ),
            )
            return
        self._lasting[kind] += 1
        try:
            await self._write_answers(request, reader, writer)
        finally:
            self._lasting[kind] -= 1

    async def _write_answers(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Write all answers to one request; a client that hangs up ends their making."""
        answers = self._answer(request)
        gone = (
            asyncio.create_task(_hang_up(reader, writer))
            if request.wait or request.follow
            else None
        )
        step: asyncio.Future[dict[str, Any] | None] | None = None
        try:
            while True:
                step = asyncio.ensure_future(anext(answers, None))
                await asyncio.wait(
                    {step, gone} if gone else {step}, return_when=asyncio.FIRST_COMPLETED
                )
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
            await _send(
                writer, _error(AsrdError(f"internal error: {type(error).__name__}: {error}"))
            )
        finally:
            await _ended(
                step, gone
            )  # the generator runs until its step has ended, and so does reading
            await answers.aclose()


def lasting(request: Request) -> tuple[str, int]:
    """Return what clients with such a request do for long, and how many may at once; "" for what
    ends soon.

    A recording that is waited for is as rare as a key, for there is one at a time.
    """
    if request.verb == "status" and request.follow:
        return "follow the status", FOLLOWERS
    if request.verb in LENGTHY_VERBS:
        return "wait for a worker", LENGTHY_REQUESTS
    return "", 0


def refuse_rest(line: socket.socket) -> None:
    """Tell the clients in a socket's queue that the daemon has ended; for a socket that ends with
    it."""
    reply = encoded(_error(BusyError("asrd is ending", "try again"))) + b"\n"
    for _ in range(BACKLOG):
        try:
            client, _address = line.accept()
        except OSError:
            return
        with client, contextlib.suppress(OSError):
            client.setblocking(False)
            client.send(reply)


def parse(line: bytes) -> Request:
    """Return a request. Raises UsageError: no JSON, no such verb, a field of the wrong kind."""
    try:
        request = _request.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"not a request: {error}", 'for example {"verb": "status"}') from error
    if request.verb not in VERBS:
        raise UsageError(f"unknown verb {request.verb[:40]!r}", nearest(request.verb[:40], VERBS))
    if not (0 <= request.silence < 1e6 and 0 <= request.seconds < 1e6):
        raise UsageError("silence and seconds must be between 0 and a million seconds")
    return request


def encoded(reply: dict[str, Any]) -> bytes:
    r"""Return a reply as JSON; bytes of a name that are no UTF-8 become \xNN."""
    return filenames.to_json(reply)


async def _send(writer: asyncio.StreamWriter, reply: dict[str, Any]) -> None:
    """Write one reply. Raises TimeoutError when the client does not read, ConnectionError when it
    is gone."""
    writer.write(encoded(reply) + b"\n")
    async with asyncio.timeout(SLOW):
        await writer.drain()


async def _hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Return when the client has closed its end in both directions; a client may rightly close only
    its own."""
    with contextlib.suppress(ConnectionError):
        while await reader.read(1 << 12):
            pass
    poll = select.poll()
    while (handle := writer.get_extra_info("socket").fileno()) >= 0:
        poll.register(handle, 0)
        if any(
            event & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0)
        ):
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
    busy = {}
    if isinstance(error, BusyError):
        busy["busy"] = True
    return {
        "ok": False,
        "error": error.message,
        "hint": error.hint,
        "code": error.exit_code,
        **busy,
    }
