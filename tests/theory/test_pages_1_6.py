"""Statements of pages 1 to 6 and 13 that need an expectation: everything is enumerated."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from upslope.envs.tabular import MDP, deterministic, random_mdp, sentinel
from upslope.lab import baselines, bias, exact, moments
from upslope.lab.policies import SoftmaxTable, log_probabilities, scores
from upslope.policies.distributions import Categorical
from upslope.theory.objectives import policy_gradient_loss
from upslope.theory.returns import episode_return, reward_to_go, standardize
from upslope.theory.trust_region import surrogate

F64 = torch.float64
GAMMA = 0.9
SMALL = random_mdp(2, 2, 2, seed=0, termination=0.3)
ENDLESS = (
    replace(  # some transitions end more episodes than others, so lengths depend on the policy
        random_mdp(3, 2, None, seed=5),
        termination=0.4
        * torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(1), dtype=F64),
    )
)


class Shared:
    """Logits theta @ features[s, a]: states and actions share parameters."""

    def __init__(self, features: Tensor, theta: Tensor) -> None:
        self.features, self.theta = features, theta.clone().requires_grad_()

    def parameters(self) -> list[Tensor]:
        return [self.theta]

    def distribution(self, obs: Tensor) -> Categorical:
        return Categorical(torch.einsum("ns,sad,d->na", obs, self.features, self.theta))


def table(mdp: MDP, seed: int = 0) -> SoftmaxTable:
    return SoftmaxTable(random(mdp.n_states, mdp.n_actions, seed=seed))


def shared(mdp: MDP, seed: int = 0) -> Shared:
    return Shared(random(mdp.n_states, mdp.n_actions, 3, seed=seed), random(3, seed=seed + 1))


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def close(a: Tensor | float, b: Tensor | float, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(
        torch.as_tensor(a, dtype=F64), torch.as_tensor(b, dtype=F64), rtol=0, atol=tolerance
    )


def everything(mdp: MDP, policy: Any) -> tuple[exact.Trajectories, Tensor, Tensor]:
    """All trajectories, their probabilities ``[N]`` and scores ``[H, N, d]``, 0 after the end."""
    pi, g = scores(policy, torch.eye(mdp.n_states, dtype=F64))
    batch, prob = exact.enumerate_trajectories(mdp, pi, mdp.horizon or 0)
    return batch, prob, g[batch.states, batch.actions] * batch.valid[..., None]


def gradient(loss: Tensor, policy: Any) -> Tensor:
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, policy.parameters(), retain_graph=True)]
    )


def test_log_derivative_trick_of_any_function() -> None:
    """grad E[f] = E[f score] for an f that nobody could differentiate (Eq. 2.1)."""
    policy = table(ENDLESS)
    f = torch.tensor([math.pi, -1e3], dtype=F64)
    obs = torch.eye(3, dtype=F64)
    for s in range(3):
        pi = policy.distribution(obs[s : s + 1]).log_probs[0].exp()
        slope = gradient(pi @ f, policy)
        terms = exact.score(policy, obs[s : s + 1].expand(2, 3), torch.arange(2))
        close((pi.detach() * f) @ terms, slope)


class TestQuotaMean:
    """Every batch of two whole episodes, each times its probability (Eq. 3.3)."""

    def batches(self, policy: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log_prob, weight and valid ``[H, pairs, 2]`` and the probability of each pair."""
        batch, prob, _ = everything(SMALL, policy)
        weights = episode_return(batch.rewards, batch.done, GAMMA)
        log_prob = log_probabilities(policy, SMALL.n_states)[batch.states, batch.actions]
        n = len(prob)
        first, second = (x.flatten() for x in torch.meshgrid(*[torch.arange(n)] * 2, indexing="ij"))
        pairs = [torch.stack([x[:, first], x[:, second]], -1) for x in (log_prob, weights)]
        valid = torch.stack([batch.valid[:, first], batch.valid[:, second]], -1)
        return pairs[0], pairs[1], valid, prob[first] * prob[second]

    @pytest.mark.parametrize("make", [table, shared])
    def test_divided_by_episodes_it_is_unbiased(self, make: Any) -> None:
        policy = make(SMALL)
        log_prob, weight, valid, prob = self.batches(policy)
        close(prob.sum(), 1.0)
        loss = policy_gradient_loss(log_prob, weight * prob[:, None], valid, 2.0)
        wanted = exact.policy_gradient(SMALL, make(SMALL), "finite", GAMMA, 2)
        close(-gradient(loss, policy), wanted)

    def test_divided_by_steps_it_is_biased(self) -> None:
        policy = shared(SMALL)
        log_prob, weight, valid, prob = self.batches(policy)
        steps = valid.sum((0, 2))
        mean_length = (prob * steps).sum() / 2
        loss = policy_gradient_loss(log_prob, weight * (prob / steps)[:, None], valid, 1.0)
        wanted = exact.policy_gradient(SMALL, shared(SMALL), "finite", GAMMA, 2)
        found = -gradient(loss, policy) * mean_length
        assert (found - wanted).norm() > 0.01 * wanted.norm()
        assert torch.cosine_similarity(found, wanted, dim=0) < 0.99999


