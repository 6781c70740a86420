"""How often the whole rule of a comparison errs, looks and Holm included, and how much it sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from upslope.errors import ConfigError
from upslope.statistics.contrasts import Array, welch
from upslope.statistics.rule import ABOVE, BELOW, EQUIVALENT, OPEN, Rule, decide, pairs

Law = Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.float64]]
REPEATED = 4000


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return rng.normal(0, 1, shape)


def lognormal(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return np.exp(rng.normal(0, 1, shape))


def failures(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Four of five seeds learn the task."""
    return np.where(rng.random(shape) < 0.8, rng.normal(450, 30, shape), rng.normal(100, 30, shape))


def ceiling(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return np.minimum(500, rng.normal(480, 60, shape))


LAWS = [normal, lognormal, failures, ceiling]


def wrong_share(law: Law, rule: Rule, arms: int, repeated: int = REPEATED) -> float:
    """Share of comparisons of equal arms in which some pair is called different."""
    rng = np.random.default_rng(7)
    last = decide(law(rng, (arms, repeated, rule.looks[-1])), rule)[-1]
    return float(np.isin(last.verdict, (ABOVE, BELOW)).any(-1).mean())


class Bootstrap:
    """The percentile bootstrap of a difference of means, in the place of Welch's t."""

    def __init__(self, a: Array, b: Array) -> None:
        rng = np.random.default_rng(1)
        self.difference = a.mean(-1) - b.mean(-1)
        n = a.shape[-1]
        counts = rng.multinomial(n, [1 / n] * n, (2, 1000)) / n
        self._drawn = a @ counts[0].T - b @ counts[1].T

    def p(self) -> Array:
        below = (self._drawn <= 0).mean(-1)
        return 2 * np.minimum(below, 1 - below)

    def interval(self, level: Any) -> tuple[Array, Array]:
        tail = float(np.max(1 - np.asarray(level))) / 2
        low, high = np.quantile(self._drawn, [tail, 1 - tail], axis=-1)
        return low, high


class TestEqualArms:
    @pytest.mark.parametrize("arms", [2, 3])
    @pytest.mark.parametrize("law", LAWS)
    def test_are_rarely_called_different(self, law: Law, arms: int) -> None:
        """Four looks, and over three pairs Holm's correction: at most 6 in 100."""
        assert wrong_share(law, Rule.planned(20), arms) <= 0.06

    @pytest.mark.parametrize("law", LAWS)
    def test_also_as_pairs_and_with_more_looks(self, law: Law) -> None:
        assert wrong_share(law, Rule.planned(20, is_paired=True), 2) <= 0.06
        assert wrong_share(law, Rule.planned(30), 2) <= 0.06

    def test_the_level_is_used(self) -> None:
        """A rule that never says anything would pass the above."""
        assert wrong_share(normal, Rule.planned(20), 2) >= 0.035

    def test_looking_at_five_percent_errs_too_often(self) -> None:
        naive = replace(Rule.planned(20), alpha=0.05)
        assert wrong_share(normal, naive, 2) > 0.10

    def test_without_holm_three_pairs_err_too_often(self) -> None:
        rule = Rule.planned(20)
        rng = np.random.default_rng(7)
        x = normal(rng, (3, REPEATED, 20))
        one_by_one = [decide(x[[i, j]], rule)[-1].verdict[..., 0] != OPEN for i, j in pairs(3)]
        assert np.any(one_by_one, axis=0).mean() > 0.08

    def test_the_percentile_bootstrap_fails_at_five_seeds(self) -> None:
        """The negative control: one look at 5 %, where Welch's t holds it."""
        one = Rule((5,), 0.05)
        assert wrong_share(normal, replace(one, contrast=Bootstrap), 2, 2000) > 0.10
        assert 0.035 < wrong_share(normal, one, 2, 2000) < 0.065


class TestPower:
    def test_one_deviation_is_mostly_found(self) -> None:
        """By 20 seeds .79 of the time, after 14 seeds on average."""
        rng = np.random.default_rng(3)
        x = normal(rng, (2, REPEATED, 20)) + np.array([1.0, 0.0])[:, None, None]
        looks = decide(x, Rule.planned(20))
        decided = np.stack([one.verdict[:, 0] != OPEN for one in looks])
        seeds = np.where(decided.any(0), np.array([5, 10, 15, 20])[decided.argmax(0)], 20)
        assert (looks[-1].verdict == ABOVE).mean() == pytest.approx(0.79, abs=0.03)
        assert seeds.mean() == pytest.approx(14, abs=1)
        assert (looks[-1].verdict == BELOW).mean() < 0.001

    def test_the_order_of_the_arms_is_that_of_the_verdict(self) -> None:
        rng = np.random.default_rng(4)
        x = normal(rng, (3, 50, 5)) + np.array([0.0, 20.0, 10.0])[:, None, None]
        assert (decide(x, Rule.planned(5))[0].verdict == [BELOW, BELOW, ABOVE]).all()

    def test_pairs_see_what_is_shared(self) -> None:
        rng = np.random.default_rng(5)
        shared = normal(rng, (1, REPEATED, 5))
        x = 2 * shared + normal(rng, (2, REPEATED, 5)) + np.array([1.5, 0.0])[:, None, None]
        found = [(decide(x, Rule.planned(5, by_pairs))[0].verdict == ABOVE).mean()
                 for by_pairs in (False, True)]  # fmt: skip
        assert found[1] > 2 * found[0]


class TestLooks:
    def test_are_planned(self) -> None:
        planned = {n: Rule.planned(n).looks for n in (1, 4, 5, 7, 10, 20, 30)}
        assert planned[1] == planned[4] == ()
        assert planned[5] == (5,)
        assert planned[7] == (5, 7)
        assert planned[10] == (5, 10)
        assert planned[20] == (5, 10, 15, 20)
        assert planned[30] == (5, 10, 15, 20, 25, 30)
        assert [Rule.planned(n).alpha for n in (5, 20, 21, 30)] == [0.0182, 0.0182, 0.0142, 0.0142]
        with pytest.raises(ConfigError, match="at most 30"):
            Rule.planned(31)

    def test_only_complete_blocks_are_looked_at(self) -> None:
        rule, x = Rule.planned(20), normal(np.random.default_rng(1), (2, 13))
        assert [one.n for one in decide(x, rule)] == [5, 10]
        assert decide(x[:, :4], rule) == []
        changed = x.copy()
        changed[:, 10:] += 1000.0
        for one, other in zip(decide(x, rule), decide(changed, rule), strict=True):
            assert one.p.tolist() == other.p.tolist()

    def test_a_decided_pair_stays_decided(self) -> None:
        x = normal(np.random.default_rng(1), (2, 20))
        x[0, :5] += 20.0
        x[0, 5:] -= 20.0
        found = decide(x, Rule.planned(20))
        assert [int(one.verdict[0]) for one in found] == [ABOVE] * 4
        assert found[-1].difference[0] < 0

    def test_its_level_goes_to_the_pairs_that_are_left(self) -> None:
        rng = np.random.default_rng(2)
        x = normal(rng, (3, 10))
        x[0, :5] += 50.0
        first, second = decide(x, Rule.planned(10))
        assert first.verdict.tolist() == [ABOVE, ABOVE, OPEN]
        assert second.p_holm[2] == pytest.approx(second.p[2])  # one pair is left
        alone = welch(x[1], x[2])
        assert (second.holm_low[2], second.holm_high[2]) == pytest.approx(
            tuple(map(float, alone.interval(1 - 0.0182)))
        )

    def test_the_interval_is_at_the_level_of_the_look(self) -> None:
        x = normal(np.random.default_rng(3), (2, 5))
        (found,) = decide(x, Rule.planned(5))
        low, high = welch(x[0], x[1]).interval(0.9818)
        assert (found.low[0], found.high[0]) == (low, high)

    def test_the_other_interval_is_at_the_level_that_decides(self) -> None:
        """It leaves 0 out exactly where the corrected p-value is below the level."""
        x = normal(np.random.default_rng(3), (3, 500, 5)) + np.array([0, 1, 2])[:, None, None]
        (found,) = decide(x, Rule.planned(5))
        excludes = (found.holm_low > 0) | (found.holm_high < 0)
        first = found.p == found.p.min(-1, keepdims=True)
        assert (excludes == (found.p * 3 < 0.0182))[first].all()
        assert (found.p < 0.0182)[first & ~excludes].any()
        low, high = (np.stack(ends, -1) for ends in zip(
            *(welch(x[i], x[j]).interval(1 - 0.0182 / 3) for i, j in pairs(3)), strict=True
        ))  # fmt: skip
        assert found.holm_low[first] == pytest.approx(low[first])
        assert found.holm_high[first] == pytest.approx(high[first])

    def test_equivalent_if_the_whole_interval_is_inside(self) -> None:
        x = normal(np.random.default_rng(4), (2, 10))
        (_, found) = decide(x, Rule.planned(10))
        widest = max(abs(found.low[0]), abs(found.high[0]))
        for margin, verdict in ((1.01 * widest, EQUIVALENT), (0.99 * widest, OPEN)):
            last = decide(x, Rule.planned(10, margin=margin))[-1]
            assert last.verdict[0] == verdict

    def test_equal_arms_without_spread_stay_open(self) -> None:
        x = np.full((2, 5), 500.0)
        (found,) = decide(x, Rule.planned(5, margin=1.0))
        assert found.verdict[0] == OPEN
        assert np.isnan([found.p[0], found.low[0]]).all()
