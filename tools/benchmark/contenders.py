"""Everything that asrd is measured against, each behind one call: samples in, text out.

    python -m tools.benchmark.contenders torch|onnx|many FOLDER MODEL THREADS

A host is a process of its own, so that one library's threads never stand in the way of another's.
It reads a JSON line {"who", "sound"} on standard input and answers with {"text", "seconds", "cpu"}:
wall and processor time of that call, all threads together. `torch` also writes what `onnx` reads:
NeMo's own export of the model, with its vocabulary and filters, into FOLDER. `many` hears a whole
.npz of sounds at once.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]
"""Float32, mono, 16 kHz."""

Contender = Callable[[Samples], str]

DATA = Path(__file__).parents[2] / "asrd" / "data"
ONNX = "model.onnx"

CHUNK, LEFT, RIGHT = 1.6, 7.2, 0.8
"""Seconds of NeMo's buffered pipeline: with its buffer of 9.6 s the nearest to asrd's ten."""

BATCHES = (4, 8, 16)
"""Sounds that NeMo's transcribe() is given at once, where it is asked for many."""


# -- NeMo
# -------------------------------------------------------------------------------------------------------------


def restore(model: str) -> Any:
    """Return a shipped model in FP32 on the CPU, without dither and padding, as every contender has
    it."""
    from nemo.collections.asr.models import ASRModel

    restored = (
        ASRModel.restore_from(str(DATA / f"{model}.nemo"), map_location="cpu")
        .eval()
        .requires_grad_(False)
    )
    restored.preprocessor.featurizer.dither, restored.preprocessor.featurizer.pad_to = 0.0, 0
    return restored


def bare(model: Any) -> Contender:
    """A: the forward pass and the best token of each frame, runs and blanks collapsed; nothing
    else."""
    import torch

    def hear(samples: Samples) -> str:
        with torch.inference_mode():
            sound, length = torch.from_numpy(samples)[None], torch.tensor([len(samples)])
            _, count, best = model(input_signal=sound, input_signal_length=length)
            path = torch.unique_consecutive(best[0, : int(count[0])])
            return str(
                model.tokenizer.ids_to_text(
                    [i for i in path.tolist() if i != model.decoding.blank_id]
                )
            )

    return hear


def bare_canary(model: Any) -> Contender:
    """A for Canary: the forward pass and NeMo's own decoder under the checkpoint's strategy."""
    import torch

    from asrd.worker.decoding.canary_prompt import prompt

    start = prompt(model, "en", "en", None)

    def hear(samples: Samples) -> str:
        with torch.inference_mode():
            sound, length = torch.from_numpy(samples)[None], torch.tensor([len(samples)])
            _, _, states, mask = model(input_signal=sound, input_signal_length=length)
            found = model.decoding.decode_predictions_tensor(
                encoder_hidden_states=states,
                encoder_input_mask=mask,
                decoder_input_ids=start,
                return_hypotheses=False,
            )
        return str(found[0].text)

    return hear


def transcribe(model: Any) -> Contender:
    """B: NeMo's transcribe() of an array, as its documentation has it."""
    more = {"source_lang": "en", "target_lang": "en"} if hasattr(model, "prompt") else {}
    return lambda samples: str(
        model.transcribe([samples], batch_size=1, verbose=False, **more)[0].text
    )


def together(model: Any, batch: int, threads: int) -> Callable[[Any], str]:
    """Return NeMo's transcribe() of many sounds at once, in batches, with so many threads; its
    texts line by line."""
    import torch

    more = {"source_lang": "en", "target_lang": "en"} if hasattr(model, "prompt") else {}

    def hear(kept: Any) -> str:
        torch.set_num_threads(threads)
        heard = model.transcribe(
            [kept[name] for name in kept.files], batch_size=batch, verbose=False, **more
        )
        return "\n".join(str(one.text) for one in heard)

    return hear


def pipeline(model: str) -> Contender:
    """C: NeMo's streaming pipeline (buffered CTC), fed as fast as it takes its chunks."""
    import torch
    from nemo.collections.asr.inference.factory.pipeline_builder import PipelineBuilder
    from nemo.collections.asr.inference.streaming.framing.request import Frame
    from nemo.collections.asr.inference.streaming.framing.request_options import ASRRequestOptions
    from omegaconf import OmegaConf

    pipe = PipelineBuilder.build_pipeline(OmegaConf.create(_pipeline_config(model)))
    size = round(CHUNK * 16_000)
    streams = iter(range(1 << 30))

    def hear(samples: Samples) -> str:
        stream, texts = next(streams), []
        for first in range(0, len(samples), size):
            piece = torch.zeros(size)
            valid = min(size, len(samples) - first)
            piece[:valid] = torch.from_numpy(samples[first : first + valid])
            frame = Frame(
                samples=piece,
                stream_id=stream,
                is_first=first == 0,
                is_last=first + size >= len(samples),
                length=valid,
                options=ASRRequestOptions() if first == 0 else None,
            )
            texts.append(pipe.transcribe_step([frame])[0].final_transcript)
        return " ".join("".join(texts).split())

    return hear


