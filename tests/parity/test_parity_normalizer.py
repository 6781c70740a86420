"""Running statistics against Stable-Baselines3's `VecNormalize` on one stream.

It starts as if 1e-4 rows of mean 0 and variance 1 had been seen, ours from nothing: given the same
count to start with, both are the same statistics, although it takes in a row of environments at a
time and we a rollout at a time.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecNormalize

from upslope.policies.normalizer import ObservationNormalizer, RewardNormalizer, RunningMoments

pytestmark = pytest.mark.parity

GAMMA, CLIP = 0.9, 1.5
T, B = 96, 3


class Doubled(VecEnvWrapper):
    """Float64 observations: the peer averages a row in the dtype it comes in."""

    def reset(self) -> Any:
        return self.venv.reset().astype(np.float64)

    def step_wait(self) -> Any:
        obs, *rest = self.venv.step_wait()
        return obs.astype(np.float64), *rest


def play(task: str, limit: int) -> tuple[VecNormalize, Any, Any, Any]:
    """Play at random; the peer's normaliser, and the stream it saw: obs, rewards, ends."""
    envs = DummyVecEnv([lambda: gym.make(task, max_episode_steps=limit)] * B)
    envs.seed(11)
    peer = VecNormalize(Doubled(envs), clip_obs=CLIP, clip_reward=CLIP, gamma=GAMMA)
    peer.reset()
    space = gym.vector.utils.batch_space(envs.action_space, B)
    space.seed(12)
    obs, rewards, done = [peer.get_original_obs()], [], []
    for _ in range(T):
        _, _, ends, _ = peer.step(space.sample())
        obs.append(peer.get_original_obs())
        rewards.append(peer.get_original_reward())
        done.append(ends)
    return peer, np.stack(obs), np.stack(rewards), np.stack(done)


def assert_same_statistics(ours: RunningMoments, theirs: RunningMeanStd) -> None:
    scale = 1 + np.abs(theirs.mean).max() + np.max(theirs.var)
    for mine, other in [(ours.mean, theirs.mean), (ours.var, theirs.var)]:
        assert np.abs(mine.numpy() - other).max() < 1e-13 * scale
    assert float(ours.count) == pytest.approx(theirs.count, rel=1e-12)


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("chunk", [1, 32])
def test_observations(task: str, chunk: int) -> None:
    peer, obs, _, _ = play(task, 25)
    ours = ObservationNormalizer(obs.shape[2:], CLIP)
    ours.moments.count.fill_(1e-4)
    for start in range(0, T + 1, chunk):
        ours.update(torch.from_numpy(obs[start : start + chunk]).flatten(0, 1))
    assert_same_statistics(ours.moments, peer.obs_rms)
    mine, theirs = ours(torch.from_numpy(obs)), peer._normalize_obs(obs, peer.obs_rms)
    assert 0.02 < (np.abs(theirs) == CLIP).mean() < 0.98
    assert np.abs(mine.numpy() - theirs).max() < 1e-12
    assert np.abs(mine.float().numpy() - peer.normalize_obs(obs)).max() < 1e-6


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("chunk", [1, 32])
def test_rewards(task: str, chunk: int) -> None:
    peer, _, rewards, done = play(task, 25)
    assert done.any()
    ours = RewardNormalizer(GAMMA, CLIP)
    ours.moments.count.fill_(1e-4)
    for start in range(0, T, chunk):
        part = slice(start, start + chunk)
        stream = torch.from_numpy(rewards[part]).double(), torch.from_numpy(done[part])
        ours.update(*stream, torch.ones(stream[1].shape, dtype=torch.bool))
    assert_same_statistics(ours.moments, peer.ret_rms)
    some = np.linspace(-10.0, 10.0, 51)
    mine, theirs = ours(torch.from_numpy(some)).numpy(), peer.normalize_reward(some)
    assert np.abs(mine - theirs).max() < 1e-6  # the peer casts to float32


@pytest.mark.parametrize("sizes", [(1, 1, 1), (5,), (2, 0, 40, 1), (7, 300, 3)])
def test_moments_from_nothing(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(13)
    ours, theirs = RunningMoments((4,)), RunningMeanStd(epsilon=0.0, shape=(4,))
    for size in sizes:
        rows = rng.normal([0.0, 5.0, -100.0, 1e-3], [1.0, 0.1, 30.0, 1e-4], (size, 4))
        ours.update(torch.from_numpy(rows))
        if size:
            theirs.update(rows)
    assert_same_statistics(ours, theirs)
