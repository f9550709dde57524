"""Recordings on disk until their text is out, and what each sink has of it.

A file imports only from files above it, and from packages below this one.

    sink_names  names of sinks as people see them, made from their settings (pure)
    deliveries  what each sink accepted of a text, on disk before each attempt and after it
    files       one recording on disk: a header, a note, and its samples
    store       the folder of recordings: begin, keep, claim, find, delete
    index       how many recordings wait: kept in memory, counted anew when their folder changes
"""
