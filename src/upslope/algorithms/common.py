"""What every page takes for granted: rewards in the policy's units, rows for its losses."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from upslope.optim import Batch
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import EvaluatedRollout, Rollout
from upslope.trees import flatten_time

Update = dict[str, float]  # metric -> number, e.g. {"policy_gradient_loss": -0.01}


class Weighed(NamedTuple):
    """What a page makes of a rollout's rewards, all ``[T, B]``."""

    advantages: Tensor  # GAE, or a return minus its baseline, in units of (normalised) reward
    weights: Tensor  # Psi: the advantages, standardised where the page standardises them
    targets: Tensor  # what a critic is fitted to, in units of (normalised) reward


def scaled_rewards(policy: ActorCritic, rollout: Rollout) -> Tensor:
    """Rewards ``[T, B]`` in the policy's dtype, divided by the running spread where normalised."""
    rewards = rollout.rewards
    if policy.reward_normalizer is not None:
        rewards = policy.reward_normalizer(rewards)
    return rewards.to(policy.dtype)


def rows_of(rollout: Rollout, evaluated: EvaluatedRollout, **columns: Tensor) -> Batch:
    """Return what a loss reads, one row per step of an environment: ``[T * B, ...]``, time-major.

    ``inputs``, ``actions`` and ``valid`` (1 where a row is a transition, in the policy's dtype);
    ``mask``, where choices were masked, and ``past``, where the policy has memory, else None; and
    the page's own ``columns [T, B]``.
    """
    return {
        "inputs": flatten_time(evaluated.inputs),
        "actions": flatten_time(rollout.actions),
        "mask": None if rollout.mask is None else rollout.mask.flatten(0, 1),
        "past": rollout.past,
        "valid": rollout.valid.reshape(-1).to(evaluated.values.dtype),
        **{name: column.reshape(-1) for name, column in columns.items()},
    }
