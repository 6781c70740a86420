"""Every setting of a run: one frozen dataclass per algorithm, checked when it is made.

A field is declared once, with its default, range, unit and the source of the default; the keyword
arguments of ``upslope.PPO(...)``, the flags of ``upslope train`` and ``config.json`` are all read
off these declarations. No torch is imported here, so help is instant.
"""

from upslope.config.a2c import A2CConfig
from upslope.config.base import Config
from upslope.config.ppo import PPOConfig
from upslope.config.presets import preset, preset_timesteps
from upslope.config.reinforce import ReinforceConfig
from upslope.config.settings import Schedule, parse_text, schedule_at, whole_number
from upslope.config.trust_region import NPGConfig, TRPOConfig
from upslope.config.vpg import VPGConfig

CONFIGS: dict[str, type[Config]] = {  # in the order of the ladder
    "reinforce": ReinforceConfig,
    "vpg": VPGConfig,
    "a2c": A2CConfig,
    "npg": NPGConfig,
    "trpo": TRPOConfig,
    "ppo": PPOConfig,
}

__all__ = [
    "CONFIGS",
    "A2CConfig",
    "Config",
    "NPGConfig",
    "PPOConfig",
    "ReinforceConfig",
    "Schedule",
    "TRPOConfig",
    "VPGConfig",
    "parse_text",
    "preset",
    "preset_timesteps",
    "schedule_at",
    "whole_number",
]
