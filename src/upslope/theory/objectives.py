"""Weights to one scalar: the functions whose gradient a page follows.

None of them measures performance. Their data must come from the current policy, they are good for
one step (PPO's epochs excepted, by its clip), and every weight is detached here, once, so that no
gradient reaches a target.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

MAX_LOG_RATIO = 20.0  # e^20 is beyond any step worth taking; e^89 is infinite in float32


def policy_gradient_loss(
    log_prob: Tensor, weight: Tensor, valid: Tensor, divisor: Tensor | float
) -> Tensor:
    """Pseudo-loss -(1/divisor) sum log pi(a_t|s_t) weight_t.

    Its negative gradient is the policy gradient. Its value is not a loss: a constant added to the
    weights changes the value and not the expected gradient.

    Args:
        log_prob: ``[T, B]`` log-probability of the sampled actions under the current policy.
        weight: ``[T, B]`` Psi_t, detached here.
        valid: ``[T, B]`` bool or 0/1, the rows that are transitions.
        divisor: number of episodes for batches of whole episodes, of valid rows for T x B rollouts;
            dividing whole episodes by their steps is biased.

    Returns:
        Scalar.

    Eq: 4.1, 4.2, 3.3. Source: Williams 1992.
    """
    return -(log_prob * weight.detach() * valid).sum() / divisor


def clipped_surrogate_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    weight: Tensor,
    valid: Tensor,
    clip_range: Tensor | float,
) -> Tensor:
    """PPO: -mean(min(ratio A, clip(ratio, 1 - eps, 1 + eps) A)), ratio = pi / pi_old.

    The minimum is that of ratio A and A + eps |A|: the clip binds on one side only, that of A. At
    ratio 1 the gradient is the policy gradient of the same weights; clipping does not bound the KL
    divergence.

    Args:
        log_prob: ``[T, B]`` (or ``[N]``) under the current policy.
        old_log_prob: same shape, under the policy that collected the data; detached here.
        weight: same shape, the advantages; detached here.
        valid: same shape, bool or 0/1; the mean is over valid rows.
        clip_range: eps, without unit.

    Returns:
        Scalar.

    Eq: 11.1, 11.2, 11.3. Source: Schulman et al. 2017, "Proximal policy optimization
    algorithms", eq. 7.
    """
    weight = weight.detach()
    ratio = (log_prob - old_log_prob.detach()).clamp(max=MAX_LOG_RATIO).exp()
    gain, most = ratio * weight, weight + clip_range * weight.abs()
    return -masked_mean(torch.where(gain > most, most, gain), valid)


def value_loss(values: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error of the critic, mean((V(s_t) - target_t)^2); no factor 1/2.

    Args:
        values: ``[T, B]`` (or ``[N]``), V(s_t) of the current critic.
        targets: same shape, detached here.
        valid: same shape, bool or 0/1.

    Returns:
        Scalar, in squared units of reward.

    Eq: 7.3.
    """
    return masked_mean(mse_loss(values, targets.detach(), reduction="none"), valid)


def clipped_values(values: Tensor, old_values: Tensor, clip_range: Tensor | float) -> Tensor:
    """V_old + clip(V - V_old, -eps, eps): the critic's output that PPO's value clipping regresses.

    Args:
        values: ``[T, B]`` (or ``[N]``) of the current critic.
        old_values: same shape, of the critic that collected; detached here.
        clip_range: eps, in units of reward.

    Returns:
        Shape of ``values``.

    Eq: 11.8. Source: OpenAI baselines' ppo2; the form of Stable-Baselines3.
    """
    old_values = old_values.detach()
    return old_values + (values - old_values).clamp(-clip_range, clip_range)  # type: ignore[arg-type]


def entropy_bonus(entropy: Tensor, valid: Tensor) -> Tensor:
    """Mean entropy of pi(.|s_t) over the valid rows; a semi-gradient, as the states are held fixed.

    Args:
        entropy: ``[T, B]`` (or ``[N]``), in nats.
        valid: same shape, bool or 0/1.

    Returns:
        Scalar, in nats; a page subtracts ``ent_coef`` times it from its loss.

    Eq: 11.6. Source: Williams & Peng 1991; Mnih et al. 2016.
    """
    return masked_mean(entropy, valid)


def masked_mean(x: Tensor, valid: Tensor) -> Tensor:
    """Mean of ``x`` over the rows where ``valid`` is 1; both of one shape, returns a scalar."""
    return (x * shares(x, valid)).sum()


def shares(x: Tensor, valid: Tensor) -> Tensor:
    """What each row has in a mean of ``x``: 1 over their number where ``valid``, else 0."""
    weight = valid.to(x.dtype)
    return weight / weight.sum().clamp(min=1)
