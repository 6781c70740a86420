"""Engines: what steps a vector of environments, and what each kind guarantees (docs: Engines).

| engine  | made from                        | autoreset    | seeds                                |
|---------|----------------------------------|--------------|--------------------------------------|
| sync    | our own loop over plain ``Env``s | disabled     | one per (run, episode number)        |
| async   | Gymnasium's ``AsyncVectorEnv``   | disabled     | one per (run, episode number)        |
| native  | Gymnasium's vector entry point   | its metadata | one for the whole vector and restart |
| envpool | EnvPool, rebuilt at each restart | next step    | one per environment and restart      |
| vector  | a user's ``VectorEnv``           | its metadata | one for the whole vector and restart |

An engine only steps and resets; what its rows mean is decided in one place, ``episodes.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import create_empty_array, iterate
from numpy.typing import NDArray

from upslope.envs.guard import FAULT, TRACE, GuardedEnv
from upslope.envs.masks import flat_mask
from upslope.errors import ConfigError, EnvironmentFaultError, UpslopeError
from upslope.spaces import MASK_KEY, mask_size, without
from upslope.trees import Tree, conform, map_tree


class Fault(NamedTuple):
    """What went wrong in one environment: a sentence, and the traceback as text."""

    slot: int
    sentence: str
    trace: str


EngineStep = tuple[Tree, NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], Any]


class Engine(Protocol):
    """A vector of ``n_envs`` environments that are stepped together."""

    name: str
    n_envs: int
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    autoreset: AutoresetMode
    seeds_episodes: bool
    mask: NDArray[np.bool_] | None  # [B, n_mask] of the last observations, where there are masks
    faults: list[Fault]  # of the last step or reset

    def reset(self, seeds: Sequence[int] | None) -> Tree:
        """Start a new episode everywhere, reseeded if seeds are given; return ``[B, ...]``."""

    def reset_some(self, indices: NDArray[np.int64], seeds: Sequence[int | None]) -> Tree:
        """Start new episodes at ``indices`` (autoreset disabled only); return all observations."""

    def step(self, actions: Tree, active: NDArray[np.bool_] | None) -> EngineStep:
        """Take one step; an engine that can leaves out the environments that are not ``active``."""

    def info(self, infos: Any, index: int, key: str) -> Any:
        """Return ``key`` of one environment's info at the last row of its episode, or ``None``."""

    def final_obs(self, infos: Any, index: int) -> Tree:
        """Return the final observation of one environment (same-step autoreset only)."""

    def close(self) -> None:
        """Release the environments."""


