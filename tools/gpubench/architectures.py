"""Random-weight models of the true architectures: as large, as deep and as fast as the checkpoints,
and as ignorant.

    python -m tools.gpubench.architectures NAME OUT.nemo

Sizes are those of `asrd.models.architectures`. The weights are drawn so that activations stay near
one, and what comes last is set until text comes out at a speaker's pace, as what a decoder costs
depends on how much it says: Canary ends after TOKENS tokens whatever it hears, a transducer says
something in half of its steps. What they say means nothing.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from asrd.evaluation import manifest
from asrd.models.architectures import ARCHITECTURES, Architecture
from asrd.paths import EVALUATION_MANIFEST

NAMES = {
    "canary-1b-flash": "nvidia/canary-1b-flash",
    "parakeet-tdt-0.6b-v3": "nvidia/parakeet-tdt-0.6b-v3",
    "parakeet-ctc-1.1b": "nvidia/parakeet-ctc-1.1b",
    "canary-180m-flash": "nvidia/canary-180m-flash",
    "canary-1b": "nvidia/canary-1b",
}
"""Short name -> name on the hub, in the order of interest."""

TOKENS = 40
"""What a quick speaker says in ten seconds."""

SPEECH = EVALUATION_MANIFEST

POOL = 1 << 24
"""Random numbers that are drawn; every tensor is cut out of them at another place."""

HEADS = 8

DURATIONS = [0, 1, 2, 3, 4]

DEFAULTS = [
    "<|nospeech|>",
    "<pad>",
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|pnc|>",
    "<|nopnc|>",
]
LANGUAGES = ["en", "de", "es", "fr"]
SPECIAL = {
    "canary": ["translate", "transcribe", *LANGUAGES],
    "canary2": [
        "startofcontext", "emo:undefined", "emo:neutral", *LANGUAGES, "itn", "noitn", "timestamp", "notimestamp",
        "diarize", "nodiarize", *map(str, range(20)),
    ],
}  # fmt: skip
"""Prompt format -> special tokens beside the defaults."""


def build(name: str, path: Path, seed: int = 0) -> Path:
    """Write a model of NAMES as a .nemo file and return its path; needs twice the file's size in
    the temporary folder.

    Raises:
        KeyError: a name that is not in NAMES.
    """
    import torch

    known = ARCHITECTURES[NAMES[name]]
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        model = empty(known, Path(scratch))
        fill(model, seed)
        settle(model, known, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save_to(str(path))
    return path


def empty(known: Architecture, scratch: Path) -> Any:
    """Return NeMo's model of an architecture, its weights whatever was in memory."""
    from asrd.worker.loading import construction, nemo_import

    models = nemo_import.import_nemo()
    from nemo.utils import logging
    from omegaconf import OmegaConf

    logging.setLevel(logging.CRITICAL)
    kinds = {
        "aed": models.EncDecMultiTaskModel,
        "ctc": models.EncDecCTCModelBPE,
        "tdt": models.EncDecRNNTBPEModel,
    }
    with construction.uninitialised():
        return (
            kinds[known.family](cfg=OmegaConf.create(config(known, scratch)))
            .eval()
            .requires_grad_(False)
        )


def fill(model: Any, seed: int) -> None:
    """Draw every weight: matrices normal with the variance that keeps activations near one, norms
    1, biases 0."""
    import torch

    pool = torch.randn(POOL, generator=torch.Generator().manual_seed(seed))
    twice, place = torch.cat([pool, pool]), 0
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            parameter.fill_(float(name.endswith("weight")))
            continue
        spread = 0.02 if "token_embedding" in name else parameter[0].numel() ** -0.5
        flat = parameter.view(-1)
        for first in range(0, flat.numel(), POOL):
            piece = flat[first : first + POOL]
            torch.mul(twice[place : place + piece.numel()], spread, out=piece)
            place = (place + piece.numel() + 7919) % POOL
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.reset_running_stats()


