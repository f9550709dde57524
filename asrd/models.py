"""Which models there are, where they lie, and how they come here; what a file holds is `checkpoint`'s to say.

A name is a path to a .nemo file, a model shipped with asrd, or a name on the Hugging Face hub. Finding one never
touches the network; `fetch` does and runs in the worker. Runs on both sides; imports neither torch nor NeMo, and the
hub's library only for names on the hub.
"""

from __future__ import annotations

import errno
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .checkpoint import Header, header
from .errors import AsrdError, DiskError, ModelError, NetworkError, UsageError, nearest
from .known import KNOWN, Known, describe
from .weights import Estimate, needs, weights_bytes

__all__ = [
    "KNOWN", "SHIPPED", "Estimate", "Header", "Known", "NotCachedError", "cached",
    "describe", "fetch", "header", "needs", "resolve", "weights_bytes",
]  # fmt: skip

DATA = Path(__file__).with_name("data")

SHIPPED = {name: DATA / f"{name}.nemo" for name in ("demo", "demo-ctc", "demo-tdt")}
"""Name -> file of the models that come with asrd; they know synthetic voices and a closed vocabulary."""

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

Report = Callable[[float | None, str], None]
"""Told of a download: part done (None where it is not known) and a text."""

NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
"""What the system says of a folder that cannot be written to, or is none."""

TICK = 0.2
"""Seconds between two reports of a download."""


class NotCachedError(ModelError):
    """A model on the hub that is not in the cache. Its `name` is owner/name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is not in the cache {cache_folder()}", "it is downloaded when it is first used")
        self.name = name


# -- names ------------------------------------------------------------------------------------------------------------


def resolve(name: str) -> Path:
    """Return the .nemo file that a name means, without touching the network.

    Args:
        name: a path, a shipped name, owner/name on the hub, or the name alone of a known one.

    Raises:
        NotCachedError: a hub name without its file in the cache.
        ModelError: a path or shipped model that is not there.
        UsageError: a name of none of these kinds.
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
    return name.endswith(".nemo") or name.startswith((".", "/", "~")) or (bool(name) and Path(name).exists())


def _there(path: Path, name: str) -> Path:
    if not path.exists():
        shipped = "reinstall asrd" if name in SHIPPED else "asrd models lists the names that are known"
        raise ModelError(f"there is no model file {path}", shipped)
    return path


def hub_name(name: str) -> str:
    """Return owner/name for a name on the hub, with or without its owner. Raises UsageError."""
    if HUB_NAME.fullmatch(name):
        return name
    owned = [full for full in KNOWN if full.partition("/")[2] == name]
    if not owned:
        short = [full.partition("/")[2] for full in KNOWN]
        raise UsageError(f"unknown model {name!r}", nearest(name, (*SHIPPED, *short, *KNOWN)))
    return owned[0]


def cache_folder() -> Path:
    """Return where the hub's library keeps its files (HF_HUB_CACHE, HF_HOME)."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _cached(name: str) -> Path | None:
    """Return the .nemo file of a hub name in the cache: the one called as the model is, or the only one."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, f"{name.partition('/')[2]}.nemo")
    if isinstance(found, str):
        return Path(found)
    folder = cache_folder() / f"models--{name.replace('/', '--')}"
    try:
        commit = (folder / "refs" / "main").read_text().strip()
    except OSError:
        return None
    files = sorted((folder / "snapshots" / commit).glob("*.nemo"))
    return files[0] if len(files) == 1 and files[0].is_file() else None


def cached() -> list[str]:
    """Return owner/name of every model in the hub's cache that has a .nemo file."""
    found = (path.name.removeprefix("models--").split("--") for path in sorted(cache_folder().glob("models--*--*")))
    return [name for name in ("/".join(words) for words in found if len(words) == 2) if _cached(name)]


# -- the hub ----------------------------------------------------------------------------------------------------------


def fetch(name: str, report: Report) -> Path:
    """Return the .nemo file that a name means, downloading it into the cache where it is on the hub and not here.

    Args:
        report: told of the download as it goes; not called for what is here already.

    Raises:
        NetworkError: the hub cannot be reached. DiskError: no room or no right in the cache folder.
        ModelError: no such model, one that needs a login, or one without a .nemo file. UsageError: see `resolve`.
    """
    try:
        return resolve(name)
    except NotCachedError as missing:
        name = missing.name
    with _translating(name):
        file, size = _find(name)
    with _translating(name, size):
        _check_room(name, size)
        return _download(name, file, report)


