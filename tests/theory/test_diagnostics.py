"""Numbers for people: worked by hand, against brute force, and as unbiased estimates."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from itertools import permutations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from upslope.theory import diagnostics
from upslope.theory.diagnostics import (
    approx_kl,
    clip_fraction,
    explained_variance,
    gradient_moments,
    gradient_snr,
    noise_scale,
    ratio_tolerance,
)

F64 = torch.float64
EXAMPLES = settings(max_examples=30, deadline=None)

Masked = Callable[[Tensor, Tensor, Tensor], Tensor]
MASKED: dict[str, Masked] = {
    "approx_kl": lambda x, y, valid: approx_kl(x, valid),
    "clip_fraction": lambda x, y, valid: clip_fraction(x, 0.2, valid),
    "explained_variance": lambda x, y, valid: explained_variance(x, y, valid),
}
every_masked = pytest.mark.parametrize("diagnostic", MASKED.values(), ids=MASKED.keys())


def random_rows(n_rows: int, n_columns: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two tensors ``[T, B]`` and a mask with at least two valid rows where there are two."""
    rng = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n_rows, n_columns, generator=rng, dtype=F64) for _ in range(2))
    valid = torch.rand(n_rows, n_columns, generator=rng) < 0.7
    valid.view(-1)[:2] = True
    return x, y, valid


def test_approx_kl_by_hand() -> None:
    log_ratio = torch.tensor([[math.log(2), 0.0], [math.log(0.5), 50.0]], dtype=F64)
    valid = torch.tensor([[True, True], [True, False]])
    expected = ((1 - math.log(2)) + (-0.5 + math.log(2)) + 0) / 3
    assert approx_kl(log_ratio, valid) == pytest.approx(expected, abs=1e-12)


def test_clip_fraction_by_hand() -> None:
    """Of the ratio, not of its logarithm: exp(-.25) = 1 - .2212 and exp(.25) = 1 + .2840."""
    log_ratio = torch.tensor([[0.25, -0.25], [0.1, 50.0], [0.0, -9.0]], dtype=F64)
    valid = torch.tensor([[True, True], [True, False], [True, True]])
    assert clip_fraction(log_ratio, 0.23, valid) == pytest.approx(2 / 5)
    assert clip_fraction(log_ratio, torch.tensor(0.22), valid) == pytest.approx(3 / 5)
    assert clip_fraction(torch.zeros(2, 2), 0.0, torch.ones(2, 2)) == 0


def test_explained_variance_by_hand() -> None:
    targets = torch.tensor([[1.0, 2.0], [3.0, 900.0], [6.0, 8.0]], dtype=F64)
    values = torch.tensor([[2.0, 1.0], [4.0, -900.0], [5.0, 8.0]], dtype=F64)
    valid = torch.tensor([[True, True], [True, False], [True, True]])
    # Residuals -1, 1, -1, 1, 0 have variance 4/5; targets 1, 2, 3, 6, 8 have 34/5.
    assert explained_variance(values, targets, valid) == pytest.approx(1 - 4 / 34, abs=1e-12)


