"""The ladder: rungs that differ by one idea, paired runs, and statistics against known answers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from upslope.agent import AGENTS, Agent
from upslope.envs.find import find_environment
from upslope.envs.make import make_environments
from upslope.envs.tabular import MDP, TabularEnv, sentinel
from upslope.errors import ConfigError, EnvironmentFaultError, UpslopeError
from upslope.lab import exact, ladder, ladder_runs, moments
from upslope.lab import ladder_statistics as statistics
from upslope.lab.estimators import Steps, weights_of
from upslope.lab.ladder import batch_episodes, climb
from upslope.lab.ladder_figure import figure, save_figure
from upslope.lab.ladder_findings import decimals, findings, with_ci
from upslope.lab.ladder_rungs import COMMON, ROWS, RUNGS, settings_that_differ
from upslope.lab.ladder_runs import ESTIMATORS, Job, batch_gradients
from upslope.lab.policies import scores
from upslope.lab.seeded_runs import POINTS, RunLog, learning_curve
from upslope.lab.workers import run_all
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import collect, evaluate_rollout
from upslope.theory.returns import reward_to_go
from upslope.training import torch_threads
from upslope.unit_gradients import episode_units, pseudo_loss, unit_gradients

FLOAT = torch.float64
OWN: dict[str, Any] = {"env_kwargs": {}, "max_episode_steps": None}
NEW = [  # every setting by which a rung differs from the one below
    {"returns"},
    {"baseline"},
    {"baseline"},
    {"algorithm", "batch_episodes", "returns", "baseline", "n_steps", "gae_lambda", "batch_size"},
    {"gae_lambda"},
    {"algorithm", "critic_learning_rate", "target_kl", "cg_max_steps", "cg_damping",
     "line_search_shrinking_factor", "line_search_max_iter"},
    {"algorithm"},
    {"algorithm", "target_kl", "cg_max_steps", "cg_damping", "line_search_shrinking_factor",
     "line_search_max_iter", "n_critic_updates", "batch_size", "n_epochs", "clip_range",
     "clip_range_vf", "vf_coef", "normalize_advantage_over"},
]  # fmt: skip


def make_agent(i: int, seed: int = 0, **more: Any) -> Agent:
    rung = RUNGS[i]
    settings = {**rung.settings_for(4, OWN), "seed": seed, **more}
    return AGENTS[rung.algorithm]("CartPole-v1", **settings)


class TestRungs:
    def test_what_differs_is_listed_with_both_values(self) -> None:
        listed = settings_that_differ({"a": 1, "b": 2, "c": 3}, {"b": 2, "c": 4, "d": None})
        assert listed == [
            {"setting": "a", "below": 1},
            {"setting": "c", "below": 3, "here": 4},
            {"setting": "d", "here": None},
        ]

    def test_one_rate_one_discount_as_many_rows_and_critic_steps(self) -> None:
        for rung in RUNGS:
            settings = rung.settings_for(4, OWN)
            assert settings["learning_rate"] == settings.get("critic_learning_rate", 3e-3) == 3e-3
            assert "gamma" not in settings
            assert settings.items() >= COMMON.items()
            if rung.algorithm != "reinforce":
                rows = settings["n_envs"] * settings["n_steps"]
                steps = settings.get("n_critic_updates", settings.get("n_epochs"))
                assert rows == ROWS
                assert steps * rows / settings["batch_size"] == 40
            elif settings["baseline"] == "value":
                assert settings["n_critic_updates"] == 40

    def test_whole_episodes_come_near_a_rollout(self) -> None:
        """CartPole's random policy lasts about 22 steps, the limit is 500: sqrt(22 * 500) = 105."""
        assert batch_episodes("CartPole-v1", OWN) == pytest.approx(ROWS / 105, rel=0.15)
        assert batch_episodes("CartPole-v1", {**OWN, "max_episode_steps": 4}) == ROWS // 4
        assert batch_episodes("Pendulum-v1", OWN) == 5

    @pytest.mark.parametrize("i", range(len(RUNGS)), ids=[rung.name for rung in RUNGS])
    def test_the_estimator_is_what_the_algorithm_follows(self, i: int) -> None:
        """Its gradient has the norm that the algorithm reports of its own, on the same episodes."""
        whole = {"n_epochs": 1, "batch_size": ROWS, "vf_coef": 0.0} if i == 8 else {}
        agent = make_agent(i, **whole)
        training, policy = agent.training, agent.policy
        with torch.no_grad():  # a policy and a critic that are not nearly constant
            policy.actor_head.weight.mul_(50)
        rollout = collect(training.envs, policy, n_episodes=4)
        evaluated = evaluate_rollout(policy, rollout)
        weights = weights_of(ESTIMATORS, Steps.of(policy, rollout, evaluated, 0.99))
        name = RUNGS[i].estimator
        (ours,) = unit_gradients(
            policy, rollout, evaluated, {name: pseudo_loss(name)}, weights,
            episode_units(rollout, 4),
        )[name]  # fmt: skip
        divisor = 4 if agent.algorithm == "reinforce" else rollout.n_valid
        update = training.learner.update(rollout, evaluated, 1.0, np.random.default_rng(0))
        assert update["grad_norm"] == pytest.approx(float(ours.norm()) / divisor, rel=1e-3)
        agent.close()


