"""Plain stacks of Linear, Tanh and ReLU by NumPy: few rows cost torch more calls than arithmetic.

The layers run on NumPy *views* of the very parameters that training moves, so nothing is copied and
nothing can be stale.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from upslope.policies.actor_critic import ActorCritic

# Rows x inputs x outputs of a product up to which NumPy's OpenBLAS stays on one thread; its others
# would go on spinning for some hundredths of a second, on cores that are somebody else's.
ONE_THREAD = 4 * 2**16
LEAST_ROWS = 64  # of a product that pays


class PlainStack:
    """Layers as one function of rows ``[N, inputs]``, a block of rows at a time.

    Args:
        layers: Linear, Tanh or ReLU; the last one is Linear.
        dtype: of the parameters.
    """

    def __init__(self, layers: Sequence[nn.Module], dtype: Any) -> None:
        widest = _widest(layers)
        self.is_narrow = widest * LEAST_ROWS <= ONE_THREAD
        self._block = max(LEAST_ROWS, ONE_THREAD // widest)
        self._first: list[Any] = []  # activations before any layer
        self._layers: list[tuple[NDArray[Any], Any, list[Any]]] = []
        self._rows: list[NDArray[Any]] = []  # what each layer is written into
        for layer in layers[:-1]:
            if isinstance(layer, nn.Linear):
                self._rows.append(np.empty((self._block, layer.out_features), dtype))
                self._layers.append((*_weights(layer), []))
            else:
                functions = self._layers[-1][2] if self._layers else self._first
                functions.append(np.tanh if isinstance(layer, nn.Tanh) else _relu)
        self._buffers, self._n = self._rows, self._block
        head = layers[-1]
        assert isinstance(head, nn.Linear)
        self._weight, self._bias = _weights(head)

    def __call__(self, x: NDArray[Any], out: NDArray[Any]) -> None:
        """Write what the rows ``x`` become into ``out [N, outputs]``."""
        n, block = len(x), self._block
        if n > block:
            for first in range(0, n, block):
                self(x[first : first + block], out[first : first + block])
            return
        if n != self._n:
            self._buffers, self._n = [rows[:n] for rows in self._rows], n
        for function in self._first:  # not in place: they are observations
            x = function(x)
        for (weight, bias, functions), buffer in zip(self._layers, self._buffers, strict=True):
            np.dot(x, weight, buffer)
            if bias is not None:
                np.add(buffer, bias, buffer)
            for function in functions:
                function(buffer, buffer)
            x = buffer
        np.dot(x, self._weight, out)
        np.add(out, self._bias, out)


class PlainInputs:
    """Raw observations ``[N, d]`` to inputs of a plain stack: normalised, in the policy's dtype.

    Like the policy's ``prepare``; it is good until the policy's statistics move.
    """

    def __init__(self, policy: ActorCritic) -> None:
        self._cast = self._normalised = np.empty(0, numpy_dtype(policy))
        self._normalizer: Any = policy.obs_normalizer
        if self._normalizer is not None:
            moments: Any = self._normalizer.moments
            self._mean, self._std = moments.mean.numpy(), moments.std().numpy()

    def __call__(self, obs: NDArray[Any]) -> NDArray[Any]:
        """Inputs ``[N, d]``, good until the next call: ``obs`` itself where nothing is changed."""
        x = obs
        if self._normalizer is not None:
            if self._normalised.shape != obs.shape:
                self._normalised = np.empty(obs.shape, self._mean.dtype)
            clip, x = self._normalizer.clip, self._normalised
            np.subtract(obs, self._mean, out=x)
            np.divide(x, self._std, out=x)
            np.maximum(x, -clip, out=x)
            np.minimum(x, clip, out=x)
        cast = self._cast
        if x.dtype == cast.dtype and x.flags.c_contiguous:
            return x
        if cast.shape != x.shape:
            cast = self._cast = np.empty(x.shape, cast.dtype)
        if x.dtype == cast.dtype:
            cast[...] = x
        else:
            with np.errstate(over="ignore"):  # what becomes infinite is refused with its rollout
                cast[...] = x
        return cast


class PlainPolicy:
    """The networks of a policy as plain stacks; ``critic`` is None where it is none."""

    def __init__(self, policy: ActorCritic) -> None:
        dtype = numpy_dtype(policy)
        trunk = policy.actor if policy.shared_network else policy.critic
        critic = [*trunk, policy.critic_head]
        self.actor = PlainStack([*policy.actor, policy.actor_head], dtype)
        self.critic = PlainStack(critic, dtype) if _are_plain(critic) else None
        self._held, self._places = ref(policy.held), _places(policy)  # keep no policy alive

    def is_current(self, policy: ActorCritic) -> bool:
        """Whether the policy's parameters still are what the stacks are views of."""
        return policy.held is self._held() and _places(policy) == self._places


def plain_policy(policy: ActorCritic) -> PlainPolicy | None:
    """Return the policy's networks by NumPy, None where the actor is no plain stack on the CPU."""
    found = _known.policies.get(policy)
    if found is not None and found.is_current(policy):
        return found
    is_plain = _are_plain([*policy.actor, policy.actor_head])
    if not is_plain or policy.device.type != "cpu" or policy.has_memory:
        return None
    made = _known.policies[policy] = PlainPolicy(policy)
    return made


class _Known(threading.local):
    """The stacks of each policy, and of each thread: a call writes into their buffers."""

    def __init__(self) -> None:
        self.policies: WeakKeyDictionary[ActorCritic, PlainPolicy] = WeakKeyDictionary()


_known = _Known()


def numpy_dtype(policy: ActorCritic) -> Any:
    """NumPy's name of the policy's dtype."""
    return np.float32 if policy.dtype == torch.float32 else np.float64


def _places(policy: ActorCritic) -> list[int]:
    return [parameter.data_ptr() for parameter in policy.held.parameters.values()]


def _are_plain(layers: Sequence[nn.Module]) -> bool:
    return all(type(layer) in (nn.Linear, nn.Tanh, nn.ReLU) for layer in layers)


def _widest(layers: Sequence[nn.Module]) -> int:
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    return max(layer.in_features * layer.out_features for layer in linear)


def _weights(layer: nn.Linear) -> tuple[NDArray[Any], Any]:
    """Views of a layer's parameters for ``x W' + b``: W' and b, or None without a bias."""
    given: Any = layer.bias  # None without one, though torch annotates a tensor
    return layer.weight.detach().numpy().T, None if given is None else given.detach().numpy()


def _relu(x: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
    rectified: NDArray[Any] = np.maximum(x, 0, out=out)
    return rectified
