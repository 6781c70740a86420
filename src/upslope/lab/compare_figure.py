"""The figure of a comparison: learning curves, and every seed's score beside its arm's mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.lab.ladder_figure import COLORS, TITLE, plain_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Json = dict[str, Any]


def save_figure(found: Json, path: Path) -> None:
    """Write the figure of a comparison, as ``compare.json`` has it, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn = figure(found)
    FigureCanvasAgg(drawn)
    drawn.savefig(path, dpi=100, format="png")


def figure(found: Json) -> Figure:
    """Draw both panels."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(11.5, 4.8), layout="constrained")
    left, right = drawn.subplots(1, 2, width_ratios=[1.5, 1])
    _curves(left, found)
    _seeds(right, found)
    verdicts = "; ".join(_short(found, pair) for pair in found["pairs"][:3])
    drawn.suptitle(
        f"{found['environment']}: {verdicts}", fontsize=12, fontweight="bold", x=0.01, ha="left"
    )
    return drawn


def _short(found: Json, pair: Json) -> str:
    """The verdict, with the names where it does not have them."""
    if pair["verdict"].endswith((f"above {pair['a']}", f"above {pair['b']}")):
        return str(pair["verdict"])
    return f"{pair['a']} and {pair['b']} {pair['verdict']}"


def _curves(axes: Axes, found: Json) -> None:
    """Mean over the seeds, each seed's own curve, and a pointwise band."""
    steps, n = found["curve_steps"], found["seeds_run"]
    for k, arm in enumerate(found["arms"]):
        color = _color(k)
        for run in found["runs"]:
            if run["arm"] == arm["name"]:
                _line(axes, steps, run["curve"], color=color, linewidth=0.7, alpha=0.35)
        means = [point["mean"] for point in arm["curve"]]
        _line(axes, steps, means, color=color, linewidth=2.2, label=arm["name"])
        bands = [
            (x, *point["ci95"])
            for x, point in zip(steps, arm["curve"], strict=True)
            if point["ci95"]
        ]
        if bands:
            x, low, high = map(list, zip(*bands, strict=True))
            axes.fill_between(x, low, high, color=color, alpha=0.13, linewidth=0)
    _bound(axes, [v for run in found["runs"] for v in run["curve"] if v is not None])
    band = "band: 95 % t interval, pointwise" if n > 1 else "one seed, no interval"
    axes.set_title(
        f"average return of the training episodes\nthin: each of {n}; thick: mean; {band}", **TITLE
    )
    axes.set_xlim(0, found["total_timesteps"])
    axes.set_xlabel("environment steps")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.legend(frameon=False, loc="best")
    plain_axes(axes)


def _line(axes: Axes, steps: list[float], values: list[float | None], **style: Any) -> None:
    known = [(x, y) for x, y in zip(steps, values, strict=True) if y is not None]
    axes.plot([x for x, _ in known], [y for _, y in known], **style)


def _bound(axes: Axes, values: list[float]) -> None:
    """Let the seeds fill the axis: wide bands of few seeds are cut, not the curves squeezed."""
    if values:
        room = 0.08 * (max(values) - min(values)) or max(1.0, abs(values[0]))
        axes.set_ylim(min(values) - room, max(values) + room)


def _seeds(axes: Axes, found: Json) -> None:
    """A dot a seed, and the arm's mean with its interval beside them."""
    for k, arm in enumerate(found["arms"]):
        scores, color = [s for s in arm["per_seed"] if s is not None], _color(k)
        n = len(scores)
        spread = [k + 0.05 * ((i % 5) - 2) for i in range(n)]
        axes.plot(spread, scores, "o", color=color, markersize=5, alpha=0.6, zorder=2)
        at = k + 0.24
        if arm["ci95"]:
            axes.plot([at, at], arm["ci95"], color=color, linewidth=1.6, zorder=3)
        if arm["mean"] is not None:
            axes.plot([at], [arm["mean"]], "D", color=color, markersize=6, zorder=4)
    threshold = found["arms"][0]["threshold"]
    low, high = axes.get_ylim()
    if threshold is not None and low <= threshold <= high:
        axes.axhline(threshold, color="#888888", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(f"{threshold:g}: threshold", (0.02, threshold), ha="left", va="bottom",
                      xycoords=("axes fraction", "data"), fontsize=8, color="#555555")  # fmt: skip
    axes.set_xlim(-0.5, len(found["arms"]) - 0.3)
    axes.set_xticks(range(len(found["arms"])), [_label(arm) for arm in found["arms"]])
    axes.set_title(
        f"mean return of each seed's final policy, {found['episodes']} fresh episodes\n"
        "diamond: mean of the seeds; bar: its 95 % t interval",
        **TITLE,
    )
    plain_axes(axes)


def _label(arm: Json) -> str:
    failed = len(arm["failed"])
    return f"{arm['name']}\n({failed} failed)" if failed else str(arm["name"])


def _color(k: int) -> str:
    """Hues far apart first."""
    return COLORS[(4 * k + 7) % len(COLORS)]
