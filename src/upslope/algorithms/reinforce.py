"""REINFORCE: the policy gradient from N whole episodes, one gradient step, new episodes.

g = (1/N) sum_i sum_t grad log pi(a_t|s_t) Psi_t, with Psi_t the return of the whole episode or the
reward-to-go, minus a baseline. Source: Williams 1992, "Simple statistical gradient-following
algorithms for connectionist reinforcement learning".
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from upslope.algorithms.common import Update, Weighed, rows_of, scaled_rewards
from upslope.config import ReinforceConfig, schedule_at
from upslope.envs.episodes import Environments
from upslope.errors import ConfigError
from upslope.optim import Batch, GradientStep, Hyper, Minibatches
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import EvaluatedRollout, Rollout, check_fresh, collect
from upslope.theory.diagnostics import explained_variance
from upslope.theory.objectives import entropy_bonus, policy_gradient_loss, value_loss
from upslope.theory.returns import batch_baseline, episode_return, reward_to_go, standardize


class Learner:
    """One optimiser over the actor, one over the critic where a value is the baseline."""

    def __init__(self, config: ReinforceConfig, policy: ActorCritic) -> None:
        if config.baseline == "value" and policy.shared_network:
            raise ConfigError("baseline=value regresses the critic alone: leave shared_network off")
        self.config, self.policy = config, policy
        part = "all" if policy.shared_network else "actor"
        clip = config.max_grad_norm
        self.optimizers = {"actor": GradientStep(policy, self.loss, part=part, max_grad_norm=clip)}
        if config.baseline == "value":
            self.optimizers["critic"] = GradientStep(policy, self.critic_loss, part="critic")

    def collect(self, envs: Environments) -> Rollout:
        """N numbered episodes, each run to its end: a step count would favour some lengths."""
        return collect(envs, self.policy, n_episodes=self.config.batch_episodes)

    def update(
        self,
        rollout: Rollout,
        evaluated: EvaluatedRollout,
        progress_remaining: float,
        rng: np.random.Generator,
    ) -> Update:
        """One gradient step; a value baseline is fitted only after it has served (EGLP lemma)."""
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
        hyper = {
            "learning_rate": schedule_at(config.learning_rate, progress_remaining),
            "episodes": float(len(rollout.episodes)),
        }
        metrics = self.optimizers["actor"].run(batch, Minibatches.whole(shape), hyper)
        metrics["learning_rate"] = hyper["learning_rate"]
        if "critic" in self.optimizers:
            rate = schedule_at(config.critic_learning_rate, progress_remaining)
            steps = Minibatches.whole(shape, config.n_critic_updates)
            fitted = self.optimizers["critic"].run(batch, steps, {"learning_rate": rate})
            metrics["value_loss"] = fitted["value_loss"]
            explained = explained_variance(evaluated.values, weighed.targets, rollout.valid)
            metrics["explained_variance"] = float(explained)
        return metrics

    def weigh(self, rollout: Rollout, evaluated: EvaluatedRollout) -> Weighed:
        """Return of the episode or reward-to-go, minus the baseline; V regresses on the latter."""
        config = self.config
        rewards = scaled_rewards(self.policy, rollout)
        returns = episode_return if config.returns == "episode" else reward_to_go
        weights = returns(rewards, rollout.boundary, config.gamma)
        advantages = weights - self._baseline(weights, rollout, evaluated)
        weights = advantages
        if config.normalize_advantage:
            weights = standardize(advantages, rollout.valid)
        return Weighed(advantages, weights, reward_to_go(rewards, rollout.boundary, config.gamma))

    def _baseline(self, weights: Tensor, rollout: Rollout, evaluated: EvaluatedRollout) -> Tensor:
        """b of every row ``[T, B]``: 0, V, or the mean over the batch's (other) episodes.

        With reward-to-go the mean is taken per time step, an episode that has ended counting 0;
        with the return of the whole episode it is the mean return.
        """
        kind = self.config.baseline
        if kind == "none":
            return torch.zeros_like(weights)
        if kind == "value":
            return evaluated.values
        return batch_baseline(
            weights,
            rollout.episode,
            rollout.episode_step,
            rollout.valid,
            leave_out=kind == "loo",
            per_step=self.config.returns == "to-go",
        )

    def loss(
        self, policy: ActorCritic, batch: Batch, hyper: Hyper
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The pseudo-loss over N episodes: divided by N, never by steps."""
        valid, episodes = batch["valid"], hyper["episodes"]
        new = policy.evaluate_actions(
            batch["inputs"], batch["actions"], batch["past"], batch["mask"]
        )
        pseudo = policy_gradient_loss(new.log_prob, batch["weights"], valid, episodes)
        entropy = entropy_bonus(new.entropy, valid)
        metrics = {"policy_gradient_loss": pseudo, "entropy_loss": -entropy}
        return pseudo - self.config.ent_coef * entropy, metrics

    def critic_loss(
        self, policy: ActorCritic, batch: Batch, hyper: Hyper
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of V against the reward-to-go."""
        loss = value_loss(
            policy.values(batch["inputs"], batch["past"]), batch["targets"], batch["valid"]
        )
        return loss, {"value_loss": loss}
