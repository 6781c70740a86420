"""One update of a page, watched: what it weighed, the gradient it followed, where it moved.

The page, its loss and its backward pass are those that ship; only the rule that would turn a
gradient into a step is replaced by one that writes the gradient down and stands still.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

import upslope.rollout
from upslope.algorithms import make_learner
from upslope.config import CONFIGS
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import EvaluatedRollout, Rollout

WITH_GAE = ("vpg", "a2c", "npg", "trpo", "ppo")
REGIONS = ("npg", "trpo")


@dataclass
class Seen:
    """Columns ``[T * B]`` that reached the losses, ascent directions by optimiser, and metrics.

    ``moved [d]`` is what a trust region did to the actor; the other pages stand still.
    """

    batch: dict[str, Any] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    moved: Tensor | None = None


class WatchedPage:
    """A page whose updates are watched and leave the policy as it was.

    Args:
        algorithm: its name.
        policy: learns.
        shape: ``(T, B)`` of the rollouts, from which batch sizes follow: one step over all rows.
        share: ``[B]`` weighs the columns of the rollouts, beside ``valid``: with probabilities
            times B every mean over rows becomes an expectation.
        settings: of the algorithm.
    """

    def __init__(
        self,
        algorithm: str,
        policy: ActorCritic,
        shape: tuple[int, int],
        share: Tensor | None = None,
        **settings: Any,
    ) -> None:
        self._given = policy
        # a trust region moves a policy by itself, so it is given one of its own
        self._policy = copy.deepcopy(policy) if algorithm in REGIONS else policy
        given = _whole_batches(algorithm, *shape) | settings
        config = CONFIGS[algorithm].from_settings(given).resolve(shape[1])
        self._learner: Any = make_learner(config, self._policy)
        self._share = None if share is None else share.expand(shape).reshape(-1)
        self._seen = Seen()
        for name, optimizer in self._learner.optimizers.items():
            self._watch(optimizer, name)
        if algorithm in REGIONS:
            self._watch_region()

    def update(self, rollout: Rollout, evaluated: EvaluatedRollout | None = None) -> Seen:
        """Let the page learn from a rollout (``evaluated`` here, where it is not yet)."""
        policy, version = self._policy, self._policy.version
        rollout = dataclasses.replace(
            rollout, policy_version=rollout.policy_version + version - self._given.version
        )
        self._seen = Seen()
        if evaluated is None:
            evaluated = upslope.rollout.evaluate_rollout(policy, rollout)
        rng = np.random.default_rng(0)
        self._seen.metrics |= self._learner.update(rollout, evaluated, 1.0, rng)
        policy._updates -= policy.version - version  # nothing moved: its rollouts are still fresh
        return self._seen

    def _watch(self, optimizer: Any, name: str) -> None:
        run = optimizer.run

        def stand_still(gradient: Tensor, moments: Any, *_: Any) -> tuple[Tensor, Tensor, Any]:
            self._seen.gradients[name] = -gradient
            return torch.zeros_like(gradient), torch.ones_like(gradient), moments

        def watched(batch: dict[str, Any], *given: Any, **named: Any) -> Any:
            self._seen.batch |= batch
            return run(self._shared(batch), *given, **named)

        optimizer.rule = optimizer.rule._replace(direction=stand_still)
        optimizer.run = watched

    def _watch_region(self) -> None:
        move = self._learner._move_actor

        def watched(batch: dict[str, Any]) -> Any:
            before = actor_vector(self._policy)
            metrics = move(self._shared(batch))
            self._seen.moved = actor_vector(self._policy) - before
            return metrics

        self._learner._move_actor = watched

    def _shared(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch if self._share is None else batch | {"valid": batch["valid"] * self._share}


def one_update(
    algorithm: str,
    policy: ActorCritic,
    rollout: Rollout,
    share: Tensor | None = None,
    evaluated: EvaluatedRollout | None = None,
    **settings: Any,
) -> Seen:
    """One update of a page of its own; arguments as for :class:`WatchedPage`."""
    steps, n_envs = rollout.valid.shape
    return WatchedPage(algorithm, policy, (steps, n_envs), share, **settings).update(
        rollout, evaluated
    )


def actor_vector(policy: ActorCritic) -> Tensor:
    """The actor's parameters, flat and detached ``[d]``."""
    named = dict(policy.named_parameters())
    return torch.cat([named[name].detach().reshape(-1) for name in policy.part_names("actor")])


def _whole_batches(algorithm: str, steps: int, n_envs: int) -> dict[str, Any]:
    """Settings under which each optimiser takes one unclipped step over all rows."""
    if algorithm == "reinforce":
        return {"n_critic_updates": 1}
    settings: dict[str, Any] = {
        "n_steps": steps,
        "normalize_advantage": False,
        "max_grad_norm": None,
    }
    if algorithm == "ppo":
        settings |= {"batch_size": steps * n_envs, "n_epochs": 1}
    elif algorithm != "a2c":
        settings |= {"batch_size": steps * n_envs, "n_critic_updates": 1}
    return settings