def _pipeline_config(model: str) -> dict[str, Any]:
    """Return NeMo's buffered_ctc.yaml for one stream on the CPU, in full FP32."""
    method = {"name": "entropy", "entropy_type": "tsallis", "alpha": 0.5, "entropy_norm": "exp"}
    padding = {
        "left_padding_size": LEFT,
        "right_padding_size": RIGHT,
        "chunk_size": CHUNK,
        "padding_mode": "right",
    }
    itn = {
        "input_case": "lower_cased",
        "whitelist": None,
        "overwrite_cache": False,
        "left_padding_size": 4,
    }
    return {
        "asr": {
            "model_name": str(DATA / f"{model}.nemo"),
            "device": "cpu",
            "device_id": 0,
            "compute_dtype": "float32",
            "use_amp": False,
            "decoding": {"strategy": "greedy_batch"},
        },
        "itn": {**itn, "max_number_of_permutations_per_split": 729, "batch_size": 32, "n_jobs": 1},
        "confidence": {"exclude_blank": True, "aggregation": "mean", "method_cfg": method},
        "endpointing": {"stop_history_eou": 800, "residue_tokens_at_end": 2},
        "streaming": {
            **padding,
            "sample_rate": 16_000,
            "batch_size": 1,
            "word_boundary_tolerance": 4,
            "request_type": "frame",
            "stateful": True,
        },
        "matmul_precision": "highest",
        "log_level": 40,
        "pipeline_type": "buffered",
        "asr_decoding_type": "ctc",
        "enable_itn": False,
        "enable_nmt": False,
        "asr_output_granularity": "word",
        "cache_dir": None,
        "lang": None,
        "return_tail_result": True,
    }


def export(model: Any, folder: Path) -> None:
    """Write NeMo's ONNX export, with what sherpa-onnx reads from its metadata, vocabulary, window
    and mel filters."""
    import onnx

    model.export(str(folder / ONNX))
    graph = onnx.load(str(folder / ONNX))
    about = {
        "vocab_size": model.tokenizer.vocab_size,
        "normalize_type": "per_feature",
        "subsampling_factor": 8,
    }
    about |= {
        "model_type": "EncDecCTCModelBPE",
        "version": "1",
        "model_author": "asrd",
        "comment": "bench",
    }
    onnx.helper.set_model_props(graph, {key: str(value) for key, value in about.items()})
    onnx.save(graph, str(folder / ONNX))
    tokens = [*model.tokenizer.ids_to_tokens(list(range(model.tokenizer.vocab_size))), "<blk>"]
    lines = "".join(f"{token} {number}\n" for number, token in enumerate(tokens))
    for name in ("vocab.txt", "tokens.txt"):
        (folder / name).write_text(lines)
    featurizer = model.preprocessor.featurizer
    np.savez(
        folder / "features.npz", window=featurizer.window.numpy(), filters=featurizer.fb[0].numpy()
    )


def grow(file: str) -> None:
    """Write a checkpoint with the demo's tokenizer and the encoder of NeMo's "large" models: 108 M
    random weights."""
    from nemo.collections.asr.models import EncDecCTCModelBPE
    from nemo.collections.asr.modules import ConformerEncoder, ConvASRDecoder
    from omegaconf import OmegaConf, open_dict

    model = EncDecCTCModelBPE.restore_from(str(DATA / "demo-ctc.nemo"), map_location="cpu")
    with open_dict(model.cfg):
        model.cfg.encoder.update(n_layers=17, d_model=512, n_heads=8, subsampling_conv_channels=256)
        model.cfg.decoder.feat_in = 512
    encoder, decoder = (
        OmegaConf.to_container(part) for part in (model.cfg.encoder, model.cfg.decoder)
    )
    encoder.pop("_target_"), decoder.pop("_target_")
    model.encoder, model.decoder = ConformerEncoder(**encoder), ConvASRDecoder(**decoder)
    model.save_to(file)


# -- ONNX
# -------------------------------------------------------------------------------------------------------------


def onnx_asr(folder: Path, threads: int) -> Contender:
    """D: onnx-asr."""
    import onnx_asr as library

    model = library.load_model(
        "nemo-conformer-ctc",
        folder,
        sess_options=_options(threads),
        providers=["CPUExecutionProvider"],
    )
    return lambda samples: str(model.recognize(samples, sample_rate=16_000))


