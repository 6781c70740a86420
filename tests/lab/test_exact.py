"""Exact values and gradients against finite differences, enumeration, and what ships."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch import Tensor

from upslope.envs.tabular import (
    MDP,
    bandit,
    delayed_reward,
    gridworld,
    random_mdp,
    sentinel,
    two_state,
)
from upslope.lab import exact
from upslope.lab.policies import SoftmaxTable, scores
from upslope.policies.actor_critic import ActorCritic
from upslope.theory.objectives import policy_gradient_loss
from upslope.theory.returns import discount_weights, episode_return, gae, reward_to_go

GAMMA = 0.9
FLOAT = torch.float64
SMALL = [
    random_mdp(2, 2, 2, seed=0, termination=0.1),
    random_mdp(2, 2, 3, seed=1, termination=0.3),
    random_mdp(3, 2, 2, seed=2),
    sentinel(3),
]
ENDLESS = random_mdp(4, 3, None, seed=5, termination=0.2)
TERMINATING = [random_mdp(2, 2, 3, seed=3, termination=0.2), sentinel(3)]


def table(mdp: MDP, seed: int = 0, scale: float = 1.0) -> SoftmaxTable:
    rng = torch.Generator().manual_seed(seed)
    return SoftmaxTable(
        scale * torch.randn(mdp.n_states, mdp.n_actions, generator=rng, dtype=FLOAT)
    )


def network(mdp: MDP, seed: int = 0) -> ActorCritic:
    """A policy with shared features, so that states are not apart."""
    box = gym.spaces.Box(0, 1, (mdp.n_states,))
    actions = gym.spaces.Discrete(mdp.n_actions)
    policy = ActorCritic(box, actions, seed=seed, net_arch=(3,), dtype="float64")
    with torch.no_grad():
        policy.actor_head.weight.mul_(100)
    return policy


def pi_of(theta: Tensor, mdp: MDP) -> Tensor:
    return theta.view(mdp.n_states, mdp.n_actions).softmax(-1)


def differences(function: Any, theta: Tensor, h: float = 1e-5) -> Tensor:
    flat = theta.detach().reshape(-1)
    columns = []
    for i in range(len(flat)):
        step = torch.zeros_like(flat)
        step[i] = h
        columns.append((function(flat + step) - function(flat - step)) / (2 * h))
    return torch.stack(columns, -1)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("mdp", SMALL, ids=lambda m: m.name)
def test_enumeration_lists_every_trajectory_once(mdp: MDP) -> None:
    mdp = mdp.with_limit(mdp.horizon, is_task=False)  # or a last row may end in two ways alike
    pi = exact.state_probabilities(mdp, table(mdp))
    batch, prob = exact.enumerate_trajectories(mdp, pi, mdp.horizon or 0)
    close(prob.sum(), torch.tensor(1.0, dtype=FLOAT))
    assert (batch.valid.sum(0) >= 1).all()
    rows = torch.stack([column.double() for column in batch], -1)
    assert len({tuple(rows[:, i].flatten().tolist()) for i in range(len(prob))}) == len(prob)


def test_two_by_two_has_72_trajectories() -> None:
    mdp = random_mdp(2, 2, 2, seed=0, termination=0.1).with_limit(2, is_task=False)
    pi = exact.state_probabilities(mdp, table(mdp))
    _, prob = exact.enumerate_trajectories(mdp, pi, 2)
    # 2 starts x 2 actions x 2 successors x (ends, or 2 actions x 2 successors x (ends or not))
    assert len(prob) == 2 * 2 * 2 * (1 + 2 * 2 * 2) == 72


class TestValues:
    @pytest.mark.parametrize("mdp", SMALL, ids=lambda m: m.name)
    def test_objective_is_the_mean_return_of_all_trajectories(self, mdp: MDP) -> None:
        pi = exact.state_probabilities(mdp, table(mdp))
        batch, prob = exact.enumerate_trajectories(mdp, pi, mdp.horizon or 0)
        discounts = GAMMA ** torch.arange(mdp.horizon or 0, dtype=FLOAT)[:, None]
        returns = (discounts * batch.rewards * batch.valid).sum(0)
        close(exact.objective(mdp, pi, GAMMA, mdp.horizon), prob @ returns)

    def test_values_by_hand(self) -> None:
        """A corridor of 3, action 1 always taken: 0.9^2, 0.9, 1; leaving pays 0.3."""
        mdp = delayed_reward(3)
        go_on = torch.tensor([[0.0, 1.0]] * 3, dtype=FLOAT)
        values = exact.state_values(mdp, go_on, GAMMA)
        close(values, torch.tensor([0.81, 0.9, 1.0], dtype=FLOAT))
        q = exact.action_values(mdp, values, GAMMA)
        close(q, torch.tensor([[0.3, 0.81], [0.3, 0.9], [0.3, 1.0]], dtype=FLOAT))

    def test_a_long_horizon_is_no_horizon(self) -> None:
        pi = exact.state_probabilities(ENDLESS, table(ENDLESS))
        finite = exact.state_values(ENDLESS, pi, GAMMA, 400)[0]
        close(finite, exact.state_values(ENDLESS, pi, GAMMA))

    def test_values_are_fixed_points(self) -> None:
        pi = exact.state_probabilities(ENDLESS, table(ENDLESS))
        values = exact.state_values(ENDLESS, pi, GAMMA)
        close(values, (pi * exact.action_values(ENDLESS, values, GAMMA)).sum(1))

    @pytest.mark.parametrize("gamma", [1.0, GAMMA])
    def test_visits_weigh_rewards_to_the_objective(self, gamma: float) -> None:
        pi = exact.state_probabilities(ENDLESS, table(ENDLESS))
        rewards = (pi * ENDLESS.expected_rewards).sum(1)
        visits = exact.visitation(ENDLESS, pi, gamma, None)
        close(visits @ rewards, exact.objective(ENDLESS, pi, gamma))
        limited = exact.visitation(ENDLESS, pi, gamma, 6)
        close((limited @ rewards).sum(), exact.objective(ENDLESS, pi, gamma, 6))

    def test_stationary_law_is_that_of_the_reset_chain(self) -> None:
        ends = torch.linspace(0.05, 0.6, 48, dtype=FLOAT).view(
            4, 3, 4
        )  # lengths hang on the policy
        mdp = replace(ENDLESS, termination=ends)
        pi = exact.state_probabilities(mdp, table(mdp))
        on = torch.einsum("sa,sat->st", pi, mdp.continuing)
        reset = on + (1 - on.sum(1))[:, None] * mdp.start
        law = exact.stationary(mdp, pi)
        close(law @ reset, law)
        close(law.sum(), torch.tensor(1.0, dtype=FLOAT))


class TestScores:
    def test_score_is_the_gradient_of_each_log_probability(self) -> None:
        policy = network(ENDLESS)
        obs = torch.eye(4, dtype=FLOAT)
        actions = torch.tensor([0, 2, 1, 1])
        found = exact.score(policy, obs, actions)
        for i in range(4):
            log_prob = policy.distribution(obs[i : i + 1]).log_prob(actions[i : i + 1])
            names = policy.part_names("actor")
            one = torch.autograd.grad(log_prob, [policy.get_parameter(n) for n in names])
            close(found[i], torch.cat([g.flatten() for g in one]))

    def test_log_derivative_trick(self) -> None:
        """grad pi = pi grad log pi, entry by entry."""
        mdp = two_state()
        policy = table(mdp)
        pi, g = scores(policy, torch.eye(2, dtype=FLOAT))
        moved = differences(lambda theta: pi_of(theta, mdp), policy.theta)
        close(moved.view(2, 2, -1), pi[..., None] * g, 1e-9)

    def test_expected_score_is_zero(self) -> None:
        found = exact.expected_score(network(ENDLESS), torch.eye(4, dtype=FLOAT))
        assert found.abs().max() < 1e-14

    def test_score_of_a_softmax_by_hand(self) -> None:
        policy = SoftmaxTable(torch.tensor([[0.0, 0.0]], dtype=FLOAT))
        found = exact.score(policy, torch.ones(1, 1, dtype=FLOAT), torch.tensor([1]))
        close(found, torch.tensor([[-0.5, 0.5]], dtype=FLOAT))


class TestGradients:
    @pytest.mark.parametrize("mdp", SMALL, ids=lambda m: m.name)
    def test_finite_target_is_the_derivative_of_the_objective(self, mdp: MDP) -> None:
        policy = table(mdp)
        slope = differences(
            lambda theta: exact.objective(mdp, pi_of(theta, mdp), GAMMA, mdp.horizon), policy.theta
        )
        close(exact.policy_gradient(mdp, policy, "finite", GAMMA, mdp.horizon), slope, 1e-8)

    def test_discounted_target_is_the_derivative_of_the_objective(self) -> None:
        policy = table(ENDLESS)
        slope = differences(
            lambda theta: exact.objective(ENDLESS, pi_of(theta, ENDLESS), GAMMA), policy.theta
        )
        close(exact.policy_gradient(ENDLESS, policy, "discounted", GAMMA), slope, 1e-8)

    def test_only_policy_terms_survive(self) -> None:
        """The derivative of log P(tau) is the sum of scores: start and dynamics fall out."""
        mdp = SMALL[1]
        policy = table(mdp)
        pi = exact.state_probabilities(mdp, policy)
        batch, prob = exact.enumerate_trajectories(mdp, pi, 3)

        def log_prob(theta: Tensor) -> Tensor:
            return exact.enumerate_trajectories(mdp, pi_of(theta, mdp), 3)[1].log()

        _, g = scores(policy, torch.eye(2, dtype=FLOAT))
        sums = (g[batch.states, batch.actions] * batch.valid[..., None]).sum(0)
        close(differences(log_prob, policy.theta), sums, 1e-8)
        assert len(prob) > 72

    def test_the_three_targets_agree_without_discount(self) -> None:
        policy = table(ENDLESS)
        found = [
            exact.policy_gradient(ENDLESS, policy, target, 1.0)
            for target in ("discounted", "undiscounted-weights")
        ]
        close(found[0], found[1])
        close(exact.policy_gradient(ENDLESS, policy, "finite", 1.0, 300), found[0], 1e-10)
        discounted, dropped = (
            exact.policy_gradient(ENDLESS, policy, target, 0.5)
            for target in ("discounted", "undiscounted-weights")
        )
        assert (discounted - dropped).norm() > 0.05 * discounted.norm()

    def test_frozen_terminal_value(self) -> None:
        """H steps with V of the collecting policy, held fixed, behind them."""
        policy = table(ENDLESS)
        values = exact.state_values(ENDLESS, exact.state_probabilities(ENDLESS, policy), GAMMA)

        def j(theta: Tensor) -> Tensor:
            pi = pi_of(theta, ENDLESS)
            return ENDLESS.start @ exact.state_values(ENDLESS, pi, GAMMA, 5, terminal=values)[0]

        found = exact.policy_gradient(ENDLESS, policy, "finite", GAMMA, 5, terminal=values)
        close(found, differences(j, policy.theta), 1e-8)
        full = exact.policy_gradient(ENDLESS, policy, "discounted", GAMMA)
        assert (found - full).norm() > 1e-3 * full.norm()
        # the same as: gamma^t weights that stop at H, with the advantage of the endless process
        close(found, exact.policy_gradient(ENDLESS, policy, "discounted", GAMMA, 5))

    def test_the_wrong_calls_are_refused(self) -> None:
        with pytest.raises(ValueError, match="is not one of"):
            exact.policy_gradient(ENDLESS, table(ENDLESS), "G2", GAMMA)
        with pytest.raises(ValueError, match="needs a horizon"):
            exact.policy_gradient(ENDLESS, table(ENDLESS), "finite", GAMMA)

    @pytest.mark.parametrize(("gamma", "least", "most"), [(1.0, 0.0, 1e-9), (0.5, 5e-3, 1.0)])
    def test_dropping_the_discount_follows_no_gradient(
        self, gamma: float, least: float, most: float
    ) -> None:
        def field(theta: Tensor) -> Tensor:
            policy = SoftmaxTable(theta, ENDLESS.n_actions)
            return exact.policy_gradient(
                ENDLESS, policy, "undiscounted-weights", gamma, differentiable=True
            )

        theta = table(ENDLESS, seed=3).theta.detach().reshape(-1)
        assert least <= exact.field_asymmetry(field, theta) < most

    def test_the_gradient_of_a_function_is_symmetric(self) -> None:
        def field(theta: Tensor) -> Tensor:
            policy = SoftmaxTable(theta, ENDLESS.n_actions)
            return exact.policy_gradient(ENDLESS, policy, "discounted", 0.5, differentiable=True)

        theta = table(ENDLESS, seed=3).theta.detach().reshape(-1)
        assert exact.field_asymmetry(field, theta) < 1e-9
        turning = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=FLOAT)
        whirl = exact.field_asymmetry(lambda x: turning @ x + x, torch.ones(2, dtype=FLOAT))
        close(whirl, torch.tensor(1.0, dtype=FLOAT))  # J - J' = 2 turning, J + J' = 2 identity

    def test_frozen_stationary_semi_gradient(self) -> None:
        """sum dbar grad pi Q = (1 - gamma) sum dbar grad V, dbar held fixed."""
        policy = table(ENDLESS)
        pi = exact.state_probabilities(ENDLESS, policy)
        # in the reset chain: the end of an episode is a jump to a new start, nothing terminates
        on = ENDLESS.continuing
        jump = (1 - on.sum(2))[..., None] * ENDLESS.start
        arrivals = on + jump
        rewards = (ENDLESS.expected_rewards[..., None]).expand_as(arrivals)
        chain = MDP("chain", arrivals, rewards, torch.zeros_like(arrivals), ENDLESS.start)
        law = exact.stationary(ENDLESS, pi)
        q = exact.action_values(chain, exact.state_values(chain, pi, GAMMA), GAMMA)
        moved = differences(lambda theta: pi_of(theta, chain), policy.theta)
        left = torch.einsum("s,sad,sa->d", law, moved, q)
        slope = differences(
            lambda theta: exact.state_values(chain, pi_of(theta, chain), GAMMA), policy.theta
        )
        close(left, (1 - GAMMA) * law @ slope, 1e-8)

    def test_all_action_gradient(self) -> None:
        policy = network(ENDLESS)
        q = torch.arange(12, dtype=FLOAT).view(4, 3)
        obs = torch.eye(4, dtype=FLOAT)
        pi, g = scores(policy, obs)
        wanted = torch.einsum("na,nad,na->d", pi, g, q) / 4
        close(exact.expected_gradient(policy, obs, q), wanted)
        # an offset per state changes nothing: the EGLP lemma without sampling
        close(exact.expected_gradient(policy, obs, q + obs.sum(1, keepdim=True) * 7), wanted)


class TestEnumeratedEstimators:
    """Weights, loss and backward as shipped, over every trajectory: no sampling error at all."""

    def gradient(self, mdp: MDP, policy: Any, weigh: Any) -> Tensor:
        pi = exact.state_probabilities(mdp, policy)
        batch, prob = exact.enumerate_trajectories(mdp, pi, mdp.horizon or 0)
        logs = policy.distribution(torch.eye(mdp.n_states, dtype=FLOAT)).log_probs
        weights = weigh(batch, pi) * prob  # each trajectory by its probability
        loss = policy_gradient_loss(logs[batch.states, batch.actions], weights, batch.valid, 1.0)
        loss.backward()
        parameters = list(policy.parameters())
        if isinstance(policy, ActorCritic):
            parameters = [policy.get_parameter(n) for n in policy.part_names("actor")]
        return -torch.cat([p.grad.flatten() for p in parameters])

    @pytest.mark.parametrize("make", [table, network])
    @pytest.mark.parametrize("mdp", SMALL, ids=lambda m: m.name)
    def test_episode_return(self, mdp: MDP, make: Any) -> None:
        found = self.gradient(mdp, make(mdp), lambda b, _: episode_return(b.rewards, b.done, GAMMA))
        close(found, exact.policy_gradient(mdp, make(mdp), "finite", GAMMA, mdp.horizon), 1e-10)

    @pytest.mark.parametrize("make", [table, network])
    @pytest.mark.parametrize("mdp", SMALL, ids=lambda m: m.name)
    def test_reward_to_go_with_its_discount(self, mdp: MDP, make: Any) -> None:
        found = self.gradient(mdp, make(mdp), self.discounted_to_go)
        close(found, exact.policy_gradient(mdp, make(mdp), "finite", GAMMA, mdp.horizon), 1e-10)

    def discounted_to_go(self, batch: exact.Trajectories, pi: Tensor) -> Tensor:
        steps = torch.arange(len(batch.rewards))[:, None].expand_as(batch.rewards)
        return discount_weights(steps, GAMMA) * reward_to_go(batch.rewards, batch.done, GAMMA)

    def test_the_past_drops_out(self) -> None:
        """E[score_t r_k] = 0 for k < t, trajectory by trajectory."""
        mdp = SMALL[1]
        policy = table(mdp)
        pi = exact.state_probabilities(mdp, policy)
        batch, prob = exact.enumerate_trajectories(mdp, pi, 3)
        _, g = scores(policy, torch.eye(2, dtype=FLOAT))
        terms = g[batch.states, batch.actions] * batch.valid[..., None]
        for t in range(3):
            for k in range(3):
                product = torch.einsum("n,nd,n->d", prob, terms[t], batch.rewards[k])
                assert (product.abs().max() < 1e-14) == (k < t)

    @pytest.mark.parametrize("mdp", SMALL, ids=lambda m: m.name)
    def test_any_baseline_of_the_state_keeps_the_mean(self, mdp: MDP) -> None:
        level = torch.linspace(-3, 5, mdp.n_states, dtype=FLOAT)

        def weigh(batch: exact.Trajectories, pi: Tensor) -> Tensor:
            steps = torch.arange(len(batch.rewards))[:, None].expand_as(batch.rewards)
            to_go = reward_to_go(batch.rewards, batch.done, GAMMA)
            return discount_weights(steps, GAMMA) * (to_go - level[batch.states])

        found = self.gradient(mdp, table(mdp), weigh)
        close(found, exact.policy_gradient(mdp, table(mdp), "finite", GAMMA, mdp.horizon), 1e-10)

    def test_a_baseline_that_sees_the_action_is_biased(self) -> None:
        mdp = SMALL[0]

        def weigh(batch: exact.Trajectories, pi: Tensor) -> Tensor:
            return episode_return(batch.rewards, batch.done, GAMMA) - batch.actions.double()

        found = self.gradient(mdp, table(mdp), weigh)
        wanted = exact.policy_gradient(mdp, table(mdp), "finite", GAMMA, mdp.horizon)
        assert (found - wanted).norm() > 0.1 * wanted.norm()

    @pytest.mark.parametrize("lam", [0.0, 0.5, 0.97, 1.0])
    @pytest.mark.parametrize("mdp", TERMINATING, ids=lambda m: m.name)
    def test_gae_with_exact_values_is_unbiased_for_every_lambda(self, mdp: MDP, lam: float) -> None:
        """Cut at the limit, bootstrapped with V of the endless process: G3 on those rows."""
        mdp = mdp.with_limit(3, is_task=False)
        found = self.gradient(mdp, network(mdp), lambda b, pi: self.gae(mdp, b, pi, lam, 0.0))
        wanted = exact.policy_gradient(mdp, network(mdp), "undiscounted-weights", GAMMA, 3)
        close(found, wanted, 1e-10)

    @pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
    def test_gae_with_a_wrong_value_is_biased(self, lam: float) -> None:
        mdp = TERMINATING[0].with_limit(3, is_task=False)
        found = self.gradient(mdp, table(mdp), lambda b, pi: self.gae(mdp, b, pi, lam, 2.0))
        wanted = exact.policy_gradient(mdp, table(mdp), "undiscounted-weights", GAMMA, 3)
        assert (found - wanted).norm() > 1e-3 * wanted.norm()  # at truncation even lambda = 1

    def gae(
        self, mdp: MDP, batch: exact.Trajectories, pi: Tensor, lam: float, error: float
    ) -> Tensor:
        values = exact.state_values(mdp, pi, GAMMA)
        values = values + error * torch.arange(mdp.n_states, dtype=FLOAT)
        return gae(
            batch.rewards, values[batch.states], values[batch.next_states],
            batch.terminated, batch.done, GAMMA, lam,
        )  # fmt: skip

    def test_mean_td_error_is_the_advantage(self) -> None:
        policy = table(ENDLESS)
        pi = exact.state_probabilities(ENDLESS, policy)
        values = exact.state_values(ENDLESS, pi, GAMMA)
        deltas = (
            ENDLESS.rewards + GAMMA * (1 - ENDLESS.termination) * values - values[:, None, None]
        )
        mean = (ENDLESS.transitions * deltas).sum(2)
        q = exact.action_values(ENDLESS, values, GAMMA)
        close(mean, q - values[:, None])
        close((pi * mean).sum(1), torch.zeros(4, dtype=FLOAT))


class TestNatural:
    @pytest.mark.parametrize("make", [table, network])
    def test_fisher_is_the_mean_square_of_the_score(self, make: Any) -> None:
        policy, w = make(ENDLESS), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=FLOAT)
        pi, g = scores(policy, torch.eye(4, dtype=FLOAT))
        wanted = sum(
            w[s] * pi[s, a] * torch.outer(g[s, a], g[s, a]) for s in range(4) for a in range(3)
        )
        close(exact.fisher(policy, w), wanted)

    def test_rank_of_a_softmax(self) -> None:
        w = torch.full((4,), 0.25, dtype=FLOAT)
        assert torch.linalg.matrix_rank(exact.fisher(table(ENDLESS), w)) == 4 * (3 - 1)

    def test_compatible_fit_is_the_natural_gradient(self) -> None:
        policy, w = network(ENDLESS), torch.tensor([0.4, 0.1, 0.3, 0.2], dtype=FLOAT)
        pi, g = scores(policy, torch.eye(4, dtype=FLOAT))
        values = exact.state_values(ENDLESS, pi, GAMMA)
        advantages = exact.action_values(ENDLESS, values, GAMMA) - values[:, None]
        fit = exact.compatible_fit(policy, w, advantages)
        gradient = torch.einsum("s,sa,sad,sa->d", w, pi, g, advantages)
        natural = torch.linalg.pinv(exact.fisher(policy, w), rtol=1e-12, hermitian=True) @ gradient
        close(fit, natural, 1e-6)

    def test_in_a_table_it_is_the_centred_advantage_whatever_the_weights(self) -> None:
        policy = table(ENDLESS)
        advantages = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=FLOAT)
        pi = exact.state_probabilities(ENDLESS, policy)
        advantages = advantages - (pi * advantages).sum(1, keepdim=True)
        centred = advantages - advantages.mean(1, keepdim=True)
        for w in ([0.25] * 4, [0.7, 0.1, 0.1, 0.1]):
            fit = exact.compatible_fit(policy, torch.tensor(w, dtype=FLOAT), advantages)
            close(fit.view(4, 3), centred, 1e-9)


def test_performance_difference_is_exact() -> None:
    old, new = (exact.state_probabilities(ENDLESS, table(ENDLESS, seed=s)) for s in (1, 2))
    gain = exact.objective(ENDLESS, new, GAMMA) - exact.objective(ENDLESS, old, GAMMA)
    close(exact.performance_difference(ENDLESS, old, new, GAMMA), gain)
    assert gain.abs() > 0.1


@pytest.mark.parametrize("mdp", [two_state(), gridworld(), bandit(1.0, 0.0)], ids=lambda m: m.name)
def test_probabilities_that_do_not_sum_to_one_are_refused(mdp: MDP) -> None:
    with pytest.raises(ValueError, match="do not sum to 1"):
        MDP("bad", mdp.transitions * 0.9, mdp.rewards, mdp.termination, mdp.start)
