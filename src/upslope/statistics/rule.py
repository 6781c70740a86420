"""The rule of a comparison: who is looked at when, at which level, and what is then said.

Looking again after more seeds is a new chance to err. Each of the looks, at 5, 10, 15 and 20 seeds
an arm, is therefore made at 0.0182 instead of 0.05, and all of them together err in 5 % of the
comparisons of two equal arms (Pocock 1977); with up to 30 seeds there are six at 0.0142. Over
several pairs Holm's correction is made at every look. A pair that was decided stays decided.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from upslope.errors import ConfigError
from upslope.statistics.contrasts import Array, holm, paired, welch

BLOCK = 5  # seeds of an arm between two looks, and the least that decide
LEVELS = {20: 0.0182, 30: 0.0142}  # of a look, by the most seeds: four looks, six looks
OPEN, ABOVE, BELOW, EQUIVALENT = 0, 1, -1, 2


class Tested(Protocol):
    """What a rule asks of a contrast."""

    @property
    def difference(self) -> Array:
        """``[...]``, a - b."""

    def p(self) -> Array:
        """``[...]``, two-sided; NaN where nothing can be tested."""

    def interval(self, level: float | Array) -> tuple[Array, Array]:
        """Low and high ends ``[...]`` of the intervals of probability ``level``."""


@dataclass(frozen=True)
class Rule:
    """Fixed before any result is seen.

    ``looks`` are numbers of seeds an arm, ``alpha`` the level of each; two arms are *equivalent*
    if the whole interval of their difference lies within ``margin`` of 0.
    """

    looks: tuple[int, ...]
    alpha: float
    contrast: Callable[[Any, Any], Tested] = welch
    margin: float | None = None

    @classmethod
    def planned(cls, seeds: int, is_paired: bool = False, margin: float | None = None) -> Self:
        """The rule for up to ``seeds`` seeds an arm; fewer than 5 are never looked at.

        Raises:
            ConfigError: for more seeds than the level is corrected for.
        """
        most = next((most for most in LEVELS if seeds <= most), None)
        if most is None:
            raise ConfigError(
                f"{seeds} seeds are more than the {max(LEVELS)} for which the level of the looks "
                f"is corrected: take at most {max(LEVELS)}"
            )
        grid = range(BLOCK, seeds + 1, BLOCK)
        looks = (*grid, *([seeds] if seeds >= BLOCK and seeds % BLOCK else []))
        return cls(looks, LEVELS[most], paired if is_paired else welch, margin)


class Look(NamedTuple):
    """What was seen at ``n`` seeds an arm, ``[..., P]`` each, of the P pairs of arms.

    ``low`` and ``high`` are of the level 1 - alpha, ``holm_low`` and ``holm_high`` of the level
    that decided, which ``alpha`` says; ``verdict`` is OPEN, ABOVE, BELOW or EQUIVALENT.
    """

    n: int
    difference: Array
    low: Array
    high: Array
    p: Array
    p_holm: Array
    holm_low: Array
    holm_high: Array
    alpha: Array
    verdict: NDArray[np.int64]


def pairs(n_arms: int) -> list[tuple[int, int]]:
    """Every two arms, in the order of a look's last axis."""
    return list(combinations(range(n_arms), 2))


def decide(scores: Array, rule: Rule) -> list[Look]:
    """Make every look for which there are seeds.

    Args:
        scores: ``[A, ..., N]``, arm by arm; of the seeds, only complete blocks are looked at.
        rule: when to look and how.
    """
    found: list[Look] = []
    for n in rule.looks:
        if n <= scores.shape[-1]:
            before = found[-1].verdict if found else None
            found.append(look(scores[..., :n], rule, before))
    return found


def look(scores: Array, rule: Rule, before: NDArray[np.int64] | None = None) -> Look:
    """Look at all seeds of ``scores [A, ..., n]``; pairs decided before keep their verdict."""
    each = [rule.contrast(scores[i], scores[j]) for i, j in pairs(len(scores))]
    m = len(each)
    difference, p = (np.stack(x, -1) for x in ([c.difference for c in each], [c.p() for c in each]))
    low, high = _intervals(each, [1 - rule.alpha] * m)
    if before is None:
        before = np.full(p.shape, OPEN)
    # A hypothesis that was rejected stays so, and leaves the level to those that are left.
    p_holm, left = holm(np.where(np.isin(before, (ABOVE, BELOW)), 0.0, p))
    holm_low, holm_high = _intervals(each, [1 - rule.alpha / left[..., k] for k in range(m)])
    verdict = np.where(p_holm < rule.alpha, np.where(difference > 0, ABOVE, BELOW), OPEN)
    if rule.margin is not None:
        widest = _intervals(each, [1 - rule.alpha / m] * m)
        inside = (widest[0] > -rule.margin) & (widest[1] < rule.margin)
        verdict = np.where(inside, EQUIVALENT, verdict)
    verdict = np.where(before == OPEN, verdict, before)
    n = int(scores.shape[-1])
    return Look(
        n, difference, low, high, p, p_holm, holm_low, holm_high, rule.alpha / left, verdict
    )


def _intervals(each: list[Tested], levels: list[Any]) -> tuple[Array, Array]:
    """Low and high ends ``[..., P]`` of contrasts, each at a level of its own."""
    ends = [contrast.interval(level) for contrast, level in zip(each, levels, strict=True)]
    return np.stack([low for low, _ in ends], -1), np.stack([high for _, high in ends], -1)
