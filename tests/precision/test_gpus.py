"""The ledger's instruments, through the real pynvml over a library that stands in for the
driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asrd.precision import readings
from asrd.precision.memory import Memory
from tests.helpers import ROOT

A1000 = "NVIDIA RTX A1000 Laptop GPU"
TWO = f"Tesla T4:7.5:16000:15000;{A1000}:8.6:4096:3500"


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds the stand-in library."""
    folder = tmp_path_factory.mktemp("nvml")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-Wall", "-o", library, ROOT / "tests" / "fakes" / "nvml.c"],
        check=True,
    )
    return folder


def under(driver: Path | None, program: str, **environment: str) -> Any:
    """Run a line of Python that prints JSON, under the stand-in driver (None: without any)."""
    path = {"LD_LIBRARY_PATH": str(driver)} if driver else {}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import json, os, msgspec\nfrom asrd.precision import gpus, nvml, readings\n{program}",
        ],
        cwd=ROOT,
        env={**os.environ, **path, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


CARDS = "print(msgspec.json.encode(gpus.gpus()).decode())"


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
    ("visible", "names"),
    [("1", [A1000]), ("GPU-0001,0", [A1000, "Tesla T4"]), ("", []), ("-1", []), ("9,0", [])],
)
def test_cards_are_numbered_as_cuda_will_number_them(
    driver: Path, visible: str, names: list[str]
) -> None:
    cards = under(driver, CARDS, FAKE_GPUS=TWO, CUDA_VISIBLE_DEVICES=visible)
    assert [card["name"] for card in cards] == names
    assert [card["index"] for card in cards] == list(range(len(cards)))


READ = (
    "print(msgspec.json.encode(readings.read(os.getpid(), 'cuda:0', device_at_start={})).decode())"
)


def test_a_process_that_nvml_knows_is_read_from_nvml(driver: Path) -> None:
    program = "os.environ['FAKE_PROCESS'] = f'{os.getpid()}:777'\n" + READ.format(0)
    memory = under(driver, program, FAKE_GPUS=TWO)
    assert (memory["process"], memory["device"], memory["source"]) == (
        777 << 20,
        1000 << 20,
        "nvml",
    )


@pytest.mark.parametrize("process", ["1:777", "0:-1"])
def test_where_nvml_cannot_tell_a_delta_is_labelled_as_one(driver: Path, process: str) -> None:
    program = (
        f"os.environ['FAKE_PROCESS'] = '{process}'.replace('0:', f'{{os.getpid()}}:')\n"
        + READ.format(600 << 20)
    )
    memory = under(driver, program, FAKE_GPUS=TWO)
    assert (memory["process"], memory["source"]) == (400 << 20, "meminfo")


def test_on_the_cpu_the_resident_set_stands_in_and_says_so() -> None:
    before = readings.read(os.getpid(), "cpu")
    held = bytearray(os.urandom(1) * (64 << 20))
    after = readings.read(os.getpid(), "cpu")
    assert before.source == after.source == "rss"
    assert before.process is not None
    assert after.process is not None
    assert after.process - before.process > 0.9 * len(held)
    assert after.allocated is after.reserved is after.device is None


def test_a_process_that_is_gone_has_no_memory() -> None:
    assert readings.resident_bytes(2**22 + 1) is None


# -- drivers and cards that are not as they should be
# -----------------------------------------------------------------

WHY = "print(json.dumps([nvml.nvml_problem(), msgspec.to_builtins(gpus.gpus())]))"


@pytest.mark.parametrize(
    ("code", "said", "helps"),
    [
        ("4", "no permission to use", "/dev/nvidia"),
        ("9", "not loaded", "modprobe"),
        ("18", "upgraded while", "restart the machine"),
        ("999", "cannot be opened", "nvidia-smi"),
    ],
)
def test_a_driver_that_does_not_answer_is_named_with_what_helps(
    driver: Path, code: str, said: str, helps: str
) -> None:
    (why, fix), cards = under(driver, WHY, FAKE_GPUS=TWO, FAKE_INIT=code)
    assert said in why
    assert helps in fix
    assert cards == []


