"""The CSV of finished runs: one line each, appended, never edited, and never run again."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rows import Row

from upslope.config import CONFIGS, preset

PATH = Path(__file__).parent / "results.csv"
SETTINGS = ("preset", "plain")  # tuned settings, and the algorithm's own defaults
COLUMNS = (
    "env", "algo", "setting", "seed", "steps", "T", "S", "D", "episodes", "seconds", "engine",
    "settings_hash", "settings", "upslope", "torch", "gymnasium", "envpool", "mujoco", "git_commit",
    "date",
)  # fmt: skip
# Fields that do not move a score, and the seed, which has a column of its own.
NOT_COMPARED = ("seed", "device", "compile", "preset", "log_interval", "log_info")


@dataclass(frozen=True)
class Job:
    """One training run: a row, one of :data:`SETTINGS`, a seed."""

    row: Row
    setting: str
    seed: int

    @property
    def given(self) -> dict[str, Any]:
        """The settings that differ from the defaults."""
        return preset(self.row.env, self.row.algo) if self.setting == "preset" else {}

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting that can move a score, in JSON types."""
        every = CONFIGS[self.row.algo].from_settings(self.given).to_json()
        return {name: value for name, value in every.items() if name not in NOT_COMPARED}

    @property
    def settings_json(self) -> str:
        """:attr:`settings` as one line."""
        return json.dumps(self.settings, sort_keys=True)

    @property
    def settings_hash(self) -> str:
        """Eight hexadecimal digits that change with any setting."""
        return hashlib.sha256(self.settings_json.encode()).hexdigest()[:8]

    @property
    def key(self) -> tuple[str, ...]:
        """What makes a line of the CSV this very run."""
        row = self.row
        named = (row.env, row.algo, self.setting, str(self.seed), str(row.steps))
        return (*named, self.settings_hash)

    def __str__(self) -> str:
        return f"{self.row.name} {self.setting} seed {self.seed}"


def read(path: Path = PATH) -> dict[tuple[str, ...], dict[str, str]]:
    """Return the finished runs by :attr:`Job.key`; of equal ones the last line counts."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["date"]]
    names = ("env", "algo", "setting", "seed", "steps", "settings_hash")
    return {tuple(line[name] for name in names): line for line in lines}


def append(record: dict[str, Any], path: Path = PATH) -> None:
    """Add one line and flush it; the first also writes the header."""
    is_new = not path.exists() or path.stat().st_size == 0
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(record)
        file.flush()


def unfinished(jobs: Iterable[Job], path: Path = PATH) -> list[Job]:
    """Return the jobs that the CSV does not hold with today's settings."""
    finished = read(path)
    return [job for job in jobs if job.key not in finished]
