"""Names, cache and downloads, against a small real hub that speaks the hub's protocol over HTTP."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asrd import models
from asrd.errors import ModelError, UsageError

ROOT = Path(__file__).parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/tiny"
CONTENT = os.urandom(1 << 20) * 3

CLIENT = """
import json, sys
from asrd import models
from asrd.errors import AsrdError
reports = []
try:
    path = models.fetch(sys.argv[1], lambda part, text: reports.append((part, text)))
    result = {"path": str(path), "size": path.stat().st_size}
except AsrdError as error:
    result = {"error": type(error).__name__, "message": error.message, "hint": error.hint, "code": error.exit_code}
print(json.dumps(result | {"reports": reports, "numpy": "numpy" in sys.modules}))
"""
"""A process of its own: the hub's library reads its environment once, when it is imported."""


class Hub(http.server.ThreadingHTTPServer):
    """A hub with files by "owner/name/file"; it can refuse, hide sizes, and hang up in the middle."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {f"{NAME}/tiny.nemo": CONTENT}
        self.refusal: tuple[int, str] | None = None
        self.sizes = True
        self.hang_up_at = 0
        self.asked: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers /owner/name/resolve/REVISION/FILE and the listing /api/models/owner/name/tree/REVISION."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        if self.server.refusal:
            return self.fail(*self.server.refusal)
        if found := re.match(r"/api/models/([^/]+/[^/]+)/tree/", self.path):
            names = [name.removeprefix(f"{found[1]}/") for name in self.server.files if name.startswith(f"{found[1]}/")]
            listing = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in names]
            return self.give(json.dumps(listing).encode(), 200, {"Content-Type": "application/json"})
        file = re.sub(r"^/([^/]+/[^/]+)/resolve/[^/]+/(.+)$", r"\1/\2", self.path)
        repository = "/".join(file.split("/")[:2])
        if not any(name.startswith(f"{repository}/") for name in self.server.files):
            return self.fail(404, "RepoNotFound")
        if file not in self.server.files:
            return self.fail(404, "EntryNotFound")
        return self.send_file(self.server.files[file], body)

    def send_file(self, content: bytes, body: bool) -> None:
        about = {"ETag": f'"{len(content):x}-tag"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        if start:
            about["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.give(content[start:] if body else None, 206 if start else 200, about, len(content) - start)

    def give(self, content: bytes | None, status: int, about: dict[str, str], length: int | None = None) -> None:
        self.send_response(status)
        for key, value in about.items():
            self.send_header(key, value)
        if self.server.sizes or content is None:
            if self.server.sizes:
                self.send_header("Content-Length", str(len(content or b"") if length is None else length))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        if content is None:
            return
        stop, self.server.hang_up_at = self.server.hang_up_at, 0
        try:
            self.wfile.write(content[:stop] if stop else content)
        except OSError:
            self.close_connection = True  # a client without room for more
        if stop or not self.server.sizes:
            self.close_connection = True

    def fail(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


Fetch = Callable[..., dict[str, Any]]


@pytest.fixture
def fetch(hub: Hub, tmp_path: Path) -> Fetch:
    """Return a function that fetches a name in a process of its own; `environment` goes over the defaults."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}

    def run(name: str = NAME, **environment: str) -> dict[str, Any]:
        settings = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.endpoint}
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, name], cwd=ROOT, env=clean | settings | environment,
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        assert not result["numpy"]
        if "message" in result:
            assert "\n" not in result["message"] + result["hint"]
        return result

    return run


def test_a_download_lands_in_the_cache_and_tells_its_progress(fetch: Fetch, tmp_path: Path) -> None:
    result = fetch()
    path = Path(result["path"])
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(tmp_path / "hf")
    parts = [part for part, _ in result["reports"] if part is not None]
    assert parts == sorted(parts)
    assert parts[-1] == 1.0
    assert result["reports"][-1][1] == f"{NAME}: 3.1 MB of 3.1 MB"


def test_what_is_cached_is_found_without_asking_anybody(fetch: Fetch, hub: Hub) -> None:
    first = fetch()
    asked = len(hub.asked)
    again = fetch(HF_ENDPOINT="http://127.0.0.1:9")
    assert (again["path"], again["reports"]) == (first["path"], [])
    assert fetch(HF_HUB_OFFLINE="1")["path"] == first["path"]
    assert len(hub.asked) == asked


def test_a_download_that_breaks_off_goes_on_where_it_was(fetch: Fetch, hub: Hub) -> None:
    hub.hang_up_at = 1 << 20
    assert Path(fetch()["path"]).read_bytes() == CONTENT
    assert sum(line.startswith("GET /someone") for line in hub.asked) == 2


def test_the_only_nemo_file_is_taken_whatever_its_name_and_found_again(fetch: Fetch, hub: Hub) -> None:
    hub.files = {f"{NAME}/other.nemo": b"x" * 100, f"{NAME}/README.md": b"y"}
    first = fetch()
    assert Path(first["path"]).name == "other.nemo"
    assert fetch(HF_HUB_OFFLINE="1")["path"] == first["path"]


