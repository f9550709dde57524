"""A model file is data: what its config, its archive and its weights may not do, and what goes on
loading.

Every kind has a seeded generator or a table. Each member is named by what it tries, and gives what
is expected.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from asrd.errors import ModelError
from asrd.models import archive, checkpoint, config_schema, model_config, torch_file, untrusted_yaml
from asrd.models.names import SHIPPED
from asrd.models.tensors import Tensor
from asrd.paths import DATA_FOLDER
from tests.fakes import tiny
from tests.models.test_checkpoint import archive as packed
from tests.models.test_checkpoint import members_of

CLIP = next(DATA_FOLDER.rglob("*.flac"))
Config = dict[str, Any]


@pytest.fixture(scope="module")
def bases() -> dict[str, tuple[Config, dict[str, tuple[int, ...]], frozenset[str]]]:
    """Return config, shapes of tensors and members of each shipped model."""
    found = {}
    for name, path in SHIPPED.items():
        members = members_of(path)
        shapes = {key: tensor.shape for key, tensor in checkpoint.header(path).tensors.items()}
        found[name] = (yaml.safe_load(members["model_config.yaml"]), shapes, frozenset(members))
    return found


def refusal(text: bytes, base: tuple[Config, dict[str, tuple[int, ...]], frozenset[str]]) -> str:
    """Return the sentence with which a config is refused, checked to be one."""
    path = Path("evil.nemo")
    with pytest.raises(ModelError) as caught:
        model_config.checked(model_config.read(text, path), base[1], path, base[2])
    assert caught.value.message.startswith("evil.nemo is ")
    assert len(caught.value.message) < 400
    assert all(letter.isprintable() for letter in caught.value.message)
    return caught.value.message


def at(config: Config, place: str, value: object) -> None:
    """Put a value at a dotted place; sections that are missing are made, and a number goes into a
    list."""
    *words, last = place.split(".")
    node: Any = config
    for word in words:
        if isinstance(node, dict) and node.get(word) is None:
            node[word] = {}
        node = node[int(word)] if isinstance(node, list) else node[word]
    if isinstance(node, list):
        node[int(last)] = value
    else:
        node[last] = value


# -- what is called
# ---------------------------------------------------------------------------------------------------

GADGETS = (
    "nemo.collections.asr.parts.utils.diarization_utils.write_txt", "os.system", "builtins.exec", "builtins.eval",
    "subprocess.Popen", "numpy.load", "torch.load", "torch.save", "torch.hub.load", "pickle.loads", "shutil.rmtree",
    "nemo.collections.asr.models.ASRModel.restore_from", "nemo.collections.asr.models.ASRModel.from_pretrained",
    "nemo.collections.common.tokenizers.SentencePieceTokenizer", "hydra.utils.instantiate", "importlib.import_module",
    "omegaconf.OmegaConf.save", "torch.nn.Linear", "lightning.pytorch.callbacks.ModelCheckpoint",
    "nemo.collections.asr.modules.ConformerEncoderX", "nemo.collections.asr.modules.ConformerEncoder ",
    "nemo.collections.asr.modules", "", "nemo.collections.asr.modules.conformer_encoder.torch.load",
    "nemo.collections.asr.parts.submodules.ngram_lm.NGramGPULanguageModel.from_file",
)  # fmt: skip
"""Functions, classes that are not a part of a speech model, and names that only look like one that
is."""

HIDING_PLACES = {
    "demo": ("encoder.reduction", "transf_decoder.config_dict.hidden_act", "head.num_layers", "loss", "optim",
             "prompt_defaults.0.slots.pnc", "tokenizer.langs.en.x", "tokenizer.custom_tokenizer.x", "transf_encoder.x"),
    "demo-ctc": ("preprocessor.window", "spec_augment", "encoder.att_context_size.0", "decoder.x", "train_ds.dataset",
                 "optim.sched", "validation_ds.x.y.z", "decoding.greedy.x", "unheard_of", "tokenizer.x"),
    "demo-tdt": ("joint.jointnet.x", "decoder.prednet.x", "loss.tdt_kwargs.x", "model_defaults.x", "exp_manager.x",
                 "test_ds.x", "decoding.beam.x", "encoder.x.y.z.w", "interctc.x", "adapters.x"),
}  # fmt: skip
WAYS = (
    "_target_",
    "target",
    "cls",
    "cls and params",
    "params",
    "list",
    "list of lists",
    "reference",
    "pieces",
)


def hidden(config: Config, way: str, place: str, gadget: str) -> None:
    """Put a call into a config; what it is given would write a file."""
    arguments = {"w_path": "written", "val": "x", "args": "touch written", "f": "written"}
    call: Any = {"_target_": gadget, **arguments}
    if way in ("target", "cls"):
        call = {way: gadget, "params": arguments}
    elif way == "cls and params":
        call = {"params": {"cls": gadget, **arguments}}
    elif way == "params":
        call = {"params": {"params": call}}
    elif way == "list":
        call = [1, call]
    elif way == "list of lists":
        call = [[[{"x": [call]}]]]
    elif way == "reference":
        config["hidden_words"] = {"one": gadget}
        call["_target_"] = "${hidden_words.one}"
    elif way == "pieces":
        config["hidden_words"] = {"one": gadget[:9], "two": gadget[9:]}
        call["_target_"] = "${hidden_words.one}${hidden_words.two}"
    at(config, place, call)


def calls() -> Iterator[tuple[str, str, str, str]]:
    """Yield 90 members: model, way, place, gadget."""
    dice = random.Random(14)
    places = [(model, place) for model, several in HIDING_PLACES.items() for place in several]
    for number in range(90):
        model, place = places[number % len(places)]
        yield model, WAYS[number % len(WAYS)], place, dice.choice(GADGETS)


@pytest.mark.parametrize(("model", "way", "place", "gadget"), list(calls()))
def test_a_call_is_refused_wherever_it_hides(
    model: str, way: str, place: str, gadget: str, bases: Any
) -> None:
    config = copy.deepcopy(bases[model][0])
    hidden(config, way, place, gadget)
    message = refusal(yaml.safe_dump(config).encode(), bases[model])
    assert place in message
    assert message.endswith("which is not admitted there")


@pytest.mark.parametrize(
    "section", ["preprocessor", "encoder", "decoder", "joint", "loss", "head", "transf_decoder"]
)
@pytest.mark.parametrize("gadget", GADGETS[:6])
def test_a_class_of_a_section_is_one_of_a_few(section: str, gadget: str, bases: Any) -> None:
    model = "demo" if section in ("head", "transf_decoder", "loss") else "demo-tdt"
    config = copy.deepcopy(bases[model][0])
    config[section]["_target_"] = gadget
    assert f"names {gadget} in {section}._target_" in refusal(
        yaml.safe_dump(config).encode(), bases[model]
    )


@pytest.mark.parametrize("key", ["_args_", "_recursive_", "_convert_", "_partial_", "_anything_"])
@pytest.mark.parametrize("place", ["encoder", "decoder.x", "spec_augment", ""])
def test_an_instruction_of_hydras_is_refused(key: str, place: str, bases: Any) -> None:
    config = copy.deepcopy(bases["demo-ctc"][0])
    where = f"{place}.{key}".lstrip(".")
    at(config, where, ["/etc/passwd"])
    assert f"has {where}, an instruction" in refusal(
        yaml.safe_dump(config).encode(), bases["demo-ctc"]
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": "os.system"}, "another kind of model: target os.system"),
        ({"target": "evil.EncDecCTCModelBPE"}, "another kind of model: target evil.EncDecCTCModelBPE"),
        ({"target": "nemo.collections.asr.models.ASRModel"}, "another kind of model"),
        ({"target": "nemo.collections.asr.models.EncDecSpeakerLabelModel"}, "another kind of model"),
        ({"target": "nemo.collections.asr.models.\x1b[2JEncDecCTCModelBPE"}, "target nemo.collections.asr.models.?"),
        ({"target": ["os.system"]}, "another kind of model"),
        ({"_target_": "os.system"}, "names os.system in _target_"),
        ({"cls": "os.system"}, "names os.system in _target_"),
        ({"params": {"_target_": "os.system"}}, "names os.system in _target_"),
        ({"params": {"encoder": {"_target_": "os.system"}}}, "names os.system in encoder._target_"),
        ({"encoder": "os.system"}, "has encoder, which is not a section"),
        ({"encoder": {"n_layers": 2}}, "names no class in encoder"),
        ({"tokenizer": {"type": "bpe", "custom_tokenizer": "x"}}, "has tokenizer.custom_tokenizer, which is not a sec"),
    ],
)  # fmt: skip
def test_the_target_of_the_whole_file(change: Config, said: str, tmp_path: Path) -> None:
    path = rewritten(SHIPPED["demo-ctc"], tmp_path / "x.nemo", lambda config: config.update(change))
    with pytest.raises(ModelError) as caught:
        checkpoint.header(path)
    assert said in caught.value.message
    assert all(letter.isprintable() for letter in caught.value.message)


def rewritten(source: Path, path: Path, change: Callable[[Config], object]) -> Path:
    """Write a model file with another config."""
    members = members_of(source)
    config = yaml.safe_load(members["model_config.yaml"])
    change(config)
    return packed(path, members | {"model_config.yaml": yaml.safe_dump(config).encode()})


# -- references
# -------------------------------------------------------------------------------------------------------

RESOLVERS = (
    "${oc.env:HOME}", "${oc.env:HOME,/tmp}", "${oc.decode:1}", "${oc.create:{a:1}}", "${oc.select:encoder}",
    "${oc.deprecated:encoder}", "${oc.dict.keys:encoder}", "${oc.dict.values:encoder}", "${env:HOME}",
    "${multiply:2,3}", "${a.custom.one:x}", "x${oc.env:HOME}y", "${encoder.${oc.env:USER}}", "${ oc.env : HOME }",
    "${eval:1+1}", "${now:%Y}", "${hydra:runtime.cwd}", "${oc.env:'HOME'}", "${oc.env:${a}}", "${d}{oc.env:HOME}",
)  # fmt: skip
RESOLVER_PLACES = (
    "preprocessor.window",
    "encoder.reduction",
    "decoder.vocabulary.0",
    "optim.name",
    "train_ds.x.y",
    "x",
)
CIRCLES = {
    "${x}": "in a circle", "${encoder}": "in a circle", "${.}": "cannot be resolved", "${nowhere}": "leads to nothing",
    "${encoder.nowhere}": "leads to nothing", "${decoder.vocabulary.99999}": "leads to nothing", "${": "cannot be res",
    "${a b}": "cannot be resolved", "\\${encoder.d_model}": "escaped reference", "${}": "cannot be resolved",
    "a ${decoder} b": "which is not text", "${sample_rate.x}": "leads to nothing", "${x.y}": "in a circle",
}  # fmt: skip


@pytest.mark.parametrize("place", RESOLVER_PLACES)
@pytest.mark.parametrize("text", RESOLVERS)
def test_a_resolver_is_refused_and_named(text: str, place: str, bases: Any) -> None:
    config = copy.deepcopy(bases["demo-ctc"][0]) | {"a": "b", "d": "$"}
    at(config, place, text)
    message = refusal(yaml.safe_dump(config).encode(), bases["demo-ctc"])
    assert f" in {place}, which is not an entry of its own" in message


@pytest.mark.parametrize(("text", "said"), CIRCLES.items())
def test_a_reference_to_nothing_or_to_itself_is_refused(text: str, said: str, bases: Any) -> None:
    config = copy.deepcopy(bases["demo-ctc"][0])
    at(config, "encoder.reduction" if text == "${encoder}" else "x", text)
    assert said in refusal(yaml.safe_dump(config).encode(), bases["demo-ctc"])


PLAIN_REFERENCES = (
    "${a.b.n0}", "${s}", "x ${s} y ${a.b.n1}", "${a.list}", "${a.list.0}", "${a.list[1][1]}", "${a.b.n2}",
    "${a.${t}.n3}", "${a.b.${a.name}}", "${ s }", "${a.list.2.k}",
)  # fmt: skip


def references() -> Iterator[tuple[str, Config]]:
    """Yield 40 configs of plain references, as OmegaConf allows them."""
    dice = random.Random(15)
    for number in range(40):
        numbers = {f"n{i}": dice.randint(0, 99) for i in range(4)}
        config: Config = {
            "a": {"b": numbers, "list": [1, [2, "x"], {"k": "v"}], "name": "n1"},
            "s": "text",
            "t": "b",
        }
        for index in range(6):
            key = f"r{index}"
            at(
                config,
                dice.choice((key, f"a.{key}", f"a.b.{key}")),
                dice.choice(PLAIN_REFERENCES),
            )
        config["deep"] = {
            "down": {"one": "${.two}", "two": "${..up}", "three": "${...s}"},
            "up": "${s}-${a.b.n0}",
        }
        config["to"] = "${deep.down.three}"
        yield str(number), config


@pytest.mark.parametrize(("number", "config"), list(references()))
def test_plain_references_are_what_omegaconf_makes_of_them(number: str, config: Config) -> None:
    from omegaconf import OmegaConf

    expected = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    assert untrusted_yaml.read(yaml.safe_dump(config).encode()) == expected


@pytest.mark.parametrize(
    "text",
    [b"a: 1e-5", b"a: 1e5", b"a: no", b"a: 0x10", b"a: 1_000", b"a: .inf", b"a: ~", b"a: 2024-01-01", b"a: '1'",
     b"a: 010", b"a: 1:30", b"a: -.5", b"a: +1", b"a: ''", b"a: null", b"a: [1, 2.0, x]", b"no: 1", b"1: 2", b"a: 5.",
     "a: \u2581the".encode(), b"a: &x [1]\nb: *x", b"a: &x {c: 1}\nb: {<<: *x, d: 2}"],
)  # fmt: skip
def test_values_are_what_omegaconf_reads(text: bytes, tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    (tmp_path / "x.yaml").write_bytes(text)
    assert untrusted_yaml.read(text) == OmegaConf.to_container(OmegaConf.load(tmp_path / "x.yaml"))


# -- bombs
# ------------------------------------------------------------------------------------------------------------


TAGS = (
    "!!python/object/apply:os.system [x]", "!!python/name:os.system x", "!!binary aGk=", "!!set {a}", "!x y",
    "!!timestamp 2001-12-14", "!!omap [a: 1]", "!!python/object/new:os.system [x]", "!!pairs [a: 1]",
)  # fmt: skip


def bombs() -> Iterator[tuple[str, bytes, str]]:
    """Yield texts that cost a reader without bounds its memory, its stack or minutes: name, text,
    what is said."""
    deep = "nested more than 32 levels deep"
    for levels in (33, 1000, 100_000):
        yield f"flow sequences {levels}", b"[" * levels + b"]" * levels, deep
        yield f"block sequences {levels}", b"- " * levels + b"x", deep
        yield f"flow mappings {levels}", b"{a: " * levels + b"1" + b"}" * levels, deep
        yield f"explicit keys {levels}", b"? " * levels + b"x", deep
    yield "block mappings", b"".join(b" " * level + b"a:\n" for level in range(3000)), deep
    for letters in (7, 12, 24):
        lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
        lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, letters)]
        yield f"aliases {letters}", "\n".join(lines).encode(), "more than 500000 values"
        lines = ["a0: &a0 {x: 1}"]
        lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 4)}]}}" for i in range(1, 24)]
        yield f"merges {letters}", "\n".join(lines).encode(), "more than 500000 values"
        lines = [f"r{i}: '${{r{i + 1}}}${{r{i + 1}}}'" for i in range(letters)] + [
            f"r{letters}: {'x' * 9000}"
        ]
        yield (
            f"references in texts {letters}",
            "\n".join(lines).encode(),
            "resolved" if letters < 16 else "in a circle",
        )
        lines = [
            f"r{i}: ['${{r{i + 1}}}', '${{r{i + 1}}}', '${{r{i + 1}}}']" for i in range(15)
        ] + ["r15: [1, 2, 3]"]
        yield f"references in lists {letters}", "\n".join(lines).encode(), "more than 500000 values"
    yield "an alias to itself", b"a: &a [*a]", "what is not complete"
    yield "many values", b"a: [" + b"1," * 600_000 + b"1]", "more than 500000 values"
    yield "a large text", b"a: " + b"x" * (9 << 20), "larger than 8 MiB"
    yield "a long value", b"a: " + b"x" * 20_000, "longer than 16384 characters"
    yield "a long number", b"a: " + b"9" * 5000, "no YAML"
    yield "a number in base 60", b"a: 1" + b":59" * 5000, "more than 64 bits"
    yield "a large number", b"a: 0x" + b"f" * 1000, "more than 64 bits"
    yield "a key twice", b"a: 1\na: 2", "the entry a twice"
    yield "a mapping as key", b"? {a: 1}\n: 2", "no YAML"
    yield "a reference as key", b"a: {'${b}': 1}\nb: 2", "a key in a that is not a name"
    yield "no mapping", b"- a", "is not a mapping"
    yield "nothing", b"", "is not a mapping"
    yield "no text", b"\xff\xfe\x00", "no YAML"
    for tag in TAGS:
        yield tag, f"a: {tag}".encode(), "which is not plain data"


@pytest.mark.parametrize(("name", "text", "said"), list(bombs()))
def test_a_bomb_is_refused_in_a_moment(name: str, text: bytes, said: str) -> None:
    began = time.process_time()
    with pytest.raises(ModelError) as caught:
        model_config.read(text, Path("evil.nemo"))
    assert said in caught.value.message
    assert time.process_time() - began < 5, name


# -- sizes
# ------------------------------------------------------------------------------------------------------------

LIES = (
    ("demo-ctc", "encoder.d_model", 2**20, ""),
    ("demo-ctc", "encoder.d_model", 127, "no tensor of its weights is that wide"),
    ("demo-ctc", "encoder.d_model", -(2**20), ""),
    ("demo-ctc", "encoder.n_layers", 10**7, ""),
    ("demo-ctc", "encoder.n_layers", 7, "its weights have 6 layers there"),
    ("demo-ctc", "encoder.n_layers", 0, "its weights have 6 layers there"),
    ("demo-ctc", "encoder.n_layers", 1e7, ""),
    ("demo-ctc", "encoder.feat_in", 10**6, ""),
    ("demo-ctc", "encoder.n_heads", 10**6, ""),
    ("demo-ctc", "encoder.pos_emb_max_len", 10**9, ""),
    ("demo-ctc", "encoder.ff_expansion_factor", 2**20, ""),
    ("demo-ctc", "encoder.conv_kernel_size", 10**8, ""),
    ("demo-ctc", "encoder.subsampling_conv_channels", 2**20, ""),
    ("demo-ctc", "encoder.subsampling_factor", 2**30, ""),
    ("demo-ctc", "encoder.att_context_size", [[10**9, 10**9]], ""),
    ("demo-ctc", "encoder.anything", 10**12, ""),
    ("demo-ctc", "encoder.anything", float("nan"), ""),
    ("demo-ctc", "preprocessor.features", 10**6, ""),
    ("demo-ctc", "preprocessor.n_fft", 2**40, ""),
    ("demo-ctc", "preprocessor.window_size", 1e9, ""),
    ("demo-ctc", "preprocessor.window_size", float("inf"), ""),
    ("demo-ctc", "preprocessor.n_window_size", 2**40, ""),
    ("demo-ctc", "preprocessor.sample_rate", 2**40, ""),
    ("demo-ctc", "preprocessor.frame_splicing", 10**6, ""),
    ("demo-ctc", "sample_rate", 2**40, ""),
    ("demo-ctc", "decoder.num_classes", 2**30, ""),
    ("demo-ctc", "decoder.feat_in", 2**30, ""),
    ("demo-ctc", "decoder.vocabulary", ["x"] * 40_000, "no tensor has as many"),
    ("demo-tdt", "labels", ["x"] * 40_000, "no tensor has as many"),
    ("demo-tdt", "joint.jointnet.joint_hidden", 2**20, ""),
    ("demo-tdt", "joint.num_extra_outputs", 2**20, ""),
    ("demo-tdt", "decoder.prednet.pred_hidden", 2**20, ""),
    ("demo-tdt", "decoder.prednet.pred_rnn_layers", 10**7, ""),
    ("demo-tdt", "decoder.prednet.pred_rnn_layers", 9, "layers there"),
    ("demo-tdt", "decoding.durations", [0, 10**9], ""),
    ("demo-tdt", "decoding.greedy.max_symbols", 10**6, ""),
    ("demo-tdt", "model_defaults.enc_hidden", 2**20, ""),
    ("demo", "transf_decoder.config_dict.num_layers", 10**7, ""),
    ("demo", "transf_decoder.config_dict.num_layers", 3, "its weights have 2 layers there"),
    ("demo", "transf_decoder.config_dict.hidden_size", 2**20, ""),
    ("demo", "transf_decoder.config_dict.inner_size", 2**20, ""),
    ("demo", "transf_decoder.config_dict.max_sequence_length", 10**9, ""),
    ("demo", "transf_encoder.num_layers", 10**7, ""),
    ("demo", "head.num_layers", 10**7, ""),
    ("demo", "decoding.beam.beam_size", 10**6, ""),
    ("demo", "tokenizer.langs", {f"l{i}": {"type": "bpe", "dir": "x"} for i in range(65)}, "more than 64 tokenizers"),
)  # fmt: skip
"""Model, entry, what it is set to, and what is said; nothing: that it is larger than possible."""


@pytest.mark.parametrize(("model", "place", "value", "said"), LIES)
def test_a_size_that_the_weights_do_not_have_is_refused(
    model: str, place: str, value: object, said: str, bases: Any
) -> None:
    config = copy.deepcopy(bases[model][0])
    at(config, place, value)
    message = refusal(yaml.safe_dump(config).encode(), bases[model])
    assert (said or " is allowed") in message
    assert place.partition(".")[0] in message or "tokenizers" in message


# -- files
# ------------------------------------------------------------------------------------------------------------


def test_a_tokenizer_is_read_from_the_archive_alone(bases: Any) -> None:
    for value in (
        "nemo:../../etc/passwd",
        "nemo:/etc/passwd",
        "nemo:",
        "nemo:..",
        "nemo:a/b.model",
        "nemo:./../x",
    ):
        for model, place in (("demo-ctc", "tokenizer"), ("demo", "tokenizer.langs.en")):
            for key in config_schema.TOKENIZER_FILES:
                config = copy.deepcopy(bases[model][0])
                at(config, f"{place}.{key}", value)
                message = refusal(yaml.safe_dump(config).encode(), bases[model])
                assert f"in {place}.{key}, which is outside the model file" in message
    config = copy.deepcopy(
        bases["demo"][0]
    )  # NeMo takes any case, and the files of one tokenizer are never skipped
    at(config, "tokenizer.type", "AgG")
    at(config, "tokenizer.langs.en.model_path", "/etc/passwd")
    assert "needs the tokenizer file passwd" in refusal(
        yaml.safe_dump(config).encode(), bases["demo"]
    )
    for value in (
        "/etc/passwd",
        "https://example.com/t.model",
        "elsewhere.model",
        "nemo:elsewhere.model",
        3,
        ["x"],
    ):
        config = copy.deepcopy(bases["demo-ctc"][0])
        at(config, "tokenizer.model_path", value)
        message = refusal(yaml.safe_dump(config).encode(), bases["demo-ctc"])
        assert (
            "which the model file does not hold" in message or "which is not a file name" in message
        )


OTHER_FILES = (
    ("decoding.greedy.ngram_lm_model", "lm.nemo"), ("decoding.beam.kenlm_path", "/tmp/lm.bin"),
    ("decoding.beam.ngram_lm_model", "/etc/passwd"), ("decoding.wfst.arpa_lm_path", "x.arpa"),
    ("decoding.wfst.wfst_lm_path", "/usr/x.fst"), ("decoding.beam.flashlight_cfg.lexicon_path", "lex"),
    ("decoding.greedy.boosting_tree.model_path", "/tmp/tree"), ("decoding.greedy.boosting_tree.key_phrases_file", "/x"),
    ("decoding.beam.word_kenlm_path", "x"), ("decoding.lang_tag_pattern", "(a+)+$"), ("encoder.x_path", "anything"),
    ("decoding.x", "https://example.com/x"), ("decoding.x", "~/.ssh/id_rsa"), ("decoding.x", "a/../../b"),
    ("nemo_file", "other.nemo"), ("pretrained_model", "nvidia/x"), ("from_pretrained", "nvidia/x"),
    ("init_from_path", "x"), ("log_dir", "logs"), ("save_dir", "/tmp"), ("x", "file:/etc/passwd"),
    ("decoding.x", ["/etc/passwd"]), ("model_defaults.cache_dir", "x"), ("x", "nemo:../x"), ("x", "s3://bucket/x"),
)  # fmt: skip


@pytest.mark.parametrize(("place", "value"), OTHER_FILES)
def test_an_entry_that_names_another_file_is_left_empty_and_named(
    place: str, value: object, bases: Any
) -> None:
    config = copy.deepcopy(bases["demo-ctc"][0])
    at(config, place, value)
    found = model_config.checked(config, bases["demo-ctc"][1], Path("x.nemo"))
    assert any(entry.startswith(place) for entry in found.emptied)
    node: Any = found.config
    for word in place.split("."):
        node = node[word]
    assert node in (None, [None])


HARMLESS = (
    ("new_option", 3, "new_option"), ("new_option", "text", "new_option"), ("new_option", [1, "x"], "new_option"),
    ("decoding.new", 1.5, "decoding.new"), ("decoding.greedy.new", True, "decoding.greedy.new"),
    ("encoder.new", "rel_pos", "encoder.new"), ("model_defaults.new", [], "model_defaults.new"),
    ("labels", ["x"] * 16_384, None), ("decoding.beam.beam_size", 256, None),
)  # fmt: skip


@pytest.mark.parametrize(("place", "value", "named"), HARMLESS)
def test_a_plain_entry_is_passed_on_and_named_where_unknown(
    place: str, value: object, named: str | None, bases: Any
) -> None:
    config = copy.deepcopy(bases["demo-ctc"][0])
    at(config, place, value)
    found = model_config.checked(config, bases["demo-ctc"][1], Path("x.nemo"))
    node: Any = found.config
    for word in place.split("."):
        node = node[word]
    assert node == value
    assert found.unknown == (() if named is None else (named,))


def test_what_inference_does_not_need_is_left_out(bases: Any) -> None:
    training = (
        "optim",
        "train_ds",
        "validation_ds",
        "test_ds",
        "spec_augment",
        "interctc",
        "exp_manager",
        "trainer",
    )
    for config, shapes, names in bases.values():
        more = {
            name: {"x": 1}
            for name in (*training, "multitask_metrics_cfg", "unheard_of", "nsys_profile", "model")
        }
        found = model_config.checked(config | more, shapes, Path("x.nemo"), names)
        assert not set(more) & set(found.config)
        assert (
            "_target_" not in found.config.get("loss", {})
            or found.config["loss"] == config_schema.LOSS
        )
        assert found.unknown == found.emptied == ()


@pytest.mark.parametrize("optimizer", ["nemo.core.optim.optimizers.Novograd", "torch.optim.AdamW"])
@pytest.mark.parametrize("key", ["cls", "_target_"])
def test_an_optimizer_of_its_training_is_no_reason_to_refuse_a_model(
    key: str, optimizer: str, bases: Any
) -> None:
    config, shapes, names = bases["demo-ctc"]
    text = yaml.safe_dump(
        config | {"optim": {key: optimizer, "params": {"lr": "${nowhere}"}}}
    ).encode()
    path = Path("x.nemo")
    assert (
        "optim"
        not in model_config.checked(model_config.read(text, path), shapes, path, names).config
    )


# -- archives
# ---------------------------------------------------------------------------------------------------------


def member(name: str, content: bytes = b"", **facts: Any) -> tuple[tarfile.TarInfo, bytes]:
    """Return a member of a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in facts.items():
        setattr(info, key, value)
    return info, content


