"""Action spaces: torch.distributions agrees; masks, samples from given noise, to_env."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, distributions

from upslope.errors import UnsupportedSpaceError
from upslope.policies.actions import CategoricalActions, make_actions
from upslope.policies.box_actions import LOG_STD_RANGE, GaussianActions
from upslope.policies.distributions import Categorical, DiagonalGaussian

F64 = torch.float64
MASK = torch.tensor([True, False, True, True, False])


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def box(
    low: Any, high: Any, shape: tuple[int, ...] = (2,), dtype: Any = np.float32
) -> gym.spaces.Box:
    return gym.spaces.Box(np.broadcast_to(low, shape), np.broadcast_to(high, shape), shape, dtype)


def gaussian_actions(space: gym.spaces.Box, dtype: torch.dtype = torch.float32) -> GaussianActions:
    return GaussianActions(space, -0.5, dtype)


def test_categorical_by_hand() -> None:
    distribution = Categorical(torch.tensor([[1.0, 2.0, 5.0]], dtype=F64).log())
    p = torch.tensor([1 / 8, 2 / 8, 5 / 8], dtype=F64)
    close(distribution.log_prob(torch.tensor([1])), p[1:2].log())
    close(distribution.entropy(), -(p * p.log()).sum()[None])
    assert distribution.mode().tolist() == [2]


def test_categorical_agrees_with_torch() -> None:
    logits, others = 3 * normal(6, 4, 5), normal(6, 4, 5, seed=1)
    actions = torch.arange(24).reshape(6, 4) % 5
    ours, theirs = Categorical(logits), distributions.Categorical(logits=logits)
    close(ours.log_prob(actions), theirs.log_prob(actions))
    close(ours.entropy(), theirs.entropy())
    close(ours.mode(), theirs.mode)
    expected = distributions.kl_divergence(theirs, distributions.Categorical(logits=others))
    close(ours.kl(Categorical(others)), expected)
    assert (expected - Categorical(others).kl(ours)).abs().max() > 0.1


def test_gaussian_agrees_with_torch() -> None:
    mean, others, actions = normal(6, 4, 3), normal(6, 4, 3, seed=1), normal(6, 4, 3, seed=2)
    log_std, other_log_std = normal(3, seed=3), normal(3, seed=4)
    ours = DiagonalGaussian(mean, log_std)
    theirs = distributions.Independent(distributions.Normal(mean, log_std.exp()), 1)
    other = distributions.Independent(distributions.Normal(others, other_log_std.exp()), 1)
    close(ours.log_prob(actions), theirs.log_prob(actions))
    close(ours.entropy(), theirs.entropy())
    assert ours.entropy().shape == (6, 4)
    close(ours.mode(), mean)
    expected = distributions.kl_divergence(theirs, other)
    close(ours.kl(DiagonalGaussian(others, other_log_std)), expected)
    assert (expected - DiagonalGaussian(others, other_log_std).kl(ours)).abs().max() > 0.1


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_masked_choices_leave_the_reduced_distribution(scale: float) -> None:
    logits, others = scale * normal(7, 5), normal(7, 5, seed=1)
    masked = Categorical(logits, MASK)
    reduced = distributions.Categorical(logits=logits[:, MASK])
    kept = torch.arange(5)[MASK]
    assert (masked.log_probs.exp()[:, ~MASK] == 0).all()
    close(masked.log_probs[:, MASK], reduced.logits)
    close(masked.entropy(), reduced.entropy())
    close(masked.mode(), kept[reduced.mode])
    expected = distributions.kl_divergence(
        reduced, distributions.Categorical(logits=others[:, MASK])
    )
    close(masked.kl(Categorical(others, MASK)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_through_a_mask_are_finite_and_spare_the_masked(dtype: torch.dtype) -> None:
    logits = normal(7, 5).to(dtype).requires_grad_()
    actions = torch.arange(5)[MASK][torch.arange(7) % 3]
    masked = Categorical(logits, MASK)
    other = Categorical(normal(7, 5, seed=1).to(dtype), MASK)
    for quantity in (masked.log_prob(actions), masked.entropy(), masked.kl(other)):
        assert quantity.isfinite().all()
        assert quantity.dtype == dtype
        gradient = torch.autograd.grad(quantity.sum(), logits, retain_graph=True)[0]
        assert gradient.isfinite().all()
        assert (gradient[:, ~MASK] == 0).all()
        assert (gradient[:, MASK] != 0).any()


def test_one_allowed_choice_is_certain() -> None:
    only = torch.tensor([False, True, False])
    certain = Categorical(torch.tensor([[9.0, -9.0, 3.0]]), only)
    assert certain.log_prob(torch.tensor([1])).item() == 0
    assert certain.entropy().item() == 0
    assert certain.mode().item() == 1


def test_categorical_score_is_onehot_minus_p() -> None:
    logits = normal(8, 4).requires_grad_()
    actions = torch.arange(8) % 4
    score = torch.autograd.grad(Categorical(logits).log_prob(actions).sum(), logits)[0]
    onehot = torch.nn.functional.one_hot(actions, 4)
    close(score, (onehot - logits.softmax(-1)).detach())


def test_gaussian_scores() -> None:
    """z / sigma at the mean, z^2 - 1 at log sigma; the entropy's gradient at log sigma is 1."""
    mean, log_std = normal(8, 3).requires_grad_(), normal(3, seed=1).requires_grad_()
    actions = normal(8, 3, seed=2)
    distribution = DiagonalGaussian(mean, log_std)
    at_mean, at_log_std = torch.autograd.grad(distribution.log_prob(actions).sum(), (mean, log_std))
    z = ((actions - mean) / log_std.exp()).detach()
    close(at_mean, (z / log_std.exp()).detach())
    close(at_log_std, (z.square() - 1).sum(0))
    at_entropy = torch.autograd.grad(distribution.entropy().mean(), log_std)[0]
    close(at_entropy, torch.ones(3, dtype=F64))


