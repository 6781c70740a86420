"""Acting at the speed of NumPy: a policy's outputs for one row of observations, without torch.

For plain stacks of Linear and Tanh or ReLU the layers run on NumPy *views* of the very parameters
that training moves, so nothing is copied and nothing can be stale; every other network runs as the
module it is. Both give the same numbers up to rounding, and a test holds them together.
"""

from __future__ import annotations

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

    @torch.no_grad()  # not inference mode: what a module keeps, an update may differentiate through
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
        self._inputs = np.zeros(0, self._dtype)
        self._normalizer: Any = policy.obs_normalizer
        if self._normalizer is not None:
            moments: Any = self._normalizer.moments
            self._mean, self._std = moments.mean.numpy(), moments.std().numpy()
            self._normalised = np.zeros((n_envs, *self._mean.shape), self._mean.dtype)
        self._first: list[Any] = []  # activations before any layer
        self._layers: list[tuple[NDArray[Any], Any, list[Any], NDArray[Any]]] = []
        for layer in layers[:-1]:
            if isinstance(layer, nn.Linear):
                buffer = np.zeros((n_envs, layer.out_features), self._dtype)
                self._layers.append((*_weights(layer), [], buffer))
            else:
                functions = self._layers[-1][2] if self._layers else self._first
                functions.append(np.tanh if isinstance(layer, nn.Tanh) else _relu)
        head = layers[-1]
        assert isinstance(head, nn.Linear)
        self._weight, self._bias = _weights(head)

    def __call__(
        self, obs: Tree, out: NDArray[Any], episode_start: NDArray[np.bool_] | None = None
    ) -> None:
        x = obs
        if self._normalizer is not None:
            clip, x = self._normalizer.clip, self._normalised
            np.subtract(obs, self._mean, out=x)
            np.divide(x, self._std, out=x)
            np.maximum(x, -clip, out=x)
            np.minimum(x, clip, out=x)
        if x.dtype != self._dtype or not x.flags.c_contiguous:
            x = self._cast(x)
        for function in self._first:  # not in place: they are observations
            x = function(x)
        for weight, bias, functions, buffer in self._layers:
            np.dot(x, weight, buffer)
            if bias is not None:
                np.add(buffer, bias, buffer)
            for function in functions:
                function(buffer, buffer)
            x = buffer
        np.dot(x, self._weight, out)
        np.add(out, self._bias, out)

    def _cast(self, x: NDArray[Any]) -> NDArray[Any]:
        """``x`` in the policy's dtype; what becomes infinite is refused with its rollout."""
        if self._inputs.shape != x.shape:
            self._inputs = np.zeros(x.shape, self._dtype)
        with np.errstate(over="ignore"):
            self._inputs[...] = x
        return self._inputs


def _is_alike(state: Tree, blank: Tree) -> bool:
    """Whether one state has the structure, shapes and dtypes of another."""
    given, wanted = leaves(state), leaves(blank)
    return len(given) == len(wanted) and all(
        x.shape == y.shape and x.dtype == y.dtype for x, y in zip(given, wanted, strict=True)
    )


def _weights(layer: nn.Linear) -> tuple[NDArray[Any], Any]:
    """Views of a layer's parameters for ``x W' + b``: W' and b, or None without a bias."""
    given: Any = layer.bias  # None without one, though torch annotates a tensor
    return layer.weight.detach().numpy().T, None if given is None else given.detach().numpy()


def _relu(x: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
    rectified: NDArray[Any] = np.maximum(x, 0, out=out)
    return rectified
