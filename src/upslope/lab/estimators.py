"""The estimators of the policy gradient: what each multiplies the scores with, and what it claims.

Every one is ``(1/N) sum_i sum_t score_t Psi_t`` over whole episodes; they differ in Psi alone,
which is computed by the functions of ``theory/returns.py`` that train.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from upslope.algorithms.common import scaled_rewards
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import EvaluatedRollout, Rollout
from upslope.theory.returns import (
    batch_baseline,
    discount_weights,
    episode_return,
    gae,
    reward_to_go,
    td_errors,
)

LAMBDAS = (0.0, 0.5, 0.9, 0.95, 1.0)


@dataclass(frozen=True)
class Steps:
    """What a weight may read of whole episodes: all ``[T, B]``, in units of reward."""

    rewards: Tensor
    terminated: Tensor
    boundary: Tensor
    valid: Tensor
    episode_step: Tensor
    episode: Tensor
    values: Tensor
    next_values: Tensor
    gamma: float

    @classmethod
    def of(
        cls, policy: ActorCritic, rollout: Rollout, evaluated: EvaluatedRollout, gamma: float
    ) -> Steps:
        """The steps of a rollout, with the values of the policy's own critic."""
        return cls(
            scaled_rewards(policy, rollout),
            rollout.terminated,
            rollout.boundary,
            rollout.valid,
            rollout.episode_step,
            rollout.episode,
            evaluated.values,
            evaluated.next_values,
            gamma,
        )


Weigh = Callable[[Steps], Tensor]


@dataclass(frozen=True)
class Estimator:
    """One choice of Psi.

    ``keeps_discount`` says whether the terms carry gamma^t: the mean is then the gradient of an
    objective; without it, it is what practice follows. ``reads_values`` says whether V is needed,
    and ``bootstraps`` whether V stands for rewards that were not seen, so that an error of V is an
    error of the gradient.
    """

    name: str
    weigh: Weigh
    keeps_discount: bool = False
    reads_values: bool = False
    bootstraps: bool = False


def with_values(steps: Steps, table: Tensor) -> Steps:
    """The same steps under the value function of a table ``[H + 1, S]``, or ``[S]``.

    The steps' own values must be the numbers of the states, as those of a ``Problem``'s policy are.
    """
    here, there = steps.values.round().long(), steps.next_values.round().long()
    if table.dim() == 1:
        return replace(steps, values=table[here], next_values=table[there])
    time = steps.episode_step.clamp(max=len(table) - 2)
    return replace(steps, values=table[time, here], next_values=table[time + 1, there])


def with_discount(weigh: Weigh) -> Weigh:
    """Return gamma^t times a weight (Eq. 3.2)."""

    def weighed(steps: Steps) -> Tensor:
        weights = weigh(steps)
        return weights * discount_weights(steps.episode_step, steps.gamma).to(weights.dtype)

    return weighed


def whole_return(steps: Steps) -> Tensor:
    """R(tau) on every row of its episode."""
    return episode_return(steps.rewards, steps.boundary, steps.gamma)


def to_go(steps: Steps) -> Tensor:
    """G_t, to the end of what was sampled."""
    return reward_to_go(steps.rewards, steps.boundary, steps.gamma)


def minus_batch_mean(weigh: Weigh, leave_out: bool, per_step: bool, size: int | None) -> Weigh:
    """Return a weight minus its mean over the (other) episodes of a batch of ``size``."""

    def weighed(steps: Steps) -> Tensor:
        weights = weigh(steps)
        return weights - batch_baseline(
            weights, steps.episode, steps.episode_step, steps.valid, leave_out, per_step, size
        )

    return weighed


def to_go_minus_value(steps: Steps) -> Tensor:
    """G_t - V(s_t)."""
    return to_go(steps) - steps.values


def td_error(steps: Steps) -> Tensor:
    """delta_t, the TD residual."""
    return td_errors(steps.rewards, steps.values, steps.next_values, steps.terminated, steps.gamma)


def advantage(gae_lambda: float) -> Weigh:
    """Return GAE(lambda)."""

    def weighed(steps: Steps) -> Tensor:
        return gae(
            steps.rewards, steps.values, steps.next_values, steps.terminated, steps.boundary,
            steps.gamma, gae_lambda,
        )  # fmt: skip

    return weighed


def applicable(batch: int | None = None) -> tuple[Estimator, ...]:
    """Every estimator that any rollout of whole episodes allows, with a learned V.

    Args:
        batch: episodes over which means are taken, by default all of the rollout.
    """
    return (
        Estimator("episode return", whole_return, keeps_discount=True),
        Estimator(
            "episode return - mean",
            minus_batch_mean(whole_return, False, False, batch),
            keeps_discount=True,
        ),
        Estimator(
            "episode return - leave-one-out",
            minus_batch_mean(whole_return, True, False, batch),
            keeps_discount=True,
        ),
        Estimator("reward-to-go", with_discount(to_go), keeps_discount=True),
        Estimator("reward-to-go without gamma^t", to_go),
        Estimator("reward-to-go - leave-one-out", minus_batch_mean(to_go, True, True, batch)),
        Estimator("reward-to-go - V", to_go_minus_value, reads_values=True),
        Estimator("TD residual", td_error, reads_values=True, bootstraps=True),
        *(
            Estimator(f"GAE({lam:g})", advantage(lam), reads_values=True, bootstraps=True)
            for lam in LAMBDAS[1:]
        ),
    )


def weights_of(estimators: tuple[Estimator, ...], steps: Steps) -> dict[str, Tensor]:
    """Psi ``[T, B]`` of each estimator by name; rows that are no transitions get 0."""
    nothing = torch.zeros_like(steps.rewards)
    return {e.name: torch.where(steps.valid, e.weigh(steps), nothing) for e in estimators}
