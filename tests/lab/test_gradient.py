"""Signal and noise of a gradient: by hand, against exact moments, and how often they err."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, permutations
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

import upslope
from upslope.envs.tabular import MDP, TabularEnv, bandit, random_mdp, sentinel, two_state
from upslope.errors import ConfigError, EnvironmentFaultError
from upslope.lab import exact, gradient, moments, noise
from upslope.lab.estimators import applicable
from upslope.lab.gradient import default_episodes, measure, own_estimator
from upslope.lab.gradient_figure import figure
from upslope.lab.gradient_study import GradientStudy, Measured
from upslope.lab.noise import Estimate, Sample
from upslope.lab.policies import SoftmaxTable, scores
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import Rollout
from upslope.theory.returns import reward_to_go

F64 = torch.float64
GAMMA = 0.8
SMALL = {"n_envs": 2, "n_steps": 16, "batch_size": 16, "n_epochs": 1, "net_arch": (4,)}


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


def tabular_agent(mdp: MDP, **settings: Any) -> upslope.PPO:
    """A policy far from uniform over the one-hot states of a process, in float64."""
    agent = upslope.PPO(
        lambda: TabularEnv(mdp), **(SMALL | {"gamma": GAMMA, "dtype": "float64"} | settings)
    )
    with torch.no_grad():
        agent.policy.actor_head.weight.mul_(100)
    return agent


class TestSample:
    @pytest.mark.parametrize("d", [2, 30])
    def test_is_what_its_fields_say(self, d: int) -> None:
        g = normal(6, d) + 0.5
        sample, mean = Sample.of(g), g.mean(0)
        covariance = (g - mean).T @ (g - mean) / 5
        pairs = [float(a @ b) for a, b in permutations(g, 2)]
        distances = [float((a - b).square().sum()) / 2 for a, b in combinations(g, 2)]
        assert sample.g2 == pytest.approx(sum(pairs) / len(pairs))
        assert sample.trace == pytest.approx(sum(distances) / len(distances))
        assert sample.mean2 == pytest.approx(float(mean @ mean))
        assert sample.along.tolist() == pytest.approx(((g - mean) @ mean).tolist())
        squares = [float((row - mean) @ (row - mean)) for row in g]
        centred = [x - sum(squares) / 6 for x in squares]
        assert sample.square.tolist() == pytest.approx(centred)
        assert sample.turned2 == pytest.approx(float((covariance @ mean).square().sum()))
        cube = float(torch.linalg.matrix_power(covariance, 3).trace())
        assert sample.trace3 == pytest.approx(min(cube, sample.trace2**1.5))

    def test_trace_of_the_square_is_unbiased(self) -> None:
        variances = torch.tensor([1.0] * 5 + [0.01] * 25, dtype=F64)
        found = [Sample.of(normal(8, 30, seed) * variances.sqrt()).trace2 for seed in range(2000)]
        error = np.std(found) / math.sqrt(len(found))
        assert np.mean(found) == pytest.approx(float(variances.square().sum()), abs=4 * error)

    def test_few_gradients_are_refused(self) -> None:
        with pytest.raises(ValueError, match="at least 4 gradients, got 3"):
            Sample.of(normal(3, 2))

    def test_no_gradient_changes(self) -> None:
        g = normal(5, 3)
        before = g.clone()
        noise.signal_to_noise(Sample.of(g))
        noise.difference(g, 2 * g)
        assert torch.equal(g, before)


class TestCompressed:
    @pytest.mark.parametrize("size", [3, 40, 70_000])
    def test_inner_products_stay(self, size: int) -> None:
        g, r = normal(4, size, 1), normal(6, size, 2)
        short, other = noise.compress(g.float(), r.float())
        assert short.shape[1] == other.shape[1] == min(size, 10)
        for a, b, x, y in ((g, g, short, short), (g, r, short, other), (r, r, other, other)):
            wanted = a.float().double() @ b.float().double().T
            torch.testing.assert_close(x @ y.T, wanted, rtol=1e-9, atol=1e-9 * size)


class TestIntervals:
    def test_of_signal_and_of_ratio_hold_zero_together(self) -> None:
        """Strong gradients, none, and all between."""
        verdicts = set()
        for seed in range(60):
            sample = Sample.of(normal(20, 4, seed) + 0.02 * seed)
            signal, snr = noise.signal(sample), noise.signal_to_noise(sample)
            assert (signal.low == 0) == (snr.low == 0)
            assert signal.low <= max(signal.value, 0) <= signal.high
            assert snr.value == pytest.approx(sample.g2 / sample.trace)
            verdicts.add(signal.low == 0)
        assert verdicts == {True, False}

    def test_units_of_the_gradient_do_not_matter(self) -> None:
        g = normal(30, 3) + 0.4
        one, thousand = Sample.of(g), Sample.of(1000 * g)
        assert noise.signal_to_noise(thousand) == pytest.approx(noise.signal_to_noise(one))
        for of in (noise.signal, noise.variance):
            assert of(thousand) == pytest.approx([1e6 * x for x in of(one)])

    def test_noise_scale_is_the_inverse(self) -> None:
        assert noise.noise_scale(Estimate(0.1, 0.05, 0.5)) == (10, 2, 20)
        value, low, high = noise.noise_scale(Estimate(0.1, 0.0, 0.5))
        assert math.isnan(value)
        assert (low, high) == (2, math.inf)

    def test_more_episodes_narrow_them(self) -> None:
        g = normal(400, 3) + 0.4
        few, many = (noise.signal_to_noise(Sample.of(g[:n])) for n in (40, 400))
        assert many.high - many.low < 0.5 * (few.high - few.low)

    def test_without_noise_or_gradient(self) -> None:
        zero = Sample.of(torch.zeros(5, 3))
        assert noise.signal(zero) == noise.variance(zero) == (0, 0, 0)
        for estimate in (
            noise.signal_to_noise(zero),
            noise.noise_scale(noise.signal_to_noise(zero)),
            noise.variance_ratio(zero, Sample.of(normal(5, 3))),
        ):
            assert all(math.isnan(x) for x in estimate)
        assert math.isnan(noise.cosine(torch.zeros(5, 3), normal(5, 3)))

    def test_gradients_that_cancel(self) -> None:
        """So far below 0 that no length fits: the nearest is none."""
        x = normal(40, 400)
        sample = Sample.of(torch.cat([x, -x]))
        assert noise.signal(sample) == (sample.g2, 0, 0)
        assert sample.g2 < 0
        value, low, high = noise.noise_scale(noise.signal_to_noise(sample))
        assert math.isnan(value)
        assert (low, high) == (math.inf, math.inf)

    def test_a_ratio_of_variances_counts_pairs(self) -> None:
        g = normal(50, 4)
        paired = noise.variance_ratio(Sample.of(2 * g + 1e-3 * normal(50, 4, 1)), Sample.of(g))
        apart = noise.variance_ratio(Sample.of(2 * normal(50, 4, 2)), Sample.of(g))
        assert paired.value == pytest.approx(4, rel=0.01)
        assert paired.low < 4 < paired.high
        assert paired.high - paired.low < 0.05 < apart.high - apart.low


class TestDifference:
    def test_by_hand(self) -> None:
        """Rows 0 and 2 are projected on the mean of 1 and 3, and the other way."""
        r = torch.tensor([[1.0, 0.0], [3.0, 1.0], [2.0, 2.0], [1.0, 1.0]], dtype=F64)
        d = torch.tensor([[1.0, 1.0], [0.0, -1.0], [0.5, 0.0], [-1.0, 0.0]], dtype=F64)
        odd, even = torch.tensor([2.0, 1.0], dtype=F64), torch.tensor([1.5, 1.0], dtype=F64)
        top = (d[0] + d[2]) @ odd + (d[1] + d[3]) @ even
        bottom = (r[0] + r[2]) @ odd + (r[1] + r[3]) @ even
        assert noise.difference(r + d, r).value == pytest.approx(float(top / bottom))

    def test_of_a_multiple_is_exact(self) -> None:
        r = normal(40, 5) + 1
        assert noise.difference(0.7 * r, r) == pytest.approx((-0.3, -0.3, -0.3))

    def test_shared_noise_is_not_taken_for_length(self) -> None:
        """Half the signal under the same noise: a ratio of lengths makes more than half of it."""
        found, naive = [], []
        for seed in range(400):
            z = 2 * normal(40, 100, seed)
            r, g = 1 + z, 0.5 + z
            found.append(noise.difference(g, r).value)
            naive.append(float(g.mean(0) @ r.mean(0) / r.mean(0).square().sum()) - 1)
        assert np.mean(found) == pytest.approx(-0.5, abs=5e-3)
        assert np.mean(naive) == pytest.approx(60 / 110 - 1, abs=5e-3)

    def test_is_open_where_the_reference_may_be_zero(self) -> None:
        _, low, high = noise.difference(normal(40, 5, 1), normal(40, 5, 2))
        assert (low, high) == (-math.inf, math.inf)

    def test_its_interval_covers(self) -> None:
        """Equal means: 2,000 samples of 40 pairs."""
        covered = 0
        for seed in range(2000):
            z = normal(80, 3, seed)
            r = 1 + z[:40]
            _, low, high = noise.difference(1 + 0.5 * z[:40] + 0.2 * z[40:], r)
            covered += low <= 0 <= high
        assert 0.98 <= covered / 2000 <= 0.998

    def test_cosines(self) -> None:
        g = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
        assert noise.cosine(g, g) == pytest.approx(1)
        assert noise.cosine_of_halves(g, g) == 0
        assert noise.cosine_of_halves(g, g.flip(1)) == pytest.approx(1)


Draw = Callable[[int], Tensor]


def law_of(mdp: MDP, gamma: float = GAMMA) -> tuple[Callable[[torch.Generator], Draw], float]:
    """Draws of one episode's reward-to-go gradient from its exact law, and its noise scale."""
    rng = torch.Generator().manual_seed(2)
    policy = SoftmaxTable(torch.randn(mdp.n_states, mdp.n_actions, generator=rng, dtype=F64))
    pi, g = scores(policy, torch.eye(mdp.n_states, dtype=F64))
    batch, prob = exact.enumerate_trajectories(mdp, pi, mdp.horizon or 0)
    weight = reward_to_go(batch.rewards, batch.done, gamma) * batch.valid
    x = torch.einsum("hn,hnd->nd", weight, g[batch.states, batch.actions])
    mean = prob @ x
    scale = float(prob @ (x - mean).square().sum(1)) / max(float(mean @ mean), 1e-300)

    def draws(rng: torch.Generator) -> Draw:
        return lambda n: x[torch.multinomial(prob, n, replacement=True, generator=rng)]

    return draws, scale if float(mean @ mean) > 1e-20 else math.inf


