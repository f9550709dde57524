"""The ledger's instruments, through the real pynvml over a library that stands in for the driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from asrd import vram

HERE = Path(__file__).parent
A1000 = "NVIDIA RTX A1000 Laptop GPU"
TWO = f"Tesla T4:7.5:16000:15000;{A1000}:8.6:4096:3500"


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds the stand-in library."""
    folder = tmp_path_factory.mktemp("nvml")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-Wall", "-o", library, HERE / "fake_nvml.c"], check=True)
    return folder


def under(driver: Path | None, program: str, **environment: str) -> Any:
    """Run a line of Python that prints JSON, under the stand-in driver (None: without any)."""
    path = {"LD_LIBRARY_PATH": str(driver)} if driver else {}
    done = subprocess.run(
        [sys.executable, "-c", f"import json, os, msgspec\nfrom asrd import vram\n{program}"],
        cwd=HERE.parent,
        env={**os.environ, **path, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


CARDS = "print(msgspec.json.encode(vram.gpus()).decode())"


def test_without_a_driver_there_are_no_cards_and_no_error() -> None:
    assert under(None, CARDS) == []


def test_a_driver_without_a_card_is_no_error(driver: Path) -> None:
    assert under(driver, CARDS, FAKE_GPUS="") == []


def test_cards_are_told_with_the_facts_that_a_plan_needs(driver: Path) -> None:
    first, second = under(driver, CARDS, FAKE_GPUS=TWO)
    assert (first["name"], first["capability"], first["index"]) == ("Tesla T4", [7, 5], 0)
    assert (second["total"], second["free"]) == (4096 << 20, 3500 << 20)
    assert second["driver"] == "570.00-fake"


@pytest.mark.parametrize(
    ("visible", "names"), [("1", [A1000]), ("GPU-0001,0", [A1000, "Tesla T4"]), ("", []), ("-1", []), ("9,0", [])]
)
def test_cards_are_numbered_as_cuda_will_number_them(driver: Path, visible: str, names: list[str]) -> None:
    cards = under(driver, CARDS, FAKE_GPUS=TWO, CUDA_VISIBLE_DEVICES=visible)
    assert [card["name"] for card in cards] == names
    assert [card["index"] for card in cards] == list(range(len(cards)))


READ = "print(msgspec.json.encode(vram.read(os.getpid(), 'cuda:0', device_at_start={})).decode())"


def test_a_process_that_nvml_knows_is_read_from_nvml(driver: Path) -> None:
    program = "os.environ['FAKE_PROCESS'] = f'{os.getpid()}:777'\n" + READ.format(0)
    memory = under(driver, program, FAKE_GPUS=TWO)
    assert (memory["process"], memory["device"], memory["source"]) == (777 << 20, 1000 << 20, "nvml")


@pytest.mark.parametrize("process", ["1:777", "0:-1"])
def test_where_nvml_cannot_tell_a_delta_is_labelled_as_one(driver: Path, process: str) -> None:
    program = f"os.environ['FAKE_PROCESS'] = '{process}'.replace('0:', f'{{os.getpid()}}:')\n" + READ.format(600 << 20)
    memory = under(driver, program, FAKE_GPUS=TWO)
    assert (memory["process"], memory["source"]) == (400 << 20, "meminfo")


def test_on_the_cpu_the_resident_set_stands_in_and_says_so() -> None:
    before = vram.read(os.getpid(), "cpu")
    held = bytearray(os.urandom(1) * (64 << 20))
    after = vram.read(os.getpid(), "cpu")
    assert before.source == after.source == "rss"
    assert before.process is not None
    assert after.process is not None
    assert after.process - before.process > 0.9 * len(held)
    assert after.allocated is after.reserved is after.device is None


def test_a_process_that_is_gone_has_no_memory() -> None:
    assert vram.resident_bytes(2**22 + 1) is None


def test_the_peak_is_seen_even_when_it_is_over() -> None:
    start = vram.resident_bytes(os.getpid()) or 0
    tick = threading.Event()
    with vram.Peak(interval=0.001) as peak:
        held = bytearray(os.urandom(1) * (96 << 20))
        tick.wait(0.1)
        del held
    assert peak.bytes - start > 80 << 20
