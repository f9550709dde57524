"""What a model's config may say: which classes, which files, which sizes. What inference does not
need is left out.

NeMo builds a model by calling what its config names, with arguments of the config's choice. Its own
list admits whole packages, and a function in them that writes a file is enough to harm a user. So
exact names are admitted here, each in its own place only. Layers and widths are compared with the
tensors that the same file holds. Pure: imports neither torch nor NeMo.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from asrd.errors import ModelError
from asrd.models import untrusted_yaml
from asrd.models.untrusted_yaml import RefusedError, dotted, shown

MAX_CONFIG_BYTES = untrusted_yaml.MAX_BYTES

Shapes = Mapping[str, tuple[int, ...]]
"""Name of a tensor of the file -> its shape."""

HINT = "a model file must not run, read or fetch anything; get it from its publisher"


def _names(package: str, *names: str) -> frozenset[str]:
    """Return the names that NeMo has for classes of a module: by the module, and by its package."""
    return frozenset(
        f"{where}.{name}" for name in names for where in (package, package.rpartition(".")[0])
    )


MODELS, MODULES = "nemo.collections.asr.models", "nemo.collections.asr.modules"

TARGETS = (
    _names(f"{MODELS}.aed_multitask_models", "EncDecMultiTaskModel")
    | _names(f"{MODELS}.ctc_bpe_models", "EncDecCTCModelBPE")
    | _names(f"{MODELS}.ctc_models", "EncDecCTCModel")
    | _names(f"{MODELS}.rnnt_bpe_models", "EncDecRNNTBPEModel")
    | _names(f"{MODELS}.rnnt_models", "EncDecRNNTModel")
    | _names(f"{MODELS}.hybrid_rnnt_ctc_bpe_models", "EncDecHybridRNNTCTCBPEModel")
    | _names(f"{MODELS}.hybrid_rnnt_ctc_models", "EncDecHybridRNNTCTCModel")
)
"""What `target` of a config may be."""

CTC_DECODERS = _names(f"{MODULES}.conv_asr", "ConvASRDecoder") | _names(
    f"{MODULES}.lstm_decoder", "LSTMDecoder"
)
SMOOTHED = "nemo.collections.common.losses.smoothed_cross_entropy.SmoothedCrossEntropyLoss"
CONFORMERS = _names(f"{MODULES}.conformer_encoder", "ConformerEncoder", "ConformerEncoderAdapter")

CLASSES = {
    "preprocessor": _names(
        f"{MODULES}.audio_preprocessing",
        "AudioToMelSpectrogramPreprocessor",
        "AudioToMFCCPreprocessor",
    ),
    "encoder": CONFORMERS
    | _names(f"{MODULES}.conv_asr", "ConvASREncoder", "ConvASREncoderAdapter")
    | _names(f"{MODULES}.rnn_encoder", "RNNEncoder")
    | _names(f"{MODULES}.transformer_encoder", "TransformerEncoder"),
    "decoder": CTC_DECODERS
    | _names(f"{MODULES}.rnnt", "RNNTDecoder", "StatelessTransducerDecoder"),
    "joint": _names(f"{MODULES}.rnnt", "RNNTJoint", "SampledRNNTJoint")
    | _names(f"{MODULES}.hybrid_autoregressive_transducer", "HATJoint"),
    "aux_ctc.decoder": CTC_DECODERS,
    "transf_encoder": _names(f"{MODULES}.transformer.transformer_encoders", "TransformerEncoder"),
    "transf_decoder": _names(f"{MODULES}.transformer.transformer_utils", "get_nemo_transformer"),
    "head": _names("nemo.collections.asr.parts.submodules.token_classifier", "TokenClassifier"),
    "tokenizer.custom_tokenizer": _names(
        "nemo.collections.common.tokenizers.canary_tokenizer",
        "CanaryTokenizer",
        "CanaryBPETokenizer",
    ),
    "loss": _names(SMOOTHED.rpartition(".")[0], "SmoothedCrossEntropyLoss")
    | _names("nemo.collections.common.losses.cross_entropy", "CrossEntropyLoss"),
}
"""Place in a config -> what its `_target_` may be. A section that is here must have one."""

OPTIMIZERS = ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "SGD")

TRAINING = (
    _names(
        f"{MODULES}.audio_preprocessing",
        "SpectrogramAugmentation",
        "CropOrPadSpectrogramAugmentation",
    )
    | _names(f"{MODULES}.audio_preprocessing", "MaskedPatchAugmentation")
    | _names("nemo.collections.asr.metrics.wer", "WER")
    | _names("nemo.collections.asr.metrics.bleu", "BLEU")
    | _names("torch.optim.optimizer", *OPTIMIZERS)
    | _names("nemo.core.optim.optimizers", *OPTIMIZERS, "Novograd", "Adafactor")
    | CLASSES["loss"]
)
"""What a section that is left out may name; it is not called."""

LOSS = {"_target_": SMOOTHED, "label_smoothing": 0.0, "pad_id": 0}
"""What Canary gets in place of its own: NeMo insists on one."""

KEPT = (
    "preprocessor", "encoder", "decoder", "joint", "aux_ctc", "decoding", "loss", "tokenizer", "model_defaults",
    "transf_encoder", "transf_decoder", "head", "prompt_defaults", "labels",
)  # fmt: skip
"""Sections that NeMo builds a model from; every other one is left out."""

CALLS = ("_target_", "target", "cls")
"""Keys whose value NeMo or Hydra imports and calls."""

TOKENIZER_FILES = {
    "model_path": "tokenizer.model",
    "vocab_path": "vocab.txt",
    "spe_tokenizer_vocab": "tokenizer.vocab",
}
"""Key of a tokenizer's section -> the file's name where old versions of NeMo wrote none."""

MAX_TOKENIZERS = 64

READS = frozenset(
    (
        "ngram_lm_model",
        "lang_tag_pattern",
        "pretrained_model",
        "from_pretrained",
        "nemo_file",
        "lexicon",
    )
)
READS_ENDS = ("_path", "_file", "_dir", "_url")
"""Keys, and ends of keys, whose value names what NeMo would read or fetch, or a pattern that it
would run."""

PATH = re.compile(
    r"(?:/.|~.*/|file:|nemo:|[A-Za-z][A-Za-z0-9+.-]*://).*|(?:.*/)?\.\.(?:/.*)?", re.DOTALL
)
"""A text that names a file or an address."""

ACTIVATIONS = ("relu", "gelu", "sigmoid", "tanh", "silu")
"""What a head's `activation` may be: NeMo looks the name up in torch."""

