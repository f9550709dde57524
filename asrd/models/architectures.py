"""Models on the Hugging Face hub that asrd knows by their architecture, before a file of theirs is
here.

The sizes were taken from model cards and from public ports that print the config of the checkpoint;
what none of them confirmed is listed in `recalled`. Parameters are computed from the sizes by
building the names and shapes of every tensor, as NeMo 3.0 would; a test compares these with real
checkpoints of every family. Pure; runs on both sides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from asrd.models.checkpoint import Header
from asrd.models.tensors import Tensor

Shapes = dict[str, tuple[int, ...]]
"""Name of a tensor in a model's state -> its shape."""


class Architecture(msgspec.Struct, frozen=True):
    """What is known of a model on the hub without its file: the sizes of its architecture."""

    family: str
    languages: str
    layers: int
    """Of the FastConformer encoder."""
    width: int = 1024
    """Of the encoder."""
    mels: int = 80
    vocabulary: int = 1024
    decoder_layers: int = 2
    """LSTM layers of a transducer, Transformer layers of Canary; a CTC head has none."""
    decoder_width: int = 640
    inner: int = 4096
    """Of the feed-forward layers of Canary's decoder."""
    positions: int = 1024
    """Longest text of Canary's decoder, tokens."""
    biases: bool = True
    """Of the encoder's linear layers and convolutions."""
    cache_aware: bool = False
    durations: int = 0
    """How many a TDT predicts."""
    channels: int = 256
    """Of the convolutions over the mel spectrogram."""
    heads: int = 8
    card: int = 0
    """Parameters as the publisher states them, for comparison; 0 where only a rounded name is
    published."""
    recalled: str = ""
    """Which of these sizes no public copy of the config confirmed."""


ARCHITECTURES: dict[str, Architecture] = {
    "nvidia/canary-1b": Architecture(
        "aed", "en de es fr", 24, mels=128, vocabulary=4128, decoder_layers=24, decoder_width=1024, positions=512,
        recalled="vocabulary",
    ),
    "nvidia/canary-1b-flash": Architecture(
        "aed", "en de es fr", 32, mels=128, vocabulary=5248, decoder_layers=4, decoder_width=1024, card=883_000_000,
        recalled="vocabulary",
    ),
    "nvidia/canary-180m-flash": Architecture(
        "aed", "en de es fr", 17, 512, mels=128, vocabulary=5248, decoder_layers=4, decoder_width=1024,
        card=182_000_000, recalled="vocabulary",
    ),
    "nvidia/canary-1b-v2": Architecture(
        "aed", "25 European", 32, mels=128, vocabulary=16384, decoder_layers=8, decoder_width=1024, card=978_000_000,
        recalled="decoder layers",
    ),
    "nvidia/parakeet-tdt-0.6b-v2": Architecture("tdt", "en", 24, mels=128, biases=False, durations=5),
    "nvidia/parakeet-tdt-0.6b-v3": Architecture(
        "tdt", "25 European", 24, mels=128, vocabulary=8192, biases=False, durations=5
    ),
    "nvidia/parakeet-tdt-1.1b": Architecture("tdt", "en", 42, durations=5, recalled="biases"),
    "nvidia/parakeet-tdt_ctc-110m": Architecture(
        "hybrid", "en", 17, 512, decoder_layers=1, durations=5, card=114_000_000),
    "nvidia/parakeet-ctc-0.6b": Architecture("ctc", "en", 24, recalled="biases"),
    "nvidia/parakeet-ctc-1.1b": Architecture("ctc", "en", 42, recalled="biases"),
    "nvidia/parakeet-rnnt-0.6b": Architecture("rnnt", "en", 24, recalled="biases"),
    "nvidia/parakeet-rnnt-1.1b": Architecture("rnnt", "en", 42, recalled="biases"),
    "nvidia/nemotron-speech-streaming-en-0.6b": Architecture(
        "rnnt", "en", 24, mels=128, cache_aware=True, recalled="vocabulary, mels, biases"
    ),
}  # fmt: skip
"""Hub name -> its architecture; parameters are computed from it by `describe`."""


def describe(name: str, known: Architecture | None = None) -> Header:
    """Return the header that the file of a known model would have: names and shapes computed from
    its architecture.

    Raises:
        KeyError: `name` is not in ARCHITECTURES and `known` is not given.
    """
    known = known or ARCHITECTURES[name]
    config: dict[str, Any] = {
        "encoder": {"pos_emb_max_len": 5000},
        "preprocessor": {"features": known.mels},
    }
    shapes = {**_front(known), **_encoder(known), **_decoder(known)}
    tensors = {
        n: Tensor(shape, "int64" if n.endswith("tracked") else "float32")
        for n, shape in shapes.items()
    }
    languages = tuple(known.languages.split()) if known.languages[0].isalpha() else ()
    return Header(
        Path(name), 0, "", known.family, 16000, "", languages, known.cache_aware, 0, tensors, config
    )


