"""Intervals, tests and ranks of a comparison: against scipy, by hand, by how often they cover."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from upslope.statistics.contrasts import (
    Contrast,
    holm,
    more_seeds,
    paired,
    probability_of_improvement,
    share_above,
    welch,
)
from upslope.statistics.intervals import (
    clopper_pearson,
    elsewhere_at_most,
    iqm_interval,
    mean_interval,
    wilson,
)

SHARES = [(0, 7), (1, 7), (3, 20), (50, 100), (99, 100), (100, 100), (1, 1)]


def draws(seed: int, *shape: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(3, 2, shape)


class TestShares:
    @pytest.mark.parametrize(("count", "n"), SHARES)
    @pytest.mark.parametrize("level", [0.8, 0.95])
    def test_as_in_scipy(self, count: int, n: int, level: float) -> None:
        of_scipy = stats.binomtest(count, n)
        exact = of_scipy.proportion_ci(level, "exact")
        assert clopper_pearson(count, n, level) == pytest.approx((exact.low, exact.high))
        score = of_scipy.proportion_ci(level, "wilson")
        assert wilson(count, n, level) == pytest.approx((score.low, score.high), abs=1e-12)

    @pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
    def test_the_exact_one_covers_at_least_its_level(self, share: float) -> None:
        """Summed over all counts; Wilson's only comes near."""
        n, near = 100, 0.0
        exact = 0.0
        for count in range(n + 1):
            weight = stats.binom.pmf(count, n, share)
            low, high = clopper_pearson(count, n)
            exact += weight * (low <= share <= high)
            low, high = wilson(count, n)
            near += weight * (low <= share <= high)
        assert exact >= 0.95
        assert 0.9 < near < 0.99

    def test_equal_values_leave_a_share_open(self) -> None:
        found = [round(100 * elsewhere_at_most(n)) for n in (3, 5, 10, 100)]
        assert found == [63, 45, 26, 3]
        low, high = clopper_pearson(0, 20, 0.9)  # one tail of 5 %
        assert (low, high) == pytest.approx((0, elsewhere_at_most(20)))


class TestMeans:
    def test_t_covers_normal_seeds(self) -> None:
        """n = 5, 4,000 repetitions: a standard error of 0.0034."""
        inside = [mean_interval(x.tolist()).ci for x in draws(1, 4000, 5)]
        share = np.mean([ci is not None and ci[0] <= 3 <= ci[1] for ci in inside])
        assert 0.94 <= share <= 0.96

    def test_iqm_is_scipys_trimmed_mean_with_its_winsorised_deviation(self) -> None:
        for n in (4, 10, 13, 20):
            x = draws(n, n)
            found, cut = iqm_interval(x.tolist()), n // 4
            assert found.value == pytest.approx(stats.trim_mean(x, 0.25))
            wins = stats.mstats.winsorize(x, (cut / n, cut / n))
            kept = n - 2 * cut
            half = stats.t.ppf(0.975, kept - 1) * np.std(wins, ddof=1) * np.sqrt(n) / kept
            mean = stats.trim_mean(x, 0.25)
            assert found.ci == pytest.approx([mean - half, mean + half])

    def test_iqm_hides_what_the_mean_shows(self) -> None:
        assert iqm_interval([500.0] * 4 + [0.0]).value == 500
        assert iqm_interval([500.0] * 4 + [0.0]).ci is None
        assert mean_interval([500.0] * 4 + [0.0]).value == 400
        assert iqm_interval([]).value is None

    @pytest.mark.parametrize(
        ("law", "centre"),
        [
            (lambda rng, shape: rng.normal(0, 1, shape), 0.0),
            (lambda rng, shape: np.exp(rng.normal(0, 1, shape)), None),
        ],
        ids=["normal", "lognormal"],
    )
    def test_iqm_covers_from_ten_seeds(
        self, law: Callable[..., NDArray[np.float64]], centre: float | None
    ) -> None:
        rng = np.random.default_rng(3)
        truth = float(stats.trim_mean(law(rng, 400_000), 0.25)) if centre is None else centre
        found = [iqm_interval(x.tolist()).ci for x in law(rng, (3000, 10))]
        share = np.mean([ci is not None and ci[0] <= truth <= ci[1] for ci in found])
        assert 0.91 <= share <= 0.97


