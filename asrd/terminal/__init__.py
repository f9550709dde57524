"""What a person reads: safe text, tables, progress; parsers of arguments.

A file imports only from files above it, and from packages below this one.

    output     what a person reads: text, JSON and complaints, with nothing in them that a terminal obeys
    listing    rows under headings, in which no name is broken, however narrow the terminal
    arguments  a parser whose complaints are one sentence and a hint
    progress   how far long work has come: bars on a terminal, few lines in a pipe
    grids      tables of figures for a terminal, in which no name and no number is broken (pure)
"""
