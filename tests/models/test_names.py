"""Names of models, and where the file of each lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from asrd.errors import ModelError
from asrd.models import architectures, checkpoint, names

# -- names
# ------------------------------------------------------------------------------------------------------------


def test_a_path_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "own" / "model.nemo"
    file.parent.mkdir()
    file.touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names.resolve(str(file)) == file
    assert names.resolve("~/own/model.nemo") == file
    monkeypatch.chdir(tmp_path)
    assert names.resolve("own/model.nemo") == Path("own/model.nemo")
    assert names.resolve("./own/model.nemo") == Path("./own/model.nemo")


@pytest.mark.parametrize("name", ["/nowhere/x.nemo", "./x", "own/missing.nemo", "~/missing"])
def test_a_path_that_is_not_there(name: str) -> None:
    with pytest.raises(ModelError, match="there is no model file"):
        names.resolve(name)


@pytest.mark.parametrize("name", names.SHIPPED)
def test_shipped_models_come_with_the_package(name: str) -> None:
    assert (
        checkpoint.header(names.resolve(name)).family
        == {"demo": "aed", "demo-ctc": "ctc", "demo-tdt": "tdt"}[name]
    )


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("dmeo", "demo"), ("parakeet-tdt-0.6-v3", "parakeet-tdt-0.6b-v3"), ("", ""), ("a b/c", "")],
)
def test_an_unknown_name_is_an_error_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ModelError, match="unknown model") as caught:
        names.resolve(name)
    assert nearest in caught.value.hint


def test_a_short_name_is_known_by_its_owner() -> None:
    assert names.hub_name("canary-1b-flash") == "nvidia/canary-1b-flash"
    assert names.hub_name("someone/else.v2") == "someone/else.v2"
    shorts = [name.partition("/")[2] for name in architectures.ARCHITECTURES]
    assert len(set(shorts)) == len(shorts)
