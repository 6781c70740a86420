"""The ladder from REINFORCE to PPO: one loop, one choice changed a rung, paired seeds.

What is no rung's idea is equal on all of them: network, discount, the one learning rate of actor
and critic, the critic's gradient steps a batch, environments, seeds, and as nearly as whole
episodes allow the environment steps of an update. A seed gives one set of initial weights, and one
seed to every numbered episode, on whichever rung it is played.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from upslope.agent import REINFORCE
from upslope.config import whole_number
from upslope.lab.ladder_rungs import MEASURED_ON, ROWS, RUNGS, Rung, settings_that_differ
from upslope.lab.ladder_runs import ESTIMATORS, Job, run_job
from upslope.lab.ladder_statistics import Difference, paired_differences, with_verdicts
from upslope.lab.seeded_runs import POINTS, Result, RunLog, point_steps
from upslope.lab.workers import run_all
from upslope.statistics.intervals import Interval, mean_interval

PROBED_EPISODES = 16
BATCHES = (10, 100)  # of episodes, whose gradients are measured: at least, at most


class Tick(NamedTuple):
    """How far a ladder is; ``run`` says what has just finished, where something has."""

    finished: int
    runs: int
    steps: int
    total_steps: int
    run: str | None


@dataclass(frozen=True)
class RungResult:
    """What was measured on one rung.

    ``differs`` lists every setting that is not the rung below's. ``curve`` has the mean return of
    the episodes that finished in each of ``POINTS`` equal parts of the run, with a *pointwise*
    interval over the seeds; ``final`` is the mean of the last 100 training episodes, ``area`` the
    mean height of a seed's curve.
    """

    rung: Rung
    settings: dict[str, Any]
    differs: list[dict[str, Any]]
    runs: list[Result]
    curve: list[Interval]
    final: Interval
    area: Interval

    @property
    def finals(self) -> list[float | None]:
        """Per seed."""
        return [run["final"] for run in self.runs]

    @property
    def areas(self) -> list[float | None]:
        """Per seed."""
        return [run["area"] for run in self.runs]

    @property
    def steps_per_update(self) -> float:
        """Mean over all updates of all seeds."""
        timesteps = sum(int(run["timesteps"]) for run in self.runs)
        return timesteps / sum(int(run["updates"]) for run in self.runs)


@dataclass(frozen=True)
class Ladder:
    """All rungs, the eight comparisons, and the gradient's variance at two policies."""

    env: str
    seeds: tuple[int, ...]
    total_timesteps: int
    batch_episodes: int
    rungs: list[RungResult]
    final: list[Difference]  # of each rung but the first to the one below; with verdicts
    area: list[Difference]
    gradient: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        pairs = zip(self.rungs, self.rungs[1:], self.final, self.area, strict=False)
        return {
            "environment": self.env,
            "seeds": list(self.seeds),
            "total_timesteps": self.total_timesteps,
            "batch_episodes": self.batch_episodes,
            "rollout_steps": ROWS,
            "rungs": [_rung_json(i, r) for i, r in enumerate(self.rungs, 1)],
            "curve_steps": point_steps(self.total_timesteps),
            "pairs": [
                {"a": here.rung.name, "b": below.rung.name, **final.to_json(), "area": area.plain()}
                for below, here, final, area in pairs
            ],
            "gradient": self.gradient,
        }


def climb(
    env: str,
    *,
    seeds: int = 3,
    total_timesteps: int = 100_000,
    jobs: int = 2,
    out: Path | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    max_episode_steps: int | None = None,
    progress: Callable[[Tick], None] | None = None,
) -> Ladder:
    """Train every rung with every seed and measure what each idea did.

    Args:
        env: an id, ``module:Env-v0`` or ``my_env.py:make_env``.
        seeds: how many, from 0 on.
        total_timesteps: environment steps of each run.
        jobs: processes side by side; the results do not depend on it.
        out: directory whose ``runs.jsonl`` keeps finished runs, which are not repeated.
        env_kwargs, max_episode_steps: as for training.
        progress: told after every iteration of every run.

    Raises:
        ConfigError: for an environment or number that cannot be used.
        EnvironmentFaultError: if the environment raises, or its episodes do not end.
    """
    number = whole_number("seeds", seeds)
    own = {"env_kwargs": dict(env_kwargs or {}), "max_episode_steps": max_episode_steps}
    total, log = whole_number("total_timesteps", total_timesteps), RunLog(out)
    batch = batch_episodes(env, own)
    plan = _plan(env, number, total, batch, own)
    results = _run(plan, whole_number("jobs", jobs), log, progress)
    by_rung = [results[i :: len(RUNGS)] for i in range(len(RUNGS))]
    rungs = [_summary(i, by_rung) for i in range(len(RUNGS))]
    final = with_verdicts(paired_differences([r.finals for r in rungs]))
    area = paired_differences([r.areas for r in rungs])
    gradient = by_rung[MEASURED_ON][0]["gradient"]
    return Ladder(env, tuple(range(number)), total, batch, rungs, final, area, gradient)


