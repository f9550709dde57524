"""The service: life, requests over the control socket, sd_notify, suspend.

A file imports only from files above it, and from packages below this one.

    control_socket  where the control socket is, how it is bound, and whether a daemon listens on
    it. Imports little
    client          one request to the daemon and its replies; a busy daemon is asked again. Imports little
    logind          suspend and resume, with a delay inhibitor
    control_server  the control socket from inside: lines, limits, clients
    key_presses     a key that is held or bounces, told from one that is pressed again
    replies         what the daemon says to the verbs: sentences made of its state (pure)
    retry           kept recordings once more: claimed, recognised from where their text ends, delivered
    sd_notify       the notify protocol of systemd: readiness, status, watchdog, and inherited sockets
    daemon          verb run: states, the key, reload, status, the end
"""
