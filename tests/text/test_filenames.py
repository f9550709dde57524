"""File names of every kind, through the verbs that open them and in what the verbs print."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asrd import framing, paths, protocol
from asrd.cli.systemd_units import units
from asrd.errors import ConfigError, UsageError
from asrd.evaluation import manifest, runner
from asrd.paths import DATA_FOLDER
from asrd.precision.strategies import STRATEGY_TABLE
from asrd.text import filenames
from asrd.text.characters import printable, readable
from tests.daemon.test_daemon import ROOT, Start, daemon

__all__ = ["daemon"]

CLIP = DATA_FOLDER / "eval" / "0170.flac"

NAMES: dict[str, tuple[bytes, str]] = {
    "Latin-1": (b"caf\xe9", r"caf\xe9"),
    "Latin-1, alone": (b"\xe9", r"\xe9"),
    "Windows-1252": (b"\x93x\x94", r"\x93x\x94"),
    "Shift-JIS": (b"\x93\xfa\x96{", r"\x93\xfa\x96{"),
    "KOI8-R": (b"\xcd\xc9\xd2", r"\xcd\xc9\xd2"),
    "the end of UTF-8": (b"\xa9", r"\xa9"),
    "the beginning of UTF-8": (b"\xc3", r"\xc3"),
    "two of three bytes": (b"\xe2\x82", r"\xe2\x82"),
    "an overlong slash": (b"\xc0\xaf", r"\xc0\xaf"),
    "half of UTF-16": (b"\xed\xa0\x80", r"\xed\xa0\x80"),
    "beyond Unicode": (b"\xf5\x80\x80\x80", r"\xf5\x80\x80\x80"),
    "no byte of UTF-8": (b"\xfe\xff", r"\xfe\xff"),
    "UTF-8 and Latin-1": (b"\xc3\xa9\xe9", "é\\xe9"),
    "UTF-8": ("naïve 日本 👀".encode(), "naïve 日本 👀"),
    "decomposed": ("e\u0301".encode(), "e\u0301"),
    "a line feed": (b"a\nb", "a\nb"),
    "CR and tab": (b"a\rb\tc", "a\rb\tc"),
    "an escape sequence": (b"\x1b[31mred\x07", "\x1b[31mred\x07"),
    "C1": ("\x9b31m".encode(), "\x9b31m"),
    "right to left": ("\u202egnp\u202c".encode(), "\u202egnp\u202c"),
    "a mark of byte order": ("\ufeffa".encode(), "\ufeffa"),
    "spaces": (b"  a  ", "  a  "),
    "quotes": (b"'\"`$(a)", "'\"`$(a)"),
    "a backslash, as if escaped": (rb"caf\xe9", r"caf\xe9"),
    "percent and braces": (b"%s{0}%n", "%s{0}%n"),
    "mark-up": (b"[red]<b>&amp;", "[red]<b>&amp;"),
    "a leading dash": (b"-x", "-x"),
    "looks like a list": (b"@names", "@names"),
}
"""What a name has in it -> its bytes, and how JSON has to hold them."""


def members(seed: int = 15) -> Iterator[tuple[str, bytes, str]]:
    """Yield (kind, name, the same in JSON): each of NAMES among letters, and the longest names
    there are."""
    letters = random.Random(seed)
    for kind, (raw, shown) in NAMES.items():
        word = "".join(letters.choices("abcdefgh", k=3))
        yield kind, raw + b" " + word.encode() + raw + b".flac", f"{shown} {word}{shown}.flac"
    for kind, raw, shown in (
        ("255 bytes", b"\xe9", "\\xe9"),
        ("255 bytes of UTF-8", "é".encode(), "é"),
    ):
        count = 250 // len(raw)
        yield kind, raw * count + b".flac", shown * count + ".flac"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a folder, not UTF-8 itself, with one clip under every name."""
    where = os.fsencode(tmp_path_factory.mktemp("clips")) + b"/f\xe9"
    os.mkdir(where)
    for _, name, _ in members():
        shutil.copy(os.fsencode(CLIP), where + b"/" + name)
    return where


