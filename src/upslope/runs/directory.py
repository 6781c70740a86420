"""A run directory: what a run was asked to do, what it did, and what came of it."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from upslope.errors import ConfigError, UpslopeError
from upslope.runs.policy_file import versions
from upslope.training import WINDOW, Event, threads_of

if TYPE_CHECKING:
    from upslope.agent import Agent
    from upslope.evaluation import Score

CONFIG, RUN, PROGRESS = "config.json", "run.json", "progress.csv"
MODEL, BEST_MODEL, EVALUATION = "model.safetensors", "best_model.safetensors", "evaluation.json"
CLOCKS = ("time/time_elapsed", "time/fps")
COLUMNS = (
    "time/total_timesteps", "time/iterations", *CLOCKS,
    "rollout/ep_rew_mean", "rollout/ep_rew_std", "rollout/ep_len_mean", "rollout/episodes",
    "rollout/success_rate", "rollout/valid_share", "rollout/clipped_share",
    "train/policy_gradient_loss", "train/value_loss", "train/entropy_loss", "train/approx_kl",
    "train/clip_fraction", "train/clip_range", "train/clip_range_vf", "train/explained_variance",
    "train/learning_rate", "train/grad_norm", "train/is_line_search_success",
    "train/line_search_scale", "train/normalizer_kl", "train/gradient_snr",
    "eval/mean_reward", "eval/mean_ep_length", "eval/success_rate",
)  # fmt: skip


def exit_code(error: BaseException) -> int:
    """The command line's exit code for what ended a run."""
    otherwise = 130 if isinstance(error, KeyboardInterrupt) else 1
    return int(getattr(error, "exit_code", otherwise))


def default_path(env_name: str, algorithm: str, seed: int) -> Path:
    """Return ``runs/<env>__<algo>__s<seed>__<stamp>`` with what file systems dislike replaced."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return unused(Path("runs") / f"{file_name(env_name)}__{algorithm}__s{seed}__{stamp}")


def file_name(text: str) -> str:
    """Return ``text`` as one harmless path component of at most 100 characters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:100] or "env"


