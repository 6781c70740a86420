"""The estimators of the study on one problem, each with its target and its exact mean and variance.

Why an estimator is biased is said by rule, from what it reads and whose the time limit is; that the
rule agrees with the exact means is a test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from upslope.envs.tabular import MDP
from upslope.lab import baselines, moments
from upslope.lab import estimators as est
from upslope.lab.estimators import LAMBDAS, Steps, with_values
from upslope.lab.exact import (
    action_values,
    fisher,
    policy_gradient,
    state_probabilities,
    state_values,
    visitation,
)
from upslope.lab.floor import efficiency
from upslope.lab.natural import inverse_fisher
from upslope.lab.problems import Problem
from upslope.optim import Batch
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.distributions import Categorical, Distribution
from upslope.theory.objectives import clipped_surrogate_loss
from upslope.unit_gradients import UnitLoss, pseudo_loss

BATCH_OF_MEANS = 4  # episodes over which the batch's mean is taken, so that its bias can be seen
DAMPING = 0.1
ROUNDING = 1e-9
TYPICAL = 0.95  # lambda of the single entries

FINITE, DISCOUNTED, UNDISCOUNTED = "finite", "discounted", "undiscounted-weights"
TAIL = "the rewards beyond the limit of the sampling are missing"
ERROR = "V stands for rewards that were not seen, and V is wrong"
OWN_ACTION = f"the mean of {BATCH_OF_MEANS} episodes holds the own one: 1 - 1/N of the gradient"
SOUND = ""


@dataclass(frozen=True)
class Contender:
    """One estimator on one problem."""

    name: str
    target_name: str
    target: Tensor  # [d]
    exact_mean: Tensor  # [d]
    exact_variance: float  # trace of the covariance, of one episode
    reason: str  # why it is biased, where it is
    basis: Tensor  # [d, k] the directions in which it can vary
    columns: Callable[[Steps], dict[str, Tensor]]
    loss: UnitLoss
    transform: Callable[[Tensor], Tensor] = lambda gradients: gradients
    floor: float | None = None  # least variance without knowing the process, where it is defined

    @property
    def predicted_unbiased(self) -> bool:
        """What theory predicts: whether the exact mean is the target.

        A reason need not bite everywhere: in a process of one step no V is asked for the future.
        """
        gap = (self.exact_mean - self.target).norm()
        return bool(gap <= ROUNDING * self.target.norm())


def roster(problem: Problem, policy: ActorCritic, learned: Tensor) -> list[Contender]:
    """All estimators of the study, with the V that was learned ``[S]``."""
    oracle = Oracle(problem, policy, {})
    oracle.tables.update(exact=oracle.values, wrong=oracle.wrong_values, learned=learned)
    whole = [_whole_return(oracle, *case) for case in (("none",), ("J",), ("mean",), ("loo",))]
    to_go = [
        _to_go(oracle, *case)
        for case in ((True, None), (True, "V"), (True, "b*"), (False, None), (False, "V"))
    ]
    advantages = [
        _advantage(oracle, kind, lam) for kind in ("exact", "learned", "wrong") for lam in LAMBDAS
    ]
    rest = [
        _advantage(oracle, "exact", TYPICAL, keeps=True),
        _all_action(oracle),
        _surrogate(oracle),
        _natural(oracle),
    ]
    return [*whole, *to_go, *advantages, *rest]


@dataclass(frozen=True)
class Oracle:
    """What is known exactly of a problem."""

    problem: Problem
    policy: ActorCritic
    tables: dict[str, Tensor] = field(default_factory=dict)  # value functions by name

    @cached_property
    def mdp(self) -> MDP:
        """The process with a horizon, for the recursions."""
        return self.problem.limited()

    @cached_property
    def pi(self) -> Tensor:
        """Probabilities ``[S, A]``."""
        return state_probabilities(self.mdp, self.policy)

    @cached_property
    def scores(self) -> moments.Tables:
        """Tables of the recursions."""
        return moments.Tables.of(self.mdp, self.policy)

    @cached_property
    def values(self) -> Tensor:
        """V: of the steps left ``[H + 1, S]`` where the limit is the task's, else ``[S]``."""
        horizon = self.mdp.horizon if self.problem.limit == "task" else None
        return state_values(self.mdp, self.pi, self.problem.gamma, horizon)

    @cached_property
    def wrong_values(self) -> Tensor:
        """V with an error of its own in every state, of the size of the rewards' spread."""
        mdp, chance = self.mdp, self.pi[..., None] * self.mdp.transitions
        visits = visitation(mdp, self.pi, 1.0, mdp.horizon).sum(0)
        law = visits[:, None, None] / visits.sum() * chance
        mean = (law * mdp.rewards).sum()
        spread = (law * (mdp.rewards - mean).square()).sum().sqrt()
        pattern = torch.tensor([1.0, -1.5, 2.0], dtype=torch.float64)
        return self.values + spread * pattern.repeat(mdp.n_states)[: mdp.n_states]

    @cached_property
    def basis(self) -> Tensor:
        """Directions ``[d, k]`` in which scores vary: eigenvectors of the Fisher matrix."""
        visits = visitation(self.mdp, self.pi, 1.0, self.mdp.horizon).sum(0)
        values, vectors = torch.linalg.eigh(fisher(self.policy, visits / visits.sum()))
        varied: Tensor = vectors[:, values > 1e-6 * values.max()]
        return varied

    def target(self, keeps: bool, bootstraps: bool) -> tuple[str, Tensor]:
        """Name and vector ``[d]`` of what an estimator is for."""
        problem, horizon = self.problem, self.problem.mdp.horizon
        if not keeps:
            ends = torch.zeros(self.mdp.n_states) if problem.limit == "task" else None
            found = self._gradient(UNDISCOUNTED, horizon, ends)
            return UNDISCOUNTED, found
        if problem.limit == "none" or (problem.limit == "sampling" and bootstraps):
            return DISCOUNTED, self._gradient(DISCOUNTED, None)
        return FINITE, self._gradient(FINITE, horizon)

    def _gradient(self, target: str, horizon: int | None, terminal: Tensor | None = None) -> Tensor:
        process = self.problem.mdp
        return policy_gradient(process, self.policy, target, self.problem.gamma, horizon, terminal)

    def td_table(self, kind: str) -> Tensor:
        """TD errors of every transition ``[H, S, A, S, 2]`` under a value function."""
        values, horizon = self.tables[kind], moments.horizon_of(self.mdp)
        if values.dim() == 1:
            values = values.expand(horizon + 1, -1)
        at_limit = self.problem.limit == "task"
        return moments.td_table(self.mdp, values, self.problem.gamma, at_limit)

    def floor(self, target: str) -> float | None:
        """The efficiency bound, for targets of which it is one."""
        if target == UNDISCOUNTED or (target == DISCOUNTED and self.problem.limit != "none"):
            return None
        return self._floor

    @cached_property
    def _floor(self) -> float:
        return float(efficiency(self.mdp, self.policy, self.problem.gamma))

    def make(
        self,
        name: str,
        target: tuple[str, Tensor],
        exact: tuple[Tensor, Tensor],
        reason: str,
        weigh: est.Weigh,
    ) -> Contender:
        """An estimator that is a weight."""
        return Contender(
            name, *target, exact[0], max(0.0, float(exact[1])), reason, self.basis,
            lambda steps: {name: weigh(steps)}, pseudo_loss(name), floor=self.floor(target[0]),
        )  # fmt: skip


