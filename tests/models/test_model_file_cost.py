"""What a hostile model file may cost before it is refused: seconds, and less than a gigabyte.

All members are judged by one process, which has no more memory than that.
"""

from __future__ import annotations

import io
import json
import random
import resource
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asrd.errors import ModelError
from asrd.models import checkpoint, model_config, torch_file
from asrd.models.names import SHIPPED
from tests.models.test_checkpoint import members_of

MEMORY_BYTES = 1 << 30
MOST_SECONDS = 5.0
PRIME = 2**61 - 1
"""Python's hash of an integer is its remainder by this: multiples hash alike."""


def numbers(count: int) -> list[int]:
    """Return multiples of PRIME, shuffled."""
    found = [number * PRIME for number in range(1, count)]
    random.Random(14).shuffle(found)
    return found


def configs() -> Iterator[tuple[str, Callable[[], str], str]]:
    """Yield a name, a config, and what is said of it."""
    many, most = "more than 500000 values", "more than 16 million characters"
    names = [f"k{number}" for number in range(100_000)]
    yield (
        "the last key twice",
        lambda: ": 1\n".join([*names, names[-1]]) + ": 1\n",
        "has the entry k99999 twice",
    )
    yield (
        "keys that hash alike",
        lambda: "".join(f"{n}: 1\n" for n in numbers(40_000)),
        "that is not a name",
    )
    yield (
        "keys of a merge",
        lambda: "<<: {" + ", ".join(f"{n}: 1" for n in numbers(40_000)) + "}",
        "that is not a name",
    )
    yield (
        "a list in many entries",
        lambda: (
            "big: [" + "1," * 300_000 + "1]\n" + "".join(f"x{n}: ${{big}}\n" for n in range(100))
        ),
        many,
    )
    yield (
        "a way through a list",
        lambda: (
            "a: {b: ['${c}']}\nc: ["
            + "1," * 100_000
            + "1]\n"
            + "".join(f"x{n}: ${{a.b}}\n" for n in range(99))
        ),
        many,
    )
    yield (
        "a text in many texts",
        lambda: f"a: '{'y' * 16_000}'\nb:\n" + "- x${a}\n" * 100_000,
        most,
    )
    yield (
        "many references in texts",
        lambda: "a: 1\n" + "".join(f"k{n}: '{'${a}' * 4000}'\n" for n in range(200)),
        most,
    )
    yield (
        "declared tags",
        lambda: "".join(f"%TAG !a{n}! t\n" for n in range(50_000)) + "---\na: 1\n",
        "directives",
    )
    yield (
        "base 60",
        lambda: "".join(f"k{n}: {'1:' * 8000}1\n" for n in range(40)),
        "more than 64 bits",
    )
    for text in (
        "1:" * 2000 + "1.5",
        "!!bool maybe",
        "!!int ''",
        "!!float ''",
        "!!int {=: ''}",
        "!!bool {=: x}",
    ):
        yield text[:16], lambda text=text: f"a: {text}\n", "not of the type that it is given"  # type: ignore[misc]


def pickles() -> Iterator[tuple[str, Callable[[], bytes], str]]:
    """Yield a name, a description of weights, and what is said of it."""
    long, foreign, key = "more than 4 MiB", "torch does not write", "a key that is not text"
    few = numbers(40_000)
    items = [b"\x8a\x0c" + number.to_bytes(12, "little") + b"N" for number in few]
    pair = b"]" + b"".join(b"]\x8a\x0c" + number.to_bytes(12, "little") + b"aNaa" for number in few)
    yield "lists", lambda: b"\x80\x02" + b"]" * (16 << 20) + b".", long
    yield "sets", lambda: b"\x80\x04" + b"\x8f" * (3 << 20) + b".", foreign
    yield (
        "a set",
        lambda: b"\x80\x04\x8f(" + b"".join(item[:-1] for item in items) + b"\x90.",
        foreign,
    )
    yield (
        "a frozen set",
        lambda: b"\x80\x04(" + b"".join(item[:-1] for item in items) + b"\x91.",
        foreign,
    )
    yield (
        "remembered",
        lambda: b"\x80\x02N" + b"".join(b"p%d\n" % number for number in few) + b".",
        foreign,
    )
    yield "bytes", lambda: b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".", foreign
    yield "items", lambda: b"\x80\x02}(" + b"".join(items) + b"u.", key
    yield (
        "one item each",
        lambda: b"\x80\x02}" + b"".join(item + b"s" for item in items) + b".",
        key,
    )
    yield "a mapping", lambda: b"\x80\x02(" + b"".join(items) + b"d.", key
    yield "pairs", lambda: b"\x80\x02ccollections\nOrderedDict\n" + pair + b"\x85R.", key


