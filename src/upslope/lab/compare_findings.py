"""What a comparison found, in sentences that say no more than its intervals do."""

from __future__ import annotations

from typing import Any

from upslope.lab.compare_json import FAILED, FEW
from upslope.lab.ladder_findings import decimal_places
from upslope.statistics.rule import BLOCK

Json = dict[str, Any]


def findings(found: Json) -> list[str]:
    """Return the sentences of a comparison as ``compare.json`` has it."""
    places = places_of(found)
    said = [_what(found), *(_pair(found, pair, places) for pair in found["pairs"])]
    said += [_equal(arm, found["seeds_run"], places) for arm in found["arms"] if _is_equal(arm)]
    if found["stopped_early"]:
        said.append(
            f"Stopped at {found['seeds_run']} of up to {found['seeds']} seeds, as every pair was "
            f"{'decided or refused' if _refused(found) else 'decided'}."
        )
    if len(found["pairs"]) > 1:
        said.append(
            f"The {len(found['pairs'])} pairs were decided together (Holm's correction at every "
            "look); the intervals above are each for itself."
        )
    return said


def places_of(found: Json) -> int:
    """Decimal places that fit the arms' means."""
    return decimal_places([arm["mean"] for arm in found["arms"] if arm["mean"] is not None])


def number(value: float, places: int, sign: str = "") -> str:
    """A return, never as minus zero."""
    return f"{round(value, places) + 0.0:{sign},.{places}f}"


def with_ci(value: float | None, ci: list[float] | None, places: int, sign: str = "") -> str:
    """A return with its interval, where there is one."""
    if value is None:
        return "-"
    inside = "" if ci is None else f" [{', '.join(number(bound, places, sign) for bound in ci)}]"
    return number(value, places, sign) + inside


def _what(found: Json) -> str:
    names = [arm["name"] for arm in found["arms"]]
    how = "the mode of each action" if found["deterministic"] else "sampled actions"
    seeds = "1 seed" if found["seeds_run"] == 1 else f"{found['seeds_run']} seeds"
    shared = "the same for all" if found["paired"] else "others for each"
    return (
        f"{found['environment']}: {', '.join(names[:-1])} and {names[-1]}, {seeds} each "
        f"({shared}), {found['total_timesteps']:,} steps a run. A seed counts by the mean return "
        f"of its final policy over {found['episodes']} fresh episodes, {how}."
    )


def _pair(found: Json, pair: Json, places: int) -> str:
    """Verdict first, then the numbers behind it."""
    said = f"{pair['a']} minus {pair['b']}: {pair['verdict']}. "
    if pair["verdict"] == FAILED:
        arms = [arm for arm in found["arms"] if arm["name"] in (pair["a"], pair["b"])]
        return said + "; ".join(_failed(arm) for arm in arms if arm["failed"]) + "."
    if pair["elsewhere_at_most"] is not None:
        return said + _no_spread(found, pair, places)
    test = "paired t" if found["paired"] else "Welch's t"
    difference = with_ci(pair["difference"], pair["ci"], places, "+")
    level, n = f"{100 * pair['level']:.2f} %", pair["seeds"]
    if pair["p"] is None:
        said += f"Difference {difference}; one seed has no interval."
    else:
        said += f"Difference {difference} ({level} interval, {test}, p {pair['p']:.2g}) "
        said += f"at {n} seeds each; {_improvement(found, pair)}."
    if pair["verdict"] == FEW:
        said += f" {BLOCK} seeds are the least that decide."
    if pair["more_seeds"] is not None:
        said += f" {_more(found, pair)}"
    return said


def _refused(found: Json) -> bool:
    return any(pair["verdict"] == FAILED for pair in found["pairs"])


def _failed(arm: Json) -> str:
    """Which seeds, and why: an arm is not judged by those that are left."""
    failed, n = arm["failed"], len(arm["per_seed"])
    seeds = ", ".join(str(run["seed"]) for run in failed)
    others = ", and its mean over the others would flatter it" if len(failed) < n else ""
    return (
        f"{arm['name']} failed with {len(failed)} of {n} seeds ({seeds}){others} "
        f"({failed[0]['error']})"
    )


def _improvement(found: Json, pair: Json) -> str:
    test = "sign test" if found["paired"] else "Mann-Whitney"
    return (
        f"probability that {pair['a']} is higher {pair['probability_of_improvement']:.2f} "
        f"(exact {test}, p {pair['p_improvement']:.2g})"
    )


def _more(found: Json, pair: Json) -> str:
    """A range, as the spread that was seen and the difference are uncertain themselves."""
    fewest, most = pair["more_seeds"]
    what = "a difference of this size"
    if found["margin"] is not None:
        what = f"a difference of {found['margin']:g}"
    if most is None:
        seeds = "seed" if fewest == 1 else "seeds"
        return (
            f"To tell {what} apart takes at least about {fewest} more {seeds} each, without an "
            "upper end, as there may be none."
        )
    return f"To tell {what} apart takes about {fewest} to {most} more seeds each."


def _no_spread(found: Json, pair: Json, places: int) -> str:
    n, share = pair["seeds"], 100 * pair["elsewhere_at_most"]
    difference = number(pair["difference"], places, "+")
    where = "seeds" if found["paired"] else "seeds of either"
    return (
        f"The difference is {difference} with {n} of {n} {where}, which shows no spread to test "
        f"by: at most {share:.0f} % of seeds differ (95 %)."
    )


def _is_equal(arm: Json) -> bool:
    return arm["elsewhere_at_most"] is not None


def _equal(arm: Json, n: int, places: int) -> str:
    return (
        f"{arm['name']} scored {number(arm['mean'], places)} with {n} of {n} seeds, hence without "
        f"an interval: at most {100 * arm['elsewhere_at_most']:.0f} % of its seeds differ (95 %)."
    )
