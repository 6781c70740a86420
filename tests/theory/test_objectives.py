"""Weights to one scalar: values by hand, closed-form gradients, and what no gradient may reach."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from upslope.theory import objectives
from upslope.theory.objectives import (
    clipped_surrogate_loss,
    clipped_values,
    entropy_bonus,
    masked_mean,
    policy_gradient_loss,
    shares,
    value_loss,
)

F64 = torch.float64
EXAMPLES = settings(max_examples=30, deadline=None)
SHAPES = {"n_rows": st.integers(1, 8), "n_columns": st.integers(1, 4), "seed": st.integers(0, 999)}

# Each objective as a function of the network's output, of the other rows, and of the valid mask.
Objective = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
OBJECTIVES: dict[str, Objective] = {
    "policy gradient": lambda x, y, w, valid: policy_gradient_loss(x, w, valid, 3.0),
    "clipped surrogate": lambda x, y, w, valid: clipped_surrogate_loss(x, y, w, valid, 0.2),
    "value": lambda x, y, w, valid: value_loss(x, y, valid),
    "clipped value": lambda x, y, w, valid: value_loss(clipped_values(x, w, 0.5), y, valid),
    "entropy": lambda x, y, w, valid: entropy_bonus(x, valid),
    "mean": lambda x, y, w, valid: masked_mean(x, valid),
}
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())


def columns(*lists: list[float]) -> Tensor:
    """Columns of one environment each, as ``[T, B]``."""
    return torch.tensor(lists, dtype=F64).T.contiguous()


def random_rows(n_rows: int, n_columns: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Three tensors ``[T, B]`` and a mask with at least one valid row."""
    rng = torch.Generator().manual_seed(seed)
    x, y, w = (torch.randn(n_rows, n_columns, generator=rng, dtype=F64) for _ in range(3))
    valid = torch.rand(n_rows, n_columns, generator=rng) < 0.7
    valid[0, 0] = True
    return x, y, w, valid


def close(actual: Tensor, expected: Tensor | float, tolerance: float = 1e-12) -> None:
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def gradient_of(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss, of)[0]


def test_policy_gradient_loss_by_hand() -> None:
    log_prob = columns([-1, -2, -3], [-0.5, -4, -0.25])
    weight = columns([2, -1, 4], [6, 0.5, 900])
    valid = columns([1, 1, 1], [1, 1, 0]).bool()
    total = -2 + 2 - 12 - 3 - 2  # row by row: log_prob * weight of the five valid rows
    close(policy_gradient_loss(log_prob, weight, valid, 2.0), -total / 2)
    close(policy_gradient_loss(log_prob, weight, valid, torch.tensor(5.0)), -total / 5)


# ratio, weight, contribution min(ratio A, clip(ratio, .8, 1.2) A), and d contribution / d log_prob
CLIP_CASES = [
    (1.1, 3.0, 3.3, 3.3),  # inside the range
    (1.5, 2.0, 2.4, 0.0),  # a good action already raised enough
    (1.5, -2.0, -3.0, -3.0),  # a bad action raised: pull back with full force
    (0.5, 4.0, 2.0, 2.0),  # a good action lowered: pull back
    (0.5, -4.0, -3.2, 0.0),  # a bad action already lowered enough
    (1.0, -7.0, -7.0, -7.0),
]


@pytest.mark.parametrize(("ratio", "weight", "value", "slope"), CLIP_CASES)
def test_clipped_surrogate_loss_of_one_row(
    ratio: float, weight: float, value: float, slope: float
) -> None:
    old = torch.tensor([-1.25], dtype=F64)
    log_prob = (old + math.log(ratio)).requires_grad_()
    weights, valid = torch.tensor([weight], dtype=F64), torch.tensor([True])
    loss = clipped_surrogate_loss(log_prob, old, weights, valid, 0.2)
    close(loss.detach(), -value)
    close(gradient_of(loss, log_prob), torch.tensor([-slope], dtype=F64))


def test_clipped_surrogate_loss_is_the_mean_over_valid_rows() -> None:
    ratio, weight, value, _ = (torch.tensor(x, dtype=F64) for x in zip(*CLIP_CASES, strict=True))
    old = torch.linspace(-3, -1, len(CLIP_CASES), dtype=F64)
    valid = torch.tensor([True, True, False, True, True, False])
    loss = clipped_surrogate_loss(
        old + ratio.log(), old, weight, valid, torch.tensor(0.2, dtype=F64)
    )
    close(loss, -(3.3 + 2.4 + 2.0 - 3.2) / 4)
    assert value[valid].sum() == pytest.approx(4.5)


