"""Downloads by the real process, from a hub with faults: what arrives, what goes on, and what a
user is told."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asrd.models import names
from tests.fakes.hub_server import Faults, Hub, wait_for
from tests.hub_user import FILE, MODEL, NAME, SIZE, Outcome, User, arranged, members, packed

MIB = 1 << 20


@pytest.fixture
def user(hub: Hub, tmp_path: Path) -> User:
    home = tmp_path / "a home"
    home.mkdir()
    return User(hub, home, tmp_path / "hf home")


def whole(path: Path, content: bytes | None = None) -> bool:
    return path.read_bytes() == (MODEL.read_bytes() if content is None else content)


# -- a download that succeeds
# -----------------------------------------------------------------------------------------


def test_a_file_lands_in_the_cache_as_the_hubs_own_library_would_put_it(
    user: User, hub: Hub
) -> None:
    done = user.download(quick=False)
    assert whole(done.path)
    assert not user.parts
    assert [one.bytes for one in done.reports] == sorted(one.bytes for one in done.reports)
    assert (done.reports[-1].bytes, done.reports[-1].total) == (SIZE, SIZE)
    program = (
        "import huggingface_hub as h; scan = h.scan_cache_dir()\n"
        "assert not scan.warnings and not scan.incomplete_files, scan\n"
        f"print(h.hf_hub_download('{NAME}', 'tiny.nemo'), h.try_to_load_from_cache('{NAME}', 'tiny.nemo'))"
    )
    offline = user.environment | {"HF_HUB_OFFLINE": "1"}
    found = subprocess.run(
        [sys.executable, "-c", program], env=offline, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == f"{done.path} {done.path}"


def test_the_process_imports_no_torch_and_no_numpy(user: User) -> None:
    program = (
        "import sys; from asrd.models import download; code = download.main()\n"
        "heavy = {'torch', 'nemo', 'numpy', 'hf_xet', 'transformers'} & set(sys.modules)\n"
        "raise SystemExit(code or len(heavy))"
    )
    with user.start(("-c", program, NAME)) as process:
        assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 0


Check = Callable[[User, Hub], None]


def goes_on(*least: int, reset: bool = False) -> Check:
    """Return a check that each new attempt asked for what was not here, and that little came
    twice."""

    def check(user: User, hub: Hub) -> None:
        cdn = [
            one
            for one in hub.asked
            if one.where == "cdn" and re.fullmatch(r"bytes=[1-9]\d*-", one.range)
        ]
        assert len(cdn) == len(least), hub.ranges
        assert all(int(one.range[6:-1]) >= few for one, few in zip(cdn, least, strict=True)), (
            hub.ranges
        )
        if not reset:  # which throws away what had been sent and was not read
            assert hub.sent < SIZE + 2 * MIB

    return check


def anything(user: User, hub: Hub) -> None:
    """Accept whatever was asked: a hub that sends no parts is asked for the whole again."""


def no_token_for_the_cdn(user: User, hub: Hub) -> None:
    assert all(one.authorised == (one.where == "hub") for one in hub.asked)


SUCCEEDING: dict[str, tuple[Faults, Check]] = {
    "nothing wrong": (Faults(), goes_on()),
    "reset once": (Faults(break_after=[2 * MIB]), goes_on(1, reset=True)),
    "reset three times": (Faults(break_after=[MIB, MIB, MIB]), goes_on(1, 1, 1, reset=True)),
    "closed too early": (Faults(close_after=[3 * MIB]), goes_on(3 * MIB)),
    "closed twice": (Faults(close_after=[MIB, MIB]), goes_on(MIB, 2 * MIB)),
    "503 twice": (Faults(refusal=(503, ""), refuse_first=2), goes_on()),
    "429 with a wait": (Faults(refusal=(429, ""), refuse_first=1, retry_after="1"), goes_on()),
    "503 for bytes": (Faults(refuse_body=3), goes_on()),
    "no parts of files": (Faults(ranges=False), anything),
    "no lengths": (Faults(sizes=False), goes_on()),
    "neither": (Faults(ranges=False, sizes=False), anything),
    "no parts and reset": (Faults(ranges=False, break_after=[0, 2 * MIB]), anything),
    "not of large files": (Faults(linked=False), goes_on()),
    "no CDN": (Faults(redirect=False, linked=False), goes_on()),
    "a token": (Faults(), no_token_for_the_cdn),
}
"""Fault -> what was asked of the hub until the file was here."""


@pytest.mark.parametrize("name", SUCCEEDING)
def test_a_download_that_succeeds_in_spite_of(name: str, user: User, hub: Hub) -> None:
    hub.faults, check = SUCCEEDING[name]
    if name == "a token":
        hub.token = user.more["HF_TOKEN"] = "hf_secret"
    assert whole(user.download().path)
    assert not user.parts
    check(user, hub)


# -- a download that fails
# --------------------------------------------------------------------------------------------

CODES = {"config": 78, "model": 66, "network": 69, "disk": 73}
"""Kind of failure -> exit code."""

NOWHERE = {"HF_ENDPOINT": "http://127.0.0.1:9"}
TERMS = f"accept its terms on <hub>/{NAME}"
ENDPOINT = "^check HF_ENDPOINT"
LOGIN = "hf auth login"

Failing = tuple[Faults, dict[str, str], str, str, str]

FAILING: dict[str, Failing] = {
    "no such model": (Faults(refusal=(404, "RepoNotFound")), {}, "model", "there is no model", LOGIN),
    "gated": (Faults(refusal=(401, "GatedRepo")), {}, "model", "needs a login", LOGIN),
    "forbidden": (Faults(refusal=(403, "")), {}, "model", "needs a login", LOGIN),
    "gated to this login": (
        Faults(refusal=(403, "GatedRepo")), {"HF_TOKEN": "hf_x"}, "model", "needs a login", f"{TERMS}$",
    ),
    "always 500": (Faults(refusal=(500, "")), {}, "network", "the hub answered 500", "try again later"),
    "404 of no hub": (Faults(refusal=(404, "")), {}, "network", "the hub answered 404", ENDPOINT),
    "no hub": (Faults(versions=False), {}, "network", "is not the hub", ENDPOINT),
    "a tag that is a path": (Faults(tag="../../../evil"), {}, "network", "is not the hub", ENDPOINT),
    "refused": (Faults(), NOWHERE, "network", r"cannot reach the hub.*\(Connection refused\)", ENDPOINT),
    "no such host": (
        Faults(), {"HF_ENDPOINT": "http://no.such.host.invalid"}, "network", "cannot reach the hub", ENDPOINT,
    ),
    "no address": (Faults(), {"HF_ENDPOINT": "nonsense"}, "network", "cannot reach the hub", ENDPOINT),
    "reset for ever": (
        Faults(close_after=[MIB, *[0] * 9]), {}, "network", rf"broke off after \d+ of {SIZE} bytes",
        "continues where it stopped",
    ),
    "another byte": (Faults(damage=True), {}, "network", "is damaged: its SHA-256", "try again"),
    "more than there is": (Faults(append=1), {}, "network", "sent more than", "try again"),
    "offline": (Faults(), {"HF_HUB_OFFLINE": "1"}, "network", "set by HF_HUB_OFFLINE$", "^unset HF_HUB_OFFLINE, or"),
    "offline by the other": (
        Faults(), {"TRANSFORMERS_OFFLINE": "yes"}, "network", "by TRANSFORMERS_OFFLINE$",
        "^unset TRANSFORMERS_OFFLINE, or",
    ),
    "offline by both": (
        Faults(), {"HF_HUB_OFFLINE": "on", "TRANSFORMERS_OFFLINE": "1"}, "network",
        "by HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE$", "^unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE, or",
    ),
    "offline by the first alone": (
        Faults(), {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "0"}, "network", "by HF_HUB_OFFLINE$",
        "^unset HF_HUB_OFFLINE, or",
    ),
    "a hub that hangs": (
        Faults(hang=True), {"HF_HUB_DOWNLOAD_TIMEOUT": "1"}, "network", "timed out", "copy the .nemo file",
    ),
    "no number": (Faults(), {"HF_HUB_DOWNLOAD_TIMEOUT": "abc"}, "config", "'abc'", "^unset HF_HUB_DOWNLOAD_TIMEOUT$"),
    "another wait": (Faults(), {"HF_HUB_ETAG_TIMEOUT": "1.5"}, "config", "'1.5'", "^unset HF_HUB_ETAG_TIMEOUT"),
    "no certificates": (Faults(), {"SSL_CERT_FILE": "/no/such"}, "config", "'/no/such'", "^unset SSL_CERT_FILE, or"),
    "no folder of certificates": (Faults(), {"SSL_CERT_DIR": "/no"}, "config", "'/no'", "^unset SSL_CERT_DIR, or"),
    "a token of odd letters": (Faults(), {"HF_TOKEN": "h\u00fc"}, "config", "the token for the hub", "HF_TOKEN$"),
    "a proxy that is not there": (
        Faults(), {"http_proxy": "http://a:b@127.0.0.1:9"}, "network", "refused", r"^check .* and http_proxy, or",
    ),
    "a proxy for all": (Faults(), {"ALL_PROXY": "http://127.0.0.1:9"}, "network", "refused", " and ALL_PROXY, or"),
    "a proxy for others": (
        Faults(), NOWHERE | {"HTTP_PROXY": "http://127.0.0.1:8", "NO_PROXY": "127.0.0.1"}, "network", "refused",
        r"^check HF_ENDPOINT \(http://127.0.0.1:9\), or copy",
    ),
    "a tag without end": (Faults(tag="a" * 300), {}, "network", "is not the hub", ENDPOINT),
    "a cache that cannot be": (Faults(), {"HF_HUB_CACHE": "/proc/x"}, "disk", "No such file", "^set HF_HUB_CACHE"),
    "a cache below a file": (Faults(), {"HF_HOME": f"{MODEL}/hf"}, "disk", "Not a directory", "^set HF_HOME to"),
    "another cache below a file": (
        Faults(), {"HF_HUB_CACHE": f"{MODEL}/c"}, "disk", "Not a directory", "^set HF_HUB_CACHE to",
    ),
}  # fmt: skip
"""Fault -> the hub's part, the environment's, kind, and what message and hint say."""


@pytest.mark.parametrize("name", FAILING)
def test_a_download_that_fails_says_what_a_user_can_change(name: str, user: User, hub: Hub) -> None:
    hub.faults, environment, kind, says, hint = FAILING[name]
    done = user.download(**environment)
    assert (done.failed.kind, done.code) == (kind, CODES[kind])
    assert re.search(says, done.failed.detail), done.failed
    assert re.search(hint.replace("<hub>", hub.endpoint), done.failed.hint), done.failed
    if name.startswith("offline"):
        assert not hub.asked
    assert bool(user.parts) == (name == "reset for ever")


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_token_that_cannot_be_read(content: bytes | None, user: User) -> None:
    user.hf_home.mkdir()
    token = user.hf_home / "token"
    token.mkdir() if content is None else token.write_bytes(content)
    done = user.download()
    assert (done.failed.kind, done.code) == ("config", CODES["config"])
    assert done.failed.detail == f"the token for the hub cannot be read from {token}"


FILES = {
    "none": (["model.bin"], "holds no .nemo file"),
    "two": (["a.nemo", "b.nemo"], "holds 2 .nemo files, none of them called tiny.nemo"),
    "in a folder": (["sub/tiny2.nemo"], "holds no .nemo file"),
    "empty": (["tiny.nemo"], "is empty"),
}
"""Repository -> its files and what is told."""


@pytest.mark.parametrize("name", FILES)
def test_a_repository_without_one_model(name: str, user: User, hub: Hub) -> None:
    files, says = FILES[name]
    hub.files = {f"{NAME}/{file}": b"" for file in files}
    failed = user.download().failed
    assert (failed.kind, says in failed.detail) == ("model", True), failed


def test_the_only_nemo_file_is_taken_whatever_its_name(user: User, hub: Hub) -> None:
    hub.files = {f"{NAME}/other.nemo": MODEL, f"{NAME}/README.md": b"y"}
    assert user.download().path.name == "other.nemo"


def test_a_name_that_is_mistyped_has_its_neighbour_named(user: User) -> None:
    failed = user.download("nvidia/canary-1b-flahs").failed
    assert "nvidia/canary-1b-flash" in failed.hint


# -- the header first
# -------------------------------------------------------------------------------------------------

OTHER = "nemo.collections.tts.models.fastpitch.FastPitchModel"

Variant = tuple[str, bool, bool, str]
"""Where the config is, gzipped, a server that sends parts, and what is wrong with the model."""

VARIANTS: list[Variant] = [
    *itertools.product(("first", "before", "last"), (False, True), (False, True), ("", "other kind")),
    ("first", False, True, "code"), ("first", True, True, "code"), ("first", False, False, "code"),
    ("last", False, True, "code"), ("first", False, True, "no config"), ("first", False, True, "no archive"),
]  # fmt: skip

SEEN = {
    "other kind": f"another kind of model: target {OTHER}",
    "code": "its weights name torch._utils._rebuild_tensor_v9",
    "no config": "holds no model_config.yaml",
    "no archive": "is not a .nemo file",
}


def variant(place: str, gz: bool, wrong: str, generator: random.Random) -> bytes:
    """Return a model file: members in some order, of other sizes each time, with one thing wrong or
    nothing."""
    content = members() | {
        f"{generator.getrandbits(32):x}_extra": generator.randbytes(generator.randrange(50_000))
    }
    if wrong == "no archive":
        return generator.randbytes(SIZE)
    if wrong == "other kind":
        was = content["model_config.yaml"].decode()
        content["model_config.yaml"] = re.sub(r"(?m)^target: .*$", f"target: {OTHER}", was).encode()
    if wrong == "code":
        weights = content["model_weights.ckpt"]
        content["model_weights.ckpt"] = weights.replace(
            b"_rebuild_tensor_v2\n", b"_rebuild_tensor_v9\n"
        )
    order = arranged(content, place, generator)
    if wrong == "no config":
        order.remove("model_config.yaml")
    return packed(content, order, generator.choice(("", "./")), gz)


def decided(place: str, gz: bool, ranges: bool, wrong: str) -> str:
    """Return when a model is judged, as the message says it."""
    if ranges and not gz:
        return "this was known before the download, by its header"
    because = (
        "because the file is gzipped" if gz else "because the server does not send parts of files"
    )
    if place == "last":
        return f"this was known only from the whole file, {because}"
    return rf"this was known after \d+\.\d MB of the download, {because}"


@pytest.mark.parametrize(
    ("number", "which"), list(enumerate(VARIANTS)), ids=["-".join(map(str, v)) for v in VARIANTS]
)
def test_a_model_is_judged_by_its_header_as_early_as_it_can_be(
    number: int, which: Variant, user: User, hub: Hub
) -> None:
    place, gz, ranges, wrong = which
    content = variant(place, gz, wrong, random.Random(number))
    hub.files, hub.faults = {FILE: content}, Faults(ranges=ranges)
    done = user.download()
    if not wrong:
        assert whole(done.path, content)
        return
    assert (done.failed.kind, done.code) == ("model", 66)
    assert SEEN[wrong] in done.failed.detail
    assert re.search(decided(*which), done.failed.detail), done.failed
    assert not user.parts
    arrived = sum(file.stat().st_size for file in user.blobs.iterdir())
    if "whole file" in done.failed.detail:
        assert arrived == len(content)  # it is not downloaded again to be refused again
    else:
        assert arrived == 0
        assert max(one.bytes for one in done.reports) < 2 * MIB
        assert (
            hub.sent < 2 * MIB or not ranges or gz
        )  # a stream is ahead of its reader by what sockets hold


# -- killed, crowded, moved
# -------------------------------------------------------------------------------------------


PROCESS = ("-P", "-m", "asrd.models.download", NAME)


def held(user: User, hub: Hub, command: tuple[str, ...] = PROCESS) -> subprocess.Popen[str]:
    """Start a download and return when it has 2 MiB and no more can come."""
    hub.faults.hold_at = 3 * MIB
    process = user.start(command)
    wait_for(lambda: user.here >= 2 * MIB)
    return process


def test_a_download_that_is_killed_goes_on_where_it_was(user: User, hub: Hub) -> None:
    with held(user, hub) as process:
        process.kill()
    before = user.here
    hub.faults.gate.set()
    hub.forget()
    assert whole(user.download().path)
    assert max(hub.ranges) >= before >= 2 * MIB
    assert hub.sent <= SIZE - before + MIB


def children(program: str) -> list[int]:
    """Return the processes whose command line has a word."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                found += [int(entry.name)] * (program.encode() in (entry / "cmdline").read_bytes())
    return found


