"""What a ladder found, in sentences that say no more than its intervals do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from upslope.lab.ladder import Ladder, RungResult
from upslope.lab.ladder_statistics import (
    CONSTANT,
    ENOUGH_SEEDS,
    HIGHER,
    LOWER,
    OPEN,
)
from upslope.statistics.intervals import Interval
from upslope.training import WINDOW


def findings(ladder: Ladder) -> list[str]:
    """Return the sentences, most important first."""
    said = [_range(ladder), _steps_up(ladder), *_without_effect(ladder)]
    said += [_variance(policy, ladder) for policy in ladder.gradient]
    shared = [r.rung for r in ladder.rungs if r.rung.estimator == ladder.rungs[-1].rung.estimator]
    first, others = shared[0].name, ", ".join(rung.name for rung in shared[1:])
    said.append(
        f"{others} follow the gradient of {first} too, so its variance is theirs: what differs is "
        "the step that they take along it."
    )
    said.append(
        "A small variance alone is no merit: episode returns aim at another mean (with gamma^t) "
        "than the rungs above, and a TD error or GAE is biased where V is wrong; the "
        "signal-to-noise ratio is free of the scale, though not of the bias."
    )
    return said


def decimals(ladder: Ladder) -> int:
    """Decimal places that show four figures of the largest return, at least one."""
    return decimal_places([r.final.value for r in ladder.rungs if r.final.value is not None])


def decimal_places(values: Sequence[float]) -> int:
    """Decimal places that show four figures of the largest value, at least one."""
    largest = max(map(abs, values), default=0.0)
    return 1 if largest == 0 else max(1, 3 - math.floor(math.log10(largest)))


def with_ci(interval: Interval, places: int, sign: str = "") -> str:
    """A return with its interval, where there is one."""
    if interval.value is None:
        return "-"
    shown = f"{interval.value:{sign},.{places}f}"
    if interval.ci is None:
        return shown
    low, high = interval.ci
    return f"{shown} [{low:{sign},.{places}f}, {high:{sign},.{places}f}]"


def figures(value: float | None, ci: list[float] | None) -> str:
    """A number of any size to three figures, with its interval."""
    if value is None:
        return "-"
    inside = "" if ci is None else f" [{', '.join(map(three, ci))}]"
    return three(value) + inside


def three(value: float) -> str:
    """Three figures, without an exponent where that is readable."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def _range(ladder: Ladder) -> str:
    """The lowest and the highest rung; which of two is better is another sentence's."""
    n = len(ladder.seeds)
    begin = (
        f"{ladder.env}, {n} {'seed' if n == 1 else 'seeds'}, {ladder.total_timesteps:,} steps a run"
    )
    known = [r for r in ladder.rungs if r.final.value is not None]
    if not known:
        return f"{begin}: no episode finished on any rung; train longer."
    fewest = min(run["final_episodes"] for r in known for run in r.runs)
    over = f"{WINDOW}" if fewest == WINDOW else f"{WINDOW} (or fewer, where no more finished)"
    places = decimals(ladder)
    ends = [_extreme(known, which, places) for which in (min, max)]
    said = f"{begin}: the last {over} training episodes averaged "
    said += f"from {ends[0]} to {ends[1]}" if ends[0] != ends[1] else ends[0]
    missing = [r.rung.name for r in ladder.rungs if r.final.value is None]
    if missing:
        said += f"; not every run of {', '.join(missing)} finished an episode: train longer"
    return said + "."


def _extreme(known: list[RungResult], which: Any, places: int) -> str:
    """The least or largest mean, and every rung that has it."""
    mean = which(r.final.value for r in known)
    there = [r for r in known if r.final.value == mean]
    shown = with_ci(there[0].final, places)
    if len(there[0].finals) > 1 and there[0].final.ci is None:
        shown += " with every seed"
    return f"{shown} ({', '.join(r.rung.name for r in there)})"


def _steps_up(ladder: Ladder) -> str:
    """The comparisons of neighbours: decided, or left open in words."""
    n, places = len(ladder.seeds), decimals(ladder)
    if n < ENOUGH_SEEDS:
        few = "One seed decides" if n == 1 else f"{n} seeds decide"
        return (
            f"{few} nothing ({ENOUGH_SEEDS} are the least), so no rung is called better than the "
            "one below"
            + (": the table has the differences with their 95 % intervals." if n > 1 else ".")
        )
    said = []
    for verdict, words in ((HIGHER, "higher"), (LOWER, "lower"), (OPEN, "not distinguishable")):
        named = [
            f"{here.rung.name} ({with_ci(d.decisive or d.interval, places, '+')})"
            for here, d in zip(ladder.rungs[1:], ladder.final, strict=True)
            if d.verdict == verdict
        ]
        if named:
            said.append(f"{words}: {', '.join(named)}")
    same = [
        f"{here.rung.name} ({with_ci(d.interval, places, '+')})"
        for here, d in zip(ladder.rungs[1:], ladder.final, strict=True)
        if d.verdict == CONSTANT
    ]
    if same:
        said.append(f"the same difference with every seed, hence no verdict: {', '.join(same)}")
    if not said:
        return "No rung can be compared with the one below: train longer."
    return (
        f"Against the rung below, all {len(ladder.final)} compared together at 5 % (Holm; each "
        f"interval at the level that decides): {'; '.join(said)}."
    )


def _without_effect(ladder: Ladder) -> list[str]:
    """Rungs whose runs ended with the weights of the rung below, bit for bit."""
    return [
        f"{here.rung.name} ended with exactly the weights of {below.rung.name}, with every seed: "
        "what is new on it changed nothing here."
        for below, here in pairwise(ladder.rungs)
        if [run["final_actor"] for run in here.runs] == [run["final_actor"] for run in below.runs]
    ]


def _variance(policy: dict[str, Any], ladder: Ladder) -> str:
    """How the variance of one episode's gradient changes from rung to rung at one policy."""
    when = "initial policy" if policy["timesteps"] == 0 else (
        f"policy of {ladder.rungs[_measured(ladder)].rung.name} after {policy['timesteps']:,} steps"
    )  # fmt: skip
    names = {r.rung.estimator: r.rung.name for r in reversed(ladder.rungs)}
    parts: dict[str, list[str]] = {"smaller": [], "larger": [], "not told apart": []}
    for row in policy["estimators"][1:]:
        ci = row["ratio_ci"]
        word = "not told apart"
        if ci is not None and not ci[0] <= 1 <= ci[1]:
            word = "smaller" if ci[1] < 1 else "larger"
        parts[word].append(f"{names[row['name']]} (x {figures(row['ratio'], ci)})")
    said = "; ".join(f"{word}: {', '.join(named)}" for word, named in parts.items() if named)
    mean = f"{policy['mean_return']:,.{decimals(ladder)}f}"
    return (
        f"Variance of one episode's gradient at the {when} (seed {policy['seed']}, average return "
        f"{mean}, {policy['episodes']:,} episodes, the same for all), "
        f"against the rung below and with intervals that hold together at 95 %: {said}."
    )


def _measured(ladder: Ladder) -> int:
    return next(i for i, r in enumerate(ladder.rungs) if r.runs[0]["gradient"])
