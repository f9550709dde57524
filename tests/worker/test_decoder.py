"""Every family's text is NeMo's, in every dtype it can run in, and its words lie where they
must."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asrd.errors import ModelError
from asrd.paths import DATA_FOLDER
from asrd.text.spacing import join
from asrd.worker.casting import capabilities
from asrd.worker.decoding import aed, factory
from asrd.worker.decoding.word_times import Decoded, Token, words
from tests.fakes import tiny

SHIPPED = {"demo.nemo": "aed", "demo-ctc.nemo": "ctc", "demo-tdt.nemo": "tdt"}
FAMILY = {
    "ctc": "ctc", "ca_ctc": "ctc", "ctc_char": "ctc", "rnnt": "rnnt", "ca_rnnt": "rnnt", "rnnt_char": "rnnt",
    "tdt": "tdt", "hybrid": "hybrid", "ca_hybrid": "hybrid", "canary1": "aed", "canary2": "aed",
}  # fmt: skip

Model = Callable[[str], Any]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Return a function that restores a tiny model of a family, built once."""
    folder = tmp_path_factory.mktemp("families")

    def restore(family: str) -> Any:
        path = folder / f"{family}.nemo"
        return tiny.restore(path if path.exists() else tiny.build(family, folder))

    return restore


def sounds() -> Iterator[Any]:
    """Yield a tenth of a second, a second, an odd length, digital silence and ten seconds."""
    yield from (tiny.noise(seconds, number) for number, seconds in enumerate((0.1, 1.0, 3.33)))
    yield 0 * tiny.noise(2.0)
    yield tiny.noise(10.0, 9)


def decoder_for(model: Any) -> Any:
    """Return the decoder of a random model; Canary's without its guard, as random weights do
    loop."""
    decoder = factory.decoder_for(model)
    if isinstance(decoder, aed.Aed):
        decoder.canary.guard = None
    return decoder


def check(decoded: Decoded, model: Any, frames: int) -> None:
    """Assert what holds of every decoding and of its words."""
    assert all(0 <= token.start <= token.stop <= frames for token in decoded.tokens)
    assert all(a.stop <= b.start for a, b in pairwise(decoded.tokens))
    assert all(token.confidence is None or 0 <= token.confidence <= 1 for token in decoded.tokens)
    check_words(
        words(decoded, model, 1280, 5000, 5000 + frames * 1280),
        decoded.text,
        5000,
        5000 + frames * 1280,
    )


def check_words(found: list[Any], text: str, start: int, stop: int) -> None:
    assert join(found) == " ".join(text.split())
    edges = [start, *itertools.chain.from_iterable((word.start, word.stop) for word in found), stop]
    assert edges == sorted(edges)
    assert all(type(word.start) is type(word.stop) is int for word in found)


@pytest.mark.parametrize("family", FAMILY)
def test_text_is_that_of_nemo(model: Model, family: str) -> None:
    oracle, ours = model(family), model(family)
    decoder = decoder_for(ours)
    assert decoder.family == FAMILY[family]
    texts = set()
    for sound in sounds():
        encoded, length = tiny.encode(ours, sound)
        decoded = decoder(encoded, length)
        assert decoded.text == tiny.transcribe(oracle, sound)
        check(decoded, ours, int(length))
        texts.add(decoded.text)
    assert len(texts) > 2, "models that say the same to everything compare nothing"


@pytest.mark.parametrize("family", ["ctc", "tdt", "rnnt", "canary2"])
def test_frames_beyond_the_length_are_not_decoded(model: Model, family: str) -> None:
    ours = model(family)
    decoder = decoder_for(ours)
    encoded, length = tiny.encode(ours, tiny.noise(3.0))
    heard = decoder(encoded, length)
    longer = decoder(torch.cat([encoded, 9 * torch.randn(1, encoded.shape[1], 20)], 2), length)
    assert longer.text.startswith(heard.text)
    assert longer == heard or heard.truncated, (
        "only NeMo's limit on Canary's tokens counts all frames"
    )
    assert decoder(encoded, torch.tensor([0])) == Decoded("", [], False)


