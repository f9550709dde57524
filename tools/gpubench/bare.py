"""NeMo by itself in a process of its own, loaded and asked as its own examples do it: what a user
without asrd has.

    python -m tools.gpubench.bare MODEL.nemo DEVICE naive|plain SOUND.npy OUT.json

naive: onto the card in FP32, then `.half()`, as most guides say. The ledger is read as asrd's
    worker reads it. Also
tells how large activations get in FP32, layer by layer, against 65504, the largest float16.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from asrd.precision import gpus, readings
from asrd.precision.memory import Memory

from .cells import Cell, Found, Times

REPEATS = 5

READY = "asrd: imported"
"""Said when the card is wanted; then a line is waited for."""


def main(path: str, device: str, how: str, sound: str, out: str) -> None:
    """Measure one process and write a Found."""
    import torch

    from asrd.worker.loading import nemo_import

    nemo_import.import_nemo()
    from nemo.collections.asr.models import ASRModel
    from nemo.utils import logging

    logging.setLevel(logging.CRITICAL)
    print(READY, flush=True)
    sys.stdin.readline()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    found = Found(Cell("", "fp32", "naive" if how == "naive" else "nemo"))
    at_start = gpus.device_bytes(0) if device != "cpu" else None

    def measure(phase: str) -> None:
        found.ledger[phase] = _memory(torch, device, at_start)

    if device != "cpu":
        torch.zeros(1, device=device)
        measure("import")
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    model = ASRModel.restore_from(path, map_location=device).eval()
    measure("load")
    if how == "naive":
        model.half()
        measure("cast")
        gc.collect()
        if device != "cpu":
            torch.cuda.empty_cache()
        measure("ready")
    found.load_seconds = time.perf_counter() - began
    found.weights = sum(
        t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())
    )
    found.parameters = sum(p.numel() for p in model.parameters())
    if device != "cpu":
        peak = found.ledger["load"]
        found.load_peak = Memory(
            found.weights,
            torch.cuda.max_memory_allocated(),
            torch.cuda.max_memory_reserved(),
            peak.process,
        )
    samples = np.load(sound)
    try:
        _time(torch, model, samples, device, found)
    except RuntimeError as error:
        found.failure = str(error).strip().splitlines()[0]
    measure("steady")
    if how != "naive":
        found.peaks = _peaks(torch, model, samples, device)
    Path(out).write_bytes(msgspec.json.encode(found))


def _memory(torch: Any, device: str, at_start: int | None) -> Memory:
    if device == "cpu":
        return readings.read(os.getpid(), device)
    return readings.read(
        os.getpid(),
        device,
        allocated=torch.cuda.memory_allocated(),
        reserved=torch.cuda.memory_reserved(),
        device_at_start=at_start,
    )


def _time(torch: Any, model: Any, samples: Any, device: str, found: Found) -> None:
    """Time transcribe() as a whole, and encoder and decoding of the same buffer by themselves."""
    words = dict(source_lang="en", target_lang="en", pnc="yes") if hasattr(model, "prompt") else {}
    whole, parts = Times([], [], [], []), Times([], [], [], [])
    for number in range(1 + REPEATS):
        began = time.perf_counter()
        said = model.transcribe([samples], verbose=False, **words)[0]
        if number:
            whole.seconds.append(time.perf_counter() - began)
    found.text = said.text
    found.times["transcribe"] = whole
    for number in range(1 + REPEATS):
        encoder, decoder, tokens = _parts(torch, model, samples, device)
        if number:
            parts.encoder.append(encoder)
            parts.seconds.append(encoder + decoder)
            parts.tokens.append(tokens)
    found.times["10"] = parts


def _parts(torch: Any, model: Any, samples: Any, device: str) -> tuple[float, float, int]:
    """Return seconds of the encoder, seconds of NeMo's own decoding, and how many tokens came
    out."""
    wait = torch.cuda.synchronize if device != "cpu" else lambda: None
    signal = torch.as_tensor(samples, device=device)[None]
    length = torch.tensor([signal.shape[1]], device=device)
    with torch.inference_mode():
        wait()
        began = time.perf_counter()
        features, frames = model.preprocessor(input_signal=signal, length=length)
        features = features.to(next(model.encoder.parameters()).dtype)
        encoded, lengths = model.encoder(audio_signal=features, length=frames)[:2]
        wait()
        middle = time.perf_counter()
        found = _decode(torch, model, encoded, lengths)
        wait()
        ended = time.perf_counter()
    return middle - began, ended - middle, found


def _decode(torch: Any, model: Any, encoded: Any, lengths: Any) -> int:
    """Decode as NeMo does and return how many tokens there are."""
    if hasattr(model, "transf_decoder"):
        from asrd.worker.decoding.canary_prompt import prompt

        states = model.encoder_decoder_proj(encoded.permute(0, 2, 1))
        heard = model.decoding.decode_predictions_tensor(
            encoder_hidden_states=states,
            encoder_input_mask=states.new_ones(states.shape[:2]),
            decoder_input_ids=prompt(model, "en", "en", None).to(states.device),
            return_hypotheses=True,
        )
    elif hasattr(model, "joint"):
        heard = model.decoding.rnnt_decoder_predictions_tensor(
            encoded, lengths, return_hypotheses=True
        )
    else:
        scores = model.decoder(encoder_output=encoded)
        heard = model.decoding.ctc_decoder_predictions_tensor(
            scores, decoder_lengths=lengths, return_hypotheses=True
        )
    return len(heard[0].y_sequence)


def _peaks(torch: Any, model: Any, samples: Any, device: str) -> dict[str, float]:
    """Return component -> largest |activation| of its layers while one buffer is heard."""
    peaks: dict[str, Any] = {}

    def note(name: str, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, torch.Tensor) and first.is_floating_point() and first.numel():
            largest = first.detach().abs().amax()
            peaks[name] = torch.maximum(peaks[name], largest) if name in peaks else largest

    hooks = [
        layer.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, component in model.named_children()
        for layer in component.modules()
        if not any(True for _ in layer.children()) and not name.endswith("loss")
    ]
    _parts(torch, model, samples, device)
    for hook in hooks:
        hook.remove()
    return {name: float(largest) for name, largest in peaks.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
