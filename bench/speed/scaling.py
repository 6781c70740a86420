"""How cost grows: steps a second over environments, width of the network, length of the rollout.

    python bench/speed/scaling.py
    python bench/speed/scaling.py --axis rollout --repeats 1

PPO on CartPole-v1's native vector, one thread, one axis at a time; every run is a process of its
own. Appends to scaling.csv, resumes, and writes scaling.md and scaling.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from contenders import Contenders, RunError, cpu_model, git_commit
from results import Line, append, read, spread

PATH = Path(__file__).parent / "scaling.csv"
N_ENVS, WIDTH, ROWS = 64, 64, 2048  # where an axis does not vary it
FEWEST_STEPS = 1_000_000  # of the plan that decides the engine; runs end by the clock
REPEATS, SECONDS = 3, 2.0
SETTINGS = {"batch_size": 256, "n_epochs": 2, "gamma": 0.98, "gae_lambda": 0.8}
COLUMNS = ("axis", "value", "repeat", "steps_per_s", "peak_mb", "steps", "n_envs", "n_steps",
           "width", "engine", "vec", "cpu", "git_commit", "date")  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """What varies, and how it is called."""

    values: tuple[int, ...]
    label: str
    fixed: str


AXES = {
    "environments": Axis(
        (1, 4, 16, 64, 256, 1024), "environments", f"rollouts of {ROWS} steps, {WIDTH} units"
    ),
    "units": Axis(
        (64, 128, 256, 512, 1024), "units of each hidden layer",
        f"{N_ENVS} environments, rollouts of {ROWS} steps",
    ),
    "rollout": Axis(
        (1_000, 10_000, 100_000, 1_000_000), "environment steps of a rollout",
        f"{N_ENVS} environments, {WIDTH} units",
    ),
}  # fmt: skip


def main() -> int:
    """Run what is missing, then draw and tabulate; 1 if a run failed, 130 on Ctrl-C."""
    asked = _arguments()
    commit = git_commit()
    done = set() if asked.again else {_key(x) for x in read(asked.csv) if x["git_commit"] == commit}
    points = [
        (axis, value, repeat)
        for repeat in range(asked.repeats)
        for axis in asked.axis or AXES
        for value in AXES[axis].values
    ]
    missing = [p for p in points if tuple(map(str, p)) not in done]
    print(f"{len(points)} runs asked for, {len(missing)} to do -> {asked.csv}", flush=True)
    failures = 0
    try:
        with Contenders(None) as contenders:
            for number, point in enumerate(missing, 1):
                print(f"[{number}/{len(missing)}] ", end="", flush=True)
                failures += _run(point, contenders, asked)
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from here", flush=True)
        return 130
    lines = _of_last_commit(read(asked.csv))
    if lines:
        asked.csv.with_suffix(".md").write_text(tables(lines))
        draw(lines, asked.csv.with_suffix(".png"))
    return 1 if failures else 0


def work_of(axis: str, value: int) -> tuple[int, int, int]:
    """Environments, steps of each in a rollout, and width, at one point of an axis."""
    n_envs = value if axis == "environments" else N_ENVS
    rows = value if axis == "rollout" else ROWS
    return n_envs, -(-rows // n_envs), value if axis == "units" else WIDTH


def tables(lines: Sequence[Line]) -> str:
    """The Markdown: median and range of every point."""
    parts = [
        "# How cost grows",
        f"PPO, CartPole-v1, minibatches of {SETTINGS['batch_size']}, {SETTINGS['n_epochs']} "
        f"epochs, one thread, `--compile auto`, the first iteration left out; median (range) of "
        f"the repeats.\n{lines[-1]['cpu']}, commit {lines[-1]['git_commit']}.",
        "![Steps a second against environments, units and rollout](scaling.png)",
    ]
    for name, axis in AXES.items():
        found = _by_value(name, lines)
        head = (axis.label, "steps/s", "us a step", "peak MiB", "engine", "vector")
        body = [
            (f"{value:,}", spread(_column(mine, "steps_per_s"), 0),
             f"{1e6 / median(_column(mine, 'steps_per_s')):.1f}",
             spread(_column(mine, "peak_mb"), 0), mine[-1]["engine"], mine[-1]["vec"])
            for value, mine in found.items()
        ]  # fmt: skip
        rows = "\n".join("| " + " | ".join(x) + " |" for x in (head, ["---"] * len(head), *body))
        parts.append(f"## {axis.label.capitalize()}\n\n{axis.fixed}.\n\n{rows}")
    return "\n\n".join(parts) + "\n"


def draw(lines: Sequence[Line], path: Path) -> None:
    """One panel an axis, both scales logarithmic, medians with their ranges."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(AXES), figsize=(11, 3.6), sharey=True, dpi=130)
    for panel, (name, axis) in zip(panels, AXES.items(), strict=True):
        found = {
            value: _column(mine, "steps_per_s") for value, mine in _by_value(name, lines).items()
        }
        middle = [median(rates) for rates in found.values()]
        below = [m - min(rates) for m, rates in zip(middle, found.values(), strict=True)]
        above = [max(rates) - m for m, rates in zip(middle, found.values(), strict=True)]
        panel.errorbar(list(found), middle, [below, above], marker="o", capsize=3, color="#1f5a99")
        panel.set(xscale="log", yscale="log", xlabel=axis.label)
        panel.set_title(axis.fixed, fontsize=9)
        panel.set_xticks(list(axis.values), [_short(value) for value in axis.values])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    rates = [float(line["steps_per_s"]) for line in lines]
    ticks = [t for t in _round_numbers() if min(rates) / 2 <= t <= max(rates) * 2]
    panels[0].set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    panels[0].set_ylabel("environment steps a second")
    figure.suptitle("PPO on CartPole-v1, one thread", fontsize=11)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def _run(point: tuple[str, int, int], contenders: Contenders, asked: argparse.Namespace) -> int:
    """Run one point and append its line; return 1 if that failed."""
    axis, value, repeat = point
    n_envs, n_steps, width = work_of(axis, value)
    settings = {**SETTINGS, "n_steps": n_steps, "net_arch": [width, width]}
    job: dict[str, Any] = {
        "env": "CartPole-v1", "n_envs": n_envs, "seed": repeat, "compile": "auto",
        "steps": max(FEWEST_STEPS, 2 * n_envs * n_steps), "seconds": asked.seconds,
        "settings": settings,
    }  # fmt: skip
    try:
        found = contenders.start_worker("pace.py", job, threads=1)
    except RunError as error:
        print(f"{axis} {value} failed: {error}", flush=True)
        return 1
    kept = {name: found[name] for name in ("peak_mb", "steps", "engine", "vec")}
    rate = round(found["steps_per_s"], 1)
    where = {"axis": axis, "value": value, "repeat": repeat, "steps_per_s": rate}
    how = {"n_envs": n_envs, "n_steps": n_steps, "width": width, "cpu": cpu_model()}
    when = {
        "git_commit": git_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    append(where | kept | how | when, asked.csv, COLUMNS)
    print(f"{axis} {value}: {rate:,.0f} steps/s", flush=True)
    return 0


def _key(line: Line) -> tuple[str, ...]:
    return tuple(line[name] for name in ("axis", "value", "repeat"))


def _of_last_commit(lines: Sequence[Line]) -> list[Line]:
    """The last line of every point, of the commit that ran last."""
    mine = {_key(x): x for x in lines if x["git_commit"] == lines[-1]["git_commit"]}
    return list(mine.values())


def _by_value(axis: str, lines: Sequence[Line]) -> dict[int, list[Line]]:
    found = {v: [x for x in lines if (x["axis"], x["value"]) == (axis, str(v))]
             for v in AXES[axis].values}  # fmt: skip
    return {value: mine for value, mine in found.items() if mine}


def _column(lines: Sequence[Line], name: str) -> list[float]:
    return [float(line[name]) for line in lines]


def _short(value: int) -> str:
    """1,000 as 1k and 1,000,000 as 1M; 1,024 stays as it is."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if value % size == 0:
            return f"{value // size}{letter}"
    return str(value)


def _round_numbers() -> list[int]:
    return [digit * 10**power for power in range(7) for digit in (1, 2, 5)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--axis", action="append", choices=tuple(AXES), help="default: all")
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"default: {REPEATS}")
    parser.add_argument("--seconds", type=float, default=SECONDS,
                        help=f"of training to measure (default: {SECONDS:g})")  # fmt: skip
    parser.add_argument("--csv", type=Path, default=PATH, help="where the lines go")
    parser.add_argument("--again", action="store_true", help="also run what the CSV holds already")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
