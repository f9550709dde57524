"""One recording on its way to text: segments, committed words, voice commands.

A file imports only from files above it, and from packages below this one.

    voice_commands  what a speaker says to the text: words and a table -> marks, breaks, corrections
    (pure)
    segmenter       the ten seconds, on one integer sample clock
    transcript      hypotheses -> committed text, joined by word times
    empty_retry     which buffers without a word are asked for again, and what of the answers stands
    session         one recording on its way to text: detector, window, worker, transcript
"""
