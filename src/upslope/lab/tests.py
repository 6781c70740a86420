"""Statistical tests of estimators against what they should be."""

from __future__ import annotations

from scipy import stats
from torch import Tensor


def hotelling(x: Tensor, mu: Tensor, basis: Tensor | None = None) -> tuple[float, float]:
    """Hotelling's T^2: is the mean of the rows ``mu``?

    Args:
        x: ``[n, d]`` independent rows, each best the mean of many episodes: raw ones are too skewed
            for the law to hold below a thousand rows.
        mu: ``[d]``.
        basis: ``[d, k]`` orthonormal columns in which to test. A softmax's scores have no component
            along a constant, so the covariance of all d coordinates is singular.

    Returns:
        The statistic and the p-value under F(k, n - k).

    Raises:
        ValueError: if there are not more rows than dimensions.

    Eq: 12.4. Source: Hotelling 1931.
    """
    gap = x - mu if basis is None else (x - mu) @ basis
    n, k = gap.shape
    if n <= k:
        raise ValueError(f"{n} rows cannot test {k} dimensions: take more rows or a smaller basis")
    mean, centred = gap.mean(0), gap - gap.mean(0)
    covariance = centred.T @ centred / (n - 1)
    statistic = float(n * mean @ covariance.inverse() @ mean)
    return statistic, float(stats.f.sf(statistic * (n - k) / (k * (n - 1)), k, n - k))
