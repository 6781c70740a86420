"""One run of a comparison: train with one seed, then score the policy that it ended with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from upslope.agent import AGENTS, Agent
from upslope.arguments import make_config
from upslope.envs.find import find_environment
from upslope.errors import NonFiniteError, UpslopeError
from upslope.lab.seeded_runs import POINTS, Result, learning_curve, run_key
from upslope.training import Event

FORMAT = 1  # of a result: one more with every change of what it holds


@dataclass(frozen=True)
class Arm:
    """What is compared: an algorithm with its settings, under a name of its own.

    ``settings`` stand above the ``preset``, ``"auto"`` or ``"none"``, as for training.
    """

    name: str
    algorithm: str
    settings: Mapping[str, Any]
    preset: str = "auto"

    def resolved(self, env: str) -> dict[str, Any]:
        """Every setting but the seed, as JSON types.

        Raises:
            ConfigError: if a setting does not exist or is out of range, or ``env`` does not exist.
        """
        config = make_config(
            self.algorithm, find_environment(env), self.preset, dict(self.settings)
        )
        return {name: value for name, value in config.to_json().items() if name != "seed"}


@dataclass(frozen=True)
class Job:
    """One run of one arm, scored on ``episodes`` fresh episodes; ``resolved`` has every setting."""

    env: str
    arm: Arm
    resolved: Mapping[str, Any]
    seed: int
    total_timesteps: int
    episodes: int
    is_deterministic: bool

    def __str__(self) -> str:
        return f"{self.arm.name}, seed {self.seed}"

    @cached_property
    def key(self) -> str:
        """What a result depends on, as one line of JSON; not on the arm's name."""
        return run_key(
            self.env,
            format=FORMAT,
            algorithm=self.arm.algorithm,
            settings=self.resolved,
            seed=self.seed,
            total_timesteps=self.total_timesteps,
            episodes=self.episodes,
            deterministic=self.is_deterministic,
        )


def run_job(job: Job, report: Callable[[int], None]) -> Result:
    """Train, score, and return what there is to say of the run as JSON types.

    Args:
        job: the run.
        report: told the environment steps so far, after each iteration.

    Raises:
        UpslopeError: what stopped the run, with its name before it. Numbers that are not finite
            are no such error but what there is to say of the run: it failed.
    """
    arm = job.arm
    try:
        agent = AGENTS[arm.algorithm](
            job.env, preset=arm.preset, **{**arm.settings, "seed": job.seed}
        )
        with contextlib.closing(agent):
            try:
                return _train(job, agent, report)
            except NonFiniteError as error:
                return _failed(job, agent, error)
    except UpslopeError as error:
        raise type(error)(f"{job}: {error}") from error


def _train(job: Job, agent: Agent, report: Callable[[int], None]) -> Result:
    finished: list[tuple[int, float]] = []

    def on_iteration(event: Event) -> bool:
        finished.extend((event.timesteps, episode.ret) for episode in event.episodes)
        report(event.timesteps)
        return True

    agent.training.run(job.total_timesteps, on_iteration, agent)
    score = agent.evaluate_one_way(job.episodes, deterministic=job.is_deterministic)
    return {
        "seed": job.seed,
        "timesteps": agent.num_timesteps,
        "training_episodes": agent.training.episodes,
        "curve": learning_curve(finished, job.total_timesteps),
        "score": score.to_json(),
    }


def _failed(job: Job, agent: Agent, error: NonFiniteError) -> Result:
    """A run without a score: that it came to this is a result about the algorithm."""
    return {
        "seed": job.seed,
        "timesteps": agent.num_timesteps,
        "training_episodes": agent.training.episodes,
        "curve": [None] * POINTS,
        "error": f"{job}: {error}",
        "score": {"mean": None, "ci95": None, "threshold": None},
    }
