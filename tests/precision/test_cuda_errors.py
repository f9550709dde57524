"""What torch says when it fails, by the texts that torch 2.11 to 2.13 and CUDA print, and what asrd
makes of it."""

from __future__ import annotations

import pytest
import torch

from asrd.precision import cuda_errors
from asrd.precision.plan import Gpu

MORE = (
    "\nSearch for `cudaErrorX' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for more "
    "information.\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below "
    "might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA` to "
    "enable device-side assertions.\n"
)
"""What torch adds to each error of CUDA; it names assertions in every one of them."""

FULL = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 7.51 GiB of which 40.75 MiB is "
    "free. Process 9500 has 148.91 MiB memory in use. Including non-PyTorch memory, this process has 7.01 GiB memory "
    "in use. 1.95 GiB allowed; Of the allocated memory 6.81 GiB is allocated by PyTorch, and 17.19 MiB is reserved by "
    "PyTorch but unallocated."
)

TEXTS = [
    ("out-of-memory", torch.OutOfMemoryError(FULL)),
    ("out-of-memory", RuntimeError(FULL)),
    ("out-of-memory", RuntimeError("CUDA error: out of memory" + MORE)),
    ("out-of-memory", RuntimeError("CUDA driver error: out of memory")),
    ("out-of-memory", RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
    ("out-of-memory", RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`")),
    ("out-of-memory", RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")),
    ("out-of-memory", RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED")),
    ("out-of-memory", RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED")),
    ("out-of-memory", RuntimeError(
        'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "../c10/cuda/CUDACachingAllocator.cpp":830, please report a bug '
        "to PyTorch. ")),
    ("out-of-memory", RuntimeError(
        "NVML_SUCCESS == DriverAPI::get()->nvmlInit_v2_() INTERNAL ASSERT FAILED at "
        '"/pytorch/c10/cuda/CUDACachingAllocator.cpp":1090, please report a bug to PyTorch.')),
    ("out-of-memory", RuntimeError(
        '!handles_.at(i) INTERNAL ASSERT FAILED at "/pytorch/c10/cuda/CUDACachingAllocator.cpp":487, please report')),
    ("out-of-memory", RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 67108864 bytes. Error code 12 (Cannot allocate memory)")),
    ("out-of-memory", MemoryError()),
    ("device-lost", torch.AcceleratorError("CUDA error: an illegal memory access was encountered" + MORE)),
    ("device-lost", RuntimeError(
        "CUDA error: an illegal memory access was encountered" + MORE + "Exception raised from insert_events at "
        "/pytorch/c10/cuda/CUDACachingAllocator.cpp:1266 (most recent call first):")),
    ("device-lost", RuntimeError("CUDA error: unspecified launch failure" + MORE)),
    ("device-lost", RuntimeError("CUDA error: device-side assert triggered" + MORE)),
    ("device-lost", RuntimeError("CUDA error: uncorrectable ECC error encountered" + MORE)),
    ("device-lost", RuntimeError("CUDA error: misaligned address" + MORE)),
    ("device-lost", RuntimeError("CUDA error: an illegal instruction was encountered" + MORE)),
    ("device-lost", RuntimeError("CUDA error: the launch timed out and was terminated" + MORE)),
    ("device-lost", RuntimeError("CUDA error: hardware stack error" + MORE)),
    ("device-lost", RuntimeError("CUDA error: unknown error" + MORE)),
    ("device-lost", RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, ...`")),
    ("device-lost", RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")),
    ("unsupported", RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx( handle, ...)`")),
    ("unsupported", RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if ...")),
    ("unsupported", RuntimeError("GET was unable to find an engine to execute this computation")),
    ("unsupported", RuntimeError("\"conv_depthwise2d\" not implemented for 'BFloat16'")),
    ("no-device", AssertionError("Torch not compiled with CUDA enabled")),
    ("no-device", RuntimeError(
        "The NVIDIA driver on your system is too old (found version 12080). Please update your GPU driver by "
        "downloading and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx")),
    ("no-device", RuntimeError("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU")),
    ("no-device", RuntimeError("No CUDA GPUs are available")),
    ("no-device", RuntimeError("CUDA error: no kernel image is available for execution on the device" + MORE)),
    ("no-device", RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable" + MORE)),
    ("no-device", RuntimeError("CUDA error: invalid device ordinal" + MORE)),
    ("no-device", RuntimeError(
        "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling NumCudaDevices() "
        "that might have already set an error? Error 803: system has unsupported display driver / cuda driver "
        "combination")),
    ("no-device", RuntimeError(
        "CUDA unknown error - this may be due to an incorrectly set up environment, e.g. changing env variable "
        "CUDA_VISIBLE_DEVICES after program start. Setting the available devices to be zero.")),
    ("", RuntimeError("The size of tensor a (83) must match the size of tensor b (93) at non-singleton dimension 3")),
    ("", ValueError("")),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "error"), TEXTS, ids=lambda value: str(value)[:50])
def test_each_text_is_of_its_kind(kind: str, error: BaseException) -> None:
    assert cuda_errors.kind_of(error) == kind
    assert "\n" not in cuda_errors.first_line(error)
    assert cuda_errors.first_line(error)


A1000 = Gpu(0, "RTX A1000", (8, 6), 4 << 30, 3 << 30, "570.00")
PASCAL = Gpu(0, "GTX 1080", (6, 1), 8 << 30, 8 << 30, "580.00")
NEW = cuda_errors.TorchBuild("2.13.0+cu130", "13.0")


def test_the_installed_torch_is_known_without_its_import() -> None:
    found = cuda_errors.torch_build()
    assert found is not None
    assert (found.version, found.cuda) == (str(torch.__version__), torch.version.cuda or "")


def test_a_torch_without_cuda_beside_a_card_is_named_with_the_command() -> None:
    why, fix = cuda_errors.mismatch(cuda_errors.TorchBuild("2.13.0+cpu", ""), A1000, "13.0")
    assert why == "torch 2.13.0+cpu is built without CUDA and cannot use RTX A1000"
    assert (
        fix
        == "pip install --force-reinstall -i https://download.pytorch.org/whl/cu130 torch==2.13.0"
    )


def test_a_driver_that_is_too_old_is_named_with_both_versions() -> None:
    why, fix = cuda_errors.mismatch(NEW, A1000, "12.8")
    assert why == "torch 2.13.0+cu130 is built for CUDA 13.0; the driver 570.00 knows 12.8 at most"
    assert "whl/cu126 torch==2.13.0" in fix
    assert fix.startswith("update the NVIDIA driver, or pip install")
    assert cuda_errors.mismatch(NEW, A1000, "11.4")[1].count("update the NVIDIA driver") >= 1
    for driver in ("13.0", "13.2", ""):
        assert cuda_errors.mismatch(NEW, A1000, driver) == ("", "")
    assert cuda_errors.mismatch(cuda_errors.TorchBuild("2.13.0+cu128", "12.8"), A1000, "12.2") == (
        "",
        "",
    )


def test_a_card_that_is_too_old_for_a_torch_is_known_before_it_is_tried() -> None:
    why, fix = cuda_errors.mismatch(NEW, PASCAL, "13.0")
    assert why == "torch 2.13.0+cu130 has no kernels for GTX 1080, compute capability 6.1"
    assert "whl/cu126 torch==2.13.0" in fix
    assert cuda_errors.mismatch(cuda_errors.TorchBuild("2.13.0+cu126", "12.6"), PASCAL, "13.0") == (
        "",
        "",
    )


@pytest.mark.parametrize(
    ("text", "card", "said", "helps"),
    [
        (
            "CUDA error: no kernel image is available for execution on the device",
            PASCAL,
            "capability 6.1",
            "whl/cu126",
        ),
        (
            "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
            A1000,
            "no further process",
            "nvidia-smi",
        ),
        (
            "Error 803: system has unsupported display driver / cuda driver combination",
            A1000,
            "not fit",
            "restart",
        ),
        ("No CUDA GPUs are available", A1000, "No CUDA GPUs are available", "asrd doctor"),
    ],
)
def test_a_card_that_torch_cannot_use_is_one_sentence_and_a_hint(
    text: str, card: Gpu, said: str, helps: str
) -> None:
    why, fix = cuda_errors.explain(RuntimeError(text + MORE), NEW, card, "13.0")
    assert said in why
    assert helps in fix
    assert "\n" not in why
    assert cuda_errors.explain(RuntimeError(text), NEW, None, "")[1]


def test_a_card_in_exclusive_mode_is_told_as_such() -> None:
    taken = Gpu(0, "A100", (8, 0), 1, 1, mode="exclusive")
    why, _ = cuda_errors.explain(
        RuntimeError("CUDA-capable device(s) is/are busy or unavailable"), NEW, taken, "13.0"
    )
    assert why == "A100 takes no further process in the compute mode exclusive"