def test_a_constant_moves_the_value_by_the_entropy_and_leaves_the_expected_gradient() -> None:
    """E L(psi + c) = E L(psi) + c E sum H(pi(.|s_t)), and one expected gradient (Eq. 4.2)."""
    policy = shared(SMALL)
    batch, prob, _ = everything(SMALL, policy)
    logs = log_probabilities(policy, SMALL.n_states)
    log_prob, psi = logs[batch.states, batch.actions], reward_to_go(batch.rewards, batch.done, 1.0)
    entropy = -(logs.exp() * logs).sum(1).detach()[batch.states]
    expected_entropy = float((entropy * batch.valid * prob).sum())
    plain = policy_gradient_loss(log_prob, psi * prob, batch.valid, 1.0)
    for constant in (-3.0, 10.0):
        moved = policy_gradient_loss(log_prob, (psi + constant) * prob, batch.valid, 1.0)
        close(float(moved.detach() - plain.detach()), constant * expected_entropy)
        close(gradient(moved, policy), gradient(plain, policy))


def test_the_ratio_has_another_value_and_the_same_gradient() -> None:
    """Written with pi / pi_old the same gradient has the mean weight as its value (Eq. 4.2)."""
    policy = shared(SMALL)
    batch, _, _ = everything(SMALL, policy)
    psi = reward_to_go(batch.rewards, batch.done, 1.0)
    log_prob = log_probabilities(policy, SMALL.n_states)[batch.states, batch.actions]
    ratio = surrogate(log_prob, log_prob.detach(), psi, batch.valid)
    pseudo = policy_gradient_loss(log_prob, psi, batch.valid, float(batch.valid.sum()))
    close(float(ratio.detach()), float(psi[batch.valid].mean()))
    assert abs(float(ratio.detach() + pseudo.detach())) > 0.01
    close(gradient(ratio, policy), -gradient(pseudo, policy))


@pytest.mark.parametrize("n_episodes", [1, 3])
def test_ratio_bias_is_that_of_every_batch(n_episodes: int) -> None:
    """Brute force over the kinds of N episodes, through the pseudo-loss over steps (Eq. 4.3)."""
    theta = torch.tensor(0.4, dtype=F64, requires_grad=True)
    p = float(theta.detach().sigmoid())
    returns, lengths = (1.0, 2.0), (1, 4)
    expected = 0.0
    for kinds in product((0, 1), repeat=n_episodes):
        log_prob = torch.stack([(theta if kind else -theta).sigmoid().log() for kind in kinds])
        weight = torch.tensor([returns[kind] for kind in kinds], dtype=F64)
        steps = sum(lengths[kind] for kind in kinds)
        loss = policy_gradient_loss(log_prob, weight, torch.ones(n_episodes), steps)
        chance = math.prod(p if kind else 1 - p for kind in kinds)
        expected -= chance * float(torch.autograd.grad(loss, theta)[0])
    mean_length = (1 - p) * lengths[0] + p * lengths[1]
    found, target = bias.ratio_bias(
        torch.tensor([1 - p, p], dtype=F64),
        torch.tensor([-p * returns[0], (1 - p) * returns[1]], dtype=F64),  # score times return
        torch.tensor(lengths, dtype=F64),
        n_episodes,
    )
    close(found, expected * mean_length)
    close(target, p * (1 - p) * (returns[1] - returns[0]))
    assert abs(found - target) > 0.01


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("rule", ["keep-finished", "finish-the-last"])
def test_stopping_rule_is_that_of_every_run(rule: str, n_envs: int) -> None:
    """Brute force: every sequence of kinds in every environment, stopped after 6 steps (4.4)."""
    lengths, x, n_steps, p = (1, 3), (0.5, -1.0), 6, 0.3

    def kept(kinds: tuple[int, ...]) -> list[float]:
        clock, finished = 0, []
        for kind in kinds:
            if clock >= n_steps:
                break
            clock += lengths[kind]
            if rule == "finish-the-last" or clock <= n_steps:
                finished.append(x[kind])
        return finished

    expected = 0.0
    sequences = list(product((0, 1), repeat=n_steps))  # six episodes fill six steps
    for run in product(sequences, repeat=n_envs):
        chance = math.prod(p if kind else 1 - p for kinds in run for kind in kinds)
        finished = [value for kinds in run for value in kept(kinds)]
        expected += chance * sum(finished) / max(1, len(finished))
    found = bias.stopping_rule(lengths, x, rule, n_envs, n_steps, p)
    assert found == pytest.approx(expected, abs=1e-12)
    # kept episodes of one environment are exchangeable, so their mean is that of the first
    fair = rule == "keep-finished" and n_envs == 1
    assert (abs(found - ((1 - p) * x[0] + p * x[1])) < 1e-12) == fair


