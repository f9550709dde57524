"""Hostile clients on a real control socket: whatever they do, a well-behaved one is answered, and
nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import resource
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asrd.daemon import control_server
from asrd.daemon import descriptors as descriptor_limits
from asrd.daemon.control_server import Answers, ControlServer, Request, parse
from asrd.daemon.control_socket import MAX_LINE
from asrd.errors import UsageError

IN_TIME = 10.0
"""Seconds: far more than any answer takes, far less than the limits under which a client is
dropped."""

STATUS = b'{"verb": "status"}\n'


class Room:
    """A server with verbs that do what the real ones do to a line: one answer, many, late ones,
    errors."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.done: asyncio.Event = asyncio.Event()
        """What `start --wait` waits for."""
        self.ended: list[str] = []
        """Verbs whose generators came to their end, and how."""
        self.errors: list[dict[str, Any]] = []
        self.server = ControlServer(self.answer)
        self.path = ""

    async def answer(self, request: Request) -> Answers:
        how = "cut off"
        try:
            if request.verb == "status" and request.follow:
                while True:
                    yield {"state": "IDLE", "padding": "x" * 4000, "more": True}
                    await asyncio.sleep(0)
            elif request.verb == "status":
                yield {"state": "IDLE"}
            elif request.verb in ("transcribe", "retry") or (
                request.verb == "start" and request.wait
            ):
                yield {"message": "recording", "more": True}
                self.open.set()
                await self.done.wait()
                yield {"text": "some words"}
            elif request.verb == "last":
                yield {"text": "x" * 4_000_000}
            elif request.verb == "use":
                raise UsageError("no such strategy", "another")
            elif request.verb == "reload":
                raise RuntimeError("a fault")
            else:
                yield {"message": request.verb}
            how = "whole"
        finally:
            self.ended.append(f"{request.verb} {how}")

    async def client(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self.path, limit=1 << 23)

    async def ask(self, data: bytes, half: bool = False) -> list[dict[str, Any]]:
        """Send bytes, read until there is a last answer or the line ends."""
        replies = []
        reader, writer = await self.client()
        try:
            with contextlib.suppress(ConnectionError):
                writer.write(data)
                if half:
                    writer.write_eof()
                await writer.drain()
            async with asyncio.timeout(IN_TIME):
                while line := await reader.readline():
                    replies.append(json.loads(line))
                    if not replies[-1].get("more"):
                        break
        except ConnectionError:
            pass
        finally:
            writer.close()
        return replies

    async def polite(self) -> None:
        """Be a well-behaved client, and be answered in time."""
        assert await self.ask(STATUS) == [{"ok": True, "state": "IDLE"}]


@contextlib.asynccontextmanager
async def served(folder: Path) -> AsyncIterator[Room]:
    """Serve in a folder; at the end no task, no descriptor and no unheard exception is left."""
    one = Room()
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: one.errors.append(context)
    )
    before = descriptors()
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    one.path = os.fspath(folder / f"s{len(os.listdir(folder))}")
    line.bind(one.path)
    await one.server.open(line)
    try:
        yield one
        await one.polite()
    finally:
        await one.server.close()
        line.close()
    await until(
        lambda: asyncio.all_tasks() == {asyncio.current_task()}, lambda: asyncio.all_tasks()
    )
    await until(lambda: descriptors() <= before, lambda: (descriptors(), before))
    assert one.errors == []


async def until(true: Callable[[], bool], tell: Callable[[], object] = lambda: "") -> None:
    """Wait for a condition, with a deadline."""
    try:
        async with asyncio.timeout(IN_TIME):
            while not true():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"it did not come true: {tell()}") from None


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def run(folder: Path, go: Callable[[Room], Awaitable[None]]) -> None:
    async def all_of_it() -> None:
        async with served(folder) as one:
            await go(one)

    asyncio.run(all_of_it())


# -- what it answers
# --------------------------------------------------------------------------------------------------


