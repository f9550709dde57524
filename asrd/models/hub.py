"""What the Hugging Face hub is asked: which file a model's name means, and bytes of that file.

The one border where exceptions of the hub's library, of its HTTP client and of the file system
become ours. Knows the hub's protocol and its environment variables; keeps no file. Runs in the
download process.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import msgspec

from asrd.errors import (
    AsrdError,
    ConfigError,
    DiskError,
    ModelError,
    NetworkError,
    nearest,
)
from asrd.models import architectures
from asrd.models import names as models_names

NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT)
"""What the system says of a folder that cannot be written to, or is none."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says of a file that finds no room."""

PASSING_STATUS = (408, 425, 429, 500, 502, 503, 504)
"""Answers of a server after which the same request may succeed."""

MAX_ASKED_SECONDS = 60.0
"""Of a wait that a server asks for in Retry-After."""

TRUE = ("1", "ON", "YES", "TRUE")
"""Values by which the hub's library takes a variable as set."""

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""Variables that forbid the network; the hub's library goes by the first that is not empty."""

NUMBERS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
"""Variables that the hub's library reads as seconds when it is imported."""

CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
"""Variables that name the authorities whose certificates count."""

CACHES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
"""Variables that go over HF_HOME."""


class PassingError(Exception):
    """The request failed in a way that may be over soon.

    Args:
        error: what to tell where it is not.
        answered: there is a server, and it answered.
        wait: seconds that the server asked for.
    """

    def __init__(self, error: AsrdError, answered: bool = False, wait: float = 0.0) -> None:
        super().__init__(error.message)
        self.error, self.answered, self.wait = error, answered, wait


class HubEntry(msgspec.Struct, frozen=True):
    """One file of a model on the hub, of one commit."""

    model: str
    file: str
    commit: str
    etag: str
    """Name of its content; of large files the SHA-256."""
    size: int | None
    """Bytes; None where the server does not say."""


class Body(msgspec.Struct, frozen=True):
    """An answer that is being read."""

    first: int
    """Position of its first byte in the file; 0 where the server sends no parts."""
    ranged: bool
    """The server sends parts."""
    total: int | None
    """Bytes of the whole file; None where the server does not say."""
    chunks: Iterator[bytes]


# -- requests
# ---------------------------------------------------------------------------------------------------------


def check_environment() -> None:
    """Raise ConfigError for what of the user's no request can be made with: the library ends in
    tracebacks there."""
    for variable in NUMBERS:
        value = os.environ.get(variable) or "0"
        if not re.fullmatch(r"\s*[+-]?[0-9]+\s*", value):
            raise ConfigError(
                f"{variable} is {value!r}, which is not a whole number of seconds",
                f"unset {variable}",
            )
    for variable in CERTIFICATES:
        named = os.environ.get(variable)
        if named and not os.path.exists(named):
            raise ConfigError(
                f"{variable} names {named!r}, which is not there",
                f"unset {variable}, or correct it",
            )
    if not _token().isascii():
        raise ConfigError(
            "the token for the hub has characters that no token has",
            "hf auth login, or correct HF_TOKEN",
        )


def _token() -> str:
    """Return the user's token; empty where there is none. Raises ConfigError: its file cannot be
    read."""
    from huggingface_hub import constants, get_token

    try:
        return get_token() or ""
    except NotADirectoryError:  # of HF_HOME, and the cache says so
        return ""
    except (OSError, UnicodeDecodeError) as error:
        path = constants.HF_TOKEN_PATH
        raise ConfigError(
            f"the token for the hub cannot be read from {path}", "hf auth login"
        ) from error


