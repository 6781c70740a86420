"""train/gradient_snr: its value, its units, how often it is measured, and that it moves nothing."""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.util
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from chamber import Chamber
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

import upslope
from upslope.config import CONFIGS, Config
from upslope.envs.tabular import TabularEnv, bandit, common_level, sentinel
from upslope.gradient_quality import MEASUREMENTS, UNITS, GradientQuality, interval, split
from upslope.lab import moments
from upslope.policies.memory import Past
from upslope.rollout import EvaluatedRollout, Rollout, evaluate_rollout
from upslope.theory.returns import standardize
from upslope.trees import flatten_time, take

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)
ROLLOUTS = [algorithm for algorithm in CONFIGS if algorithm != "reinforce"]
BANDIT = bandit(0.0, 1.0, 3.0)
SMALL = {"dtype": "float64", "net_arch": (5,), "log_interval": 1}


class Data(NamedTuple):
    """One iteration's data before its update."""

    rollout: Rollout
    evaluated: EvaluatedRollout
    weights: Tensor


def make(algorithm: str, env: Any = "CartPole-v1", **settings: Any) -> upslope.Agent:
    return getattr(upslope, algorithm.upper())(env, **(SMALL | settings))  # type: ignore[no-any-return]


def data_of(agent: upslope.Agent) -> Data:
    learner = agent.training.learner
    rollout = learner.collect(agent.training.envs)
    evaluated = evaluate_rollout(agent.policy, rollout)
    return Data(rollout, evaluated, learner.weigh(rollout, evaluated).weights)


def measured(agent: upslope.Agent, data: Data) -> GradientQuality:
    quality = GradientQuality(by_row=agent.config.rollout_steps is not None)
    quality.measure(agent.policy, *data)
    return quality


def cartpole_vector(mode: AutoresetMode, n_envs: int = 8) -> SyncVectorEnv:
    return SyncVectorEnv([functools.partial(gym.make, "CartPole-v1")] * n_envs, autoreset_mode=mode)


def slow_gae(agent: upslope.Agent, rollout: Rollout, evaluated: EvaluatedRollout) -> Tensor:
    """sum_l (gamma lambda)^l delta_{t+l} to the episode's end, row by row."""
    gamma, decay = agent.config.gamma, agent.config.gamma * agent.config.gae_lambda  # type: ignore[attr-defined]
    out = torch.zeros_like(evaluated.values)
    for b in range(out.shape[1]):
        ahead = 0.0
        for t in reversed(range(len(out))):
            follows = 0.0 if rollout.terminated[t, b] else gamma * evaluated.next_values[t, b]
            if rollout.done[t, b]:
                ahead = 0.0
            ahead = rollout.rewards[t, b] + follows - evaluated.values[t, b] + decay * ahead
            out[t, b] = ahead
    return out


def slow_to_go_minus_others(agent: upslope.Agent, rollout: Rollout) -> Tensor:
    """G_t minus the mean G of the same step over the other episodes, those that ended giving 0."""
    gains: dict[int, list[float]] = {}
    for episode in rollout.episodes:
        gain, found = 0.0, []
        for row in reversed(rows_of(rollout, episode.number)):
            gain = float(rollout.rewards[row]) + agent.config.gamma * gain
            found.insert(0, gain)
        gains[episode.number] = found
    out = torch.zeros_like(rollout.rewards)
    for number, found in gains.items():
        others = [gains[n] for n in gains if n != number]
        rows = rollout.episode == number
        mean = [sum(g[t] for g in others if t < len(g)) / len(others) for t in range(len(found))]
        out[rows] = torch.tensor(found, dtype=out.dtype) - torch.tensor(mean, dtype=out.dtype)
    return out


def rows_of(rollout: Rollout, number: int) -> list[tuple[int, int]]:
    """(t, b) of an episode's rows, in the order of time."""
    return [(t, b) for t, b in (rollout.episode == number).nonzero().tolist()]


