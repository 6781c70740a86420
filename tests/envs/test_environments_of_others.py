"""Environments that no one here wrote: each trains, is saved, loaded and scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import upslope
from upslope.envs.find import find_environment
from upslope.envs.make import make_environments
from upslope.errors import ConfigError, UnsupportedSpaceError
from upslope.rollout import collect, evaluate_rollout
from upslope.trees import leaves

SMALL = {"n_envs": 2, "n_steps": 16, "batch_size": 16, "n_epochs": 1}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "Taxi, masked": ("Taxi-v4", {}),
    "FrozenLake, a choice is seen": ("FrozenLake-v1", {}),
    "Blackjack, a tuple is seen": ("Blackjack-v1", {}),
    "MiniGrid, a dict with a picture": ("MiniGrid-Empty-5x5-v0", {"ignore_obs": ["mission"]}),
    "MiniGrid remembered": (
        "MiniGrid-Empty-5x5-v0",
        {"ignore_obs": ["mission"], "memory": "gru", "norm_obs": True},
    ),
    "dm_control": ("dm_control/cartpole-balance-v0", {"action_dist": "squashed"}),
    "lander": ("LunarLander-v3", {}),
    "lander, continuous": ("LunarLander-v3", {"env_kwargs": {"continuous": True}}),
    "lander, Beta": ("LunarLander-v3", {"env_kwargs": {"continuous": True}, "action_dist": "beta"}),
    "Pendulum, four frames": ("Pendulum-v1", {"frame_stack": 4}),
}


@pytest.mark.parametrize("name", KINDS)
def test_it_trains_and_survives_a_file(name: str, tmp_path: Path) -> None:
    env, settings = KINDS[name]
    agent = upslope.PPO(env, **SMALL, **settings).learn(64)
    path = tmp_path / "model.safetensors"
    agent.save(path)
    loaded = upslope.load(path)
    scores = [
        one.evaluate_one_way(2, seed=3, deterministic=True).returns.tolist()
        for one in (agent, loaded)
    ]
    np.testing.assert_allclose(*scores, rtol=1e-5)


@pytest.mark.parametrize("vec", ["sync", "envpool"])
def test_an_atari_game_through_both_engines(vec: str) -> None:
    if vec == "envpool":
        pytest.importorskip("envpool")
    agent = upslope.PPO("ALE/Pong-v5", **SMALL, vec=vec, shared_network=True, net_arch=())
    assert agent.policy.observation_space == gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    agent.learn(64)
    action, _ = agent.predict(np.zeros((4, 84, 84), np.uint8))
    assert action in gym.spaces.Discrete(6)
    assert agent.config.frame_stack == 4
    agent.close()


def test_frames_are_those_of_gymnasiums_own_wrappers() -> None:
    source = find_environment("ALE/Pong-v5").prepared(None, True)
    ours = source.plain_env({}, None)
    theirs = gym.wrappers.FrameStackObservation(
        gym.wrappers.AtariPreprocessing(gym.make("ALE/Pong-v5", frameskip=1)), 4
    )
    seen = [env.reset(seed=3)[0] for env in (ours, theirs)]
    assert np.array_equal(*seen)
    for t in range(30):
        rows = [env.step(t % 6)[:4] for env in (ours, theirs)]
        assert np.array_equal(rows[0][0], rows[1][0])
        assert rows[0][1:] == rows[1][1:]


def test_vectors_made_by_hand_are_preprocessed_too() -> None:
    envs = upslope.make_vec_env("ALE/Pong-v5", 1)
    assert envs.observation_space.shape == (4, 84, 84)
    envs.close()


def test_without_preprocessing_the_screen_is_seen() -> None:
    source = find_environment("ALE/Pong-v5").prepared(None, False)
    assert source.plain_env({}, None).observation_space.shape == (210, 160, 3)


def test_a_part_that_no_network_reads_is_named_with_the_flag() -> None:
    with pytest.raises(UnsupportedSpaceError, match="leave it out with --ignore-obs mission"):
        upslope.PPO("MiniGrid-Empty-5x5-v0")


@pytest.mark.parametrize("vec", ["native", "envpool"])
def test_frames_are_stacked_by_single_environments(vec: str) -> None:
    with pytest.raises(ConfigError, match="--vec sync"):
        upslope.PPO("CartPole-v1", vec=vec, frame_stack=2, n_envs=8)
    with pytest.raises(ConfigError, match="VectorEnv"):
        upslope.PPO(gym.make_vec("CartPole-v1", 2), frame_stack=2)


class Frames(gym.Env[Any, Any]):
    """Atari's observations without its emulator: random bytes."""

    observation_space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    action_space = gym.spaces.Discrete(6)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return self.observe(), 0.0, False, self.t == 50, {}

    def observe(self) -> Any:
        return self.np_random.integers(0, 256, (4, 84, 84), np.uint8)


@pytest.mark.parametrize("make", [Frames, "ALE/Pong-v5"], ids=["bytes", "pong"])
def test_a_rollout_of_frames_takes_little_more_than_their_bytes(make: Any) -> None:
    """128 x 8 frames: at most 1.2 times 128 x 8 x 4 x 84 x 84, what the update reads included."""
    steps, n_envs = 128, 8
    source = find_environment(make).prepared(None, True)
    envs = make_environments(source, n_envs=n_envs, seed=0, vec="sync")
    policy = upslope.ActorCritic(
        envs.observation_space, envs.action_space, net_arch=(), shared_network=True
    )
    rollout = collect(envs, policy, n_steps=steps)
    evaluated = evaluate_rollout(policy, rollout)
    tensors = [x for x in vars(rollout).values() if isinstance(x, torch.Tensor)]
    tensors += [*leaves(evaluated.inputs), evaluated.values, evaluated.next_values]
    held = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    assert rollout.obs.dtype == evaluated.inputs.dtype == torch.uint8
    frames = steps * n_envs * 4 * 84 * 84
    assert frames <= sum(held.values()) <= 1.2 * frames
