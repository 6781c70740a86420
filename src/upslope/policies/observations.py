"""Observation spaces: their parts, how each is read, and where the action mask is kept apart.

A Dict or Tuple space is a tree of parts. A part is a *vector* (any Box that is no picture), a
*choice* (Discrete, MultiDiscrete, MultiBinary) or an *image*. Every function here takes a space and
says something about it; the layers are in ``encoders.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from upslope.errors import UnsupportedSpaceError
from upslope.spaces import MASK_KEY, Path
from upslope.trees import Tree

LARGE = 36  # pixels a side, from which an image is one for the kernels of Mnih et al. 2015
SMALLEST = 5  # pixels a side, below which three axes are read as a vector
CHOICES = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class ImageLayout(NamedTuple):
    """How an array becomes ``[channels, height, width]``: a permutation, then merged axes."""

    permutation: tuple[int, ...]
    channels: int
    height: int
    width: int

    @property
    def is_large(self) -> bool:
        """Whether the kernels of Mnih et al. 2015 fit; smaller images get 3 x 3 kernels."""
        return min(self.height, self.width) >= LARGE


def parts(space: gym.Space[Any], path: Path = ()) -> Iterator[tuple[Path, gym.Space[Any]]]:
    """Yield the parts that a network reads, in order: all leaves except the action mask.

    Raises:
        UnsupportedSpaceError: naming the part that no network here reads, and what is supported.
    """
    if isinstance(space, spaces.Dict):
        for key in space:
            if path or key != MASK_KEY:
                yield from parts(space[key], (*path, key))
    elif isinstance(space, spaces.Tuple):
        for i, branch in enumerate(space):
            yield from parts(branch, (*path, i))
    else:
        _check_part(space, path)
        yield path, space


def part_of(tree: Tree, path: Path) -> Any:
    """Return the leaf of an observation that ``path`` names."""
    for step in path:
        tree = tree[step]
    return tree


def is_plain_vector(space: gym.Space[Any]) -> bool:
    """Whether the space is one vector of numbers: no encoder stands before its layers."""
    return (
        isinstance(space, spaces.Box)
        and len(space.shape) == 1
        and space.shape[0] > 0
        and space.dtype != np.uint8
    )


def image_layout(space: gym.Space[Any]) -> ImageLayout | None:
    """Say how a Box is a picture, or ``None`` where it is a vector.

    Three axes are one if the two of space have at least 5 pixels each; the channels are the axis
    that differs from two equal ones, else the shorter of first and last (the last, if equal). Four
    axes are a stack of such pictures, two axes one of a single channel; both only of bytes, and two
    only from 36 pixels a side.
    """
    if not isinstance(space, spaces.Box):
        return None
    shape, rank = space.shape, len(space.shape)
    if rank == 2 and space.dtype == np.uint8 and min(shape) >= LARGE:
        return ImageLayout((0, 1), 1, *shape)
    if rank == 3:
        return _layout(shape, ())
    if rank == 4 and space.dtype == np.uint8:
        return _layout(shape[1:], shape[:1])
    return None


def replaced(tree: Tree, leaves_by_path: Mapping[Path, Any], path: Path = ()) -> Tree:
    """Return the observation with the leaves that are named put in place of its own."""
    if path in leaves_by_path:
        return leaves_by_path[path]
    if isinstance(tree, dict):
        return {k: replaced(tree[k], leaves_by_path, (*path, k)) for k in tree}
    if isinstance(tree, tuple):
        return tuple(replaced(x, leaves_by_path, (*path, i)) for i, x in enumerate(tree))
    return tree


def as_numbers(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers of any kind in ``dtype``; bytes become shares of 255."""
    return x.to(dtype) / 255 if x.dtype == torch.uint8 else x.to(dtype)


def is_normalised(space: gym.Space[Any]) -> bool:
    """Whether ``norm_obs`` normalises a part: a Box that is no large image of bytes."""
    return isinstance(space, spaces.Box) and not stays_bytes(space)


def stays_bytes(space: gym.Space[Any]) -> bool:
    """Whether a part is kept as bytes up to the network: large images of dtype uint8."""
    layout = image_layout(space)
    return layout is not None and layout.is_large and space.dtype == np.uint8


def _layout(shape: tuple[int, ...], stacked: tuple[int, ...]) -> ImageLayout | None:
    first, middle, last = shape
    if first == middle != last:
        channels_last = True
    elif middle == last != first:
        channels_last = False
    else:
        channels_last = last <= first
    k = len(stacked)
    axes = (k + 2, k, k + 1) if channels_last else (k, k + 1, k + 2)
    height, width = (first, middle) if channels_last else (middle, last)
    channels = (last if channels_last else first) * (stacked[0] if stacked else 1)
    if min(height, width) < SMALLEST:
        return None
    return ImageLayout((*range(k), *axes), channels, height, width)


def _check_part(space: gym.Space[Any], path: Path) -> None:
    if isinstance(space, CHOICES):
        return
    if isinstance(space, spaces.Box) and 0 not in space.shape and space.dtype.kind in "fiub":
        return
    where = f" at {'/'.join(map(str, path))!r}" if path else ""
    remedy = (
        f"leave it out with --ignore-obs {path[-1]}"
        if path and isinstance(path[-1], str)
        else "wrap the environment to offer one of them"
    )
    raise UnsupportedSpaceError(
        f"the observation space {space}{where} is not supported: Box, Discrete, MultiDiscrete, "
        f"MultiBinary, and Dict and Tuple of these are; {remedy}"
    )