def test_value_loss_by_hand() -> None:
    values, targets = columns([1, 2, 5], [0, -1, 3]), columns([2, 4, 5], [3, -2, 900])
    valid = columns([1, 1, 1], [1, 1, 0]).bool()
    close(value_loss(values, targets, valid), (1 + 4 + 0 + 9 + 1) / 5)


def test_clipped_values_by_hand() -> None:
    values = torch.tensor([1.0, 1.3, 3.0, -3.0], dtype=F64, requires_grad=True)
    old = torch.ones(4, dtype=F64)
    result = clipped_values(values, old, 0.5)
    close(result.detach(), torch.tensor([1.0, 1.3, 1.5, 0.5], dtype=F64))
    close(gradient_of(result.sum(), values), torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=F64))


def test_entropy_bonus_and_masked_mean_by_hand() -> None:
    x = columns([1, 2, 6], [5, 900, 11])
    valid = columns([1, 1, 1], [1, 0, 1]).bool()
    close(entropy_bonus(x, valid), 5.0)
    close(masked_mean(x, valid), 5.0)
    close(shares(x, valid).sum(), 1.0)
    close(shares(x, torch.zeros_like(valid)).sum(), 0.0)


@EXAMPLES
@given(**SHAPES)
def test_objectives_are_the_sums_as_written(n_rows: int, n_columns: int, seed: int) -> None:
    x, y, w, valid = random_rows(n_rows, n_columns, seed)
    x, y = x / 3, y / 3
    rows = [(t, b) for t, b in product(range(n_rows), range(n_columns)) if valid[t, b]]
    pseudo = surrogate = squared = total = 0.0
    for row in rows:
        log_prob, old, weight = float(x[row]), float(y[row]), float(w[row])
        ratio = math.exp(log_prob - old)
        clipped = min(max(ratio, 1 - 0.3), 1 + 0.3)
        pseudo -= log_prob * weight / 7
        surrogate -= min(ratio * weight, clipped * weight) / len(rows)
        squared += (log_prob - old) ** 2 / len(rows)
        total += log_prob / len(rows)
    close(policy_gradient_loss(x, w, valid, 7.0), pseudo)
    close(clipped_surrogate_loss(x, y, w, valid, 0.3), surrogate)
    close(value_loss(x, y, valid), squared)
    close(entropy_bonus(x, valid), total)
    close(masked_mean(x, valid), total)


@EXAMPLES
@given(**SHAPES, clip_range=st.sampled_from((0.0, 1e-3, 0.2, 1.0)))
def test_at_ratio_one_the_surrogate_has_the_policy_gradient(
    n_rows: int, n_columns: int, seed: int, clip_range: float
) -> None:
    """Same weights, mask and divisor, through a softmax policy; clip_range 0 too (Eq. 11.3)."""
    _, _, weight, valid = random_rows(n_rows, n_columns, seed)
    logits, _, log_prob = softmax_policy(n_rows, n_columns, seed)
    surrogate = clipped_surrogate_loss(log_prob, log_prob.detach(), weight, valid, clip_range)
    pseudo = policy_gradient_loss(log_prob, weight, valid, valid.sum())
    expected = torch.autograd.grad(pseudo, logits, retain_graph=True)[0]
    close(gradient_of(surrogate, logits), expected)


@EXAMPLES
@given(**SHAPES)
def test_gradient_at_the_logits_is_onehot_minus_p(n_rows: int, n_columns: int, seed: int) -> None:
    _, _, weight, valid = random_rows(n_rows, n_columns, seed)
    logits, actions, log_prob = softmax_policy(n_rows, n_columns, seed)
    loss = policy_gradient_loss(log_prob, weight, valid, 4.0)
    onehot = torch.nn.functional.one_hot(actions, logits.shape[-1])
    score = onehot - logits.detach().softmax(-1)
    close(gradient_of(loss, logits), -score * (weight * valid)[..., None] / 4)


