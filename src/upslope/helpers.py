"""Helpers by the names people search for."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv

from upslope.agent import Agent
from upslope.envs.find import EnvLike, find_environment
from upslope.envs.make import make_environments
from upslope.errors import ConfigError
from upslope.policies.make import check_readable


def make_vec_env(
    env: EnvLike, n_envs: int | None = None, seed: int = 0, vec: str = "auto", **env_kwargs: Any
) -> Any:
    """Return environments for :func:`upslope.collect`; arguments as for the agents.

    Atari games (``ALE/`` ids) are preprocessed and four frames stacked, as the agents have them.

    Raises:
        UnknownEnvironmentError, ConfigError: as they say.
    """
    source = find_environment(env).prepared(None, True)
    return make_environments(source, n_envs=n_envs, seed=seed, vec=vec, env_kwargs=env_kwargs)


def evaluate_policy(
    model: Agent,
    env: EnvLike | None = None,
    n_eval_episodes: int = 10,
    deterministic: bool = True,
    return_episode_rewards: bool = False,
) -> tuple[float, float] | tuple[list[float], list[int]]:
    """Mean and standard deviation of the return, as Stable-Baselines3 has it.

    Prefer ``agent.evaluate``, which tells sampled from deterministic and gives intervals.

    Args:
        model: an agent.
        env: by default fresh copies of the agent's own.
        n_eval_episodes: at least 1.
        deterministic: the mode instead of samples.
        return_episode_rewards: return the lists of returns and lengths instead.
    """
    sample = model.evaluate_one_way(n_eval_episodes, deterministic=deterministic, env=env)
    if return_episode_rewards:
        return sample.returns.tolist(), sample.lengths.tolist()
    return sample.mean, float(sample.returns.std())


def check_env(env: gym.Env[Any, Any], warn: bool = True) -> None:
    """Check an environment against Gymnasium's contract and against what policies here can read.

    ``warn`` lets through what Gymnasium's checker only warns about.

    Raises:
        UnsupportedSpaceError: if no policy here fits its spaces.
        Exception: whatever Gymnasium's own checker finds.
    """
    from gymnasium.utils.env_checker import check_env as gymnasium_check

    if not isinstance(env, gym.Env):
        what = "a VectorEnv" if isinstance(env, VectorEnv) else repr(env)  # type: ignore[unreachable]
        raise ConfigError(f"check_env takes a single gymnasium.Env, not {what}")
    check_readable(env.observation_space, env.action_space)
    with warnings.catch_warnings():
        if not warn:
            warnings.simplefilter("ignore")
        gymnasium_check(env.unwrapped, skip_render_check=True)
