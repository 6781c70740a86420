"""The algorithms, one page each; a page imports no other page.

A page is a ``Learner``: the rollouts it wants (``collect``), what it does with one (``update``),
the weight of every row (``weigh``), and the pseudo-loss whose gradient it follows (``loss``).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from upslope.algorithms.common import Weighed
    from upslope.config import Config
    from upslope.envs.episodes import Environments
    from upslope.optim import GradientStep
    from upslope.policies.actor_critic import ActorCritic
    from upslope.rollout import EvaluatedRollout, Rollout


class Learner(Protocol):
    """What training needs of a page."""

    optimizers: dict[str, GradientStep]

    def collect(self, envs: Environments) -> Rollout:
        """Gather one iteration's data with the current policy."""

    def update(
        self,
        rollout: Rollout,
        evaluated: EvaluatedRollout,
        progress_remaining: float,
        rng: np.random.Generator,
    ) -> dict[str, float]:
        """Improve the policy on that data and return the metrics of the update."""

    def weigh(self, rollout: Rollout, evaluated: EvaluatedRollout) -> Weighed:
        """Weights ``[T, B]`` that ``update`` multiplies scores with, and what V is fitted to."""


def make_learner(config: Config, policy: ActorCritic) -> Learner:
    """Return the page of ``config.algorithm`` for a policy."""
    page = import_module(f"upslope.algorithms.{config.algorithm}")
    return page.Learner(config, policy)  # type: ignore[no-any-return]
