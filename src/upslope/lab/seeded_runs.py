"""Runs that differ by their seed: what one is known by, where finished ones are kept, its curve."""

from __future__ import annotations

import hashlib
import json
import os
from functools import cache
from pathlib import Path
from typing import IO, Any, Protocol

from upslope.errors import ConfigError
from upslope.runs.policy_file import versions

Result = dict[str, Any]
POINTS = 20  # of a learning curve


class Keyed(Protocol):
    """A run that can be told from any other."""

    @property
    def key(self) -> str:
        """What its result depends on, as one line of text."""


def run_key(env: str, **said: Any) -> str:
    """What a result depends on, as one line of JSON: environment, versions and all that is said.

    Args:
        env: an id, ``module:Env-v0`` or ``my_env.py:make_env``; of a file, what is in it counts.
        said: settings, budget and whatever else moves a result.
    """
    path = env.rpartition(":")[0]
    is_file = path.endswith(".py") and os.path.isfile(path)
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest() if is_file else None
    return json.dumps({"env": env, "file": digest, "versions": _versions(), **said}, sort_keys=True)


@cache
def _versions() -> dict[str, str]:
    """Those of this process, which are slow to ask for."""
    return versions()


class RunLog:
    """Finished runs, a line of JSON each, in ``runs.jsonl`` of a directory; of nothing without one.

    A line that cannot be read, such as one cut off by a crash, counts as not there.

    Raises:
        ConfigError: if the directory cannot be made, read or written.
    """

    def __init__(self, directory: Path | None) -> None:
        self.path = None if directory is None else directory / "runs.jsonl"
        self._known: dict[str, Result] = {}
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                self._read(file)
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"cannot use {str(self.path)!r:.300}: {error.strerror or error}; give another --out"
        )

    def _read(self, file: IO[bytes]) -> None:
        file.seek(0)
        text = file.read()
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                self._known[entry["key"]] = entry["result"]
            except (ValueError, TypeError, KeyError):
                continue
        if text and not text.endswith(b"\n"):
            file.write(b"\n")

    def find(self, job: Keyed) -> Result | None:
        """The result of a job, where it has finished before."""
        return self._known.get(job.key)

    def add(self, job: Keyed, result: Result) -> None:
        """Append a result, whole or not at all as far as a reader can tell.

        Raises:
            ConfigError: it cannot be written, as on a full disk.
        """
        self._known[job.key] = result
        if self.path is None:
            return
        try:
            with self.path.open("a") as file:
                file.write(json.dumps({"key": job.key, "result": result}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._unusable(error) from error


def learning_curve(finished: list[tuple[int, float]], total: int) -> list[float | None]:
    """Mean return of the episodes that finished in each of ``POINTS`` equal parts of a run.

    A part in which none did repeats the one before; None until the first. Episodes of an iteration
    count where it ended, those of one that overshoots in the last part.

    Args:
        finished: ``(steps of the run at the end of the iteration, return)`` of every episode.
        total: the steps that were asked for.
    """
    parts: list[list[float]] = [[] for _ in range(POINTS)]
    for timesteps, value in finished:
        parts[min(POINTS - 1, (timesteps - 1) * POINTS // total)].append(value)
    curve: list[float | None] = []
    for part in parts:
        before = curve[-1] if curve else None
        curve.append(sum(part) / len(part) if part else before)
    return curve


def point_steps(total: int) -> list[float]:
    """Environment steps at which the parts of a curve end."""
    return [total * (k + 1) / POINTS for k in range(POINTS)]
