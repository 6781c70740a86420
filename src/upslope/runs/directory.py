"""A run directory: what a run was asked to do, what it did, and what came of it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from upslope.errors import ConfigError, ModelFileError, UpslopeError
from upslope.interrupts import finished_first
from upslope.runs.checkpoint import (
    BEST,
    CHECKPOINTS,
    Checkpoint,
    numbers,
    remove_leftovers,
    set_aside,
)
from upslope.runs.checkpoint_writer import CheckpointWriter, callback_states
from upslope.runs.description import (
    command_line,
    describe,
    now,
    seconds_since_process_start,
    unused,
)
from upslope.runs.durable import remove_temporaries, replace_file
from upslope.runs.lock import LOCK, RunLock, check_free
from upslope.runs.model_file import read_model, write_model
from upslope.runs.progress import COLUMNS, ProgressFile, read_rows
from upslope.runs.report import REPORT
from upslope.runs.writers import RECORD, Trackers, open_writers
from upslope.training import WINDOW, Event

if TYPE_CHECKING:
    from upslope.agent import Agent
    from upslope.evaluation import Score

CONFIG, RUN, PROGRESS = "config.json", "run.json", "progress.csv"
MODEL, BEST_MODEL, EVALUATION = "model.safetensors", BEST, "evaluation.json"
COMMAND = "command.txt"
BEGINNING = {COMMAND, RUN, PROGRESS, CHECKPOINTS, RECORD}  # what is there before config.json
log = logging.getLogger("upslope")


def exit_code(error: BaseException) -> int:
    """The command line's exit code for what ended a run."""
    otherwise = 130 if isinstance(error, KeyboardInterrupt) else 1
    return int(getattr(error, "exit_code", otherwise))


