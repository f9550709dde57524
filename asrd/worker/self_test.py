"""The self-test of a worker: it warms the model up, and transcribes a clip whose text is shipped."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from asrd import paths, protocol
from asrd.audio import files
from asrd.audio.format import SAMPLE_RATE
from asrd.errors import AudioError
from asrd.models import names
from asrd.worker.loading.model_loader import Report
from asrd.worker.recognizer import Recognizer

WARM_UP_BYTES = 10 * 4 * SAMPLE_RATE
"""Bytes of the longest buffer that is warmed up: ten seconds of float32 samples."""


class SelfTestError(Exception):
    """A shipped model did not transcribe the clip as it must."""


def run(recognizer: Recognizer, report: Report) -> protocol.SelfTest:
    """Warm up, enable the fast paths, then transcribe the clip.

    Raises:
        NonFiniteError: NaN or infinity in the encoder's output.
        SelfTestError: a shipped model returned another text.
        AudioError: the shipped clips are missing.
    """
    start = recognizer.start
    audio, expected = _reference_clip()
    long_audio = (audio * (1 + WARM_UP_BYTES // len(audio)))[:WARM_UP_BYTES]
    with recognizer.loaded.applied.observing():
        for phase in _warm_up_phases(recognizer):
            recognizer.recognize(audio, phase=phase)
        recognizer.recognize(long_audio, phase="final")
    recognizer.enable_fast_paths(long_audio)
    report(protocol.Progress("self-test"))
    answer = recognizer.recognize(audio, phase="final")
    text = answer.hypothesis.text
    passed = bool(text)  # a model of another language has another text
    if start.model in names.SHIPPED:
        passed = text == expected
        if not passed:
            raise SelfTestError(
                f"the self-test clip was transcribed as {text!r} under {start.precision.name}"
            )
    return protocol.SelfTest(expected, text, answer.seconds, passed)


def _warm_up_phases(recognizer: Recognizer) -> Sequence[str]:
    """Return the phases to run before the final one: they load a card's kernels.

    On a CPU a first run costs little more than a second one. There only phases that compute
    differently are run.
    """
    start = recognizer.start
    if start.device != "cpu" or start.precision.phases:
        return ("warmup", "partial")
    if recognizer.loaded.stream is not None:
        return ("partial",)
    return ()


def _reference_clip() -> tuple[bytes, str]:
    """Return the clip's samples and its text. Raises AudioError when the shipped data is missing."""
    try:
        with paths.EVALUATION_MANIFEST.open("rb") as lines:
            entry = msgspec.json.decode(lines.readline())
    except OSError as error:
        raise AudioError(f"the shipped clips are missing: {error}", "install asrd again") from error
    samples = files.read(paths.EVALUATION_MANIFEST.parent / entry["audio_filepath"])
    return samples.tobytes(), str(entry["text"])
