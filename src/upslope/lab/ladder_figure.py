"""The ladder in one figure: learning curves with bands, and the gradient's variance per rung."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.lab.ladder import Ladder
from upslope.lab.seeded_runs import point_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Paul Tol's "muted": nine hues that people with any colour vision tell apart.
COLORS = (
    "#882255", "#CC6677", "#DDAA33", "#999933", "#117733", "#44AA99", "#66B2E0", "#332288",
    "#AA4499",
)  # fmt: skip
EPISODES = (0, (5, 1.5))  # the dashes of rungs that collect whole episodes
TITLE: dict[str, Any] = {"fontsize": 9.5, "loc": "left", "color": "#444444"}
LABEL_GAP = 0.052  # least distance of two labels, as a share of the axis


def save_figure(ladder: Ladder, path: Path) -> None:
    """Write the figure as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn = figure(ladder)
    FigureCanvasAgg(drawn)
    drawn.savefig(path, dpi=110, format="png")


def figure(ladder: Ladder) -> Figure:
    """Draw both panels."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(13, 6), layout="constrained")
    left, right = drawn.subplots(1, 2, width_ratios=[1.45, 1])
    _curves(left, ladder)
    _variances(right, ladder)
    drawn.suptitle(
        f"{ladder.env}: from REINFORCE to PPO, one idea a rung",
        fontsize=13, fontweight="bold", x=0.01, ha="left",
    )  # fmt: skip
    return drawn


def _curves(axes: Axes, ladder: Ladder) -> None:
    """One line a rung, dashed where it collects whole episodes, and its name at the line's end."""
    steps, n = point_steps(ladder.total_timesteps), len(ladder.seeds)
    ends: list[tuple[float, str, str]] = []
    for i, (rung, color) in enumerate(zip(ladder.rungs, COLORS, strict=True), 1):
        points = [
            (x, p.value) for x, p in zip(steps, rung.curve, strict=True) if p.value is not None
        ]
        if not points:
            continue
        style: Any = EPISODES if rung.rung.algorithm == "reinforce" else "solid"
        is_hidden = i < len(ladder.rungs) and rung.curve == ladder.rungs[i].curve
        width = 4.5 if is_hidden else 1.9  # so that it shows under the equal line above it
        x, means = [x for x, _ in points], [mean for _, mean in points]
        axes.plot(x, means, color=color, linestyle=style, linewidth=width, zorder=3)
        bands = [(x, *p.ci) for x, p in zip(steps, rung.curve, strict=True) if p.ci is not None]
        if bands:
            x, low, high = map(list, zip(*bands, strict=True))
            axes.fill_between(x, low, high, color=color, alpha=0.10, linewidth=0)
        ends.append((means[-1], f"{i} {rung.rung.name}", color))
    _bound(axes, ladder)
    axes.set_xlim(0, ladder.total_timesteps)
    axes.set_xlabel("environment steps (dashed: batches of whole episodes, solid: T x B rollouts)")
    band = "band: 95 % t interval, pointwise" if n > 1 else "one seed, no interval"
    seeds = f"{n} seeds" if n > 1 else "1 seed"
    axes.set_title(f"average episode return\nmean of {seeds}; {band}", **TITLE)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    plain_axes(axes)
    _label_ends(axes, ends)


def _bound(axes: Axes, ladder: Ladder) -> None:
    """Let the means fill the axis: wide bands of few seeds are cut, not the curves squeezed."""
    means = [p.value for rung in ladder.rungs for p in rung.curve if p.value is not None]
    if means:
        low, high = min(means), max(means)
        room = 0.12 * (high - low) or max(1.0, abs(high))
        axes.set_ylim(low - room, high + room)