def asked(*words: bytes | str, cwd: bytes, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run a verb to its end, with these variables over those of this process."""
    command = [sys.executable, "-m", "asrd", *words]
    environment = os.environ | {"PYTHONPATH": os.fspath(ROOT)} | variables
    return subprocess.run(command, cwd=cwd, capture_output=True, timeout=300, env=environment)


def opened(told: dict[str, Any]) -> bytes:
    """Return the name's bytes, as a reader of our JSON finds them."""
    return (
        base64.b64decode(told["path_bytes"]) if "path_bytes" in told else str(told["path"]).encode()
    )


def test_every_name_is_opened_and_shown_by_the_real_worker(clips: bytes) -> None:
    names = [name for _, name, _ in members()]
    done = asked(
        "transcribe",
        "--json",
        "--model",
        "demo-ctc",
        "--no-daemon",
        "--",
        *names,
        b"\xe9absent\n",
        cwd=clips,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert not {"\u202e", "\x1b", "\x9b"} & set(done.stdout.decode())
    assert [opened(one) for one in lines] == names, done.stderr
    assert {one["path"] for one in lines} == {shown for _, _, shown in members()}
    assert len({one["text"] for one in lines}) == 1
    assert lines[0]["text"]
    assert b"no such file: " in done.stderr
    assert b"\\xe9absent\\u000a" in done.stderr
    assert done.returncode == 65


def test_every_name_is_the_same_with_a_daemon(clips: bytes, daemon: Start) -> None:
    one = daemon()
    one.settled()
    names = [name for _, name, _ in members()]
    variables = {
        key: value for key, value in one.environment.items() if key.startswith(("ASRD_", "XDG_"))
    }
    done = asked("transcribe", "--json", "--", *names, cwd=clips, **variables)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [opened(each) for each in lines] == names, done.stderr
    assert all("samples" in each["text"] and each["complete"] for each in lines)
    plain = asked("transcribe", "--", *names[:16], cwd=clips, **variables).stdout.decode()
    shown = [printable(shown, breaks=False) for _, _, shown in members()][:16]
    assert [line for line in plain.splitlines() if line.startswith("==>")] == [
        f"==> {each} <==" for each in shown
    ]
    absent = asked("transcribe", b"\xe9.wav", "--words", cwd=clips, **variables)
    assert (absent.returncode, absent.stdout) == (65, b"")
    assert absent.stderr.startswith(b"asrd: no such file: \\xe9.wav")
    for locale in locales(one.home):
        done = asked("transcribe", "--json", "--", *names, cwd=clips, **variables, **locale)
        assert [opened(each) for each in map(json.loads, done.stdout.splitlines())] == names, (
            locale,
            done.stderr,
        )


def locales(folder: Path) -> list[dict[str, str]]:
    """Return variables of locales: the plain one, with and without Python's help, and one in which
    é is one byte."""
    name = "de_DE.ISO-8859-1"
    words = ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", os.fspath(folder / name)]
    made = subprocess.run(words, capture_output=True, check=False)
    assert (folder / name / "LC_CTYPE").exists(), made.stderr
    bare = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    return [{"LC_ALL": "C"}, bare, {"LC_ALL": name, "LOCPATH": os.fspath(folder)}]


@pytest.mark.parametrize(("name", "shown"), [(name, shown) for _, name, shown in members()])
def test_a_name_survives_every_border(name: bytes, shown: str) -> None:
    held = os.fsdecode(name)
    told = json.loads(json.dumps(filenames.exact("path", held)))
    data = base64.b64decode(told.get("path_bytes", ""))
    assert (told["path"], filenames.named(told["path"], data)) == (shown, held)
    start = protocol.Start(model=held, precision=STRATEGY_TABLE["fp32"], path=held)
    assert framing.unpack_request(framing.pack(start)[0]) == start
    arrived = protocol.Downloaded(held)
    assert framing.unpack_reply(framing.pack(arrived)[0]) == arrived
    failed = framing.unpack_reply(framing.pack(protocol.Failed("model", f"cannot read {held}"))[0])
    assert isinstance(failed, protocol.Failed)
    assert failed.detail == f"cannot read {shown}"
    assert json.loads(filenames.to_json({"a": [held], held: (1,)})) == {"a": [shown], shown: [1]}
    assert printable(f"{held}: gone", breaks=False).isprintable()
    printable(f"{held!r}").encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("caf\udce9", r"caf\xe9"),
        (repr("caf\udce9"), r"'caf\xe9'"),
        (json.dumps("\U0001f480 💀"), json.dumps("\U0001f480 💀")),
        ("\udcc3\udca9", "é"),
        ("\ud83d", r"\ud83d"),
        ("\udcc2\udc9b", "\x9b"),
    ],
)
def test_text_that_no_encoder_takes_becomes_text(text: str, shown: str) -> None:
    assert readable(text) == shown


