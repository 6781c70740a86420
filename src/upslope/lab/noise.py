"""Signal and noise of a gradient, from one gradient for each of N episodes, with 99 % intervals.

``|G|^2`` of Eq. 12.1 is a mean over pairs of episodes, a quadratic form: near 0 its law is that of
a weighted sum of chi-squares, wide and skewed where few directions hold the noise. A jackknife
interval of 99 % covers 85 % there. So the intervals invert a test: a value is inside where the
estimate lies no further from it than happens if that value is true.

They rest on the N episodes being alike: where a rare kind holds most of the variance and is hardly
among them, every interval is too narrow, as that of any mean would be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from scipy import special
from scipy.optimize import brentq
from torch import Tensor

from upslope.theory.diagnostics import gradient_moments

LEVEL = 0.99
FEWEST = 4  # episodes: two halves of two
BLOCK = 65_536  # columns that are held in float64 at a time


class Estimate(NamedTuple):
    """A number and its interval of :data:`LEVEL`: NaN where undefined, infinite where open."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """Return value and interval; what is undefined or open is null."""
        return {
            "value": finite_or_none(self.value),
            "ci99": [finite_or_none(self.low), finite_or_none(self.high)],
        }


UNDEFINED = Estimate(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Sample:
    """What the intervals read of N gradients ``g_i``, with mean m and sample covariance S."""

    gradients: Tensor  # [N, d] float64
    g2: float  # |G|^2, unbiased (Eq. 12.1)
    trace: float  # tr S
    mean2: float  # |m|^2
    along: Tensor  # [N], (g_i - m) . m
    square: Tensor  # [N], |g_i - m|^2 minus its mean
    trace2: float  # tr of the squared covariance, unbiased for normal g
    trace3: float  # tr of its cube
    turned2: float  # |S m|^2

    @classmethod
    def of(cls, gradients: Tensor) -> Sample:
        """The sample of ``[N, d]`` gradients of independent episodes.

        Raises:
            ValueError: for fewer than :data:`FEWEST`.
        """
        g = gradients.double()
        n, d = g.shape
        if n < FEWEST:
            raise ValueError(f"intervals need at least {FEWEST} gradients, got {n}")
        g2, trace = (float(moment) for moment in gradient_moments(g))
        mean, free = g.mean(0), n - 1
        x = g - mean
        along, square = x @ mean, x.square().sum(1)
        small = (x.T @ x if d < n else x @ x.T) / free  # S, or what has its eigenvalues
        trace2 = float(small.square().sum()) - trace**2 / free
        trace2 = max(trace2 * free**2 / ((free + 2) * (free - 1)), trace**2 / d)
        trace3 = min(float((small @ small * small).sum()), trace2**1.5)
        turned2 = float((along @ x / free).square().sum())
        return cls(
            g, g2, trace, float(mean.square().sum()), along, square - square.mean(),
            trace2, max(trace3, 0.0), turned2,
        )  # fmt: skip


def signal(sample: Sample) -> Estimate:
    """|G|^2 and its interval, which holds 0 where the data may show no gradient at all."""
    return Estimate(sample.g2, *_inverted(sample, is_ratio=False))


def signal_to_noise(sample: Sample) -> Estimate:
    """SNR of one episode (Eq. 12.2), |G|^2 / tr S, with an interval by Fieller's argument.

    r is inside where ``|G|^2 - r tr S``, whose mean is 0 if r is true, lies close enough to 0. So
    the interval holds 0 exactly where that of ``|G|^2`` does, and nothing noisy is divided by.

    Source: Fieller 1954, "Some problems in interval estimation".
    """
    if sample.trace == 0:
        return UNDEFINED
    return Estimate(sample.g2 / sample.trace, *_inverted(sample, is_ratio=True))


def noise_scale(snr: Estimate) -> Estimate:
    """B_simple in episodes (Eq. 12.3), 1 / SNR: open above, without value, where G may be 0."""
    if math.isnan(snr.value):
        return UNDEFINED
    low = 1 / snr.high if snr.high > 0 else math.inf
    if snr.low <= 0:
        return Estimate(math.nan, low, math.inf)
    return Estimate(1 / snr.value, low, 1 / snr.low)


def variance(sample: Sample) -> Estimate:
    """tr S of one episode."""
    if sample.trace == 0:
        return Estimate(0.0, 0.0, 0.0)
    return _of_logarithm(sample.trace, sample.square / sample.trace)


def variance_ratio(sample: Sample, reference: Sample) -> Estimate:
    """tr S over that of a reference on the same episodes, which the interval counts as pairs."""
    if min(sample.trace, reference.trace) == 0:
        return UNDEFINED
    shares = sample.square / sample.trace - reference.square / reference.trace
    return _of_logarithm(sample.trace / reference.trace, shares)


def difference(gradients: Tensor, reference: Tensor) -> Estimate:
    """How much longer a gradient is along the reference's: -0.1 is 10 % shorter.

    Each half of the episodes is projected on the reference's mean over the *other* half, so that no
    noise is taken for length: q = sum (g_i - r_i).u / sum r_i.u. Given the two directions u, the
    terms are independent, and the interval is Fieller's from the t law. It is open on both sides
    where the reference's own length may be 0.

    Args:
        gradients, reference: ``[N, d]`` of the same episodes.

    Source: Fieller 1954.
    """
    even = torch.arange(len(reference), device=reference.device) % 2 == 0
    way = torch.where(even[:, None], reference[~even].mean(0), reference[even].mean(0))
    top, bottom = ((gradients - reference) * way).sum(1), (reference * way).sum(1)
    n, x, y = len(way), float(top.mean()), float(bottom.mean())
    top, bottom = top - x, bottom - y
    scale = float(special.stdtrit(n // 2 - 1, (1 + LEVEL) / 2)) ** 2 / (n * (n - 1))
    # all q with (x - q y)^2 <= scale |top - q bottom|^2
    a = y * y - scale * float(bottom @ bottom)
    b = x * y - scale * float(top @ bottom)
    c = x * x - scale * float(top @ top)
    if a <= 0:
        return Estimate(x / y if y > 0 else math.nan, -math.inf, math.inf)
    root = math.sqrt(max(b * b - a * c, 0.0))
    return Estimate(x / y, (b - root) / a, (b + root) / a)


def cosine(gradients: Tensor, others: Tensor) -> float:
    """Cosine of two means over rows, of ``[N, d]`` and ``[N', d]``; NaN where one of them is 0."""
    x, y = gradients.mean(0), others.mean(0)
    size = float(x.norm() * y.norm())
    return float(x @ y) / size if size > 0 else math.nan


def cosine_of_halves(gradients: Tensor, others: Tensor) -> float:
    """Cosine of the mean over half the rows with that over the other half of ``others``.

    It is the average over both ways to pair the halves. ``others = gradients`` gives what two
    batches of half the episodes have in common: the ceiling for any agreement on other data.
    """
    ways = (gradients[::2], others[1::2]), (gradients[1::2], others[::2])
    return sum(cosine(*way) for way in ways) / 2


def finite_or_none(number: float) -> float | None:
    """A number as JSON has it, which knows neither NaN nor infinity."""
    return number if math.isfinite(number) else None


def compress(*gradients: Tensor) -> list[Tensor]:
    """``[N, d]`` tensors as float64 ``[N, k]`` with the same inner products, also between them.

    k is d, or the number of all rows where that is smaller: only inner products are ever needed.
    """
    rows, size = sum(len(g) for g in gradients), gradients[0].shape[1]
    if size <= rows:
        return [g.double() for g in gradients]
    gram = torch.zeros(rows, rows, dtype=torch.float64)
    for start in range(0, size, BLOCK):
        block = torch.cat([g[:, start : start + BLOCK].double() for g in gradients])
        gram += block @ block.T
    values, vectors = torch.linalg.eigh(gram)
    turned: Tensor = vectors * values.clamp(min=0).sqrt()
    return list(turned.split([len(g) for g in gradients]))  # type: ignore[no-untyped-call]


def _inverted(sample: Sample, is_ratio: bool) -> tuple[float, float]:
    """Ends of all r >= 0 that the data allow for |G|^2 / tr S, or for |G|^2."""
    if sample.mean2 == sample.trace == 0:
        return 0.0, 0.0

    def beyond(r: float, side: int) -> float:
        """How far the estimate lies outside what happens if r is true; below 0: inside."""
        gap, spread, skewness = _law(sample, r, is_ratio)
        return side * gap / spread - _quantile(side * skewness, len(sample.along))

    unit = sample.trace if is_ratio else 1.0
    centre = max(sample.g2, 0.0) / unit
    if beyond(centre, -1) > 0:
        return 0.0, 0.0  # too far below 0 for any r: the nearest
    low = 0.0 if beyond(0.0, 1) <= 0 else _root(lambda r: beyond(r, 1), 0.0, centre)
    end = centre + math.sqrt(sample.trace2) / len(sample.along) / unit
    for _ in range(60):
        if beyond(end, -1) > 0:
            return low, _root(lambda r: beyond(r, -1), centre, end)
        end += end
    return low, math.inf


def _root(function: Callable[[float], float], start: float, end: float) -> float:
    return float(brentq(function, start, end, rtol=1e-10))


def _law(sample: Sample, r: float, is_ratio: bool) -> tuple[float, float, float]:
    """|G|^2 - r tr S (or - r): its value, and deviation and skewness under the mean 0.

    ``|m|^2`` is a quadratic form of a nearly normal mean, whose cumulants are sums of traces. What
    is linear in the episodes adds its own moments; as its deviation is estimated from the same
    data, its share of the skewness counts -2 times (Johnson 1978, on the t test).
    """
    n = len(sample.along)
    length2 = r * sample.trace if is_ratio else r  # |G|^2 if r is true
    share = length2 / sample.mean2 if sample.mean2 > 0 else 0.0
    linear = 2 * math.sqrt(share) * sample.along
    if is_ratio:
        linear = linear - r * sample.square
    spread2 = float(linear.square().sum()) / (n - 1) / n + 2 * sample.trace2 / n**2
    third = (24 * share * sample.turned2 + 8 * sample.trace3 / n) / n**2
    third -= 2 * float(linear.pow(3).mean()) / n**2
    return sample.g2 - length2, math.sqrt(spread2), third / spread2**1.5


def _of_logarithm(value: float, shares: Tensor) -> Estimate:
    """A positive mean with the t interval of its logarithm, from what each episode adds to it."""
    n = len(shares)
    error = math.sqrt(float(shares.square().sum()) / (n - 1) / n)
    if error == 0:
        return Estimate(value, value, value)
    skewness = -2 * float(shares.pow(3).mean()) / n**2 / error**3  # of the t statistic, as above
    down, up = (min(error * _quantile(sign * skewness, n), 700.0) for sign in (1, -1))
    return Estimate(value, value * math.exp(-down), value * math.exp(up))


def _quantile(skewness: float, n: int) -> float:
    """Upper quantile, in deviations, of a shifted gamma law (Pearson III); at least the normal's.

    It is stretched as Student's t is beyond the normal law: the deviation is that of n values.

    Source: Pearson 1959, "Note on an approximation to the distribution of non-central chi-square".
    """
    upper = (1 + LEVEL) / 2
    normal = found = float(special.ndtri(upper))
    if skewness > 1e-4:
        shape = 4 / min(skewness, math.sqrt(8)) ** 2  # at most that of one squared normal number
        found = max(normal, (float(special.gammaincinv(shape, upper)) - shape) / math.sqrt(shape))
    return found * float(special.stdtrit(n - 1, upper)) / normal
