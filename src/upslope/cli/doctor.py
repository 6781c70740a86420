"""``upslope doctor ENV``: what stands in the way of learning, before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Sequence

from upslope.cli.parser import Parser, pair, whole_number


def parser() -> Parser:
    """Return the parser of ``upslope doctor``."""
    made = Parser("upslope doctor", "Look at an environment and say what stands in the way.")
    made.add_argument("env", metavar="ENV", help="an id, or FILE.py:FACTORY")
    made.add_argument("--seed", type=whole_number(), default=0, metavar="S",
                      help="of episodes and random actions (default: 0)")  # fmt: skip
    made.add_argument("--steps", type=whole_number(1), default=2000, metavar="N",
                      help="of a random policy (default: 2000)")  # fmt: skip
    made.add_argument("--env-kwargs", nargs="+", default=[], metavar="K=V",
                      help="keyword arguments of the environment's constructor")  # fmt: skip
    made.add_argument("--max-episode-steps", type=whole_number(1), metavar="N",
                      help="cut episodes after so many steps")  # fmt: skip
    made.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return made


def run(arguments: Sequence[str]) -> int:
    """Print the diagnosis; 0 whenever a verdict is reached."""
    asked = parser().parse(arguments)

    from upslope.doctor import diagnose

    diagnosis = diagnose(
        asked.env,
        seed=asked.seed,
        env_kwargs=dict(pair(text) for text in asked.env_kwargs),
        max_episode_steps=asked.max_episode_steps,
        steps=asked.steps,
    )
    if asked.json:
        print(json.dumps(diagnosis.to_json()))
        return 0
    print(diagnosis.verdict)
    for finding in diagnosis.findings:
        print(f"\n{finding.name}\n  {finding.evidence}\n  -> {finding.flag}")
    print()
    for name, value in diagnosis.facts.items():
        shown = value
        if isinstance(value, dict):
            shown = ", ".join(f"{policy} {number:.4g}" for policy, number in value.items())
        elif isinstance(value, float):
            shown = f"{value:.4g}"
        print(f"{name.replace('_', ' '):<26}{shown}")
    return 0
