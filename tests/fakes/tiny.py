"""Tiny NeMo models of every family with random weights: offline, seeded, a fraction of a second
each.

    python -m tests.fakes.tiny FAMILY OUT.nemo

The weights are random but the output layers are scaled and biased until text comes out, so that a
comparison of texts compares something. What they say means nothing.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tools.gpubench.architectures import DEFAULTS, DURATIONS, SPECIAL, prompt

FAMILIES = (
    "ctc", "rnnt", "tdt", "hybrid", "ca_ctc", "ca_rnnt", "ca_tdt", "ca_hybrid", "canary1",
    "canary2", "ctc_char", "rnnt_char", "canary2_unified",
)  # fmt: skip
"""ca_: cache-aware (streaming) encoder; hybrid: TDT and CTC; ca_hybrid: RNNT and CTC; canary1,
canary2: prompt formats of EncDecMultiTaskModel; _char: letters instead of a tokenizer; _unified:
one tokenizer, special tokens and all."""

SEEDS = {"rnnt": 11, "tdt": 4, "hybrid": 4, "rnnt_char": 8, "canary1": 4, "canary2": 1}
"""Seeds whose models neither fall silent nor repeat one token only; 0 for the rest."""

LETTERS = list(" abcdefghijklmnopqrstuvwxyz'")

_ENV = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}


@cache
def built(family: str, folder: Path) -> Path:
    """Return the plain model of a family in a folder, built at the first call."""
    return build(family, folder)


def build(
    family: str,
    folder: str | os.PathLike[str],
    *,
    name: str = "",
    seed: int | None = None,
    vocabulary: int = 128,
    hidden: int = 64,
    encoder_layers: int = 2,
    decoder_layers: int = 2,
    decoder_hidden: int = 32,
    heads: int = 4,
    pre_ln: bool = True,
    final_norm: bool = True,
    learned_positions: bool = False,
    activation: str = "relu",
    beam: int = 1,
    strategy: str = "",
    generation_delta: int = 50,
    pad_to: int = 0,
    **overrides: Any,
) -> Path:
    """Write `folder/name.nemo` (the family's name by default) and return its path.

    Args:
        family: one of FAMILIES.
        seed: of the weights; by default one that is known to say something.
        vocabulary: pieces of the text tokenizer; large ones need lexicon enough and get it.
        hidden, encoder_layers, heads: of the FastConformer.
        decoder_layers, decoder_hidden, pre_ln, final_norm, learned_positions, activation: of
        Canary's decoder. beam, strategy, generation_delta: Canary's decoding; strategy "" is beam,
        as NVIDIA ships it.
        overrides: dotted config keys with "__" for ".", as in `preprocessor__features=128`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name or family}.nemo"
    with quiet(), tempfile.TemporaryDirectory() as scratch:
        import torch
        from omegaconf import OmegaConf, open_dict

        sizes = dict(
            vocabulary=vocabulary, hidden=hidden, encoder_layers=encoder_layers, decoder_layers=decoder_layers,
            decoder_hidden=decoder_hidden, heads=heads, pre_ln=pre_ln, final_norm=final_norm,
            learned_positions=learned_positions, activation=activation, beam=beam, strategy=strategy,
            generation_delta=generation_delta, pad_to=pad_to,
        )  # fmt: skip
        config = OmegaConf.create(_config(family, Path(scratch), sizes))
        with open_dict(config):
            for key, value in overrides.items():
                OmegaConf.update(config, key.replace("__", "."), value, force_add=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEEDS.get(family, 0) if seed is None else seed)
            model = _class(family)(cfg=config).eval()
            loosen(model)
        model.save_to(str(path))
    return path


