"""Imports without Python's collector of cycles, which would search all that torch has made for
garbage that an import does not leave.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator

from upslope.interrupts import handled_by, leave_at_once


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Collect no cycles in the block; one that was on is on again after it."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def imports_of_a_command() -> Iterator[None]:
    """Import without collections, and leave what is imported out of all later ones.

    Modules live as long as the process, so a search of them finds nothing, at its end least of all.
    What is made after the block is collected as ever. Where torch is there already, somebody else
    began this process, and what they hold is not for a command to keep.
    """
    is_ours = "torch" not in sys.modules
    with without_collections(), handled_by(leave_at_once):
        yield
        if is_ours:
            gc.freeze()
