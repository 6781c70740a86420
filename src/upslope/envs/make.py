"""Environments of a source -> one vector of them on an engine."""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv

from upslope.config import Config, whole_number
from upslope.envs.engines import Engine, SyncEngine, VectorEngine
from upslope.envs.episodes import Environments
from upslope.envs.find import ATARI, Source, explained, limited, spec_of
from upslope.envs.guard import GuardedEnv
from upslope.envs.probe import check_contract
from upslope.errors import ConfigError, did_you_mean
from upslope.seeding import SeedTree
from upslope.spaces import keys_of

# EnvPool 1.2's version of these is Gymnasium's task: equal limits, rewards, ends and dynamics under
# equal actions (tests/envs). Not in the list: Pendulum (another integration at the speed limit),
# Ant and Humanoid (another MuJoCo, other numbers), Taxi (another version).
ENVPOOL_IS_SAME_TASK = frozenset(
    ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "LunarLander-v3",
     "HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Swimmer-v5", "Reacher-v5",
     "InvertedPendulum-v5", "InvertedDoublePendulum-v5"]
)  # fmt: skip
Accept = Callable[[gym.Space[Any], gym.Space[Any]], None]
ENGINES = ("auto", "envpool", "native", "sync", "async")
ENVS_PER_THREAD = 16  # of EnvPool
NATIVE_FROM = 8  # environments from which a native vector beats plain ones


