"""A vocabulary: what is confused is heard right, what nobody said stays unsaid, and the search is
NeMo's.

python -m tests.worker.test_phrase_boosting  what several weights do on the shipped clips, two
minutes on one core
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jiwer
import numpy as np
import pytest
import torch

from asrd.audio import files
from asrd.errors import ConfigError
from asrd.paths import DATA_FOLDER
from asrd.worker.decoding import aed, factory
from asrd.worker.decoding.phrase_boosting import Boost, token_ids
from tests import sound
from tests.fakes import tiny

CLIPS = [
    json.loads(line) for line in (DATA_FOLDER / "eval" / "manifest.jsonl").read_text().splitlines()
]
SHIPPED = ("demo-ctc", "demo-tdt", "demo")
FAMILIES = (
    "ctc",
    "ca_ctc",
    "rnnt",
    "tdt",
    "hybrid",
    "ca_rnnt",
    "canary1",
    "canary2",
    "canary2_unified",
)

FOREIGN = """
    kubernetes postgres grafana ansible nvidia parakeet terraform wireguard debian systemd pipewire lightning yaml
    bluetooth keyboard vector tensor gradient attention transformer encoder decoder sampling entropy lattice spectrogram
    hannover zurich kyoto oslo madrid vienna geneva helsinki dublin bergen ophelia tobias ingrid fatima yusuf chidi
    priya marguerite bartholomew constantinople photosynthesis mitochondria thermodynamics
"""
NEVER_SAID = FOREIGN.split()

Restore = Callable[..., Any]


@pytest.fixture(scope="module")
def restored(tmp_path_factory: pytest.TempPathFactory) -> Restore:
    """Return a function that restores a tiny model of a family, built once."""
    folder, built = tmp_path_factory.mktemp("boosting"), {}

    def restore(family: str, **sizes: Any) -> Any:
        key = json.dumps([family, sizes])
        if key not in built:
            built[key] = tiny.build(family, folder, name=str(len(built)), **sizes)
        return tiny.restore(built[key])

    return restore


@pytest.fixture(scope="module")
def shipped() -> Callable[[str], tuple[Any, list[Any]]]:
    """Return a function: name -> a shipped model and its encoder's output for every clip."""
    known: dict[str, tuple[Any, list[Any]]] = {}

    def of(name: str) -> tuple[Any, list[Any]]:
        if not (DATA_FOLDER / f"{name}.nemo").is_file():
            pytest.skip(f"asrd/data/{name}.nemo is not there: tools/train-demo-model makes it")
        if name not in known:
            model = tiny.restore(DATA_FOLDER / f"{name}.nemo")
            sounds = (files.read(DATA_FOLDER / "eval" / clip["audio_filepath"]) for clip in CLIPS)
            known[name] = model, [tiny.encode(model, samples) for samples in sounds]
        return known[name]

    return of


def errors(heard: list[str]) -> int:
    counted = jiwer.process_words([clip["text"] for clip in CLIPS], heard)
    return counted.substitutions + counted.insertions + counted.deletions


# -- the shipped models
# -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "number", "word"),
    [
        ("demo-ctc", 91, "go"),
        ("demo-ctc", 159, "the"),
        ("demo-tdt", 178, "market"),
        ("demo", 32, "blue"),
        ("demo", 113, "cold"),
        ("demo", 132, "doctor"),
        ("demo", 140, "helen"),
        ("demo", 177, "fifty"),
    ],
)
def test_a_word_that_was_confused_is_transcribed_right(
    shipped: Any, name: str, number: int, word: str
) -> None:
    model, encoded = shipped(name)
    decoder, text = factory.decoder_for(model), CLIPS[number - 1]["text"]
    assert decoder(*encoded[number - 1]).text.strip() != text
    decoder.boost_phrases([word], 1.0)
    assert decoder(*encoded[number - 1]).text.strip() == text


@pytest.mark.parametrize("name", SHIPPED)
def test_fifty_words_that_were_not_spoken_cost_less_than_half_a_point(
    shipped: Any, name: str
) -> None:
    model, encoded = shipped(name)
    decoder = factory.decoder_for(model)
    before = errors([decoder(*one).text.strip() for one in encoded])
    decoder.boost_phrases(NEVER_SAID, 1.0)
    heard = [decoder(*one).text.strip() for one in encoded]
    spoken = sum(len(clip["text"].split()) for clip in CLIPS)
    assert 100 * (errors(heard) - before) / spoken < 0.5
    assert not {word for text in heard for word in text.split()} & set(NEVER_SAID)