MAX_NUMBER = 1_000_000
LIMITS = {
    "sample_rate": 192_000, "window_size": 1, "window_stride": 1, "n_window_size": 65_536, "n_window_stride": 65_536,
    "n_fft": 65_536, "features": 1024, "n_mels": 1024, "n_mfcc": 1024, "frame_splicing": 16, "pad_to": 4096,
    "pos_emb_max_len": 20_000, "max_sequence_length": 20_000, "conv_kernel_size": 1024, "subsampling_factor": 64,
    "reduction_factor": 64, "ff_expansion_factor": 64, "subsampling_conv_channels": 16_384, "num_extra_outputs": 1024,
    "num_token_types": 1024, "global_tokens": 4096, "beam_size": 1024, "max_generation_delta": 20_000,
    "max_symbols": 1000, "max_symbols_per_step": 1000, "durations": 1000, "big_blank_durations": 1000,
    "att_context_size": 20_000, "context_size": 64, "n_heads": 1024, "num_attention_heads": 1024,
}  # fmt: skip
"""Largest size that a key may give, to either side; no other number is larger than MAX_NUMBER."""

WIDTHS = (
    "d_model", "hidden_size", "inner_size", "pred_hidden", "joint_hidden", "enc_hidden", "encoder_hidden",
    "asr_enc_hidden", "lm_enc_hidden", "lm_dec_hidden", "feat_in", "feat_out", "num_classes", "vocab_size", "filters",
    "lstm_hidden_size", "proj_size", "rnn_hidden_size",
)  # fmt: skip
"""Keys of sizes that a tensor of the file must reach."""

MAX_USUAL_PIECES = 32_768
"""Entries of a vocabulary that needs no tensor: a model that was trained anew with other pieces
keeps its old list."""

USUAL_WIDTH = 4096
"""A width up to this may belong to a part that the model does not have."""

