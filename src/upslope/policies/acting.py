"""Acting at the speed of NumPy: a policy's outputs for one row of observations, without torch.

For plain stacks of Linear and Tanh or ReLU the layers run on NumPy *views* of the very parameters
that training moves, so nothing is copied and nothing can be stale; every other network runs as the
module it is. Both give the same numbers up to rounding, and a test holds them together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from upslope.policies.actor_critic import ActorCritic
from upslope.trees import Tree, map_tree

Actor = Callable[[Tree, NDArray[Any]], None]


def make_actor(policy: ActorCritic, n_envs: int) -> Actor:
    """Return ``actor(obs, out)``: raw ``obs [B, ...]`` to the outputs, written into ``out [B, k]``.

    It is good until the policy's weights or statistics change place: make one per rollout.
    """
    layers = [*policy.actor, policy.actor_head]
    plain = all(type(layer) in (nn.Linear, nn.Tanh, nn.ReLU) for layer in layers)
    if plain and policy.device.type == "cpu":
        return _NumpyActor(policy, layers, n_envs)
    return _ModuleActor(policy)


class _ModuleActor:
    def __init__(self, policy: ActorCritic) -> None:
        self._policy = policy

    @torch.no_grad()
    def __call__(self, obs: Tree, out: NDArray[Any]) -> None:
        policy = self._policy
        tensors = map_tree(lambda x: torch.as_tensor(x, device=policy.device), obs)
        out[:] = policy.outputs(policy.prepare(tensors))[0].cpu().numpy()


class _NumpyActor:
    """Dot products and activations written into buffers made once a rollout."""

    def __init__(self, policy: ActorCritic, layers: list[nn.Module], n_envs: int) -> None:
        self._dtype = np.float32 if policy.dtype == torch.float32 else np.float64
        self._normalizer = policy.obs_normalizer
        if self._normalizer is not None:
            self._mean = self._normalizer.moments.mean.numpy()
            self._std = self._normalizer.moments.std().numpy()
        self._steps: list[Callable[[NDArray[Any]], Any]] = []
        buffer: NDArray[Any] | None = None
        for layer in layers[:-1]:
            if isinstance(layer, nn.Linear):
                buffer = np.zeros((n_envs, layer.out_features), self._dtype)
                self._steps.append(_dense(layer, buffer))
            else:  # in place, except on the observations themselves
                function = np.tanh if isinstance(layer, nn.Tanh) else _relu
                self._steps.append(partial(function, out=buffer))
        head = layers[-1]
        assert isinstance(head, nn.Linear)
        assert head.bias is not None
        self._weight, self._bias = head.weight.detach().numpy().T, head.bias.detach().numpy()

    def __call__(self, obs: NDArray[Any], out: NDArray[Any]) -> None:
        x = obs
        if self._normalizer is not None:
            clip = self._normalizer.clip
            x = np.minimum(np.maximum((obs - self._mean) / self._std, -clip), clip)
        x = np.ascontiguousarray(x, dtype=self._dtype)
        for step in self._steps:
            x = step(x)
        np.dot(x, self._weight, out=out)
        np.add(out, self._bias, out=out)


def _dense(layer: nn.Linear, out: NDArray[Any]) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return ``x -> x W' + b`` on views of the layer's parameters, written into ``out``."""
    weight = layer.weight.detach().numpy().T
    given: Any = layer.bias  # None without one, though torch annotates a tensor
    bias = None if given is None else given.detach().numpy()

    def run(x: NDArray[Any]) -> NDArray[Any]:
        np.dot(x, weight, out=out)
        if bias is not None:
            np.add(out, bias, out=out)
        return out

    return run


def _relu(x: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
    rectified: NDArray[Any] = np.maximum(x, 0, out=out)
    return rectified
