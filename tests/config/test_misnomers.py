"""Wrong keys, tables, lines and values of the configuration: one sentence, a hint that helps, exit
code 78."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from asrd.cli import main
from asrd.config import misnomers, settings
from tests.helpers import have_own_folders

KEYS = {
    "language": "source_lang", "lang": "source_lang", "Language": "source_lang", "precision": "strategy",
    "dtype": "strategy", "compute_type": "strategy", "gpu": "device", "mic": "microphone", "output": "sinks",
    "sink": "sinks", "timeout": "idle", "idle_timeout": "idle", "hotwords": "vocabulary", "vocab": "vocabulary",
    "punctuation": "pnc", "beep": "cues", "chunk-length": "window", "num_threads": "threads", "socket-path": "socket",
    "notifications": "notify", "source-lang": "source_lang", "Model": "model", "keep-audio": "keep_audio",
    "hotkey": "the desktop binds keys", "log_level": "--debug", "sample_rate": "resamples", "modle": "'model'",
    "stratgy": "'strategy'", "windw": "'window'", "qqqq": "asrd config lists them all",
}  # fmt: skip
"""A wrong key -> what the hint says."""

TABLES = {
    "asrd": "remove the line [asrd]", "engine": "remove the line [engine]", "settings": "[settings]",
    "general": "[general]", "Daemon": "[Daemon]", "audio": "remove [audio]", "part": "'parts'", "spokn": "'spoken'",
    "tool": "only parts and spoken are tables",
}  # fmt: skip

LINES = {
    "model = demo": 'model = "demo"', "model = nvidia/canary-1b": '"nvidia/canary-1b"', "cues = yes": "cues = true",
    "cues = True": "cues = true", "log_text = off": "log_text = false", "model: demo": 'model = "demo"',
    'model "demo"': 'model = "demo"', 'model = "demo': 'model = "demo"', "model = 'demo": 'model = "demo"',
    "model =": "write a value", "idle = 30 min": 'idle = "30 min"', "window = 8 s": 'window = "8 s"',
    "strategy = bf16 # cheap": 'strategy = "bf16"', "model = /srv/a b.nemo": '"/srv/a b.nemo"',
    "sinks = [type, paste]": 'sinks = ["type"', "parts = {encoder: fp16}": "tables { }", "[asrd": "setting = value",
    "model = demo-ctc": '"demo-ctc"', "vram_budget = 50%": 'vram_budget = "50%"', "threads = two": "threads = 0",
    "= 3": "setting = value", 'model = "a"\nmodel = "b"': "keep one of the two lines",
    '[spoken]\nx = "y"\n[spoken]': "keep one of the two lines", "model = \u201cdemo\u201d": 'model = "demo"',
    "model = \u2018demo\u2019": 'model = "demo"', "sinks = [\u201etype\u201c]": 'sinks = ["type"]',
    "model = \u00abdemo\u00bb": 'model = "demo"', "export ASRD_MODEL=demo": 'in the file write model = "demo"',
    "export ASRD_IDLE=30": "variables stand in", "ASRD_STRATEGY=fp16": 'in the file write strategy = "fp16"',
    "set ASRD_CUES=on": "in the file write cues = true", "ASRD_MODEL=a-b": 'in the file write model = "a-b"',
}  # fmt: skip
"""A line that is not TOML -> what the hint says."""

VALUES = {
    'window = "a"': ("not a number", "2 to 30"), "window = nan": ("not finite", ""), "window = inf": ("not finite", ""),
    "window = -1": ("out of range", "2 to 30"), "window = 1e400": ("not finite", ""),
    "window = true": ("not a number", ""),
    "window = [8]": ("not a number", ""),
    "threads = 1.5": ("not a whole number", "0 to 256"), "threads = -1": ("range", ""),
    f"threads = {10**40}": ("out of range", "0 to 256"), f"takes_days = {2**70}": ("out of range", "3650"),
    "promote_after = 1e300": ("out of range", "1000000"), "demote_empty = -0.5": ("out of range", ""),
    "demote_slower = inf": ("not finite", ""), 'boost = "5 %"': ("not a number", ""),
    "cues = 2": ("neither", "cues = true"),
    'cues = "maybe"': ("neither true nor false", "cues = true"), "model = 5": ("not text", 'model = "5"'),
    "strategy = []": ("not text", ""), "model = 2026-01-01": ("not text", ""), "sinks = 3": ("not a list", ""),
    'sinks = ["type", 3]': ("not a list", ""),
    'parts = "x"': ("not a table", "encoder"), "spoken = 3": ("not a table", ""),
    'source_lang = "german"': ("not a language code", 'source_lang = "de"'),
    'target_lang = "d"': ("not a language", "en"),
    'vram_budget = "-5"': ("not an amount", "2GiB"), 'vram_budget = "nan"': ("not an amount", ""),
    "idle = -5": ("not a span", ""),
    "idle = nan": ("not text", ""), 'idle = "999999999 days"': ("not a span", "never"), 'faults = "x:1"': ("fault", ""),
    'preset = "fast"': ("unknown preset", "known:"), 'source = "usb"': ("not known", "pipe"),
    "shadow = 1e9": ("range", ""),
    "idle = false": ("not text", 'idle = "never"'), "idle = true": ("not text", 'idle = "30"'),
    "keep_audio = true": ("not text", 'keep_audio = "always"'), "keep_audio = false": ("not text", '= "never"'),
    "model = true": ("not text", 'model = "demo"'), "device = 0": ("not text", 'device = "cuda:0"'),
    "device = 1": ("not text", 'device = "cuda:1"'), "microphone = 3": ("not text", "asrd devices"),
    'vocabulary = ["@/nope"]': ("/nope, which cannot be read: No such file or directory\n", "text file"),
    "[[engine]]\nx = 1": ("unknown table 'engine'", "remove the line [[engine]]"),
    "[[asrd]]\n[[asrd]]": ("unknown table 'asrd'", "remove the line [[asrd]]"),
    "ASRD_IDLE = 30": ("unknown setting 'ASRD_IDLE'", "the setting is called idle"),
    'source = "file:"': ("source = 'file:'", "file:PATH"),
    f"window = 1{'0' * 5000}": ("", ""), f"sinks = {'[' * 3000}": ("", ""),
}  # fmt: skip
"""A value that a setting cannot have -> what the sentence says, and the hint."""

GOOD = {
    "idle = 30": ("idle", "30"), "idle = 0.5": ("idle", "0.5"), 'idle = "Never"': ("idle", "never"),
    "vram_budget = 2000": ("vram_budget", "2000"), 'vram_budget = "2 GB"': ("vram_budget", "2 GB"),
    'cues = "yes"': ("cues", True), "cues = 1": ("cues", True), 'cues = "OFF"': ("cues", False),
    'window = "8"': ("window", 8.0), "window = 8": ("window", 8.0), 'demote_slower = "10 %"': ("demote_slower", 10.0),
    'preset = "Default"': ("preset", "default"), 'keep_audio = "on_failure"': ("keep_audio", "on-failure"),
    'deliver = "Segment"': ("deliver", "segment"), 'sinks = "Type, clipboard"': ("sinks", ["type", "clipboard"]),
    'source_lang = "DE"': ("source_lang", "de"), 'source_lang = "de_de"': ("source_lang", "de-DE"),
    'source_lang = "pt-br"': ("source_lang", "pt-BR"), 'source = "MIC"': ("source", "mic"),
    'source = "File:A b.wav"': ("source", "file:A b.wav"), "takes_days = 14.0": ("takes_days", 14),
    '\ufeffmodel = "demo"': ("model", "demo"),
}  # fmt: skip
"""A line that is accepted -> the setting and its value."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    have_own_folders(tmp_path, monkeypatch)
    (tmp_path / "asrd").mkdir()
    return tmp_path


