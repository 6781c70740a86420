"""A policy as a model file and back: what the header says, and what of it is believed.

A name inside a file (environment, features factory) is shown to people and never imported.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import torch
from torch import Tensor

from upslope.config import CONFIGS, Config
from upslope.envs.find import EnvLike, Source, find_environment, is_of_a_known_package
from upslope.errors import ConfigError, ModelFileError, first_line
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.encoders import FeaturesFactory
from upslope.runs.model_file import read_model, write_model
from upslope.runs.rebuild import check_finite, check_sizes, rebuild_policy
from upslope.runs.safetensors_header import Refused, plainly
from upslope.runs.self_test import PREFIX, check_self_test, make_self_test
from upslope.runs.space_json import space_from_json, space_to_json
from upslope.trees import Tree

if TYPE_CHECKING:
    from upslope.evaluation import Score

log = logging.getLogger("upslope")
_FOREIGN = "it was not written by this library as it is"
_PATH_LIKE = re.compile(r"[/\\\\:]|^[.~]|\.[A-Za-z]\w*$")  # of a file, a module, an address


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
    tensors = dict(policy.state_dict())
    try:
        _check_are_tensors(tensors)
        said, self_test = make_self_test(policy, observations)
        header = {
            "algorithm": config.algorithm,
            "environment": {
                "name": plainly(source.name),
                "id": source.id,
                "is_registered": source.is_registered,
            },
            "observation_space": space_to_json(policy.observation_space),
            "action_space": space_to_json(policy.action_space),
            "network": {
                "features": None if features is None else plainly(_name(features)),
                "distribution": policy.actions.name,
                "parameters": sum(parameter.numel() for parameter in policy.parameters()),
            },
            "self_test": said,
            "config": config.to_json(),
            "evaluation": None if evaluation is None else evaluation.to_json(),
            "versions": versions(),
        }
        _check_readable(policy, config, header, tensors | self_test)
    except Refused as refused:
        raise ModelFileError(
            f"cannot write model file {os.fspath(path)!r}: {refused.reason}; nothing was written"
        ) from refused
    write_model(path, header, tensors | self_test)


def _check_are_tensors(state: Mapping[str, Any]) -> None:
    """A user's module may keep state of any kind; the file holds tensors."""
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise Refused(f"{name!r} is a {type(value).__name__}, not a tensor")