def zipped(description: bytes) -> bytes:
    """Return a torch file with this description."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("a/data.pkl", description)
    return out.getvalue()


def directory() -> bytes:
    """Return a zip of one file whose directory names it half a million times."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("a/x", b"")
    raw = out.getvalue()
    at, end = raw.index(b"PK\1\2"), raw.index(b"PK\5\6")
    count, size = 500_000, end - at
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65_535, 65_535, size * count, at, 0)
    return raw[:at] + raw[at:end] * count + tail


def sparse(version: str) -> bytes:
    """Return a tar whose first member has a map of holes."""
    holes = b"1\n" * (1 << 20)
    info = tarfile.TarInfo("model_config.yaml")
    info.size = len(holes) + 512
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    if version == "0.0":
        info.pax_headers = {"GNU.sparse.size": "1"}
    if version == "0.1":
        info.pax_headers = {"GNU.sparse.map": "1," * 20_000 + "1"}
    return info.tobuf(tarfile.PAX_FORMAT) + b"9000000\n".ljust(512, b"\0") + holes


def judged(name: str) -> tuple[str, float]:
    """Return what is said of a member, and the CPU seconds that it took."""
    kind, _, which = name.partition(": ")
    path = Path("evil.nemo")
    if kind == "config":
        text = next(make() for known, make, _ in configs() if known == which).encode()
        act: Callable[[], object] = lambda: model_config.read(text, path)  # noqa: E731  # one of four
    elif kind == "weights":
        data = (
            directory()
            if which == "directory"
            else zipped(next(m() for k, m, _ in pickles() if k == which))
        )
        act = lambda: torch_file.tensors_of(io.BytesIO(data), path, len(data))  # noqa: E731  # one of four
    else:
        archive = sparse(which)
        act = lambda: checkpoint.header_of(io.BytesIO(archive), path, len(archive))  # noqa: E731  # one of four
    began = time.process_time()
    try:
        act()
    except ModelError as error:
        return error.message, time.process_time() - began
    except Exception as error:  # it is told to the test
        return f"{type(error).__name__} {error}", time.process_time() - began
    return "it is taken", time.process_time() - began


def members() -> Iterator[tuple[str, str]]:
    """Yield the name of each member, and what is said of it."""
    for name, _, said in configs():
        yield f"config: {name}", said
    for name, _, said in pickles():
        yield f"weights: {name}", said
    yield "weights: directory", "a directory of 24500000 bytes"
    for version in ("0.0", "0.1", "1.0"):
        yield f"sparse: {version}", "is a sparse file"


def main() -> None:
    """Judge the members that the command line names, within the memory, and print what came of
    it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for name in json.loads(sys.argv[1]):
        print(json.dumps([name, *judged(name)]), flush=True)


@pytest.fixture(scope="module")
def verdicts() -> dict[str, tuple[str, float]]:
    """Return what was said of each member, and in how many CPU seconds."""
    names = json.dumps([name for name, _ in members()])
    command = [sys.executable, "-m", "tests.models.test_model_file_cost", names]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    found = {
        name: (said, seconds) for name, said, seconds in map(json.loads, done.stdout.splitlines())
    }
    assert len(found) == len(list(members())), done.stderr
    return found


@pytest.mark.parametrize(("name", "said"), list(members()))
def test_what_would_cost_minutes_or_gigabytes_is_refused(
    name: str, said: str, verdicts: dict[str, tuple[str, float]]
) -> None:
    message, seconds = verdicts[name]
    assert said in message
    assert message.startswith("evil.nemo ")
    assert seconds < MOST_SECONDS


def test_a_whole_directory_of_a_zip_is_within_the_bound() -> None:
    for path in SHIPPED.values():
        content = members_of(path)["model_weights.ckpt"]
        assert torch_file.tensors_of(io.BytesIO(content), path, len(content))


if __name__ == "__main__":
    main()