def line(snr: float, d: int) -> tuple[Callable[[torch.Generator], Draw], float]:
    """Normal gradients in d dimensions of equal noise, the first of which holds the signal."""

    def draws(rng: torch.Generator) -> Draw:
        def draw(n: int) -> Tensor:
            g = torch.randn(n, d, generator=rng, dtype=F64) / math.sqrt(d)
            g[:, 0] += math.sqrt(snr)
            return g

        return draw

    return draws, 1 / snr


def coverage(
    law: tuple[Callable[[torch.Generator], Draw], float], n: int, repetitions: int
) -> tuple[float, float]:
    """Share of samples whose interval holds the true noise scale, and that are decided."""
    draw, scale = law[0](torch.Generator().manual_seed(n)), law[1]
    covered = decided = 0
    for _ in range(repetitions):
        _, low, high = noise.noise_scale(noise.signal_to_noise(Sample.of(draw(n))))
        covered += low <= scale <= high
        decided += math.isfinite(high)
    return covered / repetitions, decided / repetitions


class TestCoverage:
    """The nominal 99 % interval of the noise scale; 3 standard errors at 2,000 are .7 %."""

    def test_on_episodes_of_a_process(self) -> None:
        assert 0.975 <= coverage(law_of(sentinel()), 64, 2000)[0] <= 1

    def test_where_signal_is_strong(self) -> None:
        """The law is near normal, so the interval is neither too narrow nor much too wide."""
        assert 0.98 <= coverage(line(1.0, 5), 400, 1000)[0] < 1

    def test_where_one_direction_holds_all_noise(self) -> None:
        """A jackknife interval covers 92 % here."""
        covered, decided = coverage(line(0.1, 1), 64, 1000)
        assert 0.975 <= covered <= 1
        assert decided > 0.3

    def test_without_a_gradient_few_are_decided(self) -> None:
        law = law_of(bandit(1.0, 1.0), 1.0)
        assert law[1] == math.inf
        assert coverage(law, 64, 500)[1] <= 0.02

    @pytest.mark.slow
    @pytest.mark.parametrize("n", [16, 64, 256])
    @pytest.mark.parametrize(
        "law",
        [
            law_of(sentinel()),
            law_of(two_state(4)),
            law_of(random_mdp(2, 2, 3, seed=1, termination=0.3)),
            law_of(random_mdp(3, 2, 2, seed=2)),
            line(0.1, 1),
            line(0.1, 20),
            line(0.02, 20),
        ],
        ids=["sentinel", "two-state", "2x2", "3x2", "d1", "d20", "d20-weak"],
    )
    def test_on_a_grid(self, law: Any, n: int) -> None:
        assert 0.97 <= coverage(law, n, 2000)[0] <= 1

    @pytest.mark.slow
    def test_with_a_mean_over_the_batch(self) -> None:
        """Leave-one-out ties the episodes to one another by 1/N."""
        mdp = sentinel()
        rng = torch.Generator().manual_seed(2)
        table = SoftmaxTable(torch.randn(3, 2, generator=rng, dtype=F64))
        pi, g = scores(table, torch.eye(3, dtype=F64))
        batch, prob = exact.enumerate_trajectories(mdp, pi, 4)
        weight = reward_to_go(batch.rewards, batch.done, GAMMA) * batch.valid
        score = g[batch.states, batch.actions] * batch.valid[..., None]
        x = ((weight - weight @ prob[:, None])[..., None] * score).sum(0)
        mean = prob @ x
        scale = float(prob @ (x - mean).square().sum(1) / mean.square().sum())
        covered = 0
        for _ in range(2000):
            i = torch.multinomial(prob, 64, replacement=True, generator=rng)
            w = weight[:, i]
            others = (w.sum(1, keepdim=True) - w) / 63
            sample = Sample.of(((w - others)[..., None] * score[:, i]).sum(0))
            _, low, high = noise.noise_scale(noise.signal_to_noise(sample))
            covered += low <= scale <= high
        assert 0.975 <= covered / 2000 <= 1


