"""The settings of REINFORCE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from upslope.config.base import Config
from upslope.config.settings import Schedule, setting
from upslope.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ReinforceConfig(Config):
    """REINFORCE: one gradient step per batch of whole episodes (Williams 1992)."""

    algorithm: ClassVar[str] = "reinforce"

    learning_rate: Schedule = setting(
        3e-3,
        "step size: a number, lin_X (linear to 0), or a callable of the progress remaining",
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
        source="Williams 1992 clips nothing",
    )
    batch_episodes: int = setting(
        16,
        "whole episodes per gradient step",
        kind="int",
        low=1,
        high=1_000_000,
        source="tuned on CartPole-v1",
    )
    returns: str = setting(
        "to-go",
        "weight: return of the whole episode, or reward-to-go",
        kind="choice",
        choices=("episode", "to-go"),
        source="Williams 1992 with the past dropped",
    )
    baseline: str = setting(
        "loo",
        "subtracted from the weight: none, batch mean, leave-one-out mean, or a learned value",
        kind="choice",
        choices=("none", "mean", "loo", "value"),
        source="Kool et al. 2019",
    )
    critic_learning_rate: Schedule = setting(
        3e-3,
        "step size of the value baseline's regression",
        kind="schedule",
        above=0.0,
        source="tuned on CartPole-v1",
    )
    n_critic_updates: int = setting(
        20,
        "regression steps per batch for the value baseline",
        kind="int",
        low=1,
        high=100_000,
        source="a quarter of Spinning Up's 80",
    )
    normalize_advantage: bool = setting(
        False,
        "standardise the weights over the batch (rescales and slightly turns the gradient)",
        kind="bool",
        source="Williams 1992 has none",
    )

    def steps_per_iteration(self, episode_limit: int) -> int:
        return self.batch_episodes * episode_limit

    def check_together(self) -> None:
        super().check_together()
        if self.baseline == "loo" and self.batch_episodes < 2:
            raise ConfigError(
                "baseline=loo needs batch_episodes of at least 2: "
                "raise --batch-episodes or take --baseline none"
            )