def test_gradient_at_a_gaussian_mean_and_log_std() -> None:
    """d log N / d mu = (a - mu) / sigma^2 and d log N / d log sigma = z^2 - 1."""
    actions, mean, weight, valid = random_rows(5, 3, 1)
    mean.requires_grad_()
    log_std = torch.tensor(-0.7, dtype=F64, requires_grad=True)
    z = (actions - mean) / log_std.exp()
    log_prob = -0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)
    loss = policy_gradient_loss(log_prob, weight, valid, 2.0)
    at_mean, at_log_std = torch.autograd.grad(loss, (mean, log_std))
    kept = weight * valid / 2
    close(at_mean, (-kept * z / log_std.exp()).detach())
    close(at_log_std, (-(kept * (z.square() - 1)).sum()).detach())


def test_gradient_of_the_value_loss() -> None:
    values, targets, _, valid = random_rows(6, 3, 2)
    values.requires_grad_()
    loss = value_loss(values, targets, valid)
    close(gradient_of(loss, values), (2 * (values - targets) * valid / valid.sum()).detach())


def test_gradient_of_the_entropy_bonus_follows_the_entropy() -> None:
    entropy, _, _, valid = random_rows(6, 3, 3)
    entropy.requires_grad_()
    close(gradient_of(entropy_bonus(entropy, valid), entropy), valid.to(F64) / valid.sum())


@pytest.mark.parametrize("name", ["weight", "old_log_prob", "targets", "old_values"])
def test_no_gradient_reaches_targets_weights_or_old_numbers(name: str) -> None:
    x, y, w, valid = random_rows(4, 3, 4)
    x.requires_grad_()
    fixed = (w if name in ("weight", "old_values") else y).requires_grad_()
    results = {
        "weight": [
            policy_gradient_loss(x, w, valid, 2.0),
            clipped_surrogate_loss(x, y, w, valid, 0.2),
        ],
        "old_log_prob": [clipped_surrogate_loss(x, y, w, valid, 0.2)],
        "targets": [value_loss(x, y, valid)],
        "old_values": [clipped_values(x, w, 0.5).sum()],
    }[name]
    for result in results:
        reached = torch.autograd.grad(result, (x, fixed), allow_unused=True)
        assert reached[0] is not None
        assert reached[1] is None


@every_objective
def test_invalid_rows_never_matter(objective: Objective) -> None:
    x, y, w, valid = random_rows(6, 4, 5)
    y = x + 0.1 * y  # ratios on both sides of the clip
    outcomes = []
    for shift in (0.0, 3.0, -70.0):
        moved, *others = (torch.where(valid, z, z + shift) for z in (x, y, w))
        moved.requires_grad_()
        loss = objective(moved, *others, valid)
        gradient = gradient_of(loss, moved)
        assert (gradient[~valid] == 0).all()
        assert (gradient[valid] != 0).any()
        outcomes.append((loss.detach(), gradient))
    for loss, gradient in outcomes[1:]:
        assert torch.equal(loss, outcomes[0][0])
        assert torch.equal(gradient, outcomes[0][1])


@every_objective
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept_and_the_mask_may_be_bool_or_numbers(
    objective: Objective, dtype: torch.dtype
) -> None:
    x, y, w, valid = random_rows(4, 3, 6)
    x, y, w = x.to(dtype), y.to(dtype), w.to(dtype)
    loss = objective(x, y, w, valid)
    assert loss.dtype == dtype
    assert loss.shape == ()
    for kind in (torch.int64, dtype):
        assert torch.equal(objective(x, y, w, valid.to(kind)), loss)


@every_objective
def test_inputs_are_not_modified(objective: Objective) -> None:
    held = random_rows(4, 3, 7)
    before = [x.clone() for x in held]
    objective(*held)
    assert all(torch.equal(x, y) for x, y in zip(held, before, strict=True))


@every_objective
def test_flattening_time_changes_nothing(objective: Objective) -> None:
    held = random_rows(5, 4, 8)
    close(objective(*(x.reshape(-1) for x in held)), objective(*held))


@every_objective
def test_float32_agrees_with_float64_over_2048_rows(objective: Objective) -> None:
    x, y, w, valid = random_rows(2048, 2, 9)
    x, y, w = (z.float() / 2 for z in (x, y, w))
    wide = objective(x.double(), y.double(), w.double(), valid)
    size = objective(x.double().abs(), -y.double().abs(), -w.double().abs(), valid).abs()
    gap = (objective(x, y, w, valid).double() - wide).abs()
    assert gap <= 64 * torch.finfo(torch.float32).eps * (1 + size)


