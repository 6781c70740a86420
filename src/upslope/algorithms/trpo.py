"""TRPO: the natural direction, searched for a step that improves inside the trust region.

After NPG the one new idea is the line search's second demand: a step must raise the surrogate as
well as keep the KL divergence; where none does, the policy stays exactly where it is. Source:
Schulman et al. 2015, "Trust region policy optimization". The bound that motivates it needs far
smaller steps than target_kl allows, so nothing guarantees that the return rises.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from upslope.algorithms.common import Update, Weighed, rows_of, scaled_rewards
from upslope.config import TRPOConfig, schedule_at
from upslope.envs.episodes import Environments
from upslope.optim import ActorFunctions, Batch, GradientStep, Hyper, Minibatches
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import EvaluatedRollout, Rollout, check_fresh, collect
from upslope.theory.diagnostics import explained_variance
from upslope.theory.objectives import entropy_bonus, value_loss
from upslope.theory.returns import gae, standardize
from upslope.theory.trust_region import (
    conjugate_gradient,
    fisher_matvec,
    line_search,
    mean_kl,
    step_size,
    surrogate,
)


class Learner:
    """A trust-region step for the actor, one optimiser over the critic."""

    def __init__(self, config: TRPOConfig, policy: ActorCritic) -> None:
        self.config, self.policy = config, policy
        clip = config.max_grad_norm
        self.optimizers = {
            "critic": GradientStep(policy, self.critic_loss, part="critic", max_grad_norm=clip)
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
        """One trust-region step; then V is fitted, after it has served (EGLP lemma)."""
        config, policy = self.config, self.policy
        check_fresh(policy, rollout)
        weighed = self.weigh(rollout, evaluated)
        batch = rows_of(
            rollout,
            evaluated,
            log_prob=evaluated.log_prob,
            weights=weighed.weights,
            targets=weighed.targets,
        )
        metrics = self._move_actor(batch)
        hyper = {"learning_rate": schedule_at(config.learning_rate, progress_remaining)}
        minibatches = Minibatches.shuffled(
            rng, rollout.valid.shape, config.batch_size, config.n_critic_updates, policy.has_memory
        )
        fitted = self.optimizers["critic"].run(batch, minibatches, hyper)
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

    def _move_actor(self, batch: Batch) -> Update:
        """Direction by conjugate gradient, length by the quadratic model, then the line search."""
        config = self.config
        with torch.no_grad():
            old = self.policy.distribution_of(batch["inputs"], batch["past"], batch["mask"])
        actor = ActorFunctions(self.policy, self.objective, {**batch, "old": old})
        gradient = actor.gradient()
        fisher = fisher_matvec(actor.kl, actor.theta, config.cg_damping)
        direction = conjugate_gradient(fisher, gradient, config.cg_max_steps)
        full_step = step_size(direction, fisher(direction), config.target_kl) * direction
        found = line_search(
            actor.evaluate,
            actor.theta,
            full_step,
            config.target_kl,
            shrink=config.line_search_shrinking_factor,
            max_iter=config.line_search_max_iter,
        )
        if found.accepted:
            actor.move_to(found.theta)
        return {
            "policy_gradient_loss": -found.surrogate,
            "entropy_loss": -float(entropy_bonus(old.entropy(), batch["valid"])),
            "approx_kl": found.kl,
            "is_line_search_success": float(found.accepted),
            "line_search_scale": found.scale,
            "grad_norm": float(gradient.norm()),
        }

    def objective(self, policy: ActorCritic, batch: Batch) -> tuple[Tensor, Tensor]:
        """Surrogate + ent_coef * entropy, and the mean KL from the policy that collected."""
        valid = batch["valid"]
        new = policy.distribution_of(batch["inputs"], batch["past"], batch["mask"])
        log_prob = new.log_prob(batch["actions"])
        gain = surrogate(log_prob, batch["log_prob"], batch["weights"], valid)
        entropy = entropy_bonus(new.entropy(), valid)
        return gain + self.config.ent_coef * entropy, mean_kl(batch["old"], new, valid)

    def critic_loss(
        self, policy: ActorCritic, batch: Batch, hyper: Hyper
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of V against GAE + V of the collecting critic."""
        loss = value_loss(
            policy.values(batch["inputs"], batch["past"]), batch["targets"], batch["valid"]
        )
        return loss, {"value_loss": loss}
