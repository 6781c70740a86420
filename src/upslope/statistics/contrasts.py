"""Two arms compared: Welch's and the paired t, Holm's correction, and ranks.

Arms are arrays whose last axis is the seeds; whatever stands before it is repeated, so that a
simulation of a thousand comparisons runs the code of one.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
COVERED = 0.8  # of the intervals behind a range of seeds
POWER = 0.8  # with which that many seeds would tell the difference


class Contrast(NamedTuple):
    """Differences a - b with what Student's t needs: standard error and degrees of freedom.

    The error is 0 where no spread was seen; nothing can be tested there.
    """

    difference: Array
    error: Array
    df: Array

    def p(self) -> Array:
        """Two-sided p-values that the difference is 0; NaN without spread."""
        from scipy.special import stdtr

        has_spread = self.error > 0
        t = np.abs(self.difference) / np.where(has_spread, self.error, 1.0)
        return np.where(has_spread, 2 * stdtr(self.df, -t), np.nan)

    def interval(self, level: float | Array) -> tuple[Array, Array]:
        """Intervals of probability ``level``; NaN without spread."""
        from scipy.special import stdtrit

        half = stdtrit(self.df, (1 + np.asarray(level)) / 2) * self.error
        half = np.where(self.error > 0, half, np.nan)
        return self.difference - half, self.difference + half


def welch(a: Array, b: Array) -> Contrast:
    """Means of independent arms ``[..., n]`` and ``[..., m]``, whose variances may differ.

    Source: Welch 1947, with Satterthwaite's degrees of freedom.
    """
    va, vb = _variance(a) / a.shape[-1], _variance(b) / b.shape[-1]
    both = va + vb
    spread = va**2 / max(1, a.shape[-1] - 1) + vb**2 / max(1, b.shape[-1] - 1)
    df = np.where(both > 0, both**2 / np.where(both > 0, spread, 1.0), 1.0)
    return Contrast(a.mean(-1) - b.mean(-1), np.sqrt(both), df)


def paired(a: Array, b: Array) -> Contrast:
    """Mean of the differences, seed by seed, of arms ``[..., n]`` that share their seeds."""
    gaps = a - b
    n = gaps.shape[-1]
    df = np.full(gaps.shape[:-1], max(1.0, n - 1.0))
    return Contrast(gaps.mean(-1), np.sqrt(_variance(gaps) / n), df)


def holm(p: Array) -> tuple[Array, NDArray[np.int64]]:
    """p-values of a family ``[..., m]`` so corrected that all of them hold together.

    By rising p, the k-th of m is multiplied by m - k, k from 0, and none is less than one before
    it. NaN counts as a hypothesis that is not rejected.

    Returns:
        The corrected p-values, NaN where there was none, and the m - k of each.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    m = p.shape[-1]
    order = np.argsort(p, -1, kind="stable")  # NaN last
    left = np.arange(m, 0, -1)
    rising = np.maximum.accumulate(np.take_along_axis(p, order, -1) * left, -1)
    corrected, factors = np.empty_like(p), np.empty(p.shape, np.int64)
    np.put_along_axis(corrected, order, np.minimum(rising, 1.0), -1)
    np.put_along_axis(factors, order, np.broadcast_to(left, p.shape), -1)
    return corrected, factors


def more_seeds(
    contrast: Contrast, n: int, alpha: float, difference: float | None = None
) -> tuple[int, int | None]:
    """How many more seeds an arm may need to be told apart with a power of 80 %, as a range.

    The number is v (z_a + z_b)^2 / d^2 with v the variance of a difference of two seeds; the range
    takes v and d at the ends of their 80 % intervals. It is wide, and no rule for when to stop.

    Args:
        contrast: of two arms of ``n`` seeds, with a spread.
        n: seeds of an arm so far.
        alpha: two-sided level of the test.
        difference: the one that matters; by default the one that was seen.

    Returns:
        Fewest and most; None for the latter where the interval of the difference holds 0.
    """
    from scipy.special import chdtri, ndtri

    df, v = float(contrast.df), float(contrast.error) ** 2 * n
    tail = (1 - COVERED) / 2
    low_v, high_v = df * v / float(chdtri(df, tail)), df * v / float(chdtri(df, 1 - tail))
    if difference is None:
        low, high = (float(bound) for bound in contrast.interval(COVERED))
        largest, least = (
            max(abs(low), abs(high)),
            0.0 if low <= 0 <= high else min(-high, low, key=abs),
        )
    else:
        largest = least = abs(difference)
    z_alpha = float(-ndtri(alpha / 2))
    z2 = (z_alpha + float(ndtri(POWER))) ** 2

    def more(variance: float, gap: float) -> int:
        return max(1, math.ceil(variance * z2 / gap**2 + z_alpha**2 / 4) - n)

    return more(low_v, largest), None if least == 0 else more(high_v, least)


def probability_of_improvement(a: Array, b: Array) -> tuple[float, float]:
    """Share of pairs of seeds in which ``a [n]`` is above ``b [m]``, ties half, and its p-value.

    The p-value is Mann and Whitney's, two-sided and exact, also with ties: twice the smaller tail
    of the rank sum over all ways to deal the values out to the arms.

    Source: Mann & Whitney 1947.
    """
    n, values = len(a), np.concatenate([a, b])
    twice = (values[:, None] > values).sum(1) + (values[:, None] >= values).sum(1) + 1  # midranks
    ways = np.zeros((n + 1, int(twice.sum()) + 1))
    ways[0, 0] = 1
    for rank in twice.tolist():
        ways[1:, rank:] += ways[:-1, : ways.shape[1] - rank].copy()
    law, seen = ways[n] / ways[n].sum(), int(twice[:n].sum())
    p = min(1.0, 2 * min(float(law[: seen + 1].sum()), float(law[seen:].sum())))
    above = (a[:, None] > b).mean() + 0.5 * (a[:, None] == b).mean()
    return float(above), p


def share_above(a: Array, b: Array) -> tuple[float, float]:
    """Share of seeds in which ``a [n]`` is above ``b [n]``, ties half, and the sign test's p-value.

    The exact two-sided test of arms that share their seeds; ties are left out of it.
    """
    from scipy.special import bdtr

    above, below = int((a > b).sum()), int((a < b).sum())
    told = above + below
    p = min(1.0, 2 * float(bdtr(min(above, below), told, 0.5))) if told else 1.0
    return (above + 0.5 * (len(a) - told)) / len(a), p


def _variance(x: Array) -> Any:
    """Sample variance over the last axis; exactly 0 of equal values and of one."""
    if x.shape[-1] < 2:
        return np.zeros(x.shape[:-1])
    return np.where(x.min(-1) == x.max(-1), 0.0, x.var(-1, ddof=1))