def test_many_requests_on_one_line_are_answered_in_order(tmp_path: Path) -> None:
    async def go(one: Room) -> None:
        reader, writer = await one.client()
        verbs = ["toggle", "status", "takes", "use", "stop"]
        writer.write(b"".join(json.dumps({"verb": verb}).encode() + b"\n" for verb in verbs))
        replies = [json.loads(await reader.readline()) for _ in verbs]
        assert [reply.get("message") for reply in replies] == [
            "toggle",
            None,
            "takes",
            None,
            "stop",
        ]
        assert replies[3] == {
            "ok": False,
            "error": "no such strategy",
            "hint": "another",
            "code": 2,
        }
        writer.close()

    run(tmp_path, go)


def test_a_fault_of_the_daemon_is_an_answer_and_not_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("asrd").propagate = True

    async def go(one: Room) -> None:
        (reply,) = await one.ask(b'{"verb": "reload"}\n')
        assert (reply["ok"], reply["code"]) == (False, 70)
        assert "RuntimeError: a fault" in reply["error"]

    run(tmp_path, go)
    assert "reload failed" in caplog.text


@pytest.mark.parametrize("verb", ["status", "last", "use", "start"])
def test_a_client_that_closes_its_writing_end_still_gets_its_answer(
    tmp_path: Path, verb: str
) -> None:
    async def go(one: Room) -> None:
        one.done.set()
        data = json.dumps(
            {"verb": verb, "wait": True} if verb == "start" else {"verb": verb}
        ).encode()
        whole = await one.ask(data + b"\n", half=True)
        cut = await one.ask(data, half=True)  # without the newline: the end of the line is its end
        assert whole == cut
        assert whole[-1]["ok"] is (verb != "use")
        assert not whole[-1].get("more")

    run(tmp_path, go)


def test_a_half_open_client_of_wait_is_waited_for(tmp_path: Path) -> None:
    async def go(one: Room) -> None:
        asking = asyncio.create_task(one.ask(b'{"verb": "start", "wait": true}\n', half=True))
        await one.open.wait()
        for _ in range(3):
            await one.polite()
            await asyncio.sleep(0.1)
        one.done.set()
        assert (await asking)[-1] == {"ok": True, "text": "some words"}

    run(tmp_path, go)


def test_a_line_that_waited_can_be_used_again(tmp_path: Path) -> None:
    async def go(one: Room) -> None:
        one.done.set()
        reader, writer = await one.client()
        for _ in range(3):
            writer.write(b'{"verb": "start", "wait": true}\n')
            assert json.loads(await reader.readline())["more"]
            assert json.loads(await reader.readline())["text"] == "some words"
        writer.write(STATUS)
        assert json.loads(await reader.readline())["state"] == "IDLE"
        writer.close()

    run(tmp_path, go)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("caf\udce9", r"caf\xe9"),
        ("\ud800", r"\ud800"),
        ("x\udcff\udcfey", r"x\xff\xfey"),
        ("é\udc80", r"é\x80"),
    ],
)
def test_a_name_that_is_no_utf8_is_answered(name: str, shown: str) -> None:
    assert json.loads(control_server.encoded({"sinks": [name], "more": True})) == {
        "sinks": [shown],
        "more": True,
    }


# -- garbage
# ----------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=10,
)
REQUEST = st.fixed_dictionaries(
    {"verb": st.sampled_from([*control_server.VERBS, "Status", "", "stat"]) | JSON},
    optional={
        name: JSON
        for name in (*Request.__struct_fields__[1:], "extra")
        if name not in ("wait", "follow")
    },
)


