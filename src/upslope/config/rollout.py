"""The settings of the algorithms that take T x B rollouts: all but REINFORCE."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

from upslope.config.base import Config
from upslope.config.settings import setting
from upslope.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RolloutConfig(Config):
    """Settings of T x B rollouts weighed by GAE; an algorithm declares its own defaults anew."""

    n_steps: int | None = setting(
        None,
        "steps per environment and rollout (derived: 2048 // n_envs)",
        kind="int",
        low=1,
        high=10_000_000,
        optional=True,
        source="as in Stable-Baselines3's PPO for one environment",
    )
    gae_lambda: float = setting(
        0.95,
        "trace decay of GAE",
        kind="float",
        low=0.0,
        high=1.0,
        source="as in Stable-Baselines3's PPO",
    )
    normalize_advantage: bool = setting(
        True,
        "standardise advantages",
        kind="bool",
        source="as in Stable-Baselines3's PPO",
    )

    def steps_per_iteration(self, episode_limit: int) -> int:
        return (self.n_envs or 1) * (self.n_steps or 1)

    def iterations_per_episode(self, episode_limit: int) -> int:
        return -(-episode_limit // (self.n_steps or 1))

    def check_together(self) -> None:
        super().check_together()
        if self.normalize_advantage and self.n_envs == self.n_steps == 1:
            raise ConfigError(
                "a rollout of one row (n_envs=1, n_steps=1) cannot be standardised: "
                "use at least 2, or --no-normalize-advantage"
            )

    @property
    def rows_per_step(self) -> int:
        return (self.n_envs or 1) * (self.n_steps or 1)

    def for_other_environments(self) -> Self:
        return dataclasses.replace(self, n_envs=None, n_steps=None)

    def resolve(self, n_envs: int) -> Self:
        n_steps = self.n_steps or max(1, 2048 // n_envs)
        return dataclasses.replace(self, n_envs=n_envs, n_steps=n_steps)
