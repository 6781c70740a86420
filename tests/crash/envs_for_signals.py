"""Environments that take their time: asleep in a step, and inside one long call of native code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch


class Slow(gym.Env[Any, Any]):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps == 60:
            Path("slow").touch()
            self.take_long()
        return np.full(2, 0.1, np.float32), 1.0, self.steps % 7 == 0, False, {}

    def take_long(self) -> None:
        import time

        time.sleep(30)


class Native(Slow):
    def take_long(self) -> None:
        while True:  # each call alone takes longer than a process may
            torch.linalg.svd(torch.rand(3000, 3000))
