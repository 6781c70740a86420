"""``upslope eval RUN``: score a trained policy on fresh episodes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.cli.parser import Parser, finite_number, whole_number
from upslope.errors import ConfigError

if TYPE_CHECKING:
    from upslope.agent import Agent


def parser() -> Parser:
    """Return the parser of ``upslope eval``."""
    made = Parser(
        "upslope eval",
        "Evaluate a trained policy on fresh episodes, with sampled actions and with the mode, "
        "beside a random policy and the best checkpoint where the run kept one.",
    )
    made.add_argument("run", metavar="RUN", help="a run directory or a model file")
    made.add_argument("--episodes", type=whole_number(1), default=100, metavar="N",
                      help="fresh episodes for each way to act (default: 100)")  # fmt: skip
    made.add_argument(
        "--seed",
        type=whole_number(),
        default=None,
        metavar="S",
        help="seed of environments and actions (default: one derived from the run's)",
    )
    made.add_argument(
        "--env", metavar="ENV", help="the environment, needed where it is the user's own"
    )
    made.add_argument("--threshold", type=finite_number(), metavar="R",
                      help="a return below it is a failure (default: the environment's "
                      "registered reward threshold)")  # fmt: skip
    made.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return made


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    asked = parser().parse(arguments)
    agent, path = load_run(asked.run, asked.env)

    from upslope.cli.final_evaluation import final_evaluation
    from upslope.cli.summary import score_lines

    is_run = Path(asked.run).is_dir()
    score = final_evaluation(
        agent,
        path.parent if is_run else None,
        asked.episodes,
        seed=asked.seed,
        quiet=asked.json,
    )
    if asked.threshold is not None:
        score = score.with_threshold(asked.threshold)
    if asked.json:
        print(json.dumps(score.to_json()))
    else:
        print("\n".join([*score_lines(score), f"model    {path} (this policy, not the algorithm)"]))
    return 0


def load_run(run: str, env: str | None, **settings: Any) -> tuple[Agent, Path]:
    """Return the agent of a run directory or model file; the environment must be known or given.

    Raises:
        ConfigError: no such run, or ``--env`` is needed, with the command to type.
    """
    path = model_of(run)

    from upslope.agent import load
    from upslope.runs.model_file import read_header
    from upslope.runs.policy_file import unnamed_environment

    try:
        agent = load(path, env, **settings)
        if agent.source is None:
            raise unnamed_environment(path, read_header(path)["environment"]["name"])
    except ConfigError as error:
        if "features factory" in str(error):
            raise ConfigError(f"{error}; use upslope.load(path, policy=...) from Python") from None
        raise
    return agent, path


def model_of(run: str) -> Path:
    """Return the model file of a run directory, or the model file itself.

    Raises:
        ConfigError: there is none.
    """
    path = Path(run)
    if path.is_dir():
        path = path / "model.safetensors"
    if os.path.exists(path):
        return path
    kept = Path(run) / "checkpoints"
    if kept.is_dir():
        raise ConfigError(
            f"{run} has not finished, so it has no model.safetensors yet: type upslope resume "
            f"{run}, or take a checkpoint of it, such as {kept / max(os.listdir(kept), default='')}"
        )
    raise ConfigError(
        f"{run} is no run directory with a model.safetensors and no model file: check the path"
    )
