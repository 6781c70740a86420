"""From an agent to a finished run: train, save, evaluate, report. What train and resume share."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.cli.final_evaluation import final_evaluation
from upslope.errors import ConfigError, ModelFileError
from upslope.interrupts import asked_again, finished_first, obey, stop_asked, within

if TYPE_CHECKING:
    from upslope.agent import Agent
    from upslope.evaluation import Score
    from upslope.runs.directory import RunDirectory

log = logging.getLogger("upslope")
PATIENCE = 4.0  # seconds that a signal waits for the iteration to end, before it is given up


@dataclass(frozen=True)
class Session:
    """One training run of the command line.

    ``command`` are the flags that training itself does not know of, as config.json records them:
    ``stop_return``, ``eval_freq`` and ``episodes``. ``directory`` makes the run's files, given the
    callbacks; ``train`` is what is left to train into them.
    """

    agent: Agent
    total_timesteps: int
    path: Path
    command: dict[str, Any]
    quiet: bool
    directory: Callable[[Sequence[Any]], RunDirectory]
    train: Callable[[Sequence[Any], RunDirectory], None]

    def run(self) -> int:
        """Do it all and return the exit code."""
        from upslope.runs.resume import callbacks_of

        callbacks = callbacks_of(self.command, self.path)
        directory = self.directory(tuple(callbacks))

        def give_up(number: int) -> None:
            _give_up(directory, number)

        with within(PATIENCE, give_up):
            try:
                obey()  # what a library swallowed
                interrupted = self._trained(callbacks, directory)
                score = None if interrupted else self._evaluated(directory)
            finally:
                said = self._reported(directory)
                self._tell_trackers(directory)
            if not self.quiet:
                self._summarise(directory, score, said)
            self.agent.close()
            if not interrupted:
                obey()
        return int(directory.state["exit_code"])

    def _trained(self, callbacks: list[Any], directory: RunDirectory) -> bool:
        """Train; return whether a signal stopped it."""
        from upslope.runs.live import LiveProgress

        try:
            with contextlib.ExitStack() as stack:
                if not self.quiet:
                    stream = sys.stderr if sys.stderr.isatty() else sys.stdout
                    live = LiveProgress(self.agent, self.total_timesteps, stream, self._title())
                    callbacks.append(stack.enter_context(live))
                self.train(callbacks, directory)
        except KeyboardInterrupt as stopped:  # also one that came as the files were closed
            _note_interrupted(directory, stopped)
            return True
        return False

    def _evaluated(self, directory: RunDirectory) -> Score | None:
        episodes = self.command.get("episodes")  # absent where Python started the run
        if not episodes:
            return None
        try:
            score = final_evaluation(self.agent, directory.path, episodes, quiet=self.quiet)
            with finished_first():
                directory.write_evaluation(score)
        except KeyboardInterrupt as stopped:
            _note_interrupted(directory, stopped)
            stopped.add_note(f"`upslope resume {directory.path}` evaluates it")
            raise
        return score

    def _reported(self, directory: RunDirectory) -> list[str]:
        """Write README.md and report.html; return what that says of a run in trouble.

        A run that is to stop plays no episode for its page; one that is told twice writes none.
        """
        from upslope.runs.directory import CONFIG, MODEL
        from upslope.runs.model_card import write_card
        from upslope.runs.report import write_report

        if asked_again() or not (directory.path / CONFIG).exists():
            return []
        with finished_first():
            said = []
            try:
                said = write_report(directory.path, None if stop_asked() else self.agent)
                if (model := directory.path / MODEL).exists():
                    write_card(model)
            # a full disk, say: the run itself is not the worse for it
            except (ConfigError, ModelFileError) as error:
                log.warning("%s", error)
        return said

    def _tell_trackers(self, directory: RunDirectory) -> None:
        """Hand over the model, which has its score by now, and say how the run ended."""
        from upslope.runs.directory import MODEL

        code = directory.state["exit_code"]
        directory.trackers.end(1 if code is None else int(code), directory.path / MODEL)

    def _summarise(self, directory: RunDirectory, score: Score | None, said: list[str]) -> None:
        from upslope.cli.summary import train_summary

        summary = train_summary(self.agent, directory, score, self.command.get("stop_return"))
        lines = [summary, *(f"note     {sentence}" for sentence in said)]
        with contextlib.suppress(OSError):  # as of `| head`: the run's own end gives the code
            print("\n".join(lines), flush=True)

    def _title(self) -> str:
        source, envs, config = self.agent.source, self.agent.training.envs, self.agent.config
        name = source.name if source is not None else "?"
        engine = f"{envs.n_envs} x {envs.engine.name}"
        return f"{name} · {config.algorithm} · seed {config.seed} · {engine}"


def _note_interrupted(directory: RunDirectory, stopped: KeyboardInterrupt) -> None:
    from upslope.runs.directory import exit_code

    directory.update(state="interrupted", exit_code=exit_code(stopped))


def _give_up(directory: RunDirectory, number: int) -> None:
    """End the process in the middle of an iteration; the newest checkpoint is on the disk."""
    code = 128 + number
    why = f"what was running did not end within {PATIENCE:g} s of the signal"
    with contextlib.suppress(Exception):
        directory.checkpoints.leave()
        if directory.state["state"] != "finished":
            directory.update(state="interrupted", exit_code=code, error=why)
    said = (
        f"upslope: interrupted; {why}, so the run goes on from its newest checkpoint: "
        f"upslope resume {directory.path}\n"
    )
    with contextlib.suppress(OSError):  # not sys.stderr, which the main thread may hold
        os.write(2, said.encode())
    for worker in multiprocessing.active_children():  # one in a long step would outlive this
        worker.kill()
        worker.join(0.2)
    os._exit(code)
