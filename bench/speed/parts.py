"""Profile one iteration of this library, part by part, each beside its floor.

    python bench/speed/parts.py
    python bench/speed/parts.py --row ppo-cartpole --compile never

Writes profile.csv (appended) and profile.md (the last profile of each row). The file is not called
profile.py because that name hides a module of Python's own from everything that is run beside it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contenders import Contenders, RunError, cpu_model, git_commit
from results import Line, append, read
from rows import ENGINES, ROWS, Row

PATH = Path(__file__).parent / "profile.csv"
SECONDS = 4.0  # of training that are measured, after the first iterations
PARTS = {
    "environment": "the bare environments with the same actions",
    "acting": "the actor's products and tanh, by NumPy alone",
    "bookkeeping": "a copy of what a rollout keeps",
    "evaluate": "values and log-probabilities: one forward pass at the rate of a matrix product",
    "targets": "r + gamma v' - v, once over the rollout",
    "update": "the arithmetic of all gradient steps at the rate of a matrix product",
    "logging": "nothing has to be logged",
}
COLUMNS = (
    "row", "compile", "engine", "vec", "part", "us_per_step", "floor_us", "whole_us", "steps",
    "gemm_gflops", "cpu", "git_commit", "date",
)  # fmt: skip


def main() -> int:
    """Profile the rows; return 1 if one failed, 130 on Ctrl-C."""
    asked = _arguments()
    rows = [row for row in ROWS if row.kind == "rate"]
    rows = [row for row in rows if not asked.row or any(part in row.name for part in asked.row)]
    failures = 0
    try:
        with Contenders(None) as contenders:
            for number, row in enumerate(rows, 1):
                print(f"[{number}/{len(rows)}] {row.name}", flush=True)
                failures += _profile(row, contenders, asked)
    except KeyboardInterrupt:
        print("\ninterrupted", flush=True)
        return 130
    text = tables(read(asked.csv))
    asked.csv.with_suffix(".md").write_text(text)
    print(text, end="")
    return 1 if failures else 0


def tables(lines: Sequence[Line]) -> str:
    """The Markdown: the last profile of every row under every setting of ``--compile``."""
    found = [
        _table(row, state, last)
        for row in ROWS
        for state in ENGINES
        if (last := _last(row, state, lines))
    ]
    floors = "\n".join(f"- {part}: {floor}" for part, floor in PARTS.items())
    head = "# Where the time goes\n\nMicroseconds an environment step, one thread. Floors:\n\n"
    return head + floors + "\n\n" + "\n\n".join(found) + "\n"


def _profile(row: Row, contenders: Contenders, asked: argparse.Namespace) -> int:
    """Profile one row and append a line per part; return 1 if that failed."""
    job = {
        "algorithm": row.algorithm, "env": row.env, "n_envs": row.n_envs, "seed": 0,
        "steps": row.steps, "settings": row.settings, "compile": asked.compile,
        "seconds": asked.seconds,
    }  # fmt: skip
    try:
        found = contenders.start_worker("parts.py", job, row.threads)
    except RunError as error:
        print(f"{row.name} failed: {error}", flush=True)
        return 1
    date = datetime.now(UTC).isoformat(timespec="seconds")
    for part in PARTS:
        append(_record(row, part, asked.compile, found, date), asked.csv, COLUMNS)
    return 0


def _record(
    row: Row, part: str, state: str, found: dict[str, Any], date: str
) -> dict[str, str | float]:
    return {
        "row": row.name,
        "compile": state,
        "engine": found["engine"],
        "vec": found["vec"],
        "part": part,
        "us_per_step": round(found["parts"][part], 3),
        "floor_us": round(found["floors"][part], 3),
        "whole_us": round(found["whole"], 3),
        "steps": found["steps"],
        "gemm_gflops": round(found["gemm_gflops"], 1),
        "cpu": cpu_model(),
        "git_commit": git_commit(),
        "date": date,
    }


def _last(row: Row, state: str, lines: Sequence[Line]) -> list[Line]:
    """The lines of a row's last profile that is whole."""
    mine = [x for x in lines if x["row"] == row.name and x["compile"] == state]
    dates = [line["date"] for line in mine]
    whole = [date for date in dates if dates.count(date) == len(PARTS)]
    return [line for line in mine if whole and line["date"] == whole[-1]]


def _table(row: Row, state: str, lines: Sequence[Line]) -> str:
    one = lines[0]
    whole = float(one["whole_us"])
    measured = [float(line["us_per_step"]) for line in lines]
    floors = [float(line["floor_us"]) for line in lines]
    body = [
        (line["part"], f"{time:.2f}", f"{time / whole:.0%}", f"{floor:.2f}",
         f"{time / floor:.1f}x" if floor else "")
        for line, time, floor in zip(lines, measured, floors, strict=True)
    ]  # fmt: skip
    rest, total = whole - sum(measured), sum(floors)
    body += [
        ("the loop around them", f"{rest:.2f}", f"{rest / whole:.0%}", "0.00", ""),
        ("**all**", f"{whole:.2f}", "100%", f"{total:.2f}", f"{whole / total:.1f}x"),
    ]
    head = ("part", "us a step", "share", "floor", "times the floor")
    text = "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body))
    about = (
        f"`--compile {state}` ({one['engine']}), {one['vec']} environments, {1e6 / whole:,.0f} "
        f"steps/s over {int(one['steps']):,} steps; a matrix product of the minibatch's shape runs "
        f"at {one['gemm_gflops']} GFLOP/s. {one['cpu']}, commit {one['git_commit']}, {one['date']}."
    )
    return f"## {row.title}\n\n{about}\n\n{text}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", action="append", default=[], metavar="PART",
                        help="rows whose name contains PART")  # fmt: skip
    parser.add_argument("--compile", choices=ENGINES, default="auto", help="default: auto")
    parser.add_argument("--seconds", type=float, default=SECONDS,
                        help=f"of training to measure (default: {SECONDS:g})")  # fmt: skip
    parser.add_argument("--csv", type=Path, default=PATH, help="where the lines go")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
