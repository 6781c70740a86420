"""``--vec auto`` takes EnvPool only where it is the same task: equal actions, equal rewards."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from upslope.envs.find import find_environment
from upslope.envs.make import ENVPOOL_IS_SAME_TASK, make_environments

envpool = pytest.importorskip("envpool")
pytestmark = pytest.mark.envpool

State = Callable[[Any, np.ndarray], None]


def mujoco(hidden: int) -> State:
    """Set a MuJoCo environment's state from an observation that leaves ``hidden`` positions out."""

    def set_state(env: Any, obs: np.ndarray) -> None:
        known = env.model.nq - hidden
        env.set_state(np.concatenate([np.zeros(hidden), obs[:known]]), obs[known:])

    return set_state


def acrobot(env: Any, obs: np.ndarray) -> None:
    angles = np.arctan2(obs[1], obs[0]), np.arctan2(obs[3], obs[2])
    env.state = np.array([*angles, obs[4], obs[5]])


def plain(env: Any, obs: np.ndarray) -> None:
    env.state = obs.astype(np.float64)


SAME: dict[str, State] = {
    "CartPole-v1": plain,
    "MountainCar-v0": plain,
    "MountainCarContinuous-v0": plain,
    "Acrobot-v1": acrobot,
    "HalfCheetah-v5": mujoco(1),
    "Hopper-v5": mujoco(1),
    "Walker2d-v5": mujoco(1),
    "Swimmer-v5": mujoco(2),
    "InvertedPendulum-v5": mujoco(0),
}


def steps_side_by_side(
    env_id: str, set_state: State, steps: int, seed: int
) -> list[tuple[Any, Any]]:
    """Run equal actions from EnvPool's start on both; return what each step gave, as pairs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pool = envpool.make_gymnasium(env_id, num_envs=1, seed=seed)
        start, _ = pool.reset()
    env = gym.make(env_id)
    env.reset(seed=seed)
    set_state(env.unwrapped, start[0])
    env.action_space.seed(seed)
    pairs = []
    for _ in range(steps):
        action = env.action_space.sample()
        ours = env.step(action)[:4]
        theirs = [part[0] for part in pool.step(np.asarray([action]))[:4]]
        pairs.append((ours, theirs))
        if ours[2] or ours[3]:
            break
    env.close()
    return pairs


@pytest.mark.parametrize("env_id", SAME)
@pytest.mark.parametrize("seed", range(5))
def test_equal_actions_give_equal_observations_rewards_and_ends(env_id: str, seed: int) -> None:
    for (obs, reward, *ends), (obs_pool, reward_pool, *ends_pool) in steps_side_by_side(
        env_id, SAME[env_id], steps=20, seed=seed
    ):
        np.testing.assert_allclose(obs_pool, obs, rtol=1e-4, atol=1e-4)
        assert float(reward_pool) == pytest.approx(float(reward), rel=1e-4, abs=1e-4)
        assert [bool(end) for end in ends_pool] == ends


@pytest.mark.parametrize("env_id", sorted(ENVPOOL_IS_SAME_TASK))
def test_spaces_and_limits_are_gymnasiums(env_id: str) -> None:
    spec = gym.spec(env_id)
    envs = make_environments(find_environment(env_id), n_envs=8, vec="envpool")
    plain_env = gym.make(env_id)
    assert envs.observation_space == plain_env.observation_space
    assert envs.action_space == plain_env.action_space
    assert envs.engine.env.spec.config.max_episode_steps == spec.max_episode_steps  # type: ignore[attr-defined]
    plain_env.close()


def test_another_integration_is_another_task() -> None:
    """EnvPool's Pendulum moves the angle with the speed before its limit: auto does not take it."""

    def pendulum(env: Any, obs: np.ndarray) -> None:
        env.state = np.array([np.arctan2(obs[1], obs[0]), obs[2]])

    gaps = []
    for seed in range(40):
        pairs = steps_side_by_side("Pendulum-v1", pendulum, steps=100, seed=seed)
        gaps.append(max(np.abs(ours[0] - theirs[0]).max() for ours, theirs in pairs))
    assert max(gaps) > 0.01
    envs = make_environments(find_environment("Pendulum-v1"), n_envs=8)
    assert envs.engine.name == "sync"
