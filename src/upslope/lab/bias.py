"""Exact bias of estimators that are not unbiased: wrong V, wrong divisor, wrong stopping rule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from upslope.envs.tabular import MDP
from upslope.lab.moments import Tables, horizon_of


def ratio_bias(
    prob: Tensor, gradients: Tensor, lengths: Tensor, n_episodes: int
) -> tuple[Tensor, Tensor]:
    """Expectation of mean-over-steps, sum_i x_i / sum_i L_i, from N episodes of two kinds.

    Args:
        prob: ``[2]`` probabilities of the kinds.
        gradients: ``[2]`` x of an episode of each kind.
        lengths: ``[2]`` steps of each kind.
        n_episodes: N.

    Returns:
        The expectation times E[L], and E[x]: the first is what the second should be.

    Eq: 4.3.
    """
    count = torch.arange(n_episodes + 1, dtype=torch.float64)
    choose = [math.comb(n_episodes, k) for k in range(n_episodes + 1)]
    law = torch.tensor(choose, dtype=torch.float64)
    law = law * prob[1] ** count * prob[0] ** (n_episodes - count)
    total = (n_episodes - count) * gradients[0] + count * gradients[1]
    steps = (n_episodes - count) * lengths[0] + count * lengths[1]
    return (law * total / steps).sum() * (prob @ lengths), prob @ gradients


def stopping_rule(
    lengths: tuple[int, int],
    gradients: tuple[float, float],
    rule: str,
    n_envs: int,
    n_steps: int,
    prob: float = 0.5,
) -> float:
    """Expected mean over the episodes that a *step count* keeps, from two kinds of episode.

    Args:
        lengths: steps of each kind.
        gradients: x of an episode of each kind.
        rule: ``keep-finished`` drops the running episode of every environment after ``n_steps``;
            ``finish-the-last`` runs it to its end.
        n_envs: environments side by side.
        n_steps: steps of each.
        prob: of the second kind.

    Returns:
        E[sum x / number kept], 0 where nothing is kept; unbiased would be E[x].

    Raises:
        ValueError: for another rule.

    Eq: 4.4. Source: the inspection paradox of renewal theory.
    """
    if rule not in ("keep-finished", "finish-the-last"):
        raise ValueError(f"rule={rule!r} is neither keep-finished nor finish-the-last")
    kept = _kept_by_one(lengths, rule, n_steps, prob)
    batch = {(0, 0): 1.0}
    for _ in range(n_envs):
        joined: dict[tuple[int, int], float] = {}
        for (a, b), p in batch.items():
            for (c, d), q in kept.items():
                joined[a + c, b + d] = joined.get((a + c, b + d), 0.0) + p * q
        batch = joined
    return sum(
        p * (a * gradients[0] + b * gradients[1]) / (a + b) for (a, b), p in batch.items() if a + b
    )


def _kept_by_one(
    lengths: tuple[int, int], rule: str, n_steps: int, prob: float
) -> dict[tuple[int, int], float]:
    """Law of how many episodes of each kind one environment keeps."""
    running = {(0, 0): 1.0}  # how many of each kind began, one after another
    kept: dict[tuple[int, int], float] = {}
    while running:
        going: dict[tuple[int, int], float] = {}
        for (a, b), p in running.items():
            used = a * lengths[0] + b * lengths[1]
            if used >= n_steps:
                kept[a, b] = kept.get((a, b), 0.0) + p
                continue
            for kind, q in ((0, 1 - prob), (1, prob)):
                counts = (a + 1, b) if kind == 0 else (a, b + 1)
                if rule == "keep-finished" and used + lengths[kind] > n_steps:
                    kept[a, b] = kept.get((a, b), 0.0) + p * q
                else:
                    going[counts] = going.get(counts, 0.0) + p * q
        running = going
    return kept


def nstep(mdp: MDP, policy: Any, e: Tensor, gamma: float, w: float) -> Tensor:
    """c_n = gamma^n E sum_t w^t score_t e(s_{t+n}): bias of the n-step advantage with V + e.

    Beyond the horizon the n-step estimator ends where the rollout does, so c_H is that of every
    longer one. Where the limit is the task, an episode that reaches it has terminated and e counts
    0 there; where it truncates, e of the last state stays.

    Args:
        mdp: with a horizon H.
        policy: over one-hot states.
        e: ``[S]`` error of the value function, Vhat - V.
        gamma: discount per step.
        w: discount of the terms: gamma keeps gamma^t, 1 drops it.

    Returns:
        ``[H, d]``: c_1 to c_H.

    Eq: 8.6. Source: Schulman et al. 2016, section 3; Kearns & Singh 2000.
    """
    t = Tables.of(mdp, policy)
    horizon, on = horizon_of(mdp), torch.einsum("sa,sat->st", t.pi, t.outcome[..., 0])
    visits = t.start
    bias = torch.zeros(horizon, t.score.shape[-1], dtype=torch.float64)
    for step in range(horizon):
        flow = w**step * (visits[:, None] * t.pi)[..., None] * t.outcome[..., 0]
        scored = torch.einsum("sat,sad->td", flow, t.score)
        for n in range(1, horizon + 1):
            ahead = min(n, horizon - step)
            arrives = torch.linalg.matrix_power(on, ahead - 1)
            if step + ahead == horizon and mdp.limit_is_task:
                continue
            bias[n - 1] += gamma**ahead * (scored.T @ arrives) @ e
        visits = visits @ on
    return bias


def gae(c: Tensor, lam: float) -> Tensor:
    """b(lambda) = (1 - lambda) sum_{n<N} lambda^(n-1) c_n + lambda^(N-1) c_N: GAE's bias.

    Args:
        c: ``[N, d]`` of :func:`nstep`; c_N stands for every longer n.
        lam: lambda in [0, 1].

    Returns:
        ``[d]``. With termination inside the batch c_N = 0, and lambda = 1 has no bias.

    Eq: 8.7. Source: Schulman et al. 2016, eq. 16 applied to the value's error.
    """
    weights = (1 - lam) * lam ** torch.arange(len(c), dtype=c.dtype)
    weights[-1] = lam ** (len(c) - 1)
    return weights @ c


def contraction(gamma: float, lam: float) -> float:
    """kappa = gamma (1 - lambda) / (1 - gamma lambda): |b(lambda)| <= kappa |e| E sum |w score|.

    It holds where every sampled episode terminates inside the batch; |e| is the largest error.

    Eq: 8.8. Source: Bertsekas & Tsitsiklis 1996, for the operator T^lambda.
    """
    return gamma * (1 - lam) / (1 - gamma * lam) if gamma * lam < 1 else 0.0


def mean_squared_error(bias: Tensor, trace: Tensor, n_episodes: int) -> Tensor:
    """|b|^2 + tr Cov / N: what a choice of lambda costs for a batch of N episodes.

    Args:
        bias: ``[d]``.
        trace: scalar, the variance of one episode.
        n_episodes: N.

    Eq: 8.10. Source: Kearns & Singh 2000, "Bias-variance error bounds for temporal differences".
    """
    return bias.square().sum() + trace / n_episodes
