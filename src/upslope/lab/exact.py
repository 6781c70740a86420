"""Exact objectives, values, visits and gradients of a small MDP, by linear algebra in float64.

Three vectors are called the policy gradient, and every function here says which it means:
``finite`` (G1) is the gradient of the return over ``horizon`` steps, ``discounted`` (G2) that of
the infinite discounted return, ``undiscounted-weights`` (G3) drops gamma^t from the second and is
what practice follows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from upslope.envs.tabular import MDP
from upslope.lab.policies import actor_parameters, log_probabilities, probabilities, scores

TARGETS = ("finite", "discounted", "undiscounted-weights")


def objective(mdp: MDP, pi: Tensor, gamma: float, horizon: int | None = None) -> Tensor:
    """J = E sum_t gamma^t r_t over ``horizon`` steps, or until termination.

    Args:
        mdp: the process; its own time limit is not read.
        pi: ``[S, A]`` probabilities.
        gamma: discount per step, in [0, 1]; 1 without a horizon needs sure termination.
        horizon: number of steps, ``None`` for no limit.

    Returns:
        Scalar, in units of reward.

    Eq: 1.1. Source: Sutton & Barto 2018, section 13.2.
    """
    values = state_values(mdp, pi, gamma, horizon)
    return (mdp.start * (values if horizon is None else values[0])).sum()


def state_values(
    mdp: MDP, pi: Tensor, gamma: float, horizon: int | None = None, terminal: Tensor | None = None
) -> Tensor:
    """V(s) ``[S]`` without a limit, or V_t(s) ``[H + 1, S]`` with ``horizon`` steps.

    Args:
        mdp, pi, gamma, horizon: as for :func:`objective`.
        terminal: ``[S]`` value of the states in which the horizon leaves an episode, 0 by default.

    Eq: 1.2, 14.1. Source: Sutton & Barto 2018, eq. 4.4.
    """
    on = torch.einsum("sa,sat->st", pi, mdp.continuing)
    now = (pi * mdp.expected_rewards).sum(1)
    if horizon is None:
        return _solve(torch.eye(mdp.n_states, dtype=on.dtype) - gamma * on, now)
    values = [torch.zeros_like(now) if terminal is None else terminal.to(now.dtype)]
    for _ in range(horizon):
        values.insert(0, now + gamma * on @ values[0])
    return torch.stack(values)


def action_values(mdp: MDP, values: Tensor, gamma: float) -> Tensor:
    """Q(s,a) = r(s,a) + gamma sum_s' P(s',goes on|s,a) V(s').

    Args:
        mdp: the process.
        values: ``[..., S]`` of the *successors*; for a finite horizon ``state_values(...)[1:]``.
        gamma: discount per step.

    Returns:
        ``[..., S, A]``.

    Eq: 1.3, 7.1. Source: Sutton & Barto 2018, eq. 4.6.
    """
    return mdp.expected_rewards + gamma * torch.einsum("sat,...t->...sa", mdp.continuing, values)


def visitation(mdp: MDP, pi: Tensor, gamma_w: float, horizon: int | None) -> Tensor:
    """Expected visits: gamma_w^t P(s_t = s) ``[H, S]``, or summed over all t ``[S]`` without limit.

    ``gamma_w`` is the weight's discount: gamma for J_gamma, 1 for practice. Visits end with the
    episode, so they sum to less than 1/(1 - gamma_w) where it can terminate.

    Eq: 1.4. Source: Sutton et al. 2000, theorem 1.
    """
    on = gamma_w * torch.einsum("sa,sat->st", pi, mdp.continuing)
    if horizon is None:
        return _solve(torch.eye(mdp.n_states, dtype=on.dtype) - on.T, mdp.start)
    visits = [mdp.start]
    for _ in range(horizon - 1):
        visits.append(visits[-1] @ on)
    return torch.stack(visits)


def stationary(mdp: MDP, pi: Tensor) -> Tensor:
    """Long-run share of steps in each state ``[S]`` when every end is followed by a new episode.

    Eq: 1.5, 13.1, 13.3. Source: the renewal-reward theorem (visits over steps, per episode).
    """
    visits = visitation(mdp, pi, 1.0, None)
    return visits / visits.sum()


def score(policy: Any, obs: Tensor, actions: Tensor) -> Tensor:
    """grad log pi(a|s) of each row.

    Args:
        policy: an ``ActorCritic`` or anything with ``distribution(obs)`` and ``parameters()``.
        obs: ``[N, ...]``.
        actions: ``[N]`` integers.

    Returns:
        ``[N, d]``, d the number of the actor's parameters.

    Eq: 2.1, 2.2. Source: Williams 1992.
    """
    _, table = scores(policy, obs)
    return table[torch.arange(len(actions)), actions]


def expected_score(policy: Any, obs: Tensor) -> Tensor:
    """E_a[grad log pi(a|s)] of each row, ``[N, d]``: zero, since probabilities sum to 1.

    Eq: 2.3, 6.1. Source: Williams 1992.
    """
    pi, table = scores(policy, obs)
    return torch.einsum("na,nad->nd", pi, table)


def policy_gradient(
    mdp: MDP,
    policy: Any,
    target: str,
    gamma: float,
    horizon: int | None = None,
    terminal: Tensor | None = None,
    differentiable: bool = False,
) -> Tensor:
    """The exact gradient: sum_t,s weight_t(s) sum_a grad pi(a|s) Q_t(s,a).

    Args:
        mdp: the process.
        policy: over one-hot states, as for :func:`score`.
        target: ``finite`` needs a horizon; the others take one where the sampling is limited: the
            sum over t then ends there while Q goes on.
        gamma: discount per step.
        horizon: steps of an episode at most.
        terminal: the value ``[S]``, held fixed, where the horizon leaves episodes; Q is then that
            of the steps left, as it always is for ``finite`` (where it is 0 by default).
        differentiable: keep the graph, for :func:`field_asymmetry`.

    Returns:
        ``[d]``.

    Raises:
        ValueError: for an unknown target, or ``finite`` without a horizon.

    Eq: 2.4, 8.9, 13.2. Source: Sutton et al. 2000, theorem 1; Thomas 2014; Nota & Thomas 2020.
    """
    if target not in TARGETS:
        raise ValueError(f"target={target!r} is not one of {', '.join(TARGETS)}")
    if target == "finite" and horizon is None:
        raise ValueError("target='finite' needs a horizon")
    log_probs = log_probabilities(policy, mdp.n_states)
    pi = log_probs.exp() if differentiable else log_probs.detach().exp()
    gamma_w = 1.0 if target == "undiscounted-weights" else gamma
    weights = visitation(mdp, pi, gamma_w, horizon)
    if target == "finite" or terminal is not None:
        successors = state_values(mdp, pi, gamma, horizon, terminal)[1:]
        coefficients = torch.einsum("ts,tsa->sa", weights, action_values(mdp, successors, gamma))
    else:
        weights = weights if horizon is None else weights.sum(0)
        values = state_values(mdp, pi, gamma)
        coefficients = weights[:, None] * action_values(mdp, values, gamma)
    return _pull_back(policy, log_probs, pi * coefficients, differentiable)


def expected_gradient(policy: Any, obs: Tensor, q: Tensor) -> Tensor:
    """The all-action gradient, mean over rows of sum_a grad pi(a|s) Q(s,a): no action is sampled.

    Args:
        policy: as for :func:`score`.
        obs: ``[N, ...]``.
        q: ``[N, A]``.

    Returns:
        ``[d]``.

    Eq: 7.5. Source: Sutton et al. 2001; Ciosek & Whiteson 2018, "Expected policy gradients".
    """
    log_probs = policy.distribution(obs).log_probs
    return _pull_back(policy, log_probs, log_probs.detach().exp() * q / len(obs), False)


class Trajectories(NamedTuple):
    """Every trajectory of an MDP, as a batch: time-major ``[H, N]``."""

    states: Tensor
    actions: Tensor
    rewards: Tensor
    next_states: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor  # rows after the end of an episode are no transitions

    @property
    def done(self) -> Tensor:
        """``[H, N]``: the episode ended, or there is no transition."""
        return self.terminated | self.truncated | ~self.valid


def enumerate_trajectories(mdp: MDP, pi: Tensor, horizon: int) -> tuple[Trajectories, Tensor]:
    """All trajectories of at most ``horizon`` steps with their exact probabilities.

    An expectation is the sum over them, weighted: no sampling error. The limit terminates or
    truncates as ``mdp.limit_is_task`` says.

    Returns:
        The batch ``[H, N]`` and the probabilities ``[N]``, which sum to 1.

    Eq: 2.5.
    """
    finished: list[tuple[float, list[tuple[int, int, float, int, bool, bool]]]] = []
    running: list[tuple[float, int, list[tuple[int, int, float, int, bool, bool]]]] = [
        (p, s, []) for s, p in enumerate(mdp.start.tolist()) if p > 0
    ]
    outcomes = torch.stack([mdp.continuing, mdp.transitions * mdp.termination], -1)
    joint = (pi[:, :, None, None] * outcomes).tolist()
    for t in range(horizon):
        last, going = t == horizon - 1, running
        running = []
        for p, s, path in going:
            for a in range(mdp.n_actions):
                for arrival in range(mdp.n_states):
                    for ends in (False, True):
                        q = p * joint[s][a][arrival][ends]
                        if q == 0:
                            continue
                        terminated = ends or (last and mdp.limit_is_task)
                        reward = float(mdp.rewards[s, a, arrival])
                        truncated = last and not mdp.limit_is_task
                        row = (s, a, reward, arrival, terminated, truncated)
                        if terminated or last:
                            finished.append((q, [*path, row]))
                        else:
                            running.append((q, arrival, [*path, row]))
    return _as_batch([path for _, path in finished], horizon), torch.tensor(
        [p for p, _ in finished], dtype=torch.float64
    )


def field_asymmetry(field: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """|J - J'| / |J + J'| of a vector field with Jacobian J at theta: 0 for a gradient.

    Args:
        field: parameters ``[d]`` -> vector ``[d]``, differentiable.
        theta: ``[d]``.

    Returns:
        Scalar without unit.

    Eq: 2.6. Source: Nota & Thomas 2020, "Is the policy gradient a gradient?".
    """
    jacobian: Tensor = torch.autograd.functional.jacobian(field, theta)  # type: ignore[no-untyped-call]
    ratio: Tensor = (jacobian - jacobian.T).norm() / (jacobian + jacobian.T).norm()
    return ratio


def fisher(policy: Any, w: Tensor) -> Tensor:
    """F_w = sum_s w(s) E_a[score score'] ``[d, d]`` over one-hot states; w ``[S]`` sums to 1.

    Eq: 9.1. Source: Kakade 2001, "A natural policy gradient".
    """
    pi, table = scores(policy, torch.eye(len(w), dtype=torch.float64))
    return torch.einsum("s,sa,sad,sae->de", w, pi, table, table)


def compatible_fit(policy: Any, w: Tensor, advantages: Tensor) -> Tensor:
    """The x ``[d]`` that fits x'score(s,a) to A(s,a) best in the mean of w(s) pi(a|s): F_w^+ g_w.

    Args:
        policy: over one-hot states.
        w: ``[S]`` state weights.
        advantages: ``[S, A]``.

    Eq: 9.5, 9.6. Source: Sutton et al. 2000, theorem 2; Kakade 2001; Agarwal et al. 2021.
    """
    pi, table = scores(policy, torch.eye(len(w), dtype=torch.float64))
    root = (w[:, None] * pi).sqrt().reshape(-1)
    rows = root[:, None] * table.reshape(len(root), -1)
    fitted: Tensor = torch.linalg.pinv(rows, rtol=1e-10) @ (root * advantages.reshape(-1))
    return fitted


def performance_difference(mdp: MDP, pi: Tensor, pi_new: Tensor, gamma: float) -> Tensor:
    """J_gamma(new) - J_gamma(old) as sum_s d_new(s) sum_a pi_new(a|s) A_old(s,a).

    Args:
        mdp: the process, without limit.
        pi, pi_new: ``[S, A]`` probabilities.
        gamma: discount per step.

    Returns:
        Scalar, in units of reward.

    Eq: 10.5. Source: Kakade & Langford 2002, lemma 6.1.
    """
    values = state_values(mdp, pi, gamma)
    advantages = action_values(mdp, values, gamma) - values[:, None]
    return (visitation(mdp, pi_new, gamma, None)[:, None] * pi_new * advantages).sum()


def state_probabilities(mdp: MDP, policy: Any) -> Tensor:
    """pi ``[S, A]`` of a policy over the one-hot states of an MDP."""
    return probabilities(policy, mdp.n_states)


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    solution: Tensor = torch.linalg.solve(matrix, right)
    return solution


def _pull_back(policy: Any, log_probs: Tensor, coefficients: Tensor, graph: bool) -> Tensor:
    """sum_s,a coefficient(s,a) grad log pi(a|s): ``[d]``."""
    pieces = torch.autograd.grad(
        log_probs, actor_parameters(policy), coefficients.to(log_probs.dtype), create_graph=graph,
        allow_unused=True, materialize_grads=True,
    )  # fmt: skip
    return torch.cat([piece.reshape(-1) for piece in pieces])


def _as_batch(
    paths: list[list[tuple[int, int, float, int, bool, bool]]], horizon: int
) -> Trajectories:
    blank = (0, 0, 0.0, 0, False, False)
    columns = list(zip(*([*path, *[blank] * (horizon - len(path))] for path in paths), strict=True))
    kinds = (torch.int64, torch.int64, torch.float64, torch.int64, torch.bool, torch.bool)
    fields = [
        torch.tensor([[row[i] for row in column] for column in columns], dtype=kind)
        for i, kind in enumerate(kinds)
    ]
    lengths = torch.tensor([len(path) for path in paths])
    fields.append(torch.arange(horizon)[:, None] < lengths)
    return Trajectories(*fields)
