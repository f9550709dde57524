"""The encoder, and its faster forms."""
