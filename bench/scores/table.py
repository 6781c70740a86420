"""Write bench/scores/table.md from the CSV: every seed, the mean with its interval, the verdict."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from results import PATH, SETTINGS, Job, find, read
from rows import METRICS, ROWS, Row

SEEDS = range(100)
IQM_FROM = 10  # seeds, below which an interquartile mean says little
HEAD = (
    "environment",
    "algorithm",
    "steps",
    "metric",
    "settings",
    "seeds 0, 1, ...",
    "mean [95 % t interval]",
    "pass",
    "match",
    "reached",
)


def main() -> int:
    """Print the table and write it beside the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, default=PATH, help="lines of run.py")
    asked = parser.parse_args()
    text = table(read(asked.csv))
    asked.csv.with_name("table.md").write_text(text)
    print(text, end="")
    return 0


def table(finished: list[dict[str, str]]) -> str:
    """The Markdown: two lines a row, tuned settings first, of the runs with today's settings."""
    lines = [HEAD, ("---",) * len(HEAD)]
    for row in ROWS:
        for setting in SETTINGS:
            scores = scores_of(row, setting, finished)
            if scores:
                lines.append(_line(row, setting, scores))
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    notes = "\n".join(f"{name} = {meaning}." for name, meaning in METRICS.items())
    return f"{body}\n\n{notes}\n`reached` compares the mean of the seeds with the figures.\n"


def scores_of(row: Row, setting: str, finished: list[dict[str, str]]) -> dict[int, float]:
    """Seed -> score of the runs in the CSV; a run in which no episode finished scores NaN."""
    lines = {seed: find(Job(row, setting, seed), finished) for seed in SEEDS}
    return {
        seed: float(line[row.metric] or "nan") for seed, line in lines.items() if line is not None
    }


def verdict(row: Row, scores: dict[int, float]) -> str:
    """What the mean (and, where there is a floor, the worst seed) reaches."""
    values = np.array(list(scores.values()))
    if values.mean() >= row.match and (row.floor is None or values.min() >= row.floor):
        return "match"
    return "pass" if values.mean() >= row.passes else "no"


def _line(row: Row, setting: str, scores: dict[int, float]) -> tuple[str, ...]:
    digits = 2 if abs(row.match) < 10 else 0 if abs(row.match) >= 1000 else 1
    values = np.array(list(scores.values()))
    seeds = ", ".join(f"{value:.{digits}f}" for value in values)
    if list(scores) != list(range(len(scores))):
        seeds += f" (seeds {', '.join(map(str, scores))})"
    floor = f", no seed under {row.floor:g}" if row.floor is not None else ""
    return (
        row.env,
        row.algo,
        f"{row.steps // 1000}k",
        row.metric,
        setting,
        seeds,
        _mean(values, digits),
        f"{row.passes:g}",
        f"{row.match:g}{floor}",
        verdict(row, scores),
    )


def _mean(values: np.ndarray, digits: int) -> str:
    """Mean with Student's t interval over seeds; equal seeds and single ones have no interval."""
    from scipy.stats import t, trim_mean

    n, mean = len(values), values.mean()
    text = f"{mean:.{digits}f}"
    if n > 1 and np.ptp(values) == 0:
        text += f" (all {n} equal)"
    elif n > 1:
        half = t.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5
        text += f" [{mean - half:.{digits}f}, {mean + half:.{digits}f}]"
    if n >= IQM_FROM:
        text += f", IQM {trim_mean(values, 0.25):.{digits}f}"
    return text


if __name__ == "__main__":
    sys.exit(main())
