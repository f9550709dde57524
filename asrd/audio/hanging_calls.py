"""Calls that may hang: each in a thread of its own, which nobody has to wait for."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def in_own_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """Do something that may hang in a thread of its own, which neither the loop nor the program's
    end waits for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(act: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            act(value)

    def run() -> None:
        try:
            value = work()
        except Exception as error:
            post(loop, settle, future.set_exception, error)
        else:
            post(loop, settle, future.set_result, value)

    threading.Thread(target=run, name="asrd-sound", daemon=True).start()
    return future


def post(loop: asyncio.AbstractEventLoop, act: Callable[..., None], *values: Any) -> None:
    """Have the loop do something; a loop that has ended needs nothing any more."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(act, *values)
