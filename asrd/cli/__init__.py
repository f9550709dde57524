"""One file a verb; prints; exit codes.

A file imports only from files above it, and from packages below this one.

    cells            one cell of a table: a figure, or a mark for none
    status_page      what a status reply looks like: one line, a page, JSON for waybar
    control          verbs that only ask the daemon
    file_transcript  one file on its way to text
    subtitles        words as SubRip or WebVTT
    file_progress    a bar on a terminal for the present file
    transcribe       verb: files -> text
    tuning_table     the table of what asrd tune measured, for tune and plan
    plan             verb: what each strategy would need here, and which one would run
    models           verb: the models that are known, and their sizes
    config           verb: each setting, its value and where it came from
    measuring        what compare and tune share before they measure
    compare          verb: what each strategy saves and costs here
    tune             verb: the candidates of auto measured here, and the verdict that auto goes by
    systemd_units    the units as text, and the program that they start
    systemctl        what systemctl says of the units, and commands to it
    service          verb: the user service, installed, removed, printed
    journal_history  the entries of a day, and the figures they come to
    report           verb: the figures of a day, printed
    doctor           verb: what works on this machine, what is missing, what fixes it
    help             pages of the documentation, listed and shown
    completion       what a shell proposes behind asrd
    main             verb -> module:function; nothing heavy imported
    devices          verb: the microphones, and how loud each is
    run              verb: the daemon in the foreground
"""