def _find(name: str) -> tuple[str, int | None]:
    """Return the .nemo file of a repository and its bytes: the one called as the model is, or the only one."""
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    file = f"{name.partition('/')[2]}.nemo"
    try:
        # Asked by itself first: it does not retry for half a minute as hf_hub_download does without a network.
        return file, get_hf_file_metadata(hf_hub_url(name, file)).size
    except EntryNotFoundError:
        files = [entry for entry in HfApi().list_repo_files(name) if entry.endswith(".nemo")]
    if len(files) != 1:
        held = f"{len(files)} .nemo files, none of them called {file}" if files else "no .nemo file"
        raise ModelError(f"{name} on the hub holds {held}", "download the right one and pass its path")
    return files[0], get_hf_file_metadata(hf_hub_url(name, files[0])).size


def _check_room(name: str, size: int | None) -> None:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if size is not None and size > free:
        raise _no_room(name, size, free)


def _no_room(name: str, size: int | None, free: int | None) -> DiskError:
    needed = f"{size} bytes" if size is not None else "its file"
    left = f", {free} are free" if free is not None else ""
    return DiskError(
        f"no room for {name} in the cache {cache_folder()}: {needed} needed{left}",
        "free some, or set HF_HOME to a folder on a larger disk",
    )


def _download(name: str, file: str, report: Report) -> Path:
    from huggingface_hub import hf_hub_download

    report(None, f"{name}: starting")
    return Path(hf_hub_download(name, file, tqdm_class=_bar(name, report)))


def _bar(name: str, report: Report) -> Any:
    """Return a class that the hub's library takes for its progress bar and that reports instead of drawing."""

    class Bar:
        def __init__(self, *_: Any, total: float | None = None, initial: float = 0, **__: Any) -> None:
            self.n, self.total, self._told = initial, total, 0.0

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            self.close()

        def update(self, n: float = 1) -> None:
            self.n += n
            self._tell(self.n == self.total)

        def update_transfer(self, _: float) -> None:  # bytes on the wire: a sign of life while none is written yet
            self._tell(False)

        def _tell(self, done: bool) -> None:
            now = time.monotonic()
            if done or now - self._told >= TICK:
                self._told = now
                of = f" of {megabytes(self.total)}" if self.total else ""
                report(min(1.0, self.n / self.total) if self.total else None, f"{name}: {megabytes(self.n)}{of}")

        def close(self, *_: object, **__: object) -> None:
            pass

        set_postfix_str = set_transfer_postfix_str = set_description = refresh = close

    return Bar


def megabytes(count: float) -> str:
    """Return a file's size as the hub shows it: decimal megabytes."""
    return f"{count / 1e6:.1f} MB"


@contextmanager
def _translating(name: str, size: int | None = None) -> Iterator[None]:
    """Turn whatever the hub's library raises into one of our errors: the one border where its exceptions enter."""
    try:
        yield
    except AsrdError:
        raise
    except Exception as error:  # httpx, xet and the file system each have classes of their own
        raise _translated(name, error, size) from error


def _translated(name: str, error: Exception, size: int | None) -> AsrdError:
    from huggingface_hub import errors as hub

    status = getattr(getattr(error, "response", None), "status_code", None)
    login = f"accept its terms on https://huggingface.co/{name}, then: hf auth login"
    if isinstance(error, hub.GatedRepoError) or status == 403:
        return ModelError(f"{name} needs a login, and the right to read it, on the hub", login)
    if isinstance(error, hub.RepositoryNotFoundError) or status == 401:
        hint = f"{nearest(name, tuple(KNOWN))}; if it is private: hf auth login"
        return ModelError(f"there is no model {name} on the hub, or it is private", hint)
    if isinstance(error, hub.HFValidationError):
        return UsageError(f"{name!r} is no name on the hub", nearest(name, tuple(KNOWN)))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _no_room(name, size, None)
    if isinstance(error, OSError) and error.errno in NO_RIGHT:
        hint = "set HF_HOME to a folder of yours"
        return DiskError(f"cannot write to the cache {cache_folder()}: {error.strerror}", hint)
    what = "offline mode is set" if isinstance(error, hub.OfflineModeIsEnabled) else _sentence(error)
    hint = "unset HF_HUB_OFFLINE, or " if isinstance(error, hub.OfflineModeIsEnabled) else ""
    if status is not None:
        return NetworkError(f"the hub answered {status} for {name}", "try again later, or pass a .nemo file's path")
    return NetworkError(
        f"cannot reach the hub for {name} and it is not in the cache ({what})",
        f"{hint}copy its .nemo file here and pass the path",
    )


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