def sherpa(folder: Path, threads: int) -> Contender:
    """E: sherpa-onnx."""
    import sherpa_onnx

    files = {"model": str(folder / ONNX), "tokens": str(folder / "tokens.txt")}
    recognizer = sherpa_onnx.OfflineRecognizer.from_nemo_ctc(
        **files, num_threads=threads, feature_dim=80
    )

    def hear(samples: Samples) -> str:
        stream = recognizer.create_stream()
        stream.accept_waveform(16_000, samples)
        recognizer.decode_stream(stream)
        return str(stream.result.text).strip()

    return hear


def runtime(folder: Path, threads: int) -> Contender:
    """F: onnxruntime alone, with NeMo's features in a few lines of numpy."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(folder / ONNX), sess_options=_options(threads), providers=["CPUExecutionProvider"]
    )
    tokens = [line.rpartition(" ")[0] for line in (folder / "tokens.txt").read_text().splitlines()]
    with np.load(folder / "features.npz") as kept:
        window, filters = np.pad(kept["window"], 56), kept["filters"].T.copy()

    def hear(samples: Samples) -> str:
        emphasised = np.concatenate([samples[:1], samples[1:] - np.float32(0.97) * samples[:-1]])
        rows = np.lib.stride_tricks.sliding_window_view(np.pad(emphasised, 256), 512)
        spectrum = np.fft.rfft(rows[: len(samples) // 160 * 160 : 160] * window)
        mel = np.log((spectrum.real**2 + spectrum.imag**2) @ filters + np.float32(2**-24))
        mel = (mel - mel.mean(0)) / (mel.std(0, ddof=1) + np.float32(1e-5))
        sound = {"audio_signal": mel.T[None].astype(np.float32), "length": np.array([len(mel)])}
        path = session.run(["logprobs"], sound)[0][0].argmax(-1)
        ids = path[np.flatnonzero(np.diff(path, prepend=-1))]
        return "".join(tokens[i] for i in ids if i != len(tokens) - 1).replace("▁", " ").strip()

    return hear


def _options(threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return options


# -- the host
# ---------------------------------------------------------------------------------------------------------


def torch_host(
    folder: Path, model: str, threads: int
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Return the contenders that run in torch, and the versions of their libraries."""
    import nemo
    import torch
    from nemo.utils import logging as nemo_logging

    nemo_logging.setLevel(40)
    torch.set_num_threads(threads)
    # Each its own model: transcribe() leaves encoder and decoder of the one it was called on in
    # training mode.
    if model == "demo":
        found = {"A": bare_canary(restore(model)), "B": transcribe(restore(model))}
    else:
        export(restore(model), folder)
        found = {"A": bare(restore(model)), "B": transcribe(restore(model)), "C": pipeline(model)}
    return found, {"torch": torch.__version__, "nemo": nemo.__version__}


def many_host(model: str, threads: int) -> tuple[dict[str, Callable[[Any], str]], dict[str, str]]:
    """Return NeMo's transcribe() as many ways as may be its best, and no versions."""
    restored = restore(model)
    ways = {(batch, count) for batch in BATCHES for count in (1, threads)}
    return {f"batches of {b}, threads: {n}": together(restored, b, n) for b, n in sorted(ways)}, {}


def onnx_host(folder: Path, threads: int) -> tuple[dict[str, Contender], dict[str, str]]:
    """Return the contenders that read the export, and the versions of their libraries."""
    from importlib.metadata import version

    found = {
        "D": onnx_asr(folder, threads),
        "E": sherpa(folder, threads),
        "F": runtime(folder, threads),
    }
    return found, {name: version(name) for name in ("onnxruntime", "onnx-asr", "sherpa-onnx")}


def main(kind: str, folder: str, model: str, threads: str) -> int:
    """Answer requests until standard input ends; return the exit code."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # NeMo prints to standard output
    warnings.filterwarnings("ignore")
    place = Path(folder)
    contenders: dict[str, Callable[[Any], str]]
    match kind:
        case "torch":
            contenders, versions = torch_host(place, model, int(threads))
        case "many":
            contenders, versions = many_host(model, int(threads))
        case _:
            contenders, versions = onnx_host(place, int(threads))
    print(json.dumps({"contenders": sorted(contenders), "versions": versions}), file=answers)
    sounds: dict[str, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if request["sound"] not in sounds:
            sounds[request["sound"]] = np.load(request["sound"])
        samples = sounds[request["sound"]]
        hear = contenders[request["who"]]
        cpu, wall = time.process_time(), time.perf_counter()
        text = hear(samples)
        seconds, spent = time.perf_counter() - wall, time.process_time() - cpu
        print(json.dumps({"text": text, "seconds": seconds, "cpu": spent}), file=answers)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
