"""The speech that strategies are compared on: a manifest, or the recordings that are kept."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from asrd import paths
from asrd.audio.blocks import clean
from asrd.audio.format import SAMPLE_RATE
from asrd.engine.tuned import KEPT_RECORDINGS
from asrd.errors import ManifestError
from asrd.evaluation import manifest
from asrd.evaluation.manifest import Clip
from asrd.evaluation.normalising import metric, normaliser
from asrd.evaluation.results import Speech
from asrd.recordings.files import blocks
from asrd.recordings.store import RecordingStore, folder
from asrd.text.characters import readable

log = logging.getLogger("asrd")


def read_manifest(path: Path, limit: int | None, language: str) -> tuple[list[Clip], Speech]:
    """Return the clips of a manifest and what they are together.

    Args:
        limit: take so many clips, evenly spread; None takes all.
        language: that of the texts.

    Raises ManifestError: it cannot be read, has no usable line, or no line has a text.
    """
    clips, skipped = manifest.read(path, limit)
    if not clips:
        raise ManifestError(
            f"{path} has no usable line", 'each line: {"audio_filepath": ..., "text": ...}'
        )
    kind = metric([clip.text for clip in clips], language)
    words = _count_words(clips, language, kind)
    if not words:
        raise ManifestError(
            f"{path} has no reference text", 'each line needs it: {..., "text": ...}'
        )
    shown = readable(str(_shown_path(path)))
    return clips, Speech(shown, len(clips), words, _seconds(clips), language, skipped, kind)


def read_recordings(language: str, limit: int | None) -> tuple[list[Clip], Speech]:
    """Return the kept recordings as clips without text, the newest where not all are wanted.

    Raises ManifestError: no recording with audio is kept.
    """
    store = RecordingStore(folder())
    notes = [note for note in store.all() if note.seconds > 0]
    if limit is not None:
        notes = notes[-limit:]
    clips = []
    for number, note in enumerate(notes, 1):
        try:
            audio = b"".join(data for _, data in blocks(store.path(note)))
            samples, damaged = clean(np.frombuffer(audio, np.float32))
        except OSError as error:
            log.warning("recording %s is skipped: %s", note.id, error.strerror)
            continue
        if damaged:
            log.warning(
                "recording %s: %d samples are not finite and count as silence", note.id, damaged
            )
        clips.append(Clip(number, "", samples))
    if not clips:
        hint = 'set keep_audio = "always", then dictate; or name a --manifest'
        raise ManifestError("no recording with audio is kept", hint)
    return clips, Speech(KEPT_RECORDINGS, len(clips), 0, _seconds(clips), language)


def _count_words(clips: list[Clip], language: str, kind: str) -> int:
    """Return the words of all reference texts, or their characters where the metric is CER."""
    normalise = normaliser(language, kind)
    total = 0
    for clip in clips:
        total += len(normalise(clip.text).split())
    return total


def _seconds(clips: list[Clip]) -> float:
    total = 0
    for clip in clips:
        total += len(clip.samples)
    return total / SAMPLE_RATE


def _shown_path(path: Path) -> Path:
    """Return a manifest's path; that of the shipped one is the same wherever asrd is installed."""
    if path == paths.EVALUATION_MANIFEST:
        return path.relative_to(paths.DATA_FOLDER.parents[1])
    return path
