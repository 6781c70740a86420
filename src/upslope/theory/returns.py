"""Rewards to weights: what multiplies ``grad log pi(a_t|s_t)`` in the policy gradient.

Every argument is time-major ``[T, B]``. ``done`` marks the last row of an episode for any reason
and stops sums and lambda-traces; ``terminated`` marks the rows whose successor has no value. A row
that is no transition (an engine's reset row) is passed as a one-row episode, ``done = 1``, and is
dropped later by ``valid``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def episode_return(rewards: Tensor, done: Tensor, gamma: float) -> Tensor:
    """R(tau), the discounted return of the whole episode, at each of its rows: REINFORCE's weight.

    R(tau) = sum_k gamma^k r_k, with k counted from the episode's first row in the batch; so the
    first row of ``rewards`` must start an episode.

    Args:
        rewards: ``[T, B]``, in units of reward.
        done: ``[T, B]`` bool or 0/1.
        gamma: discount per step, in [0, 1].

    Returns:
        ``[T, B]``: the same number on every row of one episode.

    Eq: 3.1. Source: Williams 1992, section 3.
    """
    to_go = reward_to_go(rewards, done, gamma)
    row = torch.arange(len(rewards), device=rewards.device)[:, None]
    starts = torch.ones_like(done, dtype=torch.bool)
    starts[1:] = done[:-1].bool()
    first_row = torch.where(starts, row, torch.zeros_like(row)).cummax(dim=0).values
    return to_go.gather(0, first_row)


def discount_weights(episode_step: Tensor, gamma: float) -> Tensor:
    """gamma^t, t counted from the start of the episode.

    With this factor the gradient is the one of J_gamma.

    Args:
        episode_step: ``[T, B]`` integers, 0 on the first row of each episode.
        gamma: discount per step, in [0, 1].

    Returns:
        ``[T, B]`` in float64 (the steps are integers and have no dtype to preserve).

    Eq: 3.2. Source: Thomas 2014, "Bias in natural actor-critic algorithms".
    """
    return torch.as_tensor(gamma, dtype=torch.float64, device=episode_step.device) ** episode_step


def reward_to_go(
    rewards: Tensor, done: Tensor, gamma: float, bootstrap: Tensor | None = None
) -> Tensor:
    """G_t = r_t + gamma G_{t+1}, the discounted reward from row t to the end of its episode.

    Where the sum is cut (``done``, or the last row of the batch) it continues with
    ``gamma * bootstrap``.

    Args:
        rewards: ``[T, B]``, in units of reward.
        done: ``[T, B]`` bool or 0/1.
        gamma: discount per step, in [0, 1].
        bootstrap: ``[T, B]`` value of each row's true successor (0 where the episode terminated),
            that matters only at cuts but is finite everywhere; ``None`` stands for 0.

    Returns:
        ``[T, B]``, in units of reward.

    Eq: 5.1, 5.2, 14.2. Source: Williams 1992; Sutton et al. 2000.
    """
    tail = torch.zeros_like(rewards) if bootstrap is None else bootstrap
    goes_on = 1 - done.to(rewards.dtype)
    goes_on = torch.cat([goes_on[:-1], torch.zeros_like(goes_on[-1:])])
    return _discounted_sum(rewards + gamma * (1 - goes_on) * tail, gamma * goes_on)


def td_errors(
    rewards: Tensor, values: Tensor, next_values: Tensor, terminated: Tensor, gamma: float
) -> Tensor:
    """delta_t = r_t + gamma (1 - terminated_t) V(s_{t+1}) - V(s_t).

    Args:
        rewards: ``[T, B]``, in units of reward.
        values: ``[T, B]``, V(s_t).
        next_values: ``[T, B]``, V of the row's *true* successor (the final observation where the
            episode ended).
        terminated: ``[T, B]`` bool or 0/1; only termination stops the bootstrap, truncation does
            not.
        gamma: discount per step, in [0, 1].

    Returns:
        ``[T, B]``, in units of reward.

    Eq: 7.2, 7.4. Source: Sutton 1988.
    """
    return rewards + gamma * (1 - _numbers(terminated, rewards)) * next_values - values


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    done: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Generalised advantage estimate A_t = delta_t + gamma lambda (1 - done_t) A_{t+1}, A_T = 0.

    lambda = 1 is the (bootstrapped) Monte-Carlo return minus V, lambda = 0 the one-step TD error.

    Args:
        rewards: ``[T, B]``, in units of reward.
        values: ``[T, B]``, V(s_t).
        next_values: ``[T, B]``, V of the row's true successor.
        terminated: ``[T, B]`` bool or 0/1, stops the bootstrap.
        done: ``[T, B]`` bool or 0/1, stops the lambda-trace.
        gamma: discount per step, in [0, 1].
        gae_lambda: in [0, 1].

    Returns:
        ``[T, B]``, in units of reward.

    Eq: 8.1, 8.3, 8.4. Source: Schulman et al. 2016, "High-dimensional continuous control using
    GAE", eq. 16.
    """
    rewards, values, next_values, terminated, done = _by_numpy(
        rewards, values, next_values, terminated, done
    )
    with np.errstate(all="ignore"):  # as torch: what is not finite is refused by the update
        delta = td_errors(rewards, values, next_values, terminated, gamma)
        carry = gamma * gae_lambda * (1 - _numbers(done, rewards))
        return torch.as_tensor(_discounted_sum(delta, carry))


