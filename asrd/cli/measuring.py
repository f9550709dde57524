"""What `compare` and `tune` share before they measure: the speech, the model's file, counts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from asrd.errors import UsageError
from asrd.evaluation.manifest import Clip
from asrd.evaluation.results import Speech
from asrd.evaluation.speech import read_manifest
from asrd.models import downloader
from asrd.precision.plan import Gpu
from asrd.terminal.output import one_line, tell
from asrd.terminal.progress import DownloadBar


def check_counts(args: argparse.Namespace) -> None:
    """Raise UsageError for a count of clips or repeats below 1."""
    for name in ("limit", "repeats"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} {value} is too few", "1 or more")


def read_speech(path: Path, limit: int | None, language: str) -> tuple[list[Clip], Speech]:
    """Return the clips of a manifest and what they are together; print which lines are skipped.

    Raises: as evaluation.speech.read_manifest.
    """
    clips, speech = read_manifest(path, limit, language)
    for line in speech.skipped:
        tell(one_line(f"asrd: {path}, line {line.line} is skipped: {line.reason}"), sys.stderr)
    return clips, speech


def device_name(gpu: Gpu | None) -> str:
    """Return a card as torch names it, or cpu."""
    if gpu is None:
        return "cpu"
    return f"cuda:{gpu.index}"


def fetched(model: str) -> Path:
    """Return the file of a model; one that is not here is downloaded first, which is shown. Raises:
    as Engine.download."""
    with DownloadBar() as bar:
        return downloader.fetch_now(model, bar.show)


def interrupt_code(error: BaseException) -> int:
    """Return the exit code of a measurement that was interrupted: 130 by Ctrl-C, else 143."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 143