def loosen(model: Any) -> None:
    """Rescale the output layers so that random weights say something, and something else for
    another sound.

    The encoder's mean output over a seeded sound is taken out and what remains is amplified: random
    layers put out nearly the same vector for every frame.
    """
    import torch

    with torch.no_grad():
        encoded = _encode_noise(model)
        if hasattr(model, "transf_decoder"):
            _loosen_attention(model, encoded)
        for decoder in (getattr(model, "ctc_decoder", None), getattr(model, "decoder", None)):
            if hasattr(decoder, "decoder_layers"):
                conv = decoder.decoder_layers[0]
                _centre(conv, encoded, conv.weight[:, :, 0], 3.0)
                conv.bias[-1] += 4.0
        if hasattr(model, "joint"):
            _centre(model.joint.enc, encoded, model.joint.enc.weight, 2.0)
            model.joint.pred.weight.mul_(8.0)
            out = model.joint.joint_net[-1]
            out.weight.mul_(3.0)
            out.bias[-1 - model.joint.num_extra_outputs] += 5.0


def _encode_noise(model: Any) -> Any:
    """Return the encoder's output [T, D] for four seconds of noise in bursts."""
    import torch

    noise = torch.randn(1, 64_000) * 0.1 * torch.rand(40).repeat_interleave(1600)
    features, frames = model.preprocessor(input_signal=noise, length=torch.tensor([64_000]))
    return model.encoder(audio_signal=features, length=frames)[0][0].T


def _centre(layer: Any, inputs: Any, weight: Any, spread: float) -> None:
    """Give a linear layer outputs of mean 0 and standard deviation `spread` over these inputs [T,
    D]."""
    outputs = inputs @ weight.T
    scale = spread / outputs.std(0).mean()
    layer.weight.mul_(scale)
    layer.bias.copy_(-outputs.mean(0) * scale)


def _loosen_attention(model: Any, encoded: Any) -> None:
    """Let Canary's decoder listen to the sound and stop at some point."""
    import torch

    if isinstance(model.encoder_decoder_proj, torch.nn.Linear):
        _centre(model.encoder_decoder_proj, encoded, model.encoder_decoder_proj.weight, 2.0)
    embedding = model.transf_decoder.embedding
    embedding.layer_norm.weight.mul_(
        0.3
    )  # the output layer shares its weight: what is read would be said again
    positions = embedding.position_embedding
    (positions.weight if hasattr(positions, "weight") else positions.pos_enc).mul_(6.0)
    for layer in model.transf_decoder.decoder.layers:
        for linear in (m for m in layer.modules() if isinstance(m, torch.nn.Linear)):
            linear.weight.mul_(2.0)
        layer.second_sub_layer.out_projection.weight.mul_(4.0)
    head = model.log_softmax.mlp.layer0
    head.bias.zero_()
    for piece, number in _special_tokens(model.tokenizer).items():
        head.bias[number] += 0.4 if piece == DEFAULTS[2] else -30.0
    head.bias[model.tokenizer.vocab_size :] = -30.0


