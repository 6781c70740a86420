"""The boundary: what one environment hands over is checked here, before anything stores it.

An environment that raises, or breaks Gymnasium's contract, does not raise through an engine: its
guard reports a *fault*, a sentence in ``info``, which passes through worker processes as text and
whatever class the exception was of. What becomes of it is decided in ``episodes.py``.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import create_empty_array

from upslope.envs.masks import flat_mask, mask_method
from upslope.errors import EnvironmentFaultError, UpslopeError
from upslope.spaces import MASK_KEY, mask_size, without
from upslope.trees import Tree, take

EPISODE = "{episode}"  # stands in a fault's sentence for what only the vector knows
FAULT, TRACE = "environment_fault", "environment_trace"  # keys of info
MIGRATE = (
    "it speaks Gym's old API: return (obs, reward, terminated, truncated, info) from step and "
    "(obs, info) from reset"
)
_NUMBERS = {float, int, np.float64, np.float32, np.int64, np.int32}
_TRUTHS = {bool, np.bool_}


class GuardedEnv(gym.Env[Any, Any]):
    """One plain environment behind the checks of its contract.

    Args:
        make: makes the environment, also anew after a fault.
        ignored: Dict keys of observations to leave out, at any depth.
        can_rebuild: False where ``make`` gives one and the same object each time.
    """

    def __init__(
        self,
        make: Callable[[], gym.Env[Any, Any]],
        ignored: Sequence[str] = (),
        can_rebuild: bool = True,
    ) -> None:
        self._make, self._can_rebuild = make, can_rebuild
        self.env = make()
        self.observation_space = without(self.env.observation_space, ignored)
        self.action_space = self.env.action_space
        self.metadata, self.render_mode = self.env.metadata, self.env.render_mode
        self._check = _checker(self.observation_space)
        self._n_mask = mask_size(self.action_space)
        self._mask_of: Callable[[], Any] | None = mask_method(self.env)
        self._steps, self._is_broken = 0, False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tree, dict[str, Any]]:
        """Reset, by making the environment anew if it had a fault; a fault is in ``info``."""
        self._steps = 0
        try:
            if self._is_broken and self._can_rebuild:
                self._rebuild()
            result: Any = self.env.reset(seed=seed)
            if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
                raise EnvironmentFaultError(f"reset returned {_described(result)}: {MIGRATE}")
            obs, info = result
            self._check(obs)
            self._is_broken = False
            return obs, self._with_mask(info)
        except Exception as error:
            return self._nothing(), self._fault(error, f"reset of {EPISODE}")

    def step(self, action: Any) -> tuple[Tree, float, bool, bool, dict[str, Any]]:
        """Step; a fault ends the episode and is in ``info``."""
        self._steps += 1
        try:
            result: Any = self.env.step(action)
            if not isinstance(result, tuple) or len(result) != 5:
                raise EnvironmentFaultError(f"step returned {_described(result)}: {MIGRATE}")
            obs, reward, terminated, truncated, info = result
            self._check(obs)
            if type(reward) not in _NUMBERS:
                _check_reward(reward)
            if type(terminated) not in _TRUTHS or type(truncated) not in _TRUTHS:
                raise EnvironmentFaultError(
                    f"step returned terminated={terminated!r} and truncated={truncated!r}: "
                    "both must be True or False"
                )
            if self._mask_of is not None or MASK_KEY in info:
                info = self._with_mask(info)
            return obs, reward, terminated, truncated, info
        except Exception as error:
            return (
                self._nothing(),
                0.0,
                False,
                True,
                self._fault(error, f"step {self._steps} of {EPISODE}"),
            )

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    @property
    def unwrapped(self) -> gym.Env[Any, Any]:
        """The environment itself."""
        return self.env.unwrapped

    def _with_mask(self, info: dict[str, Any]) -> dict[str, Any]:
        """``info`` with the mask of allowed actions, flat ``[n_mask]``, where there is one."""
        if not self._n_mask:
            return info
        mask = self._mask_of() if self._mask_of is not None else info.get(MASK_KEY)
        return info if mask is None else {**info, MASK_KEY: flat_mask(mask, self.action_space)}

    def _nothing(self) -> Tree:
        """An observation of zeros, where there is none."""
        return take(create_empty_array(self.observation_space, 1, fn=np.zeros), 0)

    def _rebuild(self) -> None:
        old, self.env = self.env, self._make()
        self._mask_of = mask_method(self.env)
        with contextlib.suppress(Exception):  # it is broken already
            old.close()

    def _fault(self, error: Exception, call: str) -> dict[str, Any]:
        self._is_broken = True
        if isinstance(error, UpslopeError):
            sentence = f"broke its contract in {call}: {error}"
        else:
            lines = str(error).strip().splitlines()
            what = lines[-1] if lines else "no message"
            if "values to unpack" in what:
                what = f"{what}; {MIGRATE}"
            sentence = f"raised {type(error).__name__} in {call}: {what} (--debug shows where)"
        return {FAULT: sentence, TRACE: traceback.format_exc()}


def _checker(space: gym.Space[Any], where: str = "") -> Callable[[Any], None]:
    """Return a function that raises unless an observation has the structure of ``space``."""
    what = f"the observation part {where!r}" if where else "the observation"
    if isinstance(space, spaces.Dict):
        parts = {key: _checker(space[key], f"{where}/{key}".lstrip("/")) for key in space}

        def check_dict(obs: Any) -> None:
            if not isinstance(obs, Mapping) or not parts.keys() <= obs.keys():
                raise EnvironmentFaultError(
                    f"{what} is {_described(obs)}, and its space says a dict with the keys "
                    f"{', '.join(parts)}: correct one of them"
                )
            for key, check in parts.items():
                check(obs[key])

        return check_dict
    if isinstance(space, spaces.Tuple):
        branches = [_checker(part, f"{where}/{i}".lstrip("/")) for i, part in enumerate(space)]

        def check_tuple(obs: Any) -> None:
            if not isinstance(obs, (tuple, list)) or len(obs) != len(branches):
                raise EnvironmentFaultError(
                    f"{what} is {_described(obs)}, and its space says a tuple of {len(branches)}: "
                    "correct one of them"
                )
            for check, part in zip(branches, obs, strict=True):
                check(part)

        return check_tuple
    if isinstance(space, spaces.Box):
        return _box_checker(space, what)
    return _choice_checker(space, what)


def _box_checker(space: spaces.Box, what: str) -> Callable[[Any], None]:
    shape, dtype = space.shape, space.dtype

    def check(obs: Any) -> None:
        if type(obs) is np.ndarray and obs.dtype == dtype and obs.shape == shape:
            return
        if isinstance(obs, (np.ndarray, np.generic)):
            if obs.shape == shape and np.can_cast(obs.dtype, dtype, "safe"):
                return
        elif shape == () and isinstance(obs, (int, float)):
            return
        raise EnvironmentFaultError(
            f"{what} is {_described(obs)}, and its space says an array of shape {shape} and dtype "
            f"{dtype}: return np.asarray(obs, np.{dtype}), or correct the space"
        )

    return check


def _choice_checker(space: gym.Space[Any], what: str) -> Callable[[Any], None]:
    """Integers inside their range, as the one-hot vectors they become can show no other."""
    low: Any
    high: Any
    shape: tuple[int, ...]
    if isinstance(space, spaces.Discrete):
        low, high, shape = int(space.start), int(space.start + space.n) - 1, ()
    elif isinstance(space, spaces.MultiDiscrete):
        low, high, shape = space.start, space.start + space.nvec - 1, space.shape
    elif isinstance(space, spaces.MultiBinary):
        low, high, shape = 0, 1, space.shape
    else:  # nothing that a network reads; whoever needs it checks it
        return lambda obs: None

    def check(obs: Any) -> None:
        if type(obs) is int and shape == () and low <= obs <= high:
            return
        numbers = np.asarray(obs) if isinstance(obs, (int, np.ndarray, np.generic)) else None
        if numbers is None or numbers.shape != shape or numbers.dtype.kind not in "iub":
            raise EnvironmentFaultError(
                f"{what} is {_described(obs)}, and its space says {space}: correct one of them"
            )
        if not ((numbers >= low) & (numbers <= high)).all():
            raise EnvironmentFaultError(
                f"{what} is {obs}, which is not in its space {space}: correct one of them"
            )

    return check


def _check_reward(reward: Any) -> None:
    if isinstance(reward, (np.floating, np.integer)):
        return
    raise EnvironmentFaultError(
        f"the reward is {_described(reward)}, not a number: return float(reward)"
    )


def _described(thing: Any) -> str:
    """Say in a few words what something is."""
    if isinstance(thing, np.ndarray):
        return f"an array of shape {thing.shape} and dtype {thing.dtype}"
    if isinstance(thing, Mapping):
        return f"a dict with the keys {', '.join(map(str, thing)) or '(none)'}"
    if isinstance(thing, (tuple, list)):
        return f"a {type(thing).__name__} of {len(thing)}"
    return f"{thing!r:.60} ({type(thing).__name__})"
