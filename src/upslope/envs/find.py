"""What a user calls an environment: finding it, and making one of it.

An environment is named by a registered id, ``module:Env-v0``, ``my_env.py:make_env``, or given as a
``gym.Env``, a factory, or a ``gymnasium.vector.VectorEnv``.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym
from gymnasium.vector import VectorEnv

from upslope.errors import ConfigError, UnknownEnvironmentError, UpslopeError

Made = TypeVar("Made")
EnvLike = str | gym.Env[Any, Any] | VectorEnv[Any, Any, Any] | Callable[[], gym.Env[Any, Any]]

ATARI = "ALE/"  # what the ids of ale-py's games begin with
_EXTRAS = {"mujoco": "mujoco", "box2d": "box2d"}  # package of gymnasium.envs -> our extra
_PLUGINS = {  # prefix of an id -> (package that registers it, our extra)
    ATARI: ("ale_py", "atari"),
    "MiniGrid-": ("minigrid", "minigrid"),
    "BabyAI-": ("minigrid", "minigrid"),
    "dm_control/": ("shimmy", "dmc"),
}


@dataclass(frozen=True)
class Source:
    """Where environments come from: exactly one of ``id``, ``factory`` and ``instance`` is set."""

    name: str
    id: str | None = None
    factory: Callable[[], gym.Env[Any, Any]] | None = None
    instance: gym.Env[Any, Any] | VectorEnv[Any, Any, Any] | None = None
    reward_threshold: float | None = None
    max_episode_steps: int | None = None
    is_registered: bool = field(default=False)
    frame_stack: int = 1  # last observations that make up one
    atari_preprocessing: bool = False

    def prepared(self, frame_stack: int | None, atari_preprocessing: bool) -> Source:
        """Return this source with its observations preprocessed.

        Args:
            frame_stack: last observations stacked into one; None is 4 where Atari frames are
                preprocessed, else 1.
            atari_preprocessing: of ids that begin with ALE/; others have none.
        """
        is_atari = self.id is not None and self.id.rpartition(":")[2].startswith(ATARI)
        atari = is_atari and atari_preprocessing
        depth = frame_stack if frame_stack is not None else (4 if atari else 1)
        if depth > 1 and isinstance(self.instance, VectorEnv):
            raise ConfigError(
                "frame_stack cannot be applied to a VectorEnv: stack where it is made, "
                "or give an id or a factory"
            )
        return replace(self, frame_stack=depth, atari_preprocessing=atari)

    def plain_env(
        self, env_kwargs: Mapping[str, Any], limit: int | None, **more: Any
    ) -> gym.Env[Any, Any]:
        """Make one plain environment, preprocessed (``more``: e.g. ``render_mode``)."""
        env = self._bare_env(env_kwargs, limit, more)
        if self.frame_stack > 1:
            env = gym.wrappers.FrameStackObservation(env, self.frame_stack)
        return env

    def _bare_env(
        self, env_kwargs: Mapping[str, Any], limit: int | None, more: Mapping[str, Any]
    ) -> gym.Env[Any, Any]:
        if self.id is not None:
            env_id, arguments = self.id, {**limited(limit), **env_kwargs, **more}
            if self.atari_preprocessing:
                return explained(env_id, lambda: _atari(env_id, arguments))
            return explained(env_id, lambda: gym.make(env_id, **arguments))
        if self.factory is not None:
            env = _called(self.name, self.factory, {**env_kwargs, **more})
            if not isinstance(env, gym.Env):
                raise UnknownEnvironmentError(
                    f"the factory {self.name} returned {type(env).__name__}, "
                    "not a gymnasium.Env: return the environment"
                )
        elif isinstance(self.instance, gym.Env):
            env = self.instance
        else:
            raise ConfigError(
                f"{self.name} is a vector of environments; this needs a single one: "
                "give an id or a factory"
            )
        return env if limit is None else gym.wrappers.TimeLimit(env, limit)


def _atari(env_id: str, arguments: dict[str, Any]) -> gym.Env[Any, Any]:
    """84 x 84 grey frames by Gymnasium's own wrapper; a limit counts actions, not frames."""
    skip = arguments.pop("frameskip", 4)
    limit = arguments.pop("max_episode_steps", None)
    env = gym.make(env_id, frameskip=1, **arguments)
    env = gym.wrappers.AtariPreprocessing(env, frame_skip=skip, screen_size=84, noop_max=30)
    return env if limit is None else gym.wrappers.TimeLimit(env, limit)


def find_environment(env: EnvLike) -> Source:
    """Say what ``env`` is, without making it.

    Raises:
        UnknownEnvironmentError: with the nearest ids, the available versions, or the missing extra.
    """
    if isinstance(env, str):
        path, colon, attribute = env.rpartition(":")
        if colon and path.endswith(".py"):
            return Source(env, factory=_factory_from_file(path, attribute))
        spec = _find_spec(env)
        return Source(
            env,
            id=env,
            reward_threshold=None
            if spec.reward_threshold is None
            else float(spec.reward_threshold),
            max_episode_steps=spec.max_episode_steps,
            is_registered=not colon,
        )
    if isinstance(env, (gym.Env, VectorEnv)):
        own = env.spec
        name = own.id if own is not None else type(env.unwrapped).__name__
        threshold = own.reward_threshold if own is not None else None
        return Source(name, instance=env, reward_threshold=threshold)
    if callable(env):
        return Source(getattr(env, "__name__", type(env).__name__), factory=env)
    raise UnknownEnvironmentError(
        f"{env!r} is no environment: "
        "give an id, a gymnasium.Env, a factory or a gymnasium.vector.VectorEnv"
    )


