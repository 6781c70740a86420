"""Exact variances, baselines and biases against full enumeration and against known figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_exact import GAMMA, close, network, table
from torch import Tensor

from upslope.envs.tabular import (
    MDP,
    bandit,
    common_level,
    decision_chain,
    random_mdp,
    sentinel,
)
from upslope.lab import baselines, bias, bounds, exact, floor, moments
from upslope.lab.policies import SoftmaxTable, scores
from upslope.theory.returns import episode_return, gae, reward_to_go

FLOAT = torch.float64
MDPS = [
    random_mdp(2, 2, 3, seed=0, termination=0.2),
    random_mdp(3, 2, 2, seed=1),
    sentinel(3),
]


def sample_space(mdp: MDP, policy: Any) -> tuple[exact.Trajectories, Tensor, Tensor]:
    """Every trajectory, its probability, and the scores ``[H, N, d]`` of its valid rows."""
    pi, g = scores(policy, torch.eye(mdp.n_states, dtype=FLOAT))
    batch, prob = exact.enumerate_trajectories(mdp, pi, mdp.horizon or 0)
    return batch, prob, g[batch.states, batch.actions] * batch.valid[..., None]


def law(x: Tensor, prob: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``[d]`` and trace of the covariance of ``x [N, d]`` under ``prob``."""
    mean = prob @ x
    return mean, prob @ (x - mean).square().sum(1)