class TestPairs:
    def test_one_seed_one_set_of_initial_weights(self) -> None:
        weights = []
        for seed, i in product((0, 1), range(len(RUNGS))):
            agent = make_agent(i, seed)
            parameters = dict(agent.policy.named_parameters())
            actor = [parameters[name] for name in agent.policy.part_names("actor")]
            weights.append((torch.cat([p.detach().flatten() for p in actor]), agent.policy))
            agent.close()
        first, second = weights[: len(RUNGS)], weights[len(RUNGS) :]
        digests = [ladder_runs.weights_digest(policy) for _, policy in weights]
        for group, found in ((first, digests[: len(RUNGS)]), (second, digests[len(RUNGS) :])):
            assert all(torch.equal(actor, group[0][0]) for actor, _ in group)
            assert len(set(found)) == 1
        assert not torch.equal(first[0][0], second[0][0])
        assert digests[0] != digests[-1]

    def test_one_seed_one_stream_of_episodes(self) -> None:
        """Equal first batches where the collection is of one kind, equal first states on all."""
        rollouts = []
        for i in range(len(RUNGS)):
            more = {"batch_episodes": 12} if i < 4 else {}  # more than the environments
            agent = make_agent(i, **more)
            rollouts.append(agent.training.learner.collect(agent.training.envs))
            agent.close()
        for kind in (rollouts[:4], rollouts[4:]):
            for other in kind[1:]:
                assert torch.equal(kind[0].obs, other.obs)
                assert torch.equal(kind[0].actions, other.actions)
        starts = []
        for rollout in rollouts:
            begins = (rollout.episode_step == 0) & rollout.valid
            numbers = rollout.episode[begins].tolist()
            starts.append(dict(zip(numbers, rollout.obs[begins].tolist(), strict=True)))
        for number in range(12):
            assert len({tuple(start[number]) for start in starts}) == 1