def gradients_by_hand(
    agent: upslope.Agent, rollout: Rollout, weights: Tensor, groups: list[list[tuple[int, int]]]
) -> Tensor:
    """sum of grad log pi(a|s) weight over the rows of each group, by autograd row after row."""
    policy = agent.policy
    named = dict(policy.named_parameters())
    names = policy.part_names("all" if policy.shared_network else "actor")
    parameters = [named[name] for name in names]
    found = []
    for group in groups:
        total = torch.zeros((), dtype=policy.dtype)
        for t, b in group:
            if not rollout.valid[t, b]:
                continue
            obs, action = take(rollout.obs, (t, b)), take(rollout.actions, (t, b))
            mask = None if rollout.mask is None else rollout.mask[t, b][None]
            distribution = policy.distribution(first_axis(obs), mask)
            total = total + weights[t, b] * distribution.log_prob(first_axis(action))[0]
        pieces = torch.autograd.grad(total, parameters, materialize_grads=True, allow_unused=True)
        found.append(torch.cat([piece.flatten() for piece in pieces]))
    return torch.stack(found)


def first_axis(tree: Any) -> Any:
    return take(tree, None)


def moments_by_hand(gradients: Tensor) -> tuple[float, float]:
    """Mean of g_i . g_j over pairs, and the sample variance summed over components."""
    count = len(gradients)
    pairs = [float(gradients[i] @ gradients[j]) for i in range(count) for j in range(i)]
    return sum(pairs) / len(pairs), float(gradients.var(0).sum())


