"""Sizes as people read them."""

from __future__ import annotations

import pytest

from asrd.text.sizes import readable_size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0.0 MiB"),
        (1 << 19, "0.5 MiB"),
        (999 << 20, "999.0 MiB"),
        (1000 << 20, "0.98 GiB"),
        (4 << 30, "4.00 GiB"),
    ],
)
def test_sizes_are_short_and_have_a_unit(count: int, text: str) -> None:
    assert readable_size(count) == text