class TestIntervals:
    def test_of_a_mean(self) -> None:
        values = [3.0, 1.0, 4.0, 1.5, 9.0]
        found = statistics.mean_interval(values)
        wanted = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
        assert found.value == pytest.approx(np.mean(values))
        assert found.ci == pytest.approx(wanted)
        assert statistics.mean_interval(values, 0.8).ci == pytest.approx(
            stats.t.interval(0.8, 4, np.mean(values), stats.sem(values))
        )

    @pytest.mark.parametrize("values", [[7.0], [7.0, 7.0, 7.0]])
    def test_no_interval_without_spread(self, values: list[float]) -> None:
        assert statistics.mean_interval(values) == statistics.Interval(7.0)

    def test_nothing_of_a_seed_without_a_number(self) -> None:
        assert statistics.mean_interval([1.0, None, 3.0]) == statistics.Interval(None)
        assert statistics.mean_interval([]) == statistics.Interval(None)

    def test_paired_difference(self) -> None:
        below, here = [1.0, 2.0, 3.5, 4.0, 8.0], [2.0, 2.5, 5.0, 4.5, 12.0]
        (found,) = statistics.paired_differences([below, here])
        wanted = stats.ttest_rel(here, below)
        ci = wanted.confidence_interval(0.95)
        assert found.interval.value == pytest.approx(1.5)
        assert found.interval.ci == pytest.approx([ci.low, ci.high])
        assert found.p == pytest.approx(wanted.pvalue)
        assert found.per_seed == pytest.approx([1.0, 0.5, 1.5, 0.5, 4.0])

    def test_jackknife_of_a_mean_is_its_t_interval(self) -> None:
        x = torch.tensor([3.0, 1.0, 4.0, 1.5, 9.0], dtype=FLOAT)
        found = statistics.jackknife(lambda keep: float(x[keep].mean()), 5)
        assert found.ci == pytest.approx(statistics.mean_interval(x.tolist()).ci)

    def test_jackknife_of_what_is_undefined_without_a_unit(self) -> None:
        x = torch.tensor([0.0, 0.0, 1.0], dtype=FLOAT)
        found = statistics.jackknife(lambda keep: math.log(float(x[keep].sum()) or math.nan), 3)
        assert found == statistics.Interval(None)


class TestVerdicts:
    def family(self, seeds: int = 6, shifts: Any = (3, 0.7, -2, 0, 1.2, 0.1, -0.9, 5)) -> Any:
        rng = np.random.default_rng(0)
        gaps = [shift + rng.standard_normal(seeds) for shift in shifts]
        rungs = np.vstack([np.zeros(seeds), np.cumsum(gaps, axis=0)])
        return statistics.with_verdicts(statistics.paired_differences(rungs.tolist()))

    def test_holm_as_it_is_printed(self) -> None:
        """Reject in the order of p while p_(k) <= alpha / (m - k); the adjusted p says the same."""
        found = self.family()
        p = [one.p for one in found]
        order = sorted(range(8), key=lambda i: p[i])
        rejected = []
        for k, i in enumerate(order):
            if p[i] > 0.05 / (8 - k):
                break
            rejected.append(i)
        assert 2 <= len(rejected) < sum(q < 0.05 for q in p)  # where the correction matters
        for i, one in enumerate(found):
            sign = "higher" if one.interval.value > 0 else "lower"
            assert one.verdict == (sign if i in rejected else "not distinguishable")
            assert (one.p_holm <= 0.05) == (i in rejected)
        for k, i in enumerate(order):
            adjusted = max(min(1.0, (8 - j) * p[order[j]]) for j in range(k + 1))
            assert found[i].p_holm == pytest.approx(adjusted)

    def test_the_verdict_is_that_of_its_interval(self) -> None:
        for one in self.family():
            low, high = one.decisive.ci
            if one.verdict != "not distinguishable":
                assert low > 0 if one.verdict == "higher" else high < 0
            assert low <= one.interval.ci[0] + 1e-12
            assert high >= one.interval.ci[1] - 1e-12

    def test_fewer_than_five_seeds_decide_nothing(self) -> None:
        assert {one.verdict for one in self.family(4, [100] * 8)} == {"refused: fewer than 5 seeds"}
        assert all(one.interval.ci is not None for one in self.family(4))
        assert {one.verdict for one in self.family(5, [100] * 8)} == {"higher"}

    def test_equal_differences_and_missing_numbers_decide_nothing(self) -> None:
        same, gone = [1.0, 2.0, 3.0, 4.0, 5.0], [None, 2.0, 3.0, 4.0, 5.0]
        found = statistics.with_verdicts(statistics.paired_differences([same, same, gone]))
        assert [one.verdict for one in found] == ["refused: no spread", "refused: no data"]
        assert found[0].interval == statistics.Interval(0.0)
        json.dumps([one.to_json() for one in found], allow_nan=False)

    @pytest.mark.slow
    def test_false_alarms(self) -> None:
        """All rungs alike: some verdict in at most 5 % of ladders."""
        rng, alarms = np.random.default_rng(0), 0
        for _ in range(2000):
            rungs = rng.standard_normal((9, 5)).tolist()
            found = statistics.with_verdicts(statistics.paired_differences(rungs))
            alarms += any(one.verdict in ("higher", "lower") for one in found)
        assert 0.01 < alarms / 2000 < 0.06


