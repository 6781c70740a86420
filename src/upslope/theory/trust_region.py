"""The trust-region problem and its solver: maximise the surrogate where KL(old || new) <= target.

Solvers take callables over one flat parameter vector and return results; nothing is moved here. A
page finds the direction (F + cI)^-1 g by :func:`conjugate_gradient` on Fisher-vector products,
scales it by :func:`step_size`, and shortens it by :func:`line_search`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from upslope.theory.objectives import MAX_LOG_RATIO, masked_mean

Matvec = Callable[[Tensor], Tensor]


class HasKL(Protocol):
    """A distribution that knows its divergence from another of its kind."""

    def kl(self, other: Any) -> Tensor:
        """KL(self || other) of each row, in nats."""


class LineSearchResult(NamedTuple):
    """What :func:`line_search` found; ``theta`` is the one it was given where nothing was."""

    theta: Tensor
    accepted: bool
    scale: float  # share of the full step that was taken, 0 where none was
    surrogate: float
    kl: float


def surrogate(log_prob: Tensor, old_log_prob: Tensor, weight: Tensor, valid: Tensor) -> Tensor:
    """L(theta) = mean(ratio A), ratio = pi / pi_old: what a trust region maximises.

    At the old policy its gradient is the policy gradient of the same weights.

    Args:
        log_prob: ``[T, B]`` (or ``[N]``) under the new policy.
        old_log_prob: same shape, under the policy that collected the data; detached here.
        weight: same shape, the advantages; detached here.
        valid: same shape, bool or 0/1; the mean is over valid rows.

    Returns:
        Scalar, in units of the advantages.

    Eq: 10.1. Source: Schulman et al. 2015, "Trust region policy optimization", eq. 14.
    """
    ratio = (log_prob - old_log_prob.detach()).clamp(max=MAX_LOG_RATIO).exp()
    return masked_mean(ratio * weight.detach(), valid)


def mean_kl(old: HasKL, new: HasKL, valid: Tensor) -> Tensor:
    """Mean over the valid states of KL(pi_old(.|s) || pi_new(.|s)), exact in the actions.

    Near the old parameters it is d'Fd/2 + O(|d|^3), with F the Fisher matrix under the same states.

    Args:
        old: distributions of the states ``[T, B]`` (or ``[N]``) before the step.
        new: those after it.
        valid: ``[T, B]`` (or ``[N]``), bool or 0/1.

    Returns:
        Scalar, in nats.

    Eq: 9.4. Source: Kakade 2001, "A natural policy gradient"; Schulman et al. 2015, section 4.
    """
    return masked_mean(old.kl(new), valid)


def fisher_vector_product(
    mean_kl: Callable[[Tensor], Tensor], params: Tensor, v: Tensor, damping: float
) -> Tensor:
    """(F + damping I) v, with F the Hessian of the mean KL at the old parameters.

    Args:
        mean_kl: parameters ``[d]`` -> mean KL(old || new), a scalar, twice differentiable.
        params: ``[d]``, the old parameters.
        v: ``[d]``.
        damping: c >= 0, without unit.

    Returns:
        ``[d]``.

    Eq: 9.2. Source: Schulman et al. 2015, appendix C.
    """
    return fisher_matvec(mean_kl, params, damping)(v)


def fisher_matvec(mean_kl: Callable[[Tensor], Tensor], params: Tensor, damping: float) -> Matvec:
    """Return ``v -> (F + damping I) v``; the gradient of the KL is computed once for all products.

    Arguments as for :func:`fisher_vector_product`.

    Eq: 9.2. Source: Pearlmutter 1994, "Fast exact multiplication by the Hessian".
    """
    leaf = params.detach().requires_grad_()
    (slope,) = torch.autograd.grad(mean_kl(leaf), leaf, create_graph=True)

    def matvec(v: Tensor) -> Tensor:
        # Not grad(slope, leaf, v): given outputs' weights, torch imports sympy to compare shapes.
        (product,) = torch.autograd.grad((slope * v).sum(), leaf, retain_graph=True)
        return product + damping * v

    return matvec


def conjugate_gradient(
    matvec: Matvec, g: Tensor, iterations: int, tolerance: float = 1e-10
) -> Tensor:
    """Solve A x = g for a symmetric positive definite A that is known by its products alone.

    Args:
        matvec: ``v [d] -> A v [d]``.
        g: ``[d]``.
        iterations: products at most; d suffice without rounding.
        tolerance: stop once the residual's norm is at most this share of that of ``g``.

    Returns:
        x ``[d]``; 0 where g is 0.

    Eq: 9.3. Source: Hestenes & Stiefel 1952, "Methods of conjugate gradients".
    """
    x, residual, direction = torch.zeros_like(g), g, g
    square = residual.dot(residual)
    goal = tolerance**2 * square
    for _ in range(iterations):
        if not square > goal:
            break
        product = matvec(direction)
        length = square / direction.dot(product)
        x = x + length * direction
        residual = residual - length * product
        square, before = residual.dot(residual), square
        direction = residual + (square / before) * direction
    return x


def step_size(x: Tensor, fx: Tensor, target_kl: float) -> Tensor:
    """sqrt(2 target / x'Fx): the factor that makes the quadratic model of the KL equal the target.

    Args:
        x: ``[d]``, the direction.
        fx: ``[d]``, (F + cI) x.
        target_kl: in nats.

    Returns:
        Scalar; 0 where x'Fx is not positive, as there is no direction then.

    Eq: 10.2. Source: Kakade 2001; Schulman et al. 2015, appendix C.
    """
    curvature = x.dot(fx)
    length = (2 * target_kl / curvature).sqrt()
    return torch.where(curvature > 0, length, torch.zeros_like(curvature))


def line_search(
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]],
    theta: Tensor,
    step: Tensor,
    target_kl: float,
    *,
    shrink: float = 0.8,
    max_iter: int = 10,
    must_improve: bool = True,
) -> LineSearchResult:
    """Try theta + shrink^k step, k = 0, 1, ..., and take the first candidate that may be taken.

    It may if its *measured* KL is at most the target and, unless ``must_improve`` is off, its
    surrogate is above that of ``theta``. A candidate with a NaN is never taken.

    Args:
        evaluate: parameters ``[d]`` -> (surrogate, mean KL from the old policy), two scalars.
        theta: ``[d]``, the old parameters.
        step: ``[d]``, the full step.
        target_kl: in nats.
        shrink: factor from one candidate to the next, in (0, 1).
        max_iter: candidates at most.
        must_improve: off for a natural gradient, which backtracks on the KL alone.

    Returns:
        The candidate, or ``theta`` itself with ``accepted`` False.

    Eq: 10.3. Source: Schulman et al. 2015, appendix C.
    """
    start = float(evaluate(theta)[0])
    for scale in (shrink**k for k in range(max_iter)):
        candidate = theta + scale * step
        value, kl = (float(x) for x in evaluate(candidate))
        improves = value > start if must_improve else value == value
        if kl <= target_kl and improves:
            return LineSearchResult(candidate, True, scale, value, kl)
    return LineSearchResult(theta, False, 0.0, start, 0.0)
