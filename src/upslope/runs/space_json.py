"""Spaces in JSON types, for the header of a model file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from upslope.errors import ModelFileError


def space_to_json(space: gym.Space[Any]) -> dict[str, Any]:
    """Describe a space in JSON types; infinite bounds are strings, equal bounds are told once.

    Raises:
        ModelFileError: for a space that no policy here has.
    """
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.Box):
        return {
            "type": "Box",
            "shape": list(space.shape),
            "dtype": str(space.dtype),
            "low": _bounds_to_json(space.low),
            "high": _bounds_to_json(space.high),
        }
    if isinstance(space, spaces.MultiDiscrete):
        return {
            "type": "MultiDiscrete",
            "nvec": space.nvec.tolist(),
            "start": space.start.tolist(),
            "dtype": str(space.dtype),
        }
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "n": list(space.shape)}
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": [[k, space_to_json(space[k])] for k in space]}
    if isinstance(space, spaces.Tuple):
        return {"type": "Tuple", "spaces": [space_to_json(part) for part in space]}
    raise ModelFileError(f"the space {space} has no place in a model file")


def space_from_json(described: Mapping[str, Any]) -> gym.Space[Any]:
    """Rebuild a space from :func:`space_to_json`."""
    kind = described["type"]
    if kind == "Discrete":
        return spaces.Discrete(described["n"], start=described["start"])
    if kind == "Box":
        shape, dtype = tuple(described["shape"]), np.dtype(described["dtype"])
        low, high = (_bounds_from_json(described[k], shape, dtype) for k in ("low", "high"))
        return spaces.Box(low, high, shape, dtype.type)
    if kind == "MultiDiscrete":
        nvec, start = np.array(described["nvec"]), np.array(described["start"])
        return spaces.MultiDiscrete(nvec, dtype=np.dtype(described["dtype"]).type, start=start)
    if kind == "MultiBinary":
        shape = described["n"]
        return spaces.MultiBinary(shape[0] if len(shape) == 1 else shape)
    if kind == "Dict":
        return spaces.Dict([(k, space_from_json(part)) for k, part in described["spaces"]])
    if kind == "Tuple":
        return spaces.Tuple([space_from_json(part) for part in described["spaces"]])
    raise ValueError(f"unknown space type {kind!r}")


def _bounds_to_json(bounds: Any) -> list[Any]:
    numbers = np.asarray(bounds).reshape(-1)
    if numbers.size > 1 and (numbers == numbers[0]).all():
        numbers = numbers[:1]
    return [float(x) if np.isfinite(x) else str(float(x)) for x in numbers]


def _bounds_from_json(bounds: list[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    numbers = np.array([float(x) for x in bounds]).astype(dtype)
    return np.full(shape, numbers[0]) if numbers.size == 1 else numbers.reshape(shape)