def lambda_returns(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    done: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """TD(lambda) return, GAE + V: the target the critic regresses on.

    Args:
        rewards: ``[T, B]``; ``values``, ``next_values``, ``terminated``, ``done``: ``[T, B]`` as
            for :func:`gae`.
        gamma: discount per step, in [0, 1].
        gae_lambda: in [0, 1].

    Returns:
        ``[T, B]``, in units of reward.

    Eq: 8.2, 8.5. Source: Sutton & Barto 2018, section 12.1; Schulman et al. 2016.
    """
    return gae(rewards, values, next_values, terminated, done, gamma, gae_lambda) + values


def leave_one_out(weights: Tensor) -> Tensor:
    """Mean of the *other* N - 1 entries: a baseline that its own action cannot see, so no bias.

    Args:
        weights: ``[..., N]``, N >= 2 independent episodes along the last axis.

    Returns:
        ``[..., N]``.

    Raises:
        ValueError: if N < 2.

    Eq: 6.5, 6.6. Source: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!".
    """
    count = weights.shape[-1]
    if count < 2:
        raise ValueError("leave_one_out needs at least two episodes along the last axis, got one")
    return (weights.sum(-1, keepdim=True) - weights) / (count - 1)


def batch_baseline(
    weights: Tensor,
    episode: Tensor,
    episode_step: Tensor,
    valid: Tensor,
    leave_out: bool,
    per_step: bool,
    size: int | None = None,
) -> Tensor:
    """Mean weight of a batch's episodes, or of a row's *other* episodes, as each row's baseline.

    Args:
        weights: ``[T, B]`` of whole episodes.
        episode, episode_step: ``[T, B]`` integers, number of the episode and step inside it.
        valid: ``[T, B]`` bool; rows outside get 0.
        leave_out: mean over the other episodes, which the row's own actions did not touch.
        per_step: one mean for each step of an episode, one that has ended counting 0; otherwise
            one mean of the first steps' weights for all.
        size: episodes of a batch, taken in the order of their numbers; by default all.

    Returns:
        ``[T, B]``, in units of the weights.

    Raises:
        ValueError: if the episodes do not fill batches of ``size``, or one is left out of one.

    Eq: 6.5, 6.6. Source: Williams 1992 (mean); Kool et al. 2019 (leave-one-out).
    """
    _, column = episode[valid].unique(return_inverse=True)  # type: ignore[no-untyped-call]
    row, n_episodes = episode_step[valid], int(column.max()) + 1
    size = size or n_episodes
    if n_episodes % size:
        raise ValueError(f"{n_episodes} episodes do not fill batches of {size}")
    by_time = weights.new_zeros(int(row.max()) + 1, n_episodes)
    by_time[row, column] = weights[valid]
    batches = by_time.view(len(by_time), -1, size)
    if not per_step:
        batches = batches[:1].expand_as(batches)
    if leave_out:
        means = leave_one_out(batches)
    else:
        means = batches.mean(-1, keepdim=True).expand_as(batches)
    baseline = torch.zeros_like(weights)
    baseline[valid] = means.reshape(by_time.shape)[row, column]
    return baseline


def standardize(x: Tensor, valid: Tensor, epsilon: float = 1e-8, dim: int | None = None) -> Tensor:
    """(x - mean) / (std + epsilon) over the valid rows.

    std is the sample one (divisor n - 1), 0 for one row.

    Args:
        x: any shape, e.g. ``[T, B]``.
        valid: same shape, bool or 0/1; rows outside get finite numbers without meaning.
        epsilon: added to the standard deviation, so that constant input gives 0.
        dim: an axis, each stretch along which is standardised by itself; by default all is one.

    Returns:
        Shape of ``x``, without unit.

    Eq: 6.7. Source: as in Stable-Baselines3's PPO; it rescales and slightly turns the gradient.
    """

    def total(y: Tensor) -> Tensor:
        return y.sum() if dim is None else y.sum(dim, keepdim=True)

    weight = valid.to(x.dtype)
    count = total(weight).clamp(min=1)
    share = weight / count
    centred = x - total(x * share)
    centred = centred - total(centred * share)  # or a constant's rounding gets unit size
    variance = total(centred.square() * weight) / (count - 1).clamp(min=1)
    return centred / (variance.sqrt() + epsilon)


def _discounted_sum(x: Tensor, carry: Tensor) -> Tensor:
    """Return g with g_t = x_t + carry_t g_{t+1} and g_T = 0, in log2(T) passes over whole tensors.

    After the pass with shift s every row holds the sum over its next 2s rows, and ``carry`` the
    product of the next 2s for the rows that have as many. Tensors, or NumPy's arrays.
    """
    given: Any = x
    join: Any = torch.cat if isinstance(given, Tensor) else np.concatenate
    total, carry, shift = x, carry[:-1], 1
    while shift < len(x):
        total = join([total[:-shift] + carry * total[shift:], total[-shift:]])
        carry = carry[:-shift] * carry[shift:]
        shift *= 2
    return total


def _by_numpy(*tensors: Tensor) -> tuple[Any, ...]:
    """The tensors as NumPy's arrays, where these do: the same bits, and a call starts sooner.

    What follows is written for both, and typed for tensors.
    """
    try:
        return tuple([x.numpy() for x in tensors])
    except (RuntimeError, TypeError):  # a gradient, another device, a dtype or vmap that it lacks
        return tensors


def _numbers(x: Any, like: Tensor) -> Tensor:
    """``x``, truths or numbers, in the dtype of ``like``."""
    changed: Tensor = x.to(like.dtype) if isinstance(x, Tensor) else x.astype(like.dtype)
    return changed
