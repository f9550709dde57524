"""Whether a model is chosen, and what follows where none is.

From a microphone without a chosen model asrd records, keeps the audio and writes no text. On files,
pipes and measurements the demo model runs, and each verb says so. The sentences are here, so that
every place says the same.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from asrd import paths
from asrd.config.loading import Loaded
from asrd.config.settings import Settings
from asrd.errors import ModelError
from asrd.models import names

log = logging.getLogger("asrd")

DEMO = "demo"
"""The model that runs on files where none is chosen."""

EXAMPLE = "nvidia/parakeet-tdt-0.6b-v3"
"""The model that a hint names."""

DEMO_WORDS = 179
"""Words that the demo models know (tools/demo_speech.py)."""

UNCHOSEN = "no model is chosen"
"""The shortest form: why a recording is kept, and what a bar shows."""

CONSEQUENCE = f"{UNCHOSEN}: asrd records and keeps the audio, but writes no text"

LIMIT = f"knows only synthetic voices and {DEMO_WORDS} words, not your microphone"
"""What is said of every demo model."""


def hint(file: Path | None = None, environment: Mapping[str, str] = os.environ) -> str:
    """Return what chooses a model: the line, the file that it belongs into, and the command that
    reads it.

    Args:
        file: the configuration file that was named; None for the usual one.
    """
    where = os.path.abspath(file or paths.config_file(environment))
    home = os.path.join(environment.get("HOME") or "/", "")
    if home != "/" and where.startswith(home):
        where = f"~/{where.removeprefix(home)}"
    return f'put the line model = "{EXAMPLE}" at the top of {where}, then run: asrd reload'


def require(settings: Settings, file: Path | None = None) -> None:
    """Raise ModelError where no model is chosen."""
    if not settings.model:
        raise ModelError(CONSEQUENCE, hint(file))


def check_recording(settings: Settings, private: bool, file: Path | None = None) -> None:
    """Raise ModelError for a recording that could only be lost: no model, and its sound is kept for
    no other try.

    Args:
        private: somebody waits for its text, and a text that comes later reaches nobody.
    """
    if settings.model or not (private or settings.keep_audio == "never"):
        return
    why = (
        "there is no text to wait for"
        if private
        else 'keep_audio = "never" keeps no recording until there is one'
    )
    raise ModelError(f"{UNCHOSEN}, and {why}", hint(file))


def note(settings: Settings, file: Path | None = None) -> str:
    """Return what a person must know of the model that is chosen, or of none; "" where there is
    nothing to say."""
    if not settings.model:
        return f"{CONSEQUENCE}; {hint(file)}"
    return f"{settings.model} is a demo model: it {LIMIT}" if is_demo(settings.model) else ""


def is_demo(model: str) -> bool:
    """Return whether a name or a path means a model that is shipped with asrd."""
    if model in names.SHIPPED:
        return True
    return model.endswith(".nemo") and Path(model).expanduser().resolve() in names.SHIPPED.values()


def or_demo(settings: Settings) -> Settings:
    """Return settings whose model is the demo where none is chosen."""
    return settings if settings.model else msgspec.structs.replace(settings, model=DEMO)


def for_files(settings: Settings) -> Settings:
    """Return settings with a model, and say so where that is the demo and nobody named it."""
    if not settings.model:
        log.warning(
            "no model is named, so %s is used. It %s. Name a model: --model %s",
            DEMO,
            LIMIT,
            EXAMPLE,
        )
    return or_demo(settings)


def for_source(loaded: Loaded, source: str) -> Loaded:
    """Return a daemon's settings: with the demo where `source` is a file or a pipe and no model is
    chosen."""
    if source == "mic":
        return loaded
    return msgspec.structs.replace(loaded, settings=or_demo(loaded.settings))
