"""Anything a user calls an environment -> one vector of them on an engine.

An environment is named by a registered id, ``module:Env-v0``, ``my_env.py:make_env``, or given as a
``gym.Env``, a factory, or a ``gymnasium.vector.VectorEnv``.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv

from upslope.config import whole_number
from upslope.envs.engines import Engine, SyncEngine, VectorEngine, check_contract
from upslope.envs.episodes import Environments
from upslope.errors import ConfigError, UnknownEnvironmentError, UpslopeError
from upslope.seeding import SeedTree

Made = TypeVar("Made")
EnvLike = str | gym.Env[Any, Any] | VectorEnv[Any, Any, Any] | Callable[[], gym.Env[Any, Any]]

# EnvPool 1.2's version of these is Gymnasium's task: equal limits, rewards, ends and dynamics under
# equal actions (tests/envs). Not in the list: Pendulum (another integration at the speed limit),
# Ant and Humanoid (another MuJoCo, other numbers), Taxi (another version).
ENVPOOL_IS_SAME_TASK = frozenset(
    ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "LunarLander-v3",
     "HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Swimmer-v5", "Reacher-v5",
     "InvertedPendulum-v5", "InvertedDoublePendulum-v5"]
)  # fmt: skip
ENGINES = ("auto", "envpool", "native", "sync", "async")
ENVS_PER_THREAD = 16  # of EnvPool
NATIVE_FROM = 8  # environments from which a native vector beats plain ones
_EXTRAS = {"mujoco": "mujoco", "box2d": "box2d"}  # package of gymnasium.envs -> our extra
_PLUGINS = {  # prefix of an id -> (package that registers it, our extra)
    "ALE/": ("ale_py", "atari"),
    "MiniGrid-": ("minigrid", "minigrid"),
    "BabyAI-": ("minigrid", "minigrid"),
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

    def plain_env(
        self, env_kwargs: Mapping[str, Any], limit: int | None, **more: Any
    ) -> gym.Env[Any, Any]:
        """Make one plain environment (``more``: e.g. ``render_mode``)."""
        if self.id is not None:
            env_id, limited = self.id, _limited(limit)
            return _explained(env_id, lambda: gym.make(env_id, **limited, **env_kwargs, **more))
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


def make_environments(
    source: Source,
    *,
    n_envs: int | None = None,
    seed: int = 0,
    vec: str = "auto",
    max_episode_steps: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    log_info: Sequence[str] = (),
    accept: Callable[[gym.Space[Any], gym.Space[Any]], None] | None = None,
) -> Environments:
    """Put environments of a source on an engine.

    Args:
        source: from :func:`find_environment`.
        n_envs: how many; by default 8, 1 for a single ``Env``, a vector's own number for a vector.
        seed: the run's seed.
        vec: ``auto``, ``sync``, ``async``, ``native`` or ``envpool``. *auto* is ``native`` where
            Gymnasium has a vector of its own and ``n_envs`` is at least 8, else ``envpool`` where
            it is installed, has this very task and ``n_envs`` is at least 8, else ``sync``.
        max_episode_steps: cut episodes there instead of at the environment's own limit.
        env_kwargs: for the environment's constructor.
        log_info: info scalars to keep with finished episodes.
        accept: called with the spaces of one environment before any worker process starts; it
            raises where nobody could read them.

    Raises:
        ConfigError: if the engine cannot run this source.
    """
    kwargs = dict(env_kwargs or {})
    seed = whole_number("seed", seed, low=0)
    n_envs = None if n_envs is None else whole_number("n_envs", n_envs)
    if vec not in ENGINES:
        raise ConfigError(f"vec={vec!r} is not one of {', '.join(ENGINES)}")
    if vec == "async" and accept is not None and source.instance is None:
        first = source.plain_env(kwargs, max_episode_steps)
        first.close()
        accept(first.observation_space, first.action_space)
    engine = _make_engine(source, n_envs, vec, max_episode_steps, kwargs)
    if engine.name == "vector":
        rng = SeedTree(seed).generator("engine check")
        object.__setattr__(engine, "established", check_contract(engine, rng))
    return Environments(engine, SeedTree(seed), tuple(log_info))


def _make_engine(
    source: Source, n_envs: int | None, vec: str, limit: int | None, kwargs: dict[str, Any]
) -> Engine:
    instance = source.instance
    if instance is not None:
        own = instance.num_envs if isinstance(instance, VectorEnv) else 1
        if n_envs not in (None, own):
            raise ConfigError(
                f"n_envs={n_envs} but {source.name} is {own} environment(s): "
                "leave n_envs out, or give an id or a factory"
            )
        if vec not in ("auto", "sync") or (isinstance(instance, VectorEnv) and vec != "auto"):
            raise ConfigError(
                f"vec={vec} cannot be applied to an environment that is already made: "
                "give an id or a factory"
            )
    if isinstance(instance, VectorEnv):
        if limit is not None or kwargs:
            raise ConfigError(
                "max_episode_steps and env_kwargs cannot be applied to a VectorEnv: "
                "set them where it is made"
            )
        return VectorEngine(
            lambda _: instance, name="vector", seeds_episodes=_takes_seeds(instance)
        )
    n = 1 if instance is not None else n_envs or 8
    kind = _choose(source, n, kwargs) if vec == "auto" else vec
    if kind == "native":
        return _native_engine(source, n, limit, kwargs)
    if kind == "envpool":
        return _envpool_engine(source, n, limit)

    def make() -> gym.Env[Any, Any]:
        return source.plain_env(kwargs, limit)

    if kind == "async":
        vector = AsyncVectorEnv([make] * n, copy=False, autoreset_mode=AutoresetMode.DISABLED)
        return VectorEngine(lambda _: vector, name="async", seeds_episodes=True)
    return SyncEngine([make() for _ in range(n)])


def _choose(source: Source, n_envs: int, kwargs: Mapping[str, Any]) -> str:
    """The fixed rule of ``--vec auto``."""
    if source.id is None or n_envs < NATIVE_FROM:
        return "sync"
    if _spec(source.id).vector_entry_point is not None:
        return "native"
    known = source.id in ENVPOOL_IS_SAME_TASK and not kwargs
    return "envpool" if known and importlib.util.find_spec("envpool") else "sync"


def _spec(env_id: str) -> gym.envs.registration.EnvSpec:
    """The spec of an id whose module, if it names one, was imported when it was found."""
    return gym.spec(env_id.rpartition(":")[2])


def _takes_seeds(env: VectorEnv[Any, Any, Any]) -> bool:
    """Gymnasium's own sync and async vectors honour a seed list and a ``reset_mask``."""
    return isinstance(env.unwrapped, (gym.vector.SyncVectorEnv, AsyncVectorEnv))


