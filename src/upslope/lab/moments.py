"""Exact mean and variance of policy-gradient estimators, by backward recursion over one episode.

An estimator that is linear in the rewards is X_0 with Y_t = rho_t + nu Y_{t+1} (the weight) and
X_t = score_t (Y_t - b_t) + kappa X_{t+1}; its first two moments follow backward from the horizon,
state by state, in float64 and without sampling. All variances are traces over the d parameters, of
one episode.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from upslope.envs.tabular import MDP
from upslope.lab.policies import scores


class Tables(NamedTuple):
    """What the recursions read: pi, scores, and probabilities of what follows an action."""

    pi: Tensor  # [S, A]
    score: Tensor  # [S, A, d]
    outcome: Tensor  # [S, A, S, 2] successor, and whether the episode goes on (0) or ends (1)
    reward: Tensor  # [S, A, S, 2]
    start: Tensor  # [S]

    @classmethod
    def of(cls, mdp: MDP, policy: Any) -> Tables:
        """The tables of a policy in a process; tables that exist already are returned as they are.

        So a caller can measure along other scores, such as those of a natural gradient.
        """
        if isinstance(policy, Tables):
            return policy
        pi, score = scores(policy, torch.eye(mdp.n_states, dtype=torch.float64))
        outcome = torch.stack([mdp.continuing, mdp.transitions * mdp.termination], -1)
        reward = mdp.rewards[..., None].expand_as(outcome)
        return cls(pi, score.double(), outcome, reward, mdp.start)


class Moments(NamedTuple):
    """Variances (traces) of episode return, reward-to-go and of their difference D."""

    episode_return: Tensor
    reward_to_go: Tensor
    past: Tensor  # Var D, D = sum_t score_t (rewards before t)
    covariance: Tensor  # Cov(reward-to-go estimator, D)


class Split(NamedTuple):
    """Parts of a variance that add up to it."""

    start: Tensor
    action: Tensor
    transition: Tensor


def horizon_of(mdp: MDP) -> int:
    """The time limit; the recursions need one.

    Raises:
        ValueError: where there is none.
    """
    if mdp.horizon is None:
        raise ValueError(f"{mdp.name} has no horizon: give it one with mdp.with_limit")
    return mdp.horizon


def weighted(
    mdp: MDP, policy: Any, rho: Tensor, nu: float, kappa: float, b: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and variance of sum_t kappa^t score_t (Y_t - b(t, s_t)), Y_t = rho_t + nu Y_{t+1}.

    Reward-to-go is rho = rewards, nu = gamma; GAE is rho = TD errors, nu = gamma lambda. With
    kappa = gamma the target is that of J_gamma, with kappa = 1 gamma^t is dropped.

    Args:
        mdp: with a horizon, at which Y stops.
        policy: over one-hot states.
        rho: ``[S, A, S, 2]`` of each transition (last axis: goes on, ends), or ``[H, S, A, S, 2]``.
        nu: decay of the weight.
        kappa: decay of the terms.
        b: baseline ``[H, S]`` or ``[S]``; ``None`` for 0.

    Returns:
        The mean ``[d]`` and the trace of the covariance.

    Eq: 5.4. Source: Sobel 1982, "The variance of discounted Markov decision processes".
    """
    t = Tables.of(mdp, policy)
    horizon, n_states = horizon_of(mdp), mdp.n_states
    rho = rho.expand(horizon, *t.outcome.shape) if rho.dim() < 5 else rho
    b = torch.zeros(n_states, dtype=torch.float64) if b is None else b
    b = b.expand(horizon, n_states)
    y, y2, x2 = (torch.zeros(n_states, dtype=torch.float64) for _ in range(3))
    x, yx = (torch.zeros(n_states, t.score.shape[-1], dtype=torch.float64) for _ in range(2))
    on = t.outcome[..., 0]
    for step in reversed(range(horizon)):
        r, p = rho[step], t.outcome
        go = r[..., 0]
        ey = (p * r).sum((2, 3)) + nu * (on * y).sum(2)  # [S, A]
        ey2 = (p * r.square()).sum((2, 3)) + (on * (2 * nu * go * y + nu**2 * y2)).sum(2)
        ex = torch.einsum("sat,td->sad", on, x)
        eyx = torch.einsum("sat,td->sad", on * go, x) + nu * torch.einsum("sat,td->sad", on, yx)
        base, g, pi = b[step][:, None], t.score, t.pi
        new_x = g * (ey - base)[..., None] + kappa * ex
        new_yx = g * (ey2 - base * ey)[..., None] + kappa * eyx
        cross = (g * (eyx - base[..., None] * ex)).sum(-1)
        spread = g.square().sum(-1) * (ey2 - 2 * base * ey + base.square())
        new_x2 = spread + 2 * kappa * cross + kappa**2 * (on * x2).sum(2)
        y, y2, x2 = ((pi * part).sum(1) for part in (ey, ey2, new_x2))
        x, yx = ((pi[..., None] * part).sum(1) for part in (new_x, new_yx))
    mean = t.start @ x
    return mean, t.start @ x2 - mean.square().sum()


