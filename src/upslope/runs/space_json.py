"""Spaces in JSON types, for the header of a model file."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from upslope.errors import ModelFileError

MOST_NUMBERS = 2**24
MOST_PARTS = 4096


def space_to_json(space: gym.Space[Any]) -> dict[str, Any]:
    """Describe a space in JSON types; infinite bounds are strings, equal bounds are told once.

    Raises:
        ModelFileError: for a space that no policy here has.
    """
    if isinstance(space, spaces.Discrete):
        n, start = int(space.n), int(space.start)
        return {"type": "Discrete", "n": n, "start": start, "dtype": str(space.dtype)}
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
        is_number = isinstance(space.n, int | np.integer)
        return {"type": "MultiBinary", "n": space.shape[0] if is_number else list(space.shape)}
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": [[k, space_to_json(space[k])] for k in space]}
    if isinstance(space, spaces.Tuple):
        return {"type": "Tuple", "spaces": [space_to_json(part) for part in space]}
    raise ModelFileError(f"the space {space} has no place in a model file")


def space_from_json(described: Mapping[str, Any], most: int = MOST_NUMBERS) -> gym.Space[Any]:
    """Rebuild a space from :func:`space_to_json`.

    Args:
        described: what a file says; nothing in it is believed.
        most: how many numbers a value of the space may have. It is held to before an array is made.

    Raises:
        ValueError: it describes no space, or one of more numbers than ``most``.
    """
    try:
        return _made(described, most, itertools.count(1))
    except ValueError:
        raise
    except Exception as error:  # whatever Gymnasium makes of nonsense, assertions among it
        raise ValueError(f"it describes no space ({type(error).__name__}: {error})") from error


def _made(described: Mapping[str, Any], most: int, counter: Iterator[int]) -> gym.Space[Any]:
    if next(counter) > MOST_PARTS:
        raise ValueError(f"a space has more than {MOST_PARTS} parts")
    kind = described["type"]
    if kind == "Discrete":
        return _discrete(described)
    if kind == "Box":
        return _box(described, most)
    if kind == "MultiDiscrete":
        dtype = _dtype(described["dtype"], "iu")
        nvec, start = np.array(described["nvec"]), np.array(described["start"])
        return spaces.MultiDiscrete(nvec, dtype=dtype.type, start=start)
    if kind == "MultiBinary":
        n = described["n"]
        shape = _shape([n] if type(n) is int else n, most)
        return spaces.MultiBinary(n if type(n) is int else shape)
    if kind == "Dict":
        return spaces.Dict(
            [(_key(k), _made(part, most, counter)) for k, part in described["spaces"]]
        )
    if kind == "Tuple":
        return spaces.Tuple([_made(part, most, counter) for part in described["spaces"]])
    raise ValueError(f"unknown space type {kind!r:.80}")


def _discrete(described: Mapping[str, Any]) -> gym.Space[Any]:
    dtype = _dtype(described["dtype"], "iu")
    extra: Any = {} if dtype == np.int64 else {"dtype": dtype.type}  # not every Gymnasium has it
    made: gym.Space[Any] = spaces.Discrete(
        _whole(described["n"]), start=_whole(described["start"]), **extra
    )
    return made


def _box(described: Mapping[str, Any], most: int) -> spaces.Box:
    shape, dtype = _shape(described["shape"], most), _dtype(described["dtype"], "biuf")
    low, high = (_bounds_from_json(described[k], shape, dtype) for k in ("low", "high"))
    return spaces.Box(low, high, shape, dtype.type)


def _shape(numbers: Any, most: int) -> tuple[int, ...]:
    if not isinstance(numbers, list) or len(numbers) > 32:
        raise ValueError(f"{numbers!r:.80} is no shape")
    shape = tuple(_whole(n) for n in numbers)
    if min(shape, default=0) < 0 or math.prod(shape) > most:
        raise ValueError(f"a space of shape {numbers!r:.80} has more numbers than the file")
    return shape


def _dtype(name: Any, kinds: str) -> np.dtype[Any]:
    """Return the dtype of numbers that is called ``name``; text, objects and records are none."""
    dtype = np.dtype(name if isinstance(name, str) else "O")
    if dtype.kind not in kinds or dtype.itemsize > 8:
        raise ValueError(f"a space cannot have the dtype {name!r:.80}")
    return dtype


def _whole(number: Any) -> int:
    if type(number) is not int:
        raise ValueError(f"{number!r:.80} is no whole number")
    return number


def _key(key: Any) -> Any:
    if type(key) not in (str, int):
        raise ValueError(f"{key!r:.80} is no key of a Dict space")
    return key


def _bounds_to_json(bounds: Any) -> list[Any]:
    numbers = np.asarray(bounds).reshape(-1)
    if numbers.size > 1 and (numbers == numbers[0]).all():
        numbers = numbers[:1]
    if numbers.dtype.kind != "f":  # the largest whole numbers are no floats
        return [int(x) for x in numbers]
    return [float(x) if np.isfinite(x) else str(float(x)) for x in numbers]


def _bounds_from_json(bounds: list[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            numbers = np.array([float(x) for x in bounds]).astype(dtype)
    else:  # format 1 wrote floats, of which the largest is one above the largest whole number
        least, most = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        numbers = np.array([min(max(int(x), least), most) for x in bounds], dtype)
    return np.full(shape, numbers[0]) if numbers.size == 1 else numbers.reshape(shape)