def no_speech() -> dict[str, Any]:
    dice, time = np.random.default_rng(5), np.arange(160_000) / 16_000
    return {
        "digital silence": np.zeros(160_000, np.float32),
        "a second of it": np.zeros(16_000, np.float32),
        "faint noise": sound.silence(10.0),
        "noise": (0.05 * dice.standard_normal(160_000)).astype(np.float32),
        "a hum": (0.1 * np.sin(2 * np.pi * 50 * time)).astype(np.float32),
    }


@pytest.mark.parametrize("name", SHIPPED)
def test_nothing_is_invented_in_silence_however_high_the_weight(shipped: Any, name: str) -> None:
    model, _ = shipped(name)
    decoder = factory.decoder_for(model)
    decoder.boost_phrases(["peter", "the market", "kubernetes"], 5.0)
    for what, samples in no_speech().items():
        assert decoder(*tiny.encode(model, samples)).text == "", what


@pytest.mark.parametrize("name", SHIPPED)
def test_a_word_that_is_wanted_too_much_is_still_not_repeated_without_end(
    shipped: Any, name: str
) -> None:
    model, encoded = shipped(name)
    decoder = factory.decoder_for(model)
    decoder.boost_phrases(["peter"], 5.0)
    for clip, one in zip(CLIPS[:40], encoded, strict=False):
        assert decoder(*one).text.split().count("peter") <= len(clip["text"].split())


# -- every family
# -----------------------------------------------------------------------------------------------------


def free(model: Any) -> Any:
    """Return the decoder of a random model; Canary's without its guard, as random weights do
    loop."""
    decoder = factory.decoder_for(model)
    if isinstance(decoder, aed.Aed):
        decoder.canary.guard = None
    return decoder


def spoken_by(model: Any) -> str:
    """Return a word of the made-up language that tiny tokenizers can write."""
    tokenizer = getattr(model.tokenizer, "tokenizers_dict", {"en": model.tokenizer})["en"]
    return next(piece[1:] for piece in tokenizer.vocab if piece.startswith("▁") and len(piece) > 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_preference_changes_tokens_and_makes_none_of_silence(
    restored: Restore, family: str
) -> None:
    model = restored(family)
    plain, decoder = free(model), free(restored(family))
    decoder.boost_phrases([spoken_by(model)], 5.0)
    changed, word = 0, token_ids(model.tokenizer, spoken_by(model), "en")[0]
    for number in range(4):
        encoded, length = tiny.encode(model, tiny.noise(2.0, number))
        before, after = plain(encoded, length), decoder(encoded, length)
        assert bool(after.tokens) == bool(before.tokens)
        assert all(token.confidence is None or 0 <= token.confidence <= 1 for token in after.tokens)
        assert [token.id for token in after.tokens].count(word) >= [
            token.id for token in before.tokens
        ].count(word)
        changed += after.text != before.text
    assert changed, "a preference that changes nothing shows nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_finds_no_words_finds_no_phrases_either(
    restored: Restore, family: str
) -> None:
    model = restored(family)
    with torch.no_grad():
        if hasattr(model, "joint"):
            model.joint.joint_net[-1].bias[-1 - model.joint.num_extra_outputs] += 100.0
        elif hasattr(model, "transf_decoder"):
            model.log_softmax.mlp.layer0.bias[model.tokenizer.eos] += 100.0
        else:
            model.decoder.decoder_layers[0].bias[-1] += 100.0
    decoder = free(model)
    decoder.boost_phrases([spoken_by(model)], 50.0)
    assert decoder(*tiny.encode(model, tiny.noise(2.0))).tokens == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_preference_of_nothing_changes_nothing(restored: Restore, family: str) -> None:
    model = restored(family)
    plain, decoder = free(model), free(restored(family))
    decoder.boost_phrases([spoken_by(model)], 0.0)
    for number in range(2):
        encoded, length = tiny.encode(model, tiny.noise(2.0, number))
        before, after = plain(encoded, length), decoder(encoded, length)
        assert after.text == before.text
        assert [token[:3] for token in after.tokens] == [token[:3] for token in before.tokens]
        for one, other in zip(before.tokens, after.tokens, strict=True):
            assert one.confidence == pytest.approx(other.confidence)