def reward_table(mdp: MDP) -> Tensor:
    """rho of reward-to-go: the rewards ``[S, A, S, 2]``."""
    return mdp.rewards[..., None].expand(*mdp.rewards.shape, 2)


def td_table(mdp: MDP, values: Tensor, gamma: float, ends_at_limit: bool = False) -> Tensor:
    """rho of GAE: r + gamma (goes on) V(s') - V(s), ``[S, A, S, 2]``, from V ``[S]``.

    With V ``[H + 1, S]`` of a finite horizon: ``[H, S, A, S, 2]``. The horizon itself truncates:
    the last step bootstraps, from V_H. Where it terminates (``ends_at_limit``, which takes V
    ``[H + 1, S]``), the last step does not.

    Eq: 7.2. Source: Sutton 1988.
    """
    bootstrap = torch.tensor([1.0, 0.0], dtype=torch.float64)
    before, after = (values, values) if values.dim() == 1 else (values[:-1], values[1:])
    ahead = after[..., None, None, :, None] * bootstrap
    if ends_at_limit:
        ahead[-1] = 0.0
    return reward_table(mdp) + gamma * ahead - before[..., :, None, None, None]


def episode_return(
    mdp: MDP, policy: Any, gamma: float, constant: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Mean and variance of (sum_t score_t)(R(tau) - constant), R = sum_t gamma^t r_t.

    Args:
        mdp: with a horizon.
        policy: over one-hot states.
        gamma: discount per step.
        constant: baseline subtracted from the return.

    Returns:
        The mean ``[d]`` and the trace of the covariance.

    Eq: 5.5. Source: the recursion of Eq. 5.4 on the products of return and score.
    """
    j = joint_moments(mdp, policy, gamma)
    mean = j.yz - constant * j.z
    second = j.y2z2 - 2 * constant * j.yz2 + constant**2 * j.z2
    return mean, second - mean.square().sum()


def batch_mean(
    mdp: MDP, policy: Any, gamma: float, size: int, leave_out: bool
) -> tuple[Tensor, Tensor]:
    """Mean and variance of (1/N) sum_i (sum_t score_t)_i (R_i - mean of R), N episodes a batch.

    Leaving the own return out it is the sample covariance of score sum and return, a U-statistic
    of order two; with the own return in, (1 - 1/N) times that.

    Args:
        mdp: with a horizon.
        policy: over one-hot states.
        gamma: discount of the return.
        size: N, at least 2.
        leave_out: mean over the other N - 1 episodes.

    Returns:
        The mean ``[d]``, and N times the trace of the batch's covariance: what an episode costs.

    Eq: 6.5, 6.6. Source: Hoeffding 1948, "A class of statistics with asymptotically normal
    distribution", for the variance; Kool et al. 2019 for the baseline.
    """
    j = joint_moments(mdp, policy, gamma)
    mean, spread = j.yz, j.y2z2 - 2 * j.y * j.yz2 + j.y**2 * j.z2
    g2 = mean.square().sum()
    one = (spread - g2) / 4  # of the kernel's mean given one episode
    both = (j.y2z2 + j.y2 * j.z2 - 2 * j.y * j.yz2) / 2  # of the kernel itself
    variance = 2 * (2 * (size - 2) * one + both) / (size * (size - 1))
    kept = 1.0 if leave_out else 1 - 1 / size
    return kept * mean, kept**2 * size * variance


class Joint(NamedTuple):
    """Moments of Y, the return, and Z ``[d]``, the sum of scores, of one episode."""

    y: Tensor
    y2: Tensor
    z: Tensor
    yz: Tensor
    z2: Tensor  # E|Z|^2, and so on
    yz2: Tensor
    y2z2: Tensor


def joint_moments(mdp: MDP, policy: Any, gamma: float) -> Joint:
    """Moments of return and score sum, by backward recursion from the horizon."""
    t = Tables.of(mdp, policy)
    zero = torch.zeros(mdp.n_states, dtype=torch.float64)
    vector = torch.zeros(mdp.n_states, t.score.shape[-1], dtype=torch.float64)
    y, y2, z2, yz2, y2z2, z, yz, y2z = zero, zero, zero, zero, zero, vector, vector, vector
    on, r, g, pi = t.outcome[..., 0], mdp.rewards, t.score, t.pi
    r1, r2 = (t.outcome.sum(-1) * r).sum(2), (t.outcome.sum(-1) * r.square()).sum(2)
    for _ in range(horizon_of(mdp)):

        def ahead(table: Tensor, power: int = 0) -> Tensor:
            """sum_s' P(s', goes on) r^power table(s')."""
            letters = "sat,t->sa" if table.dim() == 1 else "sat,td->sad"
            return torch.einsum(letters, on * r**power, table)

        def product(table: Tensor) -> Tensor:
            return (g * table).sum(-1)

        g2 = g.square().sum(-1)
        ey = r1 + gamma * ahead(y)
        ey2 = r2 + 2 * gamma * ahead(y, 1) + gamma**2 * ahead(y2)
        ez, eyz = ahead(z), ahead(z, 1) + gamma * ahead(yz)
        ey2z = ahead(z, 2) + 2 * gamma * ahead(yz, 1) + gamma**2 * ahead(y2z)
        ez2, eyz2 = ahead(z2), ahead(z2, 1) + gamma * ahead(yz2)
        ey2z2 = ahead(z2, 2) + 2 * gamma * ahead(yz2, 1) + gamma**2 * ahead(y2z2)
        now = [ey, ey2]
        now += [g2 * m + 2 * product(mz) + mz2 for m, mz, mz2 in
                ((torch.ones_like(ey), ez, ez2), (ey, eyz, eyz2), (ey2, ey2z, ey2z2))]  # fmt: skip
        y, y2, z2, yz2, y2z2 = ((pi * part).sum(1) for part in now)
        vectors = [g + ez, g * ey[..., None] + eyz, g * ey2[..., None] + ey2z]
        z, yz, y2z = ((pi[..., None] * part).sum(1) for part in vectors)
    return Joint(*(t.start @ moment for moment in (y, y2, z, yz, z2, yz2, y2z2)))


def state_sum(mdp: MDP, policy: Any, terms: Tensor, kappa: float) -> tuple[Tensor, Tensor]:
    """Mean and variance of sum_t kappa^t f_t(s_t): of estimators that sample no action's weight.

    Args:
        mdp: with a horizon.
        policy: over one-hot states.
        terms: f ``[H, S, d]`` or ``[S, d]``; for the all-action gradient sum_a grad pi(a|s) Q(s,a).
        kappa: decay of the terms.

    Returns:
        The mean ``[d]`` and the trace of the covariance.

    Eq: 7.5.
    """
    t = Tables.of(mdp, policy)
    terms = terms.expand(horizon_of(mdp), *terms.shape[-2:])
    on = torch.einsum("sa,sat->st", t.pi, t.outcome[..., 0])
    x, x2 = torch.zeros_like(terms[0]), torch.zeros_like(t.start)
    for f in reversed(terms.unbind()):
        ahead = on @ x
        x2 = f.square().sum(-1) + 2 * kappa * (f * ahead).sum(-1) + kappa**2 * on @ x2
        x = f + kappa * ahead
    mean = t.start @ x
    return mean, t.start @ x2 - mean.square().sum()


def past_rewards(mdp: MDP, policy: Any, gamma: float) -> Tensor:
    """Variance of D = sum_t score_t sum_{k<t} gamma^k r_k, what reward-to-go leaves out."""
    t = Tables.of(mdp, policy)
    zero = torch.zeros(mdp.n_states, dtype=torch.float64)
    z = torch.zeros(mdp.n_states, t.score.shape[-1], dtype=torch.float64)
    w, zw, z2, w2 = z, zero, zero, zero
    on, r, g, pi = t.outcome[..., 0], mdp.rewards, t.score, t.pi
    for _ in range(horizon_of(mdp)):
        ez, erz, ew = (
            torch.einsum("sat,td->sad", p, m) for p, m in ((on, z), (on * r, z), (on, w))
        )
        ez2, er_z2, er2z2, ezw, er_zw, ew2 = (
            (p * m).sum(2)
            for p, m in ((on, z2), (on * r, z2), (on * r**2, z2), (on, zw), (on * r, zw), (on, w2))
        )
        # W = r Z' + gamma W' and Z = score + Z', with ' one step later
        new_w2 = er2z2 + 2 * gamma * er_zw + gamma**2 * ew2
        new_zw = (g * (erz + gamma * ew)).sum(-1) + er_z2 + gamma * ezw
        new_z2 = g.square().sum(-1) + 2 * (g * ez).sum(-1) + ez2
        z, w = ((pi[..., None] * part).sum(1) for part in (g + ez, erz + gamma * ew))
        zw, z2, w2 = ((pi * part).sum(1) for part in (new_zw, new_z2, new_w2))
    return t.start @ w2 - (t.start @ w).square().sum()


def compare(mdp: MDP, policy: Any, gamma: float) -> Moments:
    """Var ER - Var RTG = Var D + 2 Cov(RTG, D): which of the two varies less, and why.

    ER is (sum score)(return), RTG keeps gamma^t, D = ER - RTG multiplies scores by past rewards.

    Args:
        mdp: with a horizon.
        policy: over one-hot states.
        gamma: discount per step.

    Eq: 5.3.
    """
    _, er = episode_return(mdp, policy, gamma)
    _, rtg = weighted(mdp, policy, reward_table(mdp), gamma, gamma)
    past = past_rewards(mdp, policy, gamma)
    return Moments(er, rtg, past, (er - rtg - past) / 2)


def decompose(mdp: MDP, policy: Any, gamma: float, kappa: float, b: Tensor | None = None) -> Split:
    """Var of sum_t kappa^t score_t (G_t - b) as start + action + transition parts.

    They are the squared increments of the estimator's conditional mean as the episode unfolds: the
    first state, then by turns an action and what the environment answers. A baseline reaches the
    action part only.

    Args:
        mdp: with a horizon.
        policy: over one-hot states.
        gamma: discount of the return.
        kappa: discount of the terms: gamma keeps gamma^t, 1 drops it.
        b: baseline ``[H, S]`` or ``[S]``.

    Eq: 7.6. Source: Tucker et al. 2018, "The mirage of action-dependent baselines".
    """
    t = Tables.of(mdp, policy)
    horizon, n_states = horizon_of(mdp), mdp.n_states
    b = torch.zeros(n_states, dtype=torch.float64) if b is None else b
    b = b.expand(horizon, n_states)
    v, x = expected_rest(mdp, policy, gamma, kappa, b)
    on, g, pi = t.outcome[..., 0], t.score, t.pi
    visits, carried = t.start, torch.zeros_like(x[0])
    carried2 = torch.zeros_like(visits)
    action = transition = torch.zeros((), dtype=torch.float64)
    for step in range(horizon):
        scale = kappa**step
        q = (t.outcome * t.reward).sum((2, 3)) + gamma * (on * v[step + 1]).sum(2)
        after = g * (q - b[step][:, None])[..., None] + kappa * torch.einsum(
            "sat,td->sad", on, x[step + 1]
        )
        gain, turn = q - v[step][:, None], scale * (after - x[step][:, None])
        action = action + (pi * (
            carried2[:, None] * gain.square()
            + 2 * gain * (carried[:, None] * turn).sum(-1)
            + visits[:, None] * turn.square().sum(-1)
        )).sum()  # fmt: skip
        # what follows: weight C + kappa^t score on the surprise, and the rest of the sum
        heavy = carried[:, None] + visits[:, None, None] * scale * g
        heavy2 = (
            carried2[:, None]
            + 2 * scale * (carried[:, None] * g).sum(-1)
            + scale**2 * visits[:, None] * g.square().sum(-1)
        )
        mean_rest = torch.einsum("sat,td->sad", on, x[step + 1])
        for ends in (0, 1):
            goes_on = 1.0 - ends
            surprise = t.reward[..., ends] + gamma * goes_on * v[step + 1] - q[..., None]
            rest = scale * kappa * (goes_on * x[step + 1] - mean_rest[:, :, None])
            part = (
                heavy2[..., None] * surprise.square()
                + 2 * surprise * (heavy[:, :, None] * rest).sum(-1)
                + visits[:, None, None] * rest.square().sum(-1)
            )
            transition = transition + (pi[..., None] * t.outcome[..., ends] * part).sum()
        flow = pi[..., None] * on
        carried = gamma * torch.einsum("sat,sad->td", flow, heavy)
        carried2 = gamma**2 * torch.einsum("sat,sa->t", flow, heavy2)
        visits = torch.einsum("sat,s->t", flow, visits)
    spread = x[0] - t.start @ x[0]
    return Split(t.start @ spread.square().sum(-1), action, transition)


def expected_rest(
    mdp: MDP, policy: Any, gamma: float, kappa: float, b: Tensor
) -> tuple[Tensor, Tensor]:
    """V_t(s) ``[H + 1, S]`` and E[X_t | s] ``[H + 1, S, d]`` of the terms from step t on."""
    t = Tables.of(mdp, policy)
    on = t.outcome[..., 0]
    values = [torch.zeros(mdp.n_states, dtype=torch.float64)]
    rests = [torch.zeros(mdp.n_states, t.score.shape[-1], dtype=torch.float64)]
    for step in reversed(range(horizon_of(mdp))):
        q = (t.outcome * t.reward).sum((2, 3)) + gamma * (on * values[0]).sum(2)
        rest = t.score * (q - b[step][:, None])[..., None]
        rest = rest + kappa * torch.einsum("sat,td->sad", on, rests[0])
        values.insert(0, (t.pi * q).sum(1))
        rests.insert(0, (t.pi[..., None] * rest).sum(1))
    return torch.stack(values), torch.stack(rests)
