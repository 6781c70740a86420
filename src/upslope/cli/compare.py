"""``upslope compare ENV``: is one algorithm, or one setting, better here than another?"""

from __future__ import annotations

import contextlib
import csv
import json
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.cli.parser import Parser, finite_number, pair, whole_number
from upslope.cli.text_table import aligned
from upslope.config import CONFIGS
from upslope.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from upslope.lab.compare import Plan, Progress
    from upslope.lab.compare_runs import Arm

WIDTH = 100
FIGURE = "compare.png"
CSV_COLUMNS = (
    *("arm", "algorithm", "seed", "mean", "ci95_low", "ci95_high", "std", "iqm", "min"),
    *("failure_share", "success_rate", "episodes", "timesteps", "training_episodes"),
)


def parser() -> Parser:
    """Return the parser of ``upslope compare``."""
    made = Parser(
        "upslope compare",
        "Train each arm with several seeds, score every final policy on fresh episodes, and decide "
        "by a rule that is fixed beforehand: looks at 5, 10, 15 and 20 seeds, each at the level "
        "0.0182.",
    )
    made.add_argument("env", metavar="ENV", help="an id, module:Env-v0, or my_env.py:make_env")
    arms = made.add_argument_group("arms (one of the two)")
    arms.add_argument("--algos", metavar="A,B", help="algorithms, such as ppo,a2c")
    arms.add_argument("--configs", metavar="A,B",
                      help="settings files as for `upslope train --config`, or runs' config.json; "
                      "algo in it names the algorithm")  # fmt: skip
    arms.add_argument("--preset", default="auto", metavar="{auto,none}",
                      help="tuned settings where there are some (default: auto)")  # fmt: skip
    rule = made.add_argument_group("rule, fixed before the first run")
    rule.add_argument("--seeds", type=whole_number(1), default=10, metavar="N",
                      help="at most so many for each arm, fewer once decided; verdicts need 5 "
                      "(default: 10, most: 30)")  # fmt: skip
    rule.add_argument("--paired", action="store_true",
                      help="all arms take the same seeds and are compared seed by seed, for "
                      "variants of one algorithm (default: seeds of their own)")  # fmt: skip
    rule.add_argument("--margin", type=finite_number(), metavar="M",
                      help="arms whose difference surely is less are equivalent")  # fmt: skip
    rule.add_argument("--total-timesteps", "-n", type=whole_number(1), default=100_000, metavar="N",
                      help="environment steps of each run (default: 100000)")  # fmt: skip
    rule.add_argument("--episodes", type=whole_number(1), default=100, metavar="N",
                      help="fresh episodes that score a final policy (default: 100)")  # fmt: skip
    rule.add_argument("--deterministic", action="store_true",
                      help="score the mode of each action (default: sampled actions)")  # fmt: skip
    _add_run_flags(made)
    return made


def _add_run_flags(made: Parser) -> None:
    run = made.add_argument_group("environment and output")
    run.add_argument("--env-kwargs", nargs="+", default=[], metavar="K=V",
                     help="keyword arguments of the environment's constructor")  # fmt: skip
    run.add_argument("--max-episode-steps", type=whole_number(1), metavar="N",
                     help="cut episodes after so many steps")  # fmt: skip
    run.add_argument("--jobs", type=whole_number(1), default=2, metavar="N",
                     help="runs side by side; no result depends on it (default: 2)")  # fmt: skip
    run.add_argument("--out", metavar="DIR",
                     help="compare.json, .csv and .png go there, and finished runs are kept and "
                     "not repeated (default: compare/ENV__TIME)")  # fmt: skip
    run.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    asked = parser().parse(arguments)
    if asked.margin is not None and asked.margin <= 0:
        raise ConfigError(f"--margin {asked.margin:g} must be above 0")

    from upslope.lab.compare import compare
    from upslope.lab.compare_findings import findings

    plan, can_draw = _plan(asked), _can_draw()
    _ = plan.rule, plan.resolved  # whatever is wrong with them is said before anything is made
    out = Path(asked.out) if asked.out else _default_path(plan.env)
    try:
        with _progress(plan, quiet=asked.json) as progress:
            done = compare(plan, jobs=asked.jobs, out=out, progress=progress)
    except KeyboardInterrupt:
        with contextlib.suppress(BrokenPipeError, ValueError):
            print(f"finished runs are kept: {_again(arguments, out)} goes on", file=sys.stderr)
        raise
    found = done.to_json()
    result = {**found, "findings": findings(found)}
    _write(out, result, can_draw)
    if asked.json:
        print(json.dumps(result, allow_nan=False))
    else:
        print(report(result))
        print(f"\nwritten  {out / 'compare.json'}, compare.csv{', ' + FIGURE if can_draw else ''}")
        if not can_draw:
            print(f"         {FIGURE} needs matplotlib: run pip install 'upslope[plots]'")
    return 0


