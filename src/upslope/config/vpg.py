"""The settings of VPG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from upslope.config.rollout import RolloutConfig
from upslope.config.settings import Schedule, setting


@dataclass(frozen=True, kw_only=True)
class VPGConfig(RolloutConfig):
    """VPG: one gradient step per rollout, weighed by GAE with a learned V (Schulman 2016)."""

    algorithm: ClassVar[str] = "vpg"

    learning_rate: Schedule = setting(
        3e-3,
        "step size of the policy: a number, lin_X (linear to 0), or a callable",
        kind="schedule",
        above=0.0,
        source="tuned on CartPole-v1",
    )
    max_grad_norm: float | None = setting(
        None,
        "largest gradient norm, longer ones are scaled down",
        kind="float",
        above=0.0,
        optional=True,
        source="Spinning Up clips nothing",
    )
    gae_lambda: float = setting(
        0.97,
        "trace decay of GAE",
        kind="float",
        low=0.0,
        high=1.0,
        source="Schulman et al. 2016, section 6",
    )
    critic_learning_rate: Schedule = setting(
        1e-3,
        "step size of the critic's regression",
        kind="schedule",
        above=0.0,
        source="as in Spinning Up",
    )
    n_critic_updates: int = setting(
        10,
        "passes of the critic's regression over each rollout",
        kind="int",
        low=1,
        high=100_000,
        source="as in sb3-contrib's TRPO",
    )
    batch_size: int = setting(
        128,
        "rows per minibatch of the critic's regression",
        kind="int",
        low=1,
        high=100_000_000,
        source="as in sb3-contrib's TRPO",
    )

    @property
    def updates_per_iteration(self) -> int:
        rows = (self.n_envs or 1) * (self.n_steps or 1)
        return self.n_critic_updates * -(-rows // self.batch_size)