def test_a_constant_in_the_weights_changes_the_value_and_not_the_expected_gradient() -> None:
    """Both are summed over all actions of one state, each times its probability (Eq. 4.2)."""
    logits = torch.tensor([0.3, -1.0, 0.8], dtype=F64, requires_grad=True)
    psi = torch.tensor([1.0, -2.0, 5.0], dtype=F64)
    values, gradients = [], []
    for constant in (0.0, 10.0):
        p = logits.detach().softmax(-1)
        loss = sum(
            p[a] * policy_gradient_loss(logits.log_softmax(-1)[a], psi[a] + constant, p[a] > 0, 1.0)
            for a in range(3)
        )
        values.append(float(loss.detach()))
        gradients.append(gradient_of(loss, logits))
    assert values[1] - values[0] > 1
    close(gradients[1], gradients[0])
    objective = (logits.softmax(-1) * psi).sum()
    close(-gradients[0], gradient_of(objective, logits))


def test_a_large_clip_range_leaves_importance_sampling() -> None:
    """E_old[ratio A] = E_new[A], within 4 standard errors (clip range wider than any ratio)."""
    rng = torch.Generator().manual_seed(10)
    old = torch.tensor([0.2, -0.5, 0.9], dtype=F64).log_softmax(-1)
    new = torch.tensor([-0.3, 0.4, 0.6], dtype=F64).log_softmax(-1)
    advantage = torch.tensor([1.0, -3.0, 2.0], dtype=F64)
    actions = torch.multinomial(old.exp(), 40_000, replacement=True, generator=rng)
    valid = torch.ones(40_000, dtype=torch.bool)
    batch = (new[actions], old[actions], advantage[actions], valid)
    sample = (new - old).exp()[actions] * advantage[actions]
    error = float(sample.std()) / math.sqrt(len(sample))
    exact = float((new.exp() * advantage).sum())
    assert -clipped_surrogate_loss(*batch, 10.0) == pytest.approx(exact, abs=4 * error)


def test_expected_score_is_zero_and_stays_zero_times_any_baseline_of_the_state() -> None:
    """E[score] = 0 and E[score b(s)] = 0 (the EGLP lemma), every component within 4 sigma."""
    rng = torch.Generator().manual_seed(12)
    n_states, n_actions, count = 4, 3, 60_000
    table = torch.randn(n_states, n_actions, generator=rng, dtype=F64)
    states = torch.randint(n_states, (count,), generator=rng)
    chosen = torch.multinomial(table[states].softmax(-1), 1, replacement=True, generator=rng)
    valid = torch.ones(count, dtype=torch.bool)
    for baseline in (torch.ones(n_states, dtype=F64), torch.tensor([1.0, -20, 300, 5], dtype=F64)):
        logits = table[states].requires_grad_()
        log_prob = logits.log_softmax(-1).gather(-1, chosen).squeeze(-1)
        loss = policy_gradient_loss(log_prob, baseline[states], valid, 1.0)
        per_sample = torch.zeros(count, n_states, n_actions, dtype=F64)
        per_sample[torch.arange(count), states] = gradient_of(loss, logits)
        z = per_sample.mean(0) / per_sample.std(0) * math.sqrt(count)
        assert (z.abs() < 4).all()


def test_the_surrogate_hides_no_nan() -> None:
    log_prob, ones = torch.tensor([math.nan, -0.1], dtype=F64), torch.ones(2, dtype=F64)
    assert torch.isnan(clipped_surrogate_loss(log_prob, 0 * ones, ones, ones, 0.2))


def test_every_public_function_is_named_here() -> None:
    public = {
        name
        for name, function in inspect.getmembers(objectives, inspect.isfunction)
        if function.__module__ == objectives.__name__ and not name.startswith("_")
    }
    assert public <= set(globals()), "a formula of theory/objectives.py has no test"


def softmax_policy(n_rows: int, n_columns: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits ``[T, B, 3]`` that require gradients, sampled actions, and their log-probability."""
    rng = torch.Generator().manual_seed(seed + 1000)
    logits = torch.randn(n_rows, n_columns, 3, generator=rng, dtype=F64, requires_grad=True)
    flat = logits.detach().softmax(-1).reshape(-1, 3)
    actions = torch.multinomial(flat, 1, generator=rng).reshape(n_rows, n_columns)
    return logits, actions, logits.log_softmax(-1).gather(-1, actions[..., None]).squeeze(-1)
