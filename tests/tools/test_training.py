"""The speech that trains the demo models, its split, and the evaluation set that ships."""

from __future__ import annotations

import argparse
import importlib
import importlib.machinery
import importlib.util
import json
import random
import re
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from asrd.paths import DATA_FOLDER
from tests.helpers import load_tool

EVAL = DATA_FOLDER / "eval"


tool = load_tool("train-demo-model")
speech = sys.modules["demo_speech"]  # its other half, which it finds beside itself


@pytest.fixture(scope="module")
def draws() -> list[speech.Clip]:
    return [speech.draw_clip(seed, "train") for seed in range(20_000)]


def test_no_held_out_sentence_is_ever_drawn_for_training(draws: list[speech.Clip]) -> None:
    said = {sentence for clip in draws for sentence in (*clip.sentences, clip.text)}
    assert {speech.split_of(sentence) for sentence in said} == {"train"}


def test_held_out_voices_are_never_drawn_for_training(draws: list[speech.Clip]) -> None:
    voices = {(who.engine, who.voice) for clip in draws for who in clip.speakers}
    heard = {
        name
        for engine, voice in voices
        for name in (voice.split("+") if engine == "espeak-ng" else [voice])
    }
    assert not heard & {*speech.HELD_OUT_VARIANTS, *(voice for _, voice in speech.NEVER.values())}
    assert heard >= {*speech.TRAINED_VARIANTS, *speech.ACCENTS}
    assert heard >= {"kal", "kal16", "rms", "slt", "kal_diphone", "ked_diphone"}


def test_every_kind_of_clip_is_drawn(draws: list[speech.Clip]) -> None:
    assert {clip.kind for clip in draws} == set(speech.KINDS)
    assert all(clip.text == "" for clip in draws if clip.kind == "empty")
    assert any(len(set(clip.speakers)) > 1 for clip in draws)


def test_a_seed_draws_the_same_clip_again(draws: list[speech.Clip]) -> None:
    assert draws[17] == speech.draw_clip(17, "train")


def test_the_split_is_a_property_of_the_text_alone() -> None:
    assert speech.split_of("new line") == "train"  # too short to hold out
    clips = [speech.draw_clip(seed, "test", kind="long") for seed in range(50)]
    assert all(speech.split_of(sentence) == "test" for clip in clips for sentence in clip.sentences)


def test_what_is_spoken_through_is_several_sentences_for_the_engine_as_one() -> None:
    clips = [speech.draw_clip(seed, "train", kind="breath") for seed in range(200)]
    assert all(len(clip.sentences) == len(clip.speakers) == 1 for clip in clips)
    assert all(18 <= len(clip.text.split()) <= 60 for clip in clips)
    assert {speech.split_of(clip.text) for clip in clips} == {"train"}


def test_a_part_of_the_training_clips_is_spoken_through() -> None:
    clips = tool.train_clips(3, 4.0, breath=0.5)
    breaths = [clip for clip in clips if clip.kind == "breath"]
    assert 0.4 < len(breaths) / len(clips) < 0.6
    assert clips == tool.train_clips(3, 4.0, breath=0.5)
    assert not any(clip.kind == "breath" for clip in tool.train_clips(3, 1.0))


@pytest.mark.parametrize(
    ("engine", "voice"),
    [
        ("espeak-ng", "en-us+Denis"),
        ("flite", "slt"),
        ("festival", "kal_diphone"),
        ("festival", "cmu_us_slt_arctic_hts"),
    ],
)
def test_each_engine_speaks(engine: str, voice: str) -> None:
    if not shutil.which(engine):
        pytest.skip(f"{engine} is not installed")
    who = speech.Speaker(engine, voice, pitch=1.1, tempo=0.9, tract=0.95)
    (wave,) = speech.speak([("meet alice at the station at noon", who)])
    assert wave.dtype == np.float32
    assert np.isfinite(wave).all()
    assert 1.0 < len(wave) / speech.RATE < 5.0
    assert np.sqrt(np.mean(wave**2)) > 0.02


def test_a_shorter_tract_keeps_the_tempo() -> None:
    if not shutil.which("espeak-ng"):
        pytest.skip("espeak-ng is not installed")
    speakers = [speech.Speaker("espeak-ng", "en-us", tract=tract) for tract in (0.85, 1.18)]
    low, high = speech.speak(
        [("please open the kitchen window this evening", who) for who in speakers]
    )
    assert len(low) == pytest.approx(len(high), rel=0.05)


