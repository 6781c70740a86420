"""Where the time of one run of this library goes, beside floors: ``python parts.py JOB``.

Phases come from the library's own timers, between the second iteration and the end; acting without
its bookkeeping, and the targets, are timed alone on a rollout afterwards. All are microseconds an
environment step.
"""

from __future__ import annotations

import time
from typing import Any

import common
import floors
import numpy as np

import upslope
from upslope.policies.acting import make_actor
from upslope.rollout import evaluate_rollout

WARM_ITERATIONS = 2  # in which a step is recorded, buffers are made


def main() -> None:
    """Train for the seconds of the job, then time the parts and their floors."""
    job = common.job()
    agent = getattr(upslope, job["algorithm"].upper())(
        job["env"], n_envs=job["n_envs"], seed=job["seed"], compile=job["compile"], device="cpu",
        **job["settings"],
    )  # fmt: skip
    window = Window(job["seconds"])
    agent.learn(job["steps"], window)
    spent = window.per_step()
    training = agent.training
    rollout = training.learner.collect(training.envs)
    evaluated = evaluate_rollout(training.policy, rollout)
    n_rows = rollout.rewards.numel()
    acting = act_seconds(agent, rollout) / training.envs.n_envs * 1e6
    weigh = floors.seconds_of(lambda: training.learner.weigh(rollout, evaluated)) / n_rows * 1e6
    parts = {
        "environment": spent.pop("environment"),
        "acting": acting,
        "bookkeeping": max(0.0, spent.pop("acting") - acting),
        "evaluate": spent.pop("evaluate"),
        "targets": weigh,
        "update": spent.pop("update") - weigh,
        "logging": sum(spent.values()),
    }
    common.answer(
        parts=parts,
        floors=floors.of(agent, rollout),
        whole=window.whole(),
        steps=window.steps,
        engine=training.gradient_step_engine,
        vec=training.envs.engine.name,
        gemm_gflops=floors.gemm_rate(floors.rows_of_a_step(agent.config)) / 1e9,
    )


class Window:
    """A callback that measures from the end of the warm iterations until its seconds are over."""

    def __init__(self, seconds: float, warm_iterations: int = WARM_ITERATIONS) -> None:
        self.limit, self.warm, self.steps = seconds, warm_iterations, 0
        self._before: dict[str, float] = {}
        self._after: dict[str, float] = {}
        self._first = self._started = self._ended = 0.0

    def __call__(self, event: Any) -> bool:
        training = event.agent.training
        if event.iteration == self.warm:
            self._before, self._first = training.phase_seconds(), event.timesteps
            self._started = time.perf_counter()
        if event.iteration <= self.warm:
            return True
        self._after, self._ended = training.phase_seconds(), time.perf_counter()
        self.steps = int(event.timesteps - self._first)
        return self._ended - self._started < self.limit

    def per_step(self) -> dict[str, float]:
        """Phase -> microseconds per environment step."""
        return {
            name: (spent - self._before.get(name, 0.0)) / self.steps * 1e6
            for name, spent in self._after.items()
        }

    def whole(self) -> float:
        """Microseconds of wall time per environment step, everything included."""
        return (self._ended - self._started) / self.steps * 1e6


def act_seconds(agent: Any, rollout: Any) -> float:
    """Seconds of one call of the actor and of sampling from what it says."""
    policy, envs = agent.training.policy, agent.training.envs
    actor = make_actor(policy, envs.n_envs)
    observations = rollout.obs.numpy()
    out = np.zeros((envs.n_envs, policy.actor_head.out_features), np.float32)
    noise = policy.actions.draw_noise(envs.seeds.generator("benchmark"), (1, envs.n_envs))[0]
    std, start = policy.actions.std(), np.zeros(envs.n_envs, dtype=bool)

    def act() -> None:
        actor(observations[0], out, start)
        policy.actions.to_env(policy.actions.sample(out, noise, std, None))

    return floors.seconds_of(act)


if __name__ == "__main__":
    main()