def test_explained_variance_of_known_critics() -> None:
    targets = torch.randn(40, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    valid = torch.ones(40, 3, dtype=torch.bool)
    perfect, shifted, constant = targets.clone(), targets + 5, torch.full_like(targets, 3.0)
    assert explained_variance(perfect, targets, valid) == 1
    assert explained_variance(shifted, targets, valid) == pytest.approx(1, abs=1e-12)
    assert explained_variance(constant, targets, valid) == pytest.approx(0, abs=1e-12)
    assert explained_variance(-targets, targets, valid) == pytest.approx(-3, abs=1e-12)


def test_explained_variance_of_targets_that_do_not_vary_is_undefined() -> None:
    values = torch.tensor([[1.0], [2.0], [3.0]])
    valid = torch.tensor([[True], [True], [False]])
    assert explained_variance(values, torch.full((3, 1), 2.5), valid).isnan()
    assert explained_variance(values[:1], values[:1], valid[:1]).isnan()


@pytest.mark.parametrize(
    ("dtype", "constant"),
    [
        (torch.float32, 0.1),
        (torch.float32, 1e4 / 3),
        (torch.float64, 1e-3),
        (torch.float64, 1e4 / 3),
    ],
)
def test_explained_variance_is_undefined_though_a_constant_rounds(
    dtype: torch.dtype, constant: float
) -> None:
    """The rounding of the mean of equal targets is not variance."""
    targets = torch.full((2048,), constant, dtype=dtype)
    values = torch.randn(2048, generator=torch.Generator().manual_seed(2), dtype=dtype)
    assert explained_variance(values, targets, torch.ones(2048, dtype=torch.bool)).isnan()


def test_gradient_moments_by_hand() -> None:
    gradients = torch.tensor([[1.0, 0.0], [3.0, 4.0]], dtype=F64)
    g2, trace = gradient_moments(gradients)
    assert g2 == pytest.approx(3.0, abs=1e-12)  # the only inner product
    assert trace == pytest.approx(10.0, abs=1e-12)  # sample variances 2 and 8


def test_gradient_moments_refuse_one_gradient() -> None:
    with pytest.raises(ValueError, match="at least two gradients"):
        gradient_moments(torch.ones(1, 5))


def test_snr_and_noise_scale_by_hand() -> None:
    g2, trace = torch.tensor(4.0), torch.tensor(20.0)
    assert gradient_snr(g2, trace) == 0.2
    assert noise_scale(g2, trace) == 5
    assert noise_scale(g2, trace, unit=30.0) == 150
    assert noise_scale(g2, trace) * gradient_snr(g2, trace) == 1


def test_ratio_tolerance_by_hand() -> None:
    z = torch.tensor([[1.0, -2.0], [0.5, 0.0]], dtype=F64)
    mean = torch.tensor([[3.0, -1.0], [0.0, 7.0]], dtype=F64)
    sigma = torch.tensor([0.5, 0.25], dtype=F64)
    eps = torch.finfo(F64).eps
    # Rows: 1*4/.5 + 2*2/.25 = 24 and .5*1/.5 + 0 = 1.
    assert ratio_tolerance(z, mean, sigma) == pytest.approx(16 * eps * 25, rel=1e-12)
    assert ratio_tolerance(z, mean, sigma.expand(2, 2)) == ratio_tolerance(z, mean, sigma)
    single = ratio_tolerance(z.float(), mean.float(), sigma.float())
    assert single == pytest.approx(16 * torch.finfo(torch.float32).eps * 25, rel=1e-6)


@EXAMPLES
@given(st.integers(1, 8), st.integers(2, 4), st.integers(0, 999))
def test_masked_diagnostics_are_the_sums_as_written(n_rows: int, n_columns: int, seed: int) -> None:
    x, y, valid = random_rows(n_rows, n_columns, seed)
    rows = [(t, b) for t, b in product(range(n_rows), range(n_columns)) if valid[t, b]]
    n = len(rows)
    kl = sum(math.exp(x[row]) - 1 - float(x[row]) for row in rows) / n
    clipped = sum(abs(math.exp(x[row]) - 1) > 0.2 for row in rows) / n
    residual = variance([float(y[row] - x[row]) for row in rows])
    spread = variance([float(y[row]) for row in rows])
    assert approx_kl(x, valid) == pytest.approx(kl, abs=1e-12)
    assert clip_fraction(x, 0.2, valid) == pytest.approx(clipped, abs=1e-12)
    assert explained_variance(x, y, valid) == pytest.approx(1 - residual / spread, rel=1e-9)


@EXAMPLES
@given(st.integers(2, 8), st.integers(1, 5), st.integers(0, 999))
def test_gradient_moments_are_means_over_pairs(count: int, size: int, seed: int) -> None:
    """|G|^2: mean inner product of two different gradients; tr S: half their mean distance^2."""
    gradients = torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=F64)
    pairs = list(permutations(gradients, 2))
    inner = sum(float(g @ h) for g, h in pairs) / len(pairs)
    distance = sum(float((g - h) @ (g - h)) for g, h in pairs) / len(pairs)
    g2, trace = gradient_moments(gradients)
    assert g2 == pytest.approx(inner, abs=1e-12)
    assert trace == pytest.approx(distance / 2, abs=1e-12)


@EXAMPLES
@given(st.integers(2, 8), st.integers(0, 999))
def test_gradient_moments_are_those_of_two_batch_sizes(count: int, seed: int) -> None:
    """McCandlish et al. 2018, eqs. A.2 and A.3, with batches of one unit and of all units."""
    gradients = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)
    small, big = gradients.square().sum(1).mean(), gradients.mean(0).square().sum()
    g2, trace = gradient_moments(gradients)
    assert g2 == pytest.approx(float((count * big - small) / (count - 1)), abs=1e-12)
    assert trace == pytest.approx(float((small - big) / (1 - 1 / count)), abs=1e-12)


def test_gradient_moments_are_unbiased() -> None:
    """Over 4,000 batches of M gradients of known mean and covariance, within 4 sigma."""
    rng = torch.Generator().manual_seed(3)
    mean, scale = torch.tensor([0.3, -0.2, 0.1]), torch.tensor([1.0, 2.0, 0.5])
    for count in (2, 5):
        noise = torch.randn(4000, count, 3, generator=rng)
        estimates = [gradient_moments(mean + scale * batch) for batch in noise]
        for i, exact in enumerate((mean.square().sum(), scale.square().sum())):
            sample = torch.stack([estimate[i] for estimate in estimates]) - exact
            assert abs(sample.mean() / sample.std() * math.sqrt(len(sample))) < 4


