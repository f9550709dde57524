"""Adds the manual pages to the wheel while hatchling builds it: share/man/man1 and share/man/man7."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ManualPages(BuildHookInterface):
    """Writes section 7 into a folder that lasts as long as the build."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the pages as data of the wheel."""
        spec = importlib.util.spec_from_file_location(
            "man_pages", Path(self.root, "tools", "man_pages.py")
        )
        man_pages = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(man_pages)
        self._folder = tempfile.TemporaryDirectory(prefix="asrd-man-")
        pages = man_pages.write_topics(Path(self._folder.name))
        for path in (man_pages.VERBS_PAGE, *pages):
            build_data["shared_data"][str(path)] = f"share/man/man{path.suffix[1:]}/{path.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the folder."""
        self._folder.cleanup()
