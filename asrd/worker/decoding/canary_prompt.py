"""The tokens that begin a Canary decoding: languages, task and the other slots of its prompt."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from asrd.errors import ConfigError, ModelError, nearest

PROMPT_FORMATS = ("canary", "canary2")
"""Prompt formats that are supported."""

LANGUAGE_TOKEN = re.compile(r"<\|([a-z]{2}(?:-[A-Z]{2})?)\|>")


def languages(tokenizer: Any) -> list[str]:
    """Return the languages that a Canary tokenizer has a token for, in order."""
    pieces = getattr(tokenizer, "special_tokens", None) or tokenizer.vocab
    matches = filter(None, map(LANGUAGE_TOKEN.fullmatch, pieces))
    return sorted(match[1] for match in matches)


def prompt(model: Any, source_lang: str, target_lang: str, pnc: bool | None) -> Tensor:
    """Return the token ids [1, P] that begin a Canary decoding.

    Slots that the user does not choose are the checkpoint's own defaults, or off; its timestamp
    tokens are always off.

    Raises:
        ModelError: another prompt format, or a tokenizer without one of its tokens.
        ConfigError: a language that the tokenizer has not.
    """
    style = model.prompt_format
    if style not in PROMPT_FORMATS:
        raise ModelError(
            f"Canary's prompt format {style!r} is not supported",
            f"supported: {', '.join(PROMPT_FORMATS)}",
        )
    supported = languages(model.tokenizer)
    for language in (source_lang, target_lang):
        if language not in supported:
            raise ConfigError(
                f"this model has no language {language!r}",
                nearest(language, supported, "asrd models"),
            )
    values = _slots(model, source_lang, target_lang, pnc)
    wanted = model.prompt.get_slots("user")
    slots = {slot: value for slot, value in values.items() if slot in wanted}
    slots[model.prompt.PROMPT_LANGUAGE_SLOT] = "spl_tokens"
    turn = {"role": "user", "slots": slots}
    try:
        ids: Tensor = model.prompt.encode_dialog(turns=[turn])["context_ids"]
    except KeyError as error:
        raise ModelError(
            f"the tokenizer lacks {error}, which prompt format {style} begins with"
        ) from error
    return ids[None]


def _slots(model: Any, source_lang: str, target_lang: str, pnc: bool | None) -> dict[str, Any]:
    """Return the value of every slot that a prompt may have."""
    values: dict[str, Any] = {
        "decodercontext": "",
        "emotion": "<|emo:undefined|>",
        "pnc": "yes",
        "itn": "no",
        "diarize": "no",
    }
    for slot, value in model.prompt.get_default_dialog_slots()[0]["slots"].items():
        if value:
            values[slot] = value
    values |= {"source_lang": source_lang, "target_lang": target_lang, "timestamp": "no"}
    if pnc is not None:
        values["pnc"] = "yes" if pnc else "no"
    values["task"] = "asr" if source_lang == target_lang else "ast"
    return values
