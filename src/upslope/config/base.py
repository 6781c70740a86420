"""The settings that every algorithm has, each declared once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from upslope.config.settings import Schedule, checked, is_device, plain, setting
from upslope.errors import ConfigError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings that every algorithm has.

    ``None`` in a field that says "derived" is filled in by :meth:`resolve`.
    """

    algorithm: ClassVar[str]

    seed: int = setting(
        0,
        "the run's one seed; two runs with one seed give identical bits",
        kind="int",
        low=0,
        high=2**31 - 1,
        group="run",
    )
    n_envs: int | None = setting(
        None,
        "environments stepped side by side (derived: 8, or 1 for a single Env)",
        kind="int",
        low=1,
        high=65536,
        optional=True,
        group="environment",
    )
    vec: str = setting(
        "auto",
        "engine that steps them (docs: Engines)",
        kind="choice",
        choices=("auto", "envpool", "native", "sync", "async"),
        group="environment",
    )
    max_episode_steps: int | None = setting(
        None,
        "cut episodes after so many steps (derived: the environment's own limit)",
        kind="int",
        low=1,
        optional=True,
        group="environment",
    )
    env_kwargs: Mapping[str, Any] = setting(
        {},
        "keyword arguments of the environment's constructor",
        kind="mapping",
        group="environment",
    )
    ignore_obs: tuple[str, ...] = setting(
        (),
        "Dict observation keys to leave out, at any depth",
        kind="names",
        group="environment",
    )
    frame_stack: int | None = setting(
        None,
        "last observations stacked into one (derived: 4 for ALE/ ids, else 1)",
        kind="int",
        low=1,
        high=64,
        optional=True,
        group="environment",
        source="4 as in Mnih et al. 2015",
    )
    atari_preprocessing: bool = setting(
        True,
        "for ALE/ ids: 84 x 84 grey images, 4 frames a step, up to 30 no-ops",
        kind="bool",
        group="environment",
        source="Machado et al. 2018",
    )
    on_env_error: str = setting(
        "stop",
        "stop, or restart:N to make an environment anew up to N times, dropping its episode",
        kind="text",
        group="environment",
    )
    strict_spaces: bool = setting(
        False,
        "stop at an observation outside its space instead of warning once",
        kind="bool",
        group="environment",
    )
    max_buffer: float | None = setting(
        None,
        "GiB that a rollout may take (derived: half of the machine's memory)",
        kind="float",
        above=0.0,
        optional=True,
        group="environment",
    )
    gamma: float = setting(
        0.99,
        "discount per step",
        kind="float",
        low=0.0,
        high=1.0,
        source="as in Stable-Baselines3",
    )
    learning_rate: Schedule = setting(
        3e-4,
        "step size: a number, lin_X (linear to 0), or a callable of the progress remaining",
        kind="schedule",
        above=0.0,
        source="as in Stable-Baselines3's PPO",
    )
    ent_coef: float = setting(
        0.0,
        "weight of the entropy bonus, reward per nat",
        kind="float",
        low=0.0,
        source="as in Stable-Baselines3",
    )
    max_grad_norm: float | None = setting(
        0.5,
        "largest gradient norm, longer ones are scaled down",
        kind="float",
        above=0.0,
        optional=True,
        source="as in Stable-Baselines3",
    )
    norm_obs: bool = setting(
        False,
        "normalise observations by running statistics kept in the policy",
        kind="bool",
        group="normalisation",
        source="as in Stable-Baselines3",
    )
    norm_reward: bool = setting(
        False,
        "divide rewards by the running spread of discounted returns",
        kind="bool",
        group="normalisation",
        source="as in Stable-Baselines3",
    )
    clip_obs: float = setting(
        10.0,
        "normalised observations are clipped to +- this many standard deviations",
        kind="float",
        above=0.0,
        group="normalisation",
        source="as in Stable-Baselines3's VecNormalize",
    )
    clip_reward: float = setting(
        10.0,
        "normalised rewards are clipped to +- this",
        kind="float",
        above=0.0,
        group="normalisation",
        source="as in Stable-Baselines3's VecNormalize",
    )
    warmup_steps: int = setting(
        1024,
        "steps that fill the normaliser before the first iteration (they are counted)",
        kind="int",
        low=0,
        group="normalisation",
        source="half a default rollout",
    )
    net_arch: Any = setting(
        (64, 64),
        "hidden widths: 64,64 or pi=64,64;vf=128,128",
        kind="net_arch",
        group="network",
        source="as in Stable-Baselines3",
    )
    activation_fn: str = setting(
        "tanh",
        "activation between layers",
        kind="choice",
        choices=("tanh", "relu", "elu", "gelu", "silu"),
        group="network",
        source="as in Stable-Baselines3",
    )
    shared_network: bool = setting(
        False,
        "one trunk for actor and critic instead of two",
        kind="bool",
        group="network",
        source="as in Stable-Baselines3",
    )
    ortho_init: bool = setting(
        True,
        "orthogonal initial weights (torch's own otherwise)",
        kind="bool",
        group="network",
        source="as in Stable-Baselines3",
    )
    action_dist: str = setting(
        "gaussian",
        "distribution over Box actions: clipped to the bounds, tanh-squashed, or Beta",
        kind="choice",
        choices=("gaussian", "squashed", "beta"),
        group="network",
        source="gaussian as in Stable-Baselines3; beta Chou et al. 2017",
    )
    log_std_init: float = setting(
        0.0,
        "initial log standard deviation of Gaussian actions",
        kind="float",
        low=-10.0,
        high=2.0,
        group="network",
        source="as in Stable-Baselines3",
    )
    cnn: str = setting(
        "auto",
        "for images: nature from 36 pixels a side, small below (auto), or impala",
        kind="choice",
        choices=("auto", "nature", "impala", "small"),
        group="network",
        source="Mnih et al. 2015; Espeholt et al. 2018",
    )
    memory: str = setting(
        "none",
        "recurrent layer before the heads of actor and critic",
        kind="choice",
        choices=("none", "gru", "lstm"),
        group="network",
    )
    memory_size: int = setting(
        64,
        "width of the recurrent state",
        kind="int",
        low=1,
        high=8192,
        group="network",
    )
    dtype: str = setting(
        "float32",
        "precision of weights and arithmetic",
        kind="choice",
        choices=("float32", "float64"),
        group="network",
    )
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps", kind="text", group="run")
    compile: str = setting(
        "auto",
        "engine of the gradient step: never is eager, always compiled, auto what pays",
        kind="choice",
        choices=("auto", "always", "never"),
        group="run",
    )
    threads: int | None = setting(
        None,
        "threads of torch while it trains, and of EnvPool (derived: docs, Speed)",
        kind="int",
        low=1,
        high=1024,
        optional=True,
        group="run",
    )
    checkpoints: int = setting(
        10,
        "at most so many boundaries a run, where episodes are cut and engines reseeded",
        kind="int",
        low=1,
        high=100_000,
        group="run",
    )
    log_interval: int | None = setting(
        None,
        "iterations per row of progress.csv (derived: about 200 rows a run)",
        kind="int",
        low=1,
        optional=True,
        group="run",
    )
    log_info: tuple[str, ...] = setting(
        (), "info scalars averaged per episode beside is_success", kind="names", group="run"
    )
    preset: str = setting(
        "none",
        "which tuned settings were taken: auto or none",
        kind="choice",
        choices=("auto", "none"),
        group="run",
    )

    def __post_init__(self) -> None:
        for declared in dataclasses.fields(self):
            value = checked(declared, getattr(self, declared.name))
            object.__setattr__(self, declared.name, value)
        self.check_together()

    def check_together(self) -> None:
        """Raise :class:`ConfigError` where fields that are fine alone do not fit each other."""
        if self.vec == "envpool" and self.env_kwargs:
            raise ConfigError(
                "env_kwargs cannot be given to EnvPool: use --vec sync or --vec async"
            )
        _ = self.allowed_faults
        if not is_device(self.device):
            raise ConfigError(
                f"device={self.device!r} is not one of auto, cpu, cuda, cuda:N, mps: "
                "use --device cpu"
            )

    @property
    def allowed_faults(self) -> int:
        """How often an environment may be made anew, from ``on_env_error``."""
        policy, colon, number = self.on_env_error.partition(":")
        if (policy, colon) == ("stop", ""):
            return 0
        if policy == "restart" and number.isascii() and number.isdigit() and int(number) > 0:
            return int(number)
        raise ConfigError(
            f"on_env_error={self.on_env_error!r} is neither stop nor restart:N with N of at "
            "least 1, such as restart:3"
        )

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Make a config from keyword arguments; an unknown name raises and suggests the nearest."""
        known = {declared.name for declared in dataclasses.fields(cls)}
        for name in settings:
            if name not in known:
                raise ConfigError(
                    f"{cls.algorithm} has no setting {name!r}{did_you_mean(name, known)}; "
                    f"`upslope train --algo {cls.algorithm} --help` lists them all"
                )
        return cls(**settings)

    def resolve(self, n_envs: int) -> Self:
        """Return this config with every derived field filled in for ``n_envs`` environments."""
        return dataclasses.replace(self, n_envs=n_envs)

    def for_other_environments(self) -> Self:
        """Return this config with what follows from the number of environments left open."""
        return dataclasses.replace(self, n_envs=None)

    def steps_per_iteration(self, episode_limit: int) -> int:
        """Environment steps of one iteration, if every episode lasts ``episode_limit`` steps."""
        raise NotImplementedError

    def iterations_per_episode(self, episode_limit: int) -> int:
        """Iterations an episode of ``episode_limit`` steps runs through, 0 if it stays in one."""
        return 0

    @property
    def rollout_steps(self) -> int | None:
        """Steps of every environment that one rollout holds, where that is known beforehand."""
        return getattr(self, "n_steps", None)

    @property
    def rows_per_step(self) -> int:
        """Rows that one gradient step reads, where that is known beforehand (else 1)."""
        return 1

    @property
    def updates_per_iteration(self) -> int:
        """Gradient steps that one iteration takes, where they are known beforehand (else 1)."""
        return 1

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON types; a callable schedule becomes its qualified name."""
        return {d.name: plain(getattr(self, d.name)) for d in dataclasses.fields(self)}
