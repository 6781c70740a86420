"""Rules that turn a gradient and its moments into a direction: plain functions of flat vectors."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Moments = tuple[Tensor, ...]
Count = Tensor | float


def adam(
    gradient: Tensor, moments: Moments, step: Count, eps: float
) -> tuple[Tensor, Tensor, Moments]:
    """Adam's direction as ``(above, below)``, of which it is the quotient, and new moments.

    The direction times the learning rate is the step; ``beta = (.9, .999)``.

    Args:
        gradient: ``[d]``.
        moments: two of ``[d]``, zeros at first.
        step: number of this step, from 1; a number, or a float64 tensor without axes.
        eps: added to the denominator.

    Source: Kingma & Ba 2015, algorithm 1; equal to ``torch.optim.Adam``.
    """
    first = moments[0].lerp(gradient, 0.1)
    second = (moments[1] * 0.999).addcmul(gradient, gradient, value=0.001)
    shrunk = 1 - 0.9**step  # the bias of the first moment, moved into the denominator
    scale = second.sqrt() * (shrunk / (1 - 0.999**step) ** 0.5) + eps * shrunk
    return first, scale, (first, second)


def rmsprop(
    gradient: Tensor, moments: Moments, step: Count, eps: float
) -> tuple[Tensor, Tensor, Moments]:
    """RMSprop's direction as ``(above, below)`` and its new moment, ``alpha = .99``.

    Equal to ``torch.optim.RMSprop``.
    """
    second = (moments[0] * 0.99).addcmul(gradient, gradient, value=0.01)
    return gradient, second.sqrt() + eps, (second,)


RULES: dict[str, tuple[Callable[..., tuple[Tensor, Tensor, Moments]], int]] = {
    "adam": (adam, 2),
    "rmsprop": (rmsprop, 1),
}
