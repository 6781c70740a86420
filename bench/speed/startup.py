"""How long things take to start: the help, and what our imports add to torch's and Gymnasium's.

    python bench/speed/startup.py [--repeats 9]

Each is a process of its own, taken in turn; seconds are from its start to its end. Writes
startup.csv with every repeat, and startup.md with medians. Sources are compiled to bytecode
first, as in an installed package.
"""

from __future__ import annotations

import argparse
import compileall
import csv
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import upslope

HERE = Path(__file__).parent
BASE = "import torch, gymnasium"
TIMED = {
    "python": [sys.executable, "-c", "pass"],
    "python -c 'import upslope'": [sys.executable, "-c", "import upslope"],
    "upslope --help": [sys.executable, "-m", "upslope", "--help"],
    "upslope train --help": [sys.executable, "-m", "upslope", "train", "--help"],
    BASE: [sys.executable, "-c", BASE],
    f"{BASE}, upslope": [sys.executable, "-c", f"{BASE}, upslope"],
    f"{BASE}, upslope; upslope.PPO": [sys.executable, "-c", f"{BASE}, upslope; upslope.PPO"],
}


def main() -> int:
    """Time everything in turn, write both files, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9, help="of each (default: 9)")
    asked = parser.parse_args()
    compileall.compile_dir(Path(upslope.__file__).parent, quiet=2)
    lines = []
    for repeat in range(asked.repeats + 1):  # the first is not kept: files come from the disk
        for name, command in TIMED.items():
            seconds = timed(command)
            if repeat:
                lines.append({"what": name, "repeat": repeat, "seconds": round(seconds, 4)})
        print(f"\rround {repeat} of {asked.repeats}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    with (HERE / "startup.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["what", "repeat", "seconds"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    text = table(lines)
    (HERE / "startup.md").write_text(text)
    print(text, end="")
    return 0


def timed(command: list[str]) -> float:
    """Seconds of one process."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment())
    return time.perf_counter() - started


def environment() -> dict[str, str]:
    """Ours, with bytecode and one thread."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"OMP_NUM_THREADS": "1"}


def table(lines: list[dict[str, object]]) -> str:
    """The Markdown: median and range of each, and what ours add."""
    of = {name: [float(str(x["seconds"])) for x in lines if x["what"] == name] for name in TIMED}
    rows = ["| command | seconds, median | range |", "| --- | --- | --- |"]
    for name, seconds in of.items():
        rows.append(f"| `{name}` | {median(seconds):.3f} | {min(seconds):.3f}-{max(seconds):.3f} |")
    base, full = of[BASE], of[f"{BASE}, upslope; upslope.PPO"]
    added = median(b - a for a, b in zip(base, full, strict=True))
    return "\n".join(rows) + f"\n\nAdded by `upslope.PPO`, median of the rounds: {added:.3f} s.\n"


if __name__ == "__main__":
    sys.exit(main())
