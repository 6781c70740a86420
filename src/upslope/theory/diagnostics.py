"""Numbers for people: they describe an update and steer nothing but PPO's optional KL stop."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upslope.theory.objectives import masked_mean

LEAST_ROUNDING = 16  # units in the last place of 1, which every log-probability may be off by
LARGEST_LOG_RATIO = 60.0  # in a diagnostic: e^60 fits float32, and no run dies of a measurement


def approx_kl(log_ratio: Tensor, valid: Tensor) -> Tensor:
    """k3 estimate of KL(pi_old || pi): mean(ratio - 1 - log ratio).

    Never negative, and unbiased on data of pi_old.

    Args:
        log_ratio: ``[T, B]`` (or ``[N]``), log pi(a|s) - log pi_old(a|s) at actions drawn from
            pi_old.
        valid: same shape, bool or 0/1.

    Returns:
        Scalar, in nats; log ratios above 60 count as 60.

    Eq: 11.4. Source: Schulman 2020, "Approximating KL divergence" (the estimator called k3).
    """
    bounded = log_ratio.clamp(max=LARGEST_LOG_RATIO)
    return masked_mean(bounded.expm1() - bounded, valid)


def clip_fraction(log_ratio: Tensor, clip_range: Tensor | float, valid: Tensor) -> Tensor:
    """Share of rows with |ratio - 1| > clip_range.

    Args:
        log_ratio: ``[T, B]`` (or ``[N]``), log pi(a|s) - log pi_old(a|s).
        clip_range: eps, without unit.
        valid: same shape as ``log_ratio``, bool or 0/1.

    Returns:
        Scalar in [0, 1].

    Eq: 11.5.
    """
    change = log_ratio.clamp(max=LARGEST_LOG_RATIO).expm1()
    return masked_mean((change.abs() > clip_range).to(log_ratio.dtype), valid)


def explained_variance(values: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """1 - Var(target - V) / Var(target).

    1 is a perfect critic, 0 no better than a constant, below 0 worse.

    Args:
        values: ``[T, B]``, V(s_t).
        targets: ``[T, B]``.
        valid: ``[T, B]``, bool or 0/1.

    Returns:
        Scalar without unit; NaN ("undefined") where the targets do not vary.

    Eq: 12.5.
    """
    # By NumPy: it starts sooner, and nothing follows this gradient.
    found, wanted, weight = (
        x.numpy(force=True).astype(np.float64) for x in (values, targets, valid)
    )
    share = weight / max(weight.sum(), 1.0)
    with np.errstate(all="ignore"):
        residual, spread = _variance(wanted - found, share), _variance(wanted, share)
    rounding = torch.finfo(targets.dtype).eps * float(np.abs(wanted).max())
    explained = 1 - residual / spread if spread > rounding**2 else math.nan
    return torch.tensor(explained, dtype=targets.dtype)


def gradient_moments(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Unbiased |G|^2 and tr S from M independent gradients of one unit each.

    |G|^2 = (|sum g|^2 - sum |g|^2) / (M (M - 1)); tr S = (sum |g|^2 - |sum g|^2 / M) / (M - 1).
    A unit is an episode, or a micro-batch.

    Args:
        gradients: ``[M, d]``, M >= 2.

    Returns:
        Two scalars; the first may come out negative when the noise dominates.

    Raises:
        ValueError: if M < 2.

    Eq: 12.1. Source: McCandlish et al. 2018, appendix A.
    """
    count = len(gradients)
    if count < 2:
        raise ValueError("gradient_moments needs at least two gradients, got one")
    of_sum, of_each = gradients.sum(0).square().sum(), gradients.square().sum()
    return (of_sum - of_each) / (count * (count - 1)), (of_each - of_sum / count) / (count - 1)


def gradient_snr(g2: Tensor, trace: Tensor) -> Tensor:
    """Signal-to-noise ratio |G|^2 / tr S of the gradient of one unit.

    Both are scalars from :func:`gradient_moments`.

    Eq: 12.2. Source: Roberts & Tedrake 2009.
    """
    return g2 / trace


def noise_scale(g2: Tensor, trace: Tensor, unit: float = 1.0) -> Tensor:
    """B_simple = unit * tr S / |G|^2: the batch size at which noise and signal are equal.

    Args:
        g2: scalar, |G|^2 averaged over iterations *before* dividing.
        trace: scalar, tr S averaged likewise.
        unit: size of one unit in whatever B is wanted in (1 for units, mean episode length for
            steps).

    Returns:
        Scalar.

    Eq: 12.3. Source: McCandlish et al. 2018, eq. 2.9.
    """
    return unit * trace / g2


def ratio_tolerance(z: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """How far a log ratio may lie from 0 by rounding alone.

    16 eps (1 + max_row sum_d |z_d| (1 + |mu_d|) / sigma_d).
    Rounding in the mean is amplified by |z| / sigma, so a fixed tolerance alarms falsely for narrow
    Gaussians.

    Args:
        z: ``[N, k]``, (action - mean) / sigma.
        mean: ``[N, k]``.
        sigma: ``[k]`` or ``[N, k]``.

    Returns:
        Scalar, in nats; eps is that of the dtype.

    Eq: 11.7.
    """
    amplification = (z.abs() * (1 + mean.abs()) / sigma).sum(-1).max()
    return LEAST_ROUNDING * torch.finfo(mean.dtype).eps * (1 + amplification)


def _variance(x: NDArray[np.float64], share: NDArray[np.float64]) -> float:
    centred = x - (x * share).sum()
    centred = centred - (centred * share).sum()  # or a constant's rounding counts as spread
    return float((centred * centred * share).sum())
