"""Be a sink: `command:python sink.py FOLDER NAME` logs what it got, and ends as the file
FOLDER/NAME.mode asks.

Each line of FOLDER/NAME.log is one JSON object with the time, the process and what happened: begun,
read (with the text that was read), accepted (with the text; written right before exit code 0).
Imports nothing beyond the standard library, as each delivery starts one.

The file holds modes separated by commas, one for each time that the sink is started; behind the
last it accepts.

Modes: accept; slow, accept after half a second; refuse, read all and end with 3; deaf, read nothing
    and end with 3;
half, read half and end with 3; hang, read all and never end; die, read all and die by SIGKILL;
late, accept and go on for half a second before the end.
"""

import json
import os
import signal
import sys
import time

PAUSE_SECONDS = 0.5
ENDLESS_SECONDS = 3600.0


def tell(folder: str, name: str, event: str, text: str = "") -> None:
    """Append one line to the log in one write, so that sinks which run at once do not mix
    theirs."""
    entry = {"at": time.time(), "pid": os.getpid(), "event": event, "text": text}
    handle = os.open(
        os.path.join(folder, f"{name}.log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600
    )
    os.write(handle, json.dumps(entry).encode() + b"\n")
    os.close(handle)


def asked_mode(folder: str, name: str) -> str:
    """Return how this sink is to end, and take that off the file."""
    path = os.path.join(folder, f"{name}.mode")
    try:
        with open(path, encoding="utf-8") as file:
            mode, _, rest = file.read().strip().partition(",")
    except FileNotFoundError:
        return "accept"
    with open(f"{path}.{os.getpid()}", "w", encoding="utf-8") as file:
        file.write(rest)
    os.replace(f"{path}.{os.getpid()}", path)
    return mode or "accept"


def read(mode: str) -> str:
    """Return the text from standard input, or the half of it."""
    if mode == "deaf":
        return ""
    data = sys.stdin.buffer.read()
    return data[: len(data) // 2 if mode == "half" else len(data)].decode(errors="replace")


def main(folder: str, name: str) -> int:
    """Log and end as asked; return the exit code."""
    mode = asked_mode(folder, name)
    tell(folder, name, "begun")
    text = read(mode)
    tell(folder, name, "read", text)
    if mode == "slow":
        time.sleep(PAUSE_SECONDS)
    elif mode == "hang":
        time.sleep(ENDLESS_SECONDS)
    elif mode == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode in ("refuse", "deaf", "half"):
        return 3
    tell(folder, name, "accepted", text)
    if mode == "late":
        time.sleep(PAUSE_SECONDS)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