def test_missing_engines_are_named_with_the_command_that_helps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speech.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        speech.require_engines()
    assert stop.value.code == 2
    assert "apt-get install espeak-ng flite festival" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["white", "pink", "hum", "cough"])
def test_noise_has_unit_power(kind: str) -> None:
    wave = speech.noise(kind, speech.RATE, np.random.default_rng(0))
    assert np.sqrt(np.mean(wave**2)) == pytest.approx(1, abs=0.01)


def test_warp_by_one_changes_nothing_and_by_more_shortens() -> None:
    mel = np.random.default_rng(0).standard_normal((7, 80)).astype(np.float32)
    assert np.allclose(tool.warp(mel, 1.0, 1.0), mel, atol=1e-2)
    assert tool.warp(mel, 1.1, 1.0).shape == mel.shape
    assert [len(tool.warp(mel, 1.0, tempo)) for tempo in (0.5, 1.0, 2.0)] == [14, 7, 4]


@pytest.mark.parametrize("by", [-7, -3, 0, 3, 7])
def test_a_shifted_clip_begins_elsewhere_and_says_the_same(by: int) -> None:
    mel = np.concatenate(
        [np.full((20, 80), -1), np.random.default_rng(0).standard_normal((50, 80)) + 1]
    )
    moved = tool.shifted(mel.astype(np.float16), by)
    assert len(moved) == len(mel) + by
    assert np.array_equal(moved[20 + by :], mel[20:].astype(np.float16))


def test_no_sound_is_lost_by_an_earlier_beginning() -> None:
    mel = np.concatenate([np.full((3, 80), -1), np.ones((60, 80))]).astype(np.float16)
    assert len(tool.shifted(mel, -7)) == 60
    assert len(tool.shifted(mel[3:], -7)) == 60


def test_the_transducers_loss_is_nemos(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from nemo.collections.asr.losses.rnnt_pytorch import TDTLossPytorch

    loss = importlib.import_module("tdt_loss")
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)  # NeMo's own runs nowhere else
    dice = torch.Generator().manual_seed(3)
    logits = torch.randn(3, 7, 4, 6 + 1 + 5, generator=dice, requires_grad=True)
    targets, lengths = torch.randint(0, 6, (3, 3), generator=dice), torch.tensor([7, 5, 4])
    counts = torch.tensor([3, 2, 0])
    words, jumps = logits[..., :-5].log_softmax(-1) - 0.05, logits[..., -5:].log_softmax(-1)
    theirs = -TDTLossPytorch(6, tool.DURATIONS).compute_forward_prob(
        words, jumps, targets, lengths, counts
    )[0]
    ours = loss.tdt_loss(logits, targets, lengths, counts, tool.DURATIONS, 0.05)
    weights = torch.tensor([1.0, 0.5, 2.0])
    gradients = [torch.autograd.grad((each * weights).sum(), logits)[0] for each in (ours, theirs)]
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_a_text_too_long_for_its_sound_teaches_nothing() -> None:
    import torch

    loss = importlib.import_module("tdt_loss")
    logits = torch.randn(1, 1, 3, 12, requires_grad=True)
    counts = torch.tensor([2])
    found = loss.tdt_loss(
        logits, torch.zeros(1, 2, dtype=torch.long), torch.tensor([1]), counts, [1, 2], 0.0
    )
    found.sum().backward()
    assert float(found.detach()) == float(logits.grad.abs().sum()) == 0


@pytest.mark.processor
def test_a_transducer_learns_on_the_encoder_of_the_ctc(tmp_path: Path, corpus: tool.Corpus) -> None:
    """Two stretches of it: while the encoder settles it stays as it is, then it moves; the loss
    falls."""
    import torch

    (tmp_path / "tdt").mkdir()
    args = argparse.Namespace(
        work=tmp_path / "tdt",
        seed=1,
        init_tdt=None,
        minutes_tdt=1.0,
        rate=1e-3,
        init_ctc=DATA_FOLDER / "demo-ctc.nemo",
    )
    for name in ("train", "dev"):
        for kind in ("json", "frames.json", "mel"):
            shutil.copy(tmp_path / f"train.{kind}", args.work / f"{name}.{kind}")
    training = tool.Training("tdt", args, tool.Log(args.work))
    training.model.train()
    encoder = [value.clone() for value in training.model.encoder.state_dict().values()]
    batch, r = [[i] for i in range(4)], random.Random(0)
    training.recipe.settling = 1.0
    losses = [training.update(batch, r) for _ in range(4)]
    assert all(map(torch.equal, encoder, training.model.encoder.state_dict().values()))
    training.recipe.settling = 0.0
    losses += [training.update(batch, r) for _ in range(4)]
    assert not all(map(torch.equal, encoder, training.model.encoder.state_dict().values()))
    assert losses[-1] < losses[0]
    log = args.work / "train.log"
    told = (
        log.exists()
        and "the prediction network trains in float32: no bfloat16 LSTM" in log.read_text()
    )
    assert told == bool(tool.lstm_lacks_bfloat16())


