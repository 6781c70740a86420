"""Play a policy one episode after the other, rendered to a window or to an mp4."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from upslope.envs.episodes import Episode
from upslope.envs.masks import current_mask
from upslope.errors import ConfigError
from upslope.seeding import SeedTree

if TYPE_CHECKING:
    from upslope.agent import Agent


def play(
    agent: Agent, n_episodes: int, seed: int, video: Path | None = None, sampled: bool = False
) -> Iterator[Episode]:
    """Yield each episode as it ends; with ``video`` all frames go to that file.

    Raises:
        ConfigError: if the environment cannot be rendered so, or an extra is missing.
    """
    if agent.source is None:
        raise ConfigError("this model has no environment: give env=")
    mode = "human" if video is None else "rgb_array"
    config, seeds = agent.config, SeedTree(SeedTree(seed).integer("evaluation"))
    env = agent.source.plain_env(config.env_kwargs, config.max_episode_steps, render_mode=mode)
    film = None if video is None else _Film(video, int(env.metadata.get("render_fps") or 30))
    try:
        for number in range(n_episodes):
            obs, info = _begin(env, seeds.integer("episode", number), film)
            total, length, done, terminated = 0.0, 0, False, False
            state = None
            while not done:
                _render(env, film)
                action, state = agent.predict(
                    obs,
                    state,
                    np.array([length == 0]),
                    deterministic=not sampled,
                    action_masks=current_mask(env, info),
                )
                obs, reward, terminated, truncated, info = env.step(action)
                total, length, done = total + float(reward), length + 1, terminated or truncated
            _render(env, film)
            yield Episode(number, total, length, terminated, {})
    finally:
        env.close()
        if film is not None:
            film.close()


def _begin(env: Any, seed: int, film: _Film | None) -> Any:
    """Reset, which opens the window where there is no film."""
    try:
        return env.reset(seed=seed)
    except Exception as error:
        if film is not None:
            raise
        raise ConfigError(
            f"no window can be opened here ({type(error).__name__}: {error}); "
            "film instead with --video FILE.mp4"
        ) from error


def _render(env: Any, film: _Film | None) -> None:
    if film is None:
        return  # a window draws itself on every step
    try:
        film.add(env.render())
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"this environment cannot be filmed ({type(error).__name__}: {error}); "
            "it needs render_mode='rgb_array', for MuJoCo also MUJOCO_GL=egl or osmesa"
        ) from error


class _Film:
    """Frames ``[height, width, 3]`` into an mp4 by ffmpeg, opened at the first frame."""

    def __init__(self, path: Path, fps: int) -> None:
        try:
            import imageio_ffmpeg
        except ImportError:
            raise ConfigError(
                "a video needs imageio-ffmpeg: run pip install 'upslope[video]'"
            ) from None
        self._ffmpeg, self._path, self._fps = imageio_ffmpeg, path, fps
        self._writer: Any = None

    def add(self, frame: Any) -> None:
        if frame is None or frame.ndim != 3:
            raise ConfigError("this environment's render gives no picture: it cannot be filmed")
        if self._writer is None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._path.touch()
            except OSError as error:
                raise ConfigError(
                    f"cannot write {self._path}: {error.strerror}; give another --video"
                ) from None
            size = (frame.shape[1], frame.shape[0])
            self._writer = self._ffmpeg.write_frames(
                str(self._path), size, fps=self._fps, macro_block_size=2, ffmpeg_log_level="error"
            )
            self._writer.send(None)
        self._writer.send(frame.tobytes())

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