@pytest.mark.parametrize("make", [table, network])
@pytest.mark.parametrize("mdp", MDPS, ids=lambda m: m.name)
class TestAgainstEnumeration:
    @pytest.mark.parametrize("kappa", [1.0, GAMMA])
    def test_reward_to_go_with_a_baseline(self, mdp: MDP, make: Any, kappa: float) -> None:
        policy = make(mdp)
        batch, prob, terms = sample_space(mdp, policy)
        horizon = mdp.horizon or 0
        b = torch.arange(horizon * mdp.n_states, dtype=FLOAT).view(horizon, -1) / 3
        time = torch.arange(horizon)[:, None]
        weights = reward_to_go(batch.rewards, batch.done, GAMMA) - b[time, batch.states]
        x = (kappa ** time[..., None].double() * terms * weights[..., None]).sum(0)
        mean, trace = moments.weighted(mdp, policy, moments.reward_table(mdp), GAMMA, kappa, b)
        wanted = law(x, prob)
        close(mean, wanted[0])
        close(trace, wanted[1])

    @pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
    def test_gae(self, mdp: MDP, make: Any, lam: float) -> None:
        """With a wrong V, truncated at the limit, as shipped."""
        mdp = mdp.with_limit(mdp.horizon, is_task=False)
        policy = make(mdp)
        batch, prob, terms = sample_space(mdp, policy)
        values = torch.arange(mdp.n_states, dtype=FLOAT) - 0.5
        weights = gae(
            batch.rewards, values[batch.states], values[batch.next_states],
            batch.terminated, batch.done, GAMMA, lam,
        )  # fmt: skip
        mean, trace = moments.weighted(
            mdp, policy, moments.td_table(mdp, values, GAMMA), GAMMA * lam, 1.0
        )
        wanted = law((terms * weights[..., None]).sum(0), prob)
        close(mean, wanted[0])
        close(trace, wanted[1])

    @pytest.mark.parametrize("constant", [0.0, 1.5])
    def test_episode_return(self, mdp: MDP, make: Any, constant: float) -> None:
        policy = make(mdp)
        batch, prob, terms = sample_space(mdp, policy)
        weights = episode_return(batch.rewards, batch.done, GAMMA) - constant
        mean, trace = moments.episode_return(mdp, policy, GAMMA, constant)
        wanted = law((terms * weights[..., None]).sum(0), prob)
        close(mean, wanted[0])
        close(trace, wanted[1])

    def test_difference_of_the_two_variances(self, mdp: MDP, make: Any) -> None:
        policy = make(mdp)
        batch, prob, terms = sample_space(mdp, policy)
        time = torch.arange(mdp.horizon or 0)[:, None]
        er = (terms * episode_return(batch.rewards, batch.done, GAMMA)[..., None]).sum(0)
        to_go = reward_to_go(batch.rewards, batch.done, GAMMA)
        rtg = (GAMMA ** time[..., None].double() * terms * to_go[..., None]).sum(0)
        past = er - rtg
        cov = prob @ ((rtg - prob @ rtg) * (past - prob @ past)).sum(1)
        found = moments.compare(mdp, policy, GAMMA)
        close(found.episode_return, law(er, prob)[1])
        close(found.reward_to_go, law(rtg, prob)[1])
        close(found.past, law(past, prob)[1])
        close(found.covariance, cov)
        assert (prob @ past).abs().max() < 1e-14  # the past drops out of the mean

    @pytest.mark.parametrize("kappa", [1.0, GAMMA])
    def test_parts_add_up(self, mdp: MDP, make: Any, kappa: float) -> None:
        policy = make(mdp)
        rho = moments.reward_table(mdp)
        plain = moments.decompose(mdp, policy, GAMMA, kappa)
        close(sum(plain), moments.weighted(mdp, policy, rho, GAMMA, kappa)[1])
        b = torch.linspace(-1, 2, mdp.n_states, dtype=FLOAT)
        based = moments.decompose(mdp, policy, GAMMA, kappa, b)
        close(sum(based), moments.weighted(mdp, policy, rho, GAMMA, kappa, b)[1])
        close(based.start, plain.start)  # a baseline reaches the action part only
        close(based.transition, plain.transition)
        assert (based.action - plain.action).abs() > 1e-3

    @pytest.mark.parametrize("kappa", [1.0, GAMMA])
    def test_excess_variance(self, mdp: MDP, make: Any, kappa: float) -> None:
        policy = make(mdp)
        best = baselines.optimal(mdp, policy, GAMMA, kappa)
        weights = baselines.normal_equations(mdp, policy, GAMMA, kappa)[0].sum(-1)
        rho = moments.reward_table(mdp)
        least = moments.weighted(mdp, policy, rho, GAMMA, kappa, best)[1]
        for shift in (0.0, 1.0, -2.0):
            b = best + shift * torch.linspace(-1, 1, best.numel(), dtype=FLOAT).view_as(best)
            trace = moments.weighted(mdp, policy, rho, GAMMA, kappa, b)[1]
            close(trace - least, baselines.excess_variance(weights, b, best))

    def test_best_of_each_class(self, mdp: MDP, make: Any) -> None:
        policy = make(mdp)
        rho = moments.reward_table(mdp)

        def trace(b: Tensor) -> float:
            return float(moments.weighted(mdp, policy, rho, GAMMA, GAMMA, b)[1])

        timed = baselines.optimal(mdp, policy, GAMMA)
        still = baselines.optimal(mdp, policy, GAMMA, time_dependent=False)
        values = exact.state_values(
            mdp, exact.state_probabilities(mdp, policy), GAMMA, mdp.horizon
        )[:-1]
        others = [torch.zeros_like(timed), values, baselines.per_step(mdp, policy, GAMMA)]
        assert trace(timed) <= trace(still) + 1e-12
        assert all(trace(timed) <= trace(other) + 1e-12 for other in others)
        rng = torch.Generator().manual_seed(0)
        for _ in range(5):
            nudge = 0.1 * torch.randn(mdp.n_states, generator=rng, dtype=FLOAT)
            assert trace(still) <= trace(still + nudge)

    def test_per_coordinate_goes_lower(self, mdp: MDP, make: Any) -> None:
        policy = make(mdp)
        batch, prob, terms = sample_space(mdp, policy)
        time = torch.arange(mdp.horizon or 0)[:, None]
        each = baselines.optimal(mdp, policy, GAMMA, per_coordinate=True)
        to_go = reward_to_go(batch.rewards, batch.done, GAMMA)[..., None]
        x = (GAMMA ** time[..., None].double() * terms * (to_go - each[time, batch.states])).sum(0)
        mean, trace = law(x, prob)
        close(mean, exact.policy_gradient(mdp, make(mdp), "finite", GAMMA, mdp.horizon))
        one = baselines.optimal(mdp, policy, GAMMA)
        rho = moments.reward_table(mdp)
        assert trace <= moments.weighted(mdp, policy, rho, GAMMA, GAMMA, one)[1] + 1e-12

    @pytest.mark.parametrize("is_task", [True, False])
    @pytest.mark.parametrize("lam", [0.0, 0.3, 0.97, 1.0])
    def test_bias_of_gae_with_a_wrong_value(
        self, mdp: MDP, make: Any, lam: float, is_task: bool
    ) -> None:
        policy, horizon = make(mdp), mdp.horizon or 0
        mdp = mdp.with_limit(horizon, is_task=is_task)
        batch, prob, terms = sample_space(mdp, policy)
        e = torch.linspace(1, -2, mdp.n_states, dtype=FLOAT)

        def mean(error: Tensor) -> Tensor:
            weights = gae(
                batch.rewards, error[batch.states], error[batch.next_states],
                batch.terminated, batch.done, GAMMA, lam,
            )  # fmt: skip
            return prob @ (terms * weights[..., None]).sum(0)

        c = bias.nstep(mdp, policy, e, GAMMA, 1.0)
        # GAE is linear in V, so the bias is what V + e gives beyond V, whatever V is
        close(bias.gae(c, lam), mean(e) - mean(torch.zeros_like(e)))
        if is_task:
            assert bias.gae(c, 1.0).norm() < 1e-12
            size = prob @ terms.norm(dim=-1).sum(0)
            bound = bias.contraction(GAMMA, lam) * e.abs().max() * size
            assert bias.gae(c, lam).norm() <= bound + 1e-12

    def test_mean_squared_error(self, mdp: MDP, make: Any) -> None:
        """Of the mean of N episodes, by enumerating pairs of trajectories."""
        policy = make(mdp)
        batch, prob, terms = sample_space(mdp, policy)
        x = (terms * reward_to_go(batch.rewards, batch.done, 0.0)[..., None]).sum(0)
        mean, trace = law(x, prob)
        target = mean + 1.0
        pairs = (x[:, None] + x[None]) / 2 - target
        wanted = (prob[:, None] * prob * pairs.square().sum(-1)).sum()
        close(bias.mean_squared_error(mean - target, trace, 2), wanted)


