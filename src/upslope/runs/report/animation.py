"""One episode of the policy: what it saw and did, step by step, and a short film if there is one.

Nothing here ends a report: what cannot be played or filmed is said in one sentence instead.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from upslope.envs.masks import current_mask
from upslope.errors import first_line
from upslope.seeding import SeedTree
from upslope.trees import leaves

if TYPE_CHECKING:
    from upslope.agent import Agent

COMPONENTS = 6  # of the observation and of the action that are drawn
ROWS = 500  # of the episode that are kept, evenly spaced
FILM_SECONDS, FILM_FPS = 10.0, 25
FILM_WIDTH = 320  # pixels, at most
FILM_BYTES = 1_500_000
QUALITIES = (28, 36, 44)  # x264's rate factors, tried until the film is small enough

Image = NDArray[Any]


@dataclass(frozen=True)
class PlayedEpisode:
    """An episode under the mode of the policy; every list has one entry a kept step."""

    steps: Sequence[int]
    series: Mapping[str, Mapping[str, Sequence[float]]]  # title -> label -> values
    ret: float
    length: int
    end: str  # how it ended, in words
    film: bytes | None = None  # an mp4
    speed: int = 1  # times as fast as the environment's own clock
    notes: Sequence[str] = ()


def play_episode(agent: Agent, *, film: bool, seconds: float) -> PlayedEpisode | str:
    """Play one episode on a fresh environment, or return the sentence on why there is none.

    Args:
        agent: whose policy plays, with the mode of each distribution; nothing of it changes.
        film: whether pictures are taken too, where the environment and the extras allow it.
        seconds: after which an episode is cut.
    """
    source, notes = agent.source, []
    if source is None:
        return "No episode is shown: the environment is not known here; name it with --env."
    if source.instance is not None:
        return "No episode is shown: the environment is an object of the user's."
    try:
        if film:
            try:
                with _offscreen():
                    return _played(agent, _Film(), seconds, [])
            except Exception as error:  # of GL, pygame or an environment that draws nothing
                notes.append(f"There is no film: {_cause(error)}.")
        return _played(agent, None, seconds, notes)
    except Exception as error:  # the environment is the user's code
        return f"No episode is shown: {_cause(error)}."


@dataclass
class _Steps:
    """What is recorded step by step."""

    rewards: list[float] = field(default_factory=list)
    actions: list[NDArray[np.float64]] = field(default_factory=list)
    observations: list[NDArray[np.float64]] = field(default_factory=list)


def _played(
    agent: Agent, film: _Film | None, seconds: float, notes: Sequence[str]
) -> PlayedEpisode:
    source, config = agent.source, agent.config
    assert source is not None
    more = {} if film is None else {"render_mode": "rgb_array"}
    env = source.plain_env(config.env_kwargs, config.max_episode_steps, **more)
    seeds, steps = SeedTree(SeedTree(config.seed).integer("evaluation")), _Steps()
    deadline, state, end = time.perf_counter() + seconds, None, ""
    try:
        obs, info = env.reset(seed=seeds.integer("episode", 0))
        while not end:
            if film is not None:
                film.look(env, len(steps.rewards))
            action, state = agent.predict(
                obs,
                state,
                np.array([not steps.rewards]),
                deterministic=True,
                action_masks=current_mask(env, info),
            )
            steps.observations.append(_numbers(obs))
            steps.actions.append(_numbers(action))
            obs, reward, terminated, truncated, info = env.step(action)
            steps.rewards.append(float(reward))
            end = "terminated" if terminated else "reached its time limit" if truncated else ""
            if not end and time.perf_counter() > deadline:
                end = f"was cut here after {seconds:g} s of playing"
        if film is None:
            return _episode(steps, end, None, 1, notes)
        film.look(env, len(steps.rewards), is_last=True)
        return _episode(steps, end, film.encoded(env), film.speed, notes)
    finally:
        env.close()


def _episode(
    steps: _Steps, end: str, film: bytes | None, speed: int, notes: Sequence[str]
) -> PlayedEpisode:
    length = len(steps.rewards)
    kept = list(range(0, length, max(1, math.ceil(length / ROWS))))
    totals = np.cumsum(steps.rewards)
    series = {
        "Return so far": {"return": [_rounded(totals[i]) for i in kept]},
        "Reward": {"reward": [_rounded(steps.rewards[i]) for i in kept]},
        "Action": _components(steps.actions, kept, "action"),
        "Observation": _components(steps.observations, kept, "observation"),
    }
    drawn = {title: lines for title, lines in series.items() if lines}
    return PlayedEpisode(kept, drawn, float(totals[-1]), length, end, film, speed, notes)


def _components(
    rows: Sequence[NDArray[np.float64]], kept: Sequence[int], name: str
) -> dict[str, list[float]]:
    number = min((len(row) for row in rows), default=0)
    return {
        name if number == 1 else f"{name} {k}": [_rounded(rows[i][k]) for i in kept]
        for k in range(min(number, COMPONENTS))
    }


def _numbers(tree: Any) -> NDArray[np.float64]:
    """The numbers of an observation or action, flat; pictures are left out."""
    parts = [np.asarray(leaf, dtype=np.float64) for leaf in leaves(tree)]
    flat = [part.reshape(-1) for part in parts if part.ndim < 2]
    return np.concatenate(flat) if flat else np.zeros(0)


def _rounded(value: float) -> float:
    """Six digits: enough for a picture, and a third of the bytes."""
    rounded = float(f"{value:.6g}")
    return rounded if math.isfinite(rounded) else 0.0


class _Film:
    """Pictures of an episode, evenly spaced: every second one goes when there are too many."""

    def __init__(self) -> None:
        import imageio_ffmpeg

        self._ffmpeg = imageio_ffmpeg
        self._frames: list[tuple[int, Image]] = []
        self._base = self._stride = 1  # steps from one picture to the next: at first, and now

    @property
    def speed(self) -> int:
        """How many times as fast as the environment's own clock the film runs."""
        return self._stride // self._base

    def look(self, env: Any, step: int, is_last: bool = False) -> None:
        """Take a picture of this step if it is one to keep."""
        if step == 0:
            self._base = self._stride = math.ceil(_fps(env) / FILM_FPS)
        if step % self._stride and not is_last:
            return
        self._frames.append((step, _small(env.render())))
        if len(self._frames) > FILM_SECONDS * _fps(env) / self._base + 2:
            self._stride *= 2
            kept = [frame for frame in self._frames if frame[0] % self._stride == 0]
            self._frames = kept if not is_last else [*kept, self._frames[-1]]

    def encoded(self, env: Any) -> bytes:
        """Return an mp4 of at most ``FILM_BYTES``."""
        for quality in QUALITIES:
            content = self._encoded(_fps(env) / self._base, quality)
            if len(content) <= FILM_BYTES:
                return content
        raise ValueError(f"it would take more than {FILM_BYTES:,} bytes")

    def _encoded(self, fps: float, quality: int) -> bytes:
        height, width = self._frames[0][1].shape[:2]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "film.mp4"
            writer = self._ffmpeg.write_frames(
                str(path), (width, height), fps=fps, macro_block_size=2, quality=None,
                ffmpeg_log_level="error", output_params=["-crf", str(quality)],
            )  # fmt: skip
            writer.send(None)
            for _, frame in self._frames:
                writer.send(frame.tobytes())
            writer.close()
            return path.read_bytes()


