"""Exact answers for linear dynamics and quadratic rewards under a Gaussian with affine mean.

A state is read with a 1 behind it, z = (x, 1). Then every value is a quadratic form z'Vz, and all
that values ask about the law of the state is its second moment E[zz'], which moves linearly. So
functions, targets and weights are those of ``exact.py``, in float64, with forms for its tables of
values and moments for its tables of probabilities. Under bounds nothing stays quadratic: one step
has a closed form, and more are refused.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from upslope.envs.linear_quadratic import LQ
from upslope.lab.exact import TARGETS
from upslope.lab.policies import actor_parameters
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.box_actions import GaussianActions, is_bounded


class AffineGaussian(NamedTuple):
    """u ~ N(gain z, diag(std^2)) with z = (x, 1), in the environment's units."""

    gain: Tensor  # [m, n + 1], the constant last
    std: Tensor  # [m], the same in every state

    @property
    def lift(self) -> Tensor:
        """``[n + 1 + m, n + 1]``: z to the mean of (x, 1, u)."""
        return torch.cat([torch.eye(self.gain.shape[1], dtype=self.gain.dtype), self.gain])


def affine_gaussian(lq: LQ, policy: ActorCritic, differentiable: bool = False) -> AffineGaussian:
    """What an ``ActorCritic`` with ``net_arch=()`` does in ``lq``; on request with its graph.

    Under bounds the policy lives in units of half the range, and the result does not.

    Raises:
        ValueError: if its mean is not affine in the state, or it was made for other spaces.
    """
    if (
        type(policy.actions) is not GaussianActions
        or len(policy.actor)
        or policy.shared_network
        or policy.has_memory
        or policy.obs_normalizer is not None
    ):
        raise ValueError(
            "an exact answer needs a Gaussian with affine mean: make the policy with net_arch=(), "
            "action_dist='gaussian', memory='none', and neither norm_obs nor shared_network"
        )
    if (policy.observation_space, policy.action_space) != (lq.observation_space, lq.action_space):
        raise ValueError(
            f"the policy was made for other spaces than those of {lq.name}: make it with "
            "lq.observation_space and lq.action_space"
        )
    unit = lq.bound if lq.bound and is_bounded(lq.action_space).all() else 1.0
    head, actions = policy.actor_head, policy.actions
    with torch.set_grad_enabled(differentiable):
        gain = unit * torch.cat([head.weight, head.bias[:, None]], 1).double()
        return AffineGaussian(gain, unit * actions.bounded_log_std().double().exp())


def objective(lq: LQ, pi: AffineGaussian, gamma: float, horizon: int | None = None) -> Tensor:
    """J = E sum_t gamma^t r_t over ``horizon`` steps, or until termination (as in Eq. 1.1).

    Args:
        lq: the process; its own time limit is not read.
        pi: from :func:`affine_gaussian`.
        gamma: discount per step, in [0, 1].
        horizon: number of steps, ``None`` for no limit.

    Returns:
        Scalar, in units of reward.

    Raises:
        ValueError: where J is infinite; with bounds for more than one step, or R not diagonal.

    Source: Anderson & Moore 1990, "Optimal control: linear quadratic methods".
    """
    if lq.bound is not None:
        return _clipped_reward(lq, pi, lq.bound, horizon)
    values = state_values(lq, pi, gamma, horizon)
    return (lq.start_moment * (values if horizon is None else values[0])).sum()


def state_values(
    lq: LQ,
    pi: AffineGaussian,
    gamma: float,
    horizon: int | None = None,
    terminal: Tensor | None = None,
) -> Tensor:
    """V with V(x) = z'Vz: ``[n + 1, n + 1]`` without limit, ``[H + 1, n + 1, n + 1]`` with one.

    It solves V = E_pi[r + gamma V'] (Eq. 1.2), a discrete Lyapunov equation; :func:`evaluate` reads
    it. Arguments and errors are those of :func:`objective`, and ``terminal [n + 1, n + 1]`` is the
    value where the horizon leaves an episode, 0 by default.
    """
    none = torch.zeros_like(lq.start_moment)
    if horizon is None:
        now = _over_actions(action_values(lq, none, gamma), pi)
        _check_finite(lq, pi, gamma)
        return _sum_over_time(gamma * _continuing(lq, pi).T, now)
    values = [none if terminal is None else terminal]
    for _ in range(horizon):
        values.insert(0, _over_actions(action_values(lq, values[0], gamma), pi))
    return torch.stack(values)


