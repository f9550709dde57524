"""The format of all audio behind the sources: mono float32 at one rate."""

from __future__ import annotations

SAMPLE_RATE = 16_000
"""Hertz. The clock of the whole program."""
