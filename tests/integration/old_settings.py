"""Every setting of the old release, as somebody would write it in files and in variables.

What of it the old code accepts, and what it then means, is the old code's to say.
"""

from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path
from typing import Any

import msgspec

from asrd.config import amounts, faults, loading
from asrd.errors import AsrdError

SWITCHES = (
    "pnc",
    "timestamps_model",
    "graphs",
    "commands",
    "capitals",
    "log_text",
    "notify",
    "cues",
)

SWITCH_WORDS = (
    *("true", "True", "1", "yes", "on", "t", "y"),
    *("false", "FALSE", "0", "no", "off", "null", "maybe"),
)
"""What a variable may say of a switch; the old code does not accept all of it."""

BOUNDS: dict[str, tuple[float, float]] = {
    "boost": (0, 5),
    "window": (2, 30),
    "threads": (0, 256),
    "max_wer_delta": (0, 100),
    "pre_roll": (0, 10),
    "draft_every": (0, 60),
    "type_delay": (0, 1000),
    "takes_days": (0, 3650),
    "takes_mb": (1, 1_000_000),
    "demote_empty": (0, 600),
    "demote_failures": (0, 100),
    "demote_slower": (0, 1000),
    "demote_memory": (0, 1000),
    "demote_changed": (0, 100),
    "promote_after": (0, 10_000),
    "shadow": (0, 1000),
}
"""Setting that is a number -> the least and the most of it that somebody would write."""

TEXTS: dict[str, tuple[str, ...]] = {
    "model": (
        "demo",
        "demo-ctc",
        "demo-tdt",
        "nvidia/canary-180m-flash",
        "canary-180m-flash",
        "~/models/own.nemo",
    ),
    "device": ("auto", "cpu", "cuda", "cuda:0", "cuda:1", "RTX 4090", "H100", "GPU-8a56a4bb-1f2e"),
    "source_lang": ("en", "de", "pt-BR", "yue"),
    "target_lang": ("en", "fr", "zh-TW"),
    "vram_budget": ("", "2000", "2000MiB", "1.5 GiB", "50%", "100%", " 8GiB "),
    "vram_alert": ("", "3500MiB", "90%", "12GiB", "4096"),
    "source": ("mic", "pipe", "file:/tmp/a b.wav", "file:own.flac"),
    "microphone": ("", "Blue Yeti", "Grüner Lautsprecher", "usb, rear"),
    "deliver": ("take", "segment"),
    "suffix": ("", " ", "\n", ". "),
    "keep_audio": ("never", "on-failure", "always"),
    "idle": ("never", "immediately", "30", "0", "0.5", "1440", " 5", "1e2"),
    "socket": ("", "/run/user/1000/own.sock", "~/asrd.sock"),
}
"""Setting that is text -> what somebody would write."""

LISTS: dict[str, tuple[list[str], ...]] = {
    "sinks": (
        ["type"],
        ["paste"],
        ["clipboard"],
        ["stdout", "journal"],
        ["none"],
        ["command:wl-copy -p", "type"],
        [],
    ),
    "vocabulary": (["NeMo", "Canary"], [], ["two  words", "two words"], ["@words.txt"], ["Łódź"]),
}

TABLES: dict[str, tuple[dict[str, str], ...]] = {
    "parts": (
        {},
        {"encoder": "float16"},
        {"encoder": "int8", "decoder": "bfloat16"},
        {"encoder.layers.0": "float32"},
    ),
    "spoken": (
        {},
        {"my mail": "me@example.org"},
        {"new line": ""},
        {"shout": "{caps}"},
        {"Ende.": "^.^"},
    ),
}


