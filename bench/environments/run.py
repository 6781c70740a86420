"""Train on environments of every kind, written by others, and append one CSV line per run.

    python bench/environments/run.py                      # what is still missing, one after another
    python bench/environments/run.py --row memory --seeds 0-4
    python bench/environments/run.py --row pong --threads 2

A line holds the final policy's score (mean of 100 fresh episodes, sampled and mode) beside that of
a policy that acts at random, and what the run took. Stop it with Ctrl-C and start it again: runs
that the CSV holds with the same settings are skipped. `python bench/environments/table.py` writes
the table.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from rows import ROWS, Row

HERE = Path(__file__).parent
RESULTS, CURVES = HERE / "results.csv", HERE / "curves.csv"
FIELDS = ["row", "seed", "env", "algo", "steps", "S", "S_low", "S_high", "D", "random", "slope",
          "slope_p", "episodes", "seconds", "steps_per_second", "environment_share", "threads",
          "settings", "upslope", "torch", "gymnasium"]  # fmt: skip
PACKAGES = ("upslope", "torch", "gymnasium")


def main() -> None:
    """Run what is missing of the rows and seeds asked for."""
    asked = _arguments()
    done = {(line["row"], line["seed"], line["settings"]) for line in _read(RESULTS)}
    for row in ROWS:
        if asked.row and not any(part in row.name for part in asked.row):
            continue
        for seed in asked.seeds if asked.seeds is not None else range(row.seeds):
            settings = json.dumps(row.settings, sort_keys=True)
            if (row.name, str(seed), settings) not in done:
                result = train(row, seed, asked.threads, asked.steps)
                if asked.steps is None:
                    _append(RESULTS, FIELDS, [result])
                print(f"{row.name} seed {seed}: S {result['S']:.4g}, D {result['D']:.4g}, random "
                      f"{result['random']:.4g}, {result['steps_per_second']:.0f} steps/s",
                      flush=True)  # fmt: skip


def train(row: Row, seed: int, threads: int, steps: int | None) -> dict[str, Any]:
    """Train and score one run."""
    import torch
    from scipy.stats import linregress

    from upslope.agent import AGENTS

    torch.set_num_threads(threads)
    agent = AGENTS[row.algo](row.env, seed=seed, **row.settings)
    episodes: list[tuple[int, float]] = []
    shown = [time.perf_counter()]

    def watch(event: Any) -> None:
        episodes.extend((event.timesteps, episode.ret) for episode in event.episodes)
        if time.perf_counter() - shown[0] > 60:
            shown[0] = time.perf_counter()
            mean = event.metrics.get("rollout/ep_rew_mean")
            print(f"  {row.name} seed {seed}: {event.timesteps} steps, {mean}", flush=True)

    started = time.perf_counter()
    agent.learn(steps or row.steps, callback=watch)
    seconds = time.perf_counter() - started
    phases = agent.training.phase_seconds()
    line = linregress(*np.array(episodes or [(0, 0), (1, 0)], dtype=float).T, alternative="greater")
    score = agent.evaluate(row.episodes, seed=1_000_000 + seed)
    low, high = score.sampled.ci95
    if row.keep_curve and steps is None:
        _append(CURVES, ["row", "seed", "steps", "ret"],
                [dict(row=row.name, seed=seed, steps=t, ret=r) for t, r in episodes])  # fmt: skip
    untrained = AGENTS[row.algo](row.env, seed=seed, **row.settings)  # acts at random: gain 0.01
    chance = untrained.evaluate_one_way(row.episodes, seed=1_000_000 + seed, deterministic=False)
    versions = {name: metadata.version(name) for name in PACKAGES}
    return versions | {
        "row": row.name, "seed": seed, "env": row.env_name, "algo": row.algo,
        "steps": agent.num_timesteps, "S": score.sampled.mean, "S_low": low, "S_high": high,
        "D": score.deterministic.mean, "random": chance.mean, "slope": line.slope * 1e5,
        "slope_p": line.pvalue, "episodes": len(episodes), "seconds": round(seconds, 1),
        "steps_per_second": agent.num_timesteps / seconds,
        "environment_share": phases["environment"] / seconds, "threads": threads,
        "settings": json.dumps(row.settings, sort_keys=True),
    }  # fmt: skip


def _read(path: Path) -> Iterator[dict[str, str]]:
    if path.exists():
        with path.open(newline="") as file:
            yield from csv.DictReader(file)


def _append(path: Path, fields: list[str], lines: list[dict[str, Any]]) -> None:
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fields)
        if fresh:
            writer.writeheader()
        writer.writerows(lines)


def _seeds(text: str) -> list[int]:
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--row", action="append", help="rows whose name holds this")
    parser.add_argument("--seeds", type=_seeds, help="such as 0-4; by default each row's own")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--steps", type=int, help="another number, to try; nothing is kept")
    return parser.parse_args()


if __name__ == "__main__":
    main()
