"""Layer R, the ratio: every update learns from data of the very policy that it moves.

A rollout carries the version of policy and normaliser, and its log-probabilities must be those of
the update but for rounding. Each is tested with the other switched off; an alarm of either is a
:class:`~upslope.errors.StaleRolloutError`.
"""

from __future__ import annotations

from unittest.mock import patch

from ledger import make_ledgers

import upslope.rollout
import upslope.training
from upslope.algorithms import make_learner
from upslope.config import CONFIGS
from upslope.policies.actor_critic import ActorCritic

SETTINGS = {"n_steps": 16, "norm_obs": True, "learning_rate": 0.01, "n_critic_updates": 1}


def check_version() -> None:
    """The stamp alone: log-probabilities are not compared."""
    with patch.object(upslope.rollout, "_check_ratio", lambda *given: None):
        train()


def check_ratio() -> None:
    """The ratio alone: every policy says that it is version 0."""
    with patch.object(ActorCritic, "version", property(lambda self: 0)):
        train()


def train(iterations: int = 4) -> None:
    """Some iterations of training, with a normaliser, in environments of their own."""
    envs = make_ledgers("plain", n_envs=4)
    config = CONFIGS["vpg"].from_settings(SETTINGS).resolve(envs.n_envs)
    policy = ActorCritic(envs.observation_space, envs.action_space, net_arch=(8,), norm_obs=True)
    learner = make_learner(config, policy)
    training = upslope.training.Training(config, policy, learner, envs)
    training.run(10**6, lambda event: event.iteration < iterations)
    assert training.iteration == iterations


CHECKS = {"version": check_version, "ratio": check_ratio}
