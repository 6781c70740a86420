"""Tensors and a config from a file -> the policy that they are, at no more memory than they take.

A config from a stranger may describe a network of any size. So the policy is first laid out without
memory, on torch's meta device, and held against the tensors that the file really has: every name,
shape and dtype. Only then do numbers come in, the file's own: no weight is ever initialised.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from upslope.config import Config
from upslope.errors import UnsupportedSpaceError, first_line
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.encoders import FeaturesFactory
from upslope.policies.make import make_policy
from upslope.policies.observations import parts
from upslope.runs.safetensors_header import Refused
from upslope.spaces import choice_sizes

PADDED = 2**22  # entries of a table of choices that any model may have, however few its weights
_FOREIGN = "it was not written by this library as it is"


def rebuild_policy(
    config: Config,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    tensors: Mapping[str, Tensor],
    features: FeaturesFactory | None = None,
) -> ActorCritic:
    """Return the policy of a config with the weights and statistics ``tensors``, on the CPU.

    Args:
        config, observation_space, action_space: as the file describes them.
        tensors: all of the policy's, by name, and no others.
        features: the user's factory, which is called; its own tensors are checked afterwards.

    Raises:
        Refused: the tensors are not those of such a policy, or hold a weight that is not finite.
        ConfigError: the factory is none that a policy can use.
    """
    spaces = (observation_space, action_space)
    check_sizes(config, *spaces, tensors, features is not None)
    if features is None:
        policy = _laid_out(config, *spaces)
        _check_tensors(_shapes(policy), tensors)
        # Copies: torch's own memory is aligned, and bits may hang on that.
        policy.load_state_dict({n: t.clone() for n, t in tensors.items()}, assign=True)
        if policy.reward_normalizer is not None:
            policy.reward_normalizer.carry = torch.zeros(0, dtype=torch.float64)
    else:
        _check_beside_features(config, *spaces, tensors)
        policy = make_policy(config, *spaces, features)
        _check_tensors(_shapes(policy), tensors, "give the features factory it was made with")
        policy.load_state_dict(tensors)
    check_finite(policy)
    return policy


def check_sizes(
    config: Config,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    tensors: Mapping[str, Tensor],
    has_features: bool,
) -> None:
    """Refuse layers and tables of choices that the tensors could not belong to.

    One-hot inputs and outputs have a column or row of weights each. A table of several choices is
    padded to the longest, which one long choice among many short ones could abuse.
    """
    numbers = sum(tensor.numel() for tensor in tensors.values())
    read = _read_parts(observation_space)
    seen = 0 if has_features else sum(sum(choice_sizes(part)) for part in read)
    choices = choice_sizes(action_space)
    padded = len(choices) * max(choices, default=0)
    if seen > numbers or sum(choices) > numbers or padded > max(numbers, PADDED):
        raise Refused("its spaces have more choices than its network has weights", _FOREIGN)
    if max(map(len, config.net_arch.values())) > len(tensors):
        raise Refused("its config has more layers than it has tensors", _FOREIGN)


def _read_parts(space: gym.Space[Any]) -> list[gym.Space[Any]]:
    try:
        read = [part for _, part in parts(space)]
    except UnsupportedSpaceError as error:
        raise Refused(f"its spaces are for no policy ({first_line(error)})", _FOREIGN) from error
    if not read:
        raise Refused("its observation space has no part that a network reads", _FOREIGN)
    return read


def check_finite(policy: ActorCritic) -> None:
    """Raise :class:`Refused` where a weight is not a finite number."""
    for name, parameter in policy.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise Refused(f"its tensor {name!r:.80} holds numbers that are not finite")


def _laid_out(
    config: Config,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    features: FeaturesFactory | None = None,
) -> ActorCritic:
    """Return a policy without numbers, of shapes alone."""
    try:
        with torch.device("meta"), _ShapesOfImages():
            return make_policy(config, observation_space, action_space, features)
    except Exception as error:  # nothing of the user's runs here: it can only be the file's fault
        raise Refused(
            f"no policy can be made of its config and spaces ({first_line(error)})", _FOREIGN
        ) from error


def _check_tensors(
    expected: Mapping[str, tuple[torch.Size, torch.dtype]],
    tensors: Mapping[str, Tensor],
    remedy: str = _FOREIGN,
) -> None:
    """Hold the names, shapes and dtypes of tensors against those of a policy."""
    for name, (shape, dtype) in expected.items():
        if name not in tensors:
            raise Refused(f"it lacks the tensor {name!r:.80}", remedy)
        stored = tensors[name]
        if (stored.shape, stored.dtype) != (shape, dtype):
            raise Refused(
                f"its tensor {name!r:.80} is {_described(stored.shape, stored.dtype)} where its"
                f" config asks for {_described(shape, dtype)}",
                remedy,
            )
    surplus = next((name for name in tensors if name not in expected), None)
    if surplus is not None:
        raise Refused(f"it has the surplus tensor {surplus!r:.80}", remedy)


def _check_beside_features(
    config: Config,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    tensors: Mapping[str, Tensor],
) -> None:
    """Hold all layers but the user's against the file, before the user's code runs.

    What the user's module gives is not known yet, so that the layers which read it, whose shapes
    follow its width, are compared without their last axis.
    """
    plain = dataclasses.replace(config, norm_obs=False)  # no bigger than the space
    spaces = (observation_space, action_space)
    one = _shapes(_laid_out(plain, *spaces, lambda _: _Stub(1)))
    two = _shapes(_laid_out(plain, *spaces, lambda _: _Stub(2)))
    compared: dict[str, tuple[torch.Size, torch.dtype]] = {}
    for name, (shape, dtype) in one.items():
        if shape != two[name][0] and name in tensors and tensors[name].ndim == len(shape):
            shape = torch.Size([*shape[:-1], tensors[name].shape[-1]])
        compared[name] = (shape, dtype)
    _check_tensors(compared, {name: tensors[name] for name in compared if name in tensors})


def _shapes(policy: ActorCritic) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (t.shape, t.dtype) for name, t in policy.state_dict().items()}


def _described(shape: torch.Size, dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


class _Stub(nn.Module):
    """A features module of a given width, without weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, inputs: Any) -> Tensor:
        return torch.zeros(4, self.width, device="cpu")


class _ShapesOfImages(TorchFunctionMode):
    """The layers of image networks on the meta device, in arithmetic.

    Torch's own way gives the same shapes, and imports a compiler for it, which takes a second.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d:
            images, weight, _, stride, padding = args[:5]
            return _windows(images, len(weight), weight.shape[2:], stride, padding)
        if func is torch.max_pool2d:
            images, size, stride, padding = args[0], args[1], kwargs["stride"], kwargs["padding"]
            return _windows(images, images.shape[1], (size,) * 2, (stride,) * 2, (padding,) * 2)
        if func is nn.functional.relu or func is Tensor.relu:
            return args[0]
        return func(*args, **kwargs)


def _windows(images: Tensor, channels: int, sizes: Any, strides: Any, paddings: Any) -> Tensor:
    """Room for ``[N, channels, ...]``, one place for each window that fits."""
    sides = [
        (n + 2 * p - k) // s + 1
        for n, k, s, p in zip(images.shape[2:], sizes, strides, paddings, strict=True)
    ]
    return images.new_empty(len(images), channels, *sides)