def answered(reply: dict[str, Any]) -> bool:
    """Whether it is an answer as the protocol has it."""
    return reply["ok"] is True or (
        isinstance(reply["error"], str)
        and isinstance(reply["hint"], str)
        and isinstance(reply["code"], int)
    )


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lines=st.lists(st.binary(max_size=300), min_size=1, max_size=12))
def test_arbitrary_bytes(tmp_path: Path, lines: list[bytes]) -> None:
    async def go(one: Room) -> None:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(one.ask(line + b"\n")) for line in lines]
        for line, replies in zip(lines, (task.result() for task in asked), strict=True):
            assert len(replies) == (1 if line.partition(b"\n")[0].strip() else 0)
            assert all(map(answered, replies))

    run(tmp_path, go)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(requests=st.lists(REQUEST | JSON, min_size=1, max_size=12))
def test_arbitrary_json(tmp_path: Path, requests: list[Any]) -> None:
    async def go(one: Room) -> None:
        one.done.set()  # else a request that waits would keep the next one from its answer
        reader, writer = await one.client()
        for request in requests:
            writer.write(json.dumps(request).encode() + b"\n")
            async with asyncio.timeout(IN_TIME):
                assert answered(json.loads(await reader.readline()))
        writer.close()

    logging.getLogger("asrd").setLevel(logging.CRITICAL + 1)  # reload's fault is loud by design
    run(tmp_path, go)


@given(data=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=100, deadline=None)
def test_parse_gives_a_request_or_one_clear_error(data: bytes) -> None:
    said = ""
    try:
        verb = parse(data).verb
    except UsageError as error:
        verb, said = "", error.message
    assert verb in control_server.VERBS or 0 < len(said) < 2000


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 60_000,
        b'{"verb":' * 5000,
        b'{"verb": "start", "silence": -1}',
        b'{"verb": "' + b"x" * 60_000 + b'"}',
    ],
    ids=["deep", "nested", "negative", "long"],
)
def test_deep_long_and_negative_requests_are_usage_errors(tmp_path: Path, data: bytes) -> None:
    async def go(one: Room) -> None:
        (reply,) = await one.ask(data + b"\n")
        assert reply["code"] == 2
        assert len(reply["error"]) < 1000

    run(tmp_path, go)


def test_a_line_without_end_is_answered_and_ended(tmp_path: Path) -> None:
    async def go(one: Room) -> None:
        refused = {
            "ok": False,
            "error": f"a line longer than {MAX_LINE} bytes",
            "hint": "",
            "code": 2,
        }
        assert await one.ask(b"x" * (MAX_LINE + 1)) == [refused]
        for size in (
            3 * MAX_LINE,
            1 << 24,
        ):  # whoever is still writing then may not come to read it
            assert await one.ask(b"x" * size) in ([refused], [])
            await one.polite()

    run(tmp_path, go)


# -- clients that do nothing, or too much
# -----------------------------------------------------------------------------


def test_a_thousand_silent_clients_do_not_keep_one_polite_client_waiting(tmp_path: Path) -> None:
    """They have one descriptor here and one there, so fewer where the limit is low."""
    count = min(1000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 - 200)

    async def go(one: Room) -> None:
        with crowd(one, count, b""):
            await one.polite()
            assert len(one.server._clients) <= descriptor_limits.CONNECTIONS

    run(tmp_path, go)


@contextlib.contextmanager
def crowd(one: Room, count: int, data: bytes) -> Iterator[list[socket.socket]]:
    """Connect many clients before the server can look at any of them; each has sent `data`."""
    clients = []
    try:
        for _ in range(count):
            clients.append(socket.socket(socket.AF_UNIX))
            clients[-1].connect(
                one.path
            )  # blocks no longer than the kernel's queue is full, which it must not be
            clients[-1].sendall(data)
        yield clients
    finally:
        for client in clients:
            client.close()


async def read_all(clients: list[socket.socket]) -> list[list[dict[str, Any]]]:
    """Return every answer that each client gets before its line ends."""
    loop = asyncio.get_running_loop()

    async def read(client: socket.socket) -> list[dict[str, Any]]:
        client.setblocking(False)
        client.shutdown(socket.SHUT_WR)
        data = b""
        async with asyncio.timeout(IN_TIME):
            while part := await loop.sock_recv(client, 1 << 16):
                data += part
        return [json.loads(line) for line in data.splitlines()]

    return await asyncio.gather(*map(read, clients))


