"""A daemon that is a real program and keeps to systemd's protocols, but hears nothing and can do
each wrong on demand.

It stands where `asrd` would: `run` is the daemon, other verbs are asrd's own. Over the control
socket, a line each: "hang", "exit CODE", "take", "fields TEXT", "flood COUNT", "status", and ACTS;
it answers with one line.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import mmap
import os
import signal
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from asrd import journal
from asrd.daemon import sd_notify
from asrd.errors import AsrdError

DRAIN = 0.3
"""Seconds that stopping takes, with the child still there."""


def jit() -> str:
    """Run machine code from memory that was writable, as CUDA's and oneDNN's compilers do."""
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("b82a000000c3"))  # mov eax, 42; ret
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    return str(ctypes.CFUNCTYPE(ctypes.c_int)(address)())


def child() -> str:
    """Start a process that ends with its input, and answer its number."""
    process = os.posix_spawn("/bin/sleep", ["sleep", "1000"], {})
    return str(process)


def numba() -> str:
    """Compile a function and keep it, as NeMo's features do."""
    from numba import njit

    def answer() -> int:
        return 42

    return str(njit(cache=True)(answer)())


def clock() -> str:
    """Try what the filter refuses and the kernel would not: asking how the clock is disciplined."""
    libc = ctypes.CDLL(None, use_errno=True)
    asked = libc.adjtimex(ctypes.create_string_buffer(512))
    return "asked" if asked >= 0 else type(OSError(ctypes.get_errno(), "")).__name__


def namespace() -> str:
    """Try what RestrictNamespaces refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_user = 0x10000000
    return "made" if libc.unshare(new_user) == 0 else type(OSError(ctypes.get_errno(), "")).__name__


def act(line: str) -> str:
    word, _, rest = line.partition(" ")
    if word == "hang":
        time.sleep(1000)
    elif word == "exit":
        os._exit(int(rest))
    elif word == "take":
        journal.event("take", "a take of 3.2 s", **TAKE)
    elif word == "fields":
        logging.getLogger("asrd").warning(
            "said %s", "less", extra={"ASRD_TEXT": rest, "lower": "dropped"}
        )
    elif word == "flood":
        for number in range(int(rest)):
            journal.event("state", f"number {number}")
    elif word == "status":
        return Path("/proc/self/status").read_text().replace("\n", ";")
    elif word in ACTS:
        return ACTS[word]()
    return f"ok {os.getpid()}"


ACTS = {"jit": jit, "child": child, "numba": numba, "clock": clock, "namespace": namespace}

TAKE = dict(
    take="20261122-100000", audio_seconds=3.2, words=7, rtf=0.05, stop_to_text_ms=120, strategy="bfloat16",
    effective="bfloat16", device="cuda:0", model="demo", weights_bytes=2 << 20, process_bytes=5 << 20,
    device_bytes=None, baseline_process_delta_bytes=-(3 << 20), outcome="delivered", sinks=["type", "clipboard"],
)  # fmt: skip


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := (await reader.readline()).decode().strip():
        writer.write(f"{act(line)}\n".encode())
        await writer.drain()
    writer.close()


async def feed(period: float) -> None:
    while True:
        sd_notify.watchdog()
        await asyncio.sleep(period / 2)


async def run() -> int:
    journal.log_to_journal()
    journal.event("starting", "starting", pid=os.getpid())
    loop, end = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, end.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    path = Path(os.environ["XDG_RUNTIME_DIR"]) / "asrd.sock"
    control = sd_notify.inherited().get("control")
    where = "inherited" if control else "own"
    if control is None:
        path.unlink(missing_ok=True)
        control = socket.socket(socket.AF_UNIX)
        control.bind(str(path))
    await asyncio.start_unix_server(answer, sock=control)
    if period := sd_notify.watchdog_seconds():
        feeding = asyncio.create_task(feed(period))
        feeding.add_done_callback(lambda task: None)
    sd_notify.ready(f"idle, socket {where}")
    journal.event("ready", "ready")
    await end.wait()
    sd_notify.stopping()
    sd_notify.status("draining")
    await asyncio.sleep(DRAIN)
    journal.event("stopping", "stopped", drained="yes", children=alive())
    return 0


def alive() -> int:
    """Return how many child processes still run."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return sum("\nState:\tZ" not in Path(f"/proc/{child}/status").read_text() for child in children)


def reload() -> None:
    sd_notify.reloading()
    journal.event("reloaded", "read the configuration again")
    sd_notify.ready("idle, reloaded")


def main(words: list[str]) -> int:
    if words[0] == "run":
        return asyncio.run(run())
    import argparse

    from asrd.cli import report, service
    from asrd.config import loading

    parser = argparse.ArgumentParser()
    about, do = {
        "service": (service.service_arguments, service.service),
        "report": (report.report_arguments, report.report),
    }[words[0]]
    about(parser)
    try:
        return do(parser.parse_args(words[1:]), loading.load().settings)
    except AsrdError as error:
        print(f"asrd: {error.message}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
