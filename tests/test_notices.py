"""What is said once while a run goes on, and that scales of reward do no harm."""

from __future__ import annotations

import logging
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import upslope


class Scaled(gym.RewardWrapper):  # type: ignore[type-arg]
    def __init__(self, scale: float, limit: int = 500) -> None:
        super().__init__(gym.make("CartPole-v1", max_episode_steps=limit))
        self.scale = scale

    def reward(self, reward: Any) -> float:
        return float(reward) * self.scale


def said(caplog: Any, env: Any, steps: int = 3000, **settings: Any) -> list[str]:
    with caplog.at_level(logging.WARNING, "upslope"):
        agent = upslope.PPO(env, n_envs=4, n_steps=64, batch_size=64, n_epochs=2, **settings)
        agent.learn(steps)
    assert all(torch.isfinite(p).all() for p in agent.policy.parameters())
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("scale", [1e9, 1e-9])
def test_a_scale_of_reward_is_said_once_with_its_flag(caplog: Any, scale: float) -> None:
    messages = said(caplog, lambda: Scaled(scale))
    assert len(messages) == 1
    assert f"{scale:.1e}"[:4] in messages[0]
    assert "--norm-reward" in messages[0]


@pytest.mark.parametrize("scale", [1e9, 1e-9])
def test_normalised_it_learns_and_nothing_is_said(caplog: Any, scale: float) -> None:
    """Five pushes more than chance after a few thousand steps, whatever the scale."""
    lengths: list[float] = []

    def watch(event: Any) -> None:
        lengths.append(event.metrics.get("rollout/ep_len_mean", 0.0))

    agent = upslope.PPO(
        lambda: Scaled(scale), n_envs=8, n_steps=64, batch_size=128, norm_reward=True, seed=1,
        learning_rate=1e-3,
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, "upslope"):
        agent.learn(12_000, callback=watch)
    assert lengths[-1] > 40
    assert caplog.records == []


def test_rewards_that_are_all_zero_are_said(caplog: Any) -> None:
    messages = said(caplog, lambda: Scaled(0.0))
    assert len(messages) == 1
    assert "every reward so far is 0" in messages[0]


def test_episodes_of_one_step_train_and_are_said(caplog: Any) -> None:
    messages = said(caplog, lambda: Scaled(1.0, limit=1), steps=600)
    assert len(messages) == 1
    assert "100% of the last" in messages[0]
    assert "ended on their first step" in messages[0]


def test_a_sound_run_says_nothing(caplog: Any) -> None:
    assert said(caplog, "CartPole-v1") == []


@pytest.mark.parametrize("scale", [1e9, 1e-9])
def test_the_policy_gradient_is_free_of_the_scale_of_normalised_rewards(scale: float) -> None:
    def moved(factor: float) -> Any:
        agent = upslope.A2C(
            lambda: Scaled(factor), n_envs=4, n_steps=32, norm_reward=True, seed=2, dtype="float64",
            normalize_advantage=True,
        )  # fmt: skip
        agent.learn(300)
        return torch.nn.utils.parameters_to_vector(agent.policy.actor.parameters()).detach()

    one, other = moved(1.0), moved(scale)
    assert float((one - other).norm() / one.norm()) < 1e-5


def test_advantages_without_spread_weigh_nothing() -> None:
    from upslope.theory.returns import standardize

    flat = torch.full((5, 3), 7.0, dtype=torch.float64)
    assert torch.equal(standardize(flat, torch.ones(5, 3)), torch.zeros(5, 3, dtype=torch.float64))


class TestExtremes:
    """FAILURES: collapsed spreads, impossible actions and overflowing ratios stay finite."""

    def test_ratios_that_overflow(self) -> None:
        from upslope.theory.diagnostics import approx_kl
        from upslope.theory.objectives import clipped_surrogate_loss

        old = torch.zeros(4, dtype=torch.float64)
        new = torch.tensor([1e4, -1e4, 50.0, -50.0], dtype=torch.float64, requires_grad=True)
        ones = torch.ones(4, dtype=torch.float64)
        loss = clipped_surrogate_loss(new, old, ones, ones, 0.2)
        assert loss.isfinite()
        assert torch.autograd.grad(loss, new)[0].isfinite().all()
        assert approx_kl((new - old).detach(), ones).isfinite()

    @pytest.mark.parametrize("log_std", [-1e3, 1e3])
    def test_a_spread_that_ran_away_is_bounded(self, log_std: float) -> None:
        agent = upslope.PPO("Pendulum-v1", n_envs=2, n_steps=32, batch_size=32)
        with torch.no_grad():
            agent.policy.actions.log_std.fill_(log_std)
        agent.learn(64)
        std = agent.policy.actions.std()
        assert np.isfinite(std).all()
        assert np.exp(-10) * 0.999 <= std.min() <= std.max() <= np.exp(2) * 1.001
