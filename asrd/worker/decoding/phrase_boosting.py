"""Phrases that are preferred where the sound leaves a choice: NeMo's boosting tree, under a greedy
search.

The tree gives a bonus to each token that begins or continues a phrase. NeMo takes it back where a
phrase is left before its end, as a beam needs it; a greedy search never takes a token back, so that
this only pushes it on to the end of phrases nobody said (measured; asrd/docs/voice-commands.md has the figures).
Here leaving is free. A bonus makes another token of a token and never one of a blank or of the end,
so silence stays silent.

Knows tokens and their scores; knows no sound. Runs in the worker, on any device.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from asrd.errors import ConfigError, nearest

DEPTH = {"aed": 1.0}
"""Family -> how much more a phrase's later tokens get than its first, in which NeMo's advice
differs from 2."""

STATES = 64
"""States whose bonuses are kept; most tokens are chosen in the first one."""


class Boost:
    """The phrases of a vocabulary as one tree over a model's tokens.

    Args:
        model: a restored NeMo model.
        phrases: at least one.
        weight: what the first token of a phrase gets, in nats; later ones get `DEPTH` times that
            and a little more.
        language: for tokenizers that are several: whose tokens a phrase is written in.

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
        graph = ContextGraph(context_score=1.0, depth_scaling=DEPTH.get(family, 2.0))
        graph.build(token_ids=ids, uniform_weights=False)
        self.weight = weight
        self.tree = GPUBoostingTreeModel.from_context_graph(
            graph, int(tokenizer.vocab_size), uniform_weights=False
        )
        self.tree.requires_grad_(False).backoff_weights.zero_()
        self._advance = lru_cache(STATES)(self._bonuses)

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

    def after(self, ids: Sequence[int]) -> int:
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
    lacking = sorted(
        {c for c in phrase if not c.isspace() and not _writable(tokenizer, c, language)}
    )
    raise ConfigError(
        f"this model cannot write {phrase!r}, which is in the vocabulary",
        f"its tokenizer has no {' '.join(lacking)}"
        if lacking
        else "leave it out, or write it as the model would",
    )


def _writable(tokenizer: Any, letter: str, language: str) -> bool:
    texts = letter, letter.lower()
    return any(
        _bare(_decode(tokenizer, _encode(tokenizer, text, language))) == _bare(text)
        for text in texts
    )


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
    pieces = tokenizer.ids_to_tokens(ids)
    return (
        "" if any(piece.startswith("<|") for piece in pieces) else str(tokenizer.ids_to_text(ids))
    )


def _bare(text: str) -> str:
    """Return a text as tokenizers normalise it: compatibility forms, case and white space do not
    count."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())