def action_values(lq: LQ, values: Tensor, gamma: float) -> Tensor:
    """The form of Q(x, u) = r(x, u) + gamma E[V(x')] in (x, 1, u) (as in Eq. 1.3).

    ``values [..., n + 1, n + 1]`` are those of the *successors*: for a finite horizon
    ``state_values(...)[1:]``. Returns ``[..., n + 1 + m, n + 1 + m]``; :func:`evaluate` reads it.
    """
    _refuse_bounds(lq)
    n, step = lq.n_states, lq.step_matrix
    corner = torch.outer(step[n], step[n])  # the form that is 1 everywhere
    spread = (values[..., :n, :n] * lq.noise).sum((-2, -1))
    ahead = step.T @ values @ step + spread[..., None, None] * corner
    return gamma * lq.survival * ahead + lq.reward_form


def evaluate(form: Tensor, x: Tensor, u: Tensor | None = None) -> Tensor:
    """V(x) or Q(x, u) ``[N]`` from its form, for states ``[N, n]`` and actions ``[N, m]``."""
    point = torch.cat([pad(x, (0, 1), value=1.0), x[:, :0] if u is None else u], 1)
    return ((point @ form) * point).sum(1)


def visitation(lq: LQ, pi: AffineGaussian, gamma_w: float, horizon: int | None) -> Tensor:
    """gamma_w^t E[zz' 1{alive at t}] ``[H, n + 1, n + 1]``, or summed over all t without limit.

    ``gamma_w`` is the weight's discount: gamma for J_gamma, 1 for practice (as in Eq. 1.4). The
    last entry is the weight itself; :func:`state_moments` takes the rest apart.

    Raises:
        ValueError: where the sum is infinite, or for more than the first step under bounds.
    """
    if horizon != 1:
        _refuse_bounds(lq)
    on = gamma_w * _continuing(lq, pi)
    if horizon is None:
        _check_finite(lq, pi, gamma_w)
        return _sum_over_time(on, lq.start_moment)
    visits = [lq.start_moment]
    for _ in range(horizon - 1):
        visits.append((on @ visits[-1].reshape(-1)).view_as(visits[-1]))
    return torch.stack(visits)