def unused(path: Path) -> Path:
    """Return ``path``, or the first of ``path-2``, ``path-3``, ... that does not exist."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


class RunDirectory:
    """The files of one run, written as it goes on: a callback of ``learn`` and a context manager.

    Args:
        path: a directory that does not exist yet or is empty.
        agent: whose run it is.
        total_timesteps: the goal.

    Raises:
        ConfigError: before any training, if the directory cannot be made or written, or is in use.
    """

    def __init__(self, path: Path, agent: Agent, total_timesteps: int) -> None:
        self.path = path
        self._agent, self._started = agent, time.time()
        self.target_return: float | None = agent.source.reward_threshold if agent.source else None
        self.state: dict[str, Any] = {
            "state": "running",
            "exit_code": None,
            "total_timesteps": total_timesteps,
            "started": _now(),
            "finished": None,
            "time_to_return": None,
            "steps_to_return": None,
            "return": None,
        }
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise ConfigError(f"the run directory {path} is not empty: give another --run-dir")
            self._description = describe(agent, total_timesteps)
            _write_json(path / CONFIG, self._description)
            (path / "command.txt").write_text(shlex.join(_command()) + "\n")
            self._write_state()
            self._file: IO[str] = (path / PROGRESS).open("w", newline="")
        except (OSError, ValueError) as error:
            if isinstance(error, UpslopeError):
                raise
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(
                f"cannot write the run directory {str(path)!r:.300}: {reason}; "
                "give another --run-dir"
            ) from error
        self._columns = (*COLUMNS, *(f"rollout/{key}" for key in agent.config.log_info))
        self._rows = csv.DictWriter(self._file, self._columns, extrasaction="ignore", restval="")
        self._rows.writeheader()
        self._board: Any = None
        self._rows_written = 0
        self._unwritten: Event | None = None

    @classmethod
    def create(cls, path: Path, agent: Agent, total_timesteps: int) -> Self:
        """Make a run directory at ``path``, or beside it where a run lies there already."""
        if os.path.exists(path / CONFIG):  # False, where Path.exists raises, for a name too long
            path = unused(path)
        return cls(path, agent, total_timesteps)

    def __enter__(self) -> Self:
        return self

    def __call__(self, event: Event) -> bool:
        """Write a row every ``log_interval`` iterations; the last one gets one in any case."""
        self._note_return(event)
        self._note_engine()
        self._unwritten = event
        was_evaluated = any(tag.startswith("eval/") for tag in event.metrics)
        if was_evaluated or event.iteration % self._agent.training.log_every == 0:
            self._write_row(event)
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        """Save the policy as it is and say how the run ended, whatever happened."""
        try:
            if self._unwritten is not None:
                self._write_row(self._unwritten)
            self._file.close()
            self._agent.save(self.path / MODEL)
            if self._board is not None:  # last, as it may import only now
                self._board.close()
        finally:
            self._say_how_it_ended(error)

    def _say_how_it_ended(self, error: BaseException | None) -> None:
        interrupted = isinstance(error, KeyboardInterrupt)
        training = self._agent.training
        phases = training.phase_seconds()
        self.update(
            state="finished" if error is None else "interrupted" if interrupted else "failed",
            exit_code=0 if error is None else exit_code(error),
            error=None if error is None else str(error),
            finished=_now(),
            seconds=time.time() - self._started,
            timesteps=training.timesteps,
            iterations=training.iteration,
            episodes=training.episodes,
            phase_seconds={name: round(spent, 6) for name, spent in phases.items()},
        )

    def write_evaluation(self, score: Score) -> None:
        """Write evaluation.json, and the model file again with the score in its header."""
        _write_json(self.path / EVALUATION, score.to_json())
        self._agent.save(self.path / MODEL, score)

    def update(self, **facts: Any) -> None:
        """Add facts to run.json."""
        self.state |= facts
        self._write_state()

    def _note_return(self, event: Event) -> None:
        """Remember when the 100-episode mean first reached the return that was asked for."""
        mean = event.metrics.get("rollout/ep_rew_mean")
        enough = event.metrics["rollout/episodes"] >= WINDOW
        if self.state["time_to_return"] is not None or self.target_return is None or not enough:
            return
        if mean is not None and mean >= self.target_return:
            self.state["time_to_return"] = seconds_since_process_start()
            self.state["steps_to_return"] = event.timesteps
            self.state["return"] = mean

    def _note_engine(self) -> None:
        """Correct config.json where the planned engine could not take the gradient step."""
        engine = self._agent.training.gradient_step_engine
        if engine != self._description["gradient_step_engine"]:
            self._description["gradient_step_engine"] = engine
            _write_json(self.path / CONFIG, self._description)

    def _write_row(self, event: Event) -> None:
        self._rows.writerow({key: _number(value) for key, value in event.metrics.items()})
        self._file.flush()
        self._unwritten = None
        if self._rows_written == 0:
            self._open_board()
        self._rows_written += 1
        if self._board is not None:
            self._board.add_scalars(event.metrics, event.timesteps)

    def _open_board(self) -> None:
        """Open the events file at the first row, where the extra is installed."""
        from upslope.runs.tensorboard import open_events

        self._board = open_events(self.path)

    def _write_state(self) -> None:
        _write_json(self.path / RUN, self.state)


def describe(agent: Agent, total_timesteps: int) -> dict[str, Any]:
    """Return config.json: the complete, resolved settings, and what they were resolved with."""
    training, source = agent.training, agent.source
    engine = training.envs.engine
    training.plan(total_timesteps)
    return {
        "environment": {
            "name": source.name if source else None,
            "id": source.id if source else None,
            "is_registered": bool(source and source.is_registered),
            "reward_threshold": source.reward_threshold if source else None,
        },
        "engine": {
            "name": engine.name,
            "autoreset": engine.autoreset.value,
            "established": getattr(engine, "established", None),
        },
        "gradient_step_engine": training.gradient_step_engine,
        "algorithm": agent.config.algorithm,
        "total_timesteps": total_timesteps,
        "checkpoint_every": training.checkpoint_every,
        "log_every": training.log_every,
        "snr_every": training.snr_every,
        "device": str(agent.policy.device),
        "torch_threads": threads_of(agent.config, agent.policy),
        "settings": agent.config.to_json(),
        "versions": versions(),
        "git_commit": _git_commit(),
    }


def seconds_since_process_start() -> float:
    """Seconds since this process started (Linux); elsewhere the processor time it has used."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
        return up - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.process_time()


def _number(value: float) -> str:
    """Write a float so that it reads back as the same bits; integers without a point."""
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))


def _command() -> list[str]:
    return (
        ["upslope", *sys.argv[1:]]
        if Path(sys.argv[0]).name in ("upslope", "__main__.py")
        else sys.argv
    )


def _git_commit() -> str | None:
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=2, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, default=str) + "\n")
