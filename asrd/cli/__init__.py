"""One file a verb; prints; exit codes.

A file imports only from files above it, and from packages below this one.

    status_page  what a status reply looks like: one line, a page, JSON for waybar
    control      the control socket from outside: the verbs that only ask the daemon
    transcribe   verb: files -> text
    inspect      verbs: models, plan, config
    measuring    what compare and tune share before they measure
    compare      verb: what each strategy saves and costs here
    tune         verb: the candidates of auto measured here, and the verdict that auto goes by
    service      verb: the user service, installed, removed, printed
    report       verb report: the figures of a day from the journal alone
    doctor       verb: what works on this machine, what is missing, what fixes it
    help         pages of the documentation, listed and shown
    completion   what a shell proposes behind asrd
    main         verb -> module:function; nothing heavy imported
    devices      Verb devices: the microphones, and how loud each is
    run          Verb run: the daemon in the foreground
"""
