"""Independent tasks in processes of their own; results come in the order of the tasks."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

Tell = Callable[[Any], None]
POLL = 0.1  # seconds between looks at what the workers tell

_told: Any = None  # a worker's end of the queue


def side_by_side(
    function: Callable[[Any, Tell], Any], tasks: Sequence[Any], jobs: int, tell: Tell
) -> Iterator[Any]:
    """Yield ``function(task, tell)`` of each task, computed in up to ``jobs`` processes.

    Results depend on the tasks alone: each process has one torch thread, whatever ``jobs`` is. With
    one job or one task no process is started. Leaving early, by Ctrl-C too, ends the processes.

    Args:
        function: a module's function of a task and of ``tell``.
        tasks: picklable.
        jobs: processes at most.
        tell: called in this process with what the tasks tell.
    """
    if jobs == 1 or len(tasks) == 1:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for task in tasks:
                yield function(task, tell)
        finally:
            torch.set_num_threads(before)
        return
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    with context.Pool(min(jobs, len(tasks)), _begin, (queue,)) as pool:
        pending = [pool.apply_async(_run, (function, task)) for task in tasks]
        for result in pending:
            while not result.ready():
                result.wait(POLL)
                _pass_on(queue, tell)
            _pass_on(queue, tell)
            yield result.get()


def _pass_on(queue: Any, tell: Tell) -> None:
    while not queue.empty():
        tell(queue.get())


def _begin(queue: Any) -> None:
    """Set up a worker: Ctrl-C is its parent's, which ends it."""
    global _told
    _told = queue
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _run(function: Callable[[Any, Tell], Any], task: Any) -> Any:
    return function(task, _told.put)
