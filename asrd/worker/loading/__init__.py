"""NeMo imported and a checkpoint read."""
