"""Files that a crash or a full disk leaves whole: synced beside their place, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from upslope.errors import ModelFileError, first_line

TEMPORARY_SUFFIX = ".upslope-tmp"  # what a killed write leaves behind: `.<random>.upslope-tmp`


def replace_file(path: Path, parts: Sequence[bytes | memoryview], what: str) -> None:
    """Put ``parts`` at ``path`` by a synced temporary file beside it and one rename.

    Missing parent folders are made.

    Args:
        path: where the file goes; what is there is replaced in one step.
        parts: its bytes.
        what: what the file is called in an error.

    Raises:
        ModelFileError: with the bytes needed and free; what was at ``path`` is unchanged (always,
            except when only the folder's sync failed).
    """
    temporary = path.parent / f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_synced(temporary, parts)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError, ValueError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError | ValueError):  # ValueError: a path with a null character
            needed = sum(len(part) for part in parts)
            raise ModelFileError(
                f"cannot write {what} {str(path)!r} ({needed} bytes needed, {free_text(path)}):"
                f" {cause(error)}; make room or save somewhere else, what was there is unchanged"
            ) from error
        raise
    try:
        sync_directory(path.parent)
    except OSError as error:
        raise ModelFileError(
            f"{what} {str(path)!r} is written but its folder cannot be synced to disk:"
            f" {cause(error)}; save again, a power cut could bring back what was there before"
        ) from error


def write_synced(path: Path, parts: Sequence[bytes | memoryview]) -> None:
    """Write a new file, down to the disk; it gets the mode of the umask, unlike tempfile's."""
    with open(path, "xb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def remove_temporaries(directory: Path) -> None:
    """Remove what a process that died in the middle of a write left in ``directory``."""
    for path in directory.glob(f".*{TEMPORARY_SUFFIX}"):
        with contextlib.suppress(OSError):
            path.unlink()


def sync_directory(directory: Path) -> None:
    """Make a rename in ``directory`` survive a power cut, if the file system can promise that."""
    if os.name == "nt":  # Windows opens no directories
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(descriptor)


def free_text(path: Path) -> str:
    """Say how much room the disk of ``path`` has, asking its nearest folder that exists."""
    for folder in path.parents:
        with contextlib.suppress(OSError, ValueError):
            return f"{shutil.disk_usage(folder).free} free"
    return "free space unknown"


def cause(error: Exception) -> str:
    """Return what the system says about ``error``, without the paths that OSError adds to it."""
    return (isinstance(error, OSError) and error.strerror) or first_line(error)
