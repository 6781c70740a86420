"""An environment of any spaces, masked in any convention, that refuses what is not allowed."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

OBSERVATIONS: dict[str, gym.Space[Any]] = {
    "vector": Box(-1, 1, (3,)),
    "matrix": Box(-1, 1, (2, 3), np.float64),
    "bytes": Box(0, 255, (4,), np.uint8),
    "small_image": Box(0, 255, (7, 7, 3), np.uint8),
    "large_image": Box(0, 255, (2, 36, 36), np.uint8),
    "choice": Discrete(4, start=2),
    "choices": MultiDiscrete([3, 2], start=[1, -1]),
    "bits": MultiBinary(3),
    "dict": Dict(a=Box(-1, 1, (2,)), b=Dict(c=Discrete(3), d=Box(0, 255, (6, 6, 1), np.uint8))),
    "tuple": Tuple((Discrete(3), Box(-5, 5, ()), Tuple((MultiBinary(2),)))),
}
ACTIONS: dict[str, gym.Space[Any]] = {
    "choice": Discrete(3, start=-1),
    "choices": MultiDiscrete([2, 4], start=[0, 3]),
    "bits": MultiBinary(3),
    "box": Box(np.array([-1, 0], np.float32), np.array([2, 5], np.float32)),
    "dict": Dict(move=Box(-1, 1, (2,)), pick=Discrete(3), more=Tuple((MultiDiscrete([2, 2]),))),
    "tuple": Tuple((Discrete(2), Discrete(3, start=1))),
}
MASKS = ("none", "method", "info", "observation")


class Chamber(gym.Env[Any, Any]):
    """Episodes of three to six steps, which end by both kinds of end in turn.

    ``allowed [n_mask]`` changes at every step, forbids about half of what there is, and is checked.
    """

    def __init__(self, observations: str, actions: str, mask: str = "none") -> None:
        self.shown, self.action_space = OBSERVATIONS[observations], ACTIONS[actions]
        self.sizes = sizes_of(self.action_space)
        self.mask = mask
        self.observation_space = self.shown
        if mask == "observation":
            given = {"action_mask": MultiBinary(sum(self.sizes)), "seen": self.shown}
            self.observation_space = Dict(given)
        if mask == "method":
            self.action_masks = lambda: self.allowed
        self.seen_actions: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.t, self.length = 0, int(self.np_random.integers(3, 7))
        return self.observe()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        if self.mask != "none":
            values = choices_of(self.action_space, action)
            first = np.cumsum([0, *self.sizes])[:-1]
            values = np.array(values, dtype=int)
            assert self.allowed[first + values].all(), f"{action!r} is not allowed"
        self.t += 1
        over = self.t == self.length
        obs, info = self.observe()
        return obs, 1.0, over and self.length % 2 == 0, over and self.length % 2 == 1, info

    def observe(self) -> tuple[Any, dict[str, Any]]:
        pieces = []
        for size in self.sizes:
            piece = self.np_random.random(size) < 0.5
            piece[self.np_random.integers(size)] = True
            pieces.append(piece)
        self.allowed = np.concatenate(pieces) if pieces else np.zeros(0, bool)
        obs = self.shown.sample()
        if self.mask == "observation":
            obs = {"action_mask": self.allowed.astype(np.int8), "seen": obs}
        return obs, {"action_mask": self.allowed.astype(np.int8)} if self.mask == "info" else {}


def sizes_of(space: gym.Space[Any]) -> list[int]:
    """Number of values of each choice in an action space."""
    if isinstance(space, Discrete):
        return [int(space.n)]
    if isinstance(space, MultiDiscrete):
        return space.nvec.tolist()
    if isinstance(space, MultiBinary):
        return [2] * int(space.n)
    if isinstance(space, Box):
        return []
    branches = space.values() if isinstance(space, Dict) else space
    return [size for branch in branches for size in sizes_of(branch)]


def choices_of(space: gym.Space[Any], action: Any) -> list[int]:
    """The choices of an action, counted from 0."""
    if isinstance(space, Discrete):
        return [int(action - space.start)]
    if isinstance(space, MultiDiscrete):
        return (action - space.start).tolist()
    if isinstance(space, MultiBinary):
        return action.tolist()
    if isinstance(space, Box):
        return []
    if isinstance(space, Dict):
        return [c for key in space for c in choices_of(space[key], action[key])]
    return [c for i, part in enumerate(space) for c in choices_of(part, action[i])]