def exact_scales(mdp: MDP, policy: ActorCritic) -> dict[str, float]:
    """Noise scale of one episode by the exact moments, of estimators that are linear in rewards."""
    rewards, horizon = moments.reward_table(mdp), mdp.horizon or 0
    with torch.no_grad():
        v = policy.value(torch.eye(mdp.n_states, dtype=F64)).expand(horizon + 1, -1).clone()
    td = moments.td_table(mdp, v, GAMMA, ends_at_limit=True)
    found = {
        "episode return": moments.episode_return(mdp, policy, GAMMA),
        "reward-to-go": moments.weighted(mdp, policy, rewards, GAMMA, GAMMA),
        "reward-to-go without gamma^t": moments.weighted(mdp, policy, rewards, GAMMA, 1.0),
        "reward-to-go - V": moments.weighted(mdp, policy, rewards, GAMMA, 1.0, v[:-1]),
        "TD residual": moments.weighted(mdp, policy, td, 0.0, 1.0),
        "GAE(0.9)": moments.weighted(mdp, policy, td, 0.9 * GAMMA, 1.0),
    }
    return {name: float(trace / mean.square().sum()) for name, (mean, trace) in found.items()}


class TestAgainstExactNoiseScale:
    """Through collect, weights, loss and backward as they ship."""

    def check(self, mdp: MDP, names: list[str], episodes: int, seed: int) -> None:
        agent = tabular_agent(mdp)
        wanted = exact_scales(mdp, agent.policy)
        estimators = tuple(e for e in applicable() if e.name in names)
        assert len(estimators) == len(names)
        study = measure(agent, episodes, seed, estimators=estimators)
        for row in study.rows:
            _, low, high = row.noise_scale
            assert low <= wanted[row.name] <= high, row.name
            assert high < 2 * low, row.name  # or it would be no test

    def test_of_every_estimator(self) -> None:
        mdp = sentinel()
        self.check(mdp, list(exact_scales(mdp, tabular_agent(mdp).policy)), 2500, seed=1)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "mdp",
        [sentinel(), two_state(), random_mdp(3, 2, 4, seed=2), random_mdp(2, 3, 5, 7, 0.2)],
        ids=lambda m: m.name,
    )
    def test_of_twenty_thousand_episodes(self, mdp: MDP) -> None:
        names = ["reward-to-go without gamma^t", "reward-to-go - V", "GAE(0.9)"]
        self.check(mdp, names, 20_000, seed=0)


