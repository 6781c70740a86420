"""The probe: a vector environment that somebody else wrote is held to the autoreset mode it states.

What it states is never guessed and never believed unseen: a wrong statement would train on reset
rows, or bootstrap from the wrong observation.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import create_empty_array
from numpy.typing import NDArray

from upslope.envs.engines import Engine, allowed_now
from upslope.envs.masks import sample_allowed
from upslope.errors import EnvironmentFaultError
from upslope.trees import Tree, map_tree


def check_contract(engine: Engine, rng: np.random.Generator, steps: int = 1000) -> str:
    """Step a foreign engine at random until an episode ends and hold it to its stated mode.

    Returns:
        What could be established, in words, for config.json.

    Raises:
        EnvironmentFaultError: naming environment and step where rows contradict the metadata.
    """
    obs = engine.reset([int(rng.integers(2**31 - 1)) for _ in range(engine.n_envs)])
    ended = np.zeros(engine.n_envs, dtype=bool)
    for step in range(steps):
        actions = _random_actions(engine, obs, rng)
        obs, rewards, terminated, truncated, infos = engine.step(actions, None)
        done = np.asarray(terminated) | np.asarray(truncated)
        if engine.autoreset is AutoresetMode.NEXT_STEP and ended.any():
            wrong = np.flatnonzero(ended & (done | (np.asarray(rewards) != 0)))
            if len(wrong):
                raise EnvironmentFaultError(
                    f"environment {wrong[0]} gave reward or an end on the row after its episode "
                    f"ended (step {step}) though its metadata says NEXT_STEP: correct "
                    "metadata['autoreset_mode']"
                )
            return f"NEXT_STEP seen at step {step}"
        ended = done
        if not ended.any():
            continue
        first = np.flatnonzero(ended)
        if engine.autoreset is not AutoresetMode.SAME_STEP and "final_obs" in infos:
            raise EnvironmentFaultError(
                f"environment {first[0]} was reset on the very step its episode ended "
                f"(step {step}) though its metadata says {engine.autoreset.name}: correct "
                "metadata['autoreset_mode']"
            )
        if engine.autoreset is AutoresetMode.SAME_STEP:
            engine.final_obs(infos, int(first[0]))
            return f"SAME_STEP seen at step {step}"
        if engine.autoreset is AutoresetMode.DISABLED:
            obs = _check_partial_reset(engine, obs, first, step)
            if len(first) < engine.n_envs:  # else nobody was outside the mask
                return f"DISABLED with reset_mask seen at step {step}"
    return f"no episode ended in {steps} random steps: {engine.autoreset.value} taken on trust"


def _random_actions(engine: Engine, obs: Tree, rng: np.random.Generator) -> Tree:
    """One allowed action for each environment, as the engine takes them."""
    space, n = engine.action_space, engine.n_envs
    given = allowed_now(engine, obs)
    masks: Any = [None] * n if given is None else given
    out: Any = create_empty_array(space, n=n, fn=np.zeros)
    each = [sample_allowed(space, mask, rng) for mask in masks]
    return gym.vector.utils.concatenate(space, each, out)


def _check_partial_reset(engine: Engine, obs: Tree, ended: NDArray[Any], step: int) -> Tree:
    """Reset what has ended and return all observations; raise if others were reset too."""
    before = map_tree(np.array, obs)
    after = engine.reset_some(ended, [int(i) for i in ended])
    kept = np.setdiff1d(np.arange(engine.n_envs), ended)

    def compare(old: NDArray[Any], new: NDArray[Any]) -> None:
        if not np.array_equal(old[kept], new[kept]):
            raise EnvironmentFaultError(
                f"{engine.name} environment: reset with options['reset_mask'] at step {step} also "
                "reset environments outside the mask: honour the mask, "
                "or correct metadata['autoreset_mode']"
            )

    map_tree(compare, before, after)
    return after
