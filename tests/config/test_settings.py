"""Settings: precedence, origins, the older spellings, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from asrd.config import amounts, loading, settings
from asrd.errors import ConfigError


def load(
    tmp_path: Path, text: str = "", flags: dict[str, object] | None = None, **environment: str
) -> loading.Loaded:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return loading.load(file, flags, environment)


def refused(tmp_path: Path, text: str, *parts: str, **environment: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, **environment)
    for part in parts:
        assert part in f"{caught.value.message} {caught.value.hint}"
    assert caught.value.exit_code == 78


def test_each_layer_goes_over_the_one_below_and_is_named(tmp_path: Path) -> None:
    text = 'strategy = "half"\nmodel = "a.nemo"\nwindow = 8'
    loaded = load(
        tmp_path, text, {"model": "c.nemo", "device": None}, ASRD_MODEL="b.nemo", ASRD_PNC="false"
    )
    assert loaded.settings.model == "c.nemo"
    assert loaded.settings.strategy == "half"
    assert loaded.settings.window == 8.0
    assert loaded.settings.pnc is False
    assert loaded.origins["model"] == "--model"
    assert loaded.origins["pnc"] == "ASRD_PNC"
    assert loaded.origins["strategy"].endswith("config.toml")
    assert loaded.origins["device"] == "default"


def test_without_a_file_there_are_defaults(tmp_path: Path) -> None:
    assert loading.load(environment={"HOME": str(tmp_path)}).settings == settings.Settings()


def test_the_usual_place_is_read(tmp_path: Path) -> None:
    (tmp_path / "asrd").mkdir()
    (tmp_path / "asrd" / "config.toml").write_text('strategy = "tf32"')
    assert loading.load(environment={"XDG_CONFIG_HOME": str(tmp_path)}).settings.strategy == "tf32"


def test_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no configuration file"):
        loading.load(tmp_path / "absent.toml", environment={})
    with pytest.raises(ConfigError, match="no configuration file"):
        loading.load(environment={"ASRD_CONFIG": str(tmp_path / "absent.toml")})


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('strategy = "halff"', ["halff", "'half'"]),
        ('preset = "agressive"', ["agressive", "'aggressive'"]),
        ('modle = "x"', ["modle", "'model'"]),
        ("window = 100", ["window", "30"]),
        ('window = "wide"', ["window", "wide"]),
        ("pnc = 2", ["pnc", "neither true nor false"]),
        ("strategy = 16", ["strategy", "not text", 'strategy = "16"']),
        ('vram_budget = "much"', ["vram_budget", "2000MiB"]),
        ('vram_budget = "150%"', ["vram_budget = '150%'", "100% or less"]),
        ('vram_alert = "100.5%"', ["vram_alert = '100.5%'", "100% or less"]),
        ('strategy = "selective"\nparts = {encoder = "float17"}', ["float17", "float16"]),
        ("not toml", ["TOML"]),
        ('autocast_dtype = "float64"', ["float64", "dtype"]),
        ("use_bf16 = true\nuse_fp16 = true", ["use_bf16", "use_fp16", "contradict"]),
        (
            'strategy = "half"\nautocast_dtype = "bfloat16"',
            ["half", "autocast_dtype", "contradicts"],
        ),
        ('use_bf16 = "perhaps"', ["use_bf16", "perhaps"]),
    ],
)
def test_what_cannot_be_is_refused_with_a_hint(tmp_path: Path, text: str, parts: list[str]) -> None:
    refused(tmp_path, text, *parts)


def test_an_unknown_variable_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "", "ASRD_STRATGY", "did you mean ASRD_STRATEGY?", ASRD_STRATGY="half")


@pytest.mark.parametrize(
    ("text", "strategy", "source"),
    [
        ('autocast_dtype = "bfloat16"', "autocast-bf16", "autocast_dtype"),
        ('autocast_dtype = "float16"', "autocast-fp16", "autocast_dtype"),
        ('autocast_dtype = "float32"', "fp32", "autocast_dtype"),
        ("use_bf16 = true", "autocast-bf16", "use_bf16"),
        ("use_fp16 = true\nuse_bf16 = false", "autocast-fp16", "use_fp16"),
    ],
)
def test_older_spellings_become_a_strategy_and_the_log_says_so(
    tmp_path: Path, text: str, strategy: str, source: str
) -> None:
    loaded = load(tmp_path, text)
    assert loaded.settings.strategy == strategy
    assert source in loaded.origins["strategy"]
    assert any(strategy in note and source in note for note in loaded.notes)


def test_the_explicit_dtype_goes_before_the_flags(tmp_path: Path) -> None:
    loaded = load(tmp_path, 'autocast_dtype = "float16"\nuse_bf16 = true')
    assert loaded.settings.strategy == "autocast-fp16"
    assert "autocast_dtype goes before use_bf16" in loaded.notes


def test_flags_that_are_off_ask_for_nothing(tmp_path: Path) -> None:
    assert load(tmp_path, "use_bf16 = false").settings.strategy == "auto"


def test_a_stronger_layer_overrides_an_older_spelling_without_contradiction(tmp_path: Path) -> None:
    assert load(tmp_path, "use_bf16 = true", {"strategy": "fp32"}).settings.strategy == "fp32"
    assert (
        load(tmp_path, 'strategy = "half"', ASRD_USE_BF16="1").settings.strategy == "autocast-bf16"
    )


def test_parts_make_a_precision_of_their_own(tmp_path: Path) -> None:
    requested = load(
        tmp_path, 'strategy = "selective"\nparts = {encoder = "float16"}'
    ).settings.requested
    assert not isinstance(requested, str)
    assert requested.parts == {"encoder": "float16"}
    assert load(
        tmp_path, "", ASRD_STRATEGY="selective", ASRD_PARTS='{joint = "float16"}'
    ).settings.parts == {"joint": "float16"}


def test_parts_without_selective_do_nothing_and_say_so(tmp_path: Path) -> None:
    loaded = load(tmp_path, 'strategy = "half"\nparts = {encoder = "float16"}')
    assert loaded.settings.requested == "half"
    assert any("do nothing under half" in note for note in loaded.notes)
    assert loaded.idle == loaded.notes
    assert "do nothing under auto" in load(tmp_path, 'parts = {encoder = "float16"}').idle[0]
    assert load(tmp_path, "use_bf16 = true").idle == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("2000", 2000 << 20),
        ("2000MiB", 2000 << 20),
        ("1.5 GiB", 3 << 29),
        ("50%", 2 << 30),
        ("100%", 4 << 30),
    ],
)
def test_budgets(text: str, expected: int | None) -> None:
    assert amounts.budget(text, 4 << 30) == expected


def test_the_bound_on_wer_is_the_presets_unless_set(tmp_path: Path) -> None:
    assert load(tmp_path).settings.wer_bound == 0.5
    assert load(tmp_path, 'preset = "conservative"').settings.wer_bound == 0.0
    assert load(tmp_path, "max_wer_delta = 0.2").settings.wer_bound == 0.2


def test_every_setting_describes_itself() -> None:
    for name, default, meaning in settings.describe():
        assert name
        assert default
        assert meaning


def test_sinks_are_a_list_in_the_file_and_words_with_commas_elsewhere(tmp_path: Path) -> None:
    assert load(tmp_path, 'sinks = ["type", "command:tee -a x"]').settings.sinks == (
        "type",
        "command:tee -a x",
    )
    assert load(tmp_path, "", ASRD_SINKS="stdout, clipboard").settings.sinks == (
        "stdout",
        "clipboard",
    )
    assert load(tmp_path, "", {"sinks": ["none"]}).settings.sinks == ("none",)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('sinks = ["tpye"]', ("no sink 'tpye'", "did you mean 'type'?")),
        ('sinks = ["command:"]', ("no sink 'command:'",)),
        ('deliver = "segments"', ("deliver = 'segments'", "did you mean 'segment'?")),
        ('keep_audio = "sometimes"', ("keep_audio = 'sometimes'", "on-failure")),
        ('source = "line-in"', ("source = 'line-in'", "file:PATH")),
        ('idle = "soon"', ("idle = 'soon'", "not a span", "minutes")),
        ('idle = "-1"', ("is not a span",)),
        ('vram_alert = "much"', ("vram_alert = 'much'",)),
        ("pre_roll = 60", ("pre_roll = 60",)),
        ("takes_mb = 0", ("takes_mb = 0",)),
    ],
)
def test_what_the_daemon_could_not_do_is_refused(
    tmp_path: Path, text: str, parts: tuple[str, ...]
) -> None:
    refused(tmp_path, text, *parts)


def test_a_vocabulary_may_stand_in_a_file_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("# names\nKubernetes\n\n  Ada   Lovelace \nKubernetes\n")
    loaded = load(tmp_path, 'vocabulary = ["Ada Lovelace", "@words.txt", "new york"]')
    assert loaded.settings.vocabulary == ("Ada Lovelace", "Kubernetes", "new york")
    named = load(tmp_path, "", ASRD_VOCABULARY=f"osaka, @{tmp_path / 'words.txt'}")
    assert named.settings.vocabulary == ("osaka", "Kubernetes", "Ada Lovelace")


def test_a_vocabulary_without_its_file_or_end_is_refused(tmp_path: Path) -> None:
    refused(
        tmp_path,
        'vocabulary = ["@nowhere.txt"]',
        "vocabulary",
        str(tmp_path / "nowhere.txt"),
        "No such file",
    )
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    refused(tmp_path, 'vocabulary = ["@bytes"]', "bytes", "UTF-16LE, not UTF-8")
    (tmp_path / "long").write_text("\n".join(f"word number {n}" for n in range(20_000)))
    refused(tmp_path, 'vocabulary = ["@long"]', "20000 phrases", "at most 262144")
    refused(tmp_path, "boost = 9", "boost = 9")


def test_commands_are_the_shipped_ones_and_the_users_own_once_they_are_on(tmp_path: Path) -> None:
    own = '[spoken]\n"my mail" = "me@example.org"\ncomma = ""\n'
    loaded = load(tmp_path, own)
    assert loaded.settings.phrases == {}
    assert any("spoken" in note and "commands = false" in note for note in loaded.notes)
    phrases = load(tmp_path, f"commands = true\n{own}").settings.phrases
    assert phrases[("my", "mail")] == "me@example.org"
    assert ("comma",) not in phrases
    assert ("new", "line") in phrases
    inline = load(tmp_path, "", ASRD_COMMANDS="1", ASRD_SPOKEN='{punkt = "^."}').settings.phrases
    assert inline[("punkt",)] == "^."


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('[spoken]\n"go back" = "{undo}"', ["{undo}", "{delete}", "config.toml"]),
        ('[spoken]\n"!" = "x"', ["'!'", "no word"]),
        ("[spoken]\ncomma = 3", ["spoken", "table of texts"]),
        ('source_lang = "English"', ["source_lang = 'English'", "en or pt-BR", "config.toml"]),
        ('target_lang = ""', ["target_lang = ''"]),
    ],
)
def test_words_that_mean_nothing_are_refused(tmp_path: Path, text: str, parts: list[str]) -> None:
    refused(tmp_path, text, *parts)


@pytest.mark.parametrize(
    ("text", "seconds"), [("never", None), ("immediately", 0), ("30", 1800), ("0.5", 30)]
)
def test_how_long_a_model_may_be_unused(text: str, seconds: float | None) -> None:
    assert amounts.idle_seconds(text) == seconds
