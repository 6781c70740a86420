"""A policy as one function of named tensors: raw observations in, the environment's actions out.

Nothing but tensor operations of a fixed graph, so that it can be traced, and a batch of any size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import gymnasium as gym
import torch
from gymnasium import spaces
from torch import Tensor, nn

from upslope.export.heads import Head, make_heads
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.memory import Memory
from upslope.spaces import MASK_KEY, Path, assemble, mask_size, paths

EPISODE_START = "episode_start"


class PolicyGraph(nn.Module):
    """Observations, masks and memory to the mode of the policy, its distribution and its value.

    Inputs, each ``[N, ...]``:
        ``obs``, or one for each part of a Dict or Tuple: raw, in the dtype of its space;
        ``action_mask [N, n_mask]`` bool, True where allowed: with ``with_mask``, or in its own
        dtype where it is a part of the observation;
        ``episode_start [N]`` bool and ``state_in_*``: with memory.

    Outputs, each ``[N, ...]``:
        ``action``, or one for each part: the most probable, as ``env.step`` takes it;
        ``logits``, ``mean`` and ``log_std``, or ``alpha`` and ``beta``: in the policy's own units;
        ``value [N]``, and ``state_out_*`` with memory.

    Args:
        policy: it is read, not copied.
        with_mask: take a mask beside the observation, where the space has choices to mask.
    """

    def __init__(self, policy: ActorCritic, with_mask: bool) -> None:
        super().__init__()
        self.policy = policy
        self.state_inputs = self._states("state_in")
        self.state_outputs = self._states("state_out")
        reserved = [EPISODE_START, *self.state_inputs] if policy.has_memory else []
        is_seen = _has_mask(policy.observation_space)
        self.observations = observation_names(
            policy.observation_space, reserved if is_seen else [*reserved, MASK_KEY]
        )
        self.masks = _mask_names(policy, self.observations, with_mask)
        self.heads = nn.ModuleList(make_heads(policy))
        self.inputs = list(dict.fromkeys([*self.observations.values(), *self.masks, *reserved]))
        self.outputs = [name for head in self._heads for name in head.names]
        self.outputs += ["value", *self.state_outputs]

    @property
    def _heads(self) -> Iterator[Head]:
        for head in self.heads:
            assert isinstance(head, Head)
            yield head

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by the names in ``inputs`` to tensors by the names in ``outputs``."""
        policy, space = self.policy, self.policy.observation_space
        states: dict[str, Tensor] = {}
        obs = policy.prepare(assemble(space, lambda path: inputs[self.observations[path]]))
        hidden = policy.actor(obs)
        if policy.actor_memory is not None:
            hidden, states = self._remember("actor", policy.actor_memory, hidden, inputs)
        outputs = policy.actor_head(hidden)
        if not policy.shared_network:
            hidden = policy.critic(obs)
            if policy.critic_memory is not None:
                hidden, more = self._remember("critic", policy.critic_memory, hidden, inputs)
                states |= more
        value = policy.critic_head(hidden).squeeze(-1)
        mask = None
        if self.masks:
            mask = torch.cat([inputs[name].flatten(1) for name in self.masks], 1).bool()
        named: dict[str, Tensor] = {}
        for head in self._heads:
            named |= head(outputs, mask)
        return named | {"value": value} | states

    def _remember(
        self, part: str, memory: Memory, x: Tensor, inputs: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One step of a GRU or LSTM; the state before is blank where an episode starts."""
        goes_on = (~inputs[EPISODE_START]).unsqueeze(-1).to(x.dtype)
        before = [inputs[name] * goes_on for name in state_names("state_in", part, memory)]
        weights = (memory.weight_ih, memory.weight_hh, memory.bias_ih, memory.bias_hh)
        if memory.kind == "gru":
            after = [torch.gru_cell(x, before[0], *weights)]
        else:
            after = list(torch.lstm_cell(x, before, *weights))
        return after[0], dict(zip(state_names("state_out", part, memory), after, strict=True))

    def _states(self, prefix: str) -> list[str]:
        nets = {"actor": self.policy.actor_memory}
        if not self.policy.shared_network:
            nets["critic"] = self.policy.critic_memory
        return [
            name
            for part, memory in nets.items()
            if memory is not None
            for name in state_names(prefix, part, memory)
        ]


def state_names(prefix: str, part: str, memory: Memory) -> list[str]:
    """The names of the tensors that one memory remembers: one for a GRU, two for an LSTM."""
    name = f"{prefix}_{part}"
    return [name] if memory.kind == "gru" else [f"{name}_hidden", f"{name}_cell"]


def observation_names(space: gym.Space[Any], reserved: Iterable[str]) -> dict[Path, str]:
    """Name each leaf of an observation: ``obs``, a Dict's keys, ``obs_0`` and so on for a Tuple."""
    root = "obs" if not isinstance(space, spaces.Dict) else ""
    return unique_names(paths(space), root, reserved)


def unique_names(leaves: Iterable[Path], root: str, reserved: Iterable[str]) -> dict[Path, str]:
    """Name paths as identifiers: their steps joined by ``_``, numbered where two would be equal."""
    taken, found = set(reserved), {}
    for path in leaves:
        words = [root, *map(str, path)] if root else [str(step) for step in path]
        plain = re.sub(r"\W", "_", "_".join(words), flags=re.ASCII)
        plain = f"_{plain}" if plain[:1].isdigit() or not plain else plain
        name, number = plain, 1
        while name in taken:
            number += 1
            name = f"{plain}_{number}"
        taken.add(name)
        found[path] = name
    return found


def _mask_names(policy: ActorCritic, names: dict[Path, str], with_mask: bool) -> list[str]:
    """The inputs that say what is allowed, in the order of the choices; none where nothing does."""
    if not mask_size(policy.action_space):
        return []
    space = policy.observation_space
    if isinstance(space, spaces.Dict) and MASK_KEY in space.spaces:
        return [
            names[path] for path in _in_order(space[MASK_KEY], policy.action_space, (MASK_KEY,))
        ]
    return [MASK_KEY] if with_mask else []


def _has_mask(space: gym.Space[Any]) -> bool:
    return isinstance(space, spaces.Dict) and MASK_KEY in space.spaces


def _in_order(mask: gym.Space[Any], actions: gym.Space[Any], path: Path) -> Iterator[Path]:
    if isinstance(mask, spaces.Dict):
        for key in actions if isinstance(actions, spaces.Dict) else mask:
            yield from _in_order(mask[key], _branch(actions, key), (*path, key))
    elif isinstance(mask, spaces.Tuple):
        for i, part in enumerate(mask):
            yield from _in_order(part, _branch(actions, i), (*path, i))
    else:
        yield path


def _branch(space: gym.Space[Any], key: Any) -> gym.Space[Any]:
    return space[key] if isinstance(space, (spaces.Dict, spaces.Tuple)) else space
