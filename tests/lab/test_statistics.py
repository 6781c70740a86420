"""The decision and the intervals hold what they promise, on laws that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from upslope.envs.tabular import sentinel
from upslope.lab.exact import enumerate_trajectories, policy_gradient, state_probabilities
from upslope.lab.policies import SoftmaxTable, log_probabilities
from upslope.lab.statistics import ALPHA, decide, departure, interval, norm_range, trace_interval
from upslope.lab.tests import hotelling
from upslope.theory.objectives import policy_gradient_loss
from upslope.theory.returns import discount_weights, reward_to_go

F64 = torch.float64
REPETITIONS = 2000


def every_episode() -> tuple[Tensor, Tensor, Tensor]:
    """Gradient ``[N, d]`` of each possible episode by weights, loss and backward; law; target."""
    mdp, gamma = sentinel(3), 0.8
    policy = SoftmaxTable(torch.tensor([[0.5, -0.2], [0.0, 0.3], [-0.4, 0.4]], dtype=F64))
    batch, prob = enumerate_trajectories(mdp, state_probabilities(mdp, policy), 3)
    weights = reward_to_go(batch.rewards, batch.done, gamma)
    weights = weights * discount_weights(torch.arange(3)[:, None], gamma)
    logs = log_probabilities(policy, 3)[batch.states, batch.actions]
    rows = []
    for i in range(len(prob)):
        one = slice(i, i + 1)
        loss = policy_gradient_loss(logs[:, one], weights[:, one], batch.valid[:, one], 1.0)
        (g,) = torch.autograd.grad(loss, policy.theta, retain_graph=True)
        rows.append(-g.flatten())
    return torch.stack(rows), prob, policy_gradient(mdp, policy, "finite", gamma, 3)


CONTRASTS = torch.kron(torch.eye(3, dtype=F64), torch.tensor([[1.0], [-1.0]], dtype=F64)) / 2**0.5


def batch_means(
    gradients: Tensor, prob: Tensor, n: int, unit: int, rng: np.random.Generator
) -> Tensor:
    """``n`` means of ``unit`` sampled episodes each: exactly what sampling gives."""
    counts = rng.multinomial(unit, (prob / prob.sum()).numpy(), size=n)
    return torch.from_numpy(counts / unit) @ gradients


@pytest.fixture(scope="module")
def p_values() -> np.ndarray:
    gradients, prob, target = every_episode()
    rng = np.random.default_rng(0)
    return np.array([
        hotelling(batch_means(gradients, prob, 400, 50, rng), target, CONTRASTS)[1]
        for _ in range(REPETITIONS)
    ])  # fmt: skip


class TestFalseAlarms:
    """The test of one stage rejects as often as it says, over 2,000 repetitions."""

    @pytest.mark.parametrize(
        ("nominal", "low", "high"), [(0.05, 0.035, 0.065), (0.01, 0.003, 0.017)]
    )
    def test_share_of_rejections(
        self, p_values: np.ndarray, nominal: float, low: float, high: float
    ) -> None:
        assert low <= (p_values < nominal).mean() <= high

    def test_p_values_are_uniform(self, p_values: np.ndarray) -> None:
        assert stats.kstest(p_values, "uniform").pvalue > 1e-3

    def test_both_stages_never_reject_together(self, p_values: np.ndarray) -> None:
        first, second = p_values[: REPETITIONS // 2], p_values[REPETITIONS // 2 :]
        assert (np.maximum(first, second) < ALPHA).sum() == 0

    def test_a_fault_is_rejected(self) -> None:
        """Rewards a twentieth too large: seen in most samples of one stage's size, not in none."""
        gradients, prob, target = every_episode()
        rng = np.random.default_rng(1)
        rejected = [
            hotelling(batch_means(1.05 * gradients, prob, 1600, 50, rng), target, CONTRASTS)[1]
            < ALPHA
            for _ in range(20)
        ]
        assert sum(rejected) >= 10


def test_hotelling_needs_units_of_many_episodes() -> None:
    """Single skewed episodes in a small sample reject a true mean too often: a control."""
    gradients, prob, target = every_episode()
    rng = np.random.default_rng(2)
    rejected = [
        hotelling(batch_means(gradients, prob, 25, 1, rng), target, CONTRASTS)[1] < 0.01
        for _ in range(500)
    ]
    assert np.mean(rejected) > 0.015


class TestIntervals:
    def test_interval_is_students(self) -> None:
        x = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=F64)
        low, high = interval(x, 0.05)
        wanted = stats.t.interval(0.95, 3, loc=3.75, scale=stats.sem(x.numpy()))
        assert (low, high) == pytest.approx(wanted)

    def test_trace_interval_covers(self) -> None:
        rng, covered = np.random.default_rng(0), 0
        for _ in range(300):
            x = torch.from_numpy(rng.standard_normal((400, 3)) * [1.0, 2.0, 0.5])
            low, high = trace_interval(x, 10, 0.05)
            covered += low <= 10 * 5.25 <= high
        assert 0.90 <= covered / 300 <= 0.99

    def test_norm_range_covers_and_is_zero_below_only_where_it_must(self) -> None:
        rng, covered = np.random.default_rng(0), 0
        g, shift = torch.tensor([[3.0, 4.0], [0.3, 0.4]], dtype=F64)
        axes = torch.eye(2, dtype=F64)
        for _ in range(300):
            noise = torch.from_numpy(rng.standard_normal((100, 2)))
            low, high = norm_range(g + shift + noise, g, axes, 0.05)
            covered += low <= 0.1 <= high
        assert covered / 300 >= 0.95
        far = norm_range(2 * g + 1e-3 * noise, g, axes, 0.05)
        assert far[0] > 0.99


class TestVerdicts:
    @pytest.mark.parametrize(
        ("p", "ci", "norms", "exact", "verdict"),
        [
            ((1e-4, 1e-5), (0.2, 0.3), (0.1, 0.4), 0.25, "biased"),
            ((1e-4, 0.5), (-0.01, 0.02), (0.0, 0.05), 0.0, "unbiased"),
            ((0.3, 0.5), (-0.3, 0.2), (0.0, 0.4), 0.0, "undecided"),  # a bias that matters fits in
            ((0.3, 0.5), (-0.01, 0.02), (0.0, 0.05), 0.01, "undecided"),  # so does theory's own
            ((0.3, 0.5), (-0.01, 0.02), (0.0, 0.05), 0.2, "unbiased"),  # theory is contradicted
        ],
    )
    def test_table(
        self,
        p: tuple[float, float],
        ci: tuple[float, float],
        norms: tuple[float, float],
        exact: float,
        verdict: str,
    ) -> None:
        assert decide(p, ci, norms, exact) == verdict

    def test_rows_that_never_vary(self) -> None:
        mu, basis = torch.tensor([1.0, 2.0], dtype=F64), torch.eye(2, dtype=F64)
        still = mu.expand(50, 2)
        assert departure(still, mu, basis) == 1.0
        assert departure(still, mu + 0.1, basis) == 0.0
        rng = np.random.default_rng(0)
        half = still.clone()
        half[:, 0] += torch.from_numpy(rng.standard_normal(50))
        assert 0 < departure(half, mu, basis) < 1
        assert departure(half, mu + torch.tensor([0.0, 1.0], dtype=F64), basis) == 0.0
