"""Environments that are each broken in one way, and the finding that they must get."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Text


class Walk(gym.Env[Any, Any]):
    """Sound: a walk on a line under a push; 1 at one end, twenty steps at most."""

    observation_space: gym.Space[Any] = Box(-20, 20, (2,), np.float64)
    action_space: gym.Space[Any] = Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.x, self.t = float(self.np_random.normal()), 0
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        self.x += self.push(action) + 0.1 * float(self.np_random.normal())
        over = abs(self.x) > 3
        return self.observe(), self.reward(), over, self.t >= 20 and not over, {}

    def push(self, action: Any) -> float:
        return 0.5 if action == 1 else -0.5

    def observe(self) -> Any:
        return np.array([self.x, self.x**2])

    def reward(self) -> Any:
        return float(self.x > 3) - 0.01


class Raises(Walk):
    def step(self, action: Any) -> Any:
        if self.t == 7:
            raise RuntimeError("simulator lost")
        return super().step(action)


class RaisesInReset(Walk):
    def reset(self, **given: Any) -> Any:
        raise OSError("no display")


class OldApi(Walk):
    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated or truncated, info


class NoReward(Walk):
    def reward(self) -> Any:
        return None


class RewardOfNaN(Walk):
    def reward(self) -> Any:
        return float("nan") if self.t == 9 else 1.0


class ObservationOfNaN(Walk):
    def observe(self) -> Any:
        return np.array([self.x, np.nan if self.t == 3 else 0.0])


class WrongDtype(Walk):
    observation_space = Box(-10, 10, (2,), np.float32)


class Outside(Walk):
    observation_space = Box(-0.5, 0.5, (2,), np.float64)


class Words(Walk):
    observation_space = Dict(x=Walk.observation_space, said=Text(5))

    def observe(self) -> Any:
        return {"x": super().observe(), "said": "hello"}


class HugeRewards(Walk):
    def reward(self) -> Any:
        return 1e6 * self.x


class TinyRewards(Walk):
    def reward(self) -> Any:
        return 1e-7 * self.x


class NothingToGain(Walk):
    def reward(self) -> Any:
        return 0.0


class HugeObservations(Walk):
    observation_space = Box(-np.inf, np.inf, (2,), np.float64)

    def observe(self) -> Any:
        return 1e4 * super().observe()


class Blind(Walk):
    def observe(self) -> Any:
        return np.ones(2)


class Deaf(Walk):
    def push(self, action: Any) -> float:
        return 0.0


class Endless(Walk):
    def step(self, action: Any) -> Any:
        obs, reward, _, _, info = super().step(action)
        self.x = float(np.clip(self.x, -3, 3))
        return np.clip(obs, -10, 10), reward, False, False, info


class OverAtOnce(Walk):
    def step(self, action: Any) -> Any:
        obs, _, _, _, info = super().step(action)
        return obs, 1.0, True, False, info


class Unseeded(Walk):
    rng = np.random.default_rng()

    def observe(self) -> Any:
        return np.array([self.x, float(self.rng.normal())])


class NoWidth(Walk):
    action_space = Box(np.array([-1, 0], np.float32), np.array([1, 0], np.float32))

    def push(self, action: Any) -> float:
        return float(action[0])


class Stuck(Walk):
    def step(self, action: Any) -> Any:
        *row, info = super().step(action)
        return *row, {**info, "action_mask": np.array([self.t < 4, self.t < 4])}


class Settled(Walk):
    """Every episode returns the same, whatever is done."""

    def step(self, action: Any) -> Any:
        obs, _, _, _, info = super().step(action)
        return np.clip(obs, -10, 10), 1.0, False, self.t >= 10, info


class OneWay(Walk):
    action_space = Discrete(1)


BROKEN: dict[type[Walk], tuple[str, str]] = {  # -> finding, what its evidence must hold
    Raises: ("environment raises", "simulator lost"),
    RaisesInReset: ("environment raises", "no display"),
    OldApi: ("contract broken", "old API"),
    NoReward: ("contract broken", "the reward is None"),
    WrongDtype: ("contract broken", "float64"),
    RewardOfNaN: ("non-finite reward", "nan at step 8"),
    ObservationOfNaN: ("non-finite observation", "NaN"),
    Outside: ("observation outside its space", "outside its space's [-0.5, 0.5]"),
    Words: ("unreadable part", "said is Text"),
    HugeRewards: ("reward scale", "e+0"),
    TinyRewards: ("reward scale", "e-0"),
    NothingToGain: ("no reward", "are 0"),
    HugeObservations: ("observation scale", "e+0"),
    Blind: ("constant observation", "are equal"),
    Deaf: ("action does not matter", "changed nothing"),
    Endless: ("no end", "no time limit"),
    OverAtOnce: ("episodes of one step", "on their first step"),
    Unseeded: ("not deterministic", "another trajectory"),
    NoWidth: ("bounds of zero width", "1 of 2"),
    Stuck: ("no action allowed", "at step 4"),
    Settled: ("return never varies", "returned 10"),
    OneWay: ("only one action", "Discrete(1)"),
}
