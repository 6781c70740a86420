"""A2C: the policy gradient with GAE weights, actor and critic in one step per short segment.

After VPG the one new idea is the joint loss: many environments give a few steps each, and a single
gradient step moves actor and critic together. Source: Mnih et al. 2016, "Asynchronous methods for
deep reinforcement learning", in the synchronous form. With segments of 5 steps even lambda = 1
bootstraps at the cut: it is no Monte-Carlo return.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from upslope.algorithms.common import Update, Weighed, rows_of, scaled_rewards
from upslope.config import A2CConfig, schedule_at
from upslope.envs.episodes import Environments
from upslope.optim import Batch, GradientStep, Hyper, Minibatches
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import EvaluatedRollout, Rollout, check_fresh, collect
from upslope.theory.diagnostics import explained_variance
from upslope.theory.objectives import entropy_bonus, policy_gradient_loss, value_loss
from upslope.theory.returns import gae, standardize


class Learner:
    """One optimiser over actor and critic: RMSprop, or Adam."""

    def __init__(self, config: A2CConfig, policy: ActorCritic) -> None:
        self.config, self.policy = config, policy
        self.optimizers = {
            "all": GradientStep(
                policy,
                self.loss,
                rule="rmsprop" if config.use_rms_prop else "adam",
                max_grad_norm=config.max_grad_norm,
                eps=config.rms_prop_eps if config.use_rms_prop else 1e-5,
            )
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
        """Weigh the segment by GAE, then take one step over all its rows."""
        config, policy = self.config, self.policy
        check_fresh(policy, rollout)
        weighed = self.weigh(rollout, evaluated)
        batch = rows_of(
            rollout,
            evaluated,
            weights=weighed.weights,
            targets=weighed.targets,
        )
        hyper = {"learning_rate": schedule_at(config.learning_rate, progress_remaining)}
        whole = Minibatches.whole(rollout.valid.shape)
        metrics = self.optimizers["all"].run(batch, whole, hyper)
        explained = explained_variance(evaluated.values, weighed.targets, rollout.valid)
        return metrics | hyper | {"explained_variance": float(explained)}

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
        """Pseudo-loss + vf_coef * value loss - ent_coef * entropy."""
        config, valid = self.config, batch["valid"]
        new = policy.evaluate_actions(
            batch["inputs"], batch["actions"], batch["past"], batch["mask"]
        )
        pseudo = policy_gradient_loss(new.log_prob, batch["weights"], valid, valid.sum())
        critic = value_loss(new.value, batch["targets"], valid)
        entropy = entropy_bonus(new.entropy, valid)
        metrics = {
            "policy_gradient_loss": pseudo,
            "value_loss": critic,
            "entropy_loss": -entropy,
        }
        return pseudo + config.vf_coef * critic - config.ent_coef * entropy, metrics
