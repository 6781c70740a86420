"""Action spaces: what a network puts out becomes actions, and actions what ``env.step`` takes.

Each kind of space is a small module with three faces: outputs of the network become a distribution
(:meth:`distribution`), outputs plus *given* noise become a sampled action (:meth:`sample`, on NumPy
arrays), and a sampled action becomes what the environment takes (:meth:`to_env`). A rollout stores
the sampled action; its log-probability is the sampled action's. Dict and Tuple spaces are trees of
such modules.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from upslope.errors import UnsupportedSpaceError
from upslope.policies.box_actions import BetaActions, GaussianActions, SquashedActions
from upslope.policies.distributions import (
    MASKED,
    Categorical,
    ChoiceLayout,
    Composite,
    MultiCategorical,
)
from upslope.spaces import choice_sizes
from upslope.trees import Tree, leaves


class CategoricalActions(nn.Module):
    """A Discrete action space with any ``start``."""

    name = "categorical"

    def __init__(self, space: spaces.Discrete) -> None:
        super().__init__()
        self.n_outputs = self.n_mask = int(space.n)
        self.noise_shape = (self.n_outputs,)
        self._start = space.start
        self._env_dtype = space.dtype

    def distribution(self, outputs: Tensor, mask: Tensor | None = None) -> Categorical:
        """Logits ``[..., n]`` to a distribution."""
        return Categorical(outputs, mask)

    def draw_noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
        """Gumbel noise ``[*shape, n]``, float32: argmax of logits plus it is an exact sample."""
        return _gumbel(rng, (*shape, *self.noise_shape))

    def sample(self, outputs: Any, noise: Any, std: Any, mask: Any = None) -> Any:
        """Logits ``[..., n]`` and noise to choices ``[...]``, on arrays or tensors."""
        scores = outputs + noise
        if mask is not None:
            scores = scores + (~mask) * MASKED
        return scores.argmax(-1)

    def mode(self, outputs: Any, mask: Any = None) -> Any:
        """Logits to the most probable choices."""
        return self.sample(outputs, 0.0, None, mask)

    def std(self) -> Any:
        """Nothing: a categorical has no spread of its own (the Gaussian's counterpart)."""
        return None

    def to_env(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Choices 0..n-1 to the environment's own ``start .. start + n - 1``."""
        return (actions + self._start).astype(self._env_dtype, copy=False)

    def zeros(self, n: int) -> NDArray[Any]:
        """Room for the sampled actions of ``n`` environments."""
        return np.zeros(n, np.int64)

    def clipped_share(self, actions: NDArray[Any]) -> float:
        """No discrete action is ever clipped."""
        return 0.0


class MultiChoiceActions(nn.Module):
    """MultiDiscrete, and MultiBinary as that many choices of two; masks lie flat, end to end."""

    name = "categorical"

    def __init__(self, space: spaces.MultiDiscrete | spaces.MultiBinary) -> None:
        super().__init__()
        sizes = np.array(choice_sizes(space))
        start: Any = 0 if isinstance(space, spaces.MultiBinary) else space.start
        self._layout = ChoiceLayout(sizes.tolist())
        self._blank = self._layout.absent * np.float32(MASKED)
        self._start = start
        self.n_outputs = self.n_mask = int(sizes.sum())
        self.noise_shape = (self.n_outputs,)
        self._env_shape, self._env_dtype = space.shape, space.dtype

    def distribution(self, outputs: Tensor, mask: Tensor | None = None) -> MultiCategorical:
        """Logits ``[..., sum(sizes)]`` to a distribution."""
        return MultiCategorical(outputs, self._layout, mask)

    def draw_noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
        """Gumbel noise ``[*shape, sum(sizes)]``, float32."""
        return _gumbel(rng, (*shape, *self.noise_shape))

    def std(self) -> Any:
        """Nothing: choices have no spread of their own."""
        return None

    def sample(self, outputs: Any, noise: Any, std: Any, mask: Any = None) -> Any:
        """Logits ``[B, sum(sizes)]`` and noise to choices ``[B, k]``."""
        scores = outputs + noise
        if mask is not None:
            scores = scores + (~mask) * MASKED
        return (scores[..., self._layout.index] + self._blank).argmax(-1)

    def mode(self, outputs: Any, mask: Any = None) -> Any:
        """Logits to the most probable choices."""
        return self.sample(outputs, 0.0, None, mask)

    def to_env(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Choices ``[B, k]`` to the environment's values, shape and dtype."""
        shaped = actions.reshape(-1, *self._env_shape) + self._start
        values: NDArray[Any] = shaped.astype(self._env_dtype, copy=False)
        return values

    def zeros(self, n: int) -> NDArray[Any]:
        """Room for the sampled actions of ``n`` environments."""
        return np.zeros((n, len(self._layout.sizes)), np.int64)

    def clipped_share(self, actions: NDArray[Any]) -> float:
        """No choice is ever clipped."""
        return 0.0


class CompositeActions(nn.Module):
    """A Dict or Tuple of action spaces: outputs, noise and masks of the parts lie end to end."""

    def __init__(self, space: spaces.Dict | spaces.Tuple[Any], make: Any) -> None:
        super().__init__()
        self._space = space
        kinds = [make(part) for part in _leaves(space)]
        self.kinds: Any = nn.ModuleList(kinds)
        self.name = " and ".join(dict.fromkeys(kind.name for kind in kinds))
        self.n_outputs = sum(kind.n_outputs for kind in kinds)
        self.n_mask = sum(kind.n_mask for kind in kinds)
        self.noise_shape = (sum(kind.noise_shape[0] for kind in kinds),)
        self._outputs = _pieces([kind.n_outputs for kind in kinds])
        self._masks = _pieces([kind.n_mask for kind in kinds])
        self._noise = _pieces([kind.noise_shape[0] for kind in kinds])

    def distribution(self, outputs: Tensor, mask: Tensor | None = None) -> Composite:
        """Outputs ``[..., n_outputs]`` to a distribution over trees of actions."""
        return Composite(
            [
                kind.distribution(outputs[..., where], _cut(mask, allowed))
                for kind, where, allowed in zip(self.kinds, self._outputs, self._masks, strict=True)
            ],
            leaves,
        )

    def draw_noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
        """Noise of all parts ``[*shape, n]``, each in its own kind."""
        return np.concatenate([kind.draw_noise(rng, shape) for kind in self.kinds], -1)

    def std(self) -> Any:
        """The spread of each part."""
        return [kind.std() for kind in self.kinds]

    def sample(self, outputs: Any, noise: Any, std: Any, mask: Any = None) -> Tree:
        """Outputs ``[B, n_outputs]`` and noise to a tree of actions ``[B, ...]``."""
        return self._tree(
            [
                kind.sample(outputs[..., where], noise[..., drawn], spread, _cut(mask, allowed))
                for kind, where, drawn, spread, allowed in zip(
                    self.kinds, self._outputs, self._noise, std, self._masks, strict=True
                )
            ]
        )

    def mode(self, outputs: Any, mask: Any = None) -> Tree:
        """The most probable action of each part."""
        return self._tree(
            [
                kind.mode(outputs[..., where], _cut(mask, allowed))
                for kind, where, allowed in zip(self.kinds, self._outputs, self._masks, strict=True)
            ]
        )

    def to_env(self, actions: Tree) -> Tree:
        """A tree of sampled actions to the environment's, still a batch: ``[B, ...]`` leaves."""
        pairs = zip(self.kinds, leaves(actions), strict=True)
        return self._tree([kind.to_env(leaf) for kind, leaf in pairs])

    def zeros(self, n: int) -> Tree:
        """Room for the sampled actions of ``n`` environments."""
        return self._tree([kind.zeros(n) for kind in self.kinds])

    def clipped_share(self, actions: Tree) -> float:
        """Share of clipped components, over those that are numbers."""
        pairs = [
            (kind.clipped_share(leaf), leaf[0].size)
            for kind, leaf in zip(self.kinds, leaves(actions), strict=True)
            if not kind.n_mask and len(leaf)
        ]
        total = sum(size for _, size in pairs)
        return sum(share * size for share, size in pairs) / total if total else 0.0

    def _tree(self, of_parts: list[Any]) -> Tree:
        return _arranged(self._space, iter(of_parts))


def boxes(space: gym.Space[Any]) -> list[spaces.Box]:
    """Return the Box parts of an action space."""
    return [part for part in _leaves(space) if isinstance(part, spaces.Box)]


def _gumbel(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
    uniform = rng.random(shape, dtype=np.float32)
    return -np.log(-np.log(np.maximum(uniform, 1e-30)) + 1e-30)


def _leaves(space: gym.Space[Any]) -> Iterator[gym.Space[Any]]:
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        for part in space.values() if isinstance(space, spaces.Dict) else space:
            yield from _leaves(part)
    else:
        yield space


def _arranged(space: gym.Space[Any], of_parts: Iterator[Any]) -> Tree:
    if isinstance(space, spaces.Dict):
        return {key: _arranged(space[key], of_parts) for key in space}
    if isinstance(space, spaces.Tuple):
        return tuple(_arranged(part, of_parts) for part in space)
    return next(of_parts)


def _pieces(sizes: list[int]) -> list[slice]:
    ends = np.cumsum([0, *sizes]).tolist()
    return [slice(ends[i], ends[i + 1]) for i in range(len(sizes))]


def _cut(mask: Any, where: slice) -> Any:
    return None if mask is None or where.start == where.stop else mask[..., where]


Actions = CategoricalActions | MultiChoiceActions | GaussianActions | BetaActions | CompositeActions


def make_actions(
    space: gym.Space[Any], log_std_init: float, dtype: torch.dtype, action_dist: str = "gaussian"
) -> Actions:
    """Return the actions module of a space.

    Args:
        space: Discrete, MultiDiscrete, MultiBinary, Box of floats, or Dict or Tuple of these.
        log_std_init: initial log standard deviation of Gaussian actions.
        dtype: of Box actions.
        action_dist: "gaussian" (clipped to the bounds), "squashed" or "beta", for Box spaces.

    Raises:
        UnsupportedSpaceError: naming the space and what is supported.
    """
    if isinstance(space, spaces.Discrete):
        return CategoricalActions(space)
    if isinstance(space, (spaces.MultiDiscrete, spaces.MultiBinary)) and 0 not in space.shape:
        return MultiChoiceActions(space)
    if isinstance(space, (spaces.Dict, spaces.Tuple)) and any(True for _ in _leaves(space)):
        return CompositeActions(
            space, lambda part: make_actions(part, log_std_init, dtype, action_dist)
        )
    if isinstance(space, spaces.Box) and space.dtype.kind == "f" and 0 not in space.shape:
        if np.isnan(space.low).any() or np.isnan(space.high).any():
            raise UnsupportedSpaceError(
                f"the action space {space} has NaN bounds: give finite bounds or infinities"
            )
        if (space.low > space.high).any():
            raise UnsupportedSpaceError(
                f"the action space {space} has a lower bound above its upper one: swap them"
            )
        if action_dist == "beta":
            return BetaActions(space, dtype)
        kind = SquashedActions if action_dist == "squashed" else GaussianActions
        return kind(space, log_std_init, dtype)
    raise UnsupportedSpaceError(
        f"the action space {space} is not supported: Discrete, MultiDiscrete, MultiBinary, Box of "
        "floats, and Dict and Tuple of these are; wrap the environment to offer one of them"
    )
