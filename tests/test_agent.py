"""The object a user holds: how it is made, what it predicts, and how it is saved and loaded."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from torch import nn

import upslope
from upslope.errors import ConfigError, ModelFileError
from upslope.training import Event

SMALL = {"n_steps": 32, "batch_size": 32, "n_epochs": 2, "net_arch": (8,)}
OBS = np.array([[0.1, -0.2, 0.03, 0.4], [-1.0, 2.0, 0.1, -0.5], [0.0, 0.0, 0.0, 0.0]], np.float32)


def make_ppo(env: Any = "CartPole-v1", **settings: Any) -> upslope.PPO:
    return upslope.PPO(env, **(SMALL | settings))


def make_reinforce(env: Any = "CartPole-v1", **settings: Any) -> upslope.REINFORCE:
    return upslope.REINFORCE(env, **({"batch_episodes": 3, "net_arch": (8,)} | settings))


def make_vpg(env: Any = "CartPole-v1", **settings: Any) -> upslope.VPG:
    return upslope.VPG(env, **({"n_steps": 32, "net_arch": (8,)} | settings))


def make_a2c(env: Any = "CartPole-v1", **settings: Any) -> upslope.A2C:
    return upslope.A2C(env, **({"n_steps": 16, "net_arch": (8,)} | settings))


def make_npg(env: Any = "CartPole-v1", **settings: Any) -> upslope.NPG:
    return upslope.NPG(env, **({"n_steps": 32, "net_arch": (8,)} | settings))


def make_trpo(env: Any = "CartPole-v1", **settings: Any) -> upslope.TRPO:
    return upslope.TRPO(env, **({"n_steps": 32, "net_arch": (8,)} | settings))


MAKERS: list[Callable[..., upslope.Agent]] = [
    make_reinforce,
    make_vpg,
    make_a2c,
    make_npg,
    make_trpo,
    make_ppo,
]


def cartpole() -> gym.Env[Any, Any]:
    return gym.make("CartPole-v1")


def weights(agent: upslope.Agent) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten().double() for tensor in agent.policy.parameters()])


@pytest.fixture
def module_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory whose Python files may be imported; the traces are removed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules, registry = set(sys.modules), set(gym.registry)
    yield tmp_path
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(
            sys.modules[name].__file__
        ):
            del sys.modules[name]
    for name in set(gym.registry) - registry:
        del gym.registry[name]


class TestConstruction:
    @pytest.mark.parametrize("make", MAKERS)
    @pytest.mark.parametrize(
        ("env", "n_envs"),
        [
            ("CartPole-v1", 8),
            (cartpole, 8),
            (CartPoleEnv, 8),
            (lambda: cartpole(), 8),
        ],
        ids=["id", "factory", "class", "lambda"],
    )
    def test_many(self, make: Callable[..., upslope.Agent], env: Any, n_envs: int) -> None:
        agent = make(env)
        assert agent.config.n_envs == n_envs
        assert agent.learn(1) is agent
        assert agent.num_timesteps >= 1
        assert len(agent.evaluate(3).sampled.returns) == 3

    @pytest.mark.parametrize("make", MAKERS)
    def test_one_made_environment(self, make: Callable[..., upslope.Agent]) -> None:
        agent = make(cartpole())
        assert agent.config.n_envs == 1
        agent.learn(100)
        agent.evaluate(2)
        agent.learn(100, reset_num_timesteps=False)
        assert agent.num_timesteps >= 200

    @pytest.mark.parametrize("make", MAKERS)
    @pytest.mark.parametrize("mode", AutoresetMode)
    @pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
    def test_a_made_vector(
        self, make: Callable[..., upslope.Agent], mode: AutoresetMode, kind: Any
    ) -> None:
        agent = make(kind([cartpole] * 3, autoreset_mode=mode))
        assert agent.config.n_envs == 3
        agent.learn(200)
        first, again = agent.evaluate(4, seed=5), agent.evaluate(4, seed=5)
        assert first.sampled.returns.tolist() == again.sampled.returns.tolist()
        agent.learn(100, reset_num_timesteps=False)
        assert agent.num_timesteps >= 300
        agent.close()

    def test_the_order_of_stable_baselines3(self) -> None:
        for agent in (
            upslope.PPO("MlpPolicy", "CartPole-v1", **SMALL, seed=3),
            upslope.PPO("MlpPolicy", cartpole, **SMALL, seed=3),
            upslope.PPO(policy="MlpPolicy", env="CartPole-v1", **SMALL, seed=3),
        ):
            torch.testing.assert_close(weights(agent), weights(make_ppo(seed=3)), rtol=0, atol=0)

    def test_what_that_order_does_not_know(self) -> None:
        with pytest.raises(ConfigError, match=r"'CnnPolicy' is not known.*'MlpPolicy'"):
            upslope.PPO("CnnPolicy", "CartPole-v1")
        with pytest.raises(ConfigError, match="keyword arguments only"):
            upslope.PPO("MlpPolicy", "CartPole-v1", 3e-4)
        with pytest.raises(ConfigError, match="verbose"):
            upslope.PPO("MlpPolicy", "CartPole-v1", verbose=1)
        with pytest.raises(ConfigError, match="needs an environment"):
            upslope.PPO(None)

    def test_a_module_with_an_id(self, module_path: Path) -> None:
        (module_path / "wheels_for_a_test.py").write_text(
            "import gymnasium\n"
            "gymnasium.register('Wheels-v0', 'gymnasium.envs.classic_control:CartPoleEnv',\n"
            "                   max_episode_steps=7)\n"
        )
        agent = make_reinforce("wheels_for_a_test:Wheels-v0")
        assert agent.config.n_envs == 8
        agent.learn(1)
        assert max(episode.length for episode in agent.training.recent) <= 7
        agent.save("m.safetensors")
        assert upslope.load("m.safetensors").source is None  # nothing is imported by a file
        assert (
            len(
                upslope.load("m.safetensors", "wheels_for_a_test:Wheels-v0")
                .evaluate(2)
                .sampled.returns
            )
            == 2
        )

    @pytest.mark.parametrize("vec", ["sync", "async"])
    def test_a_file_with_a_factory(self, module_path: Path, vec: str) -> None:
        (module_path / "my_env.py").write_text(
            "import gymnasium as gym\n"
            "from neighbour import NAME\n"
            "def make_env(gravity=9.8):\n"
            "    env = gym.make(NAME)\n"
            "    env.unwrapped.gravity = gravity\n"
            "    return env\n"
        )
        (module_path / "neighbour.py").write_text("NAME = 'CartPole-v1'\n")
        agent = make_ppo("my_env.py:make_env", n_envs=2, vec=vec, env_kwargs={"gravity": 1.0})
        agent.learn(64)
        agent.close()

    def test_settings_are_kept_and_resolved(self) -> None:
        agent = make_ppo(n_envs=4, gamma=0.9, seed=11)
        assert (agent.config.gamma, agent.config.seed, agent.config.n_envs) == (0.9, 11, 4)
        assert agent.config.preset == "none"
        assert upslope.PPO("CartPole-v1", n_envs=4).config.n_steps == 512

    def test_presets_are_asked_for(self) -> None:
        tuned = upslope.PPO("Acrobot-v1", preset="auto")
        plain = upslope.PPO("Acrobot-v1")
        assert plain.config.to_json() == upslope.PPOConfig(frame_stack=1).resolve(8).to_json()
        if tuned.config.preset == "auto":
            assert tuned.config.to_json() != plain.config.to_json() | {"preset": "auto"}
        assert upslope.PPO("Acrobot-v1", preset="auto", gamma=0.5).config.gamma == 0.5
        assert upslope.PPO("CartPole-v1", preset="none").config.preset == "none"

    def test_max_episode_steps(self) -> None:
        for env in ("CartPole-v1", cartpole, cartpole()):
            agent = make_reinforce(env, max_episode_steps=6)
            agent.learn(1)
            assert max(episode.length for episode in agent.training.recent) <= 6
            assert max(agent.evaluate(5).sampled.lengths) <= 6

    def test_global_random_numbers_are_left_alone(self) -> None:
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        before = (torch.rand(3).tolist(), np.random.rand(3).tolist())  # noqa: NPY002
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        agent = make_ppo().learn(300)
        agent.evaluate(2)
        agent.predict(OBS)
        assert (torch.rand(3).tolist(), np.random.rand(3).tolist()) == before  # noqa: NPY002


class Slider(gym.Env[Any, Any]):
    """Ten steps; an action must lie in the space."""

    def __init__(self, space: gym.Space[Any]) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (3,))
        self.action_space = space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = 10
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} of {type(action)}"
        self.left -= 1
        obs = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return obs, float(np.mean(action)), False, self.left == 0, {}


SPACES = {
    "discrete": gym.spaces.Discrete(3),
    "discrete_from_5": gym.spaces.Discrete(3, start=5),
    "matrix": gym.spaces.Box(-2, 3, (2, 3)),
    "one_sided": gym.spaces.Box(0, np.inf, (2,)),
    "float64": gym.spaces.Box(-1, 1, (2,), np.float64),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
class TestPredict:
    @pytest.fixture
    def agent(self, space: gym.Space[Any]) -> upslope.PPO:
        return make_ppo(lambda: Slider(space), log_std_init=1.0)

    def test_one_and_many(self, agent: upslope.PPO, space: gym.Space[Any]) -> None:
        for deterministic in (True, False):
            one, state = agent.predict(OBS[0, :3], deterministic=deterministic)
            assert state is None
            assert space.contains(one)
            many, _ = agent.predict(OBS[:, :3], deterministic=deterministic)
            assert many.shape == (3, *(space.shape or ()))
            assert all(space.contains(action) for action in many)

    def test_the_mode_is_always_the_same(self, agent: upslope.PPO, space: Any) -> None:
        single = [agent.predict(obs, deterministic=True)[0] for obs in OBS[:, :3]]
        for _ in range(3):
            np.testing.assert_allclose(
                agent.predict(OBS[:, :3], deterministic=True)[0], single, rtol=1e-6
            )

    def test_samples_differ_and_follow_the_seed(self, agent: upslope.PPO, space: Any) -> None:
        drawn = np.array([agent.predict(OBS[0, :3])[0] for _ in range(40)])
        assert len(np.unique(drawn, axis=0)) > 1
        again = make_ppo(lambda: Slider(space), log_std_init=1.0)
        np.testing.assert_array_equal([again.predict(OBS[0, :3])[0] for _ in range(40)], drawn)
        assert not np.array_equal([again.predict(OBS[0, :3])[0] for _ in range(40)], drawn)

    def test_in_the_form_of_stable_baselines3(self, agent: upslope.PPO, space: Any) -> None:
        obs = OBS[:, :3]
        _, state = agent.predict(
            obs, state=None, episode_start=np.ones(3, bool), deterministic=True
        )
        assert state is None


class TestPredictRefuses:
    @pytest.mark.parametrize("shape", [(), (3,), (5,), (2, 3), (4, 2), (2, 2, 4), (1, 1, 4)])
    def test_wrong_shapes(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ConfigError, match=r"give \(4,\), or \('N', 4\)"):
            make_ppo().predict(np.zeros(shape))

    def test_what_reset_returns(self) -> None:
        with pytest.raises(ConfigError, match=r"\(4,\)"):
            make_ppo().predict(cartpole().reset(seed=0))

    def test_lists_are_fine(self) -> None:
        agent = make_ppo()
        assert agent.predict([0.1, -0.2, 0.03, 0.4], deterministic=True)[0] in (0, 1)
        assert agent.predict(OBS.tolist(), deterministic=True)[0].shape == (3,)


class TestPolicy:
    def test_distribution_and_value_are_public(self) -> None:
        agent = make_ppo(seed=2)
        distribution = agent.policy.distribution(OBS)
        log_probs = torch.stack([distribution.log_prob(torch.full((3,), a)) for a in (0, 1)])
        torch.testing.assert_close(log_probs.exp().sum(0), torch.ones(3))
        assert distribution.mode().tolist() == agent.predict(OBS, deterministic=True)[0].tolist()
        assert distribution.entropy().shape == agent.policy.value(OBS).shape == (3,)
        assert agent.policy.value(OBS[0]).shape == ()
        agent.policy.value(OBS).sum().backward()
        assert agent.policy.critic_head.weight.grad is not None

    def test_samples_have_the_stated_probabilities(self) -> None:
        agent = make_ppo().learn(500)
        p = agent.policy.distribution(OBS[1]).log_prob(torch.tensor(1)).exp().item()
        n = 4000
        ones = agent.predict(np.repeat(OBS[1:2], n, axis=0))[0].sum()
        assert abs(ones / n - p) < 4 * np.sqrt(p * (1 - p) / n)


class TestLearn:
    @pytest.mark.parametrize("make", MAKERS)
    def test_continues(self, make: Callable[..., upslope.Agent]) -> None:
        agent, iterations = make(n_envs=2), []

        def note(event: Event) -> None:
            iterations.append((event.iteration, event.timesteps, event.total_timesteps))

        agent.learn(100, callback=note)
        first = len(iterations)
        assert iterations[-1][1] >= 100 > iterations[-2][1] if first > 1 else True
        before = agent.num_timesteps
        agent.learn(100, callback=note, reset_num_timesteps=False)
        assert [number for number, *_ in iterations] == list(range(1, len(iterations) + 1))
        assert iterations[first][2] == before + 100
        assert agent.num_timesteps >= before + 100

    def test_reset_num_timesteps(self) -> None:
        agent, rates = make_ppo(n_envs=2, learning_rate="lin_1e-3"), []

        def note(event: Event) -> None:
            rates.append(event.metrics["train/learning_rate"])

        agent.learn(128, callback=note)
        weights_before = weights(agent)
        assert rates == pytest.approx([1e-3, 5e-4])
        agent.learn(128, callback=note)
        assert agent.num_timesteps == 128
        assert rates == pytest.approx([1e-3, 5e-4, 1e-3, 5e-4])
        agent.learn(128, callback=note, reset_num_timesteps=False)
        assert agent.num_timesteps == 256
        assert rates[4:] == pytest.approx([5e-4, 2.5e-4])
        assert not torch.equal(weights(agent), weights_before)

    def test_overshoot_is_said(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level("INFO", logger="upslope"):
            make_ppo(n_envs=2).learn(100)
            assert [record.getMessage() for record in caplog.records] == [
                "trained 128 steps, 28 more than asked: iterations are whole"
            ]
            caplog.clear()
            make_ppo(n_envs=2).learn(128)
            assert caplog.records == []

    def test_two_halves_are_the_whole(self) -> None:
        """With constant schedules a run may be stopped between iterations and taken up again."""
        whole = make_ppo(n_envs=2, seed=5).learn(640)
        parts = make_ppo(n_envs=2, seed=5)
        parts.training.plan(640)
        for _ in range(5):
            parts.learn(128, reset_num_timesteps=False)
        assert parts.num_timesteps == whole.num_timesteps
        assert torch.equal(weights(parts), weights(whole))

    def test_returning_false_stops_after_the_iteration(self) -> None:
        agent = make_ppo(n_envs=2)
        agent.learn(10_000, callback=lambda event: event.iteration < 3)
        assert agent.num_timesteps == 3 * 64
        agent.learn(64)  # and may go on

    def test_an_error_of_the_callback_is_the_users(self) -> None:
        agent = make_ppo(n_envs=2)
        with pytest.raises(ZeroDivisionError):
            agent.learn(1000, callback=lambda event: 1 / 0)
        assert agent.num_timesteps == 64
        agent.learn(64)

    def test_nothing_is_written_and_nothing_printed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        agent = make_ppo(n_envs=2).learn(200)
        agent.evaluate(3)
        agent.predict(OBS)
        assert os.listdir(tmp_path) == []
        assert capfd.readouterr() == ("", "")

    def test_run_dir_is_written(self, tmp_path: Path) -> None:
        agent = make_ppo(n_envs=2, run_dir=tmp_path / "run")
        assert os.listdir(tmp_path) == []
        agent.learn(64)
        assert (tmp_path / "run" / "model.safetensors").exists()
        agent.learn(64)
        assert (tmp_path / "run-2" / "model.safetensors").exists()

    def test_progress_bar_goes_to_standard_error(self, capfd: pytest.CaptureFixture[str]) -> None:
        make_ppo(n_envs=2).learn(640, progress_bar=True)
        out, err = capfd.readouterr()
        assert out == ""
        assert "return" in err
        assert "steps/s" in err
        assert "loss" not in err

    def test_in_another_thread(self) -> None:
        agent = make_ppo(n_envs=2)
        thread = threading.Thread(target=agent.learn, args=(128,))
        thread.start()
        thread.join()
        assert agent.num_timesteps == 128

    def test_the_number_of_torch_threads_is_restored(self) -> None:
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            make_ppo(n_envs=2).learn(64)
            assert torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(before)


class TestInterrupts:
    @pytest.mark.parametrize("make", MAKERS)
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_from_a_callback(self, make: Callable[..., upslope.Agent], number: int) -> None:
        handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
        agent, seen = make(n_envs=2), []

        def press(event: Event) -> None:
            seen.append((event.timesteps, weights(agent)))
            if event.iteration == 3:
                os.kill(os.getpid(), number)

        with pytest.raises(KeyboardInterrupt):
            agent.learn(100_000, callback=press)
        assert len(seen) == 3
        assert agent.num_timesteps == seen[-1][0]
        assert torch.equal(weights(agent), seen[-1][1])
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
        agent.evaluate(2)
        agent.learn(64, reset_num_timesteps=False)
        assert agent.num_timesteps >= seen[-1][0] + 64

    def test_in_the_middle_of_an_iteration(self) -> None:
        agent, seen = make_ppo(n_envs=2), []
        timer = threading.Timer(0.15, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                agent.learn(10_000_000, callback=lambda e: seen.append(weights(agent)) or True)
        finally:
            timer.join()
        assert agent.num_timesteps == 64 * len(seen)
        assert torch.equal(weights(agent), seen[-1])
        assert agent.training.iteration == len(seen)


class TestSaveAndLoad:
    @pytest.mark.parametrize("make", MAKERS)
    @pytest.mark.parametrize("trained", [0, 300])
    def test_predictions_and_scores_are_equal(
        self, make: Callable[..., upslope.Agent], trained: int, tmp_path: Path
    ) -> None:
        agent = make(n_envs=2, norm_obs=True, warmup_steps=64, seed=4)
        if trained:
            agent.learn(trained)
        agent.save(tmp_path / "m.safetensors")
        for loaded in (
            upslope.load(tmp_path / "m.safetensors"),
            type(agent).load(str(tmp_path / "m.safetensors")),
            upslope.Agent.load(tmp_path / "m.safetensors"),
        ):
            assert type(loaded) is type(agent)
            assert loaded.config == agent.config
            assert torch.equal(weights(loaded), weights(agent))
            np.testing.assert_array_equal(
                loaded.predict(OBS, deterministic=True)[0],
                agent.predict(OBS, deterministic=True)[0],
            )
            assert torch.equal(loaded.policy.value(OBS), agent.policy.value(OBS))
            score, again = agent.evaluate(5, seed=1), loaded.evaluate(5, seed=1)
            assert score.to_json() == again.to_json()
            assert agent.evaluate(3).to_json() == loaded.evaluate(3).to_json()

    @pytest.mark.parametrize("make", MAKERS)
    def test_a_loaded_agent_learns(
        self, make: Callable[..., upslope.Agent], tmp_path: Path
    ) -> None:
        make(n_envs=2).learn(64).save(tmp_path / "m.safetensors")
        loaded = upslope.load(tmp_path / "m.safetensors")
        assert loaded.num_timesteps == 0
        before = weights(loaded)
        loaded.learn(64)
        assert not torch.equal(weights(loaded), before)

    def test_on_an_instance_it_raises_with_the_line_to_type(self, tmp_path: Path) -> None:
        agent = make_ppo()
        agent.save(tmp_path / "m.safetensors")
        with pytest.raises(ConfigError, match=r"write agent = PPO\.load\(path\)"):
            agent.load(tmp_path / "m.safetensors")

    def test_of_another_algorithm(self, tmp_path: Path) -> None:
        make_reinforce().save(tmp_path / "m.safetensors")
        with pytest.raises(ModelFileError, match=r"reinforce model, not ppo: use upslope\.load"):
            upslope.PPO.load(tmp_path / "m.safetensors")

    def test_other_spaces_are_both_shown(self, tmp_path: Path) -> None:
        make_ppo().save(tmp_path / "m.safetensors")
        with pytest.raises(ModelFileError, match=r"observation space is Box.*\(4,\).*Box.*\(6,\)"):
            upslope.load(tmp_path / "m.safetensors", "Acrobot-v1")
        wide = lambda: Slider(gym.spaces.Discrete(3))  # noqa: E731
        make_ppo(wide).save(tmp_path / "s.safetensors")
        with pytest.raises(
            ModelFileError, match=r"action space is Discrete\(3\) .* Discrete\(3, start=5\)"
        ):
            upslope.load(tmp_path / "s.safetensors", lambda: Slider(SPACES["discrete_from_5"]))

    def test_with_another_environment_of_equal_spaces(self, tmp_path: Path) -> None:
        make_ppo(n_envs=16).save(tmp_path / "m.safetensors")
        for env in (cartpole, cartpole(), SyncVectorEnv([cartpole] * 3)):
            loaded = upslope.load(tmp_path / "m.safetensors", env)
            loaded.learn(1)
            loaded.close()

    def test_settings_may_be_overridden(self, tmp_path: Path) -> None:
        make_ppo(n_envs=4).save(tmp_path / "m.safetensors")
        loaded = upslope.load(tmp_path / "m.safetensors", n_envs=2, gamma=0.5, n_steps=48)
        loaded.learn(1)
        assert (loaded.config.n_envs, loaded.config.gamma, loaded.num_timesteps) == (2, 0.5, 96)
        with pytest.raises(ConfigError, match="did you mean 'gamma'"):
            upslope.load(tmp_path / "m.safetensors", gama=0.5)
        with pytest.raises(ConfigError, match="gamma=2"):
            upslope.load(tmp_path / "m.safetensors", gamma=2)

    def test_the_users_own_environment_must_be_given_again(self, tmp_path: Path) -> None:
        make_ppo(cartpole).save(tmp_path / "m.safetensors")
        loaded = upslope.load(tmp_path / "m.safetensors")
        loaded.predict(OBS)
        for use in (lambda: loaded.learn(64), lambda: loaded.evaluate(2)):
            with pytest.raises(ConfigError, match=r"upslope\.load\(path, env=\.\.\.\)"):
                use()
        assert upslope.load(tmp_path / "m.safetensors", cartpole).evaluate(2)

    def test_a_callable_schedule_is_not_in_the_file(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        make_ppo(learning_rate=lambda p: 1e-3 * p, clip_range=lambda p: 0.3).save(
            tmp_path / "m.safetensors"
        )
        with caplog.at_level("WARNING", logger="upslope"):
            loaded = upslope.load(tmp_path / "m.safetensors")
        assert sum("default is taken" in message for message in caplog.messages) >= 2
        assert loaded.config.learning_rate == upslope.PPOConfig().learning_rate
        again = upslope.load(tmp_path / "m.safetensors", learning_rate=lambda p: 1e-3 * p)
        assert callable(again.config.learning_rate)

    def test_no_name_in_a_file_is_imported(self, module_path: Path) -> None:
        (module_path / "snare.py").write_text(
            "import gymnasium, pathlib\n"
            "pathlib.Path('sprung').touch()\n"
            "gymnasium.register('Trap-v0', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
        )
        make_ppo("snare:Trap-v0", n_envs=2).save("m.safetensors")
        (module_path / "sprung").unlink()
        del sys.modules["snare"]
        upslope.load("m.safetensors").predict(OBS)
        assert not (module_path / "sprung").exists()

    def test_saving_does_not_disturb_training(self, tmp_path: Path) -> None:
        plain, saving = make_ppo(n_envs=2, seed=1), make_ppo(n_envs=2, seed=1)
        saving.save(tmp_path / "m.safetensors")
        plain.learn(640)
        saving.learn(640, callback=lambda event: event.agent.save(tmp_path / "m.safetensors"))
        assert torch.equal(weights(plain), weights(saving))


class Doubled(nn.Module):
    """Features of a user: the observation and its square."""

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return torch.cat([obs, obs.square()], -1)


class Learned(nn.Module):
    def __init__(self, space: gym.Space[Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(space.shape[0], 5)  # type: ignore[index]

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(obs))


class TestFeatures:
    @pytest.mark.parametrize("make", MAKERS)
    def test_are_trained_saved_and_asked_for_again(
        self, make: Callable[..., upslope.Agent], tmp_path: Path
    ) -> None:
        agent = make(policy=Learned, n_envs=2, seed=3)
        before = weights(agent)
        agent.learn(200)
        assert not torch.equal(weights(agent), before)
        agent.save(tmp_path / "m.safetensors")
        with pytest.raises(ConfigError, match=r"features factory .*Learned.*policy=Learned"):
            upslope.load(tmp_path / "m.safetensors")
        loaded = upslope.load(tmp_path / "m.safetensors", policy=Learned)
        assert torch.equal(loaded.policy.value(OBS), agent.policy.value(OBS))
        assert loaded.evaluate(3).to_json() == agent.evaluate(3).to_json()

    def test_the_wrong_factory(self, tmp_path: Path) -> None:
        make_ppo(policy=Learned).save(tmp_path / "m.safetensors")
        with pytest.raises(ModelFileError):
            upslope.load(tmp_path / "m.safetensors", policy=lambda space: Doubled())
        make_ppo().save(tmp_path / "plain.safetensors")
        with pytest.raises(ConfigError, match="without a features factory"):
            upslope.load(tmp_path / "plain.safetensors", policy=Learned)

    def test_in_the_order_of_stable_baselines3(self) -> None:
        agent = make_ppo(policy=lambda space: Doubled(), n_envs=2)
        agent.learn(64)
        assert agent.policy.distribution(OBS).logits.shape == (3, 2)

    @pytest.mark.parametrize(
        ("factory", "says"),
        [
            (lambda space: 5, "not a torch.nn.Module"),
            (lambda space: nn.Sequential(nn.Linear(4, 8), nn.Dropout()), "dropout"),
            (lambda space: nn.Unflatten(1, (2, 2)), "flatten its output"),
            ("LstmPolicy", "is not known"),
            (5, "is not known"),
        ],
        ids=["number", "dropout", "shape", "name", "int"],
    )
    def test_refused(self, factory: Any, says: str) -> None:
        with pytest.raises(ConfigError, match=says):
            make_ppo(policy=factory)


class TestSetEnv:
    def test_goes_on_with_other_environments(self) -> None:
        agent = make_ppo(n_envs=2).learn(64)
        before = weights(agent)
        agent.set_env(SyncVectorEnv([cartpole] * 3))
        assert torch.equal(weights(agent), before)
        agent.learn(96)
        assert agent.get_env().n_envs == 3

    def test_of_other_spaces_changes_nothing(self) -> None:
        agent = make_ppo(n_envs=2).learn(64)
        before = weights(agent)
        with pytest.raises(ModelFileError, match="observation space"):
            agent.set_env("Acrobot-v1")
        assert torch.equal(weights(agent), before)
        agent.learn(64)
        agent.evaluate(2)


class TestHelpers:
    def test_make_vec_env(self) -> None:
        envs = upslope.make_vec_env("CartPole-v1", n_envs=3, seed=1)
        policy = upslope.ActorCritic(envs.observation_space, envs.action_space)
        assert upslope.collect(envs, policy, n_steps=5).rewards.shape == (5, 3)
        upslope.make_vec_env("CartPole-v1", n_envs=3, sutton_barto_reward=True)

    def test_check_env(self) -> None:
        upslope.check_env(Slider(SPACES["discrete"]))

    def test_public_names(self) -> None:
        for name in upslope.__all__:
            assert getattr(upslope, name) is not None
        assert set(upslope.__all__) <= set(dir(upslope))
        with pytest.raises(AttributeError, match="PP0"):
            upslope.PP0  # noqa: B018
        assert (Path(upslope.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize(
    "setting",
    [{"net_arch": (8,)}, {"activation_fn": "relu"}, {"norm_obs": True}, {"memory": "gru"}],
)
def test_a_model_does_not_change_its_network(tmp_path: Path, setting: dict[str, Any]) -> None:
    agent = upslope.PPO("CartPole-v1", n_envs=2)
    agent.save(tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=f"{next(iter(setting))} belongs to the weights of"):
        upslope.load(tmp_path / "model.safetensors", **setting)
    same = {name: getattr(agent.config, name) for name in setting}
    upslope.load(tmp_path / "model.safetensors", **same).close()


def test_another_discount_reaches_the_reward_normaliser(tmp_path: Path) -> None:
    upslope.PPO("CartPole-v1", n_envs=2, norm_reward=True).save(tmp_path / "model.safetensors")
    again = upslope.load(tmp_path / "model.safetensors", gamma=0.5)
    assert again.policy.reward_normalizer.gamma == 0.5
    again.close()