def settle(model: Any, known: Architecture, seed: int) -> None:
    """Set what comes last until text comes out at a speaker's pace."""
    import torch

    torch.manual_seed(seed)
    model.preprocessor.featurizer.dither, model.preprocessor.featurizer.pad_to = 0.0, 0
    clips, _ = manifest.read(SPEECH, 8)
    sound = torch.as_tensor(manifest.joined(clips, 160_000))[None]
    features, frames = model.preprocessor(input_signal=sound, length=torch.tensor([sound.shape[1]]))
    encoded = model.encoder(audio_signal=features, length=frames)[0]
    if known.family == "aed":
        _say_so_many(model, encoded, TOKENS)
    elif known.family == "tdt":
        _say_every_other(model, encoded)


def _say_every_other(model: Any, encoded: Any) -> None:
    """Take out of the joint what all frames have in common, bias the blank so that half of the
    steps say something.

    And never step by 0 frames, where a random transducer would stay for ever.
    """
    decoder, joint = model.decoder, model.joint
    heard = joint.project_encoder(encoded.transpose(1, 2))[0]
    scale = 2.0 / heard.std(0).mean()
    joint.enc.weight.mul_(scale)
    joint.enc.bias.copy_((joint.enc.bias - heard.mean(0)) * scale)
    before = joint.project_prednet(decoder.predict(None, None, add_sos=False, batch_size=1)[0])
    out = joint.joint_net[-1]
    logits = joint.joint_after_projection(joint.project_encoder(encoded.transpose(1, 2)), before)[
        0, :, 0
    ]
    labels = logits[:, : -len(DURATIONS)]
    out.bias[-1 - len(DURATIONS)] += float((labels[:, :-1].amax(-1) - labels[:, -1]).median())
    out.bias[-len(DURATIONS)] -= 30.0


def _say_so_many(model: Any, encoded: Any, tokens: int) -> None:
    """Have Canary say something else at every place, and end after so many tokens.

    Random places instead of the sines make the decoder's states differ from place to place. What
    they have in common is taken out of the head, and the head's row for the end is turned towards
    what is special at the last place.
    """
    import torch

    from asrd.worker.decoding import canary_prompt
    from asrd.worker.decoding.kv_cache import CachedDecoder

    embedding, head = model.transf_decoder.embedding, model.log_softmax.mlp.layer0
    places = embedding.position_embedding.pos_enc
    places.copy_(torch.randn(places.shape))
    for layer in model.transf_decoder.decoder.layers:
        layer.second_sub_layer.out_projection.weight.mul_(0.3)
    begin = canary_prompt.prompt(model, "en", "en", None)
    ids = torch.cat([begin, torch.randint(len(LANGUAGES), head.out_features, (1, 2 * tokens))], 1)
    sound = model.encoder_decoder_proj(encoded.transpose(1, 2))
    states: list[Any] = []
    hook = head.register_forward_hook(
        lambda _, given, __: states.append(given[0].reshape(-1, head.in_features))
    )
    reader = CachedDecoder(model.transf_decoder, model.log_softmax)
    reader.step(reader.new_cache(sound, ids.shape[1]), ids)
    hook.remove()
    state = torch.cat(states)[
        begin.shape[1] - 1 :
    ]  # [n] is what the token after n others is read from
    common = state.mean(0)
    head.bias.copy_(-(head.weight @ common))
    row = state[tokens] - common
    pull = state @ row
    rest = float(torch.cat([pull[:tokens], pull[tokens + 1 :]]).max())
    assert rest < float(pull[tokens]), "the last place is not special"
    scale = 20.0 / (float(pull[tokens]) - rest)
    end = int(model.tokenizer.eos)
    head.weight[end] = scale * row
    head.bias[end] = -scale * (float(pull[tokens]) + rest) / 2
    for token in {*range(len(DEFAULTS)), int(model.tokenizer.pad)} - {end}:
        head.bias[token] = -30.0
    head.bias[int(model.tokenizer.vocab_size) :] = -30.0


# -- configurations
# ---------------------------------------------------------------------------------------------------