def _linear(name: str, out: int, into: int, *kernel: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out, into, *kernel)} | ({f"{name}.bias": (out,)} if bias else {})


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _front(known: Architecture) -> Shapes:
    """Return the mel front end and the convolutions that make one frame of eight."""
    channels, bands = known.channels, known.mels
    shapes: Shapes = {
        "preprocessor.featurizer.window": (400,),
        "preprocessor.featurizer.fb": (1, bands, 257),
    }
    for index in (0, 2, 5):
        shapes |= _linear(f"encoder.pre_encode.conv.{index}", channels, 1, 3, 3)
    for index in (3, 6):
        shapes |= _linear(f"encoder.pre_encode.conv.{index}", channels, channels, 1, 1)
    for _ in range(3):
        bands = (
            bands // 2 + 1 if known.cache_aware else (bands + 1) // 2
        )  # causal padding adds one band each time
    return shapes | _linear("encoder.pre_encode.out", known.width, channels * bands)


def _encoder(known: Architecture) -> Shapes:
    """Return the FastConformer layers (arXiv 2305.05084)."""
    width, bias = known.width, known.biases
    shapes: Shapes = {}
    for index in range(known.layers):
        layer = f"encoder.layers.{index}"
        for part in (
            "norm_feed_forward1",
            "norm_conv",
            "norm_self_att",
            "norm_feed_forward2",
            "norm_out",
        ):
            shapes |= _norm(f"{layer}.{part}", width)
        for part in ("feed_forward1", "feed_forward2"):
            shapes |= _linear(f"{layer}.{part}.linear1", 4 * width, width, bias=bias)
            shapes |= _linear(f"{layer}.{part}.linear2", width, 4 * width, bias=bias)
        for part in ("linear_q", "linear_k", "linear_v", "linear_out", "linear_pos"):
            shapes |= _linear(
                f"{layer}.self_attn.{part}", width, width, bias=bias and part != "linear_pos"
            )
        for part in ("pos_bias_u", "pos_bias_v"):
            shapes[f"{layer}.self_attn.{part}"] = (known.heads, width // known.heads)
        shapes |= _linear(f"{layer}.conv.pointwise_conv1", 2 * width, width, 1, bias=bias)
        shapes |= _linear(f"{layer}.conv.depthwise_conv", width, 1, 9, bias=bias)
        shapes |= _linear(f"{layer}.conv.pointwise_conv2", width, width, 1, bias=bias)
        shapes |= _norm(f"{layer}.conv.batch_norm", width)  # its name even where it is a layer norm
        if not known.cache_aware:
            shapes |= {
                f"{layer}.conv.batch_norm.running_{part}": (width,) for part in ("mean", "var")
            }
            shapes[f"{layer}.conv.batch_norm.num_batches_tracked"] = ()
    return shapes


def _decoder(known: Architecture) -> Shapes:
    """Return what comes after the encoder."""
    labels = known.vocabulary + 1  # and the blank
    if known.family == "aed":
        return _transformer(known)
    if known.family == "ctc":
        return _linear("decoder.decoder_layers.0", labels, known.width, 1)
    width, shapes = known.decoder_width, Shapes()
    shapes["decoder.prediction.embed.weight"] = (labels, width)
    for index in range(known.decoder_layers):
        for side in ("ih", "hh"):
            shapes[f"decoder.prediction.dec_rnn.lstm.weight_{side}_l{index}"] = (4 * width, width)
            shapes[f"decoder.prediction.dec_rnn.lstm.bias_{side}_l{index}"] = (4 * width,)
    shapes |= _linear("joint.pred", width, width) | _linear("joint.enc", width, known.width)
    shapes |= _linear("joint.joint_net.2", labels + known.durations, width)
    if known.family == "hybrid":
        shapes |= _linear("ctc_decoder.decoder_layers.0", labels, known.width, 1)
    return shapes


def _transformer(known: Architecture) -> Shapes:
    """Return Canary's decoder; its output layer shares the embedding's weight."""
    width, decoder = known.decoder_width, "transf_decoder._decoder"
    shapes: Shapes = {
        "transf_decoder._embedding.token_embedding.weight": (known.vocabulary, width),
        "transf_decoder._embedding.position_embedding.pos_enc": (known.positions, width),
        **_norm("transf_decoder._embedding.layer_norm", width),
        **_norm(f"{decoder}.final_layer_norm", width),
        **_linear("log_softmax.mlp.layer0", known.vocabulary, width),
    }
    if known.width != width:
        shapes |= _linear("encoder_decoder_proj", width, known.width)
    for index in range(known.decoder_layers):
        layer = f"{decoder}.layers.{index}"
        for part in ("layer_norm_1", "layer_norm_2", "layer_norm_3"):
            shapes |= _norm(f"{layer}.{part}", width)
        for part in ("first_sub_layer", "second_sub_layer"):
            for net in ("query_net", "key_net", "value_net", "out_projection"):
                shapes |= _linear(f"{layer}.{part}.{net}", width, width)
        shapes |= _linear(f"{layer}.third_sub_layer.dense_in", known.inner, width)
        shapes |= _linear(f"{layer}.third_sub_layer.dense_out", width, known.inner)
    return shapes