def state_moments(visits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weight ``[...]``, mean ``[..., n]`` and covariance ``[..., n, n]`` of states from visits."""
    second = visits / visits[..., -1:, -1:]
    mean, square = second[..., :-1, -1], second[..., :-1, :-1]
    return visits[..., -1, -1], mean, square - mean[..., :, None] * mean[..., None, :]


def policy_gradient(
    lq: LQ,
    policy: ActorCritic,
    target: str,
    gamma: float,
    horizon: int | None = None,
    terminal: Tensor | None = None,
) -> Tensor:
    """The exact gradient: sum_t weight_t E_x[grad E_pi[Q_t(x, u)]], Q held fixed (as in Eq. 2.4).

    Args:
        lq, policy: the process, and what :func:`affine_gaussian` can read.
        target, gamma, horizon, terminal: as in ``exact.policy_gradient``: ``finite`` needs a
            horizon; for the others the sum over t ends there while Q goes on, unless ``terminal``
            (a fixed form, as for :func:`state_values`) says what lies behind it.

    Returns:
        ``[d]``, in the order of :func:`~upslope.lab.policies.actor_parameters`.

    Raises:
        ValueError: for an unknown target, ``finite`` without a horizon, a policy without affine
            mean, or an infinite sum over time; with bounds for all but ``finite`` of one step.

    Source: Sutton et al. 2000, theorem 1; Fazel et al. 2018, "Global convergence of policy gradient
    methods for the linear quadratic regulator", lemma 1.
    """
    if target not in TARGETS:
        raise ValueError(f"target={target!r} is not one of {', '.join(TARGETS)}")
    if horizon is None and (target == "finite" or terminal is not None):
        raise ValueError("target='finite', or a terminal value, needs a horizon: give one")
    pi, fixed = affine_gaussian(lq, policy, differentiable=True), affine_gaussian(lq, policy)
    if lq.bound is not None and target == "finite":
        return _pull_back(policy, objective(lq, pi, gamma, horizon))
    weights = visitation(lq, fixed, 1.0 if target == "undiscounted-weights" else gamma, horizon)
    if target == "finite" or terminal is not None:
        q = action_values(lq, state_values(lq, fixed, gamma, horizon, terminal)[1:], gamma)
    else:
        weights = weights if horizon is None else weights.sum(0)
        q = action_values(lq, state_values(lq, fixed, gamma), gamma)
    return _pull_back(policy, (weights * _over_actions(q, pi)).sum())


def fisher(lq: LQ, policy: ActorCritic, gamma_w: float, horizon: int | None = None) -> Tensor:
    """F_w = sum_t w_t E[score score'] ``[d, d]``, w_t = gamma_w^t made to sum to 1 (as in Eq. 9.1).

    Args:
        lq, policy, horizon: as for :func:`policy_gradient`, with the errors of :func:`visitation`.
        gamma_w: gamma goes with the discounted gradient, 1 with practice.

    Source: Kakade 2001, "A natural policy gradient".
    """
    pi, fixed = affine_gaussian(lq, policy, differentiable=True), affine_gaussian(lq, policy)
    visits = visitation(lq, fixed, gamma_w, horizon).reshape(-1, *lq.start_moment.shape).sum(0)
    of_gain = torch.kron(fixed.std.square().reciprocal().diag(), visits / visits[-1, -1])
    gain, log_std = (  # in which a normal has the Fisher matrices 1/sigma^2 and 2
        torch.stack([_pull_back(policy, entry) for entry in part.reshape(-1)]).double()
        for part in (pi.gain, pi.std.log())
    )
    return gain.T @ of_gain @ gain + 2 * log_std.T @ log_std


def clipped_moments(mean: Tensor, std: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """E[c] and E[c^2] of c = clip(a, -bound, bound) with a ~ N(mean, std^2), element by element.

    The mean of any quadratic reward of a clipped action, and its gradient, follow from them.
    Source: Tobin 1958, "Estimation of relationships for limited dependent variables".
    """
    low, high = (-bound - mean) / std, (bound - mean) / std
    below, above = torch.special.ndtr(low), torch.special.ndtr(-high)
    at_low, at_high = ((-x.square() / 2).exp() / math.sqrt(2 * math.pi) for x in (low, high))
    inside, drop = 1 - below - above, at_low - at_high
    first = bound * (above - below) + mean * inside + std * drop
    second = bound**2 * (above + below) + (mean.square() + std.square()) * inside
    second = second + 2 * mean * std * drop + std.square() * (low * at_low - high * at_high)
    return first, second


def _clipped_reward(lq: LQ, pi: AffineGaussian, bound: float, horizon: int | None) -> Tensor:
    """J of one step under bounds: over states and noise an action is normal, and then clipped."""
    if horizon != 1:
        _refuse_bounds(lq)
    if (lq.R - lq.R.diag().diag()).any():
        raise ValueError(f"{lq.name} has bounds and an R that is not diagonal: give a diagonal one")
    start, slope = lq.start_moment, pi.gain[:, :-1]
    variance = ((slope @ lq.start_covariance) * slope).sum(1) + pi.std.square()
    _, squares = clipped_moments(pi.gain @ start[:, -1], variance.sqrt(), bound)
    return -(lq.Q * start[:-1, :-1]).sum() - (lq.R.diag() * squares).sum()


def _over_actions(form: Tensor, pi: AffineGaussian) -> Tensor:
    """The form in z of the mean over actions of a form in (x, 1, u)."""
    size = pi.gain.shape[1]
    spread = (form[..., size:, size:] * pi.std.square().diag()).sum((-2, -1))[..., None, None]
    return pi.lift.T @ form @ pi.lift + pad(spread, (size - 1, 0, size - 1, 0))


def _continuing(lq: LQ, pi: AffineGaussian) -> Tensor:
    """T ``[(n + 1)^2, (n + 1)^2]``: E[zz'] now to that of the next step, if there is one."""
    loop = lq.step_matrix @ pi.lift
    spread = pad(lq.noise + (lq.B * pi.std.square()) @ lq.B.T, (0, 1, 0, 1)).reshape(-1)
    return lq.survival * (torch.kron(loop, loop) + pad(spread[:, None], (len(spread) - 1, 0)))


def _sum_over_time(step: Tensor, first: Tensor) -> Tensor:
    """sum_t step^t first, for a matrix ``first [n + 1, n + 1]`` laid out as a vector."""
    rest = torch.eye(len(step), dtype=step.dtype) - step
    total: Tensor = torch.linalg.solve(rest, first.reshape(-1))
    return total.view_as(first)


def _check_finite(lq: LQ, pi: AffineGaussian, gamma: float) -> None:
    """Refuse a sum over all time that diverges."""
    loop = (lq.A + lq.B @ pi.gain[:, :-1]).detach()
    growth = max(1.0, float(torch.linalg.eigvals(loop).abs().max()) ** 2)
    if gamma * lq.survival * growth >= 1:
        raise ValueError(
            f"the sum over time in {lq.name} is infinite, as gamma x survival x max(1, "
            f"rho(A + BK)^2) = {gamma:g} x {lq.survival:g} x {growth:.4g} is not below 1: give a "
            "horizon, a smaller gamma or a stable gain"
        )


def _refuse_bounds(lq: LQ) -> None:
    if lq.bound is not None:
        raise ValueError(
            f"{lq.name} clips actions to {lq.bound:g}, and only target 'finite' of one step has a "
            "closed form: take that with horizon=1, or bound=None"
        )


def _pull_back(policy: ActorCritic, number: Tensor) -> Tensor:
    """The gradient ``[d]`` of a scalar in the actor's parameters; its graph is kept."""
    pieces = torch.autograd.grad(
        number, actor_parameters(policy), retain_graph=True, allow_unused=True,
        materialize_grads=True,
    )  # fmt: skip
    return torch.cat([piece.reshape(-1) for piece in pieces])
