"""The settings of A2C."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

from upslope.config.rollout import RolloutConfig
from upslope.config.settings import Schedule, setting


@dataclass(frozen=True, kw_only=True)
class A2CConfig(RolloutConfig):
    """A2C: short parallel segments, one joint step of actor and critic each (Mnih et al. 2016)."""

    algorithm: ClassVar[str] = "a2c"

    learning_rate: Schedule = setting(
        7e-4,
        "step size: a number, lin_X (linear to 0), or a callable of the progress remaining",
        kind="schedule",
        above=0.0,
        source="as in Stable-Baselines3's A2C",
    )
    n_steps: int = setting(
        5,
        "steps per environment and rollout",
        kind="int",
        low=1,
        high=10_000_000,
        source="as in Stable-Baselines3's A2C",
    )
    gae_lambda: float = setting(
        1.0,
        "trace decay of GAE",
        kind="float",
        low=0.0,
        high=1.0,
        source="as in Stable-Baselines3's A2C",
    )
    normalize_advantage: bool = setting(
        False,
        "standardise advantages over the rollout",
        kind="bool",
        source="as in Stable-Baselines3's A2C",
    )
    vf_coef: float = setting(
        0.5,
        "weight of the value loss",
        kind="float",
        low=0.0,
        source="as in Stable-Baselines3's A2C",
    )
    use_rms_prop: bool = setting(
        True,
        "RMSprop as the rule of the gradient step (Adam otherwise)",
        kind="bool",
        source="as in Stable-Baselines3's A2C; Mnih et al. 2016",
    )
    rms_prop_eps: float = setting(
        1e-5,
        "added to the denominator of RMSprop",
        kind="float",
        above=0.0,
        source="as in Stable-Baselines3's A2C",
    )

    def for_other_environments(self) -> Self:
        return dataclasses.replace(self, n_envs=None)  # n_steps does not follow from n_envs here
