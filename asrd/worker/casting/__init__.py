"""A precision applied to a model."""