@pytest.mark.filterwarnings(
    "ignore:TF32 acceleration"
)  # what torch says when oneDNN is switched off
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["ctc", "tdt", "canary2"])
def test_preferences_work_in_every_dtype(
    restored: Restore, family: str, dtype: torch.dtype
) -> None:
    model, other = restored(family), restored(family)
    decoder, plain = free(model), free(other)
    decoder.boost_phrases([spoken_by(model)], 2.0)
    encoded, length = tiny.encode(model, tiny.noise(2.0))
    with (
        torch.inference_mode(),
        torch.autocast("cpu", dtype),
        torch.backends.mkldnn.flags(enabled=False),
    ):
        assert decoder(encoded, length).tokens
    for name, child in [*model.named_children(), *other.named_children()]:
        if name not in ("preprocessor", "encoder"):
            child.to(dtype)
    after = decoder(encoded.to(dtype), length)
    assert bool(after.tokens) == bool(plain(encoded.to(dtype), length).tokens)


def test_ctc_chooses_as_nemo_does(restored: Restore) -> None:
    from nemo.collections.asr.parts.submodules.ctc_greedy_decoding import GreedyBatchedCTCInfer

    model = restored("ctc")
    decoder = free(model)
    decoder.boost_phrases([spoken_by(model), "sha"], 3.0)
    oracle = GreedyBatchedCTCInfer(blank_id=model.decoding.blank_id, allow_cuda_graphs=False)
    oracle.fusion_models, oracle.fusion_models_alpha = [decoder._boost.tree], [3.0]
    for number in range(5):
        encoded, length = tiny.encode(model, tiny.noise(3.0, number))
        with torch.inference_mode():
            scores = model.decoder(
                encoder_output=encoded
            ).clone()  # without the type that NeMo gave it
            theirs = oracle(decoder_output=scores, decoder_lengths=length)[0][0]
        path = theirs.y_sequence.tolist()
        collapsed = [
            t for i, t in enumerate(path) if t != model.decoding.blank_id and path[i - 1 : i] != [t]
        ]
        assert [token.id for token in decoder(encoded, length).tokens] == collapsed


@pytest.mark.parametrize("family", ["rnnt", "tdt"])
def test_transducers_choose_as_nemo_does_by_its_own_configuration(
    restored: Restore, family: str
) -> None:
    from omegaconf import OmegaConf

    ours, theirs = restored(family), restored(family)
    phrases = [spoken_by(ours), "sha"]
    decoder = free(ours)
    decoder.boost_phrases(phrases, 3.0)
    greedy = {
        "boosting_tree": {"key_phrases_list": phrases, "use_triton": False},
        "boosting_tree_alpha": 3.0,
    }
    greedy |= {"use_cuda_graph_decoder": False}
    config = OmegaConf.create(OmegaConf.to_container(theirs.cfg.decoding, resolve=True))
    theirs.change_decoding_strategy(OmegaConf.merge(config, {"greedy": greedy}), verbose=False)
    theirs.decoding.decoding.decoding_computer.fusion_models[0].backoff_weights.data.zero_()
    for number in range(4):
        samples = tiny.noise(2.0, number)
        assert decoder(*tiny.encode(ours, samples)).text == tiny.transcribe(theirs, samples)


def test_a_phrase_that_was_begun_can_be_left_for_nothing(restored: Restore) -> None:
    model = restored("ctc")
    boost = Boost(model, ["shatha bodu"], 1.0, "ctc", "en")
    ids = token_ids(model.tokenizer, "shatha bodu", "en")
    assert len(ids) > 2
    other = next(n for n in range(boost.tree.vocab_size) if n not in ids)
    states, bonuses = [0], []
    for number in ids:
        bonus, following = boost._bonuses(states[-1], torch.device("cpu"))
        bonuses.append(float(bonus[number]))
        assert (float(bonus[other]), int(following[other])) == (0.0, 0)
        states.append(int(following[number]))
    assert len(set(states)) == len(ids) + 1
    assert bonuses[0] == 1.0
    assert min(bonuses[1:]) > 2.0


# -- what cannot be
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["ctc", "tdt", "canary1", "canary2_unified"])
def test_a_phrase_that_cannot_be_written_is_named_with_its_letters(
    restored: Restore, family: str
) -> None:
    with pytest.raises(ConfigError, match="'Ωmega Q9'") as caught:
        free(restored(family)).boost_phrases(["sha", "Ωmega Q9"], 1.0)
    assert "Ω" in caught.value.hint
    assert "m" not in caught.value.hint.partition(" has no ")[2]