TRICKS: dict[str, tuple[list[tuple[tarfile.TarInfo, bytes]], str]] = {
    "absolute": ([member("/tmp/evil", b"x")], "leads out of the archive"),
    "upwards": ([member("../evil", b"x")], "leads out of the archive"),
    "upwards behind dot": ([member("./../evil", b"x")], "leads out of the archive"),
    "upwards in between": ([member("a/../../evil", b"x")], "leads out of the archive"),
    "upwards at the end": ([member("a/..", type=tarfile.DIRTYPE)], "leads out of the archive"),
    "a link": (
        [member("x", type=tarfile.SYMTYPE, linkname="/etc/passwd")],
        "is a link or a device",
    ),
    "a link inside": (
        [member("x", type=tarfile.SYMTYPE, linkname="model_config.yaml")],
        "is a link or a device",
    ),
    "a hard link": (
        [member("x", type=tarfile.LNKTYPE, linkname="model_config.yaml")],
        "is a link or a device",
    ),
    "a hard link out": (
        [member("x", type=tarfile.LNKTYPE, linkname="/etc/passwd")],
        "is a link or a device",
    ),
    "a pipe": ([member("x", type=tarfile.FIFOTYPE)], "is a link or a device"),
    "a character device": (
        [member("x", type=tarfile.CHRTYPE, devmajor=1, devminor=5)],
        "is a link or a device",
    ),
    "a block device": ([member("x", type=tarfile.BLKTYPE, devmajor=8)], "is a link or a device"),
    "the config twice": ([member("model_config.yaml", b"a: 1")], "holds model_config.yaml twice"),
    "the config as ./": ([member("./model_config.yaml", b"a: 1")], "holds model_config.yaml twice"),
    "the weights twice": ([member("./model_weights.ckpt", b"x")], "holds model_weights.ckpt twice"),
    "a tokenizer twice": (
        [member("t.model", b"x"), member("./t.model", b"y")],
        "holds t.model twice",
    ),
    "a folder as config": (
        [member("./model_config.yaml", type=tarfile.DIRTYPE)],
        "holds model_config.yaml twice",
    ),
    "many members": ([member(f"m{number}") for number in range(1001)], "more than 1000 files"),
    "a large tokenizer": (
        [member("t.model", bytes(17 << 20))],
        "has 17825792 bytes; at most 16 MiB are allowed",
    ),
    "control characters": (
        [member("\x1b[2Jx", type=tarfile.SYMTYPE, linkname="x")],
        "is a link or a device",
    ),
    "a sparse file": ([member("x", type=tarfile.GNUTYPE_SPARSE)], "is a sparse file"),
}
"""What is added to a model's archive, and what is said."""


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", TRICKS)
def test_a_trick_with_the_archive_is_refused(name: str, zipped: bool, tmp_path: Path) -> None:
    added, said = TRICKS[name]
    path = tmp_path / "evil.nemo"
    with (
        tarfile.open(path, "w:gz" if zipped else "w:", compresslevel=1)
        if zipped
        else tarfile.open(path, "w:") as tar
    ):
        for info, content in [
            member(n, c) for n, c in members_of(SHIPPED["demo-ctc"]).items()
        ] + added:
            tar.addfile(info, io.BytesIO(content))
    assert said in worker_refuses(path, tmp_path)
    if not zipped:  # of a gzipped file the weights are not passed to look at what is behind them
        with pytest.raises(ModelError, match=said):
            checkpoint.header(path)


