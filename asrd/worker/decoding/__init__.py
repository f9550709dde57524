"""Encoder output to timed tokens, by model family."""
