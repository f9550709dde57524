"""The files that a config names, and its entries that are emptied or not known (pure)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from asrd.models.config_schema import (
    CALLING_KEYS,
    FREE_SECTIONS,
    KNOWN_KEYS,
    MAX_TOKENIZERS,
    PATH_OR_ADDRESS,
    READING_KEY_ENDS,
    READING_KEYS,
    TOKENIZER_FILES,
)
from asrd.models.untrusted_yaml import RefusedError, dotted, shown


def tokenizer_files(config: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Yield each tokenizer's section, the key of a file of it, and the name that this file has in
    the archive."""
    for _, section in _tokenizers(config):
        for key, usual in TOKENIZER_FILES.items():
            value = section.get(key) or usual
            yield section, key, str(value).removeprefix("nemo:").rpartition("/")[2]


def _tokenizers(config: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the place and section of each tokenizer."""
    section = config.get("tokenizer")
    if not isinstance(section, dict):
        return []
    several = section.get("langs")
    if not isinstance(several, dict):
        return [("tokenizer", section)]
    found = [
        (f"tokenizer.langs.{name}", one) for name, one in several.items() if isinstance(one, dict)
    ]
    return found if _tokenizer_type(section) == "agg" else [("tokenizer", section), *found]


def _tokenizer_type(section: dict[str, Any]) -> str:
    """Return a tokenizer's type as NeMo compares it."""
    return str(section.get("type")).lower()


def check_tokenizers(config: dict[str, Any], members: frozenset[str] | None) -> None:
    """Check that tokenizers are read from the archive alone."""
    tokenizers = _tokenizers(config)
    if len(tokenizers) > MAX_TOKENIZERS:
        raise RefusedError(f"has more than {MAX_TOKENIZERS} tokenizers")
    for place, section in tokenizers:
        for key in TOKENIZER_FILES:
            value = section.get(key)
            if value is not None and not isinstance(value, str):
                raise RefusedError(f"has {place}.{key}, which is not a file name")
            inside = (value or "").removeprefix("nemo:").removeprefix("./")
            if (
                value is not None
                and value.startswith("nemo:")
                and ("/" in inside or inside in ("", ".", ".."))
            ):
                raise RefusedError(
                    f"names {shown(value)} in {place}.{key}, which is outside the model file"
                )
    if members is None:
        return
    for section, key, name in tokenizer_files(config):
        needed = key == ("vocab_path" if _tokenizer_type(section) == "wpe" else "model_path")
        if needed and name not in members:
            raise RefusedError(
                f"needs the tokenizer file {shown(name)}, which the model file does not hold"
            )


def emptied_entries(node: Any, where: tuple[object, ...]) -> Iterator[str]:
    """Empty, and yield, each entry that names something outside the archive; tokenizers' own files
    are seen to."""
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        here, name = (*where, key), str(key)
        if here[0] == "tokenizer" and name == "dir":
            node[key] = None  # of the machine that it was trained on
        elif here[0] in ("labels", "prompt_defaults", "target") or name in (
            "vocabulary",
            *TOKENIZER_FILES,
            *CALLING_KEYS,
        ):
            if name in TOKENIZER_FILES and here[0] != "tokenizer" and value:
                node[key] = None
                yield dotted(here)
        elif value and (
            _is_read(name) or (isinstance(value, str) and PATH_OR_ADDRESS.fullmatch(value))
        ):
            node[key] = None
            yield dotted(here)
        elif isinstance(value, dict | list):
            yield from emptied_entries(value, here)


def _is_read(key: str) -> bool:
    return key in READING_KEYS or key.endswith(READING_KEY_ENDS)


def unknown_entries(node: dict[str, Any], where: tuple[object, ...]) -> Iterator[str]:
    """Yield each entry whose key is not known."""
    for key, value in node.items():
        here = (*where, key)
        if key not in KNOWN_KEYS and key not in CALLING_KEYS and where[-1:] != ("langs",):
            yield dotted(here)
        if isinstance(value, dict) and key not in FREE_SECTIONS:
            yield from unknown_entries(value, here)