def test_approx_kl_is_unbiased_for_the_kl_from_old_to_new() -> None:
    """On actions of pi_old its mean is KL(pi_old || pi), which the other direction is far from."""
    rng = torch.Generator().manual_seed(4)
    old = torch.tensor([0.0, 3.0, -1.0], dtype=F64).log_softmax(-1)
    new = torch.tensor([0.5, 0.0, 0.0], dtype=F64).log_softmax(-1)
    exact = float((old.exp() * (old - new)).sum())
    reverse = float((new.exp() * (new - old)).sum())
    actions = torch.multinomial(old.exp(), 50_000, replacement=True, generator=rng)
    log_ratio = (new - old)[actions]
    sample = log_ratio.expm1() - log_ratio
    error = float(sample.std()) / math.sqrt(len(sample))
    estimate = float(approx_kl(log_ratio, torch.ones(50_000)))
    assert estimate == pytest.approx(exact, abs=4 * error)
    assert abs(estimate - reverse) > 20 * error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_approx_kl_is_never_negative_and_keeps_small_numbers(dtype: torch.dtype) -> None:
    """Without expm1, ratio - 1 of a policy that hardly moved would be rounding alone."""
    size = torch.logspace(-9, 1, 2000, dtype=dtype)
    for log_ratio in (size, -size):
        one = torch.ones(1)
        assert all(approx_kl(row, one) >= 0 for row in log_ratio.view(-1, 1))
    small = torch.full((10,), 1e-2, dtype=dtype)
    expected = 1e-4 / 2 + 1e-6 / 6 + 1e-8 / 24
    assert approx_kl(small, torch.ones(10)) == pytest.approx(expected, rel=2e-5)


def test_ratio_tolerance_covers_rounding_and_sees_a_moved_weight() -> None:
    """float32 log-densities of one batch and of single rows, then of weights moved by .1 %."""
    rng = torch.Generator().manual_seed(5)
    inputs = torch.randn(256, 64, generator=rng)
    weight = torch.randn(64, 2, generator=rng) / 8
    for log_std in (0.0, -2.0, -5.0):
        sigma = torch.full((2,), math.exp(log_std))
        mean = inputs @ weight
        actions = mean + sigma * torch.randn(256, 2, generator=rng)
        row_by_row = torch.stack([(row[:, None] * weight).sum(0) for row in inputs])
        moved = inputs @ (weight * 1.001)
        tolerance = ratio_tolerance((actions - mean) / sigma, mean, sigma)
        batch, single, after = (
            -0.5 * ((actions - mu) / sigma).square().sum(-1) for mu in (mean, row_by_row, moved)
        )
        assert 0 < (batch - single).abs().max() <= tolerance
        assert (batch - after).abs().max() > tolerance


@every_masked
def test_invalid_rows_never_matter(diagnostic: Masked) -> None:
    x, y, valid = random_rows(6, 4, 6)
    before = diagnostic(x, y, valid)
    for shift in (3.0, -70.0):
        moved = (torch.where(valid, z, z + shift * (1 + z)) for z in (x, y))
        assert torch.equal(diagnostic(*moved, valid), before)


@every_masked
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept_and_the_mask_may_be_bool_or_numbers(
    diagnostic: Masked, dtype: torch.dtype
) -> None:
    x, y, valid = random_rows(5, 3, 7)
    x, y = x.to(dtype), y.to(dtype)
    result = diagnostic(x, y, valid)
    assert result.dtype == dtype
    assert result.shape == ()
    for kind in (torch.int64, dtype):
        assert torch.equal(diagnostic(x, y, valid.to(kind)), result)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_of_gradients_is_kept(dtype: torch.dtype) -> None:
    g2, trace = gradient_moments(torch.randn(4, 3).to(dtype))
    results = (g2, trace, gradient_snr(g2, trace), noise_scale(g2, trace, 3.0))
    assert {x.dtype for x in results} == {dtype}
    row = torch.ones(1, 2, dtype=dtype)
    assert ratio_tolerance(row, row, row[0]).dtype == dtype


@every_masked
def test_inputs_are_not_modified(diagnostic: Masked) -> None:
    held = random_rows(4, 3, 8)
    before = [x.clone() for x in held]
    diagnostic(*held)
    assert all(torch.equal(x, y) for x, y in zip(held, before, strict=True))


def test_gradients_are_not_modified() -> None:
    gradients = torch.randn(4, 3, generator=torch.Generator().manual_seed(9))
    before = gradients.clone()
    gradient_moments(gradients)
    assert torch.equal(gradients, before)


@every_masked
def test_float32_agrees_with_float64_over_2048_rows(diagnostic: Masked) -> None:
    x, y, valid = random_rows(2048, 2, 10)
    x, y = x.float() / 2, y.float() / 2
    wide = float(diagnostic(x.double(), y.double(), valid))
    assert float(diagnostic(x, y, valid)) == pytest.approx(wide, rel=1e-5, abs=1e-6)


def test_every_public_function_is_named_here() -> None:
    public = {
        name
        for name, function in inspect.getmembers(diagnostics, inspect.isfunction)
        if function.__module__ == diagnostics.__name__ and not name.startswith("_")
    }
    assert public <= set(globals()), "a formula of theory/diagnostics.py has no test"


def variance(numbers: list[float]) -> float:
    mean = sum(numbers) / len(numbers)
    return sum((x - mean) ** 2 for x in numbers) / len(numbers)
