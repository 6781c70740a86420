"""Play a policy one episode after the other, rendered to a window or to an mp4."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from upslope.envs.episodes import Episode
from upslope.envs.find import Source, spec_of
from upslope.envs.masks import current_mask
from upslope.errors import (
    ConfigError,
    EnvironmentFaultError,
    UnknownEnvironmentError,
    UpslopeError,
    first_line,
)
from upslope.interrupts import Interrupted, interrupts
from upslope.runs.film import Film
from upslope.seeding import SeedTree

if TYPE_CHECKING:
    from upslope.agent import Agent


def play(
    agent: Agent, n_episodes: int, seed: int, video: Path | None = None, sampled: bool = False
) -> Iterator[Episode]:
    """Yield each episode as it ends; with ``video`` all frames go to that file.

    The first Ctrl-C or SIGTERM raises KeyboardInterrupt after the step that is running; what was
    filmed by then is in the file.

    Raises:
        ConfigError: if the environment cannot be rendered so, the file cannot be written, or an
            extra is missing.
        EnvironmentFaultError: the environment raised.
    """
    if agent.source is None:
        raise ConfigError("this model has no environment: give env=")
    if video is None:
        _check_display(agent.source)
    with contextlib.ExitStack() as stack:
        film = None if video is None else stack.enter_context(Film(video))
        env = _made(agent, "human" if film is None else "rgb_array")
        stack.callback(env.close)
        if film is not None:
            film.fps = int(env.metadata.get("render_fps") or 30)
        caught = stack.enter_context(interrupts())
        seeds = SeedTree(SeedTree(seed).integer("evaluation"))
        for number in range(n_episodes):
            obs, info = _begin(env, seeds.integer("episode", number), film)
            total, length, done, terminated = 0.0, 0, False, False
            state = None
            while not done:
                _render(env, film)
                if caught:
                    raise Interrupted(caught[0])
                action, state = agent.predict(
                    obs,
                    state,
                    np.array([length == 0]),
                    deterministic=not sampled,
                    action_masks=current_mask(env, info),
                )
                obs, reward, terminated, truncated, info = _stepped(env, action, number, length)
                total, length, done = total + float(reward), length + 1, terminated or truncated
            _render(env, film)
            yield Episode(number, total, length, terminated, {})


def _made(agent: Agent, mode: str) -> Any:
    """The environment, with what opens its pictures named where it cannot be made."""
    config, source = agent.config, agent.source
    assert source is not None
    try:
        return source.plain_env(config.env_kwargs, config.max_episode_steps, render_mode=mode)
    except UnknownEnvironmentError as error:
        if not (_is_mujoco(source) and os.environ.get("MUJOCO_GL")):
            raise
        raise ConfigError(
            f"{error}; it may be MUJOCO_GL={os.environ['MUJOCO_GL']}: set MUJOCO_GL=egl or osmesa "
            "and film with --video FILE.mp4"
        ) from error


def _check_display(source: Source) -> None:
    """Refuse a window where there is no display: MuJoCo's ends the process, pygame's shows nothing.

    SDL_VIDEODRIVER names a driver of pygame that needs none.
    """
    has_display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    is_mujoco = _is_mujoco(source)
    needs_one = is_mujoco or not os.environ.get("SDL_VIDEODRIVER")
    if sys.platform.startswith("linux") and not has_display and needs_one:
        also = ", with MUJOCO_GL=egl or osmesa set" if is_mujoco else ""
        raise ConfigError(
            "no window can be opened here (there is no DISPLAY): film instead with "
            f"--video FILE.mp4{also}"
        )


def _is_mujoco(source: Source) -> bool:
    return source.id is not None and ".mujoco." in str(spec_of(source.id).entry_point)


def _begin(env: Any, seed: int, film: Film | None) -> Any:
    """Reset, which opens the window where there is no film."""
    try:
        return env.reset(seed=seed)
    except Exception as error:
        if film is not None:
            raise _fault(error, "reset") from error
        raise ConfigError(
            f"no window can be opened here ({type(error).__name__}: {first_line(error)}): "
            "film instead with --video FILE.mp4"
        ) from error


def _stepped(env: Any, action: Any, number: int, length: int) -> Any:
    try:
        return env.step(action)
    except Exception as error:
        raise _fault(error, f"step {length} of episode {number}") from error


def _fault(error: Exception, where: str) -> UpslopeError:
    if isinstance(error, UpslopeError):
        return error
    return EnvironmentFaultError(
        f"the environment raised {type(error).__name__} at {where}: {first_line(error)} "
        "(--debug shows where)"
    )


def _render(env: Any, film: Film | None) -> None:
    if film is None:
        return  # a window draws itself on every step
    said = None
    with _rendering_quietly():
        try:
            frame = env.render()
        except Exception as error:  # not kept: its frames hold half-made renderers, which complain
            said = f"{type(error).__name__}: {first_line(error)}"
    if said is not None:
        raise ConfigError(
            f"this environment cannot be filmed ({said}); "
            "it needs render_mode='rgb_array', for MuJoCo also MUJOCO_GL=egl or osmesa"
        )
    film.add(frame)


@contextlib.contextmanager
def _rendering_quietly() -> Iterator[None]:
    """Without what renderers say on the side: one sentence is said instead, if they fail."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.unraisablehook = hook