EXACT_WIDTHS = (
    ("encoder", "ConformerEncoder", "d_model", "encoder."),
    ("decoder", "RNNTDecoder", "prednet.pred_hidden", "decoder."),
    ("joint", "RNNTJoint", "jointnet.joint_hidden", "joint."),
    ("transf_decoder", "get_nemo_transformer", "config_dict.hidden_size", "transf_decoder."),
)
"""Section, its class, a width in it, and how tensors begin of which one must be that wide."""

LAYERS = (
    ("encoder", "ConformerEncoder", "n_layers", r"encoder\.layers\.(\d+)\..*"),
    (
        "decoder",
        "RNNTDecoder",
        "prednet.pred_rnn_layers",
        r"decoder\.prediction\.dec_rnn\.lstm\.weight_ih_l(\d+)",
    ),
    (
        "transf_decoder",
        "get_nemo_transformer",
        "config_dict.num_layers",
        r"transf_decoder\._decoder\.layers\.(\d+)\..*",
    ),
    (
        "transf_encoder",
        "TransformerEncoder",
        "num_layers",
        r"transf_encoder\.(?:.*\.)?layers\.(\d+)\..*",
    ),
)
"""Section, its class, a number of layers in it, and the tensors that number them."""

_WORDS = """
    activation add_blank aggregation allow_cuda_graphs alpha alsd_max_target_len arpa_lm_path asr_enc_hidden
    att_chunk_context_size att_context_probs att_context_size att_context_style attn_layer_dropout attn_score_dropout
    aux_ctc batch_dim_index beam beam_alpha beam_beta beam_prune_logp beam_size beam_size_token beam_threshold
    beam_width bidirectional big_blank_durations blank_as_pad blank_lm_score_mode boost_path boosting_tree
    boosting_tree_alpha bpe_alpha causal_downsampling clamp compute_eval_loss compute_hypothesis_token_set compute_langs
    compute_timestamps confidence_cfg confidence_method_cfg config_dict context_score context_size conv_context_size
    conv_context_style conv_kernel_size conv_mask conv_norm_type ctc_loss_weight ctc_reduction ctc_timestamp_type
    custom_tokenizer d_model dct_type decoder decoding decoding_mode depth_scaling device dir dither dropout dropout_att
    dropout_emb dropout_pre_encoder durations embedding_dropout enable_per_stream_biasing enc_hidden encoder
    encoder_hidden entropy_norm entropy_type exact_pad exclude_blank experimental_fuse_loss_wer feat_in feat_out
    features ff_expansion_factor ffn_dropout final_eos_score flashlight_cfg frame_splicing fuse_loss_wer
    fused_batch_size global_attn_separate global_tokens global_tokens_spacing greedy hat_ilm_weight hat_subtract_ilm
    head hf_kwargs hidden_act hidden_size highfreq hotword_weight hotwords init_mode inner_size jasper joint
    joint_hidden jointnet kenlm_path key_phrase_items_list key_phrases_file key_phrases_list label_smoothing labels
    lang_tag_pattern langs learn_positional_encodings len_pen lexicon_path lm_dec_hidden lm_enc_hidden lm_weight log
    log_prediction log_softmax log_zero_guard_type log_zero_guard_value loop_labels loss loss_name lowfreq
    lstm_hidden_size maes_expansion_beta maes_expansion_gamma maes_num_steps maes_prefix_alpha mag_power mask_future
    masking_prob max_generation_delta max_sequence_length max_symbols max_symbols_per_step mel_norm method_cfg
    model_defaults model_name model_path model_type n_fft n_heads n_layers n_mels n_mfcc n_samples n_window_size
    n_window_stride name nb_augmentation_prob nb_max_freq nemo_version ngram_lm_alpha ngram_lm_model norm norm_groups
    normalization_mode normalize nsc_max_timesteps_expansion nsc_prefix_alpha num_attention_heads num_classes
    num_extra_outputs num_layers num_of_transcriptions num_token_types open_vocabulary_decoding pad_to pad_value
    pos_emb_max_len pre_ln pre_ln_final_layer_norm pred_hidden pred_rnn_layers prednet preemph preprocessor
    preserve_alignments preserve_frame_confidence preserve_memory preserve_token_confidence preserve_word_confidence
    pretrained proj_size prompt_defaults prompt_format prune_history pruning_mode pyctcdecode_cfg quantize
    random_state_sampling reduction reduction_factor reduction_position residual_mode restore_timestamps_model
    return_best_hypothesis return_xattn_scores riva_decoding_cfg rng rnn_hidden_size rnn_type rnnt_reduction
    rnnt_timestamp_type sample_rate score_norm score_per_phrase search_type segment_gap_threshold segment_seperators
    self_attention_model sil_weight skip_nan_grad softmax_temperature spe_tokenizer_vocab stft_conv stft_exact_pad
    stochastic_depth_drop_prob stochastic_depth_mode stochastic_depth_start_layer strategy strip_lang_tags subsampling
    subsampling_conv_channels subsampling_conv_chunking_factor subsampling_factor sync_max_audio_length t_max target
    tdt_include_duration tdt_include_duration_confidence tdt_include_token_duration temperature token_min_logp tokenizer
    tokenizers transf_decoder transf_encoder tsd_max_sym_exp_per_step type uniform_weights unk_score unk_weight
    untie_biases use_bias use_bpe_dropout use_cer use_cuda_graph_decoder use_loss_mask_for_prompt use_pytorch_sdpa
    use_pytorch_sdpa_backends use_torchaudio use_transformer_init use_triton variational_noise vocab_path vocab_size
    vocabulary wfst wfst_lm_path window window_size window_stride word_kenlm_path word_seperator xscaling
    normalize_joint_txu normalize_encoder_norm normalize_decoder_norm normalize_joint_norm encoder_masking source_lang
"""
KNOWN_KEYS = frozenset(_WORDS.split())
"""Keys that configs of the NeMo versions tried here have; any other is passed on and named in the
log."""

