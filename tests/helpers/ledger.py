"""A world whose observations say which episode and step they belong to.

Episode ``e`` is a pure function: its length, its ending, its observations and its rewards. So every
row of a rollout can be checked without a record of what an environment did, in whichever process.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from upslope.envs.engines import SyncEngine, VectorEngine
from upslope.envs.episodes import Environments
from upslope.policies.actor_critic import ActorCritic
from upslope.seeding import SeedTree

LENGTHS = (1, 2, 3, 5, 8, 13)
TERMINATED, TRUNCATED, BOTH = range(3)
START = 5  # of the discrete action space
KINDS = ("plain", "async", "next", "same", "disabled")
MODES = {
    "next": AutoresetMode.NEXT_STEP,
    "same": AutoresetMode.SAME_STEP,
    "disabled": AutoresetMode.DISABLED,
}


def mix(*numbers: int) -> float:
    """Scatter integers over [0, 1)."""
    x = 0x9E3779B97F4A7C15
    for number in numbers:
        x = ((x ^ (number + 1)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 31)) * 0x94D049BB133111EB) % 2**64
        x ^= x >> 29
    return x / 2**64


def length(e: int) -> int:
    return LENGTHS[int(len(LENGTHS) * mix(e, 0))]


def ending(e: int) -> int:
    return int(3 * mix(e, 1))


def observation(e: int, t: int) -> np.ndarray:
    return np.array([e / 2**31, t / 1024, 2 * mix(e, t, 2) - 1, 2 * mix(e, t, 3) - 1])


def read(obs: Any) -> tuple[int, int]:
    """Which episode and step an observation belongs to."""
    e, t = round(float(obs[0]) * 2**31), round(float(obs[1]) * 1024)
    assert np.array_equal(np.asarray(obs), observation(e, t)), "not an observation of this world"
    return e, t


def reward(e: int, t: int, action: Any) -> float:
    """``action`` in the policy's own units: 0, 1, 2, or two numbers in the Box."""
    return 10 * mix(e, t, 4) - 5 + 0.25 * float(np.sum(action))


def ends(e: int, t: int) -> tuple[bool, bool]:
    """(terminated, truncated) of step t."""
    last = t + 1 == length(e)
    return last and ending(e) != TRUNCATED, last and ending(e) != TERMINATED


class Ledger(gym.Env):
    """Plays episode ``seed``; with a ``slot``, ``1000 slot``, ``1000 slot + 1``, ... instead.

    ``alias``: hands out one buffer again and again, as some simulators do. ``box``: Box actions.
    """

    def __init__(self, slot: int | None = None, box: bool = False, alias: bool = False) -> None:
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float64)
        discrete = gym.spaces.Discrete(3, start=START)
        self.action_space = gym.spaces.Box(-2.0, 3.0, (2,)) if box else discrete
        self.slot, self.alias, self.box = slot, alias, box
        self.played, self.running = 0, False
        self.buffer = np.zeros(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        if self.slot is not None:
            self.e = 1000 * self.slot + self.played
        else:
            self.e = int(self.np_random.integers(2**31)) if seed is None else seed
        self.t, self.running = 0, True
        self.played += 1
        return self._observe(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.running, "stepped after the end of an episode"
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        gain = reward(self.e, self.t, action if self.box else action - START)
        terminated, truncated = ends(self.e, self.t)
        self.t += 1
        info = {}
        if terminated or truncated:
            self.running = False
            info = {"is_success": bool(self.e % 2), "score": float(self.e % 7)}
        return self._observe(), gain, terminated, truncated, info

    def _observe(self) -> np.ndarray:
        if not self.alias:
            return observation(self.e, self.t)
        self.buffer[:] = observation(self.e, self.t)
        return self.buffer


def make_ledgers(
    kind: str, n_envs: int = 3, seed: int = 0, scripted: bool = False, **env: Any
) -> Environments:
    """Ledgers on an engine; ``scripted``: each slot plays its own list, whatever the seeds."""
    makers = [partial(Ledger, slot=i if scripted else None, **env) for i in range(n_envs)]
    return Environments(make_engine(kind, makers), SeedTree(seed), log_info=("score",))


def make_engine(kind: str, makers: list[Any]) -> Any:
    if kind == "plain":
        return SyncEngine([make() for make in makers])
    if kind == "async":
        vector: Any = AsyncVectorEnv(makers, copy=False, autoreset_mode=AutoresetMode.DISABLED)
        return VectorEngine(lambda _: vector, name="async", seeds_episodes=True)
    vector = SyncVectorEnv(makers, autoreset_mode=MODES[kind])
    return VectorEngine(lambda _: vector, name="vector", seeds_episodes=True)


def make_policy(envs: Environments, **settings: Any) -> ActorCritic:
    settings = {"dtype": "float64", "seed": 1, "net_arch": (16,)} | settings
    return ActorCritic(envs.observation_space, envs.action_space, **settings)


def act_by_observation(policy: ActorCritic) -> ActorCritic:
    """Let a discrete policy's action hang on the observation alone: rows need not line up."""
    policy.actions.sample = lambda outputs, noise, std, mask=None: outputs.argmax(-1)
    return policy
