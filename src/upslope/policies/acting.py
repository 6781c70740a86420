"""Acting at the speed of NumPy: a policy's outputs for one row of observations, without torch.

Plain stacks of Linear and Tanh or ReLU run on NumPy (``plain.py``), every other network as the
module it is. Both give the same numbers up to rounding, and a test holds them together.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from upslope.policies.actor_critic import ActorCritic
from upslope.policies.plain import PlainInputs, PlainPolicy, plain_policy
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
    plain = plain_policy(policy)
    return _ModuleActor(policy, n_envs, state) if plain is None else _NumpyActor(policy, plain)


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
    """A plain stack on NumPy views of the policy's parameters."""

    state: Tree = ()

    def __init__(self, policy: ActorCritic, plain: PlainPolicy) -> None:
        self._prepare, self._stack = PlainInputs(policy), plain.actor

    def __call__(
        self, obs: Tree, out: NDArray[Any], episode_start: NDArray[np.bool_] | None = None
    ) -> None:
        self._stack(self._prepare(obs), out)


def _is_alike(state: Tree, blank: Tree) -> bool:
    """Whether one state has the structure, shapes and dtypes of another."""
    given, wanted = leaves(state), leaves(blank)
    return len(given) == len(wanted) and all(
        x.shape == y.shape and x.dtype == y.dtype for x, y in zip(given, wanted, strict=True)
    )
