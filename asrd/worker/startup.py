"""The order in which a worker gets ready, and the message that says what it then is."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from asrd import protocol
from asrd.precision import gpus, kernel_facts
from asrd.precision.strategies import index_of
from asrd.worker import self_test
from asrd.worker.loading import model_loader
from asrd.worker.loading.model_loader import Report
from asrd.worker.recognizer import Recognizer


def start_recognizer(start: protocol.Start, report: Report) -> Recognizer:
    """Load the model that `start` names, test it, and return it ready for buffers.

    Args:
        start: the daemon's first message.
        report: sends a message to the daemon.

    Raises: as `model_loader.load` and `self_test.run`; ConfigError also for a phrase of the
        vocabulary that the model cannot write.
    """
    loaded = model_loader.load(start, report)
    recognizer = Recognizer(loaded)
    report(protocol.Progress("warm-up"))
    if start.self_test:
        recognizer.self_test = self_test.run(recognizer, report)
    recognizer.enable_fast_paths()
    if start.vocabulary and start.boost:
        # After the self-test, which is of the precision and not of the user's words.
        loaded.decoder.boost_phrases(start.vocabulary, start.boost)
    # Once more: the kernels that the warm-up loaded are beside the allocator too.
    loaded.meter.hold_to_limit()
    loaded.meter.note("ready")
    recognizer.load_seconds = time.perf_counter() - loaded.began
    return recognizer


def ready_message(recognizer: Recognizer) -> protocol.Ready:
    """Return what this worker is, read back from the model."""
    start, loaded = recognizer.start, recognizer.loaded
    return protocol.Ready(
        requested=start.precision.name,
        effective=loaded.applied.effective(),
        fallbacks=list(loaded.applied.fallbacks),
        device=start.device,
        device_name=_device_name(loaded.torch, start.device),
        family=loaded.decoder.family,
        streaming="cache-aware" if loaded.stream else "buffer",
        target=loaded.header.target,
        parameters=sum(p.numel() for p in loaded.model.parameters()),
        weights_bytes=loaded.weights_bytes,
        ledger=loaded.meter.ledger,
        load_peak=loaded.load_peak,
        self_test=recognizer.self_test,
        load_seconds=recognizer.load_seconds,
        versions=_versions(loaded.torch, on_card=start.device != "cpu"),
        pid=os.getpid(),
        graphs=recognizer.graphs,
        remarks=loaded.remarks,
    )


def _device_name(torch: Any, device: str) -> str:
    if device == "cpu":
        return kernel_facts.processor()
    return str(torch.cuda.get_device_name(index_of(device)))


def _versions(torch: Any, on_card: bool) -> dict[str, str]:
    """Return the versions of what the worker runs on, by name."""
    import nemo

    from asrd import __version__

    found = {"asrd": __version__, "torch": str(torch.__version__), "nemo": str(nemo.__version__)}
    found["python"] = ".".join(map(str, sys.version_info[:3]))
    if torch.version.cuda:
        found["cuda"] = str(torch.version.cuda)
        found["driver"] = _driver_version(on_card)
    return found


def _driver_version(on_card: bool) -> str:
    """Return the version of NVIDIA's driver, or "unknown"."""
    cards = gpus.gpus() if on_card else []  # a worker on the CPU wakes no card
    if cards and cards[0].driver:
        return cards[0].driver
    return kernel_facts.driver_version() or "unknown"