class TestKnownFigures:
    @pytest.mark.parametrize(("level", "wanted"), [(2.0, 1.375), (5.0, 10.375)])
    def test_reward_to_go_may_vary_more(self, level: float, wanted: float) -> None:
        mdp = common_level(level)
        per_step = SoftmaxTable(torch.zeros(2, 2, dtype=FLOAT))
        found = moments.compare(mdp, per_step, 1.0)
        assert float(found.reward_to_go) == pytest.approx(wanted)
        assert float(found.episode_return) == pytest.approx(0.375)

    def test_value_as_a_baseline_may_hurt(self) -> None:
        """p = (.99, .01), Q = (1, 0): V removes a level that the common action needs."""
        policy = SoftmaxTable(torch.tensor([[0.99, 0.01]], dtype=FLOAT).log())
        mdp = bandit(1.0, 0.0)
        rho, v = moments.reward_table(mdp), torch.tensor([0.99], dtype=FLOAT)
        none = moments.weighted(mdp, policy, rho, 1.0, 1.0)[1]
        value = moments.weighted(mdp, policy, rho, 1.0, 1.0, v)[1]
        assert float(value / none) == pytest.approx(9604, rel=1e-9)

    def test_bias_need_not_fall_with_lambda(self) -> None:
        mdp = decision_chain(4)
        policy = SoftmaxTable(torch.zeros(mdp.n_states, 2, dtype=FLOAT))
        e = torch.zeros(mdp.n_states, dtype=FLOAT)
        e[2] = 1.0  # two steps after the decision
        c = bias.nstep(mdp, policy, e, 1.0, 1.0)
        curve = torch.stack([bias.gae(c, k / 10).norm() for k in range(11)])
        curve = curve / exact.policy_gradient(mdp, policy, "finite", 1.0, 4).norm()
        assert curve.argmax() == 5
        close(curve, curve.flip(0))
        shape = [0, 0.09, 0.16, 0.21, 0.24, 0.25, 0.24, 0.21, 0.16, 0.09, 0]
        close(curve, torch.tensor(shape, dtype=FLOAT), 1e-9)

    @pytest.mark.parametrize(("episodes", "wanted"), [(4, -0.014), (32, -0.235)])
    def test_mean_over_steps(self, episodes: int, wanted: float) -> None:
        half = torch.tensor([0.5, 0.5], dtype=FLOAT)
        x, lengths = torch.tensor([0.5, -1.0], dtype=FLOAT), torch.tensor([1.0, 10.0], dtype=FLOAT)
        found, target = bias.ratio_bias(half, x, lengths, episodes)
        assert float(target) == -0.25
        assert float(found) == pytest.approx(wanted, abs=6e-4)
        many, _ = bias.ratio_bias(half, x, lengths, 500)
        assert float(many) == pytest.approx(-0.25, abs=2e-3)

    @pytest.mark.parametrize(
        ("rule", "n_envs", "n_steps", "wanted"),
        [
            ("keep-finished", 8, 25, -0.132),
            ("keep-finished", 8, 100, -0.222),
            ("keep-finished", 1, 200, -0.25),
            ("finish-the-last", 8, 25, -0.263),
        ],
    )
    def test_step_count(self, rule: str, n_envs: int, n_steps: int, wanted: float) -> None:
        found = bias.stopping_rule((1, 10), (0.5, -1.0), rule, n_envs, n_steps)
        assert found == pytest.approx(wanted, abs=1e-9 if n_envs == 1 else 2e-3)

    def test_the_rule_must_be_known(self) -> None:
        with pytest.raises(ValueError, match="keep-finished"):
            bias.stopping_rule((1, 2), (0.0, 0.0), "first", 1, 5)

    def test_contraction(self) -> None:
        assert bias.contraction(0.9, 1.0) == 0.0
        assert bias.contraction(0.9, 0.0) == 0.9
        assert bias.contraction(1.0, 1.0) == 0.0