@contextlib.contextmanager
def _offscreen() -> Iterator[None]:
    """Let SDL draw without a display where there is none, and pictures come without warnings."""
    has_display = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    is_ours = sys.platform == "linux" and not has_display and "SDL_VIDEODRIVER" not in os.environ
    if is_ours:
        os.environ["SDL_VIDEODRIVER"] = "dummy"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if is_ours:
            del os.environ["SDL_VIDEODRIVER"]


def _fps(env: Any) -> int:
    return int(env.metadata.get("render_fps") or 30)


def _small(frame: Any) -> Image:
    """A picture ``[height, width, 3]`` at most ``FILM_WIDTH`` wide, of even size: means of blocks.

    Raises:
        ValueError: it is no picture.
    """
    image = np.asarray(frame)
    if image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 2:
        raise ValueError("the environment's render gives no picture")
    block = math.ceil(image.shape[1] / FILM_WIDTH)
    height, width = (max(2, 2 * (size // (2 * block))) for size in image.shape[:2])
    total = np.zeros((height, width, 3), np.uint32)
    for down in range(block):  # strided sums take a tenth of the time of a mean over axes
        for right in range(block):
            total += image[down::block, right::block][:height, :width]
    small: Image = (total // block**2).astype(np.uint8)
    return small


def _cause(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"it needs {error.name}; run pip install 'upslope[video]'"
    return first_line(error).rstrip(".")