def test_a_thousand_clients_truly_at_once_are_all_answered(tmp_path: Path) -> None:
    async def go(one: Room) -> None:
        with crowd(one, 1000, STATUS) as clients:
            assert await read_all(clients) == 1000 * [[{"ok": True, "state": "IDLE"}]]
        await until(lambda: not one.server._clients)

    run(tmp_path, go)


def test_more_clients_than_places_are_all_answered_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptor_limits, "CONNECTIONS", 50)

    async def go(one: Room) -> None:
        one.server._places = descriptor_limits.connections()
        with crowd(one, 900, STATUS) as clients:
            assert await read_all(clients) == 900 * [[{"ok": True, "state": "IDLE"}]]

    run(tmp_path, go)


MEMBERS = {
    "nothing": b"",
    "half a request": b'{"verb": "sta',
    "a blank line": b"\n",
    "junk": b"\xff\x00\x1b[2J\n",
    "junk without end": b"x" * 5000,
    "a list": b"[1, 2]\n",
    "no verb": b"{}\n",
    "an unknown verb": b'{"verb": "nope"}\n',
    "a wrong type": b'{"verb": 7}\n',
    "an unknown field": b'{"verb": "status", "x": 1}\n',
    "two requests": STATUS + STATUS,
    "twenty requests": 20 * STATUS,
    "a request, then junk": STATUS + b"}{\n",
    "junk, then a request": b"}{\n" + STATUS,
    "a request, then half of one": STATUS + b'{"verb": ',
    "a key": b'{"verb": "toggle"}\n',
    "a refused verb": b'{"verb": "use"}\n',
    "a long answer": b'{"verb": "last"}\n',
    "a follower": b'{"verb": "status", "follow": true}\n',
    "a line that is too long": b"x" * (MAX_LINE + 10) + b"\n",
    "NUL bytes": b"\0" * 100 + b"\n",
    "a deep list": b"[" * 3000 + b"\n",
}
"""What single clients of a flood send before they say and read nothing more."""


def test_a_key_has_a_place_in_a_flood_of_everything_and_nothing_is_left_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_server, "SLOW", 0.5)
    draw = random.Random(14)
    kinds = [*MEMBERS, *draw.choices([*MEMBERS], k=400)]

    async def go(one: Room) -> None:
        before = descriptors()
        flood = []
        for kind in kinds:
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, one.path)
            with contextlib.suppress(
                OSError
            ):  # more than the socket holds, or the server hung up on a long line
                client.send(MEMBERS[kind])
            flood.append(client)
        for _ in range(5):
            (reply,) = await one.ask(b'{"verb": "toggle"}\n')
            assert reply == {"ok": True, "message": "toggle"}
        for client in flood:
            client.close()
        await until(lambda: not one.server._clients, lambda: len(one.server._clients))
        await until(lambda: descriptors() <= before)
        assert not any(one.server._lasting.values())
        assert not one.server._silent

    run(tmp_path, go)


FOLLOW = b'{"verb": "status", "follow": true}\n'


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (b'{"verb": "start", "wait": true}\n', None),
        (FOLLOW, "5 clients follow the status already"),
        (b'{"verb": "transcribe"}\n', "5 clients wait for a worker already"),
        (b'{"verb": "retry", "all": true}\n', "5 clients wait for a worker already"),
    ],
)
def test_requests_that_last_have_places_of_their_own_and_keys_are_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_: bytes, said: str | None
) -> None:
    monkeypatch.setattr(control_server, "FOLLOWERS", 5)
    monkeypatch.setattr(control_server, "LENGTHY_REQUESTS", 5)

    async def go(one: Room) -> None:
        writers = []
        for _ in range(5):
            reader, writer = await one.client()
            writer.write(request_)
            assert json.loads(await reader.readline())["more"]
            writers.append(writer)
        if said is not None:
            busy = {
                "ok": False,
                "error": said,
                "hint": "try again when one has ended",
                "code": 75,
                "busy": True,
            }
            assert await one.ask(request_) == [busy]
        for verb in ("toggle", "start", "stop", "cancel", "status", "takes"):
            (reply,) = await one.ask(json.dumps({"verb": verb}).encode() + b"\n")
            assert reply["ok"]
        for writer in writers:
            writer.close()
        one.done.set()
        await until(lambda: not one.server._clients)
        assert not any(one.server._lasting.values())

    run(tmp_path, go)