def batch_episodes(env: str, own: Mapping[str, Any]) -> int:
    """Whole episodes whose steps come nearest to a rollout's over a run.

    Episodes change their length as a policy learns, so the length that counts is taken half way, in
    ratio, between that of the initial policy's episodes and the limit (the longest one seen, where
    none is registered).
    """
    settings = RUNGS[0].settings_for(PROBED_EPISODES, own)
    agent = REINFORCE(env, **settings)
    try:
        training = agent.training
        lengths = [episode.length for episode in training.learner.collect(training.envs).episodes]
        limit = agent.config.max_episode_steps or training.episode_limit or max(lengths)
    finally:
        agent.close()
    mean = sum(lengths) / len(lengths)
    return max(2, round(ROWS / math.sqrt(mean * max(limit, mean))))


def _plan(env: str, seeds: int, total: int, batch: int, own: Mapping[str, Any]) -> list[Job]:
    """Every run, all rungs of a seed before the next seed; one of them measures gradients.

    It does on about as many batches of episodes as it has updates.
    """
    least, most = BATCHES
    batches = min(most, max(least, total // ROWS))
    return [
        Job(
            env,
            rung.algorithm,
            {**rung.settings_for(batch, own), "seed": seed},
            total,
            gradient_batches=batches if i == MEASURED_ON and seed == 0 else 0,
            gradient_episodes=batch,
        )
        for seed in range(seeds)
        for i, rung in enumerate(RUNGS)
    ]


def _run(
    plan: list[Job], jobs: int, log: RunLog, progress: Callable[[Tick], None] | None
) -> list[Result]:
    """The result of every job, from the log where it is there, and then in it."""
    results = {i: done for i, job in enumerate(plan) if (done := log.find(job)) is not None}
    missing = [i for i in range(len(plan)) if i not in results]
    steps = {i: plan[i].total_timesteps for i in results}
    total = sum(job.total_timesteps for job in plan)

    def tell(run: str | None = None) -> None:
        if progress is not None:
            progress(Tick(len(results), len(plan), sum(steps.values()), total, run))

    def on_steps(k: int, timesteps: int) -> None:
        steps[missing[k]] = min(timesteps, plan[missing[k]].total_timesteps)
        tell()

    def on_result(k: int, result: Result) -> None:
        i = missing[k]
        log.add(plan[i], result)
        results[i], steps[i] = result, plan[i].total_timesteps
        final = "no finished episode" if result["final"] is None else f"{result['final']:.5g}"
        tell(f"{RUNGS[i % len(RUNGS)].name}, seed {plan[i].settings['seed']}: {final}")

    if results:
        tell(f"{len(results)} finished runs taken from {log.path}")
    run_all(run_job, [plan[i] for i in missing], jobs, on_steps, on_result)
    return [results[i] for i in range(len(plan))]


def _summary(i: int, by_rung: list[list[Result]]) -> RungResult:
    runs = by_rung[i]
    settings = runs[0]["settings"]
    return RungResult(
        RUNGS[i],
        settings,
        settings_that_differ(by_rung[i - 1][0]["settings"], settings) if i else [],
        runs,
        [mean_interval([run["curve"][k] for run in runs]) for k in range(POINTS)],
        mean_interval([run["final"] for run in runs]),
        mean_interval([run["area"] for run in runs]),
    )


def _rung_json(number: int, result: RungResult) -> dict[str, Any]:
    gamma_t = {e.name: e.keeps_discount for e in ESTIMATORS}[result.rung.estimator]
    return {
        "number": number,
        "name": result.rung.name,
        "idea": result.rung.idea,
        "differs": result.differs,
        "settings": result.settings,
        "estimator": result.rung.estimator,
        "keeps_discount": gamma_t,
        "steps_per_update": result.steps_per_update,
        "final": {**result.final.to_json(), "per_seed": result.finals},
        "area": {**result.area.to_json(), "per_seed": result.areas},
        "curve": [point.to_json() for point in result.curve],
        "runs": [_without(run, "settings", "gradient") for run in result.runs],
    }


def _without(run: Result, *names: str) -> Result:
    return {name: value for name, value in run.items() if name not in names}
