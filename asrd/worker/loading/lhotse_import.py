"""lhotse, which NeMo imports, kept from making a folder in the user's home."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

FOLDER_MODULE = "lhotse.tools.env"
"""The module that makes ~/.lhotse/tools when lhotse is imported: a folder for programs that asrd
never calls."""


def leave_home_alone() -> None:
    """Import the module that makes the folder ahead of lhotse, and have it make none.

    It does nothing once lhotse is imported, and in a release without that module.
    """
    package = importlib.util.find_spec("lhotse")
    if package is None or package.origin is None or FOLDER_MODULE in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        FOLDER_MODULE, Path(package.origin).parent / "tools" / "env.py"
    )
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except OSError:  # there is no such file in this release
        return
    if hasattr(module, "default_tools_cachedir"):
        vars(module)["default_tools_cachedir"] = _folder
        sys.modules[FOLDER_MODULE] = module


def _folder(force_mkdir: bool = False) -> Path:
    """Return the folder, which is made only for a program that is installed there."""
    where = Path.home() / ".lhotse" / "tools"
    if force_mkdir:
        where.mkdir(exist_ok=True, parents=True)
    return where