class TestCurve:
    def test_by_hand(self) -> None:
        finished = [(5, 1.0), (10, 3.0), (11, 8.0), (35, 2.0), (200, 6.0), (240, 8.0)]
        curve = learning_curve(finished, 200)  # parts of 10 steps
        assert curve[:4] == [2.0, 8.0, 8.0, 2.0]
        assert curve[4:-1] == [2.0] * (POINTS - 5)
        assert curve[-1] == 7.0  # the last iteration overshoots

    def test_before_the_first_episode(self) -> None:
        curve = learning_curve([(101, 4.0)], 200)
        assert curve == [None] * 10 + [4.0] * 10
        assert learning_curve([], 200) == [None] * POINTS


def tabular_policy(mdp: MDP) -> ActorCritic:
    box, actions = gym.spaces.Box(0, 1, (mdp.n_states,)), gym.spaces.Discrete(mdp.n_actions)
    policy = ActorCritic(box, actions, seed=0, net_arch=(3,), dtype="float64")
    with torch.no_grad():
        policy.actor_head.weight.mul_(100)
    return policy


def leave_one_out_trace(mdp: MDP, policy: ActorCritic, gamma: float) -> float:
    """2 tr Cov of (1/2) sum_t (score_1t - score_2t)(G_1t - G_2t), over every pair of episodes."""
    pi, table = scores(policy, torch.eye(mdp.n_states, dtype=FLOAT))
    batch, prob = exact.enumerate_trajectories(mdp, pi, mdp.horizon or 0)
    valid = batch.valid.double()
    terms = table[batch.states, batch.actions] * valid[..., None]
    to_go = reward_to_go(batch.rewards, batch.done, gamma) * valid
    x = sum(
        (a[:, None] - a[None]) * (g[:, None] - g[None])[..., None] / 2
        for a, g in zip(terms, to_go, strict=True)
    )
    weight = prob[:, None] * prob
    mean = torch.einsum("ij,ijd->d", weight, x)
    return 2 * float((weight * (x - mean).square().sum(-1)).sum())