def refused(home: Path, text: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the complaint about a configuration, which is one sentence and one hint."""
    (home / "asrd" / "config.toml").write_text(text, "utf-8")
    assert main.main(["config"]) == 78
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 2, said
    assert len(said) < 500 + len(str(home)), said
    assert "Expected `" not in said, "msgspec's words are not ours"
    return said


@pytest.mark.parametrize(("key", "hint"), KEYS.items())
def test_a_wrong_key_is_told_the_right_one(
    key: str,
    hint: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = refused(home, f'{key} = "de"', capsys)
    assert f"unknown setting {key!r}" in said
    assert hint in said
    assert sum(name in said for name in settings.FIELDS) <= 5, "no list of all"
    (home / "asrd" / "config.toml").unlink()
    monkeypatch.setenv(f"ASRD_{key.upper()}", "de")
    if key.lower() not in settings.FIELDS:
        assert main.main(["config"]) == 78
        said = capsys.readouterr().err.lower().replace("asrd_", "")
        assert hint.strip("'").lower() in said, "a variable's hint names a variable"


def slips(seed: int = 15) -> list[tuple[str, str]]:
    """Return every setting with a letter doubled, lost, exchanged or added; seeded."""
    draw, found = random.Random(seed), []
    for name in sorted(name for name in settings.FIELDS if len(name) > 5):
        place = draw.randrange(1, len(name) - 1)
        first, last = name[:place], name[place:]
        options = (first + last[0] + last, first + last[1:], f"{first}{draw.choice('qxz')}{last}")
        found.append((draw.choice(options), name))
    return found


@pytest.mark.parametrize(("slip", "meant"), slips())
def test_a_slip_of_a_letter_is_seen_through(
    slip: str, meant: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"did you mean {meant!r}?" in refused(home, f"{slip} = 1", capsys)


@pytest.mark.parametrize(("name", "hint"), TABLES.items())
def test_a_table_is_told_where_settings_stand(
    name: str, hint: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(home, f"[{name}]\nx = 1", capsys)
    assert f"unknown table {name!r}" in said
    assert hint in said
    said = refused(home, f'[{name}]\nmodel = "demo"\nidle = 30', capsys)
    assert f"remove the line [{name}]" in said


@pytest.mark.parametrize(("line", "hint"), LINES.items())
def test_a_line_that_is_not_toml_is_named_and_mended(
    line: str, hint: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in (f"# mine\n{line}\nnotify = true\n", f"# mine\n{line}"):
        said = refused(home, text, capsys)
        assert hint in said
        assert "line " in said
    assert main.main(["status"]) == 69, (
        "a file without a socket is no matter of a verb that only asks"
    )
    capsys.readouterr()
    (home / "asrd" / "config.toml").write_text(f"# socket\n{line}\n", "utf-8")
    assert main.main(["status"]) == 78
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(("line", "parts"), VALUES.items(), ids=lambda value: str(value)[:40])
def test_a_value_that_cannot_be_is_said_in_our_words(
    line: str, parts: tuple[str, str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(home, line, capsys).splitlines(keepends=True)
    assert parts[0] in said[0]
    assert parts[1] in said[1]


def test_a_file_that_is_missing_is_told_by_what_named_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["config", "--config", str(tmp_path / "none.toml")]) == 78
    assert "leave --config out" in capsys.readouterr().err
    monkeypatch.setenv("ASRD_CONFIG", str(tmp_path / "none.toml"))
    assert main.main(["config"]) == 78
    assert "unset ASRD_CONFIG" in capsys.readouterr().err


@pytest.mark.parametrize(("line", "expected"), GOOD.items())
def test_what_a_person_would_write_is_accepted(
    line: str, expected: tuple[str, object], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "asrd" / "config.toml").write_text(line, "utf-8")
    assert main.main(["config", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)[expected[0]]["value"]
    assert (found, type(found)) == (expected[1], type(expected[1]))


SWITCHES = ["yes", "YES", "on", "On", "true", "TRUE", "1", "y", "t", "True",
            "no", "NO", "off", "Off", "false", "FALSE", "0", "n", "f", "False"]  # fmt: skip


@pytest.mark.parametrize("word", SWITCHES)
def test_a_switch_in_a_variable_may_be_written_as_people_do(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in ("ASRD_NOTIFY", "ASRD_PNC", "ASRD_COMMANDS"):
        monkeypatch.setenv(variable, word)
    assert main.main(["config", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {found[key]["value"] for key in ("notify", "pnc", "commands")} == {
        SWITCHES.index(word) < 10
    }


def test_every_name_from_elsewhere_means_one_setting() -> None:
    every = [word for words in misnomers.OTHERS.values() for word in words]
    assert len(every) == len(set(every))
    assert not set(every) & set(settings.FIELDS)
    assert set(misnomers.OTHERS) <= set(settings.FIELDS)
