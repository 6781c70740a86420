"""The comparison of score tables before and after a change: it sees a loss, and no other."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "bench" / "scores"
BEFORE, AFTER = "2026-01-01T00:00", "2026-02-01T00:00"


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, whose neighbours ``results`` and ``rows`` are those of its own folder."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("results", "rows", "losses"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location("losses", FOLDER / "losses.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in ("results", "rows"):
        sys.modules.pop(name, None)


def lines(module: Any, scores: dict[str, Any]) -> list[dict[str, str]]:
    """Runs of the first rows: ``scores[date][k]`` are those of row k by seed."""
    found = []
    for date, of_rows in scores.items():
        for row, values in zip(module.ROWS, of_rows, strict=False):
            for seed, value in enumerate(values):
                named = {"env": row.env, "algo": row.algo, "steps": str(row.steps)}
                found.append(
                    named
                    | {"setting": "preset", "seed": str(seed), "date": date, row.metric: str(value)}
                )
    return found


def test_a_loss_is_found_and_equal_rows_are_not(losses: Any) -> None:
    rng = np.random.default_rng(0)
    same = [100 + rng.normal(size=(8, 5)), 100 + rng.normal(size=(8, 5))]
    found = losses.comparisons(lines(losses, {BEFORE: same[0], AFTER: same[1]}), "2026-01-15")
    assert len(found) == 8
    assert not any(losses.lost(found))
    worse = same[1].copy()
    worse[3] -= 10
    found = losses.comparisons(lines(losses, {BEFORE: same[0], AFTER: worse}), "2026-01-15")
    assert losses.lost(found) == [i == 3 for i in range(8)]


def test_a_gain_is_no_loss_and_constants_are_compared(losses: Any) -> None:
    before, after = np.full((3, 5), 500.0), np.full((3, 5), 500.0)
    after[1], after[2] = 400.0, 510.0
    found = losses.comparisons(lines(losses, {BEFORE: before, AFTER: after}), "2026-01-15")
    assert losses.lost(found) == [False, True, False]
    assert "no spread" in losses.table(found)


def test_holm_asks_more_of_many_rows(losses: Any) -> None:
    """A p-value of 0.02 is a loss alone and none among three."""
    make = lambda p: losses.Comparison(losses.ROWS[0], "preset", [1.0], [0.0], p)  # noqa: E731
    assert losses.lost([make(0.02)]) == [True]
    assert losses.lost([make(0.02), make(0.5), make(0.9)]) == [False] * 3
    assert losses.lost([make(0.03), make(0.001), make(0.02)]) == [True] * 3
    assert losses.lost([make(0.03), make(0.001), make(0.04)]) == [False, True, False]


def test_the_last_run_of_a_seed_counts(losses: Any) -> None:
    first, again = {BEFORE: [[1.0, 2.0]], AFTER: [[9.0, 9.0]]}, {"2026-03-01T00:00": [[3.0, 4.0]]}
    (found,) = losses.comparisons(lines(losses, first) + lines(losses, again), "2026-01-15")
    assert (found.before, found.after) == ([1.0, 2.0], [3.0, 4.0])
