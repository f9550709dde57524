"""The facts of a model before a worker is started: its header, and its languages.

Reads a header or, where no file is here, the table of architectures; opens no weights.
"""

from __future__ import annotations

import logging
import re

from asrd.config.settings import Settings
from asrd.errors import AsrdError, ConfigError, ModelError
from asrd.models import architectures, checkpoint, names
from asrd.models.checkpoint import Header

log = logging.getLogger("asrd")

LANGUAGE_CODE = re.compile(r"[a-z]{2,3}(-[A-Z]{2})?")


def header_of(name: str) -> tuple[Header, str]:
    """Return a model's header and the path it was read from; "" where it was computed from the
    architecture.

    Raises:
        ModelError: a file that cannot be used, or a name on the hub without a file here and without sizes.
        UsageError: no name at all.
    """
    try:
        path = names.resolve(name)
    except names.NotCachedError as missing:
        if missing.name in architectures.ARCHITECTURES:
            return architectures.describe(missing.name), ""
        raise ModelError(
            f"{missing.name} is not in the cache, and its sizes are not known without its file",
            "asrd transcribe with --model downloads it; asrd models lists the known names",
        ) from missing
    return checkpoint.header(path), str(path)


def languages(name: str, header: Header) -> str:
    """Return the languages of a model, as its architecture lists them or its file does; empty where
    neither does."""
    if name in names.SHIPPED:
        return "en"
    for full in (f"nvidia/{name}", name):
        if full in architectures.ARCHITECTURES:
            return architectures.ARCHITECTURES[full].languages
    return " ".join(header.languages)


def check_languages(settings: Settings, header: Header | None = None) -> None:
    """Log where a language was chosen that the model does not have. Reads a model file only
    where one was.

    Args:
        header: the model's, where it was read already.

    Raises ConfigError for a model that is given the language, which it then would refuse or write
    nonsense in.
    """
    asked = [key for key in ("source_lang", "target_lang") if getattr(settings, key) != "en"]
    if not asked or not settings.model:
        return
    try:
        header = header or header_of(settings.model)[0]
    except AsrdError:  # the worker reports what is wrong with the model
        return
    offered = languages(settings.model, header).split()
    if not offered or not all(map(LANGUAGE_CODE.fullmatch, offered)):
        return
    spoken = {code.partition("-")[0] for code in offered}
    have = f"the model {settings.model} knows {' '.join(offered)}"
    for key in asked:
        code = getattr(settings, key)
        if code.partition("-")[0] in spoken:
            continue
        if header.family == "aed":
            hint = f'write {key} = "{offered[0]}", or choose another model'
            raise ConfigError(f"{key} = {code!r} is not a language of this model: {have}", hint)
        log.warning("%s = %r does nothing: %s", key, code, have)
