"""A config -> the untrained policy it describes, on the device it names."""

from __future__ import annotations

import logging
from typing import Any

import gymnasium as gym
import torch

from upslope.config import Config
from upslope.errors import ConfigError, UnsupportedSpaceError
from upslope.policies.actions import boxes, make_actions
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.encoders import FeaturesFactory
from upslope.policies.observations import parts

log = logging.getLogger("upslope")


def check_readable(
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    action_dist: str = "gaussian",
) -> None:
    """Raise :class:`UnsupportedSpaceError` unless a policy here can read and write these spaces."""
    if not list(parts(observation_space)):
        raise UnsupportedSpaceError(
            f"the observation space {observation_space} has no part that a network could read: "
            "offer at least one"
        )
    make_actions(action_space, 0.0, torch.float32, action_dist)
    for box in boxes(action_space):
        if (box.low == box.high).any():
            log.warning("the action space %s has parts of zero width: they are constant", box)


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
        action_dist=config.action_dist,
        log_std_init=config.log_std_init,
        cnn=config.cnn,
        memory=config.memory,
        memory_size=config.memory_size,
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
