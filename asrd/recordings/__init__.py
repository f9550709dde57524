"""Recordings on disk until their text is out, and what each sink took of it.

A file imports only from files above it, and from packages below this one.

    deliveries  what each sink accepted of a recording's text, on disk before each attempt and after
    it
    files       one recording on disk: a header, a note, and its samples
    store       what was said and is not yet text: each take on disk, retention
    index       how many recordings wait: kept in memory, counted anew when their folder changes
"""
