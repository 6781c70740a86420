"""Acting at the speed of NumPy: a policy's outputs for one row of observations, without torch.

For plain stacks of Linear and Tanh or ReLU the layers run on NumPy *views* of the very parameters
that training moves, so nothing is copied and nothing can be stale; every other network runs as the
module it is. Both give the same numbers up to rounding, and a test holds them together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from upslope.policies.actor_critic import ActorCritic
from upslope.trees import Tree, leaves, map_tree


class Actor(Protocol):
    """``actor(obs, out, episode_start)``: raw ``obs [B, ...]`` to outputs, written into ``out``.

    ``out`` is ``[B, n_outputs]``; ``episode_start [B]`` blanks the memory of those rows.
    """

    state: Tree  # [B, ...] what the policy remembers before the next row; () without memory

    def __call__(
        self, obs: Tree, out: NDArray[Any], episode_start: NDArray[np.bool_] | None = None
    ) -> None: ...


def make_actor(policy: ActorCritic, n_envs: int, state: Tree = ()) -> Actor:
    """Return the fastest actor of a policy.

    It is good until the policy's weights or statistics change place: make one per rollout.

    Args:
        policy: acts; nothing of it changes.
        n_envs: rows of every observation.
        state: what the policy remembers before the first row; blank where it does not fit.
    """
    layers = [*policy.actor, policy.actor_head]
    plain = all(type(layer) in (nn.Linear, nn.Tanh, nn.ReLU) for layer in layers)
    if plain and policy.device.type == "cpu" and not policy.has_memory:
        return _NumpyActor(policy, layers, n_envs)
    return _ModuleActor(policy, n_envs, state)


class _ModuleActor:
    def __init__(self, policy: ActorCritic, n_envs: int, state: Tree = ()) -> None:
        self._policy = policy
        blank = policy.blank_state(n_envs)
        self.state = state if _is_alike(state, blank) else blank

    @torch.no_grad()
    def __call__(
        self, obs: Tree, out: NDArray[Any], episode_start: NDArray[np.bool_] | None = None
    ) -> None:
        policy = self._policy
        tensors = map_tree(lambda x: torch.as_tensor(x, device=policy.device), obs)
        begins = np.zeros(len(out), dtype=bool) if episode_start is None else episode_start
        start = torch.from_numpy(begins).to(policy.device)
        outputs, self.state = policy.step(tensors, self.state, start)
        out[:] = outputs.cpu().numpy()


class _NumpyActor:
    """Dot products and activations written into buffers made once a rollout."""

    state: Tree = ()

    def __init__(self, policy: ActorCritic, layers: list[nn.Module], n_envs: int) -> None:
        self._dtype = np.float32 if policy.dtype == torch.float32 else np.float64
        self._normalizer: Any = policy.obs_normalizer
        if self._normalizer is not None:
            moments: Any = self._normalizer.moments
            self._mean, self._std = moments.mean.numpy(), moments.std().numpy()
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

    def __call__(
        self, obs: Tree, out: NDArray[Any], episode_start: NDArray[np.bool_] | None = None
    ) -> None:
        x = obs
        if self._normalizer is not None:
            clip = self._normalizer.clip
            x = np.minimum(np.maximum((obs - self._mean) / self._std, -clip), clip)
        if x.dtype != self._dtype:
            with np.errstate(over="ignore"):  # what becomes infinite is refused with its rollout
                x = x.astype(self._dtype)
        x = np.ascontiguousarray(x)
        for step in self._steps:
            x = step(x)
        np.dot(x, self._weight, out=out)
        np.add(out, self._bias, out=out)


def _is_alike(state: Tree, blank: Tree) -> bool:
    """Whether one state has the structure, shapes and dtypes of another."""
    given, wanted = leaves(state), leaves(blank)
    return len(given) == len(wanted) and all(
        x.shape == y.shape and x.dtype == y.dtype for x, y in zip(given, wanted, strict=True)
    )


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