def _whole_return(oracle: Oracle, kind: str) -> Contender:
    mdp, policy, gamma = oracle.mdp, oracle.policy, oracle.problem.gamma
    target, reason = oracle.target(keeps=True, bootstraps=False), SOUND
    weigh: est.Weigh = est.whole_return
    if kind in ("none", "J"):
        level = float(moments.joint_moments(mdp, policy, gamma).y) if kind == "J" else 0.0
        exact = moments.episode_return(mdp, policy, gamma, level)
        weigh = lambda steps: est.whole_return(steps) - level  # noqa: E731
        name = "episode return" + (" - J" if kind == "J" else "")
    else:
        leave_out = kind == "loo"
        exact = moments.batch_mean(mdp, policy, gamma, BATCH_OF_MEANS, leave_out)
        weigh = est.minus_batch_mean(est.whole_return, leave_out, False, BATCH_OF_MEANS)
        name = f"episode return - {'leave-one-out' if leave_out else 'mean'}"
        reason = SOUND if leave_out else OWN_ACTION
    return oracle.make(name, target, exact, reason, weigh)


def _to_go(oracle: Oracle, keeps: bool, baseline: str | None) -> Contender:
    mdp, policy, gamma = oracle.mdp, oracle.policy, oracle.problem.gamma
    kappa, b, name = gamma if keeps else 1.0, None, "reward-to-go"
    if baseline == "V":
        b = oracle.values if oracle.values.dim() == 1 else oracle.values[:-1]
    elif baseline == "b*":
        b = baselines.optimal(mdp, policy, gamma, kappa, time_dependent=False)

    def weigh(steps: Steps) -> Tensor:
        return est.to_go(steps) if b is None else est.to_go_minus_value(with_values(steps, table))

    if b is not None:
        name, table = f"{name} - {baseline}", b if b.dim() == 1 else oracle.values
    if not keeps:
        name += " without gamma^t"
    exact = moments.weighted(mdp, policy, moments.reward_table(mdp), gamma, kappa, b)
    missing = not keeps and oracle.problem.limit == "sampling"
    return oracle.make(
        name, oracle.target(keeps, False), exact, TAIL if missing else SOUND,
        est.with_discount(weigh) if keeps else weigh,
    )  # fmt: skip


