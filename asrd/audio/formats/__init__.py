"""Sound files: what they hold by their own bytes, and their decoders."""