class SyncEngine:
    """Plain environments, stepped one after the other in this process."""

    name = "sync"
    autoreset = AutoresetMode.DISABLED
    seeds_episodes = True

    def __init__(self, envs: Sequence[gym.Env[Any, Any]]) -> None:
        self.envs = [env if isinstance(env, GuardedEnv) else _guarded(env) for env in envs]
        self.n_envs = len(envs)
        if len({id(env.unwrapped) for env in envs}) < len(envs):
            raise ConfigError(
                "the factory returned one environment twice, and two slots cannot step the same "
                "episode: make a new environment in each call"
            )
        self.observation_space = self.envs[0].observation_space
        self.action_space = envs[0].action_space
        self.mask: NDArray[np.bool_] | None = None
        self._obs = create_empty_array(self.observation_space, n=self.n_envs, fn=np.zeros)
        self._rewards = np.zeros(self.n_envs)
        space = self.action_space  # a Box without axes wants an array and not a number
        self._is_number = isinstance(space, gym.spaces.Box) and space.shape == ()
        self._is_plain = isinstance(space, gym.spaces.Box) and space.shape != ()
        self._terminated = np.zeros(self.n_envs, dtype=bool)
        self._truncated = np.zeros(self.n_envs, dtype=bool)
        self._batched_actions = gym.vector.utils.batch_space(self.action_space, self.n_envs)
        self.faults: list[Fault] = []

    def reset(self, seeds: Sequence[int] | None) -> Tree:
        return self.reset_some(np.arange(self.n_envs), seeds or [None] * self.n_envs)

    def reset_some(self, indices: NDArray[np.int64], seeds: Sequence[int | None]) -> Tree:
        self.faults = []
        for i, seed in zip(indices.tolist(), seeds, strict=True):
            obs, info = self.envs[i].reset(seed=seed)
            self._receive(i, obs, info)
        return self._obs

    def step(self, actions: Tree, active: NDArray[np.bool_] | None) -> EngineStep:
        infos: list[dict[str, Any]] = [{}] * self.n_envs
        self.faults = []
        each = actions if self._is_plain else iterate(self._batched_actions, actions)
        for i, action in enumerate(each):
            if active is not None and not active[i]:
                self._rewards[i], self._terminated[i], self._truncated[i] = 0.0, False, False
                continue
            action = np.asarray(action) if self._is_number else action
            obs, self._rewards[i], terminated, truncated, infos[i] = self.envs[i].step(action)
            self._terminated[i], self._truncated[i] = terminated, truncated
            self._receive(i, obs, infos[i])
        return self._obs, self._rewards, self._terminated, self._truncated, infos

    def info(self, infos: list[dict[str, Any]], index: int, key: str) -> Any:
        return infos[index].get(key)

    def final_obs(self, infos: Any, index: int) -> Tree:
        raise NotImplementedError("this engine never resets by itself")

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def _receive(self, i: int, obs: Tree, info: dict[str, Any]) -> None:
        """Copy one observation in, so that an environment may reuse its own buffer."""
        if isinstance(self._obs, np.ndarray):
            self._obs[i] = obs
        else:
            map_tree(lambda held, new: held.__setitem__(i, new), self._obs, obs)
        if info:
            if FAULT in info:
                self.faults.append(Fault(i, info[FAULT], info[TRACE]))
            if MASK_KEY in info:
                self._receive_mask(i, info[MASK_KEY])

    def _receive_mask(self, i: int, mask: Any) -> None:
        size = mask_size(self.action_space)
        if not size:
            return
        if self.mask is None:
            self.mask = np.ones((self.n_envs, size), dtype=bool)
        self.mask[i] = mask


def _guarded(env: gym.Env[Any, Any]) -> GuardedEnv:
    """Guard an environment that exists and cannot be made again."""
    return GuardedEnv(lambda: env, can_rebuild=False)