def test_no_descriptors_left_means_waiting_and_neither_spinning_nor_silence(tmp_path: Path) -> None:
    """Clients that come while not one descriptor is free are answered when there are some again."""

    async def go(one: Room) -> None:
        loop, limits = asyncio.get_running_loop(), resource.getrlimit(resource.RLIMIT_NOFILE)
        tries = 0
        let_in = one.server._let_in

        def counted() -> None:
            nonlocal tries
            tries += 1
            let_in()

        assert one.server._line is not None
        one.server._let_in = counted  # type: ignore[method-assign]  # counts, and is the real one
        loop.add_reader(one.server._line.fileno(), counted)
        with crowd(one, 30, STATUS) as clients:
            resource.setrlimit(resource.RLIMIT_NOFILE, (1, limits[1]))
            try:
                await asyncio.sleep(0.4)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert 1 <= tries <= 20
            assert await read_all(clients) == 30 * [[{"ok": True, "state": "IDLE"}]]

    run(tmp_path, go)


@pytest.mark.parametrize(("soft", "places"), [(20_000, 2000), (1024, 896), (256, 128), (64, 1)])
def test_places_follow_the_limit_of_descriptors(
    monkeypatch: pytest.MonkeyPatch, soft: int, places: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, soft))
    assert descriptor_limits.connections() == places


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        ((1024, 524_288), 4096),
        ((256, 2000), 2000),
        ((8192, 8192), None),
        ((1024, -1), 4096),
        ((-1, -1), None),
    ],
)
def test_the_daemon_raises_its_descriptor_limit_as_far_as_it_can_use(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], wanted: int | None
) -> None:
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda which, pair: given.append(pair))
    descriptor_limits.raise_descriptor_limit()
    assert given == ([(wanted, limits[1])] if wanted else [])


@pytest.mark.parametrize("data", [b"", b'{"verb": '])
def test_a_silent_client_is_told_and_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr(control_server, "SILENCE", 0.1)

    async def go(one: Room) -> None:
        reader, writer = await one.client()
        writer.write(data)
        async with asyncio.timeout(IN_TIME):
            (reply,) = map(json.loads, (await reader.read()).splitlines())
        assert reply["error"] == "no request came within 0.1 s"
        writer.close()

    run(tmp_path, go)


def test_a_client_that_was_answered_and_says_no_more_is_dropped_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_server, "SILENCE", 0.1)

    async def go(one: Room) -> None:
        reader, writer = await one.client()
        writer.write(STATUS)
        async with asyncio.timeout(IN_TIME):
            assert (await reader.read()).count(b"\n") == 1
        writer.close()

    run(tmp_path, go)


def test_who_waits_in_the_queue_at_the_end_is_told_that(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as line:
        line.bind(os.fspath(path))
        line.listen(100)
        line.setblocking(False)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(30)]
        for client in clients:
            client.connect(os.fspath(path))
            client.sendall(STATUS)
        control_server.refuse_rest(line)
        for client in clients:
            assert json.loads(client.recv(1000))["error"] == "asrd is ending"
            client.close()


