"""Spaces, masks, memory, normalisation, engines and algorithms in every sensible combination."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import upslope
from helpers.chamber import ACTIONS, MASKS, OBSERVATIONS, Chamber, sizes_of
from upslope.agent import AGENTS
from upslope.trees import leaves

AXES: dict[str, tuple[Any, ...]] = {
    "observations": tuple(OBSERVATIONS),
    "actions": tuple(ACTIONS),
    "action_dist": ("gaussian", "squashed", "beta"),
    "mask": MASKS,
    "memory": ("none", "gru", "lstm"),
    "norm_obs": (False, True),
    "shared_network": (False, True),
    "algorithm": ("ppo", "a2c", "vpg", "reinforce", "npg", "trpo"),
    "engine": ("sync", "async", "next_step", "same_step"),
}
ALONE = ("vpg", "npg", "trpo")  # train actor and critic apart
Combination = dict[str, Any]


def is_sensible(c: Combination) -> bool:
    space = ACTIONS[c["actions"]]
    if c["mask"] != "none" and not sizes_of(space):
        return False
    if c["action_dist"] != "gaussian" and c["actions"] not in ("box", "dict"):
        return False
    return not (c["shared_network"] and c["algorithm"] in ALONE)


def sampled(n: int, seed: int) -> list[Combination]:
    rng = np.random.default_rng(seed)
    found: list[Combination] = []
    while len(found) < n:
        c = {name: values[rng.integers(len(values))] for name, values in AXES.items()}
        if is_sensible(c) and c not in found:
            found.append(c)
    return found


def pairs(c: Combination) -> set[Any]:
    return set(itertools.combinations(sorted(c.items()), 2))


def pairwise() -> list[Combination]:
    """Few combinations that hold every pair of values that any sensible one holds."""
    pool = sampled(1500, seed=1)
    open_pairs = set().union(*map(pairs, pool))
    chosen = []
    while open_pairs:
        best = max(pool, key=lambda c: len(pairs(c) & open_pairs))
        chosen.append(best)
        open_pairs -= pairs(best)
    return chosen


PAIRWISE = pairwise()
MANY = sampled(320, seed=2)


def name_of(c: Combination) -> str:
    return "-".join(str(value) for value in c.values())


def environments(c: Combination) -> tuple[Any, dict[str, Any]]:
    make = functools.partial(Chamber, c["observations"], c["actions"], c["mask"])
    if c["engine"] in ("sync", "async"):
        return make, {"n_envs": 3, "vec": c["engine"]}
    mode = AutoresetMode[c["engine"].upper()]
    return gym.vector.SyncVectorEnv([make] * 3, autoreset_mode=mode), {}


def check(c: Combination, path: Path) -> None:
    """Two iterations, a file, and the same predictions from it, allowed and inside the space."""
    env, settings = environments(c)
    if c["algorithm"] == "reinforce":
        settings |= {"batch_episodes": 4}
    else:
        settings |= {"n_steps": 7}
    if c["algorithm"] == "ppo":
        settings |= {"batch_size": 8, "n_epochs": 2}
    agent = AGENTS[c["algorithm"]](
        env,
        seed=3,
        net_arch=(8,),
        memory_size=5,
        warmup_steps=6,
        **settings,
        **{k: c[k] for k in ("action_dist", "memory", "norm_obs", "shared_network")},
    )
    seen: list[float] = []
    agent.learn(40, callback=lambda event: seen.append(event.metrics["time/iterations"]))
    assert len(seen) >= 2
    agent.save(path)
    plain = functools.partial(Chamber, c["observations"], c["actions"], c["mask"])
    loaded = upslope.load(path, env=plain, n_envs=2)
    walks = [walk(one, plain()) for one in (agent, loaded)]
    for one, other in zip(*walks, strict=True):
        for x, y in zip(leaves(one), leaves(other), strict=True):
            np.testing.assert_array_equal(x, y)
    assert loaded.evaluate(2, seed=1).sampled.lengths.min() >= 3
    agent.close()
    loaded.close()


def walk(agent: upslope.Agent, env: Chamber) -> list[Any]:
    """Actions of ten steps; the environment refuses those that are not allowed."""
    obs, info = env.reset(seed=5)
    state, start, actions = None, True, []
    for _ in range(10):
        mask = env.allowed if env.mask == "method" else info.get("action_mask")
        action, state = agent.predict(
            obs, state, np.array([start]), deterministic=True, action_masks=mask
        )
        actions.append(action)
        obs, _, terminated, truncated, info = env.step(action)
        start = terminated or truncated
        if start:
            obs, info = env.reset()
    return actions


@pytest.mark.parametrize("c", PAIRWISE, ids=name_of)
def test_every_pair_of_parts_works_together(c: Combination, tmp_path: Path) -> None:
    check(c, tmp_path / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("c", MANY, ids=name_of)
def test_parts_are_orthogonal(c: Combination, tmp_path: Path) -> None:
    check(c, tmp_path / "model.safetensors")


def test_there_are_enough_of_them() -> None:
    assert len(PAIRWISE) >= 60
    assert len(MANY) >= 300
