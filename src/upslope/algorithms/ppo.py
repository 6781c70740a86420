"""PPO: the policy gradient with GAE weights, several epochs of it through a clipped surrogate.

Source: Schulman et al. 2017, "Proximal policy optimization algorithms". Several passes over one
rollout are a heuristic that the clip makes workable; nothing bounds the KL divergence.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from upslope.algorithms.common import Update, Weighed, rows_of, scaled_rewards
from upslope.config import PPOConfig, schedule_at
from upslope.envs.episodes import Environments
from upslope.optim import Batch, GradientStep, Hyper, Minibatches, PerStep
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import EvaluatedRollout, Rollout, check_fresh, collect
from upslope.theory.diagnostics import approx_kl, clip_fraction, explained_variance
from upslope.theory.objectives import (
    clipped_surrogate_loss,
    clipped_values,
    entropy_bonus,
    value_loss,
)
from upslope.theory.returns import gae, standardize


class Learner:
    """One optimiser over actor and critic, and the rollouts it wants."""

    def __init__(self, config: PPOConfig, policy: ActorCritic) -> None:
        self.config, self.policy = config, policy
        self.optimizers = {
            "all": GradientStep(policy, self.loss, max_grad_norm=config.max_grad_norm)
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
        """Weigh the rollout by GAE, then take ``n_epochs`` passes of clipped gradient steps."""
        config, policy = self.config, self.policy
        check_fresh(policy, rollout)
        over = config.normalize_advantage_over if config.normalize_advantage else None
        weighed = self._weighed(rollout, evaluated, over == "batch")
        batch = rows_of(
            rollout,
            evaluated,
            log_prob=evaluated.log_prob,
            weights=weighed.weights,
            targets=weighed.targets,
        )
        hyper = {
            "learning_rate": schedule_at(config.learning_rate, progress_remaining),
            "clip_range": schedule_at(config.clip_range, progress_remaining),
        }
        if config.clip_range_vf is not None:
            hyper["clip_range_vf"] = schedule_at(config.clip_range_vf, progress_remaining)
            batch["values"] = evaluated.values.reshape(-1)
        minibatches = Minibatches.shuffled(
            rng, rollout.valid.shape, config.batch_size, config.n_epochs, policy.has_memory
        )
        if over == "minibatch":
            weights, valid = minibatches.gather(batch["weights"], batch["valid"])
            batch["weights"] = PerStep(standardize(weights, valid, dim=-1))
        until = None if config.target_kl is None else self._kl_is_too_large
        metrics = self.optimizers["all"].run(batch, minibatches, hyper, until)
        explained = explained_variance(evaluated.values, weighed.targets, rollout.valid)
        return metrics | hyper | {"explained_variance": float(explained)}

    def weigh(self, rollout: Rollout, evaluated: EvaluatedRollout) -> Weighed:
        """GAE(lambda) with the V from before; weights are standardised over the whole rollout.

        Where each minibatch is standardised, the update does it anew from the advantages.
        """
        return self._weighed(rollout, evaluated, self.config.normalize_advantage)

    def _weighed(
        self, rollout: Rollout, evaluated: EvaluatedRollout, is_standardized: bool
    ) -> Weighed:
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
        weights = standardize(advantages, rollout.valid) if is_standardized else advantages
        return Weighed(advantages, weights, advantages + evaluated.values)

    def loss(
        self, policy: ActorCritic, batch: Batch, hyper: Hyper
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Clipped surrogate + vf_coef * value loss - ent_coef * entropy, of one minibatch."""
        config, valid = self.config, batch["valid"]
        new = policy.evaluate_actions(
            batch["inputs"], batch["actions"], batch["past"], batch["mask"]
        )
        surrogate = clipped_surrogate_loss(
            new.log_prob, batch["log_prob"], batch["weights"], valid, hyper["clip_range"]
        )
        values = new.value
        if "clip_range_vf" in hyper:
            values = clipped_values(values, batch["values"], hyper["clip_range_vf"])
        critic = value_loss(values, batch["targets"], valid)
        entropy = entropy_bonus(new.entropy, valid)
        with torch.no_grad():
            log_ratio = new.log_prob - batch["log_prob"]
            metrics = {
                "policy_gradient_loss": surrogate,
                "value_loss": critic,
                "entropy_loss": -entropy,
                "approx_kl": approx_kl(log_ratio, valid),
                "clip_fraction": clip_fraction(log_ratio, hyper["clip_range"], valid),
            }
        return surrogate + config.vf_coef * critic - config.ent_coef * entropy, metrics

    def _kl_is_too_large(self, metrics: dict[str, Tensor]) -> bool:
        assert self.config.target_kl is not None
        return float(metrics["approx_kl"]) > 1.5 * self.config.target_kl
