"""Truncation matters: a critic that takes a time limit for an end learns another value."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import upslope
from upslope.theory.returns import gae

GAMMA, LIMIT = 0.9, 8


class Forever(gym.Env[Any, Any]):
    """Reward 1 in every step, for ever; only a time limit cuts. V = 1 / (1 - gamma) everywhere."""

    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        return self.observe(), 1.0, False, False, {}

    def observe(self) -> Any:
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)


def values(algorithm: Any, **settings: Any) -> torch.Tensor:
    agent = algorithm(
        lambda: gym.wrappers.TimeLimit(Forever(), LIMIT),
        n_envs=8, n_steps=16, gamma=GAMMA, seed=0, **settings,
    )  # fmt: skip
    agent.learn(20_000)
    states = np.random.default_rng(0).uniform(-1, 1, (200, 3)).astype(np.float32)
    return agent.policy.value(states).detach()


CRITICS = {
    "ppo": (upslope.PPO, {"batch_size": 64, "n_epochs": 8, "learning_rate": "lin_3e-3"}),
    "vpg": (upslope.VPG, {"critic_learning_rate": "lin_3e-3"}),
    "a2c": (upslope.A2C, {"learning_rate": "lin_1e-2"}),
}


@pytest.mark.parametrize("name", CRITICS)
def test_the_critic_is_within_one_percent_of_the_value(name: str) -> None:
    algorithm, settings = CRITICS[name]
    true = 1 / (1 - GAMMA)
    assert (values(algorithm, **settings) / true - 1).abs().max() < 0.01


def test_with_time_limits_taken_for_ends_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(r: Any, v: Any, n: Any, terminated: Any, boundary: Any, g: Any, lam: Any) -> Any:
        return gae(r, v, n, boundary, boundary, g, lam)

    monkeypatch.setattr("upslope.algorithms.ppo.gae", faulty)
    algorithm, settings = CRITICS["ppo"]
    assert (values(algorithm, **settings) * (1 - GAMMA) - 1).abs().min() > 0.2