def gradients_by_hand(policy: ActorCritic, rollout: Rollout, gamma: float) -> dict[str, Tensor]:
    """Gradients ``[N, d]`` of five estimators, episode by episode, as the sums are written."""
    parameters = [p for name, p in policy.named_parameters() if not name.startswith("critic")]
    episodes = []
    for number in sorted(set(rollout.episode[rollout.valid].tolist())):
        rows = (rollout.episode == number).T.nonzero()  # one column, in the order of time
        index = rows[:, 1], rows[:, 0]
        episodes.append((rollout.obs[index], rollout.actions[index], rollout.rewards[index]))
    to_go = [
        [sum(gamma ** (k - t) * float(r[k]) for k in range(t, len(r))) for t in range(len(r))]
        for _, _, r in episodes
    ]
    found: dict[str, list[Tensor]] = {}
    for i, (obs, actions, rewards) in enumerate(episodes):
        log_probs = policy.distribution(obs).log_prob(actions)
        values = policy.value(obs).detach().tolist()
        others = [g for j, g in enumerate(to_go) if j != i]
        length = len(rewards)
        after = [*values[1:], 0.0]  # the limit is the task's, so every episode terminates
        weights = {
            "episode return": [to_go[i][0]] * length,
            "reward-to-go without gamma^t": to_go[i],
            "reward-to-go - leave-one-out": [
                to_go[i][t] - sum(g[t] for g in others if t < len(g)) / len(others)
                for t in range(length)
            ],
            "reward-to-go - V": [to_go[i][t] - values[t] for t in range(length)],
            "TD residual": [
                float(rewards[t]) + gamma * after[t] - values[t] for t in range(length)
            ],
        }
        for name, weight in weights.items():
            total = (log_probs * torch.tensor(weight, dtype=F64)).sum()
            pieces = torch.autograd.grad(total, parameters, retain_graph=True)
            found.setdefault(name, []).append(torch.cat([p.reshape(-1) for p in pieces]))
    return {name: torch.stack(rows) for name, rows in found.items()}


