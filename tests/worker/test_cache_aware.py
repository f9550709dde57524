"""Drafts of cache-aware models: what any cutting gives is one streaming pass, and only what is new
is encoded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asrd import protocol
from asrd.precision.strategies import STRATEGY_TABLE
from asrd.worker.recognizer import NonFiniteError, Recognizer
from asrd.worker.startup import ready_message, start_recognizer
from tests.fakes import tiny

FAMILIES = ("ca_ctc", "ca_rnnt", "ca_tdt", "ca_hybrid")
RATE, CHUNK = 16_000, 14 * 1280
"""Samples a second, and in one chunk of the tiny models' first attention context."""

SOUND = tiny.noise(9.0, 5)


@cache
def worker(family: str, folder: Path, strategy: str = "fp32") -> Recognizer:
    path = folder / f"{family}.nemo"
    path = path if path.exists() else tiny.build(family, folder)
    return start_recognizer(
        protocol.Start(str(path), STRATEGY_TABLE[strategy], threads=1, self_test=False),
        lambda _: None,
    )


def ask(
    held: Recognizer, samples: np.ndarray, start: int = 0, phase: str = "partial"
) -> protocol.Hypothesis:
    return held.recognize(samples.tobytes(), start, phase).hypothesis


def forget(held: Recognizer) -> None:
    assert held._stream is not None
    held._stream.forget()


def one_pass(held: Recognizer, samples: np.ndarray) -> list[int]:
    """Return the tokens of NeMo's own streaming over a whole sound: its buffer, its steps, its
    decoding.

    The buffer is given the features that hold sound; left to itself it takes one frame of padding
    for sound.
    """
    from nemo.collections.asr.parts.utils.streaming_utils import CacheAwareStreamingAudioBuffer

    model = held.model
    buffer = CacheAwareStreamingAudioBuffer(model)
    features, frames = model.preprocessor(
        input_signal=torch.as_tensor(samples)[None], length=torch.tensor([len(samples)])
    )
    buffer.append_processed_signal(features[:, :, : int(frames)])
    caches = model.encoder.get_initial_cache_state(batch_size=1)
    said: Any = None
    for step, (chunk, length) in enumerate(buffer):
        with torch.inference_mode():
            found = model.conformer_stream_step(
                processed_signal=chunk,
                processed_signal_length=length,
                cache_last_channel=caches[0],
                cache_last_time=caches[1],
                cache_last_channel_len=caches[2],
                keep_all_outputs=buffer.is_buffer_empty(),
                previous_hypotheses=said if held._decoder.family != "ctc" else None,
                previous_pred_out=said if held._decoder.family == "ctc" else None,
                drop_extra_pre_encoded=model.encoder.streaming_cfg.drop_extra_pre_encoded
                if step
                else 0,
                return_transcription=True,
            )
        caches = found[2:5]
        said = found[0] if held._decoder.family == "ctc" else found[5]
    if held._decoder.family == "ctc":
        path, blank = said[0].tolist(), model.decoding.blank_id
        return [t for i, t in enumerate(path) if t != blank and (i == 0 or t != path[i - 1])]
    return [int(token) for token in said[0].y_sequence]


@contextmanager
def listening(held: Recognizer) -> Iterator[list[int]]:
    """Give the tokens of each draft that is asked for within."""
    found: list[int] = []
    decoder, read = held._decoder, held._decoder.read  # type: ignore[attr-defined]

    def noted(path: Any) -> Any:
        decoded = read(path)
        found[:] = [token.id for token in decoded.tokens]
        return decoded

    decoder.read = noted  # type: ignore[attr-defined]
    try:
        yield found
    finally:
        del decoder.read  # type: ignore[attr-defined]


@contextmanager
def counting(held: Recognizer) -> Iterator[list[int]]:
    """Collect how many feature frames go into the encoder, call by call."""
    held._fast_encoder = None  # a straight program calls no module
    frames: list[int] = []
    hook = held.model.encoder.register_forward_pre_hook(
        lambda _, args, kwargs: frames.append(kwargs["audio_signal"].shape[-1]), with_kwargs=True
    )
    try:
        yield frames
    finally:
        hook.remove()


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_cutting_gives_the_tokens_of_one_streaming_pass(
    family: str, folder: Path, data: st.DataObject
) -> None:
    held = worker(family, folder)
    stop = data.draw(st.integers(RATE, len(SOUND)))
    cuts = data.draw(st.lists(st.integers(1, stop), max_size=8))
    forget(held)
    with listening(held) as heard:
        for cut in [*sorted(cuts), stop]:
            answer = ask(held, SOUND[:cut], start=777)
    assert heard == one_pass(held, SOUND[:stop])
    assert len(set(heard)) > 1 or stop < 3 * RATE, "a model that says one thing only proves nothing"
    assert (answer.start, answer.stop) == (777, 777 + stop)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunks", [0, 1, 3])
