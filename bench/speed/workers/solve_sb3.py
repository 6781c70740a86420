"""A cold shell to CartPole's return with Stable-Baselines3: ``python solve_sb3.py JOB``.

The settings are those of rl-baselines3-zoo; what follows the import is what its users wait for.
"""

from __future__ import annotations

import os
import time
from typing import Any

import common
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

WINDOW = 100  # episodes
N_ENVS = 8
ZOO = {
    "n_steps": 32,
    "batch_size": 256,
    "gae_lambda": 0.8,
    "gamma": 0.98,
    "n_epochs": 20,
    "ent_coef": 0.0,
    "learning_rate": lambda remaining: 1e-3 * remaining,
    "clip_range": lambda remaining: 0.2 * remaining,
}


def main() -> None:
    """Train until the last 100 episodes average the return, or the steps are spent; then confirm.

    Seconds count from when the process was asked for, which its environment says.
    """
    job = common.job()
    env = make_vec_env(job["env"], n_envs=N_ENVS, seed=job["seed"])
    model = PPO("MlpPolicy", env, seed=job["seed"], device="cpu", **ZOO)
    stop = StopAt(job["stop_return"])
    model.learn(job["steps"], callback=stop)
    seconds = (stop.reached_at or time.time()) - float(os.environ["UPSLOPE_BENCH_SPAWNED"])
    fresh = make_vec_env(job["env"], n_envs=N_ENVS, seed=1_000_000 + job["seed"])
    sampled, mode = (evaluate_policy(model, fresh, 100, deterministic=x)[0] for x in (False, True))
    common.answer(
        seconds=seconds,
        steps=model.num_timesteps,
        engine="eager",
        vec=type(env).__name__,
        reached="yes" if stop.reached_at else "no",
        score_sampled=float(sampled),
        score_mode=float(mode),
    )


class StopAt(BaseCallback):
    """Stop once the last 100 finished episodes, as Monitor saw them, average a return."""

    def __init__(self, target: float) -> None:
        super().__init__()
        self.target, self.reached_at = target, 0.0

    def _on_step(self) -> bool:
        recent: Any = self.model.ep_info_buffer
        if len(recent) < WINDOW or sum(x["r"] for x in recent) / len(recent) < self.target:
            return True
        self.reached_at = time.time()
        return False


if __name__ == "__main__":
    main()
