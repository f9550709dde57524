"""The service: life, requests over the control socket, sd_notify, suspend.

A file imports only from files above it, and from packages below this one.

    control_socket  where the control socket is, how it is bound, and whether a daemon listens on
    it. Imports little
    older_names     names of an older release on the control socket, beside today's. Imports little
    client          one request to the daemon and its replies; a busy daemon is asked again. Imports little
    logind          suspend and resume, with a delay inhibitor
    descriptors     the limit of file descriptors, and how many clients it allows
    control_server  the control socket from inside: lines, limits, clients
    key_presses     a key that is held or bounces, told from one that is pressed again
    replies         what the daemon says to the verbs: sentences made of its state (pure)
    status          each key of `asrd status --json` as a field of one type, and the state as one line
    delivery        texts to the sinks in force, with a warning where one refuses
    retry           kept recordings once more: claimed, transcribed from where their text ends, delivered
    sd_notify       the notify protocol of systemd: readiness, status, watchdog, and inherited sockets
    jobs            background tasks: started, kept, ended together
    announcements   what the daemon logs and notifies by itself
    daemon          the daemon's life: start, states, suspend, the end
    settings_changes  another strategy, and the configuration read again, while the daemon runs
    handlers        verb -> what it does and what it is answered
"""
