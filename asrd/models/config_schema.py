"""What a model's config may name: classes by their place, sections, keys, sizes and files (pure).

NeMo builds a model by calling what its config names. Its own list admits whole packages, and a
function in them that writes a file is enough to harm a user. So exact names are admitted here, each
in its own place only.
"""

from __future__ import annotations

import itertools
import re


def _names(package: str, *names: str) -> frozenset[str]:
    """Return the names that NeMo has for classes of a module: by the module, and by its package."""
    places = (package, package.rpartition(".")[0])
    return frozenset(map(".".join, itertools.product(places, names)))


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

TRAINING_CLASSES = (
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

KEPT_SECTIONS = (
    "preprocessor", "encoder", "decoder", "joint", "aux_ctc", "decoding", "loss", "tokenizer", "model_defaults",
    "transf_encoder", "transf_decoder", "head", "prompt_defaults", "labels",
)  # fmt: skip
"""Sections that NeMo builds a model from; every other one is left out."""

CALLING_KEYS = ("_target_", "target", "cls")
"""Keys whose value NeMo or Hydra imports and calls."""

TOKENIZER_FILES = {
    "model_path": "tokenizer.model",
    "vocab_path": "vocab.txt",
    "spe_tokenizer_vocab": "tokenizer.vocab",
}
"""Key of a tokenizer's section -> the file's name where old versions of NeMo wrote none."""

MAX_TOKENIZERS = 64

READING_KEYS = frozenset(
    (
        "ngram_lm_model",
        "lang_tag_pattern",
        "pretrained_model",
        "from_pretrained",
        "nemo_file",
        "lexicon",
    )
)
READING_KEY_ENDS = ("_path", "_file", "_dir", "_url")
"""Keys, and ends of keys, whose value names what NeMo would read or fetch, or a pattern that it
would run."""

PATH_OR_ADDRESS = re.compile(
    r"(?:/.|~.*/|file:|nemo:|[A-Za-z][A-Za-z0-9+.-]*://).*|(?:.*/)?\.\.(?:/.*)?", re.DOTALL
)
"""A text that names a file or an address."""

ACTIVATIONS = ("relu", "gelu", "sigmoid", "tanh", "silu")
"""What a head's `activation` may be: NeMo looks the name up in torch."""

MAX_NUMBER = 1_000_000
LARGEST_SIZES = {
    "sample_rate": 192_000, "window_size": 1, "window_stride": 1, "n_window_size": 65_536, "n_window_stride": 65_536,
    "n_fft": 65_536, "features": 1024, "n_mels": 1024, "n_mfcc": 1024, "frame_splicing": 16, "pad_to": 4096,
    "pos_emb_max_len": 20_000, "max_sequence_length": 20_000, "conv_kernel_size": 1024, "subsampling_factor": 64,
    "reduction_factor": 64, "ff_expansion_factor": 64, "subsampling_conv_channels": 16_384, "num_extra_outputs": 1024,
    "num_token_types": 1024, "global_tokens": 4096, "beam_size": 1024, "max_generation_delta": 20_000,
    "max_symbols": 1000, "max_symbols_per_step": 1000, "durations": 1000, "big_blank_durations": 1000,
    "att_context_size": 20_000, "context_size": 64, "n_heads": 1024, "num_attention_heads": 1024,
}  # fmt: skip
"""Largest size that a key may give, to either side; no other number is larger than MAX_NUMBER."""

WIDTH_KEYS = (
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

LAYER_COUNTS = (
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

_KEYS_TEXT = """
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
KNOWN_KEYS = frozenset(_KEYS_TEXT.split())
"""Keys that configs of the NeMo versions tried here have; any other is passed on and named in the
log."""

FREE_SECTIONS = ("prompt_defaults", "labels", "loss", "langs", "jasper", "hf_kwargs")
"""Sections whose own keys are data."""
