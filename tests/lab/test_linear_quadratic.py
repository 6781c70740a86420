"""Linear-quadratic answers against recursions, quadrature, scipy, and what ships."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, linalg, stats
from torch import Tensor

from upslope import collect, evaluate_rollout, make_vec_env
from upslope.envs.linear_quadratic import LQ, LQEnv, double_integrator, scalar
from upslope.lab import linear_quadratic as lab
from upslope.lab.policies import actor_parameters
from upslope.lab.tests import hotelling
from upslope.optim import Batch
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.distributions import Distribution
from upslope.rollout import Rollout
from upslope.theory.objectives import policy_gradient_loss
from upslope.theory.returns import discount_weights, episode_return, reward_to_go
from upslope.unit_gradients import episode_units, pseudo_loss, unit_gradients

GAMMA = 0.9
FLOAT = torch.float64


def wide() -> LQ:
    """Three numbers moved by two, every matrix full: what shapes and transposes hang on."""
    rng = np.random.default_rng(4)

    def square(n: int, scale: float) -> Tensor:
        root = rng.normal(size=(n, n))
        return torch.from_numpy(scale * (root @ root.T) / n)

    return LQ(
        "wide",
        A=torch.from_numpy(0.4 * rng.normal(size=(3, 3))),
        B=torch.from_numpy(0.5 * rng.normal(size=(3, 2))),
        Q=square(3, 1.0),
        R=square(2, 0.5),
        noise=square(3, 0.2),
        start_mean=torch.from_numpy(rng.normal(size=3)),
        start_covariance=square(3, 0.3),
        termination=0.1,
    )


def policy_for(lq: LQ, weight: Any = None, bias: float = 0.2, log_std: float = -0.5) -> ActorCritic:
    """A policy whose numbers are all different, and none zero."""
    policy = ActorCritic(lq.observation_space, lq.action_space, net_arch=(), dtype="float64")
    m, n = policy.actor_head.weight.shape
    if weight is None:
        weight = -0.3 - 0.1 * np.arange(m * n).reshape(m, n) / n
    with torch.no_grad():
        policy.actor_head.weight.copy_(torch.as_tensor(weight, dtype=FLOAT))
        policy.actor_head.bias.copy_(bias + 0.1 * torch.arange(m, dtype=FLOAT))
        policy.actions.log_std.copy_(log_std + 0.2 * torch.arange(m, dtype=FLOAT))
    return policy


def in_units(policy: ActorCritic) -> tuple[Any, Any, Any]:
    """K, k and sigma as arrays."""
    head = policy.actor_head
    std = policy.actions.log_std.detach().exp().numpy()
    return head.weight.detach().numpy(), head.bias.detach().numpy(), std


def close(a: Any, b: Any, tolerance: float = 1e-10) -> None:
    a, b = (torch.as_tensor(x, dtype=FLOAT) for x in (a, b))
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def differences(function: Callable[[], Tensor], policy: ActorCritic, h: float = 1e-5) -> Tensor:
    """Central differences of a function of the policy, in the order of its actor's parameters."""
    slopes = []
    with torch.no_grad():
        for parameter in actor_parameters(policy):
            flat = parameter.view(-1)
            for i in range(len(flat)):
                kept, found = float(flat[i]), []
                for step in (h, -h):
                    flat[i] = kept + step
                    found.append(function())
                flat[i] = kept
                slopes.append((found[0] - found[1]) / (2 * h))
    return torch.stack(slopes)


def slow_objective(lq: LQ, policy: ActorCritic, gamma: float, horizon: int) -> float:
    """J by the recursion of mean and covariance, in NumPy."""
    gain, offset, std = in_units(policy)
    a, b, q, r = (x.numpy() for x in (lq.A, lq.B, lq.Q, lq.R))
    mean, covariance = lq.start_mean.numpy(), lq.start_covariance.numpy()
    total = 0.0
    for t in range(horizon):
        u = gain @ mean + offset
        spread = gain @ covariance @ gain.T + np.diag(std**2)
        cost = np.trace(q @ covariance) + mean @ q @ mean + np.trace(r @ spread) + u @ r @ u
        total -= (gamma * (1 - lq.termination)) ** t * cost
        mean = a @ mean + b @ u
        loop = a + b @ gain
        covariance = loop @ covariance @ loop.T + b @ np.diag(std**2) @ b.T + lq.noise.numpy()
    return float(total)


