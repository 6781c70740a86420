"""``upslope train ENV``: train, save, evaluate, and say what was reached and where it lies."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.cli.eval import model_of
from upslope.cli.parser import Parser, add_settings, finite_number, settings_given, whole_number
from upslope.cli.session import Session
from upslope.cli.settings_file import algorithm_asked, settings_from_file
from upslope.config import CONFIGS
from upslope.errors import ConfigError
from upslope.imports import imports_of_a_command
from upslope.runs.writers import check_trackers

if TYPE_CHECKING:
    from upslope.agent import Agent
    from upslope.runs.directory import RunDirectory


def parser(algorithm: str) -> Parser:
    """Return the parser of ``upslope train`` with the flags of one algorithm."""
    made = Parser(
        "upslope train", "Train a policy. Hyperparameters are those of the chosen algorithm."
    )
    made.add_argument("env", metavar="ENV", help="an id, module:Env-v0, or my_env.py:make_env")
    run = made.add_argument_group("run")
    run.add_argument(
        "--algo",
        default=algorithm,
        metavar="{" + ",".join(CONFIGS) + "}",
        help="algorithm (default: ppo)",
    )
    run.add_argument("--total-timesteps", "-n", type=whole_number(1), metavar="N",
                     help="environment steps (default: the preset's, else 100000)")  # fmt: skip
    run.add_argument(
        "--run-dir", metavar="DIR", help="where the run goes (default: runs/ENV__ALGO__sSEED__TIME)"
    )
    run.add_argument("--stop-return", type=finite_number(), metavar="R",
                     help="stop once the last 100 finished episodes average R")  # fmt: skip
    run.add_argument(
        "--preset",
        default=None,
        metavar="{auto,none}",
        help="tuned settings where there are some (default: auto)",
    )
    run.add_argument(
        "--config",
        metavar="FILE",
        help="settings from a .toml or .json file, or the RL Zoo's .yml; flags override it",
    )
    run.add_argument(
        "--from",
        dest="from_model",
        metavar="MODEL",
        help="learn on from a model file or run directory, with its settings; flags override them",
    )
    run.add_argument(
        "--eval-freq",
        type=whole_number(1),
        metavar="N",
        help="evaluate every N steps and keep best_model.safetensors (default: never)",
    )
    run.add_argument(
        "--episodes",
        type=whole_number(),
        default=100,
        metavar="N",
        help="episodes of the final evaluation, 0 for none (default: 100)",
    )
    run.add_argument(
        "--track",
        action="append",
        nargs="?",
        const="wandb",
        metavar="{wandb,mlflow}",
        help="send settings, rows, evaluation and model to a tracker (default: none; alone: wandb)",
    )
    run.add_argument("--quiet", action="store_true", help="print nothing but errors")
    add_settings(made, CONFIGS[algorithm], leave_out=("preset",))
    return made


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    algorithm = algorithm_asked(arguments)
    asked = parser(algorithm).parse(arguments)
    asked.track = list(check_trackers(asked.track or ()))
    config = CONFIGS[algorithm]
    given = settings_given(asked, config)
    file = settings_from_file(asked.config, algorithm, asked.env, given)
    asked.env = file.env
    asked.total_timesteps = asked.total_timesteps or file.total_timesteps
    return _train(asked, algorithm, file.settings | given)


def _train(asked: argparse.Namespace, algorithm: str, settings: dict[str, Any]) -> int:
    """Make everything, train, save, evaluate; whatever is wrong is said before the first step."""
    with imports_of_a_command():
        from upslope.config import preset_timesteps
        from upslope.runs.description import default_path
        from upslope.runs.directory import RunDirectory

    wanted = settings.pop("preset", "auto")
    agent = _agent(asked, algorithm, wanted, settings)
    source, config = agent.source, agent.config
    assert source is not None
    total = asked.total_timesteps or preset_timesteps(source.id, algorithm, wanted)
    named = default_path(source.name, algorithm, config.seed)
    path = RunDirectory.place(Path(asked.run_dir) if asked.run_dir else named)
    flags = ("stop_return", "eval_freq", "episodes", "from_model", "track")
    command = {name: getattr(asked, name) for name in flags}

    def directory(callbacks: Sequence[Any]) -> RunDirectory:
        made = RunDirectory(path, agent, total, callbacks=callbacks, command=command)
        if asked.stop_return is not None:
            made.target_return = asked.stop_return
        return made

    def train(callbacks: Sequence[Any], directory: RunDirectory) -> None:
        agent.train_to(total, callbacks, directory)

    return Session(agent, total, path, command, asked.quiet, directory, train).run()


def _agent(
    asked: argparse.Namespace, algorithm: str, preset: str, settings: dict[str, Any]
) -> Agent:
    """A new agent, or one that learns on from a model."""
    from upslope.agent import AGENTS, load

    if asked.from_model is None:
        return AGENTS[algorithm](asked.env, preset=preset, **settings)
    path = model_of(asked.from_model)
    agent = load(path, asked.env, **settings)
    if agent.algorithm != algorithm:
        raise ConfigError(
            f"{path} was trained by {agent.algorithm}, and weights do not change their algorithm: "
            "leave --algo out"
        )
    return agent
