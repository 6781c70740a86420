"""A run directory: every file of it, and that each says what happened."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from broken_runs import killed_after

import upslope
from upslope.callbacks import EvalCallback
from upslope.config import CONFIGS
from upslope.errors import EnvironmentFaultError
from upslope.runs.checkpoint import numbers
from upslope.runs.directory import RunDirectory
from upslope.runs.model_file import read_header
from upslope.runs.progress import CLOCKS, COLUMNS

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)
FIRST_COLUMNS = [
    *("time/total_timesteps", "time/iterations", "time/time_elapsed", "time/fps"),
    *("rollout/ep_rew_mean", "rollout/ep_len_mean", "rollout/episodes", "rollout/valid_share"),
    *("train/policy_gradient_loss", "train/value_loss", "train/entropy_loss", "train/approx_kl"),
    *("train/clip_fraction", "train/explained_variance", "train/learning_rate", "train/grad_norm"),
    *("train/normalizer_kl", "train/gradient_snr", "rollout/ep_rew_std", "rollout/clipped_share"),
    *("rollout/success_rate", "eval/mean_reward"),
]


def ppo(run_dir: Path, env: Any = "CartPole-v1", **settings: Any) -> upslope.PPO:
    small = {"n_envs": 2, "n_steps": 32, "batch_size": 32, "n_epochs": 2, "net_arch": (8,)}
    return upslope.PPO(env, run_dir=run_dir, **(small | settings))


def rows(path: Path) -> list[dict[str, str]]:
    with (path / "progress.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read(path: Path) -> Any:
    return json.loads(path.read_text(), parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, float]]]:
    """A finished run and the metrics of its iterations."""
    path, metrics = tmp_path_factory.mktemp("runs") / "run", []
    agent = ppo(path, norm_obs=True, warmup_steps=64, log_interval=1, seed=5)
    agent.learn(640, callback=lambda event: metrics.append(dict(event.metrics)) or True)
    return path, metrics


class TestFiles:
    def test_are_all_there(self, run: Any) -> None:
        names = {re.sub(r"tfevents.*", "tfevents", file.name) for file in run[0].iterdir()}
        board = {"events.out.tfevents"} if importlib.util.find_spec("tensorboard") else set()
        assert names == {
            *("config.json", "run.json", "command.txt", "progress.csv", "model.safetensors"),
            *("checkpoints", ".lock"),
            *board,
        }

    def test_config_is_complete_and_resolved(self, run: Any) -> None:
        config = read(run[0] / "config.json")
        settings = config["settings"]
        assert settings.keys() == {declared.name for declared in dataclasses.fields(CONFIGS["ppo"])}
        assert (settings["n_envs"], settings["n_steps"], settings["seed"]) == (2, 32, 5)
        assert CONFIGS["ppo"].from_settings(settings).to_json() == settings
        assert config["algorithm"] == "ppo"
        assert config["environment"]["id"] == "CartPole-v1"
        assert config["environment"]["reward_threshold"] == 475
        assert config["engine"]["name"] == "sync"
        assert config["total_timesteps"] == 640
        assert config["versions"].keys() >= {"upslope", "torch", "gymnasium", "numpy", "python"}
        assert config["versions"]["upslope"] == upslope.__version__
        assert "git_commit" in config

    def test_run_says_how_it_ended(self, run: Any) -> None:
        state = read(run[0] / "run.json")
        assert (state["state"], state["exit_code"], state["error"]) == ("finished", 0, None)
        assert state["timesteps"] == run[1][-1]["time/total_timesteps"]
        assert state["iterations"] == len(run[1])
        assert state["episodes"] == run[1][-1]["rollout/episodes"]
        assert state["started"] <= state["finished"]
        assert [state[key] for key in ("time_to_return", "steps_to_return", "return")] == [None] * 3

    def test_seconds_of_the_phases(self, run: Any) -> None:
        state = read(run[0] / "run.json")
        phases = state["phase_seconds"]
        assert phases.keys() == {"environment", "acting", "evaluate", "update", "logging"}
        assert all(seconds >= 0 for seconds in phases.values())
        assert 0.3 * state["seconds"] < sum(phases.values()) <= state["seconds"]

    def test_columns(self, run: Any) -> None:
        header = (run[0] / "progress.csv").read_text().splitlines()[0].split(",")
        assert header == list(COLUMNS)
        assert set(header) >= set(FIRST_COLUMNS)
        assert set(CLOCKS) == {"time/time_elapsed", "time/fps"}
        assert not [name for name in header if "second" in name]

    def test_rows_are_the_metrics_to_the_last_bit(self, run: Any) -> None:
        written = rows(run[0])
        assert len(written) == len(run[1])
        for row, metrics in zip(written, run[1], strict=True):
            assert {k: float(v) for k, v in row.items() if v} == metrics
        assert {"train/normalizer_kl", "train/approx_kl"} <= {
            k for k, v in written[-1].items() if v
        }
        assert "nan" not in (run[0] / "progress.csv").read_text().lower()

    def test_command_can_be_read_back(self, run: Any) -> None:
        assert shlex.split((run[0] / "command.txt").read_text())

    def test_the_model_is_the_final_policy(self, run: Any) -> None:
        loaded = upslope.load(run[0] / "model.safetensors")
        assert loaded.config.seed == 5
        assert read_header(run[0] / "model.safetensors")["format"] == 2

    @needs_tensorboard
    def test_tensorboard_has_the_same_numbers(self, run: Any) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        board = EventAccumulator(str(run[0]), size_guidance={"scalars": 0}).Reload()
        written = rows(run[0])
        tags = {name for row in written for name, value in row.items() if value}
        assert set(board.Tags()["scalars"]) == tags
        for tag in tags:
            expected = [
                (int(row["time/total_timesteps"]), np.float32(row[tag]))
                for row in written
                if row[tag]
            ]
            events = board.Scalars(tag)
            assert [(event.step, np.float32(event.value)) for event in events] == expected


class TestRows:
    @pytest.mark.parametrize(
        ("interval", "iterations"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6, 7]), (7, [7])]
    )
    def test_every_log_interval_and_the_last(
        self, tmp_path: Path, interval: int, iterations: list[int]
    ) -> None:
        ppo(tmp_path / "run", log_interval=interval).learn(64 * 7)
        assert [int(row["time/iterations"]) for row in rows(tmp_path / "run")] == iterations

    def test_about_two_hundred_by_default(self, tmp_path: Path) -> None:
        agent = ppo(tmp_path / "run", n_envs=1, n_steps=2, batch_size=2, n_epochs=1)
        agent.learn(1000)
        assert len(rows(tmp_path / "run")) == 250
        assert read(tmp_path / "run" / "config.json")["log_every"] == 2

    def test_no_evaluation_is_lost_between_rows(self, tmp_path: Path) -> None:
        seen: list[float] = []

        def note(event: Any) -> None:
            if "eval/mean_reward" in event.metrics:
                seen.append(event.metrics["eval/mean_reward"])

        agent = ppo(tmp_path / "run", log_interval=4)
        agent.learn(64 * 12, callback=[EvalCallback(3 * 64, 2), note])
        written = [
            float(row["eval/mean_reward"])
            for row in rows(tmp_path / "run")
            if row["eval/mean_reward"]
        ]
        assert len(seen) == 4
        assert written == seen

    def test_info_has_columns(self, tmp_path: Path) -> None:
        class Told(gym.wrappers.TimeLimit):
            def step(self, action: Any) -> Any:
                obs, reward, terminated, truncated, info = super().step(action)
                return obs, reward, terminated, truncated, info | {"speed": 2.5, "is_success": True}

        agent = ppo(tmp_path / "run", lambda: Told(gym.make("CartPole-v1"), 9), log_info=("speed",))
        agent.learn(256)
        last = rows(tmp_path / "run")[-1]
        assert (last["rollout/speed"], last["rollout/success_rate"]) == ("2.5", "1")

    def test_reinforce(self, tmp_path: Path) -> None:
        agent = upslope.REINFORCE(
            "CartPole-v1", batch_episodes=4, run_dir=tmp_path / "run", baseline="value"
        )
        agent.learn(300)
        last = rows(tmp_path / "run")[-1]
        for name in (
            "train/policy_gradient_loss",
            "train/entropy_loss",
            "train/grad_norm",
            "train/value_loss",
        ):
            assert last[name]
        assert last["train/clip_fraction"] == ""

    @pytest.mark.parametrize("algorithm", CONFIGS)
    def test_every_metric_has_a_column(self, algorithm: str, tmp_path: Path) -> None:
        metrics: dict[str, float] = {}
        settings = {"n_envs": 2, "net_arch": (8,), "run_dir": tmp_path / "run"}
        agent = getattr(upslope, algorithm.upper())("CartPole-v1", log_interval=1, **settings)
        agent.learn(300, callback=lambda event: metrics.update(event.metrics))
        assert metrics.keys() <= set(COLUMNS)
        last = rows(tmp_path / "run")[-1]
        every_row = metrics.keys() - {"train/gradient_snr"}
        assert all(last[name] for name in every_row)
        assert ("train/is_line_search_success" in metrics) == (algorithm in ("npg", "trpo"))


class Paying(gym.Env[Any, Any]):
    """Two steps that pay 0.25 and 0.75, so that each return is 1."""

    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Discrete(2)
    rewards = (0.25, 0.75)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return np.zeros(1, np.float32), self.rewards[self.t - 1], self.t == 2, False, {}


class Zero(Paying):
    """A sparse reward that is never seen."""

    rewards = (0.0, 0.0)


class TestReturns:
    """time_to_return, steps_to_return and return: of the first 100-episode mean that reached it."""

    @pytest.mark.parametrize(
        ("target", "steps"), [(1.0, 256), (0.5, 256), (1.001, None), (None, None)]
    )
    def test_reached(self, tmp_path: Path, target: float | None, steps: int | None) -> None:
        agent = upslope.PPO(Paying, n_envs=2, n_steps=32, batch_size=32, n_epochs=1)
        directory = RunDirectory.create(tmp_path / "run", agent, 512)
        directory.target_return = target
        agent.train_to(512, [], directory)
        state = read(tmp_path / "run" / "run.json")
        assert state["steps_to_return"] == steps  # 32 episodes an iteration, and 100 are needed
        if steps is None:
            assert state["time_to_return"] is None
            assert state["return"] is None
        else:
            assert state["return"] == 1.0
            assert state["time_to_return"] > 0

    def test_the_threshold_of_the_registry_is_the_default(self, tmp_path: Path) -> None:
        for env, threshold in (("CartPole-v1", 475), ("Pendulum-v1", None)):
            agent = upslope.PPO(env, n_envs=1)
            with RunDirectory.create(tmp_path / env, agent, 10) as directory:
                assert directory.target_return == threshold


class TestNumbers:
    @pytest.mark.parametrize("env", [Paying, Zero])
    @pytest.mark.parametrize(
        "make",
        [
            lambda *where, **run: ppo(*where[::-1], **run),
            lambda env, path: upslope.REINFORCE(
                env, run_dir=path, batch_episodes=4, baseline="value"
            ),
            lambda env, path: upslope.REINFORCE(env, run_dir=path, batch_episodes=4),
        ],
        ids=["ppo", "value", "loo"],
    )
    def test_what_cannot_be_measured_is_left_out(self, tmp_path: Path, env: Any, make: Any) -> None:
        """Equal returns have no variance to explain, and a run goes on all the same."""
        make(env, tmp_path / "run").learn(300)
        text = (tmp_path / "run" / "progress.csv").read_text().lower()
        assert "nan" not in text
        assert "inf" not in text
        assert read(tmp_path / "run" / "run.json")["state"] == "finished"


class Faulty(Paying):
    steps = 0

    def step(self, action: Any) -> Any:
        Faulty.steps += 1
        if Faulty.steps > 150:
            raise RuntimeError("motor burnt")
        return super().step(action)


class TestEnds:
    def test_a_fault_of_the_environment(self, tmp_path: Path) -> None:
        Faulty.steps = 0
        agent = ppo(tmp_path / "run", Faulty)
        with pytest.raises(EnvironmentFaultError, match="motor burnt"):
            agent.learn(1000)
        state = read(tmp_path / "run" / "run.json")
        assert (state["state"], state["exit_code"], state["timesteps"]) == ("failed", 3, 128)
        assert "motor burnt" in state["error"]
        upslope.load(tmp_path / "run" / "model.safetensors").predict(np.zeros(1))

    def test_an_interrupt(self, tmp_path: Path) -> None:
        def press(event: Any) -> None:
            if event.iteration == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ppo(tmp_path / "run").learn(1000, callback=press)
        state = read(tmp_path / "run" / "run.json")
        assert (state["state"], state["exit_code"]) == ("interrupted", 130)
        upslope.load(tmp_path / "run" / "model.safetensors")

    def test_while_it_runs(self, tmp_path: Path) -> None:
        states: list[Any] = []
        ppo(tmp_path / "run").learn(
            64, callback=lambda event: states.append(read(tmp_path / "run" / "run.json")) or True
        )
        assert (states[0]["state"], states[0]["exit_code"], states[0]["finished"]) == (
            "running",
            None,
            None,
        )

    def test_rows_are_on_disk_as_they_are_written(self, tmp_path: Path) -> None:
        lengths: list[int] = []
        agent = ppo(tmp_path / "run", log_interval=1)
        agent.learn(320, callback=lambda event: lengths.append(len(rows(tmp_path / "run"))) or True)
        assert lengths == [0, 1, 2, 3, 4]  # a callback comes before the row of its iteration


class TestPlaces:
    def test_a_run_is_never_overwritten(self, tmp_path: Path) -> None:
        for _ in range(3):
            ppo(tmp_path / "run").learn(64)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run-2", "run-3"]

    def test_an_empty_directory_is_taken(self, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        ppo(tmp_path / "run").learn(64)
        assert (tmp_path / "run" / "model.safetensors").exists()

    def test_parents_are_made(self, tmp_path: Path) -> None:
        ppo(tmp_path / "a" / "b" / "run").learn(64)
        assert (tmp_path / "a" / "b" / "run" / "run.json").exists()

    def test_evaluation(self, tmp_path: Path) -> None:
        agent = ppo(tmp_path / "unused")
        agent.run_dir = None
        directory = RunDirectory.create(tmp_path / "run", agent, 64)
        agent.train_to(64, [], directory)
        score = agent.evaluate(3)
        directory.write_evaluation(score)
        assert read(tmp_path / "run" / "evaluation.json") == json.loads(json.dumps(score.to_json()))
        header = read_header(tmp_path / "run" / "model.safetensors")
        assert header["evaluation"] == json.loads(json.dumps(score.to_json()))


def test_without_the_extra_there_is_no_events_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ppo(tmp_path / "run").learn(128)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert "progress.csv" in names
    assert "model.safetensors" in names
    assert not any(name.startswith("events") for name in names)
    assert read(tmp_path / "run" / "run.json")["state"] == "finished"


@needs_tensorboard
def test_after_a_resume_tensorboard_has_every_row_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    ppo(run, max_episode_steps=10, log_interval=1).learn(640)
    run = killed_after(run, int(numbers(run / "checkpoints")[2]), tmp_path / "killed")
    for file in run.glob("events*"):  # the second process has a later clock
        file.rename(file.with_name(re.sub(r"tfevents\.\d+", "tfevents.1", file.name)))
    upslope.resume(run)
    seen = EventAccumulator(str(run))
    seen.Reload()
    steps = [event.step for event in seen.Scalars("time/iterations")]
    assert steps == [int(row["time/total_timesteps"]) for row in rows(run)]
    assert len(list(run.glob("events*"))) == 2