def test_a_manifest_names_files_by_their_bytes_or_by_pythons_escapes(clips: bytes) -> None:
    names = [name for _, name, _ in members()]
    raw = b"".join(line(name) + b"\n" for name in names if escaped(name) == name)
    python = b"".join(
        json.dumps({"audio_filepath": os.fsdecode(name), "text": "x"}).encode() + b"\r\n"
        for name in names
    )
    for content, count in (
        (raw, sum(escaped(name) == name for name in names)),
        (python, len(names)),
    ):
        path = Path(os.fsdecode(clips + b"/man\xe9.jsonl"))
        path.write_bytes(content)
        found, skipped = manifest.read(path)
        assert (len(found), skipped) == (count, [])
    path.write_bytes(line(b"\xe9", b"caf\xe9") + b"\n" + line(b"\xe9absent") + b"\n")
    reasons = [one.reason for one in manifest.read(path)[1]]
    assert "its text is not UTF-8" in reasons[0]
    assert reasons[1].startswith("no such file: ")
    assert reasons[1].endswith(r"\xe9absent")


def line(name: bytes, text: bytes = b"x") -> bytes:
    return b'{"audio_filepath": "%b", "text": "%b"}' % (name, text)


def escaped(name: bytes) -> bytes:
    """Return a name as JSON has to have its quotes, backslashes and control characters."""
    return json.dumps(name.decode("latin-1"), ensure_ascii=False)[1:-1].encode("latin-1")


def test_a_comparison_takes_odd_names_for_all_it_opens(clips: bytes) -> None:
    folder = os.path.dirname(clips) + b"/all \xe9"
    os.mkdir(folder)
    shutil.copy(os.fsencode(ROOT / "asrd/data/demo-ctc.nemo"), folder + b"/m\xe9\nx.nemo")
    (Path(os.fsdecode(folder)) / "list").write_bytes(
        line(b"../f\xe9/" + next(iter(members()))[1]) + b"\n"
    )
    words = [
        b"--manifest",
        b"list",
        b"--strategies",
        b"fp32",
        b"--repeats",
        b"1",
        b"--model",
        b"./m\xe9\nx.nemo",
    ]
    longest = b"\xe9" * 250 + b".json"
    home = {"HOME": os.fsdecode(folder + b"/own"), "XDG_CACHE_HOME": "", "XDG_CONFIG_HOME": ""}
    os.mkdir(folder + b"/own")
    done = asked(
        "compare", *words, b"--json", longest, b"--html", b"\xe9\n.html", cwd=folder, **home
    )
    assert done.returncode in (0, 3), done.stderr
    found = json.loads(Path(os.fsdecode(folder + b"/" + longest)).read_bytes())
    assert found["model"] == "./m\\xe9\nx.nemo"
    assert "m\\xe9" in Path(os.fsdecode(folder + b"/\xe9\n.html")).read_text("utf-8")
    assert b"wrote \\xe9\\u000a.html" in done.stderr
    assert os.path.exists(os.fsencode(paths.state()) + b"/baselines.json")
    assert made_in(folder + b"/own") == {b".cache/asrd"}, (
        "a library made something of its own in the home"
    )
    assert {b"matplotlib"} <= set(os.listdir(folder + b"/own/.cache/asrd"))


