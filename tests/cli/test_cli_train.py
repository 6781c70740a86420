"""``upslope train`` as people type it."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import upslope
from upslope.config import CONFIGS
from upslope.runs.model_file import read_header, read_model
from upslope.runs.progress import CLOCKS

TINY = ["--n-envs=2", "--n-steps=32", "--batch-size=32", "--n-epochs=1", "--net-arch=8"]
FEW = [*TINY, "--total-timesteps=128", "--episodes=2"]
Command = Callable[..., Any]
needs_envpool = pytest.mark.skipif(
    importlib.util.find_spec("envpool") is None, reason="envpool is not installed"
)


def read(path: Path) -> Any:
    return json.loads(path.read_text(), parse_constant=pytest.fail)


def settings(run: Path) -> dict[str, Any]:
    return read(run / "config.json")["settings"]


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "progress.csv").open() as file:
        return list(csv.DictReader(file))


class TestRun:
    def test_leaves_a_run_directory_and_says_where(
        self, upslope_command: Command, here: Path
    ) -> None:
        done = upslope_command("train", "CartPole-v1", *FEW)
        assert done.err == ""
        (run,) = (here / "runs").iterdir()
        assert run.name.startswith("CartPole-v1__ppo__s0__")
        assert {"config.json", "run.json", "command.txt", "progress.csv", "model.safetensors",
                "evaluation.json"} <= set(os.listdir(run))  # fmt: skip
        lines = done.out.splitlines()
        assert any(line.startswith("return") and "average of the last" in line for line in lines)
        assert any(line.startswith("sampled") and "2 fresh episodes" in line for line in lines)
        assert f"run      {run.relative_to(here)}" in lines
        assert f"next     upslope play {run.relative_to(here)}" in lines
        assert "loss" not in done.out

    def test_an_engine_that_is_not_there_is_said(
        self, upslope_process: Command, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(here))  # where no compiler is
        monkeypatch.setenv("XDG_CACHE_HOME", str(here))
        process = upslope_process("train", "CartPole-v1", *FEW, "--compile=always", "--run-dir=run")
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0
        assert said.splitlines()[-1:] == [
            "the gradient step runs by tape, not aot: there is no C++ compiler: install g++"
        ]
        assert read(here / "run" / "config.json")["gradient_step_engine"] == "tape"

    def test_a_preset_that_does_not_fit_is_said(self, upslope_process: Command) -> None:
        few = ("--n-envs=2", "--n-steps=64", "-n", "128", "--episodes=0")
        process = upslope_process("train", "CartPole-v1", *few)
        (said,) = process.communicate(timeout=60)[1].splitlines()
        assert said.startswith("batch_size=")
        assert said.endswith("it is 64 now (--batch-size)")
        process = upslope_process("train", "CartPole-v1", *few, "--batch-size=32")
        assert process.communicate(timeout=60)[1] == ""

    def test_progress_leads_with_the_return(self, upslope_command: Command) -> None:
        out = upslope_command("train", "CartPole-v1", *TINY, "-n", "2000", "--episodes=0").out
        plain = [line for line in out.splitlines() if "steps/s" in line]
        assert 10 <= len(plain) <= 22
        for line in plain:
            assert line.startswith("return ")
            assert [part in line for part in ("episode", "steps", "left", "cores", "MB")] == [
                True
            ] * 5

    def test_quiet_prints_nothing(self, upslope_command: Command, here: Path) -> None:
        done = upslope_command("train", "CartPole-v1", *FEW, "--quiet", "--run-dir=run")
        assert (done.out, done.err) == ("", "")
        assert (here / "run" / "evaluation.json").exists()

    @pytest.mark.envpool
    @needs_envpool
    def test_quiet_with_envpool(self, upslope_command: Command) -> None:
        done = upslope_command("train", "CartPole-v1", *FEW, "--quiet", "--vec=envpool")
        assert (done.out, done.err) == ("", "")

    @pytest.mark.parametrize("vec", ["sync", "async", "native"])
    def test_engines(self, upslope_command: Command, here: Path, vec: str) -> None:
        done = upslope_command("train", "CartPole-v1", *FEW, f"--vec={vec}", "--run-dir=run")
        assert done.err == ""
        assert read(here / "run" / "config.json")["engine"]["name"] == vec

    def test_no_final_evaluation(self, upslope_command: Command, here: Path) -> None:
        out = upslope_command("train", "CartPole-v1", *FEW, "--episodes=0", "--run-dir=run").out
        assert not (here / "run" / "evaluation.json").exists()
        assert "sampled" not in out

    def test_evaluations_on_the_way(self, upslope_command: Command, here: Path) -> None:
        upslope_command(
            "train", "CartPole-v1", *FEW, "--eval-freq=64", "--log-interval=1", "--run-dir=run"
        )
        assert all(row["eval/mean_reward"] for row in rows(here / "run"))
        upslope.load(here / "run" / "best_model.safetensors")

    def test_the_command_is_kept(
        self, upslope_command: Command, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        command = ["train", "CartPole-v1", *FEW, "--run-dir=a b"]
        monkeypatch.setattr("sys.argv", ["/usr/bin/upslope", *command])
        upslope_command(*command)
        text = (here / "a b" / "command.txt").read_text()
        assert text == "upslope train CartPole-v1 " + " ".join(FEW) + " '--run-dir=a b'\n"

    def test_a_second_run_lies_beside_the_first(self, upslope_command: Command, here: Path) -> None:
        for _ in range(2):
            upslope_command("train", "CartPole-v1", *FEW, "--run-dir=run", "--quiet")
        assert sorted(os.listdir(here)) == ["run", "run-2"]

    def test_names_are_sanitised(self, upslope_command: Command, here: Path) -> None:
        (here / "my env.py").write_text(
            "import gymnasium as gym\ndef make_env(): return gym.make('CartPole-v1')\n"
        )
        upslope_command("train", "my env.py:make_env", *FEW, "--quiet")
        (run,) = (here / "runs").iterdir()
        assert run.name.startswith("my-env.py-make_env__ppo__s0__")

    def test_a_module_with_an_id(self, upslope_command: Command, here: Path) -> None:
        (here / "gliders_for_a_test.py").write_text(
            "import gymnasium\n"
            "gymnasium.register('Glider-v0', 'gymnasium.envs.classic_control:CartPoleEnv',\n"
            "                   max_episode_steps=20)\n"
        )
        upslope_command(
            "train", "gliders_for_a_test:Glider-v0", "--total-timesteps=10", "--quiet",
            "--episodes=2", "--run-dir=run",
        )  # fmt: skip
        assert settings(here / "run")["n_envs"] == 8
        said = upslope_command("eval", "run", code=2).err
        assert "--env gliders_for_a_test:Glider-v0" in said
        upslope_command("eval", "run", "--env", "gliders_for_a_test:Glider-v0", "--episodes=2")


class TestFlags:
    def test_underscores_are_hyphens(self, upslope_command: Command, here: Path) -> None:
        upslope_command(
            "train", "CartPole-v1", "--n_envs=2", "--n_steps", "32", "--batch_size=32",
            "--n_epochs=1", "--total_timesteps=64", "--run_dir=run", "--gae_lambda=0.5",
            "--no_ortho_init", "--episodes=0", "--env_kwargs", "sutton_barto_reward=true",
        )  # fmt: skip
        made = settings(here / "run")
        assert (made["n_envs"], made["n_steps"], made["gae_lambda"]) == (2, 32, 0.5)
        assert made["ortho_init"] is False
        assert made["env_kwargs"] == {"sutton_barto_reward": True}

    def test_values_are_what_was_typed(self, upslope_command: Command, here: Path) -> None:
        upslope_command(
            "train", "CartPole-v1", *FEW, "--run-dir=run", "--seed=7", "--gamma=.9",
            "--learning-rate=lin_1e-3", "--clip-range-vf=0.3", "--target-kl=none",
            "--net-arch=pi=8,4;vf=16", "--activation-fn=relu", "--norm-obs", "--warmup-steps=0",
            "--no-normalize-advantage", "--device=cpu", "--dtype=float64", "--log-info=a,b",
            "--max-episode-steps=10", "--checkpoints=3", "--log-interval=2",
        )  # fmt: skip
        made = settings(here / "run")
        expected = {
            "seed": 7, "gamma": 0.9, "clip_range_vf": 0.3, "target_kl": None,
            "net_arch": {"pi": [8, 4], "vf": [16]}, "activation_fn": "relu", "norm_obs": True,
            "warmup_steps": 0, "normalize_advantage": False, "device": "cpu", "dtype": "float64",
            "log_info": ["a", "b"], "max_episode_steps": 10, "checkpoints": 3, "log_interval": 2,
        }  # fmt: skip
        assert {name: made[name] for name in expected} == expected
        assert float(made["learning_rate"].removeprefix("lin_")) == 1e-3
        assert float(rows(here / "run")[-1]["rollout/ep_len_mean"]) <= 10
        _, tensors = read_model(here / "run" / "model.safetensors")
        assert tensors["actor_head.weight"].dtype == torch.float64

    def test_kwargs_of_the_environment(self, upslope_command: Command, here: Path) -> None:
        (here / "mine.py").write_text(
            "import gymnasium as gym, json, pathlib\n"
            "def make_env(**given):\n"
            "    pathlib.Path('given.json').write_text(json.dumps(given))\n"
            "    return gym.make('CartPole-v1')\n"
        )
        upslope_command(
            "train", "mine.py:make_env", *FEW, "--episodes=0", "--env-kwargs", "a=1", "b=-2.5",
            "c=word", "d=true", "e=[1,2]", "f=None", "--env-kwargs", "g=x=y",
        )  # fmt: skip
        assert read(here / "given.json") == {
            "a": 1, "b": -2.5, "c": "word", "d": True, "e": [1, 2], "f": None, "g": "x=y",
        }  # fmt: skip

    @pytest.mark.parametrize("baseline", ["none", "mean", "loo", "value"])
    def test_reinforce(self, upslope_command: Command, here: Path, baseline: str) -> None:
        upslope_command(
            "train", "CartPole-v1", "--algo", "reinforce", "--returns=episode", "--baseline",
            baseline, "--batch-episodes=3", "--total-timesteps=100", "--n-envs=2", "--episodes=2",
            "--run-dir=run", "--quiet",
        )  # fmt: skip
        made = settings(here / "run")
        assert (made["returns"], made["baseline"], made["batch_episodes"]) == (
            "episode",
            baseline,
            3,
        )
        assert read_header(here / "run" / "model.safetensors")["algorithm"] == "reinforce"

    def test_negative_numbers(self, upslope_command: Command, here: Path) -> None:
        for value in ("-1500", "-1.5e3", "-2e3"):
            upslope_command(
                "train",
                "Pendulum-v1",
                *FEW,
                "--stop-return",
                value,
                "--log-std-init",
                "-1",
                "--quiet",
            )

    def test_presets(self, upslope_command: Command, here: Path) -> None:
        small = ["--total-timesteps=1", "--episodes=0", "--quiet"]
        upslope_command("train", "Acrobot-v1", *small, "--run-dir=tuned", "--warmup-steps=0")
        upslope_command("train", "Acrobot-v1", *small, "--run-dir=plain", "--preset=none")
        assert settings(here / "plain") == upslope.PPOConfig(frame_stack=1).resolve(8).to_json()
        tuned = upslope.PPO("Acrobot-v1", preset="auto", warmup_steps=0).config
        assert settings(here / "tuned") == json.loads(json.dumps(tuned.to_json()))


class TestSettingsFiles:
    TOML = "gamma = 0.9\nn-envs = 2\nn_steps = 16\nbatch_size = 16\nnet_arch = [8]\n"

    def test_toml_under_flags(self, upslope_command: Command, here: Path) -> None:
        (here / "a.toml").write_text(self.TOML)
        upslope_command("train", "CartPole-v1", "--config=a.toml", "-n", "32", "--gae-lambda=0.5",
                        "--n-steps=8", "--episodes=0", "--run-dir=run")  # fmt: skip
        made = settings(here / "run")
        assert [made[name] for name in ("gamma", "n_envs", "n_steps", "gae_lambda")] == [
            0.9,
            2,
            8,
            0.5,
        ]

    def test_a_file_may_name_the_algorithm(self, upslope_command: Command, here: Path) -> None:
        (here / "a.json").write_text('{"algo": "reinforce", "batch_episodes": 2, "n_envs": 2}')
        upslope_command("train", "CartPole-v1", "--config", "a.json", "-n", "20", "--episodes=0",
                        "--run-dir=run")  # fmt: skip
        assert read(here / "run" / "config.json")["algorithm"] == "reinforce"

    def test_the_config_of_a_run_repeats_it(self, upslope_command: Command, here: Path) -> None:
        common = ["-n", "256", "--episodes=0", "--quiet"]
        upslope_command(
            "train", "CartPole-v1", *TINY, "--seed=3", "--gamma=0.9", *common, "--run-dir=a"
        )
        upslope_command("train", "CartPole-v1", "--config=a/config.json", *common, "--run-dir=b")
        assert settings(here / "a") == settings(here / "b")
        one, two = (read_model(here / run / "model.safetensors")[1] for run in "ab")
        assert all(torch.equal(one[name], two[name]) for name in one)


class TestSeeds:
    @pytest.mark.parametrize("algorithm", CONFIGS)
    def test_decide_every_bit(self, upslope_command: Command, here: Path, algorithm: str) -> None:
        own = {"ppo": TINY, "reinforce": ["--batch-episodes=3", "--n-envs=2"]}.get(
            algorithm, ["--n-steps=32", "--n-envs=2"]
        )
        for run, seed in (("a", 3), ("b", 3), ("c", 4)):
            upslope_command(
                "train", "CartPole-v1", "--algo", algorithm, *own, f"--seed={seed}", "-n", "400",
                "--episodes=4", f"--run-dir={run}", "--quiet", "--eval-freq=100",
            )  # fmt: skip
        tables = {
            run: [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows(here / run)]
            for run in "abc"
        }
        assert tables["a"] == tables["b"] != tables["c"]
        models = {run: read_model(here / run / "model.safetensors")[1] for run in "abc"}
        assert all(torch.equal(models["a"][name], models["b"][name]) for name in models["a"])
        assert not torch.equal(models["a"]["actor_head.weight"], models["c"]["actor_head.weight"])
        scores = {run: read(here / run / "evaluation.json") for run in "abc"}
        assert scores["a"] == scores["b"] != scores["c"]


class TestStopReturn:
    def test_ends_the_run_and_fills_run_json(self, upslope_command: Command, here: Path) -> None:
        out = upslope_command(
            "train", "CartPole-v1", *TINY, "--stop-return=15", "-n", "20000", "--episodes=0",
            "--run-dir=run",
        ).out  # fmt: skip
        state = read(here / "run" / "run.json")
        assert state["state"] == "finished"
        assert state["exit_code"] == 0
        assert state["timesteps"] == state["steps_to_return"] < 20_000
        assert state["return"] >= 15
        assert state["episodes"] >= 100
        assert state["time_to_return"] > 0
        assert "goal     15 reached after" in out

    def test_not_reached(self, upslope_command: Command, here: Path) -> None:
        out = upslope_command(
            "train", "CartPole-v1", *FEW, "--stop-return=400", "--run-dir=run"
        ).out
        state = read(here / "run" / "run.json")
        assert [state[key] for key in ("time_to_return", "steps_to_return", "return")] == [None] * 3
        assert "goal     400 was not reached" in out

    def test_the_seconds_begin_with_the_process(self, upslope_process: Command, here: Path) -> None:
        process = upslope_process(
            "train", "CartPole-v1", *TINY, "--stop-return=10", "-n", "20000", "--episodes=0",
            "--run-dir=run", "--quiet",
        )  # fmt: skip
        process.communicate(timeout=60)
        state = read(here / "run" / "run.json")
        assert 0.3 < state["time_to_return"] < 60
        assert state["time_to_return"] > state["seconds"] - 1