class TestFloorAndBounds:
    def test_floor_of_a_bandit_with_noisy_pay(self) -> None:
        """One step: only the law of what is paid is unknown, so the floor is that noise's share."""
        mdp = random_mdp(2, 2, 1, seed=4)
        policy = table(mdp)
        pi, g = scores(policy, torch.eye(2, dtype=FLOAT))
        spread = (mdp.transitions * mdp.rewards.square()).sum(2) - mdp.expected_rewards.square()
        noise = sum(
            mdp.start[s] * pi[s, a] * spread[s, a] * g[s, a].square().sum()
            for s in range(2) for a in range(2)
        )  # fmt: skip
        per_state = torch.einsum("sa,sad,sa->sd", pi, g, mdp.expected_rewards)
        start = law(per_state, mdp.start)[1]
        close(floor.efficiency(mdp, policy, 1.0), noise + start)

    @pytest.mark.parametrize("mdp", MDPS, ids=lambda m: m.name)
    def test_sampled_actions_stay_above_the_floor(self, mdp: MDP) -> None:
        policy = table(mdp)
        least = floor.efficiency(mdp, policy, GAMMA)
        assert least > 0
        assert moments.episode_return(mdp, policy, GAMMA)[1] > least
        rho = moments.reward_table(mdp)
        assert moments.weighted(mdp, policy, rho, GAMMA, GAMMA)[1] > least

    def test_improvement_is_never_below_its_bound(self) -> None:
        mdp = random_mdp(4, 3, None, seed=5, termination=0.2)
        for seed in range(20):
            pair = [table(mdp, s, scale) for s, scale in ((0, 1.0), (seed, 1.0))]
            old, new = (exact.state_probabilities(mdp, policy) for policy in pair)
            new = 0.9 * old + 0.1 * new
            lower, gain = bounds.improvement(mdp, old, new, GAMMA)
            assert lower <= gain + 1e-12
            close(gain, exact.performance_difference(mdp, old, new, GAMMA))
        lower, gain = bounds.improvement(mdp, old, old, GAMMA)
        assert float(lower) == pytest.approx(0, abs=1e-12)
        assert float(gain) == pytest.approx(0, abs=1e-12)


def test_a_horizon_is_asked_for() -> None:
    with pytest.raises(ValueError, match="with_limit"):
        moments.episode_return(random_mdp(2, 2, None, seed=0), table(MDPS[0]), GAMMA)
