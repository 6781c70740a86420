"""An exported file is held to the library: the same inputs, the same outputs to 1e-5."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from upslope.envs.masks import flat_mask
from upslope.errors import ModelFileError
from upslope.export.formats import Arrays
from upslope.export.graph import EPISODE_START, PolicyGraph
from upslope.export.heads import BetaHead, ChoiceHead, Head
from upslope.policies.distributions import MASKED, Categorical, Composite, MultiCategorical
from upslope.policies.memory import Past
from upslope.policies.observations import part_of
from upslope.runs.self_test import stored_name
from upslope.spaces import MASK_KEY, assemble, choice_sizes, mask_size
from upslope.trees import Tree, leaves, take, to_torch

TOLERANCE = 1e-5  # of the largest number of an output, or of 1
STEPS = 4  # calls in a row, which matter where there is memory


@dataclass(frozen=True)
class Vector:
    """Inputs by name, and the outputs that the library gives for them."""

    inputs: Arrays
    outputs: Arrays


def stored_observations(tensors: Mapping[str, torch.Tensor], space: gym.Space[Any]) -> Tree:
    """Return the raw observations ``[N, ...]`` that a model file holds for its own test."""
    return assemble(space, lambda path: tensors[stored_name(tensors, path)].numpy())


def make_vectors(graph: PolicyGraph, observations: Tree) -> list[Vector]:
    """Return calls in a row on stored ``observations [N, ...]``, the last one on a single row.

    With memory the state goes on from call to call, and other episodes start in each.
    """
    policy, rng = graph.policy, np.random.default_rng(0)
    n = len(leaves(observations)[0])
    state = policy.blank_state(n)
    vectors = []
    for t in range(STEPS + 1):
        if t == STEPS:
            n, state = 1, _first(state)
        obs = take(observations, (np.arange(n) + t) % len(leaves(observations)[0]))
        begins = (np.arange(n) + t) % 3 == 0 if t else np.ones(n, dtype=bool)
        mask = _mask(graph, obs, rng, n)
        names = graph.observations.items()
        inputs = {name: np.ascontiguousarray(part_of(obs, path)) for path, name in names}
        if graph.masks == [MASK_KEY] and MASK_KEY not in inputs:
            assert mask is not None
            inputs[MASK_KEY] = mask
        if policy.has_memory:
            inputs[EPISODE_START] = begins
            inputs |= zip(graph.state_inputs, [s.numpy() for s in leaves(state)], strict=True)
        outputs, state = library_outputs(graph, obs, mask, state, begins)
        vectors.append(Vector(inputs, outputs))
    return vectors


@torch.no_grad()
def library_outputs(
    graph: PolicyGraph, obs: Tree, mask: NDArray[np.bool_] | None, state: Tree, begins: Any
) -> tuple[Arrays, Tree]:
    """What the library itself says, under the names of the graph's outputs, and the next state."""
    policy = graph.policy
    actions, after = policy.act(obs, state, mask, None, begins)
    inputs = policy.prepare(to_torch(obs, policy.device))
    past = Past(torch.from_numpy(begins), state) if policy.has_memory else None
    allowed = None if mask is None else torch.from_numpy(mask)
    whole = policy.actions.distribution(policy.outputs(inputs, past)[0], allowed)
    parts = whole.parts if isinstance(whole, Composite) else [whole]
    said: Arrays = {}
    for head, action, part in zip(
        graph.heads, leaves(policy.actions.to_env(actions)), parts, strict=True
    ):
        assert isinstance(head, Head)
        said |= zip(head.names, [action, *_numbers(head, part)], strict=True)
    said["value"] = policy.values(inputs, past).numpy()
    said |= zip(graph.state_outputs, [s.numpy() for s in leaves(after)], strict=True)
    return said, after


def largest_gap(vectors: list[Vector], exported: Callable[[Arrays], Arrays]) -> float:
    """Return the largest gap between an exported function and the library, as ``TOLERANCE`` has it.

    Raises:
        ModelFileError: naming the output whose gap is larger than that, or whose shape or dtype is
            another.
    """
    worst = 0.0
    for vector in vectors:
        outputs = exported(vector.inputs)
        for name, expected in vector.outputs.items():
            gap = _gap(outputs[name], expected)
            worst = max(worst, gap)
            if not gap <= TOLERANCE:
                raise ModelFileError(
                    f"the exported policy gives another {name} than this library for the model's "
                    f"stored observations (gap {gap:.1e}, allowed {TOLERANCE:.0e}): nothing was "
                    "written; try the other --format, or dtype=float64"
                )
    return worst


def _mask(
    graph: PolicyGraph, obs: Tree, rng: np.random.Generator, n: int
) -> NDArray[np.bool_] | None:
    """What is allowed: as the observation says, or about half, of each choice at least one."""
    space = graph.policy.action_space
    if not graph.masks:
        return None
    if isinstance(graph.policy.observation_space, spaces.Dict) and MASK_KEY in obs:
        return np.stack([flat_mask(take(obs[MASK_KEY], i), space) for i in range(n)])
    mask = rng.random((n, mask_size(space))) < 0.5
    ends = np.cumsum(choice_sizes(space))
    mask[:, ends - 1] |= ~np.logical_or.reduceat(mask, [0, *ends[:-1]], axis=1)
    return mask


def _numbers(head: Head, part: Any) -> Iterator[NDArray[Any]]:
    if isinstance(part, MultiCategorical):
        assert isinstance(head, ChoiceHead)
        yield part.each.logits[:, ~head.absent].numpy()
    elif isinstance(part, Categorical):
        yield part.logits.numpy()
    elif isinstance(head, BetaHead):
        yield from (part.alpha.numpy(), part.beta.numpy())
    else:
        yield from (part.mean.numpy(), part.log_std.expand_as(part.mean).numpy())


def _gap(found: NDArray[Any], expected: NDArray[Any]) -> float:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return np.inf
    if found.dtype.kind != "f":
        return 0.0 if np.array_equal(found, expected) else np.inf
    is_number = expected > MASKED
    if not np.array_equal(found[~is_number], expected[~is_number]):
        return np.inf
    numbers = expected[is_number].astype(float)
    if not numbers.size:
        return 0.0
    return float(np.abs(found[is_number] - numbers).max() / max(1.0, np.abs(numbers).max()))


def _first(state: Tree) -> Tree:
    return take(state, slice(0, 1))
