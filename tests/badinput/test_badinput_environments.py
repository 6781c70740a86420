"""Environments that do not exist, cannot be imported, or are none: nearest id, or remedy."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

import upslope
from upslope.errors import ConfigError, UnknownEnvironmentError

# (what was typed, an id that the message must offer)
TYPOS = [
    ("CartPol-v1", "CartPole-v1"),
    ("Cartpole-v1", "CartPole-v1"),
    ("cartpole-v1", "CartPole-v1"),
    ("CartPole-v2", "CartPole-v1"),
    ("CartPole-v99", "CartPole-v1"),
    ("CartPole", "CartPole-v1"),
    ("CartPolev1", "CartPole-v1"),
    ("Cart-Pole-v1", "CartPole-v1"),
    ("CratPole-v1", "CartPole-v1"),
    ("CartPole-1", "CartPole-v1"),
    ("CartPole-v", "CartPole-v1"),
    ("Acrobat-v1", "Acrobot-v1"),
    ("Acrobot-v2", "Acrobot-v1"),
    ("Pendulum-v0", "Pendulum-v1"),
    ("Pendulm-v1", "Pendulum-v1"),
    ("MountainCar-v1", "MountainCar-v0"),
    ("MountanCarContinuous-v0", "MountainCarContinuous-v0"),
    ("LunarLander-v2", "LunarLander-v3"),
    ("LunaLander-v3", "LunarLander-v3"),
    ("HalfCheeta-v5", "HalfCheetah-v5"),
    ("HalfCheetah-v9", "HalfCheetah-v5"),
    ("Hoper-v5", "Hopper-v5"),
    ("InvertedPendulum-v6", "InvertedPendulum-v5"),
    ("Reacher-v55", "Reacher-v5"),
]


class TestIds:
    def test_the_table_is_long_enough(self) -> None:
        assert len(TYPOS) >= 20
        assert all(offered in gym.registry for _, offered in TYPOS)

    @pytest.mark.parametrize(("typed", "offered"), TYPOS)
    def test_typo(self, refused: Callable[..., str], typed: str, offered: str) -> None:
        said = refused("train", typed)
        assert repr(typed) in said
        assert offered in said
        with pytest.raises(UnknownEnvironmentError, match=offered):
            upslope.PPO(typed)

    def test_a_version_lists_all_versions(self, refused: Callable[..., str]) -> None:
        assert "available: CartPole-v0, CartPole-v1" in refused("train", "CartPole-v7")

    @pytest.mark.parametrize("typed", ["", " ", "xyzzy", "a/b/c", "Ünï-v0", "x" * 500])
    def test_nothing_like_it(self, refused: Callable[..., str], typed: str) -> None:
        assert "upslope envs" in refused("train", typed)

    def test_seconds_from_start_to_end(self, tmp_path: Path) -> None:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", "upslope", "train", "CartPol-v1"],
            capture_output=True, text=True, cwd=tmp_path, check=False,
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert "CartPole-v1" in done.stderr
        # Of the processor, so that other work on the machine does not count.
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
        assert list(tmp_path.iterdir()) == []


class TestModules:
    def test_no_such_module(self, refused: Callable[..., str]) -> None:
        said = refused("train", "no_such_module_here:Env-v0")
        assert "no_such_module_here" in said
        assert "run from its directory" in said

    def test_a_module_without_that_id(self, refused: Callable[..., str], here: Path) -> None:
        (here / "registers_nothing.py").write_text("x = 1\n")
        assert "'Mine-v0'" in refused("train", "registers_nothing:Mine-v0")

    def test_a_module_that_raises(self, refused: Callable[..., str], here: Path) -> None:
        (here / "raises_at_import.py").write_text("raise OSError('no licence')\n")
        said = refused("train", "raises_at_import:Mine-v0")
        assert "OSError: no licence" in said

    def test_an_empty_module(self, refused: Callable[..., str]) -> None:
        refused("train", ":CartPole-v1")

    @pytest.mark.parametrize(
        ("name", "package", "extra"),
        [("ALE/Pong-v5", "ale_py", "atari"), ("MiniGrid-Empty-8x8-v0", "minigrid", "minigrid")],
    )
    def test_a_missing_plugin(
        self,
        refused: Callable[..., str],
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        package: str,
        extra: str,
    ) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        assert f"pip install 'upslope[{extra}]'" in refused("train", name)

    @pytest.mark.parametrize(
        ("name", "package", "extra"),
        [("Hopper-v5", "mujoco", "mujoco"), ("LunarLander-v3", "Box2D", "box2d")],
    )
    def test_a_missing_extra_of_gymnasium(
        self,
        refused: Callable[..., str],
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        package: str,
        extra: str,
    ) -> None:
        for module in [name for name in sys.modules if name.startswith(f"gymnasium.envs.{extra}")]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, package, None)
        assert f"pip install 'upslope[{extra}]'" in refused("train", name, "--vec", "sync")

    def test_missing_envpool(
        self, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "envpool", None)
        said = refused("train", "CartPole-v1", "--vec", "envpool")
        assert "pip install 'upslope[envpool]'" in said
        assert "--vec sync" in said


FILE = """
import gymnasium as gym

