"""``upslope lab estimators``: every estimator against the exact gradient, on small processes."""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from upslope.cli.lab_out import output_folder
from upslope.cli.parser import Parser, whole_number

BATCHES = 150  # of the first stage


def parser() -> Parser:
    """Return the parser of ``upslope lab estimators``."""
    made = Parser(
        "upslope lab estimators",
        "Measure bias and variance of every estimator of the policy gradient, through the code "
        "that trains, and set them beside the exact ones.",
    )
    made.add_argument("--mdp", action="append", metavar="NAME",
                      help="two-state, delayed-reward, gridworld, sentinel, random, or "
                           "random-SxA-sSEED such as random-10x3-s4; may be given several times "
                           "(default: the five by name)")  # fmt: skip
    made.add_argument("--batches", type=whole_number(60), default=BATCHES, metavar="N",
                      help="of 48 episodes in the first stage; the second takes 4 N "
                           f"(default: {BATCHES}, at least 60)")  # fmt: skip
    made.add_argument("--seed", type=whole_number(), default=0, metavar="S",
                      help="of episodes and actions (default: 0)")  # fmt: skip
    made.add_argument("--jobs", type=whole_number(1), default=2, metavar="N",
                      help="processes; the figures do not depend on it (default: 2)")  # fmt: skip
    made.add_argument("--out", metavar="DIR",
                      help="write estimators.json, .csv and .png there")  # fmt: skip
    made.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return made


def run(arguments: Sequence[str]) -> int:
    """Run the study, print and write what it found."""
    asked = parser().parse(arguments)

    from upslope.lab.problems import PROBLEMS, find_problem
    from upslope.lab.study import PARTS, study_all
    from upslope.lab.study_table import sentences

    names = list(dict.fromkeys(asked.mdp or PROBLEMS))
    for name in names:
        find_problem(name)
    out = None if asked.out is None else output_folder(asked.out, "estimators.png")
    with _bar(len(names) * PARTS, quiet=asked.json) as progress:
        rows = study_all(names, asked.batches, asked.seed, asked.jobs, progress)
    result = {
        "estimators": [row.to_json() for row in rows],
        "batches": asked.batches,
        "seed": asked.seed,
        "confidence": "99 % for all intervals together",
    }
    if asked.json:
        print(json.dumps(result))
    else:
        _print_table(rows)
        print("\n".join(["", *sentences(rows)]))
    if out is not None:
        _write(out, result, rows, asked)
    return 0


def _write(
    out: Path, result: dict[str, Any], rows: Sequence[Any], asked: argparse.Namespace
) -> None:
    from upslope.lab.study_table import figure

    (out / "estimators.json").write_text(json.dumps(result, indent=1) + "\n")
    with (out / "estimators.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(result["estimators"][0]))
        writer.writeheader()
        writer.writerows(result["estimators"])
    title = f"Estimators of the policy gradient, seed {asked.seed}"
    figure(rows, out / "estimators.png", title)
    if not asked.json:
        print(f"\nwritten  {out}/estimators.json, .csv, .png")


def _print_table(rows: Sequence[Any]) -> None:
    from itertools import groupby

    from upslope.lab.study_table import COLUMNS, table

    lines = table(rows)
    widths = [max(map(len, column)) for column in zip(COLUMNS, *lines, strict=True)]
    for (mdp, group), start in zip(
        ((name, list(group)) for name, group in groupby(rows, key=lambda row: row.mdp)),
        _starts(rows),
        strict=True,
    ):
        print(f"\n{mdp}")
        for line in (COLUMNS, *lines[start : start + len(group)]):
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            print("  " + "  ".join(cells).rstrip())


def _starts(rows: Sequence[Any]) -> list[int]:
    return [i for i, row in enumerate(rows) if i == 0 or rows[i - 1].mdp != row.mdp]


@contextlib.contextmanager
def _bar(parts: int, quiet: bool) -> Iterator[Callable[[Any], None]]:
    """Yield ``progress(_)``, which counts one part; a bar on a terminal only."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("measuring", total=parts)
        yield lambda _: bar.advance(task)
