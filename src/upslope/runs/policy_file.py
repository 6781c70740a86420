"""A policy as a model file and back: what the header says, and what of it is believed.

A name inside a file (environment, features factory) is shown to people and never imported.
"""

from __future__ import annotations

import copy
import logging
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch

from upslope.config import CONFIGS, Config
from upslope.envs.find import EnvLike, Source, find_environment, is_of_a_known_package
from upslope.errors import ConfigError, ModelFileError
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.encoders import FeaturesFactory
from upslope.policies.make import make_policy
from upslope.policies.observations import part_of
from upslope.runs.model_file import read_model, write_model
from upslope.runs.space_json import space_from_json, space_to_json
from upslope.spaces import Path, assemble, paths
from upslope.trees import Tree, map_tree, stack

if TYPE_CHECKING:
    from upslope.evaluation import Score

log = logging.getLogger("upslope")
SELF_TEST_ROWS = 8
SELF_TEST_TOLERANCE = 1e-4
_OBSERVATIONS, _OUTPUTS, _VALUES = (
    "self_test.observations",
    "self_test.outputs",
    "self_test.values",
)


def save_model(
    path: str | os.PathLike[str],
    policy: ActorCritic,
    config: Config,
    source: Source,
    features: FeaturesFactory | None = None,
    observations: Tree | None = None,
    evaluation: Score | None = None,
) -> None:
    """Write a policy and everything needed to use it elsewhere.

    Args:
        path: the file; its folder is made.
        policy: weights and running statistics, the latter part of the former.
        config, source: what it was trained with and on.
        features: the user's factory, of which only the name is kept.
        observations: ``[B, ...]``; the first eight and their outputs become the file's self-test.
        evaluation: the score to carry along.
    """
    header = {
        "algorithm": config.algorithm,
        "environment": {
            "name": source.name,
            "id": source.id,
            "is_registered": source.is_registered,
        },
        "observation_space": space_to_json(policy.observation_space),
        "action_space": space_to_json(policy.action_space),
        "network": {
            "features": None if features is None else _name(features),
            "distribution": policy.actions.name,
            "parameters": sum(parameter.numel() for parameter in policy.parameters()),
        },
        "config": config.to_json(),
        "evaluation": None if evaluation is None else evaluation.to_json(),
        "versions": versions(),
    }
    tensors = {name: tensor.detach() for name, tensor in policy.state_dict().items()}
    write_model(path, header, tensors | _self_test(policy, observations))


@dataclass(frozen=True)
class LoadedModel:
    """A policy read from a file, and what the file says about it."""

    policy: ActorCritic
    header: Mapping[str, Any]

    def source(self, env: EnvLike | None) -> Source | None:
        """Return where environments come from: ``env``, else the recorded id, else nothing.

        The recorded id counts only if Gymnasium already has it registered, or if it belongs to a
        package that this library knows by name (ale-py, MiniGrid, dm_control).
        """
        if env is not None:
            return find_environment(env)
        recorded = self.header["environment"]
        env_id = recorded["id"]
        if recorded["is_registered"] and (env_id in gym.registry or is_of_a_known_package(env_id)):
            return find_environment(recorded["id"])
        return None

    def config(self, settings: Mapping[str, Any]) -> Config:
        """Return the recorded settings under ``settings``; recorded callables are not restored."""
        recorded = dict(self.header["config"])
        for name in [
            n for n, value in recorded.items() if isinstance(value, dict) and "callable" in value
        ]:
            log.warning(
                "the callable %s=%s is not in the model file: the default is taken",
                name,
                recorded.pop(name)["callable"],
            )
        known = {field for field in CONFIGS[self.header["algorithm"]].__dataclass_fields__}
        recorded = {name: value for name, value in recorded.items() if name in known}
        return CONFIGS[self.header["algorithm"]].from_settings(recorded | dict(settings))


def load_model(
    path: str | os.PathLike[str], features: FeaturesFactory | None = None
) -> LoadedModel:
    """Read a model file, rebuild its policy, and hold it to the outputs stored in the file.

    Raises:
        ModelFileError: damaged, foreign, incomplete, or giving other outputs than it once gave.
        ConfigError: if the model was made with a features factory and none is given.
    """
    header, tensors = read_model(path)
    try:
        recorded = header["network"]["features"]
        if (recorded is None) != (features is None):
            wanted = (
                f"with the features factory {recorded}: give policy={recorded.rpartition('.')[2]}"
                if recorded
                else "without a features factory: leave policy out"
            )
            raise ConfigError(f"{os.fspath(path)} was made {wanted}")
        _ = [header["environment"][key] for key in ("name", "id", "is_registered")]
        bare = LoadedModel(None, header)  # type: ignore[arg-type]
        observations = space_from_json(header["observation_space"])
        actions = space_from_json(header["action_space"])
        policy = make_policy(bare.config({}), observations, actions, features)
        stored = {n: tensors.pop(n) for n in list(tensors) if n.startswith("self_test.")}
        policy.load_state_dict(tensors)
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        if isinstance(error, ConfigError) and "features factory" in str(error):
            raise
        raise ModelFileError(
            f"{os.fspath(path)} is intact but its contents do not fit together "
            f"({error!s:.200}): it was not written by this library as it is"
        ) from error
    _check_self_test(path, policy, stored)
    return LoadedModel(policy, header)


def versions() -> dict[str, str]:
    """Return the versions of what computes here."""
    names = ("upslope", "torch", "gymnasium", "numpy")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def _self_test(policy: ActorCritic, observations: Tree | None) -> dict[str, torch.Tensor]:
    """Up to eight raw observations with the outputs and values this policy gives them now.

    A part of a Dict or Tuple has its path in the tensor's name; with memory each observation is the
    first of an episode.
    """
    if observations is None:
        space = copy.deepcopy(policy.observation_space)  # the user's own keeps its stream
        space.seed(0)
        observations = stack([space.sample() for _ in range(SELF_TEST_ROWS)])
    rows = map_tree(
        lambda x: torch.as_tensor(np.array(x[:SELF_TEST_ROWS]), device=policy.device), observations
    )
    with torch.no_grad():
        inputs = policy.prepare(rows)
        numbers = {_OUTPUTS: policy.outputs(inputs)[0], _VALUES: policy.values(inputs)}
    return {_named(path): part_of(rows, path) for path in paths(policy.observation_space)} | numbers


def _named(path: Path) -> str:
    return "/".join([_OBSERVATIONS, *(str(step) for step in path)])


def _check_self_test(path: Any, policy: ActorCritic, stored: Mapping[str, torch.Tensor]) -> None:
    try:
        rows = assemble(policy.observation_space, lambda where: stored[_named(where)])
        expected = {name: stored[name] for name in (_OUTPUTS, _VALUES)}
    except KeyError:
        raise ModelFileError(
            f"{os.fspath(path)} lacks its stored observations and outputs: "
            "it was not written by this library as it is"
        ) from None
    with torch.no_grad():
        inputs = policy.prepare(rows)
        now = {_OUTPUTS: policy.outputs(inputs)[0], _VALUES: policy.values(inputs)}
    for name, value in expected.items():
        gap = (now[name] - value).abs().max() / value.abs().max().clamp(min=1)
        if not gap <= SELF_TEST_TOLERANCE:
            raise ModelFileError(
                f"{os.fspath(path)} gives other {name.partition('.')[2]} here than when it was "
                f"saved (relative gap {float(gap):.1e}): its network is not rebuilt as it was; "
                "give the same features factory and library versions"
            )


def _name(function: Any) -> str:
    qualname = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '?')}.{qualname}"
