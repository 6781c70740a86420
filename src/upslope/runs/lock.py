"""One process at a time: a lock on the run directory that dies with whoever holds it."""

from __future__ import annotations

import json
import os
import platform
import time
from datetime import UTC, datetime
from pathlib import Path

from upslope.errors import RunDirectoryBusyError

LOCK = ".lock"
PATIENCE = 2.0  # seconds in which a holder has written its name


class RunLock:
    """The lock of a run directory, held from here until :meth:`release` or the process's end.

    The system drops it when the process ends, however that happens, so none is ever left behind;
    the file stays, and names who held it last. Where the system has no such locks nothing is held.

    Raises:
        RunDirectoryBusyError: another process holds it; the sentence says which.
        OSError: the file cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self._descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(self._descriptor)
        except BlockingIOError:
            busy = _busy(directory, self._descriptor)
            os.close(self._descriptor)
            raise busy from None
        said = {
            "pid": os.getpid(),
            "host": platform.node(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(said).encode(), 0)

    def release(self) -> None:
        """Let others in."""
        if self._descriptor >= 0:
            _unlock(self._descriptor)  # worker processes may have inherited the descriptor
            os.close(self._descriptor)
            self._descriptor = -1


def check_free(directory: Path) -> None:
    """Raise if a process holds the lock of ``directory``; where there is none, nobody does.

    Raises:
        RunDirectoryBusyError: the sentence says which.
    """
    try:
        descriptor = os.open(directory / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        _lock(descriptor, shared=True)
    except BlockingIOError:
        raise _busy(directory, descriptor) from None
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, shared: bool = False) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def _unlock(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def _busy(directory: Path, descriptor: int) -> RunDirectoryBusyError:
    holder, deadline = _holder(descriptor), time.monotonic() + PATIENCE
    while holder is None and time.monotonic() < deadline:  # between its lock and its name
        time.sleep(0.01)
        holder = _holder(descriptor)
    return RunDirectoryBusyError(
        f"{directory} is in use by {holder or 'another process'}: wait for it, or give another "
        "--run-dir"
    )


def _holder(descriptor: int) -> str | None:
    """Who holds the lock, as the file says; None where that is nobody, or who died before."""
    try:
        said = json.loads(os.pread(descriptor, 4096, 0))
        if said["host"] == platform.node():
            os.kill(said["pid"], 0)
        return f"process {said['pid']} on {said['host']} since {said['started']}"
    except PermissionError:  # alive, and somebody else's
        return f"process {said['pid']} on {said['host']} since {said['started']}"
    except (OSError, ValueError, TypeError, KeyError):
        return None
