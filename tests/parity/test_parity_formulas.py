"""Returns, optimiser rules and distributions against Stable-Baselines3 and torch."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import (
    CategoricalDistribution,
    DiagGaussianDistribution,
    kl_divergence,
)

from upslope.optim import RULES
from upslope.policies.distributions import Categorical, DiagonalGaussian
from upslope.theory.returns import gae, lambda_returns

pytestmark = pytest.mark.parity


def random_batch(rng: np.random.Generator, steps: int, n_envs: int) -> dict[str, Tensor]:
    """Rewards, values and terminations; behind a terminated row is junk that nobody may read."""
    terminated = rng.random((steps, n_envs)) < 0.15
    values = rng.normal(1.0, 2.0, (steps + 1, n_envs))
    next_values = np.where(terminated, rng.normal(0.0, 1e3, (steps, n_envs)), values[1:])
    batch = {
        "rewards": rng.normal(0.5, 2.0, (steps, n_envs)),
        "values": values[:-1],
        "next_values": next_values,
        "terminated": terminated,
        "done": terminated,
        "last_values": values[-1],
    }
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}


def weigh_by_peer(
    batch: dict[str, Tensor], gamma: float, gae_lambda: float, dtype: Any
) -> tuple[Any, Any]:
    steps, n_envs = batch["rewards"].shape
    box = gym.spaces.Box(-1.0, 1.0, (1,))
    buffer = RolloutBuffer(steps, box, box, "cpu", gae_lambda, gamma, n_envs)
    done = batch["terminated"].numpy()
    buffer.rewards, buffer.values = (batch[k].numpy().astype(dtype) for k in ("rewards", "values"))
    buffer.episode_starts = np.concatenate([np.ones((1, n_envs)), done[:-1]]).astype(dtype)
    buffer.advantages = np.zeros((steps, n_envs), dtype)
    last_values = torch.from_numpy(batch["last_values"].numpy().astype(dtype))
    buffer.compute_returns_and_advantage(last_values, done[-1])
    return buffer.advantages, buffer.returns


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 1e-6)])
@pytest.mark.parametrize("seed", range(20))
def test_gae_and_lambda_returns_without_truncation(seed: int, dtype: Any, tolerance: float) -> None:
    rng = np.random.default_rng(seed)
    steps, n_envs = (1, 2, 3, 17, 64, 100)[seed % 6], int(rng.integers(1, 9))
    gamma, gae_lambda = ((1.0, 1.0), (0.99, 0.95), (0.9, 0.0), (0.0, 0.7))[seed % 4]
    batch = random_batch(rng, steps, n_envs)
    advantages, returns = weigh_by_peer(batch, gamma, gae_lambda, dtype)
    del batch["last_values"]
    real = torch.from_numpy(advantages).dtype
    batch = {name: x if x.dtype == torch.bool else x.to(real) for name, x in batch.items()}
    for function, theirs in [(gae, advantages), (lambda_returns, returns)]:
        ours = function(**batch, gamma=gamma, gae_lambda=gae_lambda)
        assert ours.dtype == real
        assert np.abs(ours.numpy() - theirs).max() <= tolerance * max(1.0, np.abs(theirs).max())


def step_of_torch(rule: str, weights: Tensor, eps: float) -> torch.optim.Optimizer:
    if rule == "adam":
        return torch.optim.Adam([weights], lr=0.01, eps=eps)
    return torch.optim.RMSprop([weights], lr=0.01, eps=eps)


@pytest.mark.parametrize("eps", [1e-5, 1e-8])
@pytest.mark.parametrize("rule", ["adam", "rmsprop"])
def test_rules_equal_those_of_torch_over_fifty_gradients(rule: str, eps: float) -> None:
    generator = torch.Generator().manual_seed(7)
    scale = torch.logspace(-9, 3, 40, dtype=torch.float64)  # from far below eps to far above 1
    weights = torch.zeros(40, dtype=torch.float64, requires_grad=True)
    optimizer = step_of_torch(rule, weights, eps)
    direct, n_moments, numbers = RULES[rule]
    ours = weights.detach().clone()
    moments = tuple(torch.zeros_like(ours) for _ in range(n_moments))
    for step in range(1, 51):
        gradient = scale * torch.randn(40, generator=generator, dtype=torch.float64)
        gradient[step % 40] = 0.0
        weights.grad = gradient
        optimizer.step()
        above, below, moments = direct(gradient, moments, *numbers(step, eps))
        ours = ours - 0.01 * above / below
        assert (ours - weights.detach()).abs().max() < 1e-12
    assert ours.abs().min() > 1e-6


def leaf(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).mul(2).requires_grad_()


def assert_equal_with_gradients(ours: Tensor, theirs: Tensor, leaves: list[Tensor]) -> None:
    """Equal values, and equal gradients of one weighted sum of them."""
    assert ours.shape == theirs.shape
    assert_close(ours, theirs)
    if not ours.requires_grad:
        return
    weight = torch.linspace(-1, 2, ours.numel(), dtype=ours.dtype).view_as(ours)
    options = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
    pairs = (torch.autograd.grad((weight * x).sum(), leaves, **options) for x in (ours, theirs))
    for mine, other in zip(*pairs, strict=True):
        assert_close(mine, other)


def assert_close(mine: Tensor, other: Tensor) -> None:
    assert (mine - other).detach().abs().max() < 1e-14 * max(10.0, other.abs().max().item())


def test_categorical() -> None:
    generator = torch.Generator().manual_seed(8)
    logits, others = leaf(generator, 30, 5), leaf(generator, 30, 5)
    actions = torch.randint(5, (30,), generator=generator)
    ours, ours_other = Categorical(logits), Categorical(others)
    theirs = CategoricalDistribution(5).proba_distribution(logits)
    theirs_other = CategoricalDistribution(5).proba_distribution(others)
    assert_equal_with_gradients(ours.log_prob(actions), theirs.log_prob(actions), [logits])
    assert_equal_with_gradients(ours.entropy(), theirs.entropy(), [logits])
    kl = kl_divergence(theirs, theirs_other)
    assert_equal_with_gradients(ours.kl(ours_other), kl, [logits, others])
    assert torch.equal(ours.mode(), theirs.mode())


def test_diagonal_gaussian_of_three_components() -> None:
    generator = torch.Generator().manual_seed(9)
    mean, other_mean = leaf(generator, 30, 3), leaf(generator, 30, 3)
    log_std, other_log_std = (leaf(generator, 3) for _ in range(2))
    actions = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    ours, ours_other = DiagonalGaussian(mean, log_std), DiagonalGaussian(other_mean, other_log_std)
    theirs = DiagGaussianDistribution(3).proba_distribution(mean, log_std)
    theirs_other = DiagGaussianDistribution(3).proba_distribution(other_mean, other_log_std)
    leaves = [mean, log_std]
    assert_equal_with_gradients(ours.log_prob(actions), theirs.log_prob(actions), leaves)
    assert_equal_with_gradients(ours.entropy(), theirs.entropy(), leaves)
    assert_equal_with_gradients(
        ours.kl(ours_other),
        kl_divergence(theirs, theirs_other).sum(-1),
        [*leaves, other_mean, other_log_std],
    )
    assert torch.equal(ours.mode(), theirs.mode())


def test_categorical_with_a_mask_equals_the_one_of_sb3_contrib() -> None:
    maskable = pytest.importorskip("sb3_contrib.common.maskable.distributions")
    generator = torch.Generator().manual_seed(10)
    logits = leaf(generator, 30, 5)
    mask = torch.rand(30, 5, generator=generator) < 0.6
    mask[:, 2] = True
    actions = torch.multinomial(mask.double(), 1, generator=generator).squeeze(-1)
    ours = Categorical(logits, mask)
    theirs = maskable.MaskableCategoricalDistribution(5).proba_distribution(logits)
    theirs.apply_masking(mask.numpy())
    assert_equal_with_gradients(ours.log_prob(actions), theirs.log_prob(actions), [logits])
    assert_equal_with_gradients(ours.entropy(), theirs.entropy(), [logits])
    assert torch.equal(ours.mode(), theirs.mode())