def is_of_a_known_package(env_id: str) -> bool:
    """Whether an id begins like those of a package that is imported for them."""
    return env_id.startswith(tuple(_PLUGINS))


def limited(limit: int | None) -> dict[str, Any]:
    """The keyword argument that cuts episodes, where they are to be cut."""
    return {} if limit is None else {"max_episode_steps": limit}


def spec_of(env_id: str) -> gym.envs.registration.EnvSpec:
    """The spec of an id whose module, if it names one, was imported when it was found."""
    return gym.spec(env_id.rpartition(":")[2])


def _find_spec(env_id: str) -> gym.envs.registration.EnvSpec:
    module, colon, name = env_id.rpartition(":")
    if colon:
        _import_from_here(module, env_id)
    for prefix, (package, extra) in _PLUGINS.items():
        if name.startswith(prefix):
            try:
                gym.register_envs(importlib.import_module(package))
            except ImportError:
                raise UnknownEnvironmentError(
                    f"{env_id} needs {package}: run pip install 'upslope[{extra}]'"
                ) from None
    try:
        return gym.spec(name)
    except gym.error.Error as error:
        raise UnknownEnvironmentError(_nearest(name, error)) from None


def _import_from_here(module: str, env_id: str) -> None:
    """Import a user's module as ``python`` would from the current directory."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        importlib.import_module(module)
    except Exception as error:
        raise UnknownEnvironmentError(
            f"cannot import {module!r} for {env_id}: {type(error).__name__}: {error}; "
            "install it, or run from its directory"
        ) from error


def _nearest(name: str, error: Exception) -> str:
    """One sentence on an id that is not registered: its versions, or the nearest ids."""
    stem = name.rpartition("-v")[0] or name
    versions = sorted(known for known in gym.registry if known.rpartition("-v")[0] == stem)
    if versions:
        return f"there is no environment {name!r}; available: {', '.join(versions)}"
    by_lower = {known.lower(): known for known in gym.registry}
    near = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    hint = f"; did you mean {', '.join(by_lower[n] for n in near)}?" if near else ""
    return (
        f"there is no environment {name!r}{hint} "
        "(`upslope envs` lists all; own ones are my_env.py:make_env or module:Env-v0)"
    )


def explained(env_id: str, make: Callable[[], Made]) -> Made:
    """Call ``make``, turning what Gymnasium raises into one sentence with the remedy."""
    try:
        return make()
    except UpslopeError:
        raise
    except gym.error.DependencyNotInstalled as error:
        entry = str(spec_of(env_id).entry_point)
        extra = next((extra for part, extra in _EXTRAS.items() if f".{part}" in entry), None)
        remedy = f"run pip install 'upslope[{extra}]'" if extra else str(error)
        raise UnknownEnvironmentError(
            f"{env_id} needs a package that is not installed: {remedy}"
        ) from error
    except TypeError as error:
        raise ConfigError(
            f"{env_id} does not take these arguments: {error}; check --env-kwargs"
        ) from error
    except Exception as error:
        raise UnknownEnvironmentError(
            f"{env_id} cannot be made: {type(error).__name__}: {error} (--debug shows where)"
        ) from error


def _called(name: str, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call a user's factory, turning what it raises into one sentence with the remedy."""
    try:
        signature(factory).bind(**arguments)
    except TypeError as error:
        wanted = "render_mode" if "render_mode" in arguments else "these arguments"
        raise ConfigError(f"the factory {name} does not take {wanted}: {error}") from error
    except ValueError:
        pass  # a builtin without a signature
    try:
        return factory(**arguments)
    except UpslopeError:
        raise
    except Exception as error:
        raise UnknownEnvironmentError(
            f"the factory {name} raised {type(error).__name__}: {error} (--debug shows where)"
        ) from error


def _factory_from_file(path: str, attribute: str) -> Callable[[], gym.Env[Any, Any]]:
    """Run a user's file and return the factory it defines."""
    file = Path(path)
    if not file.is_file():
        raise UnknownEnvironmentError(
            f"there is no file {path!r}: give FILE.py:FACTORY relative to {os.getcwd()}"
        )
    sys.path.insert(0, str(file.resolve().parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(file.stem, module)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UnknownEnvironmentError(
            f"{path} raised {type(error).__name__} when run: {error}"
        ) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        known = [
            name
            for name, value in vars(module).items()
            if callable(value) and not name.startswith("_")
        ]
        raise UnknownEnvironmentError(
            f"{path} defines no factory {attribute!r}; it defines {', '.join(known) or 'none'}"
        )
    return factory  # type: ignore[no-any-return]
