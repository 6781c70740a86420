"""``upslope play RUN``: watch a trained policy in a window, or film it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from upslope.cli.eval import load_run
from upslope.cli.parser import Parser, whole_number
from upslope.errors import ConfigError


def parser() -> Parser:
    """Return the parser of ``upslope play``."""
    made = Parser("upslope play", "Watch a trained policy, or film it.")
    made.add_argument("run", metavar="RUN", help="a run directory or a model file")
    made.add_argument("--episodes", type=whole_number(1), default=3, metavar="N",
                      help="episodes to play (default: 3)")  # fmt: skip
    made.add_argument(
        "--seed", type=whole_number(), default=0, metavar="S", help="seed (default: 0)"
    )
    made.add_argument("--video", metavar="FILE.mp4", help="film instead of opening a window")
    made.add_argument(
        "--sampled", action="store_true", help="sample actions instead of taking the mode"
    )
    made.add_argument(
        "--env", metavar="ENV", help="the environment, needed where it is the user's own"
    )
    return made


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    asked = parser().parse(arguments)
    if asked.video and not asked.video.endswith(".mp4"):
        raise ConfigError(f"--video {asked.video} must end in .mp4")
    if asked.video:
        _find_renderer()
    agent, _ = load_run(asked.run, asked.env)

    from upslope.runs.play import play

    video = Path(asked.video) if asked.video else None
    played = play(agent, asked.episodes, asked.seed, video, asked.sampled)
    try:
        for number, episode in enumerate(played, 1):
            returned = f"{episode.ret:,.1f} in {episode.length} steps"
            print(f"episode {number}: return {returned}", flush=True)
    except KeyboardInterrupt:
        if video is not None and video.exists():
            print(f"video    {video} (interrupted)")
        raise
    if video is not None:
        print(f"video    {video}")
    return 0


def _find_renderer() -> None:
    """Have MuJoCo draw without a window where there is no display, unless the user says how."""
    has_display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and not has_display and not os.environ.get("MUJOCO_GL"):
        os.environ["MUJOCO_GL"] = "egl"
