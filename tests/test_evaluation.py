"""Scores: the same seed gives the same, nothing else does matter, and nothing else is touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy import stats

import upslope
from upslope.callbacks import EvalCallback
from upslope.cli.final_evaluation import final_evaluation, selection_of
from upslope.cli.summary import sample_text
from upslope.errors import ConfigError
from upslope.evaluation import BestModel, Sample, Selection, evaluate_random
from upslope.seeding import SeedTree

SMALL = {"n_steps": 32, "batch_size": 32, "n_epochs": 2, "net_arch": (8,)}
VECS = ["sync", "async", "native"]


def ppo(env: Any = "CartPole-v1", **settings: Any) -> upslope.PPO:
    return upslope.PPO(env, **(SMALL | settings))


def reinforce(env: Any = "CartPole-v1", **settings: Any) -> upslope.REINFORCE:
    return upslope.REINFORCE(env, **({"batch_episodes": 3, "net_arch": (8,)} | settings))


def cartpole() -> gym.Env[Any, Any]:
    return gym.make("CartPole-v1")


def weights(agent: upslope.Agent) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in agent.policy.parameters()])


class TestSeeds:
    def test_the_same_seed_gives_the_same_score(self) -> None:
        agent = ppo(n_envs=2).learn(200)
        one, two, other = (agent.evaluate(20, seed=seed).to_json() for seed in (3, 3, 4))
        assert one == two
        assert one["sampled"] != other["sampled"]
        assert agent.evaluate(20).to_json() == agent.evaluate(20).to_json()

    @pytest.mark.parametrize("n_envs", [1, 3, 16])
    def test_independent_of_the_number_of_training_environments(self, n_envs: int) -> None:
        expected = ppo(n_envs=2, seed=4).evaluate(10, seed=9)
        score = ppo(n_envs=n_envs, seed=4).evaluate(10, seed=9)
        assert score.sampled.returns.tolist() == expected.sampled.returns.tolist()
        assert score.deterministic.returns.tolist() == expected.deterministic.returns.tolist()

    def test_episodes_are_numbered(self) -> None:
        """The first of many episodes are those of a shorter evaluation."""
        agent = ppo(n_envs=2)
        few, many = (agent.evaluate(n, seed=2).sampled.returns for n in (5, 30))
        assert many[:5].tolist() == few.tolist()

    @pytest.mark.parametrize("vec", VECS)
    @pytest.mark.parametrize("make", [ppo, reinforce])
    def test_training_goes_on_as_if_nothing_was(
        self, make: Callable[..., upslope.Agent], vec: str
    ) -> None:
        results = []
        for evaluates in (False, True):
            agent = make(n_envs=3, vec=vec, seed=1)
            agent.learn(200)
            before = weights(agent)
            if evaluates:
                agent.evaluate(5, seed=1)
                agent.predict(np.zeros(4))
                upslope.evaluate_policy(agent, n_eval_episodes=2)
                upslope.evaluate_policy(agent, cartpole, 2)
            assert torch.equal(weights(agent), before)
            agent.learn(200, reset_num_timesteps=False)
            results.append(weights(agent))
            agent.close()
        assert torch.equal(*results)

    def test_normalisers_are_frozen(self) -> None:
        agent = ppo(n_envs=2, norm_obs=True, norm_reward=True, warmup_steps=64).learn(128)
        before = {name: tensor.clone() for name, tensor in agent.policy.state_dict().items()}
        agent.evaluate(5)
        for name, tensor in agent.policy.state_dict().items():
            assert torch.equal(tensor, before[name]), name

    def test_returns_are_not_normalised(self) -> None:
        agent = ppo(n_envs=2, norm_obs=True, norm_reward=True, warmup_steps=64).learn(128)
        sample = agent.evaluate(5).sampled
        assert sample.returns.tolist() == sample.lengths.tolist()  # CartPole pays 1 a step

    def test_progress_counts_every_episode(self) -> None:
        told: list[int] = []
        ppo().evaluate(7, progress=told.append)
        assert sorted(told) == told
        assert told[-1] == 14


class TestSample:
    RETURNS = np.array([1.0, 2.0, 3.0, 4.0, 100.0, 5.0, 6.0, 7.0])

    def sample(self, **more: Any) -> Sample:
        return Sample(self.RETURNS, np.arange(8), **more)

    def test_numbers_by_hand(self) -> None:
        sample = self.sample(threshold=4.0)
        assert sample.mean == 16.0
        assert sample.std == pytest.approx(np.std(self.RETURNS, ddof=1))
        assert sample.iqm == pytest.approx((3 + 4 + 5 + 6) / 4)
        assert sample.min == 1.0
        assert sample.failure_share == 3 / 8
        half = stats.t.ppf(0.975, 7) * stats.sem(self.RETURNS)
        assert sample.ci95 == pytest.approx((16 - half, 16 + half))

    def test_what_nobody_knows_is_none(self) -> None:
        sample = self.sample()
        assert sample.failure_share is None
        assert sample.success_rate is None
        assert self.sample(success=np.array([1.0, 0.0, 1.0, 1.0])).success_rate == 0.75

    def test_shares_have_intervals(self) -> None:
        success = np.array([1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0])
        sample = self.sample(threshold=4.0, success=success)
        exact = stats.binomtest(3, 8).proportion_ci(0.95, "exact")
        score = stats.binomtest(6, 8).proportion_ci(0.95, "wilson")
        assert sample.failures == 3
        assert sample.failure_ci95 == pytest.approx((exact.low, exact.high))
        assert sample.success_ci95 == pytest.approx((score.low, score.high))
        assert sample.elsewhere_at_most is None
        described = sample.to_json()
        assert described["failure_ci95"] == list(sample.failure_ci95 or ())
        assert described["success_ci95"] == list(sample.success_ci95 or ())
        assert described["threshold"] == 4.0
        assert self.sample(success=success / 2).success_ci95 is None  # no counts of successes

    def test_equal_returns_leave_a_share_open(self) -> None:
        """Returns whose mean is not exact, as of 0.1 a hundred times."""
        sample = Sample(np.full(100, 0.1), np.ones(100, int), threshold=0.05)
        assert sample.elsewhere_at_most == pytest.approx(1 - 0.05 ** (1 / 100))
        assert sample.std == 0.0
        assert sample.ci95 == (sample.mean, sample.mean)
        assert sample_text(sample) == (
            "returned 0.1 in 100 of 100 fresh episodes (95 %: at most 3 % of episodes differ), "
            "0 % [0, 3.6] below 0.05"
        )

    def test_in_words(self) -> None:
        sample = self.sample(threshold=4.0, success=np.array([1.0] * 6 + [0.0] * 2))
        low, high = sample.ci95
        assert sample_text(sample) == (
            f"averaged 16.0 [{low:.1f}, {high:.1f}] on 8 fresh episodes, worst 1.0, "
            "38 % [8.5, 76] below 4, success 75 % [41, 93]"
        )

    @pytest.mark.parametrize(("share", "least"), [(0.0, 0.93), (0.05, 0.90)])
    def test_rare_catastrophes(self, share: float, least: float) -> None:
        """The t interval misses some of them; the exact one of their share does not."""
        rng = np.random.default_rng(1)
        truth = 500 * (1 - share) - 250 * share
        means = shares = 0
        for _ in range(1000):
            failed = rng.random(100) < share
            returns = np.where(failed, -250, 500 + rng.normal(0, 30, 100))
            sample = Sample(returns, np.ones(100, int), threshold=0.0)
            low, high = sample.ci95
            means += low <= truth <= high
            low, high = sample.failure_ci95 or (1.0, 0.0)
            shares += low <= share <= high
        assert means / 1000 >= least
        assert shares / 1000 >= 0.95

    def test_one_episode_has_no_interval(self) -> None:
        sample = Sample(np.array([3.0]), np.array([3]))
        described = sample.to_json()
        assert (described["ci95"], described["std"], described["mean"]) == (None, 0.0, 3.0)
        json.dumps(described, allow_nan=False)

    def test_the_interval_holds_the_mean_in_95_of_100(self) -> None:
        rng = np.random.default_rng(0)
        inside = 0
        for _ in range(1000):
            low, high = Sample(rng.normal(5, 2, 10), np.ones(10, int)).ci95
            inside += low <= 5 <= high
        assert abs(inside / 1000 - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 1000)

    def test_json_has_the_keys_of_the_interface(self) -> None:
        described = ppo().evaluate(3, seed=8).to_json()
        assert described.keys() >= {"sampled", "deterministic"}
        for way in ("sampled", "deterministic"):
            assert described[way].keys() >= {
                *("mean", "ci95", "std", "iqm", "min", "failure_share", "success_rate", "episodes")
            }
            assert described[way]["episodes"] == 3
        json.dumps(described, allow_nan=False)


class TestEvaluatePolicy:
    def test_in_the_form_of_stable_baselines3(self) -> None:
        agent = ppo(n_envs=2)
        mean, std = upslope.evaluate_policy(agent, n_eval_episodes=6)
        returns, lengths = upslope.evaluate_policy(
            agent, n_eval_episodes=6, return_episode_rewards=True
        )
        assert mean == pytest.approx(np.mean(returns))
        assert std == pytest.approx(np.std(returns))
        assert lengths == returns

    def test_on_a_made_environment(self) -> None:
        agent = ppo(n_envs=2, seed=1)
        source = agent.source
        for deterministic in (True, False):
            mean, _ = upslope.evaluate_policy(agent, cartpole(), 3, deterministic=deterministic)
            assert mean > 0
        assert agent.source is source

    def test_on_a_made_environment_training_goes_on_as_if_nothing_was(self) -> None:
        results = []
        for evaluates in (False, True):
            agent = ppo(n_envs=2, seed=1).learn(200)
            if evaluates:
                upslope.evaluate_policy(agent, cartpole(), 2)
            results.append(weights(agent.learn(200, reset_num_timesteps=False)))
        assert torch.equal(*results)

    def test_of_a_loaded_agent_on_a_made_environment(self, tmp_path: Any) -> None:
        ppo(n_envs=2).save(tmp_path / "m.safetensors")
        loaded = upslope.load(tmp_path / "m.safetensors")
        mean, _ = upslope.evaluate_policy(loaded, cartpole(), 2)
        assert mean > 0
        assert loaded.learn(64).num_timesteps == 64

    def test_on_other_spaces(self) -> None:
        with pytest.raises(upslope.UpslopeError, match="observation space"):
            upslope.evaluate_policy(ppo(n_envs=2), "Acrobot-v1", 2)

    def test_n_episodes(self) -> None:
        with pytest.raises(ConfigError, match=r"n_episodes|n_eval_episodes"):
            upslope.evaluate_policy(ppo(n_envs=2), n_eval_episodes=0)


class Payer(gym.Env[Any, Any]):
    """Pays the action and 10 in each of an episode's four steps; it may allow even choices only."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, space: gym.Space[Any], masked: bool = False) -> None:
        self.action_space, self.masked, self.t = space, masked, 0

    def info(self) -> dict[str, Any]:
        return {"action_mask": np.arange(5) % 2 == 0} if self.masked else {}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), self.info()

    def step(self, action: Any) -> Any:
        self.t += 1
        value = float(np.sum(action))
        assert not (self.masked and int(value) % 2)
        info = {"is_success": value >= 0, **self.info()}
        return np.zeros(1, np.float32), 10 + value, self.t == 4, False, info