def _check_readable(
    policy: ActorCritic, config: Config, header: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """See that the file will pass what only the loader checks: no unreadable file is written."""
    spaces = (policy.observation_space, policy.action_space)
    for key, space in zip(("observation_space", "action_space"), spaces, strict=True):
        if _space(json.loads(json.dumps(header[key])), tensors) != space:
            raise Refused(f"its {key} {space} does not come back from a description of it")
    check_sizes(config, *spaces, tensors, header["network"]["features"] is not None)
    check_finite(policy)


@dataclass(frozen=True)
class LoadedModel:
    """A policy read from a file, and what the file says about it."""

    policy: ActorCritic
    header: Mapping[str, Any]

    def source(self, env: EnvLike | None) -> Source | None:
        """Return where environments come from: ``env``, else the recorded id, else nothing.

        The recorded id counts only if Gymnasium already has it registered, or if it belongs to a
        package that this library knows by name (ale-py, MiniGrid, dm_control), and if no recorded
        argument of its constructor could name a file.
        """
        if env is not None:
            return find_environment(env)
        recorded = self.header["environment"]
        env_id = recorded["id"]
        if not recorded["is_registered"] or env_id is None or ":" in env_id:
            return None
        if _names_a_file(self.header["config"].get("env_kwargs", {})):
            return None
        if env_id in gym.registry or is_of_a_known_package(env_id):
            return find_environment(env_id)
        return None

    def is_own(self, env: EnvLike | None) -> bool:
        """Whether ``env`` is what the model was trained on, as far as its name says."""
        recorded = self.header["environment"]
        named = isinstance(env, str) and os.path.basename(env)
        return env is None or named in {os.path.basename(str(recorded[x])) for x in ("name", "id")}

    def config(self, settings: Mapping[str, Any]) -> Config:
        """Return the recorded settings under ``settings``; recorded callables are not restored."""
        recorded = dict(self.header["config"])
        callables = [n for n, v in recorded.items() if isinstance(v, dict) and "callable" in v]
        for name in callables:
            log.warning(
                "the callable %s=%s is not in the model file: the default is taken",
                plainly(name),
                plainly(recorded.pop(name)["callable"]),
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
        _check_header(header)
        _check_factory(path, header["network"]["features"], features)
        stored = {n: tensors.pop(n) for n in list(tensors) if n.startswith(PREFIX)}
        everything = tensors | stored
        config = _config(header)
        observations = _space(header["observation_space"], everything)
        actions = _space(header["action_space"], everything)
        policy = rebuild_policy(config, observations, actions, tensors, features)
        check_self_test(policy, header["self_test"], stored)
    except Refused as refused:
        raise ModelFileError(
            f"cannot use model file {os.fspath(path)!r}: {refused.reason}; {refused.remedy}"
        ) from refused
    return LoadedModel(policy, header)


def _check_header(header: Mapping[str, Any]) -> None:
    """See that the header has all its fields, of their types; what they hold is checked later."""
    types: dict[str, type | tuple[type, ...]] = {
        "algorithm": str, "environment": dict, "observation_space": dict, "action_space": dict,
        "network": dict, "self_test": dict, "config": dict, "evaluation": (dict, type(None)),
    }  # fmt: skip
    for key, kind in types.items():
        if key not in header or not isinstance(header[key], kind):
            raise Refused(f"its header has no {key}, or not of its kind", _FOREIGN)
    environment, network = header["environment"], header["network"]
    if (
        header["algorithm"] not in CONFIGS
        or not _is_word(environment.get("name"))
        or not (environment.get("id", 0) is None or _is_word(environment.get("id")))
        or not isinstance(environment.get("is_registered"), bool)
        or not (network.get("features", 0) is None or _is_word(network.get("features")))
    ):
        raise Refused("its header names no algorithm, environment or features factory", _FOREIGN)


def _is_word(text: Any) -> bool:
    """Whether a name from a file may stand in a sentence."""
    return isinstance(text, str) and 0 < len(text) <= 200 and text.isprintable()


def _check_factory(
    path: str | os.PathLike[str], recorded: str | None, features: FeaturesFactory | None
) -> None:
    if (recorded is None) != (features is None):
        wanted = (
            f"with the features factory {recorded}: give policy={recorded.rpartition('.')[2]}"
            if recorded
            else "without a features factory: leave policy out"
        )
        raise ConfigError(f"{os.fspath(path)} was made {wanted}")


def _config(header: Mapping[str, Any]) -> Config:
    try:
        return LoadedModel(None, header).config({})  # type: ignore[arg-type]
    except Exception as error:  # values of any type may stand in it
        raise Refused(f"its config is none ({plainly(first_line(error))})", _FOREIGN) from error


def _space(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> gym.Space[Any]:
    """Rebuild a space, which can have no more numbers than there are in the tensors."""
    try:
        return space_from_json(described, sum(tensor.numel() for tensor in tensors.values()))
    except ValueError as error:
        raise Refused(f"it has a space that is none ({first_line(error)})", _FOREIGN) from error


def _names_a_file(value: Any) -> bool:
    """Whether an argument from a file, or a part of it, looks like the name of a file or module."""
    if isinstance(value, dict):
        return any(map(_names_a_file, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_names_a_file, value))
    return isinstance(value, str) and _PATH_LIKE.search(value) is not None


def unnamed_environment(path: str | os.PathLike[str], name: str) -> ConfigError:
    """The error of a model or run whose environment has to be given again: what to type."""
    is_typed = ":" in name or name in gym.registry
    return ConfigError(
        f"{os.fspath(path)} was trained on {name}, which is not imported because a file says so: "
        f"add --env {name if is_typed else 'FILE.py:FACTORY'}"
    )


def versions() -> dict[str, str]:
    """Return the versions of what computes here."""
    names = ("upslope", "torch", "gymnasium", "numpy")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def _name(function: Any) -> str:
    qualname = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '?')}.{qualname}"