def _native_engine(source: Source, n: int, limit: int | None, kwargs: dict[str, Any]) -> Engine:
    env_id = source.id
    if env_id is None or gym.spec(env_id).vector_entry_point is None:
        raise ConfigError(
            f"{source.name} has no native vector version: use --vec sync or --vec async"
        )
    limited = _limited(limit)
    vector = _explained(
        env_id,
        lambda: gym.make_vec(
            env_id, n, vectorization_mode="vector_entry_point", **limited, **kwargs
        ),
    )
    return VectorEngine(lambda _: vector, name="native")


def _limited(limit: int | None) -> dict[str, Any]:
    """The keyword argument that cuts episodes, where they are to be cut."""
    return {} if limit is None else {"max_episode_steps": limit}


def _envpool_engine(source: Source, n: int, limit: int | None) -> Engine:
    if source.id is None:
        raise ConfigError(
            f"EnvPool knows registered ids only, not {source.name}: use --vec sync or --vec async"
        )
    try:
        envpool = importlib.import_module("envpool")
    except ImportError:
        raise ConfigError(
            "EnvPool is not installed: run pip install 'upslope[envpool]', or use --vec sync"
        ) from None
    task = source.id
    if task not in gym.registry:
        raise ConfigError(
            f"EnvPool takes plain registered ids, not {task}: use --vec sync or --vec async"
        )
    if task not in envpool.list_all_envs():
        raise ConfigError(f"EnvPool has no {task}: use --vec sync or --vec async")
    limited = _limited(limit)
    threads = max(1, min(os.cpu_count() or 1, n // ENVS_PER_THREAD))

    def make(seeds: Sequence[int] | None) -> VectorEnv[Any, Any, Any]:
        seed = list(range(n)) if seeds is None else list(seeds)
        with warnings.catch_warnings():  # its float64 bounds are stored in float32
            warnings.simplefilter("ignore")
            return envpool.make_gymnasium(  # type: ignore[no-any-return]
                task, num_envs=n, num_threads=threads, seed=seed, **limited
            )

    return VectorEngine(make, name="envpool", rebuild=True, spaces=_spaces_of(task))


def _spaces_of(env_id: str) -> tuple[gym.Space[Any], gym.Space[Any]]:
    """Gymnasium's own spaces: EnvPool states others for the same task (dtypes, some bounds)."""
    env = _explained(env_id, lambda: gym.make(env_id))
    env.close()
    return env.observation_space, env.action_space


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


def _explained(env_id: str, make: Callable[[], Made]) -> Made:
    """Call ``make``, turning what Gymnasium raises into one sentence with the remedy."""
    try:
        return make()
    except UpslopeError:
        raise
    except gym.error.DependencyNotInstalled as error:
        entry = str(_spec(env_id).entry_point)
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