def normal_grid(size: int, nodes: int = 8) -> tuple[Any, Any]:
    """Nodes ``[nodes^size, size]`` and weights of the mean over standard normals."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    grid = np.array(list(itertools.product(x, repeat=size)))
    weights = np.array([np.prod(c) for c in itertools.product(w / w.sum(), repeat=size)])
    return grid, weights


TASKS = [scalar(), double_integrator(termination=0.05), wide()]


class TestObjective:
    @pytest.mark.parametrize("lq", TASKS, ids=lambda lq: lq.name)
    @pytest.mark.parametrize("horizon", [1, 2, 7])
    def test_is_the_slow_sum(self, lq: LQ, horizon: int) -> None:
        policy = policy_for(lq)
        found = lab.objective(lq, lab.affine_gaussian(lq, policy), GAMMA, horizon)
        close(found, slow_objective(lq, policy, GAMMA, horizon))

    @pytest.mark.parametrize("lq", TASKS, ids=lambda lq: lq.name)
    def test_without_a_limit_is_the_slow_sum_to_its_end(self, lq: LQ) -> None:
        policy = policy_for(lq)
        found = lab.objective(lq, lab.affine_gaussian(lq, policy), GAMMA)
        close(found, slow_objective(lq, policy, GAMMA, 2000))

    def test_two_steps_by_hand(self) -> None:
        """x0 = 2 and no noise: u = -1, r = -(4 + 0.5); x1 = 1, u = -0.5, r = -(1 + 0.125)."""
        one = torch.ones(1, 1, dtype=FLOAT)
        lq = LQ("by hand", one, one, one, 0.5 * one, 0 * one, 2 * one[0], 0 * one)
        pi = lab.AffineGaussian(torch.tensor([[-0.5, 0.0]], dtype=FLOAT), 0 * one[0])
        close(lab.objective(lq, pi, GAMMA, 2), -(4.5 + 0.9 * 1.125))
        # and the noise of the action adds 0.5 x variance twice, 1 x variance to the second state
        pi = lab.AffineGaussian(pi.gain, 0.2 * one[0])
        more = 0.5 * 0.04 + 0.9 * (0.5 * 0.04 + (1 + 0.5 * 0.25) * 0.04)
        close(lab.objective(lq, pi, GAMMA, 2), -(4.5 + 0.9 * 1.125) - more)

    @pytest.mark.parametrize("lq", TASKS, ids=lambda lq: lq.name)
    @pytest.mark.parametrize("horizon", [5, None])
    def test_visits_weigh_rewards_to_the_objective(self, lq: LQ, horizon: int | None) -> None:
        pi = lab.affine_gaussian(lq, policy_for(lq))
        rewards = lab.state_values(lq, pi, GAMMA, 1)[0]
        visits = lab.visitation(lq, pi, GAMMA, horizon)
        close((visits * rewards).sum(), lab.objective(lq, pi, GAMMA, horizon))

    @pytest.mark.parametrize(
        ("lq", "horizon"),
        [(double_integrator(6), 6), (replace(scalar(None), termination=0.2), None)],
        ids=lambda x: getattr(x, "name", ""),
    )
    def test_is_the_mean_return_in_the_environment(self, lq: LQ, horizon: int | None) -> None:
        policy = policy_for(lq)
        rollout = played(lq, policy, 4000, seed=3)
        returns = episode_return(rollout.rewards, rollout.boundary, GAMMA)
        returns = returns[(rollout.episode_step == 0) & rollout.valid]
        assert len(returns) == 4000
        wanted = float(lab.objective(lq, lab.affine_gaussian(lq, policy), GAMMA, horizon))
        z = (float(returns.mean()) - wanted) / (float(returns.std()) / 4000**0.5)
        assert 2 * stats.norm.sf(abs(z)) > 1e-3
        assert float(returns.std()) / 4000**0.5 < 0.05 * abs(wanted)  # so it could have failed


def played(lq: LQ, policy: ActorCritic, n_episodes: int, seed: int) -> Rollout:
    envs = make_vec_env(lambda: LQEnv(lq), n_envs=50, seed=seed)
    return collect(envs, policy, n_episodes=n_episodes)


class TestVisits:
    @pytest.mark.parametrize("lq", TASKS, ids=lambda lq: lq.name)
    def test_a_long_horizon_is_no_horizon(self, lq: LQ) -> None:
        pi = lab.affine_gaussian(lq, policy_for(lq))
        limited = lab.visitation(lq, pi, GAMMA, 500).sum(0)
        close(lab.visitation(lq, pi, GAMMA, None), limited)

    def test_moments_are_those_of_the_environment(self) -> None:
        """Mean, second moment and share of living episodes at every step, by z-tests."""
        lq = double_integrator(5, termination=0.1)
        policy = policy_for(lq)
        rollout = played(lq, policy, 4000, seed=1)
        visits = lab.visitation(lq, lab.affine_gaussian(lq, policy), 1.0, 5)
        for t in range(5):
            x = rollout.obs[(rollout.episode_step == t) & rollout.valid]
            z = torch.cat([x, torch.ones(len(x), 1, dtype=FLOAT)], 1)
            products = torch.zeros(4000, 3, 3, dtype=FLOAT)
            products[: len(x)] = z[:, :, None] * z[:, None]
            error = products.std(0) / 4000**0.5
            gap = (products.mean(0) - visits[t]).abs()
            assert (gap <= 4 * error + 1e-12).all()  # 5 x 6 numbers at 6e-5 each
            assert error.max() < 0.1

    def test_moments_apart(self) -> None:
        lq = double_integrator(termination=0.25)
        visits = lab.visitation(lq, lab.affine_gaussian(lq, policy_for(lq)), GAMMA, 3)
        weight, mean, covariance = lab.state_moments(visits)
        close(weight, torch.tensor([1.0, 0.675, 0.675**2], dtype=FLOAT))
        close(mean[0], lq.start_mean)
        close(covariance[0], lq.start_covariance)
        gain, offset, std = in_units(policy_for(lq))
        a, b = lq.A.numpy(), lq.B.numpy()
        close(mean[1], a @ mean[0].numpy() + b @ (gain @ mean[0].numpy() + offset))
        loop = a + b @ gain
        spread = loop @ covariance[0].numpy() @ loop.T + std**2 * b @ b.T + lq.noise.numpy()
        close(covariance[1], spread)


class TestValues:
    @pytest.mark.parametrize("lq", TASKS, ids=lambda lq: lq.name)
    def test_form_is_that_of_scipy(self, lq: LQ) -> None:
        """Without an offset V(x) = -x'Px - c, with P from scipy's Lyapunov equation."""
        policy = policy_for(lq)
        with torch.no_grad():
            policy.actor_head.bias.zero_()
        gain, _, std = in_units(policy)
        factor = GAMMA * (1 - lq.termination)
        loop = lq.A.numpy() + lq.B.numpy() @ gain
        cost = lq.Q.numpy() + gain.T @ lq.R.numpy() @ gain
        p = linalg.solve_discrete_lyapunov(factor**0.5 * loop.T, cost)
        spread = lq.noise.numpy() + lq.B.numpy() @ np.diag(std**2) @ lq.B.numpy().T
        per_step = np.trace(lq.R.numpy() @ np.diag(std**2)) + factor * np.trace(p @ spread)
        values = lab.state_values(lq, lab.affine_gaussian(lq, policy), GAMMA)
        close(values[:-1, :-1], -p)
        close(values[:-1, -1], np.zeros(lq.n_states))
        close(values[-1, -1], -per_step / (1 - factor))

    @pytest.mark.parametrize("horizon", [4, None])
    def test_solve_the_bellman_equation(self, horizon: int | None) -> None:
        """V(x) = E[r + gamma V'(x')] at many x, the mean over action and noise by quadrature."""
        lq = scalar(termination=0.2)
        policy = policy_for(lq)
        pi = lab.affine_gaussian(lq, policy)
        found = lab.state_values(lq, pi, GAMMA, horizon)
        steps = [(found, found)] if horizon is None else list(itertools.pairwise(found))
        gain, offset, std = in_units(policy)
        grid, weights = normal_grid(2)
        for x in (-2.0, 0.0, 0.7, 3.0):
            u = gain[0, 0] * x + offset[0] + std[0] * grid[:, 0]
            after = 0.9 * x + 0.5 * u + 0.1**0.5 * grid[:, 1]
            for now, then in steps:
                ahead = lab.evaluate(then, torch.from_numpy(after)[:, None]).numpy()
                wanted = weights @ (-(x**2) - 0.3 * u**2 + GAMMA * 0.8 * ahead)
                close(lab.evaluate(now, torch.tensor([[x]], dtype=FLOAT)), [wanted])

    @pytest.mark.parametrize("lq", TASKS, ids=lambda lq: lq.name)
    def test_action_values_look_one_step_ahead(self, lq: LQ) -> None:
        """Q(x, u) = r + gamma E[V(x')] at random points, the mean over noise by quadrature."""
        values = lab.state_values(lq, lab.affine_gaussian(lq, policy_for(lq)), GAMMA)
        rng = np.random.default_rng(0)
        x, u = rng.normal(size=(5, lq.n_states)), rng.normal(size=(5, lq.n_actions))
        form = lab.action_values(lq, values, GAMMA)
        found = lab.evaluate(form, torch.from_numpy(x), torch.from_numpy(u))
        squares, axes = np.linalg.eigh(lq.noise.numpy())
        grid, weights = normal_grid(lq.n_states, 3)
        noise = grid @ (axes * np.sqrt(squares.clip(0))).T
        for i in range(5):
            after = lq.A.numpy() @ x[i] + lq.B.numpy() @ u[i] + noise
            ahead = weights @ lab.evaluate(values, torch.from_numpy(after)).numpy()
            reward = -x[i] @ lq.Q.numpy() @ x[i] - u[i] @ lq.R.numpy() @ u[i]
            close(found[i], reward + GAMMA * (1 - lq.termination) * ahead)


class TestGradients:
    @pytest.mark.parametrize("lq", TASKS, ids=lambda lq: lq.name)
    @pytest.mark.parametrize("horizon", [1, 6])
    def test_finite_target_is_the_derivative_of_the_objective(self, lq: LQ, horizon: int) -> None:
        policy = policy_for(lq)
        found = lab.policy_gradient(lq, policy, "finite", GAMMA, horizon)
        slope = differences(
            lambda: lab.objective(lq, lab.affine_gaussian(lq, policy), GAMMA, horizon), policy
        )
        close(found, slope, 1e-7)

    @pytest.mark.parametrize("lq", TASKS, ids=lambda lq: lq.name)
    def test_discounted_target_is_the_derivative_of_the_objective(self, lq: LQ) -> None:
        policy = policy_for(lq)
        found = lab.policy_gradient(lq, policy, "discounted", GAMMA)
        slope = differences(
            lambda: lab.objective(lq, lab.affine_gaussian(lq, policy), GAMMA), policy
        )
        close(found, slope, 1e-7)

    @pytest.mark.parametrize(
        ("target", "gamma_w"), [("discounted", GAMMA), ("undiscounted-weights", 1.0)]
    )
    def test_is_the_mean_of_score_times_q(self, target: str, gamma_w: float) -> None:
        """E sum_t w_t score_t Q(x_t, u_t) over three steps, every random number by quadrature."""
        lq = scalar(termination=0.2)
        policy = policy_for(lq)
        gain, offset, std = (float(part.flat[0]) for part in in_units(policy))
        quadratic = slow_value(lq, gain, offset, std)
        grid, weights = normal_grid(6, 5)
        after = normal_grid(1, 3)
        x, total = 1.0 + 0.5 * grid[:, 0], np.zeros(3)
        for t in range(3):
            e = grid[:, 1 + 2 * t]
            u = gain * x + offset + std * e
            arrivals = (0.9 * x + 0.5 * u)[:, None] + 0.1**0.5 * after[0][:, 0]
            q = -(x**2) - 0.3 * u**2 + GAMMA * 0.8 * np.polyval(quadratic, arrivals) @ after[1]
            score = np.stack([e**2 - 1, e * x / std, e / std])  # log sigma, weight, bias
            total += (gamma_w * 0.8) ** t * (weights * q * score).sum(1)
            if t < 2:
                x = 0.9 * x + 0.5 * u + 0.1**0.5 * grid[:, 2 + 2 * t]
        close(lab.policy_gradient(lq, policy, target, GAMMA, 3), total, 1e-8)

    def test_a_value_behind_the_horizon(self) -> None:
        """V of the endless process leaves Q as it is; 0 leaves that of the steps that remain."""
        lq = double_integrator(termination=0.1)
        policy = policy_for(lq)
        endless = lab.state_values(lq, lab.affine_gaussian(lq, policy), GAMMA)
        for target in ("discounted", "undiscounted-weights"):
            found = lab.policy_gradient(lq, policy, target, GAMMA, 4, terminal=endless)
            close(found, lab.policy_gradient(lq, policy, target, GAMMA, 4))
        nothing = torch.zeros_like(endless)
        found = lab.policy_gradient(lq, policy, "discounted", GAMMA, 4, terminal=nothing)
        close(found, lab.policy_gradient(lq, policy, "finite", GAMMA, 4))
        frozen = lab.policy_gradient(lq, policy, "finite", GAMMA, 4, terminal=endless)
        slope = differences(
            lambda: self.to_a_fixed_value(lq, lab.affine_gaussian(lq, policy), endless), policy
        )
        close(frozen, slope, 1e-7)

    def to_a_fixed_value(self, lq: LQ, pi: lab.AffineGaussian, terminal: Tensor) -> Tensor:
        return (lq.start_moment * lab.state_values(lq, pi, GAMMA, 4, terminal)[0]).sum()

    def test_limited_sums_go_to_those_without_limit(self) -> None:
        for lq in TASKS[1:]:
            for target in ("discounted", "undiscounted-weights"):
                limited = lab.policy_gradient(lq, policy_for(lq), target, GAMMA, 1000)
                close(limited, lab.policy_gradient(lq, policy_for(lq), target, GAMMA))

    def test_the_three_targets_agree_without_discount(self) -> None:
        lq = scalar(termination=0.2)
        policy = policy_for(lq)

        def found(target: str, gamma: float, horizon: int | None = None) -> Tensor:
            return lab.policy_gradient(lq, policy, target, gamma, horizon)

        close(found("discounted", 1.0), found("undiscounted-weights", 1.0))
        close(found("discounted", 1.0), found("finite", 1.0, 500))
        discounted, dropped = found("discounted", 0.5), found("undiscounted-weights", 0.5)
        assert (discounted - dropped).norm() > 0.05 * discounted.norm()

    def test_a_policy_in_float32_has_the_same_gradient(self) -> None:
        lq = wide()
        policy = policy_for(lq)
        single = ActorCritic(lq.observation_space, lq.action_space, net_arch=(), dtype="float32")
        single.load_state_dict(policy.state_dict())
        for target in ("discounted", "undiscounted-weights"):
            found = lab.policy_gradient(lq, single, target, GAMMA)
            close(found, lab.policy_gradient(lq, policy, target, GAMMA), 1e-5)
        close(lab.fisher(lq, single, GAMMA), lab.fisher(lq, policy, GAMMA), 1e-5)

    def test_a_deviation_at_the_end_of_its_range_does_not_move(self) -> None:
        """Beyond ``LOG_STD_RANGE`` the policy is constant in its log standard deviation."""
        policy = policy_for(scalar(), log_std=-11.0)
        found = lab.policy_gradient(scalar(), policy, "finite", GAMMA, 5)
        assert found[0] == 0
        assert found[1:].abs().min() > 0

    @pytest.mark.parametrize("lq", TASKS, ids=lambda lq: lq.name)
    def test_vanishes_at_the_optimal_gain(self, lq: LQ) -> None:
        """The gain of scipy's Riccati equation is best whatever the noise; sigma wants to shrink.

        A start of mean 0 leaves the offset 0; the best gain is the same in every state, so dropping
        gamma^t changes nothing there.
        """
        lq = replace(lq, start_mean=torch.zeros_like(lq.start_mean))
        factor = GAMMA * (1 - lq.termination)
        a, b = factor**0.5 * lq.A.numpy(), factor**0.5 * lq.B.numpy()
        p = linalg.solve_discrete_are(a, b, lq.Q.numpy(), lq.R.numpy())
        gain = -np.linalg.solve(lq.R.numpy() + b.T @ p @ b, b.T @ p @ a)
        policy = policy_for(lq, gain)
        with torch.no_grad():
            policy.actor_head.bias.zero_()
        for target, horizon in (("discounted", None), ("undiscounted-weights", 9)):
            found = lab.policy_gradient(lq, policy, target, GAMMA, horizon)
            m = lq.n_actions
            assert (found[:m] < -0.01).all()
            close(found[m:], torch.zeros_like(found[m:]), 1e-9)


def slow_value(lq: LQ, gain: float, offset: float, std: float) -> Any:
    """Coefficients of the quadratic V(x), highest first, by iterating its Bellman equation."""
    grid, weights = normal_grid(2, 3)
    x = np.array([-1.0, 0.0, 1.0])[:, None]
    u = gain * x + offset + std * grid[:, 0]
    after = 0.9 * x + 0.5 * u + 0.1**0.5 * grid[:, 1]
    factor, quadratic = GAMMA * (1 - lq.termination), np.zeros(3)
    for _ in range(400):
        backup = (-(x**2) - 0.3 * u**2 + factor * np.polyval(quadratic, after)) @ weights
        quadratic = np.polyfit(x[:, 0], backup, 2)
    return quadratic


class TestFisher:
    @pytest.mark.parametrize("lq", TASKS, ids=lambda lq: lq.name)
    @pytest.mark.parametrize("gamma_w", [GAMMA, 1.0])
    def test_is_the_mean_square_of_the_score(self, lq: LQ, gamma_w: float) -> None:
        """E[score score'] over the law of each step's state and action, by quadrature."""
        policy = policy_for(lq)
        gain, offset, std = in_units(policy)
        a, b = lq.A.numpy(), lq.B.numpy()
        mean, covariance = lq.start_mean.numpy(), lq.start_covariance.numpy()
        n, m = lq.n_states, lq.n_actions
        grid, weights = normal_grid(n + m, 4)
        total, mass = np.zeros((m * (n + 2), m * (n + 2))), 0.0
        for t in range(4):
            x = mean + grid[:, :n] @ np.linalg.cholesky(covariance).T
            u = x @ gain.T + offset + std * grid[:, n:]
            scores = scores_of(policy, x, u)
            weight = (gamma_w * (1 - lq.termination)) ** t
            total, mass = total + weight * (scores.T * weights) @ scores, mass + weight
            loop = a + b @ gain
            mean = loop @ mean + b @ offset
            covariance = loop @ covariance @ loop.T + b @ np.diag(std**2) @ b.T + lq.noise.numpy()
        close(lab.fisher(lq, policy, gamma_w, 4), total / mass)

    def test_the_two_state_weights_differ(self) -> None:
        lq = double_integrator(termination=0.1)
        kept, dropped = (lab.fisher(lq, policy_for(lq), gamma_w) for gamma_w in (GAMMA, 1.0))
        assert (kept - dropped).norm() > 0.02 * kept.norm()
        close(kept, lab.fisher(lq, policy_for(lq), GAMMA, 1000))


def scores_of(policy: ActorCritic, x: Any, u: Any) -> Any:
    """grad log pi(u|x) ``[N, d]`` by autograd through the policy's own distribution."""
    log_prob = policy.distribution(torch.from_numpy(x)).log_prob(torch.from_numpy(u))
    one_each = torch.eye(len(x), dtype=FLOAT)
    pieces = torch.autograd.grad(
        log_prob, list(actor_parameters(policy)), one_each, is_grads_batched=True
    )
    return torch.cat([piece.reshape(len(x), -1) for piece in pieces], 1).numpy()


class TestShippedPath:
    """collect, evaluate_rollout, theory/returns.py and unit_gradients, against the exact vector."""

    def p_value(self, lq: LQ, weigh: Any, exact: Tensor, policy: ActorCritic, seed: int) -> float:
        rollout = played(lq, policy, 200 * 20, seed)
        evaluated = evaluate_rollout(policy, rollout)
        found = unit_gradients(
            policy,
            rollout,
            evaluated,
            {"mean": pseudo_loss("weights")},
            {"weights": weigh(rollout, evaluated.values)},
            episode_units(rollout, 20),
        )["mean"]
        assert found.shape == (200, len(exact))
        return hotelling(found / 20, exact)[1]

    def test_to_go_with_its_discount_follows_the_finite_horizon(self) -> None:
        lq = double_integrator(6)
        policy = policy_for(lq)
        exact = lab.policy_gradient(lq, policy, "finite", GAMMA, 6)
        assert self.p_value(lq, discounted_to_go, exact, policy, seed=0) > 1e-3
        endless = lab.policy_gradient(lq, policy, "discounted", GAMMA)
        assert self.p_value(lq, discounted_to_go, endless, policy, seed=0) < 1e-6

    def test_to_go_without_its_discount_follows_practice_to_the_limit(self) -> None:
        """Q is that of the steps which remain, as the limit belongs to the task."""
        lq = scalar(6)
        policy = policy_for(lq, bias=0.6)
        behind = torch.zeros(2, 2, dtype=FLOAT)

        def weigh(rollout: Rollout, values: Tensor) -> Tensor:
            return reward_to_go(rollout.rewards, rollout.boundary, 0.5)

        def p_value(target: str, terminal: Tensor | None) -> float:
            exact = lab.policy_gradient(lq, policy, target, 0.5, 6, terminal)
            return self.p_value(lq, weigh, exact, policy, seed=1)

        assert p_value("undiscounted-weights", behind) > 1e-3
        assert p_value("undiscounted-weights", None) < 1e-6
        assert p_value("finite", None) < 1e-6

    def test_whole_returns_follow_the_finite_horizon(self) -> None:
        lq = scalar(4, termination=0.2)
        policy = policy_for(lq)
        exact = lab.policy_gradient(lq, policy, "finite", GAMMA, 4)

        def weigh(rollout: Rollout, values: Tensor) -> Tensor:
            return episode_return(rollout.rewards, rollout.boundary, GAMMA)

        assert self.p_value(lq, weigh, exact, policy, seed=0) > 1e-3

    def test_the_discount_decides_between_the_other_targets(self) -> None:
        lq = scalar(None, termination=0.15)
        policy = policy_for(lq)
        kept, dropped = (
            lab.policy_gradient(lq, policy, target, 0.7)
            for target in ("discounted", "undiscounted-weights")
        )

        def weigh(rollout: Rollout, values: Tensor) -> Tensor:
            return reward_to_go(rollout.rewards, rollout.boundary, 0.7) - values

        def keep(rollout: Rollout, values: Tensor) -> Tensor:
            return discount_weights(rollout.episode_step, 0.7) * weigh(rollout, values)

        assert self.p_value(lq, keep, kept, policy, seed=2) > 1e-3
        assert self.p_value(lq, weigh, dropped, policy, seed=2) > 1e-3
        assert self.p_value(lq, weigh, kept, policy, seed=2) < 1e-6


def discounted_to_go(rollout: Rollout, values: Tensor) -> Tensor:
    to_go = reward_to_go(rollout.rewards, rollout.boundary, GAMMA)
    return discount_weights(rollout.episode_step, GAMMA) * to_go


class TestClip:
    """One step with the clip inside the environment."""

    @pytest.mark.parametrize(("mean", "std"), [(0.3, 0.5), (-1.4, 0.2), (0.0, 3.0), (2.5, 1.0)])
    def test_moments_are_the_integrals(self, mean: float, std: float) -> None:
        def moment(power: int) -> float:
            def integrand(a: float) -> float:
                return min(max(a, -0.8), 0.8) ** power * stats.norm.pdf(a, mean, std)

            edges = [-np.inf, -0.8, 0.8, np.inf]
            return sum(integrate.quad(integrand, *pair)[0] for pair in itertools.pairwise(edges))

        numbers = (torch.tensor(x, dtype=FLOAT) for x in (mean, std))
        first, second = lab.clipped_moments(*numbers, 0.8)
        close(first, moment(1), 1e-7)
        close(second, moment(2), 1e-7)

    def test_a_distant_bound_is_none(self) -> None:
        lq, far = scalar(1), scalar(1, bound=50.0)
        free, clipped = policy_for(lq), policy_for(far, [[-0.3 / 50]], 0.2 / 50, -0.5 - np.log(50))
        pairs = [(lq, free), (far, clipped)]
        a, b = (lab.objective(q, lab.affine_gaussian(q, p), GAMMA, 1) for q, p in pairs)
        close(a, b)
        a, b = (lab.policy_gradient(q, p, "finite", GAMMA, 1) for q, p in pairs)
        close(a * torch.tensor([1.0, 50.0, 50.0]), b)  # the weights are in units of the bound

    @pytest.mark.parametrize("bound", [0.5, 2.0])
    def test_objective_and_gradient_by_quadrature(self, bound: float) -> None:
        """E[r] and E[score r] over state and action on a fine grid, in the policy's units."""
        lq = scalar(1, bound=bound)
        policy = policy_for(lq, [[0.6]], 0.5, -0.4)
        x, of_state = np.polynomial.hermite_e.hermegauss(40)
        e = np.linspace(-9, 9, 40_001)
        x, of_state, density = 1 + 0.5 * x, of_state / of_state.sum(), stats.norm.pdf(e)
        std = float(np.exp(-0.4))
        wanted = np.zeros(4)
        for state, weight in zip(x, of_state, strict=True):
            clipped = bound * np.clip(0.6 * state + 0.5 + std * e, -1, 1)
            reward = -(state**2) - 0.3 * clipped**2
            terms = [np.ones_like(e), e**2 - 1, e * state / std, e / std]
            wanted += weight * np.array(
                [integrate.trapezoid(density * s * reward, e) for s in terms]
            )
        close(lab.objective(lq, lab.affine_gaussian(lq, policy), GAMMA, 1), wanted[0], 1e-6)
        close(lab.policy_gradient(lq, policy, "finite", GAMMA, 1), wanted[1:], 1e-6)

    def test_fisher_sees_no_clip(self) -> None:
        lq = scalar(1)
        bounded = replace(lq, bound=2.0)
        close(
            lab.fisher(bounded, policy_for(bounded), 1.0, 1), lab.fisher(lq, policy_for(lq), 1.0, 1)
        )

    def test_log_probability_of_the_clipped_action_is_seen(self) -> None:
        """Of what was sampled: unbiased. Of what the environment took: rejected."""
        lq = scalar(1, bound=1.5)
        policy = policy_for(lq, [[0.3]], 0.4, -0.3)
        rollout = played(lq, policy, 200 * 20, seed=6)
        assert 0.3 < rollout.clipped_share < 0.6

        def of_clipped(distribution: Distribution, rows: Batch) -> Tensor:
            log_prob = distribution.log_prob(rows["actions"].clamp(-1, 1))
            return policy_gradient_loss(log_prob, rows["weights"], rows["valid"], 1.0)

        found = unit_gradients(
            policy,
            rollout,
            evaluate_rollout(policy, rollout),
            {"sampled": pseudo_loss("weights"), "clipped": of_clipped},
            {"weights": reward_to_go(rollout.rewards, rollout.boundary, GAMMA)},
            episode_units(rollout, 20),
        )
        exact = lab.policy_gradient(lq, policy, "finite", GAMMA, 1)
        assert hotelling(found["sampled"] / 20, exact)[1] > 1e-3
        assert hotelling(found["clipped"] / 20, exact)[1] < 1e-6


class TestRefusals:
    def test_an_infinite_objective(self) -> None:
        lq = double_integrator(None)
        unstable = lab.affine_gaussian(lq, policy_for(lq, [[0.3, 0.3]]))
        with pytest.raises(ValueError, match=r"infinite, .* 0\.95 x 1 x 1\.\d+ is not below 1"):
            lab.objective(lq, unstable, 0.95)
        assert torch.isfinite(lab.objective(lq, unstable, 0.95, 20))
        assert torch.isfinite(lab.objective(lq, unstable, 0.5))
        dying = double_integrator(None, termination=0.5)
        assert torch.isfinite(lab.objective(dying, unstable, 0.95))

    def test_the_square_of_the_radius_decides(self) -> None:
        """rho = 1.05: 0.93 rho < 1 < 0.93 rho^2, and 0.9 rho^2 < 1."""
        lq = scalar(None)
        policy = policy_for(lq, [[0.3]])
        with pytest.raises(ValueError, match=r"0\.93 x 1 x 1\.10\d+ is not below 1"):
            lab.objective(lq, lab.affine_gaussian(lq, policy), 0.93)
        found = lab.objective(lq, lab.affine_gaussian(lq, policy), 0.9)
        close(found, slow_objective(lq, policy, 0.9, 6000))

    def test_no_discount_at_all(self) -> None:
        lq = scalar(None)
        policy = policy_for(lq)
        with pytest.raises(ValueError, match="is not below 1"):
            lab.objective(lq, lab.affine_gaussian(lq, policy), 1.0)
        with pytest.raises(ValueError, match="is not below 1"):
            lab.policy_gradient(lq, policy, "undiscounted-weights", GAMMA)
        with pytest.raises(ValueError, match="is not below 1"):
            lab.fisher(lq, policy, 1.0)
        assert torch.isfinite(lab.policy_gradient(lq, policy, "discounted", GAMMA)).all()

    def test_the_wrong_targets(self) -> None:
        lq = scalar()
        with pytest.raises(ValueError, match="is not one of"):
            lab.policy_gradient(lq, policy_for(lq), "G2", GAMMA)
        with pytest.raises(ValueError, match="needs a horizon"):
            lab.policy_gradient(lq, policy_for(lq), "finite", GAMMA)
        behind = torch.zeros(2, 2, dtype=FLOAT)
        with pytest.raises(ValueError, match="needs a horizon"):
            lab.policy_gradient(lq, policy_for(lq), "discounted", GAMMA, terminal=behind)

    @pytest.mark.parametrize(
        "settings",
        [
            {"net_arch": (4,)},
            {"action_dist": "squashed"},
            {"shared_network": True},
            {"memory": "gru"},
            {"norm_obs": True},
        ],
        ids=str,
    )
    def test_means_that_are_not_affine(self, settings: dict[str, Any]) -> None:
        lq = scalar()
        given = {"net_arch": (), **settings}
        policy = ActorCritic(lq.observation_space, lq.action_space, **given)
        with pytest.raises(ValueError, match="needs a Gaussian with affine mean"):
            lab.affine_gaussian(lq, policy)

    def test_a_policy_of_other_spaces(self) -> None:
        with pytest.raises(ValueError, match="other spaces than those of scalar"):
            lab.affine_gaussian(scalar(), policy_for(scalar(bound=1.0)))

    def test_more_than_one_step_under_bounds(self) -> None:
        lq = scalar(3, bound=1.0)
        policy = policy_for(lq)
        pi = lab.affine_gaussian(lq, policy)
        calls: list[Callable[[], Any]] = [
            lambda: lab.objective(lq, pi, GAMMA, 3),
            lambda: lab.objective(lq, pi, GAMMA),
            lambda: lab.state_values(lq, pi, GAMMA, 1),
            lambda: lab.visitation(lq, pi, GAMMA, 2),
            lambda: lab.fisher(lq, policy, GAMMA, 2),
            lambda: lab.policy_gradient(lq, policy, "finite", GAMMA, 3),
            lambda: lab.policy_gradient(lq, policy, "discounted", GAMMA, 1),
        ]
        for call in calls:
            with pytest.raises(ValueError, match="only target 'finite' of one step has a"):
                call()

    def test_bounds_want_a_diagonal_cost(self) -> None:
        lq = replace(wide(), bound=1.0)
        with pytest.raises(ValueError, match="not diagonal"):
            lab.objective(lq, lab.affine_gaussian(lq, policy_for(lq)), GAMMA, 1)
