"""What a rollout is written into while it is collected: rows made beforehand, handed over once."""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from upslope.envs.episodes import Environments, Episode
from upslope.errors import ConfigError, NonFiniteError
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.plain import numpy_dtype
from upslope.spaces import outside
from upslope.trees import Tree, leaves, map_tree, take, to_torch


def check_buffer(envs: Environments, n_steps: int) -> None:
    """Raise unless the observations of ``n_steps`` rows fit the memory that a rollout may take.

    Raises:
        ConfigError: with the arithmetic.
    """
    each = envs.observation_bytes
    wanted = n_steps * envs.n_envs * each
    allowed = _memory() / 2 if envs.max_buffer is None else envs.max_buffer * 2**30
    if wanted > allowed:
        raise ConfigError(
            f"a rollout of {n_steps} steps x {envs.n_envs} environments x {each:,} bytes an "
            f"observation takes {wanted / 2**30:.1f} GiB, and {allowed / 2**30:.1f} GiB are "
            "allowed: lower n_steps or n_envs, make observations smaller, or set --max-buffer"
        )


class Recorder:
    """Preallocated rows, filled in place while collecting and handed over once."""

    def __init__(self, envs: Environments, policy: ActorCritic, capacity: int) -> None:
        self._envs, self._policy, self._version = envs, policy, policy.version
        self._arrays: dict[str, Any] = {}
        self._capacity = 0
        self._finals: list[tuple[int, NDArray[np.int64], Tree]] = []
        self._episodes: list[Episode] = []
        self._grow(max(1, capacity))

    def begin_row(self, t: int) -> NDArray[Any]:
        """Store what the next action answers; return the row that the network's outputs go to."""
        if t == self._capacity:
            self._grow(2 * t)
        envs, arrays = self._envs, self._arrays
        _put(arrays["obs"], t, envs.obs)
        if envs.mask is not None:
            arrays["mask"][t] = envs.mask
        arrays["episode_step"][t] = envs.episode_step
        arrays["episode"][t] = envs.number
        return arrays["outputs"][t]  # type: ignore[no-any-return]

    def end_row(self, t: int, actions: Tree, row: Any, finished: list[Episode]) -> None:
        """Store what followed."""
        arrays = self._arrays
        _put(arrays["actions"], t, actions)
        arrays["rewards"][t] = row.rewards
        arrays["terminated"][t] = row.terminated
        arrays["truncated"][t] = row.truncated
        arrays["valid"][t] = row.valid
        if row.final_obs is not None:
            self._finals.append((t, row.ended, row.final_obs))
            self._episodes += finished
        for i in row.lost:  # drop what this rollout has of the episode
            column = arrays["episode"][: t + 1, i]
            arrays["valid"][: t + 1, i] &= column != column[t]

    def freeze(self, steps: int, state: Tree) -> dict[str, Any]:
        """Cut the arrays to length and hand them over as the fields of a rollout.

        Tensors are on the policy's device; ``state [B, ...]`` is what the policy remembered before
        the first row.

        Raises:
            NonFiniteError, EnvironmentFaultError: for numbers that nothing may be learned from.
        """
        policy, device = self._policy, self._policy.device
        arrays = {key: map_tree(lambda x: x[:steps], tree) for key, tree in self._arrays.items()}
        valid, happened = arrays["valid"], arrays["actions"]
        if not valid.all():
            arrays["terminated"] &= valid
            arrays["truncated"] &= valid
            arrays["episode"][~valid] = -1
            happened = take(happened, valid)
        last_obs = map_tree(np.array, self._envs.obs)
        limit = float(torch.finfo(policy.dtype).max)
        _check_finite(arrays["rewards"], "reward", limit)
        for leaf in leaves(arrays["obs"]):
            _check_finite(leaf, "observation", limit)
        rows, final_obs = self._final(last_obs)
        said = outside(self._envs.observation_space, arrays["obs"])
        if said is not None:
            self._envs.report_outside(said)
        for leaf in leaves(final_obs):
            _check_finite(leaf, "final observation", limit, rows)
        for leaf in leaves(last_obs):
            _check_finite(leaf[None], "observation", limit, first=steps)
        outputs = to_torch(arrays.pop("outputs"), device)
        share = policy.actions.clipped_share(happened)
        tensors = {key: to_torch(tree, device) for key, tree in arrays.items()}
        with torch.no_grad():
            distribution = policy.actions.distribution(outputs, tensors.get("mask"))
            log_prob = distribution.log_prob(tensors["actions"])
        return {
            **tensors,
            "last_obs": to_torch(last_obs, device),
            "final_rows": to_torch(rows, device),
            "final_obs": to_torch(final_obs, device),
            "log_prob": log_prob,
            "episodes": tuple(self._episodes),
            "policy_version": self._version,
            "clipped_share": share,
            "state": state,
        }

    def _final(self, last_obs: Tree) -> tuple[NDArray[np.int64], Tree]:
        if not self._finals:
            return np.zeros((0, 2), dtype=np.int64), map_tree(lambda x: x[:0], last_obs)
        rows = [np.stack([np.full_like(ended, t), ended], 1) for t, ended, _ in self._finals]
        trees = [final_obs for _, _, final_obs in self._finals]
        return np.concatenate(rows), map_tree(lambda *x: np.concatenate(x), *trees)

    def _grow(self, capacity: int) -> None:
        envs, actions = self._envs, self._policy.actions
        check_buffer(envs, capacity)
        if not self._arrays and envs.obs is None:
            raise ConfigError(
                "these environments have not been started: collect begins a rollout first"
            )
        shape, number = (capacity, envs.n_envs), numpy_dtype(self._policy)

        def room(like: NDArray[Any]) -> NDArray[Any]:
            return np.zeros((capacity, *like.shape), like.dtype)

        made: dict[str, Any] = {
            "obs": map_tree(room, envs.obs),
            "outputs": np.zeros((*shape, actions.n_outputs), number),
            "actions": map_tree(room, actions.zeros(envs.n_envs)),
            "rewards": np.zeros(shape),
            "terminated": np.zeros(shape, bool),
            "truncated": np.zeros(shape, bool),
            "valid": np.zeros(shape, bool),
            "episode_step": np.zeros(shape, np.int64),
            "episode": np.zeros(shape, np.int64),
        }
        if envs.mask is not None:
            made["mask"] = room(envs.mask)

        def keep(new: NDArray[Any], held: NDArray[Any]) -> None:
            new[: len(held)] = held

        for key, held in self._arrays.items():
            map_tree(keep, made[key], held)
        self._arrays, self._capacity = made, capacity


