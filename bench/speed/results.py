"""The CSV of finished runs: one line each, appended, never edited; and ratios round by round."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rows import BY_NAME, Row

PATH = Path(__file__).parent / "results.csv"
PACKAGES = (
    "upslope", "torch", "gymnasium", "numpy", "mujoco", "envpool", "stable_baselines3",
    "sb3_contrib", "sbx_rl", "jax",
)  # fmt: skip
COLUMNS = (
    "row", "contender", "compile", "round", "seed", "quick", "steps", "seconds", "wall_seconds",
    "steps_per_s", "peak_mb", "engine", "vec", "reached", "score_sampled", "score_mode",
    "threads", "load_average", "cpu", "settings_hash", "settings", *PACKAGES, "git_commit", "date",
)  # fmt: skip
Line = dict[str, str]


@dataclass(frozen=True)
class Job:
    """One run: a row, who runs it (``compile`` is empty for peers), and the round, its seed too."""

    row: Row
    contender: str
    compile: str
    round: int
    quick: bool = False

    @property
    def steps(self) -> int:
        """Environment steps asked for."""
        return self.row.quick_steps if self.quick else self.row.steps

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that says what the work is, in JSON types."""
        row = self.row
        work = {"algorithm": row.algorithm, "env": row.env, "steps": self.steps}
        work |= {"kind": row.kind, "threads": row.threads, "stop_return": row.stop_return}
        return work | ({"n_envs": row.n_envs, **row.settings} if row.kind == "rate" else {})

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
        """What a line has to hold to be this run; the commit comes on top."""
        named = (self.row.name, self.contender, self.compile, str(self.round), self.settings_hash)
        return (*named, "yes" if self.quick else "")

    def __str__(self) -> str:
        state = f" {self.compile}" if self.compile else ""
        return f"{self.row.name} {self.contender}{state} round {self.round}"


def key_of(line: Line) -> tuple[str, ...]:
    """The key of the job that wrote a line."""
    names = ("row", "contender", "compile", "round", "settings_hash", "quick")
    return tuple(line[name] for name in names)


def jobs_of(
    rows: Sequence[Row], rounds: int, peers: Sequence[str], *, engines: Sequence[str], quick: bool
) -> list[Job]:
    """Every run of a benchmark: round by round, row by row, contenders in turn.

    Each round begins with another contender, so that nobody is always first. A row that is compared
    with another row's peer brings that along, once.
    """
    jobs: dict[tuple[str, ...], Job] = {}
    for number in range(rounds):
        for row in rows:
            sides = [Job(row, peer, "", number, quick) for peer in row.peers if peer in peers]
            if row.against:
                sides.append(Job(BY_NAME[row.against], "sb3", "", number, quick))
            sides += [
                Job(row, "upslope", engine, number, quick)
                for engine in row.engines
                if engine in engines
            ]
            first = number % len(sides)
            for job in sides[first:] + sides[:first]:
                jobs.setdefault(job.key, job)
    return list(jobs.values())


def read(path: Path = PATH) -> list[Line]:
    """Return the finished runs in the order of their lines; a torn line is none."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [line for line in csv.DictReader(file) if line["date"]]


def append(record: dict[str, Any], path: Path = PATH, columns: Sequence[str] = COLUMNS) -> None:
    """Add one line and flush it; the first also writes the header, a torn last line is ended."""
    is_new = not path.exists() or path.stat().st_size == 0
    is_torn = not is_new and not path.read_bytes().endswith(b"\n")
    with path.open("a", newline="") as file:
        file.write("\n" if is_torn else "")
        writer = csv.DictWriter(file, columns, lineterminator="\n", restval="")
        if is_new:
            writer.writeheader()
        writer.writerow(record)
        file.flush()


def unfinished(jobs: Iterable[Job], path: Path, commit: str) -> list[Job]:
    """Return the jobs that the CSV does not hold with today's settings and this commit."""
    done = {key_of(line) for line in read(path) if line["git_commit"] == commit}
    return [job for job in jobs if job.key not in done]


def runs_of(row: Row, contender: str, state: str, lines: Sequence[Line]) -> dict[int, Line]:
    """Round -> the last full run of a contender with today's settings, of the given lines."""
    found = {}
    for line in lines:
        job = Job(row, contender, state, int(line["round"]))
        if key_of(line) == job.key:
            found[job.round] = line
    return dict(sorted(found.items()))


def of_last_commit(row: Row, lines: Sequence[Line]) -> list[Line]:
    """The lines of the commit at which this library last ran the row."""
    full = [line for line in lines if not line["quick"]]
    ours = [x for x in full if x["row"] == row.name and x["contender"] == "upslope"]
    return [line for line in full if ours and line["git_commit"] == ours[-1]["git_commit"]]


def ratios(
    row: Row, state: str, lines: Sequence[Line], peer: str = "sb3", column: str = "steps_per_s"
) -> list[float]:
    """Ours over the peer's, round by round, where both have run; more is better for a rate.

    For time to a return it is the peer's seconds over ours, and 0 where ours did not get there.
    """
    other = BY_NAME[row.against] if row.against else row
    ours, theirs = runs_of(row, "upslope", state, lines), runs_of(other, peer, "", lines)
    both = [(ours[number], theirs[number]) for number in ours if number in theirs]
    if row.kind == "solve" and column != "peak_mb":
        time = "seconds" if column == "steps_per_s" else column
        return [float(b[time]) / float(a[time]) if a["reached"] == "yes" else 0.0 for a, b in both]
    return [float(a[column]) / float(b[column]) for a, b in both]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """``median (smallest-largest)`` of several numbers."""
    if not values:
        return "not run"
    low, middle, high = (f"{x:,.{digits}f}" for x in (min(values), median(values), max(values)))
    return f"{middle} ({low}-{high})" if len(values) > 1 else middle
