"""What a run's policy is worth: on fresh episodes, beside a random one and the best checkpoint."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from upslope.cli.evaluation_bar import evaluation_bar
from upslope.errors import EnvironmentFaultError

if TYPE_CHECKING:
    from upslope.agent import Agent
    from upslope.evaluation import BestModel, Sample, Score, Selection

Progress = Callable[[int], None] | None


def final_evaluation(
    agent: Agent, run: Path | None, episodes: int, *, seed: int | None = None, quiet: bool = False
) -> Score:
    """Score an agent's policy, a random one, and the best checkpoint where a run kept one.

    Args:
        agent: whose policy is scored with sampled actions and with the mode.
        run: its run directory, if it has one.
        episodes: for each way to act, and for the best checkpoint, fixed before any is played.
        seed: of environments and actions; by default one derived from the run's seed.
        quiet: show no progress bar.
    """
    from upslope.evaluation import RANDOM_EPISODES

    selection = None if run is None else selection_of(run)
    total = (3 if selection is not None else 2) * episodes + RANDOM_EPISODES
    with evaluation_bar(total, quiet=quiet) as progress:
        score = agent.evaluate(episodes, seed=seed, progress=progress)
        chance = _random(agent, seed, _after(2 * episodes, progress))
        best = None
        if run is not None and selection is not None:
            further = _after(2 * episodes + RANDOM_EPISODES, progress)
            best = _best(agent, run, selection, episodes, seed, further)
    return replace(score, random=chance, best_model=best)


def selection_of(run: Path) -> Selection | None:
    """The score that chose a run's best checkpoint, which progress.csv has; None without one."""
    from upslope.evaluation import Selection
    from upslope.runs.directory import BEST_MODEL, PROGRESS

    scores: list[tuple[float, int]] = []
    if not (run / BEST_MODEL).exists():
        return None
    with contextlib.suppress(OSError, ValueError, csv.Error), (run / PROGRESS).open() as file:
        for row in csv.DictReader(file):
            if row.get("eval/mean_reward"):
                steps = int(row["time/total_timesteps"])
                scores.append((float(row["eval/mean_reward"]), steps))
    if not scores:
        return None
    mean, steps = max(scores, key=lambda score: score[0])  # the first of equal ones, as was kept
    return Selection(mean, steps, len(scores))


def _random(agent: Agent, seed: int | None, progress: Progress) -> Sample | None:
    """A random policy's score; None where its episodes do not end, or it breaks the environment."""
    from upslope.evaluation import evaluate_random

    with contextlib.suppress(EnvironmentFaultError):
        return evaluate_random(agent, seed=seed, progress=progress)
    return None


def _best(
    agent: Agent,
    run: Path,
    selection: Selection,
    episodes: int,
    seed: int | None,
    progress: Progress,
) -> BestModel:
    """The best checkpoint on episodes that selection never saw, acting as it did when chosen."""
    from upslope.agent import load
    from upslope.evaluation import BestModel
    from upslope.runs.directory import BEST_MODEL

    best = load(run / BEST_MODEL)
    # What the file may not name, and with its settings: the two are scored on the same environment.
    best.source, best.config = agent.source, agent.config
    seed = agent.config.seed if seed is None else seed
    fresh = best.evaluate_one_way(episodes, seed=seed, deterministic=True, progress=progress)
    return BestModel(selection, fresh)


def _after(done: int, progress: Progress) -> Progress:
    """``progress`` for what follows ``done`` episodes."""
    return None if progress is None else (lambda more: progress(done + more))
