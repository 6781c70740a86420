"""What a user hands to an agent, read and checked: settings, policy, spaces, callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from upslope.callbacks import Callback
from upslope.config import CONFIGS, Config, preset
from upslope.envs.find import Source
from upslope.errors import ConfigError, ModelFileError
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.encoders import FeaturesFactory


def make_config(
    algorithm: str, source: Source, wanted: str | None, settings: dict[str, Any]
) -> Config:
    """Return the config of keyword arguments over a preset (``"auto"``) over the plain defaults."""
    if wanted not in (None, "auto", "none"):
        raise ConfigError(f"preset={wanted!r} is not one of auto, none")
    tuned = preset(source.id or "", algorithm) if wanted == "auto" else {}
    taken = {"preset": "auto"} if tuned else {}
    try:
        return CONFIGS[algorithm].from_settings(tuned | settings | taken)
    except ConfigError as error:
        if not tuned or "batch_size" in settings or "batch_size" not in str(error):
            raise
        raise ConfigError(
            f"{error}; the preset of {source.id} set it, and preset=none (--preset none) leaves it"
        ) from None


def env_and_policy(
    agent: str, env: Any, positional: tuple[Any, ...], policy: str | FeaturesFactory
) -> tuple[Any, str | FeaturesFactory]:
    """Return the environment and the policy, also from the order ``PPO("MlpPolicy", env)``."""
    if isinstance(env, str) and env.endswith("Policy") and len(positional) == 1:
        return positional[0], env
    if positional:
        raise ConfigError(f"{agent} takes the environment and then keyword arguments only")
    if env is None:
        raise ConfigError(
            f"{agent} needs an environment: give an id, an Env, a factory or a VectorEnv"
        )
    return env, policy


def features_of(policy: str | FeaturesFactory) -> FeaturesFactory | None:
    """Return the factory that ``policy`` gives, or None where it names the plain network."""
    if policy == "MlpPolicy":
        return None
    if isinstance(policy, str) or not callable(policy):
        raise ConfigError(
            f"policy={policy!r} is not known: use 'MlpPolicy', "
            "or a factory observation_space -> torch.nn.Module"
        )
    return policy


def check_spaces(
    policy: ActorCritic, observations: gym.Space[Any], actions: gym.Space[Any]
) -> None:
    """Raise :class:`ModelFileError` unless a model's spaces are those of an environment."""
    for what, recorded, given in (
        ("observation", policy.observation_space, observations),
        ("action", policy.action_space, actions),
    ):
        if recorded != given:
            raise ModelFileError(
                f"the model's {what} space is {recorded} but the environment's is {given}: "
                "give an environment of the same spaces"
            )


def as_batch(observation: Any, shape: tuple[int, ...]) -> tuple[NDArray[Any], bool]:
    """Return observations ``[N, *shape]`` and whether a single one ``[*shape]`` was given."""
    try:
        obs = np.asarray(observation)
    except ValueError:
        raise ConfigError(
            f"the observation is no array of shape {shape}: give what env.step returns first, "
            "or the first of the pair that env.reset returns"
        ) from None
    single = obs.shape == shape
    if not single and obs.shape[1:] != shape:
        raise ConfigError(
            f"the observation has shape {obs.shape}: give {shape}, or {('N', *shape)} for a batch"
        )
    return (obs[None] if single else obs), single


def as_list(callback: Callback | Sequence[Callback] | None) -> list[Callback]:
    """Return the callbacks of ``learn`` as a list of its own."""
    if callback is None:
        return []
    callbacks: list[Any] = list(callback) if isinstance(callback, Sequence) else [callback]
    for each in callbacks:
        if not callable(each):
            raise ConfigError(
                f"callback={each!r} cannot be called: give f(event), or a list of such"
            )
    return callbacks


class OnClassOnly:
    """``PPO.load(path)`` makes an agent; on an instance it would silently do nothing to it."""

    def __get__(self, instance: object, owner: Any) -> Any:
        if instance is not None:
            raise ConfigError(
                "load makes a new agent and would leave this one as it is: "
                f"write agent = {owner.__name__}.load(path)"
            )
        return owner._load
