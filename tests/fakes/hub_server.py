"""A small hub as a real program: the Hugging Face hub's protocol on 127.0.0.1, with faults on
demand and a log.

A hub and a CDN on two ports. `resolve` answers with commit, ETag, X-Linked-ETag and X-Linked-Size
and leads to the CDN, which sends files and parts of them. `python -m tests.fakes.hub_server FOLDER`
serves FOLDER/OWNER/NAME/FILE and prints the endpoint, for trying by hand.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

CHUNK = 1 << 16
"""Bytes that are sent at once."""


@dataclass
class Faults:
    """What the hub does wrong."""

    refusal: tuple[int, str] | None = None
    """Status and X-Error-Code of every answer."""
    refuse_first: int = 0
    """How many requests only are refused; 0 is all."""
    retry_after: str = ""
    refuse_body: int = 0
    """How many answers of the CDN to requests for bytes are 503."""
    break_after: list[int] = field(default_factory=list)
    """Bytes of the next answers of the CDN after each of which the connection is reset."""
    close_after: list[int] = field(default_factory=list)
    """The same, with a proper end of the connection and a Content-Length that was larger."""
    ranges: bool = True
    """The CDN sends parts."""
    sizes: bool = True
    """Lengths are told."""
    redirect: bool = True
    """Files come from the CDN and not from the hub itself."""
    linked: bool = True
    """The ETag is the SHA-256 of the content."""
    versions: bool = True
    """Answers name a commit."""
    tag: str = ""
    """The ETag as it is told, where it is not the right one."""
    commit: str = "0123456789abcdef0123456789abcdef01234567"
    damage: bool = False
    """One byte in the middle is another one."""
    append: int = 0
    """Bytes that are sent after the end of a file."""
    rate: float = 0.0
    """Bytes a second; 0 is all at once."""
    hang: bool = False
    """Answers of the CDN stop after the headers."""
    gate: threading.Event = field(default_factory=threading.Event)
    """Where `hold_at` is set, bodies go on only once this is."""
    hold_at: int = -1


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    where: str
    """hub or cdn."""
    range: str
    authorised: bool
    sent: list[int] = field(default_factory=lambda: [0])
    """Bytes of the body that were sent, in one number that grows."""

    @property
    def bytes(self) -> int:
        return self.sent[0]


class Hub:
    """Files by "owner/name/file", the two servers, and what was asked of them."""

    def __init__(self) -> None:
        self.files: dict[str, bytes | Path] = {}
        self.faults = Faults()
        self.asked: list[Asked] = []
        self.token = ""
        """What a client must send; "" for nothing."""
        self._servers = [Server(self, where) for where in ("hub", "cdn")]
        self._threads = [
            threading.Thread(
                target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
            )
            for server in self._servers
        ]
        for thread in self._threads:
            thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_address[1]}"

    @property
    def cdn(self) -> str:
        return f"http://127.0.0.1:{self._servers[1].server_address[1]}"

    @property
    def sent(self) -> int:
        """Bytes of files that were sent in all."""
        return sum(one.bytes for one in self.asked)

    @property
    def ranges(self) -> list[int]:
        """First bytes of the requests without an end, in order: those that go on with a
        download."""
        found = (re.fullmatch(r"bytes=(\d+)-", one.range) for one in self.asked)
        return [int(one[1]) for one in found if one]

    def forget(self) -> None:
        self.asked.clear()

    def content(self, file: str) -> bytes:
        held = self.files[file]
        return held if isinstance(held, bytes) else held.read_bytes()

    def close(self) -> None:
        self.faults.gate.set()
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


class Server(http.server.ThreadingHTTPServer):
    """One of the two ports."""

    daemon_threads = True

    def __init__(self, hub: Hub, where: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub, self.where = hub, where

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that went away."""


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers /OWNER/NAME/resolve/REVISION/FILE, the listing /api/models/OWNER/NAME/tree/REVISION,
    and CDN files."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        hub, faults = self.server.hub, self.server.hub.faults
        authorised = bool(self.headers.get("Authorization"))
        self.asked = Asked(
            self.command, self.path, self.server.where, self.headers.get("Range", ""), authorised
        )
        hub.asked.append(self.asked)
        if self.server.where == "cdn":
            return self.send_file(self.path.removeprefix("/cdn/"), body)
        if faults.refusal and (not faults.refuse_first or faults.refuse_first > 0):
            refusal = faults.refusal
            if faults.refuse_first:
                faults.refuse_first -= 1
                faults.refusal = refusal if faults.refuse_first else None
            return self.fail(*refusal)
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self.fail(401, "GatedRepo")
        if found := re.match(r"/api/models/([^/]+/[^/]+)/tree/", self.path):
            return self.list(found[1])
        return self.resolve(body)

    def list(self, repository: str) -> None:
        names = [name.removeprefix(f"{repository}/") for name in self.server.hub.files]
        own = [name for name in names if name not in self.server.hub.files]
        listing = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in own]
        self.give(json.dumps(listing).encode(), 200, {"Content-Type": "application/json"})

    def resolve(self, body: bool) -> None:
        hub, faults = self.server.hub, self.server.hub.faults
        file = re.sub(r"^/([^/]+/[^/]+)/resolve/[^/]+/(.+)$", r"\1/\2", self.path)
        repository = "/".join(file.split("/")[:2])
        if not any(name.startswith(f"{repository}/") for name in hub.files):
            return self.fail(404, "RepoNotFound")
        if file not in hub.files:
            return self.fail(404, "EntryNotFound")
        about = {"X-Repo-Commit": faults.commit} if faults.versions else {}
        content = hub.content(file)
        digest = faults.tag or (
            hashlib.sha256(content).hexdigest() if faults.linked else f"{len(content):x}-tag"
        )
        if not faults.redirect:
            return self.send_file(file, body, about | {"ETag": f'"{digest}"'})
        about |= {"X-Linked-ETag": f'"{digest}"', "Location": f"{hub.cdn}/cdn/{file}"}
        about |= {"X-Linked-Size": str(len(content))} if faults.sizes else {}
        return self.give(b"", 302, about)

    def send_file(self, file: str, body: bool, about: dict[str, str] | None = None) -> None:
        faults, content = self.server.hub.faults, self.server.hub.content(file)
        if faults.refuse_body and body:
            faults.refuse_body -= 1
            return self.fail(503, "")
        if faults.damage:
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        content += bytes(faults.append)
        about = {"ETag": '"of-the-cdn"', "Accept-Ranges": "bytes" if faults.ranges else "none"} | (
            about or {}
        )
        first, stop, status = 0, len(content), 200
        if faults.ranges and (
            found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        ):
            first, stop, status = (
                int(found[1]),
                min(int(found[2] or len(content) - 1) + 1, len(content)),
                206,
            )
            if first >= len(content):
                return self.fail(416, "")
            about["Content-Range"] = f"bytes {first}-{stop - 1}/{len(content)}"
        return self.give(content[first:stop], status, about, body)

    def give(self, content: bytes, status: int, about: dict[str, str], body: bool = True) -> None:
        faults = self.server.hub.faults
        self.send_response(status)
        for key, value in about.items():
            self.send_header(key, value)
        if faults.sizes or status != 200:
            self.send_header("Content-Length", str(len(content)))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = self.close_connection or not faults.sizes
        if body and content:
            self.send_body(content, "Content-Range" in about or status == 200)

    def send_body(self, content: bytes, file: bool) -> None:
        """Write a body, with whatever is planted in its way."""
        faults = self.server.hub.faults
        whole = not self.asked.range or self.asked.range.endswith("-")
        stops = [(faults.break_after, True), (faults.close_after, False)] if file and whole else []
        stop, reset = next(
            ((one.pop(0), hard) for one, hard in stops if one), (len(content), False)
        )
        if faults.hang and file:
            faults.gate.wait(60)
        try:
            for start in range(0, stop, CHUNK):
                if whole and 0 <= faults.hold_at <= start:
                    faults.gate.wait(60)
                piece = content[start : min(start + CHUNK, stop)]
                self.wfile.write(piece)
                self.asked.sent[0] += len(piece)
                if faults.rate:
                    time.sleep(len(piece) / faults.rate)
        except OSError:  # a client that was killed, or has no room for more
            self.close_connection = True
        if stop < len(content):
            self.close_connection = True
            if reset:
                linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.connection.close()

    def fail(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if retry := self.server.hub.faults.retry_after:
            self.send_header("Retry-After", retry)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def wait_for(true: Callable[[], object], seconds: float = 30.0) -> None:
    """Return once something is true; fail where it is not in time."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come true"
        time.sleep(0.01)


def main() -> None:
    """Serve a folder until Ctrl-C."""
    root = Path(sys.argv[1])
    hub = Hub()
    hub.files = {str(file.relative_to(root)): file for file in root.glob("*/*/*")}
    print(f"HF_ENDPOINT={hub.endpoint}", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        hub.close()


if __name__ == "__main__":
    main()
