"""The settings of PPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from upslope.config.rollout import RolloutConfig
from upslope.config.settings import Schedule, setting
from upslope.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PPOConfig(RolloutConfig):
    """PPO: clipped surrogate, several epochs of minibatches per rollout (Schulman et al. 2017)."""

    algorithm: ClassVar[str] = "ppo"

    batch_size: int = setting(
        64,
        "rows per minibatch",
        kind="int",
        low=1,
        high=100_000_000,
        source="as in Stable-Baselines3",
    )
    n_epochs: int = setting(
        10,
        "passes over each rollout",
        kind="int",
        low=1,
        high=10_000,
        source="as in Stable-Baselines3",
    )
    clip_range: Schedule = setting(
        0.2,
        "clip of the probability ratio",
        kind="schedule",
        above=0.0,
        source="Schulman et al. 2017",
    )
    clip_range_vf: Schedule | None = setting(
        None,
        "clip of the value's change, in units of (normalised) reward",
        kind="schedule",
        above=0.0,
        optional=True,
        source="as in Stable-Baselines3",
    )
    vf_coef: float = setting(
        0.5,
        "weight of the value loss",
        kind="float",
        low=0.0,
        source="as in Stable-Baselines3",
    )
    target_kl: float | None = setting(
        None,
        "stop an update once a minibatch's approximate KL passes 1.5 times this, nats",
        kind="float",
        above=0.0,
        optional=True,
        source="as in Stable-Baselines3",
    )
    normalize_advantage_over: str = setting(
        "minibatch",
        "rows over which advantages are standardised",
        kind="choice",
        choices=("minibatch", "batch"),
        source="as in Stable-Baselines3",
    )

    @property
    def rows_per_step(self) -> int:
        return self.batch_size

    @property
    def updates_per_iteration(self) -> int:
        rows = (self.n_envs or 1) * (self.n_steps or 1)
        return self.n_epochs * -(-rows // self.batch_size)

    def check_together(self) -> None:
        super().check_together()
        if (
            self.normalize_advantage
            and self.normalize_advantage_over == "minibatch"
            and self.batch_size < 2
        ):
            raise ConfigError(
                "batch_size=1 cannot be standardised: use at least 2, or --no-normalize-advantage"
            )
        if self.n_envs is None or self.n_steps is None:
            return
        rows = self.n_envs * self.n_steps
        if self.batch_size > rows:
            raise ConfigError(
                f"batch_size={self.batch_size} is larger than the rollout of "
                f"n_steps * n_envs = {rows} rows: use a batch_size in 1..{rows}"
            )