@pytest.mark.parametrize(("files", "held"), [(["a.nemo", "b.nemo"], "2 .nemo files"), (["model.bin"], "no .nemo file")])
def test_a_repository_with_none_or_too_many(files: list[str], held: str, fetch: Fetch, hub: Hub) -> None:
    hub.files = {f"{NAME}/{file}": b"x" for file in files}
    result = fetch()
    assert (result["error"], result["code"]) == ("ModelError", 66)
    assert held in result["message"]


def test_a_model_that_does_not_exist(fetch: Fetch) -> None:
    result = fetch("nvidia/canary-1b-flahs")
    assert (result["error"], result["code"]) == ("ModelError", 66)
    assert "there is no model nvidia/canary-1b-flahs on the hub" in result["message"]
    assert "nvidia/canary-1b-flash" in result["hint"]


@pytest.mark.parametrize(("status", "code"), [(401, "GatedRepo"), (403, "GatedRepo"), (403, ""), (401, "RepoNotFound")])
def test_a_model_that_needs_a_login(status: int, code: str, fetch: Fetch, hub: Hub) -> None:
    hub.refusal = (status, code)
    result = fetch()
    assert (result["error"], result["code"]) == ("ModelError", 66)
    assert "hf auth login" in result["hint"]


def test_a_hub_that_is_broken(fetch: Fetch, hub: Hub) -> None:
    hub.refusal = (500, "")
    result = fetch()
    assert (result["error"], result["code"]) == ("NetworkError", 69)
    assert "500" in result["message"]


@pytest.mark.parametrize(
    "environment", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_ENDPOINT": "http://no.such.host.invalid"}]
)
def test_no_network_is_one_sentence_and_no_wait(environment: dict[str, str], fetch: Fetch) -> None:
    result = fetch("parakeet-tdt-0.6b-v3", **environment)
    assert (result["error"], result["code"]) == ("NetworkError", 69)
    assert "cannot reach the hub for nvidia/parakeet-tdt-0.6b-v3 and it is not in the cache" in result["message"]
    assert "pass the path" in result["hint"]


def test_offline_mode_says_how_to_leave_it(fetch: Fetch, hub: Hub) -> None:
    result = fetch(HF_HUB_OFFLINE="1")
    assert (result["error"], result["code"]) == ("NetworkError", 69)
    assert "unset HF_HUB_OFFLINE" in result["hint"]
    assert hub.asked == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("sizes", [True, False], ids=["told before", "found out on the way"])
def test_a_disk_without_room(sizes: bool, fetch: Fetch, hub: Hub, small_disk: Path) -> None:
    hub.sizes = sizes
    result = fetch(HF_HOME=str(small_disk))
    assert (result["error"], result["code"]) == ("DiskError", 73)
    assert str(small_disk) in result["message"]
    assert "HF_HOME" in result["hint"]
    if sizes:
        assert f"{len(CONTENT)} bytes needed" in result["message"]
        assert not any(line.startswith("GET /someone") for line in hub.asked)
    assert not list(small_disk.rglob("*.incomplete"))


def test_a_cache_folder_that_cannot_be_made(fetch: Fetch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = fetch(HF_HOME=str(tmp_path / "file" / "hf"))
    assert (result["error"], result["code"]) == ("DiskError", 73)


# -- names ------------------------------------------------------------------------------------------------------------


def test_a_path_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "own" / "model.nemo"
    file.parent.mkdir()
    file.touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models.resolve(str(file)) == file
    assert models.resolve("~/own/model.nemo") == file
    monkeypatch.chdir(tmp_path)
    assert models.resolve("own/model.nemo") == Path("own/model.nemo")
    assert models.fetch("./own/model.nemo", lambda *_: None) == Path("./own/model.nemo")


@pytest.mark.parametrize("name", ["/nowhere/x.nemo", "./x", "own/missing.nemo", "~/missing"])
def test_a_path_that_is_not_there(name: str) -> None:
    with pytest.raises(ModelError, match="there is no model file"):
        models.resolve(name)


@pytest.mark.parametrize("name", models.SHIPPED)
def test_shipped_models_come_with_the_package(name: str) -> None:
    assert models.header(models.resolve(name)).family == {"demo": "aed", "demo-ctc": "ctc", "demo-tdt": "tdt"}[name]


@pytest.mark.parametrize(
    ("name", "nearest"), [("dmeo", "demo"), ("parakeet-tdt-0.6-v3", "parakeet-tdt-0.6b-v3"), ("", ""), ("a b/c", "")]
)
def test_an_unknown_name_is_an_error_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UsageError, match="unknown model") as caught:
        models.resolve(name)
    assert nearest in caught.value.hint


def test_a_short_name_is_known_by_its_owner() -> None:
    assert models.hub_name("canary-1b-flash") == "nvidia/canary-1b-flash"
    assert models.hub_name("someone/else.v2") == "someone/else.v2"
    shorts = [name.partition("/")[2] for name in models.KNOWN]
    assert len(set(shorts)) == len(shorts)