FREE = ("prompt_defaults", "labels", "loss", "langs", "jasper", "hf_kwargs")
"""Sections whose own keys are data."""


class Checked(msgspec.Struct, frozen=True):
    """A config that NeMo may be given."""

    config: dict[str, Any]
    unknown: tuple[str, ...] = ()
    """Entries that are passed on although asrd does not know them."""
    emptied: tuple[str, ...] = ()
    """Entries that named a file or an address and are passed on empty."""


def read(text: bytes, path: Path) -> dict[str, Any]:
    """Return a config as plain data; its classes and sizes are not checked yet.

    Raises:
        ModelError: outside the bounds, no mapping, or with references to more than its own entries.
    """
    try:
        return untrusted_yaml.read(text, KEPT)
    except RefusedError as error:
        raise ModelError(f"{path} is refused: its config {error}", HINT) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        message = f"{path} is damaged: its config is no YAML ({shown(first)})"
        raise ModelError(message, "copy or download it again") from error


def checked(
    config: Mapping[str, Any], shapes: Shapes, path: Path, members: frozenset[str] | None = None
) -> Checked:
    """Return what NeMo may be given of a config that was read.

    Args:
        shapes: of the tensors of the same file.
        path: named in messages.
        members: names of the archive's files; None where not all were seen.

    Raises:
        ModelError: a class or function that is not admitted where it stands, a file outside the
            archive, a size that the tensors do not have.
    """
    try:
        modern = _modern(dict(config))
        _check_calls(modern, ())
        _check_sections(modern)
        kept = _without_training(
            {key: value for key, value in modern.items() if key in KEPT or _is_plain(value)}
        )
        _check_numbers(
            kept,
            (),
            max((max(shape, default=0) for shape in shapes.values()), default=0),
            len(shapes),
        )
        _check_against(kept, shapes)
        _check_tokenizers(kept, members)
        emptied = tuple(_empty(kept, ()))
        unknown = tuple(_unknown(kept, ()))
    except RefusedError as error:
        raise ModelError(f"{path} is refused: its config {error}", HINT) from error
    return Checked(kept, unknown, emptied)