def test_the_process_ends_with_the_one_that_started_it(user: User, hub: Hub) -> None:
    own = f"{NAME}-{os.getpid()}"
    hub.files = {f"{own}/{own.partition('/')[2]}.nemo": MODEL}
    program = f"from asrd.models import downloader; downloader.fetch_now('{own}', lambda _: None)"
    hub.faults.hold_at = 2 * MIB
    with user.start(("-c", program)) as parent:
        wait_for(lambda: hub.sent > MIB)
        mine = [pid for pid in children(own) if pid != parent.pid]
        assert len(mine) == 1
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
    wait_for(lambda: not [pid for pid in children(own) if pid in mine])


def test_two_downloads_of_one_model_fetch_it_once_and_the_second_says_what_it_waits_for(
    user: User, hub: Hub
) -> None:
    with held(user, hub) as first:
        second: list[Outcome] = []
        thread = threading.Thread(target=lambda: second.append(user.download(quick=False)))
        thread.start()
        wait_for(lambda: sum(one.method == "HEAD" for one in hub.asked) >= 2)
        threading.Event().wait(1.5)
        hub.faults.gate.set()
        out, err = first.communicate(timeout=60)
        thread.join()
    assert '"downloaded"' in out, err
    done = second[0]
    assert whole(done.path)
    notes = [one for one in done.reports if one.note == "another process is downloading it"]
    assert notes
    assert notes[-1].bytes >= 2 * MIB
    assert hub.sent < SIZE + MIB


