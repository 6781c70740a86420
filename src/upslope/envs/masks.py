"""Action masks in the three conventions in use, brought to one: flat, ``[n_mask]``, True allowed.

An environment says which choices are allowed by a method ``action_masks()``, by
``info["action_mask"]``, or by the key ``action_mask`` of a Dict observation. The masks of several
choices (MultiDiscrete, MultiBinary, Dict, Tuple) lie end to end, as sb3-contrib has them; a tuple
or dict of arrays, as Gymnasium's ``space.sample(mask)`` takes it, is laid out so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from upslope.errors import EnvironmentFaultError
from upslope.spaces import MASK_KEY, choice_sizes, mask_size
from upslope.trees import Tree


def flat_mask(mask: Any, space: gym.Space[Any]) -> NDArray[np.bool_]:
    """Return a mask in any of its forms as bool ``[n_mask]``.

    Raises:
        EnvironmentFaultError: if it does not have one entry per value of each choice.
    """
    pieces = [np.asarray(leaf).reshape(-1) for leaf in _in_order(mask, space)]
    flat = np.concatenate(pieces) if pieces else np.zeros(0)
    if flat.size != mask_size(space):
        raise EnvironmentFaultError(
            f"the action mask has {flat.size} entries, and the action space {space} has "
            f"{mask_size(space)} choices: give one entry for each, end to end"
        )
    return flat.astype(bool)


def mask_method(env: gym.Env[Any, Any]) -> Callable[[], Any] | None:
    """Return the method ``action_masks`` of an environment or of a wrapper around it, if any."""
    found = env.get_wrapper_attr("action_masks") if env.has_wrapper_attr("action_masks") else None
    return found if callable(found) else None


def current_mask(env: gym.Env[Any, Any], info: dict[str, Any]) -> NDArray[np.bool_] | None:
    """Return what a plain environment allows now, by its method or ``info``: ``[n_mask]``."""
    method = mask_method(env)
    mask = info.get(MASK_KEY) if method is None else method()
    return None if mask is None else flat_mask(mask, env.action_space)


def sample_allowed(
    space: gym.Space[Any], mask: NDArray[np.bool_] | None, rng: np.random.Generator
) -> Tree:
    """Return a random action of one environment, uniform over what ``mask [n_mask]`` allows.

    A choice of which nothing is allowed is free: so masks are at the end of an episode, where the
    action is not used.
    """
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        items = list(space.items()) if isinstance(space, spaces.Dict) else list(enumerate(space))
        sampled, first = {}, 0
        for key, branch in items:
            size = mask_size(branch)
            part = None if mask is None else mask[first : first + size]
            sampled[key] = sample_allowed(branch, part, rng)
            first += size
        return sampled if isinstance(space, spaces.Dict) else tuple(sampled.values())
    sizes = choice_sizes(space)
    if not sizes:
        space.seed(int(rng.integers(2**31 - 1)))
        return space.sample()
    allowed = np.ones(sum(sizes), dtype=bool) if mask is None else mask
    ends = np.cumsum(sizes)[:-1]
    parts = [part if part.any() else ~part for part in np.split(allowed, ends)]
    chosen = [int(rng.choice(np.flatnonzero(part))) for part in parts]
    if isinstance(space, spaces.Discrete):
        return space.dtype.type(chosen[0] + space.start)
    shaped = np.array(chosen).reshape(space.shape)
    start = space.start if isinstance(space, spaces.MultiDiscrete) else 0
    return (shaped + start).astype(space.dtype)


def _in_order(mask: Any, space: gym.Space[Any]) -> list[Any]:
    """The arrays of a mask in the order of the space's choices."""
    if isinstance(mask, dict):
        keys = space if isinstance(space, spaces.Dict) else mask
        return [leaf for key in keys for leaf in _in_order(mask.get(key), _branch(space, key))]
    if isinstance(mask, (tuple, list)) and any(
        isinstance(m, (tuple, list, np.ndarray)) for m in mask
    ):
        return [leaf for i, part in enumerate(mask) for leaf in _in_order(part, _branch(space, i))]
    if mask is None:  # nothing said about this part: all of it is allowed
        return [np.ones(mask_size(space), dtype=bool)]
    return [mask]


def _branch(space: gym.Space[Any], key: Any) -> gym.Space[Any]:
    return space[key] if isinstance(space, (spaces.Dict, spaces.Tuple)) else space