def test_entropy_and_kl_are_expectations_of_log_probabilities() -> None:
    """E[-log p] is the entropy and E[log p - log q] is KL(p || q), within 4 standard errors."""
    count = 40_000
    rng = torch.Generator().manual_seed(5)
    p = Categorical(normal(5).expand(count, 5))
    q = Categorical(normal(5, seed=1).expand(count, 5))
    chosen = torch.multinomial(p.log_probs[0].exp(), count, replacement=True, generator=rng)
    wide, narrow = torch.tensor([0.3, -0.4], dtype=F64), torch.tensor([0.1, 0.2], dtype=F64)
    f = DiagonalGaussian(torch.zeros(count, 2, dtype=F64), wide)
    g = DiagonalGaussian(torch.full((count, 2), 0.5, dtype=F64), narrow)
    drawn = wide.exp() * torch.randn(count, 2, generator=rng, dtype=F64)
    for mine, other, actions in ((p, q, chosen), (f, g, drawn)):
        gaps = (
            -mine.log_prob(actions) - mine.entropy(),
            mine.log_prob(actions) - other.log_prob(actions) - mine.kl(other),  # type: ignore[arg-type]
        )
        for gap in gaps:
            assert abs(gap.mean() / gap.std() * math.sqrt(count)) < 4


@pytest.mark.parametrize("mask", [None, MASK.numpy()], ids=["all", "masked"])
def test_categorical_samples_have_the_probabilities_of_the_logits(mask: Any) -> None:
    """G-test of 50,000 choices from given Gumbel noise; a masked choice never comes."""
    actions = CategoricalActions(gym.spaces.Discrete(5))
    logits = np.array([0.5, 2.0, -1.0, 0.0, -2.0], np.float32)
    noise = actions.draw_noise(np.random.default_rng(1), (50_000,))
    assert noise.shape == (50_000, 5)
    assert noise.dtype == np.float32
    assert np.isfinite(noise).all()
    counts = np.bincount(actions.sample(logits, noise, None, mask), minlength=5)
    p = Categorical(torch.tensor(logits), None if mask is None else torch.tensor(mask))
    allowed = np.ones(5, bool) if mask is None else mask
    expected = p.log_probs.exp().double().numpy() * len(noise)
    assert (counts[~allowed] == 0).all()
    g_test = stats.power_divergence(
        counts[allowed], expected[allowed] * (counts.sum() / expected.sum()), lambda_=0
    )
    assert g_test.pvalue > 1e-3


def test_gumbel_noise_has_its_law_and_survives_a_uniform_of_zero() -> None:
    actions = CategoricalActions(gym.spaces.Discrete(3))
    noise = actions.draw_noise(np.random.default_rng(2), (4000,))
    assert stats.kstest(noise.ravel(), "gumbel_r").pvalue > 1e-3
    assert abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.06

    class Extremes:
        def random(self, shape: tuple[int, ...], dtype: Any) -> Any:
            assert shape == (1, 3)
            return np.array([[0.0, 0.5, 1 - 2**-24]], dtype)

    assert np.isfinite(actions.draw_noise(Extremes(), (1,))).all()  # type: ignore[arg-type]


def test_gaussian_samples_have_the_mean_and_sigma_asked_for() -> None:
    actions = gaussian_actions(box(-1, 1), F64)
    with torch.no_grad():
        actions.log_std.copy_(torch.tensor([0.7, -1.3]))
    mean = np.array([2.0, -3.0])
    noise = actions.draw_noise(np.random.default_rng(3), (5000,))
    samples = actions.sample(mean, noise, actions.std())
    for i, log_std in enumerate((0.7, -1.3)):
        assert stats.kstest(samples[:, i], stats.norm(mean[i], math.exp(log_std)).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(samples.T)[0, 1]) < 4 / math.sqrt(5000)


