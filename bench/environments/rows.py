"""Environments of every kind: spaces, masks, images, memory. None was written here but a mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hidden_velocity import make_env


@dataclass(frozen=True)
class Row:
    """One environment under one set of settings."""

    name: str
    env: str | Callable[..., Any]
    steps: int
    settings: dict[str, Any] = field(default_factory=dict)
    algo: str = "ppo"
    seeds: int = 1
    episodes: int = 100
    keep_curve: bool = False

    @property
    def env_name(self) -> str:
        """The id, or what the factory makes."""
        return self.env if isinstance(self.env, str) else "CartPole-v1 without velocities"


SMALL = {"n_envs": 16, "n_steps": 64, "batch_size": 256, "n_epochs": 8, "learning_rate": "lin_2e-3"}
# 32 sequences of 32 steps, 8 of them a gradient step; rewards normalised, as the critic otherwise
# fills the clipped gradient. Chosen on seeds 100 and 101.
MEMORY = {
    "n_envs": 32,
    "n_steps": 32,
    "batch_size": 256,
    "n_epochs": 4,
    "learning_rate": "lin_1.5e-3",
    "norm_reward": True,
}
# Mnih et al. 2015's network in one trunk. Schulman et al. 2017 have minibatches of 256, 2.5e-4 and
# a clip of 0.1, for runs 30 times as long; here 300,000 actions must do.
ATARI = {
    "n_envs": 8,
    "n_steps": 128,
    "batch_size": 128,
    "n_epochs": 4,
    "learning_rate": "lin_7e-4",
    "clip_range": 0.2,
    "ent_coef": 0.01,
    "shared_network": True,
    "net_arch": (),
}
ROWS = (
    Row("taxi", "Taxi-v4", 300_000, SMALL | {"ent_coef": 0.01}),
    Row("frozenlake", "FrozenLake-v1", 100_000, SMALL | {"ent_coef": 0.01}),
    Row("blackjack", "Blackjack-v1", 100_000, SMALL),
    Row(
        "minigrid",
        "MiniGrid-DoorKey-5x5-v0",
        150_000,
        SMALL | {"ignore_obs": ("mission",), "norm_obs": True, "ent_coef": 0.01},
    ),
    Row("dm_control", "dm_control/cartpole-swingup-v0", 200_000, SMALL | {"norm_obs": True}),
    Row(
        "lander continuous",
        "LunarLander-v3",
        300_000,
        SMALL | {"env_kwargs": {"continuous": True}, "gamma": 0.999, "gae_lambda": 0.98},
    ),
    Row("memory gru", make_env, 300_000, MEMORY | {"memory": "gru"}, seeds=5),
    Row("memory none", make_env, 300_000, MEMORY, seeds=5),
    Row(
        "pong envpool", "ALE/Pong-v5", 300_000, ATARI | {"vec": "envpool"},
        episodes=10, keep_curve=True,
    ),
    Row(
        "pong ale-py", "ALE/Pong-v5", 60_000, ATARI | {"vec": "async"},
        episodes=10, keep_curve=True,
    ),
)  # fmt: skip