def _special_tokens(tokenizer: Any) -> dict[str, int]:
    """Return piece -> id of a Canary tokenizer's special tokens."""
    if hasattr(tokenizer, "special_tokens"):
        return dict(tokenizer.special_tokens)
    return {
        piece: number
        for number, piece in enumerate(tokenizer.vocab)
        if piece[:1] == "<" and piece[-1] == ">"
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Import NeMo and run the block without its chatter and without a network."""
    import logging
    import warnings

    os.environ.update({key: value for key, value in _ENV.items() if key not in os.environ})
    for noisy in ("nv_one_logger", "hydra.utils", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nemo.collections.asr  # noqa: F401
        import torch
        from nemo.utils import logging as nemo_logging

        nemo_logging.setLevel(logging.CRITICAL)
        torch.set_num_threads(
            1
        )  # matrices this small only wait for each other, for minutes on a busy machine
        yield


def restore(path: str | os.PathLike[str]) -> Any:
    """Return the model of a .nemo file, on the CPU in FP32, ready for inference, dither and padding
    off."""
    with quiet():
        from nemo.collections.asr.models import ASRModel

        model = ASRModel.restore_from(str(path), map_location="cpu").eval().requires_grad_(False)
    model.preprocessor.featurizer.dither = 0.0
    model.preprocessor.featurizer.pad_to = 0
    return model


def noise(seconds: float, seed: int = 0) -> Any:
    """Return float32 samples of noise in bursts of a tenth of a second: a different text for every
    seed."""
    import numpy as np

    dice, count = np.random.default_rng(seed), int(16_000 * seconds)
    loudness = np.repeat(dice.uniform(0, 1, count // 1600 + 1), 1600)[:count]
    return (0.1 * dice.standard_normal(count) * loudness).astype(np.float32)


def encode(model: Any, samples: Any) -> tuple[Any, Any]:
    """Return (encoded [1, D, T], length [1]) for samples, padded to a second on both sides as
    transcribe() does."""
    import torch

    lack = max(0, 16_000 - len(samples))
    sound = torch.nn.functional.pad(torch.as_tensor(samples), (lack // 2, lack - lack // 2))[None]
    with torch.inference_mode():
        features, frames = model.preprocessor(
            input_signal=sound, length=torch.tensor([sound.shape[1]])
        )
        encoded, length = model.encoder(audio_signal=features, length=frames)[:2]
    return encoded, length


def transcribe(model: Any, samples: Any, **words: Any) -> str:
    """Return NeMo's own text. Canary is asked for English, whatever its defaults are, or for
    `words`."""
    if hasattr(model, "prompt"):
        words = {"source_lang": "en", "target_lang": "en", "pnc": "yes", **words}
        if "timestamp" in model.prompt.get_slots("user"):
            words |= {"timestamp": "no"}
    with quiet():
        return str(model.transcribe([samples], verbose=False, **words)[0].text)


def _class(family: str) -> Any:
    from nemo.collections.asr import models

    return {
        "ctc": models.EncDecCTCModelBPE,
        "ca_ctc": models.EncDecCTCModelBPE,
        "ctc_char": models.EncDecCTCModel,
        "rnnt": models.EncDecRNNTBPEModel,
        "tdt": models.EncDecRNNTBPEModel,
        "ca_rnnt": models.EncDecRNNTBPEModel,
        "ca_tdt": models.EncDecRNNTBPEModel,
        "rnnt_char": models.EncDecRNNTModel,
        "hybrid": models.EncDecHybridRNNTCTCBPEModel,
        "ca_hybrid": models.EncDecHybridRNNTCTCBPEModel,
    }.get(family, models.EncDecMultiTaskModel)


# -- configurations
# ---------------------------------------------------------------------------------------------------


def _config(family: str, scratch: Path, size: dict[str, Any]) -> dict[str, Any]:
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; known: {', '.join(FAMILIES)}")
    streaming = family.startswith("ca_")
    config: dict[str, Any] = dict(
        sample_rate=16000,
        log_prediction=False,
        skip_nan_grad=False,
        preprocessor=_preprocessor(streaming, size["pad_to"]),
        spec_augment=dict(
            _target_="nemo.collections.asr.modules.SpectrogramAugmentation",
            freq_masks=0, time_masks=0, freq_width=27, time_width=0.05,
        ),
        encoder=_encoder(streaming, size),
        optim=dict(name="adamw", lr=1e-3),
    )  # fmt: skip
    if family.startswith("canary"):
        return config | _aed(family, scratch, size)
    if not family.endswith("_char"):
        config["tokenizer"] = dict(
            dir=str(_pieces(scratch / "bpe", size["vocabulary"])), type="bpe"
        )
    if family.endswith("ctc") or family == "ctc_char":
        return config | _ctc(family)
    return config | _transducer(family, size)


def _preprocessor(streaming: bool, pad_to: int) -> dict[str, Any]:
    return dict(
        _target_="nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
        sample_rate=16000, normalize="NA" if streaming else "per_feature", window_size=0.025, window_stride=0.01,
        window="hann", features=80, n_fft=512, log=True, frame_splicing=1, dither=1e-5, pad_to=pad_to, pad_value=0.0,
    )  # fmt: skip


def _encoder(streaming: bool, size: dict[str, Any]) -> dict[str, Any]:
    return dict(
        _target_="nemo.collections.asr.modules.ConformerEncoder",
        feat_in=80, feat_out=-1, n_layers=size["encoder_layers"], d_model=size["hidden"], n_heads=size["heads"],
        subsampling="dw_striding", subsampling_factor=8, subsampling_conv_channels=32, causal_downsampling=streaming,
        ff_expansion_factor=4, self_attention_model="rel_pos", untie_biases=True, pos_emb_max_len=5000,
        att_context_size=[[70, 13], [70, 6], [70, 1], [70, 0]] if streaming else [-1, -1],
        att_context_style="chunked_limited" if streaming else "regular", xscaling=False, conv_kernel_size=9,
        conv_norm_type="layer_norm" if streaming else "batch_norm",
        conv_context_size="causal" if streaming else None,
        dropout=0.1, dropout_pre_encoder=0.1, dropout_emb=0.0, dropout_att=0.1,
    )  # fmt: skip


def _ctc_decoder(letters: bool) -> dict[str, Any]:
    return dict(
        _target_="nemo.collections.asr.modules.ConvASRDecoder",
        feat_in=None,
        num_classes=-1,
        vocabulary=LETTERS if letters else [],
    )


def _ctc(family: str) -> dict[str, Any]:
    return dict(
        ctc_reduction="mean_volume",
        decoder=_ctc_decoder(letters=family == "ctc_char"),
        interctc=dict(loss_weights=[], apply_at_layers=[]),
    )


def _transducer(family: str, size: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = dict(
        compute_eval_loss=False,
        model_defaults=dict(enc_hidden=size["hidden"], pred_hidden=32, joint_hidden=32),
        decoder=dict(
            _target_="nemo.collections.asr.modules.RNNTDecoder",
            normalization_mode=None, random_state_sampling=False, blank_as_pad=True,
            prednet=dict(pred_hidden=32, pred_rnn_layers=2, t_max=None, dropout=0.0),
        ),
        joint=dict(
            _target_="nemo.collections.asr.modules.RNNTJoint",
            log_softmax=None, preserve_memory=False, fuse_loss_wer=False, fused_batch_size=None,
            jointnet=dict(joint_hidden=32, activation="relu", dropout=0.0),
        ),
        decoding=dict(strategy="greedy_batch", greedy=dict(max_symbols=10)),
        loss=dict(loss_name="default", warprnnt_numba_kwargs=dict(fastemit_lambda=0.0)),
    )  # fmt: skip
    if family in ("tdt", "ca_tdt", "hybrid"):
        config["joint"]["num_extra_outputs"] = len(DURATIONS)
        config["decoding"].update(model_type="tdt", durations=DURATIONS)
        kwargs = dict(fastemit_lambda=0.0, clamp=-1.0, durations=DURATIONS, sigma=0.02, omega=0.1)
        config["loss"] = dict(loss_name="tdt", tdt_kwargs=kwargs)
    if "hybrid" in family:
        config["interctc"] = dict(loss_weights=[], apply_at_layers=[])
        config["aux_ctc"] = dict(
            ctc_loss_weight=0.3,
            use_cer=False,
            ctc_reduction="mean_batch",
            decoder=_ctc_decoder(letters=False),
            decoding=dict(strategy="greedy"),
        )
    if family == "rnnt_char":
        config["labels"] = LETTERS
    return config


def _aed(family: str, scratch: Path, size: dict[str, Any]) -> dict[str, Any]:
    transformer = "nemo.collections.asr.modules.transformer"
    width = size["decoder_hidden"]
    inner = dict(
        hidden_size=width, inner_size=2 * width, num_attention_heads=size["heads"], ffn_dropout=0.1
    )
    inner |= dict(
        attn_score_dropout=0.1,
        attn_layer_dropout=0.1,
        hidden_act=size["activation"],
        pre_ln=size["pre_ln"],
    )
    inner |= dict(pre_ln_final_layer_norm=size["final_norm"])
    return dict(
        label_smoothing=0.0,
        use_loss_mask_for_prompt=False,
        restore_timestamps_model=False,
        tokenizer=_canary_tokenizer(family, scratch, size["vocabulary"]),
        model_defaults=dict(asr_enc_hidden=size["hidden"], lm_enc_hidden=width, lm_dec_hidden=width),
        transf_encoder=dict(
            _target_=f"{transformer}.transformer_encoders.TransformerEncoder", num_layers=0, mask_future=False, **inner
        ),
        transf_decoder=dict(
            _target_=f"{transformer}.get_nemo_transformer", model_name=None, pretrained=False, encoder=None,
            pre_ln_final_layer_norm=size["final_norm"],
            config_dict=inner | dict(
                max_sequence_length=512, num_token_types=0, embedding_dropout=0.1, num_layers=size["decoder_layers"],
                learn_positional_encodings=size["learned_positions"], vocab_size=None,
            ),
        ),
        head=dict(
            _target_="nemo.collections.asr.parts.submodules.token_classifier.TokenClassifier",
            num_layers=1, activation="relu", log_softmax=True, hidden_size=width, num_classes=None, dropout=0.0,
            use_transformer_init=True,
        ),
        decoding=dict(
            strategy=size["strategy"] or "beam", return_best_hypothesis=True,
            beam=dict(beam_size=size["beam"], len_pen=0.0, max_generation_delta=size["generation_delta"]),
            greedy=dict(temperature=None, max_generation_delta=size["generation_delta"], n_samples=1),
        ),
        loss=dict(
            _target_="nemo.collections.common.losses.smoothed_cross_entropy.SmoothedCrossEntropyLoss",
            label_smoothing=0.0, pad_id=2,
        ),
        **prompt("canary" if family == "canary1" else "canary2"),
    )  # fmt: skip


# -- tokenizers
# -------------------------------------------------------------------------------------------------------


def _text(words: int) -> str:
    """Return seeded sentences over a lexicon of `words` made-up words."""
    rng = random.Random(0)
    syllables = [
        onset + vowel for onset in ["", *"bdfgklmnprstvwz", "sh", "th", "st"] for vowel in "aeiou"
    ]
    lexicon = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(words)]
    return "\n".join(" ".join(rng.choices(lexicon, k=8)) for _ in range(max(500, words)))


def _pieces(folder: Path, size: int, symbols: list[str] | None = None) -> Path:
    """Train a BPE tokenizer of at most `size` pieces."""
    from nemo.collections.common.tokenizers.sentencepiece_tokenizer import create_spt_model

    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "text.txt"
    text.write_text(_text(max(60, size)))
    with _muted():
        create_spt_model(
            data_file=str(text), vocab_size=size, sample_size=-1, do_lower_case=False, output_dir=str(folder),
            tokenizer_type="bpe", user_defined_symbols=symbols,
        )  # fmt: skip
    return folder


def _canary_tokenizer(family: str, scratch: Path, size: int) -> dict[str, Any]:
    from nemo.collections.common.tokenizers.canary_tokenizer import CanaryTokenizer

    module = "nemo.collections.common.tokenizers.canary_tokenizer"
    tokens = SPECIAL["canary" if family == "canary1" else "canary2"]
    if family == "canary2_unified":
        symbols = [*DEFAULTS, *(f"<|{token}|>" for token in tokens)]
        folder = str(_pieces(scratch / "unified", size + len(symbols), symbols))
        return dict(
            dir=folder, type="bpe", custom_tokenizer=dict(_target_=f"{module}.CanaryBPETokenizer")
        )
    with _muted():
        CanaryTokenizer.build_special_tokenizer(tokens, scratch / "special")
    return dict(
        dir=None,
        type="agg",
        langs=dict(
            spl_tokens=dict(dir=str(scratch / "special"), type="bpe"),
            en=dict(dir=str(_pieces(scratch / "bpe", size)), type="bpe"),
        ),
        custom_tokenizer=dict(_target_=f"{module}.CanaryTokenizer", tokenizers=None),
    )


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Send descriptor 2 to nowhere: SentencePiece's trainer logs there from C++."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def main() -> int:
    """Build one model from the command line."""
    if len(sys.argv) != 3 or sys.argv[1] not in FAMILIES:
        print(
            f"usage: python -m tests.fakes.tiny FAMILY OUT.nemo\nfamilies: {' '.join(FAMILIES)}",
            file=sys.stderr,
        )
        return 2
    out = Path(sys.argv[2]).absolute()
    with tempfile.TemporaryDirectory() as folder:
        shutil.move(build(sys.argv[1], folder), out)
    print(out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