@pytest.fixture
def corpus(tmp_path: Path) -> tool.Corpus:
    """300 clips of 0.5-3.5 s without features."""
    clips = [speech.draw_clip(seed, "train", kind="sentence") for seed in range(300)]
    frames = [50 + seed for seed in range(300)]
    (tmp_path / "train.json").write_text(json.dumps([clip.describe() for clip in clips]))
    (tmp_path / "train.frames.json").write_text(json.dumps(frames))
    np.zeros(sum(frames) * 80, np.float16).tofile(tmp_path / "train.mel")
    return tool.Corpus(tmp_path / "train")


def test_batches_hold_every_clip_once_and_are_not_too_wide(corpus: tool.Corpus) -> None:
    batches = corpus.batches(range(300), 2000, random.Random(0))
    assert sorted(i for batch in batches for i in batch) == list(range(300))
    assert all(len(batch) * max(corpus.frames[i] for i in batch) <= 2000 for batch in batches)
    assert sum(len(corpus.mel(i)) for i in range(300)) == sum(corpus.frames)


def test_joined_clips_are_six_seconds_or_more_and_never_a_held_out_sentence(
    corpus: tool.Corpus,
) -> None:
    r = random.Random(0)
    joined = [clips for _ in range(50) for clips in corpus.joined(6000, r)]
    assert {speech.split_of(corpus.text(clips)) for clips in joined} == {"train"}
    assert all(600 <= sum(corpus.frames[i] for i in clips) < 1700 for clips in joined)


def test_error_rates_are_by_group_and_count_words_for_no_speech() -> None:
    rows = [
        {"text": "a b", "group": "x", "kind": "sentence"},
        {"text": "c d", "group": "x", "kind": "long"},
        {"text": "", "group": "x", "kind": "empty"},
    ]
    rates = tool.error_rates(rows, ["a b", "c", "the the"])
    assert rates == {"x": 0, "long": 50, "all": 25, "no speech": 2}


@pytest.mark.parametrize(
    ("hypothesis", "reference", "count"),
    [
        ("a b c", "a b c", 0),
        ("", "a b", 2),
        ("a x c", "a b c", 1),
        ("a b", "", 2),
        ("b c d", "a b c", 2),
    ],
)
def test_errors_counts_edits(hypothesis: str, reference: str, count: int) -> None:
    assert tool.errors(hypothesis, reference) == count


def test_the_shipped_models_can_write_every_word() -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    for name in ("demo.nemo", "demo-ctc.nemo", "demo-tdt.nemo"):
        with tarfile.open(DATA_FOLDER / name) as archive:
            files = [m for m in archive.getmembers() if m.name.endswith("tokenizer.model")]
            models = [archive.extractfile(m).read() for m in files]  # type: ignore[union-attr]
            config = archive.extractfile("model_config.yaml").read().decode()  # type: ignore[union-attr]
        pieces = [sentencepiece.SentencePieceProcessor(model_proto=model) for model in models]
        assert any(
            all(p.unk_id() not in p.encode(word) for word in speech.vocabulary()) for p in pieces
        )
        assert not re.search(r": ['\"]?/", config), "a path of the machine that made it"


def test_the_shipped_manifest_is_what_the_card_says() -> None:
    soundfile = pytest.importorskip("soundfile")
    rows = [json.loads(line) for line in (EVAL / "manifest.jsonl").read_text().splitlines()]
    assert len(rows) >= 150
    assert sum(len(row["text"].split()) for row in rows) >= 1200
    for row in rows:
        info = soundfile.info(EVAL / row["audio_filepath"])
        assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        assert info.duration == pytest.approx(row["duration"], abs=1e-3)
        assert " ".join(row["sentences"]) == row["text"]
        assert {speech.split_of(sentence) for sentence in row["sentences"]} == {"test"}
        assert {"voice", "engine", "group"} <= row.keys()
    assert 3 <= rows[0]["duration"] <= 5
    assert rows[0]["voice"] == "en-us"
    assert {path.name for path in EVAL.glob("*.flac")} == {row["audio_filepath"] for row in rows}
