"""What torch, CUDA and their libraries say when they fail: which kind of failure that is, and what
helps.

The texts are theirs and have been stable for years; exception classes are not, and some failures
have none. Pure but for reading what torch says of its own build; imports no torch, so that the
daemon's side can ask as well.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import msgspec

from asrd.precision.plan import Gpu

MESSAGE_PATTERNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "no-device",  # torch cannot use this card at all, under no precision
        (
            "torch not compiled with cuda",
            "driver on your system is too old",
            "driver version is insufficient for cuda runtime",
            "found no nvidia driver",
            "no cuda gpus are available",
            "no cuda-capable device is detected",
            "cuda driver initialization failed",
            "cuda unknown error - this may be due to an incorrectly set up environment",
            "invalid device ordinal",
            "busy or unavailable",
            "no kernel image is available",
            "device kernel image is invalid",
            "ptx was compiled with an unsupported toolchain",
            "unsupported display driver / cuda driver combination",
            "forward compatibility was attempted on non supported hw",
            "system not yet initialized",
        ),
    ),
    (
        # sticky: every later call fails the same way, and only a new process recovers
        "device-lost",
        (
            "illegal memory access",  # 700
            "launch timed out",  # 702
            "context is destroyed",  # 709
            # 710; that torch can look for assertions, it says under each error
            "device-side assert triggered",
            "hardware stack error",  # 714
            "illegal instruction",  # 715
            "misaligned address",  # 716
            "operation not supported on global/shared address space",  # 717
            "invalid program counter",  # 718
            "unspecified launch failure",  # 719
            "uncorrectable ecc error",  # 214
            "uncorrectable nvlink error",  # 220
            "gpu is lost",
            "fallen off the bus",
        ),
    ),
    (
        "out-of-memory",  # a worker that needs less has a chance
        (
            "outofmemoryerror",
            "out of memory",
            "can't allocate memory",
            "cannot allocate memory",
            "cudaerrormemoryallocation",
            "cublas_status_alloc_failed",
            # its handle is made at first use, and a full card has no room for it
            "cublas_status_not_initialized",
            "cudnn_status_alloc_failed",
            "cudnn_status_not_initialized",
            "cudnn_status_internal_error_(device|host)_allocation_failed",
            "cufft_alloc_failed",
            "cusolver_status_alloc_failed",
            # NVML could not be asked how full the card is, as on MIG
            "nvml_success ==.* internal assert failed",
            r"internal assert failed at .*cudacachingallocator\.cpp",
        ),
    ),
    (
        "unsupported",  # this operation in this dtype
        (
            "cublas_status_not_supported",
            "cublas_status_arch_mismatch",
            "cudnn_status_not_supported",
            "unable to find an engine to execute this computation",
            "too many resources requested for launch",
            "not implemented for '(half|bfloat16)'",
        ),
    ),
    (
        "device-lost",  # the echo of a broken context, or what CUDA has no better word for (999)
        (
            "(cublas|cudnn|cusolver)_status_",
            "cufft_",
            "cuda (driver |runtime )?error",
            "acceleratorerror",
        ),
    ),
)
"""Kind -> patterns of the message or the name of the exception's class, in lower case; the first
that fits decides."""

WHEELS_URL = "https://download.pytorch.org/whl/"
"""Where torch is for each version of CUDA."""

MIN_CAPABILITY = (7, 5)
"""The oldest compute capability that a torch for CUDA 13 has kernels for."""


class TorchBuild(msgspec.Struct, frozen=True):
    """What torch says of its own build."""

    version: str
    cuda: str
    """The CUDA it is built for, as "13.0"; empty where it is built without."""


def torch_build() -> TorchBuild | None:
    """Return what the installed torch is built for, without importing it; None where there is
    none."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.origin:
        return None
    try:
        tree = ast.parse((Path(found.origin).with_name("version.py")).read_text())
    except (OSError, SyntaxError):
        return None
    values: dict[str, object] = {}
    for node in tree.body:
        target = _target(node)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
            values[target.id] = value.value
    return TorchBuild(str(values.get("__version__") or ""), str(values.get("cuda") or ""))


