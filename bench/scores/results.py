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
        """Eight hexadecimal digits that change with any setting, for the reader of the CSV."""
        return hashlib.sha256(self.settings_json.encode()).hexdigest()[:8]

    def is_in(self, line: dict[str, str]) -> bool:
        """Whether a line is this very run; a setting that it does not name is at its default."""
        row = self.row
        named = (row.env, row.algo, self.setting, str(self.seed), str(row.steps))
        if tuple(line[name] for name in ("env", "algo", "setting", "seed", "steps")) != named:
            return False
        then = Job(row, "plain", self.seed).settings | json.loads(line["settings"])
        return all(then[name] == value for name, value in json.loads(self.settings_json).items())

    def __str__(self) -> str:
        return f"{self.row.name} {self.setting} seed {self.seed}"


def read(path: Path = PATH) -> list[dict[str, str]]:
    """Return the finished runs in the order of their lines."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [line for line in csv.DictReader(file) if line["date"]]


def find(job: Job, lines: list[dict[str, str]]) -> dict[str, str] | None:
    """Return the last line that holds this run with today's settings."""
    return next((line for line in reversed(lines) if job.is_in(line)), None)


def append(record: dict[str, Any], path: Path = PATH) -> None:
    """Add one line and flush it; the first also writes the header, a torn last line is ended."""
    is_new = not path.exists() or path.stat().st_size == 0
    is_torn = not is_new and not path.read_bytes().endswith(b"\n")
    with path.open("a", newline="") as file:
        file.write("\n" if is_torn else "")
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(record)
        file.flush()


def unfinished(jobs: Iterable[Job], path: Path = PATH) -> list[Job]:
    """Return the jobs that the CSV does not hold with today's settings."""
    lines = read(path)
    return [job for job in jobs if find(job, lines) is None]