@pytest.mark.parametrize("make", [table, shared])
def test_a_baseline_may_know_the_whole_past_and_not_the_action(make: Any) -> None:
    """E[score_t b(h_t)] = 0, with h_t all that came before a_t (the EGLP lemma, Eq. 6.1)."""
    mdp = sentinel(3)
    batch, prob, g = everything(mdp, make(mdp))
    past = torch.zeros(len(prob), dtype=F64)
    for t in range(3):
        b = (1 + past) * (2.0 + batch.states[t]) ** t
        close(torch.einsum("n,nd,n->d", prob, g[t], b), torch.zeros(g.shape[-1], dtype=F64))
        seen = torch.einsum("n,nd,n->d", prob, g[t], batch.actions[t].double())
        assert seen.abs().max() > 0.01
        past = past * 1.7 + batch.rewards[t] - 3 * batch.actions[t]


def test_reward_to_go_may_vary_more_though_no_reward_is_negative() -> None:
    """Scores K (a - 1/2) and a - 1/2 of one parameter: the difference is (2 - K) / 8 (Eq. 5.3)."""
    mdp = deterministic("shared", [[1, 1]] * 2, [[1, 0], [0, 1]], [[0, 0], [1, 1]], horizon=2)
    for k in (1.0, 2.0, 3.0, 5.0):
        features = torch.tensor([[[0.0], [k]], [[0.0], [1.0]]], dtype=F64)
        found = moments.compare(mdp, Shared(features, torch.zeros(1, dtype=F64)), 1.0)
        close(found.episode_return - found.reward_to_go, (2 - k) / 8)


@pytest.mark.parametrize("make", [table, shared])
def test_reward_to_go_varies_less_where_scores_are_orthogonal_and_rewards_have_one_sign(
    make: Any,
) -> None:
    """The sufficient condition of page 5, on states that are never met twice."""
    rng = torch.Generator().manual_seed(3)
    rewards = torch.rand(4, 2, generator=rng, dtype=F64).tolist()
    chain = [[i + 1, i + 1] for i in range(3)] + [[3, 3]]
    mdp = deterministic("one way", chain, rewards, [[0.1, 0.4]] * 3 + [[1, 1]], horizon=4)
    found = moments.compare(mdp, make(mdp), GAMMA)
    if make is table:
        assert found.reward_to_go < found.episode_return
        batch, prob, g = everything(mdp, make(mdp))
        to_go = reward_to_go(batch.rewards, batch.done, GAMMA)
        discount = GAMMA ** torch.arange(4, dtype=F64)[:, None]
        earned = discount * batch.rewards * batch.valid
        past = earned.cumsum(0) - earned
        terms = g.square().sum(-1) * past * (past + 2 * discount * to_go)
        assert ((terms * prob).sum(1) >= 0).all()
        close((terms * prob).sum(), found.episode_return - found.reward_to_go)


def test_per_step_baseline_minimises_the_sum_of_per_step_variances() -> None:
    """And not the variance of their sum, where parameters are shared (Eq. 6.3)."""
    mdp = sentinel(3)
    policy = shared(mdp)
    batch, prob, g = everything(mdp, policy)
    to_go = reward_to_go(batch.rewards, batch.done, GAMMA)
    time = torch.arange(3)[:, None]

    def summed(b: Tensor) -> float:
        terms = GAMMA ** time[..., None] * g * (to_go - b[time, batch.states])[..., None]
        means = torch.einsum("n,tnd->td", prob, terms)
        return float((prob * (terms - means[:, None]).square().sum(-1)).sum())

    def whole(b: Tensor) -> float:
        rho = moments.reward_table(mdp)
        return float(moments.weighted(mdp, policy, rho, GAMMA, GAMMA, b)[1])

    best, star = baselines.per_step(mdp, policy, GAMMA), baselines.optimal(mdp, policy, GAMMA)
    for t, s in product(range(3), range(3)):
        for nudge in (-0.1, 0.1):
            other = best.clone()
            other[t, s] += nudge
            assert summed(other) > summed(best)
    assert whole(star) < whole(best) - 1e-3
    assert summed(star) > summed(best) + 1e-3


