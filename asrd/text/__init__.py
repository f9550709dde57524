"""What text may hold: characters, words of scripts, file names, spans of time.

A file imports only from files above it, and from packages below this one.

    wording     words that many messages share: a count with its noun, a name said once (pure)
    characters  which characters a text may hold: in a model's words, and on a terminal (pure)
    spacing     where words end and what stands between them, in scripts with and without spaces (pure)
    filenames   file names are bytes: how one is shown, sent as JSON, and read from a text
    sizes       bytes as people read them (pure)
    durations   how people write a span of time or a date (pure)
    text_files  text files that a user wrote: UTF-8, with or without marks, any line ends
    pieces      A part of the text that is written or dropped as a whole, with its place on the sample clock
"""