@pytest.mark.parametrize("family", ["rnnt", "tdt", "hybrid"])
def test_the_state_after_a_text_is_that_of_nemo_which_decoded_it(model: Model, family: str) -> None:
    """NeMo's loop reads token by token from the blank on; here all are read at once."""
    ours = model(family)
    decoder, text = decoder_for(ours), ours.tokenizer.ids_to_text([5, 9, 7])
    path = decoder.state_after(text, 12)
    assert (path.frames, path.ids, int(path.state.decoded_length)) == (12, (), 12)
    ids = [ours.decoder.blank_idx, *ours.tokenizer.text_to_ids(text)]
    states = ours.decoder.initialize_state(torch.zeros(1, 1))
    for token in ids:
        output, states = ours.decoder.predict(torch.tensor([[token]]), states, add_sos=False)
    torch.testing.assert_close(path.state.predictor_output, ours.joint.project_prednet(output)[0])
    for found, expected in zip(path.state.predictor_state, states, strict=True):
        torch.testing.assert_close(found, expected[:, 0])
    assert int(path.state.label) == ids[-1]


def test_a_prediction_network_that_nemo_cannot_put_down_is_not_taken_up(model: Model) -> None:
    from nemo.collections.asr.modules import StatelessTransducerDecoder

    ours = model("rnnt")
    sizes = {"pred_hidden": ours.decoder.pred_hidden, "pred_rnn_layers": 1}
    ours.decoder = StatelessTransducerDecoder(sizes, ours.decoder.vocab_size, context_size=2).eval()
    assert decoder_for(ours).state_after("a", 3) is None
    assert decoder_for(model("rnnt_char")).state_after("a", 3) is None, (
        "letters without a tokenizer"
    )


# -- precision
# --------------------------------------------------------------------------------------------------------

FLOAT16, BFLOAT16 = torch.float16, torch.bfloat16


def after_the_encoder(model: Any) -> list[Any]:
    return [
        child for name, child in model.named_children() if name not in ("preprocessor", "encoder")
    ]


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16])
@pytest.mark.parametrize("family", ["ctc", "rnnt", "tdt", "hybrid", "canary1", "canary2"])
def test_any_dtype_of_the_encoder_meets_any_dtype_of_the_decoder(
    model: Model, family: str, dtype: torch.dtype
) -> None:
    ours = model(family)
    decoder = decoder_for(ours)
    encoded, length = tiny.encode(ours, tiny.noise(2.0))
    plain = decoder(encoded, length)
    rounded = decoder(encoded.to(dtype), length)
    assert rounded == decoder(encoded.to(dtype).float(), length), (
        "only the encoder's output was rounded"
    )
    for child in after_the_encoder(ours):
        child.to(dtype)
    for entered in (encoded, encoded.to(dtype)):
        decoded = decoder(entered, length)
        check(decoded, ours, int(length))
        assert decoded.tokens or not plain.tokens


@pytest.mark.processor
@pytest.mark.filterwarnings(
    "ignore:TF32 acceleration"
)  # what torch says when oneDNN is switched off around the LSTM
@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16])
@pytest.mark.parametrize("family", ["ctc", "rnnt", "tdt", "hybrid", "canary1", "canary2"])
def test_decoding_runs_under_autocast(model: Model, family: str, dtype: torch.dtype) -> None:
    ours = model(family)
    decoder = decoder_for(ours)
    encoded, length = tiny.encode(ours, tiny.noise(2.0))
    with torch.inference_mode(), torch.autocast("cpu", dtype):
        for entered in (encoded, encoded.to(dtype)):
            check(decoder(entered, length), ours, int(length))
    assert decoder(encoded, length) == decoder(encoded, length), "nothing is left behind"


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16])
def test_a_caller_without_onednn_does_not_change_what_onednn_has(dtype: torch.dtype) -> None:
    answer = capabilities.has_lstm.__wrapped__(dtype)
    with torch.backends.mkldnn.flags(enabled=False):
        assert capabilities.has_lstm.__wrapped__(dtype) == answer