def _advantage(oracle: Oracle, kind: str, lam: float, keeps: bool = False) -> Contender:
    gamma, table = oracle.problem.gamma, oracle.tables[kind]
    weigh = est.td_error if lam == 0 else est.advantage(lam)

    def weighed(steps: Steps) -> Tensor:
        return weigh(with_values(steps, table))

    kappa = gamma if keeps else 1.0
    rho = oracle.td_table(kind)
    exact = moments.weighted(oracle.mdp, oracle.policy, rho, gamma * lam, kappa)
    reason, limit = SOUND, oracle.problem.limit
    if kind != "exact" and (lam < 1 or limit == "sampling"):
        reason = ERROR  # lambda = 1 asks V only where the sampling is cut
    elif keeps and limit == "sampling":
        reason = TAIL
    name = f"{'TD residual' if lam == 0 else f'GAE({lam:g})'}, {kind} V"
    name += " with gamma^t" if keeps else ""
    return oracle.make(
        name, oracle.target(keeps, True), exact, reason,
        est.with_discount(weighed) if keeps else weighed,
    )  # fmt: skip


def _all_action(oracle: Oracle) -> Contender:
    """sum_a grad pi(a|s) Q(s, a): no action's weight is sampled."""
    horizon = moments.horizon_of(oracle.mdp)
    values = oracle.values if oracle.values.dim() == 2 else oracle.values.expand(horizon + 1, -1)
    q = action_values(oracle.mdp, values[1:], oracle.problem.gamma)  # [H, S, A]
    terms = torch.einsum("sa,sad,tsa->tsd", oracle.pi, oracle.scores.score, q)
    exact = moments.state_sum(oracle.mdp, oracle.policy, terms, 1.0)

    def columns(steps: Steps) -> dict[str, Tensor]:
        return {"step": steps.episode_step.clamp(max=horizon - 1)}

    def loss(distribution: Distribution, rows: Batch) -> Tensor:
        weight = q[rows["step"], rows["state"]] * rows["valid"][:, None]
        assert isinstance(distribution, Categorical)
        total: Tensor = (distribution.log_probs.exp() * weight).sum()
        return -total

    target = oracle.target(keeps=False, bootstraps=True)
    return Contender(
        "all actions, exact Q", *target, exact[0], max(0.0, float(exact[1])), SOUND, oracle.basis,
        columns, loss,
    )  # fmt: skip


def _surrogate(oracle: Oracle) -> Contender:
    """PPO's clipped surrogate at the policy that collected: the policy gradient of its weights."""
    plain = _advantage(oracle, "exact", TYPICAL)

    def loss(distribution: Distribution, rows: Batch) -> Tensor:
        surrogate = clipped_surrogate_loss(
            rows["new_log_prob"], rows["log_prob"], rows[plain.name], rows["valid"], 0.2
        )
        total: Tensor = surrogate * rows["valid"].sum()  # a mean over rows, as a sum
        return total

    return Contender(
        f"PPO surrogate, GAE({TYPICAL:g}), exact V", plain.target_name, plain.target,
        plain.exact_mean, plain.exact_variance, plain.reason, oracle.basis, plain.columns, loss,
    )  # fmt: skip


def _natural(oracle: Oracle) -> Contender:
    """(F + c I)^-1 g with the exact Fisher matrix of undiscounted visits, and a sampled g."""
    plain = _advantage(oracle, "exact", TYPICAL)
    visits = visitation(oracle.mdp, oracle.pi, 1.0, oracle.mdp.horizon).sum(0)
    inverse = inverse_fisher(oracle.policy, visits / visits.sum(), DAMPING)
    turned = oracle.scores._replace(score=oracle.scores.score @ inverse)
    rho, gamma = oracle.td_table("exact"), oracle.problem.gamma
    mean, trace = moments.weighted(oracle.mdp, turned, rho, gamma * TYPICAL, 1.0)
    return Contender(
        f"NPG direction, GAE({TYPICAL:g}), exact V", plain.target_name, plain.target @ inverse,
        mean, max(0.0, float(trace)), plain.reason, oracle.basis, plain.columns, plain.loss,
        lambda gradients: gradients @ inverse,
    )  # fmt: skip
