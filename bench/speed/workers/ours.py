"""One run of this library, through its public interface: ``python ours.py JOB``."""

from __future__ import annotations

import time
from typing import Any

import common

import upslope


def main() -> None:
    """Learn for the steps of the job, and say how long it took and what really ran."""
    job = common.job()
    agent = getattr(upslope, job["algorithm"].upper())(
        job["env"], n_envs=job["n_envs"], seed=job["seed"], compile=job["compile"], device="cpu",
        **job["settings"],
    )  # fmt: skip
    started = time.perf_counter()
    agent.learn(job["steps"])
    seconds = time.perf_counter() - started
    training = agent.training
    common.answer(
        seconds=seconds,
        steps=agent.num_timesteps,
        iterations=training.iteration,
        engine=training.gradient_step_engine,
        vec=training.envs.engine.name,
        phase_seconds=training.phase_seconds(),
        facts=facts(agent, job["settings"]),
    )


def facts(agent: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that the run really had, by the names of the job."""
    known = agent.config.to_json()
    widths = known["net_arch"]
    (step,) = agent.training.learner.optimizers.values()
    return {name: known[name] for name in (*settings, "n_envs", "activation_fn")} | {
        "net_arch": widths["pi"] if widths["pi"] == widths["vf"] else widths,
        "optimizer": step.rule.direction.__name__,
        "optimizer_eps": step.eps,
        "n_parameters": sum(p.numel() for p in agent.policy.parameters()),
    }


if __name__ == "__main__":
    main()