def _label_ends(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Names right of the axis, moved apart where lines end together, each tied to its line."""
    low, high = axes.get_ylim()
    shares = [(value - low) / (high - low) for value, _, _ in ends]
    order = sorted(range(len(ends)), key=lambda i: (shares[i], -i))
    places = _apart([shares[i] for i in order], LABEL_GAP)
    for place, i in zip(places, order, strict=True):
        _, text, color = ends[i]
        axes.annotate(
            text, xy=(1.0, shares[i]), xytext=(1.045, place), xycoords="axes fraction",
            textcoords="axes fraction", va="center", fontsize=9.5, color=color, fontweight="bold",
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.8, "relpos": (0, 0.5),
                        "shrinkA": 1, "shrinkB": 0},
        )  # fmt: skip


def _apart(places: list[float], gap: float) -> list[float]:
    """Rising places at least ``gap`` apart, inside [0, 1] where they fit, near where they were.

    Places that touch are put around their mean, group by group, until no groups touch.
    """
    groups = [[place] for place in places]
    while True:
        centres = [_centre(group, gap) for group in groups]
        ranges = [
            (c - gap * len(g) / 2, c + gap * len(g) / 2)
            for c, g in zip(centres, groups, strict=True)
        ]
        touching = next(
            (i for i, (a, b) in enumerate(pairwise(ranges)) if a[1] > b[0] + 1e-12), None
        )
        if touching is None:
            break
        groups[touching : touching + 2] = [groups[touching] + groups[touching + 1]]
    return [
        start + gap * (k + 0.5) for (start, _), group in zip(ranges, groups, strict=True)
        for k in range(len(group))
    ]  # fmt: skip


def _centre(group: list[float], gap: float) -> float:
    half = gap * len(group) / 2
    return min(max(sum(group) / len(group), half), max(half, 1 - half))


def _variances(axes: Axes, ladder: Ladder) -> None:
    """A pair of bars an estimator: at the initial policy (pale) and at the trained one."""
    names = [row["name"] for row in ladder.gradient[0]["estimators"]]
    height, lows = 0.38, []
    for k, policy in enumerate(ladder.gradient):
        for y, row in enumerate(policy["estimators"]):
            if row["trace"] is None:
                continue
            color = COLORS[_rungs_of(ladder, row["name"])[0]]
            at = y + (k - 0.5) * height
            axes.barh(at, row["trace"], height * 0.92, color=color, alpha=(0.38, 0.95)[k], zorder=2)
            low, high = row["trace_ci"]
            axes.plot([low, high], [at, at], color="black", linewidth=1.1, zorder=3)
            axes.plot([low, high], [at, at], "|", color="black", markersize=6, zorder=3)
            lows.append(low)
    axes.set_xscale("log")
    if lows:
        axes.set_xlim(left=10 ** _floor_of_log(min(lows)))
    axes.set_yticks(range(len(names)), [_bar_label(ladder, name) for name in names], fontsize=9.5)
    axes.invert_yaxis()
    axes.set_xlabel("trace of the covariance; whisker: 95 %, jackknife")
    first, second = (f"{policy['mean_return']:.4g}" for policy in ladder.gradient)
    said = f"pale: initial policy (return {first}); full: a trained one ({second})"
    axes.set_title(f"variance of one episode's gradient\n{said}", **TITLE)
    plain_axes(axes)


def _floor_of_log(value: float) -> int:
    """The power of ten below a positive number, with a little room for a bar to be seen."""
    from math import floor, log10

    return floor(log10(value) - 0.15)


def _rungs_of(ladder: Ladder, estimator: str) -> list[int]:
    return [i for i, r in enumerate(ladder.rungs) if r.rung.estimator == estimator]


def _bar_label(ladder: Ladder, estimator: str) -> str:
    places = _rungs_of(ladder, estimator)
    name = ladder.rungs[places[0]].rung.name
    if len(places) == 1:
        return f"{places[0] + 1} {name}"
    return f"{places[0] + 1}-{places[-1] + 1} {name},\nNPG, TRPO, PPO" if len(places) == 4 else name


def plain_axes(axes: Axes) -> None:
    """No frame but two axes, and a pale grid behind everything."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(True, color="#e6e6e6", linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)
