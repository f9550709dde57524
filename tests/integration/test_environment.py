"""Each variable that a worker's environment sets, and what it does to each library that reads it.

The libraries themselves are asked, in a process with the variable and in one without it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from asrd.engine.process import WORKER_ENVIRONMENT
from asrd.models import downloader

HUB = "from huggingface_hub import constants as c, is_offline_mode\n"

THREADS = "import os; threads = lambda: len(os.listdir('/proc/self/task'))\n"

TOKENIZE = (
    "from tokenizers import Tokenizer, models, pre_tokenizers\n"
    "t = Tokenizer(models.WordLevel({'a': 0, 'u': 1}, unk_token='u')); t.pre_tokenizer = pre_tokenizers.Whitespace()\n"
    "before = threads(); t.encode_batch(['a b ' * 100] * 1000)\n"
    "found = threads() > before"
)

WANDB = (
    "import os; from wandb.sdk.wandb_settings import Settings\n"
    "s = Settings(); s.update_from_env_vars(os.environ); found = s.mode"
)

LOGS = "from nemo.utils import logging\nfound = {h.stream.name for k, h in logging._handlers.items() if 'stream' in k}"

ONNX = f"import time, numpy\n{THREADS}alone = threads(); import onnxruntime; time.sleep(1); found = threads() > alone"

TRANSFORMERS = "from transformers.utils import hub; found = hub.is_offline_mode()"

DATASETS = "from datasets import config; found = config.HF_HUB_OFFLINE"

CONVOLVE = (
    "import torch; c = torch.nn.Conv1d(32, 32, 3)\n"
    "with torch.inference_mode():\n"
    "    for n in [*range(100, 200), 100]: c(torch.randn(1, 32, n * 10))\n"
    "found = None"
)

NAMED = (
    "import torch, pathlib; lib = pathlib.Path(torch.__file__).parent / 'lib'\n"
    "found = {name} in (lib / {file}).read_bytes()"
)

READERS: list[tuple[str, str, str, str, object, object]] = [
    ("HF_HUB_OFFLINE", "huggingface_hub", "the hub", HUB + "found = is_offline_mode()", True, False),
    ("HF_HUB_OFFLINE", "transformers", "the hub", TRANSFORMERS, True, False),
    ("HF_HUB_OFFLINE", "datasets", "the hub", DATASETS, True, False),
    ("HF_HUB_DISABLE_TELEMETRY", "huggingface_hub", "reports", HUB + "found = c.HF_HUB_DISABLE_TELEMETRY", True, False),
    ("WANDB_MODE", "wandb", "uploads", WANDB, "disabled", "online"),
    ("ORT_DISABLE_TELEMETRY", "onnxruntime", "a reporting thread", ONNX, False, True),
    ("NEMO_REDIRECT_LOGS_TO_STDERR", "nemo", "where logs go", LOGS, ["<stderr>"], ["<stderr>", "<stdout>"]),
    ("PYTHONSAFEPATH", "sys", "the current folder", "import sys; found = sys.flags.safe_path", True, False),
    ("TQDM_DISABLE", "tqdm", "bars", "import io, tqdm; found = tqdm.tqdm([], file=io.StringIO()).disable", True, False),
    ("TOKENIZERS_PARALLELISM", "tokenizers", "threads", THREADS + TOKENIZE, False, True),
    (
        "PYTORCH_CUDA_ALLOC_CONF", "torch", "the allocator",
        "import torch; found = torch._C._accelerator_getAllocatorSettings()", "expandable_segments:True", "",
    ),
    (
        "LRU_CACHE_CAPACITY", "torch", "the store before oneDNN: only that it is read can be seen",
        NAMED.format(name="b'LRU_CACHE_CAPACITY'", file="'libtorch_cpu.so'"), True, True,
    ),
]  # fmt: skip
"""Variable, library, what it is about, what the library is asked, its answer with the variable and
without."""

SEEN_OTHERWISE = {
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "test_onednn_keeps_as_many_primitives_as_it_is_told",
    "OMP_WAIT_POLICY": "test_threads_of_openmp_do_not_spin",
    "CUDA_DEVICE_ORDER": "test_cuda_numbers_cards_as_nvml_does",
    "CUDA_MODULE_LOADING": "test_cuda_loads_kernels_when_they_are_needed",
}
"""Variable -> the test that looks at what its library prints or does."""


def ask(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in an environment that has none of the variables but these."""
    clean = {
        key: value
        for key, value in os.environ.items()
        if key not in WORKER_ENVIRONMENT and "OFFLINE" not in key
    }
    asked = f"{program}\nimport json; print('ANSWER', json.dumps(sorted(found) if isinstance(found, set) else found))"
    command = [sys.executable, "-c", asked]
    return subprocess.run(
        command, env=clean | environment, capture_output=True, text=True, check=True
    )