class TestRandomPolicy:
    @pytest.mark.parametrize(
        ("space", "mean", "variance"),
        [
            (gym.spaces.Discrete(3), 1.0, 2 / 3),
            (gym.spaces.Discrete(3, start=5), 6.0, 2 / 3),
            (gym.spaces.MultiDiscrete([3, 2]), 1.5, 2 / 3 + 1 / 4),
            (gym.spaces.Box(-1, 3, (1,), np.float32), 1.0, 16 / 12),
            (gym.spaces.Box(-np.inf, np.inf, (2,), np.float32), 0.0, 2.0),
        ],
        ids=["discrete", "start", "multi", "box", "unbounded"],
    )
    def test_is_uniform(self, space: gym.Space[Any], mean: float, variance: float) -> None:
        """Mean and variance of a step, of 400 episodes of four, within four standard errors."""
        sample = evaluate_random(reinforce(lambda: Payer(space)), 400, seed=3)
        assert sample.lengths.tolist() == [4] * 400
        steps = (sample.returns - 40) / 4
        assert steps.mean() == pytest.approx(mean, abs=4 * np.sqrt(variance / 1600))
        assert steps.var(ddof=1) * 4 == pytest.approx(variance, rel=4 * np.sqrt(2 / 400))

    def test_takes_allowed_actions_only(self) -> None:
        agent = reinforce(lambda: Payer(gym.spaces.Discrete(5), masked=True))
        sample = evaluate_random(agent, 200)
        assert sample.returns.mean() == pytest.approx(48, abs=4 * np.sqrt(4 * 8 / 3 / 200))
        assert sample.success_rate == 1.0

    def test_touches_nothing_and_is_reproducible(self) -> None:
        results = []
        for plays in (False, True):
            agent = ppo(n_envs=2, seed=1).learn(200)
            if plays:
                one, two, other = (evaluate_random(agent, 20, seed=s) for s in (1, 1, 2))
                assert one.returns.tolist() == two.returns.tolist() != other.returns.tolist()
                few = evaluate_random(agent, 5, seed=1)
                assert few.returns.tolist() == one.returns[:5].tolist()
                assert one.threshold == 475
            results.append(weights(agent.learn(200, reset_num_timesteps=False)))
        assert torch.equal(*results)

    def test_on_a_made_environment_training_goes_on(self) -> None:
        agent = ppo(cartpole(), n_steps=32, batch_size=32).learn(32)
        assert len(evaluate_random(agent, 3).returns) == 3
        assert agent.learn(32, reset_num_timesteps=False).num_timesteps == 64

    def test_its_episodes_are_others_than_the_policys(self) -> None:
        agent = reinforce(Lottery, batch_episodes=4)
        policy = agent.evaluate(8).sampled.returns
        assert policy.tolist() == agent.evaluate(8).deterministic.returns.tolist()
        assert not set(evaluate_random(agent, 8).returns) & set(policy)


