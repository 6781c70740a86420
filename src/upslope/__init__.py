"""Upslope: policies trained by policy gradients, from REINFORCE to PPO.

Names are imported when first used, so that ``import upslope`` and ``upslope --help`` need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upslope import policies, theory
    from upslope.agent import A2C, NPG, PPO, REINFORCE, TRPO, VPG, Agent, load
    from upslope.callbacks import (
        CallbackList,
        CheckpointCallback,
        EvalCallback,
        StopTrainingOnRewardThreshold,
    )
    from upslope.config import (
        A2CConfig,
        Config,
        NPGConfig,
        PPOConfig,
        ReinforceConfig,
        TRPOConfig,
        VPGConfig,
    )
    from upslope.errors import UpslopeError
    from upslope.helpers import check_env, evaluate_policy, make_vec_env
    from upslope.policies.actor_critic import ActorCritic
    from upslope.rollout import Rollout, collect, evaluate_rollout
    from upslope.runs.resume import resume
    from upslope.training import Event

    __version__: str

__all__ = [
    "A2C",
    "NPG",
    "PPO",
    "REINFORCE",
    "TRPO",
    "VPG",
    "A2CConfig",
    "ActorCritic",
    "Agent",
    "CallbackList",
    "CheckpointCallback",
    "Config",
    "EvalCallback",
    "Event",
    "NPGConfig",
    "PPOConfig",
    "ReinforceConfig",
    "Rollout",
    "StopTrainingOnRewardThreshold",
    "TRPOConfig",
    "UpslopeError",
    "VPGConfig",
    "check_env",
    "collect",
    "evaluate_policy",
    "evaluate_rollout",
    "load",
    "make_vec_env",
    "policies",
    "resume",
    "theory",
]

_HOME = {
    "A2C": "agent",
    "NPG": "agent",
    "PPO": "agent",
    "REINFORCE": "agent",
    "TRPO": "agent",
    "VPG": "agent",
    "Agent": "agent",
    "load": "agent",
    "ActorCritic": "policies.actor_critic",
    "CallbackList": "callbacks",
    "CheckpointCallback": "callbacks",
    "EvalCallback": "callbacks",
    "StopTrainingOnRewardThreshold": "callbacks",
    "A2CConfig": "config",
    "Config": "config",
    "NPGConfig": "config",
    "PPOConfig": "config",
    "ReinforceConfig": "config",
    "TRPOConfig": "config",
    "VPGConfig": "config",
    "Event": "training",
    "UpslopeError": "errors",
    "check_env": "helpers",
    "evaluate_policy": "helpers",
    "make_vec_env": "helpers",
    "Rollout": "rollout",
    "collect": "rollout",
    "evaluate_rollout": "rollout",
    "resume": "runs.resume",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("upslope")
    if name not in (*_HOME, "policies", "theory"):
        raise AttributeError(f"module 'upslope' has no attribute {name!r}")
    from upslope.imports import without_collections

    with without_collections():
        if name not in _HOME:
            return import_module(f"upslope.{name}")
        return getattr(import_module(f"upslope.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