def tokenizer_files(config: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Yield each tokenizer's section, the key of a file of it, and the name that this file has in
    the archive."""
    for _, section in _tokenizers(config):
        for key, usual in TOKENIZER_FILES.items():
            value = section.get(key) or usual
            yield section, key, str(value).removeprefix("nemo:").rpartition("/")[2]


# -- what is called
# ---------------------------------------------------------------------------------------------------


def _modern(node: Any) -> Any:
    """Return a mapping as NeMo makes it of Hydra's format before 1.0: `cls` and `params` become
    what they stand for."""
    if not isinstance(node, dict):
        return node
    new = dict(node)
    if "cls" in new and "_target_" not in new:
        new["_target_"] = new.pop("cls")
    if isinstance(new.get("params"), dict):
        new |= new.pop("params")
    return {key: _modern(value) for key, value in new.items()}


def _check_calls(node: Any, where: tuple[object, ...]) -> None:
    """Refuse whatever would be called and is not admitted at its place."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        here = (*where, key)
        if isinstance(key, str) and key in CALLS:
            _check_call(key, value, where)
        elif isinstance(key, str) and re.fullmatch("_[a-z]+_", key):
            raise RefusedError(
                f"has {dotted(here)}, an instruction of Hydra's that no speech model needs"
            )
        if isinstance(value, dict | list):
            _check_calls(value, here)


def _check_call(key: str, value: object, where: tuple[object, ...]) -> None:
    if not where:
        admitted = TARGETS if key == "target" else frozenset[str]()
    elif where[0] in KEPT:
        admitted = (
            CLASSES.get(".".join(map(str, where)), frozenset())
            if key == "_target_"
            else frozenset()
        )
    else:
        admitted = TRAINING
    if not isinstance(value, str) or value not in admitted:
        raise RefusedError(
            f"names {shown(value)} in {dotted((*where, key))}, which is not admitted there"
        )


def _check_sections(config: dict[str, Any]) -> None:
    """Check that each section that NeMo builds from is a mapping, and one of a class names it."""
    for place in CLASSES:
        section: Any = config
        for word in place.split("."):
            section = section.get(word) if isinstance(section, dict) else None
        if section is not None and not isinstance(section, dict):
            raise RefusedError(f"has {place}, which is no section")
        if section is not None and "_target_" not in section and place != "loss":
            raise RefusedError(f"names no class in {place}")
    activation = (config.get("head") or {}).get("activation", "relu")
    if activation not in ACTIVATIONS:
        raise RefusedError(
            f"names {shown(activation)} in head.activation, which is not admitted there"
        )


def _is_plain(value: object) -> bool:
    """Return whether a value is a number, a text, or a list of such."""
    if isinstance(value, list):
        return all(_is_plain(one) for one in value)
    return value is not None and not isinstance(value, dict)


def _without_training(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config without a loss where NeMo builds without one, else with what tells
    transducers apart."""
    loss = config.pop("loss", None)
    if "EncDecMultiTaskModel" in str(config.get("target")):
        return config | {"loss": dict(LOSS)}
    if not isinstance(loss, dict) or "loss_name" not in loss:
        return config
    kept = {
        key: value for key, value in loss.items() if key == "loss_name" or key.endswith("_kwargs")
    }
    return config | {"loss": kept}


# -- sizes
# ------------------------------------------------------------------------------------------------------------


def _check_numbers(node: Any, where: tuple[object, ...], widest: int, tensors: int) -> None:
    """Check every number, and the length of every vocabulary."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        here = (*where, key)
        name = next((str(word) for word in reversed(here) if isinstance(word, str)), "")
        if isinstance(value, dict | list):
            if name in ("vocabulary", "labels") and len(value) > max(widest, MAX_USUAL_PIECES):
                raise RefusedError(
                    f"has {len(value)} entries in {dotted(here)}, and no tensor has as many"
                )
            if name == "jasper" and isinstance(value, list) and len(value) > max(tensors, 1):
                raise RefusedError(
                    f"has {len(value)} blocks in {dotted(here)}, and {tensors} tensors"
                )
            _check_numbers(value, here, widest, tensors)
        elif isinstance(value, int | float) and not abs(value) <= (
            most := _most(name, widest, tensors)
        ):
            if most == MAX_NUMBER and (math.isinf(value) or len(here) == 1):
                continue  # a penalty of NeMo's defaults, or a note of the training: no size
            raise RefusedError(f"has {shown(value)} in {dotted(here)}; at most {most} is allowed")


def _most(name: str, widest: int, tensors: int) -> int:
    """Return the largest number that a key may have."""
    if name in WIDTHS:
        return max(widest, USUAL_WIDTH)
    if name.endswith("layers") or name == "repeat":
        return max(tensors, 1)
    return LIMITS.get(name, MAX_NUMBER)


def _check_against(config: dict[str, Any], shapes: Shapes) -> None:
    """Compare layers and widths with the tensors, where it is known how NeMo names them."""
    for section, kind, key, pattern in LAYERS:
        said = _setting(config, section, kind, key)
        found = {match[1] for name in shapes if (match := re.fullmatch(pattern, name))}
        # Recurrent layers with a norm have other names, and then there is nothing to compare with.
        if said is not None and said != len(found) and (found or section != "decoder"):
            raise RefusedError(
                f"has {shown(said)} in {section}.{key}; its weights have {len(found)} layers there"
            )
    for section, kind, key, begin in EXACT_WIDTHS:
        said = _setting(config, section, kind, key)
        sizes = {size for name, shape in shapes.items() if name.startswith(begin) for size in shape}
        if said is not None and said not in sizes:
            raise RefusedError(
                f"has {shown(said)} in {section}.{key}; no tensor of its weights is that wide"
            )


def _setting(config: dict[str, Any], section: str, kind: str, key: str) -> Any:
    """Return an entry of a section that is of this class; None where it is of another or has no
    such entry."""
    value: Any = config.get(section)
    if not isinstance(value, dict) or str(value.get("_target_")).rpartition(".")[2] != kind:
        return None
    for word in key.split("."):
        value = value.get(word) if isinstance(value, dict) else None
    return value


# -- files
# ------------------------------------------------------------------------------------------------------------


def _tokenizers(config: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the place and section of each tokenizer."""
    section = config.get("tokenizer")
    if not isinstance(section, dict):
        return []
    several = section.get("langs")
    if not isinstance(several, dict):
        return [("tokenizer", section)]
    found = [
        (f"tokenizer.langs.{name}", one) for name, one in several.items() if isinstance(one, dict)
    ]
    return found if _kind(section) == "agg" else [("tokenizer", section), *found]


def _kind(section: dict[str, Any]) -> str:
    """Return a tokenizer's type as NeMo compares it."""
    return str(section.get("type")).lower()


def _check_tokenizers(config: dict[str, Any], members: frozenset[str] | None) -> None:
    """Check that tokenizers are read from the archive alone."""
    tokenizers = _tokenizers(config)
    if len(tokenizers) > MAX_TOKENIZERS:
        raise RefusedError(f"has more than {MAX_TOKENIZERS} tokenizers")
    for place, section in tokenizers:
        for key in TOKENIZER_FILES:
            value = section.get(key)
            if value is not None and not isinstance(value, str):
                raise RefusedError(f"has {place}.{key}, which is no file's name")
            inside = (value or "").removeprefix("nemo:").removeprefix("./")
            if (
                value is not None
                and value.startswith("nemo:")
                and ("/" in inside or inside in ("", ".", ".."))
            ):
                raise RefusedError(
                    f"names {shown(value)} in {place}.{key}, which is outside the model file"
                )
    if members is None:
        return
    for section, key, name in tokenizer_files(config):
        needed = key == ("vocab_path" if _kind(section) == "wpe" else "model_path")
        if needed and name not in members:
            raise RefusedError(
                f"needs the tokenizer file {shown(name)}, which the model file does not hold"
            )


def _empty(node: Any, where: tuple[object, ...]) -> Iterator[str]:
    """Empty, and yield, each entry that names something outside the archive; tokenizers' own files
    are seen to."""
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        here, name = (*where, key), str(key)
        if here[0] == "tokenizer" and name == "dir":
            node[key] = None  # of the machine that it was trained on
        elif here[0] in ("labels", "prompt_defaults", "target") or name in (
            "vocabulary",
            *TOKENIZER_FILES,
            *CALLS,
        ):
            if name in TOKENIZER_FILES and here[0] != "tokenizer" and value:
                node[key] = None
                yield dotted(here)
        elif value and (_reads(name) or (isinstance(value, str) and PATH.fullmatch(value))):
            node[key] = None
            yield dotted(here)
        elif isinstance(value, dict | list):
            yield from _empty(value, here)


def _reads(key: str) -> bool:
    return key in READS or key.endswith(READS_ENDS)


def _unknown(node: dict[str, Any], where: tuple[object, ...]) -> Iterator[str]:
    """Yield each entry whose key is not known."""
    for key, value in node.items():
        here = (*where, key)
        if key not in KNOWN_KEYS and key not in CALLS and where[-1:] != ("langs",):
            yield dotted(here)
        if isinstance(value, dict) and key not in FREE:
            yield from _unknown(value, here)
