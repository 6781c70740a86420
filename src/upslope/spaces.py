"""What environments and policies both ask of a Gymnasium space."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from upslope.trees import Tree

Path = tuple[str | int, ...]  # keys and positions from the root of a space to a leaf
MASK_KEY = "action_mask"  # of info and of a Dict observation: which actions are allowed


def without(space: gym.Space[Any], keys: Sequence[str]) -> gym.Space[Any]:
    """Return the space without the Dict entries of these keys, at any depth."""
    if not keys:
        return space
    if isinstance(space, spaces.Dict):
        return spaces.Dict([(k, without(space[k], keys)) for k in space if k not in keys])
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple([without(branch, keys) for branch in space])
    return space


def keys_of(space: gym.Space[Any]) -> set[str]:
    """Return the Dict keys of a space, at any depth."""
    branches: list[gym.Space[Any]] = []
    if isinstance(space, spaces.Dict):
        branches = list(space.values())
    elif isinstance(space, spaces.Tuple):
        branches = list(space)
    own = set(space) if isinstance(space, spaces.Dict) else set()
    return own.union(*(keys_of(branch) for branch in branches))


def paths(space: gym.Space[Any], path: Path = ()) -> Iterator[Path]:
    """Yield the path of every leaf of a space, in order."""
    if isinstance(space, spaces.Dict):
        for key in space:
            yield from paths(space[key], (*path, key))
    elif isinstance(space, spaces.Tuple):
        for i, branch in enumerate(space):
            yield from paths(branch, (*path, i))
    else:
        yield path


def assemble(space: gym.Space[Any], leaf: Callable[[Path], Any], path: Path = ()) -> Tree:
    """Return a tree with the structure of a space, from what ``leaf`` says at every path."""
    if isinstance(space, spaces.Dict):
        return {key: assemble(space[key], leaf, (*path, key)) for key in space}
    if isinstance(space, spaces.Tuple):
        return tuple(assemble(branch, leaf, (*path, i)) for i, branch in enumerate(space))
    return leaf(path)


def choice_sizes(space: gym.Space[Any]) -> list[int]:
    """Return the number of values of each choice in an action space, in the order of masks."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return [int(n) for n in space.nvec.reshape(-1)]
    if isinstance(space, spaces.MultiBinary):
        return [2] * int(np.prod(space.shape, dtype=int))
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        branches = space.values() if isinstance(space, spaces.Dict) else space
        return [size for branch in branches for size in choice_sizes(branch)]
    return []


def mask_size(space: gym.Space[Any]) -> int:
    """Return the length of an action space's mask: 0 where nothing can be masked."""
    return sum(choice_sizes(space))


def outside(space: gym.Space[Any], obs: Tree, where: str = "observation") -> str | None:
    """Say which number of observations ``[..., *shape]`` lies farthest outside its bounds, if any.

    What rounding explains (1e-5 of a bound) is inside; bytes cannot be outside of theirs.
    """
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        items = space.items() if isinstance(space, spaces.Dict) else enumerate(space)
        said = (outside(part, obs[key], f"{where} part {key!r}") for key, part in items)
        return next((sentence for sentence in said if sentence is not None), None)
    if not isinstance(space, spaces.Box) or space.dtype == np.uint8:
        return None
    axes = tuple(range(obs.ndim - len(space.shape)))
    if obs.size and (obs.min(axes) >= space.low).all() and (obs.max(axes) <= space.high).all():
        return None
    with np.errstate(invalid="ignore"):  # infinite bounds have no distance
        low, high = space.low.astype(float), space.high.astype(float)
        below = low - obs.min(axes) - 1e-5 * np.abs(low) - 1e-6
        above = obs.max(axes) - high - 1e-5 * np.abs(high) - 1e-6
        far = np.nan_to_num(np.maximum(below, above), nan=-1.0, posinf=-1.0)
    if obs.size == 0 or not (far > 0).any():
        return None
    worst = np.unravel_index(int(far.argmax()), far.shape)
    column = obs[(..., *worst)]
    value = column.min() if below[worst] > above[worst] else column.max()
    index = f"[{', '.join(map(str, worst))}]" if worst else ""
    return (
        f"{where}{index} was {value:.6g}, outside its space's [{low[worst]:.6g}, {high[worst]:.6g}]"
    )


def observation_bytes(space: gym.Space[Any]) -> int:
    """Return the bytes that one observation takes in an array."""
    if isinstance(space, spaces.Dict):
        return sum(observation_bytes(branch) for branch in space.values())
    if isinstance(space, spaces.Tuple):
        return sum(observation_bytes(branch) for branch in space)
    return int(np.prod(space.shape or (), dtype=int)) * np.dtype(space.dtype or float).itemsize