def config(known: Architecture, scratch: Path) -> dict[str, Any]:
    """Return the configuration that NeMo builds an architecture from; its tokenizer is written
    below `scratch`."""
    common: dict[str, Any] = dict(
        sample_rate=16000,
        log_prediction=False,
        skip_nan_grad=False,
        preprocessor=dict(
            _target_="nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
            sample_rate=16000, normalize="per_feature", window_size=0.025, window_stride=0.01, window="hann",
            features=known.mels, n_fft=512, log=True, frame_splicing=1, dither=1e-5, pad_to=0, pad_value=0.0,
        ),
        encoder=dict(
            _target_="nemo.collections.asr.modules.ConformerEncoder",
            feat_in=known.mels, feat_out=-1, n_layers=known.layers, d_model=known.width, n_heads=known.heads,
            subsampling="dw_striding", subsampling_factor=8, subsampling_conv_channels=known.channels,
            ff_expansion_factor=4, self_attention_model="rel_pos", untie_biases=True, pos_emb_max_len=5000,
            att_context_size=[-1, -1], xscaling=False, use_bias=known.biases, conv_kernel_size=9,
            conv_norm_type="batch_norm", dropout=0.0, dropout_pre_encoder=0.0, dropout_emb=0.0, dropout_att=0.0,
        ),
        optim=dict(name="adamw", lr=1e-3),
    )  # fmt: skip
    if known.family == "aed":
        return common | _aed(known, scratch)
    common["tokenizer"] = dict(dir=str(pieces(scratch / "bpe", known.vocabulary)), type="bpe")
    return common | (_ctc() if known.family == "ctc" else _tdt(known))


def _ctc() -> dict[str, Any]:
    return dict(
        ctc_reduction="mean_volume",
        decoder=dict(
            _target_="nemo.collections.asr.modules.ConvASRDecoder",
            feat_in=None,
            num_classes=-1,
            vocabulary=[],
        ),
        interctc=dict(loss_weights=[], apply_at_layers=[]),
    )


def _tdt(known: Architecture) -> dict[str, Any]:
    width = known.decoder_width
    return dict(
        compute_eval_loss=False,
        model_defaults=dict(enc_hidden=known.width, pred_hidden=width, joint_hidden=width),
        decoder=dict(
            _target_="nemo.collections.asr.modules.RNNTDecoder",
            normalization_mode=None, random_state_sampling=False, blank_as_pad=True,
            prednet=dict(pred_hidden=width, pred_rnn_layers=known.decoder_layers, t_max=None, dropout=0.0),
        ),
        joint=dict(
            _target_="nemo.collections.asr.modules.RNNTJoint",
            log_softmax=None, preserve_memory=False, fuse_loss_wer=False, fused_batch_size=None,
            num_extra_outputs=len(DURATIONS), jointnet=dict(joint_hidden=width, activation="relu", dropout=0.0),
        ),
        decoding=dict(
            strategy="greedy_batch", model_type="tdt", durations=DURATIONS, greedy=dict(max_symbols=10)
        ),
        loss=dict(
            loss_name="tdt",
            tdt_kwargs=dict(fastemit_lambda=0.0, clamp=-1.0, durations=DURATIONS, sigma=0.02, omega=0.1),
        ),
    )  # fmt: skip


def _aed(known: Architecture, scratch: Path) -> dict[str, Any]:
    transformer = "nemo.collections.asr.modules.transformer"
    style = "canary" if known.positions < 1024 else "canary2"
    inner = dict(
        hidden_size=known.decoder_width, inner_size=known.inner, num_attention_heads=HEADS, ffn_dropout=0.0,
        attn_score_dropout=0.0, attn_layer_dropout=0.0, hidden_act="relu", pre_ln=True, pre_ln_final_layer_norm=True,
    )  # fmt: skip
    width = known.decoder_width
    return dict(
        label_smoothing=0.0,
        use_loss_mask_for_prompt=False,
        restore_timestamps_model=False,
        tokenizer=_canary_tokenizer(style, scratch, known.vocabulary),
        model_defaults=dict(asr_enc_hidden=known.width, lm_enc_hidden=width, lm_dec_hidden=width),
        transf_encoder=dict(
            _target_=f"{transformer}.transformer_encoders.TransformerEncoder", num_layers=0, mask_future=False, **inner
        ),
        transf_decoder=dict(
            _target_=f"{transformer}.get_nemo_transformer", model_name=None, pretrained=False, encoder=None,
            pre_ln_final_layer_norm=True,
            config_dict=inner | dict(
                max_sequence_length=known.positions, num_token_types=0, embedding_dropout=0.0,
                num_layers=known.decoder_layers, learn_positional_encodings=False, vocab_size=None,
            ),
        ),
        head=dict(
            _target_="nemo.collections.asr.parts.submodules.token_classifier.TokenClassifier",
            num_layers=1, activation="relu", log_softmax=True, hidden_size=width, num_classes=None, dropout=0.0,
            use_transformer_init=True,
        ),
        decoding=dict(
            strategy="beam", return_best_hypothesis=True,
            beam=dict(beam_size=1, len_pen=0.0, max_generation_delta=50),
            greedy=dict(temperature=None, max_generation_delta=50, n_samples=1),
        ),
        loss=dict(
            _target_="nemo.collections.common.losses.smoothed_cross_entropy.SmoothedCrossEntropyLoss",
            label_smoothing=0.0, pad_id=2,
        ),
        **prompt(style),
    )  # fmt: skip


