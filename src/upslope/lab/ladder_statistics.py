"""Intervals and verdicts of the ladder: over seeds by Student's t, over episodes by jackknife."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from upslope.statistics.contrasts import holm
from upslope.statistics.intervals import LEVEL, Interval, mean_interval, t_quantile
from upslope.theory.diagnostics import gradient_moments, gradient_snr

ENOUGH_SEEDS = 5  # below, a t interval says too little of skewed returns to decide by
HIGHER, LOWER, OPEN = "higher", "lower", "not distinguishable"
FEW, CONSTANT, NOTHING = "refused: fewer than 5 seeds", "refused: no spread", "refused: no data"


@dataclass(frozen=True)
class Difference:
    """A rung minus the one below it, seed by seed.

    ``interval`` is the paired t interval at 95 %; ``decisive`` the one at the level by which Holm's
    procedure decides, and ``p`` and ``p_holm`` the p-value without and with its correction.
    """

    per_seed: list[float] | None
    interval: Interval
    p: float | None
    p_holm: float | None = None
    decisive: Interval | None = None
    verdict: str | None = None

    def plain(self) -> dict[str, Any]:
        """Return difference and interval as JSON types."""
        return {
            "difference": self.interval.value,
            "ci": self.interval.ci,
            "per_seed": self.per_seed,
            "p": self.p,
        }

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        holm = None if self.decisive is None else self.decisive.ci
        return {**self.plain(), "p_holm": self.p_holm, "ci_holm": holm, "verdict": self.verdict}


def paired_differences(rungs: Sequence[Sequence[float | None]]) -> list[Difference]:
    """Each rung minus the one below, over the seeds that they share.

    Args:
        rungs: from the lowest, one value a seed each.
    """
    return [_paired(below, here) for below, here in pairwise(rungs)]


def _paired(below: Sequence[float | None], here: Sequence[float | None]) -> Difference:
    pairs = zip(below, here, strict=True)
    gaps = [b - a for a, b in pairs if a is not None and b is not None]
    if len(gaps) < len(here):
        return Difference(None, Interval(None), None)
    interval = mean_interval(gaps)
    p = None if interval.ci is None else float(stats.ttest_1samp(gaps, 0.0).pvalue)
    return Difference(gaps, interval, p)


def with_verdicts(family: Sequence[Difference], alpha: float = 1 - LEVEL) -> list[Difference]:
    """Decide each difference by its interval, all of them together at level ``alpha``.

    Holm's step-down procedure; a difference without a p-value counts as one that is not rejected.
    With fewer than five seeds nothing is decided.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    refused = [_refusal(one) for one in family]
    tested = zip(family, refused, strict=True)
    p = [math.nan if why or one.p is None else one.p for one, why in tested]
    corrected, left = holm(np.array(p))
    return [
        replace(one, verdict=why) if why else _decided(one, float(corrected[i]), alpha, left[i])
        for i, (one, why) in enumerate(zip(family, refused, strict=True))
    ]


def _decided(one: Difference, p_holm: float, alpha: float, left: int) -> Difference:
    decisive = mean_interval(one.per_seed or [], 1 - alpha / left)
    verdict = _verdict(p_holm < alpha, decisive)
    return replace(one, p_holm=p_holm, decisive=decisive, verdict=verdict)


def _refusal(one: Difference) -> str | None:
    if one.per_seed is None:
        return NOTHING
    if len(one.per_seed) < ENOUGH_SEEDS:
        return FEW
    return CONSTANT if one.p is None else None


def _verdict(rejected: bool, decisive: Interval) -> str:
    if not rejected or decisive.low is None:
        return OPEN
    return HIGHER if decisive.low > 0 else LOWER


def gradient_rows(means: dict[str, Tensor], size: int) -> list[dict[str, Any]]:
    """Variance and signal-to-noise ratio per episode of estimators on the same batches.

    Args:
        means: name -> ``[M, d]``, the gradient of each of M batches, M >= 3.
        size: episodes of a batch; per episode the variance is ``size`` times that of their mean.

    Returns:
        One dict an estimator: ``trace`` (tr Cov) and ``snr`` (|mean|^2 / tr Cov) with jackknife
        intervals at 95 %, and ``ratio`` of its trace to the one before it, paired batch by batch,
        whose intervals hold together at 95 % (Bonferroni). None where a gradient does not vary.

    Source: Efron & Stein 1981 (the jackknife's variance).
    """
    coordinates = [_coordinates(rows) for rows in means.values()]
    together = 1 - (1 - LEVEL) / max(1, len(means) - 1)
    found = []
    for i, (name, rows) in enumerate(zip(means, coordinates, strict=True)):
        trace = jackknife(partial(_log_trace, rows, size), len(rows))
        snr = jackknife(partial(_snr, rows, size), len(rows))
        ratio = Interval(None)
        if i:
            gap = partial(_log_ratio, rows, coordinates[i - 1])
            ratio = jackknife(gap, len(rows), together)
        row = {"name": name, **_exp("trace", trace), "snr": snr.value, "snr_ci": snr.ci}
        found.append(row | _exp("ratio", ratio))
    return found


def jackknife(statistic: Callable[[Tensor], float], n: int, level: float = LEVEL) -> Interval:
    """A statistic of n units with its delete-one interval: +- t times the jackknife's error.

    Args:
        statistic: of the indices of the units that are kept.
        n: units, at least 3.
        level: of the interval.

    Returns:
        Nothing where the statistic is not finite, with all units or without one.
    """
    every = torch.arange(n)
    whole = statistic(every)
    without = [statistic(every[every != i]) for i in range(n)]
    if not all(map(math.isfinite, [whole, *without])):
        return Interval(None)
    centre = math.fsum(without) / n
    error = math.sqrt((n - 1) / n * math.fsum((value - centre) ** 2 for value in without))
    half = t_quantile(level, n - 1) * error
    return Interval(whole, whole - half, whole + half)


def _coordinates(rows: Tensor) -> Tensor:
    """``[M, d]`` as ``[M, k]``, k <= M, with the same inner products: all that moments read."""
    triangle: Tensor = torch.linalg.qr(rows.double().T, mode="r").R
    return triangle.T


def _log_trace(rows: Tensor, size: int, keep: Tensor) -> float:
    trace = size * float(gradient_moments(rows[keep])[1])
    return math.log(trace) if trace > 0 else -math.inf


def _log_ratio(rows: Tensor, others: Tensor, keep: Tensor) -> float:
    return _log_trace(rows, 1, keep) - _log_trace(others, 1, keep)


def _snr(rows: Tensor, size: int, keep: Tensor) -> float:
    g2, trace = gradient_moments(rows[keep])
    return float(gradient_snr(g2, size * trace)) if trace > 0 else math.nan


def _exp(name: str, log: Interval) -> dict[str, Any]:
    ci = None if log.ci is None else [math.exp(bound) for bound in log.ci]
    return {name: None if log.value is None else math.exp(log.value), f"{name}_ci": ci}
