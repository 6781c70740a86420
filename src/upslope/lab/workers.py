"""Tasks in worker processes: spawned, one torch thread each, deaf to Ctrl-C, gone with the parent.

Only the parent acts on Ctrl-C and SIGTERM, and whatever ends it ends its workers. Nothing of a task
depends on which worker runs it, or on how many there are.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.resource_tracker import ensure_running
from typing import Any

import torch

from upslope.errors import UpslopeError

Tell = Callable[[Any], None]
Function = Callable[[Any, Tell], Any]  # of a module, so that a worker can import it

GRACE = 2.0  # seconds that a worker has to end by itself
TOLD, RESULT, ERROR = "told", "result", "error"


def run_all(
    function: Function,
    tasks: Sequence[Any],
    n_workers: int,
    on_told: Callable[[int, Any], None],
    on_result: Callable[[int, Any], None],
) -> None:
    """Call ``function(task, tell)`` for every task, ``n_workers`` at a time; here where that is 1.

    Args:
        function: returns a task's result; ``tell`` passes on how far it is.
        tasks: what to do; a worker that dies is named by its task's ``str``.
        n_workers: at least 1.
        on_told: given a task's index and what it told.
        on_result: given a task's index and its result, when it has finished.

    Raises:
        UpslopeError: what a task raised, or that a worker died; the other workers are then ended.
    """
    if n_workers == 1 or len(tasks) < 2:
        for i, task in enumerate(tasks):
            with _one_thread():
                result = function(task, partial(on_told, i))
            on_result(i, result)
        return
    workers: list[_Worker] = []
    try:
        with _deaf_to_ctrl_c():
            for _ in range(min(n_workers, len(tasks))):
                workers.append(_Worker(function))
        _distribute(tasks, workers, on_told, on_result)
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.end()


def _distribute(
    tasks: Sequence[Any],
    workers: Sequence[_Worker],
    on_told: Callable[[int, Any], None],
    on_result: Callable[[int, Any], None],
) -> None:
    """Hand out tasks in order, the next to whoever is free, until all have finished."""
    waiting = iter(enumerate(tasks))
    at_work: dict[Any, tuple[_Worker, int]] = {}

    def give(worker: _Worker) -> None:
        following = next(waiting, None)
        if following is not None:
            worker.connection.send(following[1])
            at_work[worker.connection] = (worker, following[0])

    for worker in workers:
        give(worker)
    while at_work:
        for connection in wait(list(at_work)):
            worker, i = at_work[connection]
            kind, value = worker.receive(tasks[i])
            if kind == TOLD:
                on_told(i, value)
                continue
            del at_work[connection]
            on_result(i, value)
            give(worker)


class _Worker:
    """A process that answers tasks, and this end of the pipe to it."""

    def __init__(self, function: Function) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(function, theirs))
        self.process.start()
        theirs.close()  # so that the pipe closes when the worker dies

    def receive(self, task: Any) -> tuple[str, Any]:
        """The worker's next message about a task.

        Raises:
            UpslopeError: what the task raised, or that the worker died.
        """
        try:
            kind, value = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join(GRACE)
            code = self.process.exitcode
            remedy = "call it under `if __name__ == '__main__':`, as every script that spawns"
            if code is not None and code < 0:  # by a signal
                remedy = "if memory ran out, take fewer jobs"
            raise UpslopeError(
                f"the process that ran {task} died with exit code {code}: {remedy}"
            ) from None
        if kind == ERROR:
            error, trace = value
            raise error from RuntimeError(trace)  # which --debug shows
        return kind, value

    def end(self) -> None:
        """See the process gone, which was asked to go."""
        self.process.join(GRACE)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        self.connection.close()


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Have processes started in the block never hear Ctrl-C, which a terminal sends to all.

    A signal mask is inherited, from a process's first instant on; a Ctrl-C that arrives in the
    block itself is delivered after it.
    """
    ensure_running()  # multiprocessing's own helper, whose start would lift the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Have torch take one thread, as in every worker, or sums would round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _serve(function: Function, connection: Connection[Any, Any]) -> None:
    """Answer tasks until the parent closes the pipe."""
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            task = connection.recv()
            try:
                result = function(task, lambda told: connection.send((TOLD, told)))
            except ConnectionError:
                raise
            except UpslopeError as error:
                connection.send((ERROR, (error, traceback.format_exc())))
            except Exception as error:
                said = f"unexpected {type(error).__name__} in {task}: {error}; this is a bug"
                error = UpslopeError(f"{said}, and --debug shows where")
                connection.send((ERROR, (error, traceback.format_exc())))
            else:
                connection.send((RESULT, result))
