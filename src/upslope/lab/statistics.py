"""From batch means of a gradient estimator to figures with intervals, and a verdict.

The decision is made in two stages of fixed size. *Undecided* says that the intervals are too wide:
a bias that matters, or the very one that theory names, can be neither shown nor excluded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from scipy import stats
from torch import Tensor

from upslope.lab.tests import hotelling
from upslope.theory.diagnostics import gradient_moments, gradient_snr

ALPHA = 1e-3  # of each of the two stages
NOTHING = 1e-9  # what is rounding, in a relative bias
SMALL = 0.1  # relative bias that an interval must exclude before "unbiased" is said


class Known(Protocol):
    """What is known of an estimator."""

    @property
    def target(self) -> Tensor: ...
    @property
    def exact_mean(self) -> Tensor: ...
    @property
    def exact_variance(self) -> float: ...
    @property
    def floor(self) -> float | None: ...
    @property
    def basis(self) -> Tensor: ...


@dataclass(frozen=True)
class Findings:
    """Figures of one estimator; biases are relative to the target's length."""

    relative_bias: float  # (mean - g).g / |g|^2
    relative_bias_ci: tuple[float, float]
    exact_relative_bias: float
    squared_bias: float  # |mean - g|^2 / |g|^2 less its expectation under noise; may be negative
    bias_norm_ci: tuple[float, float]  # range of |bias| / |g|
    exact_squared_bias: float
    variance: float  # trace of the covariance, of one episode
    variance_ci: tuple[float, float]
    exact_variance: float
    mse: float  # E|ghat - g|^2 of one batch
    exact_mse: float
    cosine: float  # of the mean of all data with the target
    snr: float | None  # |E ghat|^2 / variance, of one episode
    exact_snr: float | None
    variance_over_floor: float | None
    p_values: tuple[float, float]  # of the two stages
    verdict: str  # unbiased, biased or undecided


def examine(known: Known, first: Tensor, second: Tensor, level: float, unit: int) -> Findings:
    """Set batch means beside what is known.

    Args:
        known: the estimator's target and exact moments.
        first, second: ``[n, d]`` batch means of the two stages.
        level: 1 minus the confidence of the intervals.
        unit: episodes of a batch.
    """
    x, g = torch.cat([first, second]), known.target
    size, bias = float(g.square().sum()), known.exact_mean - g
    along = (x - g) @ g / size
    g2, trace = gradient_moments(x)
    signal = float(known.exact_mean.square().sum())
    variance, spread = unit * float(trace), known.exact_variance
    ci, norms = interval(along, level), norm_range(x, g, known.basis, level)
    excess = float(bias.square().sum()) / size
    p_values = (departure(first, g, known.basis), departure(second, g, known.basis))
    return Findings(
        relative_bias=float(along.mean()),
        relative_bias_ci=ci,
        exact_relative_bias=float(bias @ g) / size,
        squared_bias=float(gradient_moments(x - g)[0]) / size,
        bias_norm_ci=norms,
        exact_squared_bias=excess,
        variance=variance,
        variance_ci=trace_interval(x, unit, level),
        exact_variance=spread,
        mse=float((x - g).square().sum(1).mean()),
        exact_mse=float(bias.square().sum()) + spread / unit,
        cosine=float(torch.cosine_similarity(x.mean(0), g, dim=0)),
        snr=float(gradient_snr(g2, trace)) / unit if variance > 0 else None,
        exact_snr=signal / spread if spread > 0 else None,
        variance_over_floor=None if not known.floor else variance / known.floor,
        p_values=p_values,
        verdict=decide(p_values, ci, norms, math.sqrt(excess)),
    )


def decide(
    p_values: tuple[float, float],
    ci: tuple[float, float],
    norms: tuple[float, float],
    exact_norm: float,
) -> str:
    """Biased where both stages reject; unbiased where the intervals also leave no room for a bias.

    Args:
        p_values: of the two stages.
        ci: interval of the relative bias along the target.
        norms: range of the length of the bias, relative to the target's.
        exact_norm: the length that theory names.
    """
    if max(p_values) < ALPHA:
        return "biased"
    is_small = max(-ci[0], ci[1]) <= SMALL
    hidden = exact_norm > NOTHING and norms[0] <= exact_norm <= norms[1]
    return "unbiased" if is_small and not hidden else "undecided"


def departure(x: Tensor, mu: Tensor, basis: Tensor) -> float:
    """p-value of Hotelling's T^2 that the rows ``[n, d]`` have mean ``mu [d]``.

    Directions in which the rows do not vary at all are left out, and decide by themselves.
    """
    gap = (x - mu) @ basis
    scale = float(mu.norm()) + float(x.std())
    still = gap.std(0) <= 1e-12 * scale
    if bool((gap[:, still].abs() > 1e-9 * scale).any()):
        return 0.0
    if bool(still.all()):
        return 1.0
    return hotelling(x, mu, basis[:, ~still])[1]


def interval(x: Tensor, level: float) -> tuple[float, float]:
    """t interval of the mean of ``x [n]``, never narrower than rounding."""
    n, mean = len(x), float(x.mean())
    half = float(stats.t.isf(level / 2, n - 1)) * float(x.std()) / math.sqrt(n) + NOTHING
    return mean - half, mean + half


def trace_interval(x: Tensor, unit: int, level: float) -> tuple[float, float]:
    """Interval of ``unit`` times the trace of the covariance of rows ``[n, d]``, by jackknife."""
    n = len(x)
    squares = (x - x.mean(0)).square().sum(1) * n / (n - 1)  # their mean is the trace
    low, high = interval(squares, level)
    return unit * max(0.0, low), unit * high


def norm_range(x: Tensor, g: Tensor, basis: Tensor, level: float) -> tuple[float, float]:
    """Range of |E x - g| / |g| over the ellipsoid of Hotelling's T^2, taken by its longest axis."""
    gap = (x - g) @ basis
    n, k = gap.shape
    centred = gap - gap.mean(0)
    longest = float(torch.linalg.eigvalsh(centred.T @ centred / (n - 1)).max())
    radius = k * (n - 1) / (n - k) * float(stats.f.isf(level, k, n - k)) * longest / n
    length, size = float((x.mean(0) - g).norm()), float(g.norm())
    half = math.sqrt(max(0.0, radius))
    return max(0.0, length - half) / size, (length + half) / size
