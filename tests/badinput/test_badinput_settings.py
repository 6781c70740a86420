"""Settings that do not exist, have the wrong type, or are out of range: all refused, and how."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import upslope
from upslope.cli.main import COMMANDS
from upslope.config import CONFIGS, Config
from upslope.errors import ConfigError

NAN, INF = float("nan"), float("inf")
FIELDS = {
    algorithm: [declared.name for declared in dataclasses.fields(config)]
    for algorithm, config in CONFIGS.items()
}
AGENTS = {algorithm: getattr(upslope, algorithm.upper()) for algorithm in CONFIGS}


def with_one_letter_removed(names: list[str]) -> list[tuple[str, str]]:
    """(typo, name) for every letter of every name, but typos that are names themselves."""
    typos = {(name[:i] + name[i + 1 :], name) for name in names for i in range(len(name))}
    return sorted((typo, name) for typo, name in typos if typo not in names)


class TestNames:
    @pytest.mark.parametrize("algorithm", CONFIGS)
    def test_every_name_with_one_letter_removed(self, algorithm: str) -> None:
        typos = with_one_letter_removed(FIELDS[algorithm])
        assert len(typos) > 250
        for typo, name in typos:
            with pytest.raises(ConfigError) as caught:
                AGENTS[algorithm]("CartPole-v1", **{typo: 1})
            assert repr(typo) in str(caught.value)
            assert f"did you mean {name!r}?" in str(caught.value)

    @pytest.mark.parametrize("algorithm", CONFIGS)
    def test_every_flag_with_one_letter_removed(
        self, refused: Callable[..., str], algorithm: str
    ) -> None:
        names = [name for name in FIELDS[algorithm] if name != "preset"]
        for typo, name in with_one_letter_removed(names):
            if typo.startswith("_") or typo.endswith("_") or "__" in typo:
                continue  # spelled with hyphens, these read as other flags
            flag = "--" + name.replace("_", "-")
            said = refused("train", "CartPole-v1", "--algo", algorithm, f"--{typo}", "1")
            assert f"did you mean '{flag}'?" in said

    def test_flags_of_the_command_itself(self, refused: Callable[..., str]) -> None:
        for flag in ("--total-timesteps", "--run-dir", "--stop-return", "--episodes", "--config"):
            for i in range(3, len(flag)):
                if flag[i] == "-":
                    continue
                said = refused("train", "CartPole-v1", flag[:i] + flag[i + 1 :], "1")
                assert f"did you mean '{flag}'?" in said

    def test_names_in_a_settings_file(self, refused: Callable[..., str], here: Path) -> None:
        (here / "a.toml").write_text("gama = 0.9\n")
        said = refused("train", "CartPole-v1", "--config", "a.toml")
        assert "did you mean 'gamma'?" in said
        (here / "b.json").write_text('{"learning_rat": 1}')
        said = refused("train", "CartPole-v1", "--config", "b.json")
        assert "did you mean 'learning_rate'?" in said

    def test_a_setting_of_the_other_algorithm(self, refused: Callable[..., str]) -> None:
        refused("train", "CartPole-v1", "--algo", "reinforce", "--clip-range", "0.2")
        with pytest.raises(ConfigError, match="'clip_range'"):
            upslope.REINFORCE("CartPole-v1", clip_range=0.2)
        with pytest.raises(ConfigError, match="'batch_episodes'"):
            upslope.PPO("CartPole-v1", batch_episodes=4)

    @pytest.mark.parametrize("name", ["ppp", "reinforc", "PPO", "", "dqn"])
    def test_algorithms(self, refused: Callable[..., str], name: str) -> None:
        assert "reinforce, vpg, a2c, npg, trpo, ppo" in refused(
            "train", "CartPole-v1", "--algo", name
        )

    def test_commands(self, refused: Callable[..., str]) -> None:
        assert "did you mean 'train'?" in refused("trian", "CartPole-v1")
        assert "the commands are " + ", ".join(COMMANDS) in refused("xyzzy")


class TestTypes:
    @pytest.mark.parametrize(
        ("algorithm", "name"),
        [(algorithm, name) for algorithm, names in FIELDS.items() for name in names],
    )
    def test_foreign_things_are_refused_by_name(self, algorithm: str, name: str) -> None:
        foreign = [object(), b"1", 1j, np.zeros(3), {1: 2}, [object()], NAN, INF, -INF]
        foreign += (
            [] if CONFIGS[algorithm].__dataclass_fields__[name].metadata["optional"] else [None]
        )
        for value in foreign:
            with pytest.raises(ConfigError, match=rf"^{name}="):
                CONFIGS[algorithm].from_settings({name: value})

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("gamma", "0.9x"),
            ("gamma", True),
            ("gamma", np.bool_(True)),
            ("gamma", "0.9"),
            ("gamma", [0.9]),
            ("n_steps", "64"),
            ("n_steps", 64.5),
            ("n_steps", True),
            ("norm_obs", 1),
            ("norm_obs", "yes"),
            ("norm_obs", None),
            ("vec", 3),
            ("vec", ["sync"]),
            ("device", 0),
            ("env_kwargs", [("a", 1)]),
            ("env_kwargs", "a=1"),
            ("env_kwargs", {3: 1}),
            ("net_arch", 64),
            ("net_arch", [64, "wide"]),
            ("net_arch", [64.0]),
            ("net_arch", [[64]]),
            ("net_arch", [{"pi": [64]}]),
            ("net_arch", {"pi": [64]}),
            ("net_arch", "pi=64"),
            ("net_arch", "pi=64;vf"),
            ("log_info", 5),
            ("log_info", [5]),
            ("learning_rate", [1e-3]),
            ("learning_rate", "cos_1e-3"),
            ("learning_rate", "lin_"),
            ("learning_rate", "lin_lin_1"),
            ("learning_rate", None),
        ],
    )
    def test_wrong_types(self, name: str, value: Any) -> None:
        with pytest.raises(ConfigError, match=rf"^{name}=.* is not "):
            upslope.PPO("CartPole-v1", **{name: value})


# (algorithm, name, value, what the message says of the range)
OUT_OF_RANGE: list[tuple[str, str, Any, str]] = [
    ("ppo", "seed", -1, ">= 0"),
    ("ppo", "seed", 2**31, "<= 2"),
    ("ppo", "seed", 1.5, "whole number"),
    ("ppo", "n_envs", 0, ">= 1"),
    ("ppo", "n_envs", -4, ">= 1"),
    ("ppo", "n_envs", 1e9, "<= 65536"),
    ("ppo", "n_envs", 2.5, "whole number"),
    ("ppo", "vec", "threads", "auto, envpool, native, sync, async"),
    ("ppo", "max_episode_steps", 0, ">= 1"),
    ("ppo", "max_episode_steps", -1, ">= 1"),
    ("ppo", "gamma", 1.5, ">= 0 and <= 1"),
    ("ppo", "gamma", -0.1, ">= 0 and <= 1"),
    ("ppo", "gamma", NAN, "finite"),
    ("ppo", "gamma", INF, "finite"),
    ("ppo", "learning_rate", 0, "> 0"),
    ("ppo", "learning_rate", -1e-3, "> 0"),
    ("ppo", "learning_rate", NAN, "number"),
    ("ppo", "learning_rate", INF, "number"),
    ("ppo", "learning_rate", "lin_-1", "> 0"),
    ("ppo", "learning_rate", "lin_nan", "lin_X"),
    ("ppo", "learning_rate", "lin_inf", "lin_X"),
    ("ppo", "ent_coef", -0.01, ">= 0"),
    ("ppo", "ent_coef", NAN, "finite"),
    ("ppo", "max_grad_norm", 0, "> 0"),
    ("ppo", "max_grad_norm", -0.5, "> 0"),
    ("ppo", "clip_obs", 0, "> 0"),
    ("ppo", "clip_obs", -1, "> 0"),
    ("ppo", "clip_reward", 0, "> 0"),
    ("ppo", "clip_reward", INF, "finite"),
    ("ppo", "warmup_steps", -1, ">= 0"),
    ("ppo", "net_arch", [0], "1..65536"),
    ("ppo", "net_arch", [64, -64], "1..65536"),
    ("ppo", "net_arch", "64,0", "1..65536"),
    ("ppo", "net_arch", [70000], "1..65536"),
    ("ppo", "activation_fn", "sigmoid", "tanh, relu, elu, gelu, silu"),
    ("ppo", "action_dist", "cauchy", "gaussian"),
    ("ppo", "log_std_init", 3, ">= -10 and <= 2"),
    ("ppo", "log_std_init", -11, ">= -10 and <= 2"),
    ("ppo", "dtype", "float16", "float32, float64"),
    ("ppo", "device", "gpu", "auto, cpu, cuda, cuda:N, mps"),
    ("ppo", "device", "cuda:", "auto, cpu, cuda, cuda:N, mps"),
    ("ppo", "device", "cuda:x", "auto, cpu, cuda, cuda:N, mps"),
    ("ppo", "compile", "maybe", "auto, always, never"),
    ("ppo", "checkpoints", 0, ">= 1"),
    ("ppo", "log_interval", 0, ">= 1"),
    ("ppo", "preset", "best", "auto, none"),
    ("ppo", "n_steps", 0, ">= 1"),
    ("ppo", "n_steps", -128, ">= 1"),
    ("ppo", "batch_size", 0, ">= 1"),
    ("ppo", "batch_size", 1, "at least 2"),
    ("ppo", "batch_size", 4096, "1..2048"),
    ("ppo", "n_epochs", 0, ">= 1"),
    ("ppo", "n_epochs", -1, ">= 1"),
    ("ppo", "n_epochs", 1e9, "<= 10000"),
    ("ppo", "gae_lambda", 1.01, ">= 0 and <= 1"),
    ("ppo", "gae_lambda", -0.01, ">= 0 and <= 1"),
    ("ppo", "clip_range", -0.2, "> 0"),
    ("ppo", "clip_range", 0, "> 0"),
    ("ppo", "clip_range", "lin_0", "> 0"),
    ("ppo", "clip_range_vf", 0, "> 0"),
    ("ppo", "clip_range_vf", -1, "> 0"),
    ("ppo", "vf_coef", -0.5, ">= 0"),
    ("ppo", "target_kl", 0, "> 0"),
    ("ppo", "target_kl", -0.01, "> 0"),
    ("ppo", "normalize_advantage_over", "epoch", "minibatch, batch"),
    ("reinforce", "gamma", 1.0001, ">= 0 and <= 1"),
    ("reinforce", "learning_rate", 0, "> 0"),
    ("reinforce", "batch_episodes", 0, ">= 1"),
    ("reinforce", "batch_episodes", 1, "at least 2"),
    ("reinforce", "batch_episodes", -3, ">= 1"),
    ("reinforce", "returns", "togo", "episode, to-go"),
    ("reinforce", "baseline", "median", "none, mean, loo, value"),
    ("reinforce", "critic_learning_rate", -1, "> 0"),
    ("reinforce", "n_critic_updates", 0, ">= 1"),
    ("vpg", "gae_lambda", 1.5, ">= 0 and <= 1"),
    ("vpg", "critic_learning_rate", 0, "> 0"),
    ("vpg", "n_critic_updates", 0, ">= 1"),
    ("vpg", "batch_size", 0, ">= 1"),
    ("vpg", "n_steps", 0, ">= 1"),
    ("a2c", "n_steps", 0, ">= 1"),
    ("a2c", "vf_coef", -1, ">= 0"),
    ("a2c", "rms_prop_eps", 0, "> 0"),
    ("a2c", "rms_prop_eps", NAN, "finite"),
    ("npg", "target_kl", 0, "> 0"),
    ("npg", "target_kl", INF, "finite"),
    ("npg", "cg_max_steps", 0, ">= 1"),
    ("npg", "cg_damping", -0.1, ">= 0"),
    ("npg", "line_search_shrinking_factor", 1, "<= 0.999"),
    ("npg", "line_search_max_iter", 0, ">= 1"),
    ("trpo", "target_kl", -0.01, "> 0"),
    ("trpo", "cg_max_steps", 2.5, "whole number"),
    ("trpo", "cg_damping", NAN, "finite"),
    ("trpo", "line_search_shrinking_factor", 0, "> 0"),
    ("trpo", "line_search_max_iter", -1, ">= 1"),
    ("trpo", "learning_rate", "lin_0", "> 0"),
]
FLAGS = [
    row for row in OUT_OF_RANGE if isinstance(row[2], (int, float, str)) and row[1] != "preset"
]


class TestRanges:
    def test_the_table_is_long_enough(self) -> None:
        assert len(OUT_OF_RANGE) >= 60
        assert {algorithm for algorithm, *_ in OUT_OF_RANGE} == set(CONFIGS)

    @pytest.mark.parametrize(("algorithm", "name", "value", "says"), OUT_OF_RANGE)
    def test_keyword(self, algorithm: str, name: str, value: Any, says: str) -> None:
        with pytest.raises(ConfigError) as caught:
            AGENTS[algorithm]("CartPole-v1", **{name: value})
        assert name in str(caught.value)
        assert says in str(caught.value)
        assert caught.value.exit_code == 2

    @pytest.mark.parametrize(("algorithm", "name", "value", "says"), FLAGS)
    def test_flag(
        self, refused: Callable[..., str], algorithm: str, name: str, value: Any, says: str
    ) -> None:
        flag = f"--{name.replace('_', '-')}={value}"
        plain = ("--preset", "none", "--total-timesteps=1")
        said = refused("train", "CartPole-v1", "--algo", algorithm, flag, *plain)
        assert says in said
        assert name in said

    @pytest.mark.parametrize(
        ("flag", "value", "says"),
        [
            ("--gamma", "-0.1", ">= 0 and <= 1"),
            ("--learning-rate", "-1e-3", "> 0"),
            ("--gamma", "-inf", "finite"),
            ("--total-timesteps", "0", ">= 1"),
            ("--total-timesteps", "1.5", ">= 1"),
            ("--total-timesteps", "nan", ">= 1"),
            ("--total-timesteps", "inf", ">= 1"),
            ("--total-timesteps", "-5", ">= 1"),
            ("--episodes", "-1", ">= 0"),
            ("--stop-return", "nan", "finite"),
            ("--stop-return", "high", "finite"),
            ("--eval-freq", "0", ">= 1"),
        ],
    )
    def test_a_value_behind_its_flag(
        self, refused: Callable[..., str], flag: str, value: str, says: str
    ) -> None:
        said = refused("train", "CartPole-v1", flag, value)
        assert says in said
        assert flag.strip("-").replace("-", "_") in said.replace("-", "_")

    @pytest.mark.parametrize(
        "row",
        [
            pytest.param(
                row, marks=[] if i % 4 == 0 else [pytest.mark.slow], id=f"{row[1]}={row[2]}"
            )
            for i, row in enumerate(FLAGS[:: len(FLAGS) // 10][:10])
        ],
    )
    def test_the_real_command_line(self, tmp_path: Path, row: tuple[str, str, Any, str]) -> None:
        algorithm, name, value, says = row
        flag = f"--{name.replace('_', '-')}={value}"
        command = [
            sys.executable,
            "-m",
            "upslope",
            "train",
            "CartPole-v1",
            "--algo",
            algorithm,
            flag,
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert says in done.stderr
        assert list(tmp_path.iterdir()) == []


class TestSettingsFiles:
    @pytest.mark.parametrize(
        ("name", "text", "says"),
        [
            ("a.toml", "gamma = 1.5\n", ">= 0 and <= 1"),
            ("a.toml", "gamma = '0.9'\n", "gamma="),
            ("a.toml", "n_steps = inf\n", "n_steps=inf"),
            ("a.toml", "n_steps = nan\n", "n_steps=nan"),
            ("a.json", '{"n_steps": Infinity}', "n_steps=inf"),
            ("a.json", '{"n_steps": 1e999}', "n_steps=inf"),
            ("a.json", '{"gamma": null}', "gamma=None"),
            ("a.json", "[1]", "table of settings"),
            ("a.json", '"gamma"', "table of settings"),
            ("a.json", '{"gamma": 0.9', "cannot be read"),
            ("a.json", "", "cannot be read"),
            ("a.toml", "gamma = \n", "cannot be read"),
            ("a.toml", 'algo = "dqn"\n', "reinforce, vpg, a2c, npg, trpo, ppo"),
            ("a.toml", 'algo = ["ppo"]\n', "algo"),
            ("a.yaml", "gamma: 0.9\n", ".toml or .json"),
            ("a", "gamma: 0.9\n", ".toml or .json"),
        ],
    )
    def test_contents(
        self, refused: Callable[..., str], here: Path, name: str, text: str, says: str
    ) -> None:
        (here / name).write_text(text)
        assert says in refused("train", "CartPole-v1", "--config", name)

    def test_bytes_that_are_no_text(self, refused: Callable[..., str], here: Path) -> None:
        (here / "a.json").write_bytes(b"\xff\xfe\x00")
        assert "a.json" in refused("train", "CartPole-v1", "--config", "a.json")

    def test_no_such_file(self, refused: Callable[..., str], here: Path) -> None:
        assert "nowhere.toml" in refused("train", "CartPole-v1", "--config", "nowhere.toml")
        (here / "folder.toml").mkdir()
        assert "folder.toml" in refused("train", "CartPole-v1", "--config", "folder.toml")


class TestErrors:
    def test_a_traceback_only_with_debug(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "upslope", "train", "CartPole-v1", "--gama", "1"]
        plain, debug = (
            subprocess.run(
                [*command, *more], capture_output=True, text=True, cwd=tmp_path, check=False
            )
            for more in ([], ["--debug"])
        )
        assert "Traceback" not in plain.stderr
        assert "Traceback" in debug.stderr
        assert "did you mean '--gamma'?" in debug.stderr
        assert plain.returncode == debug.returncode == 2

    def test_each_is_a_value_error_too(self) -> None:
        with pytest.raises(ValueError, match="gamma"):
            upslope.PPO("CartPole-v1", gamma=2)

    @pytest.mark.parametrize(
        "steps", [0, -1, 1.5, NAN, INF, "many", "100", None, True, [100]], ids=str
    )
    def test_total_timesteps(self, steps: Any) -> None:
        agent = upslope.PPO("CartPole-v1", n_envs=1, n_steps=8, batch_size=8)
        with pytest.raises(ConfigError, match=r"total_timesteps=.*whole number >= 1"):
            agent.learn(steps)
        assert agent.num_timesteps == 0

    @pytest.mark.parametrize("episodes", [0, -1, 2.5, "ten", None], ids=str)
    def test_n_episodes(self, episodes: Any) -> None:
        agent = upslope.PPO("CartPole-v1", n_envs=1, n_steps=8, batch_size=8)
        with pytest.raises(ConfigError, match="n_episodes"):
            agent.evaluate(episodes)

    @pytest.mark.parametrize("seed", [-1, 1.5, "a"], ids=str)
    def test_evaluation_seed(self, seed: Any) -> None:
        agent = upslope.PPO("CartPole-v1", n_envs=1, n_steps=8, batch_size=8)
        with pytest.raises(ConfigError, match="seed"):
            agent.evaluate(2, seed=seed)

    def test_callback(self) -> None:
        agent = upslope.PPO("CartPole-v1", n_envs=1, n_steps=8, batch_size=8)
        with pytest.raises(ConfigError, match="callback"):
            agent.learn(8, callback=5)  # type: ignore[arg-type]
        assert agent.num_timesteps == 0

    @pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
    def test_a_schedule_that_cannot_be_called(self, config: type[Config]) -> None:
        agent = AGENTS[config.algorithm]("CartPole-v1", n_envs=1, learning_rate=lambda: 1e-3)
        with pytest.raises(ConfigError, match="schedule"):
            agent.learn(1)

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [({"vec": "bogus"}, "vec"), ({"n_envs": 0}, "n_envs"), ({"n_envs": -1}, "n_envs")],
        ids=str,
    )
    def test_make_vec_env(self, arguments: dict[str, Any], says: str) -> None:
        with pytest.raises(ConfigError, match=says):
            upslope.make_vec_env("CartPole-v1", **arguments)
