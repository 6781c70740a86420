"""What every page takes for granted: rewards in the policy's units, and what an update reports."""

from __future__ import annotations

from torch import Tensor

from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import Rollout

Update = dict[str, float]  # metric -> number, e.g. {"policy_gradient_loss": -0.01}


def scaled_rewards(policy: ActorCritic, rollout: Rollout) -> Tensor:
    """Rewards ``[T, B]`` in the policy's dtype, divided by the running spread where normalised."""
    rewards = rollout.rewards
    if policy.reward_normalizer is not None:
        rewards = policy.reward_normalizer(rewards)
    return rewards.to(policy.dtype)