def test_a_driver_without_its_library_is_told_from_no_driver(tmp_path: Path) -> None:
    (tmp_path / "version").touch()
    program = "from pathlib import Path\nnvml.DRIVER_FILES = (Path({!r}),)\n" + WHY
    (why, fix), cards = under(None, program.format(str(tmp_path / "version")))
    assert "libnvidia-ml.so.1 is not found" in why
    assert "NVIDIA_DRIVER_CAPABILITIES" in fix
    assert cards == []
    assert under(None, program.format(str(tmp_path / "nothing")))[0] == ["no NVIDIA driver", ""]


def test_a_driver_that_comes_later_is_found(driver: Path) -> None:
    program = (
        "os.environ['FAKE_INIT'] = '9'\nbefore = len(gpus.gpus())\ndel os.environ['FAKE_INIT']\n"
        "print(json.dumps([before, len(gpus.gpus()), nvml.nvml_problem()]))"
    )
    assert under(driver, program, FAKE_GPUS=TWO) == [0, 2, ["", ""]]


def test_a_card_that_falls_off_the_bus_is_missed_and_found_again(driver: Path) -> None:
    program = (
        "names = lambda: [card.name for card in gpus.gpus()]\nfound = [names(), gpus.lost_cards()]\n"
        "os.environ['FAKE_LOST'] = '0'\nfound += [gpus.free_bytes(0), names(), gpus.lost_cards()]\n"
        "del os.environ['FAKE_LOST']\nfound += [names(), gpus.lost_cards()]\nprint(json.dumps(found))"
    )
    before, none, free, without, lost, after, none_again = under(driver, program, FAKE_GPUS=TWO)
    assert before == after == ["Tesla T4", A1000]
    assert (none, none_again) == ([], [])
    assert free is None or free == 3500 << 20  # the first card is now another one
    assert without == [A1000]
    assert len(lost) == 1
    assert "card 0 does not answer" in lost[0]


A100 = "NVIDIA A100:8.0:40960:40000"
PARTS = "0:NVIDIA A100 MIG 1g.5gb:4864:4800;0:NVIDIA A100 MIG 2g.10gb:9856:9000"


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["NVIDIA A100 MIG 1g.5gb"]),
        ("0", ["NVIDIA A100 MIG 1g.5gb"]),
        ("MIG-0001", ["NVIDIA A100 MIG 2g.10gb"]),
        ("MIG-0001,MIG-0000", ["NVIDIA A100 MIG 2g.10gb"]),
        ("1", ["Tesla T4"]),
        ("1,MIG-0000", ["NVIDIA A100 MIG 1g.5gb"]),
        ("MIG-0009", []),
    ],
)
def test_of_a_divided_card_cuda_shows_one_instance_and_nothing_beside_it(
    driver: Path, visible: str | None, names: list[str]
) -> None:
    more = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    cards = under(
        driver, CARDS, FAKE_GPUS=f"{A100};Tesla T4:7.5:16000:15000", FAKE_MIG=PARTS, **more
    )
    assert [card["name"] for card in cards] == names


def test_an_instance_has_its_own_memory_and_processes_and_its_cards_capability(
    driver: Path,
) -> None:
    program = (
        "os.environ['FAKE_PROCESS'] = f'{os.getpid()}:777'\n"
        "print(json.dumps([msgspec.to_builtins(gpus.gpus()), gpus.process_bytes(os.getpid(), 0), gpus.free_bytes(0)]))"
    )
    (card,), process, free = under(driver, program, FAKE_GPUS=A100, FAKE_MIG=PARTS)
    assert (card["total"], card["capability"], card["uuid"]) == (4864 << 20, [8, 0], "MIG-0000")
    assert (process, free) == (777 << 20, 4800 << 20)


def test_a_card_that_is_divided_into_nothing_is_named(driver: Path) -> None:
    found = under(
        driver,
        "print(json.dumps([len(gpus.gpus()), gpus.divided_cards()]))",
        FAKE_GPUS=A100,
        FAKE_MIG="0:",
    )
    assert found == [0, ["NVIDIA A100"]]


@pytest.mark.parametrize(
    ("code", "mode"), [("0", ""), ("1", "exclusive"), ("2", "prohibited"), ("3", "exclusive")]
)
def test_the_compute_mode_is_told(driver: Path, code: str, mode: str) -> None:
    assert [card["mode"] for card in under(driver, CARDS, FAKE_GPUS=TWO, FAKE_MODE=code)] == [
        mode,
        mode,
    ]


def test_the_drivers_own_cuda_is_told(driver: Path) -> None:
    program = "print(json.dumps(gpus.driver_cuda()))"
    assert under(driver, program, FAKE_GPUS=TWO, FAKE_CUDA="12080") == "12.8"
    assert under(driver, program, FAKE_GPUS=TWO) == ""


