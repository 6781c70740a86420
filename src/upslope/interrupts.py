"""Ctrl-C and SIGTERM: an update that is running is finished first, a rollout is dropped."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to stop; ``exit_code`` is 130 for Ctrl-C and 143 for SIGTERM."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class _Asked:
    """The first signal that asked this command to stop, and how many there were."""

    number: int | None = None
    times = 0

    @classmethod
    def note(cls, number: int) -> None:
        cls.times += 1
        if cls.number is None:
            cls.number = number


def stop_at_once(number: int, frame: Any) -> None:
    """Handle a signal where nothing has to be finished first."""
    _Asked.note(number)
    raise Interrupted(number)


def leave_at_once(number: int, frame: Any) -> None:
    """Handle a signal in the middle of imports, which an exception would leave half done."""
    sys.stderr.write("upslope: interrupted\n")
    os._exit(128 + number)


def begin_command() -> None:
    """Have signals stop this process from now on; outside the main thread nothing is changed."""
    _Asked.number, _Asked.times = None, 0
    with contextlib.suppress(ValueError):
        for number in STOPS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as in a shell's background job
                signal.signal(number, stop_at_once)


def end_command() -> None:
    """Let signals be: the work is done, and the exit code says how, while Python tidies up."""
    with contextlib.suppress(ValueError):
        for number in STOPS:
            if signal.getsignal(number) is stop_at_once:
                signal.signal(number, signal.SIG_IGN)


def stop_asked() -> int | None:
    """The signal that asked to stop, also where a library swallowed its exception; or None."""
    return _Asked.number


def obey() -> None:
    """Raise if a signal asked to stop, also where a library swallowed its exception."""
    if _Asked.number is not None:
        raise Interrupted(_Asked.number)


def asked_again() -> bool:
    """Whether a second signal says that there is no time for anything more."""
    return _Asked.times > 1


@contextlib.contextmanager
def interrupts() -> Iterator[list[int]]:
    """Collect the first Ctrl-C or SIGTERM in a list instead of raising; the second raises at once.

    Outside the main thread, where signals cannot be caught, the list stays empty.
    """
    caught: list[int] = []

    def remember(number: int, frame: Any) -> None:
        _Asked.note(number)
        if caught:
            raise Interrupted(number)
        caught.append(number)

    with handled_by(remember):
        yield caught


@contextlib.contextmanager
def finished_first() -> Iterator[None]:
    """Let a signal wait until the block is done, such as the writing of files."""
    with interrupts() as caught:
        yield
    if caught:
        raise Interrupted(caught[0])


@contextlib.contextmanager
def within(seconds: float, give_up: Callable[[int], None]) -> Iterator[None]:
    """Have ``give_up`` called, in a thread, so many seconds after a signal that is not obeyed.

    It must end the process. One that has left the block by then has obeyed. Python handles signals
    in the main thread alone and between two of its instructions, so a long call into native code
    holds them back; what tells the thread of them is the pipe into which the system's own handler
    writes each signal's number. Outside the main thread nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _keep_children_silent()
    heard, told = socket.socketpair()
    told.setblocking(False)
    before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    left = threading.Event()

    def watch() -> None:
        while number := heard.recv(1):
            if number[0] in STOPS:
                if not left.wait(seconds):
                    give_up(number[0])
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        left.set()
        told.close()
        thread.join()
        heard.close()


@functools.cache
def _keep_children_silent() -> None:
    """Cut a forked worker off from the pipe: a signal that ends it is none for its parent."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


@contextlib.contextmanager
def handled_by(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Let ``handler`` have Ctrl-C and SIGTERM in the block, where it runs in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = {
        number: known
        for number in STOPS
        # None: set by something other than Python; ignored, as in a shell's background job: kept
        if (known := signal.getsignal(number)) not in (None, signal.SIG_IGN)
    }
    for number in heard:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, known in heard.items():
            signal.signal(number, known)
