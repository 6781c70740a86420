"""What the figures of the theory pages share: size, colours, and a file that is always the same.

A script makes its panels, draws exact values as lines and measured ones with :func:`measured`, and
saves the figure under its page's name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

# Where the pages look for them; the tests draw into a folder of their own.
FOLDER = Path(os.environ.get("FIGURES", Path(__file__).parent.parent / "theory" / "figures"))
DPI, WIDTH = 100, 9.6  # 960 pixels

# Paul Tol's "bright": hues that people with any colour vision tell apart.
BLUE, RED, GREEN, YELLOW = "#4477AA", "#EE6677", "#228833", "#CCBB44"
CYAN, PURPLE, GREY, INK = "#66CCEE", "#AA3377", "#BBBBBB", "#333333"

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 10.5,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "font.size": 10,
    "grid.color": "#E8E8E8",
    "grid.linewidth": 0.8,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def panels(
    mosaic: str = "AB", height: float = 4.0, widths: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """Make a figure of 960 pixels' width and return it with its axes.

    Args:
        mosaic: a letter a panel, rows parted by ";": "A", "AB", or "AC;BC" for two panels above
            each other beside a high one.
        height: in inches of 100 pixels.
        widths: of the columns, relative to each other.

    Returns:
        The figure, and its axes in the order of their letters.
    """
    matplotlib.rcdefaults()  # no reader's own settings
    matplotlib.rcParams.update(STYLE)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    axes = figure.subplot_mosaic(mosaic, width_ratios=widths)
    return figure, [axes[letter] for letter in sorted(axes)]


def measured(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    color: str,
    label: str | None = None,
    **style: Any,
) -> None:
    """Draw measured values ``y`` at ``x`` as points, with their ``(low, high)`` intervals.

    ``style`` goes to matplotlib's ``errorbar``.
    """
    below = [max(0.0, value - low) for value, (low, _) in zip(y, intervals, strict=True)]
    above = [max(0.0, high - value) for value, (_, high) in zip(y, intervals, strict=True)]
    usual: dict[str, Any] = {
        "fmt": "o", "markersize": 5.5, "markeredgecolor": "white", "markeredgewidth": 0.8,
        "capsize": 3, "elinewidth": 1.3, "zorder": 4,
    }  # fmt: skip
    axes.errorbar(x, y, yerr=[below, above], color=color, label=label, **(usual | style))


def save(figure: Figure, name: str) -> Path:
    """Write ``docs/theory/figures/NAME.png``, the same bytes each time, and return its path."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.png"
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # 256 colours are plenty for lines, and a third of the bytes.
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    return path
