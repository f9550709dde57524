"""What a hint proposes is accepted: each line is fed back, and the settings load with it."""

from __future__ import annotations

import random
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from asrd.config import loading, misnomers, settings
from asrd.errors import ConfigError

TABLE = {
    "sink = 3": 'sinks = ["type"]', 'sink = "clipboard"': 'sinks = "clipboard"', "gpu = 0": 'device = "cuda:0"',
    'gpu = "1"': 'device = "cuda:1"', 'language = "German"': 'source_lang = "de"', "timeout = 15": "idle = 15",
    "timeout = false": 'idle = "never"', "keep_recordings = true": 'keep_audio = "always"',
    'beep = "yes"': 'cues = "yes"',
    'precision = "fp16"': 'strategy = "fp16"', 'precision = "fp17"': 'strategy = "auto"', "quantization = true":
    'strategy = "auto"', "num_threads = 9999": "threads = 0", "chunk = 1": "window = 10.0", "mic = true":
    'microphone = "USB"', 'hotwords = "Zwickau"': 'vocabulary = "Zwickau"', "hotwords = 7": 'vocabulary = "7"',
    "translate = true": 'target_lang = "en"', "max_vram = 2000": "vram_budget = 2000", "punctuation = 7": "pnc = true",
    "save_audio = 1": 'keep_audio = "on-failure"', "sinks = 3": 'sinks = ["type"]', "strategy = 8": 'strategy = "8"',
    "strategy = true": 'strategy = "auto"', "parts = 3": 'parts = { encoder = "float16" }', "spoken = 3":
    'spoken = { "my mail" = "me@example.org" }', "sink = type": 'sinks = "type"', "threads = four": "threads = 0",
    "modle = demo": 'model = "demo"', "export ASRD_SINK=3": 'sinks = ["type"]', "idle = 30 min": 'idle = "30 min"',
    "keep_audio = yes": 'keep_audio = "always"', "sink = \u201ctype\u201d": 'sinks = "type"', "idle: 30": "idle = 30",
    "gpu 0": 'device = "cuda:0"', 'sink = "type': 'sinks = "type"', "window = 007": "window = 7",
    "ASRD_IDLE = true": 'idle = "30"',
}  # fmt: skip
"""A line -> the line that its hint proposes."""

VALUES: list[Any] = [
    3, -5, 0, True, False, 1.5, 1e300, 2**70, "", "german", "yes", "a, b", ["x"], [], "type", "30 min", "50%", "true",
    "cuda", "demo", "de", "none", "7", "\u201cx\u201d", "a\tb", "\x7f",
]  # fmt: skip
WORDS = [
    "yes",
    "3",
    "de",
    "german",
    "50%",
    "30 min",
    "fp16",
    "type",
    "-1",
    "true",
    "a b",
    "007",
    "0.5",
    "x#y",
    "~/m",
]
SHAPES = [
    "{} = {}",
    "{}: {}",
    "{} {}",
    "export ASRD_{} = {}",
    '{} = "{}',
    "ASRD_{}={}",
    "{} = \u201c{}\u201d",
]


def proposed(hint: str) -> str:
    """Return the line, or the variable, that a hint proposes; "" where it proposes none."""
    found = re.search(
        r"write(?:, for example,)? ((?:ASRD_)?\w+ ?=.*?)(?:; it is for Canary.*)?$", hint
    )
    return found[1] if found else ""


def refused(tmp_path: Path, text: str, environment: dict[str, str] | None = None) -> str | None:
    """Return the hint about a configuration; None where it is accepted."""
    file = tmp_path / "config.toml"
    file.write_text(text, "utf-8")
    try:
        loading.load(file, environment=environment or {})
    except ConfigError as error:
        return error.hint
    return None


@pytest.mark.parametrize("line", TABLE, ids=lambda line: line[:40])
def test_the_line_that_was_meant_is_proposed(line: str, tmp_path: Path) -> None:
    hint = refused(tmp_path, line)
    assert hint is not None
    assert proposed(hint) == TABLE[line]
    assert refused(tmp_path, TABLE[line]) is None


