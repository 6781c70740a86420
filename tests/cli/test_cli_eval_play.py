"""``upslope eval`` and ``upslope play`` on what a run left."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import upslope
from upslope.cli.main import main

Command = Callable[..., Any]
SMALL = {"n_envs": 2, "n_steps": 32, "batch_size": 32, "n_epochs": 1, "net_arch": (8,)}
ROBOT = """
import gymnasium as gym, numpy as np

class Robot(gym.Wrapper):
    t = 0
    def __init__(self, render_mode=None):
        super().__init__(gym.make("CartPole-v1"))
        self.asked = render_mode
    def reset(self, **more):
        if "{where}" == "reset" and self.asked: raise OSError("no such robot")
        return self.env.reset(**more)
    def step(self, action):
        if "{where}" == "step" and self.t == 2: raise OSError("no such robot")
        self.t += 1
        return self.env.step(action)
    def render(self): return {render}

make_env = Robot
"""
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
            assert [line.split()[0] for line in lines] == ["sampled", "mode", "random", "model"]
            assert lines[0].startswith("sampled  this policy averaged ")
            assert "4 fresh episodes" in lines[0]
            assert lines[2].startswith("random   a random policy averaged ")
            assert lines[3].endswith("(this policy, not the algorithm)")

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

    def test_the_best_checkpoint_is_scored_again(
        self, upslope_command: Command, here: Path
    ) -> None:
        small = ["--n-envs=2", "--n-steps=32", "--batch-size=32", "--net-arch=8", "-n", "256"]
        shown = upslope_command(
            "train", "CartPole-v1", *small, "--eval-freq=64", "--episodes=6", "--run-dir=run"
        ).out
        written = objects((here / "run" / "evaluation.json").read_text())
        best = written["best_model"]
        with (here / "run" / "progress.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["eval/mean_reward"]]
        scores = [float(row["eval/mean_reward"]) for row in rows]
        assert len(scores) == 4
        chosen = rows[scores.index(max(scores))]
        assert best["selection"] == {
            "mean": max(scores),
            "timesteps": int(chosen["time/total_timesteps"]),
            "candidates": 4,
            "bias": "the highest of 4 noisy scores, hence biased upwards",
        }
        again = upslope.load(here / "run" / "best_model.safetensors").evaluate_one_way(
            6, deterministic=True
        )
        assert best["fresh"]["mean"] == again.mean
        assert best["fresh"]["episodes"] == 6
        said = shown.splitlines()
        (i,) = [i for i, line in enumerate(said) if line.startswith("best ")]
        assert f"was chosen with {max(scores):.1f}, the highest of 4 scores, so biased" in said[i]
        assert said[i + 1].strip().startswith("scored again by its mode it ")
        assert "6 fresh episodes" in said[i + 1]
        printed = objects(upslope_command("eval", "run", "--episodes=6", "--json").out)
        assert printed == written
        alone = upslope_command("eval", "run/best_model.safetensors", "--episodes=6", "--json").out
        assert "best_model" not in objects(alone)

    def test_the_best_checkpoint_is_scored_where_the_final_policy_is(
        self, upslope_command: Command, here: Path
    ) -> None:
        """Another environment is made without the recorded limit: for both policies."""
        small = ["--n-envs=2", "--n-steps=32", "--batch-size=32", "--net-arch=8", "-n", "64"]
        upslope_command(
            "train", "CartPole-v1", *small, "--eval-freq=64", "--episodes=0", "--run-dir=run",
            "--max-episode-steps=3", "--quiet",
        )  # fmt: skip
        (here / "mine.py").write_text(
            "import gymnasium as gym\n"
            "def make_env(**more): return gym.make('CartPole-v1', max_episode_steps=7, **more)\n"
        )
        printed = objects(
            upslope_command("eval", "run", "--env=mine.py:make_env", "--episodes=2", "--json").out
        )
        assert printed["deterministic"]["mean"] == 7.0
        assert printed["best_model"]["fresh"]["mean"] == 7.0

    def test_a_threshold_of_ones_own(self, upslope_command: Command, run: Path) -> None:
        for threshold, share in (("1", 0.0), ("501", 1.0)):
            asked = ["eval", run, "--episodes=4", "--threshold", threshold]
            score = objects(upslope_command(*asked, "--json").out)
            for way in ("sampled", "deterministic", "random"):
                assert score[way]["failure_share"] == share
                assert score[way]["threshold"] == float(threshold)
            low, high = score["sampled"]["failure_ci95"]
            assert (low, high) == pytest.approx(
                (0.0, 0.6024) if share == 0 else (0.3976, 1.0), abs=1e-4
            )
            assert f"below {threshold}" in upslope_command(*asked).out

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

    def test_a_window_shows_every_step(
        self, upslope_command: Command, run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import pygame

        flips: list[int] = []
        flip = pygame.display.flip
        monkeypatch.setattr(pygame.display, "flip", lambda: flips.append(1) or flip())
        said = upslope_command("play", run, "--episodes=2").out
        steps = sum(int(line.split(" in ")[1].split()[0]) for line in said.splitlines())
        assert len(flips) == steps + 2
        assert not pygame.display.get_init(), "the window is closed at the end"

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

    def test_no_display_at_all(
        self, upslope_command: Command, run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where pygame would take a driver of its own that shows nothing to anybody."""
        monkeypatch.setattr(sys, "platform", "linux")
        for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
            monkeypatch.delenv(name, raising=False)
        said = upslope_command("play", run, "--episodes=1", code=2)
        assert "there is no DISPLAY): film instead with --video FILE.mp4" in said.err
        assert said.out == ""

    def test_ctrl_c_leaves_a_film_that_plays(
        self, upslope_process: Callable[..., Any], here: Path, run: Path
    ) -> None:
        ffmpeg = pytest.importorskip("imageio_ffmpeg")
        (here / "film.mp4").write_text("of before")
        process = upslope_process("play", run, "--episodes=100000", "--video=film.mp4")
        for _ in range(5):
            assert process.stdout.readline().startswith("episode")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it, to ffmpeg too
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert err == "upslope: interrupted\n"
        assert out.splitlines()[-1] == "video    film.mp4 (interrupted)"
        frames, _ = ffmpeg.count_frames_and_secs("film.mp4")
        assert frames > 40
        assert [file.name for file in here.iterdir()] == ["film.mp4"]

    def test_a_full_disk_leaves_what_was_there(
        self, upslope_command: Command, here: Path, run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ffmpeg = pytest.importorskip("imageio_ffmpeg")

        def refuse(path: str, *_: Any, **__: Any) -> Any:
            Path(path).write_bytes(b"half a film")
            while True:
                yield

        monkeypatch.setattr(ffmpeg, "write_frames", refuse)
        (here / "film.mp4").write_text("of before")
        said = upslope_command("play", run, "--episodes=1", "--video=film.mp4", code=2).err
        assert "disk is full" in said
        assert said.count("\n") == 1
        assert [file.name for file in here.iterdir()] == ["film.mp4"]
        assert (here / "film.mp4").read_text() == "of before"

    @pytest.mark.parametrize(
        ("path", "said"),
        [
            ("film.avi", "must end in .mp4"),
            ("file/film.mp4", "cannot write file/film.mp4"),
            ("folder.mp4", "it is a directory"),
        ],
    )
    def test_paths_that_cannot_be(
        self, upslope_command: Command, here: Path, run: Path, path: str, said: str
    ) -> None:
        pytest.importorskip("imageio_ffmpeg")
        (here / "file").write_text("")
        (here / "folder.mp4").mkdir()
        error = upslope_command("play", run, f"--video={path}", code=2).err
        assert said in error
        assert error.count("\n") == 1

    def test_without_the_extra(
        self, upslope_command: Command, run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
        said = upslope_command("play", run, "--video=film.mp4", code=2).err
        assert "pip install 'upslope[video]'" in said

    @pytest.mark.parametrize(
        ("where", "render", "code", "said"),
        [
            ("step", "np.zeros((8, 8, 3), np.uint8)", 3, "raised OSError at step 2 of episode 0"),
            ("reset", "np.zeros((8, 8, 3), np.uint8)", 3, "raised OSError at reset: no such robot"),
            ("never", "None", 2, "gives no picture"),
            ("never", "np.zeros((8, 8))", 2, "gives no picture"),
            ("never", "np.zeros((8, 8 + 2 * self.t, 3), np.uint8)", 2, "change their size"),
            ("never", "1 / 0", 2, "cannot be filmed (ZeroDivisionError"),
        ],
    )
    def test_environments_that_fail(
        self, upslope_command: Command, here: Path, where: str, render: str, code: int, said: str
    ) -> None:
        pytest.importorskip("imageio_ffmpeg")
        (here / "broken_robot.py").write_text(ROBOT.format(where=where, render=render))
        model = here / "m.safetensors"
        upslope.PPO("CartPole-v1", **SMALL).save(model)
        arguments = ["play", model, "--env", "broken_robot.py:make_env", "--video=film.mp4"]
        error = upslope_command(*arguments, code=code).err
        assert said in error
        assert error.count("\n") == 1
        assert not [file for file in here.iterdir() if "upslope-tmp" in file.name]

    @pytest.mark.mujoco
    def test_mujoco_without_a_display(
        self, upslope_command: Command, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("mujoco")
        monkeypatch.setattr(sys, "platform", "linux")
        for name in ("DISPLAY", "WAYLAND_DISPLAY"):
            monkeypatch.delenv(name, raising=False)
        upslope.PPO("InvertedPendulum-v5", **SMALL).save("m.safetensors")
        said = upslope_command("play", "m.safetensors", code=2).err
        assert "--video FILE.mp4, with MUJOCO_GL=egl or osmesa" in said
        assert said.count("\n") == 1

    @pytest.mark.mujoco
    @pytest.mark.parametrize(("name", "code"), [(None, 0), ("bad", 2)])
    def test_mujoco_is_filmed_without_a_display(
        self, upslope_process: Callable[..., Any], here: Path, monkeypatch: pytest.MonkeyPatch,
        name: str | None, code: int,
    ) -> None:  # fmt: skip
        pytest.importorskip("mujoco")
        ffmpeg = pytest.importorskip("imageio_ffmpeg")
        for variable in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
            monkeypatch.delenv(variable, raising=False)
        if name is not None:
            monkeypatch.setenv("MUJOCO_GL", name)
        upslope.PPO("InvertedPendulum-v5", **SMALL).save("m.safetensors")
        process = upslope_process("play", "m.safetensors", "--episodes=1", "--video=film.mp4")
        out, err = process.communicate(timeout=60)
        if name is None and process.returncode == 2:
            assert "MUJOCO_GL=egl or osmesa" in err
            pytest.skip(f"nothing draws here without a display: {err}")
        assert process.returncode == code
        assert err.count("\n") == (code != 0)
        if code:
            assert "set MUJOCO_GL=egl or osmesa" in err
        else:
            assert (
                ffmpeg.count_frames_and_secs("film.mp4")[0]
                == int(out.split(" in ")[1].split()[0]) + 1
            )