def report(found: dict[str, Any]) -> str:
    """Return the findings, a line an arm, and every seed."""
    from upslope.lab.compare_findings import number, places_of, with_ci

    places = places_of(found)
    threshold = found["arms"][0]["threshold"]
    head = ["arm", "seeds", "mean [95 %]", "IQM [95 %]", "worst seed"]
    rows = [head if threshold is None else [*head, f"below {threshold:g}"]]
    for arm in found["arms"]:
        n, failed = len(arm["per_seed"]), len(arm["failed"])
        row = [arm["name"], f"{n}, {failed} failed" if failed else str(n)]
        row += [with_ci(arm["mean"], arm["ci95"], places)]
        row += [with_ci(arm["iqm"], arm["iqm_ci95"], places)]
        row += ["failed" if failed else number(arm["min"], places)]
        if threshold is not None:
            row.append(f"{arm['failures']} of {n - failed}")
        rows.append(row)
    said = [textwrap.fill(sentence, WIDTH) for sentence in found["findings"]]
    seeds = ["every seed"]
    for arm in found["arms"]:
        shown = ("failed" if s is None else number(s, places) for s in arm["per_seed"])
        scores = " ".join(shown)
        seeds.append(textwrap.fill(f"{arm['name']}: {scores}", WIDTH, subsequent_indent="  "))
    return "\n\n".join([*said, aligned(rows), "\n".join(seeds)])


def _plan(asked: Any) -> Plan:
    from upslope.lab.compare import Plan

    own = {"env_kwargs": dict(pair(text) for text in asked.env_kwargs)} if asked.env_kwargs else {}
    if asked.max_episode_steps is not None:
        own["max_episode_steps"] = asked.max_episode_steps
    arms, env = _arms(asked, own)
    return Plan(
        env,
        tuple(arms),
        seeds=asked.seeds,
        total_timesteps=asked.total_timesteps,
        episodes=asked.episodes,
        is_deterministic=asked.deterministic,
        is_paired=asked.paired,
        margin=asked.margin,
    )


def _arms(asked: Any, own: dict[str, Any]) -> tuple[list[Arm], str]:
    """The arms that were named, each under a name of its own, and the environment of them all.

    A zoo's file may name a current version in the place of an old one, which is then all arms'.
    """
    if (asked.algos is None) == (asked.configs is None):
        raise ConfigError("name what to compare: either --algos ppo,a2c or --configs A.toml,B.toml")
    named = [name for name in (asked.algos or asked.configs).split(",") if name]
    if len(named) < 2:
        raise ConfigError("a comparison needs at least two arms, such as --algos ppo,a2c")
    make = _of_algorithm if asked.algos is not None else _of_file
    arms: list[Arm] = []
    env = asked.env
    for name in named:
        arm, env = make(name, env, asked.preset, own, [arm.name for arm in arms])
        arms.append(arm)
    return arms, env