@pytest.mark.parametrize("mask", [None, MASK.numpy()], ids=["all", "masked"])
def test_a_choice_is_the_same_from_arrays_and_tensors(mask: Any) -> None:
    actions = CategoricalActions(gym.spaces.Discrete(5))
    outputs = normal(64, 5).float().numpy()
    noise = actions.draw_noise(np.random.default_rng(4), (64,))
    on_torch = None if mask is None else torch.tensor(mask)
    arrays = actions.sample(outputs, noise, actions.std(), mask)
    tensors = actions.sample(torch.tensor(outputs), torch.tensor(noise), actions.std(), on_torch)
    assert arrays.tolist() == tensors.tolist()
    modes = Categorical(torch.tensor(outputs), on_torch).mode()
    assert actions.mode(outputs, mask).tolist() == modes.tolist()
    assert actions.mode(torch.tensor(outputs), on_torch).tolist() == modes.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gaussian_action_is_the_same_from_arrays_and_tensors(dtype: torch.dtype) -> None:
    actions = gaussian_actions(box(-1, 1), dtype)
    numpy_dtype = np.float32 if dtype == torch.float32 else np.float64
    means = normal(16, 2).to(dtype)
    noise = actions.draw_noise(np.random.default_rng(5), (16,))
    assert noise.shape == (16, 2)
    assert noise.dtype == numpy_dtype
    arrays = actions.sample(means.numpy(), noise, actions.std())
    tensors = actions.sample(means, torch.tensor(noise), torch.tensor(actions.std()))
    assert arrays.dtype == numpy_dtype
    assert arrays.tolist() == tensors.tolist()
    assert actions.mode(means) is means


def test_sampled_actions_have_the_log_probability_of_their_noise() -> None:
    """log p(mu + sigma eps) = -sum(eps^2)/2 - sum(log sigma) - d/2 log 2 pi."""
    actions = gaussian_actions(box(-1, 1, (3,)), F64)
    means = normal(9, 3)
    noise = torch.tensor(actions.draw_noise(np.random.default_rng(6), (9,)))
    drawn = actions.sample(means, noise, torch.tensor(actions.std()))
    expected = -noise.square().sum(-1) / 2 + 3 * 0.5 - 1.5 * math.log(2 * math.pi)
    close(actions.distribution(means).log_prob(drawn).detach(), expected)


def test_rounding_names_what_the_log_probability_hangs_on() -> None:
    """The arguments of ratio_tolerance: z, mean, sigma, or the logits between ones."""
    mean, log_std, actions = normal(4, 3), normal(3, seed=1), normal(4, 3, seed=2)
    z, centre, sigma = DiagonalGaussian(mean, log_std).rounding(actions)
    close(sigma, log_std.exp())
    close(centre + sigma * z, actions)
    close(centre, mean)
    amplified, logits, unit = Categorical(mean).rounding(torch.zeros(4, dtype=torch.int64))
    close(logits, mean)
    assert (amplified == 1).all()
    assert (unit == 1).all()


def test_log_std_starts_as_asked_and_stays_inside_its_range() -> None:
    actions = gaussian_actions(box(-1, 1, (3,)))
    assert (actions.log_std == -0.5).all()
    assert actions.log_std.requires_grad
    low, high = LOG_STD_RANGE
    with torch.no_grad():
        actions.log_std.copy_(torch.tensor([low - 5, 0.25, high + 5]))
    assert actions.bounded_log_std().tolist() == [low, 0.25, high]
    assert actions.distribution(torch.zeros(4, 3)).log_std.tolist() == [low, 0.25, high]
    np.testing.assert_allclose(actions.std(), np.exp([low, 0.25, high]), rtol=1e-6)


@pytest.mark.parametrize("start", [0, -3, 7])
def test_discrete_actions_begin_at_the_start_of_the_space(start: int) -> None:
    space = gym.spaces.Discrete(4, start=start)
    actions = CategoricalActions(space)
    sent = actions.to_env(np.arange(4))
    assert sent.tolist() == [start, start + 1, start + 2, start + 3]
    assert sent.dtype == space.dtype
    assert all(space.contains(action) for action in sent)
    assert actions.clipped_share(np.arange(4)) == 0
    assert actions.n_outputs == 4


