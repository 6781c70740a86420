"""Steps a second of this library after its first iteration: ``python pace.py JOB``."""

from __future__ import annotations

import common
from parts import Window

import upslope


def main() -> None:
    """Train PPO until the seconds of the job are over, for two iterations at least."""
    job = common.job()
    agent = upslope.PPO(
        job["env"], n_envs=job["n_envs"], seed=job["seed"], compile=job["compile"], device="cpu",
        **job["settings"],
    )  # fmt: skip
    window = Window(job["seconds"], warm_iterations=1)
    agent.learn(job["steps"], window)
    common.answer(
        steps=window.steps,
        steps_per_s=1e6 / window.whole(),
        engine=agent.training.gradient_step_engine,
        vec=agent.training.envs.engine.name,
    )


if __name__ == "__main__":
    main()
