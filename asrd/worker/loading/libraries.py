"""torch and NeMo imported once, quietly."""

from __future__ import annotations

import logging
import warnings
from typing import Any

from asrd import protocol
from asrd.precision.strategies import index_of
from asrd.worker import device as worker_device
from asrd.worker.loading import nemo_import


def import_nemo(threads: int = 0) -> Any:
    """Import torch and NeMo, quietly, with so many CPU threads; return torch. Touches no other
    device."""
    warnings.filterwarnings("ignore")
    lightning, torches = (
        ("lightning.pytorch", "pytorch_lightning"),
        ("torchao", "torch.utils._pytree"),
    )
    for noisy in ("nv_one_logger", "hydra.utils", "nemo_logger", *lightning, *torches):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    import torch

    if threads:
        torch.set_num_threads(threads)
    nemo_import.import_nemo()
    return torch


def import_torch(start: protocol.Start, threads: int) -> Any:
    """Import torch and NeMo and set what is process-wide; return torch. Here, so that it is not
    counted as loading."""
    import torch

    if start.device != "cpu":
        worker_device.open_device(
            torch, index_of(start.device)
        )  # before NeMo: what cannot be fails early
    import_nemo(threads)
    from nemo.core.classes.common import typecheck
    from nemo.utils import logging as nemo_logging

    nemo_logging.setLevel(logging.ERROR)
    typecheck.set_typecheck_enabled(enabled=False)  # of shapes that no user's input can change
    if start.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    return torch