def test_a_model_that_was_renewed_meanwhile_is_downloaded_anew(user: User, hub: Hub) -> None:
    with held(user, hub) as process:
        process.kill()
    renewed = packed(members() | {"new": b"1"}, [*members(), "new"])
    hub.files, hub.faults = {FILE: renewed}, Faults(commit="f" * 40)
    done = user.download()
    assert whole(done.path, renewed)
    assert done.path.parent.name == "f" * 40
    assert not user.parts


def test_a_model_that_is_renewed_while_it_arrives_stays_of_one_version(
    user: User, hub: Hub
) -> None:
    # The commit is part of the address, so a hub sends the old content on; one that does not is
    # found out.
    with held(user, hub) as process:
        hub.files = {FILE: bytes(SIZE)}
        hub.faults.gate.set()
        process.kill()
    hub.faults.tag = user.parts[0].name.partition(".")[0]
    done = user.download()
    assert "not a .nemo file" in done.failed.detail or "is damaged" in done.failed.detail
    of_hub = [one.path for one in hub.asked if one.method == "GET" and "/resolve/" in one.path]
    assert all(re.search(r"/resolve/[0-9a-f]{40}/", path) for path in of_hub)


def test_a_part_that_is_longer_than_the_file_starts_anew(user: User, hub: Hub) -> None:
    user.blobs.mkdir(parents=True)
    part = user.blobs / f"{hashlib.sha256(MODEL.read_bytes()).hexdigest()}.asrd.incomplete"
    part.write_bytes(bytes(SIZE + 5))
    failed = user.download().failed
    assert "damaged" in failed.detail
    assert whole(user.download().path)