class TestContrasts:
    A, B = draws(4, 6), draws(5, 9) + 1

    def test_welch_is_scipys(self) -> None:
        known = stats.ttest_ind(self.A, self.B, equal_var=False)
        found = welch(self.A, self.B)
        assert float(found.p()) == pytest.approx(known.pvalue)
        ci = known.confidence_interval(0.9818)
        assert found.interval(0.9818) == pytest.approx((ci.low, ci.high))

    def test_paired_is_scipys(self) -> None:
        other = self.A + draws(6, 6)
        known = stats.ttest_rel(self.A, other)
        found = paired(self.A, other)
        assert float(found.p()) == pytest.approx(known.pvalue)
        ci = known.confidence_interval(0.9)
        assert found.interval(0.9) == pytest.approx((ci.low, ci.high))

    @pytest.mark.parametrize("contrast", [welch, paired])
    def test_many_at_once_are_each_by_itself(self, contrast: Any) -> None:
        a, b = draws(7, 11, 5), draws(8, 11, 5)
        together = contrast(a, b)
        for i in range(11):
            one = contrast(a[i], b[i])
            assert together.p()[i] == pytest.approx(float(one.p()))
            assert together.interval(0.8)[0][i] == pytest.approx(float(one.interval(0.8)[0]))

    @pytest.mark.parametrize("contrast", [welch, paired])
    def test_no_spread_is_no_evidence(self, contrast: Any) -> None:
        """Of values whose mean is not exact, so that their computed variance is not 0."""
        a, b = np.full(6, 0.1), np.zeros(6)
        assert a.var() > 0
        assert (a - b).var() > 0
        found = contrast(a, b)
        assert np.isnan([found.p(), *found.interval(0.95)]).all()
        one = contrast(np.full(1, 0.1), np.full(1, 0.3))
        assert np.isnan(one.p())

    def test_one_arm_without_spread(self) -> None:
        known = stats.ttest_1samp(self.A, 2.0)
        assert float(welch(self.A, np.full(6, 2.0)).p()) == pytest.approx(known.pvalue)


class TestHolm:
    def test_by_hand(self) -> None:
        corrected, left = holm(np.array([0.03, 0.001, 0.02, np.nan]))
        assert corrected[:3] == pytest.approx([0.06, 0.004, 0.06])
        assert np.isnan(corrected[3])
        assert left.tolist() == [2, 4, 3, 1]
        assert holm(np.array([0.7, 0.6]))[0].tolist() == [1.0, 1.0]

    def test_as_it_steps_down(self) -> None:
        """Reject by rising p while p <= alpha / (m - k), and stop at the first that is not."""
        rng = np.random.default_rng(9)
        family = rng.random((200, 4)) ** 4
        for alpha in (0.01, 0.05, 0.3):
            rejected = holm(family)[0] <= alpha
            for row, found in zip(family, rejected, strict=True):
                expected = set()
                for k, i in enumerate(np.argsort(row)):
                    if row[i] > alpha / (4 - k):
                        break
                    expected.add(int(i))
                assert set(np.flatnonzero(found)) == expected


