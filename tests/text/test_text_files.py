"""Text files that a user wrote by whatever editor: what is read, and what is refused in which
words."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from asrd import paths
from asrd.cli import main
from asrd.config import loading
from asrd.daemon import control_socket
from asrd.engine import tuned
from asrd.engine.baseline import Baseline
from asrd.errors import AsrdError, ConfigError, ManifestError
from asrd.evaluation import manifest
from asrd.paths import DATA_FOLDER
from asrd.text import text_files

EVAL = DATA_FOLDER / "eval"

MARK = text_files.MARK


def lines_end(end: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(b"\n", end)


def encoded(name: str) -> Callable[[bytes], bytes]:
    return lambda data: data.decode().encode(name)


READ: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda data: data,
    "a mark": lambda data: MARK + data,
    "two marks": lambda data: MARK + MARK + data,
    "a mark before each line": lambda data: MARK + data.replace(b"\n", b"\n" + MARK),
    "CRLF": lines_end(b"\r\n"),
    "CR": lines_end(b"\r"),
    "a mark and CRLF": lambda data: MARK + data.replace(b"\n", b"\r\n"),
    "a mark and CR": lambda data: MARK + data.replace(b"\n", b"\r"),
    "mixed ends": lambda data: data.replace(b"\n", b"\r\n", 1).replace(b"\n", b"\r", 1),
    "no last end": lambda data: data.rstrip(b"\n"),
    "a mark, no last end": lambda data: MARK + data.rstrip(b"\n"),
    "empty lines": lambda data: b"\n\n" + data + b"\n\r\n\r",
    "a mark and empty lines": lambda data: MARK + b"\r\n" + data,
    "a mark at the end": lambda data: data + MARK,
}
"""What an editor does to a text -> which stays the text that it was."""

REFUSED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "UTF-16": (encoded("utf-16"), "is UTF-16LE, not UTF-8"),
    "UTF-16, big end": (
        lambda data: b"\xfe\xff" + data.decode().encode("utf-16-be"),
        "is UTF-16BE, not UTF-8",
    ),
    "UTF-16LE without a mark": (encoded("utf-16-le"), "is UTF-16LE, not UTF-8"),
    "UTF-16BE without a mark": (encoded("utf-16-be"), "is UTF-16BE, not UTF-8"),
    "UTF-32": (encoded("utf-32"), "is UTF-32LE, not UTF-8"),
    "UTF-32, big end": (
        lambda data: b"\0\0\xfe\xff" + data.decode().encode("utf-32-be"),
        "is UTF-32BE, not UTF-8",
    ),
    "UTF-32LE without a mark": (encoded("utf-32-le"), "is UTF-32LE, not UTF-8"),
    "UTF-32BE without a mark": (encoded("utf-32-be"), "is UTF-32BE, not UTF-8"),
    "GB18030 with a mark": (
        lambda data: b"\x84\x31\x95\x33" + data.decode().encode("gb18030"),
        "is GB18030",
    ),
    "Latin-1": (encoded("latin-1"), "is not UTF-8: line 2 has the byte 0xe9"),
    "Windows-1252 with CRLF": (
        lambda data: encoded("cp1252")(lines_end(b"\r\n")(data)),
        "line 2 has the byte 0xe9",
    ),
    "Latin-1 with CR": (
        lambda data: encoded("latin-1")(lines_end(b"\r")(data)),
        "line 2 has the byte 0xe9",
    ),
    "KOI8-R": (
        lambda data: data.replace("é".encode(), "привет".encode("koi8-r")),
        "line 2 has the byte 0xd0",
    ),
    "Latin-1 after a mark": (
        lambda data: MARK + encoded("latin-1")(data),
        "line 2 has the byte 0xe9",
    ),
}
"""The same for texts in another encoding -> the end of the sentence that says so."""


def words(seed: int) -> tuple[str, str]:
    """Return two phrases, the second one of no ASCII alone."""
    letters = random.Random(seed)
    first = "".join(letters.choices("abcdefgh", k=7))
    return first, f"café {first}"


def read_vocabulary(
    folder: Path, change: Callable[[bytes], bytes], phrases: tuple[str, str]
) -> tuple[str, ...]:
    (folder / "names.txt").write_bytes(change("\n".join(phrases).encode() + b"\n"))
    (folder / "config.toml").write_text('vocabulary = ["@names.txt"]\n')
    return loading.load(folder / "config.toml", environment={}).settings.vocabulary


def read_settings(
    folder: Path, change: Callable[[bytes], bytes], phrases: tuple[str, str]
) -> tuple[str, ...]:
    text = f'suffix = "{phrases[0]}"\nmicrophone = "{phrases[1]}"\n'
    (folder / "config.toml").write_bytes(change(text.encode()))
    found = loading.load(folder / "config.toml", environment={}).settings
    return found.suffix, found.microphone


def read_manifest(
    folder: Path, change: Callable[[bytes], bytes], phrases: tuple[str, str]
) -> tuple[str, ...]:
    clip = str(EVAL / "0040.flac")
    lines = [
        json.dumps({"audio_filepath": clip, "text": each}, ensure_ascii=False) for each in phrases
    ]
    (folder / "list.jsonl").write_bytes(change("\n".join(lines).encode() + b"\n"))
    clips, skipped = manifest.read(folder / "list.jsonl")
    if skipped:
        raise ManifestError("; ".join(f"line {one.line}: {one.reason}" for one in skipped))
    return tuple(clip.text for clip in clips)


READERS = [read_vocabulary, read_settings, read_manifest]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", READ)
def test_what_an_editor_puts_around_a_text_changes_nothing(
    kind: str, reader: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    for seed in range(3):
        assert reader(tmp_path, READ[kind], words(seed)) == words(seed)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", REFUSED)
def test_another_encoding_is_named(
    kind: str, reader: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    change, sentence = REFUSED[kind]
    with pytest.raises(AsrdError) as refused:
        reader(tmp_path, change, words(1))
    told = refused.value
    if (
        reader is read_manifest and "line 2" in sentence
    ):  # a line of a manifest is left out, the others are read
        assert told.message == "line 2: its text is not UTF-8; save the manifest as UTF-8"
    else:
        assert sentence in told.message
        assert "iconv -f" in told.hint
        assert len(told.message.splitlines()) == 1


def test_no_text_at_all_is_as_before() -> None:
    assert [text_files.text(data) for data in (b"", MARK, b"\0", b"a\0b" * 40)] == [
        "",
        "",
        "\0",
        "a\0b" * 40,
    ]


def test_the_verbs_read_and_refuse_as_the_readers_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(MARK + b'model = "demo-ctc"\r\nsocket = "/run/one.sock"\r\n')
    assert main.main(["config", "--json", "--config", str(file)]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == {"value": "demo-ctc", "from": str(file)}
    assert control_socket.place(None, file, {}).socket == "/run/one.sock"
    file.write_bytes('model = "demo-ctc"\n'.encode("utf-16"))
    assert main.main(["config", "--config", str(file)]) == ConfigError.exit_code
    assert (
        f"asrd: {file} is UTF-16LE, not UTF-8\n  hint: save it as UTF-8" in capsys.readouterr().err
    )
    (tmp_path / "list").write_bytes('{"audio_filepath": "a"}\n'.encode("utf-16"))
    assert main.main(["compare", "--manifest", str(tmp_path / "list")]) == ManifestError.exit_code
    assert "list is UTF-16LE, not UTF-8" in capsys.readouterr().err


def test_results_that_somebody_opened_in_an_editor_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asrd.engine import baseline

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    paths.make_folder(paths.state())
    baseline.keep("demo", "cpu", Baseline("2026-01-01", {}))
    baseline.path().write_bytes(MARK + baseline.path().read_bytes().replace(b"\n", b"\r\n"))
    assert baseline.find("demo", "cpu") == Baseline("2026-01-01", {})
    tuned.path().write_bytes(MARK + b"[]")
    assert tuned.read() == []
