"""How small a variance can be at all: the efficiency bound for estimators that do not know P."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from upslope.envs.tabular import MDP
from upslope.lab.moments import Tables, horizon_of


def efficiency(mdp: MDP, policy: Any, gamma: float) -> Tensor:
    """Least asymptotic variance (trace, per episode) of an estimator of grad J_H from episodes.

    sum_s,a tr(J_sa (diag p - pp') J_sa') / E n_sa plus the same for the start, J = dg/dP by
    autograd. It is reached by the gradient of an estimated model, and it may be passed by
    estimators that are told the true V or Q.

    Args:
        mdp: with a horizon H; rewards are known functions of the transition.
        policy: over one-hot states.
        gamma: discount per step.

    Returns:
        Scalar; divide by the number of episodes.

    Eq: 7.7. Source: Cramer-Rao by the delta method; Kallus & Uehara 2020 for off-policy gradients.
    """
    t = Tables.of(mdp, policy)
    horizon = horizon_of(mdp)

    def gradient(outcome: Tensor, start: Tensor) -> Tensor:
        on = outcome[..., 0]
        reward = (outcome * t.reward).sum((2, 3))
        values = [torch.zeros_like(start)]
        for _ in range(horizon):
            q = reward + gamma * (on * values[0]).sum(2)
            values.insert(0, (t.pi * q).sum(1))
        total, visits = torch.zeros(t.score.shape[-1], dtype=start.dtype), start
        for step in range(horizon):
            q = reward + gamma * (on * values[step + 1]).sum(2)
            total = total + gamma**step * torch.einsum("s,sa,sa,sad->d", visits, t.pi, q, t.score)
            visits = torch.einsum("s,sa,sat->t", visits, t.pi, on)
        return total

    jacobian = torch.autograd.functional.jacobian
    d_outcome, d_start = jacobian(gradient, (t.outcome, t.start))  # type: ignore[no-untyped-call]
    visits, counts = t.start, torch.zeros_like(t.pi)
    for _ in range(horizon):
        counts = counts + visits[:, None] * t.pi
        visits = torch.einsum("s,sa,sat->t", visits, t.pi, t.outcome[..., 0])
    bound = _spread(d_start, t.start)
    flat = d_outcome.flatten(3)
    for s in range(mdp.n_states):
        for a in range(mdp.n_actions):
            if counts[s, a] > 0:
                bound = bound + _spread(flat[:, s, a], t.outcome[s, a].flatten()) / counts[s, a]
    return bound


def _spread(slopes: Tensor, p: Tensor) -> Tensor:
    """tr(J (diag p - pp') J') for J ``[d, K]`` and probabilities ``[K]``."""
    return (slopes.square() @ p).sum() - (slopes @ p).square().sum()
