"""What the study found, in words, as a table and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from upslope.lab.study import Row

COLUMNS = ("estimator", "target", "bias along g", "exact", "variance", "exact", "SNR", "of floor",
           "theory", "verdict")  # fmt: skip
SHORT = {"finite": "finite", "discounted": "discounted", "undiscounted-weights": "no gamma^t"}


def sentences(rows: Sequence[Row]) -> list[str]:
    """What was found, one sentence a line."""
    verdicts = [row.findings.verdict for row in rows]
    agree = sum(row.agrees for row in rows)
    undecided = verdicts.count("undecided")
    lines = [
        f"{len(rows)} estimators measured: {verdicts.count('unbiased')} unbiased, "
        f"{verdicts.count('biased')} biased, {undecided} undecided; "
        f"theory says the same of {agree} of the {len(rows) - undecided} decided ones."
    ]
    inside = sum(
        row.findings.relative_bias_ci[0]
        <= row.findings.exact_relative_bias
        <= row.findings.relative_bias_ci[1]
        for row in rows
    )
    lines.append(f"The exact bias lies inside its interval {inside} times of {len(rows)}.")
    for mdp, group in groupby(rows, key=lambda row: row.mdp):
        fair = [row for row in group if row.predicted_unbiased and row.findings.exact_snr]
        best = max(fair, key=lambda row: row.findings.exact_snr or 0.0)
        plain = next((row for row in fair if row.name == "episode return"), None)
        if plain is not None and best.findings.exact_snr:
            ratio = (best.findings.exact_snr or 0.0) / (plain.findings.exact_snr or 1.0)
            lines.append(
                f"{mdp}: of the unbiased ones {best.name} has the clearest signal; "
                f"the episode return needs {ratio:,.1f} times its episodes."
            )
    return lines


def table(rows: Sequence[Row]) -> list[list[str]]:
    """One line of text cells per estimator, under ``COLUMNS``."""
    return [_cells(row) for row in rows]


def _cells(row: Row) -> list[str]:
    found = row.findings
    low, high = found.relative_bias_ci
    share = found.variance_over_floor
    return [
        row.name,
        SHORT[row.target],
        f"{found.relative_bias:+.3f} [{low:+.3f}, {high:+.3f}]",
        f"{found.exact_relative_bias:+.3f}",
        f"{found.variance:.3g}",
        f"{found.exact_variance:.3g}",
        "" if found.snr is None else f"{found.snr:.3g}",
        "" if share is None else f"{share:.1f} x",
        "unbiased" if row.predicted_unbiased else "biased",
        found.verdict,
    ]


def figure(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw bias with its interval beside variance, one pair of panels a process, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = [(name, list(group)) for name, group in groupby(rows, key=lambda row: row.mdp)]
    tallest = max(len(group) for _, group in groups)
    drawn = Figure(figsize=(12, 1.3 + len(groups) * (1.0 + 0.22 * tallest)), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots(len(groups), 2, squeeze=False, sharey="row", width_ratios=(3, 2))
    for (name, group), pair in zip(groups, axes, strict=True):
        _draw_bias(pair[0], name, group)
        _draw_variance(pair[1], group)
    drawn.suptitle(title, fontsize=13)
    drawn.savefig(path, dpi=110)


def _draw_bias(axis: Any, name: str, group: list[Row]) -> None:
    for place, row in enumerate(group):
        found = row.findings
        color = "tab:blue" if row.predicted_unbiased else "tab:red"
        low, high = found.relative_bias_ci
        axis.plot([low, high], [place, place], color=color, lw=2, solid_capstyle="butt")
        axis.plot([found.relative_bias], [place], "o", color=color, ms=4)
        axis.plot([found.exact_relative_bias], [place], "|", color="black", ms=11, mew=1.6)
        if found.verdict == "undecided":
            axis.plot([found.relative_bias], [place], "o", color="white", ms=2)
    axis.axvline(0, color="0.6", lw=0.8)
    axis.set_yticks(range(len(group)), [row.name for row in group], fontsize=8)
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.25)
    axis.set_title(f"{name}: bias along the gradient, relative to it", fontsize=10, loc="left")
    axis.set_xlabel(
        "blue: theory says unbiased, red: biased; black stroke: exact; hollow: undecided",
        fontsize=8,
    )


def _draw_variance(axis: Any, group: list[Row]) -> None:
    for place, row in enumerate(group):
        found = row.findings
        low, high = found.variance_ci
        axis.plot([max(low, 1e-9), high], [place, place], color="0.45", lw=2)
        axis.plot([found.variance], [place], "o", color="0.3", ms=4)
        axis.plot([found.exact_variance], [place], "|", color="black", ms=11, mew=1.6)
    floors = [row.floor for row in group if row.floor]
    if floors:
        axis.axvline(floors[0], color="tab:green", lw=1, ls="--")
    axis.set_xscale("log")
    axis.grid(axis="x", alpha=0.25)
    axis.set_title("variance of one episode (trace)", fontsize=10, loc="left")
    floor = "; green: efficiency floor of the discounted gradient" if floors else ""
    axis.set_xlabel(f"black stroke: exact{floor}", fontsize=8)
