"""Running statistics of observations and of discounted returns, kept as buffers of the policy.

So no file can lose them. They move only when :meth:`update` is called, which training does between
iterations, never while data is collected.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from upslope.policies.observations import is_normalised, part_of, parts, replaced
from upslope.trees import Tree

EPSILON = 1e-8


class RunningMoments(nn.Module):
    """Count, mean and variance of everything seen so far, in float64 (Chan et al. 1979)."""

    count: Tensor
    mean: Tensor
    var: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))

    def update(self, rows: Tensor) -> None:
        """Take in ``rows [N, *shape]``."""
        if len(rows) == 0:
            return
        rows = rows.to(self.mean.dtype)
        mean, var, added = rows.mean(0), rows.var(0, unbiased=False), float(len(rows))
        total = self.count + added
        gap = mean - self.mean
        seen = self.count / total
        self.var.copy_(seen * self.var + (1 - seen) * var + gap.square() * seen * (1 - seen))
        self.mean.add_(gap * (1 - seen))
        self.count.copy_(total)

    def std(self) -> Tensor:
        """Standard deviation ``[*shape]``, never 0."""
        return (self.var + EPSILON).sqrt()


class ObservationNormalizer(nn.Module):
    """(obs - mean) / std, clipped, for numbers of any shape."""

    def __init__(self, shape: tuple[int, ...], clip: float) -> None:
        super().__init__()
        self.moments = RunningMoments(shape)
        self.clip = clip

    def forward(self, obs: Tensor) -> Tensor:
        """``[..., *shape]`` in any dtype to the same shape in float64; the policy casts it down."""
        numbers = obs.to(self.moments.mean.dtype)  # torch subtracts no truths
        return ((numbers - self.moments.mean) / self.moments.std()).clamp(-self.clip, self.clip)

    def update(self, obs: Tensor) -> None:
        """Take in ``obs [N, *shape]``."""
        self.moments.update(obs)


class TreeNormalizer(nn.Module):
    """A normaliser of its own for each part of a Dict or Tuple that is a vector or small image."""

    def __init__(self, space: gym.Space[Any], clip: float) -> None:
        super().__init__()
        self._paths = [path for path, part in parts(space) if is_normalised(part)]
        self.parts = nn.ModuleList(
            ObservationNormalizer(part.shape or (), clip)
            for _, part in parts(space)
            if is_normalised(part)
        )

    def forward(self, obs: Tree) -> Tree:
        """A tree of ``[..., *shape]`` leaves to one where those of these parts are normalised."""
        return replaced(
            obs,
            {
                path: part(part_of(obs, path))
                for path, part in zip(self._paths, self.parts, strict=True)
            },
        )

    def update(self, obs: Tree) -> None:
        """Take in a tree of ``[N, *shape]`` leaves."""
        for path, part in zip(self._paths, self.parts, strict=True):
            assert isinstance(part, ObservationNormalizer)
            part.update(part_of(obs, path))


def make_normalizer(space: gym.Space[Any], clip: float) -> ObservationNormalizer | TreeNormalizer:
    """Return the normaliser of a space; large images and choices are never normalised."""
    if isinstance(space, gym.spaces.Box) and is_normalised(space):
        return ObservationNormalizer(space.shape, clip)
    return TreeNormalizer(space, clip)


class RewardNormalizer(nn.Module):
    """reward / std of the running discounted return, clipped.

    The mean is kept, so the sign of a reward survives. The discounted return runs forward, R_t =
    gamma R_{t-1} + r_t, separately in each environment, and starts anew with each episode; where it
    stands between two rollouts is ``carry [B]``.
    """

    carry: Tensor

    def __init__(self, gamma: float, clip: float) -> None:
        super().__init__()
        self.moments = RunningMoments(())
        self.register_buffer("carry", torch.zeros(0, dtype=torch.float64), persistent=False)
        self.gamma, self.clip = gamma, clip

    def forward(self, rewards: Tensor) -> Tensor:
        """``[T, B]`` rewards to normalised ones, same shape and dtype."""
        var = self.moments.var  # without an epsilon, which would make the smallest rewards smaller
        std = torch.where(var > 0, var.sqrt(), torch.ones_like(var))
        return (rewards / std).clamp(-self.clip, self.clip).to(rewards.dtype)

    def update(self, rewards: Tensor, done: Tensor, valid: Tensor) -> None:
        """Take in one rollout: ``rewards``, ``done``, ``valid``, each ``[T, B]``."""
        running = (
            self.carry
            if self.carry.shape == rewards.shape[1:]
            else rewards.new_zeros(rewards.shape[1])
        )
        running = running.to(self.moments.mean.dtype)
        returns = torch.empty(rewards.shape, dtype=running.dtype, device=rewards.device)
        goes_on = 1 - done.to(running.dtype)
        for t in range(len(rewards)):
            running = self.gamma * running + rewards[t]
            returns[t] = running
            running = running * goes_on[t]
        self.carry = running
        self.moments.update(returns[valid])

    def restart(self) -> None:
        """Forget where the running returns stood: every episode starts anew."""
        self.carry = self.carry.new_zeros(0)


def is_blank(normalizer: nn.Module) -> bool:
    """Whether a normaliser, or a part of it, has seen nothing yet."""
    each = [module for module in normalizer.modules() if isinstance(module, RunningMoments)]
    return any(float(moments.count) == 0 for moments in each)