def answer(program: str, **environment: str) -> object:
    """Return what a program found."""
    lines = ask(program, **environment).stdout.splitlines()
    return json.loads(
        next(line for line in lines if line.startswith("ANSWER ")).removeprefix("ANSWER ")
    )


def test_every_variable_has_a_test_with_a_library_that_reads_it() -> None:
    assert {row[0] for row in READERS} | set(SEEN_OTHERWISE) == set(WORKER_ENVIRONMENT)
    assert set(SEEN_OTHERWISE.values()) <= set(globals())


@pytest.mark.parametrize(
    ("variable", "library", "about", "program", "with_it", "without"),
    READERS,
    ids=[f"{r[0]}-{r[1]}" for r in READERS],
)
def test_a_variable_does_to_a_library_what_it_is_set_for(
    variable: str, library: str, about: str, program: str, with_it: object, without: object
) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    assert answer(program, **{variable: WORKER_ENVIRONMENT[variable]}) == with_it, about
    assert answer(program) == without, f"{library} no longer needs {variable}"


def test_onednn_keeps_as_many_primitives_as_it_is_told() -> None:
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    for capacity, last in ((WORKER_ENVIRONMENT[name], "cache_miss"), ("1024", "cache_hit")):
        told = ask(CONVOLVE, ONEDNN_VERBOSE="profile_create", **{name: capacity}).stdout
        assert [line for line in told.splitlines() if ",convolution," in line][-1].find(last) > 0, (
            told[-400:]
        )


def test_threads_of_openmp_do_not_spin() -> None:
    policy = {"OMP_WAIT_POLICY": WORKER_ENVIRONMENT["OMP_WAIT_POLICY"]}
    for environment, spins in ((policy, "'0'"), ({}, "'300000'")):
        told = ask("import torch; found = None", OMP_DISPLAY_ENV="VERBOSE", **environment).stderr
        assert f"GOMP_SPINCOUNT = {spins}" in told, told


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA's driver reads it")
def test_cuda_numbers_cards_as_nvml_does() -> None:
    program = (
        "import torch; from pynvml import *; nvmlInit()\n"
        "ours = [torch.cuda.get_device_properties(n).pci_bus_id for n in range(torch.cuda.device_count())]\n"
        "theirs = [nvmlDeviceGetPciInfo(nvmlDeviceGetHandleByIndex(n)).bus for n in range(len(ours))]\n"
        "found = ours == theirs"
    )
    assert answer(program, CUDA_DEVICE_ORDER=WORKER_ENVIRONMENT["CUDA_DEVICE_ORDER"]) is True


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA's driver reads it")
def test_cuda_loads_kernels_when_they_are_needed() -> None:
    program = (
        "import ctypes; cuda = ctypes.CDLL('libcuda.so.1'); mode = ctypes.c_int(); cuda.cuInit(0)\n"
        "cuda.cuModuleGetLoadingMode(ctypes.byref(mode)); found = mode.value"
    )
    assert (
        answer(program, CUDA_MODULE_LOADING=WORKER_ENVIRONMENT["CUDA_MODULE_LOADING"]) == 2
    )  # lazy
    assert answer(program, CUDA_MODULE_LOADING="EAGER") == 1


def test_a_worker_is_offline_and_a_download_is_not() -> None:
    assert answer(HUB + "found = is_offline_mode()", **WORKER_ENVIRONMENT) is True
    asked = HUB + "found = [is_offline_mode(), c.HF_HUB_DISABLE_XET, c.HF_HUB_DISABLE_TELEMETRY]"
    assert answer(asked, **downloader.ENVIRONMENT) == [False, True, True]
