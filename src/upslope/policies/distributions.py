"""Distributions over actions: log-probability, entropy, KL divergence, mode.

Each is made from what a network puts out and is differentiable in it. How actions are sampled and
handed to an environment is in ``actions.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from upslope.trees import Tree

MASKED = -1e30  # logit of a choice that is not allowed: probability 0, gradients still finite
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class Categorical:
    """Distribution over ``n`` choices from logits ``[..., n]``; only where ``mask`` is True."""

    def __init__(self, logits: Tensor, mask: Tensor | None = None) -> None:
        if mask is not None:
            logits = logits.masked_fill(~mask, MASKED)
        self.logits = logits
        self.log_probs = logits.log_softmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-probability of ``action [...]`` (integers): ``[...]``."""
        return self.log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """Exact entropy in nats: ``[...]``."""
        return -(self.log_probs.exp() * self.log_probs).sum(-1)

    def kl(self, other: Categorical) -> Tensor:
        """KL(self || other) in nats: ``[...]``."""
        return (self.log_probs.exp() * (self.log_probs - other.log_probs)).sum(-1)

    def rounding(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What rounding of the log-probability hangs on (arguments of Eq. 11.7): the logits."""
        one = torch.ones_like(self.logits)
        return one, self.logits * (self.logits > MASKED), one

    def mode(self) -> Tensor:
        """The most probable choice: ``[...]``."""
        return self.logits.argmax(-1)


class DiagonalGaussian:
    """Independent normals with ``mean [..., d]`` and ``log_std [d]``."""

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean, self.log_std = mean, log_std

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-density of ``action [..., d]``: ``[...]``."""
        z = (action - self.mean) * (-self.log_std).exp()
        constant = self.log_std.sum() + _LOG_SQRT_2PI * self.log_std.numel()
        return -0.5 * z.square().sum(-1) - constant

    def entropy(self) -> Tensor:
        """Exact differential entropy in nats: ``[...]``."""
        entropy = (self.log_std + _LOG_SQRT_2PI + 0.5).sum()
        return entropy.expand(self.mean.shape[:-1])

    def kl(self, other: DiagonalGaussian) -> Tensor:
        """KL(self || other) in nats: ``[...]``."""
        gap = ((self.mean - other.mean) * (-other.log_std).exp()).square()
        ratio = (2 * (self.log_std - other.log_std)).exp()
        return (other.log_std - self.log_std + 0.5 * (ratio + gap - 1)).sum(-1)

    def rounding(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What rounding of the log-probability hangs on (arguments of Eq. 11.7): z, mean, sigma."""
        sigma = self.log_std.exp()
        return (action - self.mean) / sigma, self.mean, sigma

    def mode(self) -> Tensor:
        """The mean: ``[..., d]``."""
        return self.mean


class MultiCategorical:
    """Several independent choices, from one row of logits ``[..., sum(sizes)]``.

    Args:
        logits: of the choices one after the other.
        layout: where they lie (:class:`ChoiceLayout`).
        mask: ``[..., sum(sizes)]``, True where a value is allowed.
    """

    def __init__(self, logits: Tensor, layout: ChoiceLayout, mask: Tensor | None = None) -> None:
        if mask is not None:
            logits = logits.masked_fill(~mask, MASKED)
        padded = logits[..., torch.from_numpy(layout.index).to(logits.device)]
        absent = torch.from_numpy(layout.absent).to(logits.device)
        self.each = Categorical(padded.masked_fill(absent, MASKED))

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-probability of ``action [..., k]`` (integers): ``[...]``."""
        return self.each.log_prob(action).sum(-1)

    def entropy(self) -> Tensor:
        """Exact entropy in nats, the sum over the choices: ``[...]``."""
        return self.each.entropy().sum(-1)

    def kl(self, other: MultiCategorical) -> Tensor:
        """KL(self || other) in nats: ``[...]``."""
        return self.each.kl(other.each).sum(-1)

    def rounding(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What rounding of the log-probability hangs on (arguments of Eq. 11.7): the logits."""
        one, logits, _ = (x.flatten(-2) for x in self.each.rounding(action))
        return one, logits, one

    def mode(self) -> Tensor:
        """The most probable choices: ``[..., k]``."""
        return self.each.mode()


class ChoiceLayout:
    """Where ``k`` choices of given sizes lie in one row of logits, padded to the widest.

    ``index [k, widest]`` are positions in the row; ``absent [k, widest]`` marks the padding.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = tuple(int(n) for n in sizes)
        first = np.cumsum([0, *self.sizes[:-1]])[:, None]
        column = np.arange(max(self.sizes))[None]
        self.absent = column >= np.array(self.sizes)[:, None]
        self.index = np.where(self.absent, 0, first + column)


class SquashedGaussian(DiagonalGaussian):
    """tanh of a Gaussian in the components that are ``bounded [d]``, the Gaussian in the others.

    Actions are given *before* the tanh, whose inverse would lose digits; their density is that
    after it, in units of half the range: log p(u) - sum log(1 - tanh(u)^2).
    """

    def __init__(self, mean: Tensor, log_std: Tensor, bounded: Tensor) -> None:
        super().__init__(mean, log_std)
        self.bounded = bounded

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-density at ``tanh(action)`` of ``action [..., d]``: ``[...]``."""
        return super().log_prob(action) - (_log_slope(action) * self.bounded).sum(-1)

    def entropy(self) -> Tensor:
        """Differential entropy in nats, ``[...]``, *estimated* by quadrature with 32 nodes.

        There is no closed form. H = H(Gaussian) + E[log(1 - tanh(u)^2)], and the expectation of
        each component is a Gauss-Hermite sum, within 1e-3 nats for sigma up to 2.
        """
        nodes, weights = np.polynomial.hermite_e.hermegauss(32)
        at = torch.as_tensor(nodes, dtype=self.mean.dtype, device=self.mean.device)
        weight = torch.as_tensor(
            weights / math.sqrt(2 * math.pi), dtype=self.mean.dtype, device=self.mean.device
        )
        u = self.mean.unsqueeze(-1) + self.log_std.exp().unsqueeze(-1) * at
        return super().entropy() + ((_log_slope(u) * weight).sum(-1) * self.bounded).sum(-1)


def _log_slope(u: Tensor) -> Tensor:
    """log(1 - tanh(u)^2), without cancellation."""
    return 2 * (math.log(2) - u - softplus(-2 * u))


class Beta:
    """Independent Beta distributions on (0, 1) with ``alpha, beta [..., d]``, both at least 1.

    Source: Chou et al. 2017, "Improving stochastic policy gradients in continuous control with deep
    reinforcement learning using the Beta distribution": above 1 it has one peak.
    """

    def __init__(self, outputs: Tensor) -> None:
        self.outputs = outputs
        alpha, beta = (1 + softplus(outputs)).chunk(2, -1)
        self.alpha, self.beta = alpha, beta

    def _log_normaliser(self) -> Tensor:
        return self.alpha.lgamma() + self.beta.lgamma() - (self.alpha + self.beta).lgamma()

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-density of ``action [..., d]`` in (0, 1): ``[...]``."""
        powers = (self.alpha - 1) * action.log() + (self.beta - 1) * torch.log1p(-action)
        return (powers - self._log_normaliser()).sum(-1)

    def entropy(self) -> Tensor:
        """Exact differential entropy in nats: ``[...]``."""
        a, b = self.alpha, self.beta
        entropy = self._log_normaliser() + (a + b - 2) * (a + b).digamma()
        return (entropy - (a - 1) * a.digamma() - (b - 1) * b.digamma()).sum(-1)

    def kl(self, other: Beta) -> Tensor:
        """KL(self || other) in nats: ``[...]``."""
        a, b = self.alpha, self.beta
        kl = other._log_normaliser() - self._log_normaliser()
        kl = kl + (a - other.alpha) * a.digamma() + (b - other.beta) * b.digamma()
        return (kl + (other.alpha - a + other.beta - b) * (a + b).digamma()).sum(-1)

    def rounding(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What rounding of the log-probability hangs on, as arguments of Eq. 11.7.

        The slope of the log-density in each output, and the terms that cancel in it.
        """
        a, b = self.alpha, self.beta
        slopes = (
            action.log() - a.digamma() + (a + b).digamma(),
            torch.log1p(-action) - b.digamma() + (a + b).digamma(),
        )
        terms = a.lgamma().abs() + b.lgamma().abs() + (a + b).lgamma().abs()
        terms = terms + ((a - 1) * action.log()).abs() + ((b - 1) * torch.log1p(-action)).abs()
        z = torch.cat([*slopes, terms], -1)
        mean = torch.cat([self.outputs, torch.zeros_like(terms)], -1)
        return z, mean, torch.ones_like(z)

    def mode(self) -> Tensor:
        """The most probable action (1/2 where all are equally so): ``[..., d]``."""
        spread = self.alpha + self.beta - 2
        return torch.where(spread > 1e-6, (self.alpha - 1) / spread.clamp(min=1e-6), 0.5)


class Composite:
    """Independent distributions side by side, over a tree of actions.

    Args:
        parts: the distributions.
        leaves_of: a tree of actions to the parts' actions, in their order.
    """

    def __init__(self, parts: list[Distribution], leaves_of: Callable[[Tree], list[Any]]) -> None:
        self.parts, self._leaves_of = parts, leaves_of

    def log_prob(self, action: Tree) -> Tensor:
        """Log-probability (density) of a tree of actions ``[..., ...]``: ``[...]``."""
        pairs = zip(self.parts, self._leaves_of(action), strict=True)
        return torch.stack([part.log_prob(leaf) for part, leaf in pairs]).sum(0)

    def entropy(self) -> Tensor:
        """Sum of the parts' entropies in nats: ``[...]``."""
        return torch.stack([part.entropy() for part in self.parts]).sum(0)

    def kl(self, other: Composite) -> Tensor:
        """KL(self || other) in nats, the sum over the parts: ``[...]``."""
        pairs: Any = zip(self.parts, other.parts, strict=True)
        return torch.stack([part.kl(its) for part, its in pairs]).sum(0)

    def rounding(self, action: Tree) -> tuple[Tensor, Tensor, Tensor]:
        """What rounding of the log-probability hangs on (arguments of Eq. 11.7), side by side."""
        pairs = zip(self.parts, self._leaves_of(action), strict=True)
        triples = [part.rounding(leaf) for part, leaf in pairs]
        z, mean, sigma = zip(*triples, strict=True)
        full = [s.expand_as(x) for s, x in zip(sigma, z, strict=True)]
        return torch.cat(z, -1), torch.cat(mean, -1), torch.cat(full, -1)


Distribution = (
    Categorical | MultiCategorical | DiagonalGaussian | SquashedGaussian | Beta | Composite
)
