"""``upslope lab ladder ENV``: every rung from REINFORCE to PPO with paired seeds, compared."""

from __future__ import annotations

import contextlib
import csv
import json
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.cli.lab_out import require_matplotlib
from upslope.cli.parser import Parser, pair, whole_number
from upslope.cli.text_table import aligned
from upslope.errors import ConfigError

if TYPE_CHECKING:
    from upslope.lab.ladder import Ladder, Tick

WIDTH = 100


def parser() -> Parser:
    """Return the parser of ``upslope lab ladder``."""
    made = Parser(
        "upslope lab ladder",
        "Train every rung from REINFORCE to PPO, one idea a rung, with the same seeds, and compare "
        "neighbours: returns, and the variance of the gradient on the same episodes.",
    )
    made.add_argument("env", metavar="ENV", help="an id, module:Env-v0, or my_env.py:make_env")
    made.add_argument("--seeds", type=whole_number(1), default=3, metavar="K",
                      help="seeds 0 to K - 1; verdicts need 5 (default: 3)")  # fmt: skip
    made.add_argument("--total-timesteps", "-n", type=whole_number(1), default=100_000, metavar="N",
                      help="environment steps of each run (default: 100000)")  # fmt: skip
    made.add_argument("--jobs", type=whole_number(1), default=2, metavar="N",
                      help="runs side by side; no result depends on it (default: 2)")  # fmt: skip
    made.add_argument("--out", metavar="DIR",
                      help="write ladder.json, ladder.csv, ladder.png; finished runs are kept in "
                      "its runs.jsonl and not repeated")  # fmt: skip
    made.add_argument("--env-kwargs", nargs="+", default=[], metavar="K=V",
                      help="keyword arguments of the environment's constructor")  # fmt: skip
    made.add_argument("--max-episode-steps", type=whole_number(1), metavar="N",
                      help="cut episodes after so many steps")  # fmt: skip
    made.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return made


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    asked = parser().parse(arguments)
    out = None if asked.out is None else Path(asked.out)

    from upslope.lab.ladder import climb
    from upslope.lab.ladder_findings import findings

    if out is not None:
        require_matplotlib("ladder.png")
    with _progress(quiet=asked.json) as progress:
        ladder = climb(
            asked.env,
            seeds=asked.seeds,
            total_timesteps=asked.total_timesteps,
            jobs=asked.jobs,
            out=out,
            env_kwargs=dict(pair(text) for text in asked.env_kwargs),
            max_episode_steps=asked.max_episode_steps,
            progress=progress,
        )
    said = findings(ladder)
    result = {**ladder.to_json(), "findings": said}
    if out is not None:
        _write(out, ladder, result)
    if asked.json:
        print(json.dumps(result, allow_nan=False))
    else:
        print(report(ladder, said))
        if out is not None:
            print(f"\nwritten  {out / 'ladder.json'}, ladder.csv, ladder.png")
    return 0


def report(ladder: Ladder, said: Sequence[str]) -> str:
    """Return the findings, the tables, and what each rung changed."""
    parts = [textwrap.fill(sentence, WIDTH) for sentence in said]
    parts.append(_returns_table(ladder))
    parts += [_gradient_table(ladder, policy) for policy in ladder.gradient]
    parts.append(_rungs(ladder))
    return "\n\n".join(parts)


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[Tick], None] | None]:
    """A bar on a terminal, else a plain line for each run that finishes; nothing if ``quiet``."""
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        yield lambda tick: _line(tick)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.fields[runs]} runs"), BarColumn(), TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(), TextColumn("{task.description}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, runs="0")

        def show(tick: Tick) -> None:
            runs = f"{tick.finished}/{tick.runs}"
            bar.update(task, completed=tick.steps, total=tick.total_steps, runs=runs)
            if tick.run is not None:
                bar.update(task, description=tick.run)

        yield show


def _line(tick: Tick) -> None:
    """Print what has just finished; a reader that went away stops nothing."""
    if tick.run is not None:
        with contextlib.suppress(BrokenPipeError, ValueError):
            print(f"{tick.finished}/{tick.runs} {tick.run}", file=sys.stderr, flush=True)


