"""Write bench/speed/table.md from the CSV: medians with ranges, ratios by round, verdicts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, median

from results import PACKAGES, PATH, Line, of_last_commit, ratios, read, runs_of, spread
from rows import BY_NAME, ENGINES, ROWS, Row

COMMAND = "python bench/speed/run.py --sbx-python PATH"
BASE = ("sb3", "")
SPEED_HEAD = (
    "work", "`--compile`", "engine", "steps/s", "SB3 steps/s", "ratio to SB3", "SBX steps/s",
    "ratio to SBX", "rounds", "floor", "aim", "reached",
)  # fmt: skip
SOLVE_HEAD = ("contender", "`--compile`", "seeds", "seconds to the return", "whole process, s",
              "steps", "100 fresh episodes, worst seed", "ratio", "ratio of whole processes",
              "floor", "aim", "reached")  # fmt: skip
MILLION_HEAD = ("`--compile`", "seeds", "seconds of training", "steps/s", "ratio to SB3's rate",
                "with the final evaluation", "score S by seed", "mean S", "floor", "aim",
                "reached")  # fmt: skip
MEMORY_HEAD = ("work", "`--compile`", "engine", "MiB", "SB3 MiB", "ratio", "floor", "aim",
               "reached")  # fmt: skip
NOTES = """\
Each cell is the median of the rounds with the smallest and the largest in brackets; a ratio is
taken round by round, of runs that followed each other. Steps a second are those of `learn()`,
first iterations included. `auto` and `never` began with an empty cache; `always` with one that an
earlier run had filled. Floors are of `auto`, aims of `auto` or `always`. Every contender reported
the settings it ran with, and a run whose settings differ from its row's is not in the table. SBX
clips the gradients of actor and critic apart, and its initial weights are not orthogonal; its
compile time counts.
"""
SOLVE_NOTES = """\
Seconds are those from the start of the process to the mean of the last 100 training episodes at
475; the whole process goes on with an evaluation of 100 episodes sampled and 100 by the mode.
Ours is `upslope train CartPole-v1 --stop-return 475`, SB3's the settings of rl-baselines3-zoo
with a callback. A run of SB3 that did not get there counts the seconds it took for all its steps,
which flatters it; one of ours counts 0.
"""
MILLION_NOTES = """\
`upslope train HalfCheetah-v5 --total-timesteps 1000000`, from the start of the process to the end
of training, against the rate of SB3 on its defaults in the same round; S is the mean return of
100 fresh episodes, actions sampled.
"""


def main() -> int:
    """Print the tables and write them beside the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, default=PATH, help="lines of run.py")
    asked = parser.parse_args()
    text = tables(read(asked.csv))
    asked.csv.with_name("table.md").write_text(text)
    print(text, end="")
    return 0


def tables(lines: Sequence[Line]) -> str:
    """The Markdown of all tables, from full runs with today's settings."""
    rates = [row for row in ROWS if row.kind == "rate"]
    solves = [row for row in ROWS if row.kind == "solve"]
    millions = [row for row in ROWS if row.kind == "million"]
    with_memory = [row for row in ROWS if row.memory]
    parts = [
        "# Speed, side by side",
        provenance(lines),
        NOTES.rstrip(),
        _table(SPEED_HEAD, (x for row in rates for x in _speed(row, lines))),
        "## Settings",
        _table(("work", "settings of every contender"), map(_settings, rates)),
        "## A cold shell to CartPole at 475",
        SOLVE_NOTES.rstrip(),
        _table(SOLVE_HEAD, (x for row in solves for x in _solve(row, lines))),
        "## A million steps of HalfCheetah",
        MILLION_NOTES.rstrip(),
        _table(MILLION_HEAD, (x for row in millions for x in _million(row, lines))),
        "## Peak memory",
        _table(MEMORY_HEAD, (x for row in with_memory for x in _memory(row, lines))),
    ]
    return "\n\n".join(parts) + "\n"


def verdict(row: Row, state: str, lines: Sequence[Line]) -> str:
    """What the median of the ratios reaches, together with the scores that it has to go with."""
    values = ratios(row, state, lines)
    if not values:
        return "not run"
    if state == "never":
        return "reference"
    runs = runs_of(row, "upslope", state, lines).values()
    scores = [float(run["score_sampled"] or "nan") for run in runs]
    is_confirmed = row.confirmed is None or min(scores) >= row.confirmed
    floor_score, aim_score = row.scores or (float("-inf"), float("-inf"))
    reached = mean(scores) if row.scores else 0.0
    if is_confirmed and median(values) >= row.aim and reached >= aim_score:
        return "aim"
    if state == "always":
        return "below the aim"
    return (
        "floor" if is_confirmed and median(values) >= row.floor and reached >= floor_score else "no"
    )


def memory_verdict(row: Row, values: Sequence[float]) -> str:
    """What the median ratio of peak memory reaches; less is better."""
    assert row.memory is not None
    floor, aim = row.memory
    if not values:
        return "not run"
    return "aim" if median(values) <= aim else "floor" if median(values) <= floor else "no"