class Lottery(gym.Env[Any, Any]):
    """One step, which pays what the reset drew."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.drawn = float(self.np_random.random())
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(1, np.float32), self.drawn, True, False, {}


class TestBestModel:
    @pytest.mark.parametrize(
        ("k", "episodes", "expected"), [(10, 10, 29), (10, 100, 9), (50, 10, 43)]
    )
    def test_the_best_of_equal_policies_is_biased_and_its_second_score_is_not(
        self, k: int, episodes: int, expected: float
    ) -> None:
        """Checkpoints of one true mean, 300, whose episodes have a deviation of 60."""
        rng = np.random.default_rng(5)
        chosen, again = [], []
        for _ in range(600):
            scores = [Sample(x, np.ones(episodes, int)) for x in rng.normal(300, 60, (k, episodes))]
            best = max(scores, key=lambda sample: sample.mean)
            fresh = Sample(rng.normal(300, 60, episodes), np.ones(episodes, int))
            found = BestModel(Selection(best.mean, 1, k), fresh).to_json()
            chosen.append(found["selection"]["mean"])
            again.append(found["fresh"]["mean"])
        error = 60 / np.sqrt(episodes) / np.sqrt(600)
        assert np.mean(chosen) - 300 == pytest.approx(expected, abs=1.5)
        assert np.mean(again) == pytest.approx(300, abs=3.5 * error)

    def test_selection_sees_no_episode_of_an_evaluation(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Returns of Pendulum have so many digits that equal ones are of the same episode."""
        agent = ppo("Pendulum-v1", n_envs=2, seed=1)
        seen: list[float] = []
        plays = agent.evaluate_one_way

        def noted(*args: Any, **more: Any) -> Sample:
            sample = plays(*args, **more)
            seen.extend(sample.returns)
            return sample

        with monkeypatch.context() as patched:
            patched.setattr(agent, "evaluate_one_way", noted)
            agent.learn(192, EvalCallback(64, 3))
        assert len(set(seen)) == 9
        last = agent.evaluate_one_way(3, seed=SeedTree(1).integer("selection", 3))
        assert list(last.returns) == seen[6:]  # so that the digits do tell
        for seed in (None, 0, 1, 2, 3, 4):
            assert not set(agent.evaluate_one_way(8, seed=seed).returns) & set(seen)

    def test_one_score_is_not_biased(self) -> None:
        assert Selection(1.0, 10, 1).to_json()["bias"] == "the only score, hence not biased"

    def test_is_read_off_the_run(self, tmp_path: Any) -> None:
        """The checkpoint and its score are those of the highest row, the first of equal ones."""
        final, other = ppo(seed=1).learn(64), ppo(seed=2).learn(512)
        assert selection_of(tmp_path) is None
        other.save(tmp_path / "best_model.safetensors")
        assert selection_of(tmp_path) is None
        rows = ["time/total_timesteps,eval/mean_reward", "64,3.5", "96,", "128,7", "192,7", "256,5"]
        (tmp_path / "progress.csv").write_text("\n".join(rows) + "\n")
        assert selection_of(tmp_path) == Selection(7.0, 128, 4)
        score = final_evaluation(final, tmp_path, 10, quiet=True)
        assert score.best_model is not None
        fresh = score.best_model.fresh.returns.tolist()
        expected = other.evaluate_one_way(10, seed=1, deterministic=True)
        assert fresh == expected.returns.tolist() != score.deterministic.returns.tolist()
        assert score.random is not None
        assert len(score.random.returns) == 20

    def test_a_random_policy_that_never_ends_is_left_out(self) -> None:
        agent = reinforce(Patient)
        with torch.no_grad():
            agent.policy.actor_head.bias.copy_(torch.tensor([1e3, 0.0]))
        score = final_evaluation(agent, None, 3, quiet=True)
        assert score.sampled.lengths.tolist() == [40, 40, 40]
        assert score.random is None
        assert "random" not in score.to_json()


class Patient(gym.Env[Any, Any]):
    """Ends after 40 times the choice 0 in a row, which no random policy lives to see."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.run = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.run = 0 if action else self.run + 1
        return np.zeros(1, np.float32), 1.0, self.run == 40, False, {}