@pytest.mark.parametrize("family", ["canary1", "canary2_unified"])
def test_a_tag_is_no_phrase(restored: Restore, family: str) -> None:
    with pytest.raises(ConfigError, match="endoftext"):
        free(restored(family)).boost_phrases(["<|endoftext|>"], 1.0)


def test_small_letters_stand_for_capitals_where_a_model_has_none(shipped: Any) -> None:
    tokenizer = shipped("demo-ctc")[0].tokenizer
    assert token_ids(tokenizer, "Peter", "en") == token_ids(tokenizer, "peter", "en")


def test_a_canary_writes_phrases_in_the_language_it_writes(restored: Restore) -> None:
    decoder = factory.decoder_for(restored("canary2"), target_lang="de")
    with pytest.raises(ConfigError, match="no language 'de'"):
        decoder.boost_phrases(
            ["sha"], 1.0
        )  # its prompt has a German, its tokenizers have only an English


@pytest.mark.parametrize(
    ("family", "sizes", "why"),
    [("ctc_char", {}, "letters"), ("rnnt_char", {}, "letters"), ("canary2", {"beam": 3}, "beam")],
)
def test_a_model_that_boosts_nothing_refuses(
    restored: Restore, family: str, sizes: Any, why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        free(restored(family, **sizes)).boost_phrases(["sha"], 1.0)


# -- the figures
# ------------------------------------------------------------------------------------------------------


def as_nemo_has_it(decoder: Any, model: Any, phrases: list[str]) -> None:
    """Take the bonus back again where a phrase is left, as NeMo's own tree does."""
    from nemo.collections.asr.parts.context_biasing import boosting_graph_batched as nemo

    depth = 1.0 if isinstance(decoder, aed.Aed) else 2.0
    config = nemo.BoostingTreeModelConfig(
        key_phrases_list=phrases, depth_scaling=depth, use_triton=False
    )
    boost = decoder.canary._boost if isinstance(decoder, aed.Aed) else decoder._boost
    boost.tree = nemo.GPUBoostingTreeModel.from_config(config, model.tokenizer).requires_grad_(
        False
    )
    boost._advance = boost._bonuses  # nothing of the other tree is remembered


def confused(heard: list[str]) -> list[tuple[int, str]]:
    """Return (clip, word that was said) for each word that was heard as another."""
    found = []
    for number, (clip, text) in enumerate(zip(CLIPS, heard, strict=True)):
        for chunk in jiwer.process_words(clip["text"], text).alignments[0]:
            if chunk.type == "substitute":
                said = clip["text"].split()[chunk.ref_start_idx : chunk.ref_end_idx]
                found += [(number, word) for word in said]
    return found


def wrong(number: int, text: str) -> int:
    counted = jiwer.process_words(CLIPS[number]["text"], text)
    return counted.substitutions + counted.insertions + counted.deletions


def main() -> int:
    """Print, for each shipped model and several weights, how many confused words are mended and
    what strangers cost."""
    print(
        "model     weight  mended  harmed  of  errors: plain  50 never said  the same, NeMo's penalty"
    )
    for name in SHIPPED:
        model = tiny.restore(DATA_FOLDER / f"{name}.nemo")
        encoded = [
            tiny.encode(model, files.read(DATA_FOLDER / "eval" / clip["audio_filepath"]))
            for clip in CLIPS
        ]
        decoder = factory.decoder_for(model)
        plain = [decoder(*one).text.strip() for one in encoded]
        for weight in (0.5, 1.0, 1.5, 2.0):
            change = []
            for number, word in confused(plain):
                decoder.boost_phrases([word], weight)
                change.append(
                    wrong(number, decoder(*encoded[number]).text.strip())
                    - wrong(number, plain[number])
                )
            decoder.boost_phrases(NEVER_SAID, weight)
            free_to_leave = errors([decoder(*one).text.strip() for one in encoded])
            as_nemo_has_it(decoder, model, NEVER_SAID)
            penalised = errors([decoder(*one).text.strip() for one in encoded])
            mended, harmed = sum(c < 0 for c in change), sum(c > 0 for c in change)
            print(
                f"{name:9} {weight:6} {mended:7} {harmed:7} {len(change):3} {errors(plain):14} {free_to_leave:14}"
                f" {penalised:25}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
