"""The Configs: every setting of every algorithm, declared once."""

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
    gamma: float = setting(0.99, "discount per step", kind="float", low=0.0, high=1.0)
    learning_rate: Schedule = setting(
        3e-4,
        "step size: a number, lin_X (linear to 0), or a callable of the progress remaining",
        kind="schedule",
        above=0.0,
    )
    ent_coef: float = setting(
        0.0, "weight of the entropy bonus, reward per nat", kind="float", low=0.0
    )
    max_grad_norm: float | None = setting(
        0.5,
        "largest gradient norm, longer ones are scaled down",
        kind="float",
        above=0.0,
        optional=True,
    )
    norm_obs: bool = setting(
        False,
        "normalise observations by running statistics kept in the policy",
        kind="bool",
        group="normalisation",
    )
    norm_reward: bool = setting(
        False,
        "divide rewards by the running spread of discounted returns",
        kind="bool",
        group="normalisation",
    )
    clip_obs: float = setting(
        10.0,
        "normalised observations are clipped to +- this many standard deviations",
        kind="float",
        above=0.0,
        group="normalisation",
    )
    clip_reward: float = setting(
        10.0,
        "normalised rewards are clipped to +- this",
        kind="float",
        above=0.0,
        group="normalisation",
    )
    warmup_steps: int = setting(
        1024,
        "steps that fill the normaliser before the first iteration (they are counted)",
        kind="int",
        low=0,
        group="normalisation",
    )
    net_arch: Any = setting(
        (64, 64), "hidden widths: 64,64 or pi=64,64;vf=128,128", kind="net_arch", group="network"
    )
    activation_fn: str = setting(
        "tanh",
        "activation between layers",
        kind="choice",
        choices=("tanh", "relu", "elu", "gelu", "silu"),
        group="network",
    )
    shared_network: bool = setting(
        False, "one trunk for actor and critic instead of two", kind="bool", group="network"
    )
    ortho_init: bool = setting(
        True, "orthogonal initial weights (torch's own otherwise)", kind="bool", group="network"
    )
    action_dist: str = setting(
        "gaussian",
        "distribution over Box actions",
        kind="choice",
        choices=("gaussian",),
        group="network",
    )
    log_std_init: float = setting(
        0.0,
        "initial log standard deviation of Gaussian actions",
        kind="float",
        low=-10.0,
        high=2.0,
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
        "engine of the gradient step; this version has the eager one",
        kind="choice",
        choices=("auto", "always", "never"),
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
        if not is_device(self.device):
            raise ConfigError(
                f"device={self.device!r} is not one of auto, cpu, cuda, cuda:N, mps: "
                "use --device cpu"
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
        """Iterations that an episode of ``episode_limit`` steps runs through, 0 if it stays in one."""
        return 0

    @property
    def rows_per_step(self) -> int:
        """Rows that one gradient step reads, where that is known beforehand (else 1)."""
        return 1

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON types; a callable schedule becomes its qualified name."""
        return {d.name: plain(getattr(self, d.name)) for d in dataclasses.fields(self)}


@dataclass(frozen=True, kw_only=True)
class ReinforceConfig(Config):
    """REINFORCE: one gradient step per batch of whole episodes (Williams 1992)."""

    algorithm: ClassVar[str] = "reinforce"

    learning_rate: Schedule = setting(
        3e-3,
        "step size: a number, lin_X (linear to 0), or a callable of the progress remaining",
        kind="schedule",
        above=0.0,
    )
    max_grad_norm: float | None = setting(
        None,
        "largest gradient norm, longer ones are scaled down",
        kind="float",
        above=0.0,
        optional=True,
    )
    batch_episodes: int = setting(
        16, "whole episodes per gradient step", kind="int", low=1, high=1_000_000
    )
    returns: str = setting(
        "to-go",
        "weight: return of the whole episode, or reward-to-go",
        kind="choice",
        choices=("episode", "to-go"),
    )
    baseline: str = setting(
        "loo",
        "subtracted from the weight: none, batch mean, leave-one-out mean, or a learned value",
        kind="choice",
        choices=("none", "mean", "loo", "value"),
    )
    critic_learning_rate: Schedule = setting(
        3e-3, "step size of the value baseline's regression", kind="schedule", above=0.0
    )
    n_critic_updates: int = setting(
        20, "regression steps per batch for the value baseline", kind="int", low=1, high=100_000
    )
    normalize_advantage: bool = setting(
        False,
        "standardise the weights over the batch (rescales and slightly turns the gradient)",
        kind="bool",
    )

    def steps_per_iteration(self, episode_limit: int) -> int:
        return self.batch_episodes * episode_limit

    def check_together(self) -> None:
        super().check_together()
        if self.baseline == "loo" and self.batch_episodes < 2:
            raise ConfigError(
                "baseline=loo needs batch_episodes of at least 2: "
                "raise --batch-episodes or take --baseline none"
            )


@dataclass(frozen=True, kw_only=True)
class PPOConfig(Config):
    """PPO: clipped surrogate, several epochs of minibatches per rollout (Schulman et al. 2017)."""

    algorithm: ClassVar[str] = "ppo"

    n_steps: int | None = setting(
        None,
        "steps per environment and rollout (derived: 2048 // n_envs)",
        kind="int",
        low=1,
        high=10_000_000,
        optional=True,
    )
    batch_size: int = setting(64, "rows per minibatch", kind="int", low=1, high=100_000_000)
    n_epochs: int = setting(10, "passes over each rollout", kind="int", low=1, high=10_000)
    gae_lambda: float = setting(0.95, "trace decay of GAE", kind="float", low=0.0, high=1.0)
    clip_range: Schedule = setting(0.2, "clip of the probability ratio", kind="schedule", above=0.0)
    clip_range_vf: Schedule | None = setting(
        None,
        "clip of the value's change, in units of (normalised) reward",
        kind="schedule",
        above=0.0,
        optional=True,
    )
    vf_coef: float = setting(0.5, "weight of the value loss", kind="float", low=0.0)
    target_kl: float | None = setting(
        None,
        "stop an update once a minibatch's approximate KL passes 1.5 times this, nats",
        kind="float",
        above=0.0,
        optional=True,
    )
    normalize_advantage: bool = setting(True, "standardise advantages", kind="bool")
    normalize_advantage_over: str = setting(
        "minibatch",
        "rows over which advantages are standardised",
        kind="choice",
        choices=("minibatch", "batch"),
    )

    def steps_per_iteration(self, episode_limit: int) -> int:
        return (self.n_envs or 1) * (self.n_steps or 1)

    def iterations_per_episode(self, episode_limit: int) -> int:
        return -(-episode_limit // (self.n_steps or 1))

    @property
    def rows_per_step(self) -> int:
        return self.batch_size

    def for_other_environments(self) -> Self:
        return dataclasses.replace(self, n_envs=None, n_steps=None)

    def resolve(self, n_envs: int) -> Self:
        n_steps = self.n_steps or max(1, 2048 // n_envs)
        return dataclasses.replace(self, n_envs=n_envs, n_steps=n_steps)

    def check_together(self) -> None:
        super().check_together()
        if (
            self.normalize_advantage
            and self.normalize_advantage_over == "minibatch"
            and self.batch_size < 2
        ):
            raise ConfigError(
                "batch_size=1 cannot be standardised: use at least 2, or --no-normalize-advantage"
            )
        if self.n_envs is None or self.n_steps is None:
            return
        rows = self.n_envs * self.n_steps
        if self.batch_size > rows:
            raise ConfigError(
                f"batch_size={self.batch_size} is larger than the rollout of "
                f"n_steps * n_envs = {rows} rows: use a batch_size in 1..{rows}"
            )


CONFIGS: dict[str, type[Config]] = {"reinforce": ReinforceConfig, "ppo": PPOConfig}
