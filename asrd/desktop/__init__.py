"""The graphical session: keys, clipboard, notifications; sinks of text.

A file imports only from files above it, and from packages below this one.

    session        the graphical session: its kind and its variables
    x11            the X server asked directly: who fetches the clipboard, what the keyboard is; a program of its own
    seat           whether a Wayland session has a keyboard, asked of the compositor
    programs       small programs of the desktop: run with a bound, ended with their children
    selections     the selections of a display: the programs that read and set them, and hold a lent text
    clipboard      a text in the clipboard for good, or lent for one paste and given back
    keyboard       keys into the focused window: typing, the paste chord, a probe of each tool
    notifications  notifications over D-Bus, and audible cues
    survey         what works in this session and what does not, tried without typing
    sinks          where text goes: stdout, the window, the clipboard, a command
"""