# -- room
# -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("known", [True, False], ids=["told before", "found out on the way"])
def test_a_disk_without_room(known: bool, user: User, hub: Hub, small_disk: Path) -> None:
    hub.faults = Faults(ranges=known, sizes=known)
    user.hf_home = small_disk
    done = user.download()
    assert (done.failed.kind, done.code) == ("disk", 73)
    assert str(small_disk) in done.failed.detail
    assert re.search(r"set HF_HOME to a folder on a larger disk", done.failed.hint)
    if known:
        assert re.search(rf"{SIZE} bytes needed, \d+ free", done.failed.detail)
        assert hub.sent < MIB
    assert not user.parts


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as other, contextlib.suppress(OSError):
        while True:
            other.write(bytes(4096))


def test_a_disk_that_somebody_else_fills_meanwhile(user: User, hub: Hub, small_disk: Path) -> None:
    content = packed(
        members() | {"model_weights.ckpt": members()["model_weights.ckpt"][:MIB]}, list(members())
    )
    hub.files, user.hf_home = {FILE: content}, small_disk
    hub.faults.hold_at = MIB // 2
    with user.start(("-P", "-m", "asrd.models.download", NAME)) as process:
        wait_for(lambda: user.here >= MIB // 4)
        fill(small_disk / "other")
        hub.faults.gate.set()
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 73
    assert re.search(r"no room for someone/tiny in the cache .*: \d+ bytes needed, \d+ free", out)
    assert not user.parts


# -- names and the cache
# ----------------------------------------------------------------------------------------------


def test_a_cached_model_is_found_with_no_request_at_all(user: User, hub: Hub) -> None:
    path = user.download().path
    hub.forget()
    program = "import sys; from asrd.models import downloader; print(downloader.fetch_now(sys.argv[1], print))"
    for more in ({}, {"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        with user.start(("-c", program, NAME), **more) as process:
            assert process.communicate(timeout=60)[0].strip() == str(path)
    assert not hub.asked


@pytest.mark.parametrize("cut", [0, 1, 2], ids=["refs", "snapshot", "blob"])
def test_a_cache_with_a_piece_missing_is_mended(cut: int, user: User, hub: Hub) -> None:
    path = user.download().path
    [user.blobs.parent / "refs" / "main", path, path.resolve()][cut].unlink()
    hub.forget()
    assert whole(user.download().path)
    assert (hub.sent > SIZE / 2) == (cut == 2)


def test_names_of_the_hub_become_folders_of_its_library() -> None:
    assert names.repository("someone/tiny") == "models--someone--tiny"
    assert names.own_file("someone/tiny.v2") == "tiny.v2.nemo"
