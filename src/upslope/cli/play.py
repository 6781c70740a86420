"""``upslope play RUN``: watch a trained policy in a window, or film it."""

from __future__ import annotations

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
    agent, _ = load_run(asked.run, asked.env)

    from upslope.runs.play import play

    for number, episode in enumerate(
        play(agent, asked.episodes, asked.seed, asked.video and Path(asked.video), asked.sampled), 1
    ):
        print(f"episode {number}: return {episode.ret:,.1f} in {episode.length} steps", flush=True)
    if asked.video:
        print(f"video    {asked.video}", file=sys.stdout)
    return 0