def test_a_chunk_whose_last_frame_lacks_samples_is_no_longer_than_a_chunk(
    family: str, chunks: int, folder: Path
) -> None:
    held = worker(family, folder)
    frames = 105 + 112 * chunks  # feature frames of so many chunks more than the first
    for samples in (160, 200, 255):  # the last frame's window needs 256
        stop = 160 * frames + samples
        forget(held)
        with listening(held) as decoded:
            ask(held, SOUND[:stop], start=777)
        assert decoded == one_pass(held, SOUND[:stop])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_partial_result_is_that_of_the_full_pass_over_the_same_audio(
    family: str, folder: Path
) -> None:
    """The full pass hears the same chunks; it only hears one more, half-empty frame at the end."""
    held = worker(family, folder)
    sound = SOUND[: 7 * CHUNK - 7 * 160]
    forget(held)
    draft = ask(held, sound, 1234)
    final = ask(held, sound, 1234, "final")
    assert draft.words
    assert [(w.text, w.start, w.stop) for w in draft.words] == [
        (w.text, w.start, w.stop) for w in final.words
    ]
    assert draft.text == final.text
    for one, other in zip(draft.words, final.words, strict=True):
        assert one.confidence == pytest.approx(other.confidence, abs=1e-3)


def test_the_encoder_reads_the_new_audio_and_less_than_a_chunk_of_the_old(folder: Path) -> None:
    held = worker("ca_rnnt", folder)
    steps = [
        round(RATE * seconds) for seconds in (1.2, 2.0, 2.9, 3.4, 4.4, 5.0, 5.8, 6.7, 7.7, 8.4, 9.0)
    ]
    forget(held)
    before = 0
    with counting(held) as frames:
        for step in steps:
            frames.clear()
            ask(held, SOUND[:step])
            new = step // 160 - before
            chunks = math.ceil(new / 112) + 1
            assert sum(frames) <= new + 112 + 9 * (chunks + 1)
            assert max(frames) <= 121
            before = step // 160
    with counting(held) as frames:
        ask(held, SOUND[: steps[-1]], phase="final")
        assert frames == [steps[-1] // 160]


def test_the_same_partial_buffer_again_encodes_only_its_rest(folder: Path) -> None:
    held = worker("ca_ctc", folder)
    first = ask(held, SOUND)
    with counting(held) as frames:
        assert ask(held, SOUND) == first
    assert sum(frames) <= 121


@pytest.mark.parametrize(
    "change", ["start", "early sample", "shorter", "final between", "short draft between"]
)
def test_a_partial_buffer_that_does_not_go_on_from_the_last_begins_anew(
    change: str, folder: Path
) -> None:
    held = worker("ca_rnnt", folder)
    forget(held)
    expected = ask(held, SOUND[: 6 * RATE])
    ask(held, SOUND[: 5 * RATE])
    sound, start = SOUND[: 6 * RATE].copy(), 0
    if change == "start":
        start = 160
    elif change == "early sample":
        sound[3] += 1e-4
    elif change == "shorter":
        sound = sound[:RATE]
    elif change == "final between":
        ask(held, sound, phase="final")
    else:
        ask(held, sound[: RATE // 2])
    with counting(held) as frames:
        again = ask(held, sound, start)
    assert sum(frames) >= len(sound) // 160
    if change in ("final between", "short draft between"):
        assert again == expected
    assert frames[0] in (105, len(sound) // 160)


def test_nothing_survives_an_error_or_a_final(folder: Path) -> None:
    held = worker("ca_rnnt", folder)
    stream = held._stream
    assert stream is not None
    forget(held)
    expected = ask(held, SOUND)
    layer = held.model.encoder.layers[1].norm_out
    for part in (held.model.encoder, held.model.joint.enc):
        forget(held)
        ask(held, SOUND[: 4 * RATE])
        broken = part.register_forward_pre_hook(
            lambda *_: (_ for _ in ()).throw(RuntimeError("struck"))
        )
        with pytest.raises(RuntimeError, match="struck"):
            ask(held, SOUND)
        broken.remove()
        assert stream._kept is None
        assert ask(held, SOUND) == expected
    spoilt = layer.register_forward_hook(lambda _, args, output: output * math.nan)
    with pytest.raises(NonFiniteError):
        ask(held, SOUND)
    spoilt.remove()
    assert stream._kept is None
    assert ask(held, SOUND) == expected
    ask(held, SOUND, phase="final")
    assert stream._kept is None


def test_what_is_kept_does_not_grow(folder: Path) -> None:
    held = worker("ca_rnnt", folder)
    stream = held._stream
    assert stream is not None

    def size(seconds: int) -> int:
        forget(held)
        ask(held, tiny.noise(seconds, 3))
        assert stream._kept is not None
        state = stream._kept[1]
        return sum(tensor.nbytes for tensor in (*state.caches, state.features))

    assert size(2) == size(40)


@pytest.mark.parametrize(
    "strategy", ["half", "bfloat16", "selective", "phased", "autocast-bf16", "16-mixed", "int8"]
)
@pytest.mark.parametrize("family", ["ca_ctc", "ca_rnnt"])
def test_cuts_change_nothing_under_reduced_precision(
    family: str, strategy: str, folder: Path
) -> None:
    held = worker(family, folder, strategy)
    with listening(held) as heard:
        forget(held)
        ask(held, SOUND)
        whole = list(heard)
        forget(held)
        for cut in (RATE, 2 * RATE, round(3.3 * RATE), 5 * RATE, len(SOUND)):
            ask(held, SOUND[:cut])
    assert heard == whole
    assert whole


@pytest.mark.parametrize("family", FAMILIES)
def test_cuts_change_nothing_where_phrases_are_preferred(family: str, folder: Path) -> None:
    worker(family, folder)
    start = protocol.Start(
        str(folder / f"{family}.nemo"), STRATEGY_TABLE["fp32"], threads=1, self_test=False
    )
    held = start_recognizer(start, lambda _: None)
    with listening(held) as heard:
        ask(held, SOUND)
        plain = list(heard)
        held._decoder.boost_phrases(["shana", "tho be", "ki"], 4.0)
        forget(held)
        ask(held, SOUND)
        whole = list(heard)
        forget(held)
        for cut in (RATE, 2 * RATE, round(3.3 * RATE), 5 * RATE, len(SOUND)):
            ask(held, SOUND[:cut])
    assert heard == whole
    assert whole != plain, "a weight that changes nothing proves nothing"


@pytest.mark.parametrize("context", [[70, 6], [70, 1], [70, 0]])
def test_every_look_ahead_streams(context: list[int], folder: Path) -> None:
    name = f"ahead{context[1]}"
    path = tiny.build("ca_rnnt", folder, name=name, encoder__att_context_size=[context, [70, 13]])
    held = start_recognizer(
        protocol.Start(str(path), STRATEGY_TABLE["fp32"], threads=1, self_test=False),
        lambda _: None,
    )
    with listening(held) as heard:
        for cut in (RATE, 2 * RATE, round(3.3 * RATE), 5 * RATE, len(SOUND)):
            ask(held, SOUND[:cut])
    assert heard == one_pass(held, SOUND)


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("ctc", {}),
        ("canary1", {}),
        ("ca_ctc", {"preprocessor__normalize": "per_feature"}),
        ("ca_ctc", {"encoder__att_context_style": "regular", "encoder__att_context_size": [70, 0]}),
        ("ca_ctc", {"encoder__causal_downsampling": False}),
        ("ca_rnnt", {"encoder__conv_context_size": None}),
    ],
)
def test_other_models_decode_the_whole_buffer(
    family: str, overrides: dict[str, Any], folder: Path
) -> None:
    path = tiny.build(family, folder, name=f"other-{family}-{len(str(overrides))}", **overrides)
    held = start_recognizer(
        protocol.Start(str(path), STRATEGY_TABLE["fp32"], threads=1, self_test=False),
        lambda _: None,
    )
    assert ready_message(held).streaming == "buffer"
    ask(held, SOUND[: 3 * RATE])
    with counting(held) as frames:
        ask(held, SOUND[: 4 * RATE])
    assert frames == [400]


def test_a_cache_aware_model_reports_it(folder: Path) -> None:
    assert ready_message(worker("ca_hybrid", folder)).streaming == "cache-aware"
