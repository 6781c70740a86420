"""The rungs: what is new on each, as settings of its algorithm, and what is equal on all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from upslope.lab.ladder_runs import GAE_LAMBDA

N_ENVS, N_STEPS = 8, 128
ROWS = N_ENVS * N_STEPS  # environment steps of an update, where they can be chosen
LEARNING_RATE = 3e-3
CRITIC_STEPS = 40  # gradient steps of V a batch

COMMON: dict[str, Any] = {
    "n_envs": N_ENVS,
    "vec": "sync",  # every numbered episode has a seed of its own, so that rungs are paired
    "checkpoints": 1,  # no running episode is ever cut
    "learning_rate": LEARNING_RATE,
    "max_grad_norm": None,
    "normalize_advantage": False,  # it would be a baseline, below the rung that brings one
    "device": "cpu",
}
_EPISODES = {"critic_learning_rate": LEARNING_RATE, "n_critic_updates": CRITIC_STEPS}
_ROLLOUTS = {"n_steps": N_STEPS, "gae_lambda": GAE_LAMBDA}
_CRITIC = {"n_critic_updates": CRITIC_STEPS, "batch_size": ROWS}  # each pass is one whole step
_VPG = {**_ROLLOUTS, **_CRITIC, "critic_learning_rate": LEARNING_RATE}
_REGION = {**_ROLLOUTS, **_CRITIC, "line_search_shrinking_factor": 0.8}


@dataclass(frozen=True)
class Rung:
    """One rung: what is new on it, in words and as settings of its algorithm."""

    name: str
    idea: str
    algorithm: str
    settings: Mapping[str, Any]
    estimator: str  # of lab.ladder_runs.ESTIMATORS, the Psi of its gradient

    def settings_for(self, batch_episodes: int, own: Mapping[str, Any]) -> dict[str, Any]:
        """Every setting of a run but its seed; ``own`` are those of the environment."""
        episodes = {"batch_episodes": batch_episodes} if self.algorithm == "reinforce" else {}
        return {**COMMON, **self.settings, **episodes, **own}


RUNGS = (
    Rung(
        "REINFORCE",
        "every score is multiplied by the return of its whole episode",
        "reinforce",
        {**_EPISODES, "returns": "episode", "baseline": "none"},
        "episode return",
    ),
    Rung(
        "reward-to-go",
        "the past is dropped: a score is multiplied by the rewards that follow it",
        "reinforce",
        {**_EPISODES, "returns": "to-go", "baseline": "none"},
        "reward-to-go without gamma^t",
    ),
    Rung(
        "leave-one-out",
        "minus the mean of the batch's other episodes at the same step",
        "reinforce",
        {**_EPISODES, "returns": "to-go", "baseline": "loo"},
        "reward-to-go - leave-one-out",
    ),
    Rung(
        "value baseline",
        "minus V(s) instead, from a critic fitted to earlier batches",
        "reinforce",
        {**_EPISODES, "returns": "to-go", "baseline": "value"},
        "reward-to-go - V",
    ),
    # VPG with lambda = 0, not A2C: A2C would change the optimiser, the loss and the segment too,
    # and between this rung and the next only lambda would be left to differ.
    Rung(
        "TD error",
        "actor-critic: V of the next state stands for what follows, so that rollouts of T x B "
        "steps take the place of whole episodes",
        "vpg",
        {**_VPG, "gae_lambda": 0.0},
        "TD residual",
    ),
    Rung(
        f"GAE({GAE_LAMBDA:g})",
        f"TD errors of later steps are added, each {GAE_LAMBDA:g} times as heavy as the one before",
        "vpg",
        _VPG,
        f"GAE({GAE_LAMBDA:g})",
    ),
    Rung(
        "NPG",
        "the step: along the natural gradient, as far as a mean KL divergence of 0.01",
        "npg",
        _REGION,
        f"GAE({GAE_LAMBDA:g})",
    ),
    Rung(
        "TRPO",
        "the step: it must also raise the surrogate, or is shortened",
        "trpo",
        _REGION,
        f"GAE({GAE_LAMBDA:g})",
    ),
    Rung(
        "PPO",
        "the step: epochs of minibatches through a clipped ratio, actor and critic in one loss",
        "ppo",
        {**_ROLLOUTS, "n_epochs": 10, "batch_size": ROWS // 4},
        f"GAE({GAE_LAMBDA:g})",
    ),
)
MEASURED_ON = next(i for i, rung in enumerate(RUNGS) if rung.settings is _VPG)


def settings_that_differ(below: Mapping[str, Any], here: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every setting of two neighbours that is not equal, with both values.

    ``below`` or ``here`` is left out where a side has no such setting.
    """
    found = []
    for name in [*below, *(name for name in here if name not in below)]:
        sides = {s: t[name] for s, t in (("below", below), ("here", here)) if name in t}
        if len(sides) < 2 or below[name] != here[name]:
            found.append({"setting": name, **sides})
    return found