class TestRanks:
    def test_without_ties_as_in_scipy(self) -> None:
        for n, m in [(3, 4), (5, 5), (10, 7), (20, 20)]:
            a, b = draws(n, n) + 0.8, draws(m + 50, m)
            share, p = probability_of_improvement(a, b)
            known = stats.mannwhitneyu(a, b, method="exact")
            assert share == pytest.approx(known.statistic / (n * m))
            assert p == pytest.approx(known.pvalue)

    @pytest.mark.parametrize("seed", range(4))
    def test_with_ties_as_by_every_permutation(self, seed: int) -> None:
        a, b = np.split(np.random.default_rng(seed).integers(0, 5, 14).astype(float), [7])
        share, p = probability_of_improvement(a, b)
        ranks = stats.rankdata(np.concatenate([a, b]))
        known = stats.permutation_test(
            (ranks[:7], ranks[7:]), lambda x, _: x.sum(), permutation_type="independent",
            n_resamples=np.inf,
        )  # fmt: skip
        assert p == pytest.approx(known.pvalue)
        above = np.mean([(x > y) + 0.5 * (x == y) for x in a for y in b])
        assert share == pytest.approx(above)

    def test_all_equal(self) -> None:
        same = np.full(5, 500.0)
        assert probability_of_improvement(same, same) == (0.5, 1.0)
        assert share_above(same, same) == (0.5, 1.0)

    def test_complete_separation_of_five(self) -> None:
        low, high = np.arange(5.0), np.arange(5.0) + 10
        assert probability_of_improvement(high, low) == (1.0, pytest.approx(2 / 252))
        assert probability_of_improvement(low, high) == (0.0, pytest.approx(2 / 252))
        assert share_above(high, low) == (1.0, pytest.approx(2 / 32))

    def test_the_sign_test_leaves_ties_out(self) -> None:
        a, b = np.array([1.0, 2, 3, 4, 5, 6]), np.array([1.0, 1, 1, 1, 1, 7])
        share, p = share_above(a, b)
        assert share == pytest.approx(4.5 / 6)
        assert p == pytest.approx(stats.binomtest(4, 5).pvalue)


class TestMoreSeeds:
    def power(self, n: float, gap: float, sd: float, alpha: float) -> float:
        df, shift = 2 * n - 2, gap / (sd * np.sqrt(2 / n))
        critical = stats.t.isf(alpha / 2, df)
        return float(stats.nct.sf(critical, df, shift) + stats.nct.cdf(-critical, df, shift))

    @pytest.mark.parametrize("alpha", [0.05, 0.0182])
    def test_a_range_whose_ends_have_the_power(self, alpha: float) -> None:
        """The ends of the 80 % interval of the spread, put into the power of a t test."""
        n, sd, gap = 5, 1.0, 0.5
        error = np.array(sd * np.sqrt(2 / n))
        contrast = Contrast(np.array(1.2), error, np.array(float(2 * n - 2)))
        spread = [sd * np.sqrt(8 / stats.chi2.isf(tail, 8)) for tail in (0.1, 0.9)]
        for more, s in zip(more_seeds(contrast, n, alpha, gap), spread, strict=True):
            assert more is not None
            assert self.power(n + more, gap, s, alpha) == pytest.approx(0.8, abs=0.02)

    def test_the_difference_is_uncertain_too(self) -> None:
        contrast = Contrast(np.array(1.2), np.array(np.sqrt(2 / 5)), np.array(8.0))
        low, high = map(float, contrast.interval(0.8))
        expected = (more_seeds(contrast, 5, 0.05, high)[0], more_seeds(contrast, 5, 0.05, low)[1])
        assert more_seeds(contrast, 5, 0.05) == expected
        mirrored = contrast._replace(difference=np.array(-1.2))
        assert more_seeds(mirrored, 5, 0.05) == expected

    def test_no_upper_end_where_there_may_be_no_difference(self) -> None:
        contrast = welch(draws(1, 5), draws(2, 5))
        fewest, most = more_seeds(contrast, 5, 0.0182)
        assert most is None
        assert fewest >= 1
        few, many = more_seeds(contrast, 5, 0.0182, difference=0.5)
        assert many is not None
        assert few < many
        assert more_seeds(contrast, 5, 0.0182, difference=-0.5) == (few, many)