class TestGradient:
    def test_against_exact_variances(self) -> None:
        """All six estimators on the same 800 episodes of a task whose moments are known."""
        mdp, gamma, size = sentinel(3).with_limit(3, is_task=False), 0.9, 2
        policy = tabular_policy(mdp)
        source = find_environment(lambda: TabularEnv(mdp))
        envs = make_environments(source, n_envs=2, seed=1, vec="sync")
        means, returns, steps = batch_gradients(policy, envs, gamma, size, 400)
        envs.close()
        with torch.no_grad():
            values = policy.values(torch.eye(3, dtype=FLOAT))
        rewards, td = moments.reward_table(mdp), moments.td_table(mdp, values, gamma)
        known = [
            moments.episode_return(mdp, policy, gamma),
            moments.weighted(mdp, policy, rewards, gamma, 1.0),
            (None, leave_one_out_trace(mdp, policy, gamma)),
            moments.weighted(mdp, policy, rewards, gamma, 1.0, values),
            moments.weighted(mdp, policy, td, 0.0, 1.0),
            moments.weighted(mdp, policy, td, 0.97 * gamma, 1.0),
        ]
        rows = statistics.gradient_rows(means, size)
        assert [row["name"] for row in rows] == [estimator.name for estimator in ESTIMATORS]
        assert len(returns) == 800
        assert 800 <= steps <= 2400
        for row, (mean, trace) in zip(rows, known, strict=True):
            error = math.log(row["trace_ci"][1] / row["trace"]) / 1.96
            assert error < 0.15
            assert abs(math.log(row["trace"] / float(trace))) < 4 * error
            if mean is not None:
                snr = float(mean.square().sum() / trace)
                assert abs(row["snr"] - snr) < 4 * (row["snr_ci"][1] - row["snr"]) / 1.96
        exact_traces = [float(trace) for _, trace in known]
        for row, (a, b) in zip(rows[1:], pairwise(exact_traces), strict=True):
            assert row["ratio_ci"][0] * 0.9 < b / a < row["ratio_ci"][1] * 1.1

    @pytest.mark.parametrize("shape", [(9, 4), (9, 40)])
    def test_rows_against_the_sample_covariance(self, shape: tuple[int, int]) -> None:
        rng = torch.Generator().manual_seed(0)
        a = torch.randn(shape, generator=rng, dtype=FLOAT) + 1
        b = 3 * a + torch.randn(shape, generator=rng, dtype=FLOAT)
        first, second = statistics.gradient_rows({"a": a, "b": b}, 5)
        for row, x in ((first, a), (second, b)):
            trace = 5 * float(x.var(0).sum())
            signal = float(x.mean(0).square().sum()) - trace / 5 / 9
            assert row["trace"] == pytest.approx(trace)
            assert row["snr"] == pytest.approx(signal / trace)
        assert first["ratio"] is None
        assert second["ratio"] == pytest.approx(second["trace"] / first["trace"])
        logs = [math.log(float(x[torch.arange(9) != i].var(0).sum()))
                for x in (b,) for i in range(9)]  # fmt: skip
        error = math.sqrt(8 / 9 * sum((v - sum(logs) / 9) ** 2 for v in logs))
        half = float(stats.t.ppf(0.975, 8)) * error
        assert second["trace_ci"] == pytest.approx(
            [second["trace"] * math.exp(-half), second["trace"] * math.exp(half)]
        )

    def test_ratios_hold_together(self) -> None:
        """With six estimators there are five ratios: each at 99 %."""
        rng = torch.Generator().manual_seed(0)
        means = {str(i): torch.randn(20, 3, generator=rng, dtype=FLOAT) for i in range(6)}
        row = statistics.gradient_rows(means, 1)[1]
        one = statistics.gradient_rows({k: means[k] for k in "01"}, 1)[1]
        width = math.log(row["ratio_ci"][1] / row["ratio"])
        wanted = stats.t.ppf(0.995, 19) / stats.t.ppf(0.975, 19)
        assert width / math.log(one["ratio_ci"][1] / one["ratio"]) == pytest.approx(wanted)

    def test_a_gradient_that_does_not_vary(self) -> None:
        rows = statistics.gradient_rows({"a": torch.zeros(5, 3), "b": torch.eye(5)}, 2)
        assert rows[0]["trace"] is rows[0]["snr"] is rows[1]["ratio"] is None
        assert rows[1]["trace"] == pytest.approx(2.0)

    def test_large_networks_get_fewer_batches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ladder_runs, "MOST_NUMBERS", 1)
        mdp = sentinel(3)
        source = find_environment(lambda: TabularEnv(mdp))
        envs = make_environments(source, n_envs=2, seed=1, vec="sync")
        means, _, _ = batch_gradients(tabular_policy(mdp), envs, 0.9, 2, 50)
        assert {len(rows) for rows in means.values()} == {ladder_runs.LEAST_BATCHES}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Two seeds of 1,100 steps, in this process, and the directory they were kept in."""
    out = tmp_path_factory.mktemp("ladder")
    return climb("CartPole-v1", seeds=2, total_timesteps=1100, jobs=1, out=out), out


class TestClimb:
    def test_the_result(self, small: tuple[Any, Path]) -> None:
        found = small[0].to_json()
        json.dumps(found, allow_nan=False)
        assert [rung["name"] for rung in found["rungs"]] == [rung.name for rung in RUNGS]
        assert [rung["number"] for rung in found["rungs"]] == list(range(1, 10))
        assert len(found["pairs"]) == 8
        digests = [[run["initial_actor"] for run in rung["runs"]] for rung in found["rungs"]]
        assert all(digest == digests[0] for digest in digests)
        assert len(set(digests[0])) == 2
        for rung in found["rungs"]:
            assert [run["seed"] for run in rung["runs"]] == [0, 1]
            assert all(run["timesteps"] >= 1100 for run in rung["runs"])
            finals = rung["final"]["per_seed"]
            assert rung["final"]["mean"] == pytest.approx(np.mean(finals))
            assert rung["area"]["mean"] == pytest.approx(np.mean(rung["area"]["per_seed"]))
            assert len(rung["curve"]) == POINTS
        for (below, here), pair in zip(pairwise(found["rungs"]), found["pairs"], strict=True):
            assert (pair["a"], pair["b"]) == (here["name"], below["name"])
            gap = here["final"]["mean"] - below["final"]["mean"]
            assert pair["difference"] == pytest.approx(gap)
            gap = here["area"]["mean"] - below["area"]["mean"]
            assert pair["area"]["difference"] == pytest.approx(gap)
            assert pair["verdict"] == "refused: fewer than 5 seeds"

    def test_neighbours_differ_in_these_settings_only(self, small: tuple[Any, Path]) -> None:
        """As an agent has them, resolved; every one of them is listed."""
        rungs, absent = small[0].to_json()["rungs"], object()
        for i, rung in enumerate(rungs):
            agent = (
                make_agent(i, batch_episodes=small[0].batch_episodes) if i < 4 else make_agent(i)
            )
            assert {"algorithm": agent.algorithm, **agent.config.to_json()} == {
                **rung["settings"], "seed": 0,
            }  # fmt: skip
            agent.close()
        for below, here, wanted in zip(rungs, rungs[1:], NEW, strict=False):
            a, b = below["settings"], here["settings"]
            assert {n for n in {*a, *b} if a.get(n, absent) != b.get(n, absent)} == wanted
            assert [one["setting"] for one in here["differs"]] == [
                name for name in [*a, *(name for name in b if name not in a)] if name in wanted
            ]
        assert rungs[0]["differs"] == []

    def test_the_final_mean_and_the_curve_are_those_of_training(
        self, small: tuple[Any, Path]
    ) -> None:
        agent = make_agent(1, seed=1, batch_episodes=small[0].batch_episodes)
        returns: list[tuple[int, float]] = []

        def note(event: Any) -> None:
            returns.extend((event.timesteps, episode.ret) for episode in event.episodes)

        agent.learn(1100, note)
        run = small[0].rungs[1].runs[1]
        assert run["final"] == np.mean([ret for _, ret in returns][-100:])
        assert run["curve"] == learning_curve(returns, 1100)
        assert run["updates"] == agent.training.iteration
        agent.close()

    def test_measuring_gradients_does_not_disturb_training(self, small: tuple[Any, Path]) -> None:
        """Seed 0 of the rung that is measured on: the same without."""
        i = ladder.MEASURED_ON
        settings = {**RUNGS[i].settings_for(small[0].batch_episodes, OWN), "seed": 0}
        plain = Job("CartPole-v1", RUNGS[i].algorithm, settings, 1100, 0, 0)
        steps: list[int] = []
        with torch_threads(1):
            alone = ladder_runs.run_job(plain, steps.append)
        assert {**alone, "gradient": None} == {**small[0].rungs[i].runs[0], "gradient": None}
        assert steps == [1024, 2048]

    def test_the_two_policies(self, small: tuple[Any, Path]) -> None:
        initial, trained = small[0].gradient
        assert (initial["policy"], initial["timesteps"], initial["seed"]) == ("initial", 0, 0)
        assert (trained["policy"], trained["timesteps"]) == ("trained", 1024)
        for policy in (initial, trained):
            assert policy["episodes"] == 10 * policy["batch_episodes"]
            assert [row["name"] for row in policy["estimators"]] == [e.name for e in ESTIMATORS]
            assert all(row["trace"] > 0 for row in policy["estimators"])
        assert initial["estimators"] != trained["estimators"]

    def test_findings(self, small: tuple[Any, Path]) -> None:
        said = findings(small[0])
        assert "2 seeds decide nothing" in said[1]
        assert not any("higher" in sentence for sentence in said)
        assert sum("average return" in sentence for sentence in said) == 2
        assert all(sentence.endswith(".") for sentence in said)

    def test_a_rung_without_effect_is_named(self, small: tuple[Any, Path]) -> None:
        """Two updates of CartPole: no step of NPG lowers the surrogate, so TRPO does the same."""
        rungs = small[0].rungs
        ends = [[run["final_actor"] for run in result.runs] for result in rungs]
        same = [b.rung.name for b, x, y in zip(rungs[1:], ends, ends[1:], strict=False) if x == y]
        said = [sentence for sentence in findings(small[0]) if "exactly the weights" in sentence]
        assert [sentence.split(" ended")[0] for sentence in said] == same == ["TRPO"]
        first = [run["initial_actor"] for run in rungs[0].runs]
        assert all(first[k] not in end for end in ends for k in (0, 1))

    def test_a_second_call_resumes(
        self, small: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ran: list[int] = []
        real = ladder.run_all

        def counted(function: Any, jobs: Any, *rest: Any) -> None:
            ran.append(len(jobs))
            real(function, jobs, *rest)

        monkeypatch.setattr(ladder, "run_all", counted)
        found, out = small
        said: list[str | None] = []

        def again(**more: Any) -> Any:
            asked = {"seeds": 2, "total_timesteps": 1100, "jobs": 1, "out": out, **more}
            return climb("CartPole-v1", progress=lambda tick: said.append(tick.run), **asked)

        assert again().to_json() == found.to_json()
        assert ran == [0]
        assert said == [f"18 finished runs taken from {out / 'runs.jsonl'}"]

        file = out / "runs.jsonl"
        lines = file.read_text().splitlines()
        assert len(lines) == 18
        file.write_text("\n".join(lines)[:-40])  # a crash in the middle of the last line
        assert again().to_json() == found.to_json()
        assert ran == [0, 1]
        kept = file.read_text().splitlines()
        assert kept[:17] + kept[18:] == lines  # the damaged line lies between
        assert again(seeds=1).to_json()["seeds"] == [0]
        assert ran == [0, 1, 0]
        again(seeds=1, total_timesteps=1)
        assert ran == [0, 1, 0, 9]

    def test_a_log_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigError, match="give another --out"):
            RunLog(tmp_path / "file")

    def test_an_edited_environment_is_another(self, tmp_path: Path) -> None:
        file = tmp_path / "own.py"
        keys = []
        for text in ("a = 1", "a = 2", "a = 1"):
            file.write_text(text)
            keys.append(Job(f"{file}:make", "ppo", {"seed": 0}, 1, 0, 2).key)
        assert keys[0] == keys[2] != keys[1]

    def test_refuses_nonsense(self) -> None:
        with pytest.raises(ConfigError, match="seeds=0"):
            climb("CartPole-v1", seeds=0)
        with pytest.raises(ConfigError, match="did you mean"):
            climb("CartPol-v1")

    @pytest.mark.parametrize(
        ("largest", "shown"), [(1234.56, "1,234.6"), (23.456, "23.46"), (-0.01234, "-0.01234")]
    )
    def test_four_figures_of_a_return(self, small: Any, largest: float, shown: str) -> None:
        rungs = [replace(rung, final=statistics.Interval(largest)) for rung in small[0].rungs]
        found = replace(small[0], rungs=rungs)
        assert with_ci(rungs[0].final, decimals(found)) == shown
        assert findings(found)[0].count(shown) == 1  # all rungs are equal

    def test_verdicts_in_words(self, small: tuple[Any, Path]) -> None:
        """Six seeds, rungs 100 apart but two: named with the interval that decided."""
        found, rng = small[0], np.random.default_rng(0)
        rungs = [(100 * max(i, 2) + rng.standard_normal(6)).tolist() for i in range(9)]
        decided = statistics.with_verdicts(statistics.paired_differences(rungs))
        more = replace(found, seeds=tuple(range(6)), final=decided)
        sentence = findings(more)[1]
        higher, rest = sentence.split("higher: ")[1].split("; not distinguishable: ")
        assert [rung.name in higher for rung in RUNGS[1:]] == [False, False, *[True] * 6]
        assert RUNGS[1].name in rest
        assert "lower" not in sentence


class TestFigure:
    def test_is_a_png_with_a_line_and_a_label_a_rung(
        self, small: tuple[Any, Path], tmp_path: Path
    ) -> None:
        drawn = figure(small[0])
        curves, bars = drawn.axes
        assert len(curves.lines) == len({line.get_color() for line in curves.lines}) == 9
        labels = [text.get_text() for text in curves.texts]
        assert sorted(labels) == [f"{i} {rung.name}" for i, rung in enumerate(RUNGS, 1)]
        places = sorted(text.xyann[1] for text in curves.texts)
        assert min(b - a for a, b in pairwise(places)) > 0.05
        assert 0 <= places[0] <= places[-1] <= 1
        assert len(bars.patches) == 12
        assert bars.get_xscale() == "log"
        for patch, row in zip(
            bars.patches,
            [row for policy in small[0].gradient for row in policy["estimators"]],
            strict=True,
        ):
            assert patch.get_width() == pytest.approx(row["trace"])
        save_figure(small[0], tmp_path / "x.png")
        assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


ENDLESS = """
import gymnasium as gym, numpy as np

