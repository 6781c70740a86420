"""Ctrl-C and SIGTERM: the training iteration that is running is finished first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to stop; ``exit_code`` is 130 for Ctrl-C and 143 for SIGTERM."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def stop_at_once(number: int, frame: Any) -> None:
    """Handle a signal where nothing has to be finished first."""
    raise Interrupted(number)


@contextlib.contextmanager
def interrupts() -> Iterator[list[int]]:
    """Collect the first Ctrl-C or SIGTERM in a list instead of raising; the second raises at once.

    Outside the main thread, where signals cannot be caught, the list stays empty.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def remember(number: int, frame: Any) -> None:
        if caught:
            raise Interrupted(number)
        caught.append(number)

    heard = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        # None: set by something other than Python; ignored, as in a shell's background job: kept
        if (handler := signal.getsignal(number)) not in (None, signal.SIG_IGN)
    }
    for number in heard:
        signal.signal(number, remember)
    try:
        yield caught
    finally:
        for number, handler in heard.items():
            signal.signal(number, handler)
