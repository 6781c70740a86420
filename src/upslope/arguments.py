"""What a user hands to an agent, read and checked: settings, policy, spaces, callbacks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
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
from upslope.spaces import MASK_KEY, choice_sizes
from upslope.trees import Tree

log = logging.getLogger("upslope")


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
        if "batch_size" not in tuned or "batch_size" in settings or "batch_size" not in str(error):
            raise
    # The preset's minibatches belong to its rollouts; smaller ones were asked for.
    own = tuned.pop("batch_size")
    config = CONFIGS[algorithm].from_settings(tuned | settings | taken)
    log.warning(
        "batch_size=%d of the preset of %s is more than a rollout has: it is %d now (--batch-size)",
        own,
        source.id,
        getattr(config, "batch_size", 0),
    )
    return config


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


def as_batch(observation: Any, space: gym.Space[Any]) -> tuple[Tree, bool]:
    """Return observations ``[N, ...]`` and whether a single one was given.

    Raises:
        ConfigError: if they do not have the structure and shapes of ``space``.
    """
    if isinstance(space, gym.spaces.Dict):
        if not isinstance(observation, Mapping) or not set(space) <= set(observation):
            raise ConfigError(f"the observation is no dict with the keys {', '.join(space)}")
        branches: dict[Any, tuple[Tree, bool]] = {
            key: as_batch(observation[key], space[key]) for key in space
        }
    elif isinstance(space, gym.spaces.Tuple):
        if not isinstance(observation, (tuple, list)) or len(observation) != len(space):
            raise ConfigError(f"the observation is no tuple of {len(space)}")
        branches = {i: as_batch(observation[i], space[i]) for i in range(len(space))}
    else:
        return _as_array(observation, space.shape or ())
    if len({single for _, single in branches.values()}) > 1:
        raise ConfigError("parts of the observation are single and others a batch: give one kind")
    single = next(iter(branches.values()))[1]
    tree = {key: batch for key, (batch, _) in branches.items()}
    return (tree if isinstance(space, gym.spaces.Dict) else tuple(tree.values())), single


def _as_array(observation: Any, shape: tuple[int, ...]) -> tuple[NDArray[Any], bool]:
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


def as_masks(
    masks: Any, observation: Any, space: gym.Space[Any], n: int
) -> NDArray[np.bool_] | None:
    """Return which choices are allowed, ``[n, n_mask]``, or None where nothing says it.

    Raises:
        ConfigError: if their number is wrong, or a choice has nothing that is allowed.
    """
    sizes = choice_sizes(space)
    if masks is None and isinstance(observation, Mapping):
        masks = observation.get(MASK_KEY)
    if masks is None or not sizes:
        return None
    flat = np.asarray(masks)
    if flat.size != n * sum(sizes):
        raise ConfigError(
            f"action_masks has the shape {flat.shape}: give {(sum(sizes),)}, or "
            f"{('N', sum(sizes))} for a batch"
        )
    allowed: NDArray[np.bool_] = flat.reshape(n, sum(sizes)).astype(bool)
    first = np.cumsum([0, *sizes])[:-1]
    if not np.logical_or.reduceat(allowed, first, axis=1).all():
        raise ConfigError("action_masks allows no action: allow at least one of each choice")
    return allowed


def first_of(actions: Tree, space: gym.Space[Any]) -> Any:
    """Return the one action of a batch of one, as ``env.step`` takes it."""
    if isinstance(space, gym.spaces.Dict):
        return {key: first_of(actions[key], space[key]) for key in space}
    if isinstance(space, gym.spaces.Tuple):
        return tuple(first_of(part, space[i]) for i, part in enumerate(actions))
    return np.asarray(actions[0]) if isinstance(space, gym.spaces.Box) else actions[0]


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