class RunDirectory:
    """The files of one run, written as it goes on; ``learn`` tells it of every iteration.

    A context manager: it holds the directory's lock from its making to its end, writes checkpoint 0
    as it is entered, and the policy and how the run ended as it is left.

    Args:
        path: a directory that does not exist yet or is empty; or, with ``checkpoint``, a run's.
        agent: whose run it is.
        total_timesteps: the goal.
        callbacks: those of ``learn``; what they remember goes into the checkpoints.
        command: the flags that training itself does not know of, for whoever resumes the run.
        is_tracked: False leaves out the trackers that ``command`` names.
        checkpoint: where the run goes on; the rows after it are cut off progress.csv.
        lock: the directory's, where it is held already.

    Raises:
        ConfigError: before any training, if the directory cannot be made or written, or is in use.
        RunDirectoryBusyError: another process holds it.
    """

    def __init__(
        self,
        path: Path,
        agent: Agent,
        total_timesteps: int,
        *,
        callbacks: Sequence[Any] = (),
        command: Mapping[str, Any] | None = None,
        is_tracked: bool = True,
        checkpoint: Checkpoint | None = None,
        lock: RunLock | None = None,
    ) -> None:
        self.path, self.callbacks = path, callbacks
        self._agent, self._started = agent, time.monotonic()
        self._command, self._is_tracked = dict(command or {}), is_tracked
        self.target_return: float | None = agent.source.reward_threshold if agent.source else None
        self.state = _state(total_timesteps, checkpoint)
        self._earlier = 0.0 if checkpoint is None else float(self.state["seconds"] or 0.0)
        self._lock, self._checkpoint = lock, checkpoint
        self._board: Any = None
        self.trackers = Trackers()
        self._rows_written = 0
        self._unwritten: Event | None = None
        self.checkpoints = CheckpointWriter(
            path, agent, self._facts, None if checkpoint is None else checkpoint.number
        )
        try:
            self._begin(total_timesteps)
        except BaseException as error:
            self._release()
            if isinstance(error, UpslopeError) or not isinstance(error, OSError | ValueError):
                raise
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(
                f"cannot write the run directory {str(path)!r:.300}: {reason}; "
                "give another --run-dir"
            ) from error

    def _begin(self, total_timesteps: int) -> None:
        path = self.path
        path.mkdir(parents=True, exist_ok=True)
        if self._checkpoint is None and not (path / LOCK).exists():
            self._check_empty()
        self._lock = self._lock or RunLock(path)
        remove_temporaries(path)
        remove_leftovers(path / CHECKPOINTS)
        self._description = describe(self._agent, total_timesteps, self._command)
        if self._checkpoint is None:
            self._check_empty()  # nobody was at work on it in between
            shutil.rmtree(path / CHECKPOINTS, ignore_errors=True)
            (path / COMMAND).write_text(shlex.join(command_line()) + "\n")
        self._open_trackers()
        if self._checkpoint is not None:
            self._go_back(self._checkpoint)
        self._write_state()
        columns = (*COLUMNS, *(f"rollout/{key}" for key in self._agent.config.log_info))
        place: dict[str, Any] = {"offset": 0, "waiting": []}
        if self._checkpoint is not None:
            place = self._checkpoint.state["progress"]
        self._progress = ProgressFile(path / PROGRESS, columns, place["offset"], place["waiting"])

    def _open_trackers(self) -> None:
        """Open those that were asked for; a run that goes on does so without one that is gone."""
        asked = (self._command.get("track") or ()) if self._is_tracked else ()
        try:
            self.trackers = open_writers(asked, self.path, self._description)
        except ConfigError as error:
            if self._checkpoint is None:
                raise
            log.warning("the run goes on without its trackers: %s", error)

    def _go_back(self, checkpoint: Checkpoint) -> None:
        """Take away what came after a checkpoint, and put the best model back that it knew."""
        for name in (EVALUATION, REPORT):
            (self.path / name).unlink(missing_ok=True)
        best = self.path / BEST_MODEL
        if checkpoint.best is not None:
            replace_file(best, [checkpoint.best.read_bytes()], "best model")
        else:
            set_aside(best)
        _write_json(self.path / CONFIG, self._description)

    def _check_empty(self) -> None:
        """Raise if there is more than what a start leaves that was killed before it could train."""
        there = {entry.name for entry in self.path.iterdir()} - {LOCK}
        has_begun = bool(there - BEGINNING) or not (self.path / LOCK).exists()
        if PROGRESS in there and not has_begun:
            has_begun = bool(read_rows(self.path / PROGRESS))
        if there and (has_begun or len(numbers(self.path / CHECKPOINTS)) > 1):
            raise ConfigError(f"the run directory {self.path} is not empty: give another --run-dir")

    @classmethod
    def create(cls, path: Path, agent: Agent, total_timesteps: int, **how: Any) -> Self:
        """Make a run directory at ``path``, or beside it where a run lies there already."""
        return cls(cls.place(path), agent, total_timesteps, **how)

    @staticmethod
    def place(path: Path) -> Path:
        """Return ``path``, or one beside it where a run lies there already.

        Raises:
            RunDirectoryBusyError: a process is at work on that run.
        """
        # os.path.exists is False, where Path.exists raises, for a name too long
        if not os.path.exists(path / CONFIG):
            return path
        check_free(path)
        return unused(path)

    def __enter__(self) -> Self:
        try:
            if self._checkpoint is None:
                # scheduled: the undisturbed run begins here too
                training = self._agent.training
                self.checkpoints.write(training.iteration, is_scheduled=True)
                if training.iteration and not training.is_scheduled:
                    training.restart_environments()  # as whoever goes on from here has to
                # last of all: where there is a config.json, there is a run to resume
                _write_json(self.path / CONFIG, self._description)
        except BaseException:
            self._release()
            raise
        return self

    def record(
        self, event: Event, *, is_last: bool = False, stops: bool = False, is_cut: bool = False
    ) -> None:
        """Take in one iteration; ``is_last`` ends the training, ``stops`` interrupts it here.

        There is a row every ``log_interval`` iterations and a checkpoint at each scheduled one; the
        last iteration, and one after which a signal stops the run, has both in any case. ``is_cut``
        says that the signal cut a callback off, which no undisturbed run does.

        Raises:
            ModelFileError: a checkpoint cannot be written.
        """
        self._note_return(event)
        self._note_engine()
        self._unwritten = event
        training = self._agent.training
        was_evaluated = any(tag.startswith("eval/") for tag in event.metrics)
        is_due = event.iteration % training.log_every == 0
        if is_due or was_evaluated or is_last or stops:
            self._write_row(event)
        if training.is_scheduled or is_last or stops:
            scheduled = training.is_scheduled and not is_cut
            self.checkpoints.write(event.iteration, is_scheduled=scheduled, is_last=is_last)
        else:
            self.checkpoints.keep_if_slow(event.iteration)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        """Save the policy as it is and say how the run ended, whatever happened."""
        with finished_first():
            try:
                if self._unwritten is not None:
                    self._write_row(self._unwritten)
                if isinstance(error, KeyboardInterrupt):
                    self.checkpoints.write_last_whole()
                self._progress.close()
                self._save_policy()
                if self._board is not None:  # last, as it may import only now
                    self._board.close()
            except ModelFileError as failed:
                if error is None:
                    error = failed
                    raise
                log.warning("%s", failed)  # what ended the run is said instead
            finally:
                self._say_how_it_ended(error)
                self._release()

    def _save_policy(self) -> None:
        """Write the model file: the checkpoint's own, self-test and all, if nothing came after."""
        before = self._checkpoint
        if before is not None and before.number == self._agent.training.iteration:
            replace_file(self.path / MODEL, [before.policy.read_bytes()], "model file")
        else:
            self._agent.save(self.path / MODEL)

    def _say_how_it_ended(self, error: BaseException | None) -> None:
        interrupted = isinstance(error, KeyboardInterrupt)
        training = self._agent.training
        phases = training.phase_seconds()
        self.update(
            state="finished" if error is None else "interrupted" if interrupted else "failed",
            exit_code=0 if error is None else exit_code(error),
            error=None if error is None else str(error),
            finished=now(),
            seconds=self.seconds,
            timesteps=training.timesteps,
            iterations=training.iteration,
            episodes=training.episodes,
            phase_seconds={name: round(spent, 6) for name, spent in phases.items()},
        )

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken, in all its processes."""
        return self._earlier + time.monotonic() - self._started

    def write_evaluation(self, score: Score) -> None:
        """Write the model file again with the score in its header, then evaluation.json."""
        header, tensors = read_model(self.path / MODEL)
        write_model(self.path / MODEL, {**header, "evaluation": score.to_json()}, tensors)
        _write_json(self.path / EVALUATION, score.to_json())
        self.trackers.add_evaluation(score.to_json())

    def update(self, **facts: Any) -> None:
        """Add facts to run.json; where it cannot be written, what happened goes on happening."""
        self.state |= facts
        try:
            self._write_state()
        except ModelFileError as error:
            log.warning("%s", error)

    def _facts(self) -> dict[str, Any]:
        """What state.json says of the files and of what is recorded in them."""
        with contextlib.suppress(OSError):  # rows that the disk refuses wait in the state
            self._progress.sync()
        self.state["seconds"] = self.seconds
        return {
            "callbacks": callback_states(self.callbacks),
            "progress": {"offset": self._progress.offset, "waiting": self._progress.waiting},
            "run": self.state,
            "target_return": self.target_return,
            "config": self._description,
        }

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _note_return(self, event: Event) -> None:
        """Remember when the 100-episode mean first reached the return that was asked for."""
        mean = event.metrics.get("rollout/ep_rew_mean")
        enough = event.metrics["rollout/episodes"] >= WINDOW
        if self.state["time_to_return"] is not None or self.target_return is None or not enough:
            return
        if mean is not None and mean >= self.target_return:
            self.state["time_to_return"] = self._earlier + seconds_since_process_start()
            self.state["steps_to_return"] = event.timesteps
            self.state["return"] = mean

    def _note_engine(self) -> None:
        """Correct config.json where the planned engine could not take the gradient step."""
        engine = self._agent.training.gradient_step_engine
        if engine != self._description["gradient_step_engine"]:
            self._description["gradient_step_engine"] = engine
            with contextlib.suppress(ModelFileError):  # it is a note; a full disk stops elsewhere
                _write_json(self.path / CONFIG, self._description)

    def _write_row(self, event: Event) -> None:
        self._progress.write_row(event.metrics)
        self._unwritten = None
        if self._rows_written == 0:
            self._open_board()
        self._rows_written += 1
        if self._board is not None:
            self._board.add_scalars(event.metrics, event.timesteps)
        self.trackers.add_scalars(event.metrics, event.timesteps)

    def _open_board(self) -> None:
        """Open the events file at the first row, where the extra is installed."""
        from upslope.runs.tensorboard import open_events

        again = self._checkpoint
        first = None if again is None else again.state["training"]["timesteps"] + 1
        self._board = open_events(self.path, first)

    def _write_state(self) -> None:
        _write_json(self.path / RUN, self.state)


def _state(total_timesteps: int, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """What run.json says as a run begins, or goes on."""
    fresh: dict[str, Any] = {
        "state": "running",
        "exit_code": None,
        "total_timesteps": total_timesteps,
        "started": now(),
        "finished": None,
        "time_to_return": None,
        "steps_to_return": None,
        "return": None,
        "seconds": None,
        "resumed": [],
    }
    if checkpoint is None:
        return fresh
    kept = ("started", "time_to_return", "steps_to_return", "return", "seconds")
    before = checkpoint.state["run"]
    again = {"checkpoint": checkpoint.number, "scheduled": checkpoint.is_scheduled, "at": now()}
    return {
        **fresh,
        **{name: before[name] for name in kept},
        "resumed": [*before["resumed"], again],
    }


def _write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all, so that a reader at any moment sees one or the other."""
    text = json.dumps(content, indent=2, default=str) + "\n"
    replace_file(path, [text.encode()], path.name)
