"""Runs to report on: short real ones, and tables made by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

import upslope
from upslope.runs.report.data import STEPS, Record

SMALL = {"n_envs": 8, "n_steps": 64, "batch_size": 128, "n_epochs": 4, "seed": 0}
ROWS = 40


def train(path: Path, algorithm: str, env: Any, steps: int, **settings: Any) -> upslope.PPO:
    """A short run with a run directory at ``path``."""
    agent: Any = getattr(upslope, algorithm)(env, run_dir=path, **settings)
    agent.learn(steps)
    agent.close()
    return agent  # type: ignore[no-any-return]


def write_evaluation(run: Path, agent: Any, episodes: int = 40) -> None:
    """evaluation.json with the policy's score and that of a measured random policy."""
    score = agent.evaluate_one_way(episodes, seed=1, deterministic=False).to_json()
    returns = random_returns(agent.source.id, episodes)
    std = float(returns.std(ddof=1))
    random = {"mean": float(returns.mean()), "std": std, "episodes": episodes, "ci95": None}
    (run / "evaluation.json").write_text(json.dumps({"sampled": score, "random": random}))


def random_returns(env_id: str, episodes: int) -> NDArray[np.float64]:
    """Returns of uniformly random actions."""
    env = gym.make(env_id)
    env.action_space.seed(0)
    returns = []
    for number in range(episodes):
        env.reset(seed=number)
        total, done = 0.0, False
        while not done:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total, done = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    return np.array(returns)


def sound_table() -> dict[str, list[float | None]]:
    """Forty rows of a PPO run that learns: 10,000 steps from a return of 20 to one of 400."""
    progress = [(row + 1) / ROWS for row in range(ROWS)]
    return {
        STEPS: [10_000 * p for p in progress],
        "time/iterations": [float(row + 1) for row in range(ROWS)],
        "rollout/ep_rew_mean": [20 + 380 * p for p in progress],
        "rollout/ep_rew_std": [20.0] * ROWS,
        "rollout/ep_len_mean": [50.0] * ROWS,
        "rollout/episodes": [200 * p for p in progress],
        "rollout/clipped_share": [0.3] * ROWS,
        "train/entropy_loss": [-0.69 + 0.3 * p for p in progress],
        "train/approx_kl": [0.01] * ROWS,
        "train/clip_fraction": [0.1] * ROWS,
        "train/explained_variance": [0.9 * p for p in progress],
        "train/learning_rate": [1e-3 * (1 - p) + 1e-6 for p in progress],
        "train/gradient_snr": [0.1 if row % 4 == 0 else None for row in range(ROWS)],
        "train/normalizer_kl": [1e-4] * ROWS,
    }


def record(
    changed: Mapping[str, Any] | None = None,
    *,
    algorithm: str = "ppo",
    settings: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    action_space: Mapping[str, Any] | None = None,
    threshold: float | None = None,
) -> Record:
    """A record of the sound table with some columns changed; None takes a column out."""
    columns = {**sound_table(), **(changed or {})}
    return Record(
        path=Path("runs/crafted"),
        columns={tag: cells for tag, cells in columns.items() if cells is not None},
        config={
            "algorithm": algorithm,
            "settings": {"ent_coef": 0.0, "seed": 0, **(settings or {})},
            "environment": {"name": "Crafted-v0", "reward_threshold": threshold},
        },
        evaluation=evaluation or {},
        action_space=action_space or {"type": "Discrete", "n": 2, "start": 0},
    )


class Endless(gym.Env[NDArray[np.float32], int]):
    """Two actions, a reward that drifts slowly and is seen coming, and no end."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._state = self._seen()
        return self._state, {}

    def step(self, action: int) -> Any:
        self._state = 0.95 * self._state + 0.05 * self._seen()
        return self._state, 10 * float(self._state[0]), False, False, {}

    def _seen(self) -> NDArray[np.float32]:
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)


class Drifting(Endless):
    """Ten steps whose observations grow from episode to episode; the right action pays."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    scale = 1.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.scale *= 1.3
        self._left = 10
        self._state = self._seen()
        return self.scale * self._state, {}

    def step(self, action: int) -> Any:
        reward = float((self._state[0] > 0) == bool(action))
        self._left -= 1
        self._state = self._seen()
        return self.scale * self._state, reward, self._left == 0, False, {}
