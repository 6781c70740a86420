"""Baselines of least variance, in closed form, and what any other baseline costs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from upslope.envs.tabular import MDP
from upslope.lab.exact import action_values, state_values
from upslope.lab.moments import Tables, expected_rest, horizon_of


def optimal(
    mdp: MDP,
    policy: Any,
    gamma: float,
    kappa: float | None = None,
    per_coordinate: bool = False,
    time_dependent: bool = True,
) -> Tensor:
    """b* = m / M: least variance (trace) of sum_t kappa^t score_t (G_t - b(t, s_t)).

    M and m are those of :func:`normal_equations`. It is the best of its class: of baselines that
    depend on state and time, or on the state alone; per-coordinate, action-dependent and
    trajectory-wise ones go lower.

    Args:
        mdp: with a horizon.
        policy: over one-hot states.
        gamma: discount of the return G.
        kappa: discount of the terms, by default gamma.
        per_coordinate: one baseline for each parameter.
        time_dependent: ``False`` for b(s), the same at every time.

    Returns:
        ``[H, S]``, with a last axis ``[d]`` per coordinate, and without ``[H]`` for b(s); 0 where a
        state is not visited or its scores are 0.

    Eq: 6.2. Source: Weaver & Tao 2001; Greensmith et al. 2004; Peters & Schaal 2008 per coordinate.
    """
    weights, products = normal_equations(mdp, policy, gamma, kappa)
    if not time_dependent:
        weights, products = weights.sum(0), products.sum(0)
    if not per_coordinate:
        weights, products = weights.sum(-1), products.sum(-1)
    return torch.where(weights > 0, products / weights.clamp(min=1e-300), torch.zeros_like(weights))


def normal_equations(
    mdp: MDP, policy: Any, gamma: float, kappa: float | None = None
) -> tuple[Tensor, Tensor]:
    """M and m of the variance as a quadratic in b: Var(b) = Var(0) - 2 sum b m + sum b^2 M.

    M = E[1{s_t = s} kappa^2t score_t^2] is diagonal, as scores at different times are orthogonal
    given the past; m = E[1{s_t = s} kappa^t score_t X] with X the whole sum without baseline.

    Returns:
        Two tensors ``[H, S, d]``; their sums over d are those of the trace.
    """
    kappa = gamma if kappa is None else kappa
    t = Tables.of(mdp, policy)
    horizon = horizon_of(mdp)
    none = torch.zeros(horizon, mdp.n_states, dtype=torch.float64)
    v, x = expected_rest(mdp, policy, gamma, kappa, none)
    on, g, pi = t.outcome[..., 0], t.score, t.pi
    visits, carried = t.start, torch.zeros_like(x[0])  # sum_k<t kappa^k gamma^(t-k) score_k
    weights, products = [], []
    for step in range(horizon):
        scale = kappa**step
        q = (t.outcome * t.reward).sum((2, 3)) + gamma * (on * v[step + 1]).sum(2)
        rest = kappa * torch.einsum("sat,td->sad", on, x[step + 1])
        squares = (pi[..., None] * g.square()).sum(1)
        weighed = (pi[..., None] * g * q[..., None]).sum(1)
        ahead = (pi[..., None] * (g.square() * q[..., None] + g * rest)).sum(1)
        weights.append(scale**2 * visits[:, None] * squares)
        products.append(scale * weighed * carried + scale**2 * visits[:, None] * ahead)
        heavy = gamma * (carried[:, None] + scale * visits[:, None, None] * g)
        carried = torch.einsum("sa,sat,sad->td", pi, on, heavy)
        visits = torch.einsum("s,sa,sat->t", visits, pi, on)
    return torch.stack(weights), torch.stack(products)


def per_step(mdp: MDP, policy: Any, gamma: float) -> Tensor:
    """E[|score|^2 Q] / E[|score|^2] ``[H, S]``: least sum of the *per-step* variances only.

    Args:
        mdp: with a horizon.
        policy: over one-hot states.
        gamma: discount per step.

    Eq: 6.3. Source: Greensmith et al. 2004; Sutton & Barto 2018, section 13.4.
    """
    t = Tables.of(mdp, policy)
    values = state_values(mdp, t.pi, gamma, horizon_of(mdp))
    squares = t.pi * t.score.square().sum(-1)
    return (squares * action_values(mdp, values[1:], gamma)).sum(-1) / squares.sum(-1)


def excess_variance(weights: Tensor, b: Tensor, b_star: Tensor) -> Tensor:
    """Var(b) - Var(b*) = sum_t,s M(t,s) (b(t,s) - b*(t,s))^2, exactly.

    Args:
        weights: M ``[H, S]``, the first of :func:`normal_equations` summed over d.
        b: ``[H, S]`` or ``[S]``.
        b_star: ``[H, S]`` of :func:`optimal`.

    Returns:
        Scalar, in squared units of the estimator.

    Eq: 6.4. Source: Greensmith et al. 2004, theorem 8, for the sum over an episode.
    """
    return (weights * (b - b_star).square()).sum()
