"""What a network puts out, as the environment's action and the distribution's numbers, in tensors.

The counterpart of ``mode`` and ``to_env`` in ``policies/actions.py``, which work on NumPy arrays;
every exported file is held to those.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from upslope.policies.actions import CompositeActions
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.box_actions import EDGE, BetaActions, SquashedActions, is_bounded
from upslope.policies.distributions import MASKED, Beta, ChoiceLayout
from upslope.spaces import Path, choice_sizes, paths


def make_heads(policy: ActorCritic) -> list[Head]:
    """Return one head for each leaf of the action space, in the order of the network's outputs."""
    kinds, space = policy.actions, policy.action_space
    made: list[Head] = []
    first, first_mask = 0, 0
    for kind, path in zip(
        kinds.kinds if isinstance(kinds, CompositeActions) else [kinds], paths(space), strict=True
    ):
        outputs = slice(first, first + kind.n_outputs)
        mask = slice(first_mask, first_mask + kind.n_mask)
        first, first_mask = outputs.stop, mask.stop
        made.append(_head_class(kind)(kind, _leaf(space, path), path, outputs, mask, policy.dtype))
    return made


class Head(nn.Module):
    """One leaf of the action: its columns of the network's outputs and of the mask.

    Args:
        kind: the leaf's module of the policy.
        space: of the leaf.
        path: of the leaf in the action space, which goes into the names.
        outputs, mask: the columns.
        dtype: of the policy.
    """

    numbers: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        kind: Any,
        space: gym.Space[Any],
        path: Path,
        outputs: slice,
        mask: slice,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.outputs, self.mask = outputs, mask
        self.shape = space.shape or ()
        self.dtype = torch.from_numpy(np.zeros(0, space.dtype)).dtype
        self.names = ["_".join([name, *map(str, path)]) for name in ("action", *self.numbers)]

    def named(self, action: Tensor, *numbers: Tensor) -> dict[str, Tensor]:
        """Give the action ``[N, ...]`` its shape and dtype, and all of it its names."""
        shaped = action.reshape(-1, *self.shape).to(self.dtype)
        return dict(zip(self.names, (shaped, *numbers), strict=True))


class ChoiceHead(Head):
    """Discrete, MultiDiscrete and MultiBinary: the most probable of what is allowed."""

    numbers = ("logits",)
    index: Tensor
    absent: Tensor
    start: Tensor
    forbidden: Tensor

    def __init__(self, kind: Any, space: Any, *rest: Any) -> None:
        super().__init__(kind, space, *rest)
        layout = ChoiceLayout(choice_sizes(space))
        start = 0 if isinstance(space, spaces.MultiBinary) else space.start
        starts = np.broadcast_to(start, self.shape).reshape(-1).astype(np.int64)
        self.register_buffer("index", torch.from_numpy(layout.index))
        self.register_buffer("absent", torch.from_numpy(layout.absent))
        self.register_buffer("start", torch.from_numpy(starts))
        # a number in the graph would be rounded to float32, whatever the policy's dtype
        self.register_buffer("forbidden", torch.tensor(MASKED, dtype=rest[-1]))

    def forward(self, outputs: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """All outputs ``[N, n_outputs]`` and masks ``[N, n_mask]`` to named tensors."""
        logits = outputs[:, self.outputs]
        if mask is not None:
            logits = torch.where(mask[:, self.mask], logits, self.forbidden)
        # [N, choices, widest]; below whatever is not allowed lies what is not there
        each = logits[:, self.index].masked_fill(self.absent, 2 * MASKED)
        return self.named(each.argmax(-1) + self.start, logits)


class GaussianHead(Head):
    """A Box under a Gaussian or a squashed one: the mean, squashed, scaled and clipped."""

    numbers = ("mean", "log_std")
    log_std: Tensor
    squashed: Tensor
    centre: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, kind: Any, space: Any, *rest: Any) -> None:
        super().__init__(kind, space, *rest)
        dtype = rest[-1]
        bounded = is_bounded(space)
        low, high = space.low.reshape(-1), space.high.reshape(-1)
        with np.errstate(invalid="ignore", over="ignore"):
            centre = np.where(bounded, (low.astype(float) + high) / 2, 0.0)
            scale = np.where(bounded, (high.astype(float) - low) / 2, 1.0)
        squashed = bounded if isinstance(kind, SquashedActions) else np.zeros_like(bounded)
        self.register_buffer("log_std", kind.bounded_log_std().detach().clone())
        self.register_buffer("squashed", torch.from_numpy(squashed))
        self.register_buffer("centre", torch.from_numpy(centre).to(dtype))
        self.register_buffer("scale", torch.from_numpy(scale).to(dtype))
        wide = torch.promote_types(dtype, self.dtype)
        self.register_buffer("low", torch.from_numpy(low).to(wide))
        self.register_buffer("high", torch.from_numpy(high).to(wide))

    def forward(self, outputs: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """All outputs ``[N, n_outputs]`` to named tensors; a mask has no meaning here."""
        mean = outputs[:, self.outputs]
        inside = torch.where(self.squashed, mean.tanh(), mean)
        scaled = (inside * self.scale + self.centre).to(self.low.dtype)
        clipped = torch.minimum(torch.maximum(scaled, self.low), self.high)
        return self.named(clipped, mean, self.log_std.expand_as(mean))


class BetaHead(Head):
    """A Box under Beta distributions: the most probable share of the range."""

    numbers = ("alpha", "beta")
    low: Tensor
    width: Tensor

    def __init__(self, kind: Any, space: Any, *rest: Any) -> None:
        super().__init__(kind, space, *rest)
        self.edge = EDGE[rest[-1]]
        wide = torch.promote_types(rest[-1], self.dtype)
        low, high = (torch.from_numpy(x.reshape(-1)).to(wide) for x in (space.low, space.high))
        self.register_buffer("low", low)
        self.register_buffer("width", high - low)

    def forward(self, outputs: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """All outputs ``[N, n_outputs]`` to named tensors; a mask has no meaning here."""
        distribution = Beta(outputs[:, self.outputs])
        share = distribution.mode().clamp(self.edge, 1 - self.edge).to(self.low.dtype)
        action = self.low + share * self.width
        return self.named(action, distribution.alpha, distribution.beta)


def _head_class(kind: Any) -> type[Head]:
    if kind.n_mask:
        return ChoiceHead
    return BetaHead if isinstance(kind, BetaActions) else GaussianHead


def _leaf(space: Any, path: Path) -> gym.Space[Any]:
    for step in path:
        space = space[step]
    return space  # type: ignore[no-any-return]