class TestMeasure:
    def test_is_the_sums_as_written(self, monkeypatch: pytest.MonkeyPatch) -> None:
        taken: list[Rollout] = []
        collect = gradient.collect

        def keep(*arguments: Any, **more: Any) -> Rollout:
            taken.append(collect(*arguments, **more))
            return taken[0]

        monkeypatch.setattr(gradient, "collect", keep)
        agent = tabular_agent(sentinel())
        study = measure(agent, 7, seed=3)
        wanted = gradients_by_hand(agent.policy, taken[0], GAMMA)
        reference = wanted[study.reference]
        assert study.reference == "reward-to-go - leave-one-out"
        assert study.n_parameters == reference.shape[1]
        assert study.steps == int(taken[0].valid.sum())
        for name, g in wanted.items():
            row = study.row(name)
            pairs = [float(a @ b) for a, b in permutations(g, 2)]
            assert row.signal.value == pytest.approx(sum(pairs) / len(pairs)), name
            assert row.variance.value == pytest.approx(float(g.var(0).sum())), name
            ratio = float(g.var(0).sum() / reference.var(0).sum())
            assert row.variance_ratio.value == pytest.approx(ratio), name
            x, y = g.mean(0), reference.mean(0)
            assert row.cosine == pytest.approx(float(x @ y / x.norm() / y.norm())), name
            even, odd = g[::2].mean(0), g[1::2].mean(0)
            halves = float(even @ odd / even.norm() / odd.norm())
            assert row.cosine_halves == pytest.approx(halves), name
            assert row.difference.value == pytest.approx(noise.difference(g, reference).value), name

    def test_changes_nothing_and_repeats(self) -> None:
        agent = tabular_agent(sentinel())
        before = {name: x.clone() for name, x in agent.policy.state_dict().items()}
        version = agent.policy.version
        first, again, other = (measure(agent, 8, seed) for seed in (1, 1, 2))
        assert all(torch.equal(x, before[name]) for name, x in agent.policy.state_dict().items())
        assert agent.policy.version == version
        assert first.to_json() == again.to_json()
        assert first.to_json() != other.to_json()
        assert measure(agent, 8).to_json() == measure(agent, 8, agent.config.seed).to_json()

    def test_does_not_depend_on_slots_or_on_what_is_held(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        agent = tabular_agent(sentinel())
        before = measure(agent, 9, seed=1)
        monkeypatch.setattr(gradient, "EVALUATION_ENVS", 2)
        monkeypatch.setattr(gradient, "HELD", 1)
        monkeypatch.setattr(gradient, "LEAST", 2)
        after = measure(agent, 9, seed=1)
        for row in before.rows:
            same = after.row(row.name)
            assert same.variance == pytest.approx(row.variance, rel=1e-9)
            assert same.signal == pytest.approx(row.signal, rel=1e-6, abs=1e-12)
            assert same.difference.value == pytest.approx(row.difference.value, rel=1e-6, abs=1e-9)

    def test_tells_how_far_it_is(self) -> None:
        told: list[tuple[str, int, int]] = []
        measure(tabular_agent(sentinel()), 40, progress=lambda *what: told.append(what))
        assert told[0] == ("collecting 40 episodes", 0, 0)
        done = [done for what, done, _ in told if what == "gradients"]
        assert done == sorted(done)
        assert len(done) == 3  # of 16, 16 and 8 episodes
        assert {total for what, _, total in told if what == "gradients"} == {40 * 12}

    @pytest.mark.parametrize(("n", "said"), [(0, ">= 1"), (1, "at least 4"), (3, "at least 4")])
    def test_too_few_episodes(self, n: int, said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            measure(tabular_agent(sentinel()), n)

    def test_an_environment_is_needed(self) -> None:
        agent = tabular_agent(sentinel())
        agent.source = None
        with pytest.raises(ConfigError, match=r"upslope.load\(path, env="):
            measure(agent, 8)

    def test_the_users_own_instance_goes_on_training(self) -> None:
        env = Closable(sentinel())
        agent = upslope.PPO(env, n_steps=16, batch_size=16, n_epochs=1).learn(16)
        before = agent.training.envs.restarts
        assert measure(agent, 8).episodes == 8
        assert agent.training.envs.restarts == before + 1  # its episode was left in the middle
        agent.learn(16)
        assert not env.closed

    def test_an_episode_that_never_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("upslope.envs.episodes.ENDLESS", 30)
        agent = upslope.PPO(lambda: Stretch(10**9), **SMALL)
        for n in (None, 8):
            with pytest.raises(EnvironmentFaultError, match="--max-episode-steps"):
                measure(agent, n)
        limited = upslope.PPO(lambda: Stretch(10**9), max_episode_steps=5, **SMALL)
        assert measure(limited, 8).truncated_share == 1

    def test_a_shared_network_and_normalised_numbers(self) -> None:
        agent = upslope.PPO(
            "CartPole-v1", shared_network=True, norm_obs=True, norm_reward=True, **SMALL
        ).learn(64)
        study = measure(agent, 8)
        assert study.n_parameters == sum(p.numel() for p in agent.policy.parameters())
        assert all(row.variance.value > 0 for row in study.rows)

    def test_equal_returns_leave_nothing_to_compare(self) -> None:
        """Arms that pay alike: no gradient, whatever the estimator; float32 rounds their mean."""
        agent = upslope.PPO(lambda: TabularEnv(bandit(1e3 / 3, 1e3 / 3)), **SMALL)
        study = measure(agent, 41)
        assert study.best is not None
        assert not study.best.is_zero
        assert not any(row.is_decided for row in study.rows)
        assert all(row.batch_episodes is None for row in study.rows)
        zero = {row.name for row in study.rows if row.is_zero}
        assert zero == {
            "episode return - mean", "episode return - leave-one-out",
            "reward-to-go - leave-one-out",
        }  # fmt: skip
        assert study.reference == "reward-to-go - V"
        json.dumps(study.to_json(), allow_nan=False)


class Closable(TabularEnv):
    """Says whether it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True


class Stretch(gym.Env[Any, Any]):
    """An episode of a given length; remembers the seeds of its episodes."""

    seeds: list[int] = []  # noqa: RUF012 - of all copies

    def __init__(self, length: int) -> None:
        self.length, self.steps = length, 0
        self.observation_space = gym.spaces.Box(-1, 1, (2,))
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.seeds.append(seed or 0)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return np.zeros(2, np.float32), float(action), self.steps >= self.length, False, {}


class TestNumberOfEpisodes:
    @pytest.mark.parametrize(("length", "wanted"), [(1, 64), (10, 50), (400, 16)])
    def test_follows_the_length(
        self, monkeypatch: pytest.MonkeyPatch, length: int, wanted: int
    ) -> None:
        monkeypatch.setattr(gradient, "STEPS", 500)
        agent = upslope.PPO(lambda: Stretch(length), **SMALL)
        assert default_episodes(agent, 0) == wanted

    def test_comes_from_other_episodes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        agent = upslope.PPO(lambda: Stretch(3), **SMALL)
        agent.evaluate(5, seed=0)
        Stretch.seeds.clear()
        assert default_episodes(agent, 0) == 64
        probed = set(Stretch.seeds)
        Stretch.seeds.clear()
        assert measure(agent, 20, 0).episodes == 20
        measured = set(Stretch.seeds)
        assert len(measured - {0}) == 20
        assert not measured & probed - {0}

    def test_is_64_where_the_limit_allows_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: Any, **__: Any) -> None:
            pytest.fail("an episode was played")

        monkeypatch.setattr(gradient, "evaluate", fail)
        agent = upslope.PPO("CartPole-v1", **SMALL)
        assert default_episodes(agent, 0) == 64


CONFIGS = [
    (upslope.PPO, {}, "GAE(0.95)"),
    (upslope.PPO, {"gae_lambda": 0.0}, "TD residual"),
    (upslope.PPO, {"gae_lambda": 0.3}, "GAE(0.3)"),
    (upslope.VPG, {}, "GAE(0.97)"),
    (upslope.REINFORCE, {}, "reward-to-go - leave-one-out"),
    (upslope.REINFORCE, {"baseline": "none"}, "reward-to-go without gamma^t"),
    (upslope.REINFORCE, {"baseline": "mean"}, "reward-to-go - mean"),
    (upslope.REINFORCE, {"baseline": "value"}, "reward-to-go - V"),
    (upslope.REINFORCE, {"returns": "episode", "baseline": "none"}, "episode return"),
    (upslope.REINFORCE, {"returns": "episode", "baseline": "mean"}, "episode return - mean"),
    (upslope.REINFORCE, {"returns": "episode"}, "episode return - leave-one-out"),
    (upslope.REINFORCE, {"returns": "episode", "baseline": "value"}, "episode return - V"),
]


class TestEstimatorOfTheRun:
    @pytest.mark.parametrize(("make", "settings", "name"), CONFIGS, ids=[c[2] for c in CONFIGS])
    def test_weighs_as_the_run_does(self, make: Any, settings: Any, name: str) -> None:
        """Its gradient is that of the learner's own weights."""
        more = {} if make is upslope.REINFORCE else {"normalize_advantage": False, "n_steps": 32}
        agent = make("CartPole-v1", n_envs=2, net_arch=(4,), **more, **settings)
        assert own_estimator(agent.config).name == name
        study = measure(agent, 6)
        assert study.own == name
        assert study.row(name).variance.value > 0
        envs = upslope.make_vec_env("CartPole-v1", n_envs=2, seed=1)
        rollout = upslope.collect(envs, agent.policy, n_episodes=5)
        evaluated = upslope.evaluate_rollout(agent.policy, rollout)
        steps = gradient.Steps.of(agent.policy, rollout, evaluated, agent.config.gamma)
        weights = own_estimator(agent.config).weigh(steps)
        trained = agent.training.learner.weigh(rollout, evaluated).weights
        torch.testing.assert_close(weights[rollout.valid], trained[rollout.valid])

    def test_another_lambda_stands_between_its_neighbours(self) -> None:
        agent = upslope.PPO("CartPole-v1", gae_lambda=0.3, **SMALL)
        names = [row.name for row in measure(agent, 4).rows]
        assert names[names.index("TD residual") + 1] == "GAE(0.3)"
        assert names[-5:] == ["GAE(0.3)", "GAE(0.5)", "GAE(0.9)", "GAE(0.95)", "GAE(1)"]

    def test_what_reads_a_value_is_left_out_without_one(self) -> None:
        study = measure(upslope.REINFORCE("CartPole-v1", net_arch=(4,)), 4)
        assert set(study.left_out) == {e.name for e in applicable() if e.reads_values}
        assert not any(row.estimator.reads_values for row in study.rows)
        assert study.batch_episodes == 16
        assert study.batch_steps == pytest.approx(16 * study.mean_length)

    def test_batch_of_rollouts(self) -> None:
        study = measure(upslope.PPO("CartPole-v1", **SMALL), 4)
        assert study.left_out == ()
        assert study.batch_steps == 32
        assert study.batch_episodes == pytest.approx(32 / study.mean_length)


@pytest.fixture(scope="module")
def study() -> GradientStudy:
    return measure(upslope.PPO("CartPole-v1", **SMALL), 8)


def altered(study: GradientStudy, **variances: float) -> GradientStudy:
    """The study with every estimator's variance 10 but those given (``_`` for what is no name)."""
    rows = []
    for row in study.rows:
        name = "".join(c if c.isalnum() else "_" for c in row.name)
        x = variances.get(name, 10.0)
        rows.append(replace(row, variance=Estimate(x, x, x), difference=Estimate(0, -0.4, 0.4)))
    return replace(study, rows=tuple(rows))


class TestReading:
    def test_the_best_has_least_variance_and_no_discount(self, study: GradientStudy) -> None:
        best = altered(study, reward_to_go___V=5.0, episode_return=1.0, TD_residual=1.0).best
        assert best is not None
        assert best.name == "reward-to-go - V"

    def test_with_gamma_one_terms_are_equal(self, study: GradientStudy) -> None:
        undiscounted = replace(study, config=replace(study.config, gamma=1.0))
        best = altered(undiscounted, episode_return=1.0).best
        assert best is not None
        assert best.name == "episode return"

    def test_one_that_bootstraps_must_agree(self, study: GradientStudy) -> None:
        doubtful = altered(study, TD_residual=1.0)

        def with_interval(low: float, high: float) -> Measured | None:
            rows = tuple(
                replace(row, difference=Estimate(0.0, low, high))
                if row.name == "TD residual"
                else row
                for row in doubtful.rows
            )
            return replace(doubtful, rows=rows).best

        for low, high, name in (
            (-0.2, 0.2, "TD residual"),
            (0.1, 0.24, "TD residual"),
            (-0.3, 0.2, "reward-to-go without gamma^t"),
            (-0.2, 0.3, "reward-to-go without gamma^t"),
            (-math.inf, math.inf, "reward-to-go without gamma^t"),
        ):
            best = with_interval(low, high)
            assert best is not None
            assert best.name == name

    def test_of_equals_the_simplest(self, study: GradientStudy) -> None:
        best = altered(study, reward_to_go___V=5.01, reward_to_go___leave_one_out=5.0).best
        assert best is not None
        assert best.name == "reward-to-go - leave-one-out"
        best = altered(study, reward_to_go___V=4.99, reward_to_go___leave_one_out=5.0).best
        assert best is not None
        assert best.name == "reward-to-go - leave-one-out"

    def test_suggests_whole_episodes(self, study: GradientStudy) -> None:
        row = replace(study.rows[0], noise_scale=Estimate(12.1, 8.0, 20.0))
        assert row.batch_episodes == 13
        assert row.to_json(100.0)["batch_steps"] == 1300
        assert replace(row, noise_scale=Estimate(0.2, 0.1, 0.4)).batch_episodes == 1
        assert replace(row, noise_scale=Estimate(math.nan, 8.0, math.inf)).batch_episodes is None


class TestFigure:
    def test_has_a_row_an_estimator_and_every_interval(self, study: GradientStudy) -> None:
        pytest.importorskip("matplotlib")
        rows = list(study.rows)
        rows[0] = replace(rows[0], noise_scale=Estimate(12.0, 8.0, 20.0))
        rows[1] = replace(rows[1], noise_scale=Estimate(math.nan, 3.0, math.inf))
        zero = Estimate(0.0, 0.0, 0.0)
        rows[2] = replace(rows[2], variance=zero, signal=zero)
        drawn = figure(replace(study, rows=tuple(rows[:3])))
        drawn.canvas.draw()
        panels = drawn.axes
        assert len(panels) == 4
        names = [label.get_text() for label in panels[0].get_yticklabels()]
        assert names == [row.name for row in rows[:3]]
        scale = panels[1]
        segments = [tuple(line.get_xdata()) for line in scale.lines]
        assert (8.0, 20.0) in segments
        said = [text.get_text() for text in scale.texts]
        assert "0 in every episode" in said
        (arrow,) = [text for text in scale.texts if text.get_text() == ""]
        assert arrow.xyann == (3.0, 1)
        low, high = scale.get_xlim()
        assert low < study.batch_episodes < high
