"""A run directory as the report reads it: numbers that are numbers, nothing believed blindly."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upslope.errors import ConfigError, ModelFileError
from upslope.runs.directory import COMMAND, CONFIG, EVALUATION, MODEL, PROGRESS, RUN

STEPS = "time/total_timesteps"
LARGEST = 200_000_000  # bytes of a file that is read: progress.csv of 200 rows has 60,000


@dataclass(frozen=True)
class Record:
    """What one run left behind; columns are those of progress.csv that hold a number.

    Every column has one entry a row: a finite number, or None where the cell is empty.
    """

    path: Path
    columns: Mapping[str, Sequence[float | None]]
    config: Mapping[str, Any]
    state: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    command: str | None = None
    action_space: Mapping[str, Any] | None = None

    @property
    def n_rows(self) -> int:
        """Rows of progress.csv."""
        return len(self.columns[STEPS])

    @property
    def steps(self) -> float:
        """Environment steps at the last row; 0 before the first."""
        return max(self.values(STEPS), default=0.0)

    @property
    def algorithm(self) -> str:
        """The algorithm's name; ``"?"`` where config.json does not say."""
        return str(self.config.get("algorithm", "?"))

    @property
    def environment(self) -> str:
        """The environment's name; ``"?"`` where config.json does not say."""
        return str(mapping(self.config.get("environment")).get("name") or "?")

    def setting(self, name: str) -> Any:
        """Return a hyperparameter by name; None where it is not recorded."""
        return mapping(self.config.get("settings")).get(name)

    def values(self, tag: str) -> list[float]:
        """Return the numbers of a column in order, empty cells left out."""
        return [value for value in self.columns.get(tag, ()) if value is not None]

    def points(self, tag: str) -> list[tuple[float, float]]:
        """Return (environment steps, number) of the rows that have both."""
        rows = zip(self.columns[STEPS], self.columns.get(tag, ()), strict=False)
        return [(at, value) for at, value in rows if at is not None and value is not None]

    def late(self, tag: str) -> list[float]:
        """Return the numbers of the last quarter of a column, at least one where it has any."""
        values = self.values(tag)
        return values[-max(1, len(values) // 4) :]


def read_run(path: Path) -> Record:
    """Read a run directory, or the one that a model file lies in.

    Raises:
        ConfigError: it is none, or its config.json or progress.csv cannot be read. Other files may
            be missing or damaged: what they would have told is then left out.
    """
    if os.path.isfile(path):  # False, where Path.is_file raises, for a name too long
        path = path.parent
    if not os.path.isfile(path / PROGRESS):
        raise ConfigError(
            f"{str(path)!r:.300} has no {PROGRESS}: give a run directory of `upslope train`"
        )
    return Record(
        path=path,
        columns=_columns(path / PROGRESS),
        config=_object(path / CONFIG),
        state=_object_or_nothing(path / RUN),
        evaluation=_object_or_nothing(path / EVALUATION),
        command=_text_or_nothing(path / COMMAND),
        action_space=_action_space(path / MODEL),
    )


def mapping(value: Any) -> Mapping[str, Any]:
    """Return ``value`` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def number(value: Any) -> float | None:
    """Return a finite number as a float, and None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond every float
        return None


def _columns(path: Path) -> dict[str, list[float | None]]:
    """Read progress.csv; a last line that was cut short is left out."""
    whole, _, _ = _text(path).rpartition("\n")
    try:
        header, *rows = list(csv.reader(io.StringIO(whole))) or [[]]
    except csv.Error as error:
        raise ConfigError(f"{path} cannot be read: {error}; the file is damaged") from error
    if STEPS not in header:
        raise ConfigError(
            f"{path} has no column {STEPS}: it is damaged, or no file of `upslope train`"
        )
    rows = [row for row in rows if len(row) == len(header)]
    read = {tag: [_cell(row[i]) for row in rows] for i, tag in enumerate(header)}
    return {tag: cells for tag, cells in read.items() if tag == STEPS or _any_number(cells)}


def _any_number(cells: Sequence[float | None]) -> bool:
    return any(cell is not None for cell in cells)


def _cell(text: str) -> float | None:
    try:
        return number(float(text))
    except ValueError:
        return None


def _object(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is not JSON ({error!s:.100}): the file is damaged") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no JSON object: the file is damaged")
    return content


def _object_or_nothing(path: Path) -> Mapping[str, Any]:
    try:
        return _object(path)
    except ConfigError:
        return {}


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST:
            raise ConfigError(f"{path} is larger than {LARGEST:,} bytes: a report needs less")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"{path} cannot be read: {reason}; give another run") from error


def _text_or_nothing(path: Path) -> str | None:
    try:
        return _text(path).strip() or None
    except ConfigError:
        return None


def _action_space(path: Path) -> Mapping[str, Any] | None:
    from upslope.runs.model_file import read_header

    try:
        return mapping(read_header(path).get("action_space")) or None
    except ModelFileError:
        return None