number = 5

def make_env():
    return gym.make("CartPole-v1")

def make_none():
    return None

def make_vector():
    return gym.make_vec("CartPole-v1", 2)

def make_fault():
    raise RuntimeError("no hardware")

def needs_argument(track):
    return gym.make("CartPole-v1")
"""


class TestFiles:
    @pytest.fixture(autouse=True)
    def file(self, here: Path) -> None:
        (here / "mine.py").write_text(FILE)

    def test_no_such_file(self, refused: Callable[..., str]) -> None:
        assert "'yours.py'" in refused("train", "yours.py:make_env")
        assert "'folder/mine.py'" in refused("train", "folder/mine.py:make_env")

    def test_a_file_without_that_factory(self, refused: Callable[..., str]) -> None:
        said = refused("train", "mine.py:make_envs")
        assert "'make_envs'" in said
        assert "make_env, make_none" in said

    def test_a_name_that_is_no_factory(self, refused: Callable[..., str]) -> None:
        assert "'number'" in refused("train", "mine.py:number")
        assert "factory" in refused("train", "mine.py:")

    def test_a_file_without_any_factory_named(self, refused: Callable[..., str]) -> None:
        assert "my_env.py:make_env" in refused("train", "mine.py")

    @pytest.mark.parametrize("vec", ["sync", "async"])
    @pytest.mark.parametrize("what", ["make_none", "make_vector"])
    def test_a_factory_of_something_else(
        self, refused: Callable[..., str], what: str, vec: str
    ) -> None:
        said = refused("train", f"mine.py:{what}", "--vec", vec)
        assert what in said
        assert "not a gymnasium.Env" in said

    @pytest.mark.parametrize("vec", ["sync", "async"])
    def test_a_factory_that_raises(self, refused: Callable[..., str], vec: str) -> None:
        said = refused("train", "mine.py:make_fault", "--vec", vec)
        assert "make_fault" in said
        assert "RuntimeError: no hardware" in said

    def test_a_factory_that_needs_an_argument(self, refused: Callable[..., str]) -> None:
        assert "track" in refused("train", "mine.py:needs_argument")

    def test_arguments_that_a_factory_does_not_take(self, refused: Callable[..., str]) -> None:
        assert "gravity" in refused("train", "mine.py:make_env", "--env-kwargs", "gravity=1")

    @pytest.mark.parametrize("vec", ["native", "envpool"])
    def test_engines_that_need_an_id(self, refused: Callable[..., str], vec: str) -> None:
        assert "--vec sync" in refused("train", "mine.py:make_env", "--vec", vec)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("x = \n", "SyntaxError"),
            ("raise KeyError('speed')\n", "KeyError"),
            ("import no_such_package\n", "no_such_package"),
            ("import sys\nsys.exit()\n", "SystemExit"),
            ("import sys\nsys.exit('usage: mine.py TRACK')\n", "SystemExit"),
        ],
    )
    def test_a_file_that_cannot_be_run(
        self, refused: Callable[..., str], here: Path, text: str, says: str
    ) -> None:
        (here / "broken.py").write_text(text)
        said = refused("train", "broken.py:make_env")
        assert "broken.py" in said
        assert says in said

    def test_a_file_that_is_not_text(self, refused: Callable[..., str], here: Path) -> None:
        (here / "binary.py").write_bytes(b"\x00\xff\xfe")
        assert "binary.py" in refused("train", "binary.py:make_env")


class TestArguments:
    def test_of_the_constructor(self, refused: Callable[..., str]) -> None:
        for vec in ("sync", "native", "async"):
            said = refused("train", "CartPole-v1", "--vec", vec, "--env-kwargs", "wheels=4")
            assert "wheels" in said
            assert "--env-kwargs" in said

    @pytest.mark.parametrize("pair", ["wheels", "=4", "4=wheels", "a b=1"])
    def test_that_are_no_pairs(self, refused: Callable[..., str], pair: str) -> None:
        assert "NAME=VALUE" in refused("train", "CartPole-v1", "--env-kwargs", pair)

    def test_no_native_version(self, refused: Callable[..., str]) -> None:
        assert "--vec sync" in refused("train", "Acrobot-v1", "--vec", "native")

    def test_no_environment(self, refused: Callable[..., str]) -> None:
        assert "ENV" in refused("train")
        assert "RUN" in refused("eval")

    @pytest.mark.parametrize("thing", [5, None, [1], b"CartPole-v1"], ids=str)
    def test_from_python(self, thing: Any) -> None:
        with pytest.raises(ConfigError, match=r"an id, a"):
            upslope.PPO(thing)

    def test_a_made_environment_has_its_number(self) -> None:
        with pytest.raises(ConfigError, match=r"n_envs=3 .* 1 environment"):
            upslope.PPO(gym.make("CartPole-v1"), n_envs=3)
        vector = gym.make_vec("CartPole-v1", 2, vectorization_mode="sync")
        with pytest.raises(ConfigError, match=r"n_envs=3 .* 2 environment"):
            upslope.PPO(vector, n_envs=3)
        with pytest.raises(ConfigError, match=r"vec=async .*already made"):
            upslope.PPO(vector, vec="async")
        with pytest.raises(ConfigError, match="cannot be applied to a VectorEnv"):
            upslope.PPO(vector, max_episode_steps=5)


class TestModels:
    """The files of eval and play."""

    @pytest.mark.parametrize("command", ["eval", "play"])
    def test_no_such_run(self, refused: Callable[..., str], here: Path, command: str) -> None:
        assert "nowhere" in refused(command, "nowhere")
        (here / "folder").mkdir()
        assert "model.safetensors" in refused(command, "folder")

    def test_a_file_of_something_else(self, refused: Callable[..., str], here: Path) -> None:
        (here / "notes.txt").write_text("hello")
        assert "notes.txt" in refused("eval", "notes.txt", code=5)

    def test_a_sound_file_without_a_policy(self, refused: Callable[..., str], here: Path) -> None:
        from upslope.runs.model_file import write_model

        write_model(here / "empty.safetensors", {"algorithm": "ppo"}, {})
        assert "empty.safetensors" in refused("eval", "empty.safetensors", code=5)

    def test_another_environment(self, refused: Callable[..., str], here: Path) -> None:
        upslope.PPO("CartPole-v1", n_envs=1, n_steps=8, batch_size=8).save("m.safetensors")
        said = refused("eval", "m.safetensors", "--env", "Acrobot-v1", code=5)
        assert "(4,)" in said
        assert "(6,)" in said
        refused("eval", "m.safetensors", "--episodes", "0")
        refused("eval", "m.safetensors", "--seed", "-1")
        refused("play", "m.safetensors", "--video", "film.avi")

    def test_play_needs_render_mode(self, refused: Callable[..., str], here: Path) -> None:
        (here / "plain.py").write_text(FILE)
        upslope.PPO("CartPole-v1", n_envs=1, n_steps=8, batch_size=8).save("m.safetensors")
        said = refused("play", "m.safetensors", "--env", "plain.py:make_env", "--video", "film.mp4")
        assert "render_mode" in said

    def test_an_environment_of_the_users_own(self, refused: Callable[..., str], here: Path) -> None:
        (here / "mine.py").write_text(FILE)
        upslope.PPO("mine.py:make_env", n_envs=1, n_steps=8, batch_size=8).save("m.safetensors")
        assert "--env mine.py:make_env" in refused("eval", "m.safetensors")

    def test_envs_finds_nothing(self, refused: Callable[..., str]) -> None:
        assert "'xyzzy'" in refused("envs", "xyzzy")