def find(name: str) -> HubEntry:
    """Return the .nemo file of a model: the one called as the model is, or the only one.

    Raises:
        PassingError, NetworkError: the hub does not answer, or what answers is no hub.
        ModelError: no such model, one that needs a login, or one without a .nemo file.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError

    with translating(name):
        try:
            return _entry(name, models_names.own_file(name))
        except EntryNotFoundError:
            listed = HfApi(library_name="asrd").list_repo_files(name)
    files = [file for file in listed if file.endswith(".nemo") and "/" not in file]
    if len(files) != 1:
        several = f"{len(files)} .nemo files, none of them called {models_names.own_file(name)}"
        held = several if files else "no .nemo file"
        raise ModelError(
            f"{name} on the hub holds {held}",
            "download the right file and name its path: --model FILE",
        )
    with translating(name):
        return _entry(name, files[0])


def _entry(name: str, file: str) -> HubEntry:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    about = get_hf_file_metadata(hf_hub_url(name, file), library_name="asrd")
    commit, etag = about.commit_hash or "", about.etag or ""
    if about.size == 0:
        raise ModelError(
            f"{file} of {name} on the hub is empty",
            "choose another model, or report it to its publisher",
        )
    if not re.fullmatch(r"[0-9a-f]{40}", commit) or not re.fullmatch(r"\w[\w.-]{,127}", etag):
        raise NetworkError(
            f"the server at {_endpoint()} is not the hub: it gives no version of {name}",
            _way_out(),
        )
    return HubEntry(name, file, commit, etag, about.size)


@contextlib.contextmanager
def opened(entry: HubEntry, first: int = 0, stop: int | None = None) -> Iterator[Body]:
    """Ask for a file from byte `first` on, up to one before `stop`; enter to read the answer.

    Raises: as `find`; PassingError also where the answer breaks off while it is read.
    """
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    # Always through the hub, at the commit: the address that it leads to expires within the hour.
    url = hf_hub_url(entry.model, entry.file, revision=entry.commit)
    headers = build_hf_headers(library_name="asrd") | {"Accept-Encoding": "identity"}
    if first or stop is not None:
        headers["Range"] = f"bytes={first}-" + ("" if stop is None else f"{stop - 1}")
    with translating(entry.model):
        asked = get_session().stream(
            "GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        )
        with asked as response:
            hf_raise_for_status(response)
            yield _body(response, first)


def _body(response: Any, first: int) -> Body:
    """Return what an answer says of itself."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if response.status_code == 206 and found and int(found[1]) == first:
        total = None if found[2] == "*" else int(found[2])
        return Body(first, True, total, response.iter_raw())
    length = response.headers.get("Content-Length", "")
    total = int(length) if response.status_code == 200 and length.isdecimal() else None
    if response.status_code != 200:
        raise NetworkError(f"{response.url.host} sent another part than was asked for", _way_out())
    return Body(0, False, total, response.iter_raw())


# -- errors
# -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def translating(name: str) -> Iterator[None]:
    """Turn whatever the hub's library raises into one of our errors; EntryNotFoundError passes."""
    from huggingface_hub.errors import EntryNotFoundError

    try:
        yield
    except (AsrdError, PassingError, EntryNotFoundError):
        raise
    except Exception as error:  # the HTTP client and the file system each have classes of their own
        known = _translated(name, error)
        if known is None:
            raise
        raise known from error


