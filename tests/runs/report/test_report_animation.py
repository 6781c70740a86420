"""An episode for the page: what is recorded, the film, and every way in which there is none."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from report_runs import SMALL, Endless, record

import upslope
from upslope.runs.report import play, write_report
from upslope.runs.report.animation import FILM_BYTES, PlayedEpisode, play_episode
from upslope.runs.report.data import read_run
from upslope.runs.report.page import render


class Painted(gym.Env[Any, Any]):
    """Steps of one number, with pictures of an odd size whose red is the step."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 30}
    observation_space = gym.spaces.Dict(
        {"picture": gym.spaces.Box(0, 255, (4, 4), np.uint8), "n": gym.spaces.Box(0, 1e4, (2,))}
    )
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, length: int = 40, render_mode: str | None = None) -> None:
        self.length, self.render_mode, self.at = length, render_mode, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.at = 0
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        self.at += 1
        return self._obs(), 0.5, self.at == self.length, False, {}

    def render(self) -> Any:
        return np.full((51, 701, 3), (self.at % 256, 0, 0), np.uint8)

    def _obs(self) -> Any:
        return {"picture": np.zeros((4, 4), np.uint8), "n": np.full(2, self.at, np.float32)}


def agent_on(env: Any, **more: Any) -> Any:
    settings = {"n_envs": 1, "n_steps": 16, "batch_size": 16, "n_epochs": 1, "net_arch": (4,)}
    return upslope.PPO(env, seed=0, **settings, **more)


def frames(film: bytes, path: Path) -> tuple[int, float, Any]:
    """Number of frames, seconds, and the first frame of an mp4."""
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path.write_bytes(film)
    reader = ffmpeg.read_frames(str(path))
    size = next(reader)["size"]
    first = np.frombuffer(next(reader), np.uint8).reshape(size[1], size[0], 3)
    reader.close()
    return *ffmpeg.count_frames_and_secs(str(path)), first


class TestTheEpisode:
    def test_is_recorded_step_by_step(self) -> None:
        played = play(agent_on(Painted), film=False)
        assert isinstance(played, PlayedEpisode)
        assert (played.length, played.ret, played.end) == (40, 20.0, "terminated")
        assert list(played.steps) == list(range(40))
        assert played.series["Return so far"]["return"] == [0.5 * (i + 1) for i in range(40)]
        assert played.series["Reward"] == {"reward": [0.5] * 40}
        ramp = [float(i) for i in range(40)]
        assert played.series["Observation"] == {"observation 0": ramp, "observation 1": ramp}
        assert list(played.series["Action"]) == ["action"]
        assert played.film is None

    def test_is_the_mode_on_a_fresh_environment_and_changes_nothing(self) -> None:
        agent = agent_on("CartPole-v1")
        first, again = (play(agent, film=False) for _ in range(2))
        assert first == again
        twin = agent_on("CartPole-v1")
        agent.learn(64), twin.learn(64)
        for mine, its in zip(agent.policy.parameters(), twin.policy.parameters(), strict=True):
            assert mine.equal(its)

    def test_of_many_steps_is_kept_evenly(self) -> None:
        played = play(agent_on(Painted, env_kwargs={"length": 1200}), film=False)
        assert isinstance(played, PlayedEpisode)
        assert list(played.steps) == list(range(0, 1200, 3))
        assert played.length == 1200

    def test_that_does_not_end_is_cut(self) -> None:
        start = time.perf_counter()
        played = play_episode(agent_on(Endless), film=False, seconds=0.2)
        assert isinstance(played, PlayedEpisode)
        assert "cut here after 0.2 s" in played.end
        assert time.perf_counter() - start < 20

    def test_needs_an_environment_of_its_own(self) -> None:
        said = play(agent_on(Painted()), film=False)
        assert isinstance(said, str)
        assert "object of the user's" in said

    def test_that_raises_is_a_sentence(self) -> None:
        agent = agent_on(Painted)
        object.__setattr__(agent.source, "plain_env", broken)
        said = play(agent, film=True)
        assert said == "No episode is shown: the lights went out."
        assert "the lights went out" in render([record()], said)

    def test_is_on_the_page_with_its_numbers(self) -> None:
        played = play(agent_on(Painted), film=False)
        page = render([record()], played)
        assert "return 20 in 40 steps; it terminated" in page
        assert page.count('data-series="') == 4
        assert "<video" not in page
        assert '<input type="range" id="step" min="0" max="39"' in page


def broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("the lights went out.\nand more")


class TestTheFilm:
    def test_shows_the_episode(self, tmp_path: Path) -> None:
        played = play(agent_on(Painted), film=True)
        assert isinstance(played, PlayedEpisode)
        assert played.notes == []
        assert played.film is not None
        number, seconds, first = frames(played.film, tmp_path / "film.mp4")
        assert number in (21, 22)  # every second of 41 pictures, and the last
        assert seconds == pytest.approx(number / 15, abs=0.1)
        assert first.shape == (16, 232, 3)  # a third of 701 x 51, even
        assert first.max() < 30
        assert played.speed == 1

    def test_of_a_long_episode_is_shortened(self, tmp_path: Path) -> None:
        played = play(agent_on(Painted, env_kwargs={"length": 800}), film=True)
        assert isinstance(played, PlayedEpisode)
        assert played.film is not None
        assert len(played.film) < FILM_BYTES
        _, seconds, _ = frames(played.film, tmp_path / "film.mp4")
        assert seconds < 11
        assert played.speed == 4
        assert "Shown 4 times as fast" in render([record()], played)

    def test_that_cannot_be_made_leaves_the_episode(self) -> None:
        class Dark(Painted):
            def render(self) -> Any:
                raise RuntimeError("no GL")

        played = play(agent_on(Dark), film=True)
        assert isinstance(played, PlayedEpisode)
        assert played.film is None
        assert played.notes == ["There is no film: no GL."]
        assert "There is no film: no GL." in render([record()], played)

    @pytest.mark.parametrize("picture", [None, np.zeros((4, 4)), "text", np.zeros((1, 4, 3))])
    def test_of_no_picture_leaves_the_episode(self, picture: Any) -> None:
        class Odd(Painted):
            def render(self) -> Any:
                return picture

        played = play(agent_on(Odd), film=True)
        assert isinstance(played, PlayedEpisode)
        assert "gives no picture" in played.notes[0]

    def test_without_its_extra_names_the_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
        played = play(agent_on(Painted), film=True)
        assert isinstance(played, PlayedEpisode)
        assert "pip install 'upslope[video]'" in played.notes[0]

    def test_of_a_real_environment(self, tmp_path: Path) -> None:
        pytest.importorskip("pygame")
        played = play(agent_on("CartPole-v1"), film=True)
        assert isinstance(played, PlayedEpisode)
        assert played.film is not None
        assert frames(played.film, tmp_path / "film.mp4")[2].shape == (200, 300, 3)


def test_the_end_of_training_imports_nothing_for_pictures(tmp_path: Path) -> None:
    code = (
        "import sys, upslope\nfrom upslope.runs.report import write_report\n"
        f"agent = upslope.PPO('CartPole-v1', run_dir='run', **{SMALL})\nagent.learn(1024)\n"
        "before = set(sys.modules)\n"
        "from pathlib import Path\nassert write_report(Path('run'), agent) == []\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new & {'pygame', 'imageio', 'imageio_ffmpeg', 'matplotlib', 'scipy'}))\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")
    assert "The policy at work" in (tmp_path / "run" / "report.html").read_text()


def test_write_report_without_an_agent_shows_no_episode(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    write_report(run, None)
    assert "The policy at work" not in (run / "report.html").read_text()
    assert read_run(run).n_rows > 0