def prompt(style: str) -> dict[str, Any]:
    """Return the part of Canary's configuration that says how a decoding begins, for a prompt
    format."""
    if style == "canary":
        slots = dict(source_lang="en", target_lang="en", task="asr", pnc="yes")
        return dict(prompt_format=style, prompt_defaults=[dict(role="user", slots=slots)])
    slots = dict(
        decodercontext="", source_lang="<|en|>", target_lang="<|en|>", emotion="<|emo:undefined|>", pnc="<|pnc|>",
        itn="<|noitn|>", diarize="<|nodiarize|>", timestamp="<|notimestamp|>",
    )  # fmt: skip
    partial = dict(role="user_partial", slots=dict(decodercontext=""))
    return dict(prompt_format=style, prompt_defaults=[dict(role="user", slots=slots), partial])


# -- tokenizers
# -------------------------------------------------------------------------------------------------------


def pieces(folder: Path, size: int, symbols: list[str] | None = None) -> Path:
    """Write a SentencePiece tokenizer of exactly `size` pieces, made up and not trained; return its
    folder."""
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2  # generated, without types
    folder.mkdir(parents=True, exist_ok=True)
    model = proto.ModelProto()
    model.trainer_spec.model_type = proto.TrainerSpec.UNIGRAM
    model.trainer_spec.unk_id = 0
    model.trainer_spec.bos_id = model.trainer_spec.eos_id = model.trainer_spec.pad_id = -1
    model.normalizer_spec.add_dummy_prefix = True
    words = ["<unk>", *(symbols or [])]
    words += [f"\u2581{_word(number)}" for number in range(size - len(words))]
    for number, word in enumerate(words):
        kind = proto.ModelProto.SentencePiece.NORMAL
        if number == 0:
            kind = proto.ModelProto.SentencePiece.UNKNOWN
        elif number <= len(symbols or []):
            kind = proto.ModelProto.SentencePiece.USER_DEFINED
        model.pieces.add(piece=word, score=-float(number), type=kind)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    (folder / "tokenizer.vocab").write_text(
        "".join(f"{word}\t{-number}\n" for number, word in enumerate(words))
    )
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words[1:]))
    return folder


def _word(number: int) -> str:
    """Return a made-up word, another one for each number."""
    onsets, said = "bdfgklmnprstvwz", ""
    while True:
        number, rest = divmod(number, len(onsets) * 5)
        said += onsets[rest // 5] + "aeiou"[rest % 5]
        if not number:
            return said
        number -= 1


def _canary_tokenizer(style: str, scratch: Path, vocabulary: int) -> dict[str, Any]:
    """Return the configuration of Canary's two tokenizers, which have `vocabulary` pieces
    together."""
    module = "nemo.collections.common.tokenizers.canary_tokenizer"
    symbols = [*DEFAULTS, *(f"<|{token}|>" for token in SPECIAL[style])]
    special = pieces(scratch / "special", 1 + len(symbols), symbols)
    text = pieces(scratch / "bpe", vocabulary - 1 - len(symbols))
    return dict(
        dir=None,
        type="agg",
        langs={
            part: dict(dir=str(folder), type="bpe")
            for part, folder in (("spl_tokens", special), ("en", text))
        },
        custom_tokenizer=dict(_target_=f"{module}.CanaryTokenizer", tokenizers=None),
    )


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in NAMES:
        sys.exit(
            f"usage: python -m tools.gpubench.architectures NAME OUT.nemo\nnames: {' '.join(NAMES)}"
        )
    print(build(sys.argv[1], Path(sys.argv[2])))
