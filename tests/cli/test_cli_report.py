"""``upslope report``: one run with its policy at work, several together, and bad input."""

from __future__ import annotations

import base64
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import upslope

Command = Callable[..., Any]
SMALL = {"n_envs": 2, "n_steps": 32, "batch_size": 32, "n_epochs": 1, "net_arch": (8,), "seed": 0}


@pytest.fixture
def run(here: Path) -> Path:
    """A short run in the current directory."""
    upslope.PPO("CartPole-v1", run_dir="run", **SMALL).learn(640)
    return here / "run"


class TestOneRun:
    def test_is_written_into_it_with_a_film(self, upslope_command: Command, run: Path) -> None:
        pytest.importorskip("imageio_ffmpeg")
        pytest.importorskip("pygame")
        done = upslope_command("report", "run")
        page = (run / "report.html").read_text()
        assert done.out.splitlines()[-1].startswith("report   run/report.html (")
        assert "video/mp4" in page
        assert "CartPole-v1 · ppo · seed 0" in page
        film = run / "videos" / "report.mp4"
        assert base64.b64encode(film.read_bytes()).decode() in page
        assert "film     run/videos/report.mp4" in done.out
        film.unlink()
        film.parent.rmdir()
        film.parent.touch()  # no folder can be made there
        done = upslope_command("report", "run")
        assert "film     only in the page: cannot write the film" in done.out
        assert "video/mp4" in (run / "report.html").read_text()

    def test_is_found_by_its_model_file_and_written_elsewhere(
        self, upslope_command: Command, run: Path
    ) -> None:
        upslope_command("report", "run/model.safetensors", "--out", "pages/mine.html")
        assert (run.parent / "pages" / "mine.html").exists()
        assert not (run / "report.html").exists()

    def test_with_findings_tells_them(self, upslope_command: Command, here: Path) -> None:
        settings = SMALL | {"learning_rate": 0.5, "n_epochs": 4}
        upslope.PPO("CartPole-v1", run_dir="wild", **settings).learn(1_280)
        lines = upslope_command("report", "wild").out.splitlines()
        assert any(line.startswith("finding  KL spikes: ") for line in lines)
        assert "KL spikes" in (here / "wild" / "report.html").read_text()

    def test_of_an_environment_of_the_users_own_needs_its_name_for_the_episode(
        self, upslope_command: Command, here: Path
    ) -> None:
        (here / "mine.py").write_text(
            "import gymnasium as gym\n"
            "def make_env(**more): return gym.make('CartPole-v1', **more)\n"
        )
        upslope.PPO("mine.py:make_env", run_dir="own", **SMALL).learn(128)
        sys.modules.pop("mine", None)
        said = upslope_command("report", "own").out
        assert "--env mine.py:make_env" in said
        assert "No episode is shown" in (here / "own" / "report.html").read_text()
        assert "mine" not in sys.modules
        upslope_command("report", "own", "--env", "mine.py:make_env")
        assert "One fresh episode" in (here / "own" / "report.html").read_text()

    def test_without_a_model_is_written_all_the_same(
        self, upslope_command: Command, run: Path
    ) -> None:
        (run / "model.safetensors").write_bytes(b"damaged")
        assert "No episode is shown" in upslope_command("report", "run").out
        assert "Average return" in (run / "report.html").read_text()


class TestSeveralRuns:
    def test_are_one_page_here(self, upslope_command: Command, run: Path) -> None:
        shutil.copytree(run, run.parent / "again")
        done = upslope_command("report", "run", "again")
        assert done.out.splitlines()[-1].startswith("report   report.html (")
        page = (run.parent / "report.html").read_text()
        assert "2 runs on CartPole-v1" in page
        assert "The policy at work" not in page


class TestBadInput:
    def test_is_one_sentence(self, upslope_command: Command, run: Path) -> None:
        for arguments, word in [
            (["nowhere"], "nowhere"),
            ([str(run.parent)], "progress.csv"),
            (["run", "--out", "run/config.json/x.html"], "--out"),
            (["run", "nowhere"], "nowhere"),
            (["x" * 5000], "progress.csv"),
            (["a\0b"], "progress.csv"),
            (["run", "--out", "x" * 5000], "--out"),
            (["run", "--out", "."], "--out"),
            (["run", "run", "--env", "CartPole-v1"], "--env"),
            (["run", "--env", "CartPole-v9"], "CartPole-v9"),
            ([], "RUN"),
            (["run", "--ot", "x"], "--out"),
        ]:
            said = upslope_command("report", *arguments, code=2).err
            assert said.count("\n") == 1, said
            assert word in said
        assert not (run / "report.html").exists()

    def test_an_environment_of_other_spaces_is_one_sentence(
        self, upslope_command: Command, run: Path
    ) -> None:
        said = upslope_command("report", "run", "--env", "Pendulum-v1", code=5).err
        assert "observation space" in said
        assert said.count("\n") == 1

    def test_help_is_offered(self, upslope_command: Command) -> None:
        assert "upslope report" in upslope_command("report", "--help").out
        assert "  report " in upslope_command("--help").out
