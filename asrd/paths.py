"""Where a user's files are, and how one is written. Imports little: a key press waits for it."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from asrd.text import filenames

DATA_FOLDER = Path(__file__).with_name("data")
"""What is shipped: models, cues, units, speech to measure with."""

EVALUATION_MANIFEST = DATA_FOLDER / "eval" / "manifest.jsonl"
"""The speech that is shipped, as a manifest."""


def config_home(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the user's configurations, of every program."""
    return xdg("XDG_CONFIG_HOME", environment) or home(environment) / ".config"


def config_file(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where asrd's configuration is looked for."""
    return Path(environment.get("ASRD_CONFIG") or config_home(environment) / "asrd" / "config.toml")


def state(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of what asrd keeps from run to run."""
    return (xdg("XDG_STATE_HOME", environment) or home(environment) / ".local" / "state") / "asrd"


def cache(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of what can be made again; the libraries that a worker imports keep theirs
    in it."""
    return (xdg("XDG_CACHE_HOME", environment) or home(environment) / ".cache") / "asrd"


LIBRARY_FOLDERS = {
    "MPLCONFIGDIR": "matplotlib",
    "NUMBA_CACHE_DIR": "numba",
    "TORCH_HOME": "torch",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "CUDA_CACHE_PATH": "cuda",
}
"""Variable -> folder in `cache` of a library that would make one of its own in the user's home."""


def library_folders(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables of LIBRARY_FOLDERS that the user has not set."""
    parent = cache(environment)
    folders: dict[str, str] = {}
    for name, folder in LIBRARY_FOLDERS.items():
        if name not in environment:
            folders[name] = os.fspath(parent / folder)
    return folders


def xdg(name: str, environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return the folder that a variable of the XDG specification names; a relative path counts as
    none, as it says."""
    named = environment.get(name, "")
    if os.path.isabs(named):
        return Path(named)
    return None


def home(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the user's home: HOME where it is a whole path, else what the system knows of the
    user."""
    named = environment.get("HOME", "")
    if os.path.isabs(named):
        return Path(named)
    import pwd  # only without a HOME

    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:  # a container may run as a number without an account
        return Path("/")


def scratch(environment: Mapping[str, str] = os.environ) -> str:
    """Return the folder for what a worker unpacks: TMPDIR, or /var/tmp where it is unset, not UTF-8
    or has controls.

    Libraries that read there in C cannot open such names.
    """
    named = environment.get("TMPDIR", "")
    if named and filenames.in_utf8(named).isprintable():
        return named
    return "/var/tmp"


def make_folder(path: Path) -> None:
    """Make a folder and what is missing above it, each for the user alone, whatever the umask.
    Raises OSError."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):
            each.mkdir(0o700)
            with contextlib.suppress(OSError):  # a file system may have no rights
                each.chmod(0o700)  # a umask may remove rights of the user as well
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(path))


def open_private(path: Path) -> BinaryIO:
    """Open a file anew for writing, for the user alone, whatever the umask. Raises OSError."""
    file = os.fdopen(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb")
    with contextlib.suppress(OSError):  # a file system may have no rights
        # The umask may have removed more, and an older file may have given more.
        os.fchmod(file.fileno(), 0o600)
    return file


def write_whole(path: Path, data: bytes, beside: str = "") -> None:
    """Make a file hold `data`, for the user alone: whole, or as it was. Raises OSError.

    Args:
        beside: name of the file that is written first and then renamed; `path` with the ending
            .new where it is empty, which is for folders that are asrd's own.
    """
    new = path.with_name(beside) if beside else path.with_suffix(".new")
    try:
        with open_private(new) as out:
            out.write(data)
        new.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def python_path() -> str:
    """Return where a new Python finds asrd that does not look into its current folder.

    An empty or relative entry of PYTHONPATH means the current folder too, so only absolute ones are
    handed on.
    """
    entries = list(filter(os.path.isabs, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if home not in sys.path[1:]:  # a checkout that is not installed, found as the current folder
        entries.append(home)
    return os.pathsep.join(entries)