class Endless(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}
    def step(self, action):
        return np.zeros(2, np.float32), 0.0, False, False, {}
"""
DYING = ENDLESS.replace("        return np.zeros(2, np.float32), 0.0, False, False, {}", """
        import multiprocessing, os, signal
        if multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.zeros(2, np.float32), 0.0, True, False, {}
""")  # fmt: skip


class TestWorkers:
    def test_one_torch_thread_in_this_process_too(self) -> None:
        before, seen = torch.get_num_threads(), []
        torch.set_num_threads(2)
        try:
            settings = {**RUNGS[5].settings_for(2, OWN), "seed": 0}  # of 1,024 rows a step
            job = Job("CartPole-v1", "vpg", settings, 1, 0, 0)
            told = lambda *_: seen.append(torch.get_num_threads())  # noqa: E731
            run_all(ladder_runs.run_job, [job], 1, told, lambda *_: None)
            assert (seen, torch.get_num_threads()) == ([1], 2)
        finally:
            torch.set_num_threads(before)

    def test_results_do_not_depend_on_their_number(self) -> None:
        one = climb("CartPole-v1", seeds=1, total_timesteps=300, jobs=1)
        two = climb("CartPole-v1", seeds=1, total_timesteps=300, jobs=2)
        assert one.to_json() == two.to_json()

    @pytest.mark.slow
    def test_one_that_dies_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "dying.py").write_text(DYING)
        with pytest.raises(UpslopeError, match=r"reinforce with seed 0 died with exit code -9"):
            climb(f"{tmp_path / 'dying.py'}:Endless", seeds=1, total_timesteps=8, jobs=2)

    def test_episodes_that_do_not_end(self, tmp_path: Path) -> None:
        (tmp_path / "endless.py").write_text(ENDLESS)
        with pytest.raises(EnvironmentFaultError, match="set --max-episode-steps"):
            climb(f"{tmp_path / 'endless.py'}:Endless", jobs=1)


@pytest.mark.slow
def test_coverage_of_the_jackknife() -> None:
    """Batch means with two noisy directions: the variance's interval holds it in 90 to 97 %."""
    rng, inside, n = torch.Generator().manual_seed(0), 0, 1000
    scale = torch.tensor([3.0, 2.0, 1.0, 0.3], dtype=FLOAT)
    truth = float(scale.square().sum())
    for _ in range(n):
        x: Tensor = torch.randn(60, 4, generator=rng, dtype=FLOAT) * scale
        low, high = statistics.gradient_rows({"x": x}, 1)[0]["trace_ci"]
        inside += low <= truth <= high
    assert 0.90 < inside / n < 0.97
