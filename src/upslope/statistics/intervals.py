"""Intervals of a mean, a trimmed mean and a share, and what equal values leave open.

scipy is imported where it is used: a policy is trained without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A number and its interval; None where there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def ci(self) -> list[float] | None:
        """``[low, high]``, or None."""
        return None if self.low is None or self.high is None else [self.low, self.high]

    def to_json(self) -> dict[str, Any]:
        """Return mean and interval as JSON types."""
        return {"mean": self.value, "ci95": self.ci}


def mean_interval(values: Sequence[float | None], level: float = LEVEL) -> Interval:
    """Mean with Student's t interval; no interval of one value or of equal ones.

    Equal values show no spread, which a t interval would take for certainty.
    """
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return Interval(None)
    n, mean = len(known), math.fsum(known) / len(known)
    if n < 2 or min(known) == max(known):
        return Interval(mean)
    variance = math.fsum((value - mean) ** 2 for value in known) / (n - 1)
    half = t_quantile(level, n - 1) * math.sqrt(variance / n)
    return Interval(mean, mean - half, mean + half)


def iqm_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Interquartile mean: what is left when a quarter of the values is cut off on either side.

    Its interval is Student's, with the winsorised deviation s_w and h - 1 degrees of freedom for
    the h of n values that are left: +- t s_w / ((h / n) sqrt(n)). None where the values that are
    left are equal.

    Source: Tukey & McLaughlin 1963, "Less vulnerable confidence and significance procedures".
    """
    n, cut = len(values), len(values) // 4
    if not n:
        return Interval(None)
    ordered = sorted(values)
    kept = ordered[cut : n - cut]
    mean = math.fsum(kept) / len(kept)
    winsorised = [kept[0]] * cut + kept + [kept[-1]] * cut
    if len(kept) < 2 or kept[0] == kept[-1]:
        return Interval(mean)
    centre = math.fsum(winsorised) / n
    deviation = math.sqrt(math.fsum((value - centre) ** 2 for value in winsorised) / (n - 1))
    half = t_quantile(level, len(kept) - 1) * deviation * math.sqrt(n) / len(kept)
    return Interval(mean, mean - half, mean + half)


def clopper_pearson(count: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Exact interval of a share of which ``count`` of ``n`` were seen; covers ``level`` or more.

    Source: Clopper & Pearson 1934.
    """
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    low = 0.0 if count == 0 else float(betaincinv(count, n - count + 1, tail))
    high = 1.0 if count == n else float(betaincinv(count + 1, n - count, 1 - tail))
    return low, high


def wilson(count: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Score interval of a share of which ``count`` of ``n`` were seen; covers ``level`` nearly.

    Source: Wilson 1927.
    """
    from scipy.special import ndtri

    z2 = float(ndtri((1 + level) / 2)) ** 2
    share = count / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def elsewhere_at_most(n: int, level: float = LEVEL) -> float:
    """Largest share of other values that ``n`` equal ones leave possible: 1 - (1 - level)^(1/n)."""
    return float(1 - (1 - level) ** (1 / n))


def t_quantile(level: float, df: float) -> float:
    """Half width of Student's central interval of probability ``level``."""
    from scipy.special import stdtrit  # scipy.stats takes several times as long to import

    return float(stdtrit(df, (1 + level) / 2))
