"""Canary: its text is NeMo's, its guard cuts loops and nothing else, its prompt says what was
asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from asrd.errors import ConfigError, ModelError
from asrd.paths import DATA_FOLDER
from asrd.worker.decoding import aed, canary, canary_prompt, factory
from asrd.worker.decoding.word_times import Decoded
from tests.fakes import tiny

Restore = Callable[..., Any]


@pytest.fixture(scope="module")
def restored(tmp_path_factory: pytest.TempPathFactory) -> Restore:
    """Return a function that restores a tiny model; the same words give the same file."""
    folder, built = tmp_path_factory.mktemp("canary"), {}

    def restore(family: str, **sizes: Any) -> Any:
        key = json.dumps([family, sizes])
        if key not in built:
            built[key] = tiny.build(family, folder, name=str(len(built)), **sizes)
        return tiny.restore(built[key])

    return restore


def free(model: Any, **words: Any) -> aed.Aed:
    """Return a decoder without a guard: what random weights say is mostly a loop, and NeMo says it
    too."""
    decoder = factory.decoder_for(model, **words)
    assert isinstance(decoder, aed.Aed)
    decoder.canary.guard = None
    return decoder


SIZES: list[tuple[str, dict[str, Any]]] = [  # seeds that say different things
    ("canary1", {"seed": 4}),
    ("canary1", {"seed": 6, "strategy": "greedy", "generation_delta": 5}),
    ("canary2", {"seed": 1, "decoder_layers": 4}),
    ("canary2", {"seed": 4, "pre_ln": False}),
    (
        "canary2",
        {"seed": 4, "decoder_hidden": 64, "activation": "gelu"},
    ),  # no projection from encoder to decoder
    ("canary2", {"seed": 4, "learned_positions": True, "generation_delta": 20}),
    ("canary2", {"seed": 4, "transf_encoder__num_layers": 1, "generation_delta": 5}),
    ("canary2", {"seed": 0, "beam": 3, "generation_delta": 20}),
    ("canary2_unified", {"seed": 4, "vocabulary": 1500}),
]


@pytest.mark.parametrize(("family", "sizes"), SIZES, ids=str)
def test_text_is_that_of_nemo(restored: Restore, family: str, sizes: dict[str, Any]) -> None:
    oracle, ours = restored(family, **sizes), restored(family, **sizes)
    decoder, heard = free(ours), 0
    for number, seconds in enumerate((0.1, 1.0, 3.3)):
        sound = tiny.noise(seconds, number)
        decoded = decoder(*tiny.encode(ours, sound))
        assert decoded.text == tiny.transcribe(oracle, sound)
        heard += len(decoded.tokens)
    assert heard > 3, "silence compares nothing"


def test_an_end_at_once_is_the_end_though_nemo_goes_on(restored: Restore) -> None:
    sizes = {"seed": 2, "learned_positions": True, "generation_delta": -1}
    oracle, ours = restored("canary2", **sizes), restored("canary2", **sizes)
    sound = tiny.noise(3.3, 2)
    assert tiny.transcribe(oracle, sound).startswith("<|endoftext|>"), (
        "NeMo's beam now looks at its first token"
    )
    assert free(ours)(*tiny.encode(ours, sound)) == Decoded("", [], False)


@pytest.mark.parametrize("family", ["canary1", "canary2", "canary2_unified"])
def test_what_is_asked_for_reaches_the_model(restored: Restore, family: str) -> None:
    oracle, ours = restored(family), restored(family)
    asked = {"source_lang": "de", "target_lang": "fr"}
    decoder = free(ours, **asked, pnc=False)
    task = {"task": "ast"} if family == "canary1" else {}
    texts = []
    for number in range(3):
        sound = tiny.noise(2.0, number)
        texts.append(decoder(*tiny.encode(ours, sound)).text)
        assert texts[-1] == tiny.transcribe(oracle, sound, **asked, **task, pnc="no")
    english = free(restored(family))
    assert texts != [
        english(*tiny.encode(ours, tiny.noise(2.0, number))).text for number in range(3)
    ]


def test_a_beam_gives_confidence_and_times_too(restored: Restore) -> None:
    model = restored("canary2", beam=3, generation_delta=20)
    decoded = free(model)(*tiny.encode(model, tiny.noise(3.3)))
    assert decoded.tokens
    assert all(
        0 < token.confidence <= 1 for token in decoded.tokens if token.confidence is not None
    )
    assert None not in [token.confidence for token in decoded.tokens]
    assert not model.transf_decoder.training


def test_ids_beyond_the_tokenizer_are_never_chosen(restored: Restore) -> None:
    model = restored("canary1")
    padding = model.log_softmax.mlp.layer0.bias[model.tokenizer.vocab_size :]
    assert padding.numel(), "this vocabulary needs no padding: choose another size"
    padding.fill_(100.0)
    decoded = free(model)(*tiny.encode(model, tiny.noise(1.0)))
    assert max((token.id for token in decoded.tokens), default=0) < model.tokenizer.vocab_size


# -- the prompt
# -------------------------------------------------------------------------------------------------------


def test_prompts_spell_what_was_asked(restored: Restore) -> None:
    one, two = restored("canary1"), restored("canary2")
    spelt = {
        "".join(
            model.tokenizer.ids_to_tokens(canary_prompt.prompt(model, "es", "en", pnc)[0].tolist())
        )
        for model, pnc in ((one, True), (two, False))
    }
    assert spelt == {
        "<|startoftranscript|><|es|><|translate|><|en|><|pnc|>",
        "<|startofcontext|><|startoftranscript|><|emo:undefined|><|es|><|en|><|nopnc|><|noitn|><|notimestamp|><|nodiarize|>",
    }


@pytest.mark.parametrize("family", ["canary1", "canary2", "canary2_unified"])
def test_a_language_that_is_not_there_is_named_with_those_that_are(
    restored: Restore, family: str
) -> None:
    model = restored(family)
    for words in ({"source_lang": "xx"}, {"target_lang": "xx"}):
        with pytest.raises(ConfigError, match="'xx'") as caught:
            factory.decoder_for(model, **words)
        assert caught.value.hint == "known: de, en, es, fr"


def test_another_prompt_format_is_refused(restored: Restore) -> None:
    model = restored("canary2")
    model.prompt_format = "llama2"
    with pytest.raises(ModelError, match="llama2") as caught:
        factory.decoder_for(model)
    assert "canary2" in caught.value.hint


def test_a_tokenizer_without_a_token_of_the_prompt_is_refused(restored: Restore) -> None:
    model = restored("canary2")
    del model.tokenizer.special_tokens["<|noitn|>"]
    with pytest.raises(ModelError, match=r"<\|noitn\|>"):
        factory.decoder_for(model)


# -- the guard
# --------------------------------------------------------------------------------------------------------


class Scripted:
    """Stands where the cached decoder does: says a script of tokens and frames, round and round."""

    max_tokens = 512

    def __init__(self, script: list[tuple[int, int]], end: int | None, frames: int) -> None:
        self.script, self.end, self.frames, self.said = script, end, frames, 0

    def new_cache(self, sound: torch.Tensor, room: int) -> Any:
        from asrd.worker.decoding.kv_cache import KVCache

        self.said = 0
        return KVCache([], room)

    def step(self, memory: Any, ids: torch.Tensor) -> torch.Tensor:
        token, frame = self.script[self.said % len(self.script)]
        if self.end is not None and self.said >= len(self.script):
            token = self.end
        self.said += 1
        rows = torch.full((1, 1, ids.shape[1], self.frames), 1e-4)
        rows[..., frame] = 1.0
        memory.attention.append(rows)
        logits = torch.zeros(ids.shape[1], 200)
        logits[-1, token] = 9.0
        return logits


@pytest.fixture(scope="module")
def guarded(restored: Restore) -> Callable[..., canary.CanaryOutput]:
    model = restored("canary2", generation_delta=-1)
    heard = canary.Canary(model, "en", "en", True)

    def run(
        script: list[tuple[int, int]], ends: bool = True, frames: int = 126
    ) -> canary.CanaryOutput:
        heard._decoder = Scripted(script, model.tokenizer.eos if ends else None, frames)  # type: ignore[assignment]
        return heard(torch.zeros(1, model.cfg.encoder.d_model, frames), frames)

    return run


@pytest.mark.parametrize("times", [3, 5, 9, 30])
def test_repeating_a_word_while_the_attention_moves_is_speech(guarded: Any, times: int) -> None:
    script = [(20, 3 * n) for n in range(times)]
    assert guarded(script)[0::3] == ([20] * times, False)


def test_repeating_a_word_three_times_is_speech_wherever_the_attention_is(guarded: Any) -> None:
    assert guarded([(20, 7), (20, 7), (20, 7), (30, 60)])[0::3] == ([20, 20, 20, 30], False)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_a_loop_that_stands_still_is_cut_to_its_phrase_once(guarded: Any, size: int) -> None:
    start = [(50 + n, 5 * n) for n in range(8)]
    loop = [(20 + n, 60 + n) for n in range(size)]
    heard = guarded(start + loop * 40, ends=False)
    assert heard.ids == [token for token, _ in start + loop]
    assert heard.truncated
    assert len(heard.confidences) == len(heard.spans) == len(heard.ids)


def test_running_on_without_a_loop_ends_at_so_many_tokens_a_second(guarded: Any) -> None:
    heard = guarded([(20 + n * n % 101, n % 126) for n in range(300)], ends=False)
    assert heard.truncated
    assert len(heard.ids) == canary.RepetitionGuard().limit(126 * 0.08) == 24 + 120


def test_any_audio_may_have_a_few_tokens(guarded: Any) -> None:
    script = [(20 + n, n % 13) for n in range(20)]
    assert guarded(script, frames=13)[0::3] == ([token for token, _ in script], False)


def test_a_real_decoder_forced_into_a_loop_is_cut(restored: Restore) -> None:
    model = restored("canary2", generation_delta=-1)
    model.log_softmax.mlp.layer0.bias[30] += 100.0
    sound = tiny.encode(model, tiny.noise(5.0))
    assert len(free(model)(*sound).tokens) == 512 - 9 + 1
    decoded = factory.decoder_for(model)(*sound)
    assert decoded.truncated
    assert [token.id for token in decoded.tokens] == [30]


# -- the shipped model
# ------------------------------------------------------------------------------------------------


def test_every_shipped_clip_gets_the_tokens_of_nemo_and_the_guard_never_fires() -> None:
    from asrd.audio import files

    if not (DATA_FOLDER / "demo.nemo").is_file():
        pytest.skip("asrd/data/demo.nemo is not there: tools/train-demo-model makes it")
    model = tiny.restore(DATA_FOLDER / "demo.nemo")
    decoder = factory.decoder_for(model)
    assert isinstance(decoder, aed.Aed)
    prompt = decoder.canary._prompt
    lines = (DATA_FOLDER / "eval" / "manifest.jsonl").read_text().splitlines()
    for line in lines:
        encoded, length = tiny.encode(
            model, files.read(DATA_FOLDER / "eval" / json.loads(line)["audio_filepath"])
        )
        decoded = decoder(encoded, length)
        with torch.inference_mode():
            sound = model.encoder_decoder_proj(encoded.transpose(1, 2))
            theirs = model.decoding.decode_predictions_tensor(
                sound, torch.ones(sound.shape[:2]), prompt, return_hypotheses=True
            )[0]
        model.eval()
        assert [token.id for token in decoded.tokens] == [
            n for n in theirs.y_sequence.tolist() if n != 3
        ], line
        assert not decoded.truncated, line
    assert len(lines) >= 150
