"""torch and NeMo imported once, quietly."""

from __future__ import annotations

import logging
import warnings
from typing import Any

from asrd import protocol
from asrd.precision.strategies import index_of
from asrd.worker import device as worker_device
from asrd.worker.loading import nemo_import

NOISY_LOGGERS = (
    "nv_one_logger",
    "hydra.utils",
    "nemo_logger",
    "lightning.pytorch",
    "pytorch_lightning",
    "torchao",
    "torch.utils._pytree",
)
"""Loggers that write warnings at import which no user can act on."""


def import_nemo(threads: int = 0) -> Any:
    """Import torch and NeMo, quietly, with so many CPU threads; return torch.

    It touches no other device.
    """
    warnings.filterwarnings("ignore")
    for noisy in NOISY_LOGGERS:
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    import torch

    if threads:
        torch.set_num_threads(threads)
    nemo_import.import_nemo()
    return torch


def import_torch(start: protocol.Start, threads: int) -> Any:
    """Import torch and NeMo and set the process-wide flags; return torch.

    This comes before loading, so that its time does not count as loading.

    Raises:
        NoDeviceError: torch cannot use the card.
    """
    import torch

    if start.device != "cpu":
        # Before NeMo, so that a card which cannot be used fails early.
        worker_device.open_device(torch, index_of(start.device))
    import_nemo(threads)
    from nemo.core.classes.common import typecheck
    from nemo.utils import logging as nemo_logging

    nemo_logging.setLevel(logging.ERROR)
    typecheck.set_typecheck_enabled(enabled=False)  # of shapes that no user's input can change
    if start.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    return torch
