"""Statements of pages 7 to 14 that need an expectation: all trajectories, nothing sampled."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import gymnasium as gym
import pytest
import torch
from scipy import stats
from torch import Tensor

from upslope.envs.tabular import MDP, random_mdp
from upslope.lab import bias, bounds, exact
from upslope.lab.policies import SoftmaxTable, scores
from upslope.lab.tests import hotelling
from upslope.policies.actor_critic import ActorCritic
from upslope.theory.returns import gae, reward_to_go, td_errors

F64 = torch.float64
GAMMA = 0.9


@dataclass(frozen=True)
class Chain:
    """A random MDP with its policy; state S is terminal and gets a value that nothing may use."""

    transitions: Tensor  # [S, A, S + 1]
    rewards: Tensor  # [S, A, S + 1]
    pi: Tensor  # [S, A]

    @property
    def values(self) -> Tensor:
        """Exact V of every state ``[S]`` by a linear solve."""
        chain = torch.einsum("sa,sat->st", self.pi, self.transitions)[:, :-1]
        reward = torch.einsum("sa,sat,sat->s", self.pi, self.transitions, self.rewards)
        return torch.linalg.solve(torch.eye(len(self.pi), dtype=F64) - GAMMA * chain, reward)

    @property
    def advantages(self) -> Tensor:
        """Exact A = Q - V ``[S, A]`` by one step of the definition."""
        after = torch.cat([self.values, torch.zeros(1, dtype=F64)])
        q = (self.transitions * (self.rewards + GAMMA * after)).sum(-1)
        return q - self.values[:, None]


def make_chain(seed: int) -> Chain:
    rng = torch.Generator().manual_seed(seed)
    transitions = torch.randn(3, 2, 4, generator=rng, dtype=F64).mul(1.5).softmax(-1)
    rewards = torch.randn(3, 2, 4, generator=rng, dtype=F64)
    return Chain(transitions, rewards, torch.randn(3, 2, generator=rng, dtype=F64).softmax(-1))


@pytest.mark.parametrize("seed", range(3))
def test_td_error_of_the_exact_v_has_the_advantage_as_its_mean(seed: int) -> None:
    """E[delta | s, a] = A(s, a), through td_errors with a terminal value of 40 (Eq. 7.4)."""
    mdp = make_chain(seed)
    following = torch.cat([mdp.values, torch.tensor([40.0], dtype=F64)]).expand(6, 4)
    terminated = torch.tensor([False, False, False, True]).expand(6, 4)
    values = mdp.values.repeat_interleave(2)[:, None].expand(6, 4)
    delta = td_errors(mdp.rewards.view(6, 4), values, following, terminated, GAMMA)
    mean = (delta * mdp.transitions.view(6, 4)).sum(1).view(3, 2)
    torch.testing.assert_close(mean, mdp.advantages, rtol=0, atol=1e-12)
    weighted = (mdp.pi * mdp.advantages).sum(1)
    torch.testing.assert_close(weighted, torch.zeros(3, dtype=F64), rtol=0, atol=1e-12)
    shifted = td_errors(mdp.rewards.view(6, 4), values, following + 1, terminated, GAMMA)
    off = (shifted * mdp.transitions.view(6, 4)).sum(1).view(3, 2) - mdp.advantages
    assert off.abs().max() > 0.1  # a wrong V is seen


@dataclass(frozen=True)
class Stream:
    """All trajectories from one (s, a) as columns ``[T, N]``, with their probabilities ``[N]``."""

    states: Tensor
    successors: Tensor
    rewards: Tensor
    alive: Tensor
    probability: Tensor


def enumerate_from(mdp: Chain, state: int, action: int, n_rows: int) -> Stream:
    """Each way the next rows can go; after termination the rows idle in state 0."""
    paths: list[tuple[float, list[tuple[int, int, float, bool]]]] = [(1.0, [])]
    for t in range(n_rows):
        grown = []
        for probability, path in paths:
            over = bool(path) and (not path[-1][3] or path[-1][1] == 3)
            if over:
                grown.append((probability, [*path, (0, 0, 55.0, False)]))
                continue
            s = state if t == 0 else path[-1][1]
            for a in [action] if t == 0 else range(2):
                chance = 1.0 if t == 0 else float(mdp.pi[s, a])
                for follows in range(4):
                    p = probability * chance * float(mdp.transitions[s, a, follows])
                    row = (s, follows, float(mdp.rewards[s, a, follows]), True)
                    grown.append((p, [*path, row]))
        paths = grown
    table = torch.tensor([path for _, path in paths], dtype=F64).permute(2, 1, 0)
    probability = torch.tensor([p for p, _ in paths], dtype=F64)
    return Stream(table[0].long(), table[1].long(), table[2], table[3].bool(), probability)


def mean_gae(mdp: Chain, stream: Stream, v: Tensor, limit: int, lam: float) -> float:
    """E[A_0] over all trajectories, with a time limit after ``limit`` rows."""
    following = torch.cat([v, torch.tensor([40.0], dtype=F64)])
    terminated = (stream.successors == 3) & stream.alive
    truncated = torch.zeros_like(terminated)
    truncated[limit - 1 : limit] = True  # none where the limit lies behind the batch
    done = terminated | truncated | ~stream.alive
    arguments = stream.rewards, v[stream.states], following[stream.successors], terminated, done
    return float(gae(*arguments, GAMMA, lam)[0] @ stream.probability)


@pytest.mark.parametrize("limit", [2, 4, 9])  # inside the batch of 4 rows, on its last row, none
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.97, 1.0])
def test_gae_of_the_exact_v_has_the_advantage_as_its_mean(lam: float, limit: int) -> None:
    """E[A_t | s, a] = A(s, a) for every lambda, cut by termination, time limit or batch end."""
    mdp = make_chain(5)
    for state, action in ((0, 0), (1, 1), (2, 0)):
        stream = enumerate_from(mdp, state, action, 4)
        assert math.isclose(float(stream.probability.sum()), 1)
        wanted = float(mdp.advantages[state, action])
        assert mean_gae(mdp, stream, mdp.values, limit, lam) == pytest.approx(wanted, abs=1e-12)


def test_gae_of_a_wrong_v_is_biased_at_a_cut_even_with_lambda_one() -> None:
    """The last bootstrap stays: only termination inside the batch makes lambda 1 Monte Carlo."""
    mdp = make_chain(5)
    stream = enumerate_from(mdp, 0, 0, 4)
    wrong = mdp.values + torch.tensor([1.0, 2.0, -3.0], dtype=F64)
    baseline = wrong[0] - mdp.values[0]  # its own error is no bias of the gradient
    for limit in (2, 4):
        gap = mean_gae(mdp, stream, wrong, limit, 1.0) + baseline - mdp.advantages[0, 0]
        chain = torch.einsum("sa,sat->st", mdp.pi, mdp.transitions)[:, :-1]
        reached = mdp.transitions[0, 0, :-1] @ torch.linalg.matrix_power(chain, limit - 1)
        left = GAMMA**limit * reached @ (wrong - mdp.values)
        assert float(gap) == pytest.approx(float(left), abs=1e-12)
        assert abs(left) > 0.01


def problem(limit_is_task: bool, seed: int = 0) -> MDP:
    mdp = random_mdp(2, 2, 3, seed, termination=0.3)
    return mdp.with_limit(3, is_task=limit_is_task)


def table_of(mdp: MDP, seed: int = 1) -> SoftmaxTable:
    rng = torch.Generator().manual_seed(seed)
    return SoftmaxTable(torch.randn(mdp.n_states, mdp.n_actions, generator=rng, dtype=F64))


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def test_advantages_have_mean_zero_under_the_policy() -> None:
    """A = Q - V with Q by enumeration of one step (Eq. 7.1)."""
    mdp = random_mdp(4, 3, None, 2, termination=0.2)
    pi = exact.state_probabilities(mdp, table_of(mdp))
    values = exact.state_values(mdp, pi, GAMMA)
    q = exact.action_values(mdp, values, GAMMA)
    for s in range(4):
        for a in range(3):
            one_step = sum(
                float(mdp.transitions[s, a, n] * (mdp.rewards[s, a, n] + 0.8 * GAMMA * values[n]))
                for n in range(4)
            )
            assert float(q[s, a]) == pytest.approx(one_step, abs=1e-12)
    close((pi * (q - values[:, None])).sum(1), torch.zeros(4, dtype=F64))


def test_bias_stays_below_its_contraction() -> None:
    """|b| <= kappa |e| E sum gamma^t |score_t|, and kappa falls to 0 (Eq. 8.8)."""
    mdp = problem(True)
    for seed in range(5):
        policy = table_of(mdp, seed)
        pi, score = scores(policy, torch.eye(2, dtype=F64))
        visits = exact.visitation(mdp, pi, GAMMA, 3).sum(0)
        error = torch.randn(2, generator=torch.Generator().manual_seed(seed), dtype=F64)
        c = bias.nstep(mdp, policy, error, GAMMA, GAMMA)
        size = visits @ (pi * score.norm(dim=-1)).sum(1) * error.abs().max()
        bounds_seen = []
        for lam in (0.0, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0):
            kappa = bias.contraction(GAMMA, lam)
            mixture = (1 - lam) * sum(lam ** (n - 1) * GAMMA**n for n in range(1, 2000))
            assert kappa == pytest.approx(mixture, abs=1e-12)
            assert bias.gae(c, lam).norm() <= kappa * size + 1e-14
            bounds_seen.append(kappa)
        assert bounds_seen == sorted(bounds_seen, reverse=True)
        assert bounds_seen[-1] == 0


def shared_policy(n_states: int, n_actions: int, seed: int = 0) -> ActorCritic:
    """Over one-hot states, two hidden units for all of them."""
    space, actions = gym.spaces.Box(0, 1, (n_states,)), gym.spaces.Discrete(n_actions)
    policy = ActorCritic(
        space, actions, seed=seed, net_arch=(2,), ortho_init=False, dtype="float64"
    )
    with torch.no_grad():
        for weights in policy.parameters():
            weights.mul_(2)
    return policy


def test_compatible_fit_is_the_least_squares_fit_and_the_natural_gradient() -> None:
    """Stationary for the weighted squared error, and F_w^+ g_w (Eq. 9.5)."""
    policy, w = shared_policy(4, 3), torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=F64)
    eye = torch.eye(4, dtype=F64)
    pi = policy.distribution(eye).log_probs.detach().exp()
    q = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    advantages = q - (pi * q).sum(1, keepdim=True)
    x = exact.compatible_fit(policy, w, advantages)
    states, actions = torch.arange(4).repeat_interleave(3), torch.arange(3).repeat(4)
    score = exact.score(policy, eye[states], actions)
    leaf = x.clone().requires_grad_()
    squares = (advantages.flatten() - score @ leaf).square()
    error = (w[states] * pi.flatten() * squares).sum()
    (slope,) = torch.autograd.grad(error, leaf)
    close(slope, torch.zeros_like(slope))
    assert error < (w[states] * pi.flatten() * advantages.flatten().square()).sum()
    g = exact.expected_gradient(policy, eye, 4 * w[:, None] * advantages)
    close(torch.linalg.pinv(exact.fisher(policy, w), rtol=1e-10) @ g, x, 1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_improvement_bound_is_the_sum_as_written_and_lies_below_the_gain(seed: int) -> None:
    """Achiam et al. 2017, corollary 1, state by state, for near and far policies (Eq. 10.4)."""
    mdp = random_mdp(3, 2, None, seed, termination=0.05)
    theta, direction = (table_of(mdp, seed + i).theta.detach() for i in (0, 50))
    pi = exact.state_probabilities(mdp, SoftmaxTable(theta))
    values = exact.state_values(mdp, pi, GAMMA)
    advantages = exact.action_values(mdp, values, GAMMA) - values[:, None]
    visits = exact.visitation(mdp, pi, GAMMA, None)
    for size in (0.0, 1e-3, 0.03, 0.3, 3.0):
        new = exact.state_probabilities(mdp, SoftmaxTable(theta + size * direction))
        gains = [sum(float(new[s, a] * advantages[s, a]) for a in range(2)) for s in range(3)]
        varied = [sum(abs(float(new[s, a] - pi[s, a])) for a in range(2)) / 2 for s in range(3)]
        cost = 2 * GAMMA / (1 - GAMMA) * max(abs(gain) for gain in gains)
        expected = sum(float(visits[s]) * (gains[s] - cost * varied[s]) for s in range(3))
        lower, gain = bounds.improvement(mdp, pi, new, GAMMA)
        change = exact.objective(mdp, new, GAMMA) - exact.objective(mdp, pi, GAMMA)
        assert float(lower) == pytest.approx(expected, abs=1e-12)
        assert float(gain) == pytest.approx(float(change), abs=1e-12)
        assert lower <= gain + 1e-13


def test_hotelling_of_one_dimension_is_the_t_test() -> None:
    """T^2 = t^2 with the same p-value (Eq. 12.4)."""
    x = torch.randn(20, 1, generator=torch.Generator().manual_seed(0), dtype=F64) + 0.4
    statistic, p = hotelling(x, torch.zeros(1, dtype=F64))
    expected = stats.ttest_1samp(x[:, 0].numpy(), 0.0)
    assert statistic == pytest.approx(expected.statistic**2, rel=1e-12)
    assert p == pytest.approx(expected.pvalue, rel=1e-9)


def test_hotelling_rejects_as_often_as_it_says() -> None:
    """2,000 normal samples of known mean, strongly correlated, in a basis of two directions."""
    rng = torch.Generator().manual_seed(1)
    mix = torch.tensor([[1.0, 2.0, 0.0], [0.5, 1.0, 3.0]], dtype=F64)  # rank 2 in three coordinates
    basis = torch.linalg.svd(mix).Vh[:2].T
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    samples = torch.randn(2000, 15, 2, generator=rng, dtype=F64) @ mix + mean
    p = torch.tensor([hotelling(x, mean, basis)[1] for x in samples])
    assert 0.035 < (p < 0.05).double().mean() < 0.065
    assert stats.kstest(p.numpy(), "uniform").pvalue > 1e-3
    off = torch.tensor([hotelling(x, mean + 2 * mix[0], basis)[1] for x in samples[:50]])
    assert (off < 0.01).all()


def test_time_limited_values_are_the_mean_returns_of_all_trajectories() -> None:
    """V_h(s) by backward recursion against the enumeration from each state (Eq. 14.1)."""
    mdp = problem(True)
    pi = exact.state_probabilities(mdp, table_of(mdp))
    values = exact.state_values(mdp, pi, GAMMA, 3)
    for left in (1, 2, 3):
        for s in range(2):
            start = torch.eye(2, dtype=F64)[s]
            begins = dataclasses.replace(mdp, start=start, horizon=left)
            rows, prob = exact.enumerate_trajectories(begins, pi, left)
            returns = reward_to_go(rows.rewards, rows.done, GAMMA)[0]
            assert float(values[3 - left, s]) == pytest.approx(float(prob @ returns), abs=1e-12)
    close(values[3], torch.zeros(2, dtype=F64))
    assert (values[0] - values[2]).abs().max() > 0.1  # no function of the state alone
