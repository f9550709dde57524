"""A model loaded under one precision: restored, cast and moved to its device.

The order is always the same: build on the CPU, read each tensor's numbers into the dtype it is to
have, move to the device. Neither memory ever holds more than the final weights. int8 is quantised
from what was read, before the move.

This file is imported before torch is, so it imports torch's users only when it loads.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrd import protocol
from asrd.models import checkpoint as models_checkpoint
from asrd.models import names
from asrd.models.checkpoint import Header
from asrd.precision import memory, readings
from asrd.precision.strategies import quantizes
from asrd.worker.loading import restore
from asrd.worker.loading.libraries import import_torch
from asrd.worker.memory_meter import MemoryMeter

if TYPE_CHECKING:
    from asrd.worker.casting.cast import CastModel
    from asrd.worker.decoding.decoder import Decoder
    from asrd.worker.encoder.cache_aware import CacheAwareEncoder

SINGLE_THREAD_PARAMETERS = 20_000_000
"""Parameters below which torch gets one thread: its matrices are done before a second one is
awake."""

Report = Callable[[protocol.Reply], None]
"""Sends a message to the daemon."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode on its device, and what was learned while it was loaded."""

    start: protocol.Start
    """The daemon's first message."""
    header: Header
    """What the checkpoint's file says of itself."""
    torch: Any
    """The imported module."""
    model: Any
    """NeMo's model."""
    applied: CastModel
    """The precision as it was applied."""
    decoder: Decoder
    stream: CacheAwareEncoder | None
    """What partial results of a cache-aware model stream through; None for any other model."""
    unmasked: bool
    """Whether the encoder takes buffers of one length without lengths."""
    remarks: list[str]
    """What the checkpoint's config was passed on with: a sentence each."""
    meter: MemoryMeter
    weights_bytes: int
    load_peak: memory.Memory
    """The most memory that loading took."""
    began: float
    """When loading began, once the libraries were imported: `time.perf_counter` seconds."""


def load(start: protocol.Start, report: Report) -> LoadedModel:
    """Import torch and NeMo, and load the model that `start` names.

    Raises:
        AsrdError: the model cannot be found or read, or the device cannot serve the precision.
        NoDeviceError: torch cannot use the card.
        BudgetError: the card's limit leaves no room for a model.
    """
    meter = MemoryMeter(start)
    path = Path(start.path) if start.path else names.resolve(start.model)
    header = models_checkpoint.header(path)
    with restore.CheckpointReader(path, start.timestamps_model) as checkpoint:
        report(protocol.Progress("import"))
        checkpoint.prepare()
        meter.torch = import_torch(start, thread_count(start, header))
        meter.hold_to_limit()
        meter.note("import")
        return _load(start, header, checkpoint, meter, report)


def _load(
    start: protocol.Start,
    header: Header,
    checkpoint: restore.CheckpointReader,
    meter: MemoryMeter,
    report: Report,
) -> LoadedModel:
    """Restore the model on the CPU, in the precision's dtypes, and move it to its device."""
    from asrd.worker.casting import cast, components
    from asrd.worker.decoding import factory
    from asrd.worker.encoder import cache_aware, conformer

    began, device = time.perf_counter(), meter.torch.device(start.device)
    with readings.Peak() as peak:
        report(protocol.Progress("restore", str(checkpoint.path)))
        model = checkpoint.build()
        model.eval().requires_grad_(False)
        _leave_features_alone(model)
        unmasked = conformer.remove_masks(model, device, empty=True)
        prepared = None
        if not quantizes(start.precision):
            # Numbers are read into tensors as they will be, so that no second copy is made. int8
            # is made of numbers, and so is prepared after they are read.
            prepared = cast.prepare(model, start.precision, device, empty=True)
        checkpoint.load(model)
        meter.note("load")
        report(protocol.Progress("cast", start.precision.name))
        prepared = prepared or cast.prepare(model, start.precision, device)
        applied = prepared.finish(lambda: report(protocol.Progress("move")))
        decoder = factory.decoder_for(
            model,
            source_lang=start.source_lang,
            target_lang=start.target_lang,
            pnc=start.pnc,
        )
        _return_free_memory()
    meter.weights_bytes = components.weights_bytes(model)
    stream = cache_aware.stream_for(model, decoder, applied.encoder)
    meter.note("cast")
    return LoadedModel(
        start=start,
        header=header,
        torch=meter.torch,
        model=model,
        applied=applied,
        decoder=decoder,
        stream=stream,
        unmasked=unmasked,
        remarks=checkpoint.remarks,
        meter=meter,
        weights_bytes=meter.weights_bytes,
        load_peak=meter.peak(peak.bytes),
        began=began,
    )


def _leave_features_alone(model: Any) -> None:
    """Switch off the noise and the padding that training adds to features."""
    featurizer = getattr(model.preprocessor, "featurizer", None)
    if featurizer is not None:
        featurizer.dither, featurizer.pad_to = 0.0, 0


def thread_count(start: protocol.Start, header: Header) -> int:
    """Return how many CPU threads torch is to use; 0 leaves its choice, which is every core."""
    if start.threads or start.device != "cpu":
        return start.threads
    parameters = sum(tensor.elements for tensor in header.unique.values())
    return int(parameters < SINGLE_THREAD_PARAMETERS)


def _return_free_memory() -> None:
    """Return freed memory to the system: a cast leaves the float32 weights as holes in the heap."""
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
