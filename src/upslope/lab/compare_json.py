"""The JSON of a comparison: each run, each arm alone, and every pair with its verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from upslope.lab.seeded_runs import POINTS, Result
from upslope.statistics.contrasts import (
    Contrast,
    more_seeds,
    paired,
    probability_of_improvement,
    share_above,
    welch,
)
from upslope.statistics.intervals import elsewhere_at_most, iqm_interval, mean_interval
from upslope.statistics.rule import ABOVE, BELOW, BLOCK, EQUIVALENT, OPEN, Look, pairs

if TYPE_CHECKING:
    from upslope.lab.compare import Comparison, Plan

ENOUGH_FOR_IQM = 10  # seeds; of fewer, an interval of the middle half does not cover
FEW = f"refused: fewer than {BLOCK} seeds"
NO_SPREAD = "refused: no spread"
FAILED = "refused: a seed failed"
INDISTINGUISHABLE = "not distinguishable"


def arm_json(runs: Sequence[Result], threshold: float | None) -> dict[str, Any]:
    """What is said of one arm alone: intervals of 95 % over its seeds.

    Where a seed failed there is neither mean nor worst: those of the others would flatter it.
    """
    failed = [{"seed": run["seed"], "error": run["error"]} for run in runs if run.get("error")]
    scores = [float(run["score"]["mean"]) for run in runs if not run.get("error")]
    curve = [mean_interval([run["curve"][k] for run in runs]) for k in range(POINTS)]
    return {
        **_spread_json([] if failed else scores),
        "threshold": threshold,
        "failures": None if threshold is None else sum(score < threshold for score in scores),
        "failed": failed,
        "per_seed": [run["score"]["mean"] for run in runs],
        "curve": [point.to_json() for point in curve],
    }


def _spread_json(scores: Sequence[float]) -> dict[str, Any]:
    """Means and worst of an arm; nothing of none."""
    mean, iqm = mean_interval(scores), iqm_interval(scores)
    enough = len(scores) >= ENOUGH_FOR_IQM
    is_equal = len(scores) > 1 and min(scores) == max(scores)
    has_std = len(scores) > 1 and not is_equal
    return {
        "mean": mean.value,
        "ci95": mean.ci,
        "std": float(np.std(scores, ddof=1)) if has_std else 0.0 if scores else None,
        "iqm": iqm.value if enough else None,
        "iqm_ci95": iqm.ci if enough else None,
        "min": min(scores, default=None),
        "elsewhere_at_most": elsewhere_at_most(len(scores)) if is_equal else None,
    }


def run_json(run: Result) -> dict[str, Any]:
    """One run, flat: its score's numbers beside its seed."""
    flat = {name: value for name, value in run.items() if name != "score"}
    return {**flat, "error": run.get("error"), **run["score"]}


def pair_json(found: Comparison, seen: Sequence[Look], k: int) -> dict[str, Any]:
    """A pair at the look that decided it, or at the last one."""
    plan, rule = found.plan, found.plan.rule
    i, j = pairs(len(plan.arms))[k]
    at = next((one for one in seen if one.verdict[k] != OPEN), seen[-1])
    a, b = found.scores[i, : at.n], found.scores[j, : at.n]
    has_failed = found.has_failed[i] or found.has_failed[j]
    verdict = FAILED if has_failed else _verdict(plan, at, k) if found.looks else FEW
    above = share_above if plan.is_paired else probability_of_improvement
    improvement, p_improvement = (None, None) if has_failed else above(a, b)
    contrast = (paired if plan.is_paired else welch)(a, b)
    has_spread = float(contrast.error) > 0
    is_equal = at.n > 1 and not has_spread and not has_failed
    return {
        "a": plan.arms[i].name,
        "b": plan.arms[j].name,
        **_look_json(at, k),
        "level": 1 - rule.alpha,
        "verdict": verdict,
        "more_seeds": _more(contrast, at, k, plan)
        if has_spread and verdict == INDISTINGUISHABLE
        else None,
        "probability_of_improvement": improvement,
        "p_improvement": p_improvement,
        "elsewhere_at_most": elsewhere_at_most(at.n) if is_equal else None,
        "looks": [_look_json(one, k) for one in found.looks],
    }


def _verdict(plan: Plan, at: Look, k: int) -> str:
    i, j = pairs(len(plan.arms))[k]
    a, b, said = plan.arms[i].name, plan.arms[j].name, int(at.verdict[k])
    if said == OPEN:
        has_spread = not np.isnan(at.p[k])
        return INDISTINGUISHABLE if has_spread or at.difference[k] == 0 else NO_SPREAD
    words = {ABOVE: f"{a} above {b}", BELOW: f"{b} above {a}"}
    return f"equivalent within {plan.margin:g}" if said == EQUIVALENT else words[said]


def _look_json(at: Look, k: int) -> dict[str, Any]:
    names = ("difference", "low", "high", "p", "p_holm", "holm_low", "holm_high")
    numbers = {name: float(getattr(at, name)[k]) for name in names}
    known = {name: None if np.isnan(value) else value for name, value in numbers.items()}
    low, high, h_low, h_high = (known[x] for x in ("low", "high", "holm_low", "holm_high"))
    return {
        "seeds": at.n,
        "difference": known["difference"],
        "ci": None if low is None else [low, high],
        "p": known["p"],
        "p_holm": known["p_holm"],
        "ci_holm": None if h_low is None else [h_low, h_high],
    }


def _more(contrast: Contrast, at: Look, k: int, plan: Plan) -> list[int | None]:
    """Fewest and most further seeds for the difference seen, or for the margin that was named.

    At the level that decided: with several pairs a part of the rule's.
    """
    return list(more_seeds(contrast, at.n, float(at.alpha[k]), plan.margin))
