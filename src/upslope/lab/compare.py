"""Compare algorithms, or settings of one, by a rule that is fixed before the first result.

Each arm is trained with several seeds, block by block of five; what counts of a run is the mean
return of its *final* policy over a fixed number of fresh episodes. After each block there is a
look (``upslope.statistics.rule``), and where it decides every pair no further block is run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from upslope.errors import ConfigError
from upslope.lab.compare_json import arm_json, pair_json, run_json
from upslope.lab.compare_runs import Arm, Job, run_job
from upslope.lab.seeded_runs import Result, RunLog, point_steps
from upslope.lab.workers import run_all
from upslope.runs.durable import replace_file
from upslope.statistics.contrasts import Array
from upslope.statistics.rule import OPEN, Look, Rule, decide, look, pairs

PLAN = "plan.json"
STRIDE = 100  # between the first seeds of arms that share none


@dataclass(frozen=True)
class Plan:
    """All that is fixed before the first run.

    ``is_paired`` arms share their seeds and are compared seed by seed, which is for variants of one
    algorithm; otherwise the arms' seeds are disjoint and Welch's t compares them.
    """

    env: str
    arms: tuple[Arm, ...]
    seeds: int = 10
    total_timesteps: int = 100_000
    episodes: int = 100
    is_deterministic: bool = False
    is_paired: bool = False
    margin: float | None = None

    @cached_property
    def resolved(self) -> list[dict[str, Any]]:
        """Every setting of each arm."""
        return [arm.resolved(self.env) for arm in self.arms]

    @property
    def rule(self) -> Rule:
        """When to look, and how."""
        return Rule.planned(self.seeds, self.is_paired, self.margin)

    def jobs(self, arm: int, n: int) -> list[Job]:
        """The first ``n`` runs of an arm."""
        first = 0 if self.is_paired else STRIDE * arm
        return [
            Job(
                self.env,
                self.arms[arm],
                self.resolved[arm],
                first + i,
                self.total_timesteps,
                self.episodes,
                self.is_deterministic,
            )
            for i in range(n)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return {
            "environment": self.env,
            "arms": [
                {"name": arm.name, "algorithm": arm.algorithm, "settings": settings}
                for arm, settings in zip(self.arms, self.resolved, strict=True)
            ],
            "seeds": self.seeds,
            "total_timesteps": self.total_timesteps,
            "episodes": self.episodes,
            "deterministic": self.is_deterministic,
            "paired": self.is_paired,
            "margin": self.margin,
            "looks": list(self.rule.looks),
            "alpha": self.rule.alpha,
        }


class Progress(NamedTuple):
    """How far a comparison is: per arm its scores and the steps of all its runs so far.

    ``said`` is what has just happened, where something has; ``n`` the seeds of an arm that are run
    before the next look.
    """

    scores: list[list[float]]
    steps: list[int]
    n: int
    said: str | None


@dataclass(frozen=True)
class Comparison:
    """What was found: every run, and the looks at them. ``runs`` has one list an arm."""

    plan: Plan
    runs: list[list[Result]]
    looks: list[Look]

    @property
    def n(self) -> int:
        """Seeds of an arm."""
        return len(self.runs[0])

    @property
    def scores(self) -> Array:
        """``[A, n]``: the mean return of each final policy; NaN of a run that failed."""
        scores = [[run["score"]["mean"] for run in runs] for runs in self.runs]
        return np.array(scores, dtype=np.float64)

    @property
    def has_failed(self) -> list[bool]:
        """Of each arm: whether a seed of it ended in numbers that are not finite."""
        return [any(run["score"]["mean"] is None for run in runs) for runs in self.runs]

    @property
    def is_decided(self) -> bool:
        """Whether no pair is left to decide: a pair with an arm that failed will never be."""
        failed = self.has_failed
        return bool(self.looks) and all(
            verdict != OPEN or failed[i] or failed[j]
            for verdict, (i, j) in zip(self.looks[-1].verdict, pairs(len(self.runs)), strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        """Return compare.json, but for its sentences."""
        plan = self.plan.to_json()
        seen = self.looks or [look(self.scores, self.plan.rule)]
        known = [run["score"]["threshold"] for runs in self.runs for run in runs]
        threshold = next((bound for bound in known if bound is not None), None)
        return {
            **plan,
            "arms": [
                {**arm, **arm_json(runs, threshold)}
                for arm, runs in zip(plan["arms"], self.runs, strict=True)
            ],
            "seeds_run": self.n,
            "stopped_early": self.n < self.plan.seeds,
            "curve_steps": point_steps(self.plan.total_timesteps),
            "runs": [
                {"arm": arm.name, "algorithm": arm.algorithm, **run_json(run)}
                for arm, runs in zip(self.plan.arms, self.runs, strict=True)
                for run in runs
            ],
            "pairs": [pair_json(self, seen, k) for k in range(len(pairs(len(self.runs))))],
        }


def compare(
    plan: Plan,
    *,
    jobs: int = 2,
    out: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Comparison:
    """Run a comparison until it is decided or its seeds have been run.

    Args:
        plan: what to compare, and the rule.
        jobs: processes side by side; the results do not depend on it.
        out: directory that keeps the plan and finished runs, which are not repeated.
        progress: told after every iteration of every run.

    A run whose numbers become infinite or undefined has failed, which is found and not raised.

    Raises:
        ConfigError: if ``out`` holds a comparison by another plan, or cannot be written.
        EnvironmentFaultError: the environment broke its contract in a run.
    """
    rule = plan.rule
    if len(plan.arms) < 2:
        raise ConfigError("a comparison needs at least two arms: name another one")
    log = RunLog(out)
    if out is not None:
        _keep_plan(out, plan)
    runner = _Runner(plan, log, jobs, progress)
    for n in rule.looks or (plan.seeds,):
        runner.run(n)
        found = Comparison(plan, runner.results(n), [])
        found = replace(found, looks=decide(found.scores, rule))
        if found.is_decided:
            break
    return found


class _Runner:
    """Runs what a look needs, from the log where it is there, and then in it."""

    def __init__(
        self, plan: Plan, log: RunLog, jobs: int, progress: Callable[[Progress], None] | None
    ) -> None:
        self._plan, self._log, self._jobs, self._progress = plan, log, jobs, progress
        self._done: dict[tuple[int, int], Result] = {}
        self._steps: dict[tuple[int, int], int] = {}
        self._n = 0

    def run(self, n: int) -> None:
        """Have ``n`` runs of every arm, one seed of all arms after another."""
        self._n = n
        planned = [self._plan.jobs(arm, n) for arm in range(len(self._plan.arms))]
        places = [(arm, i) for i in range(n) for arm in range(len(planned))]
        missing = [place for place in places if place not in self._done]
        for arm, i in missing:
            if (result := self._log.find(planned[arm][i])) is not None:
                self._note((arm, i), result)
        kept = [place for place in missing if place in self._done]
        missing = [place for place in missing if place not in self._done]
        if kept:
            self._tell(f"{len(kept)} finished runs taken from {self._log.path}")
        tasks = [planned[arm][i] for arm, i in missing]

        def on_steps(k: int, timesteps: int) -> None:
            self._steps[missing[k]] = min(timesteps, self._plan.total_timesteps)
            self._tell(None)

        def on_result(k: int, result: Result) -> None:
            self._log.add(tasks[k], result)
            self._note(missing[k], result)
            score = result["score"]["mean"]
            said = f"{tasks[k]}: {score:.5g}" if score is not None else result["error"]
            self._tell(f"{len(self._done)}/{len(places)} {said}")

        run_all(run_job, tasks, self._jobs, on_steps, on_result)

    def results(self, n: int) -> list[list[Result]]:
        """The first ``n`` results of every arm."""
        return [[self._done[arm, i] for i in range(n)] for arm in range(len(self._plan.arms))]

    def _note(self, place: tuple[int, int], result: Result) -> None:
        self._done[place], self._steps[place] = result, self._plan.total_timesteps

    def _tell(self, said: str | None) -> None:
        if self._progress is None:
            return
        arms = range(len(self._plan.arms))
        known = [
            (arm, run["score"]["mean"])
            for (arm, _), run in self._done.items()
            if run["score"]["mean"] is not None
        ]
        scores = [[score for a, score in known if a == arm] for arm in arms]
        steps = [sum(n for (a, _), n in self._steps.items() if a == arm) for arm in arms]
        self._progress(Progress(scores, steps, self._n, said))


def _keep_plan(out: Path, plan: Plan) -> None:
    """Write the plan down, or hold it against the one that is there.

    Only the number of seeds may change, and only so that no look was taken that is not planned.
    """
    path, asked = out / PLAN, json.loads(json.dumps(plan.to_json()))
    try:
        known = json.loads(path.read_text()) if path.exists() else asked
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): give another --out") from error
    if not isinstance(known, dict):
        raise ConfigError(f"{path} is not the plan of a comparison: give another --out")
    free = ("seeds", "looks")
    changed = [name for name in asked if name not in free and known.get(name) != asked[name]]
    if changed:
        raise ConfigError(
            f"{out} holds a comparison with other {', '.join(changed)}, which were fixed before "
            "its results were seen: ask for the same, or give another --out"
        )
    if not set(known.get("looks", [])) <= set(asked["looks"]):
        looks = ", ".join(map(str, known["looks"]))
        raise ConfigError(
            f"{out} holds a comparison with looks at {looks} seeds, and {plan.seeds} seeds have "
            "others: take a multiple of 5 seeds and not fewer than before, or give another --out"
        )
    if known != asked or not path.exists():
        replace_file(path, [(json.dumps(asked, indent=2) + "\n").encode()], "the plan")
