"""Which models there are and where they lie; what a file holds is `checkpoint`'s to say.

A name is a path to a .nemo file, a model shipped with asrd, or a name on the Hugging Face hub.
Nothing here touches the network; `downloader` starts the process that does. Runs on both sides;
imports neither torch nor NeMo, and the hub's library only for names on the hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from asrd import paths
from asrd.errors import ModelError, nearest
from asrd.models.architectures import ARCHITECTURES

SHIPPED = {name: paths.DATA_FOLDER / f"{name}.nemo" for name in ("demo", "demo-ctc", "demo-tdt")}
"""Name -> file of the models that come with asrd; they know synthetic voices and a closed
vocabulary."""

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


PARTIAL = "*.asrd.incomplete"
"""How the files end that a broken download left among a model's blobs."""


class NotCachedError(ModelError):
    """A model on the hub that is not in the cache. Its `name` is owner/name."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} is not in the cache {cache_folder()}", "it is downloaded when it is first used"
        )
        self.name = name


# -- names
# ------------------------------------------------------------------------------------------------------------


def resolve(name: str) -> Path:
    """Return the .nemo file that a name means, without touching the network.

    Args:
        name: a path, a shipped name, owner/name on the hub, or the name alone of a known one.

    Raises:
        NotCachedError: a hub name without its file in the cache.
        ModelError: a path or shipped model that is not there, or a name of none of these kinds.
    """
    if name in SHIPPED:
        return _there(SHIPPED[name], name)
    if _is_path(name):
        return _there(Path(name).expanduser(), name)
    known = hub_name(name)
    if (path := _cached(known)) is None:
        raise NotCachedError(known)
    return path


def _is_path(name: str) -> bool:
    return (
        name.endswith(".nemo")
        or name.startswith((".", "/", "~"))
        or (bool(name) and Path(name).exists())
    )


def _there(path: Path, name: str) -> Path:
    if not path.exists():
        hint = "asrd models lists the names that are known"
        if name in SHIPPED:
            hint = "reinstall asrd"
        raise ModelError(f"there is no model file {path}", hint)
    return path


def hub_name(name: str) -> str:
    """Return owner/name for a name on the hub, with or without its owner. Raises ModelError."""
    if HUB_NAME.fullmatch(name):
        return name
    owned = [full for full in ARCHITECTURES if full.partition("/")[2] == name]
    if not owned:
        short = [full.partition("/")[2] for full in ARCHITECTURES]
        raise ModelError(
            f"unknown model {name!r}",
            nearest(name, (*SHIPPED, *short, *ARCHITECTURES), "asrd models"),
        )
    return owned[0]


def cache_folder() -> Path:
    """Return where the hub's library keeps its files (HF_HUB_CACHE, HF_HOME)."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _cached(name: str) -> Path | None:
    """Return the .nemo file of a hub name in the cache: the one called as the model is, or the only
    one."""
    folder = cache_folder() / repository(name)
    try:
        commit = (folder / "refs" / "main").read_text().strip()
        files = [file for file in (folder / "snapshots" / commit).glob("*.nemo") if file.is_file()]
    except (OSError, UnicodeDecodeError):
        return None
    own = [file for file in files if file.name == own_file(name)]
    if len(own or files) != 1:
        return None
    return (own or files)[0]


def own_file(name: str) -> str:
    """Return the name that the .nemo file of a hub name usually has."""
    return f"{name.partition('/')[2]}.nemo"


def repository(name: str) -> str:
    """Return the folder that the hub's library gives a model in its cache."""
    return f"models--{name.replace('/', '--')}"


def partial(name: str) -> int:
    """Return the bytes of a hub model whose download was broken off; 0 where there is none."""
    parts = (cache_folder() / repository(name) / "blobs").glob(PARTIAL)
    try:
        return max((part.stat().st_size for part in parts), default=0)
    except OSError:
        return 0


def partials() -> dict[str, int]:
    """Return owner/name -> bytes of every model of which a download brought a part."""
    found = {}
    for name in _in_cache():
        size = partial(name)
        if size and not _cached(name):
            found[name] = size
    return found


def cached() -> list[str]:
    """Return owner/name of every model in the hub's cache that has a .nemo file."""
    return list(filter(_cached, _in_cache()))


def _in_cache() -> Iterator[str]:
    """Yield owner/name of every repository in the hub's cache, whole or not."""
    for path in sorted(cache_folder().glob("models--*--*")):
        words = path.name.removeprefix("models--").split("--")
        if len(words) == 2:
            yield "/".join(words)
