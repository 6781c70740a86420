"""VPG: the policy gradient with GAE weights from a learned V, one gradient step per rollout.

After REINFORCE the one new idea is the critic: V is regressed on its own steps, and the weight is
the advantage by GAE(lambda) instead of a return. Source: Schulman et al. 2016, "High-dimensional
continuous control using generalized advantage estimation".
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from upslope.algorithms.common import Update, Weighed, rows_of, scaled_rewards
from upslope.config import VPGConfig, schedule_at
from upslope.envs.episodes import Environments
from upslope.optim import Batch, GradientStep, Hyper, Minibatches
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import EvaluatedRollout, Rollout, check_fresh, collect
from upslope.theory.diagnostics import explained_variance
from upslope.theory.objectives import entropy_bonus, policy_gradient_loss, value_loss
from upslope.theory.returns import gae, standardize


class Learner:
    """One optimiser over the actor, one over the critic."""

    def __init__(self, config: VPGConfig, policy: ActorCritic) -> None:
        self.config, self.policy = config, policy
        clip = config.max_grad_norm
        self.optimizers = {
            "actor": GradientStep(policy, self.loss, part="actor", max_grad_norm=clip),
            "critic": GradientStep(policy, self.critic_loss, part="critic", max_grad_norm=clip),
        }

    def collect(self, envs: Environments) -> Rollout:
        """T x B rows, continuing the running episodes."""
        return collect(envs, self.policy, n_steps=self.config.n_steps)

    def update(
        self,
        rollout: Rollout,
        evaluated: EvaluatedRollout,
        progress_remaining: float,
        rng: np.random.Generator,
    ) -> Update:
        """One step along the gradient; then V is fitted, after it has served (EGLP lemma)."""
        config, policy = self.config, self.policy
        check_fresh(policy, rollout)
        weighed = self.weigh(rollout, evaluated)
        batch = rows_of(
            rollout,
            evaluated,
            weights=weighed.weights,
            targets=weighed.targets,
        )
        shape = rollout.valid.shape
        hyper = {"learning_rate": schedule_at(config.learning_rate, progress_remaining)}
        metrics = self.optimizers["actor"].run(batch, Minibatches.whole(shape), hyper)
        rate = schedule_at(config.critic_learning_rate, progress_remaining)
        minibatches = Minibatches.shuffled(
            rng, shape, config.batch_size, config.n_critic_updates, policy.has_memory
        )
        fitted = self.optimizers["critic"].run(batch, minibatches, {"learning_rate": rate})
        explained = explained_variance(evaluated.values, weighed.targets, rollout.valid)
        critic = {"value_loss": fitted["value_loss"], "explained_variance": float(explained)}
        return metrics | hyper | critic

    def weigh(self, rollout: Rollout, evaluated: EvaluatedRollout) -> Weighed:
        """GAE(lambda) with the V from before, standardised where asked; targets are GAE + V."""
        config = self.config
        advantages = gae(
            scaled_rewards(self.policy, rollout),
            evaluated.values,
            evaluated.next_values,
            rollout.terminated,
            rollout.boundary,
            config.gamma,
            config.gae_lambda,
        )
        weights = advantages
        if config.normalize_advantage:
            weights = standardize(advantages, rollout.valid)
        return Weighed(advantages, weights, advantages + evaluated.values)

    def loss(
        self, policy: ActorCritic, batch: Batch, hyper: Hyper
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The pseudo-loss over the valid rows, minus ent_coef * entropy."""
        valid = batch["valid"]
        new = policy.distribution_of(batch["inputs"], batch["past"], batch["mask"])
        log_prob = new.log_prob(batch["actions"])
        pseudo = policy_gradient_loss(log_prob, batch["weights"], valid, valid.sum())
        entropy = entropy_bonus(new.entropy(), valid)
        metrics = {"policy_gradient_loss": pseudo, "entropy_loss": -entropy}
        return pseudo - self.config.ent_coef * entropy, metrics

    def critic_loss(
        self, policy: ActorCritic, batch: Batch, hyper: Hyper
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of V against GAE + V of the collecting critic."""
        loss = value_loss(
            policy.values(batch["inputs"], batch["past"]), batch["targets"], batch["valid"]
        )
        return loss, {"value_loss": loss}