def toml(value: Any) -> str:
    """Return a value as TOML writes it in one line."""
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{json.dumps(key)} = {toml(one)}" for key, one in value.items()) + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def written(old: dict[str, Any]) -> dict[str, tuple[list[str], list[str]]]:
    """Return for each setting how a file may say it, and how a variable may."""
    draw = random.Random(1619)
    texts = TEXTS | {"strategy": tuple(old["strategies"]), "preset": tuple(old["presets"])}
    texts["faults"] = (
        "",
        *(f"{kind}:{draw.randint(1, 9)}" for kind in old["faults"]),
        "oom:1, non-finite:3:encoder",
    )
    found = {key: (list(map(toml, values)), list(values)) for key, values in texts.items()}
    for key, lists in LISTS.items():
        found[key] = (list(map(toml, lists)), [*map(",".join, lists), *map(", ".join, lists)])
    for key, tables in TABLES.items():
        found[key] = (list(map(toml, tables)), list(map(toml, tables)))
    for key in (*SWITCHES, "use_bf16", "use_fp16"):
        words = [*SWITCH_WORDS, ""]
        found[key] = (["true", "false", "1", "0", '"true"', '"0"'], words)
    for key, (low, high) in BOUNDS.items():
        numbers = [
            f"{low:g}",
            f"{high:.0f}",
            f"{high:.0f}.0",
            *(f"{draw.uniform(low, high):.3g}" for _ in range(4)),
        ]
        numbers += [str(draw.randint(math.ceil(low), int(high))) for _ in range(4)]
        found[key] = (
            numbers,
            [*numbers, f" {numbers[3]}", f"+{numbers[4]}", "null", "-1", "2_0", "1e1"],
        )
    found["autocast_dtype"] = (list(map(toml, old["dtypes"])), list(old["dtypes"]))
    return found


def cases(old: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Return configurations: each setting in each way by itself, and files with many at once."""
    made: list[dict[str, Any]] = []

    def add(environment: dict[str, str], lines: list[str]) -> None:
        own = {} if any(line.startswith("model =") for line in lines) else {"ASRD_MODEL": "demo"}
        path = folder / f"{len(made)}.toml"
        path.write_text("\n".join(lines))
        made.append({"environment": own | environment, "file": os.fspath(path)})

    (folder / "words.txt").write_text("# own\nParakeet\n\nFastConformer\n")
    ways = written(old)
    for key, (in_file, in_variable) in ways.items():
        for value in in_file:
            add({}, [f"{key} = {value}"])
        for value in in_variable:
            add({f"ASRD_{key.upper()}": value}, [])
    # An empty ASRD_SOCKET took the old daemon from where its verbs asked; it is unset now.
    for key in sorted(TEXTS.keys() - {"socket"} | {"faults"}):
        for value in ways[key][1]:
            add({f"ASRD_{key.upper()}": value}, [f"{key} = {ways[key][0][-1]}"])
    draw = random.Random(2026)
    for _ in range(300):
        keys = draw.sample(sorted(ways.keys() - {"model"}), draw.randint(2, 12))
        apart = {key: draw.random() < 0.7 for key in keys}
        lines = [f"{key} = {draw.choice(ways[key][0])}" for key in keys if apart[key]]
        add(
            {f"ASRD_{key.upper()}": draw.choice(ways[key][1]) for key in keys if not apart[key]},
            lines,
        )
    return made


def meaning(case: dict[str, Any]) -> dict[str, Any]:
    """Return what a configuration means today, as old_programs/meaning.txt does of the old code."""
    try:
        found = loading.load(Path(case["file"]), environment=case["environment"])
    except AsrdError as error:
        return {"refused": str(error)}
    settings = found.settings
    told = {
        "settings": msgspec.to_builtins(settings),
        "idle_seconds": amounts.idle_seconds(settings.idle),
        "wer_bound": settings.wer_bound,
        "budget": amounts.budget(settings.vram_budget, 1 << 40),
        "alert": amounts.budget(settings.vram_alert, 1 << 40),
        "phrases": sorted([*phrase, text] for phrase, text in settings.phrases.items()),
        "faults": msgspec.to_builtins(faults.parse(settings.faults)),
        "notes": found.notes,
    }
    return dict(json.loads(msgspec.json.encode(told)))