def provenance(lines: Sequence[Line]) -> str:
    """Command, machine, versions, commit and load of the runs that the tables show."""
    shown = [x for row in ROWS for x in of_last_commit(row, lines) if x["row"] == row.name]
    if not shown:
        return "No full run yet."
    packages = {name: _every(shown, name) for name in PACKAGES}
    versions = ", ".join(f"{name} {found}" for name, found in packages.items() if found)
    loads = spread([float(line["load_average"]) for line in shown])
    return (
        f"`{COMMAND}`, {len(shown)} runs from {min(x['date'] for x in shown)} to "
        f"{max(x['date'] for x in shown)}, commit {_every(shown, 'git_commit')}.\n"
        f"{_every(shown, 'cpu')}; threads of a run: {_every(shown, 'threads')}; "
        f"load average before a run: {loads}.\n{versions}."
    )


def _speed(row: Row, lines: Sequence[Line]) -> Iterable[tuple[str, ...]]:
    """A line of the speed table for every state of the row that has run."""
    lines = of_last_commit(row, lines)
    other = BY_NAME[row.against] if row.against else row
    for state in ENGINES:
        ours = runs_of(row, "upslope", state, lines)
        if ours:
            yield (
                row.title, state, _every(ours.values(), "engine"), _rates(ours),
                _rates(runs_of(other, *BASE, lines)), spread(ratios(row, state, lines)),
                _rates(runs_of(row, "sbx", "", lines)) if "sbx" in row.peers else "",
                spread(ratios(row, state, lines, "sbx")) if "sbx" in row.peers else "",
                str(len(ratios(row, state, lines))), f"{row.floor:g}", f"{row.aim:g}",
                verdict(row, state, lines),
            )  # fmt: skip


def _solve(row: Row, lines: Sequence[Line]) -> Iterable[tuple[str, ...]]:
    """Ours in each state, then the peer."""
    lines = of_last_commit(row, lines)
    for contender, state in [("upslope", state) for state in row.engines] + [BASE]:
        runs = runs_of(row, contender, state, lines)
        if not runs:
            continue
        reached = sum(run["reached"] == "yes" for run in runs.values())
        worst = min(float(run["score_sampled"]) for run in runs.values())
        is_ours = contender == "upslope"
        yield (
            contender, state, f"{reached} of {len(runs)} reached it",
            _of(runs, "seconds", 2), _of(runs, "wall_seconds", 2), _of(runs, "steps", 0),
            f"{worst:.1f}",
            spread(ratios(row, state, lines)) if is_ours else "",
            spread(ratios(row, state, lines, column="wall_seconds")) if is_ours else "",
            f"{row.floor:g}" if is_ours else "", f"{row.aim:g}" if is_ours else "",
            verdict(row, state, lines) if is_ours else "",
        )  # fmt: skip


def _million(row: Row, lines: Sequence[Line]) -> Iterable[tuple[str, ...]]:
    lines = of_last_commit(row, lines)
    assert row.scores is not None
    for state in row.engines:
        runs = runs_of(row, "upslope", state, lines)
        if not runs:
            continue
        theirs = runs_of(BY_NAME[row.against], *BASE, lines)
        whole = [
            float(run["steps"]) / float(run["wall_seconds"]) / float(theirs[i]["steps_per_s"])
            for i, run in runs.items()
            if i in theirs
        ]
        scores = [float(run["score_sampled"]) for run in runs.values()]
        floor, aim = (
            f"{x:g}, S {s:g}" for x, s in zip((row.floor, row.aim), row.scores, strict=True)
        )
        yield (
            state, str(len(runs)), _of(runs, "seconds", 1), _rates(runs),
            spread(ratios(row, state, lines)), spread(whole),
            ", ".join(f"{score:.0f}" for score in scores), f"{mean(scores):.0f}", floor, aim,
            verdict(row, state, lines),
        )  # fmt: skip


def _memory(row: Row, lines: Sequence[Line]) -> Iterable[tuple[str, ...]]:
    """Peak memory under the engines that need no built file: replay, and eager."""
    lines = of_last_commit(row, lines)
    other = BY_NAME[row.against] if row.against else row
    assert row.memory is not None
    for state in ("auto", "never"):
        ours = runs_of(row, "upslope", state, lines)
        if ours:
            values = ratios(row, state, lines, column="peak_mb")
            vec = _every(ours.values(), "vec")
            yield (
                f"{row.title} ({vec})", state, _every(ours.values(), "engine"),
                _of(ours, "peak_mb", 0), _of(runs_of(other, *BASE, lines), "peak_mb", 0),
                spread(values), *(f"{x:g}" for x in row.memory), memory_verdict(row, values),
            )  # fmt: skip


def _settings(row: Row) -> tuple[str, ...]:
    facts = ", ".join(f"{name}={value}" for name, value in row.facts.items())
    return row.title, f"{facts}; {row.steps:,} steps"


def _rates(runs: dict[int, Line]) -> str:
    return _of(runs, "steps_per_s", 0)


def _of(runs: dict[int, Line], column: str, digits: int) -> str:
    return spread([float(run[column]) for run in runs.values()], digits)


def _every(lines: Iterable[Line], column: str) -> str:
    """The different values of a column, in order."""
    return ", ".join(sorted({line[column] for line in lines if line[column]}))


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