def test_bounded_box_is_centred_scaled_and_clipped() -> None:
    space = box([-2.0, 10.0], [4.0, 20.0])
    actions = gaussian_actions(space)
    sampled = np.array([[-1, -1], [0, 0], [1, 1], [0.5, -0.5], [-3, 3]], np.float32)
    before = sampled.copy()
    sent = actions.to_env(sampled)
    assert sent.tolist() == [[-2, 10], [1, 15], [4, 20], [2.5, 12.5], [-2, 20]]
    assert (sampled == before).all()
    assert all(space.contains(action) for action in sent)
    assert actions.clipped_share(sampled) == pytest.approx(0.2)


def test_unbounded_and_half_bounded_components_keep_their_units() -> None:
    space = box([-np.inf, -np.inf, -1.0, -3.0], [np.inf, 2.0, np.inf, 5.0], (4,))
    actions = gaussian_actions(space)
    sampled = np.array([[50, 50, 50, 1], [-50, -50, -50, -1], [0.5, 0.5, 0.5, 0.5]], np.float32)
    sent = actions.to_env(sampled)
    assert sent.tolist() == [[50, 2, 50, 5], [-50, -50, -1, -3], [0.5, 0.5, 0.5, 3]]
    assert actions.clipped_share(sampled) == pytest.approx(2 / 12)


def test_a_range_too_wide_to_be_meant_keeps_its_units() -> None:
    actions = gaussian_actions(box(-1e7, 1e7, (1,)))
    assert actions.to_env(np.array([[3.0]], np.float32)).tolist() == [[3.0]]


def test_bounds_at_the_limits_of_float64_count_as_unbounded() -> None:
    limit = np.finfo(np.float64).max
    actions = gaussian_actions(box(-limit, limit, (1,), np.float64))
    assert actions.to_env(np.array([[3.0]], np.float32)).tolist() == [[3.0]]


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1,), ()])
@pytest.mark.parametrize("env_dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_actions_sent_have_the_shape_and_dtype_of_the_space(
    shape: tuple[int, ...], env_dtype: Any, dtype: torch.dtype
) -> None:
    space = box(-0.3, 0.7, shape, env_dtype)
    actions = gaussian_actions(space, dtype)
    size = math.prod(shape)
    assert actions.noise_shape == (size,)
    assert actions.log_std.dtype == dtype
    assert actions.zeros(5).shape == (5, size)
    assert torch.from_numpy(actions.zeros(5)).dtype == dtype
    rows = (3 * normal(5, size)).to(dtype).numpy()
    sent = actions.to_env(rows)
    assert sent.shape == (5, *shape)
    assert sent.dtype == env_dtype
    assert all(space.contains(np.asarray(action)) for action in sent)
    expected = np.clip(rows * 0.5 + 0.2, -0.3, 0.7)
    np.testing.assert_allclose(sent.reshape(5, size), expected, rtol=1e-5, atol=1e-6)


def test_the_log_probability_is_that_of_the_sampled_action_not_of_the_clipped_one() -> None:
    actions = gaussian_actions(box(-1, 1, (1,)), F64)
    sampled = torch.tensor([[3.0]], dtype=F64)
    log_prob = actions.distribution(torch.zeros(1, 1, dtype=F64)).log_prob(sampled)
    expected = distributions.Normal(0.0, math.exp(-0.5)).log_prob(sampled).squeeze(-1)
    close(log_prob.detach(), expected.double(), 1e-6)
    assert actions.to_env(sampled.numpy()).tolist() == [[1.0]]


def test_make_actions_picks_the_kind_of_the_space() -> None:
    discrete = make_actions(gym.spaces.Discrete(3), -0.5, torch.float32)
    continuous = make_actions(box(-1, 1), -0.5, torch.float64)
    assert isinstance(discrete, CategoricalActions)
    assert isinstance(continuous, GaussianActions)
    assert continuous.log_std.dtype == torch.float64
    logits = torch.zeros(2, 3)
    assert isinstance(discrete.distribution(logits), Categorical)
    masked = discrete.distribution(logits, torch.tensor([True, True, False]))
    assert (masked.log_probs.exp()[:, 2] == 0).all()


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Text(4),
        gym.spaces.Box(0, 255, (2,), np.uint8),
        gym.spaces.Dict(),
        gym.spaces.Tuple((gym.spaces.Discrete(2), gym.spaces.Text(3))),
    ],
    ids=["Text", "Box of integers", "empty Dict", "Text in a Tuple"],
)
def test_other_spaces_are_refused_in_one_sentence(space: gym.Space[Any]) -> None:
    with pytest.raises(UnsupportedSpaceError, match="is not supported: Discrete, MultiDiscrete"):
        make_actions(space, -0.5, torch.float32)


def test_bounds_that_are_no_numbers_are_refused() -> None:
    space = box(-1, 1)
    space.low = np.array([np.nan, -1], np.float32)
    with pytest.raises(UnsupportedSpaceError, match="NaN bounds"):
        make_actions(space, -0.5, torch.float32)
