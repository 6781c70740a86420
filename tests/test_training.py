"""Training: known optima are found, rungs run, checkpoints keep their plan, seeds decide all."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import upslope
from upslope.cli.main import main
from upslope.config import CONFIGS
from upslope.envs import make as envs_make
from upslope.errors import ConfigError
from upslope.runs.model_file import read_model
from upslope.runs.progress import CLOCKS
from upslope.training import THREADED_WORK, Event, threads_of, worthwhile_threads

needs_envpool = pytest.mark.skipif(
    importlib.util.find_spec("envpool") is None, reason="envpool is not installed"
)
ENGINES = [
    "sync",
    "async",
    "native",
    pytest.param("envpool", marks=[pytest.mark.envpool, needs_envpool]),
]
ONE = np.ones(1, np.float32)


class Bandit(gym.Env[Any, Any]):
    """One step; arm 2 of four pays 1, the others 0.2, 0.5 and 0 on average. The optimum is 1."""

    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Discrete(4)
    means = (0.2, 0.5, 1.0, 0.0)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return ONE, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        noise = self.np_random.normal(0, 0.1)
        return ONE, self.means[action] + noise, True, False, {}


class Target(gym.Env[Any, Any]):
    """One step; the return is -|a - 0.6|^2 with a in [-2, 2]. The optimum is 0."""

    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Box(-2, 2, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return ONE, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return ONE, -float((action[0] - 0.6) ** 2), True, False, {}


class Chain(gym.Env[Any, Any]):
    """Five states from 1; the left end pays 0.2 at once, the right end 1 after three steps.

    The optimum is 1 in 3 steps; the episode is cut after 12.
    """

    observation_space = gym.spaces.Box(0, 1, (5,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state, self.steps = 1, 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.state, self.steps = self.state + (1 if action else -1), self.steps + 1
        reward = {0: 0.2, 4: 1.0}.get(self.state, 0.0)
        return self.observe(), reward, self.state in (0, 4), self.steps == 12, {}

    def observe(self) -> Any:
        return np.eye(5, dtype=np.float32)[self.state]


def ppo(env: Any, **settings: Any) -> upslope.PPO:
    small = {"n_envs": 8, "n_steps": 32, "batch_size": 64, "n_epochs": 6, "net_arch": (16,)}
    return upslope.PPO(env, **(small | {"learning_rate": 3e-3} | settings))


def reinforce(env: Any, **settings: Any) -> upslope.REINFORCE:
    small = {"n_envs": 8, "batch_episodes": 32, "net_arch": (16,), "learning_rate": 1e-2}
    return upslope.REINFORCE(env, **(small | settings))


def vpg(env: Any, **settings: Any) -> upslope.VPG:
    small = {"n_envs": 8, "n_steps": 8, "batch_size": 64, "net_arch": (16,), "learning_rate": 1e-2}
    return upslope.VPG(env, **(small | {"critic_learning_rate": 5e-3} | settings))


def a2c(env: Any, **settings: Any) -> upslope.A2C:
    small = {"n_envs": 8, "n_steps": 8, "net_arch": (16,), "learning_rate": 5e-3}
    return upslope.A2C(env, **(small | settings))


def npg(env: Any, **settings: Any) -> upslope.NPG:
    small = {"n_envs": 8, "n_steps": 32, "batch_size": 64, "net_arch": (16,), "cg_damping": 0.01}
    return upslope.NPG(env, **(small | {"learning_rate": 5e-3, "target_kl": 0.03} | settings))


def trpo(env: Any, **settings: Any) -> upslope.TRPO:
    small = {"n_envs": 8, "n_steps": 32, "batch_size": 64, "net_arch": (16,), "cg_damping": 0.01}
    return upslope.TRPO(env, **(small | {"learning_rate": 5e-3, "target_kl": 0.03} | settings))


LADDER = [reinforce, vpg, a2c, npg, trpo, ppo]


def weights(agent: upslope.Agent) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten().double() for tensor in agent.policy.parameters()])


class TestKnownOptimum:
    @pytest.mark.parametrize(
        ("make", "settings"),
        [
            (reinforce, {"learning_rate": 2e-2}),
            (vpg, {"learning_rate": 2e-2}),
            (a2c, {"learning_rate": 2e-2}),
            (npg, {"target_kl": 0.1}),
            (trpo, {"target_kl": 0.1}),
            (ppo, {"learning_rate": 1e-2}),
        ],
    )
    def test_bandit(self, make: Callable[..., upslope.Agent], settings: dict[str, float]) -> None:
        agent = make(Bandit, seed=1, **settings)
        assert agent.evaluate(200, seed=0).sampled.mean < 0.6
        score = agent.learn(3000).evaluate(200, seed=0)
        assert score.sampled.mean > 0.97
        assert score.deterministic.mean == pytest.approx(1, abs=0.03)

    @pytest.mark.parametrize(
        ("make", "settings"),
        [
            (reinforce, {"learning_rate": 2e-2}),
            (vpg, {}),
            (a2c, {}),
            (npg, {}),
            (trpo, {}),
            (ppo, {"learning_rate": 5e-3}),
        ],
    )
    def test_chain(self, make: Callable[..., upslope.Agent], settings: dict[str, float]) -> None:
        score = make(Chain, seed=1, **settings).learn(8000).evaluate(100, seed=0)
        assert score.deterministic.mean == 1.0
        assert score.deterministic.lengths.tolist() == [3] * 100
        assert score.sampled.mean > 0.97

    @pytest.mark.parametrize(
        ("make", "settings"),
        [
            (reinforce, {"learning_rate": 3e-2}),
            (vpg, {}),
            (a2c, {}),
            (npg, {}),
            (trpo, {}),
            (ppo, {"learning_rate": 5e-3}),
        ],
    )
    def test_target(self, make: Callable[..., upslope.Agent], settings: dict[str, float]) -> None:
        agent = make(Target, seed=1, log_std_init=-1.0, **settings).learn(6000)
        action, _ = agent.predict(ONE, deterministic=True)
        assert action[0] == pytest.approx(0.6, abs=0.12)
        assert agent.evaluate(20).deterministic.mean > -0.015

    def test_value_of_the_chain(self) -> None:
        """The critic of a trained agent knows the discounted return of each state."""
        agent = ppo(Chain, seed=2, gamma=0.9, learning_rate=5e-3).learn(7000)
        values = agent.policy.value(np.eye(5, dtype=np.float32)[1:4]).tolist()
        assert values == pytest.approx([0.81, 0.9, 1.0], abs=0.02)

    @pytest.mark.parametrize("returns", ["episode", "to-go"])
    @pytest.mark.parametrize("baseline", ["none", "mean", "loo", "value"])
    def test_every_rung_of_reinforce(self, returns: str, baseline: str) -> None:
        rates = {"learning_rate": 3e-2, "critic_learning_rate": 1e-2, "n_critic_updates": 5}
        agent = reinforce(Bandit, seed=3, returns=returns, baseline=baseline, **rates)
        metrics: list[dict[str, float]] = []
        agent.learn(1600, callback=lambda event: metrics.append(event.metrics) or True)
        assert agent.evaluate(100, seed=0).sampled.mean > 0.97
        assert ("train/value_loss" in metrics[-1]) == (baseline == "value")
        assert all(m["time/total_timesteps"] == 32 * m["time/iterations"] for m in metrics)


class TestRungs:
    @pytest.mark.parametrize("returns", ["episode", "to-go"])
    @pytest.mark.parametrize("baseline", ["none", "mean", "value"])
    def test_one_episode_a_batch(self, returns: str, baseline: str) -> None:
        agent = reinforce(Chain, batch_episodes=1, returns=returns, baseline=baseline)
        before = weights(agent)
        agent.learn(30)
        moved = not torch.equal(weights(agent), before)
        # The mean over one episode is that episode: a baseline that leaves nothing.
        assert moved == (baseline != "mean")

    def test_leave_one_out_needs_another(self) -> None:
        with pytest.raises(ConfigError, match="at least 2"):
            reinforce(Chain, batch_episodes=1, baseline="loo")
        reinforce(Chain, batch_episodes=2, baseline="loo").learn(30)

    def test_whole_episodes_only(self) -> None:
        agent, events = reinforce("CartPole-v1", batch_episodes=5), []
        agent.learn(300, callback=lambda event: events.append(event) or True)
        for event in events:
            assert len(event.episodes) == 5
        total = sum(episode.length for event in events for episode in event.episodes)
        assert agent.num_timesteps == total
        numbers = sorted(e.number for event in events for e in event.episodes)
        assert numbers == list(range(len(numbers)))

    def test_a_value_baseline_needs_a_network_of_its_own(self) -> None:
        with pytest.raises(ConfigError, match="shared_network"):
            reinforce(Chain, baseline="value", shared_network=True)

    @pytest.mark.parametrize("make", LADDER)
    @pytest.mark.parametrize(
        "settings",
        [
            {"norm_obs": True, "warmup_steps": 64},
            {"norm_reward": True, "warmup_steps": 64},
            {"norm_obs": True, "norm_reward": True, "warmup_steps": 0},
            {"shared_network": True},
            {"ortho_init": False, "activation_fn": "silu"},
            {"net_arch": {"pi": (4,), "vf": (8, 8)}, "dtype": "float64"},
            {"net_arch": ()},
            {"ent_coef": 0.01, "max_grad_norm": None, "learning_rate": "lin_1e-3"},
            {"learning_rate": lambda remaining: 1e-3 * remaining},
            {"normalize_advantage": True, "gamma": 1.0},
            {"n_envs": 2},
        ],
        ids=lambda settings: ",".join(settings),
    )
    def test_settings_run(
        self, make: Callable[..., upslope.Agent], settings: dict[str, Any]
    ) -> None:
        if settings.get("shared_network") and make in (vpg, npg, trpo):
            with pytest.raises(ConfigError, match="cannot train its actor and critic apart"):
                make("CartPole-v1", **settings)
            return
        agent, events = make("CartPole-v1", **settings), []
        before = weights(agent)
        agent.learn(600, callback=lambda event: events.append(event.metrics) or True)
        assert not torch.equal(weights(agent), before)
        assert all(np.isfinite(value) for metrics in events for value in metrics.values())

    @pytest.mark.parametrize(
        "settings",
        [
            {"clip_range_vf": 0.2},
            {"target_kl": 1e-6},
            {"normalize_advantage": False},
            {"normalize_advantage_over": "batch"},
            {"gae_lambda": 1.0},
            {"gae_lambda": 0.0},
            {"clip_range": "lin_0.2"},
            {"n_steps": 33, "n_envs": 5, "batch_size": 41},  # a last minibatch of one row
            {"batch_size": 256, "n_steps": 32, "n_envs": 8},
        ],
        ids=lambda settings: ",".join(settings),
    )
    def test_settings_of_ppo_run(self, settings: dict[str, Any]) -> None:
        agent, events = ppo("CartPole-v1", **settings), []
        agent.learn(600, callback=lambda event: events.append(event.metrics) or True)
        assert all(np.isfinite(value) for metrics in events for value in metrics.values())

    @pytest.mark.parametrize("make", LADDER)
    def test_filling_the_normaliser_is_no_training(
        self, make: Callable[..., upslope.Agent]
    ) -> None:
        agent = make("CartPole-v1", norm_obs=True, warmup_steps=1000)
        before = weights(agent)
        agent.learn(500)
        assert not torch.equal(weights(agent), before)

    def test_target_kl_stops_the_update(self) -> None:
        free, held = ppo("CartPole-v1", seed=1), ppo("CartPole-v1", seed=1, target_kl=1e-6)
        start = weights(free)
        free.learn(256)
        held.learn(256)
        assert 0 < (weights(held) - start).norm() < (weights(free) - start).norm() / 2


class TestPlan:
    def test_spacing_is_fixed_by_the_first_total(self) -> None:
        agent = ppo("CartPole-v1", n_envs=4, n_steps=16, checkpoints=4, max_episode_steps=16)
        agent.learn(64 * 40)
        assert agent.training.checkpoint_every == 10
        rows = agent.training.log_every
        agent.learn(64 * 400, callback=lambda event: False, reset_num_timesteps=False)
        assert (agent.training.checkpoint_every, agent.training.log_every) == (10, rows)

    def test_environments_restart_at_every_multiple(self) -> None:
        agent = ppo("CartPole-v1", n_envs=4, n_steps=16, checkpoints=4, max_episode_steps=16)
        restarts: list[int] = []
        agent.learn(
            64 * 40, callback=lambda e: restarts.append(agent.training.envs.restarts) or True
        )
        assert restarts == [(iteration - 1) // 10 for iteration in range(1, 41)]
        agent.learn(64 * 5, reset_num_timesteps=False)
        assert agent.training.envs.restarts == 4

    def test_extending_is_the_longer_run(self) -> None:
        """The plan of the first call decides; learning on gives what one call would have given."""
        extended = ppo("CartPole-v1", n_envs=2, n_steps=16, max_episode_steps=16, batch_size=32)
        extended.learn(320)
        extended.learn(320, reset_num_timesteps=False)
        whole = ppo("CartPole-v1", n_envs=2, n_steps=16, max_episode_steps=16, batch_size=32)
        whole.training.plan(320)
        whole.learn(640)
        assert torch.equal(weights(extended), weights(whole))

    def test_cut_episodes_enter_no_statistic(self) -> None:
        agent = ppo(Chain, n_envs=2, n_steps=1, batch_size=2, checkpoints=1000, n_epochs=1)
        agent.training.plan(10)
        agent.training.checkpoint_every = 2  # every episode is cut after two steps
        agent.learn(200)
        assert all(episode.length <= 2 for episode in agent.training.recent)
        assert all(episode.ret == pytest.approx(0.2) for episode in agent.training.recent)

    def test_log_interval(self) -> None:
        agent = ppo("CartPole-v1", log_interval=7)
        agent.training.plan(10_000_000)
        assert agent.training.log_every == 7
        free = ppo("CartPole-v1", n_envs=8, n_steps=32)
        free.training.plan(256 * 1000)
        assert free.training.log_every == 5


class TestMetrics:
    @pytest.mark.parametrize("make", LADDER)
    def test_the_mean_is_of_the_last_hundred_episodes(
        self, make: Callable[..., upslope.Agent]
    ) -> None:
        returns: list[float] = []

        def check(event: Event) -> None:
            returns.extend(episode.ret for episode in event.episodes)
            assert event.metrics["rollout/episodes"] == len(returns)
            if returns:
                assert event.metrics["rollout/ep_rew_mean"] == pytest.approx(
                    np.mean(returns[-100:])
                )
                assert event.metrics["rollout/ep_rew_std"] == pytest.approx(np.std(returns[-100:]))
            assert event.metrics["time/total_timesteps"] == event.timesteps
            assert event.metrics["time/iterations"] == event.iteration

        make(Bandit).learn(2000, callback=check)
        assert len(returns) > 200

    def test_nothing_is_said_before_the_first_episode_ends(self) -> None:
        metrics: list[dict[str, float]] = []
        agent = ppo("Pendulum-v1", n_envs=1, n_steps=64)
        agent.learn(64, callback=lambda event: metrics.append(event.metrics) or True)
        assert "rollout/ep_rew_mean" not in metrics[0]
        assert metrics[0]["rollout/episodes"] == 0

    def test_info_scalars_and_success(self) -> None:
        class Told(Bandit):
            def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
                info = {"is_success": action == 2, "arm": float(action)}
                return ONE, float(action == 2), True, False, info

        metrics: list[dict[str, float]] = []
        agent = ppo(Told, log_info=("arm",))
        agent.learn(4000, callback=lambda event: metrics.append(event.metrics) or True)
        for row in metrics:
            assert row["rollout/success_rate"] == pytest.approx(row["rollout/ep_rew_mean"])
        assert metrics[-1]["rollout/arm"] == pytest.approx(2, abs=0.3)
        assert agent.evaluate(20).deterministic.success_rate == 1

    def test_rewards_are_reported_as_received(self) -> None:
        agent = ppo(
            "Pendulum-v1",
            norm_reward=True,
            warmup_steps=40,
            n_envs=4,
            n_steps=100,
            max_episode_steps=50,
        )
        agent.learn(800)
        assert -900 < np.mean([episode.ret for episode in agent.training.recent]) < -100

    def test_phases_add_up(self) -> None:
        agent = ppo("CartPole-v1")
        agent.training.plan(2000)
        agent.training.snr_every = 2
        agent.learn(2000)
        phases = agent.training.phase_seconds()
        steps = {"environment", "acting", "evaluate", "update", "logging"}
        assert phases.keys() == steps | {"gradient_quality"}
        assert all(seconds >= 0 for seconds in phases.values())


def table(path: Path) -> list[dict[str, str]]:
    with (path / "progress.csv").open() as file:
        return [
            {name: value for name, value in row.items() if name not in CLOCKS}
            for row in csv.DictReader(file)
        ]


class TestSeeds:
    """Same seed, same machine: equal bits in the model file and in progress.csv but the clocks."""

    def run(self, algorithm: str, vec: str, seed: int, path: Path) -> tuple[Any, Any]:
        common = {"n_envs": 3, "vec": vec, "seed": seed, "run_dir": path, "net_arch": (8,)}
        common |= {"norm_obs": True, "norm_reward": True, "warmup_steps": 64, "log_interval": 1}
        if algorithm == "reinforce":
            agent: upslope.Agent = upslope.REINFORCE("CartPole-v1", batch_episodes=5, **common)
        else:
            own = {"ppo": {"batch_size": 32, "n_epochs": 2}}.get(algorithm, {})
            make = getattr(upslope, algorithm.upper())
            agent = make("CartPole-v1", n_steps=32, max_episode_steps=20, **own, **common)
        agent.learn(600)
        assert agent.training.envs.restarts > 1
        agent.close()
        return read_model(path / "model.safetensors")[1], table(path)

    @pytest.mark.parametrize("vec", ENGINES)
    @pytest.mark.parametrize("algorithm", CONFIGS)
    def test_decide_every_bit(self, algorithm: str, vec: str, tmp_path: Path) -> None:
        one, rows = self.run(algorithm, vec, 7, tmp_path / "one")
        two, again = self.run(algorithm, vec, 7, tmp_path / "two")
        assert one.keys() == two.keys()
        for name in one:
            assert one[name].dtype == two[name].dtype
            assert torch.equal(one[name], two[name]), name
        assert rows == again
        assert len(rows) > 3
        other, differing = self.run(algorithm, vec, 8, tmp_path / "other")
        assert any(not torch.equal(one[name], other[name]) for name in one)
        assert rows != differing

    def test_sync_and_async_are_the_same_run(self, tmp_path: Path) -> None:
        one, rows = self.run("ppo", "sync", 7, tmp_path / "sync")
        two, again = self.run("ppo", "async", 7, tmp_path / "async")
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert rows == again

    def test_logging_and_saving_move_nothing(self, tmp_path: Path) -> None:
        written = ppo("CartPole-v1", seed=3, run_dir=tmp_path / "run", log_interval=1).learn(1000)
        silent = ppo("CartPole-v1", seed=3).learn(1000)
        assert torch.equal(weights(written), weights(silent))

    @pytest.mark.usefixtures("two_torch_threads")
    def test_torchs_number_of_threads_moves_nothing_where_one_is_taken(self) -> None:
        runs = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            runs.append(weights(ppo("CartPole-v1", seed=3).learn(600)))
        assert torch.equal(*runs)


@pytest.fixture
def two_torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_torch_threads")
class TestThreads:
    """As many as are asked for, else one where rows times weights of a step are few."""

    def test_follow_the_rows_times_the_weights(self) -> None:
        policy = ppo("CartPole-v1").policy
        n_weights = sum(parameter.numel() for parameter in policy.parameters())
        assert n_weights == (4 * 16 + 16) * 2 + (16 * 2 + 2) + (16 + 1)
        most = -(-THREADED_WORK // n_weights)
        assert worthwhile_threads(most - 1, policy) == 1
        assert worthwhile_threads(most, policy) == 2, "torch's own number"

    def test_are_those_of_one_gradient_step(self) -> None:
        """Neither the rollout's rows nor the passes over it count: a minibatch's do."""
        wide = {"net_arch": (256, 256), "n_envs": 8, "n_steps": 1024, "max_episode_steps": 16}
        narrow = ppo("CartPole-v1", **(wide | {"batch_size": 32}))
        assert threads_of(narrow.config, narrow.policy) == 1
        whole = ppo("CartPole-v1", **(wide | {"batch_size": 8192}))
        assert threads_of(whole.config, whole.policy) == 2

    @pytest.mark.parametrize(("asked", "taken"), [(None, 1), (1, 1), (3, 3)])
    def test_of_a_run_are_said_taken_and_put_back(
        self, asked: int | None, taken: int, tmp_path: Path
    ) -> None:
        seen = []
        agent = ppo("CartPole-v1", threads=asked, run_dir=tmp_path / "run")
        agent.learn(256, callback=lambda _: seen.append(torch.get_num_threads()) or True)
        assert (set(seen), torch.get_num_threads()) == ({taken}, 2)
        said = json.loads((tmp_path / "run/config.json").read_text())
        assert (said["torch_threads"], said["settings"]["threads"]) == (taken, asked)

    def test_are_put_back_after_a_failure(self) -> None:
        seen = []

        def fail(event: Event) -> bool:
            seen.append(torch.get_num_threads())
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            ppo("CartPole-v1").learn(256, callback=fail)
        assert (seen, torch.get_num_threads()) == ([1], 2)

    def test_of_the_command_line(self, tmp_path: Path) -> None:
        short = ["-n", "256", "--n-envs", "8", "--preset", "none", "--episodes", "0", "--quiet"]
        run = tmp_path / "run"
        assert main(["train", "CartPole-v1", *short, "--threads", "3", "--run-dir", str(run)]) == 0
        assert json.loads((run / "config.json").read_text())["torch_threads"] == 3

    @pytest.mark.parametrize("wrong", [0, -1, 1025, 1.5])
    def test_must_be_a_number_of_them(self, wrong: Any) -> None:
        with pytest.raises(ConfigError, match="threads"):
            ppo("CartPole-v1", threads=wrong)

    @pytest.mark.envpool
    @needs_envpool
    @pytest.mark.parametrize(
        ("n_envs", "processors", "asked", "taken"),
        [
            (8, 4, None, 1),
            (47, 4, None, 2),
            (48, 4, None, 3),
            (1000, 4, None, 4),
            (48, 2, None, 2),
            (8, 4, 5, 5),
            (1000, 4, 1, 1),
        ],
    )
    def test_of_envpool(
        self,
        n_envs: int,
        processors: int,
        asked: int | None,
        taken: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """One for 16 environments, as far as processors go that this process is bound to."""
        import envpool

        seen = []

        class Made(Exception):
            pass

        def note(task: str, num_threads: int, **_: Any) -> None:
            seen.append(num_threads)
            raise Made

        monkeypatch.setattr(envpool, "make_gymnasium", note)
        monkeypatch.setattr(envs_make.os, "sched_getaffinity", lambda _: set(range(processors)))
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        with pytest.raises(Made):
            ppo("CartPole-v1", n_envs=n_envs, vec="envpool", threads=asked)
        assert seen == [taken]

    def test_without_affinity_processors_are_counted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(envs_make.os, "sched_getaffinity", raising=False)
        for counted, usable in ((7, 7), (None, 1)):
            monkeypatch.setattr(envs_make.os, "cpu_count", lambda counted=counted: counted)
            assert envs_make.usable_processors() == usable