def test_ctc_chooses_among_float32_probabilities(model: Model) -> None:
    ours = model("ctc")
    decoder = decoder_for(ours)
    for child in after_the_encoder(ours):
        child.to(BFLOAT16)
    with torch.inference_mode():
        assert (
            ours.decoder(encoder_output=torch.randn(1, 64, 9).to(BFLOAT16)).dtype == torch.float32
        )
    assert decoder(*tiny.encode(ours, tiny.noise(2.0))).tokens


@pytest.mark.parametrize("family", ["rnnt", "hybrid"])
def test_transducers_are_set_up_once_and_without_graphs(
    model: Model, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = model(family)
    decoder = decoder_for(ours)
    monkeypatch.setattr(type(ours), "change_decoding_strategy", None)
    encoded, length = tiny.encode(ours, tiny.noise(1.0))
    assert decoder(encoded, length) == decoder(encoded, length)
    assert ours.cfg.decoding.strategy == "greedy_batch"
    assert not ours.decoding.decoding.decoding_computer.allow_cuda_graphs
    assert decoder(encoded, length).tokens[0].confidence is not None


def test_a_model_of_another_class_is_refused_and_so_are_subclasses(model: Model) -> None:
    class EncDecCTCModelBPEWithSomething(type(model("ctc"))):  # type: ignore[misc]
        pass

    ours = model("ctc")
    ours.__class__ = EncDecCTCModelBPEWithSomething
    for stranger in (ours, torch.nn.Linear(1, 1)):
        with pytest.raises(ModelError, match=type(stranger).__name__) as caught:
            factory.decoder_for(stranger)
        assert "CTC" in caught.value.hint
        assert "Canary" in caught.value.hint


# -- words
# ------------------------------------------------------------------------------------------------------------


def pieces(*texts: str) -> Any:
    """Return a model whose token n is the n-th text."""
    return SimpleNamespace(
        decoding=SimpleNamespace(decode_ids_to_str=lambda ids: "".join(texts[n] for n in ids))
    )


def at(*places: tuple[float, float], sure: float | None = 0.5) -> list[Token]:
    return [Token(number, start, stop, sure) for number, (start, stop) in enumerate(places)]


def spread(decoded: Decoded, model: Any) -> list[tuple[str, int, int]]:
    return [(word.text, word.start, word.stop) for word in words(decoded, model, 100, 1000, 3000)]


def test_a_word_begins_with_its_first_token_and_ends_with_its_last() -> None:
    tokens = at((2, 3), (4, 6), (8, 9))
    found = spread(Decoded("one two", tokens, False), pieces(" o", "ne", " two"))
    assert found == [("one", 1200, 1600), ("two", 1800, 1900)]


def test_tokens_without_letters_move_no_word() -> None:
    tokens = at((0, 1), (2, 3), (4, 5), (9, 10))
    found = spread(Decoded("one two", tokens, False), pieces(" ", "one", " ", "two"))
    assert found == [("one", 1200, 1300), ("two", 1900, 2000)]


def test_words_of_one_token_share_its_time_by_letters() -> None:
    found = spread(Decoded("of the sea", at((0, 5), (5, 6)), False), pieces(" of the", " sea"))
    assert found == [("of", 1000, 1200), ("the", 1200, 1500), ("sea", 1500, 1600)]


def test_a_text_that_is_shorter_than_its_tokens_is_stretched_over_them() -> None:
    found = spread(Decoded("ab cd", at((0, 2), (2, 4), (4, 8)), False), pieces("ab", "cd", "<xx>"))
    assert [word for word, _, _ in found] == ["ab", "cd"]
    assert found[0][1] == 1000
    assert found[1][2] == 1800


def test_confidence_is_the_lowest_of_the_words_tokens_or_none() -> None:
    tokens = [Token(0, 0, 1, 0.9), Token(1, 1, 2, 0.4), Token(2, 2, 3, 0.8), Token(3, 3, 4, None)]
    found = words(Decoded("one two", tokens, False), pieces(" o", "ne", " t", "wo"), 100, 0, 1000)
    assert [word.confidence for word in found] == [0.4, None]


def test_no_tokens_are_no_word() -> None:
    assert words(Decoded("", [], False), pieces(), 1280, 0, 16_000) == []


TEXTS = st.lists(
    st.sampled_from(["a", "bc", " d", " ef", " ", "", " g h", "i j", "�"]), max_size=12
)


@given(
    TEXTS,
    st.lists(st.floats(0, 40), min_size=12, max_size=12),
    st.lists(st.floats(0, 9), min_size=12, max_size=12),
    st.sampled_from(["", " .", "<xx> ", "k l"]),
    st.integers(1, 1280),
    st.integers(-(10**6), 10**6),
    st.integers(0, 30_000),
)
def test_words_are_in_order_inside_and_spell_the_text(
    texts: list[str],
    starts: list[float],
    lengths: list[float],
    extra: str,
    frame: int,
    start: int,
    size: int,
) -> None:
    order = sorted(starts)
    tokens = [Token(n, order[n], order[n] + lengths[n], 0.5) for n in range(len(texts))]
    text = "".join(texts) + extra
    found = words(Decoded(text, tokens, False), pieces(*texts), frame, start, start + size)
    check_words(found, text, start, start + size)


# -- the shipped models
# -----------------------------------------------------------------------------------------------


def clips(count: int) -> Iterator[Any]:
    from asrd.audio import files

    for line in (DATA_FOLDER / "eval" / "manifest.jsonl").read_text().splitlines()[:count]:
        yield files.read(DATA_FOLDER / "eval" / json.loads(line)["audio_filepath"])


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_models_give_the_text_that_nemo_gives(name: str) -> None:
    if not (DATA_FOLDER / name).is_file():
        pytest.skip(f"asrd/data/{name} is not there: tools/train-demo-model makes it")
    oracle, ours = tiny.restore(DATA_FOLDER / name), tiny.restore(DATA_FOLDER / name)
    decoder = factory.decoder_for(ours)
    assert decoder.family == SHIPPED[name]
    whole = list(clips(8))
    for sound in [*whole, whole[0][4000:5600], whole[0][:16_000], 0 * whole[0]]:
        encoded, length = tiny.encode(ours, sound)
        decoded = decoder(encoded, length)
        said = tiny.transcribe(oracle, sound)
        # NeMo's beam never looks at its first token: silence is "<|endoftext|>" and whatever comes
        # to its mind.
        assert decoded.text.strip() == said.partition("<|endoftext|>")[0].strip()
        assert decoded.text or "<|endoftext|>" in said or not said
        check(decoded, ours, int(length))


@pytest.mark.parametrize("other", ["demo.nemo", "demo-tdt.nemo"])
def test_attention_and_transducer_place_words_where_ctc_does(other: str) -> None:
    if not all((DATA_FOLDER / name).is_file() for name in SHIPPED):
        pytest.skip("the shipped models are not there: tools/train-demo-model makes them")
    models = [tiny.restore(DATA_FOLDER / name) for name in (other, "demo-ctc.nemo")]
    decoders = [factory.decoder_for(one) for one in models]
    off = []
    for sound in clips(16):
        heard = [
            words(decoder(*tiny.encode(one, sound)), one, 1280, 0, len(sound))
            for one, decoder in zip(models, decoders, strict=True)
        ]
        if [word.text for word in heard[0]] == [word.text for word in heard[1]]:
            off += [abs(a.start - b.start) / 16 for a, b in zip(*heard, strict=True)]
    assert len(off) > 40
    assert sorted(off)[len(off) // 2] <= 160, "two frames"
    assert sum(off) / len(off) <= 240