@functools.cache
def _memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _put(held: Tree, t: int, new: Tree) -> None:
    """Copy row ``t`` in, leaf by leaf."""
    if isinstance(held, np.ndarray):
        held[t] = new
    else:
        map_tree(lambda into, row: into.__setitem__(t, row), held, new)


def _check_finite(
    numbers: NDArray[Any],
    what: str,
    limit: float,
    rows: NDArray[np.int64] | None = None,
    first: int = 0,
) -> None:
    """Refuse what is not a number up to ``limit`` before anything is learned from it.

    ``limit`` is the largest number of the policy's dtype. ``numbers`` are ``[T, B, ...]`` from step
    ``first`` on, or ``[K, ...]`` with the ``(t, b)`` of each in ``rows [K, 2]``.
    """
    if numbers.dtype.kind != "f" or not numbers.size:
        return
    largest = min(limit, float(np.finfo(numbers.dtype).max))
    sizes = np.abs(numbers)
    if sizes.max() <= largest:  # no NaN is, and no infinity
        return
    place = np.argwhere(~(sizes <= largest))[0]
    t, b = place[:2] if rows is None else rows[place[0]]
    raise NonFiniteError(
        f"environment {b} gave the {what} {numbers[tuple(place)]} at step {first + t} of the "
        "rollout: nothing was learned from it; mend the environment"
    )