def _target(node: ast.stmt) -> object:
    """Return what a statement assigns to; None where it assigns to nothing."""
    if isinstance(node, ast.Assign):
        return node.targets[0]
    return getattr(node, "target", None)


def kind_of(error: BaseException) -> str:
    """Return the kind of a failure that is torch's or CUDA's; empty where it is of neither."""
    if isinstance(error, MemoryError):
        return "out-of-memory"
    text = f"{type(error).__name__}: {error}".lower()
    for kind, patterns in MESSAGE_PATTERNS:
        if any(re.search(pattern, text) for pattern in patterns):
            return kind
    return ""


def first_line(error: BaseException) -> str:
    """Return an exception's message as one line; the name of its class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def mismatch(torch: TorchBuild, card: Gpu, driver: str) -> tuple[str, str]:
    """Return why this torch cannot run beside this driver, and what helps; two empty strings where
    no reason is found.

    Args:
        driver: the newest CUDA that the driver supports, as "12.8"; empty where it does not say.
    """
    fix = install_command(torch, card, driver)
    if not torch.cuda:
        return f"torch {torch.version} is built without CUDA and cannot use {card.name}", fix
    if driver and _major(torch.cuda) > _major(driver):
        why = f"torch {torch.version} is built for CUDA {torch.cuda}; the driver {card.driver} knows {driver} at most"
        return why, f"update the NVIDIA driver, or {fix}"
    if _major(torch.cuda) >= 13 and card.capability < MIN_CAPABILITY:
        return no_kernels(torch, card), fix
    return "", ""


def no_kernels(torch: TorchBuild, card: Gpu) -> str:
    """Return the sentence for a card that a torch was not built for."""
    capability = ".".join(map(str, card.capability))
    return f"torch {torch.version} has no kernels for {card.name}, compute capability {capability}"


def install_command(torch: TorchBuild, card: Gpu, driver: str) -> str:
    """Return the command that installs the same torch for this card and driver."""
    wheel = "cu126"
    if card.capability >= MIN_CAPABILITY and (not driver or _major(driver) >= 13):
        wheel = "cu130"
    if driver and _major(driver) < 12:
        return f"update the NVIDIA driver, then pip install -i {WHEELS_URL}{wheel} torch"
    version = torch.version.partition("+")[0]
    return f"pip install --force-reinstall -i {WHEELS_URL}{wheel} torch=={version}"


def explain(
    error: BaseException, torch: TorchBuild, card: Gpu | None, driver: str
) -> tuple[str, str]:
    """Return one sentence on why torch cannot use a card, and what helps.

    Args:
        error: one of the kind no-device.
        card: the card as NVML reports it; None where NVML does not see it.
        driver: the newest CUDA that the driver supports; empty where it does not say.
    """
    text, message = str(error).lower(), first_line(error)
    if card is None:
        return f"torch {torch.version} cannot use the card: {message}", "asrd doctor; nvidia-smi"
    why, fix = mismatch(torch, card, driver)
    if why:
        return why, fix
    if "kernel image" in text or "unsupported toolchain" in text:
        return no_kernels(torch, card), install_command(torch, card, driver)
    if "busy or unavailable" in text:
        why = f"{card.name} takes no further process"
        if card.mode:
            why += f" in the compute mode {card.mode}"
        return why, "nvidia-smi shows the process that uses it; sudo nvidia-smi -c 0 allows several"
    if "driver combination" in text or "forward compatibility" in text:
        why = f"the driver that is loaded does not fit its library: {message}"
        return why, "restart the machine"
    return f"torch {torch.version} cannot use {card.name}: {message}", "asrd doctor; nvidia-smi"


def _major(version: str) -> int:
    digits = version.partition(".")[0]
    if digits.isdigit():
        return int(digits)
    return 0
