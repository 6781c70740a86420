"""``upslope eval`` and ``upslope play`` on what a run left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import upslope
from upslope.cli.main import main

Command = Callable[..., Any]
SMALL = {"n_envs": 2, "n_steps": 32, "batch_size": 32, "n_epochs": 1, "net_arch": (8,)}
KEYS = {"mean", "ci95", "std", "iqm", "min", "failure_share", "success_rate", "episodes"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the command line."""
    path = tmp_path_factory.mktemp("finished") / "run"
    small = ["--n-envs=2", "--n-steps=32", "--batch-size=32", "--net-arch=8", "-n", "128"]
    assert (
        main(["train", "CartPole-v1", *small, "--episodes=5", "--quiet", f"--run-dir={path}"]) == 0
    )
    return path


def objects(out: str) -> Any:
    """The one JSON object that is all of ``out``."""
    return json.loads(out, parse_constant=pytest.fail)


class TestEval:
    def test_a_run_and_a_model_file(self, upslope_command: Command, run: Path) -> None:
        for what in (run, run / "model.safetensors"):
            done = upslope_command("eval", what, "--episodes=4", "--seed=1")
            assert done.err == ""
            lines = done.out.splitlines()
            assert [line.split()[0] for line in lines] == ["sampled", "mode", "model"]
            assert "4 fresh episodes" in lines[0]

    def test_json_is_one_object_and_nothing_else(self, upslope_command: Command, run: Path) -> None:
        done = upslope_command("eval", run, "--episodes=4", "--seed=1", "--json")
        assert done.err == ""
        score = objects(done.out)
        for way in ("sampled", "deterministic"):
            assert score[way].keys() >= KEYS
            assert score[way]["episodes"] == 4
        expected = upslope.load(run / "model.safetensors").evaluate(4, seed=1)
        assert score["sampled"]["mean"] == expected.sampled.mean
        assert score["deterministic"]["ci95"] == list(expected.deterministic.ci95)
        assert upslope_command("eval", run, "--episodes=4", "--seed=1", "--json").out == done.out

    def test_json_is_the_object_of_evaluation_json(
        self, upslope_command: Command, run: Path
    ) -> None:
        written = objects((run / "evaluation.json").read_text())
        printed = objects(upslope_command("eval", run, "--episodes=5", "--json").out)
        assert printed == written

    def test_one_episode(self, upslope_command: Command, run: Path) -> None:
        assert (
            objects(upslope_command("eval", run, "--episodes=1", "--json").out)["sampled"]["ci95"]
            is None
        )
        assert "one episode" in upslope_command("eval", run, "--episodes=1").out

    def test_an_environment_of_the_users_own(self, upslope_command: Command, here: Path) -> None:
        (here / "mine.py").write_text(
            "import gymnasium as gym\n"
            "def make_env(**more): return gym.make('CartPole-v1', **more)\n"
        )
        upslope.PPO("mine.py:make_env", **SMALL).save("m.safetensors")
        said = upslope_command("eval", "m.safetensors", code=2).err
        assert "--env mine.py:make_env" in said
        upslope_command("eval", "m.safetensors", "--env", "mine.py:make_env", "--episodes=2")

    def test_a_made_environment_is_asked_for_by_its_id(
        self, upslope_command: Command, here: Path
    ) -> None:
        import gymnasium as gym

        upslope.PPO(gym.make("CartPole-v1"), n_steps=32, batch_size=32).save("m.safetensors")
        said = upslope_command("eval", "m.safetensors", code=2).err
        assert "--env CartPole-v1" in said
        upslope_command("eval", "m.safetensors", "--env", "CartPole-v1", "--episodes=2")

    def test_a_model_with_features_of_the_users_own(
        self, upslope_command: Command, here: Path
    ) -> None:
        from torch import nn

        upslope.PPO("CartPole-v1", policy=lambda space: nn.Linear(4, 3), **SMALL).save(
            "m.safetensors"
        )
        said = upslope_command("eval", "m.safetensors", code=2).err
        assert "policy=" in said
        assert said.count("\n") == 1


class TestPlay:
    @pytest.fixture(autouse=True)
    def no_window(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("pygame")
        monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")

    def test_films(self, upslope_command: Command, here: Path, run: Path) -> None:
        ffmpeg = pytest.importorskip("imageio_ffmpeg")
        done = upslope_command("play", run, "--episodes=2", "--video=videos/film.mp4")
        lines = done.out.splitlines()
        assert [line.split(":")[0] for line in lines] == [
            "episode 1",
            "episode 2",
            "video    videos/film.mp4",
        ]
        steps = sum(int(line.split(" in ")[1].split()[0]) for line in lines[:2])
        frames, seconds = ffmpeg.count_frames_and_secs("videos/film.mp4")
        assert frames == steps + 2  # one before each first step
        assert seconds == pytest.approx(frames / 50, abs=0.1)

    def test_the_same_seed_plays_the_same(self, upslope_command: Command, run: Path) -> None:
        for more in ([], ["--sampled"]):
            played = [
                upslope_command("play", run, "--episodes=1", "--seed=5", *more).out
                for _ in range(2)
            ]
            assert played[0] == played[1]
            assert played[0].startswith("episode 1: return ")

    def test_without_a_display(
        self, upslope_command: Command, run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import pygame

        pygame.quit()
        for name in ("DISPLAY", "WAYLAND_DISPLAY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("SDL_VIDEODRIVER", "x11")
        said = upslope_command("play", run, "--episodes=1", code=2).err
        assert "--video" in said
        assert "Traceback" not in said