def test_a_home_that_is_not_utf8_serves_the_verbs(tmp_path: Path) -> None:
    home = os.fsencode(tmp_path) + b"/h\xe9 me"
    os.makedirs(home + b"/cfg/asrd")
    Path(os.fsdecode(home + b"/cfg/asrd/config.toml")).write_text(
        'model = "demo-ctc"\nvocabulary = ["@n.txt"]\n'
    )
    Path(os.fsdecode(home + b"/cfg/asrd/n.txt")).write_text("peter\n")
    where = {"XDG_CONFIG_HOME": b"/cfg", "XDG_STATE_HOME": b"/state"}
    variables = {
        key: os.fsdecode(home + value)
        for key, value in (where | {"HOME": b"", "TMPDIR": b""}).items()
    }
    (tmp_path / "run").mkdir(0o700)
    variables |= {"XDG_RUNTIME_DIR": os.fspath(tmp_path / "run"), "XDG_CACHE_HOME": ""}
    source = os.fsdecode(home + b"/\xe9.flac")
    shutil.copy(CLIP, source)
    played = asked("run", "--source", f"file:{source}", "--sink", "stdout", cwd=home, **variables)
    assert played.returncode == 0, played.stderr
    assert played.stdout.strip()
    for words in (["config"], ["config", "--json"], ["doctor", "--json"], ["plan", "--json"], ["recordings"],
                   ["models"], ["report", "--json"], ["service", "print"], ["service", "install"],
                   ["service", "status"], ["status"], ["last"], ["retry"], ["devices", "--json"]):  # fmt: skip
        done = asked(*words, cwd=home, **variables)
        assert b"internal error" not in done.stderr, (words, done.stderr)
        assert done.returncode in (0, 2, 3, 65, 69), (words, done.stderr)
        if words[-1] == "--json" and done.stdout:
            lines = done.stdout.splitlines() if words[0] == "doctor" else [done.stdout]
            assert [json.loads(each) for each in lines], words
        assert b"\\udc" not in done.stdout + done.stderr, words
    assert made_in(home) == {b"cfg", b"state", b"\xe9.flac", b".cache/asrd"}


def made_in(home: bytes) -> set[bytes]:
    """Return what is in a home; of its cache the folders of programs, without those that programs
    share."""
    entries = set(os.listdir(home)) - {b".cache"}
    cached = set(os.listdir(home + b"/.cache")) if os.path.exists(home + b"/.cache") else set()
    return entries | {b".cache/" + name for name in cached - {b"huggingface"}}


def test_scratch_and_units_know_what_the_libraries_and_systemd_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert paths.scratch({}) == paths.scratch({"TMPDIR": "/t\udce9"}) == "/var/tmp"
    assert paths.scratch({"TMPDIR": "/té mp"}) == "/té mp"
    assert '"/h é/asrd" run' in units(["/h é/asrd"], 255)["asrd.service"]
    for program, line in ((["/h\udce9/asrd"], ""), (["/bin/asrd"], "/run/\udce9.sock")):
        with pytest.raises(UsageError, match="only UTF-8 paths"):
            units(program, 255, line)


def test_a_setting_that_is_no_name_has_to_be_text(monkeypatch: pytest.MonkeyPatch) -> None:
    from asrd.config import loading

    for key in (
        "suffix",
        "vocabulary",
        "strategy",
        "preset",
        "device",
        "vram_budget",
        "source_lang",
        "keep_audio",
    ):
        with pytest.raises(ConfigError):
            loading.load(environment={f"ASRD_{key.upper()}": "caf\udce9"})
    for key in ("model", "socket", "microphone"):
        assert (
            getattr(loading.load(environment={f"ASRD_{key.upper()}": "caf\udce9"}).settings, key)
            == "caf\udce9"
        )


def test_evidence_and_baselines_are_found_again_for_a_model_of_such_a_name(tmp_path: Path) -> None:
    from asrd.engine import baseline

    baseline.keep("m\udce9.nemo", "cpu", baseline.Baseline("2026-01-01", {}))
    assert baseline.find("m\udce9.nemo", "cpu") is not None
    assert runner.readable("m\udce9") == r"m\xe9"