def _translated(name: str, error: Exception) -> AsrdError | PassingError | None:
    """Return what an exception means to a user; None where it is a fault of this program."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return _offline(name)
    if isinstance(error, errors.HFValidationError):
        return ModelError(
            f"{name!r} is not a name on the hub",
            nearest(name, tuple(architectures.ARCHITECTURES), "asrd models"),
        )
    if getattr(error, "response", None) is not None:
        return _of_answer(name, error)
    client = _client()
    if isinstance(error, client.TransportError):
        return PassingError(_unreachable(name, error))
    if isinstance(error, OSError) and error.errno is not None:
        return _of_system(name, error)
    if isinstance(error, OSError | client.HTTPError | client.InvalidURL | client.StreamError):
        return _unreachable(name, error)
    return None


def _client() -> Any:
    """Return the module of the HTTP client that the hub's library uses; which one that is differs
    by its version."""
    from huggingface_hub import get_session

    return importlib.import_module(type(get_session()).__module__.partition(".")[0])


def _of_system(name: str, error: OSError) -> DiskError:
    """Return the error for what the system says of a file or folder of the cache."""
    if error.errno in NO_ROOM:
        return no_room(name, None, None)
    hint = "check the disk: sudo dmesg"
    if error.errno in NO_RIGHT:
        hint = f"set {cache_variable()} to a folder of yours"
    return DiskError(
        f"cannot write to the cache {models_names.cache_folder()}: {error.strerror}", hint
    )


def _of_answer(name: str, error: Exception) -> AsrdError | PassingError:
    """Return the error for an answer that is none of 2xx."""
    from huggingface_hub import errors, get_token

    response: Any = getattr(error, "response", None)
    status = response.status_code
    page = f"{_endpoint()}/{name}"
    login = f"accept its terms on {page}" + ("" if get_token() else ", then: hf auth login")
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return ModelError(f"{name} needs a login, and the right to read it, on the hub", login)
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        hint = "if it is private: hf auth login"
        if get_token():
            hint = "if it is private, use a token that may read it"
        if name not in architectures.ARCHITECTURES:
            known = tuple(architectures.ARCHITECTURES)
            hint = f"{hint}; {nearest(name, known, 'asrd models')}"
        return ModelError(f"there is no model {name} on the hub, or it is private", hint)
    answered = NetworkError(f"the hub answered {status} for {name}", _way_out())
    if status in PASSING_STATUS:
        answered.hint = "try again later, or pass a .nemo file's path"
        asked = response.headers.get("Retry-After", "")
        wait = min(float(asked), MAX_ASKED_SECONDS) if asked.isdecimal() else 0.0
        return PassingError(answered, answered=True, wait=wait)
    return answered


def _unreachable(name: str, error: Exception) -> NetworkError:
    """Return that the hub cannot be reached, as the first line of `error` says."""
    lines = str(error).strip().splitlines()
    what = re.sub(r"^\[Errno -?\d+\] ", "", lines[0].rstrip(".")) if lines else type(error).__name__
    return NetworkError(
        f"cannot reach the hub for {name} and it is not in the cache ({what})", _way_out()
    )


def _way_out() -> str:
    """Return what a user can do without this hub; HF_ENDPOINT and a proxy are named where they are
    set."""
    settings = _proxy()
    if os.environ.get("HF_ENDPOINT"):
        settings.insert(0, f"HF_ENDPOINT ({_endpoint()})")
    hint = "copy the .nemo file here and pass its path"
    if settings:
        hint = f"check {' and '.join(settings)}, or {hint}"
    return hint


def _proxy() -> list[str]:
    """Return the variable by which requests to the hub go through a proxy; its value may hold a
    password."""
    address = urllib.parse.urlsplit(_endpoint())
    names = [f"{address.scheme}_proxy", "all_proxy"]
    if urllib.request.proxy_bypass(address.hostname or ""):
        return []
    for name in names:
        for variable in (name, name.upper()):
            if os.environ.get(variable):
                return [variable]
    return []


def _offline(name: str) -> NetworkError:
    """Return that the user's environment forbids the network, and by which variable."""
    given = [variable for variable in OFFLINE if os.environ.get(variable, "").upper() in TRUE]
    which = " and ".join(given)
    return NetworkError(
        f"{name} is not in the cache, and offline mode is set by {which}",
        f"unset {which}, or copy the .nemo file here and pass its path",
    )


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def cache_variable() -> str:
    """Return the variable by which a user moves the cache: the one that decides today."""
    for variable in CACHES:
        if os.environ.get(variable):
            return variable
    return "HF_HOME"


def no_room(name: str, needed: int | None, free: int | None) -> DiskError:
    """Return that the cache has no room for a download."""
    what, left = "the size of its file is not known", ""
    if needed is not None:
        what = f"{needed} bytes needed"
    if free is not None:
        left = f", {free} free"
    return DiskError(
        f"no room for {name} in the cache {models_names.cache_folder()}: {what}{left}",
        f"free some, or set {cache_variable()} to a folder on a larger disk",
    )
