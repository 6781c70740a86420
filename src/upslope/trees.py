"""Trees of arrays: an observation, action or state is an array or a dict or tuple of such trees.

A bare array is the simplest tree, so code written with these functions reads the same for Box and
for Dict spaces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Tree = Any  # array | tensor | dict[str, Tree] | tuple[Tree, ...]


def map_tree(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """Apply ``function`` to corresponding leaves of trees of one structure; return its tree."""
    if isinstance(tree, dict):
        return {key: map_tree(function, tree[key], *(o[key] for o in others)) for key in tree}
    if isinstance(tree, tuple):
        return tuple(map_tree(function, *leaves) for leaves in zip(tree, *others, strict=True))
    return function(tree, *others)


def conform(layout: Tree, tree: Tree) -> Tree:
    """Return the part of a tree that a layout has: dict keys that it lacks are left out."""
    return tree if isinstance(layout, np.ndarray) else map_tree(lambda _, x: x, layout, tree)


def leaves(tree: Tree) -> list[Any]:
    """Return the leaves in order (dicts in their own key order)."""
    if isinstance(tree, dict):
        return [leaf for key in tree for leaf in leaves(tree[key])]
    if isinstance(tree, tuple):
        return [leaf for branch in tree for leaf in leaves(branch)]
    return [tree]


def take(tree: Tree, index: Any) -> Tree:
    """Index every leaf in the same way: ``x[index]``."""
    return map_tree(lambda x: x[index], tree)


def stack(trees: Sequence[Tree]) -> Tree:
    """Stack numpy trees along a new first axis."""
    return map_tree(lambda *parts: np.stack(parts), trees[0], *trees[1:])


def concatenate(trees: Sequence[Tree]) -> Tree:
    """Join torch trees along their first axis."""
    return map_tree(lambda *parts: torch.cat(parts), trees[0], *trees[1:])


def to_torch(tree: Tree, device: torch.device) -> Tree:
    """Turn a numpy tree into tensors on ``device`` (without a copy on the CPU), dtypes kept."""
    if device.type == "cpu":
        return map_tree(_tensor, tree)
    return map_tree(lambda x: _tensor(x).to(device), tree)


def flatten_time(tree: Tree) -> Tree:
    """Merge the leading ``[T, B]`` of every leaf into one axis of ``T * B`` rows."""
    return map_tree(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    flags = array.flags
    if not (flags.c_contiguous and flags.writeable):
        array = np.require(array, requirements=["C", "W"])
    return torch.from_numpy(array)