def stretches(columns: list[list[int]], *lengths: int) -> list[list[tuple[int, int]]]:
    """Rows of the units: some columns each, cut into stretches of so many steps."""
    ends = np.cumsum(lengths)
    times = [range(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    return [[(t, b) for b in some for t in time] for some in columns for time in times]


class TestValue:
    """Against gradients taken row by row, units written out, weights from their definitions."""

    @pytest.mark.parametrize(
        ("n_envs", "n_steps", "groups"),
        [
            (8, 12, stretches([[0, 1], [2, 3], [4, 5], [6, 7]], 12)),
            (1, 31, stretches([[0]], 7, 7, 7, 7)),
            (2, 25, stretches([[0], [1]], 12, 12)),
            (11, 9, stretches([[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]], 9)),
        ],
        ids=["pairs of columns", "stretches of one", "stretches of two", "a column left over"],
    )
    @pytest.mark.parametrize("algorithm", ["a2c", "ppo"])
    def test_of_t_x_b_rows(
        self, algorithm: str, n_envs: int, n_steps: int, groups: list[list[tuple[int, int]]]
    ) -> None:
        own = {"batch_size": 16} if algorithm == "ppo" else {}
        agent = make(algorithm, seed=4, gae_lambda=0.9, n_envs=n_envs, n_steps=n_steps, **own)
        for _ in range(2):  # the second begins in the middle of episodes
            data = data_of(agent)
        valid = data.rollout.valid
        weights = slow_gae(agent, data.rollout, data.evaluated)
        if algorithm == "ppo":  # standardises
            weights = (weights - weights[valid].mean()) / weights[valid].std()
        found = gradients_by_hand(agent, data.rollout, weights, groups)
        g2, trace = moments_by_hand(found)
        rows = sum(int(valid[row]) for group in groups for row in group) / len(groups)
        quality = measured(agent, data)
        assert quality.g2 == pytest.approx(g2 / rows**2, rel=1e-6)
        assert quality.trace == pytest.approx(trace / rows, rel=1e-6)
        assert quality.snr(31.5) == pytest.approx(31.5 / rows * g2 / trace, rel=1e-6)

    @pytest.mark.parametrize(("n_episodes", "size"), [(9, 2), (4, 1), (3, 1), (16, 4)])
    def test_of_whole_episodes(self, n_episodes: int, size: int) -> None:
        agent = make("reinforce", batch_episodes=n_episodes, n_envs=3, seed=2)
        data_of(agent)
        data = data_of(agent)  # numbers that do not begin at 0
        rollout = data.rollout
        numbers = sorted(e.number for e in rollout.episodes)
        assert len(numbers) == n_episodes
        whole = numbers[: n_episodes // size * size]
        groups = [
            [row for n in whole[i : i + size] for row in rows_of(rollout, n)]
            for i in range(0, len(whole), size)
        ]
        weights = slow_to_go_minus_others(agent, rollout)
        g2, trace = moments_by_hand(gradients_by_hand(agent, rollout, weights, groups))
        quality = measured(agent, data)
        assert quality.snr(None) == pytest.approx(g2 / trace / size, rel=1e-9)
        assert quality.g2 == pytest.approx(g2 / size**2, rel=1e-9)
        assert quality.trace == pytest.approx(trace / size, rel=1e-9)

    @pytest.mark.parametrize("algorithm", ["a2c", "ppo", "reinforce"])
    def test_of_a_shared_network(self, algorithm: str) -> None:
        shape = {"batch_episodes": 4} if algorithm == "reinforce" else {"n_steps": 8}
        shape |= {"batch_size": 8} if algorithm == "ppo" else {}
        agent = make(algorithm, shared_network=True, n_envs=4, **shape)
        data = data_of(agent)
        if algorithm == "reinforce":
            numbers = sorted(e.number for e in data.rollout.episodes)
            groups = [rows_of(data.rollout, n) for n in numbers]
        else:
            groups = [[(t, b) for t in range(8)] for b in range(4)]
        found = gradients_by_hand(agent, data.rollout, data.weights, groups)
        assert (found == 0).all(0).sum() >= 6  # the critic's head
        g2, trace = moments_by_hand(found)
        quality = measured(agent, data)
        assert quality.g2 / quality.trace == pytest.approx(
            g2 / trace / (1 if algorithm == "reinforce" else 8), rel=1e-9
        )

    @pytest.mark.parametrize("actions", ["choices", "bits", "dict"])
    def test_under_masks(self, actions: str) -> None:
        env = functools.partial(Chamber, "vector", actions, "info")
        agent = make("a2c", env, n_envs=4, n_steps=7, seed=1)
        data = data_of(agent)
        assert not bool(data.rollout.mask.all())  # type: ignore[union-attr]
        groups = [[(t, b) for t in range(7)] for b in range(4)]
        g2, trace = moments_by_hand(gradients_by_hand(agent, data.rollout, data.weights, groups))
        assert measured(agent, data).snr(7.0) == pytest.approx(g2 / trace, rel=1e-9)

    @pytest.mark.parametrize("memory", ["gru", "lstm"])
    def test_with_memory(self, memory: str) -> None:
        """The policy steps through each environment from the state it had before the rollout."""
        agent = make("ppo", memory=memory, memory_size=3, n_envs=4, n_steps=20, batch_size=20)
        data_of(agent)
        data = data_of(agent)
        rollout, policy = data.rollout, agent.policy
        named = dict(policy.named_parameters())
        parameters = [named[name] for name in policy.part_names("actor")]
        found = []
        for b in range(4):
            state, total = take(rollout.state, [b])["actor"], torch.zeros((), dtype=policy.dtype)
            for t in range(20):
                begins = rollout.episode_step[t, b][None] == 0
                past = Past(begins, {"actor": state})
                outputs, state = policy.outputs(policy.prepare(rollout.obs[t, b][None]), past)
                distribution = policy.actions.distribution(outputs)
                total = (
                    total
                    + data.weights[t, b] * distribution.log_prob(rollout.actions[t, b][None])[0]
                )
            pieces = torch.autograd.grad(total, parameters)
            found.append(torch.cat([piece.flatten() for piece in pieces]))
        g2, trace = moments_by_hand(torch.stack(found))
        assert bool((rollout.episode_step[0] > 0).any())  # some memory crosses the boundary
        assert measured(agent, data).snr(20.0) == pytest.approx(g2 / trace, rel=1e-6)

    @pytest.mark.parametrize("algorithm", ROLLOUTS)
    def test_reset_rows_weigh_nothing(self, algorithm: str) -> None:
        own = {"batch_size": 64} if algorithm != "a2c" else {}
        envs = cartpole_vector(AutoresetMode.NEXT_STEP)
        agent = make(algorithm, envs, n_envs=None, n_steps=40, **own)
        data = data_of(agent)
        nonsense = ~data.rollout.valid
        assert nonsense.any()
        spoilt = dataclasses.replace(
            data.rollout,
            rewards=data.rollout.rewards.masked_fill(nonsense, 1e3),
            actions=torch.where(nonsense, 1 - data.rollout.actions, data.rollout.actions),
        )
        weights = agent.training.learner.weigh(spoilt, data.evaluated).weights
        clean, other = measured(agent, data), measured(agent, Data(spoilt, data.evaluated, weights))
        assert clean.snr(10.0) == pytest.approx(other.snr(10.0), rel=1e-9)
        # The mean is over transitions: reset rows do not make a unit larger.
        units = split(data.rollout, False, by_row=True)
        assert units is not None
        assert units.size == pytest.approx(data.rollout.n_valid / UNITS)


class TestKnownSignal:
    """Means over many rollouts against the exact moments of one episode."""

    def averages(self, agent: upslope.Agent, rollouts: int) -> Tensor:
        found = []
        for _ in range(rollouts):
            quality = measured(agent, data_of(agent))
            found.append([quality.g2, quality.trace])
        return torch.tensor(found, dtype=torch.float64)

    def assert_mean(self, sample: Tensor, exact: float) -> None:
        error = float(sample.std()) / math.sqrt(len(sample))
        assert abs(float(sample.mean()) - exact) < 3 * error
        assert error < 0.1 * exact

    @pytest.mark.parametrize(
        ("mdp", "rollouts"), [(BANDIT, 300), (sentinel(), 700)], ids=["bandit", "sentinel"]
    )
    def test_of_whole_episodes(self, mdp: Any, rollouts: int) -> None:
        agent = make(
            "reinforce", functools.partial(TabularEnv, mdp), gamma=0.9, net_arch=(), n_envs=8,
            returns="episode", baseline="none", batch_episodes=17,
        )  # fmt: skip
        mean, trace = moments.episode_return(mdp, agent.policy, 0.9)
        found = self.averages(agent, rollouts)
        self.assert_mean(found[:, 0], float(mean.square().sum()))
        self.assert_mean(found[:, 1], float(trace))

    def test_of_one_step_episodes_in_t_x_b_rows(self) -> None:
        agent = make("a2c", functools.partial(TabularEnv, BANDIT), net_arch=(), n_envs=8, n_steps=4)
        value = float(agent.policy.value(np.ones((1, 1), np.float32)).detach())
        mean, trace = moments.episode_return(BANDIT, agent.policy, 1.0, constant=value)
        found = self.averages(agent, 500)
        self.assert_mean(found[:, 0], float(mean.square().sum()))
        self.assert_mean(found[:, 1], float(trace))

    def test_of_episodes_as_long_as_the_rollout(self) -> None:
        """Two steps an episode, two rows a rollout: a row's moments times 4 and 2."""
        mdp = common_level(1.5)
        agent = make(
            "a2c", functools.partial(TabularEnv, mdp), net_arch=(), n_envs=8, n_steps=2, gamma=0.8
        )
        values = agent.policy.value(np.eye(2, dtype=np.float32)).detach().double()
        mean, trace = moments.weighted(
            mdp, agent.policy, moments.reward_table(mdp), 0.8, 1.0, b=values
        )
        found = self.averages(agent, 500)
        self.assert_mean(found[:, 0] * 4, float(mean.square().sum()))
        self.assert_mean(found[:, 1] * 2, float(trace))


class TestUnits:
    @pytest.mark.parametrize("n_envs", [1, 2, 3, 4, 5, 7, 8, 9, 17])
    @pytest.mark.parametrize("n_steps", [1, 2, 5, 33])
    @pytest.mark.parametrize("has_memory", [False, True])
    def test_are_of_equal_size(self, n_envs: int, n_steps: int, has_memory: bool) -> None:
        rollout = shape_of(n_steps, n_envs)
        units = split(rollout, has_memory, by_row=True)
        possible = n_envs if has_memory or n_steps == 1 else n_envs * n_steps
        if possible < 2:
            assert units is None
            return
        assert units is not None
        held = units.number[units.number >= 0]
        counts = torch.bincount(held)
        assert (counts == units.size).all()
        assert min(UNITS, possible) <= len(counts) < 2 * UNITS
        assert len(held) > 0.5 * n_envs * n_steps
        for number in range(len(counts)):
            rows = (units.number == number).nonzero()
            columns = rows[:, 1].unique()
            if has_memory or len(columns) > 1:  # whole environments
                assert len(rows) == n_steps * len(columns)
            else:  # one stretch without a gap
                assert rows[-1, 0] - rows[0, 0] + 1 == len(rows)

    def test_a_single_environment_with_memory_gives_no_number(self) -> None:
        agent = make("ppo", memory="gru", memory_size=3, n_envs=1, n_steps=64, batch_size=64)
        agent.training.plan(640)
        agent.training.snr_every = 1
        tags: set[str] = set()
        agent.learn(640, callback=lambda event: tags.update(event.metrics))
        assert "train/gradient_snr" not in tags
        assert agent.training.quality.count == 0

    def test_one_episode_a_batch_gives_no_number(self) -> None:
        agent = make("reinforce", batch_episodes=1, baseline="none", n_envs=2)
        assert measured(agent, data_of(agent)).count == 0

    def test_an_episode_that_was_lost_is_in_no_unit(self) -> None:
        agent = make("reinforce", batch_episodes=8, n_envs=4)
        rollout = data_of(agent).rollout
        lost = rollout.episode == rollout.episodes[3].number
        rollout = dataclasses.replace(
            rollout,
            valid=rollout.valid & ~lost,
            episode=torch.where(lost, -1, rollout.episode),
        )
        units = split(rollout, False, by_row=False)
        assert units is not None
        assert units.size == 1
        assert int(units.number.max()) + 1 == 7
        assert (units.number[lost] == -1).all()


def shape_of(n_steps: int, n_envs: int) -> Any:
    rollout = data_of(make("a2c", n_envs=2, n_steps=2)).rollout
    shape = (n_steps, n_envs)
    return dataclasses.replace(
        rollout,
        valid=torch.ones(shape, dtype=torch.bool),
        episode=torch.zeros(shape, dtype=torch.int64),
    )


class TestAverages:
    def test_are_taken_before_dividing(self) -> None:
        """A plain mean over the first measurements, then an exponential one of their length."""
        agent = make("a2c", n_envs=4, n_steps=6)
        running, g2, trace = GradientQuality(by_row=True), [], []
        for _ in range(MEASUREMENTS + 5):
            data = data_of(agent)
            running.measure(agent.policy, *data)
            one = measured(agent, data)
            g2.append(one.g2)
            trace.append(one.trace)
            if len(g2) <= MEASUREMENTS:
                assert running.snr(1.0) == pytest.approx(sum(g2) / sum(trace))
        shares = [0.9**5 / MEASUREMENTS] * MEASUREMENTS + [0.1 * 0.9**k for k in range(5)][::-1]
        assert sum(shares) == pytest.approx(1)
        assert running.g2 == pytest.approx(float(np.dot(shares, g2)))
        assert running.trace == pytest.approx(float(np.dot(shares, trace)))

    def test_a_gradient_that_is_not_finite_is_left_out(self) -> None:
        agent = make("a2c", n_envs=4, n_steps=6)
        data = data_of(agent)
        quality = measured(agent, data)
        before = dataclasses.replace(quality)
        quality.measure(agent.policy, *data[:2], data.weights * math.nan)
        assert quality == before
        assert math.isfinite(quality.snr(10.0))

    def test_no_spread_is_no_number(self) -> None:
        agent = make("a2c", n_envs=4, n_steps=6)
        data = data_of(agent)
        quality = measured(agent, data._replace(weights=torch.zeros_like(data.weights)))
        assert math.isnan(quality.snr(10.0))

    def test_no_finished_episode_is_no_number(self) -> None:
        metrics: list[dict[str, float]] = []
        agent = make("ppo", "Pendulum-v1", n_envs=4, n_steps=60, batch_size=240, n_epochs=1)
        agent.training.plan(4 * 60 * 5)
        agent.training.snr_every = 1
        agent.learn(4 * 60 * 5, callback=lambda event: metrics.append(event.metrics) or True)
        # Episodes last 200 steps: the fourth rollout is the first to see them end.
        assert ["train/gradient_snr" in row for row in metrics] == [False] * 3 + [True] * 2


class TestWhatIsMeasured:
    @pytest.mark.parametrize("algorithm", CONFIGS)
    @pytest.mark.parametrize("normalize", [False, True])
    def test_weights_are_those_of_the_update(self, algorithm: str, normalize: bool) -> None:
        shape = {"batch_episodes": 6} if algorithm == "reinforce" else {"n_steps": 16}
        own = {"normalize_advantage_over": "batch", "batch_size": 64} if algorithm == "ppo" else {}
        agent = make(
            algorithm, n_envs=4, normalize_advantage=normalize, norm_reward=True, **shape, **own
        )
        agent.learn(200)  # so that rewards have a spread to be divided by
        data = data_of(agent)
        learner = agent.training.learner
        weighed = learner.weigh(data.rollout, data.evaluated)
        seen: list[Tensor] = []
        for optimizer in learner.optimizers.values():
            run = optimizer.run

            def spy(batch: Any, *rest: Any, run: Any = run, **named: Any) -> Any:
                seen.append(batch["weights"])
                return run(batch, *rest, **named)

            optimizer.run = spy  # type: ignore[method-assign]
        learner.update(data.rollout, data.evaluated, 1.0, np.random.default_rng(0))
        assert seen
        assert all(torch.equal(weights, weighed.weights.reshape(-1)) for weights in seen)
        assert torch.equal(weighed.weights, weighed.advantages) != normalize

    def test_ppo_standardises_over_the_rollout_what_it_does_by_minibatch(self) -> None:
        agent = make("ppo", n_envs=4, n_steps=32, batch_size=32)
        data = data_of(agent)
        weighed = agent.training.learner.weigh(data.rollout, data.evaluated)
        assert float(weighed.weights.mean()) == pytest.approx(0, abs=1e-12)
        assert float(weighed.weights.std()) == pytest.approx(1, abs=1e-6)
        assert not torch.equal(weighed.advantages, weighed.weights)
        seen: list[Any] = []
        optimizer = agent.training.learner.optimizers["all"]
        run = optimizer.run
        optimizer.run = lambda batch, minibatches, *rest: (  # type: ignore[method-assign]
            seen.extend([batch, minibatches]), run(batch, minibatches, *rest))[1]  # fmt: skip
        agent.training.learner.update(data.rollout, data.evaluated, 1.0, np.random.default_rng(0))
        batch, minibatches = seen
        assert len(minibatches) > 4
        for k, rows in enumerate(minibatches.rows.flatten(0, 1)):
            own = flatten_time(weighed.advantages)[rows]
            expected = standardize(own, torch.ones_like(own))
            assert torch.allclose(batch["weights"].values[k], expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("every", [1, 3])
    def test_it_is_that_of_the_policy_before_the_update(self, every: int) -> None:
        """The first number is that of the rollout of iteration ``every``, replayed."""
        logged: dict[int, float] = {}

        def keep(event: Any) -> None:
            if "train/gradient_snr" in event.metrics:
                logged[event.iteration] = event.metrics["train/gradient_snr"]

        agents = [
            make("ppo", n_envs=4, n_steps=64, batch_size=64, seed=9, learning_rate=0.05)
            for _ in range(2)
        ]
        for agent in agents:
            agent.training.plan(256 * every)
            agent.training.snr_every = every
        agents[0].learn(256 * every, callback=keep)
        if every > 1:
            agents[1].learn(256 * (every - 1))
        data = data_of(agents[1])
        episodes = [*agents[1].training.recent, *data.rollout.episodes][-100:]
        length = float(np.mean([episode.length for episode in episodes]))
        expected = measured(agents[1], data).snr(length)
        assert logged == {every: pytest.approx(expected, rel=1e-12)}


class TestNothingMoves:
    @pytest.mark.parametrize("algorithm", CONFIGS)
    @pytest.mark.parametrize("memory", ["none", "gru"])
    def test_weights_are_the_same_with_it_and_without(self, algorithm: str, memory: str) -> None:
        runs = []
        for every in (1, 10**9):
            common = {"n_envs": 3, "seed": 6, "norm_obs": True, "norm_reward": True}
            common |= {"warmup_steps": 32, "dtype": "float32", "memory": memory, "memory_size": 4}
            shape = {"batch_episodes": 4} if algorithm == "reinforce" else {"n_steps": 20}
            shape |= {"batch_size": 20, "n_epochs": 2} if algorithm == "ppo" else {}
            agent = make(algorithm, **(common | shape))
            agent.training.plan(400)
            agent.training.snr_every = every
            rows: list[dict[str, float]] = []
            agent.learn(400, callback=lambda event, rows=rows: rows.append(event.metrics) or True)
            runs.append((rows, [p.detach().clone() for p in agent.policy.parameters()]))
        (with_it, moved), (without, same) = runs
        assert all(torch.equal(a, b) for a, b in zip(moved, same, strict=True))
        assert any("train/gradient_snr" in row for row in with_it)
        for row, other in zip(with_it, without, strict=True):
            apart = {"train/gradient_snr", "time/time_elapsed", "time/fps"}
            assert {k: v for k, v in row.items() if k not in apart} == {
                k: v for k, v in other.items() if k not in apart
            }

    def test_no_version_no_random_state_no_gradient(self) -> None:
        agent = make("ppo", n_envs=4, n_steps=16, batch_size=32)
        data = data_of(agent)
        policy = agent.policy
        needs = [parameter.requires_grad for parameter in policy.parameters()]
        version, of_torch = policy.version, torch.random.get_rng_state()
        of_numpy = np.random.get_state()[1].copy()  # type: ignore[index,union-attr] # noqa: NPY002
        measured(agent, data)
        assert policy.version == version
        assert torch.equal(torch.random.get_rng_state(), of_torch)
        assert (np.random.get_state()[1] == of_numpy).all()  # type: ignore[index] # noqa: NPY002
        assert [parameter.requires_grad for parameter in policy.parameters()] == needs
        assert all(parameter.grad is None for parameter in policy.parameters())
        agent.training.learner.update(data.rollout, data.evaluated, 1.0, np.random.default_rng(0))


class TestInterval:
    @pytest.mark.parametrize(
        ("algorithm", "every", "eager", "measured"),
        [
            ("reinforce", 41, 41, None),  # eager in any case; iterations depend on the episodes
            ("vpg", 5, 3, 9),
            ("a2c", 67, 39, 34),
            ("npg", 4, 2, 12),
            ("trpo", 4, 2, 12),
            ("ppo", 3, 2, 16),
        ],
    )
    def test_of_the_defaults(
        self, algorithm: str, every: int, eager: int, measured: int | None
    ) -> None:
        """Steps that cost less allow fewer measurements; a run of 100,000 steps gets some rows."""
        config = CONFIGS[algorithm]().resolve(8)
        assert interval(config) == every
        assert interval(dataclasses.replace(config, compile="never")) == eager
        agent = make(algorithm, n_envs=8, log_interval=None)
        agent.training.plan(100_000)
        if measured is not None:
            planned = 100_000 // config.steps_per_iteration(500)
            assert planned // agent.training.snr_every == measured

    def test_by_hand(self) -> None:
        """4 units and their overhead against an iteration's, 5 steps and a joint step."""
        config = CONFIGS["a2c"]().resolve(8)
        assert interval(config) == math.ceil((4 + 1) / (2 + 0.06 * 5 + 0.1 * 2) / 0.03)
        eager = dataclasses.replace(config, compile="never")
        assert interval(eager) == math.ceil((4 + 1) / (2 + 0.06 * 5 + 2) / 0.03)
        # 15 products with the Fisher matrix are never replayed; 10 x 16 steps of the critic are
        natural = CONFIGS["npg"]().resolve(8)
        calls = 2 + 0.06 * 256 + 15 + 0.1 * 160
        assert interval(natural) == math.ceil((4 + 1) / calls / 0.03)
        # 4 sequences of 512 steps: acting in them 6, evaluating 2, and 4 joint steps of 6
        remembering = CONFIGS["ppo"](memory="gru", n_steps=512, n_epochs=1).resolve(4)
        assert interval(remembering) == math.ceil(4 * 3 / (6 + 2 + 4 * 6) / 0.03)
        # PPO's rows: the actor's three passes against acting 1, evaluating 2 and once 6
        once = CONFIGS["ppo"](n_epochs=1).resolve(8)
        assert interval(once) == math.ceil(3 / (1 + 2 + 6) / 0.03)
        # of ten epochs the calls are dearer: 256 steps of 8 environments, 10 x 32 joint steps
        calls = 2 + 0.06 * 256 + 0.1 * 2 * 320
        assert interval(CONFIGS["ppo"]().resolve(8)) == math.ceil((4 + 1) / calls / 0.03)

    @pytest.mark.parametrize(
        ("algorithm", "less", "more"),
        [
            ("ppo", {"n_epochs": 1}, {"n_epochs": 3}),
            ("ppo", {"target_kl": 0.01}, {}),
            ("ppo", {"n_epochs": 1, "shared_network": True}, {"n_epochs": 1}),
            ("vpg", {"n_critic_updates": 1}, {"n_critic_updates": 20}),
            ("npg", {"cg_max_steps": 1, "n_critic_updates": 1}, {"n_critic_updates": 1}),
            ("trpo", {"n_critic_updates": 1}, {"n_critic_updates": 10}),
            ("reinforce", {}, {"baseline": "value"}),
            # long enough that the networks' time counts, not what each call costs
            ("reinforce", {"memory": "gru", "batch_episodes": 512}, {"batch_episodes": 512}),
            ("a2c", {"memory": "lstm", "n_steps": 128}, {"n_steps": 128}),
            *(
                (algorithm, {}, {"compile": "never"})
                for algorithm in CONFIGS
                if algorithm[0] != "r"
            ),
            ("reinforce", {"baseline": "value"}, {"baseline": "value", "compile": "never"}),
            ("ppo", {"batch_size": 2048, "n_epochs": 4}, {"batch_size": 64, "n_epochs": 4}),
        ],
    )
    def test_more_work_allows_more_measurements(
        self, algorithm: str, less: dict[str, Any], more: dict[str, Any]
    ) -> None:
        def of(settings: dict[str, Any]) -> int:
            return interval(CONFIGS[algorithm](**settings).resolve(8))

        assert of(less) > of(more) >= 1

    @pytest.mark.parametrize("log_interval", [1, 2, 7, 40])
    @pytest.mark.parametrize("algorithm", CONFIGS)
    def test_only_rows_that_are_written_hold_it(self, algorithm: str, log_interval: int) -> None:
        agent = make(algorithm, log_interval=log_interval)
        agent.training.plan(100_000)
        every = agent.training.snr_every
        assert every % log_interval == 0
        assert 0 <= every - interval(agent.config) < log_interval

    def test_the_same_plan_gives_the_same(self) -> None:
        agents = [make("a2c", log_interval=None, n_envs=8) for _ in range(2)]
        for agent in agents:
            agent.training.plan(200_000)
        assert agents[0].training.snr_every == agents[1].training.snr_every == 75
        assert agents[0].training.log_every == 25
        agents[0].training.plan(2_000_000)  # extended: the first plan stays
        assert agents[0].training.snr_every == 75

    def test_an_extended_run_is_the_longer_run(self) -> None:
        found = []
        for parts in ((640, 640), (1280,)):
            agent = make("ppo", n_envs=2, n_steps=16, batch_size=16, max_episode_steps=16, seed=3)
            agent.training.plan(640)
            agent.training.snr_every = 3
            rows: list[tuple[int, float]] = []

            def keep(event: Any, rows: Any = rows) -> None:
                if "train/gradient_snr" in event.metrics:
                    rows.append((event.iteration, event.metrics["train/gradient_snr"]))

            for steps in parts:
                agent.learn(steps, callback=keep, reset_num_timesteps=False)
            found.append(rows)
        assert found[0] == found[1]
        assert [iteration for iteration, _ in found[0]] == list(range(3, 40, 3))

    def test_an_unknown_algorithm_counts_as_little_work(self) -> None:
        @dataclasses.dataclass(frozen=True, kw_only=True)
        class Other(Config):
            algorithm = "other"

        assert interval(Other().resolve(8)) > interval(CONFIGS["a2c"]().resolve(8))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 30 iterations that wrote a row for every second one."""
    path = tmp_path_factory.mktemp("snr") / "run"
    shape = {"n_envs": 8, "n_steps": 32, "batch_size": 32, "n_epochs": 8}
    make("ppo", run_dir=path, **(shape | {"log_interval": 2})).learn(256 * 30)
    return path


class TestFiles:
    def test_the_cell_is_empty_between(self, run: Path) -> None:
        with (run / "progress.csv").open(newline="") as file:
            rows = {int(row["time/iterations"]): row for row in csv.DictReader(file)}
        every = json_of(run / "config.json")["snr_every"]
        assert 2 < every <= 12
        assert every % 2 == 0
        for iteration, row in rows.items():
            assert (row["train/gradient_snr"] != "") == (iteration % every == 0)
            assert row["train/grad_norm"] != ""
        assert len([row for row in rows.values() if row["train/gradient_snr"]]) == 30 // every

    def test_its_seconds_are_told(self, run: Path) -> None:
        phases = json_of(run / "run.json")["phase_seconds"]
        assert 0 < phases["gradient_quality"] < phases["update"]

    @needs_tensorboard
    def test_tensorboard_has_the_same_numbers(self, run: Path) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        board = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
        with (run / "progress.csv").open(newline="") as file:
            written = [
                (int(row["time/total_timesteps"]), np.float32(row["train/gradient_snr"]))
                for row in csv.DictReader(file)
                if row["train/gradient_snr"]
            ]
        events = board.Scalars("train/gradient_snr")
        assert [(event.step, np.float32(event.value)) for event in events] == written


def json_of(path: Path) -> Any:
    return json.loads(path.read_text())
