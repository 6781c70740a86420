"""Observations to features: the layers between an observation space and the heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from upslope.errors import ConfigError, UnsupportedSpaceError

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
FeaturesFactory = Callable[[gym.Space[Any]], nn.Module]


def observation_shape(space: gym.Space[Any]) -> tuple[int, ...]:
    """Return the shape of one observation of a space that a plain network can read.

    Raises:
        UnsupportedSpaceError: naming the space and what is supported.
    """
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and space.shape[0] > 0:
        return space.shape
    raise UnsupportedSpaceError(
        f"the observation space {space} is not supported: one-dimensional Box spaces are; "
        "wrap the environment with gymnasium.wrappers.FlattenObservation"
    )


def linear(
    inputs: int, outputs: int, gain: float | None, generator: torch.Generator, dtype: torch.dtype
) -> nn.Linear:
    """Return a layer initialised from ``generator`` alone.

    Its weights are orthogonal with ``gain``, or follow torch's own rule where that is ``None``.
    """
    # Made without values: torch's own initialisation would draw from the global generator.
    layer = nn.Linear(inputs, outputs, device="meta", dtype=dtype).to_empty(device="cpu")
    with torch.no_grad():
        if gain is None:
            bound = 1 / math.sqrt(inputs)
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.uniform_(-bound, bound, generator=generator)
        else:
            nn.init.orthogonal_(layer.weight, gain, generator=generator)
            layer.bias.zero_()
    return layer


def mlp(
    inputs: int,
    widths: Sequence[int],
    activation: str,
    ortho_init: bool,
    generator: torch.Generator,
    dtype: torch.dtype,
) -> nn.Sequential:
    """Return layers ``inputs -> widths[0] -> ... -> widths[-1]``, an activation after each."""
    layers: list[nn.Module] = []
    for width in widths:
        gain = math.sqrt(2) if ortho_init else None
        layers += [linear(inputs, width, gain, generator, dtype), ACTIVATIONS[activation]()]
        inputs = width
    return nn.Sequential(*layers)


def user_features(
    factory: FeaturesFactory, space: gym.Space[Any], seed: int, dtype: torch.dtype
) -> tuple[nn.Module, int]:
    """Return the module of a user's ``factory(observation_space)``, and its width.

    The factory runs under a seeded global RNG, which is then put back as it was.

    Raises:
        ConfigError: if it is no module, does not give ``[N, features]``, or behaves differently in
            train and eval mode (dropout, batch statistics), which would move the policy between
            collecting and updating.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # noqa: TID251 - inside fork_rng: a user's module reads no other
        module = factory(space)
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"policy={factory!r} returned {type(module).__name__}, not a torch.nn.Module: "
            "return the features module"
        )
    module = module.to(dtype)
    low = np.zeros((4, *(space.shape or ())), dtype=np.float64)
    probe = torch.from_numpy(low + np.random.default_rng(seed).normal(size=low.shape)).to(dtype)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        training, evaluating = module.train()(probe), module.eval()(probe)
    if not isinstance(training, Tensor) or training.ndim != 2 or len(training) != 4:
        raise ConfigError(
            f"policy={factory!r} must map [N, {space.shape}] observations to [N, features]: "
            "flatten its output"
        )
    if not torch.equal(training, evaluating):
        raise ConfigError(
            f"policy={factory!r} gives other outputs in train mode than in eval mode: remove "
            "dropout and batch normalisation, the ratio of new to old probabilities would not "
            "start at 1"
        )
    return module, training.shape[1]
