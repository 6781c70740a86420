"""What train/gradient_snr costs: interleaved runs with it and without, default settings.

    python bench/lab/snr_cost.py                       # what the CSV lacks, then the table
    python bench/lab/snr_cost.py --algo a2c --env Hopper-v5 --pairs 9
    python bench/lab/snr_cost.py --table               # the table alone

Each pair trains one seed twice on one thread, in an order that changes from pair to pair, over a
whole number of intervals of the plan for 100,000 steps, and is one line of snr_cost.csv, written
at once: stop it with Ctrl-C and the same command goes on; after a change to the code take --again.

The *share* is what the phase timer counts for the measurement over the seconds of the run that has
it: other work on the machine slows both alike. The *ratio* of the two runs' seconds also sees what
a timer cannot (caches, allocation), and all that the machine did meanwhile; that of their processor
seconds sees less of the latter. The limit is 3 %.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from datetime import UTC, datetime
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

ENVIRONMENTS = ("CartPole-v1", "Pendulum-v1", "Hopper-v5")
ALGORITHMS = ("reinforce", "vpg", "a2c", "npg", "trpo", "ppo")
PLAN = 100_000  # steps of the run whose plan is followed
MEASUREMENTS = {"reinforce": 1, "a2c": 6}  # of one run; 2 for the others
NEVER = 2**62
PATH = Path(__file__).with_suffix(".csv")
FIELDS = (
    "env", "algo", "pair", "every", "iterations", "measurements", "seconds_with",
    "seconds_without", "ratio", "cpu_with", "cpu_without", "cpu_ratio", "seconds_measuring",
    "share", "load", "cpu", "torch", "git_commit", "date",
)  # fmt: skip


def main() -> int:
    """Run what is missing, print the table; 0 if every share is at most 3 %, else 1."""
    asked = _arguments()
    done = set() if asked.again else _done(asked.csv)
    missing = [
        (env, algo, pair)
        for pair, env, algo in product(range(asked.pairs), asked.env, asked.algo)
        if (env, algo, str(pair)) not in done
    ]
    try:
        for number, (env, algo, pair) in enumerate([] if asked.table else missing, 1):
            record = measure(env, algo, pair)
            append(record, asked.csv)
            print(
                f"[{number}/{len(missing)}] {env} {algo} pair {pair}: every {record['every']} "
                f"iterations, share {record['share']:.2%}, ratio {record['ratio']:.3f}, "
                f"of processor time {record['cpu_ratio']:.3f}",
                flush=True,
            )
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from here", flush=True)
        return 130
    return 0 if print_table(asked.csv) <= 0.03 else 1


def measure(env: str, algo: str, pair: int) -> dict[str, Any]:
    """Train one seed with and without, and return the line of the CSV."""
    warm_up(env, algo)
    load = os.getloadavg()[0]
    order = (True, False) if pair % 2 == 0 else (False, True)
    intervals = MEASUREMENTS.get(algo, 2)
    runs = {measuring: train(env, algo, pair, measuring, intervals) for measuring in order}
    training, seconds, cpu = runs[True]
    _, without, cpu_without = runs[False]
    spent = training.seconds["gradient_quality"]
    return {
        "env": env,
        "algo": algo,
        "pair": pair,
        "every": training.snr_every,
        "iterations": training.iteration,
        "measurements": training.quality.count,
        "seconds_with": round(seconds, 4),
        "seconds_without": round(without, 4),
        "ratio": round(seconds / without, 5),
        "cpu_with": round(cpu, 4),
        "cpu_without": round(cpu_without, 4),
        "cpu_ratio": round(cpu / cpu_without, 5),
        "seconds_measuring": round(spent, 6),
        "share": round(spent / seconds, 6),
        "load": round(load, 2),
        "cpu": f"{os.cpu_count()} x {platform.machine()}",
        "torch": _version(),
        "git_commit": _git_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@cache
def warm_up(env: str, algo: str) -> None:
    """Import and call for the first time, once a process, whatever the runs will need."""
    train(env, algo, seed=0, measuring=True, intervals=1)


def train(
    env: str, algo: str, seed: int, measuring: bool, intervals: int
) -> tuple[Any, float, float]:
    """Train for so many intervals; return the run, its seconds and its processor seconds."""
    from upslope.agent import AGENTS

    agent = AGENTS[algo](env, seed=seed)
    training = agent.training
    training.plan(PLAN)
    last = intervals * training.snr_every
    if not measuring:
        training.snr_every = NEVER
    started, cpu = time.perf_counter(), time.process_time()
    agent.learn(10**9, lambda event: event.iteration < last)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    agent.close()
    return training, seconds, cpu


def append(record: dict[str, Any], path: Path) -> None:
    """Add one line, with the names above it where the file is new."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if is_new:
            writer.writeheader()
        writer.writerow(record)


def print_table(path: Path) -> float:
    """Print medians over the pairs, each as it was last run; return the largest median share."""
    pairs: dict[tuple[str, str], dict[str, dict[str, str]]] = defaultdict(dict)
    for line in _lines(path):
        pairs[line["env"], line["algo"]][line["pair"]] = line
    titles = ("environment", "algorithm", "every", "pairs", "share", "largest share", "ratio",
              "ratio of processor time", "ms each")  # fmt: skip
    print(f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}")
    largest = 0.0
    for (env, algo), last in sorted(pairs.items()):
        found = list(last.values())
        shares = [float(line["share"]) for line in found]
        ratio, cpu_ratio = (
            statistics.median(float(line[name]) for line in found)
            for name in ("ratio", "cpu_ratio")
        )
        each = statistics.median(
            1e3 * float(line["seconds_measuring"]) / int(line["measurements"]) for line in found
        )
        share = statistics.median(shares)
        largest = max(largest, share)
        print(
            f"| {env} | {algo} | {found[-1]['every']} | {len(found)} | {share:.2%} | "
            f"{max(shares):.2%} | {ratio:.3f} | {cpu_ratio:.3f} | {each:.1f} |"
        )
    return largest


def _lines(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _done(path: Path) -> set[tuple[str, str, str]]:
    return {(line["env"], line["algo"], line["pair"]) for line in _lines(path)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", nargs="+", default=list(ENVIRONMENTS), metavar="ENV")
    parser.add_argument("--algo", nargs="+", default=list(ALGORITHMS), choices=ALGORITHMS)
    parser.add_argument("--pairs", type=int, default=5, help="runs with and without (default: 5)")
    parser.add_argument("--csv", type=Path, default=PATH, help="where the lines go")
    parser.add_argument("--again", action="store_true", help="also run what the CSV holds already")
    parser.add_argument("--table", action="store_true", help="print the table and run nothing")
    return parser.parse_args()


def _version() -> str:
    import torch

    return torch.__version__


def _git_commit() -> str:
    """The commit, with a plus where the sources differ from it."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "-s", "src") else "")


if __name__ == "__main__":
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"
    sys.exit(main())
