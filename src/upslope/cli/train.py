"""``upslope train ENV``: train, save, evaluate, and say what was reached and where it lies."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from upslope.cli.evaluation_bar import evaluation_bar
from upslope.cli.parser import Parser, add_settings, finite_number, settings_given, whole_number
from upslope.config import CONFIGS
from upslope.errors import ConfigError, did_you_mean
from upslope.imports import imports_of_a_command


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
        "--config", metavar="FILE", help="settings from a .toml or .json file; flags override it"
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
    run.add_argument("--quiet", action="store_true", help="print nothing but errors")
    add_settings(made, CONFIGS[algorithm], leave_out=("preset",))
    return made


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    algorithm = _algorithm(arguments)
    asked = parser(algorithm).parse(arguments)
    config = CONFIGS[algorithm]
    settings = _from_file(asked.config, algorithm) | settings_given(asked, config)

    return _train(asked, algorithm, settings)


def _train(asked: argparse.Namespace, algorithm: str, settings: dict[str, Any]) -> int:
    """Make everything, train, save, evaluate; whatever is wrong is said before the first step."""
    with imports_of_a_command():
        from upslope.agent import AGENTS
        from upslope.callbacks import EvalCallback, StopTrainingOnRewardThreshold
        from upslope.cli.summary import train_summary
        from upslope.config import preset_timesteps
        from upslope.runs.directory import BEST_MODEL, RunDirectory, default_path, exit_code
        from upslope.runs.live import LiveProgress

    wanted = settings.pop("preset", "auto")
    agent = AGENTS[algorithm](asked.env, preset=wanted, **settings)
    source, config = agent.source, agent.config
    assert source is not None
    total = asked.total_timesteps or preset_timesteps(source.id, algorithm, wanted)
    path = (
        Path(asked.run_dir) if asked.run_dir else default_path(source.name, algorithm, config.seed)
    )
    directory = RunDirectory.create(path, agent, total)
    callbacks: list[Any] = [directory]
    if asked.stop_return is not None:
        directory.target_return = asked.stop_return
        callbacks.append(StopTrainingOnRewardThreshold(asked.stop_return))
    if asked.eval_freq is not None:
        best = directory.path / BEST_MODEL
        callbacks.insert(0, EvalCallback(asked.eval_freq, best_model_save_path=best))
    envs = agent.training.envs
    title = f"{source.name} · {algorithm} · seed {config.seed} · {envs.n_envs} x {envs.engine.name}"
    interrupted, score = False, None
    with contextlib.ExitStack() as stack:
        if not asked.quiet:
            stream = sys.stderr if sys.stderr.isatty() else sys.stdout
            live = stack.enter_context(LiveProgress(agent, total, stream, title))
            callbacks.append(live)
        try:
            with directory:
                agent.learn(total, callbacks)
        except KeyboardInterrupt:
            interrupted = True  # run.json has the exit code of the signal
    if asked.episodes and not interrupted:
        try:
            with evaluation_bar(2 * asked.episodes, quiet=asked.quiet) as progress:
                score = agent.evaluate(asked.episodes, progress=progress)
        except KeyboardInterrupt as stopped:
            directory.update(state="interrupted", exit_code=exit_code(stopped))
            raise
        directory.write_evaluation(score)
    if not asked.quiet:
        print(train_summary(agent, directory, score, asked.stop_return))
    agent.close()
    return int(directory.state["exit_code"])


def _algorithm(arguments: Sequence[str]) -> str:
    """Look for ``--algo`` first, which decides what flags there are; a settings file may too."""
    found: Any = "ppo"
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        following = value if equals else arguments[i + 1] if i + 1 < len(arguments) else ""
        if flag == "--algo":
            found = following
            break
        if flag == "--config":
            found = _read(following).get("algo", found)
    if not isinstance(found, str) or found not in CONFIGS:
        raise ConfigError(
            f"--algo {found} is not one of {', '.join(CONFIGS)}{did_you_mean(str(found), CONFIGS)}"
        )
    return found


def _from_file(path: str | None, algorithm: str) -> dict[str, Any]:
    if path is None:
        return {}
    settings = _read(path)
    settings.pop("algo", None)
    known = {name.replace("-", "_"): value for name, value in settings.items()}
    CONFIGS[algorithm].from_settings(known)
    return known


def _read(path: str) -> dict[str, Any]:
    """Read a settings file; nothing in it is evaluated."""
    file = Path(path)
    try:
        text = file.read_text()
        if file.suffix == ".json":
            settings = json.loads(text)
        elif file.suffix == ".toml":
            settings = tomllib.loads(text)
        else:
            raise ConfigError(f"--config {path}: give a .toml or .json file")
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"--config {path} cannot be read: {error}") from error
    if isinstance(settings, dict) and {"settings", "algorithm"} <= set(settings):
        return {**settings["settings"], "algo": settings["algorithm"]}  # config.json of a run
    if not isinstance(settings, dict):
        raise ConfigError(f"--config {path} must hold a table of settings, such as gamma = 0.98")
    return settings
