"""Actions of every space: torch.distributions and scipy agree; samples are what they claim."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from scipy import integrate, stats
from torch import Tensor, distributions

from upslope.errors import UnsupportedSpaceError
from upslope.policies.actions import make_actions
from upslope.policies.distributions import Beta, SquashedGaussian
from upslope.theory.diagnostics import ratio_tolerance
from upslope.trees import leaves, map_tree

F64 = torch.float64
BOX = Box(np.array([-1, 2], np.float32), np.array([3, 2.5], np.float32))
TREE = Dict(a=BOX, b=Tuple((Discrete(3, start=4), MultiDiscrete([2, 3]))), c=MultiBinary(2))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def torched(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(normal(*shape, seed=seed))


def drawn(space: gym.Space[Any], kind: str, outputs: np.ndarray, n: int, mask: Any = None) -> Any:
    """``n`` samples from one row of outputs."""
    actions = make_actions(space, -0.3, F64, kind)
    noise = actions.draw_noise(np.random.default_rng(7), (n,))
    return actions, actions.sample(np.tile(outputs, (n, 1)), noise, actions.std(), mask)


class TestSquashed:
    BOUNDED = torch.tensor([True, True, False])

    def distribution(self) -> SquashedGaussian:
        return SquashedGaussian(
            torched(6, 3), torch.tensor([-0.5, 0.2, 0.1]).double(), self.BOUNDED
        )

    def test_log_prob_is_that_of_the_transformed_normal(self) -> None:
        ours, u = self.distribution(), torched(6, 3, seed=1)
        base = distributions.Normal(ours.mean, ours.log_std.exp())
        tanh = distributions.TransformedDistribution(base, distributions.TanhTransform())
        expected = torch.where(self.BOUNDED, tanh.log_prob(u.tanh()), base.log_prob(u)).sum(-1)
        torch.testing.assert_close(ours.log_prob(u), expected, rtol=0, atol=1e-10)

    def test_far_out_it_stays_finite(self) -> None:
        u = torch.full((1, 3), 200.0, dtype=F64)
        ours = SquashedGaussian(u, torch.zeros(3, dtype=F64), self.BOUNDED)
        assert float(ours.log_prob(u)) == pytest.approx(
            2 * (400 - 2 * math.log(2)) - 1.5 * math.log(2 * math.pi)
        )

    @pytest.mark.parametrize("mean", [0.0, 0.7, -3.0])
    @pytest.mark.parametrize("sigma", [0.1, 0.6, 2.0])
    def test_entropy_is_within_what_it_says_of_the_integral(
        self, mean: float, sigma: float
    ) -> None:
        ours = SquashedGaussian(
            torch.tensor([[mean]]).double(),
            torch.tensor([math.log(sigma)]).double(),
            torch.tensor([True]),
        )

        def integrand(u: float) -> float:
            slope = 2 * (math.log(2) - u - np.logaddexp(0, -2 * u))
            return float(stats.norm.pdf(u, mean, sigma) * slope)

        span = (mean - 12 * sigma, mean + 12 * sigma)
        correction = integrate.quad(integrand, *span, limit=400, epsabs=1e-10)[0]
        expected = stats.norm.entropy(mean, sigma) + correction
        assert float(ours.entropy()) == pytest.approx(expected, abs=1e-3)

    def test_kl_is_that_of_the_normals(self) -> None:
        one = self.distribution()
        other = SquashedGaussian(one.mean + 0.3, one.log_std - 0.2, self.BOUNDED)
        pair = [distributions.Normal(d.mean, d.log_std.exp()) for d in (one, other)]
        expected = distributions.kl_divergence(*pair).sum(-1)
        torch.testing.assert_close(one.kl(other), expected)

    def test_samples_follow_it_and_stay_inside(self) -> None:
        actions, sampled = drawn(BOX, "squashed", np.array([0.4, -0.2]), 20_000)
        sent = actions.to_env(sampled)
        assert all(BOX.contains(row) for row in sent[:100])
        inside = np.arctanh(np.clip((sent[:, 0].astype(float) - 1) / 2, -1 + 1e-9, 1 - 1e-9))
        assert stats.kstest(inside, stats.norm(0.4, math.exp(-0.3)).cdf).pvalue > 1e-3
        assert actions.clipped_share(sampled) == 0.0

    def test_components_without_bounds_are_not_squashed(self) -> None:
        space = Box(np.array([-1, -np.inf], np.float32), np.array([1, np.inf], np.float32))
        actions = make_actions(space, 0.0, F64, "squashed")
        assert actions.to_env(np.array([[50.0, 50.0]])).tolist() == [[1.0, 50.0]]


class TestBeta:
    def pair(self) -> tuple[Beta, distributions.Beta]:
        ours = Beta(torched(6, 4))
        return ours, distributions.Beta(ours.alpha, ours.beta)

    def test_it_is_torchs(self) -> None:
        ours, theirs = self.pair()
        x = torch.rand(6, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
        torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x).sum(-1))
        torch.testing.assert_close(ours.entropy(), theirs.entropy().sum(-1))
        other = Beta(torched(6, 4, seed=3))
        expected = distributions.kl_divergence(theirs, distributions.Beta(other.alpha, other.beta))
        torch.testing.assert_close(ours.kl(other), expected.sum(-1))

    def test_it_has_one_peak_and_the_mode_is_there(self) -> None:
        ours, _ = self.pair()
        assert ours.alpha.min() >= 1
        assert ours.beta.min() >= 1
        mode = ours.mode()
        for step in (-1e-3, 1e-3):
            assert (ours.log_prob(mode) >= ours.log_prob((mode + step).clamp(1e-6, 1 - 1e-6))).all()

    def test_samples_follow_it(self) -> None:
        outputs = np.array([0.5, -0.4, 1.5, 0.3])
        actions, sampled = drawn(BOX, "beta", outputs, 20_000)
        alpha, beta = np.split(1 + np.log1p(np.exp(outputs)), 2)
        for d in range(2):
            assert stats.kstest(sampled[:, d], stats.beta(alpha[d], beta[d]).cdf).pvalue > 1e-3
        assert all(BOX.contains(row) for row in actions.to_env(sampled)[:100])

    def test_it_needs_bounds(self) -> None:
        with pytest.raises(UnsupportedSpaceError, match="finite bounds"):
            make_actions(Box(0, np.inf, (2,)), 0.0, F64, "beta")


class TestChoices:
    SPACE = MultiDiscrete([2, 4, 3], start=[0, 5, -1])

    def test_it_is_the_sum_of_torchs(self) -> None:
        actions = make_actions(self.SPACE, 0.0, F64)
        logits, other = torched(5, 9), torched(5, 9, seed=2)
        ours = actions.distribution(logits)
        parts = [distributions.Categorical(logits=x) for x in logits.split([2, 4, 3], -1)]
        chosen = torch.tensor([[1, 3, 0], [0, 0, 2], [1, 2, 1], [0, 1, 0], [1, 0, 2]])
        expected = sum(part.log_prob(chosen[:, i]) for i, part in enumerate(parts))
        torch.testing.assert_close(ours.log_prob(chosen), expected)
        torch.testing.assert_close(ours.entropy(), sum(part.entropy() for part in parts))
        others = [distributions.Categorical(logits=x) for x in other.split([2, 4, 3], -1)]
        kl = sum(distributions.kl_divergence(a, b) for a, b in zip(parts, others, strict=True))
        torch.testing.assert_close(ours.kl(actions.distribution(other)), kl)

    def test_samples_follow_it(self) -> None:
        logits = normal(9)
        actions, sampled = drawn(self.SPACE, "gaussian", logits, 40_000)
        assert all(self.SPACE.contains(row) for row in actions.to_env(sampled[:200]))
        for i, part in enumerate(np.split(logits, [2, 6])):
            counts = np.bincount(sampled[:, i], minlength=len(part))
            expected = np.exp(part) / np.exp(part).sum() * len(sampled)
            assert stats.chisquare(counts, expected).pvalue > 1e-3

    def test_what_is_masked_has_no_probability(self) -> None:
        mask = np.array([True, False, False, True, True, False, True, True, False])
        actions, sampled = drawn(self.SPACE, "gaussian", normal(9), 2000, mask)
        assert set(sampled[:, 0]) == {0}
        assert set(sampled[:, 1]) == {1, 2}
        assert set(sampled[:, 2]) == {0, 1}
        given = actions.distribution(torched(9), torch.from_numpy(mask))
        assert float(given.log_prob(torch.tensor([1, 1, 0]))) < -1e20
        assert given.entropy().isfinite()
        shares = [
            float(given.log_prob(torch.tensor([0, i, j])).exp()) for i in (1, 2) for j in (0, 1)
        ]
        assert sum(shares) == pytest.approx(1)

    def test_bits_are_choices_of_two(self) -> None:
        actions, sampled = drawn(MultiBinary((2, 2)), "gaussian", normal(8), 50)
        sent = actions.to_env(sampled)
        assert sent.shape == (50, 2, 2)
        assert all(MultiBinary((2, 2)).contains(row) for row in sent)


class TestComposite:
    def test_it_is_the_sum_of_its_parts(self) -> None:
        whole = make_actions(TREE, 0.1, F64)
        outputs = torched(4, whole.n_outputs)
        actions = {
            "a": torched(4, 2, seed=1),
            "b": (torch.tensor([0, 1, 2, 0]), torch.tensor([[0, 1], [1, 2], [0, 0], [1, 1]])),
            "c": torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0]]),
        }
        parts = [make_actions(s, 0.1, F64) for s in (BOX, Discrete(3), MultiDiscrete([2, 3]))]
        parts.append(make_actions(MultiBinary(2), 0.1, F64))
        pieces = outputs.split([part.n_outputs for part in parts], -1)
        dists = [part.distribution(piece) for part, piece in zip(parts, pieces, strict=True)]
        ours = whole.distribution(outputs)
        each = zip(dists, leaves(actions), strict=True)
        torch.testing.assert_close(ours.log_prob(actions), sum(d.log_prob(x) for d, x in each))
        torch.testing.assert_close(ours.entropy(), sum(d.entropy() for d in dists))

    def test_samples_and_modes_are_in_the_space(self) -> None:
        actions, sampled = drawn(TREE, "gaussian", normal(14), 30)
        assert actions.n_outputs == 2 + 3 + 5 + 4
        assert actions.n_mask == 3 + 5 + 4
        sent = actions.to_env(sampled)
        for i in range(30):
            assert TREE.contains(map_tree(lambda x, i=i: x[i], sent))
        share = make_actions(BOX, -0.3, F64).clipped_share(sampled["a"])
        assert actions.clipped_share(sampled) == pytest.approx(share)
        assert actions.clipped_share(sampled) > 0

    def test_a_mask_reaches_each_part(self) -> None:
        mask = np.zeros(12, bool)
        mask[[1, 3, 6, 8, 11]] = True  # 1 of 3; 0 of 2 and 1 of 3; bits 0 and 1
        _, sampled = drawn(TREE, "gaussian", normal(14), 40, mask)
        assert set(sampled["b"][0]) == {1}
        assert {tuple(row) for row in sampled["b"][1]} == {(0, 1)}
        assert {tuple(row) for row in sampled["c"]} == {(0, 1)}


@pytest.mark.parametrize("kind", ["gaussian", "squashed", "beta"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_rounding_explains_what_two_ways_of_computing_differ_by(
    kind: str, dtype: torch.dtype
) -> None:
    """Eq. 11.7: outputs that differ in their last bits stay within the tolerance, larger not."""
    actions = make_actions(BOX, -0.5, dtype, kind)
    outputs = 2 * torched(200, actions.n_outputs).to(dtype)
    noise = actions.draw_noise(np.random.default_rng(1), (200,))
    taken = torch.from_numpy(
        actions.sample(outputs.numpy(), noise, actions.std()).astype(actions.zeros(1).dtype)
    )
    with torch.no_grad():
        compare(actions, outputs, taken, dtype)


def compare(actions: Any, outputs: Tensor, taken: Tensor, dtype: torch.dtype) -> None:
    given = actions.distribution(outputs)
    tolerance = float(ratio_tolerance(*given.rounding(taken)).detach())
    eps = torch.finfo(dtype).eps
    near = actions.distribution(outputs * (1 + 2 * eps)).log_prob(taken) - given.log_prob(taken)
    far = actions.distribution(outputs + 0.01).log_prob(taken) - given.log_prob(taken)
    assert float(near.abs().max()) < tolerance
    assert float(far.abs().max()) > 2 * tolerance


@pytest.mark.parametrize("kind", ["gaussian", "squashed", "beta"])
def test_the_gradient_is_that_of_finite_differences(kind: str) -> None:
    actions = make_actions(TREE, -0.2, F64, kind)
    outputs = torched(3, actions.n_outputs).requires_grad_()
    noise = actions.draw_noise(np.random.default_rng(1), (3,))
    taken = map_tree(
        torch.from_numpy, actions.sample(outputs.detach().numpy(), noise, actions.std())
    )
    taken = map_tree(lambda x: x.double() if x.is_floating_point() else x, taken)
    old = outputs.detach().clone() + 0.1
    for f in (
        lambda x: actions.distribution(x).log_prob(taken),
        lambda x: actions.distribution(x).entropy(),
        lambda x: actions.distribution(x).kl(actions.distribution(old)),
    ):
        assert torch.autograd.gradcheck(f, (outputs,), atol=1e-6)
        assert torch.autograd.gradgradcheck(f, (outputs,), atol=1e-5)
