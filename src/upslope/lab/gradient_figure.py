"""The gradient's noise in one figure: a row an estimator, a panel a question, 99 % intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.lab.gradient_study import MARGIN, GradientStudy, Measured
from upslope.lab.noise import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OWN, OTHER, PALE = "#117733", "#332288", "#b8b8b8"
TITLE: dict[str, Any] = {"fontsize": 9.5, "loc": "left", "color": "#444444"}
NOTE: dict[str, Any] = {"fontsize": 8.5, "color": "#777777"}
LINE: dict[str, Any] = {"color": "#882255", "linewidth": 1.1, "linestyle": (0, (4, 2)), "zorder": 1}


def save_figure(study: GradientStudy, path: Path) -> None:
    """Write the figure as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn = figure(study)
    FigureCanvasAgg(drawn)
    drawn.savefig(path, dpi=110, format="png")


def figure(study: GradientStudy) -> Figure:
    """Draw four panels that share their rows: variance, noise scale, length and direction."""
    from matplotlib.figure import Figure

    height = 2.3 + 0.36 * len(study.rows)
    drawn = Figure(figsize=(15, height), layout="constrained")
    panels = drawn.subplots(1, 4, sharey=True, width_ratios=[1, 1.15, 1, 0.8])
    for panel, draw in zip(panels, (_variance, _noise_scale, _length, _direction), strict=True):
        draw(panel, study)
        _plain(panel)
    names = [row.name for row in study.rows]
    panels[0].set_yticks(range(len(names)), names, fontsize=9.5)
    for label, name in zip(panels[0].get_yticklabels(), names, strict=True):
        if name == study.own:
            label.set(color=OWN, fontweight="bold")
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    drawn.suptitle(
        f"{study.environment}, {study.config.algorithm}: the gradient in {study.episodes} episodes "
        f"of {study.mean_length:,.0f} steps (green: this run's estimator; bars: 99 %)",
        fontsize=12.5, fontweight="bold", x=0.01, ha="left",
    )  # fmt: skip
    return drawn


def _variance(axes: Axes, study: GradientStudy) -> None:
    axes.set_xscale("log")
    axes.axvline(1.0, **LINE)
    _bars(axes, study, lambda row: row.variance_ratio)
    axes.set_title(f"variance of one episode's gradient\nover that of {study.reference}", **TITLE)
    axes.set_xlabel("ratio (further left: less noise)")
    _decades(axes)


def _noise_scale(axes: Axes, study: GradientStudy) -> None:
    axes.set_xscale("log")
    axes.axvline(study.batch_episodes, **LINE)
    _bars(axes, study, lambda row: row.noise_scale)
    axes.set_title(
        "noise scale: batch where noise equals signal\n"
        f"(arrow: at least; dashed: this run's, {study.batch_episodes:,.3g})",
        **TITLE,
    )
    axes.set_xlabel("episodes (further left: smaller batches do)")
    _decades(axes)


def _length(axes: Axes, study: GradientStudy) -> None:
    axes.axvspan(-100 * MARGIN, 100 * MARGIN, color="#eeeeee", zorder=0)
    axes.axvline(0.0, **LINE)
    _bars(axes, study, lambda row: row.difference, scale=100.0)
    low, high = axes.get_xlim()  # wide intervals leave the panel: they say no more than "wide"
    axes.set_xlim(max(low, -160), min(high, 160))
    axes.set_title("length along the reference\n(dashed: equal; band: agreement)", **TITLE)
    axes.set_xlabel("difference, %")


def _direction(axes: Axes, study: GradientStudy) -> None:
    """Against the reference and against itself, each from the other half of the episodes."""
    for y, row in enumerate(study.rows):
        if math.isfinite(row.cosine_halves):
            axes.plot(row.cosine_halves, y, "|", color="black", markersize=11, zorder=3)
        if math.isfinite(row.cosine_across):
            color = OWN if row.name == study.own else OTHER
            axes.plot(row.cosine_across, y, "o", color=color, markersize=5.5, zorder=4)
    axes.axvline(0.0, color=PALE, linewidth=0.8, zorder=1)
    axes.set_xlim(-1.05, 1.05)
    axes.set_title("direction, on other episodes\n(dot: with the reference; bar: itself)", **TITLE)
    axes.set_xlabel("cosine")


def _bars(
    axes: Axes, study: GradientStudy, of: Callable[[Measured], Estimate], scale: float = 1.0
) -> None:
    """A dot and its interval in each row; an arrow where the interval is open above."""
    ends = [scale * x for row in study.rows for x in of(row) if math.isfinite(x)]
    furthest = max(ends, default=1.0)
    for y, row in enumerate(study.rows):
        value, low, high = (scale * x for x in of(row))
        color = OWN if row.name == study.own else OTHER
        if row.is_zero or math.isnan(low) or math.isinf(low):
            said = "0 in every episode" if row.is_zero else "undecided"
            axes.text(0.02, y, said, transform=axes.get_yaxis_transform(), va="center", **NOTE)
        elif math.isinf(high):
            arrow = {"arrowstyle": "->", "color": color, "linewidth": 1.3}
            end = (max(furthest, 2 * low), y)
            axes.annotate("", xy=end, xytext=(low, y), zorder=3, arrowprops=arrow)
            axes.plot([low, end[0]], [y, y], color=color, alpha=0)  # that the axis holds the arrow
            axes.plot(low, y, "|", color=color, markersize=8, zorder=3)
        else:
            axes.plot([low, high], [y, y], color=color, linewidth=1.8, zorder=3)
            axes.plot(value, y, "o", color=color, markersize=5.5, zorder=3)


def _decades(axes: Axes) -> None:
    """At most six labels on a logarithmic axis, none with an exponent that people can read."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}" if 1 <= x < 1e6 else f"{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(True, axis="x", color="#e6e6e6", linewidth=0.7, zorder=0)
    axes.tick_params(axis="y", length=0)
    axes.set_axisbelow(True)
