"""A config -> the untrained policy it describes, on the device it names."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch

from upslope.config import Config
from upslope.errors import ConfigError
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.distributions import make_actions
from upslope.policies.encoders import FeaturesFactory, observation_shape


def check_readable(observation_space: gym.Space[Any], action_space: gym.Space[Any]) -> None:
    """Raise :class:`UnsupportedSpaceError` unless a policy here can read and write these spaces."""
    observation_shape(observation_space)
    make_actions(action_space, 0.0, torch.float32)


def make_policy(
    config: Config,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    features: FeaturesFactory | None = None,
) -> ActorCritic:
    """Return the untrained policy that a config describes."""
    return ActorCritic(
        observation_space,
        action_space,
        seed=config.seed,
        net_arch=config.net_arch,
        activation_fn=config.activation_fn,
        shared_network=config.shared_network,
        ortho_init=config.ortho_init,
        log_std_init=config.log_std_init,
        norm_obs=config.norm_obs,
        clip_obs=config.clip_obs,
        norm_reward=config.norm_reward,
        clip_reward=config.clip_reward,
        gamma=config.gamma,
        dtype=config.dtype,
        features=features,
    )


def find_device(name: str) -> torch.device:
    """Return a device that exists; ``auto`` is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = name.partition(":")[0]
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(kind, False):
        raise ConfigError(
            f"device={name} is not available on this machine: use --device cpu or auto"
        )
    return torch.device(name)