class VectorEngine:
    """A Gymnasium ``VectorEnv`` in whichever autoreset mode its metadata states.

    Args:
        make: returns the vector environment for a list of seeds, or for None before there are any.
        name: the engine's name in config.json.
        seeds_episodes: a list of seeds and a ``reset_mask`` are honoured: one seed per episode.
        rebuild: make it anew at every seeded reset (EnvPool takes seeds at construction only).
        n_envs: of the vector, where what ``make(None)`` returns only shows what it is like.
        spaces: of one environment, where those that the vector states are not to be used.
        ignored: Dict keys of observations to leave out, at any depth.
    """

    def __init__(
        self,
        make: Callable[[Sequence[int] | None], VectorEnv[Any, Any, Any]],
        *,
        name: str,
        seeds_episodes: bool = False,
        rebuild: bool = False,
        n_envs: int | None = None,
        spaces: tuple[gym.Space[Any], gym.Space[Any]] | None = None,
        ignored: Sequence[str] = (),
    ) -> None:
        self._make, self._rebuild = make, rebuild
        self.name, self.seeds_episodes = name, seeds_episodes
        self.env = make(None)
        self.n_envs = n_envs or self.env.num_envs
        if spaces is None:
            spaces = (self.env.single_observation_space, self.env.single_action_space)
        self.observation_space, self.action_space = without(spaces[0], ignored), spaces[1]
        self.autoreset = autoreset_mode(self.env)
        self.mask: NDArray[np.bool_] | None = None
        self.faults: list[Fault] = []
        self._layout = create_empty_array(self.observation_space, n=self.n_envs, fn=np.zeros)
        self._n_mask = mask_size(self.action_space)
        self._mask_of = _masks_of_vector(self.env) if self._n_mask else None

    def reset(self, seeds: Sequence[int] | None) -> Tree:
        # Gymnasium annotates one seed, though its own vectors take a list.
        seed: Any = None
        try:
            if seeds is not None and self._rebuild:
                self.env.close()
                self.env = self._make(seeds)
            elif seeds is not None:
                seed = list(seeds) if self.seeds_episodes else seeds[0]
            obs, infos = self.env.reset(seed=seed)
        except Exception as error:
            raise fault(self._culprit(), "reset", error) from error
        return self._receive(obs, infos)

    def reset_some(self, indices: NDArray[np.int64], seeds: Sequence[int | None]) -> Tree:
        mask = np.zeros(self.n_envs, dtype=bool)
        mask[indices] = True
        every: Any = None  # a vector that is not known to take a list goes on with its own stream
        if self.seeds_episodes:
            every = [None] * self.n_envs
            for i, seed in zip(indices, seeds, strict=True):
                every[i] = seed
        try:
            obs, infos = self.env.reset(seed=every, options={"reset_mask": mask})
        except Exception as error:
            raise fault(self._culprit(), "reset with reset_mask", error) from error
        return self._receive(obs, infos)

    def step(self, actions: Tree, active: NDArray[np.bool_] | None) -> EngineStep:
        try:
            obs, rewards, terminated, truncated, infos = self.env.step(actions)
        except Exception as error:
            raise fault(self._culprit(), "step", error) from error
        return self._receive(obs, infos), rewards, terminated, truncated, infos

    def info(self, infos: dict[str, Any], index: int, key: str) -> Any:
        if self.autoreset is AutoresetMode.SAME_STEP:  # infos itself is the new episode's
            infos = infos.get("final_info") or {}
        present = infos.get(f"_{key}")
        if key not in infos or (present is not None and not present[index]):
            return None
        return infos[key][index]

    def final_obs(self, infos: dict[str, Any], index: int) -> Tree:
        if "final_obs" not in infos or infos["final_obs"][index] is None:
            raise EnvironmentFaultError(
                f"environment {index} ended an episode without info['final_obs'] though its "
                "metadata says SAME_STEP: correct metadata['autoreset_mode']"
            )
        return conform(self._layout, infos["final_obs"][index])

    def _receive(self, obs: Tree, infos: dict[str, Any]) -> Tree:
        """The part of the observations that is read; faults and masks, where ``infos`` has any."""
        self.faults = []
        if FAULT in infos:
            self.faults = [
                Fault(int(i), infos[FAULT][i], infos[TRACE][i])
                for i in np.flatnonzero(infos[f"_{FAULT}"])
            ]
        if self._n_mask and (MASK_KEY in infos or self._mask_of is not None):
            self._receive_masks(infos)
        _check_batch(self._layout, obs, self.name)
        return conform(self._layout, obs)

    def _receive_masks(self, infos: dict[str, Any]) -> None:
        given = infos[MASK_KEY] if self._mask_of is None else self._mask_of()
        told = infos.get(f"_{MASK_KEY}") if self._mask_of is None else None
        if self.mask is None:
            self.mask = np.ones((self.n_envs, self._n_mask), dtype=bool)
        for i in range(self.n_envs) if told is None else np.flatnonzero(told):
            self.mask[i] = flat_mask(given[i], self.action_space)

    def close(self) -> None:
        try:
            with warnings.catch_warnings():  # about a step that is still waited for
                warnings.simplefilter("ignore")
                self.env.close()
        except (OSError, EOFError):  # a worker died; the others must not outlive us
            for process in getattr(self.env, "processes", ()):
                process.terminate()
            self.env.closed = True

    def _culprit(self) -> str:
        """Which environment raised, where Gymnasium's async vector shows it by a closed pipe."""
        pipes = getattr(self.env, "parent_pipes", ())
        return next(
            (f"environment {i}" for i, pipe in enumerate(pipes) if pipe is None),
            f"the {self.name} engine",
        )


