"""Run this library and its peers in turn on the same work and append one CSV line per run.

    python bench/speed/run.py                              # what is still missing
    python bench/speed/run.py --row ppo-cartpole --rounds 7 --sbx-python /path/to/python
    python bench/speed/run.py --quick                      # under three minutes, kept apart

Each run is a process of its own and nothing runs beside it. Stop it with Ctrl-C and the same
command goes on: runs that the CSV holds with the same settings and commit are skipped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from contenders import Contenders, RunError, git_commit, sbx_is_there
from results import PATH, Job, append, jobs_of, unfinished
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rows import ENGINES, PEERS, ROWS, Row

ROUNDS, QUICK_ROUNDS = 5, 3
QUICK_ENGINES = ("auto",)  # a compiled loop takes longer to build than the quick form may


def main() -> int:
    """Run what is missing; return 0 if nothing is then, 1 if a run failed, 130 on Ctrl-C."""
    asked = _arguments()
    rows = chosen(asked.row, quick=asked.quick)
    if not rows:
        print(f"no row has {' or '.join(asked.row)} in its name: {_names(quick=asked.quick)}")
        return 2
    jobs = jobs_of(
        rows,
        asked.rounds or (QUICK_ROUNDS if asked.quick else ROUNDS),
        _peers(asked, rows),
        engines=asked.compile or (QUICK_ENGINES if asked.quick else ENGINES),
        quick=asked.quick,
    )
    missing = jobs if asked.again else unfinished(jobs, asked.csv, git_commit())
    print(f"{len(jobs)} runs asked for, {len(missing)} to do -> {asked.csv}", flush=True)
    try:
        with Contenders(asked.sbx_python) as contenders, _bar() as bar:
            failures = work(missing, contenders, asked.csv, bar)
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from here", flush=True)
        return 130
    return 1 if failures else 0


def work(jobs: list[Job], contenders: Contenders, path: Path, bar: Progress) -> int:
    """Run the jobs in their order; return how many failed."""
    failures, task = 0, bar.add_task("", total=len(jobs))
    for number, job in enumerate(jobs, 1):
        bar.update(task, description=str(job))
        try:
            line = contenders.run(job)
        except RunError as error:
            failures += 1
            text = f"failed: {error}"
        else:
            append(line, path)
            text = _summary(line)
        bar.advance(task)
        bar.console.print(
            f"[{number}/{len(jobs)}] {job}: {text}", markup=False, highlight=False, soft_wrap=True
        )
    return failures


def chosen(parts: list[str], *, quick: bool) -> list[Row]:
    """The rows whose names contain a part, or all; the quick form has only some."""
    return [
        row
        for row in ROWS
        if (row.quick_steps or not quick) and (not parts or any(part in row.name for part in parts))
    ]


def _summary(line: dict[str, Any]) -> str:
    text = f"{line['steps_per_s']:,.0f} steps/s, {line['seconds']:.2f} s, {line['peak_mb']:.0f} MiB"
    reached = {"yes": ", reached", "no": ", not reached"}.get(line["reached"], "")
    return f"{text}, {line['engine']}{reached}"


def _peers(asked: argparse.Namespace, rows: list[Row]) -> tuple[str, ...]:
    """The peers that can be run; what is left out is said."""
    if asked.quick or not any("sbx" in row.peers for row in rows):
        return ("sb3",)
    if sbx_is_there(asked.sbx_python):
        return PEERS
    print("SBX is left out: give --sbx-python an interpreter with `pip install sbx-rl`", flush=True)
    return ("sb3",)


def _bar() -> Progress:
    """A progress bar on a terminal, nothing elsewhere."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    text = TextColumn("{task.description}", markup=False)
    return Progress(*columns, text, transient=True, disable=not sys.stdout.isatty())


def _names(*, quick: bool) -> str:
    return "there are " + ", ".join(row.name for row in chosen([], quick=quick))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", action="append", default=[], metavar="PART",
                        help="rows whose name contains PART")  # fmt: skip
    parser.add_argument("--rounds", type=_count, metavar="N",
                        help=f"of every run ({ROUNDS}; {QUICK_ROUNDS} with --quick)")  # fmt: skip
    parser.add_argument(
        "--compile",
        nargs="+",
        choices=ENGINES,
        metavar="STATE",
        help="our runs (default: auto always never; --quick: fewer)",
    )
    parser.add_argument("--quick", action="store_true",
                        help="fewer steps and rows; not for the table")  # fmt: skip
    parser.add_argument("--sbx-python", metavar="PATH", help="an interpreter that has SBX")
    parser.add_argument("--csv", type=Path, default=PATH, help="where the lines go")
    parser.add_argument("--again", action="store_true", help="also run what the CSV holds already")
    return parser.parse_args()


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
