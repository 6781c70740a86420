"""``upslope envs [WORD]``: the environments that are installed here."""

from __future__ import annotations

from collections.abc import Sequence

from upslope.cli.parser import Parser
from upslope.errors import UnknownEnvironmentError


def parser() -> Parser:
    """Return the parser of ``upslope envs``."""
    made = Parser("upslope envs", "List the environments that Gymnasium has registered.")
    made.add_argument(
        "word", metavar="WORD", nargs="?", default="", help="show only ids that contain it"
    )
    return made


def run(arguments: Sequence[str]) -> int:
    """Print one line an environment: id, step limit, threshold, whether a preset exists."""
    asked = parser().parse(arguments)

    import gymnasium as gym

    from upslope.config.presets import PRESETS

    found = [
        spec for name, spec in sorted(gym.registry.items()) if asked.word.lower() in name.lower()
    ]
    if not found:
        raise UnknownEnvironmentError(
            f"no environment id contains {asked.word!r}: `upslope envs` lists all"
        )
    width = max(len(spec.id) for spec in found)
    for spec in found:
        limit = f"{spec.max_episode_steps} steps" if spec.max_episode_steps else "no limit"
        solved = f"threshold {spec.reward_threshold:g}" if spec.reward_threshold is not None else ""
        tuned = [algorithm for env_id, algorithm in PRESETS if env_id == spec.id]
        note = f"presets: {', '.join(tuned)}" if tuned else ""
        print(f"{spec.id:<{width}}  {limit:<11}  {solved:<16}  {note}".rstrip())
    return 0