def autoreset_mode(env: VectorEnv[Any, Any, Any]) -> AutoresetMode:
    """Return what a vector environment's metadata says about the end of an episode; never guess.

    Raises:
        ConfigError: if it says nothing, or nothing known.
    """
    stated = (getattr(env, "metadata", None) or {}).get("autoreset_mode")
    try:
        return AutoresetMode(getattr(stated, "value", stated))
    except ValueError:
        raise ConfigError(
            f"{type(env).__name__}.metadata['autoreset_mode'] is {stated!r}: set it to "
            "gymnasium.vector.AutoresetMode.NEXT_STEP, SAME_STEP or DISABLED, whichever it does"
        ) from None


def _check_batch(layout: Tree, obs: Tree, name: str) -> None:
    """Raise unless observations ``[B, ...]`` have the structure and shapes of their space."""
    if isinstance(layout, np.ndarray):
        if isinstance(obs, np.ndarray) and (obs.shape, obs.dtype) == (layout.shape, layout.dtype):
            return
        if np.shape(obs) != layout.shape:
            raise EnvironmentFaultError(
                f"the {name} engine gave observations of shape {np.shape(obs)}, and their space "
                f"says {layout.shape}: correct one of them"
            )
        if not np.can_cast(obs.dtype, layout.dtype, "same_kind"):
            raise EnvironmentFaultError(
                f"the {name} engine gave observations of dtype {obs.dtype}, and their space says "
                f"{layout.dtype}: correct one of them"
            )
        return
    items = layout.items() if isinstance(layout, dict) else enumerate(layout)
    for key, branch in items:
        try:
            part = obs[key]
        except (KeyError, IndexError, TypeError):
            raise EnvironmentFaultError(
                f"the {name} engine gave observations without the part {key!r} that their space "
                "has: correct one of them"
            ) from None
        _check_batch(branch, part, name)


def allowed_now(engine: Engine, obs: Tree) -> NDArray[np.bool_] | None:
    """Return which choices are allowed in ``obs [B, ...]``: ``[B, n_mask]``, None if all are."""
    if shows_mask(engine):
        return np.asarray(obs[MASK_KEY]).reshape(engine.n_envs, -1).astype(bool)
    return engine.mask


def shows_mask(engine: Engine) -> bool:
    """Whether the mask of an action space that has one is a part of the observations."""
    space = engine.observation_space
    is_part = isinstance(space, gym.spaces.Dict) and MASK_KEY in space.spaces
    return is_part and mask_size(engine.action_space) > 0


def _masks_of_vector(env: VectorEnv[Any, Any, Any]) -> Callable[[], Any] | None:
    """The method ``action_masks`` of a vector, or of the environments that it calls."""
    own = getattr(env, "action_masks", None)
    if callable(own):
        return own  # type: ignore[no-any-return]
    call: Any = getattr(env, "call", None)
    try:
        has = call is not None and all(call("has_wrapper_attr", "action_masks"))
    except Exception:  # a vector whose environments are no Gymnasium ones
        return None
    return (lambda: call("action_masks")) if has else None


def fault(where: str, call: str, error: Exception) -> UpslopeError:
    """Whatever an environment raised, as one sentence; the original stays as the cause."""
    if isinstance(error, UpslopeError):
        return error
    lines = str(error).strip().splitlines()
    return EnvironmentFaultError(
        f"{where} raised {type(error).__name__} in {call}: "
        f"{lines[-1] if lines else 'no message'} (--debug shows where)"
    )
