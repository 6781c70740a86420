"""When a run's checkpoints are written, and what goes into them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.errors import ConfigError, ModelFileError
from upslope.runs.checkpoint import (
    BEST,
    CHECKPOINTS,
    OPTIM,
    POLICY,
    commit,
    prepare,
    prune,
    write_checkpoint,
)
from upslope.runs.model_file import write_model

if TYPE_CHECKING:
    from upslope.agent import Agent

SLOW = 1.0  # seconds of an iteration, from which it is kept for a signal that finds the next one


class CheckpointWriter:
    """Writes the checkpoints of a run: in time, at a signal, and in the last moment of a process.

    Args:
        run: the run directory.
        agent: whose run it is.
        facts: what state.json says beside the state of training.
        last: iteration of the checkpoint that the run goes on from, where it does.
    """

    def __init__(
        self, run: Path, agent: Agent, facts: Callable[[], dict[str, Any]], last: int | None
    ) -> None:
        self._run, self._folder, self._agent, self._facts = run, run / CHECKPOINTS, agent, facts
        self._last = last
        self._kept: tuple[int, Path] | None = None  # the last whole iteration, where they are slow
        self._writing = threading.Lock()
        self._at = time.monotonic()

    def write(self, number: int, *, is_scheduled: bool, is_last: bool = False) -> None:
        """Write what the run continues from after ``number`` iterations.

        Raises:
            ModelFileError: it cannot be written.
            ConfigError: a callback remembers what no file can hold.
        """
        with self._writing, self._agent.training.phase("logging"):
            self._write(number, is_scheduled=is_scheduled, is_last=is_last)

    def write_last_whole(self) -> None:
        """Write the last whole iteration, where a signal cut off the rollout of the next."""
        training = self._agent.training
        if training.is_whole and training.iteration != self._last:
            self.write(training.iteration, is_scheduled=False)

    def keep_if_slow(self, number: int) -> None:
        """Have a slow iteration at hand: the next may not end in time for a signal."""
        took, self._at = time.monotonic() - self._at, time.monotonic()
        if took < SLOW:
            return
        with self._writing, contextlib.suppress(OSError, ModelFileError):
            state = self._state(is_scheduled=False, is_last=False)
            prepared = prepare(self._folder, number, state, self._write_models)
            self._drop_kept()
            self._kept = (number, prepared)

    def leave(self) -> None:
        """Write the last whole iteration from another thread, before the process ends.

        While an update moves the policy that is the one that was kept, where iterations are slow.
        """
        training = self._agent.training
        if not self._writing.acquire(blocking=False):  # it is being written
            return
        with contextlib.suppress(ModelFileError, OSError):
            if training.is_whole and training.iteration != self._last:
                self._write(training.iteration, is_scheduled=False, is_last=False)
            elif self._kept is not None:
                commit(self._folder, *self._kept)

    def _write(self, number: int, *, is_scheduled: bool, is_last: bool) -> None:
        state = self._state(is_scheduled=is_scheduled, is_last=is_last)
        write_checkpoint(self._folder, number, state, self._write_models)
        self._last, self._at = number, time.monotonic()
        self._drop_kept()
        prune(self._folder)

    def _state(self, *, is_scheduled: bool, is_last: bool) -> dict[str, Any]:
        training = self._agent.training.state()
        said = {"scheduled": is_scheduled, "finished": is_last, "training": training}
        return {**said, **self._facts()}

    def _write_models(self, directory: Path) -> None:
        self._agent.save(directory / POLICY)
        write_model(directory / OPTIM, {}, self._agent.training.moments())
        best = self._run / BEST
        if best.exists():
            try:
                os.link(best, directory / BEST)  # it is only ever replaced, so this one stays
            except OSError:  # a file system without links
                shutil.copy(best, directory / BEST)

    def _drop_kept(self) -> None:
        if self._kept is not None:
            shutil.rmtree(self._kept[1], ignore_errors=True)
            self._kept = None


def callback_states(callbacks: Sequence[Any]) -> list[dict[str, Any]]:
    """What callbacks remember, by name; None where they have no ``state`` and ``load_state``.

    Raises:
        ConfigError: what one says is not JSON.
    """
    return [{"name": callback_name(x), "state": _state_of(x)} for x in callbacks]


def callback_name(callback: Any) -> str:
    """The name of a function, or of an object's class."""
    return str(getattr(callback, "__qualname__", type(callback).__qualname__))


def _state_of(callback: Any) -> Any:
    if not all(callable(getattr(callback, name, None)) for name in ("state", "load_state")):
        return None
    state = callback.state()
    try:
        return json.loads(json.dumps(state))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"state() of the callback {callback_name(callback)} is not JSON ({error}), and no "
            "checkpoint can hold it: return numbers, texts, lists and dicts"
        ) from error