def make_environments(
    source: Source,
    *,
    n_envs: int | None = None,
    seed: int = 0,
    vec: str = "auto",
    max_episode_steps: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    log_info: Sequence[str] = (),
    ignore_obs: Sequence[str] = (),
    allowed_faults: int = 0,
    strict_spaces: bool = False,
    max_buffer: float | None = None,
    threads: int | None = None,
    accept: Accept | None = None,
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
        ignore_obs: Dict keys of observations to leave out, at any depth.
        threads: of EnvPool; by default one for every 16 environments, as far as there are
            processors that this process may use.
        allowed_faults, strict_spaces, max_buffer: see :class:`Environments`.
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
    if allowed_faults and source.instance is not None:
        raise ConfigError(
            f"on_env_error=restart cannot make {source.name} anew, which was given ready made: "
            "give an id or a factory"
        )
    engine = _make_engine(
        source, n_envs, vec, max_episode_steps, kwargs, tuple(ignore_obs), threads, accept
    )
    if engine.name == "vector":
        rng = SeedTree(seed).generator("engine check")
        object.__setattr__(engine, "established", check_contract(engine, rng))
    return Environments(
        engine,
        SeedTree(seed),
        tuple(log_info),
        allowed_faults=allowed_faults,
        strict_spaces=strict_spaces,
        max_buffer=max_buffer,
    )


def environment_settings(config: Config, own: bool = True) -> dict[str, Any]:
    """Return the arguments of :func:`make_environments` that follow from a config.

    Limit and constructor arguments belong to the config's ``own`` environment only.
    """
    return {
        "max_episode_steps": config.max_episode_steps if own else None,
        "env_kwargs": config.env_kwargs if own else None,
        "ignore_obs": config.ignore_obs,
        "allowed_faults": config.allowed_faults if own else 0,
        "strict_spaces": config.strict_spaces,
        "max_buffer": config.max_buffer,
        "threads": config.threads,
    }


def _make_engine(
    source: Source,
    n_envs: int | None,
    vec: str,
    limit: int | None,
    kwargs: dict[str, Any],
    ignored: tuple[str, ...],
    threads: int | None,
    accept: Accept | None,
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
        _check_ignored(instance.single_observation_space, ignored)
        return VectorEngine(
            lambda _: instance,
            name="vector",
            seeds_episodes=_takes_seeds(instance),
            ignored=ignored,
        )
    n = 1 if instance is not None else n_envs or 8
    kind = _choose(source, n, kwargs) if vec == "auto" else vec
    if kind == "native":
        return _native_engine(source, n, limit, kwargs)
    if kind == "envpool":
        return _envpool_engine(source, n, limit, threads)

    def make() -> gym.Env[Any, Any]:
        return source.plain_env(kwargs, limit)

    def guarded() -> GuardedEnv:
        return GuardedEnv(make, ignored, can_rebuild=instance is None)

    first = guarded()  # whose spaces are looked at before anything else is made
    _check_ignored(first.env.observation_space, ignored)
    if accept is not None:
        accept(first.observation_space, first.action_space)
    if kind == "async":
        first.close()

        def make_in_worker() -> gym.Env[Any, Any]:
            _leave_signals_to_the_parent()
            return guarded()

        vector = AsyncVectorEnv(
            [make_in_worker] * n, copy=False, autoreset_mode=AutoresetMode.DISABLED
        )
        return VectorEngine(lambda _: vector, name="async", seeds_episodes=True)
    return SyncEngine([first, *(guarded() for _ in range(n - 1))])


def _check_ignored(space: gym.Space[Any], ignored: Sequence[str]) -> None:
    known = keys_of(space)
    for key in ignored:
        if key not in known:
            raise ConfigError(
                f"ignore_obs names {key!r}, and the observations have the keys "
                f"{', '.join(sorted(known)) or '(none)'}{did_you_mean(key, known)}"
            )


def _choose(source: Source, n_envs: int, kwargs: Mapping[str, Any]) -> str:
    """The fixed rule of ``--vec auto``."""
    if source.id is None or n_envs < NATIVE_FROM or source.frame_stack > 1:
        return "sync"
    if spec_of(source.id).vector_entry_point is not None:
        return "native"
    known = source.id in ENVPOOL_IS_SAME_TASK and not kwargs
    return "envpool" if known and importlib.util.find_spec("envpool") else "sync"


def usable_processors() -> int:
    """Processors that this process may use."""
    bound = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(bound(0)) if bound is not None else os.cpu_count() or 1


def _leave_signals_to_the_parent() -> None:
    """In a worker: Ctrl-C on a terminal reaches all processes, and only the parent acts on it."""
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _takes_seeds(env: VectorEnv[Any, Any, Any]) -> bool:
    """Gymnasium's own sync and async vectors honour a seed list and a ``reset_mask``."""
    return isinstance(env.unwrapped, (gym.vector.SyncVectorEnv, AsyncVectorEnv))


def _native_engine(source: Source, n: int, limit: int | None, kwargs: dict[str, Any]) -> Engine:
    env_id = source.id
    if source.frame_stack > 1:
        raise ConfigError("frame_stack needs single environments: use --vec sync or --vec async")
    if env_id is None or gym.spec(env_id).vector_entry_point is None:
        raise ConfigError(
            f"{source.name} has no native vector version: use --vec sync or --vec async"
        )
    vector = explained(
        env_id,
        lambda: gym.make_vec(
            env_id, n, vectorization_mode="vector_entry_point", **limited(limit), **kwargs
        ),
    )
    core: Any = vector.unwrapped
    if type(core.action_space) is gym.spaces.MultiDiscrete:
        core.action_space = _OwnActions(
            core.action_space.nvec, core.action_space.dtype, start=core.action_space.start
        )
    return VectorEngine(lambda _: vector, name="native")


class _OwnActions(gym.spaces.MultiDiscrete):
    """The action space of a native vector that is given nothing but what was sampled from it.

    Such a vector looks at every action again, which takes a quarter of a step of eight CartPoles.
    """

    def contains(self, x: Any) -> bool:
        return True


def _envpool_engine(source: Source, n: int, limit: int | None, threads: int | None) -> Engine:
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
    task, options = source.id, limited(limit)
    if task not in gym.registry:
        raise ConfigError(
            f"EnvPool takes plain registered ids, not {task}: use --vec sync or --vec async"
        )
    if source.atari_preprocessing:  # EnvPool's own parts, set to what ale-py's id means
        task = task.removeprefix(ATARI)
        options |= {"stack_num": source.frame_stack, "repeat_action_probability": 0.25}
        options |= {"noop_max": 30, "use_fire_reset": False, "img_height": 84, "img_width": 84}
    elif source.frame_stack > 1:
        raise ConfigError("EnvPool stacks frames of Atari games only: use --vec sync or async")
    if task not in envpool.list_all_envs():
        raise ConfigError(f"EnvPool has no {task}: use --vec sync or --vec async")
    threads = threads or max(1, min(usable_processors(), n // ENVS_PER_THREAD))

    def make(seeds: Sequence[int] | None) -> VectorEnv[Any, Any, Any]:
        seed = [0] if seeds is None else list(seeds)  # without seeds, one to look at
        with warnings.catch_warnings():  # its float64 bounds are stored in float32
            warnings.simplefilter("ignore")
            pool: VectorEnv[Any, Any, Any] = envpool.make_gymnasium(
                task, num_envs=len(seed), num_threads=threads, seed=seed, **options
            )
            _ = pool.observation_space, pool.action_space  # made, and warned about, when first read
        return pool

    # Gymnasium's own spaces: EnvPool states others for the same task (dtypes, some bounds).
    own = source.plain_env({}, None)
    own.close()
    spaces = (own.observation_space, own.action_space)
    return VectorEngine(make, name="envpool", rebuild=True, n_envs=n, spaces=spaces)
