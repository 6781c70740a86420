"""The settings of NPG and TRPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from upslope.config.rollout import RolloutConfig
from upslope.config.settings import Schedule, setting


@dataclass(frozen=True, kw_only=True)
class TrustRegionConfig(RolloutConfig):
    """What NPG and TRPO share: the size of the step, its solver, and the critic's regression."""

    learning_rate: Schedule = setting(
        1e-3,
        "step size of the critic's regression (the policy's step follows from target_kl)",
        kind="schedule",
        above=0.0,
        source="as in sb3-contrib's TRPO",
    )
    max_grad_norm: float | None = setting(
        None,
        "largest norm of the critic's gradient, longer ones are scaled down",
        kind="float",
        above=0.0,
        optional=True,
        source="as in sb3-contrib's TRPO",
    )
    target_kl: float = setting(
        0.01,
        "mean KL divergence from the old policy that no step exceeds, nats",
        kind="float",
        above=0.0,
        source="Schulman et al. 2015, appendix E",
    )
    cg_max_steps: int = setting(
        15,
        "conjugate-gradient iterations at most",
        kind="int",
        low=1,
        high=10_000,
        source="as in sb3-contrib's TRPO",
    )
    cg_damping: float = setting(
        0.1,
        "c of (F + cI), which keeps the system well conditioned",
        kind="float",
        low=0.0,
        source="as in sb3-contrib's TRPO",
    )
    line_search_shrinking_factor: float = setting(
        0.8,
        "factor from one candidate step to the next",
        kind="float",
        above=0.0,
        high=0.999,
        source="as in sb3-contrib's TRPO",
    )
    line_search_max_iter: int = setting(
        10,
        "candidate steps at most; the policy stays where it is if none will do",
        kind="int",
        low=1,
        high=1000,
        source="as in sb3-contrib's TRPO",
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


@dataclass(frozen=True, kw_only=True)
class NPGConfig(TrustRegionConfig):
    """NPG: a step along the natural gradient, its length set by the KL divergence (Kakade 2001)."""

    algorithm: ClassVar[str] = "npg"

    line_search_shrinking_factor: float = setting(
        0.5,
        "factor from one candidate step to the next",
        kind="float",
        above=0.0,
        high=0.999,
        source="halved, as the KL grows about fourfold with a doubled step",
    )


@dataclass(frozen=True, kw_only=True)
class TRPOConfig(TrustRegionConfig):
    """TRPO: the natural direction, searched for an improving step in the region (Schulman 2015)."""

    algorithm: ClassVar[str] = "trpo"
