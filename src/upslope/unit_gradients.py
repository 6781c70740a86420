"""Gradients of a rollout's units, each by itself: what tells signal from noise in a gradient.

A unit is what was drawn independently of the others: an episode, several of them, or a block of
rows. Weights, loss and backward are those that train.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from upslope.algorithms.common import rows_of
from upslope.optim import Batch, FlatParameters
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.distributions import Distribution
from upslope.policies.memory import Past
from upslope.rollout import EvaluatedRollout, Rollout
from upslope.theory.objectives import policy_gradient_loss
from upslope.trees import take

UnitLoss = Callable[[Distribution, Batch], Tensor]


def unit_gradients(
    policy: ActorCritic,
    rollout: Rollout,
    evaluated: EvaluatedRollout,
    losses: Mapping[str, UnitLoss],
    columns: Mapping[str, Tensor],
    units: Tensor,
) -> dict[str, Tensor]:
    """Minus the gradient of each loss over the rows of each unit.

    Args:
        policy: that collected the rollout; nothing of it changes.
        rollout, evaluated: the transitions, and what the policy says about them.
        losses: name -> ``loss(distribution, rows)``, a sum over the rows it is given; see
            :func:`pseudo_loss`. ``rows`` holds what :func:`~upslope.algorithms.common.rows_of`
            returns with ``columns``, ``log_prob`` (of the collecting policy) and
            ``new_log_prob`` (the same numbers, differentiable).
        columns: further ``[T, B]`` tensors that the losses read, such as weights.
        units: ``[T, B]`` int64, the number of each row's unit from 0, or -1 for rows of none.

    Returns:
        name -> ``[U, d]``, ascent directions in the actor's flat vector (in that of all parameters
        where actor and critic share their network); U is one more than the largest number.
    """
    flat = FlatParameters(policy, policy.part_names("all" if policy.shared_network else "actor"))
    batch = rows_of(rollout, evaluated, log_prob=evaluated.log_prob, **columns)
    past: Past | None = batch.pop("past")
    mask: Tensor | None = batch.pop("mask")
    n_units = int(units.max()) + 1
    found = {name: flat.vector.new_zeros(n_units, len(flat.vector)) for name in losses}
    leaf = flat.vector.detach().requires_grad_()
    with flat.replaced_by(leaf):
        for unit, index in enumerate(_rows_of_units(units, n_units)):
            if not len(index):
                continue
            then = None
            if past is not None:
                index, then = _whole_columns(past, units == unit)
            rows: Batch = take(batch, index)
            rows["valid"] = rows["valid"] * (units.reshape(-1)[index] == unit)
            allowed = None if mask is None else mask[index]
            distribution = policy.distribution_of(rows["inputs"], then, allowed)
            rows["new_log_prob"] = distribution.log_prob(rows["actions"])
            for name, loss in losses.items():
                (gradient,) = torch.autograd.grad(
                    loss(distribution, rows), leaf, retain_graph=True, materialize_grads=True
                )
                found[name][unit] = -gradient
    return found


def pseudo_loss(column: str) -> UnitLoss:
    """Return the pseudo-loss (Eq. 4.1) with the weights of one column, summed over rows."""

    def loss(distribution: Distribution, rows: Batch) -> Tensor:
        return policy_gradient_loss(rows["new_log_prob"], rows[column], rows["valid"], 1.0)

    return loss


def episode_units(rollout: Rollout, size: int = 1) -> Tensor:
    """Units ``[T, B]`` of ``size`` whole episodes each, in the order of their numbers.

    The rollout holds whole episodes, as ``collect(..., n_episodes=N)`` returns them.
    """
    units = torch.full_like(rollout.episode, -1)
    _, rank = rollout.episode[rollout.valid].unique(return_inverse=True)  # type: ignore[no-untyped-call]
    units[rollout.valid] = rank // size
    return units


def _rows_of_units(units: Tensor, n_units: int) -> list[Tensor]:
    """Indices of the flattened rows of each unit, in the order of time."""
    flat = units.reshape(-1)
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat[flat >= 0], minlength=n_units).tolist()
    return list(order[int((flat < 0).sum()) :].split(counts))  # type: ignore[no-untyped-call]


def _whole_columns(past: Past, member: Tensor) -> tuple[Tensor, Past]:
    """With memory a row needs what came before it: every row of the unit's environments."""
    steps, n_envs = member.shape
    columns = member.any(0).nonzero().squeeze(1)
    index = (torch.arange(steps, device=member.device)[:, None] * n_envs + columns).reshape(-1)
    return index, past.take(index, columns)
