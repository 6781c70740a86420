"""Hold the runs since a moment against those before it: has any row of the score table lost?

    python bench/scores/losses.py --since 2026-11-25T21:50

For each row and each of its settings the last run of every seed before and after, a one-sided Welch
test for a loss of the mean, and Holm's correction over all of them. Writes losses.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from results import PATH, SETTINGS, read
from rows import ROWS, Row
from scipy.stats import ttest_ind

LEVEL = 0.05
Line = dict[str, str]


class Comparison(NamedTuple):
    """Scores before and after, by seed, and the p-value of a loss (NaN where both are constant)."""

    row: Row
    setting: str
    before: list[float]
    after: list[float]
    p: float


def main() -> int:
    """Print and write the table; 1 if a row has lost at the corrected level."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--since", required=True, metavar="TIME", help="as in the column date")
    parser.add_argument("--csv", type=Path, default=PATH, help="lines of run.py")
    asked = parser.parse_args()
    found = comparisons(read(asked.csv), asked.since)
    text = table(found)
    asked.csv.with_name("losses.md").write_text(text)
    print(text, end="")
    return int(any(lost(found)))


def comparisons(lines: list[Line], since: str) -> list[Comparison]:
    """Return every row and setting that has runs of two seeds or more on both sides."""
    found = []
    for row in ROWS:
        for setting in SETTINGS:
            of_row = [line for line in lines if _is_of(line, row, setting)]
            before = _scores([line for line in of_row if line["date"] < since], row.metric)
            after = _scores([line for line in of_row if line["date"] >= since], row.metric)
            if min(len(before), len(after)) > 1:
                found.append(Comparison(row, setting, before, after, _p(before, after)))
    return found


def lost(found: list[Comparison]) -> list[bool]:
    """Which comparisons show a loss, by Holm's procedure at ``LEVEL`` over those with a p-value."""
    verdicts = [False] * len(found)
    tested = sorted((c.p, i) for i, c in enumerate(found) if not np.isnan(c.p))
    for rank, (p, i) in enumerate(tested):
        if p > LEVEL / (len(tested) - rank):
            break
        verdicts[i] = True
    return verdicts


def table(found: list[Comparison]) -> str:
    """The Markdown: one line a comparison."""
    head = ("task", "settings", "metric", "before", "after", "p of a loss", "loss")
    lines = [head, ("---",) * len(head)]
    for c, is_lost in zip(found, lost(found), strict=True):
        digits = 0 if abs(c.row.match) >= 1000 else 1
        means = [f"{np.mean(x):.{digits}f} (n = {len(x)})" for x in (c.before, c.after)]
        p = "no spread" if np.isnan(c.p) else f"{c.p:.3f}"
        verdict = "yes" if is_lost else "no"
        lines.append((c.row.name, c.setting, c.row.metric, *means, p, verdict))
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return (
        f"{body}\n\nOne-sided Welch tests for a loss of the mean over seeds; `loss` after Holm's "
        f"correction at {LEVEL:g} over all rows.\n"
    )


def _is_of(line: Line, row: Row, setting: str) -> bool:
    named = (row.env, row.algo, setting, str(row.steps))
    return tuple(line[name] for name in ("env", "algo", "setting", "steps")) == named


def _scores(lines: list[Line], metric: str) -> list[float]:
    """The last score of each seed."""
    last = {line["seed"]: float(line[metric] or "nan") for line in lines}
    return list(last.values())


def _p(before: list[float], after: list[float]) -> float:
    if np.ptp(before) == 0 and np.ptp(after) == 0:
        return float("nan") if np.mean(after) >= np.mean(before) else 0.0
    return float(ttest_ind(after, before, equal_var=False, alternative="less").pvalue)


if __name__ == "__main__":
    sys.exit(main())
