"""A progress bar for evaluations, on a terminal only."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def evaluation_bar(episodes: int, quiet: bool) -> Iterator[Callable[[int], None] | None]:
    """Yield ``progress(done)`` for ``evaluate``, or None where nobody watches."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("evaluating", total=episodes)
        yield lambda done: bar.update(task, completed=done)