def wrong(seed: int = 17) -> list[str]:
    """Return lines with a wrong name, a wrong value, or that are not TOML; seeded."""
    draw, lines = random.Random(seed), []
    others = [word for words in misnomers.OTHERS.values() for word in words]
    for name in [*others, *settings.KNOWN, *(f"ASRD_{key}" for key in settings.FIELDS)]:
        lines += [f"{name} = {misnomers.toml(value)}" for value in draw.sample(VALUES, 4)]
        lines += [draw.choice(SHAPES).format(name, word) for word in draw.sample(WORDS, 3)]
    return lines


def test_every_line_that_is_proposed_is_accepted(tmp_path: Path) -> None:
    lines, count = wrong(), 0
    for line in lines:
        hint = refused(tmp_path, line)
        if hint is not None and (found := proposed(hint)):
            count += 1
            for each in found.split(" or "):  # a switch has two
                assert refused(tmp_path, each) is None, (line, hint)
    assert count > len(lines) // 3


def test_every_variable_that_is_proposed_is_accepted(tmp_path: Path) -> None:
    draw, count = random.Random(18), 0
    for word in [word for words in misnomers.OTHERS.values() for word in words]:
        for value in draw.sample(WORDS, 3):
            hint = refused(tmp_path, "", {f"ASRD_{word.upper()}": value})
            assert hint is not None
            if found := proposed(hint):
                count += 1
                name, _, text = shlex.split(found)[0].partition("=")
                assert refused(tmp_path, "", {name: text}) is None, (word, value, hint)
    assert count > 100


def test_every_example_of_a_number_is_accepted(tmp_path: Path) -> None:
    count = 0
    for name in settings.FIELDS:
        hint = refused(tmp_path, f'{name} = "no number"') or ""
        if found := re.search(r'for example (".*")', hint):
            count += 1
            assert refused(tmp_path, f"{name} = {found[1]}") is None, (name, hint)
    assert count >= 6


def test_every_setting_has_an_example_that_it_takes() -> None:
    for name, value in settings.EXAMPLES.items():
        assert settings.accepted(name, value), name


@pytest.mark.parametrize(
    "name", [name for name in settings.FIELDS if name not in settings.MAY_BE_EMPTY]
)
def test_an_empty_variable_is_one_that_is_not_set(name: str, tmp_path: Path) -> None:
    value = (
        list(settings.EXAMPLES[name])
        if isinstance(settings.EXAMPLES[name], tuple)
        else settings.EXAMPLES[name]
    )
    file = tmp_path / "config.toml"
    file.write_text(f"{name} = {misnomers.toml(value)}")
    alone = loading.load(file, environment={})
    both = loading.load(file, environment={f"ASRD_{name.upper()}": ""})
    assert both == alone
    assert both.origins[name] == str(file)


@pytest.mark.parametrize("name", settings.MAY_BE_EMPTY)
def test_an_empty_variable_is_a_value_where_an_empty_text_is_one(name: str, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f"{name} = {misnomers.toml(settings.EXAMPLES[name])}")
    loaded = loading.load(file, environment={f"ASRD_{name.upper()}": ""})
    assert getattr(loaded.settings, name) == ""
    assert loaded.origins[name] == f"ASRD_{name.upper()}"


def test_an_empty_variable_of_any_other_name_is_not_set_either(tmp_path: Path) -> None:
    names = (
        "ASRD_CONFIG",
        "ASRD_DEBUG",
        "ASRD_USE_FP16",
        "ASRD_AUTOCAST_DTYPE",
        "ASRD_SINK",
        "ASRD_NOTHING",
    )
    empty = dict.fromkeys(names, "")
    assert loading.load(environment={"HOME": str(tmp_path)} | empty).settings == settings.Settings()