def _of_algorithm(
    name: str, env: str, preset: str, own: dict[str, Any], taken: Sequence[str]
) -> tuple[Arm, str]:
    from upslope.lab.compare_runs import Arm

    if name not in CONFIGS:
        hint = did_you_mean(name, CONFIGS)
        raise ConfigError(f"--algos {name} is not one of {', '.join(CONFIGS)}{hint}")
    return Arm(_free(name, taken), name, own, preset), env


def _of_file(
    path: str, env: str, preset: str, own: dict[str, Any], taken: Sequence[str]
) -> tuple[Arm, str]:
    from upslope.cli.settings_file import algorithm_asked, settings_from_file
    from upslope.lab.compare_runs import Arm

    algorithm = algorithm_asked([f"--config={path}"])
    said = settings_from_file(path, algorithm, env, own)
    settings = {name: value for name, value in said.settings.items() if name != "seed"}
    preset = settings.pop("preset", preset)
    file = Path(path)
    name = file.parent.name if file.name == "config.json" and file.parent.name else file.stem
    return Arm(_free(name, taken), algorithm, {**settings, **own}, preset), said.env


def _free(name: str, taken: Sequence[str]) -> str:
    """The name, or the first of ``name-2``, ``name-3``, ... that no arm has."""
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def _default_path(env: str) -> Path:
    from upslope.runs.description import file_name, unused

    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return unused(Path("compare") / f"{file_name(env)}__{stamp}")


def _again(arguments: Sequence[str], out: Path) -> str:
    """The command that goes on with an interrupted comparison."""
    given = any(argument.partition("=")[0] == "--out" for argument in arguments)
    more = [] if given else [f"--out={out}"]
    return f"`{shlex.join(['upslope', 'compare', *arguments, *more])}`"


def _can_draw() -> bool:
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


@contextlib.contextmanager
def _progress(plan: Plan, quiet: bool) -> Iterator[Callable[[Progress], None] | None]:
    """A live table on a terminal, else a plain line for each run that finishes; or nothing."""
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        yield _line
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), transient=True, refresh_per_second=4) as live:
        said: list[str] = []

        def show(progress: Progress) -> None:
            if progress.said is not None:
                said.append(progress.said)
            live.update(_live_table(plan, progress, said[-1] if said else ""))

        yield show


def _line(progress: Progress) -> None:
    """Print what has just finished; a reader that went away stops nothing."""
    if progress.said is not None:
        with contextlib.suppress(BrokenPipeError, ValueError):
            print(progress.said, file=sys.stderr, flush=True)


def _live_table(plan: Plan, progress: Progress, said: str) -> Any:
    """Arms as they stand: how far, and the scores of the runs that have finished."""
    from rich.table import Table

    table = Table(title=f"{plan.env}: next look at {progress.n} seeds", caption=said)
    for column in ("arm", "runs", "steps", "mean so far", "worst", "best"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm, scores, steps in zip(plan.arms, progress.scores, progress.steps, strict=True):
        share = 100 * steps / (progress.n * plan.total_timesteps)
        shown = [sum(scores) / len(scores), min(scores), max(scores)] if scores else []
        table.add_row(
            arm.name, f"{len(scores)}/{progress.n}", f"{share:.0f} %",
            *(f"{value:,.5g}" for value in shown),
        )  # fmt: skip
    return table


def _write(out: Path, result: dict[str, Any], can_draw: bool) -> None:
    try:
        text = json.dumps(result, indent=1, allow_nan=False)
        (out / "compare.json").write_text(text + "\n")
        with (out / "compare.csv").open("w", newline="") as file:
            rows = csv.DictWriter(file, CSV_COLUMNS, extrasaction="ignore", restval="")
            rows.writeheader()
            for one in result["runs"]:
                low, high = one["ci95"] or ("", "")
                rows.writerow({**one, "ci95_low": low, "ci95_high": high})
        if can_draw:
            from upslope.lab.compare_figure import save_figure

            save_figure(result, out / FIGURE)
    except OSError as error:
        raise ConfigError(
            f"cannot write into {str(out)!r:.300}: {error.strerror or error}; give another --out"
        ) from error
