"""Whether PortAudio can start with ALSA's configuration; it ends the whole process where that names
no default device.

PortAudio lists the devices of the configuration and asserts that "default" or "dmix" is among them.
Daemon side.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

from asrd.hints import install

ALSA_LIBRARY = "libasound.so.2"

DEFAULT_DEVICES = (b"pcm.default", b"pcm.dmix")
"""Devices of which PortAudio needs one."""

CONFIG_FILE = "/usr/share/alsa/alsa.conf"

_quiet = ctypes.CFUNCTYPE(None)(lambda: None)
"""Takes the lines that ALSA would print on standard error."""


def problem(environment: Mapping[str, str] = os.environ) -> tuple[str, str] | None:
    """Return why PortAudio cannot start, and what mends it; None where it can, and where ALSA is
    not installed."""
    try:
        alsa = ctypes.CDLL(ALSA_LIBRARY)
    except OSError:
        return None
    alsa.snd_lib_error_set_handler(_quiet)
    try:
        if alsa.snd_config_update() < 0:
            return "ALSA's configuration cannot be read", _fix(environment)
    finally:
        alsa.snd_lib_error_set_handler(None)
    root, found = ctypes.c_void_p.in_dll(alsa, "snd_config"), ctypes.c_void_p()
    if any(
        alsa.snd_config_search(root, name, ctypes.byref(found)) >= 0 for name in DEFAULT_DEVICES
    ):
        return None
    return "ALSA's configuration has no default device", _fix(environment)


def _fix(environment: Mapping[str, str]) -> str:
    """Return what makes the configuration whole again."""
    for name in ("ALSA_CONFIG_PATH", "ALSA_CONFIG_DIR"):
        if environment.get(name):
            return f"unset {name}"
    if not os.path.exists(CONFIG_FILE):
        return install("libasound2-data")
    return "look at ~/.asoundrc and /etc/asound.conf"
