"""Rules that turn a gradient and its moments into a direction: plain functions of flat vectors.

What a rule hangs on the number of a step with is no vector: ``numbers`` gives it for all steps of
an update at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

Moments = tuple[Tensor, ...]
Direction = tuple[Tensor, Tensor, Moments]


def adam(
    gradient: Tensor, moments: Moments, correction: Tensor | float, floor: Tensor | float
) -> Direction:
    """Adam's direction as ``(above, below)``, of which it is the quotient, and new moments.

    The direction times the learning rate is the step; ``beta = (.9, .999)``.

    Args:
        gradient: ``[d]``.
        moments: two of ``[d]``, zeros at first.
        correction, floor: from :func:`adam_numbers`; numbers, or float64 tensors without axes.

    Source: Kingma & Ba 2015, algorithm 1; equal to ``torch.optim.Adam``.
    """
    first = moments[0].lerp(gradient, 0.1)
    second = (moments[1] * 0.999).addcmul(gradient, gradient, value=0.001)
    return first, second.sqrt() * correction + floor, (first, second)


def adam_numbers(step: Any, eps: float) -> tuple[Any, ...]:
    """Both moments' biases as one factor, and ``eps`` in the units that they leave.

    Args:
        step: number of a step, from 1, or a float64 array of such numbers.
        eps: added to Adam's denominator.
    """
    shrunk = 1 - 0.9**step  # the bias of the first moment, moved into the denominator
    return shrunk / (1 - 0.999**step) ** 0.5, eps * shrunk


def rmsprop(gradient: Tensor, moments: Moments, floor: Tensor | float) -> Direction:
    """RMSprop's direction as ``(above, below)`` and its new moment, ``alpha = .99``.

    Args:
        gradient: ``[d]``.
        moments: one of ``[d]``, zeros at first.
        floor: eps, added to the denominator; a number, or a float64 tensor without axes.

    Equal to ``torch.optim.RMSprop``.
    """
    second = (moments[0] * 0.99).addcmul(gradient, gradient, value=0.01)
    return gradient, second.sqrt() + floor, (second,)


def rmsprop_numbers(step: Any, eps: float) -> tuple[Any, ...]:
    """``eps``, whatever the step."""
    return (eps + 0 * step,)


class Rule(NamedTuple):
    """A rule: its direction, how many moments it keeps, and what it is told of each step."""

    direction: Callable[..., Direction]
    n_moments: int
    numbers: Callable[[Any, float], tuple[Any, ...]]


RULES = {"adam": Rule(adam, 2, adam_numbers), "rmsprop": Rule(rmsprop, 1, rmsprop_numbers)}
