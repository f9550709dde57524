"""One key press to text: recorder, queue, the engine in service, fallback while it runs.

A file imports only from files above it, and from packages below this one.

    recording          one recording between the key and its text: sound on disk, words, what became of it
    metrics            what a take cost, as the journal tells it
    fallback_triggers  what of a candidate's figures is reason enough to leave it (pure)
    fallback_monitor   a candidate was left: who is told, what is remembered, when it may return
    shadow             one take in N once more in FP32: how many words differ
    read_write_lock    who may use the one engine when: many at once, or one alone who exchanges it
    cleanup            what is done with a recording once its text is out: read for the shadow, deleted or kept
    transcriber        recordings -> text by the one engine, and which engine that is
    idle_tasks         what waits until nobody speaks: a better candidate again, the shadow
    recorder           the recording that is going on, and the microphone under it
"""