@pytest.mark.parametrize(
    "request_", [b'{"verb": "last"}\n', b'{"verb": "status", "follow": true}\n']
)
def test_a_client_that_does_not_read_is_dropped_and_its_line_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_: bytes
) -> None:
    monkeypatch.setattr(control_server, "SLOW", 0.2)

    async def go(one: Room) -> None:
        held = descriptors()
        clients = [socket.socket(socket.AF_UNIX) for _ in range(5)]
        for client in clients:
            client.connect(one.path)
            client.sendall(request_)
        await until(lambda: len(one.server._clients) == 5)
        await one.polite()
        await until(lambda: descriptors() <= held + len(clients), lambda: (descriptors(), held))
        assert one.server._clients == set()
        assert [how for how in one.ended if how != "status whole"] == 5 * [one.ended[-1]]
        for client in clients:
            client.close()

    run(tmp_path, go)


def test_a_reader_that_is_slow_but_reads_gets_it_all(tmp_path: Path) -> None:
    async def go(one: Room) -> None:
        reader, writer = await one.client()
        writer.write(b'{"verb": "last"}\n')
        got = b""
        async with asyncio.timeout(IN_TIME):
            while not got.endswith(b"\n"):
                got += await reader.read(1 << 17)
                await asyncio.sleep(0.002)
        assert len(json.loads(got)["text"]) == 4_000_000
        writer.close()

    run(tmp_path, go)


WAITER = """
import socket, sys, time
line = socket.socket(socket.AF_UNIX)
line.connect(sys.argv[1])
line.sendall(sys.argv[2].encode() + b"\\n")
line.recv(100)
print("waiting", flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize(
    ("request_", "how"),
    [
        ('{"verb": "start", "wait": true}', "start cut off"),
        ('{"verb": "status", "follow": true}', "status cut off"),
    ],
)
def test_a_killed_client_ends_the_making_of_its_answer(
    tmp_path: Path, request_: str, how: str
) -> None:
    async def go(one: Room) -> None:
        words = (sys.executable, "-I", "-S", "-c", WAITER, one.path, request_)
        client = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        assert client.stdout is not None
        assert await client.stdout.readline() == b"waiting\n"
        await one.polite()
        assert how not in one.ended
        client.kill()
        await client.communicate()
        await until(lambda: how in one.ended, lambda: one.ended)

    run(tmp_path, go)


# -- the end
# ----------------------------------------------------------------------------------------------------------


def test_an_answer_on_its_way_arrives_though_the_server_closes(tmp_path: Path) -> None:
    async def go() -> None:
        async with served(tmp_path) as one:
            asking = asyncio.create_task(one.ask(b'{"verb": "start", "wait": true}\n'))
            await one.open.wait()
            silent, writer = await one.client()
            await one.polite()
            one.done.set()
            await one.server.close()
            assert (await asking)[-1] == {"ok": True, "text": "some words"}
            assert json.loads(await silent.read())["error"] == "asrd is ending"
            writer.close()
            one.polite = nothing  # type: ignore[method-assign]

    async def nothing() -> None:
        pass

    asyncio.run(go())


@pytest.mark.parametrize(
    "request_", [b'{"verb": "start", "wait": true}\n', b'{"verb": "status", "follow": true}\n']
)
def test_closing_ends_answers_that_have_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_: bytes
) -> None:
    monkeypatch.setattr(control_server, "GRACE", 0.05)

    async def go() -> None:
        async with served(tmp_path) as one:
            lines = [await one.client() for _ in range(3)]
            for reader, writer in lines:
                writer.write(request_)
                await reader.readline()
            await one.polite()
            async with asyncio.timeout(IN_TIME):
                await one.server.close()
            assert len([how for how in one.ended if how.endswith("cut off")]) == 3
            for _, writer in lines:
                writer.close()
            one.polite = nothing  # type: ignore[method-assign]

    async def nothing() -> None:
        pass

    asyncio.run(go())


def test_the_sockets_path_stays_when_the_server_closes(tmp_path: Path) -> None:
    """It may be systemd's, which goes on listening on it."""

    async def go() -> str:
        async with served(tmp_path) as one:
            return one.path

    assert Path(asyncio.run(go())).is_socket()
