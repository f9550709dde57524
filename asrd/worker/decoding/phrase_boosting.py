"""Phrases that get a bonus where the audio leaves a choice: NeMo's boosting tree, under a greedy
search.

The tree gives a bonus to each token that begins or continues a phrase. NeMo takes the bonus back
where a phrase is left before its end, as a beam search needs it. A greedy search never takes a
token back, so this only pushes it on to the end of phrases that were not spoken (measured;
asrd/docs/voice-commands.md has the figures). Here leaving a phrase costs nothing. A bonus replaces
one token by another. It never replaces a blank or the end, so silence stays empty.

This file knows tokens and their scores; it knows no audio. It runs on any device.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from asrd.errors import ConfigError, nearest

DEPTH_FACTORS = {"aed": 1.0}
"""Family -> how much more a phrase's later tokens get than its first, where NeMo advises another
factor than 2."""

MAX_KEPT_STATES = 64
"""States whose bonuses are kept; most tokens are chosen in the first one."""


class Boost:
    """The phrases of a vocabulary as one tree over a model's tokens.

    Args:
        model: a restored NeMo model.
        phrases: at least one.
        weight: the bonus of a phrase's first token, in nats; later ones get `DEPTH_FACTORS` times
            that and a little more.
        family: the model's family, as `DEPTH_FACTORS` names it.
        language: for several tokenizers in one: whose tokens a phrase is written in.

    Raises:
        ConfigError: a model without a tokenizer, or a phrase that its tokenizer cannot write.
    """

    def __init__(
        self, model: Any, phrases: Sequence[str], weight: float, family: str, language: str
    ) -> None:
        from nemo.collections.asr.parts.context_biasing.boosting_graph_batched import (
            GPUBoostingTreeModel,
        )
        from nemo.collections.asr.parts.context_biasing.context_graph_universal import ContextGraph

        tokenizer = getattr(model, "tokenizer", None)
        if tokenizer is None:
            raise ConfigError(
                "a model that writes letters has no vocabulary to prefer", "set vocabulary = []"
            )
        ids = [token_ids(tokenizer, phrase, language) for phrase in phrases]
        graph = ContextGraph(context_score=1.0, depth_scaling=DEPTH_FACTORS.get(family, 2.0))
        graph.build(token_ids=ids, uniform_weights=False)
        self.weight = weight
        self.tree = GPUBoostingTreeModel.from_context_graph(
            graph, int(tokenizer.vocab_size), uniform_weights=False
        )
        self.tree.requires_grad_(False).backoff_weights.zero_()
        self._advance = lru_cache(MAX_KEPT_STATES)(self._bonuses)

    def choose(self, scores: Tensor, state: int, barred: Collection[int]) -> tuple[int, int]:
        """Return the token with the best log score [V] and bonus together, none of `barred`, and
        the state after it.

        The state before the first token is 0.
        """
        bonus, following = self._advance(state, scores.device)
        sums = scores.float() + bonus
        sums[list(barred)] = -torch.inf
        token = int(sums.argmax())
        return token, int(following[token])

    def state_after(self, ids: Sequence[int]) -> int:
        """Return the state behind tokens."""
        state = 0
        for token in ids:
            state = int(self._advance(state, torch.device("cpu"))[1][token])
        return state

    def _bonuses(self, state: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return each token's bonus [V], on the device, and the state after each [V]."""
        bonus, following = self.tree.advance(
            self.tree.get_init_states(batch_size=1, bos=True).fill_(state)
        )
        return (self.weight * bonus[0]).to(device), following[0]


def token_ids(tokenizer: Any, phrase: str, language: str) -> list[int]:
    """Return the tokens of a phrase, in small letters where the tokenizer has no others. Raises
    ConfigError."""
    for text in (phrase, phrase.lower()):
        ids = _encode(tokenizer, text, language)
        if ids and _bare(_decode(tokenizer, ids)) == _bare(text):
            return ids
    hint = "leave it out, or write it as the model would"
    if lacking := _unwritable(tokenizer, phrase, language):
        hint = f"its tokenizer has no {' '.join(lacking)}"
    raise ConfigError(f"this model cannot write {phrase!r}, which is in the vocabulary", hint)


def _unwritable(tokenizer: Any, phrase: str, language: str) -> list[str]:
    """Return the letters of a phrase that a tokenizer cannot write, in order."""
    found = []
    for letter in sorted(set("".join(phrase.split()))):
        if not _writable(tokenizer, letter, language):
            found.append(letter)
    return found


def _writable(tokenizer: Any, letter: str, language: str) -> bool:
    for text in (letter, letter.lower()):
        if _bare(_decode(tokenizer, _encode(tokenizer, text, language))) == _bare(text):
            return True
    return False


def _encode(tokenizer: Any, text: str, language: str) -> list[int]:
    """Return token ids. Raises ConfigError for a language that a tokenizer of several has not."""
    if not hasattr(tokenizer, "langs"):
        return list(tokenizer.text_to_ids(text))
    try:
        return list(tokenizer.text_to_ids(text, language))
    except (KeyError, RuntimeError) as error:
        hint = nearest(language, tuple(tokenizer.langs), "asrd models")
        raise ConfigError(f"this model has no language {language!r}", hint) from error


def _decode(tokenizer: Any, ids: list[int]) -> str:
    """Return the text of token ids; that of a tag is nothing, as no speech becomes one."""
    if any(piece.startswith("<|") for piece in tokenizer.ids_to_tokens(ids)):
        return ""
    return str(tokenizer.ids_to_text(ids))


def _bare(text: str) -> str:
    """Return a text as tokenizers normalise it: compatibility forms, case and white space do not
    count."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())
