"""Places a run cannot be written to: refused before the first step, in one sentence."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import upslope
from upslope.cli.main import main
from upslope.errors import ConfigError, ModelFileError
from upslope.runs.description import default_path, file_name

TINY = ("--n-envs=1", "--n-steps=8", "--batch-size=8", "--n-epochs=1", "--total-timesteps=8")
TINY_SETTINGS = {"n_envs": 1, "n_steps": 8, "batch_size": 8, "n_epochs": 1}


class TestRunDirectory:
    def test_is_a_file(self, refused: Callable[..., str], here: Path) -> None:
        (here / "taken").write_text("precious")
        assert "taken" in refused("train", "CartPole-v1", "--run-dir", "taken")
        assert "taken" in refused("train", "CartPole-v1", "--run-dir", "taken/below")
        assert (here / "taken").read_text() == "precious"

    def test_is_not_empty(self, refused: Callable[..., str], here: Path) -> None:
        (here / "full").mkdir()
        (here / "full" / "notes.txt").write_text("precious")
        said = refused("train", "CartPole-v1", "--run-dir", "full")
        assert "not empty" in said
        assert "--run-dir" in said
        assert os.listdir(here / "full") == ["notes.txt"]

    @pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
    def test_is_where_nobody_can_write(self, refused: Callable[..., str]) -> None:
        assert "/proc/upslope" in refused("train", "CartPole-v1", "--run-dir", "/proc/upslope")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_is_in_a_folder_without_permission(
        self, refused: Callable[..., str], here: Path
    ) -> None:
        (here / "locked").mkdir(mode=0o500)
        assert "locked" in refused("train", "CartPole-v1", "--run-dir", "locked/run")

    @pytest.mark.parametrize("length", [256, 300, 5000])
    def test_has_a_very_long_name(
        self, refused: Callable[..., str], here: Path, length: int
    ) -> None:
        said = refused("train", "CartPole-v1", "--run-dir", "x" * length)
        assert "File name too long" in said
        assert len(said) < 1000
        assert os.listdir(here) == []

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
    def test_is_a_device(self, refused: Callable[..., str]) -> None:
        refused("train", "CartPole-v1", "--run-dir", "/dev/full")

    @pytest.mark.parametrize("name", ["wéird nämé", "a b*c?d<e>|f", "ключ", "$HOME;ls", "-"])
    def test_weird_characters_that_the_system_takes(self, here: Path, name: str) -> None:
        assert (
            main(["train", "CartPole-v1", f"--run-dir={name}", "--episodes=0", "--quiet", *TINY])
            == 0
        )
        assert (here / name / "model.safetensors").exists()

    def test_from_python(self, here: Path) -> None:
        for bad in ("x" * 300, "/proc/upslope/run", "a\0b"):
            agent = upslope.PPO("CartPole-v1", run_dir=bad, **TINY_SETTINGS)
            with pytest.raises(ConfigError, match="run directory"):
                agent.learn(8)
            assert agent.num_timesteps == 0
        with pytest.raises(ConfigError, match="run_dir"):
            upslope.PPO("CartPole-v1", run_dir=5, **TINY_SETTINGS)  # type: ignore[arg-type]


class TestNames:
    @pytest.mark.parametrize(
        "name",
        ["ALE/Pong-v5", "my_env.py:make_env", "/etc/passwd", "../../up", "a\\b", "naïve", "a\nb",
         "CON:", "<lambda>", "***", "", "x" * 500],
    )  # fmt: skip
    def test_are_one_harmless_component(self, name: str) -> None:
        safe = file_name(name)
        assert 1 <= len(safe) <= 100
        assert not set(safe) - set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
        )
        assert not safe.startswith((".", "-"))
        path = default_path(name, "ppo", 3)
        assert path.parent == Path("runs")
        assert path.name.startswith(f"{safe}__ppo__s3__")

    def test_ordinary_ids_stay_readable(self) -> None:
        assert file_name("CartPole-v1") == "CartPole-v1"
        assert file_name("ALE/Pong-v5") == "ALE-Pong-v5"
        assert file_name("my_env.py:make_env") == "my_env.py-make_env"


class TestModelFiles:
    def test_cannot_be_saved(self, here: Path) -> None:
        agent = upslope.PPO("CartPole-v1", **TINY_SETTINGS)
        (here / "taken").write_text("precious")
        for bad in (here, here / "taken" / "m.safetensors", here / ("x" * 300)):
            with pytest.raises(ModelFileError):
                agent.save(bad)
        assert (here / "taken").read_text() == "precious"

    def test_a_video_cannot_be_written(
        self, refused: Callable[..., str], here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
        (here / "taken").write_text("precious")
        upslope.PPO("CartPole-v1", **TINY_SETTINGS).save("m.safetensors")
        said = refused("play", "m.safetensors", "--video", "taken/film.mp4", "--episodes", "1")
        assert "taken/film.mp4" in said
