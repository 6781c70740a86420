"""What the checks at the boundary cost, as a share of an iteration, by timers.

    python bench/environments/checks.py

Every call of the guard is timed, and inside it the environment's own; the difference is what the
guard takes. The checks of whole rollouts (finite, inside their space) are timed as they are. PPO's
defaults on plain environments, one thread, medians over iterations.
"""

from __future__ import annotations

import csv
import functools
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import upslope
from upslope import rollout
from upslope.envs.guard import GuardedEnv

ENVS = ("CartPole-v1", "Acrobot-v1", "Pendulum-v1", "LunarLander-v3", "HalfCheetah-v5", "Taxi-v4")
RESULTS = Path(__file__).parent / "checks.csv"
spent = {"guard": 0.0, "environment": 0.0, "rollout": 0.0}


def timed(name: str, function: Any) -> Any:
    """Add the seconds of each call to ``spent[name]``."""

    @functools.wraps(function)
    def call(*given: Any, **more: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*given, **more)
        finally:
            spent[name] += time.perf_counter() - started

    return call


def share(env: str, iterations: int = 12) -> dict[str, Any]:
    """Median share of an iteration that the checks take."""
    agent = upslope.PPO(env, vec="sync", seed=0)
    for guarded in agent.get_env().engine.envs:
        guarded.env.step = timed("environment", guarded.env.step)
    shares, seconds, last = [], [], [time.perf_counter()]

    def watch(event: Any) -> None:
        now = time.perf_counter()
        whole = now - last[0]
        shares.append((spent["guard"] - spent["environment"] + spent["rollout"]) / whole)
        seconds.append(whole)
        last[0] = now
        spent.update(dict.fromkeys(spent, 0.0))

    agent.learn(iterations * 2048, callback=watch)
    agent.close()
    return {
        "env": env,
        "share_of_iteration": round(float(np.median(shares[2:])), 4),
        "seconds_per_iteration": round(float(np.median(seconds[2:])), 3),
    }


def main() -> None:
    """Measure every environment and write the CSV anew."""
    torch.set_num_threads(1)
    GuardedEnv.step = timed("guard", GuardedEnv.step)  # type: ignore[method-assign]
    for name in ("_check_finite", "outside"):
        setattr(rollout, name, timed("rollout", getattr(rollout, name)))
    lines = [share(env) for env in ENVS]
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    for line in lines:
        seconds = line["seconds_per_iteration"]
        print(f"{line['env']:<16}{line['share_of_iteration']:.2%} of {seconds} s")


if __name__ == "__main__":
    main()