def _returns_table(ladder: Ladder) -> str:
    from upslope.lab.ladder_findings import decimals, with_ci

    places = decimals(ladder)
    rows = [
        ["rung", "last 100 episodes", "whole run", "minus the rung below", "p, Holm", "verdict"]
    ]
    for i, result in enumerate(ladder.rungs):
        row = [f"{i + 1} {result.rung.name}"]
        row += [with_ci(result.final, places), with_ci(result.area, places)]
        if i:
            step = ladder.final[i - 1]
            p = "-" if step.p_holm is None else f"{step.p_holm:.2g}"
            row += [with_ci(step.interval, places, "+"), p, step.verdict or ""]
        rows.append(row)
    intervals = "95 % t intervals over the seeds; differences and verdicts of the last 100 episodes"
    return f"Returns ({intervals})\n{aligned(rows)}"


def _gradient_table(ladder: Ladder, policy: dict[str, Any]) -> str:
    from upslope.lab.ladder_findings import figures

    rows = [["gradient of", "variance [95 %]", "x the rung below [99 %]", "SNR [95 %]"]]
    for row in policy["estimators"]:
        rungs = [i for i, r in enumerate(ladder.rungs, 1) if r.rung.estimator == row["name"]]
        span = f"{rungs[0]}" if len(rungs) == 1 else f"{rungs[0]}-{rungs[-1]}"
        rows.append(
            [
                f"{span} {ladder.rungs[rungs[0] - 1].rung.name}",
                figures(row["trace"], row["trace_ci"]),
                figures(row["ratio"], row["ratio_ci"]),
                figures(row["snr"], row["snr_ci"]),
            ]
        )
    return (
        f"Gradient of one episode at the {policy['policy']} policy ({policy['timesteps']:,} steps; "
        f"jackknife over {policy['episodes'] // policy['batch_episodes']} batches of "
        f"{policy['batch_episodes']} episodes)\n{aligned(rows)}"
    )


def _rungs(ladder: Ladder) -> str:
    """What is new on each rung, and every setting that is not the rung below's."""
    lines = ["Rungs, and every setting that differs from the rung below"]
    for i, result in enumerate(ladder.rungs, 1):
        lines.append(f"{i} {result.rung.name}: {result.rung.idea}")
        changed = ", ".join(_change(one) for one in result.differs)
        if changed:
            lines.append(textwrap.indent(textwrap.fill(changed, WIDTH - 4), "    "))
    mean = [f"{result.steps_per_update:,.0f}" for result in ladder.rungs]
    lines.append(f"environment steps of an update, on average, rung by rung: {', '.join(mean)}")
    return "\n".join(lines)


def _change(one: dict[str, Any]) -> str:
    if "here" not in one:
        return f"no {one['setting']}"
    if "below" not in one:
        return f"{one['setting']}={one['here']}"
    return f"{one['setting']} {one['below']} -> {one['here']}"


def _write(out: Path, ladder: Ladder, result: dict[str, Any]) -> None:
    from upslope.lab.ladder_figure import save_figure

    try:
        (out / "ladder.json").write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
        with (out / "ladder.csv").open("w", newline="") as file:
            csv.writer(file).writerows(_curves(ladder))
        save_figure(ladder, out / "ladder.png")
    except OSError as error:
        raise ConfigError(
            f"cannot write into {str(out)!r:.300}: {error.strerror or error}; give another --out"
        ) from error


def _curves(ladder: Ladder) -> Iterator[list[Any]]:
    """The rows of ladder.csv: mean, pointwise interval and every seed at each point."""
    from upslope.lab.seeded_runs import point_steps

    seeds = [f"seed_{seed}" for seed in ladder.seeds]
    yield ["rung", "name", "timesteps", "mean", "ci95_low", "ci95_high", *seeds]
    for i, result in enumerate(ladder.rungs, 1):
        for k, steps in enumerate(point_steps(ladder.total_timesteps)):
            point = result.curve[k]
            values = [point.value, point.low, point.high, *(run["curve"][k] for run in result.runs)]
            yield [i, result.rung.name, steps, *("" if v is None else repr(v) for v in values)]
