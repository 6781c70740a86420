"""Scores: the same seed gives the same, nothing else does matter, and nothing else is touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy import stats

import upslope
from upslope.errors import ConfigError
from upslope.evaluation import Sample

SMALL = {"n_steps": 32, "batch_size": 32, "n_epochs": 2, "net_arch": (8,)}
VECS = ["sync", "async", "native"]


def ppo(env: Any = "CartPole-v1", **settings: Any) -> upslope.PPO:
    return upslope.PPO(env, **(SMALL | settings))


def reinforce(env: Any = "CartPole-v1", **settings: Any) -> upslope.REINFORCE:
    return upslope.REINFORCE(env, **({"batch_episodes": 3, "net_arch": (8,)} | settings))


def cartpole() -> gym.Env[Any, Any]:
    return gym.make("CartPole-v1")


def weights(agent: upslope.Agent) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in agent.policy.parameters()])


class TestSeeds:
    def test_the_same_seed_gives_the_same_score(self) -> None:
        agent = ppo(n_envs=2).learn(200)
        one, two, other = (agent.evaluate(20, seed=seed).to_json() for seed in (3, 3, 4))
        assert one == two
        assert one["sampled"] != other["sampled"]
        assert agent.evaluate(20).to_json() == agent.evaluate(20).to_json()

    @pytest.mark.parametrize("n_envs", [1, 3, 16])
    def test_independent_of_the_number_of_training_environments(self, n_envs: int) -> None:
        expected = ppo(n_envs=2, seed=4).evaluate(10, seed=9)
        score = ppo(n_envs=n_envs, seed=4).evaluate(10, seed=9)
        assert score.sampled.returns.tolist() == expected.sampled.returns.tolist()
        assert score.deterministic.returns.tolist() == expected.deterministic.returns.tolist()

    def test_episodes_are_numbered(self) -> None:
        """The first of many episodes are those of a shorter evaluation."""
        agent = ppo(n_envs=2)
        few, many = (agent.evaluate(n, seed=2).sampled.returns for n in (5, 30))
        assert many[:5].tolist() == few.tolist()

    @pytest.mark.parametrize("vec", VECS)
    @pytest.mark.parametrize("make", [ppo, reinforce])
    def test_training_goes_on_as_if_nothing_was(
        self, make: Callable[..., upslope.Agent], vec: str
    ) -> None:
        results = []
        for evaluates in (False, True):
            agent = make(n_envs=3, vec=vec, seed=1)
            agent.learn(200)
            before = weights(agent)
            if evaluates:
                agent.evaluate(5, seed=1)
                agent.predict(np.zeros(4))
                upslope.evaluate_policy(agent, n_eval_episodes=2)
                upslope.evaluate_policy(agent, cartpole, 2)
            assert torch.equal(weights(agent), before)
            agent.learn(200, reset_num_timesteps=False)
            results.append(weights(agent))
            agent.close()
        assert torch.equal(*results)

    def test_normalisers_are_frozen(self) -> None:
        agent = ppo(n_envs=2, norm_obs=True, norm_reward=True, warmup_steps=64).learn(128)
        before = {name: tensor.clone() for name, tensor in agent.policy.state_dict().items()}
        agent.evaluate(5)
        for name, tensor in agent.policy.state_dict().items():
            assert torch.equal(tensor, before[name]), name

    def test_returns_are_not_normalised(self) -> None:
        agent = ppo(n_envs=2, norm_obs=True, norm_reward=True, warmup_steps=64).learn(128)
        sample = agent.evaluate(5).sampled
        assert sample.returns.tolist() == sample.lengths.tolist()  # CartPole pays 1 a step

    def test_progress_counts_every_episode(self) -> None:
        told: list[int] = []
        ppo().evaluate(7, progress=told.append)
        assert sorted(told) == told
        assert told[-1] == 14


class TestSample:
    RETURNS = np.array([1.0, 2.0, 3.0, 4.0, 100.0, 5.0, 6.0, 7.0])

    def sample(self, **more: Any) -> Sample:
        return Sample(self.RETURNS, np.arange(8), **more)

    def test_numbers_by_hand(self) -> None:
        sample = self.sample(threshold=4.0)
        assert sample.mean == 16.0
        assert sample.std == pytest.approx(np.std(self.RETURNS, ddof=1))
        assert sample.iqm == pytest.approx((3 + 4 + 5 + 6) / 4)
        assert sample.min == 1.0
        assert sample.failure_share == 3 / 8
        half = stats.t.ppf(0.975, 7) * stats.sem(self.RETURNS)
        assert sample.ci95 == pytest.approx((16 - half, 16 + half))

    def test_what_nobody_knows_is_none(self) -> None:
        sample = self.sample()
        assert sample.failure_share is None
        assert sample.success_rate is None
        assert self.sample(success=np.array([1.0, 0.0, 1.0, 1.0])).success_rate == 0.75

    def test_one_episode_has_no_interval(self) -> None:
        sample = Sample(np.array([3.0]), np.array([3]))
        described = sample.to_json()
        assert (described["ci95"], described["std"], described["mean"]) == (None, 0.0, 3.0)
        json.dumps(described, allow_nan=False)

    def test_the_interval_holds_the_mean_in_95_of_100(self) -> None:
        rng = np.random.default_rng(0)
        inside = 0
        for _ in range(1000):
            low, high = Sample(rng.normal(5, 2, 10), np.ones(10, int)).ci95
            inside += low <= 5 <= high
        assert abs(inside / 1000 - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 1000)

    def test_json_has_the_keys_of_the_interface(self) -> None:
        described = ppo().evaluate(3, seed=8).to_json()
        assert described.keys() >= {"sampled", "deterministic"}
        for way in ("sampled", "deterministic"):
            assert described[way].keys() >= {
                *("mean", "ci95", "std", "iqm", "min", "failure_share", "success_rate", "episodes")
            }
            assert described[way]["episodes"] == 3
        json.dumps(described, allow_nan=False)


class TestEvaluatePolicy:
    def test_in_the_form_of_stable_baselines3(self) -> None:
        agent = ppo(n_envs=2)
        mean, std = upslope.evaluate_policy(agent, n_eval_episodes=6)
        returns, lengths = upslope.evaluate_policy(
            agent, n_eval_episodes=6, return_episode_rewards=True
        )
        assert mean == pytest.approx(np.mean(returns))
        assert std == pytest.approx(np.std(returns))
        assert lengths == returns

    def test_on_a_made_environment(self) -> None:
        agent = ppo(n_envs=2, seed=1)
        source = agent.source
        for deterministic in (True, False):
            mean, _ = upslope.evaluate_policy(agent, cartpole(), 3, deterministic=deterministic)
            assert mean > 0
        assert agent.source is source

    def test_on_a_made_environment_training_goes_on_as_if_nothing_was(self) -> None:
        results = []
        for evaluates in (False, True):
            agent = ppo(n_envs=2, seed=1).learn(200)
            if evaluates:
                upslope.evaluate_policy(agent, cartpole(), 2)
            results.append(weights(agent.learn(200, reset_num_timesteps=False)))
        assert torch.equal(*results)

    def test_of_a_loaded_agent_on_a_made_environment(self, tmp_path: Any) -> None:
        ppo(n_envs=2).save(tmp_path / "m.safetensors")
        loaded = upslope.load(tmp_path / "m.safetensors")
        mean, _ = upslope.evaluate_policy(loaded, cartpole(), 2)
        assert mean > 0
        assert loaded.learn(64).num_timesteps == 64

    def test_on_other_spaces(self) -> None:
        with pytest.raises(upslope.UpslopeError, match="observation space"):
            upslope.evaluate_policy(ppo(n_envs=2), "Acrobot-v1", 2)

    def test_n_episodes(self) -> None:
        with pytest.raises(ConfigError, match=r"n_episodes|n_eval_episodes"):
            upslope.evaluate_policy(ppo(n_envs=2), n_eval_episodes=0)
