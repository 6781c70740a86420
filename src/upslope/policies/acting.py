"""Acting at the speed of NumPy: a policy's outputs for one row of observations, without torch.

For plain stacks of Linear and Tanh or ReLU the layers run on NumPy *views* of the very parameters
that training moves, so nothing is copied and nothing can be stale; every other network runs as the
module it is. Both give the same numbers up to rounding, and a test holds them together.
"""

from __future__ import annotations

from collections.abc import Callable
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
        self._steps: list[tuple[Any, Any, Any, Any]] = []
        for layer in layers:
            if isinstance(layer, nn.Linear):
                weight, bias = layer.weight.detach().numpy().T, layer.bias.detach().numpy()
                buffer = np.empty((n_envs, weight.shape[1]), self._dtype)
                self._steps.append((weight, bias, buffer, None))
            else:
                activation = np.tanh if isinstance(layer, nn.Tanh) else _relu
                self._steps[-1] = (*self._steps[-1][:3], activation)

    def __call__(self, obs: NDArray[Any], out: NDArray[Any]) -> None:
        x = obs
        if self._normalizer is not None:
            clip = self._normalizer.clip
            x = np.minimum(np.maximum((obs - self._mean) / self._std, -clip), clip)
        x = np.ascontiguousarray(x, dtype=self._dtype)
        for weight, bias, buffer, activation in self._steps[:-1]:
            np.dot(x, weight, out=buffer)
            buffer += bias
            if activation is not None:
                activation(buffer, out=buffer)
            x = buffer
        weight, bias, _, _ = self._steps[-1]
        np.dot(x, weight, out=out)
        out += bias


def _relu(x: NDArray[Any], out: NDArray[Any]) -> NDArray[Any]:
    return np.maximum(x, 0, out=out)