def worker_refuses(path: Path, folder: Path) -> str:
    """Return what the worker's own check says, which runs before NeMo builds anything; nothing else
    is written."""
    from asrd.worker.loading import restore

    before = sorted(folder.rglob("*"))
    with restore.CheckpointReader(path) as opened, pytest.raises(ModelError) as caught:
        opened._unpacked.unpack()
    assert sorted(folder.rglob("*")) == before
    return caught.value.message


def headers(kind: bytes, size: int) -> bytes:
    """Return a tar's header that gives a size of what is not there."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", archive.HEADERS)
@pytest.mark.parametrize("size", [8 << 30, -(8 << 20), 2 << 20])
def test_a_header_that_asks_for_all_memory_gets_none(
    kind: bytes, size: int, tmp_path: Path
) -> None:
    for name, content in {
        "x.nemo": headers(kind, size),
        "z.nemo": gzip.compress(headers(kind, size)),
    }.items():
        (tmp_path / name).write_bytes(content + bytes(10240))
        with pytest.raises(ModelError):
            checkpoint.header(tmp_path / name)


@pytest.mark.parametrize("where", ["before", "behind"])
def test_a_gzipped_file_that_unpacks_to_a_disk_is_refused(where: str, tmp_path: Path) -> None:
    members = members_of(SHIPPED["demo-ctc"])
    path = tmp_path / "evil.nemo"
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        bomb = member("model_weights.ckpt" if where == "before" else "x.model_weights.ckpt", b"")
        bomb[0].size = 300 << 20
        if where == "before":
            tar.addfile(bomb[0], io.BytesIO(bytes(300 << 20)))
        for name, content in members.items():
            tar.addfile(*[member(name, content)[0], io.BytesIO(content)])
        if where == "behind":
            tar.addfile(bomb[0], io.BytesIO(bytes(300 << 20)))
    assert path.stat().st_size < 12 << 20
    assert "unpacks to more than 20 times its size" in worker_refuses(path, tmp_path)


def test_weights_that_inflate_or_describe_more_than_they_are(tmp_path: Path) -> None:
    members = members_of(SHIPPED["demo-ctc"])
    with zipfile.ZipFile(io.BytesIO(members["model_weights.ckpt"])) as old:
        names = {name: old.read(name) for name in old.namelist()}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in names.items():
            new.writestr(name, data)
        new.writestr("archive/bomb", bytes(300 << 20))
    path = packed(tmp_path / "x.nemo", members | {"model_weights.ckpt": content.getvalue()})
    assert "its weights inflate to" in worker_refuses(path, tmp_path)
    small = io.BytesIO()
    with zipfile.ZipFile(small, "w") as new:
        new.writestr(
            "archive/data.pkl",
            names[next(name for name in names if name.endswith("data.pkl"))] + b"",
        )
    tensors = {"a": Tensor((2**20, 2**20), "float32", "0+0")}
    with pytest.raises(ModelError, match="describe 4398046511104 bytes of tensors in 1000 bytes"):
        torch_file.check_bytes(tensors, path, 1000)


# -- what goes on loading
# ---------------------------------------------------------------------------------------------


def saved(members: dict[str, bytes], how: str, path: Path) -> Path:
    """Write a model file as a version of NeMo or torch did."""
    import torch

    members = dict(sorted(members.items(), reverse="last" in how))
    if "legacy" in how:
        content, state = (
            io.BytesIO(),
            torch.load(io.BytesIO(members["model_weights.ckpt"]), weights_only=True),
        )
        torch.save(state, content, _use_new_zipfile_serialization=False)
        members["model_weights.ckpt"] = content.getvalue()
    if (
        "names" in how
        # before 1.0 tokenizers kept their names, and the config had the paths of the training machine
    ):
        config = yaml.safe_load(members["model_config.yaml"])
        for key, usual in config_schema.TOKENIZER_FILES.items():
            if key in config["tokenizer"]:
                members[usual] = members.pop(config["tokenizer"].pop(key).removeprefix("nemo:"))
        config["tokenizer"]["dir"] = "/data/somebody/tokenizers"
        config["encoder"] = {"cls": config["encoder"].pop("_target_"), "params": config["encoder"]}
        config["optim"] = {"name": "novograd", "lr": "${optim.sched.lr}", "sched": {"lr": 0.1}}
        members["model_config.yaml"] = yaml.safe_dump(config).encode()
    prefix = "./" if "dot" in how else ""
    return packed(
        path,
        {prefix + name: content for name, content in members.items()},
        "w:gz" if "gz" in how else "w:",
    )


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """Return what NeMo alone writes down with each shipped model."""
    return {name: spoken(tiny.restore(path)) for name, path in SHIPPED.items()}


def spoken(model: Any) -> str:
    import soundfile

    return tiny.transcribe(model, soundfile.read(CLIP, dtype="float32")[0])


@pytest.mark.parametrize(
    "how", ["dot", "plain", "gz", "gz dot", "gz last", "legacy", "gz legacy", "names", "gz names"]
)
@pytest.mark.parametrize("name", ["demo", "demo-ctc", "demo-tdt"])
def test_a_file_of_any_age_loads_and_says_the_same(
    name: str, how: str, texts: dict[str, str], tmp_path: Path
) -> None:
    from asrd.worker.loading import restore

    if "names" in how and name == "demo":
        pytest.skip("Canary is younger than that")
    path = saved(members_of(SHIPPED[name]), how, tmp_path / "old.nemo")
    assert checkpoint.header(path).parameters == checkpoint.header(SHIPPED[name]).parameters
    with tiny.quiet(), restore.CheckpointReader(path) as opened:
        opened.prepare()
        model = opened.restore().eval().requires_grad_(False)
    model.preprocessor.featurizer.dither, model.preprocessor.featurizer.pad_to = 0.0, 0
    assert texts[name]
    assert spoken(model) == texts[name]


def test_a_config_that_would_build_more_than_the_file_holds_is_stopped() -> None:
    import torch

    from asrd.worker.loading import construction

    with (
        pytest.raises(ValueError, match="more parameters than its weights have"),
        construction.at_most(1000),
    ):
        torch.nn.Linear(5000, 10_000)
    with construction.at_most(1000):
        torch.nn.Linear(100, 100)
    assert torch.nn.Module.register_parameter.__name__ == "register_parameter"


# -- through the door
# -------------------------------------------------------------------------------------------------


def run(words: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run asrd with a fresh home, from an empty folder; what it leaves in any of them is seen by
    the caller."""
    for name in ("home", "here", "tmp", "run"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith(("ASRD_", "XDG_"))
    }
    clean |= {
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "XDG_RUNTIME_DIR": str(folder / "run"),
    }
    command = [sys.executable, "-P", "-m", "asrd", *words]
    return subprocess.run(
        command,
        cwd=folder / "here",
        env=clean | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def left(folder: Path) -> list[str]:
    """Return the files that lie in a run's folders."""
    return [
        str(path)
        for name in ("home", "here", "tmp", "run")
        for path in (folder / name).rglob("*")
        if path.is_file()
    ]


DOORS = (
    ("preprocessor", lambda config: hidden(config, "_target_", "preprocessor.x", GADGETS[0])),
    ("optim", lambda config: hidden(config, "list", "optim.x", GADGETS[0])),
    ("env", lambda config: at(config, "encoder.reduction", "${oc.env:HOME}")),
    ("layers", lambda config: at(config, "encoder.n_layers", 10**7)),
)


BY_VERB = [(verb, *door) for verb in ("transcribe", "plan") for door in DOORS] + [
    ("run", *DOORS[0])
]


@pytest.mark.parametrize(("verb", "name", "change"), BY_VERB)
def test_a_hostile_file_does_nothing_and_one_sentence_says_why(
    verb: str, name: str, change: Callable[[Config], object], tmp_path: Path
) -> None:
    path = rewritten(SHIPPED["demo-ctc"], tmp_path / "evil.nemo", change)
    words = {
        "transcribe": ["transcribe", "--no-daemon", "--model", str(path), str(CLIP)],
        "plan": ["plan", "--model", str(path)],
        "run": ["run", "--model", str(path), "--source", f"file:{CLIP}"],
    }[verb]
    done = run(words, tmp_path)
    assert done.returncode == (75 if verb == "run" else 66), done.stderr
    assert done.stdout == ""
    said = [line for line in done.stderr.splitlines() if "is refused: its config" in line]
    assert said
    assert len(said) == 1 or verb == "run"
    assert {
        "preprocessor": "preprocessor.x",
        "optim": "optim.x.1",
        "env": "${oc.env:HOME}",
        "layers": "n_layers",
    }[name] in said[0]
    kept = (
        tmp_path / "home" / ".local" / "state" / "asrd" / "takes"
    )  # where a daemon keeps what was said
    assert [name for name in left(tmp_path) if verb != "run" or Path(name).parent != kept] == []


def test_the_worker_refuses_before_nemo_is_there(tmp_path: Path) -> None:
    paths = [
        str(rewritten(SHIPPED["demo-ctc"], tmp_path / f"{name}.nemo", change))
        for name, change in DOORS
    ]
    program = (
        "import sys, json\n"
        "from asrd.worker.loading import restore\n"
        "from asrd.errors import ModelError\n"
        "for path in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        with restore.CheckpointReader(__import__('pathlib').Path(path)) as opened:\n"
        "            opened.prepare()\n"
        "            opened._prepared.result()\n"
        "    except ModelError as error:\n"
        "        print(error.message)\n"
        "print([name for name in ('nemo', 'torch', 'omegaconf', 'hydra') if name in sys.modules])\n"
    )
    words = [sys.executable, "-P", "-c", program, json.dumps(paths)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    *said, imported = done.stdout.splitlines()
    assert len(said) == len(DOORS)
    assert imported == "[]"


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("name", "change"), DOORS)
def test_the_second_model_of_a_file_is_looked_at_too(
    name: str, change: Callable[[Config], object], zipped: bool, tmp_path: Path
) -> None:
    from asrd.worker.loading import restore

    evil = members_of(rewritten(SHIPPED["demo-ctc"], tmp_path / "evil.nemo", change))
    hidden = {
        f"timestamps_asr_{key}": content
        for key, content in evil.items()
        if key.startswith("model_")
    }
    members = members_of(SHIPPED["demo"]) | hidden
    path = packed(tmp_path / "x.nemo", members, "w:gz" if zipped else "w:")
    with (
        restore.CheckpointReader(path, hidden=True) as opened,
        pytest.raises(ModelError, match="is refused: its config"),
    ):
        opened._unpacked.unpack()
    bomb = {"timestamps_asr_model_weights.ckpt": b"cposix\nsystem\n(S'touch written'\ntR."}
    path = packed(tmp_path / "y.nemo", members | bomb, "w:gz" if zipped else "w:")
    with (
        restore.CheckpointReader(path, hidden=True) as opened,
        pytest.raises(ModelError, match=r"names? posix\.system"),
    ):
        opened._unpacked.unpack()


def test_what_is_passed_on_unknown_is_in_the_log(tmp_path: Path) -> None:
    path = rewritten(
        SHIPPED["demo-ctc"],
        tmp_path / "odd.nemo",
        lambda config: (
            at(config, "new_option", 3),
            at(config, "decoding.beam.kenlm_path", "/x/y"),
        ),
    )
    done = run(
        ["run", "--model", str(path), "--source", f"file:{CLIP}", "--sink", "stdout"], tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("unknown and passed on: new_option\n") == 1
    assert done.stderr.count("names of files, left out: decoding.beam.kenlm_path\n") == 1
    assert done.stdout.strip()


MODULES = "nemo.collections.asr.modules"
JASPER = {
    "filters": 64, "repeat": 2, "kernel": [5], "stride": [2], "dilation": [1], "dropout": 0.0, "residual": False,
    "separable": True, "se": True, "se_context_size": -1,
}  # fmt: skip
PARTS: dict[str, tuple[str, Config]] = {
    "a convolutional encoder": ("ctc", {"encoder": {
        "_target_": f"{MODULES}.ConvASREncoder", "feat_in": 80, "activation": "relu", "jasper": [JASPER],
    }}),
    "a recurrent encoder": ("ctc", {"encoder": {
        "_target_": f"{MODULES}.RNNEncoder", "feat_in": 80, "n_layers": 2, "d_model": 64, "proj_size": 32,
        "subsampling_factor": 4, "subsampling_conv_channels": 32,
    }}),
    "a recurrent CTC head": ("ctc", {"decoder": {
        "_target_": f"{MODULES}.LSTMDecoder", "feat_in": None, "num_classes": -1, "vocabulary": [],
        "lstm_hidden_size": 32,
    }}),
    "cepstra": ("ctc", {"preprocessor": {
        "_target_": f"{MODULES}.AudioToMFCCPreprocessor", "n_mels": 80, "n_mfcc": 80, "n_fft": 512,
    }}),
    "a decoder without state": ("rnnt", {"decoder": {
        "_target_": f"{MODULES}.StatelessTransducerDecoder", "context_size": 2,
        "prednet": {"pred_hidden": 32, "pred_rnn_layers": 1, "dropout": 0.0},
    }}),
    "letters": ("rnnt_char", {}),
    "two heads": ("hybrid", {}),
    "a streaming encoder": ("ca_tdt", {}),
    "Canary's first prompt": ("canary1", {}),
    "one tokenizer": ("canary2_unified", {}),
}  # fmt: skip
"""What no shipped model has: a family, and sections that are changed in it."""


@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_no_shipped_model_has_loads(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from asrd.worker.loading import restore

    family, sections = PARTS[name]
    plain = tiny._config
    monkeypatch.setattr(tiny, "_config", lambda *words: plain(*words) | copy.deepcopy(sections))
    if sections:
        monkeypatch.setattr(tiny, "loosen", lambda _: None)
    path = tiny.build(family, tmp_path)
    assert checkpoint.header(path).tensors
    with tiny.quiet(), restore.CheckpointReader(path) as opened:
        opened.prepare()
        found = opened.restore()
    expected = tiny.restore(path)
    state = expected.state_dict()
    assert found.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in found.state_dict().items())
    if not sections:
        found.eval().requires_grad_(False)
        found.preprocessor.featurizer.dither, found.preprocessor.featurizer.pad_to = 0.0, 0
        sound = tiny.noise(4, 1)
        assert tiny.transcribe(found, sound) == tiny.transcribe(expected, sound)