MIB = 1 << 20


@pytest.mark.parametrize(
    ("process", "reserved", "left"),
    [(500, 2, 1502), (500, 500, 2000), (None, 2, 1600), (500, None, 1600), (2400, 100, -300)],
)
def test_the_allocator_gets_what_the_context_leaves_of_a_limit(
    process: int | None, reserved: int | None, left: int
) -> None:
    now = Memory(process=process and process * MIB, reserved=reserved and reserved * MIB)
    assert readings.allocator_bytes(2000 * MIB, now, assumed=400 * MIB) == left * MIB


PEAK = """
import time
start = readings.resident_bytes(os.getpid())
with readings.Peak(interval=0.001) as peak:
    held = bytearray(os.urandom(1) * (96 << 20))
    time.sleep(0.1)
    del held
print(json.dumps([peak.bytes - start, readings.resident_bytes(os.getpid()) - start]))
"""


def test_the_peak_is_seen_even_when_it_is_over() -> None:
    peak, after = under(None, PEAK)  # a process of its own: a large one gives memory back meanwhile
    assert peak > 80 << 20
    assert after < 48 << 20


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"FAKE_GPUS": ""}, "not loaded"),
        ({"FAKE_GPUS": A100, "FAKE_LOST": "0"}, "does not answer"),
        ({"FAKE_GPUS": A100, "FAKE_MIG": "0:"}, "divided (MIG)"),
        ({"FAKE_GPUS": A100, "CUDA_VISIBLE_DEVICES": "7"}, "'7' hides every card"),
    ],
)
def test_why_no_card_is_seen_is_told_with_what_helps(
    driver: Path, environment: dict[str, str], said: str
) -> None:
    why, fix = under(driver, "print(json.dumps(gpus.gpu_problem()))", **environment)
    assert said in why
    assert fix


@pytest.mark.parametrize(
    ("environment", "device", "said", "helps"),
    [
        (
            {"FAKE_GPUS": A100, "CUDA_VISIBLE_DEVICES": ""},
            "cuda",
            "'' hides every card",
            "unset CUDA_VISIBLE_DEVICES",
        ),
        ({"FAKE_GPUS": A100, "FAKE_LOST": "0"}, "cuda:0", "does not answer", "nvidia-smi"),
        ({"FAKE_GPUS": A100, "FAKE_MIG": "0:"}, "cuda", "divided (MIG)", "mig -cgi"),
        ({"FAKE_GPUS": A100, "FAKE_INIT": "18"}, "cuda", "was upgraded", "restart the machine"),
        (
            {"FAKE_GPUS": TWO},
            "cuda:7",
            "no GPU matches device 'cuda:7'",
            "visible GPUs: cuda:0 (Tesla T4)",
        ),
        (
            {"FAKE_GPUS": A100, "FAKE_MIG": PARTS},
            "MIG-0001",
            "one instance",
            "CUDA_VISIBLE_DEVICES=MIG-0001",
        ),
        (
            {"FAKE_GPUS": A100, "FAKE_MIG": PARTS},
            "MIG-7",
            "no GPU matches device 'MIG-7'",
            "visible GPUs: cuda:0",
        ),
        ({"FAKE_GPUS": TWO, "FAKE_CUDA": "9000"}, "cuda:1", "torch ", "pip install"),
    ],
)
def test_a_device_that_cannot_be_had_is_one_sentence_with_what_helps(
    driver: Path, environment: dict[str, str], device: str, said: str, helps: str
) -> None:
    program = (
        "from asrd.errors import PrecisionError\n"
        f"try:\n    gpus.select_gpu({device!r})\n"
        "except PrecisionError as error:\n    print(json.dumps([error.message, error.hint]))"
    )
    message, hint = under(driver, program, **environment)
    assert said in message
    assert helps in hint


def test_where_there_simply_is_no_card_nothing_is_told(driver: Path, tmp_path: Path) -> None:
    program = f"from pathlib import Path\nnvml.DRIVER_FILES = (Path({str(tmp_path / 'none')!r}),)\n"
    assert under(None, program + "print(json.dumps(gpus.gpu_problem()))") == ["", ""]
    assert under(driver, "print(json.dumps(gpus.gpu_problem()))", FAKE_GPUS=A100) == ["", ""]