def test_standardizing_scales_and_turns_the_expected_gradient() -> None:
    """Every batch of three episodes of a bandit with three arms: no multiple of g (Eq. 6.7)."""
    logits = torch.tensor([0.5, -0.3, 0.1], dtype=F64, requires_grad=True)
    rewards, count = torch.tensor([0.0, 1.0, 5.0], dtype=F64), 3
    p = logits.detach().softmax(-1)
    means = {"plain": torch.zeros(3, dtype=F64), "standardized": torch.zeros(3, dtype=F64)}
    for batch in product(range(3), repeat=count):
        actions = torch.tensor(batch)
        weights, valid = rewards[actions], torch.ones(count)
        for name, psi in (("plain", weights), ("standardized", standardize(weights, valid))):
            loss = policy_gradient_loss(logits.log_softmax(-1)[actions], psi, valid, count)
            means[name] -= p[actions].prod() * torch.autograd.grad(loss, logits)[0]
    close(means["plain"], p * (rewards - p @ rewards))
    cosine = torch.cosine_similarity(means["plain"], means["standardized"], dim=0)
    assert 0.5 < cosine < 0.999


@pytest.mark.parametrize("make", [table, shared])
def test_dropped_weights_are_the_mean_over_all_trajectories(make: Any) -> None:
    """G3 = E sum_t score_t A(s_t, a_t), with the endless process' A, cut where sampling is."""
    mdp = sentinel(3).with_limit(3, is_task=False)
    policy = make(mdp)
    batch, prob, g = everything(mdp, policy)
    values = exact.state_values(mdp, exact.state_probabilities(mdp, policy), GAMMA)
    advantage = exact.action_values(mdp, values, GAMMA) - values[:, None]
    mean = torch.einsum("n,tnd,tn->d", prob, g, advantage[batch.states, batch.actions])
    close(exact.policy_gradient(mdp, policy, "undiscounted-weights", GAMMA, 3), mean)


@pytest.mark.parametrize("make", [table, shared])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.99, 1.0])
def test_dropping_the_discount_is_a_semi_gradient(make: Any, gamma: float) -> None:
    """G3 = (1 - gamma) sum_s d_1(s) grad V(s) + gamma grad J, with the visits d_1 frozen."""
    policy = make(ENDLESS)
    visits = exact.visitation(ENDLESS, exact.state_probabilities(ENDLESS, policy), 1.0, None)
    starts = (replace(ENDLESS, start=row) for row in torch.eye(3, dtype=F64))  # grad V(s) = grad J
    slopes = torch.stack([exact.policy_gradient(m, policy, "discounted", gamma) for m in starts])
    wanted = (1 - gamma) * visits @ slopes
    wanted = wanted + gamma * exact.policy_gradient(ENDLESS, policy, "discounted", gamma)
    close(exact.policy_gradient(ENDLESS, policy, "undiscounted-weights", gamma), wanted)


@pytest.mark.parametrize("make", [table, shared])
def test_the_mean_over_the_rows_of_a_long_rollout_is_g3_over_the_mean_length(make: Any) -> None:
    """sum_s dbar(s) sum_a grad pi Q = G3 / E[L], and T rows come within 1/T of it."""
    policy = make(ENDLESS)
    pi = exact.state_probabilities(ENDLESS, policy)
    values = exact.state_values(ENDLESS, pi, GAMMA)
    q = exact.action_values(ENDLESS, values, GAMMA)
    mean_length = exact.visitation(ENDLESS, pi, 1.0, None).sum()
    g3 = exact.policy_gradient(ENDLESS, policy, "undiscounted-weights", GAMMA)

    def weighed(states: Tensor) -> Tensor:
        rows = torch.eye(3, dtype=F64)
        return exact.expected_gradient(policy, rows, 3 * states[:, None] * q)

    close(weighed(exact.stationary(ENDLESS, pi)), g3 / mean_length)
    on = torch.einsum("sa,sat->st", pi, ENDLESS.continuing)
    resetting = on + (1 - on.sum(1))[:, None] * ENDLESS.start
    for n_rows in (10, 100):
        row, total = torch.tensor([1.0, 0.0, 0.0], dtype=F64), torch.zeros(3, dtype=F64)
        for _ in range(n_rows):
            row, total = row @ resetting, total + row
        gap = (weighed(total / n_rows) - g3 / mean_length).norm()
        assert 0 < gap < 5 / n_rows
